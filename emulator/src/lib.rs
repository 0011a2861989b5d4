//! One x86 CPU in software, exact under re-execution; does no I/O of its own.
#![deny(unsafe_code)]

pub mod access;
pub mod attention;
pub mod careful;
pub mod code_pages;
pub mod cpu;
pub mod event;
pub mod fast;
pub mod host;
mod insn;
pub mod op;
pub mod operand;
pub mod paging;
pub mod ram;
pub mod replay;
pub mod request;
pub mod table;
mod tlb;
pub mod word;

pub use attention::Attention;
pub use cpu::Cpu;
pub use event::{Event, Exception};
pub use host::Host;
pub use ram::{Ram, RamError};
pub use replay::ReplayError;
pub use request::{Answer, Direction, Reply, Request, RequestId, Space};

/// The emulator cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The record of an instruction failed.
    #[error("the instruction cannot be re-executed")]
    Replay(#[from] ReplayError),
}
