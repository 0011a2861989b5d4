//! Random states with the values in them that matter, and encodings of an instruction's forms.

use iced_x86::{Code, Encoder, Instruction, MemorySize, OpCodeOperandKind, OpKind, Register};

/// A small generator (SplitMix64), so that a failure can be repeated.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// An integer, often a small or an extreme one.
    pub fn integer(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next(),
            1 => self.next() % 17,
            2 => [
                0,
                u64::MAX,
                1 << 63,
                i64::MAX as u64,
                0x8000_0000,
                0x7fff_ffff,
                0x8000,
                0x7fff,
            ][self.below(8)],
            _ => self.next() >> self.below(64),
        }
    }

    /// Bits of a single: special, near one, or any.
    fn single(&mut self) -> u32 {
        let sign = (self.next() as u32) << 31;
        let magnitude = match self.below(5) {
            0 => {
                const SPECIAL: [u32; 16] = [
                    0,
                    1,
                    0x7f_ffff,
                    0x80_0000,
                    0x80_0001,
                    0x3f80_0000,
                    0x3f80_0001,
                    0x7f7f_ffff,
                    0x7f80_0000,
                    0x7f80_0001,
                    0x7fc0_0000,
                    0x7fff_ffff,
                    0x4f00_0000,
                    0x4eff_ffff,
                    0x5f00_0000,
                    0x3f00_0000,
                ];
                SPECIAL[self.below(16)]
            }
            1 => self.next() as u32 & 0x7f_ffff,
            2 => {
                (120 + self.next() as u32 % 16) << 23 | self.next() as u32 & 0x7f_ffff & !(0x7f_ffff >> self.below(24))
            }
            3 => {
                let exponent = [1, 2, 24, 64, 126, 127, 190, 253, 254][self.below(9)];
                exponent << 23 | self.next() as u32 & 0x7f_ffff
            }
            _ => self.next() as u32 & 0x7fff_ffff,
        };
        sign | magnitude
    }

    /// Bits of a double: special, near one, near the limits of singles, or any.
    fn double(&mut self) -> u64 {
        let sign = self.next() << 63;
        let magnitude = match self.below(6) {
            0 => {
                const SPECIAL: [u64; 16] = [
                    0,
                    1,
                    0xf_ffff_ffff_ffff,
                    0x10_0000_0000_0000,
                    0x10_0000_0000_0001,
                    0x3ff0_0000_0000_0000,
                    0x3ff0_0000_0000_0001,
                    0x7fef_ffff_ffff_ffff,
                    0x7ff0_0000_0000_0000,
                    0x7ff0_0000_0000_0001,
                    0x7ff8_0000_0000_0000,
                    0x7fff_ffff_ffff_ffff,
                    0x41df_ffff_ffc0_0000,
                    0x41e0_0000_0000_0000,
                    0x43e0_0000_0000_0000,
                    0x3fe0_0000_0000_0000,
                ];
                SPECIAL[self.below(16)]
            }
            1 => self.next() & 0xf_ffff_ffff_ffff,
            2 => {
                (1016 + self.next() % 16) << 52
                    | self.next() & 0xf_ffff_ffff_ffff & !(0xf_ffff_ffff_ffff >> self.below(53))
            }
            // Around the largest, the smallest normal and the smallest single.
            3 => {
                [0x7e, 0x80, 0x369, 0x36a, 0x380, 0x381, 0x47e, 0x47f, 0x7fd][self.below(9)] << 52
                    | self.next() & 0xf_ffff_ffff_ffff
            }
            4 => f64::from(f32::from_bits(self.single())).to_bits() & !(1 << 63),
            _ => self.next() & !(1 << 63),
        };
        sign | magnitude
    }

    /// A vector of singles, doubles or integers.
    pub fn vector(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        match self.below(4) {
            0 => {
                for chunk in bytes.chunks_exact_mut(4) {
                    chunk.copy_from_slice(&self.single().to_le_bytes());
                }
            }
            1 => {
                for chunk in bytes.chunks_exact_mut(8) {
                    chunk.copy_from_slice(&self.double().to_le_bytes());
                }
            }
            2 => {
                for chunk in bytes.chunks_exact_mut(8) {
                    chunk.copy_from_slice(&self.integer().to_le_bytes());
                }
            }
            _ => {
                for chunk in bytes.chunks_exact_mut(8) {
                    chunk.copy_from_slice(&self.next().to_le_bytes());
                }
            }
        }
        bytes
    }

    /// An x87 register: valid numbers of every size, and every kind of special and unsupported one.
    pub fn extended(&mut self) -> [u8; 10] {
        let sign = self.next() as u16 & 0x8000;
        let integer = 1 << 63;
        let (exponent, significand) = match self.below(10) {
            0 => (0, 0),
            1 => (0x7fff, integer),
            2 => (0x7fff, self.next()),
            3 => (0, self.next() >> self.below(64)),
            4 => (self.next() as u16 & 0x7fff, self.next()),
            5 => (0x3fff, integer),
            6 => (0x3ff0 + self.next() as u16 % 0x60, self.next() | integer),
            7 => (
                0x3ff8 + self.next() as u16 % 16,
                (self.next() << self.below(64)) | integer,
            ),
            8 => (
                [1, 2, 0x3c00, 0x3c01, 0x3f80, 0x3f81, 0x407e, 0x43fe, 0x7ffd, 0x7ffe][self.below(10)],
                self.next() | integer,
            ),
            _ => (self.next() as u16 % 0x7fff, self.next() | integer),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
        bytes
    }
}

