use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::testing::Inbox;
use super::*;

fn make(vectors: u16) -> (Msix, Arc<Inbox>) {
    let inbox = Arc::new(Inbox::default());
    (Msix::new(vectors, Arc::clone(&inbox) as Arc<dyn Messages>), inbox)
}

fn message(address: u64, data: u32) -> Message {
    Message { address, data }
}

/// Writes a whole entry, unmasked, as a driver does.
fn set(msix: &Msix, vector: u64, address: u64, data: u32) {
    msix.write_table(vector * 16, 4, address & 0xffff_ffff);
    msix.write_table(vector * 16 + 4, 4, address >> 32);
    msix.write_table(vector * 16 + 8, 4, data.into());
    msix.write_table(vector * 16 + 12, 4, 0);
}

#[test]
fn after_reset_all_is_masked_and_nothing_is_sent() {
    let (msix, inbox) = make(3);
    assert_eq!(msix.read_table(12, 4), 1);
    assert_eq!(msix.read_table(2 * 16 + 8, 8), 1 << 32);
    msix.signal(0);
    assert_eq!((inbox.take(), msix.read_pending(0, 8)), (vec![], 0), "not even pending");
}

#[test]
fn an_unmasked_vector_is_sent_as_the_table_says() {
    let (msix, inbox) = make(2);
    set(&msix, 1, 0x1_fee0_1000, 0x4041);
    msix.set_control(control::ENABLE, true);
    msix.signal(1);
    msix.signal(7);
    assert_eq!(inbox.take(), [message(0x1_fee0_1000, 0x4041)]);
}

#[test]
fn a_masked_vector_is_pending_once_and_sent_with_what_stands_there_when_it_is_unmasked() {
    let (msix, inbox) = make(2);
    set(&msix, 1, 0xfee0_0000, 0x41);
    msix.write_table(16 + 12, 4, 1);
    msix.set_control(control::ENABLE, true);
    msix.signal(1);
    msix.signal(1);
    assert_eq!((inbox.take(), msix.read_pending(0, 1)), (vec![], 0b10));
    msix.write_table(16 + 8, 4, 0x55);
    msix.write_table(16 + 12, 4, 0);
    assert_eq!(inbox.take(), [message(0xfee0_0000, 0x55)]);
    assert_eq!(msix.read_pending(0, 8), 0);
}

#[test]
fn the_function_mask_and_a_function_that_is_no_bus_master_hold_all_vectors() {
    for (held, master) in [
        (control::ENABLE | control::FUNCTION_MASK, true),
        (control::ENABLE, false),
    ] {
        let (msix, inbox) = make(2);
        set(&msix, 0, 0xfee0_0000, 0x41);
        msix.set_control(held, master);
        msix.signal(0);
        msix.signal(1);
        assert_eq!((inbox.take(), msix.read_pending(0, 1)), (vec![], 0b11));
        msix.set_control(control::ENABLE, true);
        assert_eq!(inbox.take(), [message(0xfee0_0000, 0x41)]);
        assert_eq!(msix.read_pending(0, 1), 0b10, "that one is masked by itself");
    }
}

#[test]
fn disabling_forgets_what_is_pending() {
    let (msix, inbox) = make(1);
    msix.set_control(control::ENABLE, true);
    msix.signal(0);
    msix.set_control(0, true);
    msix.set_control(control::ENABLE, true);
    set(&msix, 0, 0xfee0_0000, 0x41);
    assert_eq!(inbox.take(), []);
}

#[test]
fn routes_are_told_only_for_what_changed() {
    let (msix, inbox) = make(4);
    set(&msix, 0, 0xfee0_0000, 0x41);
    set(&msix, 2, 0xfee0_0000, 0x43);
    assert_eq!(inbox.take_routes(), [], "nothing is enabled yet");
    msix.set_control(control::ENABLE, true);
    let (zero, two) = (Some(message(0xfee0_0000, 0x41)), Some(message(0xfee0_0000, 0x43)));
    assert_eq!(inbox.take_routes(), [(0, zero), (2, two)]);
    msix.set_control(control::ENABLE, true);
    set(&msix, 2, 0xfee0_0000, 0x43);
    assert_eq!(inbox.take_routes(), [], "the same again");
    msix.write_table(2 * 16 + 12, 4, 1);
    assert_eq!(inbox.take_routes(), [(2, None)]);
    msix.write_table(2 * 16 + 8, 4, 0x99);
    assert_eq!(inbox.take_routes(), [], "masked, it goes nowhere whatever it says");
    // Eight bytes from the data on: the vector is unmasked with its new data, and told once.
    msix.write_table(2 * 16 + 8, 8, 0x77);
    assert_eq!(inbox.take_routes(), [(2, Some(message(0xfee0_0000, 0x77)))]);
}

