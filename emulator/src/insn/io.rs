//! IN and OUT, and the I/O permission bitmap that all port instructions ask.

use crate::access::{Access, Outcome, Stop};
use crate::careful::Careful;
use crate::cpu::segment::{TSS32_AVAILABLE, TSS32_BUSY};
use crate::cpu::{Cpu, Mode, gpr};
use crate::debug::Watched;
use crate::event::Exception;
use crate::op::Op;
use crate::table::Table;
use crate::word::Word;
use iced_x86::Code;

/// Offset of the I/O map base in the 32-bit and the 64-bit TSS.
const IO_MAP_BASE: u64 = 102;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    table.careful(Code::In_AL_imm8, in_imm::<u8>);
    table.careful(Code::In_AX_imm8, in_imm::<u16>);
    table.careful(Code::In_EAX_imm8, in_imm::<u32>);
    table.careful(Code::In_AL_DX, in_dx::<u8>);
    table.careful(Code::In_AX_DX, in_dx::<u16>);
    table.careful(Code::In_EAX_DX, in_dx::<u32>);
    table.careful(Code::Out_imm8_AL, out_imm::<u8>);
    table.careful(Code::Out_imm8_AX, out_imm::<u16>);
    table.careful(Code::Out_imm8_EAX, out_imm::<u32>);
    table.careful(Code::Out_DX_AL, out_dx::<u8>);
    table.careful(Code::Out_DX_AX, out_dx::<u16>);
    table.careful(Code::Out_DX_EAX, out_dx::<u32>);
}

/// Checks that the current program may access `size` ports from `port` on (SDM Vol. 1, I/O Permission Bit Map).
///
/// # Errors
/// #GP(0); [`Stop`] as every access, since the bitmap is in memory.
pub(crate) fn io_permitted(cpu: &Cpu, m: &mut Careful, port: u16, size: u8) -> Result<(), Stop> {
    let free = match cpu.view.mode {
        Mode::Real => true,
        Mode::Virtual8086 => false,
        _ => cpu.cpl() <= cpu.flags.iopl(),
    };
    if free {
        return Ok(());
    }
    let refused = Err(Exception::gp(0).into());
    let tss = &cpu.tr;
    let (base, limit) = (tss.base, u64::from(tss.limit));
    let has_map = matches!(tss.attributes.kind(), TSS32_AVAILABLE | TSS32_BUSY) && tss.attributes.is_present();
    if !has_map || IO_MAP_BASE + 1 > limit {
        return refused;
    }
    let map = u64::from(m.load_system::<u16>(cpu, base.wrapping_add(IO_MAP_BASE))?);
    // Two bytes are always read, since the ports may lie across a byte of the map.
    let offset = map + u64::from(port / 8);
    if offset + 1 > limit {
        return refused;
    }
    let bits = m.load_system::<u16>(cpu, base.wrapping_add(offset))?;
    if bits >> (port % 8) & ((1 << size) - 1) != 0 {
        return refused;
    }
    Ok(())
}

fn input<T: Word>(cpu: &mut Cpu, m: &mut Careful, port: u16) -> Outcome {
    io_permitted(cpu, m, port, T::SIZE as u8)?;
    m.watch(cpu, u64::from(port), T::SIZE as u64, Watched::Port);
    let value = m.port_read(port, T::SIZE as u8)?;
    cpu.gpr.write::<T>(gpr::RAX, value);
    Err(Stop::Next)
}

fn output<T: Word>(cpu: &mut Cpu, m: &mut Careful, port: u16) -> Outcome {
    io_permitted(cpu, m, port, T::SIZE as u8)?;
    m.watch(cpu, u64::from(port), T::SIZE as u64, Watched::Port);
    m.port_write(port, T::SIZE as u8, cpu.gpr.read::<T>(gpr::RAX))?;
    Err(Stop::Next)
}

fn in_imm<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    input::<T>(cpu, m, u16::from(op.imm as u8))
}

fn in_dx<T: Word>(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    input::<T>(cpu, m, cpu.gpr.get(gpr::RDX) as u16)
}

fn out_imm<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    output::<T>(cpu, m, u16::from(op.imm as u8))
}

fn out_dx<T: Word>(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    output::<T>(cpu, m, cpu.gpr.get(gpr::RDX) as u16)
}
