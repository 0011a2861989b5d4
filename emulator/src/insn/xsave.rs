//! FXSAVE, FXRSTOR and the XSAVE family (SDM Vol. 1, Managing State Using the XSAVE Feature Set).
//!
//! There is no supervisor state component, and so nothing that IA32_XSS could enable: XSAVES and XRSTORS are XSAVEC and
//! XRSTOR for level 0, and for the compacted format alone. The save instructions store more than
//! once, but each store depends on nothing that the others change: when the fast way gives up half-way (which it does only
//! if another CPU takes the page away after [`Access::check_write`]), saving again from the start writes the same.

use core::ops::Range;

use iced_x86::Code;

use super::available;
use crate::access::{Access, Linear, Outcome, Stop};
use crate::careful::{Careful, Flush};
use crate::cpu::fpu::{
    AVX, COMPONENTS, Component, EXTENDED_START, F80, Fpu, LEGACY_SIZE, MXCSR_INIT, MXCSR_MASK, PKRU, Registers, SSE,
    X87,
};
use crate::cpu::{Cpu, Cr4, Efer, Seg, gpr};
use crate::event::{self, Exception};
use crate::op::Op;
use crate::operand::{Addressing, General, Use, aligned, check, effective_address};
use crate::table::Table;

/// Offset of XMM0 in the legacy region.
const XMM: usize = 160;
/// What XSAVE areas are aligned to.
const XSAVE_ALIGNMENT: u64 = 64;
/// Where the legacy region's part that instructions write ends, in 64-bit mode.
const LEGACY_END: usize = 416;
/// Bit 63 of XCOMP_BV: the area is in the compacted format.
const COMPACTED: u64 = 1 << 63;
/// Bytes of the largest area.
const AREA: usize = {
    let mut end = EXTENDED_START;
    let mut i = 0;
    while i < COMPONENTS.len() {
        let component = &COMPONENTS[i];
        if component.offset + component.size() > end {
            end = component.offset + component.size();
        }
        i += 1;
    }
    end
};

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    table.plain(Code::Fxsave_m512byte, fxsave::<M, false>);
    table.plain(Code::Fxsave64_m512byte, fxsave::<M, true>);
    table.plain(Code::Fxrstor_m512byte, fxrstor::<M, false>);
    table.plain(Code::Fxrstor64_m512byte, fxrstor::<M, true>);
    table.plain(Code::Xsave_mem, xsave::<M, Plain, false>);
    table.plain(Code::Xsave64_mem, xsave::<M, Plain, true>);
    table.plain(Code::Xsaveopt_mem, xsave::<M, Optimised, false>);
    table.plain(Code::Xsaveopt64_mem, xsave::<M, Optimised, true>);
    table.plain(Code::Xsavec_mem, xsave::<M, Compacting, false>);
    table.plain(Code::Xsavec64_mem, xsave::<M, Compacting, true>);
    table.plain(Code::Xsaves_mem, xsaves::<M, false>);
    table.plain(Code::Xsaves64_mem, xsaves::<M, true>);
    table.plain(Code::Xrstor_mem, xrstor::<M, false, false>);
    table.plain(Code::Xrstor64_mem, xrstor::<M, true, false>);
    table.plain(Code::Xrstors_mem, xrstor::<M, false, true>);
    table.plain(Code::Xrstors64_mem, xrstor::<M, true, true>);
    table.plain(Code::Ldmxcsr_m32, |cpu, m, op| {
        available::sse(cpu)?;
        ldmxcsr(cpu, m, op)
    });
    table.plain(Code::Stmxcsr_m32, |cpu, m, op| {
        available::sse(cpu)?;
        stmxcsr(cpu, m, op)
    });
    table.plain(Code::VEX_Vldmxcsr_m32, |cpu, m, op| {
        available::avx(cpu)?;
        ldmxcsr(cpu, m, op)
    });
    table.plain(Code::VEX_Vstmxcsr_m32, |cpu, m, op| {
        available::avx(cpu)?;
        stmxcsr(cpu, m, op)
    });
}

