use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, Weak, mpsc};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Answers when somebody who waits looks for the answer.
struct Courier(Mutex<Option<Completion>>);

impl Carrier for Courier {
    fn carry(&self, ticket: &Ticket) {
        assert_eq!(ticket.try_take(), None, "it is looked for while it is owed");
        if let Some(completion) = self.0.lock().unwrap().take() {
            completion.complete(0x1234);
        }
    }
}

#[test]
fn who_is_about_to_wait_looks_for_the_answer_if_there_is_a_way_and_nobody_else_does() {
    let carried = || {
        let (ticket, completion) = Ticket::pair();
        let courier = Arc::new(Courier(Mutex::new(Some(completion))));
        ticket.carried_by(courier)
    };
    let ticket = carried();
    assert_eq!(ticket.try_take(), None);
    ticket.hasten();
    assert_eq!(ticket.try_take(), Some(0x1234));
    ticket.hasten();
    assert_eq!(carried().wait(), 0x1234);
    assert_eq!(carried().masked(0xff, 0).wait(), 0x34);
    let (ticket, completion) = Ticket::pair();
    ticket.hasten();
    completion.complete(7);
    assert_eq!(ticket.wait(), 7);
}

/// Answers with its number in every byte, and remembers what it was asked.
#[derive(Default)]
struct Probe {
    number: u8,
    asked: Mutex<Vec<(u64, u8, Option<u64>)>>,
}

impl Probe {
    fn new(number: u8) -> Arc<Self> {
        Arc::new(Self {
            number,
            asked: Mutex::default(),
        })
    }

    fn asked(&self) -> Vec<(u64, u8, Option<u64>)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Device for Probe {
    fn name(&self) -> &str {
        ["zero", "one", "two", "three"][usize::from(self.number) % 4]
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        self.asked.lock().unwrap().push((offset, size, None));
        // More than was asked for; the bus must not let it through.
        Response::Done(u64::from_le_bytes([self.number; 8]))
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        self.asked.lock().unwrap().push((offset, size, Some(value)));
        Response::Done(0xdead)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("number", self.number.into())]
    }
}

/// Hands every question to the other end of a channel.
struct Oracle(mpsc::Sender<Completion>);

impl Device for Oracle {
    fn name(&self) -> &str {
        "oracle"
    }

    fn read(&self, _offset: u64, _size: u8) -> Response {
        let (ticket, completion) = Ticket::pair();
        let _ = self.0.send(completion);
        Response::Later(ticket)
    }

    fn write(&self, offset: u64, size: u8, _value: u64) -> Response {
        self.read(offset, size)
    }
}

fn oracle(bus: &Bus) -> mpsc::Receiver<Completion> {
    let (questions, inbox) = mpsc::channel();
    bus.insert(Space::Memory, 0x1000, 0x10, Arc::new(Oracle(questions)))
        .unwrap();
    inbox
}

fn later(response: Response) -> Ticket {
    match response {
        Response::Later(ticket) => ticket,
        Response::Done(value) => panic!("answered {value:#x} at once"),
    }
}

#[test]
fn the_owner_of_the_first_byte_is_asked_with_its_own_offset() {
    let (bus, one, two) = (Bus::new(), Probe::new(1), Probe::new(2));
    bus.insert(Space::Port, 0x100, 8, one.clone()).unwrap();
    bus.insert(Space::Port, 0x108, 8, two.clone()).unwrap();
    assert_eq!(bus.read(Space::Port, 0x107, 1).wait(), 0x01);
    assert_eq!(bus.read(Space::Port, 0x108, 4).wait(), 0x0202_0202);
    assert_eq!(bus.write(Space::Port, 0x10c, 2, 0xffff_abcd).wait(), 0);
    assert_eq!(one.asked(), [(7, 1, None)]);
    assert_eq!(two.asked(), [(0, 4, None), (4, 2, Some(0xabcd))]);
}

#[test]
fn the_two_spaces_do_not_meet() {
    let (bus, one) = (Bus::new(), Probe::new(1));
    bus.insert(Space::Port, 0x100, 8, one).unwrap();
    assert_eq!(bus.read(Space::Memory, 0x100, 1).wait(), 0xff);
    assert_eq!(bus.read(Space::Port, 0x100, 1).wait(), 0x01);
}

