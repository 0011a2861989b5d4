//! A row of a table: what an instruction finds, and what it leaves.
//!
//! A row is run in every [`Way`], with the status flags that it does not read all clear and all set. What it does not
//! mention must be as it was; flags that the manual leaves undefined are not looked at here, but in `native`.

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, RflagsBits};
use reprise_emulator::Cpu;
use reprise_emulator::cpu::Mode;
use reprise_emulator::cpu::flags::{AF, CF, DF, OF, PF, SF, STATUS, ZF};

use crate::world::{self, Area, CODE, Way, World};

/// Runs rows of the form `"claim": "assembly", registers before => registers after;`, in 64-bit mode or in the mode whose
/// CPU is given first.
macro_rules! rows {
    ($test:ident; $($rest:tt)*) => {
        rows! { $test in crate::world::long_mode(), ""; $($rest)* }
    };
    ($test:ident in $cpu:expr, $prefix:literal;
        $($name:literal: $text:literal, $($key:ident = $value:expr),* => $($after:ident = $result:expr),*;)*) => {
        #[test]
        #[allow(unused_imports)]
        fn $test() {
            use reprise_emulator::cpu::flags::{AF, CF, DF, OF, PF, SF, ZF};
            use crate::row::{Row, State};
            $(
                Row {
                    name: $name,
                    text: $text,
                    code: code!(concat!($prefix, $text)),
                    start: $cpu,
                    before: State::default()$(.$key($value))*,
                    after: State::default()$(.$after($result))*,
                }
                .check();
            )*
        }
    };
}

/// Registers, flags and memory as far as a row speaks of them.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Number, width in bytes (0 for AH and its like), value.
    registers: Vec<(u8, u8, u64)>,
    flags: Option<u64>,
    memory: Vec<(Area, u64, Vec<u8>)>,
    fault: Option<(u8, Option<u16>)>,
    next: Option<i64>,
}

/// Something that stands in memory.
pub trait Bytes {
    fn bytes(self) -> Vec<u8>;
}

macro_rules! integers {
    ($($t:ty)*) => {$(
        impl Bytes for $t {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
        }
    )*};
}

integers!(u8 u16 u32 u64 u128);

impl<const N: usize> Bytes for [u8; N] {
    fn bytes(self) -> Vec<u8> {
        self.to_vec()
    }
}

macro_rules! registers {
    ($($name:ident $number:literal $width:literal;)*) => {$(
        pub fn $name(mut self, value: u64) -> State {
            self.registers.push(($number, $width, value));
            self
        }
    )*};
}

#[allow(dead_code, reason = "all registers have a name, whether a row needs it or not")]
impl State {
    registers! {
        al 0 1; ah 0 0; ax 0 2; eax 0 4; rax 0 8;
        cl 1 1; ch 1 0; cx 1 2; ecx 1 4; rcx 1 8;
        dl 2 1; dh 2 0; dx 2 2; edx 2 4; rdx 2 8;
        bl 3 1; bh 3 0; bx 3 2; ebx 3 4; rbx 3 8;
        sp 4 2; esp 4 4; rsp 4 8;
        bp 5 2; ebp 5 4; rbp 5 8;
        si 6 2; esi 6 4; rsi 6 8;
        di 7 2; edi 7 4; rdi 7 8;
        r8 8 8; r9 9 8; r15 15 8;
    }

    /// Status flags (and DF). After an instruction: those it changes; the others stay.
    pub fn f(mut self, flags: u64) -> State {
        self.flags = Some(flags);
        self
    }

    /// At rbx and rsi.
    pub fn m(self, bytes: impl Bytes) -> State {
        self.m_at((0, bytes))
    }

    /// At an offset of 0 to 0xfff from rbx.
    pub fn m_at(mut self, (offset, bytes): (u64, impl Bytes)) -> State {
        self.memory.push((Area::M, offset, bytes.bytes()));
        self
    }

    /// At rdi.
    pub fn d(self, bytes: impl Bytes) -> State {
        self.d_at((0, bytes))
    }

    /// At an offset of 0 to 0xfff from rdi.
    pub fn d_at(mut self, (offset, bytes): (u64, impl Bytes)) -> State {
        self.memory.push((Area::D, offset, bytes.bytes()));
        self
    }

    /// At an offset of -0x800 to 0x7ff from rsp.
    pub fn s(mut self, (offset, bytes): (i64, impl Bytes)) -> State {
        self.memory.push((Area::Stack, (0x800 + offset) as u64, bytes.bytes()));
        self
    }

    /// The instruction faults with this vector and error code.
    pub fn fault(mut self, fault: (u8, Option<u16>)) -> State {
        self.fault = Some(fault);
        self
    }

    /// Control goes to the start of the instruction plus this.
    pub fn next(mut self, offset: i64) -> State {
        self.next = Some(offset);
        self
    }

