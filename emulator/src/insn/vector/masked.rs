//! VMASKMOV and VPMASKMOV: elements whose mask has its sign set are moved; the others are not touched, and cannot fault.

use iced_x86::Code::{self, *};

use super::lanes::{to_bytes, to_vector};
use super::shell::{check_selected, fetch_selected, store_selected, without_alignment_check};
use crate::access::{Access, Outcome};
use crate::cpu::Cpu;
use crate::insn::available;
use crate::insn::shuffle::sign_mask;
use crate::op::Op;
use crate::operand::Use;
use crate::table::Table;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    for code in [VEX_Vmaskmovps_xmm_xmm_m128, VEX_Vpmaskmovd_xmm_xmm_m128] {
        table.plain(code, load::<M, 4, 16>);
    }
    for code in [VEX_Vmaskmovps_ymm_ymm_m256, VEX_Vpmaskmovd_ymm_ymm_m256] {
        table.plain(code, load::<M, 4, 32>);
    }
    for code in [VEX_Vmaskmovpd_xmm_xmm_m128, VEX_Vpmaskmovq_xmm_xmm_m128] {
        table.plain(code, load::<M, 8, 16>);
    }
    for code in [VEX_Vmaskmovpd_ymm_ymm_m256, VEX_Vpmaskmovq_ymm_ymm_m256] {
        table.plain(code, load::<M, 8, 32>);
    }
    stores::<M, 4, 16>(table, [VEX_Vmaskmovps_m128_xmm_xmm, VEX_Vpmaskmovd_m128_xmm_xmm]);
    stores::<M, 4, 32>(table, [VEX_Vmaskmovps_m256_ymm_ymm, VEX_Vpmaskmovd_m256_ymm_ymm]);
    stores::<M, 8, 16>(table, [VEX_Vmaskmovpd_m128_xmm_xmm, VEX_Vpmaskmovq_m128_xmm_xmm]);
    stores::<M, 8, 32>(table, [VEX_Vmaskmovpd_m256_ymm_ymm, VEX_Vpmaskmovq_m256_ymm_ymm]);
}

fn stores<M: Access, const ELEMENT: usize, const SIZE: usize>(table: &mut Table<M>, codes: [Code; 2]) {
    for code in codes {
        table.plain(code, store::<M, ELEMENT, SIZE>);
    }
}

/// The elements that a mask register selects.
fn selected<const ELEMENT: usize, const SIZE: usize>(cpu: &Cpu, register: u8) -> u64 {
    let mask = to_bytes(&cpu.fpu.vectors[usize::from(register & 31)]);
    sign_mask::<ELEMENT>(&mask[..SIZE])
}

/// Elements that are not selected become zero.
fn load<M: Access, const ELEMENT: usize, const SIZE: usize>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::avx(cpu)?;
    let selected = selected::<ELEMENT, SIZE>(cpu, op.r2);
    let mut bytes = [0; 64];
    // The modelled processor does not check alignment.
    without_alignment_check(cpu, |cpu| fetch_selected(cpu, m, op, selected, ELEMENT, &mut bytes))?;
    cpu.fpu.vectors[usize::from(op.r1 & 31)] = to_vector(&bytes);
    Ok(())
}

fn store<M: Access, const ELEMENT: usize, const SIZE: usize>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::avx(cpu)?;
    let selected = selected::<ELEMENT, SIZE>(cpu, op.r1);
    let bytes = to_bytes(&cpu.fpu.vectors[usize::from(op.r2 & 31)]);
    without_alignment_check(cpu, |cpu| {
        check_selected(cpu, m, op, selected, ELEMENT, Use::Write)?;
        store_selected(cpu, m, op, selected, ELEMENT, &bytes)
    })
}
