//! The child: a process that does nothing but run cases on the processor.
//!
//! # Purpose
//! A case is one instruction with TF set (or several iterations of one, with INT3 behind it), so it always ends in an
//! exception, which Linux makes a signal of. The handler stores the registers that the signal brought, and leaves those of
//! the next case for the kernel to load: one signal for each case, and nothing else happens between them.
//!
//! # Invariants
//! * The handler touches neither thread-local storage (FS is the case's) nor anything that can panic.
//! * System calls of the cases are stopped by seccomp: those from low addresses, where only cases run, and all of the
//!   32-bit interface.
#![allow(
    unsafe_code,
    reason = "another process's registers and memory are nothing that the compiler knows"
)]

use core::arch::{asm, naked_asm};
use core::mem::size_of;
use core::ptr;

use crate::state::{
    BATCH, Batch, CODE, CODE_PAGES, DATA, FILLER, FLAT, Input, LDT, NO_VECTOR, Output, PAGE, READ_ONLY, STACK, State,
    WRITABLE, XSAVE_SIZE,
};

/// What the handler knows. There is one child, and it has one thread.
struct Child {
    batch: *mut Batch,
    /// Where the code pages and the read-only page can be written.
    code: *mut u8,
    read_only: *mut u8,
    requests: i32,
    replies: i32,
    /// A case runs.
    running: bool,
}

static mut CHILD: Child = Child {
    batch: ptr::null_mut(),
    code: ptr::null_mut(),
    read_only: ptr::null_mut(),
    requests: 0,
    replies: 0,
    running: false,
};

/// RFLAGS that a return from a signal leaves as they are: NT and ID.
const KEPT_FLAGS: u64 = 1 << 14 | 1 << 21;

/// Becomes the child: never returns.
///
/// # Safety
/// The caller has just been forked; `batch` is shared with the parent.
pub unsafe fn run(batch: *mut Batch, requests: i32, replies: i32) -> ! {
    // SAFETY: this process has one thread, and its address space is its own from here on.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let code = map_twice(CODE, CODE_PAGES * PAGE, libc::PROT_READ | libc::PROT_EXEC);
        let read_only = map_twice(READ_ONLY, PAGE, libc::PROT_READ);
        for page in WRITABLE {
            map(page, PAGE);
        }
        ptr::write_bytes(code, FILLER, CODE_PAGES * PAGE);
        CHILD = Child {
            batch,
            code,
            read_only,
            requests,
            replies,
            running: false,
        };
        make_ldt();
        catch_signals();
        forbid_system_calls();
        asm!("mov ds, {0:e}", "mov es, {0:e}", "ud2", in(reg) u32::from(FLAT));
        libc::_exit(0)
    }
}

unsafe fn check(outcome: isize) -> isize {
    if outcome < 0 {
        // SAFETY: ends the process.
        unsafe { libc::_exit(101) }
    }
    outcome
}

/// Maps fresh memory at `address` with `protection`, and once more, writable, at the address that is returned.
unsafe fn map_twice(address: u64, length: usize, protection: i32) -> *mut u8 {
    // SAFETY: nothing else is mapped at low addresses.
    unsafe {
        let file = check(libc::memfd_create(c"code".as_ptr(), 0) as isize) as i32;
        check(libc::ftruncate(file, length as i64) as isize);
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let there = libc::mmap(address as *mut _, length, protection, flags | libc::MAP_FIXED, file, 0);
        check(there as isize);
        let here = libc::mmap(
            ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            file,
            0,
        );
        check(here as isize);
        here.cast()
    }
}

unsafe fn map(address: u64, length: usize) {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | libc::MAP_FIXED;
    // SAFETY: nothing else is mapped at low addresses.
    unsafe { check(libc::mmap(address as *mut _, length, protection, flags, -1, 0) as isize) };
}

