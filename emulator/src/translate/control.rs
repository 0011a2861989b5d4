//! Flags that the host does not keep for the guest, PUSHF, and the time-stamp counter.
//!
//! Those flags are in the frame. CLI, CLD and STD change one there; none of them lets anything in that had to wait. STI that
//! lets an interrupt in which somebody waits for is the interpreter's. If nobody does, interrupts still wait for one more
//! instruction: should that one be left to the interpreter, it is told (see `Site::follows_sti`).

use iced_x86::{Instruction, Mnemonic};

use super::assembler::{ADDEND, ADDRESS, COUNTER, Memory};
use super::block::{Emitter, Exit};
use super::state::at;
use crate::cpu::flags;

impl Emitter<'_> {
    /// CLI, STI, CLD, STD. STI `enables` if whoever leaves before the next instruction can tell.
    pub(super) fn change_flag(&mut self, instruction: &Instruction, enables: bool) {
        match instruction.mnemonic() {
            Mnemonic::Cli => {
                self.check_privilege();
                self.set_flag(flags::IF, false);
            }
            Mnemonic::Sti => {
                self.check_privilege();
                self.assembler.load(ADDRESS, Memory::frame(at::CONTROL));
                self.assembler.constant(ADDEND, flags::IF);
                self.assembler.extract(COUNTER, ADDRESS, ADDEND);
                self.assembler.store(Memory::frame(at::WAS_ENABLED), COUNTER);
                let off = self.assembler.if_zero();
                let on = self.assembler.skip();
                self.assembler.bind(off);
                if enables {
                    self.assembler.load(COUNTER, Memory::frame(at::AWAITED));
                    let unawaited = self.assembler.if_zero();
                    self.exit(Exit::Interpret);
                    self.assembler.bind(unawaited);
                    self.assembler
                        .lea(true, ADDRESS, Memory::based(ADDRESS, flags::IF as i32));
                    self.assembler.store(Memory::frame(at::CONTROL), ADDRESS);
                } else {
                    self.exit(Exit::Interpret);
                }
                self.assembler.bind(on);
            }
            mnemonic => self.set_flag(flags::DF, mnemonic == Mnemonic::Std),
        }
    }

    /// Leaves if the program may not change IF.
    fn check_privilege(&mut self) {
        self.assembler.load(COUNTER, Memory::frame(at::UNPRIVILEGED));
        let may = self.assembler.if_zero();
        self.exit(Exit::Interpret);
        self.assembler.bind(may);
    }

    fn set_flag(&mut self, flag: u64, value: bool) {
        self.assembler.load(ADDRESS, Memory::frame(at::CONTROL));
        self.keep(ADDRESS, !flag & 0xffff_ffff);
        if value {
            self.assembler.lea(true, ADDRESS, Memory::based(ADDRESS, flag as i32));
        }
        self.assembler.store(Memory::frame(at::CONTROL), ADDRESS);
    }

    /// Clears the bits of a register that are not in `mask`.
    fn keep(&mut self, register: u8, mask: u64) {
        self.assembler.constant(ADDEND, mask);
        self.assembler.extract(register, register, ADDEND);
        self.assembler.deposit(register, register, ADDEND);
    }

    /// PUSHF.
    pub(super) fn push_flags(&mut self) {
        // Onto the private stack, and off it.
        self.assembler.raw(&[0x9c, 0x59]);
        self.keep(COUNTER, flags::STATUS);
        self.assembler.load(ADDRESS, Memory::frame(at::CONTROL));
        self.assembler.lea(true, COUNTER, Memory::sum(COUNTER, ADDRESS, 0));
        self.assembler.store(Memory::frame(at::SCRATCH), COUNTER);
        let place = self.below_top();
        self.assembler.load(COUNTER, Memory::frame(at::SCRATCH));
        self.store_word(place, COUNTER);
        self.grow();
    }

    /// RDTSC, RDTSCP.
    pub(super) fn read_clock(&mut self, instruction: &Instruction) {
        let resume = self.behind_exit();
        let aux = instruction.mnemonic() == Mnemonic::Rdtscp;
        self.exit(Exit::Clock { resume, aux });
    }
}
