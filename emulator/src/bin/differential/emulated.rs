//! The emulator in the place of the child: the same memory at the same addresses, privilege level 3, descriptor tables as
//! Linux has them, and handlers that stop at once.

use std::sync::Arc;

use reprise_emulator::cpu::{Attributes, Cr0, Cr4, Efer, Flags, Seg, Segment, TableRegister, fpu};
use reprise_emulator::cpuid::{CpuidEntry, CpuidRegisters};
use reprise_emulator::translate::Translation;
use reprise_emulator::{Counters, Cpu, CpuidTable, Emulator, Entry, Exit, Host, Model, Ram};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::program::Image;
use crate::sandbox::code_base;
use crate::state::{
    CODE, CODE_PAGES, DATA, FILLER, Input, LDT, NO_VECTOR, Output, PAGE, READ_ONLY, STACK, State, Template, WRITABLE,
};

/// Guest-physical pages.
mod physical {
    pub const PML4: u64 = 0x1000;
    pub const LOW_PDPT: u64 = 0x2000;
    pub const LOW_DIRECTORY: u64 = 0x3000;
    pub const CODE_TABLE: u64 = 0x4000;
    pub const DATA_TABLE: u64 = 0x5000;
    pub const STACK_TABLE: u64 = 0x6000;
    pub const HIGH_PDPT: u64 = 0x7000;
    pub const HIGH_DIRECTORY: u64 = 0x8000;
    pub const HIGH_TABLE: u64 = 0x9000;
    pub const IDT: u64 = 0xa000;
    pub const GDT: u64 = 0xb000;
    pub const LDT: u64 = 0xb800;
    pub const TSS: u64 = 0xc000;
    pub const HANDLERS: u64 = 0xd000;
    /// Ends where the exception stack begins, downwards.
    pub const EXCEPTION_STACK_END: u64 = 0xf000;
    pub const CODE: u64 = 0x10000;
    pub const READ_ONLY: u64 = 0x12000;
    pub const WRITABLE: [u64; 3] = [0x13000, 0x14000, 0x15000];
    pub const SIZE: usize = 0x2_0000;

    /// Where the four bytes at a linear address are, if a case can write them.
    pub fn writable(linear: u64) -> Option<u64> {
        let (page, offset) = (linear & !0xfff, linear & 0xfff);
        let i = super::WRITABLE.iter().position(|own| *own == page)?;
        (offset <= 0xffc).then(|| WRITABLE[i] + offset)
    }
}

/// Where the supervisor's pages are mapped.
const HIGH: u64 = 0xffff_8000_0000_0000;
/// Instructions until a case is over at the latest: those that repeat end in a fault long before.
const PATIENCE: u64 = 100_000;
/// The lowest address of which Linux says that all of it is present, since it does not tell users what is.
const TASK_SIZE_MAX: u64 = 0x7fff_ffff_f000;

/// TF.
pub const TF: u64 = 1 << 8;

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
    /// With the flags as given: by the careful way alone if TF is set.
    Given,
    /// One instruction with TF clear: by the fast way if that can do it.
    Fast,
}

/// The emulated machine.
pub struct Emulated {
    memory: GuestMemoryMmap<()>,
    ram: Arc<Ram>,
    emulator: Emulator,
    template: Box<Template>,
    page: Box<[u8; PAGE]>,
    start: Cpu,
    /// What the CPU had done when it was asked.
    counted: Counters,
}

