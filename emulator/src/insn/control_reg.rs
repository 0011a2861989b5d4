//! Control and debug registers, translations, caches, XCR0, MONITOR and MWAIT.

use crate::access::{Access, Outcome, Stop};
use crate::careful::{Careful, Flush};
use crate::cpu::{Cpu, Cr0, Cr4, Efer, Seg, gpr};
use crate::cpuid::Feature;
use crate::event::{self, Exception};
use crate::insn::msr::{edx_eax, set_edx_eax};
use crate::insn::segment::check_umip;
use crate::insn::xsave;
use crate::op::Op;
use crate::operand::{Addressing, General, Use, effective_address};
use crate::paging::{PHYSICAL_BITS, has_bad_pointers, is_canonical};
use crate::table::Table;
use crate::word::Word;
use iced_x86::Code;

/// Bits of CR0 that translations depend on.
const CR0_PAGING: u64 = Cr0::PE | Cr0::PG | Cr0::WP;
/// Bits of CR4 that translations depend on.
const CR4_PAGING: u64 = Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::PCIDE | Cr4::SMEP | Cr4::SMAP | Cr4::LA57 | Cr4::PKE;
/// Bits of CR0 and CR4 that have the page-directory-pointer entries loaded when they change.
const CR0_POINTERS: u64 = Cr0::PG | Cr0::CD | Cr0::NW;
const CR4_POINTERS: u64 = Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP;
/// Bits of CR0 that LMSW loads and SMSW is made for.
const MACHINE_STATUS: u64 = Cr0::PE | Cr0::MP | Cr0::EM | Cr0::TS;
/// The low bits of CR3 that hold the PCID.
const PCID: u64 = 0xfff;
/// In a value for CR3, with PCIDs: translations need not be forgotten.
const CR3_KEEP: u64 = 1 << 63;

/// DR6: general detect.
const DR6_BD: u64 = 1 << 13;
/// DR6: bits that read as one.
const DR6_ONES: u64 = 0xffff_0ff0;
/// DR6: bits that software can set.
const DR6_BITS: u64 = 0xe00f;
/// DR7: general detect.
const DR7_GD: u64 = 1 << 13;
/// DR7: bits that software can set.
const DR7_BITS: u64 = 0xffff_23ff;
/// DR7: the bit that reads as one.
const DR7_ONES: u64 = 1 << 10;

#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    table.plain(Mov_r32_cr, read_control::<M, u32>);
    table.plain(Mov_r64_cr, read_control::<M, u64>);
    table.careful(Mov_cr_r32, write_control::<u32>);
    table.careful(Mov_cr_r64, write_control::<u64>);
    table.plain(Mov_r32_dr, read_debug::<M, u32>);
    table.plain(Mov_r64_dr, read_debug::<M, u64>);
    table.careful(Mov_dr_r32, write_debug::<u32>);
    table.careful(Mov_dr_r64, write_debug::<u64>);
    table.plain(Clts, clts::<M>);
    table.rm(Smsw_rm16, smsw_register::<M, u16>, smsw_memory::<M>);
    table.rm(Smsw_r32m16, smsw_register::<M, u32>, smsw_memory::<M>);
    table.rm(Smsw_r64m16, smsw_register::<M, u64>, smsw_memory::<M>);
    for code in [Lmsw_rm16, Lmsw_r32m16, Lmsw_r64m16] {
        table.careful_rm(code, lmsw_register, lmsw_memory);
    }
    table.careful(Invlpg_m, invlpg);
    table.careful(Invpcid_r32_m128, invpcid::<u32>);
    table.careful(Invpcid_r64_m128, invpcid::<u64>);
    for code in [Invd, Wbinvd, Wbnoinvd] {
        table.plain(code, cache::<M>);
    }
    table.careful(Xgetbv, xgetbv);
    table.careful(Xsetbv, xsetbv);
    table.plain(Rdpkru, read_keys::<M>);
    table.careful(Wrpkru, write_keys);
    for code in [Monitorw, Monitord, Monitorq] {
        table.plain(code, monitor::<M>);
    }
    table.end(Mwait, mwait::<M>);
}

