//! A queue and the thread that serves it.
//!
//! # Invariants
//! - The thread holds the queue itself while it serves, and no lock: whoever wants to reset, pause or notify waits for nothing
//!   but a few instructions. Only [`QueueThread::set_paused`], which no vCPU calls, waits for the request that is being served.
//! - After a reset the thread takes no further request from the old rings, and what it holds is thrown away, never put back.
//!
//! # Life
//! idle -[`QueueThread::start`]-> ready -bell-> serving -> ready; -[`QueueThread::reset`]-> idle, as soon as the thread has let
//! go.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::chain::Segments;
use super::device::{Handled, QueueHandler};
use super::dma::Dma;
use super::interrupts::Interrupts;
use crate::sync::lock;
use crate::sys;
use crate::thread::{ThreadKind, begin};

/// Requests served before the driver is told, if there are always more.
const BATCH: u16 = 32;
/// Bytes of a used ring besides its elements: flags, index, avail_event.
const USED_RING_META: u64 = 6;
/// Bytes of an element of a used ring.
const USED_ELEMENT: u64 = 8;
/// Bytes of a ring before its elements: flags and index.
const RING_HEADER: u64 = 4;
/// Bytes of an element of an available ring.
const AVAILABLE_ELEMENT: u64 = 2;

/// What a device's queues count together.
#[derive(Debug, Default)]
pub(super) struct QueueCounters {
    pub(super) requests: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) notifications: AtomicU64,
    pub(super) interrupts: AtomicU64,
    /// How often this process has rung the bells.
    rung: AtomicU64,
    /// How often they were heard.
    heard: AtomicU64,
}

impl QueueCounters {
    /// How often somebody else has rung a bell: the host's kernel, for the guest.
    pub(super) fn doorbells(&self) -> u64 {
        // In this order none is counted that this process rings meanwhile.
        let heard = self.heard.load(Ordering::SeqCst);
        heard.saturating_sub(self.rung.load(Ordering::SeqCst))
    }
}

/// The registers' end of a queue's thread. Dropped, it ends the thread.
pub(super) struct QueueThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    index: usize,
    dma: Dma,
    interrupts: Arc<Interrupts>,
    counters: Arc<QueueCounters>,
    control: Mutex<Control>,
    /// Told when the thread has let go of its queue.
    idle: Condvar,
    /// The thread shall let go as soon as the request that it serves is done.
    leave: AtomicBool,
    bell: EventFd,
}

#[derive(Default)]
struct Control {
    queue: Option<Queue>,
    features: u64,
    /// Counts resets and starts: what the thread took under an earlier number is thrown away.
    epoch: u64,
    serving: bool,
    paused: bool,
    /// The function may not access memory.
    barred: bool,
    ended: bool,
}

impl Control {
    fn may_serve(&self) -> bool {
        self.queue.is_some() && !self.paused && !self.barred && !self.ended
    }
}

impl QueueThread {
    /// A thread called `name` that serves queue `index` with `handler`, once it is started.
    ///
    /// # Errors
    /// The operating system's, if it has no thread or no event descriptor.
    pub(super) fn spawn(
        name: String,
        index: usize,
        dma: Dma,
        interrupts: Arc<Interrupts>,
        counters: Arc<QueueCounters>,
        handler: Box<dyn QueueHandler>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            name,
            index,
            dma,
            interrupts,
            counters,
            control: Mutex::new(Control {
                barred: true,
                ..Control::default()
            }),
            idle: Condvar::new(),
            leave: AtomicBool::new(false),
            bell: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        });
        let theirs = Arc::clone(&shared);
        // The kernel shows the first 15 bytes.
        let thread = thread::Builder::new().name(shared.name.clone()).spawn(move || {
            begin(ThreadKind::Queue);
            theirs.run(handler);
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The driver has made buffers available.
    pub(super) fn notify(&self) {
        self.shared.ring();
    }

    /// Whoever writes to this event notifies, too.
    pub(super) fn bell(&self) -> &EventFd {
        &self.shared.bell
    }

    /// Serves `queue` from now on, for a driver that has accepted `features`.
    pub(super) fn start(&self, queue: Queue, features: u64) {
        let mut control = lock(&self.shared.control);
        control.queue = Some(queue);
        control.features = features;
        control.epoch += 1;
        drop(control);
        self.shared.ring();
    }

    /// Forgets the queue.
    pub(super) fn reset(&self) {
        let mut control = lock(&self.shared.control);
        control.queue = None;
        control.epoch += 1;
        if control.serving {
            self.shared.leave();
        }
    }

    /// Whether the thread is at work.
    pub(super) fn is_serving(&self) -> bool {
        lock(&self.shared.control).serving
    }

    /// Says whether the function may access memory.
    pub(super) fn set_barred(&self, barred: bool) {
        let mut control = lock(&self.shared.control);
        control.barred = barred;
        self.shared.settle(&control);
    }

    /// Stops (true) or continues (false) serving. Once stopped, nothing happens until continued: this waits for the request
    /// that is being served, until `deadline` at most. False if it is being served still.
    pub(super) fn set_paused(&self, paused: bool, deadline: Instant) -> bool {
        let mut control = lock(&self.shared.control);
        control.paused = paused;
        self.shared.settle(&control);
        while paused && control.serving {
            let Some(left) = deadline
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())
            else {
                return false;
            };
            let waited = self.shared.idle.wait_timeout(control, left);
            control = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Where the queue is, if it was started. It is quiet: paused, or not started.
    pub(super) fn state(&self) -> Option<QueueState> {
        lock(&self.shared.control).queue.as_ref().map(Queue::state)
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        lock(&self.shared.control).ended = true;
        self.shared.leave.store(true, Ordering::SeqCst);
        self.shared.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(queue = self.shared.name, "the thread of a queue panicked");
        }
    }
}

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// There are no more requests; the driver will notify.
    All,
    /// There is a request that cannot be answered before the source can be read.
    Awaits,
    /// There are requests, but fewer than the answer takes; the driver will notify.
    Lacks,
    /// Somebody wants the thread to let go.
    Left,
    /// The rings are none.
    Broken,
}

