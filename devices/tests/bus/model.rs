//! The bus against a model without any cleverness: every address by itself, and whose it is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use reprise_devices::bus::{Bus, Completion, Device, Response, Space, Ticket};

/// Decisions taken from bytes; all are 0 when they are spent.
struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    fn byte(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        u64::from(self.byte()) % end
    }
}

/// What a device was asked: offset, width, the value if it was a write, and whether it is asked again.
type Asked = (u64, u8, Option<u64>, bool);

/// Answers with what it was asked, sometimes late, and always with more bits than it should.
struct Double {
    name: String,
    asked: Mutex<Vec<Asked>>,
    owed: Mutex<VecDeque<(Asked, Completion)>>,
}

/// What a double says.
fn says((offset, size, write, again): Asked) -> u64 {
    let known = offset << 8 | u64::from(size) << 4 | u64::from(again);
    write.unwrap_or(known).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Double {
    fn ask(&self, asked: Asked) -> Response {
        self.asked.lock().unwrap().push(asked);
        if !asked.0.is_multiple_of(3) {
            return Response::Done(says(asked));
        }
        let (ticket, completion) = Ticket::pair();
        self.owed.lock().unwrap().push_back((asked, completion));
        Response::Later(ticket)
    }
}

impl Device for Double {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        self.ask((offset, size, None, false))
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        self.ask((offset, size, Some(value), false))
    }

    fn resume(&self, offset: u64, size: u8, write: Option<u64>) -> Response {
        self.ask((offset, size, write, true))
    }
}

/// Whose an address is: which range, which device, and as which offset.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Owner {
    start: u64,
    device: usize,
    offset: u64,
}

fn ones(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size))
}

/// Addresses of each space: its first, or its last.
const FEW: u64 = 48;

/// Does what `bytes` say to the bus and to the model. How many accesses reached a device, and how many were late.
pub fn operate(bytes: &[u8]) -> (usize, usize) {
    let mut dice = Dice(bytes);
    let bus = Bus::new();
    let doubles: Vec<Arc<Double>> = (0..3)
        .map(|i| {
            Arc::new(Double {
                name: format!("double {i}"),
                asked: Mutex::default(),
                owed: Mutex::default(),
            })
        })
        .collect();
    let mut model = [BTreeMap::<u64, Owner>::new(), BTreeMap::new()];
    let (mut reached, mut late) = (0, 0);
    while !dice.0.is_empty() {
        let what = dice.below(8);
        let (space, owners, top) = match dice.below(2) {
            0 => (Space::Port, &mut model[0], u64::from(u16::MAX)),
            _ => (Space::Memory, &mut model[1], u64::MAX),
        };
        let first = if dice.below(4) == 0 { top - (FEW - 1) } else { 0 };
        let address = first + dice.below(FEW);
        match what {
            0 => {
                let (length, first_offset) = (dice.below(12), dice.below(20));
                let first_offset = if first_offset == 19 { u64::MAX - 6 } else { first_offset };
                let device = dice.below(3) as usize;
                let double = Arc::clone(&doubles[device]) as Arc<dyn Device>;
                let inserted = bus.insert_part(space, address, length, double, first_offset);
                let fits = length > 0 && top - address >= length - 1 && first_offset.checked_add(length).is_some();
                let is_free = fits && (0..length).all(|i| !owners.contains_key(&(address + i)));
                assert_eq!(inserted.is_ok(), is_free, "{inserted:?}");
                for i in (0..length).filter(|_| is_free) {
                    let offset = first_offset + i;
                    owners.insert(
                        address + i,
                        Owner {
                            start: address,
                            device,
                            offset,
                        },
                    );
                }
            }
            1 => {
                let removed = bus.remove(space, address);
                let owner = owners.get(&address).filter(|owner| owner.start == address).copied();
                let name = |i: usize| doubles[i].name.as_str();
                assert_eq!(
                    removed.as_ref().map(|device| device.name()),
                    owner.map(|owner| name(owner.device))
                );
                owners.retain(|_, other| owner.is_none() || other.start != address);
            }
            _ => {
                let size = 1 << dice.below(4);
                let (write, again) = (what & 1 != 0, what >= 6);
                let value = u64::from(dice.byte()).wrapping_mul(0x0101_0101_0101_0101);
                let written = write.then_some(value);
                let response = match (again, written) {
                    (true, _) => bus.resume(space, address, size, written),
                    (false, None) => bus.read(space, address, size),
                    (false, Some(value)) => bus.write(space, address, size, value),
                };
                let asked_for = if write { 0 } else { ones(size) };
                let Some(owner) = owners.get(&address) else {
                    assert!(
                        matches!(response, Response::Done(value) if value == asked_for),
                        "{response:?}"
                    );
                    continue;
                };
                reached += 1;
                // As many bytes as are the same range's, but a power of two.
                let same = |i: &u8| {
                    let at = address.checked_add(u64::from(*i));
                    at.and_then(|at| owners.get(&at))
                        .is_some_and(|other| other.start == owner.start)
                };
                let length = (0..size).take_while(same).count() as u8;
                let inside = 1 << length.ilog2();
                let asked = (owner.offset, inside, written.map(|value| value & ones(inside)), again);
                let double = &doubles[owner.device];
                assert_eq!(std::mem::take(&mut *double.asked.lock().unwrap()), [asked]);
                let expected = |value: u64| value & asked_for & ones(inside) | asked_for & !ones(inside);
                match response {
                    Response::Done(value) => assert_eq!(value, expected(says(asked))),
                    Response::Later(ticket) => {
                        late += 1;
                        assert_eq!(ticket.try_take(), None);
                        let (of, completion) = double.owed.lock().unwrap().pop_front().expect("it owes one");
                        assert_eq!(of, asked);
                        let is_lost = value & 7 == 0;
                        if is_lost {
                            drop(completion);
                        } else {
                            completion.complete(says(asked));
                        }
                        let answer = if is_lost { u64::MAX } else { says(asked) };
                        assert_eq!((ticket.try_take(), ticket.is_lost()), (Some(expected(answer)), is_lost));
                    }
                }
            }
        }
    }
    let claimed: u64 = bus.claims().iter().map(|claim| claim.last - claim.start + 1).sum();
    assert_eq!(claimed, model.iter().map(|owners| owners.len() as u64).sum::<u64>());
    (reached, late)
}
