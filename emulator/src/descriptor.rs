//! Segment descriptors and task state (SDM Vol. 3, Protected-Mode Memory Management).
//!
//! Descriptors are read with the processor's own rights through [`Careful`], so that a second pass sees the ones that
//! the first pass saw. Whoever loads one checks it completely, computes the new segment as a value, and commits it when
//! nothing can fail any more.

use crate::access::Stop;
use crate::careful::Careful;
use crate::cpu::{Attributes, Cpu, Mode, Seg, Segment};
use crate::event::{self, Exception};
use crate::paging::is_canonical;

/// The table indicator of a selector: the descriptor is in the LDT.
const TABLE_INDICATOR: u16 = 1 << 2;
/// The byte of a descriptor that holds type, S, DPL and P.
const ACCESS_BYTE: u64 = 5;

/// The selector names no descriptor.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// Requested privilege level.
pub(crate) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// An exception that carries a selector.
pub(crate) fn fault(vector: u8, selector: u16) -> Stop {
    Exception::with_code(vector, selector & !3).into()
}

/// A descriptor that has been read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    /// Linear address.
    pub(crate) address: u64,
    /// The low 8 bytes.
    pub(crate) raw: u64,
    /// Those, unpacked as a segment.
    pub(crate) segment: Segment,
}

impl Descriptor {
    /// Type, S, DPL, P and the rest.
    pub(crate) fn attributes(&self) -> Attributes {
        self.segment.attributes
    }

    /// Sets the accessed bit of a code or data segment, in the table and here.
    ///
    /// # Errors
    /// [`Stop`] as every access. A table that is set already is not written to: it may be read-only.
    pub(crate) fn mark_accessed(&mut self, cpu: &Cpu, m: &mut Careful) -> Result<(), Stop> {
        if !self.attributes().is_accessed() {
            m.atomic_system::<u8, ()>(cpu, self.address + ACCESS_BYTE, |byte| {
                ((byte & 1 == 0).then_some(byte | 1), ())
            })?;
            self.segment.attributes.0 |= 1;
        }
        Ok(())
    }

    /// Marks an available TSS busy.
    ///
    /// # Errors
    /// #GP(selector) if another CPU was faster.
    pub(crate) fn mark_busy(&mut self, cpu: &Cpu, m: &mut Careful) -> Result<(), Stop> {
        let was_busy = m.atomic_system(cpu, self.address + ACCESS_BYTE, |byte: u8| {
            ((byte & 2 == 0).then_some(byte | 2), byte & 2 != 0)
        })?;
        if was_busy {
            return Err(fault(event::GP, self.segment.selector));
        }
        self.segment.attributes.0 |= 2;
        Ok(())
    }
}

/// Clears bits of the access byte of the descriptor at `address`.
///
/// # Errors
/// [`Stop`] as every access.
pub(crate) fn clear_access_bits(cpu: &Cpu, m: &mut Careful, address: u64, bits: u8) -> Result<(), Stop> {
    m.atomic_system(cpu, address.wrapping_add(ACCESS_BYTE), |byte: u8| {
        ((byte & bits != 0).then_some(byte & !bits), ())
    })
}

/// The linear address of the descriptor of `selector`, if all of its `size` bytes lie within its table.
pub(crate) fn locate(cpu: &Cpu, selector: u16, size: u16) -> Option<u64> {
    let (base, limit) = if selector & TABLE_INDICATOR != 0 {
        if !cpu.ldtr.attributes.is_present() {
            return None;
        }
        (cpu.ldtr.base, cpu.ldtr.limit)
    } else {
        (cpu.gdtr.base, u32::from(cpu.gdtr.limit))
    };
    let offset = selector & !7;
    (u32::from(offset) + u32::from(size) - 1 <= limit).then(|| base.wrapping_add(u64::from(offset)))
}

