//! A machine whose guest-physical pages are RAM or a device's, as a placement says, and whose devices answer when told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use reprise_emulator::cpuid::{CpuidEntry, CpuidRegisters};
use reprise_emulator::replay::Kind;
use reprise_emulator::{
    Answer, Cpu, CpuidTable, Direction, Emulator, Entry, Exit, Host, InFlight, Model, Ram, Reply, Request, Space,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::{self, PAGE, PAGES, PAGING, SIZE};
use crate::tier;

/// Which pages belong to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// None: nothing ever waits, but for ports and the like.
    Ram,
    /// Both pages of both operands.
    Operands,
    /// The first page of each operand: it crosses from a device into RAM.
    First,
    /// The second page of each operand: it crosses from RAM into a device.
    Second,
    /// One operand, and the stack.
    OneAndStack,
    /// Stacks.
    Stack,
    /// Descriptor tables and task state.
    Tables,
    /// Instructions.
    Code,
    /// Page tables.
    Paging,
    /// All of them.
    Everything,
}

impl Placement {
    /// Those in which some memory is RAM and something waits.
    pub const MIXED: [Placement; 8] = [
        Placement::Operands,
        Placement::First,
        Placement::Second,
        Placement::OneAndStack,
        Placement::Stack,
        Placement::Tables,
        Placement::Code,
        Placement::Paging,
    ];

    pub fn devices(self) -> [bool; PAGES] {
        let pages: Vec<usize> = match self {
            Placement::Ram => Vec::new(),
            Placement::Operands => [layout::pages_of(layout::M), layout::pages_of(layout::D)].concat(),
            Placement::First => [layout::M, layout::D]
                .map(|region| layout::pages_of(region)[0])
                .to_vec(),
            Placement::Second => [layout::M, layout::D]
                .map(|region| layout::pages_of(region)[1])
                .to_vec(),
            Placement::OneAndStack => [layout::pages_of(layout::D), layout::pages_of(layout::STACK)].concat(),
            Placement::Stack => [layout::pages_of(layout::STACK), layout::pages_of(layout::KERNEL)].concat(),
            Placement::Tables => layout::pages_of(layout::TABLES)[..6].to_vec(),
            Placement::Code => layout::pages_of(layout::CODE),
            Placement::Paging => PAGING.collect(),
            Placement::Everything => (0..PAGES).collect(),
        };
        let mut devices = [false; PAGES];
        for page in pages {
            devices[page] = true;
        }
        devices
    }
}

/// A clock that stands until it is set.
#[derive(Default)]
pub struct Clock {
    pub tsc: AtomicU64,
    pub random: AtomicU64,
}

impl Host for Clock {
    fn tsc(&self) -> u64 {
        self.tsc.load(Relaxed)
    }

    fn random(&self) -> u64 {
        self.random.load(Relaxed)
    }
}

/// What was asked, outside of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub space: Space,
    pub address: u64,
    pub size: u8,
    pub direction: Direction,
    /// The instruction has retired, and this is one of its stores.
    pub store: bool,
}

pub struct World {
    pub emulator: Emulator,
    pub ram: Arc<Ram>,
    pub clock: Arc<Clock>,
    devices: [bool; PAGES],
    /// What devices hold, by guest-physical address.
    held: Vec<u8>,
    /// How often each register was read that is not memory.
    reads: HashMap<(Space, u64), u64>,
    /// The same when the transaction began.
    reads_before: HashMap<(Space, u64), u64>,
    pub trace: Vec<Asked>,
    pub batches: Batches,
    /// Entries that an instruction had recorded when it asked for something, at most.
    pub largest: usize,
}

/// How a device takes many elements in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batches {
    /// Not at all.
    No,
    /// All but the last.
    Short,
    /// All.
    Whole,
}

fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| Arc::new(Model::new())).clone()
}

/// All control bits that there are.
pub fn cpuid() -> CpuidTable {
    let entry = |leaf, eax, ebx, ecx, edx| CpuidEntry {
        leaf,
        subleaf: None,
        registers: CpuidRegisters { eax, ebx, ecx, edx },
    };
    CpuidTable::new(vec![
        entry(0, 0xd, 0, 0, 0),
        entry(1, 0, 0, u32::MAX, u32::MAX),
        entry(7, 0, u32::MAX, u32::MAX, u32::MAX),
        entry(0xd, 0xe7, 2688, 2688, 0),
        entry(0x8000_0001, 0, 0, u32::MAX, u32::MAX),
    ])
}

