//! Delivery of exceptions and interrupts (SDM Vol. 3, Interrupt and Exception Handling).
//!
//! # Purpose
//! [`deliver`] leads the CPU to the handler of one event: through the interrupt vector table of real mode, or the gates
//! of protected and IA-32e mode with their stack switches. [`combine`] says what follows when that itself raises an
//! exception.
//!
//! # Invariants
//! The handler's state is computed as a value ([`Landing`]); the CPU changes when nothing can fail any more, so that a
//! delivery whose tables or stack lie in a device can be begun again.

use crate::access::Stop;
use crate::careful::Careful;
use crate::cpu::{Activity, Cpu, Mode, Seg, Segment, Shadow, flags, gpr};
use crate::descriptor::{self, Descriptor, fault, is_null};
use crate::event::{self, Event, Exception, Source};
use crate::paging::is_canonical;
use crate::stack::Stack;
use crate::task::{self, Reason};

/// DR7: general detect.
const DR7_GD: u64 = 1 << 13;
/// Error codes: the event was external to the program.
const EXT: u16 = 1;
/// Error codes: the index is that of an interrupt vector.
const IDT: u16 = 1 << 1;
/// Type and S of a task gate.
const TASK_GATE: u64 = 5;

/// What follows an exception during delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Combined {
    /// This is delivered instead.
    Deliver(Event),
    /// The processor shuts down.
    Shutdown,
}

/// Classes of SDM Vol. 3, Conditions for Generating a Double Fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(vector: u8) -> Class {
    match vector {
        event::DE | event::TS | event::NP | event::SS | event::GP => Class::Contributory,
        event::PF => Class::PageFault,
        event::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// What is delivered after `second` was raised while `first` was being delivered; `fault_address` belongs to a page
/// fault.
pub(crate) fn combine(first: &Event, second: Exception, fault_address: u64) -> Combined {
    let before = if first.source == Source::Fault {
        class(first.vector)
    } else {
        Class::Benign
    };
    let cr2 = if second.vector == event::PF {
        Some(fault_address)
    } else {
        // The first page fault has set CR2 although its handler is never reached.
        first.cr2
    };
    let double = match (before, class(second.vector)) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => return Combined::Shutdown,
        (Class::Contributory, Class::Contributory) => true,
        (Class::PageFault, Class::Contributory | Class::PageFault) => true,
        _ => false,
    };
    let (vector, error_code) = if double {
        (event::DF, Some(0))
    } else {
        (second.vector, second.error_code())
    };
    Combined::Deliver(Event {
        vector,
        source: Source::Fault,
        error_code,
        cr2,
        length: 0,
    })
}

/// Where a handler begins.
struct Landing {
    cs: Segment,
    rip: u64,
    stack: Stack,
    /// Flags that are clear in the handler.
    clear: u64,
    /// Data segment registers become null: the handler was entered from virtual-8086 mode.
    drops_data: bool,
}

/// Delivers `event`: the next instruction is its handler's first.
///
/// # Errors
/// [`Stop::Fault`] if delivery raises an exception, whose error code has the EXT bit as it should; [`Stop`] as every
/// access. Nothing has changed.
pub(crate) fn deliver(cpu: &mut Cpu, m: &mut Careful, event: Event) -> Result<(), Stop> {
    let route = match cpu.view.mode {
        Mode::Real => real(cpu, m, &event).map(Route::Handler),
        Mode::Protected | Mode::Virtual8086 => protected(cpu, m, &event),
        Mode::Compatibility | Mode::Long => ia32e(cpu, m, &event).map(Route::Handler),
    };
    let mark = |stop| mark_external(stop, &event);
    match route.map_err(mark)? {
        Route::Handler(landing) => land(cpu, &landing),
        Route::Task(tss) => {
            let (next_ip, image) = pushed(cpu, &event);
            let reason = Reason::Event {
                error_code: event.error_code,
                external: if event.source == Source::Software { 0 } else { EXT },
                image,
            };
            // What the task begins with is delivered after this event, which need not be the one that is pending: a double
            // fault comes of others. A pass that waits begins with that one again.
            let pending = cpu.event.take();
            if let Err(stop) = task::switch(cpu, m, tss, reason, next_ip) {
                cpu.event = pending;
                return Err(mark(stop));
            }
        }
    }
    if let Some(cr2) = event.cr2 {
        cpu.cr2 = cr2;
    }
    if event.vector == event::DB && event.source != Source::Software {
        cpu.dr7 &= !DR7_GD;
    }
    if event.source == Source::Nmi {
        cpu.nmi_blocked = true;
    }
    cpu.activity = Activity::Running;
    cpu.shadow = Shadow::None;
    cpu.refresh();
    Ok(())
}

