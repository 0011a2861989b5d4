//! SSE3 to SSE4.2, AES, PCLMULQDQ, SHA and GFNI on XMM registers: which operation, and what around it is not as in SSE2.
//!
//! 16-byte memory operands must be aligned, but for LDDQU, the string comparisons and, on the modelled processor, SHA.

use iced_x86::Code::{self, *};

use super::lanes::Ternary;
use super::shuffle::{Lane, PackedImmediate};
use super::sse_int::{self, with_immediate, with_immediate_unaligned};
use super::strings::{Found, Strings};
use super::{aes, available, clmul, gfni, sha, sse_mov, sse41, ssse3};
use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, flags, gpr};
use crate::op::Op;
use crate::operand::{Addressing, General, Use};
use crate::table::Table;
use crate::word::Word;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    macro_rules! rows {
        ($row:ident($from:ident): $($op:ident $code:ident,)*) => { $($row::<M, $from::$op>(table, $code);)* };
    }
    rows! { with_immediate(ssse3):
        Pshufb Pshufb_xmm_xmmm128, Palignr Palignr_xmm_xmmm128_imm8,
        Phaddw Phaddw_xmm_xmmm128, Phaddd Phaddd_xmm_xmmm128, Phaddsw Phaddsw_xmm_xmmm128,
        Phsubw Phsubw_xmm_xmmm128, Phsubd Phsubd_xmm_xmmm128, Phsubsw Phsubsw_xmm_xmmm128,
        Psignb Psignb_xmm_xmmm128, Psignw Psignw_xmm_xmmm128, Psignd Psignd_xmm_xmmm128,
        Pabsb Pabsb_xmm_xmmm128, Pabsw Pabsw_xmm_xmmm128, Pabsd Pabsd_xmm_xmmm128,
        Pmulhrsw Pmulhrsw_xmm_xmmm128, Pmaddubsw Pmaddubsw_xmm_xmmm128,
    }
    rows! { with_immediate(sse41):
        Pcmpeqq Pcmpeqq_xmm_xmmm128, Pcmpgtq Pcmpgtq_xmm_xmmm128,
        Pminsb Pminsb_xmm_xmmm128, Pminsd Pminsd_xmm_xmmm128, Pminuw Pminuw_xmm_xmmm128, Pminud Pminud_xmm_xmmm128,
        Pmaxsb Pmaxsb_xmm_xmmm128, Pmaxsd Pmaxsd_xmm_xmmm128, Pmaxuw Pmaxuw_xmm_xmmm128, Pmaxud Pmaxud_xmm_xmmm128,
        Pmulld Pmulld_xmm_xmmm128, Pmuldq Pmuldq_xmm_xmmm128, Packusdw Packusdw_xmm_xmmm128,
        Pblendw Pblendw_xmm_xmmm128_imm8, Blendps Blendps_xmm_xmmm128_imm8, Blendpd Blendpd_xmm_xmmm128_imm8,
        Mpsadbw Mpsadbw_xmm_xmmm128_imm8, Phminposuw Phminposuw_xmm_xmmm128,
        Movsldup Movsldup_xmm_xmmm128, Movshdup Movshdup_xmm_xmmm128,
    }
    rows! { with_immediate(aes):
        Aesenc Aesenc_xmm_xmmm128, Aesenclast Aesenclast_xmm_xmmm128, Aesdec Aesdec_xmm_xmmm128,
        Aesdeclast Aesdeclast_xmm_xmmm128, Aesimc Aesimc_xmm_xmmm128,
        Aeskeygenassist Aeskeygenassist_xmm_xmmm128_imm8,
    }
    rows! { with_immediate(clmul): Pclmulqdq Pclmulqdq_xmm_xmmm128_imm8, }
    rows! { with_immediate_unaligned(sha):
        Sha1nexte Sha1nexte_xmm_xmmm128, Sha1msg1 Sha1msg1_xmm_xmmm128, Sha1msg2 Sha1msg2_xmm_xmmm128,
        Sha1rnds4 Sha1rnds4_xmm_xmmm128_imm8, Sha256msg1 Sha256msg1_xmm_xmmm128, Sha256msg2 Sha256msg2_xmm_xmmm128,
    }
    rows! { with_immediate(gfni):
        Gf2p8mulb Gf2p8mulb_xmm_xmmm128, Gf2p8affineqb Gf2p8affineqb_xmm_xmmm128_imm8,
        Gf2p8affineinvqb Gf2p8affineinvqb_xmm_xmmm128_imm8,
    }
    macro_rules! partial {
        ($word:ty: $($op:ident $code:ident,)*) => {
            $(table.rm($code, sse_int::immediate::<M, sse41::$op>, partial::<M, sse41::$op, $word>);)*
        };
    }
    partial! { u64:
        Pmovsxbw Pmovsxbw_xmm_xmmm64, Pmovsxwd Pmovsxwd_xmm_xmmm64, Pmovsxdq Pmovsxdq_xmm_xmmm64,
        Pmovzxbw Pmovzxbw_xmm_xmmm64, Pmovzxwd Pmovzxwd_xmm_xmmm64, Pmovzxdq Pmovzxdq_xmm_xmmm64,
        Movddup Movddup_xmm_xmmm64,
    }
    partial! { u32:
        Pmovsxbd Pmovsxbd_xmm_xmmm32, Pmovsxwq Pmovsxwq_xmm_xmmm32,
        Pmovzxbd Pmovzxbd_xmm_xmmm32, Pmovzxwq Pmovzxwq_xmm_xmmm32,
    }
    partial! { u16: Pmovsxbq Pmovsxbq_xmm_xmmm16, Pmovzxbq Pmovzxbq_xmm_xmmm16, }
    table.rm(
        Insertps_xmm_xmmm32_imm8,
        sse_int::immediate::<M, sse41::Insertps>,
        partial::<M, sse41::InsertpsMemory, u32>,
    );
    rows! { ternary(sse41):
        Pblendvb Pblendvb_xmm_xmmm128, Blendvps Blendvps_xmm_xmmm128, Blendvpd Blendvpd_xmm_xmmm128,
    }
    rows! { ternary_unaligned(sha): Sha256rnds2 Sha256rnds2_xmm_xmmm128, }
    table.plain(Movntdqa_xmm_m128, sse_mov::load::<M, General, true>);
    table.plain(Lddqu_xmm_m128, sse_mov::load::<M, General, false>);
    elements(table);
    table.rm(
        Ptest_xmm_xmmm128,
        |cpu, _, op| {
            available::sse(cpu)?;
            test(cpu, op.r1, cpu.fpu.xmm(op.r2))
        },
        |cpu, m, op| {
            available::sse(cpu)?;
            let source = sse_int::operand::<M, General>(cpu, m, op)?;
            test(cpu, op.r1, source)
        },
    );
    strings(table);
    insert_single(table);
}