/// # Errors
/// #GP(0) but at CPL 0.
fn check_privilege(cpu: &Cpu) -> Result<(), Stop> {
    if cpu.cpl() == 0 {
        Ok(())
    } else {
        Err(Exception::gp(0).into())
    }
}

fn read_control<M: Access, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    check_privilege(cpu)?;
    let value = match op.r2 {
        0 => cpu.cr0.0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4.0,
        8 => return (M::careful(read_task_priority))(cpu, m, op),
        _ => return Err(Exception::ud().into()),
    };
    cpu.gpr.write::<T>(op.r1, value);
    Ok(())
}

fn read_task_priority(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let value = m.task_priority()?;
    cpu.gpr.set(op.r1, value);
    Ok(())
}

fn write_control<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_privilege(cpu)?;
    let value = cpu.gpr.read::<T>(op.r2);
    match op.r1 {
        0 => write_cr0(cpu, m, value)?,
        2 => cpu.cr2 = value,
        3 => write_cr3(cpu, m, value)?,
        4 => write_cr4(cpu, m, value)?,
        8 if value > 15 => return Err(Exception::gp(0).into()),
        8 => m.set_task_priority(value)?,
        _ => return Err(Exception::ud().into()),
    }
    Err(Stop::Next)
}

/// CR0, and with it entry to and exit from protected mode, paging, and IA-32e mode (SDM Vol. 3, Control Registers and
/// Initializing IA-32e Mode).
fn write_cr0(cpu: &mut Cpu, m: &mut Careful, value: u64) -> Result<(), Stop> {
    let new = Cr0(value & Cr0::DEFINED | Cr0::ET);
    let paging_begins = new.any(Cr0::PG) && !cpu.cr0.any(Cr0::PG);
    let paging_ends = !new.any(Cr0::PG) && cpu.cr0.any(Cr0::PG);
    let refused = value >> 32 != 0
        || new.any(Cr0::PG) && !new.any(Cr0::PE)
        || new.any(Cr0::NW) && !new.any(Cr0::CD)
        || paging_begins
            && cpu.efer.any(Efer::LME)
            && (!cpu.cr4.any(Cr4::PAE) || cpu.segments[Seg::Cs].attributes.is_long())
        || paging_ends && (cpu.view.is_long() || cpu.cr4.any(Cr4::PCIDE));
    if refused {
        return Err(Exception::gp(0).into());
    }
    if new.any(Cr0::PG) && (new.0 ^ cpu.cr0.0) & CR0_POINTERS != 0 && !cpu.efer.any(Efer::LME) {
        check_pointers(m, cpu.cr3, cpu.cr4)?;
    }
    if (new.0 ^ cpu.cr0.0) & CR0_PAGING != 0 {
        m.invalidate(Flush::All);
    }
    cpu.cr0 = new;
    if new.any(Cr0::PG) && cpu.efer.any(Efer::LME) {
        cpu.efer.0 |= Efer::LMA;
    } else {
        cpu.efer.0 &= !Efer::LMA;
    }
    cpu.refresh();
    Ok(())
}

fn write_cr3(cpu: &mut Cpu, m: &mut Careful, value: u64) -> Result<(), Stop> {
    let keep = cpu.cr4.any(Cr4::PCIDE) && value & CR3_KEEP != 0;
    let value = if keep { value & !CR3_KEEP } else { value };
    if cpu.efer.any(Efer::LMA) && value >> PHYSICAL_BITS != 0 {
        return Err(Exception::gp(0).into());
    }
    if cpu.cr0.any(Cr0::PG) && !cpu.efer.any(Efer::LMA) {
        check_pointers(m, value, cpu.cr4)?;
    }
    m.invalidate(Flush::Switch { keep });
    cpu.cr3 = value;
    Ok(())
}

