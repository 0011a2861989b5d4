//! Effective and linear addresses, and segment checks.

use crate::access::{Access, Linear, Outcome, Stop};
use crate::cpu::{Cpu, Mode, Seg};
use crate::event::{self, Exception};
use crate::op::Op;
use crate::paging::is_canonical;

/// What a segment must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Reading data.
    Read,
    /// Writing data, or reading and writing.
    Write,
}

/// How a handler forms the linear address of its memory operand.
pub trait Addressing: 'static {
    /// The linear address of `op`'s memory operand of `size` bytes.
    ///
    /// # Errors
    /// #GP or #SS if the segment does not allow it.
    fn linear<M>(cpu: &Cpu, op: &Op<M>, size: u64, usage: Use) -> Result<Linear, Stop>;
}

/// 64-bit mode with 64-bit addresses: segments are flat, and canonical form is checked where the TLB misses.
pub struct Flat;

/// Any mode and address size.
pub struct General;

/// The effective address of the memory operand: an offset within its segment.
#[inline(always)]
pub fn effective_address<M>(cpu: &Cpu, op: &Op<M>) -> u64 {
    flat_address(cpu, op) & op.attr.address_mask()
}

impl Addressing for Flat {
    #[inline(always)]
    fn linear<M>(cpu: &Cpu, op: &Op<M>, _: u64, _: Use) -> Result<Linear, Stop> {
        let address = flat_address(cpu, op);
        let seg = op.seg();
        if seg >= Seg::Fs as u8 {
            return based(cpu, Seg::from_number(seg), address);
        }
        Ok(Linear { address, seg })
    }
}

/// A linear address in FS or GS. The modelled processor finds fault with an offset that is not canonical even if the linear
/// address is.
#[inline(always)]
fn based(cpu: &Cpu, seg: Seg, offset: u64) -> Result<Linear, Stop> {
    if !is_canonical(cpu, offset) {
        return Err(segment_fault(seg));
    }
    Ok(Linear::new(seg, offset.wrapping_add(cpu.view.flat_base[seg as usize])))
}

/// The effective address in 64-bit mode with 64-bit addresses.
#[inline(always)]
pub fn flat_address<M>(cpu: &Cpu, op: &Op<M>) -> u64 {
    cpu.gpr
        .get(op.base)
        .wrapping_add(cpu.gpr.get(op.index) << op.scale())
        .wrapping_add(op.disp)
}

impl Addressing for General {
    #[inline(never)]
    fn linear<M>(cpu: &Cpu, op: &Op<M>, size: u64, usage: Use) -> Result<Linear, Stop> {
        cpu.linear(Seg::from_number(op.seg()), effective_address(cpu, op), size, usage)
    }
}

/// The address of an operand of several fields, the first of `field` bytes. The modelled processor takes the faults of the
/// first, page and all, before it finds that a later one is beyond the limit.
///
/// # Errors
/// #GP or #SS if the segment does not allow it, and the faults of the first field.
pub fn of_fields<M: Access>(
    cpu: &Cpu,
    m: &mut M,
    op: &Op<M>,
    field: u64,
    length: u64,
    usage: Use,
) -> Result<Linear, Stop> {
    let at = General::linear(cpu, op, field, usage)?;
    check(cpu, m, at, field, usage)?;
    General::linear(cpu, op, length, usage)
}

/// Makes sure that `length` bytes at an address could be read, or written.
///
/// # Errors
/// As [`Access::check_read`] and [`Access::check_write`].
pub fn check<M: Access>(cpu: &Cpu, m: &mut M, at: Linear, length: u64, usage: Use) -> Outcome {
    match usage {
        Use::Read => m.check_read(cpu, at, length),
        Use::Write => m.check_write(cpu, at, length),
    }
}

/// The address of an operand of `size` bytes that must be a multiple of `alignment`. The modelled processor looks at the
/// alignment before the limit and the canonical form.
///
/// # Errors
/// #GP(0) if it is not aligned, and those of [`Addressing::linear`].
#[inline(always)]
pub fn aligned<M, A: Addressing>(cpu: &Cpu, op: &Op<M>, size: u64, alignment: u64, usage: Use) -> Result<Linear, Stop> {
    let at = A::linear(cpu, op, size, usage);
    let fits = match &at {
        Ok(at) => at.address.is_multiple_of(alignment),
        Err(_) => is_aligned(cpu, op, alignment),
    };
    if fits { at } else { Err(Exception::gp(0).into()) }
}

/// The linear address of a memory operand, allowed or not, is a multiple of `alignment`.
pub fn is_aligned<M>(cpu: &Cpu, op: &Op<M>, alignment: u64) -> bool {
    let base = match cpu.view.is_long() {
        true => cpu.view.flat_base[usize::from(op.seg() & 7)],
        false => cpu.segments[Seg::from_number(op.seg())].base,
    };
    effective_address(cpu, op).wrapping_add(base).is_multiple_of(alignment)
}

impl Cpu {
    /// The linear address of `offset` in `seg`, for an operand of `size` bytes (1 or more).
    ///
    /// # Errors
    /// #GP(0), or #SS(0) for SS: not canonical, beyond the limit, or not readable or writable.
    pub fn linear(&self, seg: Seg, offset: u64, size: u64, usage: Use) -> Result<Linear, Stop> {
        let segment = &self.segments[seg];
        if self.view.mode == Mode::Long {
            let at = based(self, seg, offset)?;
            let last = at.address.wrapping_add(size - 1);
            if is_canonical(self, at.address) && is_canonical(self, last) {
                return Ok(at);
            }
            return Err(segment_fault(seg));
        }
        let attributes = segment.attributes;
        if self.view.has_descriptors() {
            let allowed = match usage {
                Use::Read => attributes.is_readable(),
                Use::Write => attributes.is_writable_data(),
            };
            if !attributes.is_present() || !allowed {
                return Err(segment_fault(seg));
            }
        }
        let last = offset.checked_add(size - 1);
        let limit = u64::from(segment.limit);
        let inside = if attributes.is_expand_down() && self.view.has_descriptors() {
            let upper = if attributes.is_big() { 0xffff_ffff } else { 0xffff };
            offset > limit && last.is_some_and(|last| last <= upper)
        } else {
            last.is_some_and(|last| last <= limit)
        };
        if !inside {
            return Err(segment_fault(seg));
        }
        Ok(Linear::new(seg, segment.base.wrapping_add(offset) & 0xffff_ffff))
    }

    /// Checks that the byte at offset `ip` of the code segment may be executed, and gives its linear address.
    ///
    /// # Errors
    /// #GP(0).
    pub fn linear_code(&self, ip: u64) -> Result<u64, Stop> {
        let cs = &self.segments[Seg::Cs];
        if self.view.mode == Mode::Long {
            return if is_canonical(self, ip) {
                Ok(ip)
            } else {
                Err(Exception::gp(0).into())
            };
        }
        if ip > u64::from(cs.limit) {
            return Err(Exception::gp(0).into());
        }
        Ok(cs.base.wrapping_add(ip) & 0xffff_ffff)
    }
}

#[cold]
fn segment_fault(seg: Seg) -> Stop {
    let vector = if seg == Seg::Ss { event::SS } else { event::GP };
    Exception::with_code(vector, 0).into()
}
