//! Which instructions are translated, and how.
//!
//! What the decoder library knows about an encoding (operands and their accesses, sizes, CPUID features) is asked there. An
//! instruction that is not named here is the interpreter's, which also owns every fault.

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::table::Flow;

/// How an instruction is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Copied, with the registers that its operands live in, and its memory operand behind a check.
    Copied,
    /// It does nothing.
    Nothing,
    /// LEA.
    Address,
    /// PUSH.
    Push,
    /// POP of a register.
    Pop,
    /// LEAVE.
    Leave,
    /// JMP rel.
    Jump,
    /// Jcc.
    JumpIf,
    /// JRCXZ, JECXZ.
    JumpIfZero,
    /// LOOP.
    Loop,
    /// CALL rel.
    Call,
    /// RET.
    Return,
    /// JMP rel, CALL rel that the block goes on at the target of.
    JumpOn,
    CallOn,
    /// Jcc back to where the block begins, where it goes on.
    LoopOn,
    /// RET that the block goes on behind, if it leads `to` where a call in the same block says.
    ReturnOn {
        to: u64,
    },
    /// JMP r/m.
    JumpIndirect,
    /// CALL r/m.
    CallIndirect,
    /// SSE or AVX: copied, too, in a block that has the vector registers loaded.
    Vector {
        /// It has a VEX prefix.
        avx: bool,
    },
    /// CLI, STI, CLD, STD.
    Flag,
    /// PUSHF.
    PushFlags,
    /// RDTSC, RDTSCP.
    Clock,
    /// DIV.
    Divide,
    /// Left to the interpreter, after which translated code goes on; `first` of a group.
    Stepped {
        first: bool,
    },
}

impl Class {
    /// Nothing follows in the same block.
    pub(super) fn ends_block(self) -> bool {
        matches!(
            self,
            Class::Jump | Class::Call | Class::Return | Class::JumpIndirect | Class::CallIndirect
        )
    }

    /// It is executed as translated code, or not at all: whoever leaves before it can tell that STI came before.
    pub(super) fn may_follow_sti(self) -> bool {
        let is_plain = matches!(
            self,
            Class::Copied | Class::Nothing | Class::Address | Class::Push | Class::Pop | Class::Leave
        );
        is_plain
            || matches!(
                self,
                Class::Jump | Class::JumpIf | Class::Call | Class::Return | Class::JumpOn | Class::CallOn
            )
            || matches!(self, Class::ReturnOn { .. })
    }
}

/// The instruction's class, if it is translated. It is one that the processor model executes, in 64-bit code, or in 32-bit
/// code if it [is flat](is_flat).
pub(super) fn class(instruction: &Instruction) -> Option<Class> {
    let code = instruction.code();
    let class = match code.mnemonic() {
        // With REX.B it is an XCHG of R8.
        Mnemonic::Pause if instruction.len() > 2 => return None,
        Mnemonic::Nop
        | Mnemonic::Pause
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Lfence
        | Mnemonic::Sfence => Class::Nothing,
        Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 | Mnemonic::Prefetcht2 | Mnemonic::Prefetchnta => Class::Nothing,
        Mnemonic::Prefetchw if code == Code::Prefetchw_m8 => Class::Nothing,
        // As these the decoder reads ENDBR64, NOP r/m and the prefetches: every function of a kernel begins with one.
        Mnemonic::Reservednop => match code {
            // With a register operand they fault.
            Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
                if instruction.op0_kind() != OpKind::Memory =>
            {
                return None;
            }
            _ => Class::Nothing,
        },
        Mnemonic::Cli | Mnemonic::Sti | Mnemonic::Cld | Mnemonic::Std => Class::Flag,
        Mnemonic::Pushfq | Mnemonic::Pushfd => Class::PushFlags,
        Mnemonic::Rdtsc | Mnemonic::Rdtscp => Class::Clock,
        Mnemonic::Div if matches!(code, Code::Div_rm32 | Code::Div_rm64) => Class::Divide,
        Mnemonic::Lea if code != Code::Lea_r16_m => Class::Address,
        Mnemonic::Push => match code {
            Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Push_rm64 => Class::Push,
            Code::Push_r32 | Code::Pushd_imm8 | Code::Pushd_imm32 | Code::Push_rm32 => Class::Push,
            _ => return None,
        },
        Mnemonic::Pop => match code {
            Code::Pop_r64 | Code::Pop_r32 => Class::Pop,
            Code::Pop_rm64 | Code::Pop_rm32 if instruction.op0_kind() == OpKind::Register => Class::Pop,
            _ => return None,
        },
        Mnemonic::Leave if matches!(code, Code::Leaveq | Code::Leaved) => Class::Leave,
        Mnemonic::Jmp => match code {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Jmp_rel8_32 | Code::Jmp_rel32_32 => Class::Jump,
            Code::Jmp_rm64 | Code::Jmp_rm32 => Class::JumpIndirect,
            _ => return None,
        },
        Mnemonic::Call => match code {
            Code::Call_rel32_64 | Code::Call_rel32_32 => Class::Call,
            Code::Call_rm64 | Code::Call_rm32 => Class::CallIndirect,
            _ => return None,
        },
        Mnemonic::Ret => match code {
            Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16 => Class::Return,
            _ => return None,
        },
        Mnemonic::Jrcxz if code == Code::Jrcxz_rel8_64 => Class::JumpIfZero,
        Mnemonic::Jecxz if matches!(code, Code::Jecxz_rel8_64 | Code::Jecxz_rel8_32) => Class::JumpIfZero,
        Mnemonic::Loop
            if matches!(
                code,
                Code::Loop_rel8_64_RCX | Code::Loop_rel8_64_ECX | Code::Loop_rel8_32_ECX
            ) =>
        {
            // A prefix makes it another instruction on the modelled processor.
            if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
                return None;
            }
            Class::Loop
        }
        _ if code.is_jcc_short_or_near() && instruction.op0_kind() != OpKind::NearBranch16 => Class::JumpIf,
        mnemonic if is_copied(mnemonic, code) => Class::Copied,
        _ if is_vector(instruction) => Class::Vector {
            avx: code.encoding() == EncodingKind::VEX,
        },
        _ => return None,
    };
    let is_there = code.cpuid_features().iter().all(|feature| host_has(*feature));
    (is_there && (class != Class::Copied || has_plain_operands(instruction))).then_some(class)
}