/// Linux's `struct user_desc`.
#[repr(C)]
struct UserDesc {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

unsafe fn make_ldt() {
    for (i, entry) in LDT.iter().enumerate() {
        let desc = UserDesc {
            entry: i as u32,
            base: entry.base,
            limit: entry.limit,
            flags: entry.flags,
        };
        // SAFETY: the kernel reads the structure that it is given. Function 0x11 is writing with all flags.
        unsafe { check(libc::syscall(libc::SYS_modify_ldt, 0x11, &raw const desc, size_of::<UserDesc>()) as isize) };
    }
}

unsafe fn catch_signals() {
    // SAFETY: the stack lives as long as the process, and the handler is one.
    unsafe {
        let size = 1 << 16;
        let memory = libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
            -1,
            0,
        );
        let stack = libc::stack_t {
            ss_sp: memory,
            ss_flags: 0,
            ss_size: size,
        };
        check(libc::sigaltstack(&raw const stack, ptr::null_mut()) as isize);
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = entry as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&raw mut action.sa_mask);
        for signal in [
            libc::SIGSEGV,
            libc::SIGTRAP,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGBUS,
            libc::SIGSYS,
        ] {
            check(libc::sigaction(signal, &raw const action, ptr::null_mut()) as isize);
        }
    }
}

/// Makes a signal of each system call that a case makes.
unsafe fn forbid_system_calls() {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const AUDIT_X86_64: u32 = 0xc000_003e;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        // seccomp_data.arch, then the high half of seccomp_data.instruction_pointer.
        step(LOAD, 4, 0, 0),
        step(EQUAL, AUDIT_X86_64, 0, 2),
        step(LOAD, 12, 0, 0),
        step(EQUAL, 0, 0, 1),
        step(RETURN, libc::SECCOMP_RET_TRAP, 0, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) as isize);
        check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) as isize);
    }
}

/// The handler's first instructions: with AC set, the rest could not run.
#[unsafe(naked)]
extern "C" fn entry(_: i32, _: *mut libc::siginfo_t, _: *mut libc::ucontext_t) {
    naked_asm!(
        "pushfq",
        "and qword ptr [rsp], {keep}",
        "popfq",
        "jmp {handler}",
        keep = const !(1i32 << 18 | 1 << 14),
        handler = sym handler,
    )
}

// Numbers of registers in Linux's `gregs`, by the processor's numbers.
const GREGS: [usize; 16] = [
    libc::REG_RAX as usize,
    libc::REG_RCX as usize,
    libc::REG_RDX as usize,
    libc::REG_RBX as usize,
    libc::REG_RSP as usize,
    libc::REG_RBP as usize,
    libc::REG_RSI as usize,
    libc::REG_RDI as usize,
    libc::REG_R8 as usize,
    libc::REG_R9 as usize,
    libc::REG_R10 as usize,
    libc::REG_R11 as usize,
    libc::REG_R12 as usize,
    libc::REG_R13 as usize,
    libc::REG_R14 as usize,
    libc::REG_R15 as usize,
];

extern "C" fn handler(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: there is one thread, and this handler does not interrupt itself: all signals are blocked.
    unsafe {
        let child = &raw mut CHILD;
        let child = &mut *child;
        let batch = child.batch;
        let context = context.cast::<Context>();
        if child.running {
            let index = (*batch).index as usize;
            let output = &raw mut (&mut (*batch).outputs)[index % BATCH];
            store(output, context, signal);
            restore_memory(output, &raw const (*batch).template);
            let input = &raw const (&(*batch).inputs)[index % BATCH];
            erase(child.code, input);
            (*batch).index += 1;
        }
        while !child.running || (*batch).index >= (*batch).count {
            if child.running {
                write(child.replies);
            }
            read(child.requests);
            child.running = true;
            (*batch).index = 0;
            for (i, page) in WRITABLE.iter().enumerate() {
                copy(*page as *mut u8, (&raw const (*batch).template[i]).cast(), PAGE);
            }
            copy(child.read_only, (&raw const (*batch).template[3]).cast(), PAGE);
            if (*batch).has_program != 0 {
                copy(child.code, (&raw const (*batch).program).cast(), CODE_PAGES * PAGE);
            }
        }
        let input = &raw const (&(*batch).inputs)[(*batch).index as usize % BATCH];
        load(context, &raw const (*input).state);
        let at = ((*input)
            .state
            .rip
            .wrapping_add(code_base((*input).state.selectors[1]))
            .wrapping_sub(CODE)) as usize;
        for i in 0..(*input).length as usize {
            if at + i < CODE_PAGES * PAGE {
                *child.code.add(at + i) = *(&raw const (*input).code).cast::<u8>().add(i);
            }
        }
        for patch in &(*input).patches {
            let page = WRITABLE[patch.page as usize % 3] as *mut u8;
            copy(
                page.add(patch.at as usize),
                (&raw const patch.bytes).cast(),
                patch.length as usize,
            );
        }
        set_flags((*input).state.flags);
    }
}