/// PEXTR and PINSR; EXTRACTPS is PEXTRD in all but name.
fn elements<M: Access>(table: &mut Table<M>) {
    macro_rules! extract {
        ($($word:ty: $($code:ident)*;)*) => {$($(table.rm($code, extract::<M, $word>, extract_memory::<M, $word>);)*)*};
    }
    extract! {
        u8: Pextrb_r32m8_xmm_imm8 Pextrb_r64m8_xmm_imm8;
        u16: Pextrw_r32m16_xmm_imm8 Pextrw_r64m16_xmm_imm8;
        u32: Pextrd_rm32_xmm_imm8 Extractps_rm32_xmm_imm8 Extractps_r64m32_xmm_imm8;
        u64: Pextrq_rm64_xmm_imm8;
    }
    macro_rules! insert {
        ($($word:ty: $($code:ident)*;)*) => {$($(table.rm($code, insert::<M, $word>, insert_memory::<M, $word>);)*)*};
    }
    insert! {
        u8: Pinsrb_xmm_r32m8_imm8 Pinsrb_xmm_r64m8_imm8;
        u32: Pinsrd_xmm_rm32_imm8;
        u64: Pinsrq_xmm_rm64_imm8;
    }
}

/// Comparisons of strings, with and without VEX prefix.
fn strings<M: Access>(table: &mut Table<M>) {
    macro_rules! rows {
        ($($available:ident $strings:ident $commit:ident: $($code:ident)*;)*) => {$($(
            table.rm(
                $code,
                |cpu, _, op| {
                    available::$available(cpu)?;
                    let found = $strings(cpu, op, cpu.fpu.xmm(op.r2)).compare();
                    $commit(cpu, found)
                },
                |cpu, m, op| {
                    available::$available(cpu)?;
                    let at = sse_mov::address16::<M, General, false>(cpu, op, Use::Read)?;
                    let found = $strings(cpu, op, m.load_array(cpu, at)?).compare();
                    $commit(cpu, found)
                },
            );
        )*)*};
    }
    rows! {
        sse explicit commit_index: Pcmpestri_xmm_xmmm128_imm8;
        sse explicit_wide commit_index: Pcmpestri64_xmm_xmmm128_imm8;
        sse explicit commit_mask: Pcmpestrm_xmm_xmmm128_imm8;
        sse explicit_wide commit_mask: Pcmpestrm64_xmm_xmmm128_imm8;
        sse implicit commit_index: Pcmpistri_xmm_xmmm128_imm8;
        sse implicit commit_mask: Pcmpistrm_xmm_xmmm128_imm8;
        avx explicit commit_index: VEX_Vpcmpestri_xmm_xmmm128_imm8;
        avx explicit_wide commit_index: VEX_Vpcmpestri64_xmm_xmmm128_imm8;
        avx explicit commit_whole: VEX_Vpcmpestrm_xmm_xmmm128_imm8;
        avx explicit_wide commit_whole: VEX_Vpcmpestrm64_xmm_xmmm128_imm8;
        avx implicit commit_index: VEX_Vpcmpistri_xmm_xmmm128_imm8;
        avx implicit commit_whole: VEX_Vpcmpistrm_xmm_xmmm128_imm8;
    }
}

