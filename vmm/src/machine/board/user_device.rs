//! Entries of `user_devices`: PCI devices in other processes.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use reprise_devices::pci::{Message, Messages};
use reprise_devices::thread::{ThreadKind, begin};
use reprise_devices::vfio_user::{EventMessages, UserDevice, is_signalled};
use reprise_devices::virtio::Dma;
use reprise_hypervisor::Vm;
use reprise_hypervisor::signals::{self, MessageEvent};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Context, Made, PciDevice, PciDeviceState};
use super::{BoardError, BoardStateError};
use crate::config::UserDeviceConfig;

/// The device that `config` asks for.
pub(super) fn make(name: &str, config: &UserDeviceConfig, context: &Context) -> Result<Made, BoardError> {
    context.needs_sharing(name)?;
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
        self.vector(vector).is_some_and(|event| is_signalled(event.event()))
    }
}

impl EventMessages for Events {
    fn event(&self, vector: u16) -> io::Result<EventFd> {
        let event = self.vm.message_event().map_err(io::Error::other)?;
        let mut vectors = guard(&self.vectors);
        debug_assert_eq!(vectors.len(), usize::from(vector), "asked for in order");
        vectors.push(Arc::clone(&event));
        match &self.relay {
            Some(relay) => relay.add(event),
            None => event.event().try_clone(),
        }
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(epoll: &Epoll, event: &EventFd, what: EventSet, number: u64) -> io::Result<()> {
    let told = EpollEvent::new(what, number);
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), told)
}

/// Stands between a process that writes to guest memory and vCPUs that keep what they have decoded: what it wrote before it
/// interrupts is told before the interrupt comes.
struct Relay {
    shared: Arc<Relayed>,
    thread: Option<JoinHandle<()>>,
}

struct Relayed {
    dma: Dma,
    epoll: Epoll,
    /// What the process signals, and what is signalled then.
    pairs: Mutex<Vec<(EventFd, Arc<dyn MessageEvent>)>>,
    /// Rung at the end.
    bell: EventFd,
}

/// What the thread is told by, in place of a pair's place.
const END: u64 = u64::MAX;
/// Interrupts that are taken notice of at once.
const BATCH: usize = 16;

impl Relay {
    fn new(dma: Dma) -> io::Result<Self> {
        let shared = Arc::new(Relayed {
            dma,
            epoll: Epoll::new()?,
            pairs: Mutex::default(),
            bell: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        });
        watch(&shared.epoll, &shared.bell, EventSet::IN, END)?;
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("user-interrupts".to_owned())
            .spawn(move || {
                begin(ThreadKind::UserDevice);
                theirs.run();
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// What a process signals to have `event` signalled.
    fn add(&self, event: Arc<dyn MessageEvent>) -> io::Result<EventFd> {
        let own = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let theirs = own.try_clone()?;
        let mut pairs = guard(&self.shared.pairs);
        // Told of each write, the event is never read: the process could have a read of it block.
        let written = EventSet::IN | EventSet::EDGE_TRIGGERED;
        watch(&self.shared.epoll, &own, written, pairs.len() as u64)?;
        pairs.push((own, event));
        Ok(theirs)
    }
}

impl Relayed {
    fn run(&self) {
        let mut told = [EpollEvent::default(); BATCH];
        loop {
            let count = match self.epoll.wait(-1, &mut told) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "interrupts of a device in another process cannot be waited for any more");
                    return;
                }
            };
            let pairs = guard(&self.pairs);
            let mut signalled = Vec::new();
            for told in &told[..count] {
                if told.data() == END {
                    return;
                }
                let pair = usize::try_from(told.data()).ok().and_then(|place| pairs.get(place));
                signalled.extend(pair.map(|(_, event)| Arc::clone(event)));
            }
            drop(pairs);
            if !signalled.is_empty() {
                self.dma.written_anywhere();
            }
            signalled.iter().for_each(|event| event.signal());
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Fails only if it was rung 2⁶⁴ times and nobody has taken notice.
        let _ = self.shared.bell.write(1);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