/// # Errors
/// #GP(0): a page-directory-pointer entry that is present has a reserved bit set.
fn check_pointers(m: &mut Careful, cr3: u64, cr4: Cr4) -> Result<(), Stop> {
    if has_bad_pointers(m, cr3, cr4)? {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

fn write_cr4(cpu: &mut Cpu, m: &mut Careful, value: u64) -> Result<(), Stop> {
    let changed = cpu.cr4.0 ^ value;
    let ia32e = cpu.efer.any(Efer::LMA);
    let refused = value & !m.cpuid.cr4() != 0
        || ia32e && changed & Cr4::LA57 != 0
        || ia32e && value & Cr4::PAE == 0
        || changed & value & Cr4::PCIDE != 0 && (!ia32e || cpu.cr3 & PCID != 0);
    if refused {
        return Err(Exception::gp(0).into());
    }
    if cpu.cr0.any(Cr0::PG) && !ia32e && changed & CR4_POINTERS != 0 {
        check_pointers(m, cpu.cr3, Cr4(value))?;
    }
    if changed & CR4_PAGING != 0 {
        m.invalidate(Flush::All);
    }
    cpu.cr4 = Cr4(value);
    cpu.refresh();
    Ok(())
}

fn clts<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    check_privilege(cpu)?;
    cpu.cr0.0 &= !Cr0::TS;
    Ok(())
}

fn smsw_register<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    check_umip(cpu)?;
    let value = cpu.cr0.0;
    cpu.gpr.write::<T>(op.r1, value);
    Ok(())
}

fn smsw_memory<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    check_umip(cpu)?;
    let at = General::linear(cpu, op, 2, Use::Write)?;
    m.store(cpu, at, cpu.cr0.0 as u16)
}

/// LMSW cannot leave protected mode.
fn lmsw(cpu: &mut Cpu, m: &mut Careful, status: u64) -> Outcome {
    let pe = cpu.cr0.0 & Cr0::PE;
    write_cr0(cpu, m, cpu.cr0.0 & !MACHINE_STATUS | status & MACHINE_STATUS | pe)?;
    Err(Stop::Next)
}

fn lmsw_register(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_privilege(cpu)?;
    lmsw(cpu, m, cpu.gpr.get(op.r1))
}

fn lmsw_memory(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_privilege(cpu)?;
    let at = General::linear(cpu, op, 2, Use::Read)?;
    let status = m.load::<u16>(cpu, at)?;
    lmsw(cpu, m, u64::from(status))
}

/// The debug register that `number` names; 4 and 5 are 6 and 7, unless debug extensions make them undefined.
///
/// # Errors
/// #GP(0), #UD, #DB, in this order.
fn debug_register(cpu: &mut Cpu, number: u8) -> Result<u8, Stop> {
    check_privilege(cpu)?;
    let number = match number {
        4 | 5 if cpu.cr4.any(Cr4::DE) => return Err(Exception::ud().into()),
        4 | 5 => number + 2,
        0..=7 => number,
        _ => return Err(Exception::ud().into()),
    };
    if cpu.dr7 & DR7_GD != 0 {
        // The fault tells its reason in DR6.
        cpu.dr6 |= DR6_BD;
        return Err(Exception::plain(event::DB).into());
    }
    Ok(number)
}

fn read_debug<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let value = match debug_register(cpu, op.r2)? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        number => cpu.dr[usize::from(number & 3)],
    };
    cpu.gpr.write::<T>(op.r1, value);
    Ok(())
}

fn write_debug<T: Word>(cpu: &mut Cpu, _: &mut Careful, op: &Op<Careful>) -> Outcome {
    let number = debug_register(cpu, op.r1)?;
    let value = cpu.gpr.read::<T>(op.r2);
    match number {
        6 | 7 if value >> 32 != 0 => return Err(Exception::gp(0).into()),
        6 => cpu.dr6 = value & DR6_BITS | DR6_ONES,
        7 => cpu.dr7 = value & DR7_BITS | DR7_ONES,
        _ => cpu.dr[usize::from(number & 3)] = value,
    }
    Err(Stop::Next)
}

fn invlpg(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_privilege(cpu)?;
    let offset = effective_address(cpu, op);
    let linear = if cpu.view.is_long() {
        offset.wrapping_add(cpu.view.flat_base[usize::from(op.seg() & 7)])
    } else {
        offset.wrapping_add(cpu.segments[Seg::from_number(op.seg())].base) & 0xffff_ffff
    };
    // What is not canonical has no translation.
    if is_canonical(cpu, linear) {
        m.invalidate(Flush::Page(linear));
    }
    Err(Stop::Next)
}