/// XSAVE's memory operand, up to the end of its header. The faults of its first byte come before the limit.
fn area<M: Access>(cpu: &Cpu, m: &mut M, op: &Op<M>, usage: Use) -> Result<Linear, Stop> {
    let at = aligned::<M, General>(cpu, op, 1, XSAVE_ALIGNMENT, usage)?;
    check(cpu, m, at, 1, usage)?;
    General::linear(cpu, op, EXTENDED_START as u64, usage)
}

/// The memory operand of FXSAVE and FXRSTOR, `length` bytes of it. The modelled processor looks at its last byte first, and
/// truncates each address within it to the address size, so that there are two parts if it goes around the end.
fn fxsave_area<M: Access>(
    cpu: &Cpu,
    m: &mut M,
    op: &Op<M>,
    length: usize,
    usage: Use,
) -> Result<[(Linear, Range<usize>); 2], Stop> {
    let start = General::linear(cpu, op, 4, Use::Read)?;
    if !start.address.is_multiple_of(16) {
        // The alignment check, where it is on, comes before a segment's not being writable, and knows but the alignment of the
        // fields.
        if cpu.view.checks_alignment() && !start.address.is_multiple_of(4) {
            return Err(Exception::with_code(event::AC, 0).into());
        }
        return Err(Exception::gp(0).into());
    }
    let (offset, mask) = (effective_address(cpu, op), op.attr.address_mask());
    let part = |range: Range<usize>| -> Result<(Linear, Range<usize>), Stop> {
        let offset = offset.wrapping_add(range.start as u64) & mask;
        let at = cpu.linear(Seg::from_number(op.seg()), offset, range.len().max(1) as u64, usage)?;
        Ok((at, range))
    };
    let around = usize::try_from(mask - offset).map_or(length, |left| left.saturating_add(1).min(length));
    let (last, _) = part(LEGACY_SIZE - 1..LEGACY_SIZE)?;
    check(cpu, m, last, 1, usage)?;
    let parts = [part(0..around)?, part(around..length)?];
    for (at, range) in &parts {
        if !range.is_empty() {
            check(cpu, m, *at, range.len() as u64, usage)?;
        }
    }
    Ok(parts)
}

fn word<const N: usize>(area: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&area[offset..offset + N]);
    bytes
}

/// Writes the x87 part of the legacy region: bytes 23:0 and 159:32.
fn put_x87(fpu: &Fpu, wide: bool, area: &mut [u8]) {
    area[0..2].copy_from_slice(&fpu.control.to_le_bytes());
    area[2..4].copy_from_slice(&fpu.status.to_le_bytes());
    area[4] = fpu.tags;
    area[5..24].fill(0);
    // The exception pointers are saved only with an exception to point at, and are zero otherwise, as AMD's processors
    // with RstrFpErrPtrs do (APM Vol. 2, Saving Media and x87 State).
    if fpu.is_pending() {
        area[6..8].copy_from_slice(&fpu.opcode.to_le_bytes());
        if wide {
            area[8..16].copy_from_slice(&fpu.ip.to_le_bytes());
            area[16..24].copy_from_slice(&fpu.dp.to_le_bytes());
        } else {
            area[8..12].copy_from_slice(&(fpu.ip as u32).to_le_bytes());
            area[12..14].copy_from_slice(&fpu.cs.to_le_bytes());
            area[16..20].copy_from_slice(&(fpu.dp as u32).to_le_bytes());
            area[20..22].copy_from_slice(&fpu.ds.to_le_bytes());
        }
    }
    for i in 0..8 {
        let register = fpu.registers[fpu.physical(i)];
        let slot = &mut area[32 + 16 * usize::from(i)..][..16];
        slot[..8].copy_from_slice(&register.significand.to_le_bytes());
        slot[8..10].copy_from_slice(&register.sign_exponent.to_le_bytes());
        slot[10..].fill(0);
    }
}

