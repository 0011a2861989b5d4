//! What holds events off, and what is to be delivered next: the crate's own, and KVM's.
//!
//! KVM is asked to tell pending exceptions apart from those whose delivery has begun (KVM_CAP_EXCEPTION_PAYLOAD), so that a
//! page fault's address is not in CR2 before it is delivered.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_vcpu_events,
};
use reprise_emulator::Cpu;
use reprise_emulator::cpu::Shadow;
use reprise_emulator::event::{self, Event, Source};

/// Debug status, B0 to B3, BD, BS, BT: what a debug exception says of itself.
const DR6_TRAPS: u64 = 0xe00f;
/// Debug status: the bits that are one when they say nothing.
const DR6_ACTIVE_LOW: u64 = 0xffff_0ff0;
/// Debug status: a bit of KVM's own in the payload.
const DR6_NOT_THERE: u64 = 1 << 12;

/// What KVM says is to be delivered to the processor, and what it holds off.
pub fn read(cpu: &mut Cpu, from: &kvm_vcpu_events) {
    let shadow = u32::from(from.interrupt.shadow);
    cpu.shadow = if shadow & KVM_X86_SHADOW_INT_MOV_SS != 0 {
        Shadow::MovSs
    } else if shadow & KVM_X86_SHADOW_INT_STI != 0 {
        Shadow::Sti
    } else {
        Shadow::None
    };
    cpu.nmi_blocked = from.nmi.masked != 0;
    cpu.event = event(cpu, from);
}

fn event(cpu: &mut Cpu, from: &kvm_vcpu_events) -> Option<Event> {
    let exception = &from.exception;
    if exception.injected != 0 || exception.pending != 0 {
        let payload = (from.exception_has_payload != 0).then_some(from.exception_payload);
        if let (event::DB, Some(payload)) = (exception.nr, payload) {
            cpu.dr6 = (cpu.dr6 & !DR6_TRAPS | DR6_ACTIVE_LOW | payload) ^ payload & DR6_ACTIVE_LOW;
            cpu.dr6 &= !DR6_NOT_THERE;
        }
        return Some(Event {
            vector: exception.nr,
            source: match exception.nr {
                event::DB | event::BP | event::OF => Source::Trap,
                _ => Source::Fault,
            },
            error_code: (exception.has_error_code != 0).then_some(exception.error_code as u16),
            cr2: payload.filter(|_| exception.nr == event::PF),
            length: 0,
        });
    }
    if from.nmi.injected != 0 {
        return Some(Event::nmi());
    }
    // An INT n that KVM was about to deliver is executed again: RIP is still there.
    (from.interrupt.injected != 0 && from.interrupt.soft == 0).then(|| Event::external(from.interrupt.nr))
}

/// Puts what is to be delivered, and what is held off, where KVM takes it; what is the local APIC's stays.
pub fn write(cpu: &Cpu, to: &mut kvm_vcpu_events) {
    to.flags = KVM_VCPUEVENT_VALID_NMI_PENDING
        | KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | KVM_VCPUEVENT_VALID_SHADOW
        | KVM_VCPUEVENT_VALID_PAYLOAD;
    to.interrupt.shadow = match cpu.shadow {
        Shadow::None => 0,
        Shadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        Shadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
    };
    to.nmi.masked = u8::from(cpu.nmi_blocked);
    to.nmi.injected = 0;
    to.exception = kvm_vcpu_events::default().exception;
    to.exception_has_payload = 0;
    to.exception_payload = 0;
    to.interrupt.injected = 0;
    to.interrupt.soft = 0;
    let Some(event) = cpu.event else { return };
    match event.source {
        Source::External => {
            to.interrupt.injected = 1;
            to.interrupt.nr = event.vector;
        }
        Source::Nmi => to.nmi.injected = 1,
        // RIP is that of the instruction, which raises it again.
        Source::Software | Source::Privileged => {}
        Source::Fault | Source::Trap => {
            let exception = &mut to.exception;
            exception.nr = event.vector;
            exception.has_error_code = u8::from(event.error_code.is_some());
            exception.error_code = event.error_code.unwrap_or(0).into();
            exception.pending = u8::from(event.cr2.is_some());
            exception.injected = u8::from(event.cr2.is_none());
            to.exception_has_payload = u8::from(event.cr2.is_some());
            to.exception_payload = event.cr2.unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(cpu: &Cpu) -> Cpu {
        let mut events = kvm_vcpu_events::default();
        write(cpu, &mut events);
        let mut back = cpu.clone();
        (back.event, back.shadow, back.nmi_blocked) = (None, Shadow::None, false);
        read(&mut back, &events);
        back
    }

    #[test]
    fn what_the_processor_is_to_take_survives() {
        let fault = Event {
            vector: event::PF,
            source: Source::Fault,
            error_code: Some(6),
            cr2: Some(0xffff_8000_dead_0000),
            length: 0,
        };
        let plain = Event {
            vector: event::UD,
            error_code: None,
            cr2: None,
            ..fault
        };
        let code = Event {
            vector: event::GP,
            error_code: Some(0x18),
            ..plain
        };
        let events = [
            None,
            Some(fault),
            Some(plain),
            Some(code),
            Some(Event::nmi()),
            Some(Event::external(0x41)),
        ];
        for event in events {
            for shadow in [Shadow::None, Shadow::Sti, Shadow::MovSs] {
                let mut cpu = Cpu::reset();
                (cpu.event, cpu.shadow, cpu.nmi_blocked) = (event, shadow, event.is_none());
                assert_eq!(round_trip(&cpu), cpu);
            }
        }
    }

    #[test]
    fn a_software_interrupt_is_raised_again_by_its_instruction() {
        let mut cpu = Cpu::reset();
        cpu.event = Some(Event {
            vector: 0x80,
            source: Source::Software,
            error_code: None,
            cr2: None,
            length: 2,
        });
        assert_eq!(round_trip(&cpu).event, None);
    }

    #[test]
    fn a_pending_debug_exception_leaves_its_reason_in_dr6() {
        let mut events = kvm_vcpu_events::default();
        events.exception.pending = 1;
        events.exception.nr = event::DB;
        events.exception_has_payload = 1;
        events.exception_payload = 1 << 14;
        let mut cpu = Cpu::reset();
        read(&mut cpu, &events);
        assert_eq!(cpu.dr6, 0xffff_4ff0);
        assert_eq!(
            cpu.event.map(|event| (event.vector, event.source)),
            Some((event::DB, Source::Trap))
        );
    }
}
