//! What comes in on a connection: answers, and accesses to guest memory.

use std::hint::spin_loop;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::habit::{Habit, Way};
use super::{POSTED, Shared};
use crate::bus::{Carrier, Ticket};
use crate::sync::lock;
use crate::vfio_user::error::VfioUserError;
use crate::vfio_user::wire::{Body, Header, Inbox, MAX_DATA, command, flag, message};

/// How long whoever waits for an answer looks for it, or twice as long, rounded up to what the host's clock ticks in. It is as long
/// until a vCPU that waits can be paused.
pub(super) const MOMENT: Duration = Duration::from_millis(4);
/// For how much of that it does so without sleeping, if it does at all ([`Habit`]).
const AWAKE: Duration = Duration::from_micros(50);
/// How many answers the link's thread takes after something that the process asked: it shall not wait until a vCPU asks too.
const TALKS: u32 = 64;
/// EINVAL: what a process is told that reaches for memory which is not there.
const INVALID: u32 = 22;

/// What arrives.
pub(super) struct Reader {
    pub inbox: Inbox,
    /// Whether a message is there that cannot be served before the machine goes on, and whatever is behind it.
    pub held: bool,
    /// What ends the connection, found by whoever looked for an answer.
    pub broken: Option<VfioUserError>,
    /// How whoever waits does so.
    pub habit: Habit,
    /// For how many answers a process that speaks of itself is left to the link's thread.
    pub talks: u32,
    /// What is read at once.
    pub bytes: Vec<u8>,
}

impl Shared {
    /// Goes on with what has arrived.
    pub(super) fn go_on(&self, reader: &mut Reader) -> Result<(), VfioUserError> {
        if let Some(error) = reader.broken.take() {
            return Err(error);
        }
        let paused = self.paused.load(Relaxed);
        if !reader.held || !paused {
            reader.held = self.take(reader, paused)?;
        }
        Ok(())
    }

