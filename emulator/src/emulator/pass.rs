//! Single instructions and events, the careful way: from the first pass to the last store.

use super::{Emulator, Error};
use crate::access::Stop;
use crate::careful::Careful;
use crate::cpu::{Activity, Seg, Shadow, flags, gpr};
use crate::debug::{self, Watched};
use crate::decode::{Decoded, Incomplete, decode};
use crate::deliver::{self, Combined};
use crate::event::{self, Event, Exception, Source};
use crate::op::Op;
use crate::ram::PAGE_SIZE;
use crate::replay::{self, ReplayError};
use crate::request::Request;
use crate::table::Flow;

/// DR6: breakpoints 0 to 3.
const DR6_BREAKPOINTS: u64 = 0xf;
/// DR6: single step.
const DR6_BS: u64 = 1 << 14;

/// What a pass of the careful way led to.
pub(super) enum Pass {
    /// The instruction, the event, or one iteration is complete.
    Done,
    /// A request is to be made.
    Wants(Request),
    /// The instruction is somebody else's.
    Elsewhere,
}

/// The instruction in flight, decoded: a later pass begins behind the fetch.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    op: Op<Careful>,
    flow: Flow,
    /// Entries of the record that its fetch made.
    fetched: usize,
}

impl Emulator {
    /// One pass of the careful way, over the event that is to be delivered or the instruction under RIP; or the rest of
    /// its stores.
    pub(super) fn pass(&mut self) -> Result<Pass, Error> {
        if self.careful.is_draining() {
            return Ok(self.drain());
        }
        self.counters.passes += 1;
        self.careful.begin();
        if self.careful.record().is_empty() {
            self.kept = None;
        }
        if self.cpu.event.is_some() {
            return self.deliver();
        }
        let stepping = self.cpu.flags.any(flags::TF);
        let resuming = self.cpu.flags.any(flags::RF);
        let shadow = self.cpu.shadow;
        let begins = self.careful.record().is_empty();
        if begins && !resuming && shadow != Shadow::MovSs && self.meets_breakpoint() {
            return Ok(Pass::Done);
        }
        if begins && self.cpu.has_waiting_interrupt() {
            self.fault(Exception::gp(0), 0);
            return Ok(Pass::Done);
        }
        // RF is over with the instruction that it was for, unless that is IRET, or one that repeats.
        self.cpu.flags.assign(flags::RF, false);
        let outcome = self.execute();
        match outcome {
            // A single step between two iterations finds RF clear, as on the modelled processor.
            Err(Stop::Stay) if !stepping => self.repeats(),
            Ok(()) | Err(Stop::Next | Stop::Jumped | Stop::Taken | Stop::Stay) => {}
            Err(_) => self.cpu.flags.assign(flags::RF, resuming),
        }
        match outcome {
            Ok(()) | Err(Stop::Next | Stop::Jumped | Stop::Taken | Stop::Stay) => {
                self.counters.instructions += 1;
                self.end_shadow(shadow);
                self.cpu.breakpoints |= self.careful.watched;
                // Behind a load of SS the single step is lost, and breakpoints that it has met wait for the next instruction
                // (SDM Vol. 3, Masking Exceptions and Interrupts When Switching Stacks).
                if self.cpu.shadow != Shadow::MovSs && self.cpu.event.is_none() {
                    self.trap(stepping);
                }
                Ok(self.retire())
            }
            Err(Stop::Fault(exception)) => {
                self.careful.abandon();
                self.fault(exception, self.careful.fault_address);
                Ok(Pass::Done)
            }
            Err(stop) => self.interrupted(stop),
        }
    }

    /// Raises #DB if a breakpoint on data has been met, or after a single step.
    fn trap(&mut self, stepping: bool) {
        let met = u64::from(core::mem::take(&mut self.cpu.breakpoints));
        if !stepping && met == 0 {
            return;
        }
        if met != 0 {
            self.cpu.dr6 = self.cpu.dr6 & !DR6_BREAKPOINTS | met;
        }
        if stepping {
            self.cpu.dr6 |= DR6_BS;
        }
        self.cpu.event = Some(Event {
            vector: event::DB,
            source: Source::Trap,
            error_code: None,
            cr2: None,
            length: 0,
        });
    }

    /// The instruction is not over: RF keeps a breakpoint on it away, and whoever interrupts it sees RF set (SDM Vol. 3,
    /// Instruction-Breakpoint Exception Condition).
    pub(super) fn repeats(&mut self) {
        self.cpu.flags.assign(flags::RF, self.cpu.event.is_none());
    }

    /// Raises #DB if there is a breakpoint on the instruction under RIP.
    fn meets_breakpoint(&mut self) -> bool {
        if !debug::is_armed(&self.cpu) {
            return false;
        }
        let Ok(linear) = self.cpu.linear_code(self.cpu.rip) else {
            return false;
        };
        let found = debug::matches(&self.cpu, linear, 1, Watched::Instruction);
        if found == 0 {
            return false;
        }
        self.cpu.dr6 = self.cpu.dr6 & !DR6_BREAKPOINTS | u64::from(found);
        self.fault(Exception::plain(event::DB), 0);
        true
    }