impl Emulated {
    /// A machine that executes what `model` has. `processor` is the limit of the descriptor in which Linux keeps the
    /// processor's number.
    pub fn new(model: Arc<Model>, processor: u32) -> Emulated {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), physical::SIZE)]).expect("a little memory");
        let ram = Arc::new(Ram::new(memory.clone()).expect("one small region"));
        let start = start();
        let cpuid = Arc::new(CpuidTable::new(cpuid_entries()));
        let emulator = Emulator::new(start.clone(), ram.clone(), Arc::new(Still), model, cpuid);
        let mut machine = Emulated {
            memory,
            ram,
            emulator,
            template: Box::new([[0; PAGE]; 4]),
            page: Box::new([0; PAGE]),
            start,
            counted: Counters::default(),
        };
        machine.write_tables(processor);
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

    fn write_tables(&mut self, processor: u32) {
        const USER: u64 = 4;
        const WRITE: u64 = 2;
        const PRESENT: u64 = 1;
        const NO_EXECUTE: u64 = 1 << 63;
        let all = USER | WRITE | PRESENT;
        self.poke64(physical::PML4, physical::LOW_PDPT | all);
        self.poke64(physical::LOW_PDPT, physical::LOW_DIRECTORY | all);
        for (linear, table) in [
            (CODE, physical::CODE_TABLE),
            (DATA, physical::DATA_TABLE),
            (STACK, physical::STACK_TABLE),
        ] {
            self.poke64(physical::LOW_DIRECTORY + 8 * (linear >> 21), table | all);
        }
        for page in 0..CODE_PAGES as u64 {
            let entry = (physical::CODE + page * PAGE as u64) | USER | PRESENT;
            self.poke64(physical::CODE_TABLE + 8 * page, entry);
        }
        self.poke64(physical::DATA_TABLE, physical::WRITABLE[0] | all | NO_EXECUTE);
        self.poke64(physical::DATA_TABLE + 8, physical::WRITABLE[1] | all | NO_EXECUTE);
        self.poke64(
            physical::DATA_TABLE + 16,
            physical::READ_ONLY | USER | PRESENT | NO_EXECUTE,
        );
        self.poke64(physical::STACK_TABLE, physical::WRITABLE[2] | all | NO_EXECUTE);
        self.poke64(physical::PML4 + 8 * 256, physical::HIGH_PDPT | WRITE | PRESENT);
        self.poke64(physical::HIGH_PDPT, physical::HIGH_DIRECTORY | WRITE | PRESENT);
        self.poke64(physical::HIGH_DIRECTORY, physical::HIGH_TABLE | WRITE | PRESENT);
        for page in 0..(physical::SIZE / PAGE) as u64 {
            self.poke64(physical::HIGH_TABLE + 8 * page, (page * PAGE as u64) | WRITE | PRESENT);
        }
        for vector in 0..256 {
            let handler = HIGH + physical::HANDLERS + vector;
            // Only INT3, INTO and the 32-bit system call can be called by users.
            let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
            let rights = 0x8e00 | dpl << 13;
            let low = handler & 0xffff | 0x10 << 16 | 1 << 32 | rights << 32 | (handler >> 16 & 0xffff) << 48;
            self.poke64(physical::IDT + vector * 16, low);
            self.poke64(physical::IDT + vector * 16 + 8, handler >> 32);
        }
        self.poke(physical::HANDLERS, &[0xf4; 256]);
        // No I/O map, and IST1.
        self.poke64(physical::TSS + 0x60, 0x68 << 48);
        self.poke64(physical::TSS + 0x24, HIGH + physical::EXCEPTION_STACK_END);
        let system = |base: u64, limit: u64, kind: u64| {
            limit | (base & 0xff_ffff) << 16 | (0x80 | kind) << 40 | (base >> 24 & 0xff) << 56
        };
        let ldt_limit = 8 * LDT.len() as u64 - 1;
        let tss = HIGH + physical::TSS;
        let ldt = HIGH + physical::LDT;
        let number = 0x0040_f500_0000_0000 | u64::from(processor & 0xffff) | u64::from(processor >> 16 & 0xf) << 48;
        let gdt = [
            0,
            0x00cf_9b00_0000_ffff,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0,
            system(tss, 0x67, 0xb),
            tss >> 32,
            system(ldt, ldt_limit, 2),
            ldt >> 32,
            0,
            0,
            0,
            number,
        ];
        for (i, descriptor) in gdt.into_iter().enumerate() {
            self.poke64(physical::GDT + 8 * i as u64, descriptor);
        }
        for (i, entry) in LDT.iter().enumerate() {
            self.poke64(physical::LDT + 8 * i as u64, entry.descriptor());
        }
        self.start.ldtr = Segment {
            selector: 0x50,
            attributes: Attributes(0x82),
            limit: ldt_limit as u32,
            base: ldt,
        };
        self.start.tr = Segment {
            selector: 0x40,
            attributes: Attributes(0x8b),
            limit: 0x67,
            base: tss,
        };
        self.poke(physical::CODE, &[FILLER; CODE_PAGES * PAGE]);
    }

    /// Translates what has been executed so often.
    ///
    /// # Panics
    /// If this host cannot.
    pub fn translate(&mut self, threshold: u8) {
        let translation = Translation {
            threshold,
            ..Translation::default()
        };
        self.emulator
            .set_translation(Some(translation))
            .expect("executable memory");
    }

    /// Executes everything by the careful way, or no longer.
    pub fn set_careful(&mut self, only: bool) {
        self.emulator.set_careful(only);
    }

    /// What the CPU has done since it was asked last.
    pub fn take_counters(&mut self) -> Counters {
        let now = self.emulator.counters();
        let before = core::mem::replace(&mut self.counted, now);
        Counters {
            instructions: now.instructions - before.instructions,
            translated: now.translated - before.translated,
            ..now
        }
    }

    /// Puts a program on the code pages.
    pub fn set_program(&mut self, image: &Image) {
        self.poke(physical::CODE, image);
        self.ram.written_by_host(physical::CODE, image.len() as u64);
    }

    /// Runs the program from the start to its end; false if it does not come to one.
    pub fn run_program(&mut self, state: &State, output: &mut Output) -> bool {
        let mut cpu = self.start.clone();
        set_state(&mut cpu, state, self);
        cpu.refresh();
        self.emulator.set_cpu(cpu);
        let exit = self.emulator.run_at_most(Entry::Resume, PATIENCE);
        let ends = matches!(exit, Ok(Exit::Halt));
        self.end(&exit, output);
        self.restore_memory(output);
        ends
    }

    /// Makes memory what each case finds.
    pub fn set_template(&mut self, template: &Template) {
        self.template.copy_from_slice(template);
        for (i, page) in physical::WRITABLE.into_iter().enumerate() {
            self.poke(page, &template[i]);
        }
        self.poke(physical::READ_ONLY, &template[3]);
    }

    /// Runs a case from start to end. At `mxcsr_mask`, if anywhere, MXCSR_MASK may have been stored: it becomes what this
    /// processor stores there.
    pub fn run(&mut self, input: &Input, way: Way, mxcsr_mask: Option<u64>, output: &mut Output) {
        let mut cpu = self.start.clone();
        set_state(&mut cpu, &input.state, self);
        if way == Way::Fast {
            cpu.flags = (input.state.flags & !TF).into();
        }
        cpu.refresh();
        self.write_code(input, &input.code);
        for patch in &input.patches {
            let bytes = &patch.bytes[..usize::from(patch.length)];
            self.poke(physical::WRITABLE[usize::from(patch.page)] + u64::from(patch.at), bytes);
        }
        let stored = mxcsr_mask.and_then(physical::writable);
        let stored = stored.filter(|at| self.mxcsr_mask(*at) != Some(fpu::MXCSR_MASK));
        self.emulator.set_cpu(cpu);
        let limit = if way == Way::Fast { 1 } else { PATIENCE };
        let exit = self.emulator.run_at_most(Entry::Resume, limit);
        self.end(&exit, output);
        if let Some(at) = stored
            && self.mxcsr_mask(at) == Some(fpu::MXCSR_MASK)
        {
            self.poke(at, &(fpu::MXCSR_MASK | 1 << 17).to_le_bytes());
        }
        self.write_code(input, &[FILLER; 16]);
        self.restore_memory(output);
    }

    fn mxcsr_mask(&self, at: u64) -> Option<u32> {
        self.memory.read_obj(GuestAddress(at)).ok()
    }

    fn write_code(&mut self, input: &Input, code: &[u8]) {
        let linear = input.state.rip.wrapping_add(code_base(input.state.selectors[1]));
        let at = linear.wrapping_sub(CODE) as usize;
        let length = (input.length as usize).min((CODE_PAGES * PAGE).saturating_sub(at));
        if length > 0 {
            self.poke(physical::CODE + at as u64, &code[..length]);
            self.ram.written_by_host(physical::CODE + at as u64, length as u64);
        }
    }

    /// What the handler, or the next instruction, finds.
    fn end(&mut self, exit: &Result<Exit, reprise_emulator::Error>, output: &mut Output) {
        let cpu = self.emulator.cpu();
        get_state(cpu, &mut output.state);
        output.error_code = 0;
        output.cr2 = 0;
        output.vector = match exit {
            Ok(Exit::Halt | Exit::Attention)
                if (1..=256).contains(&cpu.rip.wrapping_sub(HIGH + physical::HANDLERS)) =>
            {
                let vector = cpu.rip.wrapping_sub(HIGH + physical::HANDLERS + 1);
                let has_code = matches!(vector, 8 | 10..=14 | 17 | 21);
                let mut at = physical::EXCEPTION_STACK_END - 40;
                if has_code {
                    output.error_code = self.peek64(at - 8) as u32;
                }
                let mut pop = || {
                    at += 8;
                    self.peek64(at - 8)
                };
                let (rip, cs, flags, rsp, ss) = (pop(), pop(), pop(), pop(), pop());
                output.state.rip = rip;
                output.state.flags = flags;
                output.state.gpr[4] = rsp;
                output.state.selectors[1] = cs as u16;
                output.state.selectors[2] = ss as u16;
                if vector == 14 {
                    output.cr2 = self.emulator.cpu().cr2;
                    if output.cr2 >= TASK_SIZE_MAX {
                        output.error_code |= 1;
                    }
                }
                vector as u32
            }
            // One instruction has retired.
            Ok(Exit::Attention) => 1,
            _ => NO_VECTOR + 1,
        };
    }

    fn restore_memory(&mut self, output: &mut Output) {
        for (i, physical) in physical::WRITABLE.into_iter().enumerate() {
            self.memory
                .read_slice(&mut self.page[..], GuestAddress(physical))
                .expect("all addresses are within the machine's memory");
            let before = &self.template[i];
            let differs = |at: &usize| self.page[8 * at..][..8] != before[8 * at..][..8];
            if self.page[..] == before[..] {
                output.changed[i] = [PAGE as u16; 2];
                continue;
            }
            let start = 8 * (0..PAGE / 8).find(differs).unwrap_or(0);
            let end = 8 * (0..PAGE / 8).rfind(differs).map_or(0, |at| at + 1);
            output.changed[i] = [start as u16, end as u16];
            output.pages[i][start..end].copy_from_slice(&self.page[start..end]);
            self.poke(physical + start as u64, &before[start..end]);
        }
    }

    /// The segment that loading `selector` gives.
    fn segment(&self, selector: u16) -> Segment {
        if selector & !3 == 0 {
            return Segment::null(selector);
        }
        let table = if selector & 4 == 0 {
            physical::GDT
        } else {
            physical::LDT
        };
        Segment::from_descriptor(selector, self.peek64(table + u64::from(selector & 0x78)))
    }
}

