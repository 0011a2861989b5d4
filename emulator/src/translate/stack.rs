//! PUSH, POP and LEAVE. RSP changes when the access has succeeded.

use iced_x86::{Instruction, OpKind};

use super::assembler::{ADDEND, ADDRESS, COUNTER, GUEST_FRAME, GUEST_STACK, Memory, home};
use super::block::{Emitter, Unencodable};
use super::memory::number;
use super::state::at;

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
