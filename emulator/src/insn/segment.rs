//! Segment registers, descriptor tables, and the instructions that look at descriptors.

use crate::access::{Access, Outcome, Stop};
use crate::careful::Careful;
use crate::cpu::segment::{LDT, TSS16_AVAILABLE, TSS16_BUSY, TSS32_AVAILABLE, TSS32_BUSY};
use crate::cpu::{Attributes, Cpu, Cr4, Seg, Segment, Shadow, TableRegister, flags};
use crate::descriptor::{self, fault, is_null, rpl};
use crate::event::{self, Exception};
use crate::insn::stack::{pop_slot, set_pointer};
use crate::op::Op;
use crate::operand::{Addressing, General, Use, of_fields};
use crate::paging::is_canonical;
use crate::table::Table;
use crate::word::Word;
use iced_x86::Code;

/// System segment types: call gates of 16 and of 32 (64) bits, task gate.
const CALL_GATE16: u16 = 4;
const TASK_GATE: u16 = 5;
const CALL_GATE32: u16 = 12;

#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    table.rm(Mov_rm16_Sreg, store_register::<M, u16>, store_memory::<M>);
    table.rm(Mov_r32m16_Sreg, store_register::<M, u32>, store_memory::<M>);
    table.rm(Mov_r64m16_Sreg, store_register::<M, u64>, store_memory::<M>);
    for code in [Mov_Sreg_rm16, Mov_Sreg_r32m16, Mov_Sreg_r64m16] {
        table.careful_rm(code, load_register, load_memory);
    }
    for code in [Popw_ES, Popw_SS, Popw_DS, Popw_FS, Popw_GS] {
        table.careful(code, pop::<u16>);
    }
    for code in [Popd_ES, Popd_SS, Popd_DS, Popd_FS, Popd_GS] {
        table.careful(code, pop::<u32>);
    }
    for code in [Popq_FS, Popq_GS] {
        table.careful(code, pop::<u64>);
    }
    table.careful(Les_r16_m1616, load_far::<u16, 0>);
    table.careful(Les_r32_m1632, load_far::<u32, 0>);
    table.careful(Lds_r16_m1616, load_far::<u16, 3>);
    table.careful(Lds_r32_m1632, load_far::<u32, 3>);
    table.careful(Lss_r16_m1616, load_far::<u16, 2>);
    table.careful(Lss_r32_m1632, load_far::<u32, 2>);
    table.careful(Lss_r64_m1664, load_far::<u64, 2>);
    table.careful(Lfs_r16_m1616, load_far::<u16, 4>);
    table.careful(Lfs_r32_m1632, load_far::<u32, 4>);
    table.careful(Lfs_r64_m1664, load_far::<u64, 4>);
    table.careful(Lgs_r16_m1616, load_far::<u16, 5>);
    table.careful(Lgs_r32_m1632, load_far::<u32, 5>);
    table.careful(Lgs_r64_m1664, load_far::<u64, 5>);

    for code in [Lldt_rm16, Lldt_r32m16, Lldt_r64m16] {
        table.careful_rm(code, lldt_register, lldt_memory);
    }
    for code in [Ltr_rm16, Ltr_r32m16, Ltr_r64m16] {
        table.careful_rm(code, ltr_register, ltr_memory);
    }
    table.rm(Sldt_rm16, sldt_register::<M, u16>, sldt_memory::<M>);
    table.rm(Sldt_r32m16, sldt_register::<M, u32>, sldt_memory::<M>);
    table.rm(Sldt_r64m16, sldt_register::<M, u64>, sldt_memory::<M>);
    table.rm(Str_rm16, str_register::<M, u16>, str_memory::<M>);
    table.rm(Str_r32m16, str_register::<M, u32>, str_memory::<M>);
    table.rm(Str_r64m16, str_register::<M, u64>, str_memory::<M>);

    for code in [Lgdt_m1632_16, Lgdt_m1632, Lgdt_m1664] {
        table.careful(code, lgdt);
    }
    for code in [Lidt_m1632_16, Lidt_m1632, Lidt_m1664] {
        table.careful(code, lidt);
    }
    for code in [Sgdt_m1632_16, Sgdt_m1632, Sgdt_m1664] {
        table.careful(code, sgdt);
    }
    for code in [Sidt_m1632_16, Sidt_m1632, Sidt_m1664] {
        table.careful(code, sidt);
    }

    table.careful_rm(Lar_r16_rm16, lar_register::<u16>, lar_memory::<u16>);
    table.careful_rm(Lar_r32_r32m16, lar_register::<u32>, lar_memory::<u32>);
    table.careful_rm(Lar_r64_r64m16, lar_register::<u64>, lar_memory::<u64>);
    table.careful_rm(Lsl_r16_rm16, lsl_register::<u16>, lsl_memory::<u16>);
    table.careful_rm(Lsl_r32_r32m16, lsl_register::<u32>, lsl_memory::<u32>);
    table.careful_rm(Lsl_r64_r64m16, lsl_register::<u64>, lsl_memory::<u64>);
    for code in [Verr_rm16, Verr_r32m16, Verr_r64m16] {
        table.careful_rm(code, verr_register, verr_memory);
    }
    for code in [Verw_rm16, Verw_r32m16, Verw_r64m16] {
        table.careful_rm(code, verw_register, verw_memory);
    }
    for code in [Arpl_rm16_r16, Arpl_r32m16_r32] {
        table.careful_rm(code, arpl_register, arpl_memory);
    }
}