#[test]
fn the_table_ends_and_the_pending_bits_cannot_be_written() {
    let (msix, _) = make(2);
    assert_eq!(msix.read_table(32, 4), 0xffff_ffff);
    assert_eq!(msix.read_table(28, 8), 0xffff_ffff_0000_0001);
    msix.write_table(u64::MAX, 8, u64::MAX);
    msix.write_table(28, 8, u64::MAX);
    assert_eq!(msix.read_table(28, 4), 1, "reserved bits stay zero");
    assert_eq!(msix.read_pending(u64::MAX, 8), 0);
}

/// What the specification says, vector by vector.
#[derive(Default, Clone)]
struct Model {
    entries: Vec<(u64, u32, bool)>,
    pending: BTreeSet<usize>,
    enabled: bool,
    held: bool,
}

impl Model {
    fn may(&self, vector: usize) -> bool {
        self.enabled && !self.held && !self.entries[vector].2
    }

    fn settle(&mut self, sent: &mut Vec<Message>) {
        for vector in 0..self.entries.len() {
            if self.may(vector) && self.pending.remove(&vector) {
                let (address, data, _) = self.entries[vector];
                sent.push(message(address, data));
            }
        }
    }
}

proptest! {
    #[test]
    fn any_guest_and_any_device_see_what_the_model_says(
        steps in prop::collection::vec((0_u8..5, 0_u64..5, any::<u32>()), 0..60),
        snapshot_at in 0_usize..60,
    ) {
        let (mut msix, mut inbox) = make(4);
        let mut model = Model { entries: vec![(0, 0, true); 4], ..Model::default() };
        let mut word = (0, true);
        for (index, (what, vector, value)) in steps.into_iter().enumerate() {
            let mut sent = Vec::new();
            let slot = vector as usize;
            match what {
                0 => {
                    msix.signal(vector as u16);
                    if model.enabled && slot < 4 {
                        if model.may(slot) {
                            sent.push(message(model.entries[slot].0, model.entries[slot].1));
                        } else {
                            model.pending.insert(slot);
                        }
                    }
                }
                1 => {
                    msix.write_table(vector * 16 + 12, 4, value.into());
                    if slot < 4 { model.entries[slot].2 = value & 1 != 0; }
                }
                2 => {
                    msix.write_table(vector * 16, 4, value.into());
                    if slot < 4 { model.entries[slot].0 = u64::from(value & !3); }
                }
                3 => {
                    msix.write_table(vector * 16 + 8, 4, value.into());
                    if slot < 4 { model.entries[slot].1 = value; }
                }
                _ => {
                    word = (value as u16, value & 1 << 20 != 0);
                    msix.set_control(word.0, word.1);
                    model.enabled = word.0 & 0x8000 != 0;
                    model.held = word.0 & 0x4000 != 0 || !word.1;
                    if !model.enabled { model.pending.clear(); }
                }
            }
            model.settle(&mut sent);
            prop_assert_eq!(inbox.take(), sent);
            let bits = model.pending.iter().fold(0, |bits, vector| bits | 1 << vector);
            prop_assert_eq!(msix.read_pending(0, 8), bits);
            for (vector, (address, data, masked)) in model.entries.iter().enumerate() {
                let at = vector as u64 * 16;
                prop_assert_eq!(msix.read_table(at, 8), *address);
                prop_assert_eq!(msix.read_table(at + 8, 8), u64::from(*data) | u64::from(*masked) << 32);
            }
            if index == snapshot_at {
                let state = serde_json::to_string(&msix.state()).unwrap();
                let (other, fresh) = make(4);
                prop_assert!(other.restore(&serde_json::from_str(&state).unwrap()));
                other.set_control(word.0, word.1);
                prop_assert_eq!(fresh.take(), vec![], "what was sent is not sent again");
                (msix, inbox) = (other, fresh);
            }
        }
    }
}