impl World {
    pub fn new(placement: Placement) -> World {
        let devices = placement.devices();
        let mut ranges: Vec<(GuestAddress, usize)> = Vec::new();
        for page in (0..PAGES).filter(|page| !devices[*page]) {
            let start = page as u64 * PAGE;
            match ranges.last_mut() {
                Some((first, size)) if first.0 + *size as u64 == start => *size += PAGE as usize,
                _ => ranges.push((GuestAddress(start), PAGE as usize)),
            }
        }
        if ranges.is_empty() {
            // Where nobody goes.
            ranges.push((GuestAddress(1 << 40), PAGE as usize));
        }
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let ram = Arc::new(Ram::new(memory).unwrap());
        let clock = Arc::new(Clock::default());
        let mut emulator = Emulator::new(Cpu::reset(), ram.clone(), clock.clone(), model(), Arc::new(cpuid()));
        tier::set(&mut emulator);
        World {
            emulator,
            ram,
            clock,
            devices,
            held: vec![0; SIZE],
            reads: HashMap::new(),
            reads_before: HashMap::new(),
            trace: Vec::new(),
            batches: Batches::Whole,
            largest: 0,
        }
    }

    /// The same machine in another process: what is saved of `other` is all there is. Its CPU may be in flight.
    pub fn take_over(&mut self, other: &World) {
        let saved = (other.emulator.cpu(), other.emulator.in_flight());
        let saved = serde_json::to_vec(&saved).unwrap();
        let (cpu, in_flight): (Cpu, Option<InFlight>) = serde_json::from_slice(&saved).unwrap();
        self.load(&cpu, &other.image());
        self.emulator.restore(cpu, in_flight.as_ref()).unwrap();
        self.reads.clone_from(&other.reads);
        self.reads_before.clone_from(&other.reads_before);
        self.clock.tsc.store(other.clock.tsc.load(Relaxed), Relaxed);
        self.clock.random.store(other.clock.random.load(Relaxed), Relaxed);
        self.trace.clone_from(&other.trace);
        self.batches = other.batches;
    }

    /// Begins anew.
    pub fn load(&mut self, cpu: &Cpu, image: &[u8]) {
        self.finish();
        self.emulator.set_cpu(cpu.clone());
        self.held.copy_from_slice(image);
        for page in 0..PAGES {
            if !self.devices[page] {
                let at = page * PAGE as usize;
                self.put(at as u64, &image[at..at + PAGE as usize]);
            }
        }
        self.reads.clear();
        self.reads_before.clear();
        self.trace.clear();
        self.clock.tsc.store(1000, Relaxed);
        self.clock.random.store(4, Relaxed);
        // Nobody has called.
        self.emulator.attention().call();
        assert_eq!(self.enter(Entry::Resume), Exit::Attention);
    }

    /// A test that gave up may have left stores behind.
    fn finish(&mut self) {
        self.emulator.cancel();
        while self.emulator.is_in_flight() {
            self.emulator.attention().call();
            let _ = self.emulator.run(Entry::Resume);
            self.emulator.cancel();
        }
    }

