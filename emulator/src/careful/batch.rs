//! Repeated string instructions against a device: many elements in one request.
//!
//! REP INS, OUTS and MOVS between a device and RAM need not leave the CPU for every element: the request names the RAM,
//! and whoever answers moves the elements there or from there. Their bytes are not the instruction's own reads; what is
//! recorded is how many were moved. Each element is an iteration that has committed, so a batch may be answered short;
//! who does not move batches at all answers 0 and is asked for the first element by itself.

use super::{Careful, Waiting};
use crate::access::{Linear, Stop};
use crate::cpu::{Cpu, flags};
use crate::paging::{Intent, Privilege};
use crate::ram::PAGE_SIZE;
use crate::replay::{Kind, Question};
use crate::request::{Direction, Space};

/// The elements of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elements {
    /// The width of each: 1, 2, 4 or 8 bytes.
    pub(crate) size: u8,
    /// How many are left to be moved, upwards.
    pub(crate) count: u64,
}

/// Which way they go, between RAM and a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the device.
    In,
    /// To the device.
    Out,
}

impl Elements {
    /// As many as fit into the page of `at`.
    fn within_page(self, at: Linear) -> Elements {
        let left = (PAGE_SIZE - at.address % PAGE_SIZE) / u64::from(self.size);
        Elements {
            count: self.count.min(left),
            ..self
        }
    }
}

impl Careful {
    /// Moves elements between a port and memory at `at`, whose segment and permission allow it for all of them: how
    /// many, 0 if they must be moved one by one.
    ///
    /// # Errors
    /// As [`Access::load`](crate::access::Access::load).
    pub(crate) fn port_batch(
        &mut self,
        cpu: &Cpu,
        port: u16,
        at: Linear,
        elements: Elements,
        way: Way,
    ) -> Result<u64, Stop> {
        let elements = elements.within_page(at);
        if elements.count < 2 || must_stop_between(cpu) {
            return Ok(0);
        }
        let guest = self.batch_place(cpu, at, elements, way)?;
        if !self.takes_batch(|careful| careful.ram.page(guest).is_some()) {
            return Ok(0);
        }
        self.ask_batch(Space::Port, u64::from(port), guest, elements, way)
    }

    /// Copies `length` bytes in elements of `size` between memory at two places, if one of them is RAM and the other a
    /// device: how many bytes, 0 if they must be moved one by one.
    ///
    /// # Errors
    /// As [`Access::load`](crate::access::Access::load).
    pub(super) fn copy_batch(
        &mut self,
        cpu: &Cpu,
        from: Linear,
        to: Linear,
        length: u64,
        size: u8,
    ) -> Result<u64, Stop> {
        let count = length / u64::from(size);
        let elements = Elements { size, count }.within_page(from).within_page(to);
        if elements.count < 2 || must_stop_between(cpu) {
            return Ok(0);
        }
        let source = self.batch_place(cpu, from, elements, Way::Out)?;
        let destination = self.batch_place(cpu, to, elements, Way::In)?;
        let is_ram = |careful: &Careful, gpa| careful.ram.page(gpa).is_some();
        let (guest, device, way) = match (is_ram(self, source), is_ram(self, destination)) {
            (true, false) => (source, destination, Way::Out),
            (false, true) => (destination, source, Way::In),
            _ => return Ok(0),
        };
        if !self.takes_batch(|_| true) {
            return Ok(0);
        }
        let moved = self.ask_batch(Space::Memory, device, guest, elements, way)?;
        Ok(moved * u64::from(size))
    }

    /// Where the elements are in guest-physical memory: all in one page.
    fn batch_place(&mut self, cpu: &Cpu, at: Linear, elements: Elements, way: Way) -> Result<u64, Stop> {
        let intent = match way {
            Way::In => Intent::Write,
            Way::Out => Intent::Read,
        };
        let length = elements.count * u64::from(elements.size);
        let place = self.place(cpu, at, length, intent, Privilege::of(cpu.cpl()))?;
        Ok(place.first)
    }

    /// Whether this pass asks for a batch: a later pass does what the first one did.
    fn takes_batch(&self, live: impl FnOnce(&Careful) -> bool) -> bool {
        match self.cache.peek() {
            Some(entry) => entry.question.kind == Kind::Batch,
            None => live(self),
        }
    }

    fn ask_batch(
        &mut self,
        space: Space,
        address: u64,
        guest: u64,
        Elements { size, count }: Elements,
        way: Way,
    ) -> Result<u64, Stop> {
        let question = Question {
            kind: Kind::Batch,
            space,
            address,
            width: 8,
        };
        if let Some(entry) = self.recall(question)? {
            return Ok(entry.value.min(count));
        }
        self.cache.reserve_answer().map_err(|error| self.fail(error))?;
        // At most a page of bytes.
        let count = count as u32;
        let direction = match way {
            Way::In => Direction::ReadTo { guest, count },
            Way::Out => Direction::WriteFrom { guest, count },
        };
        let request = self.request(space, address, size, direction);
        self.waiting = Some(Waiting {
            request,
            question: Some(question),
        });
        self.unstage();
        Err(Stop::Await)
    }
}

/// Something is to be seen between two elements: a single step, or an element that is not aligned.
fn must_stop_between(cpu: &Cpu) -> bool {
    cpu.flags.any(flags::TF) || cpu.view.checks_alignment()
}
