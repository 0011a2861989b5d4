//! Where operands lie: registers are bent such that memory operands lead into the mapped pages, mostly.

use iced_x86::{ConstantOffsets, Instruction, OpKind, Register};

use crate::dice::Dice;
use crate::sandbox::code_base;
use crate::state::{DATA, LDT, PAGE, READ_ONLY, STACK, State};

/// The memory operands' places, for contents to be put there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places {
    /// Linear addresses of operands that are mapped.
    pub at: [u64; 2],
    /// How many there are.
    pub count: usize,
}

/// An address in mapped memory: in the middle, at the end, or beyond it.
pub fn target(dice: &mut Dice) -> u64 {
    let window = dice.pick(&[DATA, DATA + PAGE as u64, STACK]);
    match dice.below(40) {
        0 => READ_ONLY + dice.below(64),
        1 => READ_ONLY - dice.below(32),
        2 => DATA - 32 + dice.below(64),
        3 => STACK + PAGE as u64 - dice.below(64),
        4 => dice.integer(),
        5 | 6 => DATA + PAGE as u64 - dice.below(64),
        // Where a segment ends, in mapped memory or behind it.
        7 => dice.pick(&[DATA + 0x2000, DATA + 0x1_0000, 1 << 32]) - dice.below(32),
        8..=14 => window + dice.below(PAGE as u64 - 64),
        _ => window + (dice.below(PAGE as u64 - 1024) & !63),
    }
}

/// The linear base of a segment.
fn base(state: &State, segment: Register, bits: u32) -> u64 {
    match segment {
        Register::FS => state.fs_base,
        Register::GS => state.gs_base,
        _ if bits == 64 => 0,
        _ => {
            let index = match segment {
                Register::ES => 0,
                Register::CS => 1,
                Register::SS => 2,
                _ => 3,
            };
            code_base(state.selectors[index])
        }
    }
}

/// The value of a register.
fn value(state: &State, register: Register, bits: u32) -> u64 {
    if register.is_segment_register() {
        return base(state, register, bits);
    }
    let whole = state.gpr[register.full_register().number() & 15];
    match register.size() {
        1 => whole & 0xff,
        2 => whole & 0xffff,
        4 => whole & 0xffff_ffff,
        _ => whole,
    }
}

/// The linear address of operand `i`, element `element`.
pub fn address(instruction: &Instruction, i: u32, element: usize, state: &State, bits: u32) -> Option<u64> {
    let address = instruction.virtual_address(i, element, |register, element, size| {
        if register.is_vector_register() {
            let vector = state.xsave.vector(register.number() & 15);
            let bytes = vector.get(element * size..(element + 1) * size)?;
            // Indices are signed.
            let word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            return Some(if size == 4 { word as u32 as i32 as u64 } else { word });
        }
        Some(value(state, register, bits))
    })?;
    Some(if bits == 64 { address } else { address & 0xffff_ffff })
}

/// Bends registers, and displacements in `code`, towards mapped memory.
pub fn place(
    dice: &mut Dice,
    instruction: &Instruction,
    offsets: &ConstantOffsets,
    code: &mut [u8; 16],
    state: &mut State,
    bits: u32,
) -> Places {
    let mut places = Places::default();
    if instruction.is_vsib() {
        bend_indices(dice, instruction, state);
    }
    for i in 0..instruction.op_count() {
        let kind = instruction.op_kind(i);
        let Some(now) = address(instruction, i, 0, state, bits) else {
            continue;
        };
        let to = target(dice);
        let delta = to.wrapping_sub(now);
        let register = match kind {
            OpKind::Memory => base_or_index(instruction),
            OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => Register::RSI,
            OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI => Register::RDI,
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => Register::RDI,
            _ => continue,
        };
        if register == Register::None {
            bend_displacement(instruction, offsets, code, delta);
        } else {
            let scale = match instruction.memory_base() {
                Register::None if kind == OpKind::Memory => u64::from(instruction.memory_index_scale()),
                _ => 1,
            };
            let slot = &mut state.gpr[register.full_register().number() & 15];
            let narrow = bits != 64 || register.size() == 4;
            *slot = slot.wrapping_add(delta / scale);
            if register.size() == 2 {
                *slot = *slot & 0xffff | state_above(dice, bits);
            } else if narrow && bits != 64 {
                *slot &= 0xffff_ffff;
            }
        }
        if places.count < places.at.len() {
            places.at[places.count] = to;
            places.count += 1;
        }
    }
    places
}

/// What bits 31:16 of a register hold that 16-bit addressing does not look at.
fn state_above(dice: &mut Dice, bits: u32) -> u64 {
    if bits == 64 {
        0
    } else {
        dice.next() & 0xffff_0000 & (dice.below(2) * 0xffff_0000)
    }
}

/// The register that a memory operand can be moved by.
fn base_or_index(instruction: &Instruction) -> Register {
    match instruction.memory_base() {
        Register::RIP | Register::EIP => Register::None,
        Register::None if instruction.memory_index().is_gpr() => instruction.memory_index(),
        register => register,
    }
}

fn bend_displacement(instruction: &Instruction, offsets: &ConstantOffsets, code: &mut [u8; 16], delta: u64) {
    let (at, size) = (offsets.displacement_offset(), offsets.displacement_size());
    if size < 2 || at + size > instruction.len() {
        return;
    }
    let old = code[at..at + size]
        .iter()
        .rev()
        .fold(0, |word: u64, byte| word << 8 | u64::from(*byte));
    let new = old.wrapping_add(delta).to_le_bytes();
    code[at..at + size].copy_from_slice(&new[..size]);
}

/// Gathers' and scatters' indices are small, but for some.
fn bend_indices(dice: &mut Dice, instruction: &Instruction, state: &mut State) {
    let register = instruction.memory_index().number() & 15;
    let mut vector = [0; 32];
    let size = if instruction.is_vsib32() { 4 } else { 8 };
    for element in vector.chunks_exact_mut(size) {
        let index = match dice.below(32) {
            0 => dice.integer(),
            1..=4 => (dice.below(16)).wrapping_neg(),
            _ => dice.below(40),
        };
        element.copy_from_slice(&index.to_le_bytes()[..size]);
    }
    state.xsave.set_vector(register, vector);
}

const _: () = assert!(LDT.len() == 8);
