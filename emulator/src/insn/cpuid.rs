//! CPUID.

use crate::access::{Access, Outcome};
use crate::careful::Careful;
use crate::cpu::{Cpu, gpr};
use crate::op::Op;
use crate::table::Table;
use iced_x86::Code;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    table.careful(Code::Cpuid, cpuid);
}

fn cpuid(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    let [leaf, subleaf] = [gpr::RAX, gpr::RCX].map(|register| cpu.gpr.read::<u32>(register) as u32);
    let answer = m.cpuid.query(cpu, leaf, subleaf);
    for (register, value) in [
        (gpr::RAX, answer.eax),
        (gpr::RBX, answer.ebx),
        (gpr::RCX, answer.ecx),
        (gpr::RDX, answer.edx),
    ] {
        cpu.gpr.write::<u32>(register, u64::from(value));
    }
    Ok(())
}
