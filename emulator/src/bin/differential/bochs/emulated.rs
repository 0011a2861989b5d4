//! The emulator in the place of Bochs: the same pages at the same addresses, privilege level 0, and handlers that stop.

use std::sync::Arc;

use reprise_emulator::cpu::{Cr0, Cr4, Efer, Flags, Seg, Segment, TableRegister, fpu};
use reprise_emulator::{Cpu, CpuidTable, Emulator, Entry, Exit, Host, Model, Ram};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::case::{CODE, Case, DATA, PAGE, Pool};
use super::outcome::{Outcome, checksum};
use crate::emulated::TF;

/// Guest-physical addresses, which are linear ones too but for code and data.
mod physical {
    pub const PML4: u64 = 0x1000;
    pub const PDPT: u64 = 0x2000;
    pub const DIRECTORY: u64 = 0x3000;
    pub const LOW_TABLE: u64 = 0x4000;
    pub const CODE_TABLE: u64 = 0x5000;
    pub const DATA_TABLE: u64 = 0x6000;
    pub const IDT: u64 = 0x7000;
    pub const GDT: u64 = 0x8000;
    pub const TSS: u64 = 0x9000;
    pub const HANDLERS: u64 = 0xa000;
    /// Ends where the exception stack begins, downwards.
    pub const EXCEPTION_STACK_END: u64 = 0xc000;
    pub const CODE: u64 = 0xc000;
    pub const DATA: u64 = 0xd000;
    pub const SIZE: usize = 0xe000;
}

/// Instructions until a case must be over.
const PATIENCE: u64 = 100;
/// Vector of TF.
const DEBUG: u64 = 1;

/// A clock that stands.
struct Still;

impl Host for Still {
    fn tsc(&self) -> u64 {
        0
    }

    fn random(&self) -> u64 {
        4
    }
}

/// How an instruction is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the fast way if that can do it.
    Fast,
    /// By the careful way: TF is set.
    Careful,
}

/// The emulated machine.
pub struct Emulated {
    memory: GuestMemoryMmap<()>,
    ram: Arc<Ram>,
    emulator: Emulator,
    start: Cpu,
}

