//! A machine in 64-bit mode. Its first two megabytes are mapped where they are, and once more at the top of the address space.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use reprise_emulator::cpu::{Activity, Attributes, Cr0, Cr4, Efer, Seg, Segment, gpr};
use reprise_emulator::cpuid::{CpuidEntry, CpuidRegisters};
use reprise_emulator::{Answer, Attention, Cpu, CpuidTable, Direction, Emulator, Entry, Exit, Host, Model, Ram, Reply};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::dice::Dice;
use crate::program::Program;

/// The code's first page; it has four.
pub const CODE: u64 = 0x1_0000;
/// Pages of data: RAM, then one that is read-only, one that is not there, one that is a device's, and RAM again.
pub const DATA: u64 = 0x2_0000;
pub const READ_ONLY: u64 = 0x2_4000;
const ABSENT: u64 = 0x2_5000;
pub const DEVICE: u64 = 0x2_6000;
pub const STACK: u64 = 0x3_0000;
/// Where the same memory is once more.
pub const HIGH: u64 = 0xffff_ffff_8000_0000;
const RAM_SIZE: usize = 0x4_0000;
pub const PML4: u64 = 0x1000;
const LOW_PDPT: u64 = 0x2000;
pub const HIGH_PDPT: u64 = 0x3000;
const DIRECTORY: u64 = 0x4000;
pub const TABLE: u64 = 0x5000;
/// Bases of FS and GS.
const BASES: [u64; 2] = [DATA + 0x40, HIGH + DATA + 0x1080];

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    Supervisor,
    User,
    /// The supervisor, kept off user pages: some data are on such.
    Smap,
    /// The supervisor, and the user, in 32-bit code of compatibility mode.
    NarrowSupervisor,
    NarrowUser,
}

impl Ring {
    /// Of the code.
    pub fn bits(self) -> u32 {
        match self {
            Ring::NarrowSupervisor | Ring::NarrowUser => 32,
            _ => 64,
        }
    }

    fn is_user(self) -> bool {
        matches!(self, Ring::User | Ring::NarrowUser)
    }
}

struct Still;

impl Host for Still {
    fn tsc(&self) -> u64 {
        0x1234_5678_9abc
    }

    fn random(&self) -> u64 {
        4
    }
}

/// Calls its CPU when a program reads the time-stamp counter for the last time that it is asked to bear.
#[derive(Default)]
pub struct Caller {
    pub attention: OnceLock<Arc<Attention>>,
    pub reads_left: AtomicU32,
}

impl Host for Caller {
    fn tsc(&self) -> u64 {
        if self.reads_left.fetch_sub(1, Relaxed) == 1 {
            self.attention.get().expect("connected").call();
        }
        7
    }

    fn random(&self) -> u64 {
        4
    }
}

pub struct Machine {
    pub emulator: Emulator,
    memory: GuestMemoryMmap<()>,
    ram: Arc<Ram>,
    ring: Ring,
}

fn cpuid() -> CpuidTable {
    let entry = |leaf, ebx, ecx, edx| CpuidEntry {
        leaf,
        subleaf: None,
        registers: CpuidRegisters {
            eax: 0xd,
            ebx,
            ecx,
            edx,
        },
    };
    CpuidTable::new(vec![
        entry(0, 0, 0, 0),
        entry(1, 0, u32::MAX, u32::MAX),
        entry(7, u32::MAX, 0, 0),
        entry(0x8000_0001, 0, u32::MAX, u32::MAX),
    ])
}

