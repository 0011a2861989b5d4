//! PUSH, POP and LEAVE. RSP changes when the access has succeeded.
//!
//! Pushes that follow each other, as functions begin with them, and pops with the return behind them are checked at once. If that
//! fails they are done one by one, behind the block.

use iced_x86::{Instruction, OpKind, Register};

use super::assembler::{ADDEND, ADDRESS, COUNTER, GUEST_FRAME, GUEST_STACK, Memory, home};
use super::block::{Emitter, Unencodable};
use super::class::Class;
use super::memory::number;
use super::state::at;

/// Most that are checked at once.
const MOST: usize = 16;

/// How many of these push, or pop, 64-bit registers other than RSP.
pub(super) fn run_of(class: Class, instructions: &[(Instruction, Class)]) -> usize {
    let is_plain = |instruction: &Instruction| {
        let register = instruction.op0_register();
        instruction.op0_kind() == OpKind::Register && register.is_gpr64() && register != Register::RSP
    };
    let run = instructions.iter().take(MOST);
    run.take_while(|(instruction, other)| *other == class && is_plain(instruction))
        .count()
}

impl Emitter<'_> {
    /// Bytes that a push, a pop, a call and a return move.
    pub(super) fn word(&self) -> u8 {
        if self.sort.is_64 { 8 } else { 4 }
    }

    /// Loads that much.
    pub(super) fn load_word(&mut self, register: u8, from: Memory) {
        self.assembler.with_memory(self.sort.is_64, 0x8b, register, from);
    }

    /// Stores that much.
    pub(super) fn store_word(&mut self, to: Memory, register: u8) {
        self.assembler.with_memory(self.sort.is_64, 0x89, register, to);
    }

    /// Checks the place under the top of the stack; its linear address is the new RSP.
    pub(super) fn below_top(&mut self) -> Memory {
        let word = self.word();
        let below = Memory::based(GUEST_STACK, -i32::from(word));
        self.assembler.lea(self.sort.is_64, ADDRESS, below);
        self.check(ADDRESS, word, true);
        Memory::sum(ADDRESS, ADDEND, 0)
    }

    /// Checks what a register of the host points to.
    fn pointed(&mut self, register: u8) -> Memory {
        let linear = if self.sort.is_64 {
            register
        } else {
            self.assembler.copy_32(ADDRESS, register);
            ADDRESS
        };
        self.check(linear, self.word(), false);
        Memory::sum(linear, ADDEND, 0)
    }

    /// The place under the top becomes the top.
    pub(super) fn grow(&mut self) {
        self.assembler.copy(GUEST_STACK, ADDRESS);
    }

    /// Checks the top of the stack.
    pub(super) fn top(&mut self) -> Memory {
        if core::mem::take(&mut self.is_top_checked) {
            return Memory::sum(GUEST_STACK, ADDEND, 0);
        }
        self.pointed(GUEST_STACK)
    }

    /// Releases `bytes` of the stack.
    pub(super) fn shrink(&mut self, bytes: i32) {
        self.assembler
            .lea(self.sort.is_64, GUEST_STACK, Memory::based(GUEST_STACK, bytes));
    }

    pub(super) fn push(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        match instruction.op0_kind() {
            OpKind::Register => {
                let place = self.below_top();
                let value = self.value(number(instruction.op0_register()), COUNTER);
                self.store_word(place, value);
            }
            OpKind::Memory => {
                let linear = self.linear(instruction)?;
                self.check(linear, self.word(), false);
                self.load_word(COUNTER, Memory::sum(linear, ADDEND, 0));
                self.assembler.store(Memory::frame(at::SCRATCH), COUNTER);
                let place = self.below_top();
                self.assembler.load(COUNTER, Memory::frame(at::SCRATCH));
                self.store_word(place, COUNTER);
            }
            _ => {
                let place = self.below_top();
                self.assembler.constant(COUNTER, instruction.immediate(0));
                self.store_word(place, COUNTER);
            }
        }
        self.grow();
        Ok(())
    }

    /// Pushes that [`run_of`] has counted; the place of the jump that is taken if they cannot be done at once.
    pub(super) fn push_all(&mut self, instructions: &[(Instruction, Class)]) -> usize {
        let bytes = 8 * instructions.len() as i32;
        self.assembler.lea(true, ADDRESS, Memory::based(GUEST_STACK, -bytes));
        let place = self.check_or_jump(ADDRESS, bytes as u8, true);
        let mut left = bytes;
        for (instruction, _) in instructions {
            left -= 8;
            let value = self.value(number(instruction.op0_register()), COUNTER);
            self.assembler.store(Memory::sum(ADDRESS, ADDEND, left), value);
        }
        self.grow();
        place
    }

    /// The same of pops; and it checks the new top of the stack, too, if a return follows.
    pub(super) fn pop_all(&mut self, instructions: &[(Instruction, Class)], returns: bool) -> usize {
        let bytes = 8 * instructions.len() as i32;
        let checked = bytes as u8 + if returns { 8 } else { 0 };
        let jump = self.check_or_jump(GUEST_STACK, checked, false);
        for (place, (instruction, _)) in (0..).step_by(8).zip(instructions) {
            let guest = number(instruction.op0_register());
            let from = Memory::sum(GUEST_STACK, ADDEND, place);
            match home(guest) {
                Some(home) => self.assembler.load(home, from),
                None => {
                    self.assembler.load(COUNTER, from);
                    self.assembler.store(Memory::frame(at::gpr(guest)), COUNTER);
                }
            }
        }
        self.shrink(bytes);
        self.is_top_checked = returns;
        jump
    }

    pub(super) fn pop(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let guest = number(instruction.op0_register());
        let place = self.top();
        match home(guest) {
            // POP RSP leaves what was popped.
            Some(GUEST_STACK) => self.load_word(GUEST_STACK, place),
            Some(home) => {
                self.load_word(home, place);
                self.shrink(i32::from(self.word()));
            }
            None => {
                self.assembler.load(COUNTER, place);
                self.assembler.store(Memory::frame(at::gpr(guest)), COUNTER);
                self.shrink(8);
            }
        }
        Ok(())
    }

    pub(super) fn leave_frame(&mut self) -> Result<(), Unencodable> {
        let saved = self.pointed(GUEST_FRAME);
        self.load_word(COUNTER, saved);
        let above = Memory::based(GUEST_FRAME, i32::from(self.word()));
        self.assembler.lea(self.sort.is_64, GUEST_STACK, above);
        self.assembler.copy(GUEST_FRAME, COUNTER);
        Ok(())
    }
}
