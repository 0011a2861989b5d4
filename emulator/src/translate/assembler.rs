//! Bytes of the few host instructions that translated code is glued together with. None of them changes a flag.

/// RCX: the one register that a branch tests without flags.
pub(super) const COUNTER: u8 = 1;
/// RSP, which leads to the [`Frame`](super::state::Frame).
pub(super) const STATE: u8 = 4;
/// R10: linear addresses, and targets of jumps.
pub(super) const ADDRESS: u8 = 10;
/// R11: what is added to a linear address.
pub(super) const ADDEND: u8 = 11;

/// Where guest registers live: in a host register, or in the frame.
const HOMES: [Option<u8>; 16] = [
    Some(0),
    Some(9),
    Some(2),
    Some(3),
    Some(8),
    Some(5),
    Some(6),
    Some(7),
    None,
    None,
    None,
    None,
    Some(12),
    Some(13),
    Some(14),
    Some(15),
];

/// The host register that a guest register lives in, if it does.
pub(super) fn home(guest: u8) -> Option<u8> {
    HOMES[usize::from(guest & 15)]
}

/// The home of the guest's RSP.
pub(super) const GUEST_STACK: u8 = 8;
/// The home of the guest's RCX.
pub(super) const GUEST_COUNTER: u8 = 9;
/// The home of the guest's RBP.
pub(super) const GUEST_FRAME: u8 = 5;

/// A memory operand of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) base: Option<u8>,
    /// Register and left shift.
    pub(super) index: Option<(u8, u8)>,
    pub(super) displacement: i32,
}

impl Memory {
    pub(super) fn based(base: u8, displacement: i32) -> Memory {
        Memory {
            base: Some(base),
            index: None,
            displacement,
        }
    }

    /// In the frame.
    pub(super) fn frame(displacement: i32) -> Memory {
        Memory::based(STATE, displacement)
    }

    /// In a table of the frame, at `index` × 8.
    pub(super) fn table(index: u8, displacement: i32) -> Memory {
        Memory {
            base: Some(STATE),
            index: Some((index, 3)),
            displacement,
        }
    }

    pub(super) fn sum(base: u8, index: u8, displacement: i32) -> Memory {
        Memory {
            base: Some(base),
            index: Some((index, 0)),
            displacement,
        }
    }
}

/// The place of a distance that is filled in later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Short(usize);

/// Instructions that will be at a known place of the buffer.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    bytes: Vec<u8>,
    base: usize,
}

