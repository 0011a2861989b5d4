//! What was saved of a CPU and its instruction in flight, damaged and restored: it is refused, or the CPU goes on as one
//! that has seen odd things. Nothing may panic, and nobody may be owed what was never asked.

use reprise_emulator::{Answer, Cpu, CpuidTable, Direction, Entry, Error, Exit, InFlight, Reply};
use serde_json::Value;

use crate::dice::Dice;
use crate::duet::Watch;
use crate::forms::forms;
use crate::layout::{Marks, Mode, Offsets};
use crate::scene::Scene;
use crate::story::assert_same;
use crate::world::{Placement, World, cpuid};

/// What became of damaged data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It is no state any more.
    NoState,
    /// No processor, or no instruction, can be in that state.
    Refused,
    /// The instruction asks something else than it had asked.
    Failed,
    /// It goes on.
    WentOn,
}

/// Machines to save and restore.
pub struct Saved {
    watch: Watch,
    cpuid: CpuidTable,
    worlds: Vec<World>,
    restored: World,
}

impl Saved {
    pub fn new() -> Saved {
        Saved {
            watch: Watch::new(),
            cpuid: cpuid(),
            worlds: Placement::MIXED.map(World::new).into(),
            restored: World::new(Placement::Operands),
        }
    }

    /// Saves a machine, damages what was saved, and restores that, all as `bytes` say.
    pub fn damage(&mut self, bytes: &[u8]) -> Outcome {
        let mut dice = Dice::new(bytes);
        let (scene, mut state) = self.save(&mut dice);
        for _ in 0..=dice.below(4) {
            // Mostly the instruction in flight.
            let half = usize::from(!dice.one_in(4));
            let before = state.clone();
            damage(&mut state[half], &mut dice);
            if !parses(&state) && dice.one_in(2) {
                state = before;
            }
        }
        let Ok((cpu, in_flight)) = serde_json::from_value::<(Cpu, Option<InFlight>)>(state) else {
            return Outcome::NoState;
        };
        if cpu.check(&self.cpuid).is_err() {
            return Outcome::Refused;
        }
        let world = &mut self.restored;
        world.load(&scene.cpu, &scene.image);
        if world.emulator.restore(cpu, in_flight.as_ref()).is_err() {
            assert_same(world.emulator.cpu(), &scene.cpu);
            assert!(!world.emulator.is_in_flight());
            return Outcome::Refused;
        }
        self.go_on(&mut dice)
    }

    /// A scene, and its machine at some request as plain data.
    fn save(&mut self, dice: &mut Dice) -> (Scene, Value) {
        let form = &forms()[dice.below(forms().len())];
        let modes: Vec<_> = Mode::ALL.into_iter().filter(|mode| mode.bits() == form.bits).collect();
        let (mode, offsets) = (dice.choose(&modes), dice.choose(&Offsets::ALL));
        let scene = Scene::new(form, mode, offsets, dice.choose(&[Marks::Set, Marks::Clear]));
        let world = dice.below(self.worlds.len());
        let world = &mut self.worlds[world];
        world.load(&scene.cpu, &scene.image);
        let mut entry = Entry::Resume;
        for _ in 0..dice.below(12) {
            match world.enter(entry) {
                Exit::Request(request) => entry = world.serve(request),
                _ => break,
            }
        }
        let state = (world.emulator.cpu(), world.emulator.in_flight());
        (scene, serde_json::to_value(state).expect("plain data"))
    }

    /// Runs what was restored, for a while.
    fn go_on(&mut self, dice: &mut Dice) -> Outcome {
        let world = &mut self.restored;
        let mut entry = Entry::Resume;
        for _ in 0..30 {
            if let Some(request) = world.emulator.waiting_for() {
                let value = match request.direction {
                    // Whoever answers need not have moved anything.
                    Direction::ReadTo { .. } | Direction::WriteFrom { .. } => u64::from(dice.byte()),
                    _ => dice.number(),
                };
                let (id, reply) = (request.id, Reply::Value(value));
                entry = Entry::Answer(Answer { id, reply });
            }
            match self.watch.over(world, entry, 20) {
                None | Some(Ok(Exit::Halt | Exit::Shutdown)) => break,
                Some(Ok(_)) => entry = Entry::Resume,
                Some(Err(Error::Replay(_))) => return Outcome::Failed,
                Some(Err(error)) => panic!("{error}"),
            }
        }
        Outcome::WentOn
    }
}

fn parses(state: &Value) -> bool {
    serde_json::from_value::<(Cpu, Option<InFlight>)>(state.clone()).is_ok()
}

/// Changes something in `value`.
fn damage(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Null => *value = Value::from(dice.number()),
        Value::Bool(flag) => *flag = !*flag,
        Value::Number(_) => {
            let number = dice.number();
            let mask = dice.choose(&[0xff, 0x1f, 0xffff, u64::MAX]);
            *value = Value::from(number & mask);
        }
        Value::String(text) => {
            let others = [
                "Memory",
                "Port",
                "Msr",
                "TaskPriority",
                "Hypercall",
                "Read",
                "Data",
                "Fetch",
                "PageTable",
                "PageTableUpdate",
                "Supplied",
                "Batch",
                "Atomic",
                "Device",
                "Clock",
                "Chance",
                "Halted",
                "Shutdown",
            ];
            *text = dice.choose(&others).to_owned();
        }
        Value::Array(values) => match dice.below(6) {
            0 if !values.is_empty() => {
                values.remove(dice.below(values.len()));
            }
            1 if !values.is_empty() => {
                let copy = values[dice.below(values.len())].clone();
                let copies = dice.choose(&[1, 2, 400, 3000]);
                values.extend(std::iter::repeat_n(copy, copies));
            }
            2 if values.len() > 1 => {
                let (one, other) = (dice.below(values.len()), dice.below(values.len()));
                values.swap(one, other);
            }
            _ if !values.is_empty() => {
                let inner = dice.below(values.len());
                damage(&mut values[inner], dice);
            }
            _ => {}
        },
        Value::Object(fields) => {
            let names: Vec<String> = fields.keys().cloned().collect();
            if names.is_empty() {
                return;
            }
            let name = &names[dice.below(names.len())];
            if dice.one_in(16) {
                fields.remove(name);
            } else if dice.one_in(16) {
                fields.insert(name.clone(), Value::Null);
            } else {
                damage(&mut fields[name], dice);
            }
        }
    }
}
