//! Hardware task switches (SDM Vol. 3, Task Management), in protected and virtual-8086 mode; IA-32e mode has none.
//!
//! A switch is one transaction as every instruction: task state and descriptors are read through the record and stored
//! at retirement, wherever they lie, so that a switch that must wait for a device is exact too.
//!
//! # The point of no return
//! Until the old task's state is saved, exceptions belong to the old task and nothing has changed. What is wrong with
//! the new task's own segments is found in the new task: its registers are loaded then, and the exception is the
//! [`event`](Cpu::event) with which it begins.

use crate::access::Stop;
use crate::careful::{Careful, Flush};
use crate::cpu::segment::{LDT, TSS16_AVAILABLE, TSS16_BUSY, TSS32_AVAILABLE, TSS32_BUSY};
use crate::cpu::{Cpu, Cr0, Seg, Segment, flags};
use crate::descriptor::{self, Descriptor, fault, is_null, rpl};
use crate::event::{self, Event, Exception, Source};
use crate::paging::{Intent, has_bad_pointers};
use crate::stack::Stack;

/// The busy bit of a TSS descriptor's type.
const BUSY: u8 = 1 << 1;
/// DR6: a task switch to a task whose T bit is set.
const DR6_BT: u64 = 1 << 15;
/// DR7: breakpoints that are the task's own, and exactness for them.
const DR7_LOCAL: u64 = 0x155;

/// What leads to another task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// JMP: the old task is left for good.
    Jump,
    /// CALL: the new task is nested in the old one.
    Call,
    /// IRET: a nested task returns.
    Return,
    /// An event's task gate: as CALL. The error code is pushed on the new task's stack.
    Event {
        /// If the event has one.
        error_code: Option<u16>,
        /// The EXT bit for error codes of exceptions on the way.
        external: u16,
        /// RFLAGS as the interrupted task is to have them again.
        image: u64,
    },
}

impl Reason {
    fn nests(self) -> bool {
        matches!(self, Reason::Call | Reason::Event { .. })
    }

    fn external(self) -> u16 {
        match self {
            Reason::Event { external, .. } => external,
            _ => 0,
        }
    }
}

/// Where a task state segment keeps what.
struct Layout {
    /// Bytes of each register.
    word: u8,
    ip: u64,
    flags: u64,
    /// The general registers in the order of their numbers.
    registers: u64,
    /// The segment registers in the order of their numbers.
    segments: u64,
    segment_count: usize,
    ldt: u64,
    /// The last byte that a TSS must have.
    limit: u32,
}

const WIDE: Layout = Layout {
    word: 4,
    ip: 0x20,
    flags: 0x24,
    registers: 0x28,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
    limit: 0x67,
};

const NARROW: Layout = Layout {
    word: 2,
    ip: 0x0e,
    flags: 0x10,
    registers: 0x12,
    segments: 0x22,
    segment_count: 4,
    ldt: 0x2a,
    limit: 0x2b,
};

/// CR3 and the debug trap bit, which only 32-bit task state has.
const CR3: u64 = 0x1c;
const TRAP: u64 = 0x64;

impl Layout {
    fn of(tss: &Segment) -> &'static Layout {
        if tss.attributes.0 & 8 != 0 { &WIDE } else { &NARROW }
    }

    /// The part of the old task's state that is written: from the instruction pointer up to the segments.
    fn saved(&self) -> (u64, u64) {
        (self.ip, self.ldt - self.ip)
    }
}

/// Reads and checks the descriptor of the TSS that a far JMP or CALL, a task gate or a back link names.
///
/// # Errors
/// #GP, #TS for a back link, #NP: with the selector.
pub(crate) fn target(cpu: &Cpu, m: &mut Careful, selector: u16, reason: Reason) -> Result<Descriptor, Stop> {
    const LOCAL: u16 = 1 << 2;
    let (vector, kinds) = match reason {
        Reason::Return => (event::TS, [TSS16_BUSY, TSS32_BUSY]),
        _ => (event::GP, [TSS16_AVAILABLE, TSS32_AVAILABLE]),
    };
    if selector & LOCAL != 0 || is_null(selector) {
        return Err(fault(vector, selector));
    }
    let tss = descriptor::read(cpu, m, selector, vector)?;
    if !kinds.contains(&tss.attributes().kind()) {
        return Err(fault(vector, selector));
    }
    if !tss.attributes().is_present() {
        return Err(fault(event::NP, selector));
    }
    if tss.segment.limit < Layout::of(&tss.segment).limit {
        return Err(fault(event::TS, selector));
    }
    Ok(tss)
}