#[test]
fn what_nobody_claims_reads_as_ones_of_the_width() {
    let bus = Bus::new();
    for (size, ones) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff), (8, u64::MAX)] {
        assert_eq!(bus.read(Space::Memory, u64::MAX, size).wait(), ones);
        assert_eq!(bus.write(Space::Memory, u64::MAX, size, 1).wait(), 0);
    }
    assert_eq!(
        bus.counters()["unclaimed"],
        BTreeMap::from([("reads", 4), ("writes", 4), ("late", 0), ("lost", 0)])
    );
}

#[test]
fn beyond_the_end_of_a_range_bytes_read_as_ones_and_are_dropped() {
    let (bus, one, two) = (Bus::new(), Probe::new(1), Probe::new(2));
    bus.insert(Space::Memory, 0x1000, 3, one.clone()).unwrap();
    bus.insert(Space::Memory, 0x1003, 8, two.clone()).unwrap();
    assert_eq!(bus.read(Space::Memory, 0x1001, 4).wait(), 0xffff_0101);
    assert_eq!(
        bus.read(Space::Memory, 0x1000, 4).wait(),
        0xffff_0101,
        "three bytes are no width to ask for"
    );
    assert_eq!(bus.write(Space::Memory, 0x1002, 8, 0x8877_6655_4433_2211).wait(), 0);
    assert_eq!(one.asked(), [(1, 2, None), (0, 2, None), (2, 1, Some(0x11))]);
    assert_eq!(two.asked(), []);
}

#[test]
fn the_last_byte_of_a_space_can_be_claimed() {
    let (bus, one) = (Bus::new(), Probe::new(1));
    bus.insert(Space::Memory, u64::MAX, 1, one.clone()).unwrap();
    bus.insert(Space::Port, 0xffff, 1, one).unwrap();
    assert_eq!(bus.read(Space::Memory, u64::MAX, 8).wait(), 0xffff_ffff_ffff_ff01);
    assert_eq!(bus.read(Space::Port, 0xffff, 4).wait(), 0xffff_ff01);
}

#[test]
fn an_overlap_names_both_and_changes_nothing() {
    let bus = Bus::new();
    bus.insert(Space::Port, 0x100, 0x10, Probe::new(1)).unwrap();
    for (start, length) in [(0x100, 0x10), (0xf8, 9), (0x10f, 1), (0x104, 4), (0, 0x1000)] {
        let error = bus.insert(Space::Port, start, length, Probe::new(2)).unwrap_err();
        let claim = |name: &str, start, length| Claim {
            name: name.to_owned(),
            space: Space::Port,
            start,
            last: start + (length - 1),
        };
        assert_eq!(
            error,
            BusError::Overlap {
                new: claim("two", start, length),
                old: claim("one", 0x100, 0x10)
            }
        );
        assert!(error.to_string().contains("two at port") && error.to_string().contains("one at port 0x100..=0x10f"));
    }
    bus.insert(Space::Port, 0xf8, 8, Probe::new(2)).unwrap();
    bus.insert(Space::Port, 0x110, 1, Probe::new(3)).unwrap();
    assert_eq!(bus.claims().len(), 3);
}

#[test]
fn what_is_no_range_is_refused() {
    let bus = Bus::new();
    for (space, start, length) in [
        (Space::Port, 0x100, 0),
        (Space::Port, 0xffff, 2),
        (Space::Port, 0x1_0000, 1),
        (Space::Memory, u64::MAX, 2),
    ] {
        let refused = bus.insert(space, start, length, Probe::new(1));
        assert!(
            matches!(refused, Err(BusError::NotARange { .. })),
            "{space} {start:#x} {length:#x}"
        );
    }
    assert!(
        bus.insert_part(Space::Memory, 0, 2, Probe::new(1), u64::MAX - 1)
            .is_err()
    );
    assert_eq!(bus.claims(), []);
}

#[test]
fn a_device_scattered_over_several_ranges_is_one_device() {
    let (bus, one) = (Bus::new(), Probe::new(1));
    bus.insert_part(Space::Port, 0x60, 1, one.clone(), 0).unwrap();
    bus.insert_part(Space::Port, 0x64, 1, one.clone(), 4).unwrap();
    let _ = (
        bus.read(Space::Port, 0x60, 1),
        bus.read(Space::Port, 0x64, 1),
        bus.write(Space::Port, 0x64, 1, 0),
    );
    assert_eq!(one.asked(), [(0, 1, None), (4, 1, None), (4, 1, Some(0))]);
    let expected = BTreeMap::from([("reads", 2), ("writes", 1), ("late", 0), ("lost", 0), ("number", 1)]);
    assert_eq!(bus.counters()["one"], expected);
}

