//! A connection between a socket of the guest and one of the host, without the packets' way to the guest.
//!
//! # Invariants
//! - No more than [`BUFFER`] bytes of the guest's wait for the host's socket: that is the credit it gets, and who overdraws it
//!   is reset (virtio 1.2, "Buffer Space Management").
//! - The guest is sent no more than it has said it has room for.
//! - Data come before the word that there are no more.
//!
//! # Life
//! asked for (by either side) -RESPONSE-> established -SHUTDOWN by both, or RST-> gone.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::packet::{MOST_DATA, op, shutdown};

/// The guest's credit, in bytes.
pub(super) const BUFFER: usize = 64 << 10;

/// What the guest is owed besides data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Owed {
    request: bool,
    response: bool,
    reset: bool,
    credit: bool,
    credit_request: bool,
    shutdown: bool,
}

/// A packet to the guest, without addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes of data, which are in the buffer.
    pub(super) length: usize,
    pub(super) fwd_cnt: u32,
}

/// A packet from the guest that no such connection may get: it is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// The host's socket, until nothing can be done with it.
    stream: Option<UnixStream>,
    /// What it is called where events are waited for.
    pub(super) token: u64,
    /// It stands among those that have something for the guest.
    pub(super) queued: bool,
    established: bool,
    owed: Owed,
    /// There may be something to read.
    readable: bool,
    /// The host's end is closed altogether.
    hung_up: bool,
    /// Of the guest, for the host.
    buffered: VecDeque<u8>,
    /// Bytes that came from the guest, those of them that the host's socket took, and what the guest knows of these.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    /// Bytes sent to the guest, those of them that it has consumed, and how many it can hold.
    sent: Wrapping<u32>,
    consumed: Wrapping<u32>,
    room: u32,
    /// Flags of SHUTDOWN: what the guest and the host do no more.
    guest_done: u32,
    host_done: u32,
}

impl Connection {
    fn new(stream: UnixStream, token: u64, owed: Owed) -> Self {
        Self {
            stream: Some(stream),
            token,
            queued: false,
            established: owed.response,
            owed,
            readable: true,
            hung_up: false,
            buffered: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            sent: Wrapping(0),
            consumed: Wrapping(0),
            room: 0,
            guest_done: 0,
            host_done: 0,
        }
    }

    /// The host wants it; the guest is asked.
    pub(super) fn requested(stream: UnixStream, token: u64) -> Self {
        let owed = Owed {
            request: true,
            ..Owed::default()
        };
        Self::new(stream, token, owed)
    }

    /// The guest wants it, and gets it.
    pub(super) fn accepted(stream: UnixStream, token: u64) -> Self {
        let owed = Owed {
            response: true,
            ..Owed::default()
        };
        Self::new(stream, token, owed)
    }

    /// The guest tells how much it can hold and how much it has consumed.
    pub(super) fn credit(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.room = buf_alloc;
        self.consumed = Wrapping(fwd_cnt);
        if self.available() > 0 {
            self.owed.credit_request = false;
        }
    }

    /// Bytes that the guest may be sent.
    fn available(&self) -> usize {
        let unread = (self.sent - self.consumed).0;
        self.room.saturating_sub(unread) as usize
    }

    /// The guest accepts; `local_port` is what the client is told.
    pub(super) fn respond(&mut self, local_port: u32) -> Result<(), Violation> {
        if self.established || self.owed.request {
            return Err(Violation);
        }
        self.established = true;
        let told = format!("OK {local_port}\n");
        // The first bytes into an empty socket.
        let written = self.stream.as_mut().map(|stream| stream.write(told.as_bytes()));
        match written {
            Some(Ok(length)) if length == told.len() => Ok(()),
            _ => Err(Violation),
        }
    }

    /// The guest sends `data`.
    pub(super) fn receive(&mut self, data: &[u8]) -> Result<(), Violation> {
        let held = (self.received - self.forwarded).0 as usize;
        if !self.established || self.guest_done & shutdown::SEND != 0 || data.len() > BUFFER.saturating_sub(held) {
            return Err(Violation);
        }
        self.received += Wrapping(data.len() as u32);
        if self.host_done & shutdown::RECEIVE == 0 {
            self.buffered.extend(data);
        } else {
            // Sent before the guest knew.
            self.forwarded = self.received;
        }
        self.flush();
        Ok(())
    }

    /// The guest does no more what `flags` say.
    pub(super) fn shut_down(&mut self, flags: u32) {
        self.guest_done |= flags & shutdown::BOTH;
        if self.guest_done & shutdown::RECEIVE != 0 {
            self.shut(Shutdown::Read);
        }
        self.flush();
    }

    /// The guest wants to know its credit.
    pub(super) fn credit_request(&mut self) {
        self.owed.credit = true;
    }

    pub(super) fn reset(&mut self) {
        self.owed.reset = true;
    }

