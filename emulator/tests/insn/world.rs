//! A machine of three data pages, a code page and handlers that say which exception came.
//!
//! Memory is mapped one to one, but for data pages that are made devices: those are mapped to where there is no RAM,
//! and every access of theirs comes out of the emulator and is answered here.

use std::sync::{Arc, OnceLock};

use reprise_emulator::cpu::{Attributes, Cr0, Cr4, Efer, Seg, Segment, TableRegister, segment};
use reprise_emulator::{
    Answer, Cpu, CpuidTable, Direction, Emulator, Entry, Exit, Host, Model, Ram, Reply, Request, Space,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::tier;

/// Where the instruction is.
pub const CODE: u64 = 0x1_0800;
/// The page of `m`; rbx and rsi point here.
pub const M: u64 = 0x2_0000;
/// The page of `d`; rdi points here.
pub const D: u64 = 0x3_0000;
/// The page of the stack.
const STACK_PAGE: u64 = 0x4_0000;
/// Where rsp points.
pub const STACK: u64 = STACK_PAGE + 0x800;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const PAGE_TABLE: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
const GDT: u64 = 0x7000;
const HANDLERS: u64 = 0x8000;
const EXCEPTION_STACK: u64 = 0xa000;
const SIZE: usize = 0x8_0000;
const DEVICES: u64 = 0x1000_0000;
const PAGE: u64 = 0x1000;
/// `out 0xe6, al`, over and over, at any address: what comes after the instruction, and every handler.
const END: u8 = 0xe6;

/// A data page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Where rbx and rsi point.
    M,
    /// Where rdi points.
    D,
    /// Where rsp points, 0x800 above the page's start.
    Stack,
}

impl Area {
    pub const ALL: [Area; 3] = [Area::M, Area::D, Area::Stack];

    /// Linear address of the page.
    pub fn page(self) -> u64 {
        match self {
            Area::M => M,
            Area::D => D,
            Area::Stack => STACK_PAGE,
        }
    }

    fn device(self) -> u64 {
        DEVICES + self as u64 * PAGE
    }
}

/// How an instruction is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// All in RAM.
    Fast,
    /// Single-stepped, which only the careful way does.
    Careful,
    /// One data page is a device, and while it owes an answer everything that the instruction has read is overwritten.
    Late(Area),
    /// All data pages are devices.
    AllLate,
}

/// What became of an instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// The CPU after the instruction, or at the instruction that faulted.
    pub cpu: Cpu,
    /// Vector and error code, if the instruction faulted.
    pub fault: Option<(u8, Option<u16>)>,
    /// Requests to devices, in order.
    pub requests: Vec<(u64, u8, Direction)>,
}

struct Still;

impl Host for Still {
    fn tsc(&self) -> u64 {
        1000
    }

    fn random(&self) -> u64 {
        4
    }
}

fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| Arc::new(Model::new())).clone()
}

/// The machine.
pub struct World {
    memory: GuestMemoryMmap<()>,
    ram: Arc<Ram>,
    emulator: Emulator,
    devices: Vec<u8>,
    /// Data pages that were overwritten while the instruction waited.
    scrambled: Vec<Area>,
}

/// What data pages are overwritten with.
const SCRAMBLED: u8 = 0x5a;

/// A flat segment of privilege level 0 with this type.
fn flat(selector: u16, attributes: u16) -> Segment {
    Segment {
        selector,
        attributes: Attributes(attributes),
        limit: 0xffff_ffff,
        base: 0,
    }
}

/// 64-bit mode at privilege level 0, all registers marked.
pub fn long_mode() -> Cpu {
    let mut cpu = Cpu::reset();
    cpu.cr0 = Cr0(Cr0::PE | Cr0::PG | Cr0::WP | Cr0::NE | Cr0::ET | Cr0::MP);
    cpu.cr3 = PML4;
    cpu.cr4 = Cr4(Cr4::PAE | Cr4::OSFXSR);
    cpu.efer = Efer(Efer::LME | Efer::LMA | Efer::NXE);
    cpu.segments[Seg::Cs] = flat(0x8, 0xa09b);
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        cpu.segments[seg] = flat(0x10, 0xc093);
    }
    finish(cpu)
}

