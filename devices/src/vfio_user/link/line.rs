//! What goes out on a connection, and what is owed for it.

use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::io::Errno;

use super::{MAX_BACKLOG, MAX_OWED, Shared};
use crate::bus::Completion;
use crate::vfio_user::error::VfioUserError;
use crate::vfio_user::session;
use crate::vfio_user::wire::RegionAccess;

/// A connection, and what is under way on it.
pub(super) struct Line {
    pub stream: Arc<UnixStream>,
    pub last_id: u16,
    pub owed: HashMap<u16, Owed>,
    pub unsent: VecDeque<Unsent>,
    /// Bytes in `unsent`.
    pub backlog: usize,
}

/// An answer that is owed.
pub(super) struct Owed {
    pub command: u16,
    /// The access, if it is one, whose reply repeats it.
    pub access: Option<RegionAccess>,
    pub completion: Completion,
}

/// A message that is not, or not all, in the socket.
pub(super) struct Unsent {
    pub bytes: Vec<u8>,
    pub sent: usize,
    /// Who is told when it is.
    pub told: Option<Completion>,
}

impl Line {
    /// Whether more may be read: who takes no answers is asked nothing.
    pub fn has_room(&self) -> bool {
        self.backlog < MAX_BACKLOG
    }

    /// An id that no command has which is not answered; `None` if too many are not.
    pub fn free_id(&mut self) -> Option<u16> {
        if self.owed.len() >= MAX_OWED {
            return None;
        }
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.owed.contains_key(&self.last_id) {
                return Some(self.last_id);
            }
        }
    }

    /// Sends `bytes` behind all others. What fails is found by the link's thread too.
    pub fn send(&mut self, of: &Shared, bytes: Vec<u8>) {
        let sent = match self.unsent.is_empty() {
            true => session::send(&self.stream, &bytes, &[]).unwrap_or(0),
            false => 0,
        };
        if sent < bytes.len() {
            self.backlog += bytes.len();
            self.unsent.push_back(Unsent {
                bytes,
                sent,
                told: None,
            });
            of.ring();
        }
    }

    /// Sends what could not be sent; those to be told go to `told`.
    pub fn flush(&mut self, told: &mut Vec<Completion>) -> Result<(), VfioUserError> {
        while let Some(first) = self.unsent.front_mut() {
            match session::send(&self.stream, &first.bytes[first.sent..], &[]) {
                Ok(length) => first.sent += length,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(VfioUserError::Gone),
                Err(error) => return Err(VfioUserError::Socket { source: error.into() }),
            }
            if first.sent == first.bytes.len()
                && let Some(done) = self.unsent.pop_front()
            {
                self.backlog -= done.bytes.len();
                told.extend(done.told);
            }
        }
        Ok(())
    }
}
