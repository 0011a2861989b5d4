//! Guests that make no sense: random code, registers and descriptors in every mode, with a world that answers at random.
//!
//! Whatever such a guest does, the CPU faults, halts or goes on as a processor would: it does not panic, it owes no
//! error to its owner, and it keeps listening to who calls for its attention. `HOSTILE_GUESTS=N` runs N of them, and
//! `HOSTILE_SEED=N` begins at another place; a failure names the seed of the guest that caused it.

mod tier;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use reprise_emulator::cpu::{Attributes, Cr0, Cr4, Efer, Seg, Segment, TableRegister, gpr};
use reprise_emulator::cpuid::{CpuidEntry, CpuidRegisters};
use reprise_emulator::{
    Answer, Attention, Cpu, CpuidTable, Emulator, Entry, Error, Event, Exit, Host, Model, Ram, Reply, Request, Space,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Guests of a run that asks for no number.
const GUESTS: u64 = 2000;
/// Exits that one guest is good for; most end earlier.
const EXITS: usize = 400;
/// Calls for its attention that one guest survives.
const CALLS: u32 = 3;
/// Longer than any guest takes between two exits, unless it hangs.
const FOREVER: Duration = Duration::from_secs(120);

const RAM: u64 = 0x10_0000;
const CODE: u64 = 0x1_0000;
/// The interrupt table, its handlers, descriptors and a task state.
const IDT: u64 = 0x2_0000;
const HANDLERS: u64 = 0x2_4000;
const GDT: u64 = 0x2_6000;
const TSS: u64 = 0x2_7000;
/// Top of the stack that handlers of 64-bit mode use.
const IST: u64 = 0x3_0000;
/// Identity paging: four-level, and two-level for 32-bit mode.
const PML4: u64 = 0x4_0000;
const DIRECTORY: u64 = 0x4_3000;
const HLT: u8 = 0xf4;

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 8) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A number of the kind that finds mistakes: small, an edge, an address, or anything.
    fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(64),
            1 => self.below(64).wrapping_neg(),
            2 => 1_u64 << self.below(64),
            3 => (1_u64 << self.below(64)).wrapping_sub(1),
            4 | 5 => self.below(RAM + 0x1000),
            6 => (self.below(RAM) & !0xfff).wrapping_sub(self.below(16)),
            _ => self.next(),
        }
    }

    /// One instruction, or what may be the start of one.
    fn instruction(&mut self, code: &mut Vec<u8>) {
        for _ in 0..[0, 0, 0, 1, 1, 2][self.below(6) as usize] {
            let prefixes = [
                0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x48, 0x41, 0x44, 0x4f, 0x66,
            ];
            code.push(prefixes[self.below(16) as usize]);
        }
        match self.below(8) {
            0..4 => code.push(self.next() as u8),
            4..7 => code.extend([0x0f, self.next() as u8]),
            _ => code.extend([
                0x0f,
                [0x38, 0x3a, 0x01, 0xae, 0xc7][self.below(5) as usize],
                self.next() as u8,
            ]),
        }
        let modrm = self.next() as u8;
        code.push(if self.one_in(2) { modrm | 0xc0 } else { modrm });
        let immediate = self.number().to_le_bytes();
        code.extend(&immediate[..[0, 0, 1, 1, 2, 4, 5, 8][self.below(8) as usize]]);
    }
}

struct Chance;

impl Host for Chance {
    fn tsc(&self) -> u64 {
        0x1122_3344_5566_7788
    }

    fn random(&self) -> u64 {
        0x99aa_bbcc_ddee_ff00
    }
}