/// The task that the current one is nested in.
///
/// # Errors
/// As [`target`], and as every access.
pub(crate) fn back_link(cpu: &Cpu, m: &mut Careful) -> Result<Descriptor, Stop> {
    let link = m.load_system::<u16>(cpu, cpu.tr.base)?;
    target(cpu, m, link, Reason::Return)
}

/// Switches to the task of `tss`, as [`target`] or [`back_link`] found it; the old one goes on at `next_ip`.
///
/// # Errors
/// [`Stop`] as every access, and #TS if the old task's state does not fit into its segment; nothing has changed then.
pub(crate) fn switch(
    cpu: &mut Cpu,
    m: &mut Careful,
    mut tss: Descriptor,
    reason: Reason,
    next_ip: u64,
) -> Result<(), Stop> {
    let (old, new) = (Layout::of(&cpu.tr), Layout::of(&tss.segment));
    let (saved, length) = old.saved();
    if u64::from(cpu.tr.limit) < saved + length - 1 {
        return Err(fault(event::TS, cpu.tr.selector));
    }
    m.check_system(cpu, cpu.tr.base.wrapping_add(saved), length, Intent::Write)?;
    let length = u64::from(new.limit) + 1;
    m.check_system(cpu, tss.segment.base, length, Intent::Read)?;
    if reason.nests() {
        m.check_system(cpu, tss.segment.base, 2, Intent::Write)?;
    }

    if !reason.nests() {
        clear_busy(cpu, m)?;
    }
    if reason == Reason::Return {
        tss.segment.attributes.0 |= u16::from(BUSY);
    } else {
        tss.mark_busy(cpu, m)?;
    }
    save(cpu, m, old, reason, next_ip)?;
    if reason.nests() {
        m.store_system(cpu, tss.segment.base, cpu.tr.selector)?;
    }

    // What has just been saved is what a task finds that returns to itself.
    let state = State::read(cpu, m, &tss.segment)?;
    let mut task = state.load(cpu, &tss.segment, reason);
    // Page-directory-pointer entries are loaded with another CR3. What those with reserved bits raise the manual does not say:
    // here it is #TS(0), as in Bochs.
    let begun = if task.cr3 != cpu.cr3 && has_bad_pointers(m, task.cr3, task.cr4)? {
        Err(Exception::with_code(event::TS, 0).into())
    } else {
        begin(&mut task, m, &state, new, reason)
    };
    match begun {
        Ok(()) => {}
        Err(Stop::Fault(exception)) => task.event = Some(first_event(m, exception, reason.external())),
        Err(stop) => return Err(stop),
    }
    *cpu = task;
    cpu.refresh();
    m.invalidate(Flush::All);
    Ok(())
}