/// One encoding with a register for the r/m operand and one with memory, as far as the instruction has them; registers and
/// immediate are random, memory operands lie at rsi.
pub fn encodings(code: Code, random: &mut Random) -> Vec<(Vec<u8>, String)> {
    let info = code.op_code();
    let mut forms = Vec::new();
    for memory in [false, true] {
        let mut instruction = Instruction::new();
        instruction.set_code(code);
        let mut matters = false;
        let mut legal = true;
        for (i, kind) in info.op_kinds().iter().enumerate() {
            use OpCodeOperandKind as K;
            let i = i as u32;
            let register = |instruction: &mut Instruction, register: Register| {
                instruction.set_op_kind(i, OpKind::Register);
                instruction.set_op_register(i, register);
            };
            let at_rsi = |instruction: &mut Instruction| {
                instruction.set_op_kind(i, OpKind::Memory);
                instruction.set_memory_base(Register::RSI);
            };
            match kind {
                K::xmm_or_mem | K::ymm_or_mem | K::mm_or_mem | K::r32_or_mem | K::r64_or_mem if memory => {
                    matters = true;
                    at_rsi(&mut instruction);
                }
                K::mem => {
                    legal = memory;
                    matters = true;
                    at_rsi(&mut instruction);
                }
                K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_or_mem => {
                    register(&mut instruction, Register::XMM0 + random.below(16) as u32);
                }
                K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_or_mem => {
                    register(&mut instruction, Register::YMM0 + random.below(16) as u32);
                }
                K::mm_reg | K::mm_rm | K::mm_or_mem => {
                    register(&mut instruction, Register::MM0 + random.below(8) as u32);
                }
                K::r32_reg | K::r32_rm | K::r32_or_mem => {
                    register(&mut instruction, Register::EAX + random.below(4) as u32);
                }
                K::r64_reg | K::r64_rm | K::r64_or_mem => {
                    register(&mut instruction, Register::RAX + random.below(4) as u32);
                }
                K::st0 => register(&mut instruction, Register::ST0),
                K::sti_opcode => register(&mut instruction, Register::ST0 + random.below(8) as u32),
                K::ax => register(&mut instruction, Register::AX),
                K::imm8 => {
                    instruction.set_op_kind(i, OpKind::Immediate8);
                    instruction.set_immediate8(random.next() as u8 >> random.below(8));
                }
                K::seg_rDI => instruction.set_op_kind(i, OpKind::MemorySegRDI),
                other => panic!("{code:?}: operand {other:?}"),
            }
        }
        if !legal || memory && !matters {
            continue;
        }
        if info.memory_size() == MemorySize::Unknown && memory {
            continue;
        }
        let mut encoder = Encoder::new(64);
        encoder
            .encode(&instruction, 0)
            .unwrap_or_else(|error| panic!("{code:?}: {error}"));
        let text = format!(
            "{} with {:?}",
            info.instruction_string(),
            instruction
                .op_kinds()
                .zip(0..)
                .map(|(kind, i)| (kind, instruction.op_register(i)))
                .collect::<Vec<_>>()
        );
        forms.push((encoder.take_buffer(), text));
    }
    forms
}