/// The linear address of offset 0 of the code segment that a case starts in.
pub fn code_base(selector: u16) -> u64 {
    if selector & 4 == 0 {
        0
    } else {
        u64::from(LDT[usize::from(selector >> 3) % LDT.len()].base)
    }
}

/// What the kernel leaves on the handler's stack (`struct ucontext`, without what is not looked at here).
#[repr(C)]
struct Context {
    flags: u64,
    link: u64,
    stack: [u64; 3],
    gregs: [u64; 23],
    fpu: *mut u8,
}

#[inline(always)]
unsafe fn store(output: *mut Output, context: *const Context, signal: i32) {
    // SAFETY: the caller's pointers are good.
    unsafe {
        let gregs = &raw const (*context).gregs;
        let state = &raw mut (*output).state;
        for (i, from) in GREGS.iter().enumerate() {
            (*state).gpr[i & 15] = (*gregs)[*from % 23];
        }
        (*state).rip = (*gregs)[libc::REG_RIP as usize];
        (*state).flags = (*gregs)[libc::REG_EFL as usize];
        let segments = (*gregs)[libc::REG_CSGSFS as usize];
        (*state).selectors = [
            read_es(),
            segments as u16,
            (segments >> 48) as u16,
            read_ds(),
            read_fs(),
            read_gs(),
        ];
        asm!(
            "rdfsbase {}",
            out(reg)(*state).fs_base,
            options(nostack, preserves_flags)
        );
        asm!(
            "rdgsbase {}",
            out(reg)(*state).gs_base,
            options(nostack, preserves_flags)
        );
        copy((&raw mut (*state).xsave).cast(), (*context).fpu, XSAVE_SIZE);
        let vector = (*gregs)[libc::REG_TRAPNO as usize] as u32;
        (*output).vector = if signal == libc::SIGSYS { NO_VECTOR } else { vector };
        (*output).error_code = (*gregs)[libc::REG_ERR as usize] as u32;
        (*output).cr2 = (*gregs)[libc::REG_CR2 as usize];
    }
}

#[inline(always)]
unsafe fn load(context: *mut Context, state: *const State) {
    // SAFETY: the caller's pointers are good, and the child's own code uses no segment but those of 64-bit mode.
    unsafe {
        let gregs = &raw mut (*context).gregs;
        for (i, to) in GREGS.iter().enumerate() {
            (*gregs)[*to % 23] = (*state).gpr[i & 15];
        }
        (*gregs)[libc::REG_RIP as usize] = (*state).rip;
        (*gregs)[libc::REG_EFL as usize] = (*state).flags;
        let [es, cs, ss, ds, fs, gs] = (*state).selectors;
        (*gregs)[libc::REG_CSGSFS as usize] = u64::from(ss) << 48 | u64::from(cs);
        // UC_STRICT_RESTORE_SS: what is given as SS is loaded as SS.
        (*context).flags |= 4;
        if read_es() != es {
            asm!("mov es, {0:e}", in(reg) u32::from(es), options(nostack, preserves_flags));
        }
        if read_ds() != ds {
            asm!("mov ds, {0:e}", in(reg) u32::from(ds), options(nostack, preserves_flags));
        }
        if read_fs() != fs {
            asm!("mov fs, {0:e}", in(reg) u32::from(fs), options(nostack, preserves_flags));
        }
        if read_gs() != gs {
            asm!("mov gs, {0:e}", in(reg) u32::from(gs), options(nostack, preserves_flags));
        }
        asm!("wrfsbase {}", in(reg) (*state).fs_base, options(nostack, preserves_flags));
        asm!("wrgsbase {}", in(reg) (*state).gs_base, options(nostack, preserves_flags));
        // Bytes 416 to 511 are the kernel's.
        let fpu = (*context).fpu;
        copy(fpu, (&raw const (*state).xsave).cast(), 416);
        copy(
            fpu.add(512),
            (&raw const (*state).xsave).cast::<u8>().add(512),
            XSAVE_SIZE - 512,
        );
    }
}