/// An instruction of 32-bit code that does what it would do in 64-bit code with its addresses cut off: in segments that such code
/// is translated for.
pub(super) fn is_flat(instruction: &Instruction) -> bool {
    if matches!(instruction.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall) {
        // There are eight registers.
        return false;
    }
    let is_narrow = |register: Register| register == Register::None || register.is_gpr32();
    let has_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    let is_lea = instruction.mnemonic() == Mnemonic::Lea;
    !has_memory
        || is_narrow(instruction.memory_base())
            && is_narrow(instruction.memory_index())
            && instruction.memory_displ_size() != 2
            && (is_lea || matches!(instruction.memory_segment(), Register::DS | Register::SS))
}

/// The interpreter can execute it in the middle of translated code: it neither jumps nor changes what code is translated for,
/// or says so when it has done that.
pub(super) fn can_be_stepped(instruction: &Instruction, flow: Flow) -> bool {
    // What is checked at the start of a block holds to its end.
    let loads_mxcsr = matches!(
        instruction.mnemonic(),
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr | Mnemonic::Fxrstor | Mnemonic::Fxrstor64
    ) || matches!(
        instruction.mnemonic(),
        Mnemonic::Xrstor | Mnemonic::Xrstor64 | Mnemonic::Xrstors | Mnemonic::Xrstors64
    );
    match flow {
        Flow::Next => instruction.flow_control() == FlowControl::Next && !loads_mxcsr,
        Flow::Branch => false,
        Flow::End => instruction.code() == Code::Popfq,
    }
}

/// It computes with vectors or floating-point numbers: much of that is better interpreted block by block.
pub(super) fn is_wide(instruction: &Instruction) -> bool {
    instruction.op_kinds().enumerate().any(|(i, kind)| {
        let register = instruction.op_register(i as u32);
        kind == OpKind::Register && (register.is_vector_register() || register.is_st() || register.is_mm())
    })
}

/// An instruction on vector registers that a memory operand can be put behind a check of.
fn is_vector(instruction: &Instruction) -> bool {
    use CpuidFeature::*;
    use Mnemonic::*;
    let code = instruction.code();
    if !matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return false;
    }
    let is_there = |feature: &CpuidFeature| {
        matches!(
            feature,
            SSE | SSE2 | SSE3 | SSSE3 | SSE4_1 | SSE4_2 | AES | PCLMULQDQ | SHA | GFNI
        ) || matches!(feature, AVX | AVX2 | FMA | F16C | VAES | VPCLMULQDQ)
    };
    if !code.cpuid_features().iter().all(is_there) {
        return false;
    }
    match code.mnemonic() {
        // In 64-bit mode they are about all registers.
        Vzeroupper | Vzeroall => return true,
        // What is not selected is not accessed at all.
        Maskmovdqu | Vmaskmovdqu | Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => return false,
        _ => {}
    }
    let is_vector = |register: Register| register.is_xmm() || register.is_ymm();
    let is_plain = |i| match instruction.op_kind(i) {
        OpKind::Register => {
            let register = instruction.op_register(i);
            is_vector(register) || register.is_gpr32() || register.is_gpr64()
        }
        // Not those with a vector of addresses.
        OpKind::Memory => instruction.memory_index() == Register::None || instruction.memory_index().is_gpr(),
        OpKind::Immediate8 => true,
        _ => false,
    };
    let mut operands = 0..instruction.op_count();
    let has_vector = |i| instruction.op_kind(i) == OpKind::Register && is_vector(instruction.op_register(i));
    operands.clone().all(is_plain) && operands.any(has_vector)
}