fn get_x87(fpu: &mut Fpu, wide: bool, area: &[u8]) {
    fpu.status = u16::from_le_bytes(word(area, 2));
    fpu.set_control(u16::from_le_bytes(word(area, 0)));
    fpu.tags = area[4];
    fpu.opcode = u16::from_le_bytes(word(area, 6)) & 0x7ff;
    if wide {
        // The processor has 48 bits of them.
        let canonical = |pointer: u64| (pointer << 16) as i64 >> 16;
        fpu.ip = canonical(u64::from_le_bytes(word(area, 8))) as u64;
        fpu.dp = canonical(u64::from_le_bytes(word(area, 16))) as u64;
        fpu.cs = 0;
        fpu.ds = 0;
    } else {
        fpu.ip = u64::from(u32::from_le_bytes(word(area, 8)));
        fpu.cs = u16::from_le_bytes(word(area, 12));
        fpu.dp = u64::from(u32::from_le_bytes(word(area, 16)));
        fpu.ds = u16::from_le_bytes(word(area, 20));
    }
    for i in 0..8 {
        let offset = 32 + 16 * usize::from(i);
        let at = fpu.physical(i);
        fpu.registers[at] = F80 {
            significand: u64::from_le_bytes(word(area, offset)),
            sign_exponent: u16::from_le_bytes(word(area, offset + 8)),
        };
    }
}