impl Shared {
    /// Rings the bell. It can only fail for having been rung 2^64 - 2 times since the thread last looked.
    fn ring(&self) {
        self.counters.rung.fetch_add(1, Ordering::SeqCst);
        let _ = self.bell.write(1);
    }

    /// Hushes the bell.
    fn hear(&self) -> io::Result<()> {
        match self.bell.read() {
            Ok(times) => _ = self.counters.heard.fetch_add(times, Ordering::SeqCst),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Has the thread let go, also if it only looks on while another process serves.
    fn leave(&self) {
        self.leave.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Has the thread look again, or let go.
    fn settle(&self, control: &Control) {
        if control.paused || control.barred {
            if control.serving {
                self.leave();
            }
        } else {
            self.ring();
        }
    }

    fn run(&self, mut handler: Box<dyn QueueHandler>) {
        let mut segments = Segments::default();
        let mut awaits = false;
        let mut begun = 0;
        loop {
            if let Err(error) = self.wait(&*handler, awaits) {
                tracing::error!(queue = self.name, %error, "a queue cannot be waited for any more");
                self.interrupts.need_reset();
                return;
            }
            let mut control = lock(&self.control);
            if control.ended {
                return;
            }
            if !control.may_serve() {
                awaits = false;
                continue;
            }
            let Some(mut queue) = control.queue.take() else {
                continue;
            };
            let (epoch, features) = (control.epoch, control.features);
            control.serving = true;
            // Whoever wants it to leave from here on, finds it serving.
            self.leave.store(false, Ordering::SeqCst);
            drop(control);

            if begun != epoch {
                handler.begin(features);
                begun = epoch;
            }
            let served = match handler.remote() {
                Some(remote) => self.oversee(&mut queue, remote, features, &mut segments),
                None => self.serve(&mut queue, &mut *handler, &mut segments),
            };
            let served = served.unwrap_or_else(|error| {
                tracing::warn!(queue = self.name, %error, "the rings of a queue cannot be used; its device needs a reset");
                Served::Broken
            });
            awaits = served == Served::Awaits;

            let mut control = lock(&self.control);
            control.serving = false;
            if control.epoch == epoch && served != Served::Broken {
                control.queue = Some(queue);
            }
            if served == Served::Left && control.may_serve() {
                // Asked to leave by something that is over by now.
                self.ring();
            }
            let is_current = control.epoch == epoch;
            drop(control);
            if served == Served::Broken && is_current {
                self.counters.malformed.fetch_add(1, Ordering::Relaxed);
                self.interrupts.need_reset();
            }
            self.idle.notify_all();
        }
    }

    /// Waits until the bell has rung, or the source can be read if somebody awaits it.
    fn wait(&self, handler: &dyn QueueHandler, awaits: bool) -> io::Result<()> {
        let source = handler.source().filter(|_| awaits);
        let mut fds = vec![PollFd::from_borrowed_fd(sys::borrow(&self.bell), PollFlags::IN)];
        fds.extend(source.map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // A source that is gone for good would have this thread spin; it is read like any other, and refuses then.
        if fds.len() > 1
            && fds[1]
                .revents()
                .intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
        {
            thread::sleep(Duration::from_millis(10));
        }
        self.hear()
    }

    fn serve(
        &self,
        queue: &mut Queue,
        handler: &mut dyn QueueHandler,
        segments: &mut Segments,
    ) -> Result<Served, Error> {
        let mut batch = Batch {
            shared: self,
            told: queue.next_used(),
            queue,
            held: Vec::new(),
        };
        let mut rounds = || loop {
            batch.queue.disable_notification(self.dma.memory())?;
            let served = batch.drain(handler, segments)?;
            let more = match served {
                Served::All => batch.queue.enable_notification(self.dma.memory())?,
                Served::Lacks => batch.await_more()?,
                _ => false,
            };
            if !more {
                return Ok(served);
            }
        };
        let served = rounds();
        self.ring_written(queue);
        served
    }

    /// The used ring was written.
    fn ring_written(&self, queue: &Queue) {
        let length = USED_RING_META + USED_ELEMENT * u64::from(queue.size());
        self.dma.written(queue.used_ring(), length);
    }
}

/// A queue while it is served.
struct Batch<'a> {
    shared: &'a Shared,
    queue: &'a mut Queue,
    /// Up to which element of the used ring the driver was told.
    told: u16,
    /// Heads and lengths of requests that are to be used together with the next.
    held: Vec<(u16, u32)>,
}

impl Batch<'_> {
    /// Serves what is available, and tells the driver.
    fn drain(&mut self, handler: &mut dyn QueueHandler, segments: &mut Segments) -> Result<Served, Error> {
        let shared = self.shared;
        let memory = shared.dma.memory();
        let served = loop {
            if shared.leave.load(Ordering::SeqCst) {
                break Served::Left;
            }
            let Some(chain) = self.queue.iter(memory)?.next() else {
                break if self.held.is_empty() {
                    Served::All
                } else {
                    Served::Lacks
                };
            };
            let head = chain.head_index();
            let handled = segments
                .gather(chain, self.queue.size())
                .and_then(|()| handler.handle(&segments.chain(&shared.dma)));
            let length = match handled {
                Ok(Handled::Used(length)) => length,
                Ok(Handled::Held(length)) if self.held.len() < self.queue.size().into() => {
                    self.held.push((head, length));
                    continue;
                }
                Ok(Handled::Held(length)) => length,
                Ok(Handled::NotNow) => {
                    self.queue.go_to_previous_position();
                    break Served::Awaits;
                }
                Err(error) => {
                    // A guest could have it told without end.
                    if shared.counters.malformed.fetch_add(1, Ordering::Relaxed) == 0 {
                        tracing::warn!(queue = shared.name, %error, "a request is malformed");
                    }
                    if !self.held.is_empty() {
                        handler.put_back(false);
                        for (_, length) in &mut self.held {
                            *length = 0;
                        }
                    }
                    0
                }
            };
            self.put_used(head, length)?;
            if self.queue.next_used().wrapping_sub(self.told) >= BATCH {
                self.tell()?;
            }
        };
        if !self.held.is_empty() {
            let all = self.held.len() >= self.queue.size().into();
            let next = self.queue.next_avail().wrapping_sub(self.held.len() as u16);
            self.queue.set_next_avail(next);
            handler.put_back(all);
        }
        self.tell()?;
        Ok(served)
    }

    /// Has the driver notify when there are more requests than those that were put back; whether there are by now.
    fn await_more(&mut self) -> Result<bool, Error> {
        let next = self.queue.next_avail();
        self.queue.set_next_avail(next.wrapping_add(self.held.len() as u16));
        self.held.clear();
        let more = self.queue.enable_notification(self.shared.dma.memory());
        self.queue.set_next_avail(next);
        more
    }

    /// Puts a request into the used ring, and those that were held before it; they appear at once.
    fn put_used(&mut self, head: u16, length: u32) -> Result<(), Error> {
        let memory = self.shared.dma.memory();
        for (head, length) in self.held.drain(..) {
            self.shared.counters.requests.fetch_add(1, Ordering::Relaxed);
            let next = self.queue.next_used();
            let place = self.queue.used_ring() + RING_HEADER + USED_ELEMENT * u64::from(next % self.queue.size());
            let element = [u32::from(head).to_le(), length.to_le()];
            memory
                .write_obj(element, GuestAddress(place))
                .map_err(Error::GuestMemory)?;
            // The index in memory follows with the last one's.
            self.queue.set_next_used(next.wrapping_add(1));
        }
        self.shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.queue.add_used(memory, head, length)
    }

    /// Tells the driver of the buffers that were used since it was told last, if it wants to know.
    fn tell(&mut self) -> Result<(), Error> {
        let (old, new) = (self.told, self.queue.next_used());
        if old == new {
            return Ok(());
        }
        self.told = new;
        self.shared.ring_written(self.queue);
        if self.is_wanted(old, new)? {
            self.shared.counters.interrupts.fetch_add(1, Ordering::Relaxed);
            self.shared.interrupts.queue_used(self.shared.index);
        }
        Ok(())
    }

    /// Whether the driver wants to be told that the used ring has gone from `old` to `new` (virtio 1.2, "Used Buffer
    /// Notification Suppression").
    fn is_wanted(&self, old: u16, new: u16) -> Result<bool, Error> {
        let load = |offset: u64| {
            let address = GuestAddress(self.queue.avail_ring() + offset);
            let value = self.shared.dma.memory().load::<u16>(address, Ordering::Relaxed);
            value.map(u16::from_le).map_err(Error::GuestMemory)
        };
        // The index must be seen before the driver's wish is read.
        fence(Ordering::SeqCst);
        if self.queue.event_idx_enabled() {
            let event = load(RING_HEADER + AVAILABLE_ELEMENT * u64::from(self.queue.size()))?;
            Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            Ok(load(0)? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
        }
    }
}

mod remote;
#[cfg(test)]
mod tests;