/// Integer instructions whose only effects are those on their operands and the status flags, and which never fault but for
/// their memory operand.
fn is_copied(mnemonic: Mnemonic, code: Code) -> bool {
    use Mnemonic::*;
    match mnemonic {
        Mov | Movzx | Movsx | Movsxd | Movnti | Movbe | Bswap | Xchg | Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo => {
            // The 16-bit form is undefined.
            code != Code::Bswap_r16
        }
        Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test | Inc | Dec | Neg | Not | Imul | Mul => true,
        Xadd | Cmpxchg | Cmpxchg8b | Cmpxchg16b => true,
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr => true,
        // Counts beyond 16 are undefined in the 16-bit forms.
        Shld | Shrd => !matches!(
            code,
            Code::Shld_rm16_r16_imm8 | Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_imm8 | Code::Shrd_rm16_r16_CL
        ),
        Bsf | Bsr | Tzcnt | Lzcnt | Popcnt | Crc32 => true,
        // A bit's number in a register reaches beyond a memory operand: `has_plain_operands` looks at that.
        Bt | Bts | Btr | Btc => true,
        Andn | Bextr | Blsi | Blsmsk | Blsr | Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx | Shrx | Adcx | Adox => {
            true
        }
        Cmova | Cmovae | Cmovb | Cmovbe | Cmove | Cmovg | Cmovge | Cmovl | Cmovle | Cmovne | Cmovno | Cmovnp
        | Cmovns | Cmovo | Cmovp | Cmovs => true,
        Seta | Setae | Setb | Setbe | Sete | Setg | Setge | Setl | Setle | Setne | Setno | Setnp | Setns | Seto
        | Setp | Sets => true,
        Clc | Stc | Cmc | Lahf | Sahf => true,
        Mfence => code == Code::Mfence,
        _ => false,
    }
}

/// General-purpose registers, immediates and at most one memory operand of the usual kind.
fn has_plain_operands(instruction: &Instruction) -> bool {
    let is_bit_test = matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    if is_bit_test && instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register {
        return false;
    }
    if !matches!(instruction.code().encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return false;
    }
    (0..instruction.op_count()).all(|i| match instruction.op_kind(i) {
        OpKind::Register => instruction.op_register(i).is_gpr(),
        OpKind::Memory => instruction.memory_index() == Register::None || instruction.memory_index().is_gpr(),
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => true,
        _ => false,
    })
}

/// The host executes instructions of this feature, which the guest has.
fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    match feature {
        BMI1 => std::arch::is_x86_feature_detected!("bmi1"),
        BMI2 => std::arch::is_x86_feature_detected!("bmi2"),
        ADX => std::arch::is_x86_feature_detected!("adx"),
        LZCNT => std::arch::is_x86_feature_detected!("lzcnt"),
        POPCNT => std::arch::is_x86_feature_detected!("popcnt"),
        SSE3 => std::arch::is_x86_feature_detected!("sse3"),
        SSSE3 => std::arch::is_x86_feature_detected!("ssse3"),
        SSE4_1 => std::arch::is_x86_feature_detected!("sse4.1"),
        AES => std::arch::is_x86_feature_detected!("aes"),
        PCLMULQDQ => std::arch::is_x86_feature_detected!("pclmulqdq"),
        MOVBE => std::arch::is_x86_feature_detected!("movbe"),
        SSE4_2 => std::arch::is_x86_feature_detected!("sse4.2"),
        SHA => std::arch::is_x86_feature_detected!("sha"),
        GFNI => std::arch::is_x86_feature_detected!("gfni"),
        AVX => std::arch::is_x86_feature_detected!("avx"),
        AVX2 => std::arch::is_x86_feature_detected!("avx2"),
        FMA => std::arch::is_x86_feature_detected!("fma"),
        F16C => std::arch::is_x86_feature_detected!("f16c"),
        VAES => std::arch::is_x86_feature_detected!("vaes"),
        VPCLMULQDQ => std::arch::is_x86_feature_detected!("vpclmulqdq"),
        CMPXCHG16B => std::arch::is_x86_feature_detected!("cmpxchg16b"),
        // Part of 64-bit mode, or of instructions that do nothing here.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::Decoder;

    use super::*;
    use crate::table::decoder_options;

    #[test]
    fn what_functions_begin_and_are_padded_with_costs_nothing() {
        let class_of = |bytes: &[u8]| {
            let instruction = Decoder::new(64, bytes, decoder_options(|_| true)).decode();
            assert_eq!(instruction.len(), bytes.len());
            class(&instruction)
        };
        let nothings: [&[u8]; 7] = [
            // ENDBR64
            &[0xf3, 0x0f, 0x1e, 0xfa],
            // NOP
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
            // PREFETCHT0, PREFETCHNTA, PREFETCHW
            &[0x0f, 0x18, 0x08],
            &[0x0f, 0x18, 0x00],
            &[0x0f, 0x0d, 0x08],
        ];
        for bytes in nothings {
            assert_eq!(class_of(bytes), Some(Class::Nothing), "{bytes:02x?}");
        }
        assert_eq!(class_of(&[0x0f, 0x0d, 0xc8]), None, "PREFETCHW of a register faults");
    }
}
