//! Which instructions a block has.

use iced_x86::{Decoder, DecoderError, Instruction};

use super::class::{Class, can_be_stepped, class, is_flat, is_wide};
use crate::blocks::{BLOCK_OPS, is_near_end};
use crate::cpu::CodeSize;
use crate::decode::{decode, form};
use crate::fast::Fast;
use crate::op::Op;
use crate::ram::PAGE_SIZE;
use crate::table::{Flow, Table};

/// Most bytes from the first instruction of a group to its last, so that an [`Op::off`] holds them.
const GROUP_BYTES: u64 = 200;
/// A block's instructions: they may lead on through jumps, calls and returns within the page.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) instructions: Vec<(Instruction, Class)>,
    /// What is executed after the last of them, if that does not say otherwise.
    pub(super) end: u64,
    /// RIP's valid bits.
    mask: u64,
    /// Where calls return to that the block has gone on at the target of.
    returns: Vec<u64>,
    /// What follows is the interpreter's.
    pub(super) interpret: bool,
    /// What follows runs on into the next page.
    pub(super) runs_over: bool,
    /// Where the last turn of a loop that is written several times over begins.
    turn: usize,
    /// Those that are stepped, by group; each is relative to where its group begins.
    pub(super) steps: Vec<Op<Fast>>,
}

impl Listing {
    /// Reads instructions from the page with these bytes, beginning at `linear`; from two pages, one that lies in both.
    pub(super) fn read(&mut self, table: &Table<Fast>, is_64: bool, bytes: &[u8], linear: u64) {
        let code = if is_64 { CodeSize::Bits64 } else { CodeSize::Bits32 };
        self.mask = if is_64 { u64::MAX } else { 0xffff_ffff };
        let most = if bytes.len() > PAGE_SIZE as usize { 1 } else { BLOCK_OPS };
        self.turn = 0;
        self.instructions.clear();
        self.steps.clear();
        self.returns.clear();
        // Where the present group begins.
        let mut group = None;
        self.interpret = false;
        self.runs_over = false;
        self.end = linear;
        let mut decoder = Decoder::with_ip(code.bits(), bytes, linear, table.options);
        seek(&mut decoder, linear);
        let mut instruction = Instruction::default();
        while self.instructions.len() < most && decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if most > 1 && decoder.last_error() == DecoderError::NoMoreBytes && is_near_end(instruction.ip()) {
                self.runs_over = true;
                return;
            }
            let at = (instruction.ip() % PAGE_SIZE) as usize;
            let form = form(table, &instruction, code, &bytes[at..at + instruction.len()]);
            let class = form.and_then(
                |form| match class(&instruction).filter(|_| is_64 || is_flat(&instruction)) {
                    // STI ends a block of the interpreter's only where it lets interrupts in.
                    Some(class) if form.flow == Flow::End && class != Class::Flag => None,
                    Some(class) if leads_somewhere(&instruction, class) => Some(class),
                    Some(_) => None,
                    None if can_be_stepped(&instruction, form.flow) => {
                        let from = group.filter(|from| instruction.ip() - from < GROUP_BYTES);
                        let off = from.map_or(0, |from| instruction.ip() - from);
                        let decoded = decode(None, table, code, &bytes[at..], off as u8).ok()?;
                        group = Some(instruction.ip() - off);
                        self.steps.push(decoded.op);
                        let first = off == 0;
                        Some(Class::Stepped { first })
                    }
                    None => None,
                },
            );
            let Some(class) = class else {
                self.interpret = true;
                return;
            };
            if !matches!(class, Class::Stepped { .. }) {
                group = None;
            }
            let (class, next) = self.goes_on(&instruction, class, linear);
            self.instructions.push((instruction, class));
            if class == Class::LoopOn {
                self.turn = self.instructions.len();
            }
            self.end = next;
            if next != self.follower(&instruction) {
                seek(&mut decoder, next);
            }
            let is_loop = matches!(class, Class::JumpIf) && instruction.near_branch_target() <= instruction.ip();
            if class.ends_block() || is_loop {
                return;
            }
        }
    }

    /// Whether the block goes on through a transfer, and where.
    fn goes_on(&mut self, instruction: &Instruction, class: Class, start: u64) -> (Class, u64) {
        let next = self.follower(instruction);
        let is_new = |listing: &Listing, target: u64| {
            let is_near = target / PAGE_SIZE == instruction.ip() / PAGE_SIZE;
            let mut turn = listing.instructions[listing.turn..].iter();
            is_near && turn.all(|(other, _)| other.ip() != target)
        };
        // A short loop is written several times over, as long as a whole turn fits.
        let is_loop = |listing: &Listing, target: u64| {
            let length = listing.instructions.len() + 1;
            target == start && length - listing.turn <= BLOCK_OPS - length
        };
        match class {
            Class::JumpIf if is_loop(self, instruction.near_branch_target()) => (Class::LoopOn, start),
            Class::Jump if is_new(self, instruction.near_branch_target()) => {
                (Class::JumpOn, instruction.near_branch_target())
            }
            Class::Call if is_new(self, instruction.near_branch_target()) => {
                self.returns.push(next);
                (Class::CallOn, instruction.near_branch_target())
            }
            Class::Return => match self.returns.pop() {
                Some(to) if is_new(self, to) => (Class::ReturnOn { to }, to),
                _ => (class, next),
            },
            _ => (class, next),
        }
    }

    /// The address behind the instruction.
    fn follower(&self, instruction: &Instruction) -> u64 {
        instruction.next_ip() & self.mask
    }

    /// Where the first instruction ends, from the start of its page.
    pub(super) fn first_end(&self) -> usize {
        self.places().next().map_or(0, |place| place.end)
    }

    /// Where the instructions' bytes are in the page.
    pub(super) fn places(&self) -> impl Iterator<Item = core::ops::Range<usize>> + use<'_> {
        self.instructions.iter().map(|(instruction, _)| {
            let at = (instruction.ip() % PAGE_SIZE) as usize;
            at..at + instruction.len()
        })
    }

    pub(super) fn len(&self) -> usize {
        self.instructions.len()
    }

    /// So much of it is stepped that it is better interpreted.
    pub(super) fn is_better_interpreted(&self) -> bool {
        let is_wide = |(instruction, class): &&(Instruction, Class)| {
            matches!(class, Class::Stepped { .. }) && is_wide(instruction)
        };
        3 * self.instructions.iter().filter(is_wide).count() > self.len()
    }

    /// Leaves the instructions from number `length` on to the interpreter.
    pub(super) fn truncate(&mut self, length: usize) {
        if let Some((first, _)) = self.instructions.get(length) {
            self.end = first.ip();
            self.interpret = true;
            self.runs_over = false;
            self.instructions.truncate(length);
        }
    }
}

/// Has the decoder of a page go on at this address in it.
fn seek(decoder: &mut Decoder<'_>, address: u64) {
    // The page's bytes are all there, so every place in it is.
    let _ = decoder.set_position((address % PAGE_SIZE) as usize);
    decoder.set_ip(address);
}

/// A direct transfer has a target that no mode faults on.
fn leads_somewhere(instruction: &Instruction, class: Class) -> bool {
    match class {
        Class::Jump | Class::JumpIf | Class::JumpIfZero | Class::Loop | Class::Call => {
            is_canonical(instruction.near_branch_target())
        }
        _ => true,
    }
}

/// Canonical with four levels of paging, and so with five.
pub(super) fn is_canonical(address: u64) -> bool {
    address.wrapping_add(1 << 47) >> 48 == 0
}