/// What this processor says of itself, as far as instructions depend on it.
fn cpuid_entries() -> Vec<CpuidEntry> {
    [
        (1, None),
        (7, Some(0)),
        (0xd, Some(0)),
        (0xd, Some(1)),
        (0xd, Some(2)),
        (0x8000_0001, None),
    ]
    .into_iter()
    .map(|(leaf, subleaf)| {
        let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf.unwrap_or(0));
        let registers = CpuidRegisters {
            eax: answer.eax,
            ebx: answer.ebx,
            ecx: answer.ecx,
            edx: answer.edx,
        };
        CpuidEntry {
            leaf,
            subleaf,
            registers,
        }
    })
    .collect()
}

/// What is the same in all cases.
fn start() -> Cpu {
    let mut cpu = Cpu::reset();
    cpu.cr0 = Cr0(Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG);
    cpu.cr3 = physical::PML4;
    cpu.cr4 = Cr4(Cr4::DE
        | Cr4::PSE
        | Cr4::PAE
        | Cr4::MCE
        | Cr4::PGE
        | Cr4::OSFXSR
        | Cr4::OSXMMEXCPT
        | Cr4::UMIP
        | Cr4::FSGSBASE
        | Cr4::OSXSAVE
        | Cr4::SMEP
        | Cr4::SMAP);
    cpu.efer = Efer(Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE);
    cpu.xcr0 = fpu::XCR0_SUPPORTED & (fpu::X87 | fpu::SSE | fpu::AVX);
    cpu.idtr = TableRegister {
        base: HIGH + physical::IDT,
        limit: 0xfff,
    };
    cpu.gdtr = TableRegister {
        base: HIGH + physical::GDT,
        limit: 0x7f,
    };
    cpu
}