/// The 16-bit memory operand.
fn selector_in_memory(cpu: &Cpu, m: &mut Careful, op: &Op<Careful>) -> Result<u16, Stop> {
    let at = General::linear(cpu, op, 2, Use::Read)?;
    m.load::<u16>(cpu, at)
}

/// The low 16 bits of register `register`.
fn selector_in(cpu: &Cpu, register: u8) -> u16 {
    cpu.gpr.get(register) as u16
}

// MOV, POP and the loads of far pointers.

fn store_register<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let selector = cpu.segments[Seg::from_number(op.r2)].selector;
    cpu.gpr.write::<T>(op.r1, u64::from(selector));
    Ok(())
}

fn store_memory<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = General::linear(cpu, op, 2, Use::Write)?;
    m.store(cpu, at, cpu.segments[Seg::from_number(op.r1)].selector)
}

/// Loads segment register number `seg`.
fn set_segment(cpu: &mut Cpu, m: &mut Careful, seg: Seg, selector: u16) -> Result<(), Stop> {
    cpu.segments[seg] = descriptor::load_data(cpu, m, seg, selector)?;
    Ok(())
}

/// A segment register has been loaded by MOV or POP: after SS, the next instruction runs undisturbed.
fn loaded(cpu: &mut Cpu, seg: Seg) -> Outcome {
    if seg == Seg::Ss {
        cpu.shadow = Shadow::MovSs;
    }
    cpu.refresh();
    Err(Stop::Next)
}

fn load_register(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let seg = destination(op)?;
    set_segment(cpu, m, seg, selector_in(cpu, op.r2))?;
    loaded(cpu, seg)
}

fn load_memory(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let seg = destination(op)?;
    let selector = selector_in_memory(cpu, m, op)?;
    set_segment(cpu, m, seg, selector)?;
    loaded(cpu, seg)
}

/// The segment register that MOV loads: not CS.
fn destination(op: &Op<Careful>) -> Result<Seg, Stop> {
    match Seg::from_number(op.r1) {
        Seg::Cs => Err(Exception::ud().into()),
        seg => Ok(seg),
    }
}

fn pop<W: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let seg = Seg::from_number(op.r1);
    let (at, sp) = pop_slot::<W>(cpu)?;
    let selector = m.load::<W>(cpu, at)?.zero_extend() as u16;
    let segment = descriptor::load_data(cpu, m, seg, selector)?;
    // The width of the old stack counts, so SP moves before SS does.
    set_pointer::<W>(cpu, sp);
    cpu.segments[seg] = segment;
    loaded(cpu, seg)
}