/// VINSERTPS: in memory there is but one single, whatever the immediate says.
fn insert_single<M: Access>(table: &mut Table<M>) {
    macro_rules! rows {
        ($($available:ident $code:ident,)*) => {$(
            table.rm(
                $code,
                |cpu, _, op| {
                    available::$available(cpu)?;
                    let value = sse41::Insertps::apply(cpu.fpu.xmm(op.r2), cpu.fpu.xmm(op.r3()), op.imm8());
                    set_whole(cpu, op.r1, value);
                    Ok(())
                },
                |cpu, m, op| {
                    available::$available(cpu)?;
                    let at = General::linear(cpu, op, 4, Use::Read)?;
                    let single = u128::from(m.load::<u32>(cpu, at)?).to_le_bytes();
                    let value = sse41::InsertpsMemory::apply(cpu.fpu.xmm(op.r2), single, op.imm8());
                    set_whole(cpu, op.r1, value);
                    Ok(())
                },
            );
        )*};
    }
    rows! { avx VEX_Vinsertps_xmm_xmm_xmmm32_imm8, avx512 EVEX_Vinsertps_xmm_xmm_xmmm32_imm8, }
}

/// Sets a register and clears what lies above bit 127.
fn set_whole(cpu: &mut Cpu, register: u8, value: [u8; 16]) {
    cpu.fpu.vectors[usize::from(register & 31)] = [0; 8];
    cpu.fpu.set_xmm(register, value);
}

/// An operation on a source that is shorter in memory than in a register.
fn partial<M: Access, O: PackedImmediate, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = General::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let source = u128::from(m.load::<T>(cpu, at)?.zero_extend()).to_le_bytes();
    let value = O::apply(cpu.fpu.xmm(op.r1), source, op.imm as u8);
    cpu.fpu.set_xmm(op.r1, value);
    Ok(())
}

fn ternary<M: Access, O: Ternary>(table: &mut Table<M>, code: Code) {
    ternary_with::<M, O, true>(table, code);
}

fn ternary_unaligned<M: Access, O: Ternary>(table: &mut Table<M>, code: Code) {
    ternary_with::<M, O, false>(table, code);
}

