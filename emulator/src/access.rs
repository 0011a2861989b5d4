//! How an instruction reaches everything that is not a register of its own CPU.
//!
//! Each instruction is written once, generic over [`Access`]. [`Fast`](crate::fast::Fast) serves plain RAM at once and
//! gives the instruction up, before it has changed anything, at whatever is not plain RAM.
//! [`Careful`](crate::careful::Careful) records what the instruction reads and stages what it stores, so that it can be
//! executed again.
//!
//! # Rules for the semantics
//! * An instruction changes registers only after its last access succeeded: an `Err` leaves the CPU as it was.
//! * An instruction that stores more than once, or reads after it stored, is a *careful* one (see
//!   [`Form`](crate::table::Form)); the fast way never runs it.
//! * Destinations are checked ([`Access::check_write`]) before a source is read that may be a device.

use crate::cpu::{Cpu, Seg};
use crate::event::Exception;
use crate::word::Word;

/// A linear address, with the segment it was formed in: a non-canonical address is #SS in SS and #GP elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// The address.
    pub address: u64,
    /// Number of the segment register.
    pub seg: u8,
}

impl Linear {
    /// An address in `seg`.
    pub fn new(seg: Seg, address: u64) -> Linear {
        Linear {
            address,
            seg: seg as u8,
        }
    }

    /// `bytes` further on.
    #[inline(always)]
    pub fn offset(self, bytes: u64) -> Linear {
        Linear {
            address: self.address.wrapping_add(bytes),
            ..self
        }
    }
}

/// Why an instruction did not simply run on into the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stop {
    /// The instruction earned an exception; nothing has changed.
    Fault(Exception),
    /// The fast way has just learned a translation; nothing has changed, and the instruction is to be tried again.
    Retry,
    /// The fast way cannot execute this; nothing has changed.
    Careful,
    /// Somebody else executes this; nothing has changed.
    Elsewhere,
    /// A device owes an answer; nothing has changed.
    Await,
    /// A conditional branch retired and was taken: RIP is set, nothing else has changed.
    Taken,
    /// Retired. The next instruction follows, but mode, translations, events or activity may have changed.
    Next,
    /// Retired, RIP is set, and mode, translations, events or activity may have changed.
    Jumped,
    /// One iteration of a repeated instruction retired, or an event was raised: RIP stays.
    Stay,
    /// The replay transaction failed; the accessor holds the error. Nothing has changed.
    Failed,
}

impl From<Exception> for Stop {
    #[inline]
    fn from(exception: Exception) -> Stop {
        Stop::Fault(exception)
    }
}

/// What became of one attempt at an instruction: `Ok` if it retired and the next one follows.
pub type Outcome = Result<(), Stop>;

