//! x87, MXCSR and vector registers: the crate's own, and KVM's XSAVE area (SDM Vol. 1, "XSAVE Area").
//!
//! # What is lost
//! The area has the 64-bit form of the x87 pointers, as the kernel keeps it: 64-bit offsets, and no selectors. A
//! processor that no longer saves selectors (CPUID leaf 7 EBX bit 13), or a kernel of 64 bits, never sees the difference.

use kvm_bindings::kvm_xsave;
use reprise_emulator::cpu::fpu::{self, COMPONENTS, Component, F80, Fpu};

/// Bytes of KVM's area.
const SIZE: usize = 4096;

/// XSTATE_BV, the first field of the header.
const XSTATE_BV: usize = fpu::LEGACY_SIZE;

/// Where this host's processor has each state component, by number; 0 if it has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    offsets: [usize; 64],
}

impl Layout {
    /// The layout that subleaves of CPUID leaf 0xD describe: number, size and offset of each component.
    pub fn new(components: impl Iterator<Item = (u32, u32, u32)>) -> Self {
        let mut offsets = [0; 64];
        for (number, size, offset) in components {
            let (size, offset) = (size as usize, offset as usize);
            let fits = size != 0 && offset >= fpu::EXTENDED_START && offset + size <= SIZE;
            if let Some(place) = offsets.get_mut(number as usize)
                && fits
            {
                *place = offset;
            }
        }
        Self { offsets }
    }

    /// Where `component` lies, if the host has it. SSE's place is the same everywhere.
    fn offset(&self, component: &Component) -> Option<usize> {
        let offset = match component.bit {
            fpu::SSE => component.offset,
            bit => self.offsets[bit.trailing_zeros() as usize & 63],
        };
        (offset != 0 && offset + component.size() <= SIZE).then_some(offset)
    }
}

/// What KVM's area says. Components that are in their initial configuration are not stored there.
pub fn read(layout: &Layout, from: &kvm_xsave) -> Fpu {
    let mut area = [0; SIZE];
    for (bytes, word) in area.chunks_exact_mut(4).zip(from.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let number = |at: usize, size: usize| {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&area[at..at + size]);
        u64::from_le_bytes(bytes)
    };
    let stored = number(XSTATE_BV, 8);
    let mut to = Fpu::default();
    to.init();
    if stored & fpu::X87 != 0 {
        to.control = number(0, 2) as u16;
        to.status = number(2, 2) as u16;
        to.tags = number(4, 1) as u8;
        to.opcode = number(6, 2) as u16 & 0x7ff;
        to.ip = number(8, 8);
        to.dp = number(16, 8);
        for i in 0..8 {
            let at = 32 + 16 * usize::from(i);
            let place = to.physical(i);
            to.registers[place] = F80 {
                significand: number(at, 8),
                sign_exponent: number(at + 8, 2) as u16,
            };
        }
    }
    if stored & (fpu::SSE | fpu::AVX) != 0 {
        to.mxcsr = number(24, 4) as u32;
    }
    for component in COMPONENTS.iter().filter(|component| stored & component.bit != 0) {
        let Some(mut at) = layout.offset(component) else {
            continue;
        };
        for register in component.registers.clone() {
            for quadword in component.quadwords.clone() {
                to.vectors[register][quadword] = number(at, 8);
                at += 8;
            }
        }
    }
    to
}

/// The area as KVM takes it; everything that is not in `from` is in its initial configuration.
pub fn write(layout: &Layout, from: &Fpu) -> kvm_xsave {
    let mut area = [0; SIZE];
    let mut put =
        |at: usize, size: usize, value: u64| area[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    put(0, 2, from.control.into());
    put(2, 2, from.status.into());
    put(4, 1, from.tags.into());
    put(6, 2, (from.opcode & 0x7ff).into());
    put(8, 8, from.ip);
    put(16, 8, from.dp);
    put(24, 4, from.mxcsr.into());
    for i in 0..8 {
        let at = 32 + 16 * usize::from(i);
        let F80 {
            significand,
            sign_exponent,
        } = from.registers[from.physical(i)];
        put(at, 8, significand);
        put(at + 8, 2, sign_exponent.into());
    }
    let mut stored = fpu::X87;
    for component in COMPONENTS {
        let Some(mut at) = layout.offset(component) else {
            continue;
        };
        stored |= component.bit;
        for register in component.registers.clone() {
            for quadword in component.quadwords.clone() {
                put(at, 8, from.vectors[register][quadword]);
                at += 8;
            }
        }
    }
    put(XSTATE_BV, 8, stored);
    let mut to = kvm_xsave::default();
    for (word, bytes) in to.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> Fpu {
        let mut fpu = Fpu {
            control: 0x027f,
            // TOP is 5.
            status: 0x2900,
            tags: 0b1010_0110,
            opcode: 0x5a5,
            ip: 0xffff_8000_1234_5678,
            dp: 0x7fff_1234_5678,
            mxcsr: 0x1fa0,
            ..Fpu::default()
        };
        for (i, register) in fpu.registers.iter_mut().enumerate() {
            *register = F80 {
                significand: 0x8000_0000_0000_0001 + i as u64,
                sign_exponent: 0x4000 + i as u16,
            };
        }
        for (i, vector) in fpu.vectors.iter_mut().enumerate().take(16) {
            vector[0] = 0x0123_4567_89ab_cdef * (i as u64 + 1);
            vector[1] = !vector[0];
        }
        fpu
    }

    #[test]
    fn what_is_written_is_read() {
        let layout = Layout::new(std::iter::empty());
        assert_eq!(read(&layout, &write(&layout, &busy())), busy());
    }

    #[test]
    fn x87_registers_are_stored_from_the_top_of_the_stack_on() {
        let area = write(&Layout::new(std::iter::empty()), &busy());
        // ST(0) is physical register 5.
        assert_eq!(area.region[8], 6);
        assert_eq!(area.region[10], 0x4005);
    }

    #[test]
    fn components_that_are_not_stored_are_initial() {
        let layout = Layout::new(std::iter::empty());
        let mut area = write(&layout, &busy());
        area.region[XSTATE_BV / 4] = 0;
        let mut initial = Fpu::default();
        initial.init();
        assert_eq!(read(&layout, &area), initial);
    }

    #[test]
    fn components_that_do_not_fit_the_area_have_no_place() {
        let layout = Layout::new([(2, 256, 576), (9, 8, 4092), (17, 64, 100), (63, 0, 600), (70, 8, 600)].into_iter());
        assert_eq!(layout.offsets[2], 576);
        assert_eq!(layout.offsets.iter().filter(|offset| **offset != 0).count(), 1);
    }
}