/// A processor that announces all it can be asked for.
fn cpuid() -> CpuidTable {
    let entry = |leaf, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry {
        leaf,
        subleaf: Some(0),
        registers: CpuidRegisters { eax, ebx, ecx, edx },
    };
    CpuidTable::new(vec![
        entry(0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(1, [0x00a0_0f11, 0, !(1 << 12 | 1 << 28 | 1 << 29), !0]),
        entry(7, [0, 1 | 1 << 7 | 1 << 10 | 1 << 20, 1 << 2 | 1 << 16 | 1 << 22, 0]),
        entry(0xd, [7, 832, 832, 0]),
        entry(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0001, [0, 0, !0, !0]),
        entry(0x8000_0008, [0x3030, 0, 0, 0]),
    ])
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Real,
    Protected16,
    Protected32,
    Paged32,
    Virtual8086,
    Compatibility,
    Long,
    LongUser,
}

const MODES: [Mode; 8] = [
    Mode::Real,
    Mode::Protected16,
    Mode::Protected32,
    Mode::Paged32,
    Mode::Virtual8086,
    Mode::Compatibility,
    Mode::Long,
    Mode::LongUser,
];

const CODE16: u16 = 0x08;
const DATA: u16 = 0x10;
const CODE32: u16 = 0x18;
const CODE64: u16 = 0x20;
const USER_CODE32: u16 = 0x2b;
const USER_DATA: u16 = 0x33;
const USER_CODE64: u16 = 0x3b;
const TASK: u16 = 0x40;

fn descriptor(attributes: u64, limit: u64) -> u64 {
    limit & 0xffff | (limit >> 16 & 0xf) << 48 | (attributes & 0xf0ff) << 40
}

struct Guest {
    emulator: Emulator,
    ram: Arc<Ram>,
}

impl Guest {
    fn new(mode: Mode, dice: &mut Dice) -> Guest {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        let ram = Arc::new(Ram::new(memory).unwrap());
        let mut emulator = Emulator::new(
            Cpu::reset(),
            ram.clone(),
            Arc::new(Chance),
            Arc::new(Model::new()),
            Arc::new(cpuid()),
        );
        tier::set(&mut emulator);
        let mut guest = Guest { emulator, ram };
        // Who runs away halts.
        guest.put(0, &vec![HLT; RAM as usize]);
        guest.tables(mode);
        let mut code = Vec::new();
        while code.len() < 400 {
            dice.instruction(&mut code);
        }
        guest.put(CODE, &code);
        guest.enter(mode, dice);
        guest
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn word(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    /// Handlers that go on behind the first byte of what faulted.
    fn tables(&mut self, mode: Mode) {
        let long = matches!(mode, Mode::Long | Mode::LongUser | Mode::Compatibility);
        for (i, attributes) in [0, 0x009b, 0xc093, 0xc09b, 0xa09b, 0xc0fb, 0xc0f3, 0xa0fb]
            .iter()
            .enumerate()
        {
            let limit = if attributes & 0x8000 != 0 { 0xf_ffff } else { 0xffff };
            let value = if *attributes == 0 {
                0
            } else {
                descriptor(*attributes, limit)
            };
            self.word(GDT + 8 * i as u64, value);
        }
        self.word(GDT + u64::from(TASK), descriptor(0x89, 0xff) | TSS << 16);
        self.word(GDT + u64::from(TASK) + 8, 0);
        self.put(TSS, &[0; 0x100]);
        if long {
            self.word(TSS + 4, IST - 0x1000);
            self.word(TSS + 0x24, IST);
        } else {
            self.word(TSS + 4, IST | u64::from(DATA) << 32);
        }
        for vector in 0..256_u64 {
            let handler = HANDLERS + 16 * vector;
            let has_code = matches!(vector, 8 | 10..=14 | 17 | 21);
            let mut bytes = Vec::new();
            if mode == Mode::Real {
                // push bp; mov bp, sp; inc word [bp + 2]; pop bp; iret
                bytes.extend([0x55, 0x89, 0xe5, 0xff, 0x46, 0x02, 0x5d, 0xcf]);
                let at = handler - HANDLERS + 0x5000;
                self.put(at, &bytes);
                self.put(4 * vector, &(at as u32).to_le_bytes());
                continue;
            }
            if has_code {
                let pop: &[u8] = if long { &[0x48, 0x83, 0xc4, 8] } else { &[0x83, 0xc4, 4] };
                bytes.extend(pop); // add (r|e)sp, size of the error code
            }
            // inc (q|d)word [sp]; iret
            let skip: &[u8] = if long {
                &[0x48, 0xff, 0x04, 0x24, 0x48, 0xcf]
            } else {
                &[0xff, 0x04, 0x24, 0xcf]
            };
            bytes.extend(skip);
            self.put(handler, &bytes);
            let selector = u64::from(if long { CODE64 } else { CODE32 });
            let gate = handler & 0xffff | selector << 16 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
            if long {
                self.word(IDT + 16 * vector, gate | 1 << 32);
                self.word(IDT + 16 * vector + 8, 0);
            } else {
                self.word(IDT + 8 * vector, gate);
            }
        }
        self.word(PML4, PML4 + 0x1007);
        self.word(PML4 + 0x1000, PML4 + 0x2007);
        for i in 0..512 {
            self.word(PML4 + 0x2000 + 8 * i, i << 21 | 0x87);
        }
        for i in 0..1024_u64 {
            self.put(DIRECTORY + 4 * i, &((i << 22 | 0x87) as u32).to_le_bytes());
        }
    }

    fn enter(&mut self, mode: Mode, dice: &mut Dice) {
        let (mut cr0, mut cr4, mut efer, mut cr3) = (Cr0::ET | Cr0::NE, Cr4::OSFXSR | Cr4::OSXMMEXCPT, 0, 0);
        let mut flags = 2;
        let (cs, cs_attributes, data, data_attributes) = match mode {
            Mode::Real => (CODE as u16 >> 4, 0x9b, 0, 0x93),
            Mode::Virtual8086 => (CODE as u16 >> 4, 0xf3, 0, 0xf3),
            Mode::Protected16 => (CODE16, 0x9b, DATA, 0xc093),
            Mode::Protected32 | Mode::Paged32 => (CODE32, 0xc09b, DATA, 0xc093),
            Mode::Compatibility => (USER_CODE32, 0xc0fb, USER_DATA, 0xc0f3),
            Mode::Long => (CODE64, 0xa09b, DATA, 0xc093),
            Mode::LongUser => (USER_CODE64, 0xa0fb, USER_DATA, 0xc0f3),
        };
        if mode != Mode::Real {
            cr0 |= Cr0::PE;
        }
        match mode {
            Mode::Real | Mode::Protected16 | Mode::Protected32 => (),
            Mode::Paged32 | Mode::Virtual8086 => {
                cr0 |= Cr0::PG;
                cr4 |= Cr4::PSE;
                cr3 = DIRECTORY;
            }
            Mode::Compatibility | Mode::Long | Mode::LongUser => {
                cr0 |= Cr0::PG | Cr0::WP;
                cr4 |= Cr4::PAE | Cr4::OSXSAVE | Cr4::FSGSBASE;
                efer = Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE;
                cr3 = PML4;
            }
        }
        if mode == Mode::Virtual8086 {
            flags |= 1 << 17 | 3 << 12;
        }
        let numbers: Vec<u64> = (0..16).map(|_| dice.number()).collect();
        let wide = matches!(mode, Mode::Long | Mode::LongUser);
        if dice.one_in(8) {
            flags |= dice.next() & 0x0004_0fd5; // also TF: single steps
        } else {
            flags |= dice.next() & 0x0004_0ed5;
        }
        self.emulator.change(|cpu| {
            cpu.cr0 = Cr0(cr0);
            cpu.cr3 = cr3;
            cpu.cr4 = Cr4(cr4);
            cpu.efer = Efer(efer);
            cpu.flags.set_bits(flags);
            let old = matches!(mode, Mode::Real | Mode::Virtual8086);
            let segment = |selector: u16, attributes| Segment {
                limit: 0xffff,
                base: u64::from(selector) << 4,
                ..Segment::flat(selector, Attributes(attributes))
            };
            let make = |selector, attributes| {
                if old {
                    segment(selector, attributes)
                } else {
                    Segment::flat(selector, Attributes(attributes))
                }
            };
            for seg in [Seg::Ss, Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
                cpu.segments[seg] = make(data, data_attributes);
            }
            cpu.segments[Seg::Cs] = make(cs, cs_attributes);
            cpu.gdtr = TableRegister { base: GDT, limit: 0x4f };
            cpu.idtr = TableRegister {
                base: if mode == Mode::Real { 0 } else { IDT },
                limit: 0xfff,
            };
            cpu.tr = Segment {
                selector: TASK,
                attributes: Attributes(0x8b),
                limit: 0xff,
                base: TSS,
            };
            for (i, number) in numbers.iter().enumerate() {
                let mask = if wide { u64::MAX } else { u64::from(u32::MAX) };
                cpu.gpr.set(i as u8, if i > 7 && !wide { 0 } else { number & mask });
            }
            // A stack that works, mostly.
            if !numbers[4].is_multiple_of(4) {
                cpu.gpr.set(gpr::RSP, if old { 0xf000 } else { IST - 0x2000 });
            }
            cpu.rip = if old { 0 } else { CODE };
        });
    }

    /// Lives until it halts for good, dies, is interrupted, or has had its turn.
    fn live(&mut self, dice: &mut Dice) -> Result<(), Error> {
        let (mut entry, mut calls) = (Entry::Resume, 0);
        for _ in 0..EXITS {
            entry = match self.emulator.run(entry)? {
                Exit::Request(request) => {
                    if dice.one_in(64) {
                        // The owner changes its mind, as a reset does; an interrupt then meets a clean boundary.
                        self.emulator.cancel();
                        Entry::Resume
                    } else {
                        Entry::Answer(answer(request, dice))
                    }
                }
                Exit::Halt if dice.one_in(4) => {
                    self.emulator.inject(Event::external(dice.next() as u8));
                    Entry::Resume
                }
                // Once is not enough: a guest's first blocks may meet the call that was meant for its predecessor.
                Exit::Attention if calls < CALLS => {
                    calls += 1;
                    Entry::Resume
                }
                Exit::Halt | Exit::Shutdown | Exit::Attention | Exit::Elsewhere => return Ok(()),
            };
        }
        Ok(())
    }
}

fn answer(request: Request, dice: &mut Dice) -> Answer {
    let reply = if request.space == Space::Msr && dice.one_in(4) {
        Reply::Refused
    } else {
        let value = dice.number();
        let bits = 8 * u32::from(request.size);
        Reply::Value(if bits < 64 { value & ((1 << bits) - 1) } else { value })
    };
    Answer { id: request.id, reply }
}

/// Names the guest whose test panics.
struct Named(u64, Mode);

impl Drop for Named {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("HOSTILE_SEED={} HOSTILE_GUESTS=1, {:?}", self.0, self.1);
        }
    }
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().expect(name))
}