/// Reads the 8-byte descriptor of `selector`.
///
/// # Errors
/// `vector` with the selector if it lies outside its table; [`Stop`] as every access.
pub(crate) fn read(cpu: &Cpu, m: &mut Careful, selector: u16, vector: u8) -> Result<Descriptor, Stop> {
    let address = locate(cpu, selector, 8).ok_or_else(|| fault(vector, selector))?;
    read_at(cpu, m, selector, address)
}

/// Reads the 8 bytes at `address`, where the descriptor of `selector` was located.
///
/// # Errors
/// [`Stop`] as every access.
pub(crate) fn read_at(cpu: &Cpu, m: &mut Careful, selector: u16, address: u64) -> Result<Descriptor, Stop> {
    let raw = m.load_system::<u64>(cpu, address)?;
    Ok(Descriptor {
        address,
        raw,
        segment: Segment::from_descriptor(selector, raw),
    })
}

/// Reads the second half of a 16-byte system descriptor of IA-32e mode, whose type field must be zero.
///
/// # Errors
/// #GP(selector) if it lies outside the table or has a type.
pub(crate) fn read_upper(cpu: &Cpu, m: &mut Careful, descriptor: &Descriptor) -> Result<u64, Stop> {
    let selector = descriptor.segment.selector;
    locate(cpu, selector, 16).ok_or_else(|| fault(event::GP, selector))?;
    let upper = m.load_system::<u64>(cpu, descriptor.address.wrapping_add(8))?;
    if upper >> 40 & 0x1f != 0 {
        return Err(fault(event::GP, selector));
    }
    Ok(upper)
}

/// What a data or stack segment register holds after it is loaded with `selector`, in any mode.
///
/// # Errors
/// #GP, #NP or #SS (SDM Vol. 2, MOV).
pub(crate) fn load_data(cpu: &Cpu, m: &mut Careful, seg: Seg, selector: u16) -> Result<Segment, Stop> {
    match cpu.view.mode {
        Mode::Real | Mode::Virtual8086 => Ok(real_segment(cpu, seg, selector)),
        _ if seg == Seg::Ss => load_stack(cpu, m, selector, cpu.cpl(), cpu.view.is_long()),
        _ => load_protected(cpu, m, selector),
    }
}

/// A segment as real and virtual-8086 mode load it: at selector × 16.
pub(crate) fn real_segment(cpu: &Cpu, seg: Seg, selector: u16) -> Segment {
    let mut segment = Segment::real_mode(selector);
    if cpu.view.mode == Mode::Virtual8086 {
        segment.attributes = segment.attributes.with_dpl(3);
        return segment;
    }
    // Real mode keeps limit and size of what protected mode has loaded ("unreal mode"), but not those of nothing.
    let old = cpu.segments[seg];
    if old.attributes.is_present() {
        segment.limit = old.limit;
        segment.attributes.0 |= old.attributes.0 & 0xf000;
    }
    segment
}

fn load_protected(cpu: &Cpu, m: &mut Careful, selector: u16) -> Result<Segment, Stop> {
    if is_null(selector) {
        return Ok(Segment::null(selector));
    }
    let mut descriptor = read(cpu, m, selector, event::GP)?;
    let attributes = descriptor.attributes();
    let conforming = attributes.is_conforming();
    if !attributes.is_readable() || !conforming && attributes.dpl() < rpl(selector).max(cpu.cpl()) {
        return Err(fault(event::GP, selector));
    }
    if !attributes.is_present() {
        return Err(fault(event::NP, selector));
    }
    descriptor.mark_accessed(cpu, m)?;
    Ok(descriptor.segment)
}

/// What SS holds after it is loaded with `selector` at privilege level `cpl`; `long` if 64-bit code follows.
///
/// # Errors
/// #GP or #SS.
pub(crate) fn load_stack(cpu: &Cpu, m: &mut Careful, selector: u16, cpl: u8, long: bool) -> Result<Segment, Stop> {
    if is_null(selector) {
        return if long && cpl != 3 && rpl(selector) == cpl {
            Ok(null_stack(cpl))
        } else {
            Err(Exception::gp(0).into())
        };
    }
    stack_descriptor(cpu, m, selector, cpl, event::GP)
}