/// LDS, LES, LFS, LGS, LSS: the offset lies below the selector.
fn load_far<W: Word, const SEG: u8>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let size = W::SIZE as u64;
    let at = of_fields(cpu, m, op, size, size + 2, Use::Read)?;
    let offset = m.load::<W>(cpu, at)?.zero_extend();
    let selector = m.load::<u16>(cpu, at.offset(size))?;
    set_segment(cpu, m, Seg::from_number(SEG), selector)?;
    cpu.gpr.write::<W>(op.r1, offset);
    cpu.refresh();
    Err(Stop::Next)
}

// LDTR and TR.

/// LLDT and LTR exist in protected mode only, at CPL 0.
fn check_system(cpu: &Cpu) -> Result<(), Stop> {
    if !cpu.view.has_descriptors() {
        return Err(Exception::ud().into());
    }
    if cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

/// Reads the descriptor of an LDT or TSS, with its 64-bit base in IA-32e mode.
fn system_descriptor(
    cpu: &Cpu,
    m: &mut Careful,
    selector: u16,
    takes: impl Fn(u16) -> bool,
) -> Result<descriptor::Descriptor, Stop> {
    if selector & 4 != 0 {
        return Err(fault(event::GP, selector));
    }
    let mut read = descriptor::read(cpu, m, selector, event::GP)?;
    if cpu.view.is_ia32e() {
        let upper = descriptor::read_upper(cpu, m, &read)?;
        read.segment.base |= upper << 32;
    }
    // The kind has S in it, so that a code or data segment is none of these.
    if !takes(read.attributes().kind()) {
        return Err(fault(event::GP, selector));
    }
    if !read.attributes().is_present() {
        return Err(fault(event::NP, selector));
    }
    if cpu.view.is_ia32e() && !is_canonical(cpu, read.segment.base) {
        return Err(fault(event::GP, selector));
    }
    Ok(read)
}

fn lldt(cpu: &mut Cpu, m: &mut Careful, selector: u16) -> Outcome {
    cpu.ldtr = if is_null(selector) {
        Segment::null(selector)
    } else {
        system_descriptor(cpu, m, selector, |kind| kind == LDT)?.segment
    };
    Ok(())
}

fn lldt_register(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_system(cpu)?;
    lldt(cpu, m, selector_in(cpu, op.r1))
}

fn lldt_memory(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_system(cpu)?;
    let selector = selector_in_memory(cpu, m, op)?;
    lldt(cpu, m, selector)
}

fn ltr(cpu: &mut Cpu, m: &mut Careful, selector: u16) -> Outcome {
    if is_null(selector) {
        return Err(Exception::gp(0).into());
    }
    let ia32e = cpu.view.is_ia32e();
    let mut tss = system_descriptor(cpu, m, selector, |kind| {
        kind == TSS32_AVAILABLE || kind == TSS16_AVAILABLE && !ia32e
    })?;
    tss.mark_busy(cpu, m)?;
    cpu.tr = tss.segment;
    Ok(())
}

fn ltr_register(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_system(cpu)?;
    ltr(cpu, m, selector_in(cpu, op.r1))
}

fn ltr_memory(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_system(cpu)?;
    let selector = selector_in_memory(cpu, m, op)?;
    ltr(cpu, m, selector)
}

/// User-mode instruction prevention: what tells user mode about system tables faults there.
pub(super) fn check_umip(cpu: &Cpu) -> Result<(), Stop> {
    if cpu.cr4.any(Cr4::UMIP) && cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

/// SLDT and STR may be executed.
fn check_store(cpu: &Cpu) -> Result<(), Stop> {
    if !cpu.view.has_descriptors() {
        return Err(Exception::ud().into());
    }
    check_umip(cpu)
}

fn sldt_register<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    check_store(cpu)?;
    cpu.gpr.write::<T>(op.r1, u64::from(cpu.ldtr.selector));
    Ok(())
}

fn sldt_memory<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    check_store(cpu)?;
    let at = General::linear(cpu, op, 2, Use::Write)?;
    m.store(cpu, at, cpu.ldtr.selector)
}