impl Machine {
    pub fn new(ring: Ring) -> Machine {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_SIZE)]).unwrap();
        let ram = Arc::new(Ram::new(memory.clone()).unwrap());
        Machine::with(ring, memory, ram, Arc::new(Still))
    }

    /// A machine that somebody calls in the middle of a program.
    pub fn called(ring: Ring, caller: &Arc<Caller>) -> Machine {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_SIZE)]).unwrap();
        let ram = Arc::new(Ram::new(memory.clone()).unwrap());
        let machine = Machine::with(ring, memory, ram, caller.clone());
        let attention = machine.emulator.attention().clone();
        assert!(caller.attention.set(attention).is_ok(), "one machine each");
        machine
    }

    /// Another CPU on the same memory.
    pub fn beside(&self) -> Machine {
        Machine::with(self.ring, self.memory.clone(), self.ram.clone(), Arc::new(Still))
    }

    fn with(ring: Ring, memory: GuestMemoryMmap<()>, ram: Arc<Ram>, host: Arc<dyn Host>) -> Machine {
        static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
        let model = MODEL.get_or_init(|| Arc::new(Model::new())).clone();
        let emulator = Emulator::new(Cpu::reset(), ram.clone(), host, model, Arc::new(cpuid()));
        Machine {
            emulator,
            memory,
            ram,
            ring,
        }
    }

    /// Writes as a device does.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        self.ram.written_by_host(at, bytes.len() as u64);
    }

    /// A state to begin the program with.
    pub fn start(&self, program: &Program, dice: &mut Dice) -> Cpu {
        let mut cpu = Cpu::reset();
        let user = self.ring.is_user();
        let is_64 = self.ring.bits() == 64;
        let code = if is_64 { 0xa09b } else { 0xc09b };
        let halves: &[u64] = if is_64 { &[0, HIGH] } else { &[0] };
        let dpl = if user { 3 << 5 } else { 0 };
        cpu.cr0 = Cr0(Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET | Cr0::NE);
        cpu.cr3 = PML4;
        cpu.cr4 = Cr4(Cr4::PAE | Cr4::OSFXSR);
        if self.ring == Ring::Smap {
            cpu.cr4.0 |= Cr4::SMAP;
        }
        if !dice.one_in(8) {
            cpu.cr4.0 |= Cr4::OSXSAVE;
            cpu.xcr0 = dice.choose(&[7, 7, 7, 7, 3, 0xe7]);
        }
        if dice.one_in(16) {
            cpu.cr0.0 |= Cr0::TS;
        }
        cpu.efer = Efer(Efer::LME | Efer::LMA);
        cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(code | dpl));
        for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
            cpu.segments[seg] = Segment::flat(16, Attributes(0xc093 | dpl));
        }
        cpu.segments[Seg::Fs].base = BASES[0];
        cpu.segments[Seg::Gs].base = if is_64 { BASES[1] } else { BASES[0] };
        if !is_64 && dice.one_in(10) {
            // Not what code is translated for.
            let seg = dice.choose(&[Seg::Ds, Seg::Ss, Seg::Es]);
            match dice.below(2) {
                0 => cpu.segments[seg].base = 0x10,
                _ => cpu.segments[seg].limit = DATA as u32 + 0x2200,
            }
        }
        // Every exception is the last one.
        cpu.idtr.limit = 0;
        for register in 0..16 {
            let value = match dice.below(8) {
                0..5 => {
                    let page = dice.choose(&[DATA, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000, READ_ONLY, STACK]);
                    let page = match dice.below(60) {
                        0 => DEVICE,
                        1 => ABSENT,
                        2 => CODE,
                        _ => page,
                    };
                    let half = dice.choose(halves);
                    let within = if dice.one_in(3) { 0 } else { dice.below(40) };
                    half + page + dice.choose(&[0x100, 0x7e0, 0xfe0]) + within
                }
                5 => dice.below(64),
                6 => program.address(dice),
                _ => dice.number(),
            };
            // 32-bit code does not see it.
            let unseen = if is_64 || dice.one_in(2) { 0 } else { dice.word() << 32 };
            cpu.gpr.set(register, value ^ unseen);
        }
        let stack = dice.choose(halves) + STACK + 0x800 + 8 * dice.below(512);
        cpu.gpr.set(gpr::RSP, stack);
        let is_wide = dice.one_in(8);
        for vector in &mut cpu.fpu.vectors[..16] {
            *vector = [(); 8].map(|()| match dice.below(3) {
                0 => dice.number(),
                1 => (dice.number() as f64).to_bits(),
                _ => u64::from((dice.word() as i32 as f32).to_bits()) << 32 | u64::from(1.5f32.to_bits()),
            });
            if !is_wide {
                vector[4..].fill(0);
            }
        }
        if dice.one_in(4) {
            // Another rounding, denormals as zeros, or an exception that is not masked.
            cpu.fpu.mxcsr ^= 1 << dice.choose(&[6, 7, 10, 11, 12, 13, 14, 15]);
        }
        cpu.rip = program.address(dice);
        // IF, IOPL and NT.
        let privileges = if dice.one_in(2) { dice.word() & 0x7200 } else { 0 };
        cpu.flags
            .set_bits(dice.word() & 0x8d5 | 2 | u64::from(dice.one_in(8)) << 10 | privileges);
        if self.ring == Ring::Smap && dice.one_in(2) {
            cpu.flags.set_bits(cpu.flags.bits() | 1 << 18);
        }
        cpu.refresh();
        cpu
    }

    pub fn load(&mut self, program: &Program, cpu: &Cpu) {
        let mut image = vec![0; RAM_SIZE];
        let mut put = |at: u64, value: u64| image[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
        // Present, writable, user, accessed.
        const BRANCH: u64 = 0x27;
        put(PML4, LOW_PDPT | BRANCH);
        put(PML4 + 8 * 511, HIGH_PDPT | BRANCH);
        put(LOW_PDPT, DIRECTORY | BRANCH);
        put(HIGH_PDPT + 8 * 510, DIRECTORY | BRANCH);
        put(DIRECTORY, TABLE | BRANCH);
        for page in 0..RAM_SIZE as u64 / 0x1000 {
            let at = page * 0x1000;
            let user = match self.ring {
                Ring::User | Ring::NarrowUser => 4,
                Ring::Supervisor | Ring::NarrowSupervisor => 0,
                Ring::Smap if at == DATA + 0x1000 => 4,
                Ring::Smap => 0,
            };
            let entry = match at {
                READ_ONLY => at | 0x21,
                PML4..=TABLE => at | 0x21,
                ABSENT => 0,
                DEVICE => 1 << 32 | 0x63,
                CODE..DATA => at | 0x63,
                _ => at | 0x3,
            };
            put(TABLE + 8 * page, if entry == 0 { 0 } else { entry | user });
        }
        let mut dice = Dice::new(program.seed);
        for at in (DATA..DATA + 0x4000).chain(STACK..STACK + 0x2000).step_by(8) {
            let value = if dice.one_in(4) {
                program.address(&mut dice)
            } else {
                dice.number()
            };
            put(at, value);
        }
        image[CODE as usize..][..program.bytes.len()].copy_from_slice(&program.bytes);
        self.write(0, &image);
        self.emulator.set_cpu(cpu.clone());
    }

    /// Lets the program write page tables. It must flush what the TLB knows of them, which no random program does.
    pub fn let_write_tables(&self) {
        for at in (PML4..=TABLE).step_by(0x1000) {
            self.write(TABLE + 8 * (at >> 12), &(at | 0x63).to_le_bytes());
        }
    }

    pub fn go_on(&mut self, cpu: &Cpu) {
        self.emulator.set_cpu(cpu.clone());
    }

    /// Runs for at most so many instructions, answering at once.
    pub fn run(&mut self, limit: u64) -> Exit {
        let until = self.retired() + limit;
        let mut entry = Entry::Resume;
        loop {
            let left = until.saturating_sub(self.retired());
            match self.emulator.run_at_most(entry, left).expect("no error of our own") {
                Exit::Request(request) => {
                    let value = match request.direction {
                        Direction::ReadTo { .. } | Direction::WriteFrom { .. } => 0,
                        _ => request.address.wrapping_mul(0x0101_0101_0101_0101),
                    };
                    let reply = Reply::Value(value);
                    entry = Entry::Answer(Answer { id: request.id, reply });
                }
                exit => return exit,
            }
        }
    }

    pub fn retired(&self) -> u64 {
        self.emulator.counters().instructions
    }

    pub fn is_shut_down(&self) -> bool {
        self.emulator.cpu().activity != Activity::Running
    }

    pub fn assert_same(&self, other: &Machine, program: &Program) {
        let (own, others) = (self.emulator.cpu(), other.emulator.cpu());
        if own != others || self.retired() != other.retired() {
            println!("{}", program.listing());
            println!("retired {} and {}", self.retired(), other.retired());
            println!("rip {:#x} and {:#x}", own.rip, others.rip);
            println!("flags {:?} and {:?}", own.flags, others.flags);
            println!("{:x?}\n{:x?}", own.gpr, others.gpr);
            println!("mxcsr {:#x} and {:#x}", own.fpu.mxcsr, others.fpu.mxcsr);
            for (number, (own, others)) in own.fpu.vectors.iter().zip(&others.fpu.vectors).enumerate() {
                if own != others {
                    println!("vector {number}: {own:x?}\n{others:x?}");
                }
            }
            panic!("the CPUs differ");
        }
    }

    pub fn assert_same_memory(&self, other: &Machine) {
        let image = |machine: &Machine| {
            let mut image = vec![0; RAM_SIZE];
            machine.memory.read_slice(&mut image, GuestAddress(0)).unwrap();
            // A page is accessed as soon as its code is looked for, even if a limit comes first (SDM volume 3, section 5.8).
            for entry in image[TABLE as usize..][..0x1000].chunks_exact_mut(8) {
                entry[0] |= 0x20;
            }
            image
        };
        let (own, others) = (image(self), image(other));
        if let Some(at) = (0..RAM_SIZE).find(|at| own[*at] != others[*at]) {
            panic!("memory differs at {at:#x}: {:#x} and {:#x}", own[at], others[at]);
        }
    }
}
