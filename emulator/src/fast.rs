//! The fast way to memory: RAM through the software TLB, and nothing else.
//!
//! Whatever is not plain RAM (a device, an operand that crosses a page, a store into a page that holds decoded code)
//! makes the instruction give up with [`Stop::Careful`] before it has changed anything.

use std::sync::Arc;

use crate::access::{Access, Linear, Stop};
use crate::careful::Careful;
use crate::cpu::Cpu;
use crate::event::{self, Exception};
use crate::host::Host;
use crate::op::{Handler, Op};
use crate::paging::{self, Intent, Privilege, Tables};
use crate::ram::{PAGE_SIZE, Ram};
use crate::tlb::{FetchPage, Tlb};
use crate::word::Word;

/// RAM through the software TLB.
pub struct Fast {
    pub(crate) tlb: Tlb,
    host: Arc<dyn Host>,
    /// Linear address of the page fault that a handler has just returned.
    pub(crate) fault_address: u64,
    /// Data accesses that missed the TLB.
    pub(crate) misses: u64,
    /// Those that missed its second level, too.
    pub(crate) walks: u64,
}

/// Page tables as they are now.
struct Live<'a> {
    ram: &'a Ram,
    fault_address: &'a mut u64,
}

impl Tables for Live<'_> {
    fn entry(&mut self, gpa: u64, size: u8) -> Result<u64, Stop> {
        self.ram.read(gpa, size).ok_or(Stop::Careful)
    }

    fn set_bits(&mut self, gpa: u64, size: u8, seen: u64, bits: u64) -> Result<bool, Stop> {
        set_live_bits(self.ram, gpa, size, seen, bits).ok_or(Stop::Careful)
    }

    fn page_fault(&mut self, linear: u64, error_code: u16) -> Stop {
        *self.fault_address = linear;
        Exception::with_code(event::PF, error_code).into()
    }
}

/// Sets bits in a page-table entry in RAM, if it still is as seen; `None` if it is not in RAM.
pub(crate) fn set_live_bits(ram: &Ram, gpa: u64, size: u8, seen: u64, bits: u64) -> Option<bool> {
    let page = ram.page(gpa)?;
    let done = if size == 4 {
        let (seen, bits) = (seen as u32, bits as u32);
        page.slot::<u32>(gpa)?.atomic(|now| {
            if now == seen {
                (Some(now | bits), true)
            } else {
                (None, false)
            }
        })
    } else {
        page.slot::<u64>(gpa)?.atomic(|now| {
            if now == seen {
                (Some(now | bits), true)
            } else {
                (None, false)
            }
        })
    };
    ram.code.written(page.number, gpa & (PAGE_SIZE - 1), u64::from(size));
    Some(done)
}

impl Fast {
    pub(crate) fn new(ram: Arc<Ram>, host: Arc<dyn Host>) -> Fast {
        Fast {
            tlb: Tlb::new(ram),
            host,
            fault_address: 0,
            misses: 0,
            walks: 0,
        }
    }

    /// Makes the page of a data access hit when the instruction is tried again, or says why it cannot.
    ///
    /// It is the last thing a handler does, so that the handler itself saves no registers around a call.
    #[cold]
    #[inline(never)]
    fn fill(&mut self, cpu: &Cpu, at: Linear, size: u64, intent: Intent) -> Stop {
        match self.learn(cpu, at, size, intent) {
            Ok(()) => Stop::Retry,
            Err(stop) => stop,
        }
    }

    /// Makes the page of a data access hit, or says why it cannot.
    pub(crate) fn learn(&mut self, cpu: &Cpu, at: Linear, size: u64, intent: Intent) -> Result<(), Stop> {
        let linear = at.address;
        // The last byte in another page: the careful way knows how.
        if (linear & (PAGE_SIZE - 1)) + size > PAGE_SIZE || cpu.view.checks_alignment() {
            return Err(Stop::Careful);
        }
        if cpu.view.is_long() && !paging::is_canonical(cpu, linear) {
            return Err(non_canonical(at));
        }
        self.misses += 1;
        let writes = intent == Intent::Write;
        if self.tlb.promote(cpu.view.context, linear, writes) {
            return Ok(());
        }
        self.walks += 1;
        let ram = self.tlb.ram().clone();
        let mut tables = Live {
            ram: &ram,
            fault_address: &mut self.fault_address,
        };
        let translation = paging::translate(cpu, &mut tables, linear, intent, Privilege::of(cpu.cpl()))?;
        let page = ram.page(translation.gpa).ok_or(Stop::Careful)?;
        let context = cpu.view.context;
        if intent == Intent::Write {
            if !ram.code.admit_writer(page.number) {
                return Err(Stop::Careful);
            }
            self.tlb.insert_write(context, linear, page, translation);
        } else {
            self.tlb.insert_read(context, linear, page, translation);
        }
        Ok(())
    }

    /// The page to fetch instructions from, if it is plain RAM and fetching is allowed.
    pub(crate) fn fetch_page(&mut self, cpu: &Cpu, linear: u64) -> Option<FetchPage> {
        let user = cpu.cpl() == 3;
        if let Some(page) = self.tlb.fetchable(user, linear) {
            return Some(page);
        }
        if cpu.view.is_long() && !paging::is_canonical(cpu, linear) {
            return None;
        }
        let ram = self.tlb.ram().clone();
        let mut tables = Live {
            ram: &ram,
            fault_address: &mut self.fault_address,
        };
        let translation = paging::translate(cpu, &mut tables, linear, Intent::Fetch, Privilege::of(cpu.cpl())).ok()?;
        let page = ram.page(translation.gpa)?;
        Some(self.tlb.insert_fetch(user, linear, page, translation))
    }
}