/// Goes on in the handler.
fn land(cpu: &mut Cpu, landing: &Landing) {
    landing.stack.commit(cpu);
    cpu.segments[Seg::Cs] = landing.cs;
    cpu.rip = landing.rip;
    cpu.flags.assign(landing.clear, false);
    if landing.drops_data {
        for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
            cpu.segments[seg] = Segment::null(0);
        }
    }
    cpu.event = None;
}

/// Sets EXT in error codes that have it, unless a software interrupt was being delivered.
fn mark_external(stop: Stop, event: &Event) -> Stop {
    const WITH_EXT: [u8; 4] = [event::TS, event::NP, event::SS, event::GP];
    match stop {
        Stop::Fault(exception) if event.source != Source::Software && WITH_EXT.contains(&exception.vector) => {
            let code = exception.error_code().unwrap_or(0);
            Exception::with_code(exception.vector, code | EXT).into()
        }
        _ => stop,
    }
}

/// RIP and RFLAGS as the handler finds them on its stack.
fn pushed(cpu: &Cpu, event: &Event) -> (u64, u64) {
    // Behind the instruction; where there is none, CS need not tell the width of its instruction pointers: a task may
    // begin with an exception that says so.
    let rip = match event.length {
        0 => cpu.rip,
        length => cpu.truncate_ip(cpu.rip.wrapping_add(u64::from(length))),
    };
    let mut image = cpu.flags.bits();
    // The faulting instruction is executed again without meeting an instruction breakpoint (SDM Vol. 3, RF flag).
    if event.source == Source::Fault && event.vector != event::DB {
        image |= flags::RF;
    }
    (rip, image)
}

fn real(cpu: &Cpu, m: &mut Careful, event: &Event) -> Result<Landing, Stop> {
    let offset = u64::from(event.vector) * 4;
    if offset + 3 > u64::from(cpu.idtr.limit) {
        return Err(Exception::gp(0).into());
    }
    let pointer = m.load_system::<u32>(cpu, cpu.idtr.base.wrapping_add(offset))?;
    let cs = descriptor::real_segment(cpu, Seg::Cs, (pointer >> 16) as u16);
    let rip = u64::from(pointer & 0xffff);
    let (return_ip, image) = pushed(cpu, event);
    let mut stack = Stack::current(cpu);
    stack.push(cpu, m, 2, image)?;
    stack.push(cpu, m, 2, u64::from(cpu.segments[Seg::Cs].selector))?;
    stack.push(cpu, m, 2, return_ip)?;
    descriptor::check_target(cpu, &cs, rip)?;
    Ok(Landing {
        cs,
        rip,
        stack,
        clear: flags::IF | flags::TF | flags::AC | flags::RF,
        drops_data: false,
    })
}

/// What an entry of the interrupt descriptor table leads to.
enum Route<T> {
    /// A handler in this task.
    Handler(T),
    /// A task of its own.
    Task(Descriptor),
}

/// An interrupt or trap gate.
struct Gate {
    selector: u16,
    offset: u64,
    /// Bytes of each push.
    size: u8,
    is_interrupt: bool,
    ist: u8,
}

