//! Assembly text into bytes and into functions, by the compiler's assembler.
//!
//! All unsafe code of these tests is in the expansion of these macros: inline assembly that is jumped over and read as
//! data, or that computes with registers and flags only.

/// The bytes of an instruction in 64-bit mode, or in the mode that `.code16` or `.code32` names first.
macro_rules! code {
    ($text:expr) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: the text is jumped over; only the addresses of its start and its end are taken.
        unsafe {
            core::arch::asm!(
                "lea {start}, [rip + 7770f]",
                "lea {end}, [rip + 7771f]",
                "jmp 7771f",
                "7770:",
                $text,
                ".code64",
                "7771:",
                start = out(reg) start,
                end = out(reg) end,
                options(nomem, nostack, preserves_flags),
            );
        }
        // SAFETY: the bytes between the two labels are part of the program's text.
        unsafe { core::slice::from_raw_parts(start, end.offset_from(start) as usize) }
    }};
}

/// An instruction on registers as a function that this machine's processor executes: RAX, RCX, RDX, RSI, RDI and the
/// status flags go in and come out.
macro_rules! native {
    ($text:literal) => {{
        fn run(registers: &mut [u64; 5], flags: &mut u64) {
            let [rax, rcx, rdx, rsi, rdi] = registers;
            // SAFETY: the text computes with the registers named and the flags; the stack is as it was afterwards.
            unsafe {
                core::arch::asm!(
                    "push {flags}",
                    "popfq",
                    $text,
                    "pushfq",
                    "pop {flags}",
                    flags = inout(reg) * flags,
                    inout("rax") * rax,
                    inout("rcx") * rcx,
                    inout("rdx") * rdx,
                    inout("rsi") * rsi,
                    inout("rdi") * rdi,
                );
            }
        }
        run as fn(&mut [u64; 5], &mut u64)
    }};
}
