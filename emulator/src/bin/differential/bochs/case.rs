//! One case: an instruction, registers and memory.

use iced_x86::{Code, ConstantOffsets, Decoder, Instruction, OpKind, Register};

use super::evex::encode;
use super::forms::Forms;
use super::quirk;
use crate::case::OPTIONS;
use crate::compare::hex;
use crate::dice::{Dice, Taste};
use crate::report::disassemble;

/// Linear address of the page of code.
pub const CODE: u64 = 0x1000_0000;
/// Linear address of the page of data. The pages around it are not present.
pub const DATA: u64 = 0x2000_1000;
/// Size of a page.
pub const PAGE: usize = 4096;
/// Size of the register file: ZMM0 to ZMM31.
pub const REGISTERS: usize = 2048;
/// How much of the data page is compared byte for byte; the rest by a checksum.
pub const SHOWN: usize = 256;
/// What is below has tables and the executor.
const LOW: u64 = 0x400_0000;
/// There is no register of this number: nothing is replaced.
const NOTHING: u32 = u32::MAX;

/// From where all cases of a batch take registers and memory, as windows.
pub struct Pool(pub Vec<u8>);

impl Pool {
    const TASTES: [Taste; 4] = [Taste::Integers, Taste::Singles, Taste::Doubles, Taste::Bits];
    /// Bytes of one taste.
    const REGION: usize = 0x4000;
    /// Bytes of all.
    pub const SIZE: usize = Self::REGION * Self::TASTES.len();

    /// Random contents.
    pub fn new(dice: &mut Dice) -> Pool {
        let mut bytes = Vec::with_capacity(Self::SIZE);
        for taste in Self::TASTES {
            for _ in 0..Self::REGION / 8 {
                bytes.extend(dice.element(taste).to_le_bytes());
            }
        }
        Pool(bytes)
    }

    /// The bytes from `at`.
    pub fn window<const N: usize>(&self, at: u64) -> [u8; N] {
        core::array::from_fn(|i| self.0[at as usize + i])
    }

    /// Where a random window of `size` bytes begins.
    fn place(dice: &mut Dice, region: usize, size: usize) -> u64 {
        let places = (Self::REGION - size) / 64 + 1;
        (region * Self::REGION) as u64 + 64 * dice.below(places as u64)
    }
}

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Index in [`Forms::families`].
    pub family: usize,
    /// The instruction.
    pub code: [u8; 16],
    /// Where it is.
    pub rip: u64,
    /// The pool's window with ZMM0 to ZMM31.
    pub vectors: u64,
    /// The pool's window with the data page.
    pub data: u64,
    /// This vector register does not come from the pool...
    pub replaced: u32,
    /// ... but is this.
    pub replacement: [u8; 64],
    /// MXCSR.
    pub mxcsr: u32,
    /// RFLAGS.
    pub flags: u64,
    /// k0 to k7.
    pub k: [u64; 8],
    /// By number.
    pub gpr: [u64; 16],
    /// Offset in the data page of what is shown of it.
    pub shown: u64,
}

impl Case {
    /// ZMM0 to ZMM31.
    pub fn registers(&self, pool: &Pool) -> [u8; REGISTERS] {
        let mut registers = pool.window(self.vectors);
        if self.replaced < 32 {
            registers[64 * self.replaced as usize..][..64].copy_from_slice(&self.replacement);
        }
        registers
    }

    /// The instruction.
    pub fn instruction(&self) -> Instruction {
        decode(&self.code, self.rip).0
    }

    /// What it is called.
    pub fn name(&self) -> String {
        format!("{:?}", self.instruction().code())
    }

    /// Bytes, text and registers that are not vectors.
    pub fn print(&self) {
        let instruction = self.instruction();
        let length = if instruction.is_invalid() {
            15
        } else {
            instruction.len()
        };
        println!("    {} ; {}", hex(&self.code[..length]), disassemble(&instruction));
        println!("    rip={:#x} mxcsr={:#x} k={:x?}", self.rip, self.mxcsr, self.k);
        println!("    gpr={:x?}", self.gpr);
    }

    /// Its inputs, as text: registers and memory operands.
    pub fn inputs(&self, pool: &Pool) -> Vec<(String, String)> {
        let instruction = self.instruction();
        let registers = self.registers(pool);
        let mut inputs = Vec::new();
        for i in 0..instruction.op_count() {
            let register = instruction.op_register(i);
            if register.is_vector_register() {
                let mut bytes: [u8; 64] = core::array::from_fn(|at| registers[64 * register.number() + at]);
                bytes.reverse();
                inputs.push((
                    format!("{register:?}").to_lowercase(),
                    hex(&bytes[64 - register.size()..]),
                ));
            }
        }
        if let Some(at) = address(&instruction, 0, self, &registers)
            && (DATA..DATA + PAGE as u64 - 64).contains(&at)
        {
            let mut bytes: [u8; 64] = pool.window(self.data + (at - DATA));
            bytes.reverse();
            inputs.push((format!("memory at {at:#x}"), hex(&bytes)));
        }
        inputs
    }
}

/// Makes cases.
pub struct Maker<'a> {
    /// What is to be executed.
    pub forms: &'a Forms,
    /// What they are made of.
    pub pool: &'a Pool,
}