/// Notes what the case has changed and puts it back.
#[inline(always)]
unsafe fn restore_memory(output: *mut Output, template: *const [[u8; PAGE]; 4]) {
    for (i, page) in WRITABLE.iter().enumerate() {
        // SAFETY: the page is mapped; the pointers are the caller's.
        unsafe {
            let before = (&raw const (*template)[i]).cast::<u64>();
            let now = *page as *mut u64;
            let (mut start, mut end) = (0, PAGE / 8);
            while start < end && *before.add(start) == *now.add(start) {
                start += 1;
            }
            while end > start && *before.add(end - 1) == *now.add(end - 1) {
                end -= 1;
            }
            (*output).changed[i] = [8 * start as u16, 8 * end as u16];
            let length = 8 * (end - start);
            copy(
                (&raw mut (*output).pages[i]).cast::<u8>().add(8 * start),
                now.add(start).cast(),
                length,
            );
            copy(now.add(start).cast(), before.add(start).cast(), length);
        }
    }
}

/// Removes the case's code.
#[inline(always)]
unsafe fn erase(code: *mut u8, input: *const Input) {
    // SAFETY: the offsets are checked.
    unsafe {
        let at = ((*input)
            .state
            .rip
            .wrapping_add(code_base((*input).state.selectors[1]))
            .wrapping_sub(CODE)) as usize;
        for i in 0..(*input).length as usize {
            if at + i < CODE_PAGES * PAGE {
                *code.add(at + i) = FILLER;
            }
        }
    }
}

#[inline(always)]
unsafe fn copy(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: the caller's pointers are good. REP MOVSB needs nothing that a case could have changed.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") length => _, options(nostack, preserves_flags));
    }
}

/// Sets NT and ID; the kernel sets the other flags.
#[inline(always)]
unsafe fn set_flags(flags: u64) {
    // SAFETY: neither flag means anything to user code.
    unsafe {
        asm!(
            "pushfq",
            "and qword ptr [rsp], {clear}",
            "or qword ptr [rsp], {set}",
            "popfq",
            clear = const !(KEPT_FLAGS as i32),
            set = in(reg) flags & KEPT_FLAGS,
        );
    }
}

macro_rules! selector {
    ($($name:ident $segment:literal),*) => {$(
        #[inline(always)]
        fn $name() -> u16 {
            let value: u16;
            // SAFETY: reads a register.
            unsafe { asm!(concat!("mov {0:x}, ", $segment), out(reg) value, options(nostack, preserves_flags, nomem)) };
            value
        }
    )*};
}

selector!(read_es "es", read_ds "ds", read_fs "fs", read_gs "gs");

/// Says that the batch is done. The C library's functions would look for `errno` under FS.
#[inline(always)]
unsafe fn write(file: i32) {
    let byte = 0u8;
    // SAFETY: a system call with good arguments.
    unsafe {
        asm!("syscall", inlateout("rax") libc::SYS_write => _, in("rdi") file, in("rsi") &raw const byte, in("rdx") 1,
            out("rcx") _, out("r11") _, options(nostack));
    }
}

/// Waits for the next batch; without a parent there is none.
#[inline(always)]
unsafe fn read(file: i32) {
    let mut byte = 0u8;
    // SAFETY: system calls with good arguments.
    unsafe {
        let count: isize;
        asm!("syscall", inlateout("rax") libc::SYS_read => count, in("rdi") file, in("rsi") &raw mut byte, in("rdx") 1,
            out("rcx") _, out("r11") _, options(nostack));
        if count != 1 {
            asm!("syscall", in("rax") libc::SYS_exit_group, in("rdi") 0, options(noreturn));
        }
    }
}

const _: () = assert!(DATA < STACK && size_of::<UserDesc>() == 16);