impl Gate {
    /// Reads the gate of `event` and checks it up to its present bit.
    fn read(cpu: &Cpu, m: &mut Careful, event: &Event) -> Result<Route<Gate>, Stop> {
        let wide = cpu.view.is_ia32e();
        let size = if wide { 16 } else { 8 };
        let offset = u64::from(event.vector) * size;
        let vector_fault = |vector| -> Stop { Exception::with_code(vector, u16::from(event.vector) << 3 | IDT).into() };
        if offset + size - 1 > u64::from(cpu.idtr.limit) {
            return Err(vector_fault(event::GP));
        }
        let at = cpu.idtr.base.wrapping_add(offset);
        let low = m.load_system::<u64>(cpu, at)?;
        let high = if wide {
            m.load_system::<u64>(cpu, at.wrapping_add(8))?
        } else {
            0
        };
        // Type and S.
        let kind = low >> 40 & 0x1f;
        let push = match kind {
            TASK_GATE if !wide => 0,
            0xe | 0xf if wide => 8,
            0xe | 0xf => 4,
            6 | 7 if !wide => 2,
            _ => return Err(vector_fault(event::GP)),
        };
        if event.source == Source::Software && ((low >> 45 & 3) as u8) < cpu.cpl() {
            return Err(vector_fault(event::GP));
        }
        if low >> 47 & 1 == 0 {
            return Err(vector_fault(event::NP));
        }
        if kind == TASK_GATE {
            let reason = Reason::Event {
                error_code: event.error_code,
                external: EXT,
                image: 0,
            };
            return Ok(Route::Task(task::target(cpu, m, (low >> 16) as u16, reason)?));
        }
        let mut target = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        if push == 2 {
            target &= 0xffff;
        }
        Ok(Route::Handler(Gate {
            selector: (low >> 16) as u16,
            offset: target,
            size: push,
            is_interrupt: low >> 40 & 1 == 0,
            ist: if wide { (low >> 32 & 7) as u8 } else { 0 },
        }))
    }

    /// Reads and checks the handler's code segment; also its privilege level.
    fn code(&self, cpu: &Cpu, m: &mut Careful) -> Result<(Descriptor, u8), Stop> {
        if is_null(self.selector) {
            return Err(Exception::gp(0).into());
        }
        let code = descriptor::read(cpu, m, self.selector, event::GP)?;
        let attributes = code.attributes();
        if !attributes.is_code() || attributes.dpl() > cpu.cpl() {
            return Err(fault(event::GP, self.selector));
        }
        if cpu.view.is_ia32e() && (!attributes.is_long() || attributes.is_big()) {
            return Err(fault(event::GP, self.selector));
        }
        if !attributes.is_present() {
            return Err(fault(event::NP, self.selector));
        }
        let cpl = if attributes.is_conforming() {
            cpu.cpl()
        } else {
            attributes.dpl()
        };
        if cpu.view.mode == Mode::Virtual8086 && cpl != 0 {
            return Err(fault(event::GP, self.selector));
        }
        Ok((code, cpl))
    }

    fn land(&self, cpu: &Cpu, m: &mut Careful, mut code: Descriptor, cpl: u8, stack: Stack) -> Result<Landing, Stop> {
        code.mark_accessed(cpu, m)?;
        let mut cs = code.segment;
        cs.selector = self.selector & !3 | u16::from(cpl);
        let interrupt = if self.is_interrupt { flags::IF } else { 0 };
        Ok(Landing {
            cs,
            rip: self.offset,
            stack,
            clear: flags::TF | flags::NT | flags::RF | flags::VM | interrupt,
            drops_data: cpu.view.mode == Mode::Virtual8086,
        })
    }
}

fn protected(cpu: &Cpu, m: &mut Careful, event: &Event) -> Result<Route<Landing>, Stop> {
    let gate = match Gate::read(cpu, m, event)? {
        Route::Handler(gate) => gate,
        Route::Task(tss) => return Ok(Route::Task(tss)),
    };
    let (code, cpl) = gate.code(cpu, m)?;
    let (return_ip, image) = pushed(cpu, event);
    let mut stack = Stack::current(cpu);
    if cpl != cpu.cpl() {
        let outer = stack;
        let (pointer, selector) = descriptor::tss_stack(cpu, m, cpl)?;
        if is_null(selector) {
            return Err(Exception::with_code(event::TS, 0).into());
        }
        let segment = descriptor::stack_descriptor(cpu, m, selector, cpl, event::TS)?;
        stack = Stack::inner(segment, pointer, cpl);
        if cpu.view.mode == Mode::Virtual8086 {
            for seg in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
                stack.push(cpu, m, gate.size, u64::from(cpu.segments[seg].selector))?;
            }
        }
        stack.push(cpu, m, gate.size, u64::from(outer.segment.selector))?;
        stack.push(cpu, m, gate.size, outer.rsp)?;
    }
    for value in [image, u64::from(cpu.segments[Seg::Cs].selector), return_ip] {
        stack.push(cpu, m, gate.size, value)?;
    }
    if let Some(code) = event.error_code {
        stack.push(cpu, m, gate.size, u64::from(code))?;
    }
    descriptor::check_target(cpu, &code.segment, gate.offset)?;
    gate.land(cpu, m, code, cpl, stack).map(Route::Handler)
}