#[test]
fn a_removed_device_is_no_longer_asked() {
    let (bus, one) = (Bus::new(), Probe::new(1));
    bus.insert(Space::Port, 0x100, 8, one).unwrap();
    assert!(bus.remove(Space::Port, 0x101).is_none());
    assert_eq!(bus.remove(Space::Port, 0x100).unwrap().name(), "one");
    assert_eq!(bus.read(Space::Port, 0x100, 1).wait(), 0xff);
    bus.insert(Space::Port, 0x104, 8, Probe::new(2)).unwrap();
}

#[test]
fn counters_do_not_go_back_while_a_device_moves_and_go_with_it() {
    let (bus, one) = (Bus::new(), Probe::new(1));
    let reads = || bus.counters().get("one").map(|figures| figures["reads"]);
    bus.insert(Space::Port, 0x100, 8, one.clone()).unwrap();
    assert!(bus.insert(Space::Port, 0x104, 8, Probe::new(2)).is_err());
    assert!(!bus.counters().contains_key("two"), "nothing has changed");
    assert_eq!(bus.read(Space::Port, 0x100, 1).wait(), 1);
    bus.remove(Space::Port, 0x100);
    assert_eq!(reads(), Some(1), "it is there, and answers nowhere");
    bus.insert(Space::Memory, 0x1000, 8, one.clone()).unwrap();
    assert_eq!(bus.read(Space::Memory, 0x1000, 1).wait(), 1);
    assert_eq!(reads(), Some(2));
    bus.remove(Space::Memory, 0x1000);
    drop(one);
    assert_eq!(reads(), None);
    bus.insert(Space::Port, 0x100, 8, Probe::new(1)).unwrap();
    assert_eq!(reads(), Some(0), "another one of the same name");
}

#[test]
fn a_device_may_move_itself_within_an_access() {
    struct Mover {
        bus: Weak<Bus>,
        moves: AtomicUsize,
    }
    impl Device for Mover {
        fn name(&self) -> &str {
            "mover"
        }
        fn read(&self, _offset: u64, _size: u8) -> Response {
            Response::Done(self.moves.load(Relaxed) as u64)
        }
        fn write(&self, _offset: u64, _size: u8, value: u64) -> Response {
            self.moves.fetch_add(1, Relaxed);
            let bus = self.bus.upgrade().unwrap();
            let this = bus.remove(Space::Memory, 0).unwrap();
            bus.insert(Space::Memory, value, 0x10, this).unwrap();
            Response::Done(0)
        }
    }
    let bus = Arc::new(Bus::new());
    let mover = Mover {
        bus: Arc::downgrade(&bus),
        moves: AtomicUsize::new(0),
    };
    bus.insert(Space::Memory, 0, 0x10, Arc::new(mover)).unwrap();
    let _ = bus.write(Space::Memory, 0, 8, 0x5000);
    assert_eq!(bus.read(Space::Memory, 0, 1).wait(), 0xff);
    assert_eq!(bus.read(Space::Memory, 0x5000, 1).wait(), 1);
}

#[test]
fn a_late_answer_comes_from_another_thread() {
    let bus = Bus::new();
    let inbox = oracle(&bus);
    let ticket = later(bus.read(Space::Memory, 0x1000, 4));
    assert_eq!(ticket.try_take(), None);
    assert_eq!(ticket.wait_timeout(Duration::ZERO), None);
    let answering = thread::spawn(move || inbox.recv().unwrap().complete(0x1122_3344_5566_7788));
    assert_eq!(ticket.wait(), 0x5566_7788, "four bytes were asked for");
    assert_eq!(ticket.try_take(), Some(0x5566_7788), "the answer stays");
    assert_eq!(ticket.wait_timeout(Duration::ZERO), Some(0x5566_7788));
    answering.join().unwrap();
    assert_eq!(
        bus.counters()["oracle"],
        BTreeMap::from([("reads", 1), ("writes", 0), ("late", 1), ("lost", 0)])
    );
}

#[test]
fn a_late_answer_is_ones_beyond_the_range() {
    let bus = Bus::new();
    let inbox = oracle(&bus);
    let ticket = later(bus.read(Space::Memory, 0x100e, 4));
    inbox.recv().unwrap().complete(0x1122_3344);
    assert_eq!(ticket.wait(), 0xffff_3344);
}

