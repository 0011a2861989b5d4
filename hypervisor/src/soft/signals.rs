//! Events for interrupts and doorbells: a thread waits for the former, the vCPU signals the latter.
//!
//! # Life of an interrupt
//! masked -(set)-> watched by the thread -(event)-> taken and sent. While it is masked nobody looks at its event, which so
//! remembers that it was signalled.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::chipset::Chipset;
use super::ioapic::MessageBus;
use super::message::decode_msi;
use crate::signals::{DoorbellAddress, Message, MessageEvent};
use crate::{HypervisorError, Space};

/// What the thread is told by, in place of an interrupt's number.
const STOP: u64 = u64::MAX;

/// A host that refuses something.
fn refused(call: &'static str) -> impl FnOnce(std::io::Error) -> HypervisorError {
    move |source| HypervisorError::Host { call, source }
}

/// The doorbells of a machine.
#[derive(Debug, Default)]
pub struct Doorbells {
    /// There is one: the rest need not be looked at otherwise.
    any: AtomicBool,
    all: RwLock<Vec<(u64, DoorbellAddress, EventFd)>>,
    last: AtomicU64,
}

impl Doorbells {
    /// Signals `event` for writes to `at`; what [`remove`](Self::remove) knows it by.
    pub fn add(&self, at: DoorbellAddress, event: EventFd) -> u64 {
        let number = self.last.fetch_add(1, Ordering::SeqCst);
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.push((number, at, event));
        self.any.store(true, Ordering::SeqCst);
        number
    }

    /// Takes a doorbell away.
    pub fn remove(&self, number: u64) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(own, ..)| *own != number);
        self.any.store(!all.is_empty(), Ordering::SeqCst);
    }

    /// Rings for a write; false if there is no bell.
    #[inline]
    pub fn ring(&self, space: Space, address: u64, size: u8, value: u64) -> bool {
        self.any.load(Ordering::Relaxed) && self.ring_one(space, address, size, value)
    }

    #[cold]
    fn ring_one(&self, space: Space, address: u64, size: u8, value: u64) -> bool {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let Some((.., event)) = all.iter().find(|(_, at, _)| at.rings(space, address, size, value)) else {
            return false;
        };
        let _already_signalled = event.write(1);
        true
    }
}

/// The interrupts that events signal, and the thread that waits for them.
#[derive(Debug)]
pub struct Signals {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    chipset: Arc<Chipset>,
    epoll: Epoll,
    stop: EventFd,
    routes: Mutex<BTreeMap<u64, Route>>,
}

/// An interrupt that is not masked.
#[derive(Debug)]
struct Route {
    message: Message,
    event: EventFd,
}

impl Signals {
    /// Begins to wait.
    ///
    /// # Errors
    /// [`HypervisorError::Host`].
    pub fn new(chipset: Arc<Chipset>) -> Result<Self, HypervisorError> {
        let epoll = Epoll::new().map_err(refused("epoll_create1"))?;
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(refused("eventfd"))?;
        let own = EpollEvent::new(EventSet::IN, STOP);
        epoll
            .ctl(ControlOperation::Add, stop.as_raw_fd(), own)
            .map_err(refused("epoll_ctl"))?;
        let shared = Arc::new(Shared {
            chipset,
            epoll,
            stop,
            routes: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("signals".into())
            .spawn(move || theirs.run())
            .map_err(|source| HypervisorError::Thread { source })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// A new interrupt, masked; `number` is its own.
    ///
    /// # Errors
    /// [`HypervisorError::Host`].
    pub fn interrupt(&self, number: u64) -> Result<SoftMessageEvent, HypervisorError> {
        Ok(SoftMessageEvent {
            shared: Arc::clone(&self.shared),
            number,
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(refused("eventfd"))?,
        })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _already_told = self.shared.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that waits for signalled interrupts panicked");
        }
    }
}

impl Shared {
    fn routes(&self) -> MutexGuard<'_, BTreeMap<u64, Route>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "interrupts that events signal come no more");
                    return;
                }
            };
            for event in &events[..count] {
                if event.data() == STOP {
                    return;
                }
                self.take(event.data());
            }
        }
    }

    /// Sends the interrupt if it was signalled, and is not masked meanwhile.
    fn take(&self, number: u64) {
        let routes = self.routes();
        if let Some(Route { message, event }) = routes.get(&number)
            && event.read().is_ok()
            && let Some(message) = decode_msi(message.address, message.data)
        {
            self.chipset.deliver(&message);
        }
    }
}

/// An interrupt that an event signals.
pub struct SoftMessageEvent {
    shared: Arc<Shared>,
    number: u64,
    event: EventFd,
}

impl MessageEvent for SoftMessageEvent {
    fn set(&self, message: Option<Message>) -> Result<(), HypervisorError> {
        let mut routes = self.shared.routes();
        let fd = self.event.as_raw_fd();
        let ctl = |operation| {
            let event = EpollEvent::new(EventSet::IN, self.number);
            self.shared
                .epoll
                .ctl(operation, fd, event)
                .map_err(refused("epoll_ctl"))
        };
        match (message, routes.contains_key(&self.number)) {
            (Some(message), false) => {
                let event = self.event.try_clone().map_err(refused("dup"))?;
                ctl(ControlOperation::Add)?;
                routes.insert(self.number, Route { message, event });
            }
            (Some(message), true) => {
                if let Some(route) = routes.get_mut(&self.number) {
                    route.message = message;
                }
            }
            (None, true) => {
                ctl(ControlOperation::Delete)?;
                routes.remove(&self.number);
            }
            (None, false) => {}
        }
        Ok(())
    }

    fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for SoftMessageEvent {
    fn drop(&mut self) {
        if let Err(error) = self.set(None) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "an interrupt's event stays watched"
            );
        }
    }
}