/// The task state as the TSS has it.
struct State {
    cr3: Option<u32>,
    ip: u64,
    flags: u64,
    registers: [u64; 8],
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl State {
    fn read(cpu: &Cpu, m: &mut Careful, tss: &Segment) -> Result<State, Stop> {
        let layout = Layout::of(tss);
        let at = |offset: u64| tss.base.wrapping_add(offset);
        let wide = layout.word == 4;
        let word = |m: &mut Careful, offset| -> Result<u64, Stop> {
            Ok(if wide {
                u64::from(m.load_system::<u32>(cpu, at(offset))?)
            } else {
                u64::from(m.load_system::<u16>(cpu, at(offset))?)
            })
        };
        let mut state = State {
            cr3: if wide { Some(m.load_system(cpu, at(CR3))?) } else { None },
            ip: word(m, layout.ip)?,
            flags: word(m, layout.flags)?,
            registers: [0; 8],
            segments: [0; 6],
            ldt: 0,
            trap: false,
        };
        let step = u64::from(layout.word);
        for (offset, register) in (layout.registers..).step_by(step as usize).zip(&mut state.registers) {
            *register = word(m, offset)?;
        }
        let selectors = state.segments.iter_mut().take(layout.segment_count);
        for (offset, selector) in (layout.segments..).step_by(step as usize).zip(selectors) {
            *selector = m.load_system(cpu, at(offset))?;
        }
        state.ldt = m.load_system(cpu, at(layout.ldt))?;
        state.trap = wide && m.load_system::<u16>(cpu, at(TRAP))? & 1 != 0;
        Ok(state)
    }

    /// The CPU with this state, its segments yet to be looked up.
    fn load(&self, cpu: &Cpu, tss: &Segment, reason: Reason) -> Cpu {
        let mut task = cpu.clone();
        task.tr = *tss;
        task.cr0 = Cr0(task.cr0.0 | Cr0::TS);
        if let Some(cr3) = self.cr3.filter(|_| task.cr0.any(Cr0::PG)) {
            task.cr3 = u64::from(cr3);
        }
        task.dr7 &= !DR7_LOCAL;
        let nested = if reason.nests() { flags::NT } else { 0 };
        // A 16-bit task has no more flags and registers than that; what the upper halves hold then is undefined, and
        // ones in processors and emulators that are known.
        let wide = self.cr3.is_some();
        let kept = if wide {
            0
        } else {
            task.flags.bits() & !0xffff & !flags::VM
        };
        task.flags.set_bits(self.flags | kept | nested);
        task.rip = self.ip;
        for (number, value) in (0..).zip(self.registers) {
            task.gpr.set(number, if wide { value } else { value | 0xffff_0000 });
        }
        let virtual_8086 = task.flags.any(flags::VM);
        for (seg, selector) in Seg::ALL.into_iter().zip(self.segments) {
            task.segments[seg] = if virtual_8086 {
                let mut segment = Segment::real_mode(selector);
                segment.attributes = segment.attributes.with_dpl(3);
                segment
            } else {
                Segment::null(selector)
            };
        }
        if !virtual_8086 {
            // The privilege level is that of CS even while nothing has been looked up.
            let cpl = rpl(task.segments[Seg::Cs].selector);
            let stack = &mut task.segments[Seg::Ss];
            stack.attributes = stack.attributes.with_dpl(cpl);
        }
        task.ldtr = Segment::null(self.ldt);
        task.refresh();
        task
    }
}

fn clear_busy(cpu: &Cpu, m: &mut Careful) -> Result<(), Stop> {
    match descriptor::locate(cpu, cpu.tr.selector, 8) {
        Some(at) => descriptor::clear_access_bits(cpu, m, at, BUSY),
        None => Ok(()),
    }
}

/// Stores the old task's state.
fn save(cpu: &Cpu, m: &mut Careful, layout: &Layout, reason: Reason, next_ip: u64) -> Result<(), Stop> {
    let base = cpu.tr.base;
    let mut store = |offset: u64, value: u64| {
        let at = base.wrapping_add(offset);
        if layout.word == 4 {
            m.store_system(cpu, at, value as u32)
        } else {
            m.store_system(cpu, at, value as u16)
        }
    };
    let image = match reason {
        Reason::Return => cpu.flags.bits() & !flags::NT,
        Reason::Event { image, .. } => image,
        _ => cpu.flags.bits(),
    };
    store(layout.ip, next_ip)?;
    store(layout.flags, image)?;
    let step = u64::from(layout.word);
    for number in 0..8 {
        store(layout.registers + step * u64::from(number), cpu.gpr.get(number))?;
    }
    for (n, seg) in (0..).zip(Seg::ALL).take(layout.segment_count) {
        let at = base.wrapping_add(layout.segments + step * n);
        m.store_system(cpu, at, cpu.segments[seg].selector)?;
    }
    Ok(())
}

/// Looks up the new task's segments, and puts the event's error code on its stack. The order of the checks is that of SDM
/// Vol. 3, Exception Conditions Checked During a Task Switch, except that a local descriptor table that is not present is
/// found before anything is looked for in it.
///
/// # Errors
/// #TS, #NP, #SS, #GP, #PF of the new task.
fn begin(task: &mut Cpu, m: &mut Careful, state: &State, layout: &Layout, reason: Reason) -> Result<(), Stop> {
    if !is_null(state.ldt) {
        let ldt = (state.ldt & 4 == 0)
            .then(|| descriptor::read(task, m, state.ldt, event::TS))
            .ok_or_else(|| fault(event::TS, state.ldt))??;
        if ldt.attributes().kind() != LDT || !ldt.attributes().is_present() {
            return Err(fault(event::TS, state.ldt));
        }
        task.ldtr = ldt.segment;
    }
    if !task.flags.any(flags::VM) {
        let code = code_privilege(task, m)?;
        let stack = stack(task, m)?;
        load_code(task, m, code)?;
        if rpl(stack.selector) != stack.attributes.dpl() {
            return Err(fault(event::TS, stack.selector));
        }
        task.segments[Seg::Ss] = stack;
        task.refresh();
        for seg in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
            data(task, m, seg)?;
        }
    }
    descriptor::check_target(task, &task.segments[Seg::Cs], task.rip)?;
    if let Reason::Event {
        error_code: Some(code), ..
    } = reason
    {
        let mut stack = Stack::current(task);
        stack.push(task, m, layout.word, u64::from(code))?;
        stack.commit(task);
    }
    if state.trap {
        task.dr6 |= DR6_BT;
        task.event = Some(Event {
            vector: event::DB,
            source: Source::Trap,
            error_code: None,
            cr2: None,
            length: 0,
        });
    }
    Ok(())
}

