//! Random code: forms of all integer instructions and some others, and transfers between them.

use std::sync::OnceLock;

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, FlowControl, Instruction, Mnemonic,
    OpCodeOperandKind, Register,
};

use crate::dice::Dice;
use crate::machine::{CODE, DATA, HIGH};

/// The program's code, and where its instructions are.
pub struct Program {
    pub seed: u64,
    bits: u32,
    pub bytes: Vec<u8>,
    starts: Vec<u64>,
}

/// Space between two runs of instructions, so that they lie in different pages.
const PAGE: usize = 0x1000;

/// What instructions a program has most of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Integers,
    Sse,
    Avx,
}

/// Forms of 64-bit or 32-bit code with operands that the generator knows.
fn forms(family: Family, bits: u32) -> &'static [Code] {
    static FORMS: [[OnceLock<Vec<Code>>; 3]; 2] = [const { [const { OnceLock::new() }; 3] }; 2];
    let is_there = |code: Code| match bits {
        64 => code.op_code().mode64(),
        _ => code.op_code().mode32(),
    };
    let is_of = |code: Code| match family {
        Family::Integers => is_chosen(code.mnemonic()) && code.encoding() != EncodingKind::EVEX,
        Family::Sse => code.encoding() == EncodingKind::Legacy && has_any(code, &SSE),
        Family::Avx => code.encoding() == EncodingKind::VEX && has_any(code, &AVX),
    };
    FORMS[usize::from(bits == 64)][family as usize].get_or_init(|| {
        Code::values()
            .filter(|code| is_of(*code) && is_there(*code) && *code != Code::Bswap_r16)
            .filter(|code| code.encoding() != EncodingKind::XOP)
            .filter(|code| {
                let info = code.op_code();
                info.op_kinds().iter().all(|kind| is_known(*kind))
            })
            .collect()
    })
}

const SSE: [CpuidFeature; 10] = [
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::AES,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::SHA,
    CpuidFeature::GFNI,
];

const AVX: [CpuidFeature; 7] = [
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
    CpuidFeature::VAES,
    CpuidFeature::VPCLMULQDQ,
    CpuidFeature::GFNI,
];

fn has_any(code: Code, features: &[CpuidFeature]) -> bool {
    code.cpuid_features().iter().any(|feature| features.contains(feature))
}

fn is_chosen(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Mov | Movzx
            | Movsx
            | Movsxd
            | Movnti
            | Movbe
            | Bswap
            | Xchg
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Lea
            | Add
            | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Imul
            | Mul
            | Div
            | Idiv
            | Xadd
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Bsf
            | Bsr
            | Tzcnt
            | Lzcnt
            | Popcnt
            | Crc32
            | Bt
            | Bts
            | Btr
            | Btc
            | Andn
            | Bextr
            | Blsi
            | Blsmsk
            | Blsr
            | Bzhi
            | Mulx
            | Pdep
            | Pext
            | Rorx
            | Sarx
            | Shlx
            | Shrx
            | Adcx
            | Adox
            | Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
            | Seta
            | Setae
            | Setb
            | Setbe
            | Sete
            | Setg
            | Setge
            | Setl
            | Setle
            | Setne
            | Setno
            | Setnp
            | Setns
            | Seto
            | Setp
            | Sets
            | Clc
            | Stc
            | Cmc
            | Cld
            | Std
            | Lahf
            | Sahf
            | Mfence
            | Lfence
            | Sfence
            | Nop
            | Pause
            | Endbr64
            | Push
            | Pop
            | Leave
            | Pushfq
            | Pushfd
            | Popfq
            | Cli
            | Sti
            | Rdtscp
            | Rdtsc
            | Xlatb
            | Movaps
            | Movups
            | Movdqa
            | Movdqu
            | Movd
            | Movq
            | Movss
            | Movhps
            | Movlps
            | Movmskps
            | Pmovmskb
            | Paddd
            | Psubb
            | Pmulld
            | Pand
            | Pxor
            | Pcmpeqb
            | Pshufd
            | Pshufb
            | Palignr
            | Punpcklbw
            | Pinsrd
            | Pextrd
            | Pmovzxbw
            | Psrldq
            | Ptest
            | Shufps
            | Xorps
            | Addps
            | Addss
            | Mulsd
            | Divps
            | Sqrtsd
            | Cvtsi2sd
            | Cvttsd2si
            | Cvtps2pd
            | Ucomisd
            | Comiss
            | Cmpps
            | Aesenc
            | Pclmulqdq
            | Pblendvb
            | Stmxcsr
            | Ldmxcsr
            | Stac
            | Clac
    )
}