    /// Writes RAM as another CPU or a device does.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(at)).unwrap();
        self.ram.written_by_host(at, bytes.len() as u64);
    }

    /// Writes RAM as another CPU does, and into devices where there is none.
    pub fn poke(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            if self.is_ram(at) {
                self.put(at, &[*byte]);
            } else {
                self.held[at as usize] = *byte;
            }
        }
    }

    pub fn is_ram(&self, at: u64) -> bool {
        (at as usize) < SIZE && !self.devices[(at / PAGE) as usize]
    }

    pub fn byte(&self, at: u64) -> u8 {
        if self.is_ram(at) {
            self.ram.read(at, 1).unwrap() as u8
        } else {
            self.held[at as usize]
        }
    }

    /// All memory, RAM and devices.
    pub fn image(&self) -> Vec<u8> {
        let mut image = self.held.clone();
        for page in 0..PAGES {
            if !self.devices[page] {
                let at = page * PAGE as usize;
                let bytes = &mut image[at..at + PAGE as usize];
                self.ram.memory().read_slice(bytes, GuestAddress(at as u64)).unwrap();
            }
        }
        image
    }

    pub fn enter(&mut self, entry: Entry) -> Exit {
        let exit = self.emulator.run(entry);
        self.largest = self.largest.max(self.emulator.record().len());
        exit.expect("a later pass sees what the first one saw")
    }

    /// Does what is asked; the answer.
    pub fn serve(&mut self, request: Request) -> Entry {
        let value = match request.direction {
            Direction::ReadTo { count, .. } | Direction::WriteFrom { count, .. } => self.serve_batch(&request, count),
            Direction::Read | Direction::Write(_) => self.serve_one(&request, self.emulator.record().is_empty()),
        };
        let id = request.id;
        let reply = Reply::Value(value);
        Entry::Answer(Answer { id, reply })
    }

    fn serve_batch(&mut self, batch: &Request, count: u32) -> u64 {
        let moved = match self.batches {
            Batches::No => 0,
            Batches::Short => count - 1,
            Batches::Whole => count,
        };
        let to_guest = matches!(batch.direction, Direction::ReadTo { .. });
        for i in 0..moved {
            let (address, guest) = batch.element(i).unwrap();
            let size = batch.size;
            let direction = match to_guest {
                true => Direction::Read,
                false => Direction::Write(self.ram.read(guest, size).unwrap()),
            };
            let element = Request {
                address,
                direction,
                ..*batch
            };
            let value = self.serve_one(&element, true);
            if to_guest {
                self.put(guest, &value.to_le_bytes()[..usize::from(size)]);
            }
        }
        moved.into()
    }

    fn serve_one(&mut self, request: &Request, retired: bool) -> u64 {
        let Request {
            space,
            address,
            size,
            direction,
            ..
        } = *request;
        self.trace.push(Asked {
            space,
            address,
            size,
            direction,
            store: retired && matches!(direction, Direction::Write(_)),
        });
        let width = usize::from(size);
        let inside = space == Space::Memory && address.saturating_add(size.into()) <= SIZE as u64;
        match direction {
            Direction::Read if inside => {
                let mut bytes = [0; 8];
                bytes[..width].copy_from_slice(&self.held[address as usize..][..width]);
                u64::from_le_bytes(bytes)
            }
            Direction::Write(value) if inside => {
                self.held[address as usize..][..width].copy_from_slice(&value.to_le_bytes()[..width]);
                0
            }
            Direction::Read if space == Space::Memory => u64::MAX,
            Direction::Read => {
                let count = self.reads.entry((space, address)).or_default();
                *count += 1;
                // Another answer each time, so that who asks twice is found out.
                let value = count.wrapping_mul(0x0101_0101_0101_0101).wrapping_add(address);
                match space {
                    Space::TaskPriority => value & 0xf,
                    _ => value,
                }
            }
            _ => 0,
        }
    }

    /// A transaction begins.
    pub fn forget_reads_before_now(&mut self) {
        self.reads_before.clone_from(&self.reads);
    }

    /// The transaction begins once more.
    pub fn rewind_reads(&mut self) {
        self.reads.clone_from(&self.reads_before);
    }

    /// Runs to the end, answering at once.
    pub fn run(&mut self) -> Exit {
        let mut entry = Entry::Resume;
        for _ in 0..20_000 {
            match self.enter(entry) {
                Exit::Request(request) => entry = self.serve(request),
                Exit::Attention => entry = Entry::Resume,
                exit => return exit,
            }
        }
        panic!("there is no end, at {:#x}", self.emulator.cpu().rip);
    }

    /// What the instruction in flight has read, in bytes, but for what a device that holds everything is not asked for.
    pub fn position(&self) -> usize {
        let record = self.emulator.record().iter();
        let asked = record.filter(|entry| {
            !matches!(
                entry.question.kind,
                Kind::PageTableUpdate | Kind::Batch | Kind::Clock | Kind::Chance
            )
        });
        asked.map(|entry| usize::from(entry.question.width)).sum()
    }
}
