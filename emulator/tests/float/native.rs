//! The host's processor executes one instruction.
//!
//! Unsafe, since this is what it is about: code is written to a page, and called.

use std::sync::Once;

use iced_x86::code_asm::*;
use iced_x86::{CpuidFeature, IcedError};

use crate::state::{Outcome, State};

const PAGE: usize = 4096;
/// Where the memory operand lies in the page.
const DATA_AT: usize = 2048;

/// A page that holds code and data.
pub struct Native {
    page: *mut u8,
}

/// What the code gets and leaves.
#[repr(C, align(16))]
struct Frame {
    state: State,
    trapped: u64,
    mxcsr: u32,
}

impl Native {
    pub fn new() -> Native {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(install_handler);
        // SAFETY: a new private mapping.
        let page = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        Native { page: page.cast() }
    }

    /// Executes `instruction`.
    pub fn run(&mut self, instruction: &[u8], before: &State) -> Outcome {
        let mut frame = Frame {
            state: *before,
            trapped: 0,
            mxcsr: 0x1f80,
        };
        let code = assemble(instruction, self.page as u64).expect("the frame of the instruction is right");
        assert!(code.len() <= DATA_AT);
        // SAFETY: code and data fit the page, which nothing else uses; the code keeps to the System V calling convention.
        unsafe {
            core::ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len());
            let data = self.page.add(DATA_AT);
            core::ptr::copy_nonoverlapping(before.data.as_ptr(), data, before.data.len());
            let function: extern "sysv64" fn(*mut Frame, *mut u8) = core::mem::transmute(self.page);
            function(&raw mut frame, data);
            core::ptr::copy_nonoverlapping(data, frame.state.data.as_mut_ptr(), before.data.len());
        }
        Outcome {
            state: frame.state,
            trapped: frame.trapped != 0,
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made.
        unsafe { libc::munmap(self.page.cast(), PAGE) };
    }
}

/// A function of (frame, data) that executes the instruction on the frame's state. r13 holds the frame, r15 where to go on
/// after an exception, r14 becomes 1 then.
fn assemble(instruction: &[u8], at: u64) -> Result<Vec<u8>, IcedError> {
    let gpr = core::mem::offset_of!(State, gpr) as i32;
    let flags = core::mem::offset_of!(State, flags) as i32;
    let trapped = core::mem::offset_of!(Frame, trapped) as i32;
    let mxcsr = core::mem::offset_of!(Frame, mxcsr) as i32;
    let mut a = CodeAssembler::new(64)?;
    let mut after = a.create_label();
    for register in [rbx, rbp, r12, r13, r14, r15] {
        a.push(register)?;
    }
    a.mov(r13, rdi)?;
    a.mov(rdi, rsi)?;
    a.lea(r15, ptr(after))?;
    a.xor(r14d, r14d)?;
    a.fxrstor64(ptr(r13))?;
    let upper = core::mem::offset_of!(State, upper) as i32;
    const HALVES: [AsmRegisterYmm; 16] = [
        ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15,
    ];
    let halves = HALVES.into_iter().zip(0..).filter(|_| has_avx());
    for (register, i) in halves.clone() {
        a.vinsertf128(register, register, xmmword_ptr(r13 + upper + 16 * i), 1)?;
    }
    for (i, register) in [rax, rcx, rdx, rbx].into_iter().enumerate() {
        a.mov(register, qword_ptr(r13 + gpr + 8 * i as i32))?;
    }
    a.push(qword_ptr(r13 + flags))?;
    a.popfq()?;
    a.db(instruction)?;
    a.set_label(&mut after)?;
    a.pushfq()?;
    a.pop(qword_ptr(r13 + flags))?;
    a.fxsave64(ptr(r13))?;
    for (i, register) in [rax, rcx, rdx, rbx].into_iter().enumerate() {
        a.mov(qword_ptr(r13 + gpr + 8 * i as i32), register)?;
    }
    a.mov(qword_ptr(r13 + trapped), r14)?;
    for (register, i) in halves {
        a.vextractf128(xmmword_ptr(r13 + upper + 16 * i), register, 1)?;
    }
    if has_avx() {
        a.vzeroupper()?;
    }
    a.fninit()?;
    a.ldmxcsr(dword_ptr(r13 + mxcsr))?;
    a.cld()?;
    for register in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(register)?;
    }
    a.ret()?;
    a.assemble(at)
}

/// Whether the host has an extension that the tests ask for.
pub fn has(feature: CpuidFeature) -> bool {
    match feature {
        CpuidFeature::AVX => has_avx(),
        CpuidFeature::FMA => std::arch::is_x86_feature_detected!("fma"),
        CpuidFeature::F16C => std::arch::is_x86_feature_detected!("f16c"),
        _ => false,
    }
}

fn has_avx() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}

/// SIGFPE goes on at r15 with r14 set.
fn install_handler() {
    extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel passes the context of the interrupted code, which `assemble` made.
        let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        registers[libc::REG_RIP as usize] = registers[libc::REG_R15 as usize];
        registers[libc::REG_R14 as usize] = 1;
    }
    // SAFETY: a handler for SIGFPE, which only the code above raises.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGFPE, &action, core::ptr::null_mut()), 0);
    }
}