/// The null SS of 64-bit mode at privilege level `cpl`, which its DPL keeps.
pub(crate) fn null_stack(cpl: u8) -> Segment {
    let mut segment = Segment::null(u16::from(cpl));
    segment.attributes = segment.attributes.with_dpl(cpl);
    segment
}

/// Checks and loads the stack segment of privilege level `cpl`; `vector` is the exception for one that does not fit.
///
/// # Errors
/// `vector` or #SS, with the selector.
pub(crate) fn stack_descriptor(
    cpu: &Cpu,
    m: &mut Careful,
    selector: u16,
    cpl: u8,
    vector: u8,
) -> Result<Segment, Stop> {
    let mut descriptor = read(cpu, m, selector, vector)?;
    let attributes = descriptor.attributes();
    if rpl(selector) != cpl || !attributes.is_writable_data() || attributes.dpl() != cpl {
        return Err(fault(vector, selector));
    }
    if !attributes.is_present() {
        return Err(fault(event::SS, selector));
    }
    descriptor.mark_accessed(cpu, m)?;
    Ok(descriptor.segment)
}

/// Checks that `ip` lies within the code segment about to be entered.
///
/// # Errors
/// #GP(0).
pub(crate) fn check_target(cpu: &Cpu, cs: &Segment, ip: u64) -> Result<(), Stop> {
    let inside = if is_long_code(cpu, cs) {
        is_canonical(cpu, ip)
    } else {
        ip <= u64::from(cs.limit)
    };
    if inside { Ok(()) } else { Err(Exception::gp(0).into()) }
}

/// 64-bit code, given that the CPU is in protected mode.
pub(crate) fn is_long_code(cpu: &Cpu, cs: &Segment) -> bool {
    cpu.view.is_ia32e() && cs.attributes.is_long()
}

/// A code segment that IA-32e mode does not take: both L and D are set.
pub(crate) fn is_bad_long_code(cpu: &Cpu, attributes: Attributes) -> bool {
    cpu.view.is_ia32e() && attributes.is_long() && attributes.is_big()
}

/// The stack pointer and SS selector for privilege level `cpl` in the task state segment of protected mode.
///
/// # Errors
/// #TS(TR) if the TSS is too short.
pub(crate) fn tss_stack(cpu: &Cpu, m: &mut Careful, cpl: u8) -> Result<(u64, u16), Stop> {
    let cpl = u64::from(cpl);
    // Bit 3 of the type tells 32-bit from 16-bit task state.
    let wide = cpu.tr.attributes.0 & 8 != 0;
    let (offset, width) = if wide { (4 + 8 * cpl, 4) } else { (2 + 4 * cpl, 2) };
    if !cpu.tr.attributes.is_present() || offset + width + 1 > u64::from(cpu.tr.limit) {
        return Err(fault(event::TS, cpu.tr.selector));
    }
    let at = cpu.tr.base.wrapping_add(offset);
    let pointer = if wide {
        u64::from(m.load_system::<u32>(cpu, at)?)
    } else {
        u64::from(m.load_system::<u16>(cpu, at)?)
    };
    Ok((pointer, m.load_system::<u16>(cpu, at.wrapping_add(width))?))
}

/// A stack pointer from the 64-bit task state segment: `index` 0 to 2 for RSP0 to RSP2, 4 to 10 for IST1 to IST7.
///
/// # Errors
/// #TS(TR) if the TSS is too short.
pub(crate) fn tss_stack_pointer(cpu: &Cpu, m: &mut Careful, index: u8) -> Result<u64, Stop> {
    let offset = 4 + 8 * u64::from(index);
    if !cpu.tr.attributes.is_present() || offset + 7 > u64::from(cpu.tr.limit) {
        return Err(fault(event::TS, cpu.tr.selector));
    }
    m.load_system::<u64>(cpu, cpu.tr.base.wrapping_add(offset))
}
