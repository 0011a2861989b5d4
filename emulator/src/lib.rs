//! One x86 CPU in software, exact under re-execution; does no I/O of its own.
#![deny(unsafe_code)]

pub mod access;
pub mod attention;
mod blocks;
pub mod careful;
pub mod code_pages;
pub mod cpu;
pub mod cpuid;
mod decode;
mod deliver;
mod descriptor;
mod emulator;
pub mod event;
pub mod fast;
pub mod host;
mod insn;
pub mod model;
mod native;
pub mod op;
pub mod operand;
pub mod paging;
pub mod ram;
pub mod replay;
pub mod request;
mod stack;
pub mod table;
mod tlb;
pub mod word;

pub use attention::Attention;
pub use cpu::Cpu;
pub use cpuid::CpuidTable;
pub use emulator::{Counters, Emulator, Entry, Error, Exit};
pub use event::{Event, Exception};
pub use host::Host;
pub use model::Model;
pub use ram::{Ram, RamError};
pub use replay::ReplayError;
pub use request::{Answer, Direction, Reply, Request, RequestId, Space};
