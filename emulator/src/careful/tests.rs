//! Reads that are not the instruction's own go around the record, on every way out.

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::access::{Access, Linear, Stop};
use crate::cpu::Cpu;
use crate::event::Exception;
use crate::paging::Tables;
use crate::replay::Kind;

struct Still;

impl Host for Still {
    fn tsc(&self) -> u64 {
        0
    }

    fn random(&self) -> u64 {
        0
    }
}

/// A careful way to one page of RAM, in the middle of a pass that has read the first word of it.
fn reading() -> Careful {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let ram = Arc::new(Ram::new(memory).unwrap());
    let mut careful = Careful::new(ram, Arc::new(Still), Arc::new(CpuidTable::default()));
    careful.ram.write(0, 4, 1);
    careful.begin();
    assert_eq!(careful.read_part(Kind::Data, 0, 4), Ok(1));
    careful
}

#[test]
fn rule_13_a_read_around_the_record_neither_uses_nor_fills_it() {
    let mut careful = reading();
    careful.begin();
    careful.ram.write(0, 4, 2);
    assert_eq!(careful.suspended().read_part(Kind::Data, 0, 4), Ok(2));
    assert_eq!(careful.record().len(), 1);
    // The instruction's own next read gets what its first pass saw.
    assert_eq!(careful.read_part(Kind::Data, 0, 4), Ok(1));
}

#[test]
fn rule_13_guards_nest() {
    let mut careful = reading();
    careful.begin();
    careful.ram.write(0, 4, 2);
    {
        let mut outer = careful.suspended();
        assert_eq!(outer.suspended().read_part(Kind::Data, 0, 4), Ok(2));
        assert_eq!(outer.read_part(Kind::Data, 0, 4), Ok(2), "the outer guard still holds");
    }
    assert_eq!(careful.read_part(Kind::Data, 0, 4), Ok(1));
}

#[test]
fn rule_13_an_early_return_restores_the_record() {
    fn fails(careful: &mut Careful) -> Result<u64, Stop> {
        let mut around = careful.suspended();
        around.read_part(Kind::Data, 0x10, 4)?;
        Err(Exception::gp(0).into())
    }
    let mut careful = reading();
    careful.begin();
    assert!(fails(&mut careful).is_err());
    careful.ram.write(0, 4, 2);
    assert_eq!(careful.read_part(Kind::Data, 0, 4), Ok(1));
}

#[test]
fn rule_13_a_bystander_asks_no_device_and_marks_no_page() {
    let mut careful = reading();
    assert_eq!(careful.suspended().read_part(Kind::Data, 0x1_0000, 2), Ok(0xffff));
    assert_eq!(careful.suspended().port_read(0x60, 1), Err(Stop::Failed));
    assert_eq!(careful.take_error(), Some(ReplayError::Aside));
    assert_eq!(careful.suspended().set_bits(0x20, 8, 1, 0x20), Ok(true));
    assert_eq!(careful.ram.read(0x20, 8), Some(0));
    assert_eq!(careful.waiting_for(), None);
}

/// An instruction that waits for four bytes at 0x10000, as JSON.
fn saved() -> serde_json::Value {
    let mut careful = reading();
    assert_eq!(careful.read_part(Kind::Data, 0x1_0000, 4), Err(Stop::Await));
    serde_json::to_value(careful.save()).unwrap()
}

#[test]
fn rule_23_an_instruction_in_flight_is_saved_and_restored_as_it_was() {
    let saved: Option<InFlight> = serde_json::from_value(saved()).unwrap();
    let mut careful = reading();
    careful.restore(saved.as_ref()).unwrap();
    assert_eq!(careful.save(), saved);
    assert_eq!(careful.awaited().map(|request| request.address), Some(0x1_0000));
    careful.restore(None).unwrap();
    assert!(!careful.in_flight());
}

