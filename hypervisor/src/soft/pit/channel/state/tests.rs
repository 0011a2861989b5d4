use proptest::prelude::*;

use super::super::super::{Line, Pit};
use super::*;
use crate::testing::{spoilt, through_json};

/// A kind, a place, a value, and nanoseconds that pass before.
type Step = (u8, u8, u8, u32);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any::<Step>(), 0..80)
}

/// Lets time pass and does something to the timer: what it reads, what its line does, and when it rises next.
fn act(pit: &mut Pit, now: &mut u64, (kind, place, value, passed): Step) -> (u8, Line, Option<u64>) {
    const PORTS: [u16; 5] = [0x40, 0x41, 0x42, 0x43, 0x61];
    *now += u64::from(passed >> (kind >> 4));
    let port = PORTS[usize::from(place) % PORTS.len()];
    pit.update(*now);
    let mut read = 0;
    match kind & 1 {
        0 => pit.write(port, value, *now),
        _ => read = pit.read(port, *now),
    }
    (read, pit.update(*now), pit.deadline())
}

proptest! {
    #[test]
    fn a_restored_timer_goes_on_as_the_saved_one(before in steps(), after in steps()) {
        let (mut own, mut now) = (Pit::new(), 0);
        for step in before { act(&mut own, &mut now, step); }
        let saved = own.state();
        let mut other = Pit::from_state(&through_json(&saved)).unwrap();
        prop_assert_eq!(other.state(), saved);
        let mut same_now = now;
        for step in after {
            prop_assert_eq!(act(&mut own, &mut now, step), act(&mut other, &mut same_now, step));
        }
        prop_assert_eq!(own.state(), other.state());
    }

    #[test]
    fn a_spoilt_state_is_refused_or_does_no_harm(
        before in steps(), after in steps(), start in 0..crate::soft::clock::LATEST,
        changes in prop::collection::vec(any::<(usize, u64)>(), 1..6),
    ) {
        let (mut pit, mut now) = (Pit::new(), 0);
        for step in before { act(&mut pit, &mut now, step); }
        if let Some(mut other) = spoilt(&pit.state(), &changes).and_then(|state| Pit::from_state(&state).ok()) {
            let mut now = start;
            for step in after { act(&mut other, &mut now, step); }
        }
    }
}

#[test]
fn a_period_that_was_under_way_ends_when_it_would_have() {
    let mut pit = Pit::new();
    for (port, value) in [(0x43, 0x34), (0x40, 0x00), (0x40, 0x10)] {
        pit.write(port, value, 0);
    }
    pit.update(1_000_000);
    let deadline = pit.deadline().unwrap();
    let mut other = Pit::from_state(&through_json(&pit.state())).unwrap();
    assert_eq!(other.deadline(), Some(deadline));
    assert!(!other.update(deadline - 1_000).rose);
    assert!(other.update(deadline).rose);
}

#[test]
fn counts_modes_and_moments_out_of_reach_are_refused() {
    let sound = Channel::new(true).state();
    let refused = |change: fn(&mut PitChannelState)| {
        let mut state = sound.clone();
        change(&mut state);
        Channel::from_state(&state).err()
    };
    let register = |register, value| Some(StateError::Register { register, value });
    assert_eq!(refused(|_| ()), None);
    assert_eq!(refused(|state| state.mode = 6), register("the 8254's mode", 6));
    assert_eq!(refused(|state| state.count = Some(0)), register("the 8254's count", 0));
    assert_eq!(
        refused(|state| (state.bcd, state.count) = (true, Some(10_001))),
        register("the 8254's count", 10_001)
    );
    assert_eq!(
        refused(|state| state.start = i64::MAX),
        register("a moment of the 8254", i64::MAX as u64)
    );
    assert_eq!(
        refused(|state| state.held = Some(-1)),
        register("the 8254's held count", u64::MAX)
    );
}
