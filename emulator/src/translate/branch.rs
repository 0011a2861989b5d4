//! Control transfers.
//!
//! A target that is not canonical is a fault of the transfer itself. Direct ones are looked at when they are translated; an
//! indirect one that the jump cache knows has been looked at before, so that the lookup comes before anything changes.

use iced_x86::{Code, Instruction, OpKind};

use super::assembler::{ADDEND, ADDRESS, COUNTER, GUEST_COUNTER, Memory};
use super::block::{Emitter, Exit, Unencodable};
use super::class::Class;
use super::memory::number;
use super::state::at;

impl Emitter<'_> {
    pub(super) fn transfer(&mut self, instruction: &Instruction, class: Class) -> Result<(), Unencodable> {
        match class {
            Class::Jump => self.go(instruction.near_branch_target()),
            Class::JumpIf => {
                let condition = instruction.condition_code() as u8 - 1;
                self.branch(condition, instruction.near_branch_target());
            }
            Class::LoopOn => {
                // The opposite.
                let condition = (instruction.condition_code() as u8 - 1) ^ 1;
                let behind = instruction.next_ip();
                self.branch(condition, if self.sort.is_64 { behind } else { behind & 0xffff_ffff });
            }
            Class::JumpIfZero => {
                match instruction.code() {
                    Code::Jecxz_rel8_64 | Code::Jecxz_rel8_32 => self.assembler.copy_32(COUNTER, GUEST_COUNTER),
                    _ => self.assembler.copy(COUNTER, GUEST_COUNTER),
                }
                let zero = self.assembler.if_zero();
                let not_zero = self.assembler.skip();
                self.assembler.bind(zero);
                self.jump_away(instruction.near_branch_target());
                self.assembler.bind(not_zero);
            }
            Class::Loop => {
                let wide = instruction.code() == Code::Loop_rel8_64_RCX;
                self.assembler
                    .lea(wide, GUEST_COUNTER, Memory::based(GUEST_COUNTER, -1));
                self.assembler.copy(COUNTER, GUEST_COUNTER);
                let done = self.assembler.if_zero();
                self.jump_away(instruction.near_branch_target());
                self.assembler.bind(done);
            }
            Class::JumpOn => {}
            Class::CallOn => self.push_return(instruction),
            Class::Call => {
                self.push_return(instruction);
                self.go(instruction.near_branch_target());
            }
            Class::Return => {
                let release = self.pop_return(instruction);
                self.leave_for_found(release);
            }
            Class::ReturnOn { to } => {
                let release = self.pop_return(instruction);
                self.assembler.constant(COUNTER, to.wrapping_neg());
                self.assembler.lea(true, COUNTER, Memory::sum(COUNTER, ADDRESS, 0));
                let expected = self.assembler.if_zero();
                self.leave_for_found(release);
                self.assembler.bind(expected);
                self.shrink(release as i32);
            }
            Class::JumpIndirect => {
                self.target(instruction)?;
                self.look_up(Exit::Indirect { release: 0 });
                self.follow();
            }
            Class::CallIndirect => {
                self.target(instruction)?;
                self.look_up(Exit::Interpret);
                self.assembler.load(COUNTER, self.found());
                self.assembler.store(Memory::frame(at::SCRATCH), COUNTER);
                self.push_return(instruction);
                self.assembler.jump_through(Memory::frame(at::SCRATCH));
            }
            _ => return Err(Unencodable),
        }
        Ok(())
    }

    /// Pushes the return address.
    fn push_return(&mut self, instruction: &Instruction) {
        let place = self.below_top();
        self.assembler.constant(COUNTER, instruction.next_ip());
        self.store_word(place, COUNTER);
        self.grow();
    }

    /// Loads the return address; how many bytes are to be released then.
    fn pop_return(&mut self, instruction: &Instruction) -> u32 {
        let place = self.top();
        self.load_word(ADDRESS, place);
        let word = u32::from(self.word());
        match instruction.code() {
            Code::Retnq_imm16 | Code::Retnd_imm16 => word + u32::from(instruction.immediate16()),
            _ => word,
        }
    }

    /// Returns to the address through the jump cache.
    fn leave_for_found(&mut self, release: u32) {
        self.look_up(Exit::Indirect { release });
        self.shrink(release as i32);
        self.refund();
        self.follow();
    }

    /// The target of an indirect transfer, in the address.
    fn target(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        if instruction.op0_kind() == OpKind::Register {
            let value = self.value(number(instruction.op0_register()), ADDRESS);
            if !self.sort.is_64 {
                self.assembler.copy_32(ADDRESS, value);
            } else if value != ADDRESS {
                self.assembler.copy(ADDRESS, value);
            }
            return Ok(());
        }
        let linear = self.linear(instruction)?;
        self.check(linear, self.word(), false);
        self.load_word(ADDRESS, Memory::sum(linear, ADDEND, 0));
        Ok(())
    }

    /// The host's address in the entry that a lookup found.
    fn found(&self) -> Memory {
        Memory::table(ADDEND, self.jumps() + at::JUMP_HOST)
    }

    /// Goes to what a lookup found.
    fn follow(&mut self) {
        let found = self.found();
        self.assembler.jump_through(found);
    }
}