fn put_mxcsr(fpu: &Fpu, area: &mut [u8]) {
    area[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    area[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

fn get_mxcsr(fpu: &mut Fpu, area: &[u8]) -> Outcome {
    fpu.mxcsr = checked_mxcsr(u32::from_le_bytes(word(area, 24)))?;
    Ok(())
}

/// An MXCSR value, if it has no reserved bit set.
fn checked_mxcsr(value: u32) -> Result<u32, Stop> {
    if value & !MXCSR_MASK != 0 {
        return Err(Exception::gp(0).into());
    }
    Ok(value)
}

/// The registers of a component that exist in the present mode: outside 64-bit mode XMM8 and up are left alone.
fn visible(cpu: &Cpu, component: &Component) -> Range<usize> {
    let count = if cpu.view.is_long() || component.kind != Registers::Vectors {
        32
    } else {
        8
    };
    component.registers.start.min(count)..component.registers.end.min(count)
}

/// Writes the registers at the start of `area`.
fn put_vectors(fpu: &Fpu, registers: Range<usize>, component: &Component, area: &mut [u8]) {
    for (bytes, quadword) in area.chunks_exact_mut(8).zip(component.values(fpu, registers)) {
        bytes.copy_from_slice(&quadword.to_le_bytes());
    }
}

/// Reads the registers from the start of `area`.
fn get_vectors(fpu: &mut Fpu, registers: Range<usize>, component: &Component, area: &[u8]) {
    let quadwords = area.chunks_exact(8).map(|bytes| u64::from_le_bytes(word(bytes, 0)));
    component.set_values(fpu, registers, quadwords);
}

/// Bytes of the legacy region that FXSAVE and FXRSTOR touch: fewer outside 64-bit mode, and without XMM registers under
/// EFER.FFXSR (APM Vol. 2, Fast FXSAVE/FXRSTOR).
fn fxsave_length(cpu: &Cpu) -> usize {
    match cpu.view.is_long() {
        true if cpu.efer.any(Efer::FFXSR) && cpu.cpl() == 0 => XMM,
        true => LEGACY_END,
        false => XMM + 8 * 16,
    }
}

/// FXSAVE: everything but the bytes that software may use.
fn fxsave<M: Access, const WIDE: bool>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::fxsave(cpu)?;
    let length = fxsave_length(cpu);
    let parts = fxsave_area(cpu, m, op, length, Use::Write)?;
    let mut bytes = [0; LEGACY_END];
    put_x87(&cpu.fpu, WIDE, &mut bytes);
    put_mxcsr(&cpu.fpu, &mut bytes);
    let sse = &COMPONENTS[0];
    put_vectors(&cpu.fpu, 0..(length - XMM) / 16, sse, &mut bytes[XMM..]);
    for (at, range) in parts.into_iter().filter(|(_, range)| !range.is_empty()) {
        m.store_bytes(cpu, at, &bytes[range])?;
    }
    Ok(())
}

/// FXRSTOR.
fn fxrstor<M: Access, const WIDE: bool>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::fxsave(cpu)?;
    let length = fxsave_length(cpu);
    let parts = fxsave_area(cpu, m, op, length, Use::Read)?;
    let mut bytes = [0; LEGACY_END];
    for (at, range) in parts.into_iter().filter(|(_, range)| !range.is_empty()) {
        m.load_bytes(cpu, at, &mut bytes[range])?;
    }
    get_mxcsr(&mut cpu.fpu, &bytes)?;
    get_x87(&mut cpu.fpu, WIDE, &bytes);
    get_vectors(&mut cpu.fpu, 0..(length - XMM) / 16, &COMPONENTS[0], &bytes[XMM..]);
    Ok(())
}

/// The components that EDX:EAX asks for and XCR0 allows: RFBM.
fn requested(cpu: &Cpu) -> u64 {
    let mask = cpu.gpr.read::<u32>(gpr::RDX) << 32 | cpu.gpr.read::<u32>(gpr::RAX);
    mask & cpu.xcr0
}

/// What XGETBV returns of XINUSE: an MXCSR other than the initial one counts as SSE, as for XSAVEC.
pub(super) fn in_use_with_mxcsr(cpu: &Cpu) -> u64 {
    let control = if cpu.fpu.mxcsr == MXCSR_INIT { 0 } else { SSE };
    in_use(cpu) | control
}

/// XINUSE: the components that are not in their initial configuration. It is a matter of what they hold, not of what was
/// done to them, as on the modelled processor: an x87 register that is empty but not zero is in use.
fn in_use(cpu: &Cpu) -> u64 {
    let mut bits = if cpu.fpu.is_x87_initial() { 0 } else { X87 };
    for component in COMPONENTS {
        let mut values = component.values(&cpu.fpu, visible(cpu, component));
        if values.any(|quadword| quadword != 0) {
            bits |= component.bit;
        }
    }
    bits
}

/// Where each component of `layout` begins in the compacted format (SDM Vol. 1, Compacted Format of an XSAVE Area).
fn compacted_offset(layout: u64, component: &Component) -> usize {
    if component.bit & (X87 | SSE) != 0 {
        return component.offset;
    }
    COMPONENTS
        .iter()
        .filter(|before| before.bit & layout & !(X87 | SSE) != 0 && before.bit < component.bit)
        .fold(EXTENDED_START, |offset, before| offset + before.size())
}

/// What tells XSAVE, XSAVEOPT and XSAVEC apart.
trait Variant: 'static {
    /// Components in their initial configuration are not stored.
    const OPTIMISES: bool;
    /// The compacted format.
    const COMPACTS: bool;
}

struct Plain;
struct Optimised;
struct Compacting;

impl Variant for Plain {
    const OPTIMISES: bool = false;
    const COMPACTS: bool = false;
}

impl Variant for Optimised {
    const OPTIMISES: bool = true;
    const COMPACTS: bool = false;
}

impl Variant for Compacting {
    const OPTIMISES: bool = true;
    const COMPACTS: bool = true;
}

/// # Errors
/// #GP(0) but at CPL 0.
fn check_supervisor(cpu: &Cpu) -> Result<(), Stop> {
    if cpu.cpl() == 0 {
        Ok(())
    } else {
        Err(Exception::gp(0).into())
    }
}

/// XSAVES.
fn xsaves<M: Access, const WIDE: bool>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::xsave(cpu)?;
    check_supervisor(cpu)?;
    xsave::<M, Compacting, WIDE>(cpu, m, op)
}

