//! PUSH, POP and LEAVE. RSP changes when the access has succeeded.

use iced_x86::{Instruction, OpKind};

use super::assembler::{ADDEND, ADDRESS, COUNTER, GUEST_FRAME, GUEST_STACK, Memory, home};
use super::block::{Emitter, Unencodable};
use super::memory::number;
use super::state::at;

impl Emitter<'_> {
    /// Checks the place under the top of the stack; its linear address is the new RSP.
    pub(super) fn below_top(&mut self) -> Memory {
        self.assembler.lea(true, ADDRESS, Memory::based(GUEST_STACK, -8));
        self.check(ADDRESS, 8, true);
        Memory::sum(ADDRESS, ADDEND, 0)
    }

    /// The place under the top becomes the top.
    pub(super) fn grow(&mut self) {
        self.assembler.copy(GUEST_STACK, ADDRESS);
    }

    /// Checks the top of the stack.
    pub(super) fn top(&mut self) -> Memory {
        self.check(GUEST_STACK, 8, false);
        Memory::sum(GUEST_STACK, ADDEND, 0)
    }

    /// Releases `bytes` of the stack.
    pub(super) fn shrink(&mut self, bytes: i32) {
        self.assembler.lea(true, GUEST_STACK, Memory::based(GUEST_STACK, bytes));
    }

    pub(super) fn push(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        match instruction.op0_kind() {
            OpKind::Register => {
                let place = self.below_top();
                let value = self.value(number(instruction.op0_register()), COUNTER);
                self.assembler.store(place, value);
            }
            OpKind::Memory => {
                let linear = self.linear(instruction)?;
                self.check(linear, 8, false);
                self.assembler.load(COUNTER, Memory::sum(linear, ADDEND, 0));
                self.assembler.store(Memory::frame(at::SCRATCH), COUNTER);
                let place = self.below_top();
                self.assembler.load(COUNTER, Memory::frame(at::SCRATCH));
                self.assembler.store(place, COUNTER);
            }
            _ => {
                let place = self.below_top();
                self.assembler.constant(COUNTER, instruction.immediate(0));
                self.assembler.store(place, COUNTER);
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
            Some(GUEST_STACK) => self.assembler.load(GUEST_STACK, place),
            Some(home) => {
                self.assembler.load(home, place);
                self.shrink(8);
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
        self.check(GUEST_FRAME, 8, false);
        self.assembler.load(COUNTER, Memory::sum(GUEST_FRAME, ADDEND, 0));
        self.assembler.lea(true, GUEST_STACK, Memory::based(GUEST_FRAME, 8));
        self.assembler.copy(GUEST_FRAME, COUNTER);
        Ok(())
    }
}