/// Bytes from here to the end of the page.
fn left_in_page(at: Linear) -> u64 {
    PAGE_SIZE - at.address % PAGE_SIZE
}

/// The fault for an address that is not canonical.
#[cold]
pub(crate) fn non_canonical(at: Linear) -> Stop {
    let vector = if at.seg == crate::cpu::Seg::Ss as u8 {
        event::SS
    } else {
        event::GP
    };
    Exception::with_code(vector, 0).into()
}

/// A hit in the TLB; a miss ends the handler.
macro_rules! hit {
    ($self:ident, $cpu:ident, $at:ident, $size:expr, $intent:ident, $lookup:ident $(::<$t:ty>)? $(, $length:expr)?) => {
        match $self.tlb.$lookup$(::<$t>)?($cpu.view.context, $at.address $(, $length)?) {
            Some(hit) => hit,
            None => return Err($self.fill($cpu, $at, $size as u64, Intent::$intent)),
        }
    };
}

impl Access for Fast {
    #[inline(always)]
    fn load<T: Word>(&mut self, cpu: &Cpu, at: Linear) -> Result<T, Stop> {
        Ok(hit!(self, cpu, at, T::SIZE, Read, readable::<T>).load())
    }

    #[inline(always)]
    fn store<T: Word>(&mut self, cpu: &Cpu, at: Linear, value: T) -> Result<(), Stop> {
        hit!(self, cpu, at, T::SIZE, Write, writable::<T>).store(value);
        Ok(())
    }

    #[inline(always)]
    fn update<T: Word, R>(&mut self, cpu: &Cpu, at: Linear, f: impl FnOnce(T) -> (T, R)) -> Result<R, Stop> {
        let slot = hit!(self, cpu, at, T::SIZE, Write, writable::<T>);
        let (value, result) = f(slot.load());
        slot.store(value);
        Ok(result)
    }

    #[inline(always)]
    fn atomic<T: Word, R>(&mut self, cpu: &Cpu, at: Linear, f: impl FnMut(T) -> (Option<T>, R)) -> Result<R, Stop> {
        Ok(hit!(self, cpu, at, T::SIZE, Write, writable::<T>).atomic(f))
    }

    fn compare_exchange_16(&mut self, cpu: &Cpu, at: Linear, expected: u128, new: u128) -> Result<u128, Stop> {
        hit!(self, cpu, at, 16, Write, writable::<u64>)
            .compare_exchange_16(expected, new)
            .ok_or(Stop::Careful)
    }

    #[inline(always)]
    fn load_bytes(&mut self, cpu: &Cpu, at: Linear, bytes: &mut [u8]) -> Result<(), Stop> {
        hit!(self, cpu, at, bytes.len(), Read, readable_span, bytes.len()).load(bytes);
        Ok(())
    }

    #[inline(always)]
    fn store_bytes(&mut self, cpu: &Cpu, at: Linear, bytes: &[u8]) -> Result<(), Stop> {
        hit!(self, cpu, at, bytes.len(), Write, writable_span, bytes.len()).store(bytes);
        Ok(())
    }

    fn check_write(&mut self, cpu: &Cpu, at: Linear, length: u64) -> Result<(), Stop> {
        hit!(self, cpu, at, length, Write, writable_span, length as usize);
        Ok(())
    }

    fn check_read(&mut self, cpu: &Cpu, at: Linear, length: u64) -> Result<(), Stop> {
        hit!(self, cpu, at, length, Read, readable_span, length as usize);
        Ok(())
    }

    #[inline(always)]
    fn check_move(&mut self, _: &Cpu, _: Linear, _: Linear, _: u64) -> Result<(), Stop> {
        Ok(())
    }

    #[inline(always)]
    fn check_comparison(&mut self, _: &Cpu, _: Linear, _: Linear, _: u64) -> Result<(), Stop> {
        Ok(())
    }

    const ITERATIONS: u32 = 1024;

    fn copy_run(&mut self, cpu: &Cpu, from: Linear, to: Linear, length: u64, _: u8) -> Result<u64, Stop> {
        let context = cpu.view.context;
        let length = length.min(left_in_page(from)).min(left_in_page(to));
        let source = self.tlb.readable_span(context, from.address, length as usize);
        let destination = self.tlb.writable_span(context, to.address, length as usize);
        match (source, destination) {
            (Some(source), Some(destination)) if source.copy_to(destination) => Ok(length),
            _ => Ok(0),
        }
    }

    fn fill_run<T: Word>(&mut self, cpu: &Cpu, to: Linear, value: T, count: u64) -> u64 {
        let count = count.min(left_in_page(to) / T::SIZE as u64);
        match self
            .tlb
            .writable_span(cpu.view.context, to.address, count as usize * T::SIZE)
        {
            Some(span) if count > 0 => span.fill(value),
            _ => return 0,
        }
        count
    }

    fn tsc(&mut self) -> Result<u64, Stop> {
        Ok(self.host.tsc())
    }

    fn random(&mut self) -> Result<u64, Stop> {
        Ok(self.host.random())
    }

    fn careful(_: Handler<Careful>) -> Handler<Fast> {
        |_: &mut Cpu, _: &mut Fast, _: &Op<Fast>| Err(Stop::Careful)
    }
}