fn str_register<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    check_store(cpu)?;
    cpu.gpr.write::<T>(op.r1, u64::from(cpu.tr.selector));
    Ok(())
}

fn str_memory<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    check_store(cpu)?;
    let at = General::linear(cpu, op, 2, Use::Write)?;
    m.store(cpu, at, cpu.tr.selector)
}

// GDTR and IDTR.

fn load_table(cpu: &Cpu, m: &mut Careful, op: &Op<Careful>) -> Result<TableRegister, Stop> {
    if cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    let long = cpu.view.is_long();
    let at = General::linear(cpu, op, if long { 10 } else { 6 }, Use::Read)?;
    let limit = m.load::<u16>(cpu, at)?;
    let base = if long {
        m.load::<u64>(cpu, at.offset(2))?
    } else {
        u64::from(m.load::<u32>(cpu, at.offset(2))?)
    };
    if long && !is_canonical(cpu, base) {
        return Err(Exception::gp(0).into());
    }
    // A 16-bit operand has a base of 24 bits.
    let mask = if !long && op.attr.operand_size() == 2 {
        0xff_ffff
    } else {
        u64::MAX
    };
    Ok(TableRegister {
        base: base & mask,
        limit,
    })
}

fn lgdt(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    cpu.gdtr = load_table(cpu, m, op)?;
    Ok(())
}

fn lidt(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    cpu.idtr = load_table(cpu, m, op)?;
    Ok(())
}

fn store_table(cpu: &Cpu, m: &mut Careful, op: &Op<Careful>, table: TableRegister) -> Outcome {
    check_umip(cpu)?;
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    let size = if cpu.view.is_long() { 10 } else { 6 };
    let at = General::linear(cpu, op, size as u64, Use::Write)?;
    m.store_bytes(cpu, at, &image[..size])
}

fn sgdt(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    store_table(cpu, m, op, cpu.gdtr)
}

fn sidt(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    store_table(cpu, m, op, cpu.idtr)
}

// LAR, LSL, VERR, VERW, ARPL.

/// The descriptor of `selector`, if it can be seen from the current privilege level with the selector's RPL: code and
/// data segments, and system segments whose type `system` takes.
fn visible(
    cpu: &Cpu,
    m: &mut Careful,
    selector: u16,
    system: impl Fn(u16, bool) -> bool,
) -> Result<Option<descriptor::Descriptor>, Stop> {
    let Some(address) = descriptor::locate(cpu, selector, 8).filter(|_| !is_null(selector)) else {
        return Ok(None);
    };
    let read = descriptor::read_at(cpu, m, selector, address)?;
    let attributes = read.attributes();
    let kind_fits = attributes.is_code_or_data() || system(attributes.system_type(), cpu.view.is_ia32e());
    let privileged = attributes.is_conforming() || attributes.dpl() >= cpu.cpl().max(rpl(selector));
    Ok((kind_fits && privileged).then_some(read))
}

/// These instructions exist in protected mode only.
fn check_protected(cpu: &Cpu) -> Result<(), Stop> {
    if cpu.view.has_descriptors() {
        Ok(())
    } else {
        Err(Exception::ud().into())
    }
}

fn set_zero(cpu: &mut Cpu, zero: bool) {
    cpu.flags.replace(flags::ZF, if zero { flags::ZF } else { 0 });
}

fn lar<T: Word>(cpu: &mut Cpu, m: &mut Careful, destination: u8, selector: u16) -> Outcome {
    let seen = visible(cpu, m, selector, |kind, ia32e| match kind {
        LDT | TSS32_AVAILABLE | TSS32_BUSY | CALL_GATE32 => true,
        TSS16_AVAILABLE | TSS16_BUSY | CALL_GATE16 | TASK_GATE => !ia32e,
        _ => false,
    })?;
    if let Some(descriptor) = seen {
        cpu.gpr.write::<T>(destination, descriptor.raw >> 32 & 0x00ff_ff00);
    }
    set_zero(cpu, seen.is_some());
    Ok(())
}

