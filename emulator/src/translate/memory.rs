//! Memory operands: their linear address, and the check that leads to the host's.
//!
//! The check changes no flag. The address's page number selects a slot; the slot's key, a negated page address, is added to the
//! address of the operand's last byte, and nothing is left above the page offset if the whole operand lies in that page:
//! ```text
//! shrx r11, va, rsp      ; RSP as a count is 12
//! movzx r11d, r11b
//! mov rcx, [rsp + r11*8 + keys]
//! lea rcx, [rcx + va + size - 1]
//! shrx rcx, rcx, rsp
//! jrcxz hit
//! (leave)
//! hit: mov r11, [rsp + r11*8 + addends]
//! ```

use iced_x86::{Instruction, Register};

use super::assembler::{ADDEND, ADDRESS, COUNTER, Memory, STATE, Short, home};
use super::block::{Emitter, Exit, Unencodable};
use super::listing::is_canonical;
use super::state::at;

/// A 64-bit register by number.
pub(super) fn number(register: Register) -> u8 {
    register.full_register().number() as u8
}

/// The memory operand's addresses have 32 bits.
fn is_narrow(instruction: &Instruction) -> bool {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let is_32 = |register: Register| register.is_gpr32() || register == Register::EIP;
    is_32(base) || is_32(index) || instruction.memory_displ_size() == 4
}

impl Emitter<'_> {
    /// A guest register's value, in its home or in `temporary`.
    pub(super) fn value(&mut self, guest: u8, temporary: u8) -> u8 {
        home(guest).unwrap_or_else(|| {
            self.assembler.load(temporary, Memory::frame(at::gpr(guest)));
            temporary
        })
    }

    /// The operand's offset, if no register adds to it.
    fn constant_offset(instruction: &Instruction) -> Option<u64> {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let is_constant = index == Register::None && matches!(base, Register::None | Register::RIP | Register::EIP);
        let offset = instruction.memory_displacement64();
        is_constant.then_some(if is_narrow(instruction) {
            offset & 0xffff_ffff
        } else {
            offset
        })
    }

    /// The operand's offset as registers of the host; those without a home are in the address and the counter.
    fn offset(&mut self, instruction: &Instruction) -> Memory {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let base = (base != Register::None).then(|| self.value(number(base), ADDRESS));
        let index = (index != Register::None).then(|| {
            let shift = instruction.memory_index_scale().trailing_zeros() as u8;
            (self.value(number(index), COUNTER), shift)
        });
        Memory {
            base,
            index,
            displacement: instruction.memory_displacement64() as i32,
        }
    }

    /// The linear address of the memory operand, in the register that is returned: a home, or the address.
    pub(super) fn linear(&mut self, instruction: &Instruction) -> Result<u8, Unencodable> {
        let segment = match instruction.segment_prefix() {
            Register::FS => Some(0),
            Register::GS => Some(1),
            _ => None,
        };
        if let Some(offset) = Emitter::constant_offset(instruction) {
            let Some(segment) = segment else {
                self.assembler.constant(ADDRESS, offset);
                return Ok(ADDRESS);
            };
            // The modelled processor finds fault with the offset already.
            if !is_canonical(offset) {
                return Err(Unencodable);
            }
            self.assembler.load(ADDRESS, Memory::frame(at::base(segment)));
            if let Ok(offset) = i32::try_from(offset as i64) {
                self.assembler.lea(true, ADDRESS, Memory::based(ADDRESS, offset));
            } else {
                self.assembler.constant(COUNTER, offset);
                self.assembler.lea(true, ADDRESS, Memory::sum(ADDRESS, COUNTER, 0));
            }
            return Ok(ADDRESS);
        }
        let narrow = is_narrow(instruction);
        let offset = self.offset(instruction);
        if let (Some(base), None, 0, None, false) = (offset.base, offset.index, offset.displacement, segment, narrow) {
            return Ok(base);
        }
        self.assembler.lea(!narrow, ADDRESS, offset);
        if let Some(segment) = segment {
            if !narrow {
                self.check_canonical();
            }
            self.assembler.load(COUNTER, Memory::frame(at::base(segment)));
            self.assembler.lea(true, ADDRESS, Memory::sum(ADDRESS, COUNTER, 0));
        }
        Ok(ADDRESS)
    }

    /// Leaves if the address is not canonical, or would not be with four levels of paging.
    fn check_canonical(&mut self) {
        self.assembler.constant(COUNTER, 1 << 47);
        self.assembler.lea(true, COUNTER, Memory::sum(COUNTER, ADDRESS, 0));
        self.assembler.constant(ADDEND, 48);
        self.assembler.shift_right(COUNTER, COUNTER, ADDEND);
        let canonical = self.assembler.if_zero();
        self.exit(Exit::Interpret);
        self.assembler.bind(canonical);
    }

    /// Leaves if the address in `linear` is not a multiple of `alignment`, a power of two.
    pub(super) fn check_alignment(&mut self, linear: u8, alignment: u8) {
        self.assembler
            .constant(ADDEND, 64 - u64::from(alignment.trailing_zeros()));
        self.assembler.shift_left(COUNTER, linear, ADDEND);
        let aligned = self.assembler.if_zero();
        self.exit(Exit::Interpret);
        self.assembler.bind(aligned);
    }

    /// Leaves if the operand at `linear` is not in the TLB; what must be added to its address is in the addend then.
    pub(super) fn check(&mut self, linear: u8, size: u8, writes: bool) {
        let hit = self.probe(linear, size, writes);
        if linear != ADDRESS {
            self.assembler.copy(ADDRESS, linear);
        }
        self.miss(size, writes);
        self.assembler.bind(hit);
        self.load_addend(writes);
    }

    /// As `check`, but jumps where it would leave; the place of that jump.
    pub(super) fn check_or_jump(&mut self, linear: u8, size: u8, writes: bool) -> usize {
        let hit = self.probe(linear, size, writes);
        let place = self.assembler.jump(0);
        self.assembler.bind(hit);
        self.load_addend(writes);
        place
    }

    fn probe(&mut self, linear: u8, size: u8, writes: bool) -> Short {
        let keys = at::keys(self.sort.context, writes);
        self.assembler.shift_right(ADDEND, linear, STATE);
        self.assembler.low_byte(ADDEND, ADDEND);
        self.assembler.load(COUNTER, Memory::table(ADDEND, keys));
        self.assembler
            .lea(true, COUNTER, Memory::sum(COUNTER, linear, i32::from(size) - 1));
        self.assembler.shift_right(COUNTER, COUNTER, STATE);
        self.assembler.if_zero()
    }

    fn load_addend(&mut self, writes: bool) {
        let keys = at::keys(self.sort.context, writes);
        self.assembler.load(ADDEND, Memory::table(ADDEND, keys + at::ADDENDS));
    }

    /// LEA.
    pub(super) fn address_of(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let destination = instruction.op0_register();
        let guest = number(destination);
        let to = home(guest).unwrap_or(ADDRESS);
        let wide = destination.is_gpr64() && !is_narrow(instruction);
        if let Some(offset) = Emitter::constant_offset(instruction) {
            self.assembler
                .constant(to, if wide { offset } else { offset & 0xffff_ffff });
        } else {
            let offset = self.offset(instruction);
            self.assembler.lea(wide, to, offset);
        }
        if home(guest).is_none() {
            self.assembler.store(Memory::frame(at::gpr(guest)), to);
        }
        Ok(())
    }
}