fn ia32e(cpu: &Cpu, m: &mut Careful, event: &Event) -> Result<Landing, Stop> {
    let Route::Handler(gate) = Gate::read(cpu, m, event)? else {
        return Err(Exception::gp(0).into());
    };
    let (code, cpl) = gate.code(cpu, m)?;
    let (return_ip, image) = pushed(cpu, event);
    let rsp = cpu.gpr.get(gpr::RSP);
    let segment = if cpl == cpu.cpl() {
        cpu.segments[Seg::Ss]
    } else {
        descriptor::null_stack(cpl)
    };
    let top = if gate.ist != 0 {
        descriptor::tss_stack_pointer(cpu, m, gate.ist + 3)?
    } else if cpl != cpu.cpl() {
        descriptor::tss_stack_pointer(cpu, m, cpl)?
    } else {
        rsp
    };
    if !is_canonical(cpu, top) {
        return Err(Exception::with_code(event::SS, 0).into());
    }
    let mut stack = Stack::long(segment, top & !0xf, cpl);
    let frame = [
        u64::from(cpu.segments[Seg::Ss].selector),
        rsp,
        image,
        u64::from(cpu.segments[Seg::Cs].selector),
        return_ip,
    ];
    for value in frame {
        stack.push(cpu, m, gate.size, value)?;
    }
    if let Some(code) = event.error_code {
        stack.push(cpu, m, gate.size, u64::from(code))?;
    }
    descriptor::check_target(cpu, &code.segment, gate.offset)?;
    gate.land(cpu, m, code, cpl, stack)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exception(vector: u8) -> Event {
        Event {
            source: Source::Fault,
            ..Event::external(vector)
        }
    }

    /// The outcome as the manual's table has it: handled one after the other, double fault, shutdown.
    fn outcome(first: &Event, second: u8) -> &'static str {
        match combine(first, Exception::with_code(second, 0), 0x1000) {
            Combined::Shutdown => "shutdown",
            Combined::Deliver(event) if event.vector == event::DF => "double",
            Combined::Deliver(event) => {
                assert_eq!((event.vector, event.source), (second, Source::Fault));
                "serial"
            }
        }
    }

    #[test]
    fn exceptions_combine_as_the_table_of_double_faults_says() {
        let (benign, contributory, page_fault) = (event::UD, event::GP, event::PF);
        for (first, expected) in [
            (benign, ["serial", "serial", "serial"]),
            (contributory, ["serial", "double", "serial"]),
            (page_fault, ["serial", "double", "double"]),
            (event::DF, ["serial", "shutdown", "shutdown"]),
        ] {
            let outcomes = [event::AC, contributory, page_fault].map(|second| outcome(&exception(first), second));
            assert_eq!(outcomes, expected, "first {first}");
        }
        for vector in [event::DE, event::TS, event::NP, event::SS] {
            assert_eq!(outcome(&exception(vector), event::NP), "double", "first {vector}");
        }
    }

    #[test]
    fn interrupts_are_benign_whatever_their_vector() {
        for source in [Source::External, Source::Software] {
            let event = Event {
                source,
                ..Event::external(event::GP)
            };
            assert_eq!(outcome(&event, event::GP), "serial");
        }
    }

    #[test]
    fn a_double_fault_keeps_the_address_of_the_last_page_fault() {
        let first = Event {
            cr2: Some(0x5000),
            ..exception(event::PF)
        };
        let cr2 = |second| match combine(&first, Exception::with_code(second, 0), 0x1000) {
            Combined::Deliver(event) => event.cr2,
            Combined::Shutdown => None,
        };
        assert_eq!((cr2(event::PF), cr2(event::GP)), (Some(0x1000), Some(0x5000)));
    }
}
