//! Data movement: MOV MOVZX MOVSX MOVSXD MOVNTI LEA XCHG BSWAP XLAT, CMOVcc SETcc, and the sign extensions of the
//! accumulator (CBW to CQO).

use iced_x86::Code;

use super::condition::holds;
use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, Seg, gpr};
use crate::op::Op;
use crate::operand::{Addressing, Flat, General, Use, effective_address, flat_address};
use crate::table::Table;
use crate::word::Word;

/// `mov r1, r2`.
fn registers<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let value = cpu.gpr.read::<T>(op.r2);
    cpu.gpr.write::<T>(op.r1, value);
    Ok(())
}

/// `mov r1, imm`.
fn register_immediate<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    cpu.gpr.write::<T>(op.r1, op.imm);
    Ok(())
}

/// `mov r1, [m]`.
fn load<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let value = m.load::<T>(cpu, at)?;
    cpu.gpr.write::<T>(op.r1, value.zero_extend());
    Ok(())
}

/// `mov [m], r1`.
fn store<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    m.store(cpu, at, T::truncate(cpu.gpr.read::<T>(op.r1)))
}

/// `mov [m], imm`.
fn store_immediate<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    m.store(cpu, at, T::truncate(op.imm))
}

/// How a narrow source fills a wide destination.
trait Extension: 'static {
    fn extend<S: Word>(value: u64) -> u64;
}

/// MOVZX.
struct Zero;
/// MOVSX and MOVSXD.
struct Sign;

impl Extension for Zero {
    #[inline(always)]
    fn extend<S: Word>(value: u64) -> u64 {
        value
    }
}

impl Extension for Sign {
    #[inline(always)]
    fn extend<S: Word>(value: u64) -> u64 {
        crate::word::sign_extend::<S>(value)
    }
}

fn extend_register<M: Access, E: Extension, D: Word, S: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let value = cpu.gpr.read::<S>(op.r2);
    cpu.gpr.write::<D>(op.r1, E::extend::<S>(value));
    Ok(())
}

fn extend_memory<M: Access, E: Extension, D: Word, S: Word, A: Addressing>(
    cpu: &mut Cpu,
    m: &mut M,
    op: &Op<M>,
) -> Outcome {
    let at = A::linear(cpu, op, S::SIZE as u64, Use::Read)?;
    let value = m.load::<S>(cpu, at)?;
    cpu.gpr.write::<D>(op.r1, E::extend::<S>(value.zero_extend()));
    Ok(())
}

fn lea<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let address = effective_address(cpu, op);
    cpu.gpr.write::<T>(op.r1, address);
    Ok(())
}

fn lea_flat<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let address = flat_address(cpu, op);
    cpu.gpr.write::<T>(op.r1, address);
    Ok(())
}

fn exchange_registers<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let (a, b) = (cpu.gpr.read::<T>(op.r1), cpu.gpr.read::<T>(op.r2));
    cpu.gpr.write::<T>(op.r1, b);
    cpu.gpr.write::<T>(op.r2, a);
    Ok(())
}

/// XCHG with memory locks, prefix or not (SDM Vol. 2, XCHG).
fn exchange_memory<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    let new = T::truncate(cpu.gpr.read::<T>(op.r1));
    let old = m.atomic::<T, _>(cpu, at, |old| (Some(new), old))?;
    cpu.gpr.write::<T>(op.r1, old.zero_extend());
    Ok(())
}

fn bswap<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let value = cpu.gpr.get(op.r1);
    // The 16-bit form is undefined; the processor at hand clears the register's low half.
    let swapped = match T::SIZE {
        2 => 0,
        4 => u64::from((value as u32).swap_bytes()),
        _ => value.swap_bytes(),
    };
    cpu.gpr.write::<T>(op.r1, swapped);
    Ok(())
}

/// The table's index is AL, zero-extended, which no general address has.
fn xlat<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let offset = cpu.gpr.get(gpr::RBX).wrapping_add(cpu.gpr.read::<u8>(gpr::RAX)) & op.attr.address_mask();
    let at = cpu.linear(Seg::from_number(op.seg()), offset, 1, Use::Read)?;
    let value = m.load::<u8>(cpu, at)?;
    cpu.gpr.write::<u8>(gpr::RAX, u64::from(value));
    Ok(())
}

/// CMOVcc. The destination is written either way: at 32 bits its upper half is cleared.
fn cmov_register<M: Access, T: Word, const C: u8>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let source = if holds::<C>(&cpu.flags) { op.r2 } else { op.r1 };
    let value = cpu.gpr.read::<T>(source);
    cpu.gpr.write::<T>(op.r1, value);
    Ok(())
}

/// CMOVcc reads its source even if the condition does not hold.
fn cmov_memory<M: Access, T: Word, A: Addressing, const C: u8>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let loaded = m.load::<T>(cpu, at)?.zero_extend();
    let value = if holds::<C>(&cpu.flags) {
        loaded
    } else {
        cpu.gpr.read::<T>(op.r1)
    };
    cpu.gpr.write::<T>(op.r1, value);
    Ok(())
}

