//! What the tests of saved states share.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What a state is after it was written to a file and read again.
pub(crate) fn through_json<T: Serialize + DeserializeOwned>(state: &T) -> T {
    serde_json::from_str(&serde_json::to_string(state).expect("a state can be written")).expect("and read again")
}

/// `state` with some of its fields spoilt: each of `changes` picks one, at any depth, and says what becomes of it. `None`
/// if that cannot be read any more.
pub(crate) fn spoilt<T: Serialize + DeserializeOwned>(state: &T, changes: &[(usize, u64)]) -> Option<T> {
    let mut value = serde_json::to_value(state).expect("a state can be written");
    for (place, random) in changes {
        spoil(&mut value, *place, *random);
    }
    serde_json::from_value(value).ok()
}

/// Goes down by the digits of `place`, so that a field with many parts is not picked more often than one with few.
fn spoil(value: &mut Value, place: usize, random: u64) {
    let stop = random.is_multiple_of(8);
    match value {
        Value::Array(items) if stop || items.is_empty() => length(items, random >> 3),
        Value::Array(items) => {
            let count = items.len();
            spoil(&mut items[place % count], place / count, random);
        }
        Value::Object(fields) if stop && fields.len() == 1 => rename(fields, random >> 3),
        Value::Object(fields) => {
            let count = fields.len().max(1);
            if let Some(field) = fields.values_mut().nth(place % count) {
                spoil(field, place / count, random);
            }
        }
        leaf => *leaf = other(leaf, random >> 3),
    }
}

/// One element less, or one twice.
fn length(items: &mut Vec<Value>, random: u64) {
    match (items.is_empty(), random & 1) {
        (false, 0) => drop(items.swap_remove(random as usize / 2 % items.len())),
        (false, _) => items.push(items[random as usize / 2 % items.len()].clone()),
        (true, _) => items.push(number(random)),
    }
}

/// Another variant of an enumeration, with the same data.
fn rename(fields: &mut Map<String, Value>, random: u64) {
    for (_, data) in std::mem::take(fields) {
        fields.insert(variant(random).into(), data);
    }
}

/// A leaf of the same type, mostly.
fn other(leaf: &Value, random: u64) -> Value {
    match leaf {
        Value::Bool(bit) => (!bit).into(),
        Value::String(_) => variant(random).into(),
        Value::Null if random & 1 == 0 => variant(random >> 1).into(),
        Value::Number(old) if random & 3 == 0 => {
            let bit = 1 << (random >> 2 & 63);
            old.as_u64().map_or(Value::Null, |old| (old ^ bit).into())
        }
        _ => number(random >> 2),
    }
}

/// Small numbers, single bits, the largest of each width, any, and none.
fn number(random: u64) -> Value {
    let rest = random >> 3;
    match random & 7 {
        0 => (rest & 0xff).into(),
        1 => (1_u64 << (rest & 63)).into(),
        2 => (u64::MAX >> (rest & 63)).into(),
        3 => (-((rest & 0xffff) as i64)).into(),
        4 => [i64::MIN, i64::MAX, 0][rest as usize % 3].into(),
        5 => (rest & 0xffff).into(),
        6 => Value::Null,
        _ => rest.into(),
    }
}

/// A variant of one of the enumerations in a saved state.
fn variant(random: u64) -> &'static str {
    const VARIANTS: [&str; 36] = [
        "Running",
        "Halted",
        "WaitForSipi",
        "Shutdown",
        "None",
        "Sti",
        "MovSs",
        "Low",
        "High",
        "Both",
        "Port",
        "Memory",
        "Msr",
        "TaskPriority",
        "Hypercall",
        "Read",
        "Write",
        "ReadTo",
        "WriteFrom",
        "Fetch",
        "Supplied",
        "PageTable",
        "PageTableUpdate",
        "Batch",
        "Data",
        "Atomic",
        "Device",
        "Clock",
        "Chance",
        "Fault",
        "Trap",
        "External",
        "Nmi",
        "Software",
        "Privileged",
        "",
    ];
    VARIANTS[random as usize % VARIANTS.len()]
}
