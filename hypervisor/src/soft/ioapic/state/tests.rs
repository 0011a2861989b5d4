use std::cell::RefCell;

use proptest::prelude::*;

use super::super::{LENGTH, MASKED, Message, MessageBus};
use super::*;
use crate::testing::{spoilt, through_json};

/// Writes down what is sent; accepts what has an even vector.
#[derive(Default)]
struct Wire(RefCell<Vec<Message>>);

impl MessageBus for Wire {
    fn deliver(&self, message: &Message) -> bool {
        self.0.borrow_mut().push(*message);
        !matches!(message.delivery, crate::soft::message::Delivery::Fixed(vector) if vector & 1 != 0)
    }
}

type Step = (u8, u64, u64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((any::<u8>(), any::<u64>(), any::<u64>()), 0..80)
}

/// Does something to the IO-APIC: what it reads, and what it sends.
fn act(ioapic: &mut IoApic, (kind, place, value): Step) -> (u64, Vec<Message>) {
    let wire = Wire::default();
    let mut read = 0;
    match kind % 6 {
        0 | 1 => ioapic.set_line(place as usize % PINS, value & 1 != 0, &wire),
        2 => ioapic.end_of_interrupt(value as u8, &wire),
        3 => ioapic.write(0, 0x10 + place % (2 * PINS as u64), &wire),
        4 => ioapic.write(0x10, value, &wire),
        _ => read = ioapic.read((place % LENGTH) & !0xf, 4),
    }
    (read, wire.0.into_inner())
}

proptest! {
    #[test]
    fn a_restored_io_apic_goes_on_as_the_saved_one(before in steps(), after in steps()) {
        let mut own = IoApic::new();
        for step in before { act(&mut own, step); }
        let saved = own.state();
        let mut other = IoApic::from_state(&through_json(&saved)).unwrap();
        prop_assert_eq!(other.state(), saved);
        for step in after {
            prop_assert_eq!(act(&mut own, step), act(&mut other, step));
        }
        prop_assert_eq!(own.state(), other.state());
    }

    #[test]
    fn a_spoilt_state_is_refused_or_does_no_harm(
        before in steps(), after in steps(), changes in prop::collection::vec(any::<(usize, u64)>(), 1..6),
    ) {
        let mut ioapic = IoApic::new();
        for step in before { act(&mut ioapic, step); }
        if let Some(mut other) = spoilt(&ioapic.state(), &changes).and_then(|state| IoApic::from_state(&state).ok()) {
            for step in after { act(&mut other, step); }
        }
    }
}

#[test]
fn a_pin_that_is_up_as_saved_does_not_rise_again() {
    let mut ioapic = IoApic::new();
    let wire = Wire::default();
    ioapic.entries[4] = 0x40;
    ioapic.set_line(4, true, &wire);
    assert_eq!(wire.0.take().len(), 1);
    let mut other = IoApic::from_state(&through_json(&ioapic.state())).unwrap();
    other.set_line(4, true, &wire);
    assert!(wire.0.take().is_empty());
    other.set_line(4, false, &wire);
    other.set_line(4, true, &wire);
    assert_eq!(wire.0.take().len(), 1);
}

#[test]
fn an_edge_that_is_being_served_and_pins_that_are_not_there_are_refused() {
    let sound = IoApic::new().state();
    let refused = |change: fn(&mut IoApicState)| {
        let mut state = sound.clone();
        change(&mut state);
        IoApic::from_state(&state).err()
    };
    let register = |register, value| Some(StateError::Register { register, value });
    assert_eq!(refused(|_| ()), None);
    assert_eq!(refused(|state| state.id = 16), register("IOAPICID", 16));
    assert_eq!(
        refused(|state| state.ioredtbl[7] = MASKED | REMOTE_IRR),
        register("IOREDTBL", MASKED | REMOTE_IRR)
    );
    assert_eq!(
        refused(|state| state.pins = 1 << 24),
        register("the IO-APIC's pins", 1 << 24)
    );
}
