//! Every access of every form answered late, while memory changes under the instruction; and the instruction cancelled
//! there.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use reprise_emulator::replay::Kind;
use reprise_emulator::{Direction, Entry, Exit, Request, Space};

use crate::layout::{PAGE, PAGING, SIZE};
use crate::scene::Scene;
use crate::story::{Story, Transaction, assert_same};
use crate::world::World;

/// A byte of RAM that was overwritten while an instruction waited.
struct Overwritten {
    old: u8,
    new: u8,
    /// The instruction will still store there.
    stored_later: bool,
}

/// What was overwritten in the transaction in flight.
#[derive(Default)]
struct Meddling {
    bytes: BTreeMap<u64, Overwritten>,
    clock: Option<(u64, u64)>,
}

/// Bytes of RAM that the instruction in flight has read, and whether by an atomic operation.
fn read_so_far(world: &World) -> Vec<(u64, bool)> {
    let mut bytes = Vec::new();
    for entry in world.emulator.record() {
        let question = entry.question;
        if question.space == Space::Memory && question.kind != Kind::Device {
            let addresses = question.address..question.address + u64::from(question.width);
            let ram = addresses.filter(|at| world.is_ram(*at));
            bytes.extend(ram.map(|at| (at, question.kind == Kind::Atomic)));
        }
    }
    bytes
}

impl Meddling {
    /// Overwrites all RAM that the instruction has read and will not rightly read again, its code and page tables
    /// included, and sets clock and chance forward if it has asked them.
    fn meddle(&mut self, world: &World, transaction: &Transaction) {
        let later = transaction.read_later(world.position());
        let stored = transaction.stored();
        let read = read_so_far(world);
        let mut done = BTreeMap::new();
        for (at, _) in read.iter().filter(|(_, atomic)| *atomic) {
            *done.entry(*at).or_insert(0) += 1;
        }
        for (at, _) in read {
            if later[at as usize] || self.bytes.contains_key(&at) {
                continue;
            }
            let (old, finally) = (world.byte(at), transaction.last_stored(at));
            // A page-table entry becomes absent, data something else.
            let new = [!old, !old ^ 0x10].into_iter().find(|new| Some(*new) != finally);
            let new = new.expect("two candidates");
            let stored_later = stored[at as usize] > done.get(&at).copied().unwrap_or(0);
            world.put(at, &[new]);
            self.bytes.insert(at, Overwritten { old, new, stored_later });
        }
        let has = |kind| world.emulator.record().iter().any(|entry| entry.question.kind == kind);
        if has(Kind::Clock) || has(Kind::Chance) {
            let (tsc, random) = (&world.clock.tsc, &world.clock.random);
            self.clock.get_or_insert((tsc.load(Relaxed), random.load(Relaxed)));
            tsc.fetch_add(1_000_000, Relaxed);
            random.fetch_add(1, Relaxed);
        }
    }

    /// The transaction is over: nothing was stored where nothing was to be stored. Puts back what was there.
    fn undo(&mut self, world: &World) {
        for (at, overwritten) in std::mem::take(&mut self.bytes) {
            let now = world.byte(at);
            if overwritten.stored_later {
                assert_ne!(now, overwritten.new, "{at:#x} was to be stored to");
            } else {
                assert_eq!(
                    now, overwritten.new,
                    "{at:#x} was stored to, with {:#x} there before",
                    overwritten.old
                );
                world.put(at, &[overwritten.old]);
            }
        }
        if let Some((tsc, random)) = self.clock.take() {
            world.clock.tsc.store(tsc, Relaxed);
            world.clock.random.store(random, Relaxed);
        }
    }
}

impl Transaction {
    /// What it stores last at `at`.
    fn last_stored(&self, at: u64) -> Option<u8> {
        let covers = |address: u64, size: u8| at.wrapping_sub(address) < size.into();
        let mut stores = self.stores.iter().rev();
        let last = stores.find(|asked| asked.space == Space::Memory && covers(asked.address, asked.size))?;
        match last.direction {
            Direction::Write(value) => Some((value >> (8 * (at - last.address))) as u8),
            _ => None,
        }
    }
}