/// XSAVE, XSAVEOPT, XSAVEC. Of the modified optimisation XSAVEOPT makes no use, as it may.
fn xsave<M: Access, V: Variant, const WIDE: bool>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::xsave(cpu)?;
    let at = area(cpu, m, op, Use::Write)?;
    let rfbm = requested(cpu);
    let used = rfbm
        & if V::COMPACTS {
            in_use_with_mxcsr(cpu)
        } else {
            in_use(cpu)
        };
    let saved = if V::OPTIMISES { used } else { rfbm };
    let offset_of = |component: &Component| {
        if V::COMPACTS {
            compacted_offset(rfbm, component)
        } else {
            component.offset
        }
    };
    let end = COMPONENTS
        .iter()
        .filter(|component| component.bit & saved != 0)
        .map(|component| offset_of(component) + component.size())
        .fold(EXTENDED_START, usize::max);
    // A fault of the second page tells the last byte's address, as on the modelled processor.
    m.check_write(cpu, at.offset(end as u64 - 1), 1)?;

    let header = at.offset(LEGACY_SIZE as u64);
    let mut bytes = [0; AREA];
    let mut pieces = Pieces::new(at);
    if saved & X87 != 0 {
        put_x87(&cpu.fpu, WIDE, &mut bytes);
    }
    let has_mxcsr = if V::COMPACTS {
        saved & SSE != 0
    } else {
        rfbm & (SSE | AVX) != 0
    };
    if has_mxcsr {
        put_mxcsr(&cpu.fpu, &mut bytes);
    }
    // XSTATE_BV is read before anything is stored; XSAVEC overwrites it whole.
    let kept = if V::COMPACTS {
        0
    } else {
        m.load::<u64>(cpu, header)? & !rfbm
    };
    bytes[LEGACY_SIZE..LEGACY_SIZE + 8].copy_from_slice(&(kept | used).to_le_bytes());
    bytes[LEGACY_SIZE + 8..LEGACY_SIZE + 16].copy_from_slice(&(COMPACTED | rfbm).to_le_bytes());

    if saved & X87 != 0 {
        pieces.add(cpu, m, &bytes, 0..24)?;
    }
    if has_mxcsr {
        pieces.add(cpu, m, &bytes, 24..32)?;
    }
    if saved & X87 != 0 {
        pieces.add(cpu, m, &bytes, 32..XMM)?;
    }
    for component in COMPONENTS.iter().filter(|component| component.bit & saved != 0) {
        let registers = visible(cpu, component);
        let offset = offset_of(component);
        let length = registers.len() * component.quadwords.len() * 8;
        put_vectors(&cpu.fpu, registers, component, &mut bytes[offset..offset + length]);
        pieces.add(cpu, m, &bytes, offset..offset + length)?;
    }
    let header_length = if V::COMPACTS { 16 } else { 8 };
    pieces.add(cpu, m, &bytes, LEGACY_SIZE..LEGACY_SIZE + header_length)?;
    pieces.flush(cpu, m, &bytes)
}

/// Parts of an area that are stored; neighbours in one go.
struct Pieces {
    at: Linear,
    open: Range<usize>,
}

impl Pieces {
    fn new(at: Linear) -> Pieces {
        Pieces { at, open: 0..0 }
    }

    fn add<M: Access>(&mut self, cpu: &Cpu, m: &mut M, area: &[u8], piece: Range<usize>) -> Outcome {
        if piece.start == self.open.end {
            self.open.end = piece.end;
            return Ok(());
        }
        self.flush(cpu, m, area)?;
        self.open = piece;
        Ok(())
    }

    fn flush<M: Access>(&mut self, cpu: &Cpu, m: &mut M, area: &[u8]) -> Outcome {
        if self.open.is_empty() {
            return Ok(());
        }
        m.store_bytes(cpu, self.at.offset(self.open.start as u64), &area[self.open.clone()])
    }
}