impl Emulated {
    /// A machine that executes everything that the emulator can.
    pub fn new() -> Emulated {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), physical::SIZE)]).expect("a little memory");
        let ram = Arc::new(Ram::new(memory.clone()).expect("one small region"));
        let start = start();
        let emulator = Emulator::new(
            start.clone(),
            ram.clone(),
            Arc::new(Still),
            Arc::new(Model::new()),
            Arc::new(CpuidTable::new(Vec::new())),
        );
        let machine = Emulated {
            memory,
            ram,
            emulator,
            start,
        };
        machine.write_tables();
        machine
    }

    fn poke(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("all addresses are within the machine's memory");
    }

    fn poke64(&self, address: u64, value: u64) {
        self.poke(address, &value.to_le_bytes());
    }

    fn peek64(&self, address: u64) -> u64 {
        self.memory
            .read_obj(GuestAddress(address))
            .expect("all addresses are within the machine's memory")
    }

    fn write_tables(&self) {
        const PRESENT_WRITABLE: u64 = 3;
        self.poke64(physical::PML4, physical::PDPT | PRESENT_WRITABLE);
        self.poke64(physical::PDPT, physical::DIRECTORY | PRESENT_WRITABLE);
        self.poke64(physical::DIRECTORY, physical::LOW_TABLE | PRESENT_WRITABLE);
        for page in 0..(physical::SIZE / PAGE) as u64 {
            let entry = (page * PAGE as u64) | PRESENT_WRITABLE;
            self.poke64(physical::LOW_TABLE + 8 * page, entry);
        }
        for (linear, table, page) in [
            (CODE, physical::CODE_TABLE, physical::CODE),
            (DATA, physical::DATA_TABLE, physical::DATA),
        ] {
            self.poke64(physical::DIRECTORY + 8 * (linear >> 21), table | PRESENT_WRITABLE);
            self.poke64(table + 8 * (linear >> 12 & 511), page | PRESENT_WRITABLE);
        }
        for vector in 0..32 {
            let handler = physical::HANDLERS + vector;
            // CS 8, IST1, an interrupt gate.
            let gate = handler & 0xffff | 0x8e01_0008_0000 | (handler >> 16) << 48;
            self.poke64(physical::IDT + 16 * vector, gate);
        }
        self.poke(physical::HANDLERS, &[0xf4; 32]);
        self.poke64(physical::TSS + 0x24, physical::EXCEPTION_STACK_END);
        self.poke64(physical::GDT + 8, CODE_DESCRIPTOR);
        self.poke(physical::CODE, &[0xcc; PAGE]);
    }

    /// Runs a case from start to end.
    pub fn run(&mut self, case: &Case, pool: &Pool, way: Way) -> Outcome {
        let mut cpu = self.start.clone();
        for (i, value) in case.gpr.into_iter().enumerate() {
            cpu.gpr.set(i as u8, value);
        }
        cpu.rip = case.rip;
        let trap = if way == Way::Careful { TF } else { 0 };
        cpu.flags = Flags::from(case.flags | trap);
        cpu.fpu.mxcsr = case.mxcsr;
        cpu.fpu.k = case.k;
        let registers = case.registers(pool);
        for (vector, bytes) in cpu.fpu.vectors.iter_mut().zip(registers.chunks_exact(64)) {
            for (word, bytes) in vector.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8 bytes"));
            }
        }
        cpu.refresh();
        self.poke(physical::DATA, &pool.window::<PAGE>(case.data));
        self.write_code(case, &case.code);
        self.emulator.set_cpu(cpu);
        let limit = if way == Way::Fast { 1 } else { PATIENCE };
        let mut exit = self.emulator.run_at_most(Entry::Resume, limit);
        // Gathers and scatters may stop behind an element, and fault at the next one when they go on.
        let mut patience = 64;
        while matches!(exit, Ok(Exit::Attention)) && self.emulator.cpu().rip == case.rip && patience > 0 {
            exit = self.emulator.run_at_most(Entry::Resume, limit);
            patience -= 1;
        }
        let outcome = self.outcome(case, &exit, way);
        self.write_code(case, &[0xcc; 16]);
        outcome
    }

    fn write_code(&self, case: &Case, code: &[u8; 16]) {
        let at = physical::CODE + (case.rip - CODE);
        self.poke(at, code);
        self.ram.written_by_host(at, 16);
    }

    fn outcome(&mut self, case: &Case, exit: &Result<Exit, reprise_emulator::Error>, way: Way) -> Outcome {
        let cpu = self.emulator.cpu();
        let mut page = [0; PAGE];
        self.memory
            .read_slice(&mut page, GuestAddress(physical::DATA))
            .expect("all addresses are within the machine's memory");
        let mut outcome = Outcome {
            vectors: core::array::from_fn(|i| cpu.fpu.vectors[i / 64][i / 8 % 8].to_le_bytes()[i % 8]),
            k: cpu.fpu.k,
            gpr: core::array::from_fn(|i| cpu.gpr.get(i as u8)),
            mxcsr: cpu.fpu.mxcsr.into(),
            vector: u64::MAX,
            error_code: 0,
            cr2: 0,
            rip: cpu.rip,
            flags: cpu.flags.bits(),
            checksum: checksum(&page),
            memory: core::array::from_fn(|i| page[case.shown as usize + i]),
        };
        match exit {
            Ok(Exit::Halt | Exit::Attention) if (1..=32).contains(&cpu.rip.wrapping_sub(physical::HANDLERS)) => {
                outcome.vector = cpu.rip - physical::HANDLERS - 1;
                let mut at = physical::EXCEPTION_STACK_END - 40;
                if matches!(outcome.vector, 8 | 10..=14 | 17 | 21) {
                    outcome.error_code = self.peek64(at - 8);
                }
                if outcome.vector == 14 {
                    outcome.cr2 = cpu.cr2;
                }
                let mut pop = || {
                    at += 8;
                    self.peek64(at - 8)
                };
                let (rip, _cs, flags, rsp) = (pop(), pop(), pop(), pop());
                outcome.rip = rip;
                outcome.flags = flags;
                outcome.gpr[4] = rsp;
                if outcome.vector == DEBUG && way == Way::Careful {
                    outcome.done();
                }
                outcome.flags &= !TF | case.flags;
            }
            // One instruction has retired.
            Ok(Exit::Attention) => outcome.done(),
            _ => {}
        }
        outcome
    }
}

const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;

/// What is the same in all cases.
fn start() -> Cpu {
    let mut cpu = Cpu::reset();
    cpu.cr0 = Cr0(Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG);
    cpu.cr3 = physical::PML4;
    cpu.cr4 = Cr4(Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE);
    cpu.efer = Efer(Efer::LME | Efer::LMA);
    cpu.xcr0 = fpu::XCR0_SUPPORTED & (fpu::X87 | fpu::SSE | fpu::AVX | fpu::AVX512);
    cpu.idtr = TableRegister {
        base: physical::IDT,
        limit: 0x1ff,
    };
    cpu.gdtr = TableRegister {
        base: physical::GDT,
        limit: 0xf,
    };
    cpu.segments[Seg::Cs] = Segment::from_descriptor(8, CODE_DESCRIPTOR);
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        cpu.segments[seg] = Segment::null(0);
    }
    cpu.tr = Segment {
        selector: 16,
        attributes: reprise_emulator::cpu::Attributes(0x8b),
        limit: 0x67,
        base: physical::TSS,
    };
    cpu
}