fn invpcid<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    check_privilege(cpu)?;
    let kind = cpu.gpr.read::<T>(op.r1);
    if kind > 3 {
        return Err(Exception::gp(0).into());
    }
    let at = General::linear(cpu, op, 16, Use::Read)?;
    let pcid = m.load::<u64>(cpu, at)?;
    let linear = m.load::<u64>(cpu, at.offset(8))?;
    let refused = pcid & !PCID != 0
        || kind < 2 && pcid != 0 && !cpu.cr4.any(Cr4::PCIDE)
        || kind == 0 && !is_canonical(cpu, linear);
    if refused {
        return Err(Exception::gp(0).into());
    }
    let current = if cpu.cr4.any(Cr4::PCIDE) { cpu.cr3 & PCID } else { 0 };
    m.invalidate(match kind {
        0 if pcid == current => Flush::Page(linear),
        0 | 1 => Flush::Pcid(pcid as u16),
        2 => Flush::All,
        _ => Flush::Local,
    });
    Err(Stop::Next)
}

/// INVD, WBINVD: there is no cache that differs from memory.
fn cache<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    check_privilege(cpu)
}

fn xgetbv(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    if !cpu.cr4.any(Cr4::OSXSAVE) {
        return Err(Exception::ud().into());
    }
    let value = match cpu.gpr.read::<u32>(gpr::RCX) {
        0 => cpu.xcr0,
        1 if m.cpuid.has(Feature::XINUSE) => cpu.xcr0 & xsave::in_use_with_mxcsr(cpu),
        _ => return Err(Exception::gp(0).into()),
    };
    set_edx_eax(cpu, value);
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    const X87: u64 = 1 << 0;
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    const AVX512: u64 = 7 << 5;
    if !cpu.cr4.any(Cr4::OSXSAVE) {
        return Err(Exception::ud().into());
    }
    check_privilege(cpu)?;
    let value = edx_eax(cpu);
    let refused = cpu.gpr.read::<u32>(gpr::RCX) != 0
        || value & !m.cpuid.xcr0() != 0
        || value & X87 == 0
        || value & AVX != 0 && value & SSE == 0
        // All or none, and not without AVX.
        || value & AVX512 != 0 && value & (AVX | AVX512) != AVX | AVX512;
    if refused {
        return Err(Exception::gp(0).into());
    }
    cpu.xcr0 = value;
    Err(Stop::Next)
}

/// # Errors
/// #UD, #GP(0).
fn check_keys(cpu: &Cpu) -> Result<(), Stop> {
    if !cpu.cr4.any(Cr4::PKE) {
        return Err(Exception::ud().into());
    }
    if cpu.gpr.read::<u32>(gpr::RCX) != 0 {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

/// RDPKRU.
fn read_keys<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    check_keys(cpu)?;
    set_edx_eax(cpu, u64::from(cpu.fpu.pkru));
    Ok(())
}

/// WRPKRU.
fn write_keys(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    check_keys(cpu)?;
    let value = edx_eax(cpu);
    if value >> 32 != 0 {
        return Err(Exception::gp(0).into());
    }
    if cpu.fpu.pkru != value as u32 {
        cpu.fpu.pkru = value as u32;
        m.invalidate(Flush::All);
    }
    Err(Stop::Next)
}

/// MONITOR: its address is checked like that of a load; what is stored there is not watched, see [`mwait`].
fn monitor<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    if cpu.cpl() != 0 {
        return Err(Exception::ud().into());
    }
    if cpu.gpr.read::<u32>(gpr::RCX) != 0 {
        return Err(Exception::gp(0).into());
    }
    let offset = cpu.gpr.get(gpr::RAX) & op.attr.address_mask();
    let at = cpu.linear(Seg::from_number(op.seg()), offset, 1, Use::Read)?;
    m.load::<u8>(cpu, at)?;
    Ok(())
}

/// MWAIT comes back at once. Software must expect that at any time (SDM Vol. 2, MWAIT: other events than the store end the
/// wait), and a store by another CPU, which nothing here watches for, is never missed.
fn mwait<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    if cpu.cpl() != 0 {
        return Err(Exception::ud().into());
    }
    // The one extension: an interrupt ends the wait even while IF is clear.
    if cpu.gpr.read::<u32>(gpr::RCX) & !1 != 0 {
        return Err(Exception::gp(0).into());
    }
    Err(Stop::Next)
}
