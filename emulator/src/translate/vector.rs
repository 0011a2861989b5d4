//! SSE instructions. Vector registers stay in the CPU's state; each instruction loads those that it names, and stores those that
//! it writes.
//!
//! Instructions that compute with floating-point numbers run under the guest's MXCSR, which collects their flags. With an
//! exception that is not masked they are the interpreter's, and so is everything here while the guest has vectors switched off:
//! a block looks at that once, where it begins.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::assembler::{ADDEND, ADDRESS, COUNTER, Memory, home};
use super::block::{Emitter, Exit, Unencodable};
use super::memory::number;
use super::state::at;

/// Bytes of a vector register in the CPU's state.
const REGISTER: i32 = 64;

/// The memory operand of 16 bytes need not be aligned.
fn may_be_unaligned(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu
    )
}

impl Emitter<'_> {
    /// Leaves at the start of the block if vectors are switched off, or floating-point exceptions are not masked.
    pub(super) fn check_vectors(&mut self, floats: bool) {
        let switch = if floats { at::FLOATS } else { at::VECTORS };
        self.assembler.load(COUNTER, Memory::frame(switch));
        let off = self.assembler.if_zero();
        let on = self.assembler.skip();
        self.assembler.bind(off);
        self.exit(Exit::Interpret);
        self.assembler.bind(on);
    }

    pub(super) fn vector(&mut self, instruction: &Instruction, floats: bool) -> Result<(), Unencodable> {
        let mut copy = *instruction;
        copy.set_segment_prefix(Register::None);
        let has_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
        let mut integer = None;
        if has_memory {
            let linear = self.linear(instruction)?;
            let size = u8::try_from(instruction.memory_size().size()).map_err(|_| Unencodable)?;
            if size == 0 || size > 16 {
                return Err(Unencodable);
            }
            if size == 16 && !may_be_unaligned(instruction.mnemonic()) {
                self.check_alignment(linear);
            }
            let writes = self.writes_memory(instruction);
            self.check(linear, size, writes);
            super::copied::point(&mut copy, Memory::sum(linear, ADDEND, 0));
        }
        self.assembler.load(COUNTER, Memory::frame(at::VECTORS));
        let mut loaded: [Option<u8>; 16] = [None; 16];
        let mut count = 0;
        for i in 0..instruction.op_count() {
            if instruction.op_kind(i) != OpKind::Register {
                continue;
            }
            let register = instruction.op_register(i);
            if register.is_xmm() {
                let guest = register.number() & 15;
                let host = *loaded[guest].get_or_insert_with(|| {
                    count += 1;
                    count - 1
                });
                copy.set_op_register(i, Register::XMM0 + i32::from(host));
                continue;
            }
            // With a memory operand there are no more temporaries.
            let guest = number(register);
            let place = match home(guest) {
                Some(home) => home,
                None if has_memory => return Err(Unencodable),
                None => ADDRESS,
            };
            if place == ADDRESS {
                self.assembler.load(ADDRESS, Memory::frame(at::gpr(guest)));
            }
            copy.set_op_register(i, super::copied::part(register, place));
            integer = Some((guest, place));
        }
        for (guest, host) in each(&loaded) {
            // MOVUPS
            self.move_vector(0x10, host, guest);
        }
        if floats {
            // LDMXCSR
            self.mxcsr(2, Memory::based(COUNTER, at::MXCSR));
        }
        self.encode(&copy)?;
        if floats {
            // STMXCSR, and the host's own again.
            self.mxcsr(3, Memory::based(COUNTER, at::MXCSR));
            self.mxcsr(2, Memory::frame(at::HOST_MXCSR));
        }
        let written = self.written_vectors(instruction);
        for (guest, host) in each(&loaded) {
            if written >> guest & 1 != 0 {
                self.move_vector(0x11, host, guest);
            }
        }
        if let Some((guest, ADDRESS)) = integer
            && self.written(instruction) >> guest & 1 != 0
        {
            self.assembler.store(Memory::frame(at::gpr(guest)), ADDRESS);
        }
        Ok(())
    }

    /// MOVUPS between a register of the host, below 8, and one of the guest.
    fn move_vector(&mut self, opcode: u8, host: u8, guest: u8) {
        self.assembler.raw(&[0x0f]);
        self.assembler
            .with_memory(false, opcode, host, Memory::based(COUNTER, REGISTER * i32::from(guest)));
    }

    /// LDMXCSR (2) or STMXCSR (3).
    fn mxcsr(&mut self, operation: u8, memory: Memory) {
        self.assembler.raw(&[0x0f]);
        self.assembler.with_memory(false, 0xae, operation, memory);
    }
}

fn each(loaded: &[Option<u8>; 16]) -> impl Iterator<Item = (u8, u8)> + use<> {
    let loaded = *loaded;
    (0..16).filter_map(move |guest| loaded[usize::from(guest)].map(|host| (guest, host)))
}
