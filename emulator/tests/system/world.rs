//! A whole world for one CPU: memory, a device that holds memory of its own, and tables for protected and long mode.
//!
//! The tables (GDT, IDT, TSS) and the kernel's stacks lie in RAM or in the device, which answers late. What a test
//! claims must hold in both, so [`both`] runs it twice.

use std::sync::Arc;

use iced_x86::code_asm::CodeAssembler;
use reprise_emulator::cpu::{Attributes, Cr0, Cr4, Efer, Seg, Segment, TableRegister, gpr};
use reprise_emulator::cpuid::{CpuidEntry, CpuidRegisters};
use reprise_emulator::{
    Answer, Cpu, CpuidTable, Direction, Emulator, Entry, Exit, Host, Model, Ram, Reply, Request, Space,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::tier;

/// Kernel code.
pub const CODE: u64 = 0x1_0000;
/// User code.
pub const USER: u64 = 0x2_0000;
/// Handler of vector n, at n × 16: HLT, then IRETQ.
pub const HANDLERS: u64 = 0x3_0000;
/// Paging structures: identity for the first 4 MiB, all for user and supervisor.
pub const PML4: u64 = 0x4_0000;
/// Page directory, whose two entries map 2 MiB each.
pub const PD: u64 = 0x4_2000;
/// Top of the user stack.
pub const USER_STACK: u64 = 0x5_0000;
/// Scratch data.
pub const DATA: u64 = 0x6_0000;

const RAM_SIZE: usize = 0x20_0000;
const DEVICE: u64 = 0x20_0000;
const DEVICE_SIZE: usize = 0x1_0000;

/// Offsets from the tables' base.
pub const GDT: u64 = 0;
/// Interrupt descriptor table.
pub const IDT: u64 = 0x1000;
/// Task state segment, with an I/O map at [`IO_MAP`].
pub const TSS: u64 = 0x2000;
/// Offset of the I/O map in the TSS.
pub const IO_MAP: u64 = 0x68;
/// Where kernel stacks end: RSP0, IST1, and the stack in use.
pub const STACK0: u64 = 0x4000;
pub const IST1: u64 = 0x5008;
pub const STACK: u64 = 0x6000;

pub const CODE64: u16 = 0x08;
pub const DATA0: u16 = 0x10;
pub const CODE32: u16 = 0x18;
pub const USER32: u16 = 0x23;
pub const USER_DATA: u16 = 0x2b;
pub const USER64: u16 = 0x33;
pub const TASK: u16 = 0x38;
pub const GATE: u16 = 0x48;
pub const ABSENT: u16 = 0x58;
pub const CODE16: u16 = 0x60;
pub const DATA16: u16 = 0x68;

struct Still;

impl Host for Still {
    fn tsc(&self) -> u64 {
        0x1122_3344_5566_7788
    }

    fn random(&self) -> u64 {
        0x99aa_bbcc_ddee_ff00
    }
}

pub struct World {
    pub emulator: Emulator,
    ram: Arc<Ram>,
    device: Vec<u8>,
    /// Base of the tables.
    pub tables: u64,
    /// What the devices but the memory-like one were asked.
    pub trace: Vec<(Space, u64, Direction)>,
    pub task_priority: u64,
    /// IA32_APIC_BASE, if the platform has one.
    pub apic_base: Option<u64>,
}

/// Runs `test` with the tables in RAM and in a device.
pub fn both(test: impl Fn(World)) {
    test(World::new(0x10_0000));
    test(World::new(DEVICE));
}

pub fn entry(leaf: u32, subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry {
        leaf,
        subleaf: Some(subleaf),
        registers: CpuidRegisters { eax, ebx, ecx, edx },
    }
}

/// A processor with what these tests are about.
pub fn cpuid() -> CpuidTable {
    CpuidTable::new(vec![
        entry(0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        // PCID, XSAVE; VME, DE, PSE, TSC, PAE, MCE, MTRR, PGE, PAT, FXSR, SSE.
        entry(1, 0, [0x00a0_0f11, 0, 1 << 17 | 1 << 26, 0x0301_30fe]),
        // FSGSBASE, SMEP, SMAP; UMIP, PKU, LA57.
        entry(7, 0, [0, 1 | 1 << 7 | 1 << 20, 1 << 2 | 1 << 3 | 1 << 16, 0]),
        entry(0xd, 0, [3, 576, 576, 0]),
        // SYSCALL, NX, RDTSCP, long mode.
        entry(0x8000_0001, 0, [0, 0, 0, 1 << 11 | 1 << 20 | 1 << 27 | 1 << 29]),
    ])
}

/// An 8-byte descriptor with base 0: `attributes` as the hidden part has them, limit in units of its granularity.
pub fn descriptor(attributes: u64, limit: u64) -> u64 {
    limit & 0xffff | (limit >> 16 & 0xf) << 48 | (attributes & 0xf0ff) << 40
}

impl World {
    /// In 64-bit mode at CPL 0, about to execute at [`CODE`].
    pub fn new(tables: u64) -> World {
        World::with(tables, cpuid())
    }

    /// A world whose processor answers CPUID by `cpuid`.
    pub fn with(tables: u64, cpuid: CpuidTable) -> World {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_SIZE)]).unwrap();
        let ram = Arc::new(Ram::new(memory).unwrap());
        let mut emulator = Emulator::new(
            Cpu::reset(),
            ram.clone(),
            Arc::new(Still),
            Arc::new(Model::new()),
            Arc::new(cpuid),
        );
        tier::set(&mut emulator);
        let mut world = World {
            emulator,
            ram,
            device: vec![0; DEVICE_SIZE],
            tables,
            trace: Vec::new(),
            task_priority: 0,
            apic_base: None,
        };
        world.build_tables();
        world.change(|cpu| {
            cpu.cr0 = Cr0(Cr0::PE | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG);
            cpu.cr3 = PML4;
            cpu.cr4 = Cr4(Cr4::PAE | Cr4::OSFXSR | Cr4::FSGSBASE);
            cpu.efer = Efer(Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE);
            cpu.gdtr = TableRegister {
                base: tables + GDT,
                limit: 0x7f,
            };
            cpu.idtr = TableRegister {
                base: tables + IDT,
                limit: 0xfff,
            };
            cpu.tr = Segment {
                selector: TASK,
                attributes: Attributes(0x8b),
                limit: 0xff,
                base: tables + TSS,
            };
            cpu.segments[Seg::Cs] = Segment::flat(CODE64, Attributes(0xa09b));
            for seg in [Seg::Ss, Seg::Ds, Seg::Es] {
                cpu.segments[seg] = Segment::flat(DATA0, Attributes(0xc093));
            }
            cpu.msr.star = u64::from(CODE64) << 32 | u64::from(USER32) << 48;
            cpu.msr.lstar = HANDLERS + 0x800;
            cpu.msr.fmask = 0x4_0700;
            cpu.gpr.set(gpr::RSP, tables + STACK);
            cpu.rip = CODE;
        });
        world.code(HANDLERS + 0x800, 64, |a| a.hlt());
        world
    }

    fn build_tables(&mut self) {
        let t = self.tables;
        for (selector, attributes) in [
            (CODE64, 0xa09b),
            (DATA0, 0xc093),
            (CODE32, 0xc09b),
            (USER32, 0xc0fb),
            (USER_DATA, 0xc0f3),
            (USER64, 0xa0fb),
            (ABSENT, 0xc013),
            (CODE16, 0x009b),
            (DATA16, 0x0093),
        ] {
            let limit = if attributes & 0x8000 != 0 { 0xf_ffff } else { 0xffff };
            self.write(t + GDT + u64::from(selector & !7), 8, descriptor(attributes, limit));
        }
        let tss = t + TSS;
        let low = descriptor(0x89, 0xff) | (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56;
        self.write(t + u64::from(TASK), 8, low);
        self.write(tss + 4, 8, t + STACK0);
        self.write(tss + 0x24, 8, t + IST1);
        self.write(tss + 0x66, 2, IO_MAP);
        for vector in 0..=255 {
            self.gate(vector, 0x8e, 0);
        }
        let mut handlers = CodeAssembler::new(64).unwrap();
        handlers.hlt().unwrap();
        handlers.iretq().unwrap();
        let bytes = handlers.assemble(0).unwrap();
        for vector in 0..=255 {
            self.put(HANDLERS + vector * 16, &bytes);
        }
        self.write(PML4, 8, PML4 + 0x1007);
        self.write(PML4 + 0x1000, 8, PD | 7);
        self.write(PD, 8, 0xe7);
        self.write(PD + 8, 8, DEVICE | 0xe7);
    }

    /// Sets the IDT gate of `vector`: type and DPL as in byte 5, and the stack table index.
    pub fn gate(&mut self, vector: u64, kind: u64, ist: u64) {
        let handler = HANDLERS + vector * 16;
        let low = handler & 0xffff | u64::from(CODE64) << 16 | ist << 32 | kind << 40 | (handler >> 16 & 0xffff) << 48;
        self.write(self.tables + IDT + vector * 16, 8, low);
        self.write(self.tables + IDT + vector * 16 + 8, 8, handler >> 32);
    }

    pub fn change(&mut self, change: impl FnOnce(&mut Cpu)) {
        self.emulator.change(change);
    }

    pub fn cpu(&self) -> &Cpu {
        self.emulator.cpu()
    }

    pub fn get(&self, register: u8) -> u64 {
        self.cpu().gpr.get(register)
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        if at >= DEVICE {
            let start = (at - DEVICE) as usize;
            self.device[start..start + bytes.len()].copy_from_slice(bytes);
        } else {
            self.ram.memory().write_slice(bytes, GuestAddress(at)).unwrap();
            self.ram.written_by_host(at, bytes.len() as u64);
        }
    }

    pub fn write(&mut self, at: u64, size: usize, value: u64) {
        self.put(at, &value.to_le_bytes()[..size]);
    }

    pub fn read(&self, at: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        if at >= DEVICE {
            let start = (at - DEVICE) as usize;
            bytes[..size].copy_from_slice(&self.device[start..start + size]);
        } else {
            self.ram
                .memory()
                .read_slice(&mut bytes[..size], GuestAddress(at))
                .unwrap();
        }
        u64::from_le_bytes(bytes)
    }

    /// Assembles code of `bits` at `at`.
    pub fn code(
        &mut self,
        at: u64,
        bits: u32,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) {
        let mut assembler = CodeAssembler::new(bits).unwrap();
        write(&mut assembler).unwrap();
        let bytes = assembler.assemble(at).unwrap();
        self.put(at, &bytes);
    }

    /// Goes to user mode, at [`USER`].
    pub fn user(&mut self) {
        self.change(|cpu| {
            cpu.segments[Seg::Cs] = Segment::flat(USER64, Attributes(0xa0fb));
            for seg in [Seg::Ss, Seg::Ds, Seg::Es] {
                cpu.segments[seg] = Segment::flat(USER_DATA, Attributes(0xc0f3));
            }
            cpu.gpr.set(gpr::RSP, USER_STACK);
            cpu.rip = USER;
        });
    }

    /// Runs, serving the device, until something else is to be seen.
    pub fn run(&mut self) -> Exit {
        let mut entry = Entry::Resume;
        loop {
            match self.emulator.run(entry).unwrap() {
                Exit::Request(request) => entry = Entry::Answer(self.answer(request)),
                exit => return exit,
            }
        }
    }

    /// Runs until HLT, which handlers begin with, and says which vector's handler it was.
    pub fn run_to_handler(&mut self) -> u64 {
        assert_eq!(self.run(), Exit::Halt, "{:x?}", self.cpu());
        let rip = self.cpu().rip;
        assert_eq!(rip % 16, 1, "halted at {rip:#x}");
        (rip - HANDLERS) / 16
    }

    fn answer(&mut self, request: Request) -> Answer {
        if let Some((address, guest)) = request.element(0) {
            return self.answer_element(request, address, guest);
        }
        let (at, size) = (request.address, usize::from(request.size));
        let in_device = request.space == Space::Memory && (DEVICE..DEVICE + DEVICE_SIZE as u64).contains(&at);
        if !in_device {
            self.trace.push((request.space, at, request.direction));
        }
        let reply = match (request.space, request.direction) {
            (Space::Memory, Direction::Read) if in_device => Reply::Value(self.read(at, size)),
            (Space::Memory, Direction::Write(value)) if in_device => {
                self.write(at, size, value);
                Reply::Value(0)
            }
            (Space::TaskPriority, Direction::Read) => Reply::Value(self.task_priority),
            (Space::TaskPriority, Direction::Write(value)) => {
                self.task_priority = value;
                Reply::Value(0)
            }
            (Space::Msr, Direction::Read) if at == 0x1b && self.apic_base.is_some() => {
                Reply::Value(self.apic_base.unwrap_or_default())
            }
            (Space::Msr, _) if at != 0x10 => Reply::Refused,
            (Space::Hypercall, _) if at == 0xbad => Reply::Refused,
            (Space::Hypercall, _) => Reply::Value(7 << 32 | (at + 1)),
            (_, Direction::Write(_)) => Reply::Value(0),
            _ => Reply::Value(0x1234_5678),
        };
        Answer { id: request.id, reply }
    }

    /// Moves the first element of a batch and leaves the rest for further requests.
    fn answer_element(&mut self, batch: Request, address: u64, guest: u64) -> Answer {
        let size = usize::from(batch.size);
        let reads = matches!(batch.direction, Direction::ReadTo { .. });
        let direction = if reads {
            Direction::Read
        } else {
            Direction::Write(self.read(guest, size))
        };
        let answer = self.answer(Request {
            address,
            direction,
            ..batch
        });
        if let (true, Reply::Value(value)) = (reads, answer.reply) {
            self.write(guest, size, value);
        }
        let reply = Reply::Value(1);
        Answer { reply, ..answer }
    }

    /// The quadwords on top of the stack: error code if `with_code`, RIP, CS, RFLAGS, RSP, SS.
    pub fn frame(&self, with_code: bool) -> Frame {
        let top = self.get(gpr::RSP);
        let skip = if with_code { 8 } else { 0 };
        let word = |i: u64| self.read(top + skip + 8 * i, 8);
        Frame {
            code: with_code.then(|| self.read(top, 8)),
            rip: word(0),
            cs: word(1),
            flags: word(2),
            rsp: word(3),
            ss: word(4),
        }
    }
}

/// What delivery in long mode pushes.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub code: Option<u64>,
    pub rip: u64,
    pub cs: u64,
    pub flags: u64,
    pub rsp: u64,
    pub ss: u64,
}