/// The descriptor of CS, if there is one, with its privilege checked.
fn code_privilege(task: &Cpu, m: &mut Careful) -> Result<Option<Descriptor>, Stop> {
    let selector = task.segments[Seg::Cs].selector;
    let Some(address) = descriptor::locate(task, selector, 8).filter(|_| !is_null(selector)) else {
        return Ok(None);
    };
    let code = descriptor::read_at(task, m, selector, address)?;
    let (attributes, cpl) = (code.attributes(), rpl(selector));
    let privilege_fits = if attributes.is_conforming() {
        attributes.dpl() <= cpl
    } else {
        attributes.dpl() == cpl
    };
    if attributes.is_code() && !privilege_fits {
        return Err(fault(event::TS, selector));
    }
    Ok(Some(code))
}

/// SS, but for its RPL.
fn stack(task: &Cpu, m: &mut Careful) -> Result<Segment, Stop> {
    let (selector, cpl) = (task.segments[Seg::Ss].selector, rpl(task.segments[Seg::Cs].selector));
    if is_null(selector) {
        return Err(fault(event::TS, selector));
    }
    let mut stack = descriptor::read(task, m, selector, event::TS)?;
    let attributes = stack.attributes();
    if !attributes.is_writable_data() {
        return Err(fault(event::TS, selector));
    }
    if !attributes.is_present() {
        return Err(fault(event::SS, selector));
    }
    if attributes.dpl() != cpl {
        return Err(fault(event::TS, selector));
    }
    stack.mark_accessed(task, m)?;
    Ok(stack.segment)
}

fn load_code(task: &mut Cpu, m: &mut Careful, code: Option<Descriptor>) -> Result<(), Stop> {
    let selector = task.segments[Seg::Cs].selector;
    let mut code = code
        .filter(|code| code.attributes().is_code())
        .ok_or_else(|| fault(event::TS, selector))?;
    if !code.attributes().is_present() {
        return Err(fault(event::NP, selector));
    }
    code.mark_accessed(task, m)?;
    task.segments[Seg::Cs] = code.segment;
    task.refresh();
    Ok(())
}

fn data(task: &mut Cpu, m: &mut Careful, seg: Seg) -> Result<(), Stop> {
    let selector = task.segments[seg].selector;
    if is_null(selector) {
        return Ok(());
    }
    let mut data = descriptor::read(task, m, selector, event::TS)?;
    let attributes = data.attributes();
    let privileged = !attributes.is_conforming() && attributes.dpl() < rpl(selector).max(task.cpl());
    if !attributes.is_readable() || privileged {
        return Err(fault(event::TS, selector));
    }
    if !attributes.is_present() {
        return Err(fault(event::NP, selector));
    }
    data.mark_accessed(task, m)?;
    task.segments[seg] = data.segment;
    Ok(())
}

/// The exception that the new task begins with.
fn first_event(m: &Careful, exception: Exception, external: u16) -> Event {
    let page_fault = exception.vector == event::PF;
    Event {
        vector: exception.vector,
        source: Source::Fault,
        error_code: exception
            .error_code()
            .map(|code| if page_fault { code } else { code | external }),
        cr2: page_fault.then_some(m.fault_address),
        length: 0,
    }
}
