//! Looking on while another process serves a queue: passing on what driver and process tell each other.
//!
//! # What is written to guest memory
//! Whoever keeps decoded instructions is told of a buffer when it is given to the process, and not when it was filled, which
//! nobody here sees: a driver does not execute what it has just handed over to be written.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Served, Shared};
use crate::virtio::chain::Segments;
use crate::virtio::device::RemoteQueue;

/// What an epoll event is about.
const BELL: u64 = 0;
const CALLED: u64 = 1;
const PROCESS: u64 = 2;

impl Shared {
    /// Has `remote` serve `queue` until this thread is to let go of it, or the process is gone.
    pub(super) fn oversee(
        &self,
        queue: &mut Queue,
        remote: &mut dyn RemoteQueue,
        features: u64,
        segments: &mut Segments,
    ) -> Result<Served, Error> {
        if let Err(error) = remote.start(&queue.state(), features) {
            tracing::warn!(queue = self.name, %error, "another process does not serve this queue; its device needs a reset");
            return Ok(Served::Broken);
        }
        // Follows what the driver makes available; the queue itself stands still until the process lets go.
        let mut shadow = Queue::try_from(queue.state())?;
        if let Err(error) = self.pass_on(&mut shadow, remote, segments) {
            tracing::warn!(queue = self.name, %error, "a process that serves a queue is gone; its device needs a reset");
            return Ok(Served::Broken);
        }
        match remote.stop() {
            Ok(next) => {
                queue.set_next_avail(next);
                let used = queue.used_idx(self.dma.memory(), Ordering::Acquire)?;
                queue.set_next_used(used.0);
                Ok(Served::Left)
            }
            Err(error) => {
                tracing::warn!(queue = self.name, %error, "a process does not let go of a queue; its device needs a reset");
                Ok(Served::Broken)
            }
        }
    }

    /// Passes on until it is time to leave.
    fn pass_on(&self, shadow: &mut Queue, remote: &dyn RemoteQueue, segments: &mut Segments) -> std::io::Result<()> {
        let epoll = Epoll::new()?;
        let watch = |fd, what, number| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(what, number));
        watch(self.bell.as_raw_fd(), EventSet::IN, BELL)?;
        // Told of each write: a process could have a read of its event block.
        let written = EventSet::IN | EventSet::EDGE_TRIGGERED;
        watch(remote.called().as_raw_fd(), written, CALLED)?;
        watch(remote.process(), EventSet::READ_HANG_UP, PROCESS)?;
        // What the driver made available before anybody looked.
        self.given(shadow, segments);
        remote.kick();
        let mut told = [EpollEvent::default(); 3];
        loop {
            if self.leave.load(Ordering::SeqCst) {
                // What rang was heard here; whoever waits next is to look again too.
                self.ring();
                return Ok(());
            }
            let count = match epoll.wait(-1, &mut told) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                told => told?,
            };
            for told in &told[..count] {
                match told.data() {
                    BELL => {
                        self.hear()?;
                        self.given(shadow, segments);
                        remote.kick();
                    }
                    CALLED => {
                        self.given(shadow, segments);
                        self.ring_written(shadow);
                        self.counters.interrupts.fetch_add(1, Ordering::Relaxed);
                        self.interrupts.queue_used(self.index);
                    }
                    _ => return Err(std::io::ErrorKind::ConnectionReset.into()),
                }
            }
        }
    }

    /// Tells of the buffers that the driver has given since. A chain that is none is the process's to refuse.
    fn given(&self, shadow: &mut Queue, segments: &mut Segments) {
        let memory = self.dma.memory();
        let size = shadow.size();
        while let Ok(Some(chain)) = shadow.iter(memory).map(|mut chains| chains.next()) {
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            if segments.gather(chain, size).is_ok() {
                for (address, length) in segments.chain(&self.dma).writable_buffers() {
                    self.dma.written(address, length);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
