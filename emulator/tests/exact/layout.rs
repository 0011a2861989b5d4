//! Where everything is. Guest-physical pages are the same in every placement; whether a page is RAM or belongs to a device
//! is the placement's to say.

use reprise_emulator::Cpu;
use reprise_emulator::cpu::{Activity, Attributes, Cr0, Cr4, Efer, Seg, Segment, TableRegister, flags, gpr};

pub const PAGE: u64 = 0x1000;
/// Guest-physical pages there are.
pub const PAGES: usize = 40;
/// Bytes of them.
pub const SIZE: usize = PAGES * PAGE as usize;

/// Linear addresses of the regions, each of two pages; in 64-bit mode, each has a page table of its own.
pub const CODE: u64 = 0x0040_0000;
pub const TABLES: u64 = 0x0080_0000;
pub const GDT: u64 = TABLES;
pub const IDT: u64 = TABLES + 0x2000;
pub const TSS: u64 = TABLES + 0x4000;
pub const HANDLERS: u64 = TABLES + 0x6000;
/// The stack of ring 0 and of the interrupt stack table.
pub const KERNEL: u64 = 0x00c0_0000;
/// Where BX and SI point.
pub const M: u64 = 0x4000_0000;
/// Where DI points.
pub const D: u64 = 0x8000_0000;
/// Where SP points.
pub const STACK: u64 = 0xc000_0000;

/// Guest-physical pages of the paging structures: five levels, then the page tables, then those of 32-bit paging.
const PML5: u64 = 1;
const PML4: u64 = 2;
const POINTERS: u64 = 3;
const DIRECTORIES: u64 = 4;
const TABLES64: u64 = 8;
const DIRECTORY32: u64 = 14;
const TABLES32: u64 = 15;
/// Maps V8086 mode's linear addresses one to one; elsewhere the root of four levels.
const LOW_TABLE: u64 = PML4;
/// Page numbers of paging structures.
pub const PAGING: std::ops::Range<usize> = 1..21;

/// Selectors.
pub const CODE0: u16 = 0x08;
pub const DATA0: u16 = 0x10;
pub const CODE3: u16 = 0x23;
pub const DATA3: u16 = 0x2b;
const TASK: u16 = 0x30;
pub const FREE_TASK: u16 = 0x40;
/// A task of 32-bit mode that can be switched to: it halts. Its task state lies over a page boundary, where the interrupt
/// table of that mode has ended.
pub const OTHER_TASK: u16 = 0x98;
pub const OTHER_TSS: u64 = IDT + 0xfd0;
pub const LOCAL: u16 = 0x50;
pub const GATE: u16 = 0x60;
/// Not accessed yet.
pub const FRESH_DATA: u16 = 0x70;
pub const FRESH_CODE: u16 = 0x78;
pub const FRESH_CODE3: u16 = 0x83;
pub const FRESH_DATA3: u16 = 0x8b;

/// Regions: linear address, how many pages, and the page number of the last: pages lie upside down, so that nobody gets
/// from one to the next by counting.
const REGIONS: [(u64, u64, u64); 6] = [
    (CODE, 2, 22),
    (TABLES, 7, 29),
    (KERNEL, 2, 31),
    (M, 2, 33),
    (D, 2, 35),
    (STACK, 2, 37),
];

/// Guest-physical address of `linear`, an address in a region as 32- and 64-bit code have it.
pub fn gpa(mode: Mode, linear: u64) -> u64 {
    let (start, pages, last) = REGIONS
        .into_iter()
        .find(|(start, pages, _)| (*start..*start + pages * PAGE).contains(&linear))
        .expect("an address in a region");
    let page = (linear - start) / PAGE;
    // In real and V8086 mode, regions lie one to one.
    let number = if mode.is_8086() {
        last + 1 - pages + page
    } else {
        last - page
    };
    number * PAGE + linear % PAGE
}

/// `linear` as the CPU has it in this mode.
fn seen(mode: Mode, linear: u64) -> u64 {
    if mode.is_8086() { gpa(mode, linear) } else { linear }
}

