//! DIV of 32 and 64 bits with an upper half of zero, as programs have it: then only a divisor of zero is a fault.

use iced_x86::{Code, Instruction, OpKind};

use super::assembler::{ADDEND, ADDRESS, COUNTER, Memory};
use super::block::{Emitter, Exit, Unencodable};
use super::memory::number;

/// RDX, which is at home in the host's.
const UPPER: u8 = 2;

impl Emitter<'_> {
    pub(super) fn divide(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let wide = instruction.code() == Code::Div_rm64;
        if instruction.op0_kind() == OpKind::Register {
            let divisor = self.value(number(instruction.op0_register()), ADDRESS);
            self.copy_of_width(wide, ADDRESS, divisor);
        } else {
            let linear = self.linear(instruction)?;
            self.check(linear, if wide { 8 } else { 4 }, false);
            let operand = Memory::sum(linear, ADDEND, 0);
            self.assembler.with_memory(wide, 0x8b, ADDRESS, operand);
        }
        self.copy_of_width(wide, COUNTER, ADDRESS);
        let by_zero = self.assembler.if_zero();
        self.copy_of_width(wide, COUNTER, UPPER);
        let fits = self.assembler.if_zero();
        self.assembler.bind(by_zero);
        self.exit(Exit::Interpret);
        self.assembler.bind(fits);
        // DIV R10 or R10D
        self.assembler.raw(&[0x41 | u8::from(wide) << 3, 0xf7, 0xf2]);
        Ok(())
    }

    fn copy_of_width(&mut self, wide: bool, to: u8, from: u8) {
        if wide {
            self.assembler.copy(to, from);
        } else {
            self.assembler.copy_32(to, from);
        }
    }
}