fn set_register<M: Access, const C: u8>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let value = u64::from(holds::<C>(&cpu.flags));
    cpu.gpr.write::<u8>(op.r1, value);
    Ok(())
}

fn set_memory<M: Access, A: Addressing, const C: u8>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, 1, Use::Write)?;
    m.store(cpu, at, u8::from(holds::<C>(&cpu.flags)))
}

/// CBW, CWDE, CDQE: the accumulator's lower half fills the whole.
fn extend_accumulator<M: Access, D: Word, S: Word>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    let value = crate::word::sign_extend::<S>(cpu.gpr.get(gpr::RAX));
    cpu.gpr.write::<D>(gpr::RAX, value);
    Ok(())
}

/// CWD, CDQ, CQO: the accumulator's sign fills rDX.
fn spread_sign<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    let value = crate::word::sign_extend::<T>(cpu.gpr.get(gpr::RAX));
    cpu.gpr.write::<T>(gpr::RDX, (value as i64 >> 63) as u64);
    Ok(())
}

/// MOV of one width: `rm, r`, `r, rm`, `rm, imm`, `r, imm`, `accumulator, moffs`, `moffs, accumulator`; and XCHG.
fn mov<M: Access, T: Word>(table: &mut Table<M>, codes: [Code; 6], xchg: Code) {
    let [rm_r, r_rm, rm_imm, r_imm, load_offset, store_offset] = codes;
    table.rm_flat(rm_r, registers::<M, T>, store::<M, T, General>, store::<M, T, Flat>);
    table.rm_flat(r_rm, registers::<M, T>, load::<M, T, General>, load::<M, T, Flat>);
    table.rm_flat(
        rm_imm,
        register_immediate::<M, T>,
        store_immediate::<M, T, General>,
        store_immediate::<M, T, Flat>,
    );
    table.plain(r_imm, register_immediate::<M, T>);
    table.rm_flat(
        load_offset,
        load::<M, T, General>,
        load::<M, T, General>,
        load::<M, T, Flat>,
    );
    table.rm_flat(
        store_offset,
        store::<M, T, General>,
        store::<M, T, General>,
        store::<M, T, Flat>,
    );
    table.rm_flat(
        xchg,
        exchange_registers::<M, T>,
        exchange_memory::<M, T, General>,
        exchange_memory::<M, T, Flat>,
    );
}

fn extension<M: Access, E: Extension, D: Word, S: Word>(table: &mut Table<M>, code: Code) {
    table.rm_flat(
        code,
        extend_register::<M, E, D, S>,
        extend_memory::<M, E, D, S, General>,
        extend_memory::<M, E, D, S, Flat>,
    );
}

/// CMOVcc at 16, 32 and 64 bits, and SETcc.
fn condition<M: Access, const C: u8>(table: &mut Table<M>, cmov: [Code; 3], set: Code) {
    fn width<M: Access, T: Word, const C: u8>(table: &mut Table<M>, code: Code) {
        table.rm_flat(
            code,
            cmov_register::<M, T, C>,
            cmov_memory::<M, T, General, C>,
            cmov_memory::<M, T, Flat, C>,
        );
    }
    let [word, dword, qword] = cmov;
    width::<M, u16, C>(table, word);
    width::<M, u32, C>(table, dword);
    width::<M, u64, C>(table, qword);
    table.rm_flat(
        set,
        set_register::<M, C>,
        set_memory::<M, General, C>,
        set_memory::<M, Flat, C>,
    );
}