fn lar_register<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_protected(cpu)?;
    lar::<T>(cpu, m, op.r1, selector_in(cpu, op.r2))
}

fn lar_memory<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_protected(cpu)?;
    let selector = selector_in_memory(cpu, m, op)?;
    lar::<T>(cpu, m, op.r1, selector)
}

fn lsl<T: Word>(cpu: &mut Cpu, m: &mut Careful, destination: u8, selector: u16) -> Outcome {
    let seen = visible(cpu, m, selector, |kind, ia32e| match kind {
        LDT | TSS32_AVAILABLE | TSS32_BUSY => true,
        TSS16_AVAILABLE | TSS16_BUSY => !ia32e,
        _ => false,
    })?;
    if let Some(descriptor) = seen {
        cpu.gpr.write::<T>(destination, u64::from(descriptor.segment.limit));
    }
    set_zero(cpu, seen.is_some());
    Ok(())
}

fn lsl_register<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_protected(cpu)?;
    lsl::<T>(cpu, m, op.r1, selector_in(cpu, op.r2))
}

fn lsl_memory<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_protected(cpu)?;
    let selector = selector_in_memory(cpu, m, op)?;
    lsl::<T>(cpu, m, op.r1, selector)
}

fn verify(cpu: &mut Cpu, m: &mut Careful, selector: u16, allows: fn(Attributes) -> bool) -> Outcome {
    let seen = visible(cpu, m, selector, |_, _| false)?;
    set_zero(cpu, seen.is_some_and(|descriptor| allows(descriptor.attributes())));
    Ok(())
}

fn verr_register(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_protected(cpu)?;
    verify(cpu, m, selector_in(cpu, op.r1), Attributes::is_readable)
}

fn verr_memory(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_protected(cpu)?;
    let selector = selector_in_memory(cpu, m, op)?;
    verify(cpu, m, selector, Attributes::is_readable)
}

fn verw_register(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_protected(cpu)?;
    verify(cpu, m, selector_in(cpu, op.r1), Attributes::is_writable_data)
}

fn verw_memory(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_protected(cpu)?;
    let selector = selector_in_memory(cpu, m, op)?;
    verify(cpu, m, selector, Attributes::is_writable_data)
}

/// The destination with its RPL raised to the source's, if it is lower.
fn adjusted(destination: u16, source: u16) -> Option<u16> {
    (rpl(destination) < rpl(source)).then_some(destination & !3 | source & 3)
}

fn arpl_register(cpu: &mut Cpu, _: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_protected(cpu)?;
    let raised = adjusted(selector_in(cpu, op.r1), selector_in(cpu, op.r2));
    if let Some(selector) = raised {
        cpu.gpr.write::<u16>(op.r1, u64::from(selector));
    }
    set_zero(cpu, raised.is_some());
    Ok(())
}

fn arpl_memory(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_protected(cpu)?;
    let at = General::linear(cpu, op, 2, Use::Read)?;
    let source = selector_in(cpu, op.r1);
    m.check_read(cpu, at, 2)?;
    let writable = General::linear(cpu, op, 2, Use::Write).and_then(|at| m.check_write(cpu, at, 2));
    // What cannot be written may stay as it is.
    if let Err(Stop::Fault(fault)) = writable {
        let raised = adjusted(m.load::<u16>(cpu, at)?, source);
        if raised.is_some() {
            return Err(fault.into());
        }
        set_zero(cpu, false);
        return Ok(());
    }
    writable?;
    let raised = m.update(cpu, at, |destination: u16| {
        let raised = adjusted(destination, source);
        (raised.unwrap_or(destination), raised.is_some())
    })?;
    set_zero(cpu, raised);
    Ok(())
}