fn ternary_with<M: Access, O: Ternary, const ALIGNED: bool>(table: &mut Table<M>, code: Code) {
    table.rm(
        code,
        |cpu, _, op| {
            available::sse(cpu)?;
            let value = O::apply(cpu.fpu.xmm(op.r1), cpu.fpu.xmm(op.r2), cpu.fpu.xmm(0));
            cpu.fpu.set_xmm(op.r1, value);
            Ok(())
        },
        |cpu, m, op| {
            available::sse(cpu)?;
            let at = sse_mov::address16::<M, General, ALIGNED>(cpu, op, Use::Read)?;
            let source = m.load_array(cpu, at)?;
            let value = O::apply(cpu.fpu.xmm(op.r1), source, cpu.fpu.xmm(0));
            cpu.fpu.set_xmm(op.r1, value);
            Ok(())
        },
    );
}

/// The element that the immediate names; as many of its bits count as are needed.
fn number<T: Word>(imm: u64) -> usize {
    imm as usize & (16 / T::SIZE - 1)
}

fn element<M, T: Word + Lane>(cpu: &Cpu, register: u8, op: &Op<M>) -> T {
    T::get(&cpu.fpu.xmm(register), number::<T>(op.imm))
}

fn extract<M: Access, T: Word + Lane>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    cpu.gpr.set(op.r1, element::<M, T>(cpu, op.r2, op).zero_extend());
    Ok(())
}

fn extract_memory<M: Access, T: Word + Lane>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = General::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    m.store(cpu, at, element::<M, T>(cpu, op.r1, op))
}

fn insert<M: Access, T: Word + Lane>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let value = T::truncate(cpu.gpr.get(op.r2));
    insert_element(cpu, op, value);
    Ok(())
}

fn insert_memory<M: Access, T: Word + Lane>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = General::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let value = m.load::<T>(cpu, at)?;
    insert_element(cpu, op, value);
    Ok(())
}

fn insert_element<M, T: Word + Lane>(cpu: &mut Cpu, op: &Op<M>, value: T) {
    let mut vector = cpu.fpu.xmm(op.r1);
    value.put(&mut vector, number::<T>(op.imm));
    cpu.fpu.set_xmm(op.r1, vector);
}

/// PTEST: ZF if no bit of the source is set in the destination, CF if all are; the other flags become zero.
fn test(cpu: &mut Cpu, register: u8, source: [u8; 16]) -> Outcome {
    let destination = u128::from_le_bytes(cpu.fpu.xmm(register));
    let source = u128::from_le_bytes(source);
    let zero = if source & destination == 0 { flags::ZF } else { 0 };
    let carry = if source & !destination == 0 { flags::CF } else { 0 };
    cpu.flags.set_status(zero | carry);
    Ok(())
}

/// Strings with their lengths in EAX and EDX.
fn explicit<M>(cpu: &Cpu, op: &Op<M>, source: [u8; 16]) -> Strings {
    let length = |register| i64::from(cpu.gpr.get(register) as i32);
    Strings::explicit(
        cpu.fpu.xmm(op.r1),
        source,
        op.imm as u8,
        length(gpr::RAX),
        length(gpr::RDX),
    )
}

/// Strings with their lengths in RAX and RDX.
fn explicit_wide<M>(cpu: &Cpu, op: &Op<M>, source: [u8; 16]) -> Strings {
    let length = |register| cpu.gpr.get(register) as i64;
    Strings::explicit(
        cpu.fpu.xmm(op.r1),
        source,
        op.imm as u8,
        length(gpr::RAX),
        length(gpr::RDX),
    )
}

fn implicit<M>(cpu: &Cpu, op: &Op<M>, source: [u8; 16]) -> Strings {
    Strings::implicit(cpu.fpu.xmm(op.r1), source, op.imm as u8)
}

fn commit_index(cpu: &mut Cpu, found: Found) -> Outcome {
    cpu.gpr.set(gpr::RCX, found.index());
    cpu.flags.set_status(found.flags);
    Ok(())
}

fn commit_mask(cpu: &mut Cpu, found: Found) -> Outcome {
    cpu.fpu.set_xmm(0, found.mask());
    cpu.flags.set_status(found.flags);
    Ok(())
}

fn commit_whole(cpu: &mut Cpu, found: Found) -> Outcome {
    set_whole(cpu, 0, found.mask());
    cpu.flags.set_status(found.flags);
    Ok(())
}