/// Adds the rows of this family.
#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    mov::<M, u8>(table, [Mov_rm8_r8, Mov_r8_rm8, Mov_rm8_imm8, Mov_r8_imm8, Mov_AL_moffs8, Mov_moffs8_AL], Xchg_rm8_r8);
    mov::<M, u16>(table, [Mov_rm16_r16, Mov_r16_rm16, Mov_rm16_imm16, Mov_r16_imm16, Mov_AX_moffs16, Mov_moffs16_AX], Xchg_rm16_r16);
    mov::<M, u32>(table, [Mov_rm32_r32, Mov_r32_rm32, Mov_rm32_imm32, Mov_r32_imm32, Mov_EAX_moffs32, Mov_moffs32_EAX], Xchg_rm32_r32);
    mov::<M, u64>(table, [Mov_rm64_r64, Mov_r64_rm64, Mov_rm64_imm32, Mov_r64_imm64, Mov_RAX_moffs64, Mov_moffs64_RAX], Xchg_rm64_r64);
    table.plain(Xchg_r16_AX, exchange_registers::<M, u16>);
    table.plain(Xchg_r32_EAX, exchange_registers::<M, u32>);
    table.plain(Xchg_r64_RAX, exchange_registers::<M, u64>);
    table.rm_flat(Movnti_m32_r32, store::<M, u32, General>, store::<M, u32, General>, store::<M, u32, Flat>);
    table.rm_flat(Movnti_m64_r64, store::<M, u64, General>, store::<M, u64, General>, store::<M, u64, Flat>);

    extension::<M, Zero, u16, u8>(table, Movzx_r16_rm8);
    extension::<M, Zero, u32, u8>(table, Movzx_r32_rm8);
    extension::<M, Zero, u64, u8>(table, Movzx_r64_rm8);
    extension::<M, Zero, u16, u16>(table, Movzx_r16_rm16);
    extension::<M, Zero, u32, u16>(table, Movzx_r32_rm16);
    extension::<M, Zero, u64, u16>(table, Movzx_r64_rm16);
    extension::<M, Sign, u16, u8>(table, Movsx_r16_rm8);
    extension::<M, Sign, u32, u8>(table, Movsx_r32_rm8);
    extension::<M, Sign, u64, u8>(table, Movsx_r64_rm8);
    extension::<M, Sign, u16, u16>(table, Movsx_r16_rm16);
    extension::<M, Sign, u32, u16>(table, Movsx_r32_rm16);
    extension::<M, Sign, u64, u16>(table, Movsx_r64_rm16);
    // The modelled processor reads 32 bits, of which it keeps 16.
    extension::<M, Sign, u16, u32>(table, Movsxd_r16_rm16);
    extension::<M, Sign, u32, u32>(table, Movsxd_r32_rm32);
    extension::<M, Sign, u64, u32>(table, Movsxd_r64_rm32);

    table.rm_flat(Lea_r16_m, lea::<M, u16>, lea::<M, u16>, lea_flat::<M, u16>);
    table.rm_flat(Lea_r32_m, lea::<M, u32>, lea::<M, u32>, lea_flat::<M, u32>);
    table.rm_flat(Lea_r64_m, lea::<M, u64>, lea::<M, u64>, lea_flat::<M, u64>);
    table.plain(Bswap_r16, bswap::<M, u16>);
    table.plain(Bswap_r32, bswap::<M, u32>);
    table.plain(Bswap_r64, bswap::<M, u64>);
    table.plain(Xlat_m8, xlat::<M>);

    condition::<M, 0>(table, [Cmovo_r16_rm16, Cmovo_r32_rm32, Cmovo_r64_rm64], Seto_rm8);
    condition::<M, 1>(table, [Cmovno_r16_rm16, Cmovno_r32_rm32, Cmovno_r64_rm64], Setno_rm8);
    condition::<M, 2>(table, [Cmovb_r16_rm16, Cmovb_r32_rm32, Cmovb_r64_rm64], Setb_rm8);
    condition::<M, 3>(table, [Cmovae_r16_rm16, Cmovae_r32_rm32, Cmovae_r64_rm64], Setae_rm8);
    condition::<M, 4>(table, [Cmove_r16_rm16, Cmove_r32_rm32, Cmove_r64_rm64], Sete_rm8);
    condition::<M, 5>(table, [Cmovne_r16_rm16, Cmovne_r32_rm32, Cmovne_r64_rm64], Setne_rm8);
    condition::<M, 6>(table, [Cmovbe_r16_rm16, Cmovbe_r32_rm32, Cmovbe_r64_rm64], Setbe_rm8);
    condition::<M, 7>(table, [Cmova_r16_rm16, Cmova_r32_rm32, Cmova_r64_rm64], Seta_rm8);
    condition::<M, 8>(table, [Cmovs_r16_rm16, Cmovs_r32_rm32, Cmovs_r64_rm64], Sets_rm8);
    condition::<M, 9>(table, [Cmovns_r16_rm16, Cmovns_r32_rm32, Cmovns_r64_rm64], Setns_rm8);
    condition::<M, 10>(table, [Cmovp_r16_rm16, Cmovp_r32_rm32, Cmovp_r64_rm64], Setp_rm8);
    condition::<M, 11>(table, [Cmovnp_r16_rm16, Cmovnp_r32_rm32, Cmovnp_r64_rm64], Setnp_rm8);
    condition::<M, 12>(table, [Cmovl_r16_rm16, Cmovl_r32_rm32, Cmovl_r64_rm64], Setl_rm8);
    condition::<M, 13>(table, [Cmovge_r16_rm16, Cmovge_r32_rm32, Cmovge_r64_rm64], Setge_rm8);
    condition::<M, 14>(table, [Cmovle_r16_rm16, Cmovle_r32_rm32, Cmovle_r64_rm64], Setle_rm8);
    condition::<M, 15>(table, [Cmovg_r16_rm16, Cmovg_r32_rm32, Cmovg_r64_rm64], Setg_rm8);

    table.plain(Cbw, extend_accumulator::<M, u16, u8>);
    table.plain(Cwde, extend_accumulator::<M, u32, u16>);
    table.plain(Cdqe, extend_accumulator::<M, u64, u32>);
    table.plain(Cwd, spread_sign::<M, u16>);
    table.plain(Cdq, spread_sign::<M, u32>);
    table.plain(Cqo, spread_sign::<M, u64>);
}
