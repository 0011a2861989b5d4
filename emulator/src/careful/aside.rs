//! Looking at the guest past an instruction in flight: what is read here is not the instruction's own.
//!
//! Hypercalls copy their arguments, debuggers look around, dumps are written while an instruction waits for its answer.
//! None of that may be recorded, nor be answered from the record: it would shift every later question of the next pass.

use super::{Careful, Suspended};
use crate::cpu::Cpu;
use crate::paging::{self, Intent, Privilege};
use crate::ram::{PAGE_SIZE, Ram};

/// Guest memory as it is now. While this lives, the replay cache of its CPU is suspended.
///
/// Nothing here asks a device, changes a page table or raises a fault.
///
/// Nobody can be beside an instruction and within it: as long as one looks, the CPU does not run.
/// ```compile_fail,E0499
/// # use reprise_emulator::{Emulator, Entry};
/// fn both(emulator: &mut Emulator) {
///     let mut aside = emulator.aside();
///     let _ = emulator.run(Entry::Resume);
///     aside.translate(0x1000);
/// }
/// ```
/// And who looks has no way to the record, which is the instruction's alone.
/// ```compile_fail,E0616
/// # use reprise_emulator::Emulator;
/// fn bystander(emulator: &mut Emulator) {
///     let aside = emulator.aside();
///     let _ = aside.around.record();
/// }
/// ```
pub struct Aside<'a> {
    cpu: &'a Cpu,
    around: Suspended<'a>,
}

impl<'a> Aside<'a> {
    pub(crate) fn new(cpu: &'a Cpu, careful: &'a mut Careful) -> Aside<'a> {
        Aside {
            cpu,
            around: careful.suspended(),
        }
    }

    /// The architectural state beside which this looks: that before the instruction in flight.
    pub fn cpu(&self) -> &Cpu {
        self.cpu
    }

    /// Fills `bytes` from guest-physical address `gpa` on. False if not all of that is RAM; what `bytes` holds then is
    /// unspecified.
    #[must_use]
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        parts(gpa, bytes.len()).all(|(at, width, offset)| {
            let Some(value) = at.and_then(|at| self.ram().read(at, width)) else {
                return false;
            };
            bytes[offset..][..usize::from(width)].copy_from_slice(&value.to_le_bytes()[..usize::from(width)]);
            true
        })
    }

    /// Writes `bytes` to guest-physical address `gpa` on. False if not all of that is RAM; nothing is written then.
    #[must_use]
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> bool {
        // No part crosses a page.
        if !parts(gpa, bytes.len()).all(|(at, ..)| at.is_some_and(|at| self.ram().page(at).is_some())) {
            return false;
        }
        for (at, width, offset) in parts(gpa, bytes.len()) {
            let mut value = [0; 8];
            value[..usize::from(width)].copy_from_slice(&bytes[offset..][..usize::from(width)]);
            if let Some(at) = at {
                self.ram().write(at, width, u64::from_le_bytes(value));
            }
        }
        true
    }

    /// The guest-physical address behind `linear`, as a read with the processor's own rights finds it; `None` if the
    /// page tables lead nowhere. Accessed bits stay as they are.
    pub fn translate(&mut self, linear: u64) -> Option<u64> {
        paging::translate(self.cpu, &mut *self.around, linear, Intent::Read, Privilege::Implicit)
            .ok()
            .map(|found| found.gpa)
    }

    /// As [`translate`](Self::translate), where a program in ring 3 may fetch from, whatever the processor's own rights are.
    pub fn translate_code(&mut self, linear: u64) -> Option<u64> {
        paging::translate(self.cpu, &mut *self.around, linear, Intent::Fetch, Privilege::User)
            .ok()
            .map(|found| found.gpa)
    }

    /// As [`read`](Self::read), from a linear address on, page by page.
    #[must_use]
    pub fn read_linear(&mut self, linear: u64, bytes: &mut [u8]) -> bool {
        let mut done = 0;
        while done < bytes.len() {
            let at = linear.wrapping_add(done as u64);
            let length = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(bytes.len() - done);
            let Some(gpa) = self.translate(at) else { return false };
            if !self.read(gpa, &mut bytes[done..done + length]) {
                return false;
            }
            done += length;
        }
        true
    }

    fn ram(&self) -> &Ram {
        &self.around.ram
    }
}

/// The accesses of 8, 4, 2 and 1 bytes that make up `length` bytes: address (none beyond the end of the address space),
/// width, offset. None crosses a page.
fn parts(gpa: u64, length: usize) -> impl Iterator<Item = (Option<u64>, u8, usize)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let left = (length - done) as u64;
        if left == 0 {
            return None;
        }
        let at = gpa.checked_add(done as u64);
        let in_page = PAGE_SIZE - at.unwrap_or(0) % PAGE_SIZE;
        let width = 1u8 << left.min(in_page).min(8).ilog2();
        let part = (at, width, done);
        done += usize::from(width);
        Some(part)
    })
}