fn set_state(cpu: &mut Cpu, state: &State, machine: &Emulated) {
    for (i, value) in state.gpr.into_iter().enumerate() {
        cpu.gpr.set(i as u8, value);
    }
    cpu.rip = state.rip;
    cpu.flags = Flags::from(state.flags);
    for (seg, selector) in Seg::ALL.into_iter().zip(state.selectors) {
        cpu.segments[seg] = machine.segment(selector);
    }
    cpu.segments[Seg::Fs].base = state.fs_base;
    cpu.segments[Seg::Gs].base = state.gs_base;
    let xsave = &state.xsave;
    let fpu = &mut cpu.fpu;
    fpu.control = u16::from_le_bytes(xsave.get(0));
    fpu.status = u16::from_le_bytes(xsave.get(2));
    fpu.tags = xsave.0[4];
    fpu.opcode = u16::from_le_bytes(xsave.get(6));
    fpu.ip = u64::from_le_bytes(xsave.get(8));
    fpu.dp = u64::from_le_bytes(xsave.get(16));
    fpu.mxcsr = u32::from_le_bytes(xsave.get(24));
    for i in 0..8 {
        let at = 32 + 16 * usize::from(i);
        let physical = fpu.physical(i);
        fpu.registers[physical].significand = u64::from_le_bytes(xsave.get(at));
        fpu.registers[physical].sign_exponent = u16::from_le_bytes(xsave.get(at + 8));
    }
    for i in 0..16 {
        let vector = xsave.vector(i);
        for (word, bytes) in fpu.vectors[i].iter_mut().zip(vector.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8 bytes"));
        }
    }
}

