//! One exit's accesses, made one after the other: each is asked for by itself, and may be answered late.
//!
//! KVM comes out once for up to a page of elements at a port (REP INS), and for up to eight bytes of memory, which need
//! not be as many as an access has. The data lies in the run structure; KVM_RUN is called when all of it is there.

use super::failure::Obtained;
use super::sys::{Exit, RunPage};
use crate::{Access, IoRequest, RequestId, Space};

/// An exit for a device, of which some accesses are left.
#[derive(Debug)]
pub struct Exchange {
    space: Space,
    write: bool,
    /// The first byte; the port of every element.
    address: u64,
    /// Bytes in all.
    length: usize,
    /// Bytes of each element of a port.
    element: u8,
    /// Where the first byte is in the run structure.
    data: usize,
    /// How many bytes are done.
    done: usize,
    request: IoRequest,
}

/// An exit for a device that no instruction makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Senseless {
    /// A port or an address.
    pub address: u64,
    /// How many bytes.
    pub length: u64,
}

impl Exchange {
    /// The accesses of `exit`, the first of them asked for as `id`; `None` if it is no exit for a device.
    ///
    /// # Errors
    /// [`Senseless`].
    pub fn new(exit: &Exit, run: &RunPage, id: RequestId) -> Option<Result<Self, Senseless>> {
        let (space, write, address, length, element, data) = match *exit {
            Exit::Port {
                write,
                port,
                size,
                count,
                data,
            } => {
                let length = usize::from(size).saturating_mul(count as usize);
                (Space::Port, write, port.into(), length, size, data)
            }
            Exit::Memory {
                write,
                address,
                length,
                data,
            } => (Space::Memory, write, address, length as usize, 0, data),
            _ => return None,
        };
        let sized = space == Space::Memory || matches!(element, 1 | 2 | 4);
        if length == 0 || !sized || !run.holds(data, length) {
            let length = length as u64;
            return Some(Err(Senseless { address, length }));
        }
        let mut exchange = Self {
            space,
            write,
            address,
            length,
            element,
            data,
            done: 0,
            request: IoRequest {
                id,
                space,
                address,
                size: 0,
                access: Access::Read,
            },
        };
        exchange.ask(run, id);
        Some(Ok(exchange))
    }

    /// The access that is under way.
    pub fn request(&self) -> &IoRequest {
        &self.request
    }

    /// Whether the guest writes.
    pub fn is_write(&self) -> bool {
        self.write
    }

    /// The access that is under way is answered with `value`; what a read has obtained.
    pub fn answer(&mut self, run: &mut RunPage, value: u64) -> Option<Obtained> {
        let IoRequest {
            space, address, size, ..
        } = self.request;
        let read = (!self.write).then(|| {
            run.store(self.data + self.done, size, value);
            Obtained {
                space,
                address,
                size,
                value: value & u64::MAX >> (64 - 8 * u32::from(size)),
            }
        });
        self.done += usize::from(size);
        read
    }

    /// Goes on with the next access, asked for as `id`; false if there is none.
    pub fn next(&mut self, run: &RunPage, id: RequestId) -> bool {
        let more = self.done < self.length;
        if more {
            self.ask(run, id);
        }
        more
    }

    /// The accesses behind the one that is under way; their names say nothing.
    pub fn rest(&self, run: &RunPage) -> Vec<IoRequest> {
        let mut own = Self { ..*self };
        own.done += usize::from(own.request.size);
        let mut rest = Vec::new();
        while own.next(run, own.request.id) {
            rest.push(own.request);
            own.done += usize::from(own.request.size);
        }
        rest
    }

    /// Goes on with `next`, as `id`, although the run structure does not have it any more.
    pub fn ask_instead(&mut self, next: IoRequest, id: RequestId) {
        self.request = IoRequest { id, ..next };
    }

    fn ask(&mut self, run: &RunPage, id: RequestId) {
        let (address, size) = match self.space {
            Space::Port => (self.address, self.element),
            // As the emulator takes operands apart: the largest part first.
            Space::Memory => {
                let left = (self.length - self.done).min(8);
                (self.address.wrapping_add(self.done as u64), 1 << left.ilog2())
            }
        };
        self.request = IoRequest {
            id,
            space: self.space,
            address,
            size,
            access: match self.write {
                true => Access::Write(run.load(self.data + self.done, size)),
                false => Access::Read,
            },
        };
    }
}
