//! The state components of XSAVE: leaf 0xD.

use iced_x86::CpuidFeature::{self, AVX, AVX512F, PKU};
use reprise_emulator::cpu::fpu::{COMPONENTS, EXTENDED_START};

use super::features::announces;
use crate::CpuModel;

/// The components that every processor with XSAVE has: x87 and SSE.
pub const LEGACY: u32 = 0b11;
/// Bytes of the legacy region and the header, where the other components begin.
pub const BASE: u32 = EXTENDED_START as u32;

/// A component beyond x87 and SSE.
pub struct Component {
    /// Its bit in XCR0.
    pub number: u32,
    /// Bytes.
    pub size: u32,
    /// Where it is in the standard format.
    pub offset: u32,
}

impl Component {
    /// Its bit in XCR0.
    pub fn bit(&self) -> u32 {
        1 << self.number
    }
}

/// Whose registers a component holds.
fn owner(number: u32) -> CpuidFeature {
    match number {
        2 => AVX,
        9 => PKU,
        _ => AVX512F,
    }
}

/// The components of a processor of this model.
pub fn components(model: CpuModel) -> impl Iterator<Item = Component> {
    COMPONENTS
        .iter()
        .map(|component| Component {
            number: component.bit.trailing_zeros(),
            size: component.size() as u32,
            offset: component.offset as u32,
        })
        .filter(move |component| component.bit() & LEGACY == 0 && announces(model, owner(component.number)))
}