/// 32-bit protected mode without paging.
pub fn protected_mode() -> Cpu {
    let mut cpu = Cpu::reset();
    cpu.cr0 = Cr0(Cr0::PE | Cr0::NE | Cr0::ET);
    cpu.segments[Seg::Cs] = flat(0x18, 0xc09b);
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        cpu.segments[seg] = flat(0x10, 0xc093);
    }
    finish(cpu)
}

/// 32-bit code with the page tables of 64-bit mode.
pub fn compatibility_mode() -> Cpu {
    let mut cpu = long_mode();
    cpu.segments[Seg::Cs] = flat(0x18, 0xc09b);
    cpu.refresh();
    cpu
}

/// Protected mode whose code segment is 16 bits wide and whose stack pointer is SP.
pub fn narrow_mode() -> Cpu {
    let mut cpu = protected_mode();
    cpu.segments[Seg::Cs] = Segment {
        limit: 0xffff,
        base: CODE & !0xffff,
        ..flat(0x20, 0x9b)
    };
    cpu.segments[Seg::Ss] = Segment {
        limit: 0xffff,
        base: STACK_PAGE,
        ..flat(0x28, 0x93)
    };
    cpu.rip = CODE & 0xffff;
    cpu.gpr.set(4, 0x800);
    cpu.refresh();
    cpu
}

fn finish(mut cpu: Cpu) -> Cpu {
    cpu.idtr = TableRegister {
        base: IDT,
        limit: 0xfff,
    };
    cpu.gdtr = TableRegister { base: GDT, limit: 0x3f };
    cpu.tr = Segment {
        selector: 0x30,
        attributes: Attributes(0x80 | segment::TSS32_BUSY),
        limit: 0x67,
        base: TSS,
    };
    cpu.rip = CODE;
    for register in 0..16 {
        cpu.gpr
            .set(register, 0x0101_0101_0101_0101 * (0xa0 + u64::from(register)));
    }
    for (register, value) in [(3, M), (6, M), (7, D), (4, STACK)] {
        cpu.gpr.set(register, value);
    }
    cpu.refresh();
    cpu
}

impl World {
    /// The machine that a CPU in the mode of `cpu` runs on.
    pub fn new(cpu: &Cpu) -> World {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
        let ram = Arc::new(Ram::new(memory.clone()).unwrap());
        let cpuid = Arc::new(CpuidTable::default());
        let mut emulator = Emulator::new(cpu.clone(), ram.clone(), Arc::new(Still), model(), cpuid);
        tier::set(&mut emulator);
        let mut world = World {
            memory,
            ram,
            emulator,
            devices: vec![0; Area::ALL.len() * PAGE as usize],
            scrambled: Vec::new(),
        };
        world.write_tables(cpu.view.is_ia32e());
        world
    }

