//! The careful way to page tables and data, as the walker and the instructions see it.

use super::Careful;
use crate::access::{Access, Linear, Stop};
use crate::cpu::Cpu;
use crate::debug::{self, Watched};
use crate::event::{self, Exception};
use crate::fast::set_live_bits;
use crate::op::Handler;
use crate::paging::{Intent, Privilege, Tables};
use crate::ram::PAGE_SIZE;
use crate::replay::{Kind, Question};
use crate::request::Space;
use crate::word::Word;

impl Tables for Careful {
    fn entry(&mut self, gpa: u64, size: u8) -> Result<u64, Stop> {
        self.read_part(Kind::PageTable, gpa, size)
    }

    fn set_bits(&mut self, gpa: u64, size: u8, seen: u64, bits: u64) -> Result<bool, Stop> {
        let (staged, mask) = self.staged(gpa, size);
        if mask != 0 {
            // The instruction has itself stored into this entry; the bits join the staged store.
            self.stage(Space::Memory, gpa, size, staged & mask | seen & !mask | bits)?;
            return Ok(true);
        }
        if self.cache.is_suspended() {
            return Ok(true);
        }
        let question = Question {
            kind: Kind::PageTableUpdate,
            space: Space::Memory,
            address: gpa,
            width: size,
        };
        if let Some(entry) = self.recall(question)? {
            return Ok(entry.value != 0);
        }
        self.reserve(1)?;
        // An entry in a device takes no bits: nothing to set, and the walk is done.
        let done = set_live_bits(&self.ram, gpa, size, seen, bits).unwrap_or(true);
        self.record_value(question, u64::from(done))?;
        Ok(done)
    }

    fn page_fault(&mut self, linear: u64, error_code: u16) -> Stop {
        self.fault_address = linear;
        Exception::with_code(event::PF, error_code).into()
    }
}

impl Access for Careful {
    fn load<T: Word>(&mut self, cpu: &Cpu, at: Linear) -> Result<T, Stop> {
        self.watch(cpu, at.address, T::SIZE as u64, Watched::Read);
        let place = self.word::<T>(cpu, at, Intent::Read)?;
        Ok(T::truncate(self.load_place(place)?))
    }

    fn store<T: Word>(&mut self, cpu: &Cpu, at: Linear, value: T) -> Result<(), Stop> {
        self.watch(cpu, at.address, T::SIZE as u64, Watched::Write);
        let place = self.word::<T>(cpu, at, Intent::Write)?;
        self.stage_place(place, value.zero_extend())
    }

    fn update<T: Word, R>(&mut self, cpu: &Cpu, at: Linear, f: impl FnOnce(T) -> (T, R)) -> Result<R, Stop> {
        self.watch(cpu, at.address, T::SIZE as u64, Watched::Write);
        let place = self.word::<T>(cpu, at, Intent::Write)?;
        let (value, result) = f(T::truncate(self.load_place(place)?));
        self.stage_place(place, value.zero_extend())?;
        Ok(result)
    }

    fn atomic<T: Word, R>(&mut self, cpu: &Cpu, at: Linear, f: impl FnMut(T) -> (Option<T>, R)) -> Result<R, Stop> {
        self.watch(cpu, at.address, T::SIZE as u64, Watched::Write);
        let place = self.word::<T>(cpu, at, Intent::Write)?;
        self.atomic_place(place, f)
    }

    fn compare_exchange_16(&mut self, cpu: &Cpu, at: Linear, expected: u128, new: u128) -> Result<u128, Stop> {
        self.watch(cpu, at.address, 16, Watched::Write);
        let place = self.place(cpu, at, 16, Intent::Write, Privilege::of(cpu.cpl()))?;
        let halves = [place.first, place.first + 8].map(|address| Question {
            kind: Kind::Atomic,
            space: Space::Memory,
            address,
            width: 8,
        });
        if let Some(low) = self.recall_kind(halves[0])? {
            let high = self.recall(halves[1])?.map_or(0, |entry| entry.value);
            return Ok(u128::from(low.value) | u128::from(high) << 64);
        }
        let ram = self.ram.clone();
        if let Some(page) = ram.page(place.first)
            && let Some(slot) = page.slot::<u64>(place.first)
        {
            self.reserve(2)?;
            if let Some(old) = slot.compare_exchange_16(expected, new) {
                ram.code.written(page.number, place.first % PAGE_SIZE, 16);
                self.record_value(halves[0], old as u64)?;
                self.record_value(halves[1], (old >> 64) as u64)?;
                return Ok(old);
            }
        }
        let mut bytes = [0; 16];
        self.read_bytes(place, &mut bytes)?;
        let old = u128::from_le_bytes(bytes);
        self.write_bytes(place, &if old == expected { new } else { old }.to_le_bytes())?;
        Ok(old)
    }

    fn load_bytes(&mut self, cpu: &Cpu, at: Linear, bytes: &mut [u8]) -> Result<(), Stop> {
        self.watch(cpu, at.address, bytes.len() as u64, Watched::Read);
        let place = self.operand(cpu, at, bytes.len() as u64, Intent::Read)?;
        self.read_bytes(place, bytes)
    }

    fn store_bytes(&mut self, cpu: &Cpu, at: Linear, bytes: &[u8]) -> Result<(), Stop> {
        self.watch(cpu, at.address, bytes.len() as u64, Watched::Write);
        let place = self.operand(cpu, at, bytes.len() as u64, Intent::Write)?;
        self.write_bytes(place, bytes)
    }

    fn check_write(&mut self, cpu: &Cpu, at: Linear, length: u64) -> Result<(), Stop> {
        self.operand(cpu, at, length.max(1), Intent::Write).map(|_| ())
    }

    fn check_read(&mut self, cpu: &Cpu, at: Linear, length: u64) -> Result<(), Stop> {
        self.operand(cpu, at, length.max(1), Intent::Read).map(|_| ())
    }

    fn check_move(&mut self, cpu: &Cpu, from: Linear, to: Linear, length: u64) -> Result<(), Stop> {
        self.check_read(cpu, from, length)?;
        self.check_write(cpu, to, length)
    }

    fn check_comparison(&mut self, cpu: &Cpu, first: Linear, second: Linear, length: u64) -> Result<(), Stop> {
        self.check_read(cpu, first, length)?;
        self.check_read(cpu, second, length)
    }

    /// Each iteration is a transaction of its own, and so is a batch of them.
    const ITERATIONS: u32 = 1;

    fn copy_run(&mut self, cpu: &Cpu, from: Linear, to: Linear, length: u64, size: u8) -> Result<u64, Stop> {
        // Each iteration may meet a breakpoint.
        if debug::is_armed(cpu) {
            return Ok(0);
        }
        self.copy_batch(cpu, from, to, length, size)
    }

    fn fill_run<T: Word>(&mut self, _: &Cpu, _: Linear, _: T, _: u64) -> u64 {
        0
    }

    fn tsc(&mut self) -> Result<u64, Stop> {
        let question = Question {
            kind: Kind::Clock,
            space: Space::Msr,
            address: 0x10,
            width: 8,
        };
        let host = self.host.clone();
        self.cache
            .read(question, || host.tsc())
            .map_err(|error| self.fail(error))
    }

    fn random(&mut self) -> Result<u64, Stop> {
        let question = Question {
            kind: Kind::Chance,
            space: Space::Msr,
            address: 0,
            width: 8,
        };
        let host = self.host.clone();
        self.cache
            .read(question, || host.random())
            .map_err(|error| self.fail(error))
    }

    fn careful(handler: Handler<Careful>) -> Handler<Careful> {
        handler
    }
}
