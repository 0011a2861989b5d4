//! A 64-bit guest whose devices are answered one request at a time, so that a test can look and meddle meanwhile.

use std::sync::{Arc, OnceLock};

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use reprise_emulator::cpu::{Activity, Attributes, Cr0, Cr4, Efer, Seg, Segment, TableRegister, gpr};
use reprise_emulator::{
    Answer, Cpu, CpuidTable, Direction, Emulator, Entry, Exit, Host, Model, Ram, Reply, Request, Space,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::tier;

/// Root of the paging structures, which fill the three pages from here on.
pub const PML4: u64 = 0x1000;
/// The page table: every linear page below 2 MiB, one to one but for what is said below.
pub const PAGE_TABLE: u64 = 0x4000;
/// Global descriptor table.
pub const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
/// Task state.
pub const TSS: u64 = 0x7000;
const HANDLERS: u64 = 0x8000;
/// Where the instruction is.
pub const CODE: u64 = 0x1_0000;
/// Data in RAM.
pub const DATA: u64 = 0x2_0000;
/// Where RSP points.
pub const STACK: u64 = 0x2_8800;
/// Linear address of a page of RAM before the device's first.
pub const BEFORE: u64 = 0xf_f000;
/// Where that page is.
pub const BEFORE_RAM: u64 = 0x3_0000;
/// Linear address of the device.
pub const DEVICE: u64 = 0x10_0000;
/// The device's last page: reads count up.
pub const COUNTER: u64 = 0x10_f000;
/// Linear address of a page of RAM after the device's last.
pub const BEHIND: u64 = 0x11_0000;
/// Where that page is.
pub const BEHIND_RAM: u64 = 0x3_1000;
/// Where the device is.
pub const DEVICE_GPA: u64 = 0x1000_0000;
const DEVICE_SIZE: u64 = 0x1_0000;
/// Size of RAM.
pub const RAM_SIZE: u64 = 0x4_0000;
/// Present, writable, user, accessed, dirty.
pub const ALL: u64 = 0x67;

/// Selectors: 64-bit code, data, 32-bit code.
pub const CODE64: u16 = 0x08;
const DATA0: u16 = 0x10;
pub const CODE32: u16 = 0x18;

struct Still;

impl Host for Still {
    fn tsc(&self) -> u64 {
        7
    }

    fn random(&self) -> u64 {
        9
    }
}

/// What a device was asked.
pub type Asked = (Space, u64, u8, Direction);

/// A read of the device, `offset` bytes into it.
pub fn read(offset: u64, size: u8) -> Asked {
    (Space::Memory, DEVICE_GPA + offset, size, Direction::Read)
}

/// A write to the device.
pub fn write(offset: u64, size: u8, value: u64) -> Asked {
    (Space::Memory, DEVICE_GPA + offset, size, Direction::Write(value))
}

pub struct Guest {
    pub emulator: Emulator,
    ram: Arc<Ram>,
    device: Vec<u8>,
    count: u64,
    /// Everything that devices were asked, in order.
    pub trace: Vec<Asked>,
}

/// The page-table entry of a linear page.
pub fn entry_of(linear: u64) -> u64 {
    PAGE_TABLE + linear / 0x1000 * 8
}

impl Guest {
    /// About to execute at [`CODE`], where there are HLTs.
    pub fn new() -> Guest {
        static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
        let model = MODEL.get_or_init(|| Arc::new(Model::new())).clone();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_SIZE as usize)]).unwrap();
        let ram = Arc::new(Ram::new(memory).unwrap());
        let cpuid = Arc::new(CpuidTable::default());
        let mut emulator = Emulator::new(Cpu::reset(), ram.clone(), Arc::new(Still), model, cpuid);
        tier::set(&mut emulator);
        let mut guest = Guest {
            emulator,
            ram,
            device: (0..DEVICE_SIZE).map(|i| (i * 7 + 1) as u8).collect(),
            count: 0,
            trace: Vec::new(),
        };
        guest.build();
        guest.emulator.change(|cpu| {
            cpu.cr0 = Cr0(Cr0::PE | Cr0::ET | Cr0::NE | Cr0::MP | Cr0::WP | Cr0::PG);
            cpu.cr3 = PML4;
            cpu.cr4 = Cr4(Cr4::PAE | Cr4::OSFXSR);
            cpu.efer = Efer(Efer::LME | Efer::LMA | Efer::NXE);
            cpu.gdtr = TableRegister { base: GDT, limit: 0xff };
            cpu.idtr = TableRegister {
                base: IDT,
                limit: 0xfff,
            };
            cpu.tr = Segment {
                selector: 0x30,
                attributes: Attributes(0x8b),
                limit: 0x67,
                base: TSS,
            };
            cpu.segments[Seg::Cs] = Segment::flat(CODE64, Attributes(0xa09b));
            for seg in [Seg::Ss, Seg::Ds, Seg::Es] {
                cpu.segments[seg] = Segment::flat(DATA0, Attributes(0xc093));
            }
            cpu.gpr.set(gpr::RSP, STACK);
            cpu.rip = CODE;
        });
        guest
    }

    fn build(&mut self) {
        for table in [PML4, PML4 + 0x1000, PML4 + 0x2000] {
            self.write(table, 8, (table + 0x1000) | ALL);
        }
        for page in 0..0x200 {
            self.map(page * 0x1000, (page * 0x1000) | ALL);
        }
        for page in 0..DEVICE_SIZE / 0x1000 {
            self.map(DEVICE + page * 0x1000, (DEVICE_GPA + page * 0x1000) | ALL);
        }
        self.map(BEFORE, BEFORE_RAM | ALL);
        self.map(BEHIND, BEHIND_RAM | ALL);
        self.write(GDT + u64::from(CODE64), 8, 0x00af_9b00_0000_ffff);
        self.write(GDT + u64::from(DATA0), 8, 0x00cf_9300_0000_ffff);
        self.write(GDT + u64::from(CODE32), 8, 0x00cf_9b00_0000_ffff);
        for vector in 0..256 {
            let handler = HANDLERS + vector * 16;
            self.write(IDT + vector * 16, 8, handler | u64::from(CODE64) << 16 | 0x8e00 << 32);
        }
        // HLT everywhere.
        self.put(HANDLERS, &[0xf4; 0x1000]);
        self.put(CODE, &[0xf4; 0x2000]);
        for i in 0..0x400 {
            self.write(DATA + 8 * i, 8, 0x0102_0304_0506_0708 * (i % 13 + 1));
            self.write(STACK - 0x800 + 8 * (i % 0x200), 8, 0x1111_0000 + i);
        }
    }

    /// A guest that executes `write`'s code, then HLT.
    pub fn with(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
        let mut guest = Guest::new();
        guest.code(CODE, 64, write);
        guest
    }

    /// Assembles code at `at`; returns its length.
    pub fn code(&mut self, at: u64, bits: u32, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
        let mut assembler = CodeAssembler::new(bits).unwrap();
        write(&mut assembler).unwrap();
        let bytes = assembler.assemble(at).unwrap();
        self.put(at, &bytes);
        bytes.len() as u64
    }

    /// Sets registers.
    pub fn set(&mut self, registers: &[(u8, u64)]) {
        self.emulator.change(|cpu| {
            for (register, value) in registers {
                cpu.gpr.set(*register, *value);
            }
        });
    }

    /// Lets the CPU begin at [`CODE`] once more.
    pub fn restart(&mut self) {
        self.emulator.change(|cpu| {
            cpu.rip = CODE;
            cpu.activity = Activity::Running;
        });
    }

    pub fn get(&self, register: u8) -> u64 {
        self.emulator.cpu().gpr.get(register)
    }

    /// Sets the page-table entry of a linear page.
    pub fn map(&mut self, linear: u64, entry: u64) {
        self.write(entry_of(linear), 8, entry);
    }

    /// Writes RAM as another CPU or a device does.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(at)).unwrap();
        self.ram.written_by_host(at, bytes.len() as u64);
    }

    pub fn write(&mut self, at: u64, size: usize, value: u64) {
        self.put(at, &value.to_le_bytes()[..size]);
    }

    pub fn read(&self, at: u64, size: u8) -> u64 {
        self.ram.read(at, size).unwrap()
    }

    /// All of RAM.
    pub fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM_SIZE as usize];
        self.ram.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    /// The device's memory.
    pub fn device(&self) -> &[u8] {
        &self.device
    }

    /// What the device holds at `offset`.
    pub fn in_device(&self, offset: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&self.device[offset as usize..][..size]);
        u64::from_le_bytes(bytes)
    }

    /// Enters the CPU.
    pub fn enter(&mut self, entry: Entry) -> Exit {
        self.emulator
            .run(entry)
            .expect("a later pass sees what the first one saw")
    }

    /// Enters the CPU, which must ask for something.
    pub fn request(&mut self, entry: Entry) -> Request {
        match self.enter(entry) {
            Exit::Request(request) => request,
            exit => panic!("{exit:?} at {:#x}", self.emulator.cpu().rip),
        }
    }

    /// The device's answer.
    pub fn serve(&mut self, request: Request) -> Entry {
        let Request {
            id,
            space,
            address,
            size,
            direction,
        } = request;
        if let Direction::ReadTo { .. } | Direction::WriteFrom { .. } = direction {
            return self.serve_batch(request, u32::MAX);
        }
        self.trace.push((space, address, size, direction));
        let offset = address.wrapping_sub(DEVICE_GPA) as usize;
        let counts = address >= DEVICE_GPA + (COUNTER - DEVICE);
        let value = match (space, direction) {
            (Space::Memory, Direction::Read) if !counts => self.in_device(offset as u64, usize::from(size)),
            (Space::Memory, Direction::Write(value)) => {
                self.device[offset..][..usize::from(size)].copy_from_slice(&value.to_le_bytes()[..usize::from(size)]);
                0
            }
            (_, Direction::Write(_)) => 0,
            _ => {
                self.count += 1;
                self.count
            }
        };
        let reply = Reply::Value(value);
        Entry::Answer(Answer { id, reply })
    }

    /// The elements of a batch, as if they had been asked for one by one, but at most `most`.
    pub fn serve_batch(&mut self, batch: Request, most: u32) -> Entry {
        let mut done = 0;
        while done < most
            && let Some((address, guest)) = batch.element(done)
        {
            let direction = match batch.direction {
                Direction::ReadTo { .. } => Direction::Read,
                _ => Direction::Write(self.read(guest, batch.size)),
            };
            let answer = self.serve(Request {
                address,
                direction,
                ..batch
            });
            if let (Direction::Read, Entry::Answer(Answer { reply, .. })) = (direction, answer)
                && let Reply::Value(value) = reply
            {
                self.write(guest, usize::from(batch.size), value);
            }
            done += 1;
        }
        Entry::Answer(Answer {
            id: batch.id,
            reply: Reply::Value(u64::from(done)),
        })
    }

    /// Runs until the CPU halts, answering late: `meanwhile` happens before each answer.
    pub fn run_late(&mut self, mut meanwhile: impl FnMut(&mut Guest, Request)) -> Exit {
        let mut entry = Entry::Resume;
        for _ in 0..10_000 {
            match self.enter(entry) {
                Exit::Request(request) => {
                    meanwhile(self, request);
                    entry = self.serve(request);
                }
                exit => return exit,
            }
        }
        panic!("there is no end");
    }

    /// Runs until the CPU halts, answering at once.
    pub fn run(&mut self) -> Exit {
        self.run_late(|_, _| ())
    }

    /// The vector of the exception or interrupt in whose handler the CPU has halted.
    pub fn vector(&self) -> Option<u64> {
        let offset = self.emulator.cpu().rip.wrapping_sub(HANDLERS);
        (offset < 0x1000).then_some(offset / 16)
    }
}