#[test]
fn rule_23_a_batch_is_saved_wherever_it_is_and_a_port_has_at_most_4_bytes() {
    let restored = |space: &str, address: u64, kind: &str, size: u8, width: u8| {
        let mut saved = saved();
        let direction = match kind {
            "Batch" => serde_json::json!({"ReadTo": {"guest": 0, "count": 2}}),
            _ => "Read".into(),
        };
        saved["waiting"] = serde_json::json!({
            "request": {"id": 1, "space": space, "address": address, "size": size, "direction": direction},
            "question": {"kind": kind, "space": space, "address": address, "width": width},
        });
        let saved: InFlight = serde_json::from_value(saved).unwrap();
        reading().restore(Some(&saved)).is_ok()
    };
    // The elements go on in the next page; the count that is recorded has 8 bytes, and lies nowhere.
    assert!(restored("Memory", 0x1_0ffc, "Batch", 4, 8));
    assert!(!restored("Memory", 0x1_0ffe, "Batch", 4, 8));
    assert!(restored("Port", 0xffff, "Batch", 2, 8));
    assert!(restored("Port", 0x60, "Device", 4, 4));
    assert!(!restored("Port", 0x60, "Device", 8, 8));
    assert!(!restored("Port", 0x1_0000, "Device", 1, 1));
}

#[test]
fn a_saved_request_of_the_last_id_is_followed_by_one_of_another() {
    let mut saved = saved();
    saved["waiting"]["request"]["id"] = u64::MAX.into();
    let saved: InFlight = serde_json::from_value(saved).unwrap();
    let mut careful = reading();
    careful.restore(Some(&saved)).unwrap();
    careful.abandon();
    careful.begin();
    assert_eq!(careful.read_part(Kind::Data, 0x1_0000, 4), Err(Stop::Await));
    assert_ne!(careful.waiting_for(), Some(u64::MAX));
}

#[test]
fn what_is_no_instruction_in_flight_is_not_restored() {
    let change = |pointer: &str, value: serde_json::Value| {
        let mut saved = saved();
        *saved.pointer_mut(pointer).unwrap() = value;
        let saved: InFlight = serde_json::from_value(saved).unwrap();
        let mut careful = reading();
        let error = careful.restore(Some(&saved)).unwrap_err();
        assert_eq!(careful.record().len(), 1, "nothing has changed");
        error
    };
    let store = serde_json::json!({"space": "Memory", "address": 0xffe, "width": 4, "value": 0});
    assert!(matches!(
        change("/record/0/question/width", 3.into()),
        InFlightError::Width { width: 3, .. }
    ));
    assert!(matches!(
        change("/waiting/request/size", 0.into()),
        InFlightError::Width { .. }
    ));
    assert!(matches!(
        change("/stores", vec![store].into()),
        InFlightError::Width { .. }
    ));
    assert_eq!(
        change("/waiting/request/address", 4.into()),
        InFlightError::Inconsistent
    );
    assert_eq!(
        change("/waiting/question", serde_json::Value::Null),
        InFlightError::Inconsistent
    );
    let batch = serde_json::json!({"ReadTo": {"guest": 0xff0, "count": u32::MAX}});
    assert_eq!(change("/waiting/request/direction", batch), InFlightError::Inconsistent);
    let entry = saved()["record"][0].clone();
    let many = vec![entry; crate::replay::CAPACITY + 1];
    assert!(matches!(
        change("/record", many.into()),
        InFlightError::RecordLength { .. }
    ));
}

#[test]
fn rule_14_one_place_opens_a_transaction_and_one_closes_it() {
    let sources = concat!(include_str!("../emulator.rs"), include_str!("../emulator/pass.rs"));
    assert_eq!(sources.matches("careful.begin()").count(), 1);
    assert_eq!(sources.matches("careful.retire()").count(), 1);
}

#[test]
fn rule_17_a_comparison_of_16_bytes_without_room_changes_nothing() {
    let mut careful = reading();
    while careful.record().len() < crate::replay::CAPACITY - 1 {
        careful.read_part(Kind::Data, 0, 4).unwrap();
    }
    let mut cpu = Cpu::reset();
    cpu.refresh();
    let at = Linear::new(crate::cpu::Seg::Ds, 0x20);
    assert_eq!(careful.compare_exchange_16(&cpu, at, 0, 5), Err(Stop::Failed));
    assert!(matches!(careful.take_error(), Some(ReplayError::Overflow { .. })));
    assert_eq!(careful.ram.read(0x20, 8), Some(0));
}