impl Maker<'_> {
    /// A random case of a random form.
    pub fn make(&self, dice: &mut Dice) -> Case {
        loop {
            let (code, family) = dice.pick(&self.forms.codes);
            if let Some(case) = self.try_code(dice, code, family) {
                return case;
            }
        }
    }

    fn try_code(&self, dice: &mut Dice, code: Code, family: usize) -> Option<Case> {
        let bytes = encode(dice, code);
        let rip = CODE + dice.below(PAGE as u64 - 16);
        let (instruction, offsets) = decode(&bytes, rip);
        let is_wanted = instruction.code() == code;
        if !is_wanted && (!dice.percent(5) || !self.can_run(&instruction)) {
            return None;
        }
        if quirk::harms(&instruction, &bytes) {
            return None;
        }
        let region = dice.below(Pool::TASTES.len() as u64) as usize;
        let mut case = Case {
            family,
            code: core::array::from_fn(|i| if i < 15 { bytes[i] } else { 0xcc }),
            rip,
            vectors: Pool::place(dice, region, REGISTERS),
            data: Pool::place(dice, region, PAGE),
            replaced: NOTHING,
            replacement: [0; 64],
            mxcsr: match dice.below(4) {
                0 => 0x1f80,
                1 | 2 => 0x1f80 | dice.next() as u32 & 0xe07f,
                _ => dice.next() as u32 & 0xffff,
            },
            flags: dice.next() & 0xcd5 & !(1 << 10) | 2,
            k: core::array::from_fn(|_| opmask(dice)),
            gpr: core::array::from_fn(|_| dice.integer()),
            shown: 0,
        };
        if !instruction.is_invalid() {
            case.code[instruction.len()..].fill(0xcc);
            self.place(dice, &instruction, &offsets, &mut case);
            if !quirk::limit(&instruction, &mut case) || self.is_low(&case) {
                return None;
            }
        }
        Some(case)
    }

    /// Damaged bytes may be whatever cannot harm the image.
    fn can_run(&self, instruction: &Instruction) -> bool {
        let code = instruction.code();
        instruction.is_invalid() || self.forms.codes.iter().any(|(known, _)| *known == code)
    }

    /// A memory operand, or an element of one, is where one of both has its tables.
    fn is_low(&self, case: &Case) -> bool {
        let registers = case.registers(self.pool);
        let instruction = case.instruction();
        (0..16).any(|element| {
            let address = address(&instruction, element, case, &registers);
            address.is_some_and(|address| address.wrapping_add(64) < LOW + 64)
        })
    }

    /// Bends registers or the displacement such that the memory operand is in the data page, mostly.
    fn place(&self, dice: &mut Dice, instruction: &Instruction, offsets: &ConstantOffsets, case: &mut Case) {
        if instruction.is_vsib() {
            case.replaced = instruction.memory_index().number() as u32;
            let size = if instruction.is_vsib32() { 4 } else { 8 };
            for element in case.replacement.chunks_exact_mut(size) {
                let index = match dice.below(64) {
                    0 => dice.integer(),
                    1..=8 => dice.below(16).wrapping_neg(),
                    _ => dice.below(40),
                };
                element.copy_from_slice(&index.to_le_bytes()[..size]);
            }
        }
        let registers = case.registers(self.pool);
        let Some(now) = address(instruction, 0, case, &registers) else {
            return;
        };
        let to = target(dice);
        case.shown = (to & !63).saturating_sub(64).clamp(DATA, DATA + (PAGE - SHOWN) as u64) - DATA;
        let delta = to.wrapping_sub(now);
        let (register, scale) = match instruction.memory_base() {
            Register::RIP | Register::EIP => (Register::None, 1),
            Register::None if instruction.memory_index().is_gpr() => {
                (instruction.memory_index(), u64::from(instruction.memory_index_scale()))
            }
            base => (base, 1),
        };
        if register != Register::None {
            let slot = &mut case.gpr[register.number() & 15];
            *slot = slot.wrapping_add(delta / scale);
            return;
        }
        let (at, size) = (offsets.displacement_offset(), offsets.displacement_size());
        if size == 4 {
            let old = u32::from_le_bytes([0, 1, 2, 3].map(|i| case.code[at + i]));
            case.code[at..at + 4].copy_from_slice(&old.wrapping_add(delta as u32).to_le_bytes());
        }
    }
}

/// All elements, none, a few, or any.
fn opmask(dice: &mut Dice) -> u64 {
    match dice.below(8) {
        0 => u64::MAX,
        1 => 0,
        2 => 1 << dice.below(16),
        3 => u64::MAX << dice.below(16),
        _ => dice.next(),
    }
}

/// An address in the data page, at its ends, or beyond it.
fn target(dice: &mut Dice) -> u64 {
    let page = PAGE as u64;
    match dice.below(20) {
        0 => DATA + page - dice.below(80),
        1 => DATA - dice.below(64),
        // Not canonical, or nothing there.
        2 if dice.percent(30) => dice.integer() | 1 << 45,
        3..=6 => DATA + dice.below(page - 64),
        _ => DATA + (dice.below(page - 640) & !63) + 256,
    }
}

/// The linear address of the memory operand, or of an element.
fn address(instruction: &Instruction, element: usize, case: &Case, registers: &[u8; REGISTERS]) -> Option<u64> {
    let operand = (0..instruction.op_count()).find(|i| instruction.op_kind(*i) == OpKind::Memory)?;
    instruction.virtual_address(operand, element, |register, element, size| {
        if register.is_vector_register() {
            let at = 64 * register.number() + size * element;
            let word = registers
                .get(at..at + size)?
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
            return Some(if size == 4 { word as u32 as i32 as u64 } else { word });
        }
        if register.is_segment_register() {
            return Some(0);
        }
        let whole = case.gpr[register.number() & 15];
        Some(if register.size() == 4 {
            whole & 0xffff_ffff
        } else {
            whole
        })
    })
}

fn decode(bytes: &[u8], rip: u64) -> (Instruction, ConstantOffsets) {
    let mut decoder = Decoder::with_ip(64, &bytes[..15], rip, OPTIONS);
    let instruction = decoder.decode();
    (instruction, decoder.get_constant_offsets(&instruction))
}