/// The way to memory, devices, clock and chance.
pub trait Access: Sized + 'static {
    /// Reads a word of guest memory with the CPU's current privilege.
    ///
    /// # Errors
    /// [`Stop`]: a fault, or whatever keeps this accessor from answering now.
    fn load<T: Word>(&mut self, cpu: &Cpu, at: Linear) -> Result<T, Stop>;

    /// Writes a word of guest memory with the CPU's current privilege.
    ///
    /// # Errors
    /// As [`Access::load`].
    fn store<T: Word>(&mut self, cpu: &Cpu, at: Linear, value: T) -> Result<(), Stop>;

    /// Reads a word, lets `f` compute the new one, and writes it: one read and one write, not atomic. `f` is called
    /// once.
    ///
    /// # Errors
    /// As [`Access::load`]; the page must be writable before the read.
    fn update<T: Word, R>(&mut self, cpu: &Cpu, at: Linear, f: impl FnOnce(T) -> (T, R)) -> Result<R, Stop>;

    /// Reads a word and writes what `f` makes of it as one atomic operation, or writes nothing if `f` says `None`.
    /// `f` may be called several times; its last call counts.
    ///
    /// # Errors
    /// As [`Access::update`].
    fn atomic<T: Word, R>(&mut self, cpu: &Cpu, at: Linear, f: impl FnMut(T) -> (Option<T>, R)) -> Result<R, Stop>;

    /// Compares 16 bytes with `expected` and replaces them by `new` if they are equal, as one atomic operation; returns
    /// what was there. The address is aligned.
    ///
    /// # Errors
    /// As [`Access::update`].
    fn compare_exchange_16(&mut self, cpu: &Cpu, at: Linear, expected: u128, new: u128) -> Result<u128, Stop>;

    /// Reads `bytes.len()` bytes.
    ///
    /// # Errors
    /// As [`Access::load`].
    fn load_bytes(&mut self, cpu: &Cpu, at: Linear, bytes: &mut [u8]) -> Result<(), Stop>;

    /// Writes `bytes`; every page is checked before the first byte is written.
    ///
    /// # Errors
    /// As [`Access::load`].
    fn store_bytes(&mut self, cpu: &Cpu, at: Linear, bytes: &[u8]) -> Result<(), Stop>;

    /// Reads an array.
    ///
    /// # Errors
    /// As [`Access::load`].
    #[inline(always)]
    fn load_array<const N: usize>(&mut self, cpu: &Cpu, at: Linear) -> Result<[u8; N], Stop> {
        let mut bytes = [0; N];
        self.load_bytes(cpu, at, &mut bytes)?;
        Ok(bytes)
    }

    /// Makes sure that `length` bytes could be written: translates and checks every page of them.
    ///
    /// # Errors
    /// As [`Access::store`].
    fn check_write(&mut self, cpu: &Cpu, at: Linear, length: u64) -> Result<(), Stop>;

    /// Makes sure that `length` bytes could be read.
    ///
    /// # Errors
    /// As [`Access::load`].
    fn check_read(&mut self, cpu: &Cpu, at: Linear, length: u64) -> Result<(), Stop>;

    /// Before `length` bytes are read at `from` that are to be written at `to`: checks both, so that a device at `from`
    /// is not asked for what cannot be stored. The fast way never asks a device, and need not check.
    ///
    /// # Errors
    /// As [`Access::load`] and [`Access::store`], in this order.
    fn check_move(&mut self, cpu: &Cpu, from: Linear, to: Linear, length: u64) -> Result<(), Stop>;

    /// Before `length` bytes are read at `first` and at `second`: checks both, so that a device at `first` is not asked
    /// in vain. The fast way need not check.
    ///
    /// # Errors
    /// As [`Access::load`], in this order.
    fn check_comparison(&mut self, cpu: &Cpu, first: Linear, second: Linear, length: u64) -> Result<(), Stop>;

    /// Iterations of a repeated instruction that may be committed before events are looked at again.
    const ITERATIONS: u32;

    /// Copies at most `length` bytes, as many as can be copied at once with the effect of copying byte by byte upwards;
    /// returns how many, perhaps none. Elements have `size` bytes.
    ///
    /// # Errors
    /// As [`Access::load`] from, and [`Access::store`] to, the first element.
    fn copy_run(&mut self, cpu: &Cpu, from: Linear, to: Linear, length: u64, size: u8) -> Result<u64, Stop>;

    /// Writes at most `count` copies of `value` upwards, as many as can be written at once; returns how many, perhaps
    /// none.
    fn fill_run<T: Word>(&mut self, cpu: &Cpu, to: Linear, value: T, count: u64) -> u64;

    /// The time-stamp counter.
    ///
    /// # Errors
    /// [`Stop::Failed`].
    fn tsc(&mut self) -> Result<u64, Stop>;

    /// 64 random bits.
    ///
    /// # Errors
    /// [`Stop::Failed`].
    fn random(&mut self) -> Result<u64, Stop>;

    /// The handler that this way uses for a careful instruction: the handler itself, or one that gives up.
    fn careful(handler: crate::op::Handler<crate::careful::Careful>) -> crate::op::Handler<Self>;
}
