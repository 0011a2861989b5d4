//! Entries of `user_devices`: PCI devices in other processes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use reprise_devices::pci::{Message, Messages};
use reprise_devices::vfio_user::{EventMessages, UserDevice};
use reprise_devices::virtio::Dma;
use reprise_hypervisor::Vm;
use reprise_hypervisor::signals::{self, MessageEvent};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::device::{Context, Made, PciDevice, PciDeviceState};
use super::{BoardError, BoardStateError};
use crate::config::UserDeviceConfig;

/// The device that `config` asks for.
pub(super) fn make(name: &str, config: &UserDeviceConfig, context: &Context) -> Result<Made, BoardError> {
    let events = Arc::new(Events {
        vm: Arc::clone(&context.vm),
        vectors: Mutex::default(),
        relay: match context.vm.keeps_decoded() {
            true => Some(Relay::new(context.dma.clone()).map_err(|source| BoardError::Thread { source })?),
            false => None,
        },
    });
    let connected = UserDevice::connect(name, &config.socket, &context.dma, events);
    let (device, function) = connected.map_err(|source| BoardError::UserDevice {
        name: name.to_owned(),
        source,
    })?;
    Ok(Made {
        function: Arc::new(function),
        device,
    })
}

impl PciDevice for UserDevice {
    fn set_paused(&self, paused: bool, _patience: Duration) -> bool {
        self.set_paused(paused);
        true
    }

    fn state(&self) -> Result<PciDeviceState, BoardStateError> {
        Ok(PciDeviceState::User)
    }

    fn restore(&self, state: &PciDeviceState) -> Result<(), BoardStateError> {
        match state {
            PciDeviceState::User => Ok(()),
            PciDeviceState::Virtio(_) => Err(BoardStateError::Kind {
                name: self.name().to_owned(),
            }),
        }
    }
}

/// Interrupts that another process signals: the hypervisor's own events, or those of a [`Relay`] in front of them.
struct Events {
    vm: Arc<dyn Vm>,
    vectors: Mutex<Vec<Arc<dyn MessageEvent>>>,
    relay: Option<Relay>,
}

impl Events {
    fn vector(&self, vector: u16) -> Option<Arc<dyn MessageEvent>> {
        guard(&self.vectors).get(usize::from(vector)).cloned()
    }
}

impl Messages for Events {
    fn send(&self, message: Message) {
        self.vm.signal_msi(message.address, message.data);
    }

    fn route(&self, vector: u16, message: Option<Message>) {
        let message = message.map(|message| signals::Message {
            address: message.address,
            data: message.data,
        });
        if let Some(event) = self.vector(vector)
            && let Err(error) = event.set(message)
        {
            tracing::warn!(vector, %error, "an interrupt of a device in another process cannot be routed");
        }
    }

    fn is_pending(&self, vector: u16) -> bool {
        self.vector(vector)
            .is_some_and(|event| is_readable(event.event().as_fd()))
    }
}

impl EventMessages for Events {
    fn event(&self, vector: u16) -> io::Result<OwnedFd> {
        let event = self.vm.message_event().map_err(io::Error::other)?;
        let mut vectors = guard(&self.vectors);
        debug_assert_eq!(vectors.len(), usize::from(vector), "asked for in order");
        vectors.push(Arc::clone(&event));
        match &self.relay {
            Some(relay) => relay.add(event),
            None => Ok(event.event().as_fd().try_clone_to_owned()?),
        }
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
}

/// Stands between a process that writes to guest memory and vCPUs that keep what they have decoded: what it wrote before it
/// interrupts is told before the interrupt comes.
struct Relay {
    shared: Arc<Relayed>,
    thread: Option<JoinHandle<()>>,
}

struct Relayed {
    dma: Dma,
    /// What the process signals, and what is signalled then.
    pairs: Mutex<Vec<Arc<(OwnedFd, Arc<dyn MessageEvent>)>>>,
    /// Rung when there is another pair, and at the end.
    bell: OwnedFd,
    ended: AtomicBool,
}

impl Relay {
    fn new(dma: Dma) -> io::Result<Self> {
        let shared = Arc::new(Relayed {
            dma,
            pairs: Mutex::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            ended: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("user-interrupts".to_owned())
            .spawn(move || theirs.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// What a process signals to have `event` signalled.
    fn add(&self, event: Arc<dyn MessageEvent>) -> io::Result<OwnedFd> {
        let own = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let theirs = own.try_clone()?;
        guard(&self.shared.pairs).push(Arc::new((own, event)));
        self.shared.ring();
        Ok(theirs)
    }
}

impl Relayed {
    fn ring(&self) {
        // Fails only if it was rung 2⁶⁴ times and nobody has taken notice.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn run(&self) {
        while !self.ended.load(Relaxed) {
            let pairs = guard(&self.pairs).clone();
            let mut fds = vec![PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN)];
            fds.extend(
                pairs
                    .iter()
                    .map(|pair| PollFd::from_borrowed_fd(pair.0.as_fd(), PollFlags::IN)),
            );
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
            let signalled: Vec<_> = pairs
                .iter()
                .zip(&fds[1..])
                .filter(|(pair, fd)| !fd.revents().is_empty() && rustix::io::read(&pair.0, &mut [0; 8]).is_ok())
                .collect();
            if !signalled.is_empty() {
                self.dma.written_anywhere();
            }
            for (pair, _) in signalled {
                pair.1.signal();
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
        self.shared.ring();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