    /// The host's socket can be read or written, or its other end is `gone`.
    pub(super) fn wake(&mut self, gone: bool) {
        self.readable = true;
        self.hung_up |= gone;
        if gone && !self.established {
            // Nobody waits for the answer any more.
            self.owed.reset = true;
        }
        self.flush();
        if self.host_done & shutdown::SEND != 0 {
            self.host_ends(self.ended());
        }
    }

    /// Gives the host what the guest has sent.
    fn flush(&mut self) {
        while let Some(stream) = &mut self.stream
            && !self.buffered.is_empty()
        {
            let (front, _) = self.buffered.as_slices();
            match stream.write(front) {
                Ok(taken) if taken > 0 => {
                    self.buffered.drain(..taken);
                    self.forwarded += Wrapping(taken as u32);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Nobody reads any more; what is under way is lost, as on any network.
                Ok(_) | Err(_) => {
                    self.buffered.clear();
                    self.forwarded = self.received;
                    self.host_ends(shutdown::RECEIVE);
                    break;
                }
            }
        }
        if (self.forwarded - self.told).0 as usize >= BUFFER / 2 {
            self.owed.credit = true;
        }
        if self.buffered.is_empty() && self.guest_done & shutdown::SEND != 0 {
            if self.guest_done == shutdown::BOTH {
                // Both have ended: a reset makes it clean (virtio 1.2, "Stream Sockets").
                self.owed.reset = true;
            } else {
                self.shut(Shutdown::Write);
            }
        }
    }

    fn shut(&self, how: Shutdown) {
        if let Some(stream) = &self.stream {
            // It may be closed already.
            let _ = stream.shutdown(how);
        }
    }

    /// What a host whose words have ended does no more. A socket also counts as hung up when each side has ended its half, and
    /// then there is no more to say.
    fn ended(&self) -> u32 {
        if self.hung_up && self.guest_done & shutdown::SEND == 0 {
            shutdown::BOTH
        } else {
            shutdown::SEND
        }
    }

    fn host_ends(&mut self, flags: u32) {
        // That nobody reads any more is no news for a guest that sends no more, and the other way round.
        let end_of = |guest, host| if self.guest_done & guest != 0 { host } else { 0 };
        let known = end_of(shutdown::SEND, shutdown::RECEIVE) | end_of(shutdown::RECEIVE, shutdown::SEND);
        self.owed.shutdown |= flags & !self.host_done & !known != 0;
        self.host_done |= flags;
        if self.host_done == shutdown::BOTH {
            self.stream = None;
            self.buffered = VecDeque::new();
            self.forwarded = self.received;
        }
    }

    /// Whether the guest may read what the host's socket has.
    fn reads(&self) -> bool {
        let open = self.host_done & shutdown::SEND == 0 && self.guest_done & shutdown::RECEIVE == 0;
        self.established && self.readable && open && !self.owed.response
    }

    /// Whether there is something for the guest, as far as is known without reading.
    pub(super) fn has_news(&self) -> bool {
        let owed = self.owed != Owed::default();
        owed || (self.reads() && self.available() > 0)
    }

    /// Whether there is nothing to be done but to forget it.
    pub(super) fn is_over(&self) -> bool {
        self.owed.reset
    }

    /// The next packet for the guest; its data, if any, are put into `buffer`.
    pub(super) fn next(&mut self, buffer: &mut [u8]) -> Option<Outgoing> {
        let (op, flags, length) = self.choose(buffer)?;
        self.told = self.forwarded;
        self.owed.credit = false;
        Some(Outgoing {
            op,
            flags,
            length,
            fwd_cnt: self.forwarded.0,
        })
    }

    fn choose(&mut self, buffer: &mut [u8]) -> Option<(u16, u32, usize)> {
        if self.owed.reset {
            return Some((op::RST, 0, 0));
        }
        if std::mem::take(&mut self.owed.request) {
            return Some((op::REQUEST, 0, 0));
        }
        if std::mem::take(&mut self.owed.response) {
            return Some((op::RESPONSE, 0, 0));
        }
        if self.reads()
            && let Some(length) = self.read(buffer)
        {
            self.sent += Wrapping(length as u32);
            self.owed.credit_request = self.available() == 0;
            return Some((op::RW, 0, length));
        }
        if std::mem::take(&mut self.owed.shutdown) {
            return Some((op::SHUTDOWN, self.host_done, 0));
        }
        if std::mem::take(&mut self.owed.credit_request) {
            return Some((op::CREDIT_REQUEST, 0, 0));
        }
        self.owed.credit.then_some((op::CREDIT_UPDATE, 0, 0))
    }

    /// Reads what the guest may have; `None` if there is nothing, or no more.
    fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let most = self.available().min(buffer.len()).min(MOST_DATA);
        if most == 0 {
            return None;
        }
        let stream = self.stream.as_mut()?;
        loop {
            match stream.read(&mut buffer[..most]) {
                Ok(0) => {
                    self.host_ends(self.ended());
                    return None;
                }
                Ok(length) => return Some(length),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                Err(_) => {
                    self.host_ends(shutdown::BOTH);
                    return None;
                }
            }
        }
    }
}