#[test]
fn a_late_write_is_answered_with_0() {
    let bus = Bus::new();
    let inbox = oracle(&bus);
    let ticket = later(bus.write(Space::Memory, 0x1000, 4, 7));
    inbox.recv().unwrap().complete(0x1122_3344);
    assert_eq!(ticket.try_take(), Some(0));
}

#[test]
fn a_dropped_completion_answers_all_ones() {
    let bus = Bus::new();
    let inbox = oracle(&bus);
    let (read, write) = (
        later(bus.read(Space::Memory, 0x1000, 2)),
        later(bus.write(Space::Memory, 0x1000, 2, 0)),
    );
    drop(inbox);
    assert_eq!(read.try_take(), Some(0xffff));
    assert_eq!(write.try_take(), Some(0));
}

#[test]
fn a_device_whose_other_end_is_gone_answers_all_ones() {
    let bus = Bus::new();
    drop(oracle(&bus));
    assert_eq!(bus.read(Space::Memory, 0x1000, 8).wait(), u64::MAX);
}

#[test]
fn a_completion_that_unwinds_answers_all_ones() {
    let (ticket, completion) = Ticket::pair();
    let died = thread::spawn(move || {
        let _owed = completion;
        std::panic::resume_unwind(Box::new("a device dies"));
    });
    assert_eq!(ticket.wait(), u64::MAX);
    assert!(died.join().is_err());
}

#[test]
fn the_waker_runs_once_when_the_answer_is_there() {
    let (ticket, completion) = Ticket::pair();
    let (woken, wakes) = mpsc::channel();
    let replaced = woken.clone();
    ticket.on_ready(move || replaced.send("replaced").unwrap());
    ticket.on_ready(move || woken.send("set last").unwrap());
    assert!(wakes.try_recv().is_err());
    completion.complete(1);
    assert_eq!(wakes.iter().collect::<Vec<_>>(), ["set last"]);
}

#[test]
fn a_waker_set_after_the_answer_runs_at_once_and_may_ask_for_it() {
    let (ticket, completion) = Ticket::pair();
    completion.complete(5);
    let ticket = Arc::new(ticket);
    let (woken, wakes) = mpsc::channel();
    let asked = Arc::clone(&ticket);
    ticket.on_ready(move || woken.send(asked.try_take()).unwrap());
    assert_eq!(wakes.try_recv(), Ok(Some(5)));
}

#[test]
fn nobody_needs_to_wait_for_an_answer() {
    let (ticket, completion) = Ticket::pair();
    drop(ticket);
    completion.complete(1);
}

#[test]
fn every_waiter_finds_the_answer_however_threads_meet() {
    for round in 0..200 {
        let (ticket, completion) = Ticket::pair();
        let (woken, wakes) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| completion.complete(round));
            scope.spawn(|| ticket.on_ready(move || woken.send(()).unwrap()));
            scope.spawn(|| assert_eq!(ticket.wait(), round));
            scope.spawn(|| assert_eq!(ticket.wait_timeout(Duration::MAX), Some(round)));
        });
        assert_eq!(wakes.iter().count(), 1);
    }
}

proptest! {
    /// The model is a table with an owner for each of 64 addresses.
    #[test]
    fn lookups_agree_with_a_table(
        inserts in prop::collection::vec((0_u64..64, 0_u64..20, any::<bool>()), 0..20),
        address in 0_u64..70,
        size in prop::sample::select(vec![1_u8, 2, 4, 8]),
    ) {
        let bus = Bus::new();
        let mut table = [0_u8; 100];
        let mut probes = Vec::new();
        for (number, (start, length, remove)) in (1..).zip(inserts) {
            let probe = Probe::new(number);
            let wanted = &mut table[start as usize..(start + length) as usize];
            let free = !wanted.is_empty() && wanted.iter().all(|owner| *owner == 0);
            prop_assert_eq!(bus.insert(Space::Memory, start, length, probe.clone()).is_ok(), free);
            if free && remove {
                prop_assert!(bus.remove(Space::Memory, start).is_some());
            } else if free {
                wanted.fill(number);
            }
            probes.push(probe);
        }
        // What follows counts only if the owner's bytes from here make a width; else the next smaller width does.
        let owner = table[address as usize];
        let mine = table[address as usize..].iter().take_while(|other| owner != 0 && **other == owner).count();
        let inside = [8, 4, 2, 1, 0].into_iter().find(|width| *width <= mine.min(size.into())).unwrap();
        let mut expected = [0_u8; 8];
        expected[..size.into()].fill(0xff);
        expected[..inside].fill(owner);
        prop_assert_eq!(bus.read(Space::Memory, address, size).wait(), u64::from_le_bytes(expected));
        for probe in probes {
            let asked = probe.asked();
            prop_assert_eq!(asked.len(), usize::from(probe.number == owner));
            prop_assert!(asked.iter().all(|(_, width, _)| usize::from(*width) == inside));
        }
    }

    #[test]
    fn no_access_of_any_kind_panics(space: bool, address: u64, size: u8, value: u64, start: u64, length: u64) {
        let bus = Bus::new();
        let space = if space { Space::Port } else { Space::Memory };
        let _ = bus.insert(space, start, length, Probe::new(3));
        for address in [address, start, start.wrapping_add(length).wrapping_sub(1)] {
            let _ = bus.read(space, address, size).wait();
            let _ = bus.write(space, address, size, value).wait();
        }
    }
}

