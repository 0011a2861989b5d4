//! What comes in on a connection: answers, and accesses to guest memory.

use std::hint::spin_loop;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::line::Line;
use super::{POSTED, Shared};
use crate::bus::{Carrier, Ticket};
use crate::sync::lock;
use crate::vfio_user::error::VfioUserError;
use crate::vfio_user::wire::{Body, Header, Inbox, MAX_DATA, command, flag, message};

/// How long whoever waits for an answer looks for it: some times the way to a process that is ready and back. A vCPU can be held
/// up for so long, unless a signal ends it.
const MOMENT: Duration = Duration::from_micros(200);
/// For how much of that it does so without sleeping: it takes longer to fall asleep and to be woken than a process on another of the
/// host's processors takes to answer.
const AWAKE: Duration = Duration::from_micros(30);
/// How many answers are slept for after one that did not come while awake: the process may be waiting for this very processor.
const ASLEEP: u32 = 64;
/// EINVAL: what a process is told that reaches for memory which is not there.
const INVALID: u32 = 22;

/// What arrives.
pub(super) struct Reader {
    pub inbox: Inbox,
    /// Whether a message is there that cannot be served before the machine goes on, and whatever is behind it.
    pub held: bool,
    /// What ends the connection, found by whoever looked for an answer.
    pub broken: Option<VfioUserError>,
    /// How many answers are slept for from the beginning.
    pub asleep: u32,
    /// What is read at once.
    pub bytes: Vec<u8>,
}

/// An epoll instance with the connection alone. The link's thread sleeps on it, and is not woken while that is turned off.
pub(super) struct Watch(pub OwnedFd);

impl Watch {
    pub fn add(&self, stream: &UnixStream) -> Result<(), Errno> {
        epoll::add(&self.0, stream, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
    }

    pub fn remove(&self, stream: &UnixStream) {
        // Fails if it is not there, which is what is wanted.
        let _ = epoll::delete(&self.0, stream);
    }

    pub fn turn(&self, stream: &UnixStream, on: bool) -> Result<(), Errno> {
        let flags = match on {
            true => epoll::EventFlags::IN,
            false => epoll::EventFlags::empty(),
        };
        epoll::modify(&self.0, stream, epoll::EventData::new_u64(0), flags)
    }
}

impl Shared {
    /// Goes on with what has arrived.
    pub(super) fn go_on(&self, reader: &mut Reader) -> Result<(), VfioUserError> {
        if let Some(error) = reader.broken.take() {
            return Err(error);
        }
        let paused = self.paused.load(Relaxed);
        if !reader.held || !paused {
            reader.held = self.take(&mut reader.inbox, paused)?;
        }
        Ok(())
    }

    /// Reads once, and takes what has arrived; false if nothing has.
    pub(super) fn receive(&self, stream: &UnixStream, reader: &mut Reader) -> Result<bool, VfioUserError> {
        match rustix::net::recv(stream, &mut reader.bytes[..], RecvFlags::DONTWAIT) {
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
    fn take(&self, inbox: &mut Inbox, paused: bool) -> Result<bool, VfioUserError> {
        while let Some((header, body)) = inbox.next()? {
            if header.is_reply() {
                self.answered(header, body)?;
            } else if paused {
                inbox.put_back(header);
                return Ok(true);
            } else {
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

impl Carrier for Shared {
    fn carry(&self, ticket: &Ticket) {
        let Some(mut reader) = self.try_reader() else { return };
        let stream = || {
            let state = lock(&self.state);
            let line = state.line.as_ref().filter(|line| line.has_room())?;
            Some(Arc::clone(&line.stream))
        };
        let Some(stream) = stream().filter(|_| !reader.held && reader.broken.is_none()) else {
            return;
        };
        if self.watch.turn(&stream, false).is_err() {
            return;
        }
        let begin = Instant::now();
        while ticket.try_take().is_none() {
            let elapsed = begin.elapsed();
            let Some(left) = MOMENT.checked_sub(elapsed) else { break };
            if reader.asleep > 0 || elapsed > AWAKE {
                let left = Timespec::try_from(left).unwrap_or_default();
                let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
                // A signal means that this thread is wanted elsewhere.
                let Ok(1..) = poll(&mut fds, Some(&left)) else {
                    break;
                };
            }
            match self.receive(&stream, &mut reader) {
                Ok(false) => spin_loop(),
                Ok(true) if !reader.held && lock(&self.state).line.as_ref().is_some_and(Line::has_room) => {}
                Ok(true) => break,
                Err(error) => {
                    reader.broken = Some(error);
                    break;
                }
            }
        }
        let carried = ticket.try_take().is_some();
        if carried {
            self.counters.carried.fetch_add(1, Relaxed);
        }
        reader.asleep = match reader.asleep {
            0 if carried && begin.elapsed() <= AWAKE => 0,
            0 => ASLEEP,
            left => left - 1,
        };
        // Fails if the connection has gone meanwhile.
        let _ = self.watch.turn(&stream, true);
        let left_over = reader.held || reader.broken.is_some();
        drop(reader);
        if left_over {
            self.ring();
        }
    }
}
