//! Where a vCPU was when it ended: RIP, mode and the bytes there.

use reprise_emulator::Cpu;
use reprise_emulator::access::Stop;
use reprise_emulator::cpu::Seg;
use reprise_emulator::event::{Exception, PF};
use reprise_emulator::paging::{Intent, Privilege, Tables, translate};
use reprise_hypervisor::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

/// The longest instruction there is.
const BYTES: u64 = 15;

/// One line for the log.
pub fn describe(cpu: &Cpu, memory: &GuestMemory) -> String {
    let code = instruction_bytes(cpu, memory);
    let bytes: Vec<String> = code.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = if bytes.is_empty() {
        "unmapped".to_owned()
    } else {
        bytes.join(" ")
    };
    format!(
        "RIP {:#x} CS {:#x} in {:?} mode at CPL {}, CR0 {:?} CR3 {:#x} CR4 {:?}, bytes {bytes}",
        cpu.rip,
        cpu.segments[Seg::Cs].selector,
        cpu.view.mode,
        cpu.cpl(),
        cpu.cr0,
        cpu.cr3,
        cpu.cr4,
    )
}

/// What lies at CS:RIP, as far as it is mapped.
fn instruction_bytes(cpu: &Cpu, memory: &GuestMemory) -> Vec<u8> {
    let base = if cpu.view.is_long() {
        0
    } else {
        cpu.segments[Seg::Cs].base
    };
    let start = base.wrapping_add(cpu.rip);
    let mut tables = Looking(memory);
    (0..BYTES)
        .map_while(|offset| {
            let linear = start.wrapping_add(offset);
            let linear = if cpu.view.is_long() {
                linear
            } else {
                linear & 0xffff_ffff
            };
            let at = translate(cpu, &mut tables, linear, Intent::Fetch, Privilege::of(cpu.cpl())).ok()?;
            memory.read_obj::<u8>(GuestAddress(at.gpa)).ok()
        })
        .collect()
}

/// Page tables that are looked at and not changed.
struct Looking<'a>(&'a GuestMemory);

impl Tables for Looking<'_> {
    fn entry(&mut self, gpa: u64, size: u8) -> Result<u64, Stop> {
        let at = GuestAddress(gpa);
        let entry = if size == 4 {
            self.0.read_obj::<u32>(at).map(u64::from)
        } else {
            self.0.read_obj::<u64>(at)
        };
        // Page tables outside memory translate nothing.
        Ok(entry.unwrap_or(0))
    }

    fn set_bits(&mut self, _gpa: u64, _size: u8, _seen: u64, _bits: u64) -> Result<bool, Stop> {
        Ok(true)
    }

    fn page_fault(&mut self, _linear: u64, error_code: u16) -> Stop {
        Stop::Fault(Exception::with_code(PF, error_code))
    }
}