/// Calls for the attention of whichever guest lives, so that none runs for ever, and ends the test if one does not listen.
struct Caller {
    attention: Mutex<Option<Arc<Attention>>>,
    guests: AtomicU64,
    over: AtomicBool,
}

impl Caller {
    fn call(&self) {
        let mut seen = (0, Instant::now());
        while !self.over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_micros(500));
            let guests = self.guests.load(Ordering::Relaxed);
            if guests != seen.0 {
                seen = (guests, Instant::now());
            }
            if seen.1.elapsed() > FOREVER {
                eprintln!("a guest hangs: HOSTILE_SEED={guests} HOSTILE_GUESTS=1");
                std::process::abort();
            }
            if let Some(attention) = self.attention.lock().unwrap().as_ref() {
                attention.call();
            }
        }
    }
}

struct Over<'a>(&'a Caller);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_guest_that_makes_no_sense_harms_nobody() {
    let first = from_environment("HOSTILE_SEED", 1);
    let guests = from_environment("HOSTILE_GUESTS", GUESTS);
    let caller = Caller {
        attention: Mutex::new(None),
        guests: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    let mut executed = [0; MODES.len()];
    thread::scope(|scope| {
        scope.spawn(|| caller.call());
        let _over = Over(&caller);
        for seed in first..first + guests {
            let mode = (seed % MODES.len() as u64) as usize;
            let _named = Named(seed, MODES[mode]);
            // Neighbouring seeds must not make neighbouring guests, and none may be 0.
            let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let mut guest = Guest::new(MODES[mode], &mut dice);
            caller.guests.store(seed, Ordering::Relaxed);
            *caller.attention.lock().unwrap() = Some(guest.emulator.attention().clone());
            guest.live(&mut dice).unwrap();
            executed[mode] += guest.emulator.counters().instructions;
        }
    });
    for (mode, instructions) in MODES.iter().zip(executed) {
        assert!(
            guests < 100 || instructions > guests,
            "{mode:?} executed {instructions} instructions: it does not get going"
        );
    }
}
