//! The fast way: blocks one after the other, until something is to be looked at.

use super::pass::Pass;
use super::tier::Climb;
use super::{Emulator, Error};
use crate::access::Stop;
use crate::blocks::{BLOCK_OPS, Block, Decoding, is_near_end};
use crate::cpu::{Cpu, Shadow, flags, gpr};
use crate::debug;
use crate::event::{self, Event, Exception, Source};
use crate::fast::Fast;
use crate::op::Op;
use crate::ram::PAGE_SIZE;

/// Why the fast way came back.
pub(super) enum Left {
    /// Between two instructions; something may have changed.
    LookAround,
    /// The instruction under RIP must be executed carefully.
    Careful,
}

impl Emulator {
    /// Executes instructions until something is to be looked at.
    pub(super) fn advance(&mut self) -> Result<Pass, Error> {
        // Single steps and breakpoints are the careful way's business, and so is what only a return or a task switch brings about.
        let is_debugged = self.cpu.flags.any(flags::TF) || debug::is_armed(&self.cpu) || self.cpu.breakpoints != 0;
        if is_debugged || self.careful_only || self.cpu.has_waiting_interrupt() {
            return self.pass();
        }
        // RF is over with the instruction that it was for. A fault sets it again, and so does what repeats.
        let resuming = self.cpu.flags.any(flags::RF);
        self.cpu.flags.assign(flags::RF, false);
        let retired = self.counters.instructions;
        let shadow = self.cpu.shadow;
        let left = if shadow != Shadow::None {
            self.run_one()
        } else if self.may_run_blocks() {
            self.run_blocks()
        } else {
            self.run_near_limit()
        };
        if resuming && self.counters.instructions == retired {
            self.cpu.flags.assign(flags::RF, true);
        }
        match left {
            Left::LookAround => {
                self.end_shadow(shadow);
                Ok(Pass::Done)
            }
            Left::Careful => self.pass(),
        }
    }