    /// Reads once, and takes what has arrived; false if nothing has. If `sleeps`, it waits a moment for that.
    pub(super) fn receive(
        &self,
        stream: &UnixStream,
        reader: &mut Reader,
        sleeps: bool,
    ) -> Result<bool, VfioUserError> {
        // A limit of the socket's own, which costs nothing until it ends. That of poll(2) has the host program its timer each time,
        // which in a virtual machine takes longer than the answer.
        let flags = if sleeps {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        match rustix::net::recv(stream, &mut reader.bytes[..], flags) {
            Ok((0, _)) | Err(Errno::CONNRESET) => Err(VfioUserError::Gone),
            Ok((length, _)) => {
                reader.inbox.push(&reader.bytes[..length]);
                self.go_on(reader)?;
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(VfioUserError::Socket { source: error.into() }),
        }
    }

    /// Takes the messages that have arrived; true if one has to wait until the machine goes on.
    fn take(&self, reader: &mut Reader, paused: bool) -> Result<bool, VfioUserError> {
        while let Some((header, body)) = reader.inbox.next()? {
            if header.is_reply() {
                self.answered(header, body)?;
            } else if paused {
                reader.inbox.put_back(header);
                return Ok(true);
            } else {
                reader.talks = TALKS;
                self.asked(header, body)?;
            }
        }
        Ok(false)
    }

    /// The process has answered.
    fn answered(&self, header: Header, body: &[u8]) -> Result<(), VfioUserError> {
        if header.id == POSTED && header.is_error() {
            // A write that failed, of which nobody wanted to know.
            self.counters.refused.fetch_add(1, Relaxed);
            return Ok(());
        }
        let owed = {
            let mut state = lock(&self.state);
            state.line.as_mut().and_then(|line| line.owed.remove(&header.id))
        };
        let Some(owed) = owed.filter(|owed| owed.command == header.command) else {
            let (id, command) = (header.id, header.command);
            let what = format!("it answers command {command} with id {id}, which nobody asked");
            return Err(VfioUserError::lie(what));
        };
        if header.is_error() {
            self.counters.refused.fetch_add(1, Relaxed);
            owed.completion.complete(u64::MAX);
            return Ok(());
        }
        let value = match owed.access {
            None => 0,
            Some(access) => {
                let data = body.strip_prefix(&access.bytes());
                let Some(data) = data.filter(|data| data.len() == access.count as usize) else {
                    return Err(VfioUserError::lie("it answers another access than was made"));
                };
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                u64::from_le_bytes(value)
            }
        };
        owed.completion.complete(value);
        Ok(())
    }

    /// The process asks for something.
    fn asked(&self, header: Header, body: &[u8]) -> Result<(), VfioUserError> {
        let reply = |parts: &[&[u8]]| message(header.id, header.command, flag::REPLY, 0, parts);
        let served = match header.command {
            command::DMA_READ | command::DMA_WRITE => self.dma(header, body)?.map(|parts| reply(&[&parts])),
            _ => None,
        };
        let bytes = served.unwrap_or_else(|| {
            self.counters.dma_refused.fetch_add(1, Relaxed);
            message(header.id, header.command, flag::REPLY | flag::ERROR, INVALID, &[])
        });
        if header.flags & flag::NO_REPLY == 0 {
            let mut state = lock(&self.state);
            if let Some(line) = state.line.as_mut() {
                line.send(self, bytes);
            }
        }
        Ok(())
    }

    /// Carries out an access to guest memory; what its reply says, or `None` if it is refused.
    fn dma(&self, header: Header, body: &[u8]) -> Result<Option<Vec<u8>>, VfioUserError> {
        let mut rest = Body(body);
        let (Some(address), Some(count)) = (rest.u64(), rest.u64()) else {
            return Err(VfioUserError::lie("an access to memory is too short"));
        };
        let data = rest.rest();
        let mut reply = Vec::from(&body[..16]);
        let length = usize::try_from(count).ok().filter(|length| *length <= MAX_DATA);
        let Some(length) = length.filter(|_| self.master.load(Relaxed)) else {
            return Ok(None);
        };
        let done = if header.command == command::DMA_READ {
            reply.resize(16 + length, 0);
            self.dma.read(address, &mut reply[16..])
        } else if data.len() == length {
            self.dma.write(address, data)
        } else {
            return Err(VfioUserError::lie("a write to memory has another length than it says"));
        };
        self.counters.dma.fetch_add(1, Relaxed);
        Ok(done.is_ok().then_some(reply))
    }
}

impl Shared {
    /// Reads until `ticket` has its answer or a moment has passed: whether it has it, and nothing is left for the link's thread.
    fn look(&self, way: Way, ticket: &Ticket, reader: &mut Reader, stream: &UnixStream) -> bool {
        let begin = Instant::now();
        while ticket.try_take().is_none() {
            let elapsed = begin.elapsed();
            if elapsed > MOMENT {
                break;
            }
            let sleeps = way == Way::Asleep || elapsed > AWAKE;
            match self.receive(stream, reader, sleeps) {
                // Too long; or a signal, which means that this thread is wanted elsewhere.
                Ok(false) if sleeps => break,
                Ok(false) => spin_loop(),
                Ok(true) if reader.held || reader.talks > 0 => break,
                Ok(true) => {}
                Err(error) => {
                    reader.broken = Some(error);
                    break;
                }
            }
        }
        let carried = ticket.try_take().is_some();
        if carried {
            self.counters.carried.fetch_add(1, Relaxed);
            reader.habit.took(way, begin.elapsed());
        } else {
            reader.habit.missed();
        }
        let nobody_waits = || lock(&self.state).line.as_ref().is_some_and(|line| line.owed.is_empty());
        carried && !reader.held && reader.talks == 0 && reader.broken.is_none() && nobody_waits()
    }
}

impl Carrier for Shared {
    fn carry(&self, ticket: &Ticket) {
        // Before the look at who reads, which is the other way round below: one of the two sees the other.
        self.missed.store(true, SeqCst);
        let Some(mut reader) = self.try_reader() else { return };
        self.missed.store(false, SeqCst);
        let stream = || {
            let state = lock(&self.state);
            let line = state.line.as_ref().filter(|line| line.has_room())?;
            Some(Arc::clone(&line.stream))
        };
        let may = !reader.held && reader.broken.is_none() && reader.talks == 0;
        let Some(stream) = stream().filter(|_| may) else {
            reader.talks = reader.talks.saturating_sub(1);
            return;
        };
        let way = reader.habit.next();
        if way == Way::Away {
            return;
        }
        self.lent.store(true, SeqCst);
        let complete = self.look(way, ticket, &mut reader, &stream);
        drop(reader);
        let missed = self.missed.swap(false, SeqCst);
        let lent = complete && !missed;
        self.lent.store(lent, SeqCst);
        if !lent {
            self.ring();
        }
    }
}