    /// Writes `bytes` to RAM.
    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
        self.ram.written_by_host(address, bytes.len() as u64);
    }

    fn poke64(&mut self, address: u64, value: u64) {
        self.poke(address, &value.to_le_bytes());
    }

    fn peek(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Page tables, descriptors, gates and handlers.
    fn write_tables(&mut self, long: bool) {
        self.poke(0, &vec![0; SIZE]);
        for (table, next) in [(PML4, PDPT), (PDPT, DIRECTORY), (DIRECTORY, PAGE_TABLE)] {
            self.poke64(table, next | 7);
        }
        for page in 0..512 {
            self.poke64(PAGE_TABLE + 8 * page, (page * PAGE) | 7);
        }
        let descriptors = [
            (0x08, 0x00af_9b00_0000_ffff),
            (0x10, 0x00cf_9300_0000_ffff),
            (0x18, 0x00cf_9b00_0000_ffff),
            (0x20, 0x0000_9b01_0000_ffff),
            (0x28, 0x0000_9304_0000_ffff),
            (0x30, 0x0000_8b00_6000_0067),
        ];
        for (selector, descriptor) in descriptors {
            self.poke64(GDT + selector, descriptor);
        }
        // IST1, and the stack of level 0 for 32-bit mode, which is not used: there is no change of level.
        self.poke64(TSS + 0x24, EXCEPTION_STACK);
        for vector in 0..32 {
            let handler = HANDLERS + vector * 16;
            if long {
                self.poke64(
                    IDT + vector * 16,
                    (handler & 0xffff) | 0x8 << 16 | 0x8e01 << 32 | (handler >> 16) << 48,
                );
            } else {
                self.poke64(
                    IDT + vector * 8,
                    (handler & 0xffff) | 0x18 << 16 | 0x8e00 << 32 | (handler >> 16) << 48,
                );
            }
        }
        self.poke(HANDLERS, &[END; 0x200]);
    }

    /// Fills a data page's bytes from `offset` on.
    pub fn fill(&mut self, area: Area, offset: u64, bytes: &[u8]) {
        self.poke(area.page() + offset, bytes);
        let start = (area as u64 * PAGE + offset) as usize;
        self.devices[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// A data page, in RAM or in the device that took its place.
    pub fn bytes(&self, area: Area, way: Way) -> Vec<u8> {
        if is_device(way, area) {
            let start = (area as u64 * PAGE) as usize;
            self.devices[start..start + PAGE as usize].to_vec()
        } else {
            self.peek(area.page(), PAGE as usize)
        }
    }

    /// What a data page holds where the instruction has not written: 0 if it is as it was before.
    pub fn background(&self, area: Area) -> u8 {
        if self.scrambled.contains(&area) { SCRAMBLED } else { 0 }
    }

    /// Makes a data page read-only.
    pub fn protect(&mut self, area: Area) {
        let page = area.page() / PAGE;
        self.poke64(PAGE_TABLE + 8 * page, (page * PAGE) | 5);
    }

    /// Runs `code` from `cpu` until it is over: its successor has been reached, or the handler of its fault. What it
    /// has read is overwritten while it waits if `scramble` says so: not for a repeated instruction, which reads itself
    /// again.
    pub fn run(&mut self, code: &[u8], cpu: &Cpu, way: Way, scramble: bool) -> End {
        let code_at = cpu.segments[Seg::Cs].base + cpu.rip;
        self.poke(code_at & !(PAGE - 1), &[END; PAGE as usize]);
        self.poke(code_at, code);
        if cpu.view.is_ia32e() {
            for area in Area::ALL.into_iter().filter(|area| is_device(way, *area)) {
                self.poke64(PAGE_TABLE + 8 * (area.page() / PAGE), area.device() | 7);
            }
        }
        let mut start = cpu.clone();
        if way == Way::Careful {
            start.flags = (u64::from(start.flags) | TF).into();
        }
        let stack = self.peek(STACK_PAGE, PAGE as usize);
        self.emulator.set_cpu(start);
        let mut requests = Vec::new();
        let mut entry = Entry::Resume;
        // A repeated instruction makes many requests, but not endlessly many.
        for _ in 0..10_000 {
            match self
                .emulator
                .run(entry)
                .expect("re-execution sees what the first pass saw")
            {
                Exit::Request(request) if request.space == Space::Port && request.address == u64::from(END) => {
                    self.emulator.cancel();
                    return self.end(way, requests, &stack);
                }
                Exit::Request(request) => {
                    let value = match request.element(0) {
                        Some(first) => self.answer_element(request, first, &mut requests),
                        None => {
                            requests.push((request.address, request.size, request.direction));
                            self.answer(request)
                        }
                    };
                    if scramble && request.direction == Direction::Read {
                        self.scramble(code_at, way);
                    }
                    entry = Entry::Answer(Answer {
                        id: request.id,
                        reply: Reply::Value(value),
                    });
                }
                exit => panic!(
                    "{exit:?} at {:#x}: {:?}",
                    self.emulator.cpu().rip,
                    self.emulator.cpu().event
                ),
            }
        }
        panic!("the instruction does not end");
    }

    /// Moves the first element of a batch and leaves the rest for further requests.
    fn answer_element(
        &mut self,
        batch: Request,
        (address, guest): (u64, u64),
        requests: &mut Vec<(u64, u8, Direction)>,
    ) -> u64 {
        let size = usize::from(batch.size);
        let reads = matches!(batch.direction, Direction::ReadTo { .. });
        let mut word = [0; 8];
        let direction = if reads {
            Direction::Read
        } else {
            word[..size].copy_from_slice(&self.peek(guest, size));
            Direction::Write(u64::from_le_bytes(word))
        };
        requests.push((address, batch.size, direction));
        let value = self.answer(Request {
            address,
            direction,
            ..batch
        });
        if reads {
            self.poke(guest, &value.to_le_bytes()[..size]);
        }
        1
    }

    fn answer(&mut self, request: Request) -> u64 {
        let offset = request.address.wrapping_sub(DEVICES) as usize;
        let size = usize::from(request.size);
        let mut word = [0; 8];
        match (request.space, request.direction) {
            (Space::Memory, Direction::Read) => word[..size].copy_from_slice(&self.devices[offset..offset + size]),
            (Space::Memory, Direction::Write(value)) => {
                self.devices[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
            // Every port reads as its own number.
            (Space::Port, Direction::Read) => word[..size].fill(request.address as u8),
            (Space::Port, Direction::Write(_)) => {}
            other => panic!("unexpected request {other:?}"),
        }
        u64::from_le_bytes(word)
    }

    /// Overwrites the instruction with its end, the page tables that lead to the data pages, and those data pages that
    /// have been read: the ones before the device's, in the order of [`Area::ALL`].
    fn scramble(&mut self, code_at: u64, way: Way) {
        self.poke(code_at & !(PAGE - 1), &[END; PAGE as usize]);
        for area in Area::ALL {
            self.poke64(PAGE_TABLE + 8 * (area.page() / PAGE), 0);
        }
        if let Way::Late(device) = way {
            for area in Area::ALL.into_iter().take_while(|area| *area != device) {
                self.poke(area.page(), &[SCRAMBLED; PAGE as usize]);
                self.scrambled.push(area);
            }
        }
    }

    /// Undoes what led from the instruction to the end.
    fn end(&mut self, way: Way, requests: Vec<(u64, u8, Direction)>, stack: &[u8]) -> End {
        let mut cpu = self.emulator.cpu().clone();
        let handler = cpu.rip.wrapping_sub(HANDLERS);
        let from_handler = handler < 0x200 && cpu.segments[Seg::Cs].base == 0;
        let mut fault = None;
        cpu.rip = cpu.rip.wrapping_sub(2);
        if from_handler {
            let vector = ((handler - 2) / 16) as u8;
            let has_code = matches!(vector, 8 | 10..=14 | 17);
            let long = cpu.view.is_long();
            let width = if long { 8 } else { 4 };
            let frame = if long {
                cpu.gpr.get(4)
            } else {
                (cpu.segments[Seg::Ss].base + cpu.gpr.get(4)) & 0xffff_ffff
            };
            let mut at = frame;
            let mut pop = || {
                let bytes = self.peek(at, width);
                at += width as u64;
                bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
            };
            let code = has_code.then(|| pop() as u16);
            let (rip, _, flags) = (pop(), pop(), pop());
            cpu.rip = rip;
            cpu.flags = (flags & !TF & !RF).into();
            cpu.gpr.set(
                4,
                if long {
                    pop()
                } else {
                    cpu.gpr.get(4).wrapping_add(if has_code { 16 } else { 12 })
                },
            );
            fault = Some((vector, code));
            if !long {
                // The frame lies where the stack had not grown to.
                let start = (frame - STACK_PAGE) as usize;
                self.poke(frame, &stack[start..][..if has_code { 16 } else { 12 }]);
            }
        }
        if way == Way::Careful {
            assert!(fault.is_some(), "a single step ends in #DB");
            fault.take_if(|fault| fault.0 == 1);
        }
        End { cpu, fault, requests }
    }
}

const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;

fn is_device(way: Way, area: Area) -> bool {
    way == Way::AllLate || way == Way::Late(area)
}
