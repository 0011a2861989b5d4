//! A stack in the middle of an instruction.
//!
//! Far calls, returns and event delivery push and pop several times, often on a stack that is not yet the current one.
//! They work on a [`Stack`]: pops are recorded, pushes staged, and the pointer moves here; SS and RSP are committed
//! when nothing can fail any more.

use crate::access::{Linear, Stop};
use crate::careful::Careful;
use crate::cpu::{Cpu, Seg, Segment, gpr};
use crate::event::{self, Exception};

/// A stack segment and pointer, with the rights of a privilege level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stack {
    /// SS.
    pub(crate) segment: Segment,
    /// RSP.
    pub(crate) rsp: u64,
    cpl: u8,
    /// 64-bit mode: no limits, no base.
    long: bool,
    /// Attributes are not looked at.
    real: bool,
    /// What #SS carries.
    error_code: u16,
}

impl Stack {
    /// The current stack.
    pub(crate) fn current(cpu: &Cpu) -> Stack {
        Stack {
            segment: cpu.segments[Seg::Ss],
            rsp: cpu.gpr.get(gpr::RSP),
            cpl: cpu.cpl(),
            long: cpu.view.is_long(),
            real: !cpu.view.has_descriptors(),
            error_code: 0,
        }
    }

    /// The stack of a privilege level about to be entered; #SS carries its selector.
    pub(crate) fn inner(segment: Segment, rsp: u64, cpl: u8) -> Stack {
        Stack {
            segment,
            rsp,
            cpl,
            long: false,
            real: false,
            error_code: segment.selector & !3,
        }
    }

    /// The stack of 64-bit code about to be entered at privilege level `cpl`.
    pub(crate) fn long(segment: Segment, rsp: u64, cpl: u8) -> Stack {
        Stack {
            segment,
            rsp,
            cpl,
            long: true,
            real: false,
            error_code: 0,
        }
    }

    /// The current stack in the eyes of 64-bit code about to be entered at the same privilege.
    pub(crate) fn current_long(cpu: &Cpu) -> Stack {
        Stack::long(cpu.segments[Seg::Ss], cpu.gpr.get(gpr::RSP), cpu.cpl())
    }

    /// The same stack in the eyes of 64-bit code, or of 16- or 32-bit code.
    pub(crate) fn seen_from(self, long: bool) -> Stack {
        Stack { long, ..self }
    }

    fn mask(&self) -> u64 {
        if self.long {
            u64::MAX
        } else if self.segment.attributes.is_big() {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Moves the pointer up by `bytes`.
    pub(crate) fn release(&mut self, bytes: u64) {
        self.set_pointer(self.rsp.wrapping_add(bytes));
    }

    /// Replaces as much of RSP as the stack uses: 16 bits, or 32 (which clear the rest), or all.
    pub(crate) fn set_pointer(&mut self, pointer: u64) {
        self.rsp = match self.mask() {
            0xffff => self.rsp & !0xffff | pointer & 0xffff,
            mask => pointer & mask,
        };
    }

    /// The linear address of `size` bytes at `offset`.
    fn linear(&self, offset: u64, size: u64) -> Result<Linear, Stop> {
        if self.long {
            return Ok(Linear::new(Seg::Ss, offset));
        }
        let (segment, attributes) = (&self.segment, self.segment.attributes);
        let last = offset + (size - 1);
        let limit = u64::from(segment.limit);
        let allowed = if self.real {
            last <= limit
        } else if !attributes.is_present() || !attributes.is_writable_data() {
            false
        } else if attributes.is_expand_down() {
            offset > limit && last <= self.mask()
        } else {
            last <= limit
        };
        if !allowed {
            return Err(Exception::with_code(event::SS, self.error_code).into());
        }
        Ok(Linear::new(Seg::Ss, segment.base.wrapping_add(offset) & 0xffff_ffff))
    }

    /// Pushes the low `size` (2, 4 or 8) bytes of `value`.
    ///
    /// # Errors
    /// #SS, #PF, and [`Stop`] as every access.
    pub(crate) fn push(&mut self, cpu: &Cpu, m: &mut Careful, size: u8, value: u64) -> Result<(), Stop> {
        let offset = self.rsp.wrapping_sub(u64::from(size)) & self.mask();
        let at = self.linear(offset, u64::from(size))?;
        match size {
            2 => m.store_at(cpu, self.cpl, at, value as u16)?,
            4 => m.store_at(cpu, self.cpl, at, value as u32)?,
            _ => m.store_at(cpu, self.cpl, at, value)?,
        }
        self.set_pointer(offset);
        Ok(())
    }

    /// Reads the `size` (2, 4 or 8) bytes `distance` above the top, zero-extended.
    ///
    /// # Errors
    /// As [`Stack::push`].
    pub(crate) fn peek(&self, cpu: &Cpu, m: &mut Careful, size: u8, distance: u64) -> Result<u64, Stop> {
        let at = self.linear(self.rsp.wrapping_add(distance) & self.mask(), u64::from(size))?;
        Ok(match size {
            2 => u64::from(m.load_at::<u16>(cpu, self.cpl, at)?),
            4 => u64::from(m.load_at::<u32>(cpu, self.cpl, at)?),
            _ => m.load_at::<u64>(cpu, self.cpl, at)?,
        })
    }

    /// Pops `size` (2, 4 or 8) bytes, zero-extended.
    ///
    /// # Errors
    /// As [`Stack::push`].
    pub(crate) fn pop(&mut self, cpu: &Cpu, m: &mut Careful, size: u8) -> Result<u64, Stop> {
        let value = self.peek(cpu, m, size, 0)?;
        self.release(u64::from(size));
        Ok(value)
    }

    /// Makes this the current stack.
    pub(crate) fn commit(&self, cpu: &mut Cpu) {
        cpu.segments[Seg::Ss] = self.segment;
        cpu.gpr.set(gpr::RSP, self.rsp);
    }
}
