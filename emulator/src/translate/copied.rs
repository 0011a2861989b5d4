//! Instructions that are copied: with the registers that their operands live in, and their memory operand behind a check.
//!
//! A guest register is written only by the copy itself, behind the last check, so that whoever leaves before finds the
//! registers as they were.

use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpKind, Register};

use super::assembler::{ADDEND, ADDRESS, COUNTER, GUEST_COUNTER, Memory, home};
use super::block::{Emitter, Unencodable};
use super::memory::number;
use super::state::at;

/// Number of the guest's RCX.
const RCX: u8 = 1;
/// RSI, the guest's, which lends itself as a pointer where no REX prefix can be.
const LENT: u8 = 6;

/// The registers that an instruction names.
#[derive(Default)]
struct Named {
    /// A bit for each.
    all: u16,
    /// AH, CH, DH or BH is among them, which no instruction with a REX prefix can name.
    high: bool,
}

impl Named {
    fn of(instruction: &Instruction, count_in_cl: bool) -> Named {
        let mut named = Named::default();
        let operands = instruction.op_count() - u32::from(count_in_cl);
        for i in (0..operands).filter(|i| instruction.op_kind(*i) == OpKind::Register) {
            let register = instruction.op_register(i);
            named.all |= 1 << number(register);
            named.high |= is_high(register);
        }
        named
    }

    fn has(&self, register: u8) -> bool {
        self.all >> register & 1 != 0
    }

    /// Those that live in the frame.
    fn homeless(&self) -> impl Iterator<Item = u8> + use<> {
        let all = self.all;
        (0..16).filter(move |register| all >> register & 1 != 0 && home(*register).is_none())
    }
}

fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// The part of host register `host` that `like` is of its own.
pub(super) fn part(like: Register, host: u8) -> Register {
    let number = i32::from(host);
    match like {
        _ if is_high(like) => Register::AH + number,
        _ if like.is_gpr64() => Register::RAX + number,
        _ if like.is_gpr32() => Register::EAX + number,
        _ if like.is_gpr16() => Register::AX + number,
        _ if number < 4 => Register::AL + number,
        _ => Register::SPL + (number - 4),
    }
}

/// The instruction does not depend on what the register was.
fn is_only_written(instruction: &Instruction, register: u8) -> bool {
    let to = instruction.op0_register();
    let is_move = matches!(
        instruction.mnemonic(),
        Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd
    );
    let is_from = instruction.op1_kind() == OpKind::Register && number(instruction.op1_register()) == register;
    is_move
        && instruction.op0_kind() == OpKind::Register
        && (to.is_gpr32() || to.is_gpr64())
        && number(to) == register
        && !is_from
}

fn has_count_in_cl(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let last = instruction.op_count().wrapping_sub(1);
    matches!(
        instruction.mnemonic(),
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd
    ) && instruction.op_kind(last) == OpKind::Register
        && instruction.op_register(last) == Register::CL
}

/// The same instruction in an encoding that takes any memory operand, and no hints.
pub(super) fn general(instruction: &Instruction) -> Instruction {
    let mut general = *instruction;
    general.set_code(match instruction.code() {
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        // Where these are in 32-bit code, 64-bit code has REX prefixes.
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        // A store of its own order would need the guest's fences.
        Code::Movnti_m32_r32 => Code::Mov_rm32_r32,
        Code::Movnti_m64_r64 => Code::Mov_rm64_r64,
        Code::Movntps_m128_xmm | Code::Movntpd_m128_xmm | Code::Movntdq_m128_xmm => Code::Movdqa_xmmm128_xmm,
        Code::Movntdqa_xmm_m128 => Code::Movdqa_xmm_xmmm128,
        Code::VEX_Vmovntps_m128_xmm | Code::VEX_Vmovntpd_m128_xmm | Code::VEX_Vmovntdq_m128_xmm => {
            Code::VEX_Vmovdqa_xmmm128_xmm
        }
        Code::VEX_Vmovntps_m256_ymm | Code::VEX_Vmovntpd_m256_ymm | Code::VEX_Vmovntdq_m256_ymm => {
            Code::VEX_Vmovdqa_ymmm256_ymm
        }
        Code::VEX_Vmovntdqa_xmm_m128 => Code::VEX_Vmovdqa_xmm_xmmm128,
        Code::VEX_Vmovntdqa_ymm_m256 => Code::VEX_Vmovdqa_ymm_ymmm256,
        code => code,
    });
    general.set_has_rep_prefix(false);
    general.set_has_repne_prefix(false);
    general.set_segment_prefix(Register::None);
    general
}