/// Guest-physical page numbers of a region.
pub fn pages_of(region: u64) -> Vec<usize> {
    let (_, pages, first) = REGIONS
        .into_iter()
        .find(|(start, ..)| *start == region)
        .expect("a region");
    (0..pages).map(|i| (first - i) as usize).collect()
}

/// How the CPU runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// 64-bit mode, ring 0.
    Long,
    /// 64-bit mode, ring 3.
    LongUser,
    /// 32-bit protected mode with paging, ring 0.
    Protected,
    /// 32-bit protected mode with paging, ring 3.
    ProtectedUser,
    /// Real mode.
    Real,
    /// V8086 mode with IOPL 3, over 32-bit protected mode with paging.
    Virtual8086,
}

impl Mode {
    pub const ALL: [Mode; 6] = [
        Mode::Long,
        Mode::LongUser,
        Mode::Protected,
        Mode::ProtectedUser,
        Mode::Real,
        Mode::Virtual8086,
    ];

    pub fn bits(self) -> u32 {
        match self {
            Mode::Long | Mode::LongUser => 64,
            Mode::Protected | Mode::ProtectedUser => 32,
            Mode::Real | Mode::Virtual8086 => 16,
        }
    }

    /// Segments are paragraphs, and everything is below 1 MiB.
    pub fn is_8086(self) -> bool {
        self.bits() == 16
    }

    pub fn is_long(self) -> bool {
        self.bits() == 64
    }

    pub fn is_user(self) -> bool {
        matches!(self, Mode::LongUser | Mode::ProtectedUser)
    }
}

/// Where the operands are within their regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Offsets {
    /// In the middle of a page, aligned.
    Inside,
    /// Over the page boundary by half; a push crosses it.
    Halves,
    /// Over the page boundary by one byte; a pop crosses it.
    Byte,
}

impl Offsets {
    pub const ALL: [Offsets; 3] = [Offsets::Inside, Offsets::Halves, Offsets::Byte];

    /// Of an operand of `size` bytes; 0 is one that must be aligned.
    pub fn operand(self, size: usize) -> u64 {
        let size = size as u64;
        match self {
            Offsets::Inside => 0x100,
            _ if size == 0 || size > 128 => PAGE - 0x100,
            Offsets::Halves => PAGE - size / 2,
            Offsets::Byte => PAGE - 1,
        }
    }

    pub fn stack(self) -> u64 {
        match self {
            Offsets::Inside => 0x800,
            Offsets::Halves => PAGE + 4,
            Offsets::Byte => PAGE - 4,
        }
    }
}

/// Whether accessed and dirty bits are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Marks {
    Set,
    Clear,
}

/// Bytes by guest-physical address.
pub struct Image(pub Vec<u8>);

impl Image {
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Writes at a linear address of a region; may cross a page.
    pub fn at(&mut self, mode: Mode, linear: u64, bytes: &[u8]) {
        for (i, byte) in (0..).zip(bytes) {
            self.0[gpa(mode, linear + i) as usize] = *byte;
        }
    }

    pub fn word(&mut self, at: u64, size: usize, value: u64) {
        self.put(at, &value.to_le_bytes()[..size]);
    }

    /// Memory before anything happens, but for the instruction and what it is about.
    pub fn new(mode: Mode, marks: Marks) -> Image {
        let mut image = Image(vec![0; SIZE]);
        image.paging(mode, marks);
        image.descriptors(mode);
        // HLT everywhere.
        for page in [CODE, CODE + PAGE, HANDLERS] {
            image.put(gpa(mode, page), &[0xf4; PAGE as usize]);
        }
        for (salt, region) in (1..).zip([M, D, STACK, KERNEL]) {
            for i in 0..2 * PAGE / 8 {
                let value = (i + salt * 1024).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                image.word(gpa(mode, region + 8 * i), 8, value);
            }
        }
        image
    }

