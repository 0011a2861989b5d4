//! CPUID.

use crate::access::{Access, Outcome, Stop};
use crate::careful::Careful;
use crate::cpu::{Cpu, gpr};
use crate::op::Op;
use crate::table::Table;
use iced_x86::Code;

/// CPUID leaf 1, EDX: there is a local APIC.
const APIC: u32 = 1 << 9;
const IA32_APIC_BASE: u32 = 0x1b;
/// IA32_APIC_BASE: the local APIC is enabled.
const GLOBAL_ENABLE: u64 = 1 << 11;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    table.careful(Code::Cpuid, cpuid);
}

fn cpuid(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    let [leaf, subleaf] = [gpr::RAX, gpr::RCX].map(|register| cpu.gpr.read::<u32>(register) as u32);
    let mut answer = m.cpuid.query(cpu, leaf, subleaf);
    // There is no local APIC while IA32_APIC_BASE, which is the platform's, has it disabled.
    if leaf == 1 && answer.edx & APIC != 0 {
        match m.msr_read(IA32_APIC_BASE) {
            Ok(base) if base & GLOBAL_ENABLE == 0 => answer.edx &= !APIC,
            Ok(_) | Err(Stop::Fault(_)) => {}
            Err(stop) => return Err(stop),
        }
    }
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
