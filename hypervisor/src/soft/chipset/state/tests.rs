//! Pins across a snapshot: none is stuck, none rises twice.

use proptest::prelude::*;

use super::super::tests::{end, machine, redirect, takers};
use super::*;
use crate::testing::{spoilt, through_json};

/// An entry of the IO-APIC for vector 0x41, by level and by edge.
const LEVEL: u64 = 0x8041;
const EDGE: u64 = 0x41;

/// Another fabric in the state of this one, paused, local APICs and all. Nobody asserts a line yet.
fn restored(chipset: &Chipset) -> Chipset {
    chipset.set_paused(true);
    let other = Chipset::new(chipset.seats.len());
    other.restore(&through_json(&chipset.state())).unwrap();
    for (own, place) in chipset.seats().iter().zip(other.seats()) {
        place.lapic().restore(&through_json(&own.lapic().state())).unwrap();
    }
    other
}

/// Takes the interrupt that is pending at vCPU 0, which must be vector 0x41.
fn take(chipset: &Chipset) {
    assert_eq!(chipset.seats()[0].lapic().take(), Some(0x41));
}

#[test]
fn a_level_that_is_being_served_interrupts_again_only_after_its_end() {
    let chipset = machine(1);
    redirect(&chipset, 20, LEVEL);
    chipset.change_line(20, true);
    take(&chipset);
    let other = restored(&chipset);
    other.change_line(20, true);
    other.set_paused(false);
    assert_eq!(takers(&other), [], "it is in service, with remote IRR");
    end(&other, 0);
    assert_eq!(takers(&other), [(0, 0x41)]);
    take(&other);
    other.change_line(20, false);
    end(&other, 0);
    assert_eq!(takers(&other), [], "not stuck");
}

#[test]
fn a_level_that_is_pending_is_pending_once() {
    let chipset = machine(1);
    redirect(&chipset, 20, LEVEL);
    chipset.change_line(20, true);
    let other = restored(&chipset);
    other.change_line(20, true);
    other.set_paused(false);
    take(&other);
    other.change_line(20, false);
    end(&other, 0);
    assert_eq!(takers(&other), []);
}

#[test]
fn a_level_whose_device_asserts_it_no_longer_falls_when_the_machine_continues() {
    let chipset = machine(1);
    redirect(&chipset, 20, LEVEL);
    redirect(&chipset, 5, 0x8042);
    chipset.write_ports(0x4d0, 1, 1 << 5);
    chipset.change_line(20, true);
    chipset.change_line(5, true);
    assert_eq!(chipset.seats()[0].lapic().take(), Some(0x42));
    let other = restored(&chipset);
    other.set_paused(false);
    assert_eq!(other.state().io_apic.pins & (1 << 20 | 1 << 5), 0);
    assert_eq!(
        other.read_ports(0x20, 1).unwrap() & 1 << 5,
        0,
        "nor does the PIC see it"
    );
    end(&other, 0);
    take(&other);
    end(&other, 0);
    assert_eq!(takers(&other), []);
}

#[test]
fn a_level_that_is_asserted_only_since_the_snapshot_interrupts_once() {
    let chipset = machine(1);
    redirect(&chipset, 20, LEVEL);
    let other = restored(&chipset);
    other.change_line(20, true);
    other.set_paused(false);
    take(&other);
    assert_eq!(takers(&other), []);
}

#[test]
fn an_edge_that_was_seen_is_not_seen_again() {
    let chipset = machine(1);
    redirect(&chipset, 20, EDGE);
    chipset.change_line(20, true);
    take(&chipset);
    end(&chipset, 0);
    let other = restored(&chipset);
    other.change_line(20, true);
    other.set_paused(false);
    assert_eq!(takers(&other), []);
    other.change_line(20, false);
    other.change_line(20, true);
    assert_eq!(takers(&other), [(0, 0x41)], "the next one is");
}

#[test]
fn a_request_of_the_pics_is_one_request_and_reaches_the_processor() {
    let chipset = machine(1);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xdf)] {
        chipset.write_ports(port, 1, value);
    }
    chipset.change_line(5, true);
    let other = restored(&chipset);
    other.change_line(5, true);
    other.set_paused(false);
    assert!(other.seats()[0].lapic().external_pending());
    assert_eq!(other.acknowledge_pic(), 0x35);
    assert!(!other.seats()[0].lapic().external_pending());
}