    fn paging(&mut self, mode: Mode, marks: Marks) {
        // Present, writable, user; accessed and dirty.
        let (inner, leaf) = match marks {
            Marks::Set => (0x27, 0x67),
            Marks::Clear => (0x07, 0x07),
        };
        if mode.is_long() {
            self.word(PML5 * PAGE, 8, (PML4 * PAGE) | inner);
            self.word(PML4 * PAGE, 8, (POINTERS * PAGE) | inner);
            for i in 0..4 {
                self.word(POINTERS * PAGE + 8 * i, 8, ((DIRECTORIES + i) * PAGE) | inner);
            }
        }
        if mode == Mode::Virtual8086 {
            self.word(DIRECTORY32 * PAGE, 4, (LOW_TABLE * PAGE) | inner);
            for page in 0..PAGES as u64 {
                self.word(LOW_TABLE * PAGE + page * 4, 4, (page * PAGE) | leaf);
            }
            return;
        }
        for (number, (linear, pages, _)) in (0..).zip(REGIONS) {
            if mode.is_long() {
                let table = TABLES64 + number;
                let directory = DIRECTORIES + (linear >> 30);
                self.word(directory * PAGE + (linear >> 21 & 0x1ff) * 8, 8, (table * PAGE) | inner);
                for page in 0..pages {
                    let entry = gpa(mode, linear + page * PAGE) | leaf;
                    self.word(table * PAGE + ((linear >> 12 & 0x1ff) + page) * 8, 8, entry);
                }
            } else {
                let table = TABLES32 + number;
                self.word(DIRECTORY32 * PAGE + (linear >> 22) * 4, 4, (table * PAGE) | inner);
                for page in 0..pages {
                    let entry = gpa(Mode::Protected, linear + page * PAGE) | leaf;
                    self.word(table * PAGE + ((linear >> 12 & 0x3ff) + page) * 4, 4, entry);
                }
            }
        }
    }

    fn descriptors(&mut self, mode: Mode) {
        if mode == Mode::Real {
            for vector in 0..256 {
                let (ip, cs) = (vector * 8, gpa(mode, HANDLERS) >> 4);
                self.word(gpa(mode, IDT + 4 * vector), 4, cs << 16 | ip);
            }
            return;
        }
        let code = if mode.is_long() { 0xa09b } else { 0xc09b };
        let mut descriptor = |selector: u16, attributes: u64, base: u64, limit: u64| {
            let raw = limit & 0xffff
                | (limit >> 16 & 0xf) << 48
                | (attributes & 0xf0ff) << 40
                | (base & 0xff_ffff) << 16
                | (base >> 24 & 0xff) << 56;
            self.word(gpa(mode, GDT + u64::from(selector & !7)), 8, raw);
        };
        descriptor(CODE0, code, 0, 0xf_ffff);
        descriptor(DATA0, 0xc093, 0, 0xf_ffff);
        descriptor(CODE3, code | 0x60, 0, 0xf_ffff);
        descriptor(DATA3, 0xc0f3, 0, 0xf_ffff);
        descriptor(TASK, 0x8b, seen(mode, TSS), 0x1fff);
        descriptor(FREE_TASK, 0x89, seen(mode, TSS), 0x1fff);
        descriptor(LOCAL, 0x82, seen(mode, GDT), 0xff);
        if !mode.is_long() {
            descriptor(OTHER_TASK, 0x89, seen(mode, OTHER_TSS), 0x67);
        }
        descriptor(FRESH_DATA, 0xc092, 0, 0xf_ffff);
        descriptor(FRESH_CODE, code & !1, 0, 0xf_ffff);
        descriptor(FRESH_CODE3, code & !1 | 0x60, 0, 0xf_ffff);
        descriptor(FRESH_DATA3, 0xc0f2, 0, 0xf_ffff);
        let gate = |selector: u16, offset: u64, kind: u64| {
            offset & 0xffff | u64::from(selector) << 16 | kind << 40 | (offset >> 16 & 0xffff) << 48
        };
        // To ring 0; two parameters in 32-bit mode.
        let parameters = if mode.is_long() { 0 } else { 2 << 32 };
        self.word(
            gpa(mode, GDT + u64::from(GATE)),
            8,
            gate(FRESH_CODE, seen(mode, HANDLERS), 0xec) | parameters,
        );
        for vector in 0..256 {
            let handler = seen(mode, HANDLERS) + vector * 8;
            // Everybody may raise everything; page faults, and double faults, have a stack of their own.
            let ist = u64::from(mode.is_long() && matches!(vector, 8 | 14));
            let size = if mode.is_long() { 16 } else { 8 };
            self.word(
                gpa(mode, IDT + vector * size),
                8,
                gate(CODE0, handler, 0xee) | ist << 32,
            );
        }
        if mode.is_long() {
            self.word(gpa(mode, TSS + 4), 8, KERNEL + PAGE + 0x20);
            self.word(gpa(mode, TSS + 0x24), 8, KERNEL + PAGE + 0x20);
        } else {
            self.word(gpa(mode, TSS + 4), 4, seen(mode, KERNEL) + PAGE + 6);
            // Marked as accessed before the stack is reached through it.
            self.word(gpa(mode, TSS + 8), 4, u64::from(FRESH_DATA));
            self.other_task(mode);
        }
        // The permission map begins where its words for low ports lie over a page boundary.
        self.word(gpa(mode, TSS + 0x66), 2, 0xfff);
    }
}