/// Runs the scene to its end; whenever an answer is owed and `when` agrees (the number of the wait, from 0), memory is
/// meddled with first. How often that happened.
pub fn answer_late(world: &mut World, scene: &Scene, story: &Story, when: impl Fn(usize) -> bool) -> usize {
    world.load(&scene.cpu, &scene.image);
    let mut meddling = Meddling::default();
    let (mut waits, mut meddled, mut number) = (0, 0, 0);
    let mut entry = Entry::Resume;
    for _ in 0..20_000 {
        match world.enter(entry) {
            Exit::Request(request) => {
                if !world.emulator.record().is_empty() || !matches!(request.direction, Direction::Write(_)) {
                    number = story.transaction(number, world.emulator.cpu());
                    if when(waits) {
                        meddling.meddle(world, &story.transactions[number]);
                        meddled += 1;
                    }
                    waits += 1;
                }
                world.emulator.attention().call();
                entry = world.serve(request);
            }
            Exit::Attention => {
                meddling.undo(world);
                entry = Entry::Resume;
            }
            exit => {
                story.check(exit, world);
                return meddled;
            }
        }
    }
    panic!("there is no end, at {:#x}", world.emulator.cpu().rip);
}

/// Runs the scene to its `k`-th wait, from 0, inside an instruction; with the number of the transaction, and how much of the
/// trace is older than that. `None` if there are not as many.
fn run_to(world: &mut World, scene: &Scene, story: &Story, k: usize) -> Option<(Request, usize, usize)> {
    world.load(&scene.cpu, &scene.image);
    let (mut waits, mut number, mut mark) = (0, 0, 0);
    let mut entry = Entry::Resume;
    loop {
        match world.enter(entry) {
            Exit::Request(request) => {
                if !world.emulator.record().is_empty() || !matches!(request.direction, Direction::Write(_)) {
                    number = story.transaction(number, world.emulator.cpu());
                    if waits == k {
                        return Some((request, number, mark));
                    }
                    waits += 1;
                }
                world.emulator.attention().call();
                entry = world.serve(request);
            }
            Exit::Attention => {
                world.forget_reads_before_now();
                mark = world.trace.len();
                entry = Entry::Resume;
            }
            _ => return None,
        }
    }
}

/// Cancels the instruction at the scene's `k`-th wait, sees that nothing has happened, and begins again. False if there are
/// not as many waits.
pub fn cancel(world: &mut World, scene: &Scene, story: &Story, k: usize) -> bool {
    let Some((_, number, mark)) = run_to(world, scene, story, k) else {
        return false;
    };
    let before = &story.transactions[number].before;
    // Atomic operations and accessed bits are done, and done once; the rest is not.
    let atomic: Vec<u64> = read_so_far(world)
        .into_iter()
        .filter_map(|(at, atomic)| atomic.then_some(at))
        .collect();
    match k % 3 {
        0 => world.emulator.cancel(),
        1 => world.emulator.change(|_| ()),
        _ => world.emulator.set_cpu(before.clone()),
    }
    assert!(!world.emulator.is_in_flight() && world.emulator.record().is_empty());
    assert_same(world.emulator.cpu(), before);
    assert!(
        world.trace[mark..].iter().all(|asked| !asked.store),
        "a device was written to: {:x?}",
        &world.trace[mark..]
    );
    let mut expected = scene.image.clone();
    for asked in story.transactions[..number].iter().flat_map(|one| &one.stores) {
        if let (Space::Memory, Direction::Write(value)) = (asked.space, asked.direction)
            && asked.address < SIZE as u64
        {
            let at = asked.address as usize;
            expected[at..at + usize::from(asked.size)].copy_from_slice(&value.to_le_bytes()[..usize::from(asked.size)]);
        }
    }
    let image = world.image();
    let paging = PAGING.start * PAGE as usize..PAGING.end * PAGE as usize;
    let differs =
        (0..SIZE).find(|at| image[*at] != expected[*at] && !paging.contains(at) && !atomic.contains(&(*at as u64)));
    assert_eq!(differs, None, "memory has changed at {differs:x?}");
    // Whoever begins again asks again.
    world.rewind_reads();
    world.trace.truncate(mark);
    let exit = world.run();
    story.check(exit, world);
    true
}

/// Saves the machine at its `k`-th request, stores of retired instructions included, and goes on in another one, where time
/// has passed. False if there are not as many.
pub fn snapshot(world: &mut World, other: &mut World, scene: &Scene, story: &Story, k: usize) -> bool {
    world.load(&scene.cpu, &scene.image);
    let mut entry = Entry::Resume;
    for _ in 0..k {
        entry = match world.enter(entry) {
            Exit::Request(request) => world.serve(request),
            _ => return false,
        };
    }
    let Exit::Request(request) = world.enter(entry) else {
        return false;
    };
    other.take_over(world);
    assert_eq!(other.emulator.waiting_for(), Some(request));
    assert_eq!(other.emulator.record(), world.emulator.record());
    assert_same(other.emulator.cpu(), world.emulator.cpu());
    let mut entry = other.serve(request);
    loop {
        match other.enter(entry) {
            Exit::Request(request) => entry = other.serve(request),
            exit => {
                story.check(exit, other);
                return true;
            }
        }
    }
}