impl Assembler {
    /// Begins at `base` of the buffer.
    pub(super) fn begin(&mut self, base: usize) {
        self.bytes.clear();
        self.base = base;
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the next instruction will be in the buffer.
    pub(super) fn here(&self) -> usize {
        self.base + self.bytes.len()
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn word(&mut self, value: i32) {
        self.raw(&value.to_le_bytes());
    }

    fn prefix(&mut self, wide: bool, reg: u8, index: u8, base: u8) {
        let rex = u8::from(wide) << 3 | reg >> 3 << 2 | index >> 3 << 1 | base >> 3;
        if rex != 0 {
            self.bytes.push(0x40 | rex);
        }
    }

    fn operand(&mut self, reg: u8, memory: Memory) {
        let (reg, displacement) = ((reg & 7) << 3, memory.displacement);
        let sib = |base: u8| match memory.index {
            Some((index, shift)) => Some(shift << 6 | (index & 7) << 3 | base & 7),
            // RSP and R12 as a base, and no base, need a SIB byte.
            None => (base & 7 == 4).then_some(0x20 | base & 7),
        };
        let Some(base) = memory.base else {
            let sib = memory
                .index
                .map_or(0x25, |(index, shift)| shift << 6 | (index & 7) << 3 | 5);
            self.raw(&[reg | 4, sib]);
            return self.word(displacement);
        };
        let mode = match i8::try_from(displacement) {
            // RBP and R13 as a base need a displacement.
            Ok(0) if base & 7 != 5 => 0,
            Ok(_) => 1,
            Err(_) => 2,
        };
        match sib(base) {
            Some(sib) => self.raw(&[mode << 6 | reg | 4, sib]),
            None => self.bytes.push(mode << 6 | reg | base & 7),
        }
        match mode {
            0 => {}
            1 => self.bytes.push(displacement as u8),
            _ => self.word(displacement),
        }
    }

    /// An instruction with a register and a memory operand.
    pub(super) fn with_memory(&mut self, wide: bool, opcode: u8, reg: u8, memory: Memory) {
        self.prefix(
            wide,
            reg,
            memory.index.map_or(0, |(index, _)| index),
            memory.base.unwrap_or(0),
        );
        self.bytes.push(opcode);
        self.operand(reg, memory);
    }

    /// MOV r64, m64.
    pub(super) fn load(&mut self, register: u8, memory: Memory) {
        self.with_memory(true, 0x8b, register, memory);
    }

    /// MOV m64, r64.
    pub(super) fn store(&mut self, memory: Memory, register: u8) {
        self.with_memory(true, 0x89, register, memory);
    }

    /// MOVUPS, or VMOVUPS of 32 bytes if they are `whole`, in the direction that the opcode says; without an index.
    pub(super) fn move_vector(&mut self, opcode: u8, whole: bool, register: u8, memory: Memory) {
        if whole {
            let inverted = u8::from(register < 8) << 7;
            self.raw(&[0xc5, inverted | 0x7c, opcode]);
        } else {
            self.prefix(false, register, 0, memory.base.unwrap_or(0));
            self.raw(&[0x0f, opcode]);
        }
        self.operand(register, memory);
    }

    /// LDMXCSR (2) or STMXCSR (3).
    pub(super) fn mxcsr(&mut self, operation: u8, memory: Memory) {
        self.raw(&[0x0f]);
        self.with_memory(false, 0xae, operation, memory);
    }

    /// LEA of 64 or 32 bits.
    pub(super) fn lea(&mut self, wide: bool, register: u8, memory: Memory) {
        self.with_memory(wide, 0x8d, register, memory);
    }

    /// MOV of 64 bits.
    pub(super) fn copy(&mut self, to: u8, from: u8) {
        self.prefix(true, to, 0, from);
        self.raw(&[0x8b, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// MOV of 32 bits, which clears the others.
    pub(super) fn copy_32(&mut self, to: u8, from: u8) {
        self.prefix(false, to, 0, from);
        self.raw(&[0x8b, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// MOV r, imm in its shortest form.
    pub(super) fn constant(&mut self, register: u8, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            self.prefix(false, 0, 0, register);
            self.bytes.push(0xb8 | register & 7);
            self.word(value as i32);
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.prefix(true, 0, 0, register);
            self.raw(&[0xc7, 0xc0 | register & 7]);
            self.word(value);
        } else {
            self.prefix(true, 0, 0, register);
            self.bytes.push(0xb8 | register & 7);
            self.raw(&value.to_le_bytes());
        }
    }

    fn shift(&mut self, implied: u8, to: u8, from: u8, count: u8) {
        let inverted = u8::from(to < 8) << 7 | 1 << 6 | u8::from(from < 8) << 5;
        let modrm = 0xc0 | (to & 7) << 3 | from & 7;
        self.raw(&[0xc4, inverted | 2, 0x80 | (!count & 15) << 3 | implied, 0xf7, modrm]);
    }

    /// SHRX of 64 bits.
    pub(super) fn shift_right(&mut self, to: u8, from: u8, count: u8) {
        self.shift(3, to, from, count);
    }

    /// SHLX of 64 bits.
    pub(super) fn shift_left(&mut self, to: u8, from: u8, count: u8) {
        self.shift(1, to, from, count);
    }

    fn bits(&mut self, implied: u8, to: u8, from: u8, mask: u8) {
        let inverted = u8::from(to < 8) << 7 | 1 << 6 | u8::from(mask < 8) << 5;
        let modrm = 0xc0 | (to & 7) << 3 | mask & 7;
        self.raw(&[0xc4, inverted | 2, 0x80 | (!from & 15) << 3 | implied, 0xf5, modrm]);
    }

    /// PEXT of 64 bits: those of `mask`, side by side.
    pub(super) fn extract(&mut self, to: u8, from: u8, mask: u8) {
        self.bits(2, to, from, mask);
    }

    /// PDEP of 64 bits: puts them there again.
    pub(super) fn deposit(&mut self, to: u8, from: u8, mask: u8) {
        self.bits(3, to, from, mask);
    }

    /// MOVZX r32, r8 of a register's low byte.
    pub(super) fn low_byte(&mut self, to: u8, from: u8) {
        self.raw(&[
            0x40 | to >> 3 << 2 | from >> 3,
            0x0f,
            0xb6,
            0xc0 | (to & 7) << 3 | from & 7,
        ]);
    }

    /// MOVZX r32, r16.
    pub(super) fn low_word(&mut self, to: u8, from: u8) {
        self.raw(&[
            0x40 | to >> 3 << 2 | from >> 3,
            0x0f,
            0xb7,
            0xc0 | (to & 7) << 3 | from & 7,
        ]);
    }

    /// JRCXZ to what is bound later.
    pub(super) fn if_zero(&mut self) -> Short {
        self.raw(&[0xe3, 0]);
        Short(self.bytes.len())
    }

    /// JRCXZ to `target`, which lies at most 128 bytes back.
    pub(super) fn if_zero_back(&mut self, target: usize) {
        let distance = target as i64 - (self.here() + 2) as i64;
        debug_assert!((-128..0).contains(&distance));
        self.raw(&[0xe3, distance as u8]);
    }

    /// JMP to what is bound later.
    pub(super) fn skip(&mut self) -> Short {
        self.raw(&[0xeb, 0]);
        Short(self.bytes.len())
    }

    /// Makes `jump` lead here.
    pub(super) fn bind(&mut self, jump: Short) {
        let distance = self.bytes.len() - jump.0;
        debug_assert!(distance < 128);
        self.bytes[jump.0 - 1] = distance as u8;
    }

    /// JMP to `target` of the buffer; the place of its distance.
    pub(super) fn jump(&mut self, target: usize) -> usize {
        self.bytes.push(0xe9);
        self.distance(target)
    }

    /// Jcc to `target` of the buffer; the place of its distance.
    pub(super) fn jump_if(&mut self, condition: u8, target: usize) -> usize {
        self.raw(&[0x0f, 0x80 | condition]);
        self.distance(target)
    }

    /// CALL to `target` of the buffer.
    pub(super) fn call(&mut self, target: usize) {
        self.bytes.push(0xe8);
        self.distance(target);
    }

    fn distance(&mut self, target: usize) -> usize {
        let place = self.here();
        self.word(distance(place, target));
        place
    }

    /// RET.
    pub(super) fn ret(&mut self) {
        self.raw(&[0xc3]);
    }

    /// Makes the distance at `place` of the buffer lead to `target`.
    pub(super) fn bind_far(&mut self, place: usize, target: usize) {
        let at = place - self.base;
        self.bytes[at..at + 4].copy_from_slice(&distance(place, target).to_le_bytes());
    }

    /// JMP [m64].
    pub(super) fn jump_through(&mut self, memory: Memory) {
        self.with_memory(false, 0xff, 4, memory);
    }
}

/// What is written at `place` of the buffer to lead to `target`. Buffers are smaller than 2 GiB.
pub(super) fn distance(place: usize, target: usize) -> i32 {
    (target as i64 - (place as i64 + 4)) as i32
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpKind, Register};

    use super::*;

    fn decoded(write: impl FnOnce(&mut Assembler)) -> iced_x86::Instruction {
        let mut assembler = Assembler::default();
        write(&mut assembler);
        let mut decoder = Decoder::new(64, assembler.bytes(), DecoderOptions::NONE);
        let instruction = decoder.decode();
        assert!(!instruction.is_invalid());
        assert_eq!(instruction.len(), assembler.bytes().len());
        assert_eq!(instruction.rflags_modified(), 0, "{:?}", instruction.code());
        instruction
    }

    #[test]
    fn memory_operands_are_what_they_say_with_any_registers() {
        for base in [None, Some(0), Some(3), Some(4), Some(5), Some(12), Some(13), Some(15)] {
            for index in [None, Some((0, 0)), Some((5, 3)), Some((12, 2)), Some((13, 1))] {
                for displacement in [0, 1, -128, 128, i32::MIN] {
                    for reg in [1, 9] {
                        let memory = Memory {
                            base,
                            index,
                            displacement,
                        };
                        let lea = decoded(|a| a.lea(true, reg, memory));
                        let number = |register: Register| (register != Register::None).then(|| register.number() as u8);
                        assert_eq!(lea.op0_register().number() as u8, reg);
                        assert_eq!(number(lea.memory_base()), base);
                        assert_eq!(number(lea.memory_index()), index.map(|(index, _)| index));
                        assert_eq!(lea.memory_index_scale(), index.map_or(1, |(_, shift)| 1 << shift));
                        assert_eq!(lea.memory_displacement64() as i32, displacement, "{memory:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn constants_are_whole_whatever_form_they_take() {
        for value in [0, 1, 0x7fff_ffff, 0x8000_0000, u64::MAX, 1 << 40, 0xffff_ffff_8000_0000] {
            for register in [1, 10] {
                let mov = decoded(|a| a.constant(register, value));
                assert_eq!(mov.op0_register().number() as u8, register);
                assert_eq!(
                    (mov.immediate(1), mov.op0_register().is_gpr32()),
                    (value, value <= u64::from(u32::MAX))
                );
            }
        }
    }

    #[test]
    fn shifts_and_copies_name_the_registers_they_are_told() {
        let mut factory = InstructionInfoFactory::new();
        for (to, from) in [(1, 11), (11, 1), (3, 5), (10, 12)] {
            for write in [
                (|a, to, from| a.shift_right(to, from, STATE)) as fn(&mut Assembler, u8, u8),
                |a, to, from| a.shift_left(to, from, STATE),
                |a, to, from| a.copy(to, from),
                |a, to, from| a.copy_32(to, from),
                |a, to, from| a.low_byte(to, from),
                |a, to, from| a.low_word(to, from),
            ] {
                let instruction = decoded(|a| write(a, to, from));
                let registers = [0, 1].map(|i| instruction.op_register(i).full_register().number() as u8);
                assert_eq!(registers, [to, from], "{:?}", instruction.code());
                assert!(factory.info(&instruction).used_memory().is_empty());
            }
        }
    }

    #[test]
    fn bits_are_extracted_and_deposited_by_a_mask() {
        for (to, from, mask) in [(1, 10, 11), (10, 10, 11), (11, 1, 2)] {
            let pext = decoded(|a| a.extract(to, from, mask));
            let pdep = decoded(|a| a.deposit(to, from, mask));
            let codes = (pext.code(), pdep.code());
            assert_eq!(codes, (Code::VEX_Pext_r64_r64_rm64, Code::VEX_Pdep_r64_r64_rm64));
            for instruction in [pext, pdep] {
                let registers = [0, 1, 2].map(|i| instruction.op_register(i).number() as u8);
                assert_eq!(registers, [to, from, mask]);
            }
        }
    }

    #[test]
    fn moves_of_vectors_name_the_whole_register_or_its_low_half() {
        for register in [0, 7, 8, 15] {
            for displacement in [0, 960] {
                let memory = Memory::based(COUNTER, displacement);
                let low = decoded(|a| a.move_vector(0x10, false, register, memory));
                let whole = decoded(|a| a.move_vector(0x11, true, register, memory));
                let (xmm, ymm) = (
                    Register::XMM0 + i32::from(register),
                    Register::YMM0 + i32::from(register),
                );
                assert_eq!((low.code(), low.op0_register()), (Code::Movups_xmm_xmmm128, xmm));
                assert_eq!(
                    (whole.code(), whole.op1_register()),
                    (Code::VEX_Vmovups_ymmm256_ymm, ymm)
                );
                for moved in [low, whole] {
                    let at = (moved.memory_base(), moved.memory_displacement64());
                    assert_eq!(at, (Register::RCX, displacement as u64));
                }
            }
        }
    }

    #[test]
    fn jumps_lead_where_they_are_bound() {
        let mut assembler = Assembler::default();
        assembler.begin(1000);
        let place = assembler.jump_if(4, 0);
        assembler.bind_far(place, 1234);
        let mut decoder = Decoder::with_ip(64, assembler.bytes(), 1000, DecoderOptions::NONE);
        let jump = decoder.decode();
        assert_eq!(
            (jump.near_branch64(), jump.flow_control()),
            (1234, FlowControl::ConditionalBranch)
        );
        let jump = decoded(|a| {
            a.jump(77);
        });
        assert_eq!((jump.op0_kind(), jump.near_branch64()), (OpKind::NearBranch64, 77));
        let through = decoded(|a| a.jump_through(Memory::table(ADDEND, 0x1000)));
        assert_eq!(through.flow_control(), FlowControl::IndirectBranch);
    }
}
