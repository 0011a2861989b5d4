//! One x86 CPU in software, exact under re-execution; does no I/O of its own.
#![deny(unsafe_code)]

/// The architectural state of one logical processor, plain data.
#[derive(Debug, Clone, Default)]
pub struct Cpu {}

/// The emulator cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pass over an instruction asked something else than the pass before it.
    #[error("a pass diverged from the one before it")]
    Divergence,
}
