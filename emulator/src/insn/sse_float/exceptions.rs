//! Which exception an SSE operation earns (SDM Vol. 1, SIMD Floating-Point Exceptions).
//!
//! The host computed with everything masked. From the flags it raised follows what happens with the guest's masks:
//! * An unmasked exception that is found before computing (invalid, denormal, division by zero) hides those that would be
//!   found after (overflow, underflow, inexact).
//! * With underflow unmasked every tiny result underflows, exact or not, and FTZ has no effect.
//! * With overflow or underflow unmasked, inexact means that the result differs when rounded to the destination's precision
//!   with an exponent of any size.

use crate::access::{Outcome, Stop};
use crate::cpu::{Cpu, Cr4};
use crate::event::{self, Exception};
use crate::native::sse::{Arithmetic, DAZ, DE, Element, FTZ, IE, MASKS, OE, Operation, PE, Range, UE, ZE};
use crate::native::x87::is_inexact;

/// Exceptions found before computing.
const BEFORE: u32 = IE | DE | ZE;

/// Computes; the value for the destination.
#[inline(always)]
pub(super) fn compute<O: Operation>(cpu: &mut Cpu, a: [u8; 16], b: [u8; 16]) -> Result<[u8; 16], Stop> {
    let mxcsr = cpu.fpu.mxcsr;
    if mxcsr & MASKS == MASKS {
        let (value, raised) = O::run(a, b, mxcsr);
        cpu.fpu.mxcsr |= raised;
        return Ok(value);
    }
    compute_unmasked::<O>(cpu, a, b)
}

#[cold]
fn compute_unmasked<O: Operation>(cpu: &mut Cpu, a: [u8; 16], b: [u8; 16]) -> Result<[u8; 16], Stop> {
    let mxcsr = cpu.fpu.mxcsr;
    let unmasked = unmasked(mxcsr);
    // FTZ works only while underflow is masked.
    let control = if unmasked & UE != 0 { mxcsr & !FTZ } else { mxcsr };
    let (value, mut raised) = O::run(a, b, control);
    if raised & unmasked & BEFORE == 0 {
        let elements = operands(O::RANGE, mxcsr, a, b, value);
        if unmasked & UE != 0 && elements.clone().any(|element| element.is_tiny()) {
            raised |= UE;
        }
        if raised & unmasked & (OE | UE) != 0 {
            raised &= !PE;
            for i in 0..elements.clone().count() {
                // Each element alone tells whether it is the one that left the range.
                let (_, alone) = O::run(keep(a, i, O::RANGE), keep(b, i, O::RANGE), control);
                let Some(element) = elements.clone().nth(i) else { break };
                let leaves = alone & unmasked & (OE | UE) != 0 || unmasked & UE != 0 && element.is_tiny();
                let inexact = if leaves { element.is_inexact() } else { alone & PE != 0 };
                if inexact {
                    raised |= PE;
                }
            }
        }
    }
    raise(cpu, raised)?;
    Ok(value)
}

/// Sets MXCSR flags, and raises #XM if one of them is unmasked.
///
/// MXCSR changes although the instruction faults; it is the one register that does, and doing it again changes nothing.
#[inline(always)]
pub(in crate::insn) fn raise(cpu: &mut Cpu, raised: u32) -> Outcome {
    if raised & unmasked(cpu.fpu.mxcsr) == 0 {
        cpu.fpu.mxcsr |= raised;
        return Ok(());
    }
    raise_unmasked(cpu, raised)
}

#[cold]
fn raise_unmasked(cpu: &mut Cpu, raised: u32) -> Outcome {
    let reported = if raised & unmasked(cpu.fpu.mxcsr) & BEFORE != 0 {
        raised & BEFORE
    } else {
        raised
    };
    cpu.fpu.mxcsr |= reported;
    if cpu.cr4.any(Cr4::OSXMMEXCPT) {
        Err(Exception::plain(event::XM).into())
    } else {
        Err(Exception::ud().into())
    }
}

fn unmasked(mxcsr: u32) -> u32 {
    (!mxcsr & MASKS) >> 7
}

/// Operands and result of one element, as doubles, which hold singles exactly.
#[derive(Debug, Clone, Copy)]
struct Operands {
    arithmetic: Arithmetic,
    /// Precision of the destination.
    element: Element,
    a: f64,
    b: f64,
    /// Bits of the result.
    value: u64,
}

impl Operands {
    /// The result is denormal.
    fn is_tiny(self) -> bool {
        match self.element {
            Element::Single => f32::from_bits(self.value as u32).is_subnormal(),
            Element::Double => f64::from_bits(self.value).is_subnormal(),
        }
    }

    fn is_inexact(self) -> bool {
        is_inexact(self.arithmetic, self.element, self.a, self.b)
    }
}

/// The elements of an operation, if its results can leave the range.
fn operands(
    range: Range,
    mxcsr: u32,
    a: [u8; 16],
    b: [u8; 16],
    value: [u8; 16],
) -> impl Iterator<Item = Operands> + Clone {
    let count = match range {
        Range::Safe => 0,
        Range::Arithmetic(_, _, count) | Range::Narrowing(count) => count,
    };
    (0..count).map(move |i| match range {
        Range::Arithmetic(arithmetic, Element::Single, _) => Operands {
            arithmetic,
            element: Element::Single,
            a: f64::from(flushed(mxcsr, f32::from_bits(single(a, i)))),
            b: f64::from(flushed(mxcsr, f32::from_bits(single(b, i)))),
            value: u64::from(single(value, i)),
        },
        Range::Arithmetic(arithmetic, Element::Double, _) => Operands {
            arithmetic,
            element: Element::Double,
            a: flushed_double(mxcsr, f64::from_bits(double(a, i))),
            b: flushed_double(mxcsr, f64::from_bits(double(b, i))),
            value: double(value, i),
        },
        // A conversion is a multiplication by one that rounds to single precision.
        Range::Narrowing(_) | Range::Safe => Operands {
            arithmetic: Arithmetic::Mul,
            element: Element::Single,
            a: flushed_double(mxcsr, f64::from_bits(double(b, i))),
            b: 1.0,
            value: u64::from(single(value, i)),
        },
    })
}

fn single(bytes: [u8; 16], i: usize) -> u32 {
    (u128::from_le_bytes(bytes) >> (32 * i)) as u32
}

fn double(bytes: [u8; 16], i: usize) -> u64 {
    (u128::from_le_bytes(bytes) >> (64 * i)) as u64
}

fn flushed(mxcsr: u32, value: f32) -> f32 {
    if mxcsr & DAZ != 0 && value.is_subnormal() {
        0.0
    } else {
        value
    }
}

fn flushed_double(mxcsr: u32, value: f64) -> f64 {
    if mxcsr & DAZ != 0 && value.is_subnormal() {
        0.0
    } else {
        value
    }
}

/// The operand with element `i` everywhere, so that the operation's flags are those of this element.
fn keep(bytes: [u8; 16], i: usize, range: Range) -> [u8; 16] {
    let value = match range {
        Range::Arithmetic(_, Element::Single, _) => {
            u128::from(single(bytes, i)) * 0x0000_0001_0000_0001_0000_0001_0000_0001
        }
        _ => u128::from(double(bytes, i)) * 0x0000_0000_0000_0001_0000_0000_0000_0001,
    };
    value.to_le_bytes()
}
