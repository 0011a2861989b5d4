//! What only careful instructions do: instruction bytes, descriptors and task state, ports, MSRs, hypercalls.

use super::parts::{Place, ones};
use super::{Careful, Flush};
use crate::access::{Linear, Stop};
use crate::cpu::{Cpu, Seg};
use crate::debug::Watched;
use crate::event::Exception;
use crate::paging::{Intent, Privilege};
use crate::replay::{Kind, Question};
use crate::request::{Direction, Space};
use crate::word::Word;

impl Careful {
    /// Fetches `bytes.len()` instruction bytes at linear address `linear`.
    pub(crate) fn fetch(&mut self, cpu: &Cpu, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        let at = Linear::new(Seg::Cs, linear);
        let place = self.place(cpu, at, bytes.len() as u64, Intent::Fetch, Privilege::of(cpu.cpl()))?;
        for (gpa, width, offset) in place.parts() {
            let value = self.read_part(Kind::Fetch, gpa, width)?;
            bytes[offset..offset + usize::from(width)].copy_from_slice(&value.to_le_bytes()[..usize::from(width)]);
        }
        Ok(())
    }

    /// Begins the record of the instruction at linear address `linear` with its bytes, 1 to 15, that somebody has
    /// fetched.
    pub(crate) fn seed(&mut self, linear: u64, bytes: &[u8]) {
        self.forget_record();
        for (n, part) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            let question = Question {
                kind: Kind::Supplied,
                space: Space::Memory,
                address: linear.wrapping_add(8 * n as u64),
                width: part.len() as u8,
            };
            // Two entries are within any capacity.
            let _two_of_many = self.cache.answer(question, u64::from_le_bytes(word), false);
        }
    }

    /// The bytes that the record of the instruction at `linear` begins with, if they were supplied, and how many they
    /// are.
    pub(crate) fn supplied(&mut self, linear: u64) -> Result<Option<([u8; 15], usize)>, Stop> {
        let (mut bytes, mut length) = ([0; 15], 0);
        while let Some(question) = self.cache.peek().map(|entry| entry.question)
            && question.kind == Kind::Supplied
        {
            let asked = Question {
                address: linear.wrapping_add(length as u64),
                ..question
            };
            let width = usize::from(question.width);
            if let (Some(entry), Some(part)) = (self.recall(asked)?, bytes.get_mut(length..length + width)) {
                part.copy_from_slice(&entry.value.to_le_bytes()[..width]);
                length += width;
            } else {
                break;
            }
        }
        Ok((length > 0).then_some((bytes, length)))
    }

    /// Reads descriptor tables and task state: with the processor's own rights.
    ///
    /// # Errors
    /// As [`Access::load`](crate::access::Access::load).
    pub fn load_system<T: Word>(&mut self, cpu: &Cpu, address: u64) -> Result<T, Stop> {
        let at = Linear::new(Seg::Ds, address);
        let place = self.place(cpu, at, T::SIZE as u64, Intent::Read, Privilege::Implicit)?;
        Ok(T::truncate(self.load_place(place)?))
    }

    /// Writes task state with the processor's own rights.
    ///
    /// # Errors
    /// As [`Access::store`](crate::access::Access::store).
    pub fn store_system<T: Word>(&mut self, cpu: &Cpu, address: u64, value: T) -> Result<(), Stop> {
        let at = Linear::new(Seg::Ds, address);
        let place = self.place(cpu, at, T::SIZE as u64, Intent::Write, Privilege::Implicit)?;
        self.stage_place(place, value.zero_extend())
    }

    /// Checks that `length` bytes of task state can be read or written with the processor's own rights.
    ///
    /// # Errors
    /// #PF; [`Stop`] as every access.
    pub(crate) fn check_system(&mut self, cpu: &Cpu, address: u64, length: u64, intent: Intent) -> Result<(), Stop> {
        let at = Linear::new(Seg::Ds, address);
        self.place(cpu, at, length, intent, Privilege::Implicit).map(|_| ())
    }

    /// Changes a descriptor atomically (accessed and busy bits) with the processor's own rights.
    ///
    /// # Errors
    /// As [`Access::atomic`](crate::access::Access::atomic).
    pub fn atomic_system<T: Word, R>(
        &mut self,
        cpu: &Cpu,
        address: u64,
        f: impl FnMut(T) -> (Option<T>, R),
    ) -> Result<R, Stop> {
        let at = Linear::new(Seg::Ds, address);
        let place = self.place(cpu, at, T::SIZE as u64, Intent::Write, Privilege::Implicit)?;
        self.atomic_place(place, f)
    }

    /// Stages a store with the rights of privilege level `cpl`: pushes on the stack of a level about to be entered.
    ///
    /// # Errors
    /// As [`Access::store`](crate::access::Access::store).
    pub fn store_at<T: Word>(&mut self, cpu: &Cpu, cpl: u8, at: Linear, value: T) -> Result<(), Stop> {
        self.watch(cpu, at.address, T::SIZE as u64, Watched::Write);
        let place = self.place_at::<T>(cpu, cpl, at, Intent::Write)?;
        self.stage_place(place, value.zero_extend())
    }

    fn place_at<T: Word>(&mut self, cpu: &Cpu, cpl: u8, at: Linear, intent: Intent) -> Result<Place, Stop> {
        if cpl == cpu.cpl() {
            return self.word::<T>(cpu, at, intent);
        }
        self.place(cpu, at, T::SIZE as u64, intent, Privilege::of(cpl))
    }

    /// Writes `bytes`, without the alignment check.
    ///
    /// # Errors
    /// As [`Access::store_bytes`](crate::access::Access::store_bytes).
    pub(crate) fn store_unaligned(&mut self, cpu: &Cpu, at: Linear, bytes: &[u8]) -> Result<(), Stop> {
        self.watch(cpu, at.address, bytes.len() as u64, Watched::Write);
        let place = self.place(cpu, at, bytes.len() as u64, Intent::Write, Privilege::of(cpu.cpl()))?;
        self.write_bytes(place, bytes)
    }

    /// Reads with the rights of privilege level `cpl`.
    ///
    /// # Errors
    /// As [`Access::load`](crate::access::Access::load).
    pub fn load_at<T: Word>(&mut self, cpu: &Cpu, cpl: u8, at: Linear) -> Result<T, Stop> {
        self.watch(cpu, at.address, T::SIZE as u64, Watched::Read);
        let place = self.place_at::<T>(cpu, cpl, at, Intent::Read)?;
        Ok(T::truncate(self.load_place(place)?))
    }

    /// Reads a port of 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// [`Stop::Await`] until the device has answered.
    pub fn port_read(&mut self, port: u16, size: u8) -> Result<u64, Stop> {
        Ok(self
            .ask(Space::Port, u64::from(port), size, Direction::Read)?
            .unwrap_or(u64::MAX))
    }

    /// Writes a port of 1, 2 or 4 bytes, at retirement.
    ///
    /// # Errors
    /// [`Stop::Failed`].
    pub fn port_write(&mut self, port: u16, size: u8, value: u64) -> Result<(), Stop> {
        self.stage(Space::Port, u64::from(port), size, value & ones(size))
    }

    /// Reads an MSR that is not the processor's own.
    ///
    /// # Errors
    /// #GP(0) if there is none; [`Stop::Await`] until the platform has answered.
    pub fn msr_read(&mut self, msr: u32) -> Result<u64, Stop> {
        self.ask(Space::Msr, u64::from(msr), 8, Direction::Read)?
            .ok_or(Stop::Fault(Exception::gp(0)))
    }

    /// Writes an MSR that is not the processor's own.
    ///
    /// # Errors
    /// #GP(0) if there is none or it does not take the value; [`Stop::Await`] until the platform has answered.
    pub fn msr_write(&mut self, msr: u32, value: u64) -> Result<(), Stop> {
        self.ask(Space::Msr, u64::from(msr), 8, Direction::Write(value))?
            .ok_or(Stop::Fault(Exception::gp(0)))?;
        Ok(())
    }

    /// The task priority, 0 to 15.
    ///
    /// # Errors
    /// [`Stop::Await`] until the platform has answered.
    pub fn task_priority(&mut self) -> Result<u64, Stop> {
        Ok(self.ask(Space::TaskPriority, 8, 1, Direction::Read)?.unwrap_or(0))
    }

    /// Sets the task priority, at retirement.
    ///
    /// # Errors
    /// [`Stop::Failed`].
    pub fn set_task_priority(&mut self, value: u64) -> Result<(), Stop> {
        self.stage(Space::TaskPriority, 8, 1, value & 0xf)
    }

    /// Makes a hypercall; what it returns.
    ///
    /// # Errors
    /// #UD if the caller may make none; [`Stop::Await`] until it is done.
    pub fn hypercall(&mut self, number: u64) -> Result<u64, Stop> {
        self.ask(Space::Hypercall, number, 8, Direction::Read)?
            .ok_or(Stop::Fault(Exception::ud()))
    }

    /// Forgets the translations of one linear address, or of all, when the instruction retires.
    pub(crate) fn invalidate(&mut self, flush: Flush) {
        self.flush = flush;
    }
}