#[test]
fn a_dropped_completion_answers_ones_and_the_ticket_says_that_it_is_lost() {
    let bus = Bus::new();
    let inbox = oracle(&bus);
    let (given, lost) = (
        later(bus.read(Space::Memory, 0x1000, 2)),
        later(bus.read(Space::Memory, 0x1000, 2)),
    );
    assert!(!given.is_lost(), "owed");
    inbox.recv().unwrap().complete(u64::MAX);
    drop(inbox.recv().unwrap());
    assert_eq!((given.try_take(), given.is_lost()), (Some(0xffff), false));
    assert_eq!((lost.try_take(), lost.is_lost()), (Some(0xffff), true));
    assert_eq!(bus.lost(Space::Memory, 0x1000), Some("oracle".to_owned()));
    assert_eq!(bus.lost(Space::Memory, 0x1008), None, "not the first");
    assert_eq!(bus.lost(Space::Memory, 0x2000), None, "nobody is there any more");
    assert_eq!(bus.counters()["oracle"]["lost"], 2);
}

#[test]
fn a_completion_knows_whether_somebody_waits() {
    let (ticket, completion) = Ticket::pair();
    assert!(completion.is_awaited());
    let narrowed = ticket.masked(0xff, 0);
    assert!(completion.is_awaited());
    drop(narrowed);
    assert!(!completion.is_awaited());
}

#[test]
fn an_access_from_before_a_restore_is_not_made_again() {
    let (bus, one) = (Bus::new(), Probe::new(1));
    bus.insert(Space::Port, 0x100, 8, one.clone()).unwrap();
    for (address, ones) in [(0x100, 0xffff), (0x200, 0xffff)] {
        assert_eq!(
            bus.resume(Space::Port, address, 2, None).wait(),
            ones,
            "it has forgotten"
        );
        assert_eq!(bus.resume(Space::Port, address, 2, Some(7)).wait(), 0);
    }
    assert_eq!(one.asked(), []);
    let counters = bus.counters();
    assert_eq!((counters["one"]["reads"], counters["one"]["writes"]), (0, 0));
}

#[test]
fn a_device_is_wrapped_in_all_of_its_ranges_at_once() {
    let (bus, one, two) = (Bus::new(), Probe::new(1), Probe::new(2));
    bus.insert(Space::Port, 0x60, 1, one.clone()).unwrap();
    bus.insert_part(Space::Memory, 0x64, 1, one.clone(), 4).unwrap();
    assert_eq!(bus.read(Space::Memory, 0x64, 1).wait(), 1);
    assert!(!bus.wrap("nobody", |_| unreachable!()));
    /// Says what it stands before.
    struct Before(Arc<dyn Device>);
    impl Device for Before {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn read(&self, offset: u64, _size: u8) -> Response {
            Response::Done(0x40 + offset)
        }
        fn write(&self, offset: u64, size: u8, value: u64) -> Response {
            self.0.write(offset, size, value)
        }
    }
    assert!(bus.wrap("one", |device| Arc::new(Before(device))));
    bus.insert(Space::Port, 0x61, 1, two).unwrap();
    let read = [(Space::Port, 0x60), (Space::Memory, 0x64), (Space::Port, 0x61)]
        .map(|(space, address)| bus.read(space, address, 1).wait());
    assert_eq!(read, [0x40, 0x44, 2]);
    assert_eq!(bus.counters()["one"]["reads"], 3, "counted on");
}