/// XRSTOR, in the standard or the compacted format, and XRSTORS.
fn xrstor<M: Access, const WIDE: bool, const SUPERVISOR: bool>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::xsave(cpu)?;
    if SUPERVISOR {
        check_supervisor(cpu)?;
    }
    // Other rights are other translations, which only the careful way forgets.
    if cpu.cr4.any(Cr4::PKE) && requested(cpu) & PKRU != 0 {
        return (M::careful(xrstor_keys::<WIDE, SUPERVISOR>))(cpu, m, op);
    }
    restore::<M, WIDE, SUPERVISOR>(cpu, m, op)
}

/// XRSTOR with PKRU among the components.
fn xrstor_keys<const WIDE: bool, const SUPERVISOR: bool>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let rights = cpu.fpu.pkru;
    restore::<Careful, WIDE, SUPERVISOR>(cpu, m, op)?;
    if cpu.fpu.pkru != rights {
        m.invalidate(Flush::All);
    }
    Err(Stop::Next)
}

fn restore<M: Access, const WIDE: bool, const SUPERVISOR: bool>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = area(cpu, m, op, Use::Read)?;
    let rfbm = requested(cpu);
    let header: [u8; 64] = m.load_array(cpu, at.offset(LEGACY_SIZE as u64))?;
    let mut fields = header.chunks_exact(8).map(|bytes| u64::from_le_bytes(word(bytes, 0)));
    let (xstate, xcomp) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
    let compacted = xcomp & COMPACTED != 0;
    let mut reserved = fields;
    let legal = if compacted {
        xcomp & !COMPACTED & !cpu.xcr0 == 0 && xstate & !xcomp == 0 && reserved.all(|field| field == 0)
    } else {
        // Bytes 23:8 of the header; the others are not looked at.
        !SUPERVISOR && xstate & !cpu.xcr0 == 0 && xcomp == 0 && reserved.next() == Some(0)
    };
    if !legal {
        return Err(Exception::gp(0).into());
    }

    let loaded = rfbm & xstate;
    let mut next = (*cpu.fpu).clone();
    let mut bytes = [0; AREA];
    if rfbm & X87 != 0 {
        if loaded & X87 != 0 {
            m.load_bytes(cpu, at, &mut bytes[..XMM])?;
            get_x87(&mut next, WIDE, &bytes);
        } else {
            next.init();
            next.registers = [F80::default(); 8];
        }
    }
    if compacted {
        if rfbm & SSE != 0 {
            next.mxcsr = MXCSR_INIT;
        }
        if loaded & SSE != 0 {
            next.mxcsr = checked_mxcsr(m.load(cpu, at.offset(24))?)?;
        }
    } else if rfbm & (SSE | AVX) != 0 {
        next.mxcsr = checked_mxcsr(m.load(cpu, at.offset(24))?)?;
    }
    for component in COMPONENTS.iter().filter(|component| component.bit & rfbm != 0) {
        let registers = visible(cpu, component);
        let length = registers.len() * component.quadwords.len() * 8;
        let offset = if compacted {
            compacted_offset(xcomp, component)
        } else {
            component.offset
        };
        let part = &mut bytes[..length];
        part.fill(0);
        if loaded & component.bit != 0 && length != 0 {
            m.load_bytes(cpu, at.offset(offset as u64), part)?;
        }
        get_vectors(&mut next, registers, component, part);
    }
    *cpu.fpu = next;
    Ok(())
}

/// LDMXCSR.
fn ldmxcsr<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = General::linear(cpu, op, 4, Use::Read)?;
    cpu.fpu.mxcsr = checked_mxcsr(m.load(cpu, at)?)?;
    Ok(())
}

/// STMXCSR.
fn stmxcsr<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = General::linear(cpu, op, 4, Use::Write)?;
    m.store(cpu, at, cpu.fpu.mxcsr)
}