impl Image {
    fn other_task(&mut self, mode: Mode) {
        let fresh = u64::from(FRESH_DATA);
        let words = [
            (0x1c, DIRECTORY32 * PAGE),
            (0x20, seen(mode, HANDLERS)),
            (0x24, 2),
            // ESP, then ES, CS, SS, DS, FS, GS, and the local table.
            (0x38, seen(mode, KERNEL) + PAGE + 2),
            (0x48, fresh),
            (0x4c, FRESH_CODE.into()),
            (0x50, fresh),
            (0x54, fresh),
            (0x58, fresh),
            (0x5c, fresh),
            (0x60, LOCAL.into()),
        ];
        for (offset, value) in words {
            self.at(mode, OTHER_TSS + offset, &(value as u32).to_le_bytes());
        }
    }

    /// A way to the other task: `vector` leads there, and so does a return from a nested one.
    pub fn task_gate(&mut self, mode: Mode, vector: u64) {
        let gate = u64::from(OTHER_TASK) << 16 | 0xe5 << 40;
        self.word(gpa(mode, IDT + vector * 8), 8, gate);
    }

    /// Takes a page of a region out of the page tables.
    pub fn take_out(&mut self, mode: Mode, linear: u64) {
        let number = REGIONS
            .iter()
            .position(|(start, pages, _)| (*start..*start + pages * PAGE).contains(&linear))
            .expect("an address in a region") as u64;
        let (table, entry, size) = match mode {
            Mode::Virtual8086 => (LOW_TABLE, gpa(mode, linear) / PAGE, 4),
            _ if mode.is_long() => (TABLES64 + number, linear >> 12 & 0x1ff, 8),
            _ => (TABLES32 + number, linear >> 12 & 0x3ff, 4),
        };
        self.word(table * PAGE + entry * size as u64, size, 0);
    }

    /// An interrupt stack of 64-bit mode.
    pub fn interrupt_stack(&mut self, vector: u64, number: u64, top: u64) {
        self.word(gpa(Mode::Long, IDT + vector * 16) + 4, 1, number);
        self.word(gpa(Mode::Long, TSS + 0x1c + 8 * number), 8, top);
    }

    /// The other task has called this one.
    pub fn nest(&mut self, mode: Mode) {
        self.word(gpa(mode, TSS), 2, OTHER_TASK.into());
        self.word(gpa(mode, GDT + u64::from(OTHER_TASK)) + 5, 1, 0x8b);
    }
}

/// Walks five levels.
pub fn five_levels(cpu: &mut Cpu) {
    cpu.cr4.0 |= Cr4::LA57;
    cpu.cr3 = PML5 * PAGE;
    cpu.refresh();
}

