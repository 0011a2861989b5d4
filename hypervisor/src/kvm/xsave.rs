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
const MXCSR: usize = 24;
/// ST(0) to ST(7), 16 bytes each.
const REGISTERS: usize = 32;

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
            let fits = size != 0 && offset >= fpu::EXTENDED_START && offset.is_multiple_of(4) && offset + size <= SIZE;
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
pub fn read(layout: &Layout, from: &kvm_xsave, to: &mut Fpu) {
    let area = &from.region;
    let stored = quadword(area, XSTATE_BV);
    *to = Fpu::default();
    to.init();
    if stored & fpu::X87 != 0 {
        (to.control, to.status) = (area[0] as u16, (area[0] >> 16) as u16);
        (to.tags, to.opcode) = (area[1] as u8, (area[1] >> 16) as u16 & 0x7ff);
        to.ip = quadword(area, 8);
        to.dp = quadword(area, 16);
        for i in 0..8 {
            let at = REGISTERS + 16 * usize::from(i);
            let place = to.physical(i);
            to.registers[place] = F80 {
                significand: quadword(area, at),
                sign_exponent: quadword(area, at + 8) as u16,
            };
        }
    }
    if stored & (fpu::SSE | fpu::AVX) != 0 {
        to.mxcsr = area[MXCSR / 4];
    }
    for component in COMPONENTS.iter().filter(|component| stored & component.bit != 0) {
        if let Some(at) = layout.offset(component) {
            let values = (at..).step_by(8).map(|at| quadword(area, at));
            component.set_values(to, component.registers.clone(), values);
        }
    }
}

/// Puts `from` where KVM takes it. What else is in the area stays.
pub fn write(layout: &Layout, from: &Fpu, to: &mut kvm_xsave) {
    let area = &mut to.region;
    area[0] = u32::from(from.control) | u32::from(from.status) << 16;
    area[1] = u32::from(from.tags) | u32::from(from.opcode & 0x7ff) << 16;
    put(area, 8, from.ip);
    put(area, 16, from.dp);
    area[MXCSR / 4] = from.mxcsr;
    for i in 0..8 {
        let at = REGISTERS + 16 * usize::from(i);
        let F80 {
            significand,
            sign_exponent,
        } = from.registers[from.physical(i)];
        put(area, at, significand);
        put(area, at + 8, sign_exponent.into());
    }
    let mut stored = quadword(area, XSTATE_BV) | fpu::X87;
    for component in COMPONENTS {
        let Some(at) = layout.offset(component) else {
            continue;
        };
        stored |= component.bit;
        let values = component.values(from, component.registers.clone());
        for (at, value) in (at..).step_by(8).zip(values) {
            put(area, at, value);
        }
    }
    put(area, XSTATE_BV, stored);
}

/// Eight bytes at `at`, a multiple of 4.
fn quadword(area: &[u32], at: usize) -> u64 {
    u64::from(area[at / 4]) | u64::from(area[at / 4 + 1]) << 32
}

fn put(area: &mut [u32], at: usize, value: u64) {
    (area[at / 4], area[at / 4 + 1]) = (value as u32, (value >> 32) as u32);
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

    /// A processor with AVX-512 and protection keys, whose components lie where SDM and processors have them.
    fn all() -> Layout {
        let places = [
            (2, 256, 576),
            (5, 64, 1088),
            (6, 512, 1152),
            (7, 1024, 1664),
            (9, 8, 2688),
        ];
        Layout::new(places.into_iter())
    }

    fn written(layout: &Layout, fpu: &Fpu) -> kvm_xsave {
        let mut area = kvm_xsave::default();
        write(layout, fpu, &mut area);
        area
    }

    fn through(layout: &Layout, area: &kvm_xsave) -> Fpu {
        let mut fpu = Fpu::default();
        read(layout, area, &mut fpu);
        fpu
    }

    #[test]
    fn what_is_written_is_read() {
        let layout = Layout::new(std::iter::empty());
        assert_eq!(through(&layout, &written(&layout, &busy())), busy());
    }

    #[test]
    fn each_component_holds_its_own_registers() {
        let mut fpu = busy();
        for (i, vector) in fpu.vectors.iter_mut().enumerate() {
            *vector = std::array::from_fn(|quadword| 0x1000 + 8 * i as u64 + quadword as u64);
        }
        fpu.k = std::array::from_fn(|i| 0x2000 + i as u64);
        fpu.pkru = 0x5555_5554;
        let area = written(&all(), &fpu);
        assert_eq!(area.region[1088 / 4 + 2], 0x2001, "k1");
        assert_eq!(area.region[2688 / 4], 0x5555_5554);
        assert_eq!(area.region[XSTATE_BV / 4], 0x2e7);
        assert_eq!(through(&all(), &area), fpu);
    }

    #[test]
    fn x87_registers_are_stored_from_the_top_of_the_stack_on() {
        let area = written(&Layout::new(std::iter::empty()), &busy());
        // ST(0) is physical register 5.
        assert_eq!(area.region[8], 6);
        assert_eq!(area.region[10], 0x4005);
    }

    #[test]
    fn components_that_are_not_stored_are_initial() {
        let mut area = written(&all(), &busy());
        area.region[XSTATE_BV / 4] = 0;
        let mut initial = Fpu::default();
        initial.init();
        assert_eq!(through(&all(), &area), initial);
    }

    #[test]
    fn what_nobody_here_knows_of_stays() {
        let mut area = kvm_xsave::default();
        (area.region[XSTATE_BV / 4], area.region[900]) = (1 << 11, 0x1234);
        write(&all(), &busy(), &mut area);
        assert_eq!((area.region[XSTATE_BV / 4], area.region[900]), (0xae7, 0x1234));
        assert_eq!(through(&all(), &area), busy());
    }

    #[test]
    fn components_that_do_not_fit_the_area_have_no_place() {
        let layout = Layout::new([(2, 256, 576), (9, 8, 4092), (17, 64, 100), (63, 0, 600), (70, 8, 600)].into_iter());
        assert_eq!(layout.offsets[2], 576);
        assert_eq!(layout.offsets.iter().filter(|offset| **offset != 0).count(), 1);
    }
}