#[test]
fn a_machine_that_pauses_and_continues_sees_no_interrupt_of_that() {
    let chipset = machine(1);
    redirect(&chipset, 2, EDGE);
    redirect(&chipset, 20, EDGE);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)] {
        chipset.write_ports(port, 1, value);
    }
    chipset.set_paused(true);
    chipset.set_paused(false);
    let other = restored(&chipset);
    other.set_paused(false);
    for chipset in [&chipset, &other] {
        assert_eq!(takers(chipset), []);
        assert!(!chipset.seats()[0].lapic().external_pending());
    }
}

/// A kind, a place, a value.
type Step = (u8, u8, u64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any::<Step>(), 0..60)
}

/// Does something to the fabric that takes no time, and tells what was read or taken. `sources` is what each of three
/// sources a line asserts.
fn act(chipset: &Chipset, sources: &mut [[bool; 3]; LINES], (kind, place, value): Step) -> Option<u64> {
    const PORTS: [u16; 6] = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
    let seat = &chipset.seats()[usize::from(place) % chipset.seats().len()];
    match kind % 10 {
        0..3 => {
            let line = usize::from(place) % LINES;
            let source = &mut sources[line][value as usize % 3];
            *source = !*source;
            chipset.change_line(line, *source);
            None
        }
        3 | 4 => {
            let destination = u64::from(place % 4) << 56;
            let entry = destination | value & 0x1_8000 | 0x40 | value & 0x3f;
            redirect(chipset, value >> 32 & 0x1f, entry);
            None
        }
        5 => seat.lapic().take().map(u64::from),
        6 => {
            end(chipset, usize::from(place) % chipset.seats().len());
            None
        }
        7 => {
            let port = PORTS[usize::from(place) % PORTS.len()];
            chipset.write_ports(port, 1, value & 0xff);
            None
        }
        8 => chipset.read_ports(PORTS[usize::from(place) % PORTS.len()], 1),
        _ => Some(u64::from(chipset.acknowledge_pic())),
    }
}

/// All that can be told of a fabric whose clock is of no interest.
fn told(chipset: &Chipset) -> (VmState, Vec<crate::state::LocalApicState>, Vec<bool>) {
    let mut state = chipset.state();
    (state.clock, state.pit.told) = (0, 0);
    let lapics = || chipset.seats().iter().map(|seat| seat.lapic());
    (
        state,
        lapics().map(|lapic| lapic.state()).collect(),
        lapics().map(|lapic| lapic.external_pending()).collect(),
    )
}

proptest! {
    #[test]
    fn a_restored_fabric_goes_on_as_the_saved_one(before in steps(), after in steps(), devices_first: bool) {
        let (own, mut sources) = (machine(2), [[false; 3]; LINES]);
        for step in before { act(&own, &mut sources, step); }
        own.set_paused(true);
        let other = Chipset::new(2);
        let saved = through_json(&own.state());
        other.restore(&saved).unwrap();
        let plug_in = || sources.as_flattened().iter().enumerate().filter(|(_, up)| **up).for_each(|(source, _)| {
            other.change_line(source / 3, true);
        });
        if devices_first { plug_in(); }
        for (own, place) in own.seats().iter().zip(other.seats()) {
            place.lapic().restore(&through_json(&own.lapic().state())).unwrap();
        }
        if !devices_first { plug_in(); }
        prop_assert_eq!(other.state(), saved);
        own.set_paused(false);
        other.set_paused(false);
        prop_assert_eq!(told(&own), told(&other));
        let mut same_sources = sources;
        for step in after {
            prop_assert_eq!(act(&own, &mut sources, step), act(&other, &mut same_sources, step));
        }
        prop_assert_eq!(told(&own), told(&other));
    }

    #[test]
    fn a_spoilt_state_is_refused_or_does_no_harm(
        before in steps(), after in steps(), changes in prop::collection::vec(any::<(usize, u64)>(), 1..6),
    ) {
        let (own, mut sources) = (machine(2), [[false; 3]; LINES]);
        for step in before { act(&own, &mut sources, step); }
        own.set_paused(true);
        let other = machine(2);
        other.set_paused(true);
        let sound = other.state();
        if let Some(state) = spoilt(&own.state(), &changes) {
            if other.restore(&state).is_err() {
                prop_assert_eq!(other.state(), sound);
            }
            other.set_paused(false);
            for step in after { act(&other, &mut [[false; 3]; LINES], step); }
        }
    }
}
