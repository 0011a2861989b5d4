//! The replay cache against a model without any cleverness: a list of questions and answers, and how many of them this
//! pass has asked.

use reprise_emulator::ReplayError;
use reprise_emulator::Space;
use reprise_emulator::replay::{CAPACITY, Entry, Kind, Question, ReplayCache};

use crate::dice::Dice;

#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    next: usize,
}

impl Model {
    fn recall(&mut self, question: Question) -> Result<Option<Entry>, ReplayError> {
        match self.entries.get(self.next) {
            None => Ok(None),
            Some(entry) if entry.question == question => {
                self.next += 1;
                Ok(Some(*entry))
            }
            Some(entry) => Err(ReplayError::Divergence {
                index: self.next,
                recorded: entry.question,
                asked: question,
            }),
        }
    }

    fn answer(&mut self, entry: Entry) -> Result<(), ReplayError> {
        if self.entries.len() == CAPACITY {
            return Err(ReplayError::Overflow { capacity: CAPACITY });
        }
        self.entries.push(entry);
        Ok(())
    }

    fn record(&mut self, entry: Entry) -> Result<(), ReplayError> {
        self.answer(entry)?;
        self.next = self.entries.len();
        Ok(())
    }

    fn read(&mut self, entry: Entry) -> Result<u64, ReplayError> {
        match self.recall(entry.question)? {
            Some(recorded) => Ok(recorded.value),
            None => self.record(entry).map(|()| entry.value),
        }
    }
}

/// Few enough that the same is asked again.
fn question(dice: &mut Dice) -> Question {
    Question {
        kind: dice.choose(&[Kind::Data, Kind::Data, Kind::Fetch, Kind::Atomic, Kind::Device]),
        space: dice.choose(&[Space::Memory, Space::Memory, Space::Port]),
        address: u64::from(dice.byte() & 3),
        width: dice.choose(&[8, 8, 4]),
    }
}

/// Does what `bytes` say, to the cache and to the model; returns how often something was answered from the record.
pub fn operate(bytes: &[u8]) -> u64 {
    let mut dice = Dice::new(bytes);
    let (mut cache, mut model) = (ReplayCache::default(), Model::default());
    let mut replayed = 0;
    while !dice.is_spent() {
        let operation = dice.below(16);
        // Mostly what is expected.
        let expected = model.entries.get(model.next).map(|entry| entry.question);
        let question = match expected {
            Some(question) if !dice.one_in(8) => question,
            _ => question(&mut dice),
        };
        let value = dice.number();
        let refused = question.space == Space::Port && value & 1 != 0;
        let entry = Entry {
            question,
            value,
            refused,
        };
        let before = model.next;
        match operation {
            0..=5 => {
                let mut live = false;
                let read = cache.read(question, || {
                    live = true;
                    value
                });
                let plain = Entry {
                    refused: false,
                    ..entry
                };
                let had = model.next < model.entries.len();
                assert_eq!(read, model.read(plain));
                assert_eq!(live, !had && read.is_ok(), "asked once, and only what is not recorded");
                replayed += u64::from(had && read.is_ok());
            }
            6..=8 => {
                let recalled = cache.recall(question);
                assert_eq!(recalled, model.recall(question));
                replayed += u64::from(matches!(recalled, Ok(Some(_))));
            }
            9 => assert_eq!(cache.record(question, value, refused), model.record(entry)),
            10 => assert_eq!(cache.answer(question, value, refused), model.answer(entry)),
            11 | 12 => {
                cache.rewind();
                model.next = 0;
            }
            13 => {
                // As much as there is room for, and more.
                let count = dice.choose(&[1, CAPACITY / 2, CAPACITY, CAPACITY + 1]);
                let fits = model.entries.len() + count <= CAPACITY;
                assert_eq!(cache.reserve(count).is_ok(), fits);
                if dice.one_in(8) {
                    for _ in 0..count {
                        assert_eq!(cache.record(question, value, refused), model.record(entry));
                    }
                }
            }
            14 if dice.one_in(4) => {
                cache.clear();
                model = Model::default();
            }
            _ => assert_eq!(cache.reserve_answer().is_ok(), model.entries.len() < CAPACITY),
        }
        assert!(model.next >= before || matches!(operation, 11 | 12 | 14));
        assert_eq!(cache.peek(), model.entries.get(model.next));
        assert_eq!(cache.replayed(), replayed);
        assert_eq!(cache.entries().len(), model.entries.len());
    }
    assert_eq!(cache.entries(), model.entries);
    replayed
}
