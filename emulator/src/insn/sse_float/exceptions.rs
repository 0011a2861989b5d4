//! Which exception a floating-point operation on vectors earns (SDM Vol. 1, SIMD Floating-Point Exceptions).
//!
//! The host computed with everything masked. From the flags it raised follows what happens with the guest's masks:
//! * An unmasked exception that is found before computing (invalid, denormal, division by zero) hides those that would be
//!   found after (overflow, underflow, inexact).
//! * With underflow unmasked every tiny result underflows, exact or not, and FTZ has no effect.
//! * With overflow or underflow unmasked, inexact means that the result differs when rounded to the destination's precision
//!   with an exponent of any size.

use super::function::{Chunk, Function, legacy};
use crate::access::{Outcome, Stop};
use crate::cpu::{Cpu, Cr4};
use crate::event::{self, Exception};
use crate::insn::vector::Lanes;
use crate::native::sse::{Arithmetic, DAZ, DE, Element, FTZ, Fused, IE, MASKS, OE, Operation, PE, Range, UE, ZE};
use crate::native::x87::is_inexact;

/// Exceptions found before computing.
const BEFORE: u32 = IE | DE | ZE;

/// Computes 16 bytes, for the SSE forms; the value for the destination.
#[inline(always)]
pub(super) fn compute<O: Operation>(cpu: &mut Cpu, a: [u8; 16], b: [u8; 16]) -> Result<[u8; 16], Stop> {
    let mxcsr = cpu.fpu.mxcsr;
    let (value, mut raised) = O::run(a, b, mxcsr);
    if mxcsr & MASKS != MASKS && O::RANGE != Range::Safe {
        let (source, result, count) = match O::RANGE {
            Range::Narrowing(count) => (8, 4, count),
            Range::Arithmetic(_, element, count) => (element.size(), element.size(), count),
            Range::Fused(_, element) => (element.size(), element.size(), 16 / element.size()),
            Range::Safe => (4, 4, 4),
        };
        let lanes = legacy(a, b, 0, (1 << count) - 1, mxcsr);
        raised = flags(&Function::host::<O>(source, result), &lanes);
    }
    raise(cpu, reported(raised, mxcsr))?;
    // Nothing unmasked was raised: the value does not depend on the masks.
    Ok(value)
}

/// Computes all elements that are active; the flags to raise.
pub(in crate::insn) fn evaluate(function: &Function, lanes: &mut Lanes) {
    let length = function.elements() * function.result;
    let mut out = [0; 64];
    let mut raised = 0;
    for i in 0..lanes.bytes / 16 {
        let (value, flags) = (function.step)(&function.chunk(lanes, lanes.active, lanes.mxcsr, i));
        out[i * length..(i + 1) * length].copy_from_slice(&value[..length]);
        raised |= flags;
    }
    if lanes.mxcsr & MASKS != MASKS && function.range != Range::Safe {
        raised = flags(function, lanes);
    }
    lanes.raised |= reported(raised, lanes.mxcsr);
    lanes.a = out;
}

/// The flags with the exceptions masked that MXCSR masks, of an operation whose results can leave the range.
#[cold]
fn flags(function: &Function, lanes: &Lanes) -> u32 {
    let mxcsr = lanes.mxcsr;
    let unmasked = unmasked(mxcsr);
    // FTZ works only while underflow is masked.
    let control = if unmasked & UE != 0 { mxcsr & !FTZ } else { mxcsr };
    let mut raised = 0;
    for at in (0..64).filter(|at| lanes.active >> at & 1 != 0) {
        let (i, k) = (at / function.elements(), at % function.elements());
        let chunk = function.chunk(lanes, 1 << at, control, i);
        let (value, mut alone) = (function.step)(&chunk);
        let operands = Operands::of(function.range, mxcsr, &chunk, value, k);
        if unmasked & UE != 0 && operands.is_tiny() {
            alone |= UE;
        }
        // Only finite operands give results that leave the range.
        if alone & unmasked & (OE | UE) != 0 && alone & unmasked & BEFORE == 0 {
            alone = alone & !PE | if operands.is_inexact() { PE } else { 0 };
        }
        raised |= alone;
    }
    raised
}

/// Sets MXCSR flags, and raises #XM if one of them is unmasked.
///
/// MXCSR changes although the instruction faults; it is the one register that does, and doing it again changes nothing.
#[inline(always)]
pub(in crate::insn) fn raise(cpu: &mut Cpu, raised: u32) -> Outcome {
    cpu.fpu.mxcsr |= raised;
    if raised & unmasked(cpu.fpu.mxcsr) == 0 {
        return Ok(());
    }
    raise_unmasked(cpu)
}

#[cold]
fn raise_unmasked(cpu: &Cpu) -> Outcome {
    if cpu.cr4.any(Cr4::OSXMMEXCPT) {
        Err(Exception::plain(event::XM).into())
    } else {
        Err(Exception::ud().into())
    }
}

/// What of the flags of one computation is reported.
fn reported(raised: u32, mxcsr: u32) -> u32 {
    if raised & unmasked(mxcsr) & BEFORE != 0 {
        raised & BEFORE
    } else {
        raised
    }
}