    /// An instruction has retired that began under `shadow`: that shadow is over, unless the instruction cast its own.
    pub(super) fn end_shadow(&mut self, shadow: Shadow) {
        if shadow != Shadow::None && self.cpu.shadow == shadow && self.cpu.event.is_none() {
            self.cpu.shadow = Shadow::None;
        }
    }

    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.block_limit = limit.saturating_sub(BLOCK_OPS as u64 - 1);
    }

    /// A whole block does not exceed the limit.
    #[inline(always)]
    pub(super) fn may_run_blocks(&self) -> bool {
        self.counters.instructions < self.block_limit
    }

    /// Executes blocks the fast way.
    fn run_blocks(&mut self) -> Left {
        'blocks: loop {
            if self.attention.any() || !self.may_run_blocks() {
                return Left::LookAround;
            }
            let Some(mut block) = self.block() else {
                return Left::Careful;
            };
            if self.translator.is_some() {
                match self.climb(block) {
                    Climb::Interpret => {}
                    Climb::Again => continue,
                    Climb::Back(left) => return left,
                    Climb::One => {
                        if self.attention.any() || self.counters.instructions >= self.limit {
                            return Left::LookAround;
                        }
                        let Some(found) = self.block() else {
                            return Left::Careful;
                        };
                        block = self.blocks.first_of(found);
                    }
                }
            }
            let ops = self.blocks.ops(block);
            if ops.is_empty() {
                return Left::Careful;
            }
            let start = self.cpu.rip;
            self.cpu.gpr.set(gpr::BLOCK_IP, start);
            'again: loop {
                for (done, op) in ops.iter().enumerate() {
                    let Err(stop) = (op.run)(&mut self.cpu, &mut self.fast, op) else {
                        continue;
                    };
                    if stop == Stop::Taken {
                        self.counters.instructions += done as u64 + 1;
                        // A loop around one block needs no search for it.
                        let same = self.cpu.rip == start
                            && self.translator.is_none()
                            && !self.attention.any()
                            && self.may_run_blocks();
                        if same && self.blocks.is_valid(block, self.fast.tlb.ram()) {
                            continue 'again;
                        }
                        continue 'blocks;
                    }
                    let Err(stop) = try_again(&mut self.cpu, &mut self.fast, op, stop) else {
                        continue;
                    };
                    let (len, off) = (op.len, op.off);
                    self.counters.instructions += done as u64;
                    return self.stopped(stop, len, off);
                }
                break;
            }
            self.counters.instructions += ops.len() as u64;
            self.cpu.rip = self
                .cpu
                .truncate_ip(self.cpu.rip.wrapping_add(u64::from(block.advance)));
        }
    }

    /// Executes one instruction the fast way.
    pub(super) fn run_one(&mut self) -> Left {
        let Some(block) = self.block() else {
            return Left::Careful;
        };
        let Some(op) = self.blocks.ops(block).first() else {
            return Left::Careful;
        };
        let jumps = block.count == 1 && block.advance == 0;
        let (len, off) = (op.len, op.off);
        self.cpu.gpr.set(gpr::BLOCK_IP, self.cpu.rip);
        let outcome = (op.run)(&mut self.cpu, &mut self.fast, op)
            .or_else(|stop| try_again(&mut self.cpu, &mut self.fast, op, stop));
        match outcome {
            Ok(()) => {
                if !jumps {
                    self.cpu.rip = self.cpu.truncate_ip(self.cpu.rip.wrapping_add(u64::from(len)));
                }
                self.counters.instructions += 1;
                Left::LookAround
            }
            Err(stop) => self.stopped(stop, len, off),
        }
    }

    /// The block under RIP, if that can be executed the fast way.
    #[inline(always)]
    pub(super) fn block(&mut self) -> Option<Block> {
        let view = &self.cpu.view;
        let linear = if view.is_long() {
            self.cpu.rip
        } else {
            self.cpu.linear_code(self.cpu.rip).ok()?
        };
        let block = match self.blocks.jump(linear, view.code_context, self.fast.tlb.ram()) {
            Some(block) => block,
            None => self.find_block(linear)?,
        };
        if !self.cpu.view.is_long() {
            // The whole block must lie within the code segment.
            let last = self.cpu.rip + u64::from(block.length.max(1)) - 1;
            if last > u64::from(self.cpu.segments[crate::cpu::Seg::Cs].limit) || last > self.cpu.view.ip_mask {
                return None;
            }
        }
        Some(block)
    }

    #[cold]
    fn find_block(&mut self, linear: u64) -> Option<Block> {
        let page = self.fast.fetch_page(&self.cpu, linear)?;
        let mut decoding = Decoding {
            elsewhere: self.elsewhere,
            table: &self.model.fast,
            view: self.cpu.view,
            fast: &mut self.fast,
            attention: &self.attention,
        };
        let block = self.blocks.find(page, linear, &mut decoding);
        if block.count > 0 {
            return Some(block);
        }
        // Perhaps the instruction runs on into the next page.
        let across = next_page(&self.cpu, linear)
            .and_then(|next| decoding.fast.fetch_page(&self.cpu, next))
            .and_then(|next| self.blocks.find_across([page, next], linear, &mut decoding));
        Some(across.unwrap_or(block))
    }

    /// An instruction of a block did not simply run on into the next.
    #[cold]
    pub(super) fn stopped(&mut self, stop: Stop, len: u8, off: u8) -> Left {
        let ip = self.cpu.truncate_ip(self.cpu.rip.wrapping_add(u64::from(off)));
        match stop {
            Stop::Careful | Stop::Elsewhere | Stop::Retry | Stop::Await | Stop::Failed => {
                self.cpu.rip = ip;
                Left::Careful
            }
            Stop::Fault(exception) => {
                self.cpu.rip = ip;
                self.fault(exception, self.fast.fault_address);
                Left::LookAround
            }
            Stop::Next | Stop::Jumped | Stop::Taken | Stop::Stay => {
                match stop {
                    Stop::Next => self.cpu.rip = self.cpu.truncate_ip(ip.wrapping_add(u64::from(len))),
                    Stop::Stay => {
                        self.cpu.rip = ip;
                        self.repeats();
                    }
                    _ => {}
                }
                self.counters.instructions += 1;
                Left::LookAround
            }
        }
    }

    /// Raises the exception that the instruction under RIP earned.
    pub(super) fn fault(&mut self, exception: Exception, address: u64) {
        let cr2 = (exception.vector == event::PF).then_some(address);
        let (vector, error_code) = (exception.vector, exception.error_code());
        self.cpu.event = Some(Event {
            vector,
            source: Source::Fault,
            error_code,
            cr2,
            length: 0,
        });
    }
}

/// The linear address of the page behind that of `linear`, if an instruction there may run on into it.
pub(super) fn next_page(cpu: &Cpu, linear: u64) -> Option<u64> {
    let next = (linear | (PAGE_SIZE - 1)).checked_add(1)?;
    let is_there = cpu.view.is_long() || u32::try_from(next).is_ok();
    (is_there && is_near_end(linear)).then_some(next)
}

/// Tries an instruction again as long as the fast way learns translations for it. Two operands may compete for one
/// place in the TLB, so there is an end to that.
#[cold]
#[inline(never)]
pub(super) fn try_again(cpu: &mut Cpu, fast: &mut Fast, op: &Op<Fast>, stop: Stop) -> Result<(), Stop> {
    const TRIES: u32 = 8;
    let mut outcome = Err(stop);
    for _ in 0..TRIES {
        if outcome != Err(Stop::Retry) {
            return outcome;
        }
        outcome = (op.run)(cpu, fast, op);
    }
    outcome
}
