//! What is said when a thread makes a system call that it may not.
//!
//! The kernel raises SIGSYS in the thread that called. The handler tells thread and call in one line, and ends the process.
//! It is called amid anything, so that it allocates nothing and waits for nobody.
#![allow(unsafe_code)] // The kernel's description of the signal is reached by a raw pointer, here and nowhere else.

use std::cell::Cell;
use std::io::{self, Write};

use libc::{c_int, c_void, siginfo_t};
use reprise_devices::thread::ThreadKind;
use vmm_sys_util::signal::register_signal_handler;

use super::{Kind, SandboxError};

/// SYS_SECCOMP, why SIGSYS was raised.
const SYS_SECCOMP: c_int = 1;
/// Where the number of the call is in `siginfo_t` on 64-bit systems: behind the address of the calling instruction.
const SI_SYSCALL: usize = 24;

thread_local! {
    static NAME: Cell<&'static str> = const { Cell::new("the VMM") };
}

/// Says what the calling thread is.
pub(super) fn name(kind: Kind) {
    NAME.set(match kind {
        Kind::Vcpu => "a vCPU",
        Kind::Device(ThreadKind::Queue) => "a device's queue",
        Kind::Device(ThreadKind::Console) => "a console",
        Kind::Device(ThreadKind::Keyboard) => "a console's input",
        Kind::Device(ThreadKind::UserDevice) => "a device in another process",
    });
}

/// Has a call that is not let through explained.
///
/// # Errors
/// [`SandboxError::Signal`].
pub(super) fn explain() -> Result<(), SandboxError> {
    register_signal_handler(libc::SIGSYS, trapped).map_err(|error| SandboxError::Signal { source: error.into() })
}

extern "C" fn trapped(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: The handler was registered with SA_SIGINFO, so `info` points at a siginfo_t, which is 128 bytes long and aligned
    // to 8; what lies at 24 are four bytes of it whatever the signal's cause, and they are the call's number if that is
    // SYS_SECCOMP (sigaction(2)).
    let (code, call) = unsafe {
        (
            (*info).si_code,
            info.cast::<u8>().add(SI_SYSCALL).cast::<c_int>().read(),
        )
    };
    let mut line = [0_u8; 192];
    let length = {
        let mut rest = &mut line[..];
        let name = NAME.try_with(Cell::get).unwrap_or("a thread");
        // It fits, and would be cut if not.
        let _ = if code == SYS_SECCOMP {
            writeln!(
                rest,
                "error: the thread of {name} made system call {call}, which its filter does not let through (--seccomp log tells of all)"
            )
        } else {
            writeln!(rest, "error: the thread of {name} got SIGSYS from outside")
        };
        let left = rest.len();
        line.len() - left
    };
    let _ = rustix::io::write(io::stderr(), &line[..length]);
    // SAFETY: It takes a number and does not return; nothing of the process is touched any more.
    unsafe { libc::_exit(1) }
}
