//! Instructions on vector registers: SSE and AVX.
//!
//! The guest's XMM and YMM registers are the host's of the same number, once a block that uses them has been entered, and MXCSR
//! is the guest's, which collects its flags. While the guest has vectors switched off, or a floating-point exception is not
//! masked, such blocks are the interpreter's: a block looks at that once, where it begins. What is above 256 bits is zero then,
//! as instructions with a VEX prefix leave it.

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind};

use super::assembler::{ADDEND, COUNTER, GUEST_COUNTER, Memory, home};
use super::block::{Emitter, Exit, Unencodable};
use super::copied::{general, part, point};
use super::memory::number;
use super::state::at;

/// The memory operand, of so many bytes, must be aligned.
fn must_be_aligned(instruction: &Instruction, size: u8) -> bool {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    if instruction.code().encoding() == EncodingKind::VEX {
        return matches!(
            mnemonic,
            Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa
        );
    }
    let is_spared = matches!(
        mnemonic,
        Movups | Movupd | Movdqu | Lddqu | Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm | Pcmpestri64 | Pcmpestrm64
    );
    size == 16 && !is_spared
}

/// What it finds is in ECX.
fn answers_in_counter(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Pcmpestri | Pcmpistri | Pcmpestri64 | Vpcmpestri | Vpcmpistri | Vpcmpestri64
    )
}

impl Emitter<'_> {
    /// Loads the vector registers at the start of the block, if they are not; leaves if they cannot be used.
    pub(super) fn check_vectors(&mut self, avx: bool) {
        let pending = Memory::frame(at::pending(avx));
        self.assembler.load(COUNTER, pending);
        let ready = self.assembler.if_zero();
        self.assembler.call(self.thunks.load);
        self.assembler.load(COUNTER, pending);
        let loaded = self.assembler.if_zero();
        self.exit(Exit::Interpret);
        self.assembler.bind(ready);
        self.assembler.bind(loaded);
    }

    pub(super) fn vector(&mut self, instruction: &Instruction) -> Result<(), Unencodable> {
        let mut copy = general(instruction);
        let has_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
        if has_memory {
            let linear = self.linear(instruction)?;
            let size = u8::try_from(instruction.memory_size().size()).map_err(|_| Unencodable)?;
            if size == 0 || size > 32 {
                return Err(Unencodable);
            }
            if must_be_aligned(instruction, size) {
                self.check_alignment(linear, size);
            }
            let writes = self.writes_memory(instruction);
            self.check(linear, size, writes);
            point(&mut copy, Memory::sum(linear, ADDEND, 0));
        }
        let mut integer = None;
        for i in (0..instruction.op_count()).filter(|i| instruction.op_kind(*i) == OpKind::Register) {
            let register = instruction.op_register(i);
            if register.is_vector_register() {
                continue;
            }
            let guest = number(register);
            let place = match home(guest) {
                Some(home) => home,
                None => {
                    self.assembler.load(COUNTER, Memory::frame(at::gpr(guest)));
                    integer = Some(guest);
                    COUNTER
                }
            };
            copy.set_op_register(i, part(register, place));
        }
        self.encode(&copy)?;
        if let Some(guest) = integer
            && self.written(instruction) >> guest & 1 != 0
        {
            self.assembler.store(Memory::frame(at::gpr(guest)), COUNTER);
        }
        if answers_in_counter(instruction.mnemonic()) {
            self.assembler.copy(GUEST_COUNTER, COUNTER);
        }
        Ok(())
    }
}
