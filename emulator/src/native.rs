//! Vectors and floating point as the host's processor computes them.
//!
//! # Purpose
//! Guests see every bit of rounding, flags and approximations. The emulator runs on the architecture that it emulates,
//! so it has the reference at hand: each operation is one host instruction, executed under the guest's own control
//! register, and what it left behind is read back.
//!
//! # Invariants
//! * Rust's floating-point environment (MXCSR 1F80H, x87 as after FNINIT) holds before and after every function here;
//!   the guest's is loaded, used and taken out within one block of assembly.
//! * No exception reaches the host: SSE operations run with all exceptions masked, and x87 operations, which report
//!   exceptions only at the next waiting instruction, are followed by none.

pub(crate) mod packed;
pub(crate) mod sse;
pub(crate) mod x87;
