//! x87 instructions that move control and status: FNINIT, FLDCW, FNSTSW, FNSTENV, FNSAVE and their kin.
//!
//! None of them changes the exception pointers, and but for FLDCW, FLDENV, FRSTOR and FWAIT none waits for pending
//! exceptions.

use iced_x86::Code;

use crate::access::{Access, Linear, Outcome, Stop};
use crate::cpu::{Cpu, Cr0, fpu, gpr};
use crate::insn::available;
use crate::op::Op;
use crate::operand::{Addressing, General, Use, check, of_fields};
use crate::table::Table;

use super::environment::{self, Layout};

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    table.plain(Code::Wait, |cpu, _, _| available::wait(cpu));
    table.plain(Code::Fninit, |cpu, _, _| {
        available::x87_control(cpu)?;
        cpu.fpu.init();
        Ok(())
    });
    table.plain(Code::Fnclex, |cpu, _, _| {
        available::x87_control(cpu)?;
        cpu.fpu.status &= !(fpu::status::EXCEPTIONS | fpu::status::SF | fpu::status::ES | fpu::status::B);
        Ok(())
    });
    // The controls of the 8087 and 80287 that later processors take as FNOP.
    for code in [Code::Fneni, Code::Fndisi, Code::Fnsetpm] {
        table.plain(code, |cpu, _, _| available::x87_control(cpu));
    }
    table.plain(Code::Fnstsw_AX, |cpu, _, _| {
        available::x87_control(cpu)?;
        cpu.gpr.write::<u16>(gpr::RAX, u64::from(cpu.fpu.status));
        Ok(())
    });
    table.plain(Code::Fnstsw_m2byte, |cpu, m, op| {
        available::x87_control(cpu)?;
        let at = General::linear(cpu, op, 2, Use::Write)?;
        m.store(cpu, at, cpu.fpu.status)
    });
    table.plain(Code::Fnstcw_m2byte, |cpu, m, op| {
        available::x87_control(cpu)?;
        let at = General::linear(cpu, op, 2, Use::Write)?;
        m.store(cpu, at, cpu.fpu.control)
    });
    table.plain(Code::Fldcw_m2byte, |cpu, m, op| {
        available::x87(cpu)?;
        let at = General::linear(cpu, op, 2, Use::Read)?;
        let control = m.load(cpu, at)?;
        cpu.fpu.set_control(control);
        Ok(())
    });
    table.plain(Code::Fnstenv_m14byte, fnstenv::<M, 14>);
    table.plain(Code::Fnstenv_m28byte, fnstenv::<M, 28>);
    table.plain(Code::Fldenv_m14byte, fldenv::<M, 14>);
    table.plain(Code::Fldenv_m28byte, fldenv::<M, 28>);
    table.plain(Code::Fnsave_m94byte, fnsave::<M, 14, 94>);
    table.plain(Code::Fnsave_m108byte, fnsave::<M, 28, 108>);
    table.plain(Code::Frstor_m94byte, frstor::<M, 14, 94>);
    table.plain(Code::Frstor_m108byte, frstor::<M, 28, 108>);
}

/// The address of an environment: its first field is looked at, then the last byte. A fault of the second page tells that
/// byte's address, as on the modelled processor.
fn reach<M: Access>(cpu: &Cpu, m: &mut M, op: &Op<M>, length: u64, usage: Use) -> Result<Linear, Stop> {
    let field = if matches!(length, 14 | 94) { 2 } else { 4 };
    let at = of_fields(cpu, m, op, field, length, usage)?;
    check(cpu, m, at.offset(length - 1), 1, usage)?;
    Ok(at)
}

fn layout(cpu: &Cpu) -> Layout {
    if cpu.cr0.any(Cr0::PE) && cpu.view.has_descriptors() {
        Layout::Protected
    } else {
        Layout::Real
    }
}

/// FNSTENV: stores the environment, then masks all exceptions.
fn fnstenv<M: Access, const N: usize>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::x87_control(cpu)?;
    let at = reach(cpu, m, op, N as u64, Use::Write)?;
    let bytes: [u8; N] = environment::pack(&cpu.fpu, layout(cpu));
    m.store_bytes(cpu, at, &bytes)?;
    cpu.fpu.control |= fpu::status::EXCEPTIONS;
    cpu.fpu.update_summary();
    Ok(())
}

fn fldenv<M: Access, const N: usize>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::x87(cpu)?;
    let at = reach(cpu, m, op, N as u64, Use::Read)?;
    let bytes: [u8; N] = m.load_array(cpu, at)?;
    let layout = layout(cpu);
    environment::unpack(&mut cpu.fpu, layout, &bytes);
    Ok(())
}

/// FNSAVE: stores environment and registers, `N` bytes of environment of `ALL`, then does FNINIT.
fn fnsave<M: Access, const N: usize, const ALL: usize>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::x87_control(cpu)?;
    let at = reach(cpu, m, op, ALL as u64, Use::Write)?;
    let head: [u8; N] = environment::pack(&cpu.fpu, layout(cpu));
    let mut bytes = [0; ALL];
    bytes[..N].copy_from_slice(&head);
    environment::pack_registers(&cpu.fpu, &mut bytes[N..]);
    m.store_bytes(cpu, at, &bytes)?;
    cpu.fpu.init();
    Ok(())
}

fn frstor<M: Access, const N: usize, const ALL: usize>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::x87(cpu)?;
    let at = reach(cpu, m, op, ALL as u64, Use::Read)?;
    let bytes: [u8; ALL] = m.load_array(cpu, at)?;
    let mut head = [0; N];
    head.copy_from_slice(&bytes[..N]);
    let layout = layout(cpu);
    environment::unpack(&mut cpu.fpu, layout, &head);
    environment::unpack_registers(&mut cpu.fpu, &bytes[N..]);
    Ok(())
}
