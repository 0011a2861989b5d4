//! The way into translated code and out of it.
//!
//! Rust enters with the frame's RSP and an address in the buffer, as a function of the System V ABI. Translated code leaves by a
//! CALL of [`Thunks::leave`] behind which lies the number of its [`Site`](super::block::Site): registers and status flags go
//! into the frame, and the function that Rust called returns. Nothing is called from translated code, so nothing unwinds
//! through it.
//!
//! Vector registers and MXCSR stay in the CPU's state until code is reached that uses them, which calls [`Thunks::load`] first.
//! They are stored whenever such code is left, and loaded again if it is entered in the middle.
#![allow(unsafe_code, reason = "translated code is called")]

use core::mem::transmute;

use super::assembler::{ADDRESS, Assembler, COUNTER, Memory, STATE, home};
use super::buffer::Buffer;
use super::state::{State, at};

const RAX: u8 = 0;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// What a function of the System V ABI must leave as it is: RBX, RBP, R12 to R15.
const PRESERVED: [u8; 6] = [3, 5, 12, 13, 14, 15];

/// Bytes of a vector register in the CPU's state.
const VECTOR: i32 = 64;

/// Where the thunks are in a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thunks {
    enter: usize,
    /// What exits call.
    pub(super) leave: usize,
    /// What code calls before it uses vector registers.
    pub(super) load: usize,
}

impl Thunks {
    /// Writes them.
    pub(super) fn write(buffer: &mut Buffer, assembler: &mut Assembler) -> Thunks {
        assembler.begin(buffer.used());
        let load = assembler.here();
        let again = write_load(assembler);
        let store = assembler.here();
        write_store(assembler);
        let enter = assembler.here();
        for register in PRESERVED {
            push(assembler, register);
        }
        assembler.store(Memory::based(RDI, at::HOST_STACK), STATE);
        assembler.store(Memory::based(RDI, at::SCRATCH), RSI);
        assembler.copy(STATE, RDI);
        if_loaded(assembler, again);
        // Status flags: OF by an addition that overflows if AL is 1, the others from AH.
        assembler.load(RAX, Memory::frame(at::FLAGS));
        assembler.raw(&[0x04, 0x7f]);
        assembler.raw(&[0x9e]);
        for guest in 0..16 {
            if let Some(host) = home(guest) {
                assembler.load(host, Memory::frame(at::gpr(guest)));
            }
        }
        assembler.jump_through(Memory::frame(at::SCRATCH));

        let leave = assembler.here();
        // POP of the return address.
        assembler.with_memory(false, 0x8f, 0, Memory::frame(at::RETURNED));
        assembler.store(Memory::frame(at::ADDRESS), ADDRESS);
        for guest in 0..16 {
            if let Some(host) = home(guest) {
                assembler.store(Memory::frame(at::gpr(guest)), host);
            }
        }
        // SETO AL, LAHF, MOV [flags], AX.
        assembler.raw(&[0x0f, 0x90, 0xc0]);
        assembler.raw(&[0x9f]);
        assembler.raw(&[0x66]);
        assembler.with_memory(false, 0x89, RAX, Memory::frame(at::FLAGS));
        if_loaded(assembler, store);
        assembler.load(STATE, Memory::frame(at::HOST_STACK));
        for register in PRESERVED.into_iter().rev() {
            pop(assembler, register);
        }
        assembler.ret();
        buffer.append(assembler.bytes());
        Thunks { enter, leave, load }
    }

    /// Executes translated code at `host` until it leaves; the number of the site where it did.
    pub(super) fn enter(self, buffer: &Buffer, state: &mut State, host: u64) -> u32 {
        let rsp = state.stack_pointer();
        let enter = core::ptr::with_exposed_provenance::<()>(buffer.address(self.enter) as usize);
        // SAFETY: the thunk was written by `write` and follows the System V ABI: it preserves what it must and runs on a stack of
        // its own. `host` is code that the translator wrote into the same buffer; it writes to the frame, which is borrowed
        // mutably, and to guest memory where a valid entry of the TLB leads, as the interpreter does.
        let enter = unsafe { transmute::<*const (), extern "sysv64" fn(*mut u8, u64)>(enter) };
        enter(rsp, host);
        buffer.word_at(state.frame().returned)
    }
}

/// Calls `thunk` if the guest's vector registers are, or were, in the host's.
fn if_loaded(assembler: &mut Assembler, thunk: usize) {
    assembler.load(COUNTER, Memory::frame(at::LOADED));
    let not = assembler.if_zero();
    assembler.call(thunk);
    assembler.bind(not);
}

/// In the frame, behind a return address.
fn behind_call(displacement: i32) -> Memory {
    Memory::frame(displacement + 8)
}

fn move_vectors(assembler: &mut Assembler, opcode: u8) {
    let whole = is_x86_feature_detected!("avx");
    assembler.load(COUNTER, behind_call(at::VECTORS));
    for register in 0..16 {
        let place = Memory::based(COUNTER, VECTOR * i32::from(register));
        assembler.move_vector(opcode, whole, register, place);
    }
}

/// Loads the guest's vector registers and MXCSR if they are not, and says so; of general-purpose registers only RCX changes.
/// Where that begins which loads them in any case.
fn write_load(assembler: &mut Assembler) -> usize {
    assembler.load(COUNTER, behind_call(at::LOADED));
    let not = assembler.if_zero();
    assembler.ret();
    assembler.bind(not);
    let again = assembler.here();
    move_vectors(assembler, 0x10);
    assembler.mxcsr(2, Memory::based(COUNTER, at::MXCSR));
    for avx in [false, true] {
        assembler.load(COUNTER, behind_call(at::refused(avx)));
        assembler.store(behind_call(at::pending(avx)), COUNTER);
    }
    assembler.constant(COUNTER, 1);
    assembler.store(behind_call(at::LOADED), COUNTER);
    assembler.ret();
    again
}

/// Stores them, and makes MXCSR the host's.
fn write_store(assembler: &mut Assembler) {
    move_vectors(assembler, 0x11);
    assembler.mxcsr(3, Memory::based(COUNTER, at::MXCSR));
    assembler.mxcsr(2, behind_call(at::HOST_MXCSR));
    if is_x86_feature_detected!("avx") {
        // VZEROUPPER
        assembler.raw(&[0xc5, 0xf8, 0x77]);
    }
    assembler.ret();
}

fn push(assembler: &mut Assembler, register: u8) {
    if register >= 8 {
        assembler.raw(&[0x41]);
    }
    assembler.raw(&[0x50 | register & 7]);
}

fn pop(assembler: &mut Assembler, register: u8) {
    if register >= 8 {
        assembler.raw(&[0x41]);
    }
    assembler.raw(&[0x58 | register & 7]);
}