    fn apply(&self, cpu: &mut Cpu) {
        for (number, width, value) in &self.registers {
            let old = cpu.gpr.get(*number);
            let new = match width {
                0 => old & !0xff00 | (value & 0xff) << 8,
                1 => old & !0xff | value & 0xff,
                2 => old & !0xffff | value & 0xffff,
                4 => value & 0xffff_ffff,
                _ => *value,
            };
            cpu.gpr.set(*number, new);
        }
    }
}

/// One claim.
pub struct Row {
    pub name: &'static str,
    pub text: &'static str,
    pub code: &'static [u8],
    pub start: Cpu,
    pub before: State,
    pub after: State,
}

/// Flags as the decoder library numbers them, as bits of RFLAGS.
fn rflags(bits: u32) -> u64 {
    [
        (RflagsBits::OF, OF),
        (RflagsBits::SF, SF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::AF, AF),
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::DF, DF),
    ]
    .into_iter()
    .filter(|(theirs, _)| bits & theirs != 0)
    .fold(0, |flags, (_, ours)| flags | ours)
}

impl Row {
    pub fn check(&self) {
        let long = self.start.view.mode == Mode::Long;
        let bits = self.start.view.code.bits();
        let instruction = Decoder::new(bits, self.code, DecoderOptions::NONE).decode();
        assert_eq!(instruction.len(), self.code.len(), "{}: {instruction:?}", self.name);
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let mut ways = vec![Way::Fast];
        if !repeated {
            ways.push(Way::Careful);
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&instruction);
        if long && (!info.used_memory().is_empty() || instruction.is_stack_instruction()) {
            ways.extend(Area::ALL.map(Way::Late));
            ways.push(Way::AllLate);
        }
        let read = rflags(instruction.rflags_read()) | DF;
        let modified = rflags(instruction.rflags_modified());
        let undefined = rflags(instruction.rflags_undefined());
        for way in ways {
            for others in [0, STATUS] {
                let flags = self.before.flags.unwrap_or(0) & read | others & !read & STATUS;
                let expected = match self.after.flags {
                    Some(after) => flags & !modified | after & modified,
                    None => flags,
                };
                let undefined = if self.after.flags.is_some() { undefined } else { 0 };
                self.check_way(way, !repeated, flags, expected, undefined);
            }
        }
    }

    fn check_way(&self, way: Way, scramble: bool, flags: u64, expected_flags: u64, undefined: u64) {
        let context = || format!("\"{}\": {} ({way:?}, flags {flags:#x} before)", self.name, self.text);
        let mut cpu = self.start.clone();
        self.before.apply(&mut cpu);
        cpu.flags = (flags | 2).into();
        let mut world = World::new(&cpu);
        for (area, offset, bytes) in &self.before.memory {
            world.fill(*area, *offset, bytes);
        }
        let end = world.run(self.code, &cpu, way, scramble);
        assert_eq!(end.fault, self.after.fault, "{}: exception", context());
        let mut expected = cpu.clone();
        self.after.apply(&mut expected);
        assert_eq!(end.cpu.gpr, expected.gpr, "{}", context());
        let length = if end.fault.is_some() { 0 } else { self.code.len() as i64 };
        let start = cpu.rip as i64;
        assert_eq!(
            end.cpu.rip as i64,
            start + self.after.next.unwrap_or(length),
            "{}: RIP (the instruction is at {start:#x}, as {CODE:#x})",
            context()
        );
        assert_eq!(
            u64::from(end.cpu.flags) & (STATUS | DF) & !undefined,
            expected_flags & !undefined,
            "{}: flags are {:?}",
            context(),
            end.cpu.flags
        );
        for area in Area::ALL {
            let mut page = vec![world.background(area); 0x1000];
            if page[0] == 0 {
                for (_, offset, bytes) in self.before.memory.iter().filter(|(of, ..)| *of == area) {
                    page[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
            }
            for (_, offset, bytes) in self.after.memory.iter().filter(|(of, ..)| *of == area) {
                page[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            let found = world.bytes(area, way);
            if let Some(at) = (0..0x1000).find(|at| page[*at] != found[*at]) {
                let (page, found) = (&page[at..(at + 16).min(0x1000)], &found[at..(at + 16).min(0x1000)]);
                panic!("{}: {area:?} + {at:#x} is {found:02x?}, not {page:02x?}", context());
            }
        }
    }
}

#[test]
fn a_wrong_row_fails() {
    let row = |after| Row {
        name: "wrong",
        text: "inc byte ptr [rbx]",
        code: code!("inc byte ptr [rbx]"),
        start: world::long_mode(),
        before: State::default().m(1u8),
        after,
    };
    let fails = |after| std::panic::catch_unwind(move || row(after).check()).is_err();
    row(State::default().m(2u8).f(0)).check();
    assert!(fails(State::default().m(3u8).f(0)));
    assert!(fails(State::default().m(2u8).f(ZF)));
    assert!(fails(State::default().m(2u8).f(0).al(0)));
    assert!(fails(State::default().m(2u8).f(0).next(1)));
    assert!(fails(State::default().m(2u8)));
}