impl Emitter<'_> {
    pub(super) fn copied(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        if self.moved(instruction) {
            return Ok(());
        }
        let count_in_cl = has_count_in_cl(instruction);
        let named = Named::of(instruction, count_in_cl);
        let compares_pairs = matches!(instruction.mnemonic(), Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b);
        // The guest's RCX is to be in RCX: CL and CH are counts and high bytes there only.
        let counter_at_home = named.high && named.has(RCX) || compares_pairs;
        let counter_taken = counter_at_home || count_in_cl;
        let has_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);

        let mut free = vec![ADDEND, ADDRESS];
        let (mut memory, mut lends) = (None, false);
        if has_memory {
            let linear = self.linear(instruction)?;
            let size = u8::try_from(instruction.memory_size().size()).map_err(|_| Unencodable)?;
            if size == 0 {
                return Err(Unencodable);
            }
            if size == 16 {
                self.check_alignment(linear, size);
            }
            let writes = self.writes_memory(instruction);
            self.check(linear, size, writes);
            let operand = Memory::sum(linear, ADDEND, 0);
            let needed = named.homeless().count();
            lends = named.high && counter_taken;
            (memory, free) = if lends {
                // No instruction that names such a byte names this register, but that may be in the address.
                self.assembler.store(Memory::frame(at::SCRATCH), LENT);
                self.assembler.lea(true, LENT, operand);
                (Some(Memory::based(LENT, 0)), vec![])
            } else if named.high {
                self.assembler.lea(true, COUNTER, operand);
                (Some(Memory::based(COUNTER, 0)), vec![])
            } else if needed > usize::from(!counter_taken) {
                self.assembler.lea(true, ADDRESS, operand);
                (Some(Memory::based(ADDRESS, 0)), vec![ADDEND])
            } else {
                (Some(operand), vec![])
            };
        }
        let counter_is_pointer = memory.is_some_and(|memory| memory.base == Some(COUNTER));
        if !counter_taken && !counter_is_pointer {
            free.push(COUNTER);
        }

        let mut places: [Option<u8>; 16] = core::array::from_fn(|register| home(register as u8));
        for register in named.homeless() {
            let place = free.pop().ok_or(Unencodable)?;
            places[usize::from(register)] = Some(place);
            if !is_only_written(instruction, register) {
                self.assembler.load(place, Memory::frame(at::gpr(register)));
            }
        }
        if counter_taken {
            self.assembler.copy(COUNTER, GUEST_COUNTER);
        }
        if counter_at_home {
            places[usize::from(RCX)] = Some(COUNTER);
        }
        let mut copy = general(instruction);
        for i in 0..copy.op_count() - u32::from(count_in_cl) {
            match copy.op_kind(i) {
                OpKind::Register => {
                    let register = copy.op_register(i);
                    let place = places[usize::from(number(register))].ok_or(Unencodable)?;
                    copy.set_op_register(i, part(register, place));
                }
                OpKind::Memory => point(&mut copy, memory.ok_or(Unencodable)?),
                _ => {}
            }
        }
        self.encode(&copy)?;
        if lends {
            self.assembler.load(LENT, Memory::frame(at::SCRATCH));
        }
        let written = self.written(instruction);
        for register in named.homeless().filter(|register| written >> register & 1 != 0) {
            if let Some(place) = places[usize::from(register)] {
                self.assembler.store(Memory::frame(at::gpr(register)), place);
            }
        }
        if counter_at_home && written >> RCX & 1 != 0 {
            self.assembler.copy(GUEST_COUNTER, COUNTER);
        }
        Ok(())
    }

    /// Moves a register to one that lives elsewhere, if the instruction is that.
    fn moved(&mut self, instruction: &Instruction) -> bool {
        let wide = match instruction.code() {
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64 => true,
            Code::Mov_r32_rm32 | Code::Mov_rm32_r32 => false,
            _ => return false,
        };
        if [instruction.op0_kind(), instruction.op1_kind()] != [OpKind::Register; 2] {
            return false;
        }
        let [to, from] = [instruction.op0_register(), instruction.op1_register()].map(number);
        match (home(to), home(from)) {
            (Some(host), None) => self
                .assembler
                .with_memory(wide, 0x8b, host, Memory::frame(at::gpr(from))),
            (None, Some(host)) if wide => self.assembler.store(Memory::frame(at::gpr(to)), host),
            _ => return false,
        }
        true
    }

    pub(super) fn encode(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let encoder = &mut self.tools.encoder;
        let outcome = encoder.encode(instruction, 0);
        let mut bytes = encoder.take_buffer();
        if outcome.is_ok() {
            self.assembler.raw(&bytes);
        }
        // After an error there are pieces in it.
        bytes.clear();
        encoder.set_buffer(bytes);
        outcome.map(|_| ()).map_err(|_| Unencodable)
    }

    pub(super) fn writes_memory(&mut self, instruction: &Instruction) -> bool {
        let info = self.tools.factory.info(instruction);
        info.used_memory()
            .iter()
            .any(|memory| !matches!(memory.access(), OpAccess::Read | OpAccess::CondRead))
    }

    /// A bit for each general-purpose register that the instruction may write.
    pub(super) fn written(&mut self, instruction: &Instruction) -> u16 {
        let info = self.tools.factory.info(instruction);
        info.used_registers()
            .iter()
            .filter(|used| !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None))
            .filter(|used| used.register().is_gpr())
            .fold(0, |written, used| written | 1 << number(used.register()))
    }
}

/// Makes `memory` the instruction's memory operand.
pub(super) fn point(instruction: &mut Instruction, memory: Memory) {
    let register = |number: u8| Register::RAX + i32::from(number);
    instruction.set_memory_base(memory.base.map_or(Register::None, register));
    instruction.set_memory_index(memory.index.map_or(Register::None, |(index, _)| register(index)));
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displacement64(0);
    instruction.set_memory_displ_size(0);
}