    /// Fetches, decodes and executes the instruction under RIP.
    fn execute(&mut self) -> Result<(), Stop> {
        if let Some(Kept { op, flow, fetched }) = self.kept
            && self.careful.skip_fetch(fetched)
        {
            return self.run_op(&op, flow);
        }
        let linear = self.cpu.linear_code(self.cpu.rip)?;
        let decoded = match self.careful.supplied(linear)? {
            Some((bytes, length)) => self.decode(&bytes[..length]),
            None => self.fetch(linear)?,
        };
        // An instruction that runs over the end of the code segment.
        let Ok(Decoded { op, flow }) = decoded else {
            return Err(Exception::gp(0).into());
        };
        self.cpu.gpr.set(gpr::BLOCK_IP, self.cpu.rip);
        let fetched = self.careful.position();
        self.kept = Some(Kept { op, flow, fetched });
        self.run_op(&op, flow)
    }

    /// Fetches and decodes the instruction at `linear`, which RIP leads to.
    fn fetch(&mut self, linear: u64) -> Result<Result<Decoded<Careful>, Incomplete>, Stop> {
        let cpu = &self.cpu;
        let mut bytes = [0; 15];
        let limit = if cpu.view.is_long() {
            15
        } else {
            (u64::from(cpu.segments[Seg::Cs].limit) - cpu.rip + 1).min(15)
        };
        let here = (PAGE_SIZE - linear % PAGE_SIZE).min(limit) as usize;
        let mut length = 0;
        // Few instructions are longer than 8 bytes. Whether one goes on in the next page must be known before that page is
        // looked at, which may not be there.
        for end in [here.min(8), here, limit as usize] {
            if end == length {
                continue;
            }
            let at = linear.wrapping_add(length as u64);
            self.careful.fetch(cpu, at, &mut bytes[length..end])?;
            length = end;
            let decoded = self.decode(&bytes[..length]);
            if decoded.is_ok() {
                return Ok(decoded);
            }
        }
        // It runs over the end of the code segment.
        Ok(Err(Incomplete::MoreBytes))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Decoded<Careful>, Incomplete> {
        decode(self.elsewhere, &self.model.careful, self.cpu.view.code, bytes, 0)
    }

    fn run_op(&mut self, op: &Op<Careful>, flow: Flow) -> Result<(), Stop> {
        let next = op.next_ip(&self.cpu);
        let outcome = (op.run)(&mut self.cpu, &mut self.careful, op);
        let follows = match outcome {
            Ok(()) => flow != Flow::Branch,
            Err(stop) => stop == Stop::Next,
        };
        if follows {
            self.cpu.rip = next;
        }
        outcome
    }

    /// Delivers the event, and whatever its delivery raises.
    fn deliver(&mut self) -> Result<Pass, Error> {
        let original = self.cpu.event;
        let mut event = original;
        loop {
            let Some(current) = event else { return Ok(self.retire()) };
            match deliver::deliver(&mut self.cpu, &mut self.careful, current) {
                Ok(()) => {
                    self.counters.events += 1;
                    // A software interrupt is an instruction, whose breakpoints are told behind it; an exception takes the place
                    // of the instruction that they were told after.
                    if !matches!(current.source, Source::Software | Source::Privileged) {
                        self.cpu.breakpoints = 0;
                    }
                    self.cpu.breakpoints |= self.careful.watched;
                    // The new task's first exception comes before them.
                    if self.cpu.event.is_none() {
                        self.trap(false);
                    }
                    return Ok(self.retire());
                }
                Err(Stop::Fault(exception)) => {
                    self.careful.unstage();
                    match deliver::combine(&current, exception, self.careful.fault_address) {
                        Combined::Deliver(next) => event = Some(next),
                        Combined::Shutdown => {
                            self.careful.abandon();
                            self.cpu.event = None;
                            self.cpu.breakpoints = 0;
                            self.cpu.activity = Activity::Shutdown;
                            return Ok(Pass::Done);
                        }
                    }
                }
                Err(stop) => return self.interrupted(stop),
            }
        }
    }

    /// A pass that ended without retiring or faulting.
    fn interrupted(&mut self, stop: Stop) -> Result<Pass, Error> {
        if let (Stop::Await, Some(request)) = (stop, self.careful.awaited()) {
            return Ok(Pass::Wants(request));
        }
        if stop == Stop::Elsewhere {
            self.careful.abandon();
            return Ok(Pass::Elsewhere);
        }
        let error = self.careful.take_error();
        self.careful.abandon();
        Err(Error::Replay(error.unwrap_or(ReplayError::Overflow {
            capacity: replay::CAPACITY,
        })))
    }

    /// The instruction is complete: what it invalidates is forgotten, its stores are made.
    fn retire(&mut self) -> Pass {
        self.careful.retire();
        let flush = self.careful.flush;
        self.forget(flush);
        self.drain()
    }

    fn drain(&mut self) -> Pass {
        match self.careful.drain() {
            Some(request) => Pass::Wants(request),
            None => Pass::Done,
        }
    }
}