fn is_known(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(
        kind,
        mem | mem_offs
            | r8_or_mem
            | r16_or_mem
            | r32_or_mem
            | r64_or_mem
            | xmm_or_mem
            | xmm_rm
            | xmm_vvvv
            | xmm_is4
            | ymm_or_mem
            | ymm_rm
            | ymm_reg
            | ymm_vvvv
            | ymm_is4
            | r8_reg
            | r16_reg
            | r32_reg
            | r64_reg
            | xmm_reg
            | r16_rm
            | r32_rm
            | r64_rm
            | r8_opcode
            | r16_opcode
            | r32_opcode
            | r64_opcode
            | r32_vvvv
            | r64_vvvv
            | al
            | cl
            | ax
            | eax
            | rax
            | imm8
            | imm8_const_1
            | imm8sex16
            | imm8sex32
            | imm8sex64
            | imm16
            | imm32
            | imm32sex64
            | imm64
    )
}

fn register(dice: &mut Dice, bits: u32, bytes: u64) -> Register {
    let (all, low, other) = if bits == 64 { (16, 20, 8) } else { (8, 8, 5) };
    // RSP is spared a little.
    let number = match dice.below(all) {
        4 if !dice.one_in(8) => other,
        number => number,
    } as i32;
    match bytes {
        1 => Register::AL + dice.below(low) as i32,
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

/// Gives the instruction a memory operand.
fn point(dice: &mut Dice, bits: u32, instruction: &mut Instruction) {
    let is_64 = bits == 64;
    let narrow = !is_64 || dice.one_in(20);
    let pointer = |dice: &mut Dice| {
        let number = dice.choose(&[0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        let number = if is_64 { number } else { number % 8 };
        if narrow {
            Register::EAX + number
        } else {
            Register::RAX + number
        }
    };
    instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
    let near = dice.choose(&[0, 0, 8, 0x10, -8i64 as u64, 0x7e]);
    // What must be aligned is so, often.
    let near = if dice.one_in(3) { near & !31 } else { near };
    let near = if is_64 { near } else { near & 0xffff_ffff };
    instruction.set_memory_displacement64(near);
    match dice.below(10) {
        0 if is_64 => {
            instruction.set_memory_base(Register::RIP);
            instruction.set_memory_displacement64(dice.choose(&[0, HIGH]) + DATA + dice.below(0x2000));
        }
        1 => instruction.set_memory_displacement64(DATA + dice.below(0x1000)),
        2 | 3 => {
            instruction.set_memory_base(pointer(dice));
            let index = pointer(dice);
            if !matches!(index, Register::RSP | Register::ESP) {
                instruction.set_memory_index(index);
                instruction.set_memory_index_scale(1 << dice.below(4));
            }
        }
        4 => {
            let index = pointer(dice);
            if !matches!(index, Register::RSP | Register::ESP) {
                instruction.set_memory_index(index);
                instruction.set_memory_index_scale(2);
            }
            instruction.set_memory_displacement64(DATA);
        }
        _ => instruction.set_memory_base(pointer(dice)),
    }
    if dice.one_in(12) {
        let segment = dice.choose(&[Register::FS, Register::GS, Register::GS, Register::DS]);
        instruction.set_segment_prefix(segment);
    }
}

fn random(dice: &mut Dice, bits: u32, code: Code) -> Instruction {
    use OpCodeOperandKind::*;
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let to_memory = dice.one_in(2);
    let vectors = u64::from(bits) / 4;
    for (i, kind) in code.op_code().op_kinds().iter().enumerate() {
        let i = i as u32;
        let set = |instruction: &mut Instruction, register| {
            instruction.set_op_kind(i, iced_x86::OpKind::Register);
            instruction.set_op_register(i, register);
        };
        let memory = |dice: &mut Dice, instruction: &mut Instruction| {
            instruction.set_op_kind(i, iced_x86::OpKind::Memory);
            point(dice, bits, instruction);
        };
        match kind {
            mem => memory(dice, &mut instruction),
            mem_offs => {
                instruction.set_op_kind(i, iced_x86::OpKind::Memory);
                let half = if bits == 64 { dice.choose(&[0, HIGH]) } else { 0 };
                instruction.set_memory_displ_size(bits / 8);
                instruction.set_memory_displacement64(half + DATA + dice.below(0x1000));
            }
            r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem | xmm_or_mem | ymm_or_mem if to_memory => {
                memory(dice, &mut instruction);
                // Many may be locked; those that may not are undefined.
                let locks = matches!(
                    code.mnemonic(),
                    Mnemonic::Add | Mnemonic::Xadd | Mnemonic::Cmpxchg | Mnemonic::Bts
                );
                if locks && i == 0 && dice.one_in(2) {
                    instruction.set_has_lock_prefix(true);
                }
            }
            xmm_or_mem | xmm_reg | xmm_rm | xmm_vvvv | xmm_is4 => {
                let register = Register::XMM0 + dice.below(vectors) as i32;
                set(&mut instruction, register);
            }
            ymm_or_mem | ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 => {
                let register = Register::YMM0 + dice.below(vectors) as i32;
                set(&mut instruction, register);
            }
            r8_or_mem | r8_reg | r8_opcode => {
                let register = register(dice, bits, 1);
                set(&mut instruction, register);
            }
            r16_or_mem | r16_reg | r16_rm | r16_opcode => {
                let register = register(dice, bits, 2);
                set(&mut instruction, register);
            }
            r32_or_mem | r32_reg | r32_rm | r32_opcode | r32_vvvv => {
                let register = register(dice, bits, 4);
                set(&mut instruction, register);
            }
            r64_or_mem | r64_reg | r64_rm | r64_opcode | r64_vvvv => {
                let register = register(dice, bits, 8);
                set(&mut instruction, register);
            }
            al => set(&mut instruction, Register::AL),
            cl => set(&mut instruction, Register::CL),
            ax => set(&mut instruction, Register::AX),
            eax => set(&mut instruction, Register::EAX),
            rax => set(&mut instruction, Register::RAX),
            _ => {
                let kind = match kind {
                    imm8 | imm8_const_1 => iced_x86::OpKind::Immediate8,
                    imm8sex16 => iced_x86::OpKind::Immediate8to16,
                    imm8sex32 => iced_x86::OpKind::Immediate8to32,
                    imm8sex64 => iced_x86::OpKind::Immediate8to64,
                    imm16 => iced_x86::OpKind::Immediate16,
                    imm32 => iced_x86::OpKind::Immediate32,
                    imm32sex64 => iced_x86::OpKind::Immediate32to64,
                    _ => iced_x86::OpKind::Immediate64,
                };
                instruction.set_op_kind(i, kind);
                let value = if code.op_code().op_kinds()[i as usize] == imm8_const_1 {
                    1
                } else {
                    dice.number()
                };
                // Those with a sign take any number of their width.
                let value = match kind {
                    iced_x86::OpKind::Immediate8 => value & 0xff,
                    iced_x86::OpKind::Immediate8to16 => u64::from(i64::from(value as i8) as u16),
                    iced_x86::OpKind::Immediate8to32 => u64::from(i64::from(value as i8) as u32),
                    iced_x86::OpKind::Immediate8to64 => i64::from(value as i8) as u64,
                    iced_x86::OpKind::Immediate16 => value & 0xffff,
                    iced_x86::OpKind::Immediate32 => value & 0xffff_ffff,
                    iced_x86::OpKind::Immediate32to64 => i64::from(value as i32) as u64,
                    _ => value,
                };
                instruction.set_immediate_u64(i, value);
            }
        }
    }
    instruction
}

/// A transfer to one of `targets`.
fn transfer(dice: &mut Dice, bits: u32, targets: &[u64]) -> Instruction {
    const NARROW_CONDITIONS: [Code; 6] = [
        Code::Jb_rel32_32,
        Code::Jae_rel8_32,
        Code::Je_rel32_32,
        Code::Jne_rel8_32,
        Code::Jl_rel32_32,
        Code::Jg_rel32_32,
    ];
    const CONDITIONS: [Code; 16] = [
        Code::Jo_rel32_64,
        Code::Jno_rel32_64,
        Code::Jb_rel32_64,
        Code::Jae_rel32_64,
        Code::Je_rel32_64,
        Code::Jne_rel32_64,
        Code::Jbe_rel32_64,
        Code::Ja_rel32_64,
        Code::Js_rel32_64,
        Code::Jns_rel32_64,
        Code::Jp_rel32_64,
        Code::Jnp_rel32_64,
        Code::Jl_rel32_64,
        Code::Jge_rel32_64,
        Code::Jle_rel32_64,
        Code::Jg_rel32_64,
    ];
    let target = dice.choose(targets);
    let is_64 = bits == 64;
    let code = match dice.below(16) {
        0..8 if is_64 => dice.choose(&CONDITIONS),
        8 if is_64 => Code::Jmp_rel32_64,
        9 | 10 if is_64 => Code::Call_rel32_64,
        11 if is_64 => dice.choose(&[Code::Jrcxz_rel8_64, Code::Jecxz_rel8_64]),
        12 if is_64 => dice.choose(&[Code::Loop_rel8_64_RCX, Code::Loop_rel8_64_ECX, Code::Loope_rel8_64_RCX]),
        13 if is_64 => return Instruction::with(Code::Retnq),
        14 if is_64 => return Instruction::with1(Code::Retnq_imm16, 8 * dice.below(3) as u32).unwrap(),
        0..8 => dice.choose(&NARROW_CONDITIONS),
        8 => Code::Jmp_rel32_32,
        9 | 10 => Code::Call_rel32_32,
        11 => dice.choose(&[Code::Jecxz_rel8_32, Code::Jcxz_rel8_32]),
        12 => dice.choose(&[Code::Loop_rel8_32_ECX, Code::Loop_rel8_32_CX, Code::Loope_rel8_32_ECX]),
        13 => return Instruction::with(Code::Retnd),
        14 => return Instruction::with1(Code::Retnd_imm16, 4 * dice.below(3) as u32).unwrap(),
        _ => {
            let code = match is_64 {
                true => dice.choose(&[Code::Jmp_rm64, Code::Call_rm64]),
                false => dice.choose(&[Code::Jmp_rm32, Code::Call_rm32]),
            };
            if dice.one_in(2) {
                let register = register(dice, bits, u64::from(bits) / 8);
                return Instruction::with1(code, register).unwrap();
            }
            let mut instruction = Instruction::default();
            instruction.set_code(code);
            instruction.set_op0_kind(iced_x86::OpKind::Memory);
            point(dice, bits, &mut instruction);
            return instruction;
        }
    };
    Instruction::with_branch(code, target).unwrap()
}

/// How functions begin and end: registers are pushed, or popped before a return; behind STI sometimes.
fn saved(dice: &mut Dice) -> Vec<Instruction> {
    let code = dice.choose(&[Code::Push_r64, Code::Pop_r64]);
    let mut instructions = Vec::new();
    if dice.one_in(4) {
        instructions.push(Instruction::with(Code::Sti));
    }
    for _ in 0..1 + dice.below(7) {
        instructions.push(Instruction::with1(code, register(dice, 64, 8)).unwrap());
    }
    if code == Code::Pop_r64 && dice.one_in(2) {
        instructions.push(Instruction::with(Code::Retnq));
    }
    instructions
}

impl Program {
    /// Of 64-bit or 32-bit code.
    pub fn random(dice: &mut Dice, bits: u32) -> Program {
        let seed = dice.word();
        let base = CODE + if bits == 64 { dice.choose(&[0, HIGH]) } else { 0 };
        let mut encoder = Encoder::new(bits);
        let mut bytes = vec![0x90; 4 * PAGE];
        let mut starts = vec![base];
        let runs = 1 + dice.below(4) as usize;
        let family = dice.choose(&[Family::Integers, Family::Integers, Family::Sse, Family::Avx]);
        for run in 0..runs {
            // The last run reaches into the next page.
            let mut at = run * PAGE
                + if dice.one_in(3) {
                    PAGE - 60
                } else {
                    dice.below(64) as usize
                };
            for _ in 0..4 + dice.below(24) {
                if at + 16 > bytes.len() {
                    break;
                }
                let instructions = if dice.one_in(5) {
                    vec![transfer(dice, bits, &starts)]
                } else if bits == 64 && dice.one_in(12) {
                    saved(dice)
                } else {
                    let family = match dice.below(4) {
                        0 => Family::Integers,
                        _ => family,
                    };
                    let code = dice.choose(forms(family, bits));
                    vec![random(dice, bits, code)]
                };
                for instruction in instructions {
                    if at + 16 > bytes.len() {
                        break;
                    }
                    let length = encoder.encode(&instruction, base + at as u64);
                    let mut encoded = encoder.take_buffer();
                    if length.is_ok() {
                        bytes[at..at + encoded.len()].copy_from_slice(&encoded);
                        starts.push(base + at as u64);
                        at += encoded.len();
                    }
                    encoded.clear();
                    encoder.set_buffer(encoded);
                }
            }
            let jump = if bits == 64 {
                Code::Jmp_rel32_64
            } else {
                Code::Jmp_rel32_32
            };
            let back = Instruction::with_branch(jump, dice.choose(&starts)).unwrap();
            if at + 5 <= bytes.len() && encoder.encode(&back, base + at as u64).is_ok() {
                let encoded = encoder.take_buffer();
                bytes[at..at + encoded.len()].copy_from_slice(&encoded);
            }
            encoder.set_buffer(Vec::new());
        }
        Program {
            seed,
            bits,
            bytes,
            starts,
        }
    }

    /// This code at the start of the code pages.
    pub fn of(code: &[u8]) -> Program {
        Program {
            seed: 1,
            bits: 64,
            bytes: code.to_vec(),
            starts: vec![CODE],
        }
    }

    /// The address of an instruction, in either half.
    pub fn address(&self, dice: &mut Dice) -> u64 {
        let start = dice.choose(&self.starts);
        if self.bits == 64 && dice.one_in(8) {
            start ^ HIGH
        } else {
            start
        }
    }

    /// Something else for a place in the code, guest-physical.
    pub fn overwrite(&self, dice: &mut Dice) -> (u64, Vec<u8>) {
        let at = dice.choose(&self.starts) & 0xf_ffff;
        let bytes = match dice.below(3) {
            0 => vec![0x90],
            1 => vec![0x48, 0xff, 0xc0],
            _ => vec![dice.word() as u8],
        };
        (at, bytes)
    }

    pub fn listing(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        for start in &self.starts {
            let at = (start & 0xf_ffff) - CODE;
            let mut decoder = Decoder::with_ip(self.bits, &self.bytes[at as usize..], *start, DecoderOptions::AMD);
            let instruction = decoder.decode();
            let end = if instruction.flow_control() == FlowControl::Next {
                ""
            } else {
                " <"
            };
            writeln!(text, "{start:#x} {:?} {instruction:?}{end}", instruction.code()).unwrap();
        }
        text
    }
}
