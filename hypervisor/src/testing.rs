//! What the tests of saved states share.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What a state is after it was written to a file and read again.
pub(crate) fn through_json<T: Serialize + DeserializeOwned>(state: &T) -> T {
    serde_json::from_str(&serde_json::to_string(state).expect("a state can be written")).expect("and read again")
}

/// `state` with some of its leaves replaced: each of `changes` picks one and says what it becomes. `None` if that cannot
/// be read any more.
pub(crate) fn spoilt<T: Serialize + DeserializeOwned>(state: &T, changes: &[(usize, u64)]) -> Option<T> {
    let mut value = serde_json::to_value(state).expect("a state can be written");
    for (place, random) in changes {
        let mut leaves = Vec::new();
        collect(&mut value, &mut leaves);
        let count = leaves.len();
        *leaves.swap_remove(place % count) = leaf(*random);
    }
    serde_json::from_value(value).ok()
}

fn collect<'a>(value: &'a mut Value, leaves: &mut Vec<&'a mut Value>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| collect(item, leaves)),
        Value::Object(fields) => fields.values_mut().for_each(|field| collect(field, leaves)),
        leaf => leaves.push(leaf),
    }
}

/// Small numbers, single bits, large numbers, and what is no number.
fn leaf(random: u64) -> Value {
    let rest = random >> 3;
    match random & 7 {
        0 => (rest & 0xff).into(),
        1 => (1_u64 << (rest & 63)).into(),
        2 => (u64::MAX >> (rest & 63)).into(),
        3 => (-((rest & 0xffff) as i64)).into(),
        4 => i64::MIN.into(),
        5 => (rest & 1 != 0).into(),
        6 => Value::Null,
        _ => rest.into(),
    }
}