fn get_state(cpu: &Cpu, state: &mut State) {
    for i in 0..16 {
        state.gpr[usize::from(i)] = cpu.gpr.get(i);
    }
    state.rip = cpu.rip;
    state.flags = cpu.flags.bits();
    for (selector, seg) in state.selectors.iter_mut().zip(Seg::ALL) {
        *selector = cpu.segments[seg].selector;
    }
    state.fs_base = cpu.segments[Seg::Fs].base;
    state.gs_base = cpu.segments[Seg::Gs].base;
    let xsave = &mut state.xsave;
    xsave.0.fill(0);
    let fpu = &cpu.fpu;
    xsave.set(0, &fpu.control.to_le_bytes());
    xsave.set(2, &fpu.status.to_le_bytes());
    xsave.set(4, &[fpu.tags]);
    xsave.set(6, &fpu.opcode.to_le_bytes());
    xsave.set(8, &fpu.ip.to_le_bytes());
    xsave.set(16, &fpu.dp.to_le_bytes());
    xsave.set(24, &fpu.mxcsr.to_le_bytes());
    for i in 0..8 {
        let register = &fpu.registers[fpu.physical(i)];
        let at = 32 + 16 * usize::from(i);
        xsave.set(at, &register.significand.to_le_bytes());
        xsave.set(at + 8, &register.sign_exponent.to_le_bytes());
    }
    for i in 0..16 {
        let mut vector = [0; 32];
        for (bytes, word) in vector.chunks_exact_mut(8).zip(fpu.vectors[i]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        xsave.set_vector(i, vector);
    }
}

const _: () = assert!(READ_ONLY == WRITABLE[1] + PAGE as u64);