/// The CPU about to execute at `ip` bytes into the code; operands of `size` bytes.
pub fn cpu(mode: Mode, offsets: Offsets, size: usize, ip: u64) -> Cpu {
    let mut cpu = Cpu::reset();
    for i in 0..16 {
        cpu.fpu.set_xmm(i, [i.wrapping_mul(29) | 0x80; 16]);
    }
    // Offsets, be they of 4 bytes or of 8.
    cpu.fpu.vectors[2] = core::array::from_fn(|i| i as u64 * 8);
    cpu.fpu.k = [0x1234, 0x5a6d_9bb3_c71e_2d59, 3, 4, 5, 6, 7, 8];
    cpu.fpu.init();
    cpu.activity = Activity::Running;
    let at = offsets.operand(size);
    let region = |region: u64, offset: u64| if mode.is_8086() { offset } else { region + offset };
    for (register, value) in [
        (gpr::RAX, 0x5566_7788_1122_3344),
        (gpr::RCX, 3),
        (gpr::RDX, 0x0102_0304_5566_7788),
        (gpr::RBX, region(M, at)),
        (gpr::RSP, region(STACK, offsets.stack())),
        (gpr::RBP, region(STACK, offsets.stack() + 0x40)),
        (gpr::RSI, region(M, at)),
        (gpr::RDI, region(D, at)),
        (gpr::R11, 0x246),
    ] {
        let mask = if mode.is_long() { u64::MAX } else { 0xffff_ffff };
        cpu.gpr.set(register, value & mask);
    }
    if mode.is_8086() {
        for (seg, region) in [(Seg::Cs, CODE), (Seg::Ds, M), (Seg::Es, D), (Seg::Ss, STACK)] {
            cpu.segments[seg] = Segment::real_mode((gpa(mode, region) >> 4) as u16);
        }
        cpu.segments[Seg::Cs].attributes = Attributes(0x9b);
        cpu.rip = ip;
    }
    if mode == Mode::Real {
        cpu.idtr = TableRegister {
            base: gpa(mode, IDT),
            limit: 0x3ff,
        };
        cpu.cr4 = Cr4(Cr4::OSFXSR | Cr4::OSXSAVE | Cr4::FSGSBASE | Cr4::PCE);
        cpu.xcr0 = 0xe7;
        cpu.refresh();
        return cpu;
    }
    cpu.cr0 = Cr0(Cr0::PE | Cr0::ET | Cr0::NE | Cr0::MP | Cr0::WP | Cr0::PG);
    let always = Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::FSGSBASE | Cr4::PCE;
    let code = if mode.is_long() {
        cpu.cr3 = PML4 * PAGE;
        cpu.cr4 = Cr4(Cr4::PAE | always);
        cpu.efer = Efer(Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE);
        0xa09b
    } else {
        cpu.cr3 = DIRECTORY32 * PAGE;
        cpu.cr4 = Cr4(always);
        cpu.efer = Efer(Efer::SCE);
        0xc09b
    };
    cpu.xcr0 = 0xe7;
    cpu.gdtr = TableRegister {
        base: seen(mode, GDT),
        limit: 0xff,
    };
    cpu.idtr = TableRegister {
        base: seen(mode, IDT),
        limit: if mode.is_long() { 0xfff } else { 0x7ff },
    };
    cpu.tr = Segment {
        selector: TASK,
        attributes: Attributes(0x8b),
        limit: 0x1fff,
        base: seen(mode, TSS),
    };
    if mode == Mode::Virtual8086 {
        let segments = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];
        for seg in segments {
            cpu.segments[seg].attributes = Attributes(0xf3);
        }
        cpu.flags.set_bits(flags::VM | 3 << 12 | 2);
        cpu.refresh();
        return cpu;
    }
    let (cs, ds, rights) = if mode.is_user() {
        (CODE3, DATA3, 0x60)
    } else {
        (CODE0, DATA0, 0)
    };
    cpu.segments[Seg::Cs] = Segment::flat(cs, Attributes(code | rights));
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        cpu.segments[seg] = Segment::flat(ds, Attributes(0xc093 | rights));
    }
    cpu.msr.star = u64::from(CODE0) << 32 | u64::from(DATA0) << 48 | HANDLERS;
    cpu.msr.lstar = HANDLERS;
    cpu.msr.sysenter_cs = u64::from(CODE0);
    cpu.msr.sysenter_eip = HANDLERS;
    cpu.msr.sysenter_esp = KERNEL + PAGE;
    cpu.rip = CODE + ip;
    cpu.refresh();
    cpu
}