/// The exceptions that MXCSR does not mask.
pub(in crate::insn) fn unmasked(mxcsr: u32) -> u32 {
    (!mxcsr & MASKS) >> 7
}

/// Operands and result of one element, as doubles, which hold singles exactly.
#[derive(Debug, Clone, Copy)]
struct Operands {
    operation: Computation,
    /// Precision of the destination.
    element: Element,
    a: f64,
    b: f64,
    /// Of three operands the one that is added, with its sign.
    c: f64,
    /// Bits of the result.
    value: u64,
}

/// What was rounded.
#[derive(Debug, Clone, Copy)]
enum Computation {
    Arithmetic(Arithmetic),
    /// a × b + c.
    Fused,
}

impl Operands {
    /// Those of element `i`.
    fn of(range: Range, mxcsr: u32, chunk: &Chunk, value: [u8; 16], i: usize) -> Operands {
        let (operation, element) = match range {
            Range::Arithmetic(arithmetic, element, _) => (Computation::Arithmetic(arithmetic), element),
            // A conversion is a multiplication by one that rounds to single precision.
            Range::Narrowing(_) | Range::Safe => {
                return Operands {
                    operation: Computation::Arithmetic(Arithmetic::Mul),
                    element: Element::Single,
                    a: operand(mxcsr, Element::Double, chunk.c, i),
                    b: 1.0,
                    c: 0.0,
                    value: bits(Element::Single, value, i),
                };
            }
            Range::Fused(_, element) => (Computation::Fused, element),
        };
        let (a, b, c) = match range {
            Range::Fused(..) => (chunk.a, chunk.b, chunk.c),
            _ => (chunk.b, chunk.c, chunk.c),
        };
        let mut operands = Operands {
            operation,
            element,
            a: operand(mxcsr, element, a, i),
            b: operand(mxcsr, element, b, i),
            c: operand(mxcsr, element, c, i),
            value: bits(element, value, i),
        };
        if let Range::Fused(fused, _) = range {
            let odd = i & 1 != 0;
            if matches!(fused, Fused::NegatedAdd | Fused::NegatedSub) {
                operands.a = -operands.a;
            }
            if matches!(
                (fused, odd),
                (Fused::Sub | Fused::NegatedSub, _) | (Fused::AddSub, false) | (Fused::SubAdd, true)
            ) {
                operands.c = -operands.c;
            }
        }
        operands
    }

    /// The result is denormal.
    fn is_tiny(self) -> bool {
        match self.element {
            Element::Single => f32::from_bits(self.value as u32).is_subnormal(),
            Element::Double => f64::from_bits(self.value).is_subnormal(),
        }
    }

    fn is_inexact(self) -> bool {
        match self.operation {
            Computation::Arithmetic(arithmetic) => is_inexact(arithmetic, self.element, self.a, self.b),
            Computation::Fused => self.is_fused_inexact(),
        }
    }

    /// Whether a × b + c has more bits than the destination's precision; all three are finite.
    fn is_fused_inexact(self) -> bool {
        let precision = match self.element {
            Element::Single => 24,
            Element::Double => 53,
        };
        let (a, b, c) = (integral(self.a), integral(self.b), integral(self.c));
        let product = (a.0 * b.0, a.1 + b.1);
        let (sum, _) = match (product, c) {
            ((0, _), c) => c,
            (product, (0, _)) => product,
            (product, c) => {
                let low = product.1.min(c.1);
                let high = top(product).max(top(c));
                // Both are odd: the sum's lowest bit is the lower one's, and its highest at most one below the higher one's.
                if high - low > 120 {
                    return true;
                }
                ((product.0 << (product.1 - low)) + (c.0 << (c.1 - low)), low)
            }
        };
        let sum = sum.unsigned_abs();
        sum != 0 && sum.ilog2() - sum.trailing_zeros() >= precision
    }
}

/// A finite double as an odd integer (or zero) times a power of two.
fn integral(value: f64) -> (i128, i32) {
    let number = super::format::Format::DOUBLE.number(value.to_bits());
    if number.significand == 0 {
        return (0, 0);
    }
    let zeros = number.significand.trailing_zeros();
    let magnitude = (number.significand >> zeros) as i128;
    let signed = if number.sign { -magnitude } else { magnitude };
    (signed, number.exponent + zeros as i32)
}

/// Exponent of the highest bit of what is not zero.
fn top((integer, exponent): (i128, i32)) -> i32 {
    integer.unsigned_abs().ilog2() as i32 + exponent
}

fn bits(element: Element, bytes: [u8; 16], i: usize) -> u64 {
    let value = u128::from_le_bytes(bytes) >> (8 * element.size() * i);
    match element {
        Element::Single => u64::from(value as u32),
        Element::Double => value as u64,
    }
}

fn operand(mxcsr: u32, element: Element, bytes: [u8; 16], i: usize) -> f64 {
    let bits = bits(element, bytes, i);
    let flush = mxcsr & DAZ != 0;
    match element {
        Element::Single => match f32::from_bits(bits as u32) {
            value if flush && value.is_subnormal() => 0.0,
            value => f64::from(value),
        },
        Element::Double => match f64::from_bits(bits) {
            value if flush && value.is_subnormal() => 0.0,
            value => value,
        },
    }
}
