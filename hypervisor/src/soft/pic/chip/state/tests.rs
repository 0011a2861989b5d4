use proptest::prelude::*;

use super::super::super::Pic;
use super::*;
use crate::testing::{spoilt, through_json};

type Step = (u8, u8, u8);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any::<Step>(), 0..80)
}

/// Does something to the pair: what it says, and its output.
fn act(pic: &mut Pic, (kind, place, value): Step) -> (u8, bool) {
    const PORTS: [u16; 6] = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
    let port = PORTS[usize::from(place) % PORTS.len()];
    let mut said = 0;
    match kind % 5 {
        0 | 1 => pic.set_line(place & 0xf, value & 1 != 0),
        2 => pic.write(port, value),
        3 => said = pic.read(port),
        _ => said = pic.acknowledge(),
    }
    (said, pic.output())
}

proptest! {
    #[test]
    fn a_restored_pair_goes_on_as_the_saved_one(before in steps(), after in steps()) {
        let mut own = Pic::new();
        for step in before { act(&mut own, step); }
        let saved = own.state();
        let mut other = Pic::from_state(&through_json(&saved)).unwrap();
        prop_assert_eq!((other.state(), other.output()), (saved, own.output()));
        for step in after {
            prop_assert_eq!(act(&mut own, step), act(&mut other, step));
        }
        prop_assert_eq!(own.state(), other.state());
    }

    #[test]
    fn a_spoilt_state_is_refused_or_does_no_harm(
        before in steps(), after in steps(), changes in prop::collection::vec(any::<(usize, u64)>(), 1..6),
    ) {
        let mut pic = Pic::new();
        for step in before { act(&mut pic, step); }
        if let Some(mut other) = spoilt(&pic.state(), &changes).and_then(|state| Pic::from_state(&state).ok()) {
            for step in after { act(&mut other, step); }
        }
    }
}

#[test]
fn what_no_command_word_sets_is_refused() {
    let sound = Chip::new(true).state();
    let refused = |change: fn(&mut PicChipState)| {
        let mut state = sound.clone();
        change(&mut state);
        Chip::from_state(&state, true, 0b111).err()
    };
    let register = |register, value| Some(StateError::Register { register, value });
    assert_eq!(refused(|_| ()), None);
    assert_eq!(refused(|state| state.elcr = 0b10), register("ELCR", 0b10));
    assert_eq!(refused(|state| state.vector_base = 0x21), register("ICW2", 0x21));
    assert_eq!(
        refused(|state| state.expected_icw = 1),
        register("the number of an ICW", 1)
    );
    assert_eq!(
        refused(|state| state.lowest_priority = 8),
        register("the 8259A's lowest priority", 8)
    );
}
