//! Long numbers and checksums: ADCX and ADOX, which carry in a flag of their own; CRC32; MOVBE, which swaps bytes on the way.

use iced_x86::Code;

use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, flags};
use crate::op::Op;
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;
use crate::word::Word;

/// The flag that a chain of additions carries in.
trait Chain: 'static {
    const FLAG: u64;
}

/// ADCX.
struct Carry;
/// ADOX.
struct Overflow;

impl Chain for Carry {
    const FLAG: u64 = flags::CF;
}

impl Chain for Overflow {
    const FLAG: u64 = flags::OF;
}

/// The other flags stay.
#[inline(always)]
fn add<C: Chain, T: Word>(cpu: &mut Cpu, register: u8, source: u64) -> Outcome {
    let status = cpu.flags.status();
    let carry = u128::from(status & C::FLAG != 0);
    let sum = u128::from(cpu.gpr.read::<T>(register)) + u128::from(source) + carry;
    cpu.gpr.write::<T>(register, sum as u64 & T::MASK);
    let carried = if sum >> T::BITS != 0 { C::FLAG } else { 0 };
    cpu.flags.set_status(status & !C::FLAG | carried);
    Ok(())
}

fn add_register<M: Access, C: Chain, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let source = cpu.gpr.read::<T>(op.r2);
    add::<C, T>(cpu, op.r1, source)
}

fn add_memory<M: Access, C: Chain, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let source = m.load::<T>(cpu, at)?.zero_extend();
    add::<C, T>(cpu, op.r1, source)
}

/// The polynomial 11EDC6F41H, bits in reverse.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What a byte does to the rest of the checksum.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            rest = rest >> 1 ^ if rest & 1 != 0 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
};

/// CRC32: of the destination only 32 bits count, and those above become zero.
#[inline(always)]
fn crc32<T: Word>(cpu: &mut Cpu, register: u8, source: u64) -> Outcome {
    let rest = source.to_le_bytes()[..T::SIZE]
        .iter()
        .fold(cpu.gpr.read::<u32>(register) as u32, |rest, byte| {
            rest >> 8 ^ CRC[usize::from(rest as u8 ^ byte)]
        });
    cpu.gpr.write::<u32>(register, u64::from(rest));
    Ok(())
}

fn crc32_register<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let source = cpu.gpr.read::<T>(op.r2);
    crc32::<T>(cpu, op.r1, source)
}

fn crc32_memory<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let source = m.load::<T>(cpu, at)?.zero_extend();
    crc32::<T>(cpu, op.r1, source)
}

/// The bytes of a word in reverse.
#[inline(always)]
fn reversed<T: Word>(value: u64) -> u64 {
    value.swap_bytes() >> (64 - T::BITS)
}

/// MOVBE r, m.
fn load_reversed<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let value = m.load::<T>(cpu, at)?.zero_extend();
    cpu.gpr.write::<T>(op.r1, reversed::<T>(value));
    Ok(())
}

/// MOVBE m, r.
fn store_reversed<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    m.store(cpu, at, T::truncate(reversed::<T>(cpu.gpr.read::<T>(op.r1))))
}

fn chains<M: Access, T: Word>(table: &mut Table<M>, adcx: Code, adox: Code) {
    table.rm_flat(
        adcx,
        add_register::<M, Carry, T>,
        add_memory::<M, Carry, T, General>,
        add_memory::<M, Carry, T, Flat>,
    );
    table.rm_flat(
        adox,
        add_register::<M, Overflow, T>,
        add_memory::<M, Overflow, T, General>,
        add_memory::<M, Overflow, T, Flat>,
    );
}

fn checksum<M: Access, T: Word>(table: &mut Table<M>, code: Code) {
    table.rm_flat(
        code,
        crc32_register::<M, T>,
        crc32_memory::<M, T, General>,
        crc32_memory::<M, T, Flat>,
    );
}

fn reversing<M: Access, T: Word>(table: &mut Table<M>, load: Code, store: Code) {
    let (general, flat) = (load_reversed::<M, T, General>, load_reversed::<M, T, Flat>);
    table.rm_flat(load, general, general, flat);
    let (general, flat) = (store_reversed::<M, T, General>, store_reversed::<M, T, Flat>);
    table.rm_flat(store, general, general, flat);
}

/// Adds the rows of this family.
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    chains::<M, u32>(table, Adcx_r32_rm32, Adox_r32_rm32);
    chains::<M, u64>(table, Adcx_r64_rm64, Adox_r64_rm64);
    checksum::<M, u8>(table, Crc32_r32_rm8);
    checksum::<M, u16>(table, Crc32_r32_rm16);
    checksum::<M, u32>(table, Crc32_r32_rm32);
    checksum::<M, u8>(table, Crc32_r64_rm8);
    checksum::<M, u64>(table, Crc32_r64_rm64);
    reversing::<M, u16>(table, Movbe_r16_m16, Movbe_m16_r16);
    reversing::<M, u32>(table, Movbe_r32_m32, Movbe_m32_r32);
    reversing::<M, u64>(table, Movbe_r64_m64, Movbe_m64_r64);
}
