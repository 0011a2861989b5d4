//! One x86 CPU in software, exact under re-execution; does no I/O of its own.
//!
//! Bytes and answers go in, requests and registers come out. Whatever is not RAM (a device's register, a port, an MSR
//! of the platform) is an [`Exit::Request`]: the instruction is abandoned without having changed anything, and executed
//! again when [`Entry::Answer`] brings the answer. However long that takes, and whatever has happened to memory and
//! page tables meanwhile, the second pass sees exactly what the first one saw, and asks no device twice.
//!
//! ```
//! use std::sync::Arc;
//!
//! use reprise_emulator::cpu::Seg;
//! use reprise_emulator::{Answer, Cpu, CpuidTable, Emulator, Entry, Exit, Host, Model, Ram, Reply};
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! struct Still; // a clock that stands, and dice that always show 4
//! impl Host for Still {
//!     fn tsc(&self) -> u64 { 0 }
//!     fn random(&self) -> u64 { 4 }
//! }
//!
//! let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)])?;
//! //                   xor ax, ax   mov ds, ax   add al, [0x500]           add al, ds:[bx]   (bx leads beyond RAM)
//! memory.write_slice(&[0x31, 0xc0, 0x8e, 0xd8, 0x02, 0x06, 0x00, 0x05, 0x67, 0x02, 0x03, 0xf4], GuestAddress(0x1000))?;
//! memory.write_obj(40u8, GuestAddress(0x500))?;
//! let mut cpu = Cpu::reset();
//! cpu.segments[Seg::Cs].base = 0;
//! cpu.segments[Seg::Ds].limit = 0xffff_ffff;
//! cpu.rip = 0x1000;
//! cpu.gpr.set(3, 0xd000_0000);
//! let ram = Arc::new(Ram::new(memory.clone())?);
//! let cpuid = Arc::new(CpuidTable::default());
//! let mut emulator = Emulator::new(cpu, ram, Arc::new(Still), Arc::new(Model::new()), cpuid);
//!
//! let Exit::Request(read) = emulator.run(Entry::Resume)? else { panic!("no device is read") };
//! assert_eq!((read.address, read.size), (0xd000_0000, 1));
//! assert_eq!(emulator.cpu().gpr.get(0), 40); // the waiting instruction has changed nothing
//! memory.write_slice(&[0x90; 12], GuestAddress(0x1000))?; // another CPU, meanwhile, overwrites the code
//! let answer = Answer { id: read.id, reply: Reply::Value(2) };
//! emulator.attention().call(); // be heard again right after the instruction
//! assert_eq!(emulator.run(Entry::Answer(answer))?, Exit::Attention);
//! assert_eq!(emulator.cpu().gpr.get(0), 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Map
//! - The main path: [`Emulator`] runs blocks of decoded instructions the fast way ([`fast`]), single ones carefully
//!   ([`careful`], on the [`replay`] cache), and delivers events between them.
//! - [`translate`]: hot 64-bit code as code of the host, if [`Emulator::set_translation`] says so.
//! - [`cpu`]: the state, plain data. [`event`], [`request`], [`host`], [`attention`]: what it exchanges with the world.
//! - `insn`: the semantics, each instruction once, generic over [`access::Access`]. [`table`] says what there is,
//!   [`model`] and [`cpuid`] what is announced, [`op`] and [`operand`] what a decoded instruction looks like.
//! - [`ram`] with [`code_pages`], [`paging`]: memory, who has decoded what of it, and the way there.
//!
//! # What is executed
//! Encodings as iced counts them, of 16-, 32- and 64-bit code; what is not executed is #UD. Others, for comparison, emulate
//! what their guests trap on; their hardware does the rest.
//!
#![doc = include_str!("executed.md")]
//!
//! # Unsafe code
//! It lives in `ram` and `tlb` (guest memory is shared with other threads and cannot be borrowed), `native`
//! (floating-point instructions under the guest's own rounding and exception masks), and three parts of [`translate`]: the
//! buffer, the state and the way into translated code. The host is an x86-64 machine.
#![deny(unsafe_code)]

pub mod access;
pub mod attention;
mod blocks;
pub mod careful;
pub mod code_pages;
pub mod cpu;
pub mod cpuid;
mod debug;
mod decode;
mod deliver;
mod descriptor;
pub mod elsewhere;
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
mod task;
mod tlb;
pub mod translate;
pub mod word;

pub use attention::Attention;
pub use careful::{Aside, InFlight, InFlightError};
pub use cpu::Cpu;
pub use cpuid::CpuidTable;
pub use elsewhere::Elsewhere;
pub use emulator::{Cause, Counters, Emulator, Entry, Error, Exit, SupplyError};
pub use event::{Event, Exception};
pub use host::Host;
pub use model::Model;
pub use ram::{Ram, RamError};
pub use replay::ReplayError;
pub use request::{Answer, Direction, Reply, Request, RequestId, Space};
