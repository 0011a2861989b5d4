use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::{Bus, Completion, Space};

/// As long as it takes.
const LONG: Duration = Duration::from_secs(60);
const SOON: Lateness = Lateness::Within {
    min: Duration::ZERO,
    max: Duration::from_micros(200),
};

/// Answers with the number of accesses so far, and remembers them.
#[derive(Default)]
struct Counting {
    seen: Mutex<Vec<Access>>,
}

impl Counting {
    fn see(&self, access: Access) -> Response {
        let mut seen = self.seen.lock().unwrap();
        seen.push(access);
        Response::Done(seen.len() as u64)
    }

    fn seen(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Device for Counting {
    fn name(&self) -> &str {
        "counting"
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        self.see(Access {
            offset,
            size,
            write: None,
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        self.see(Access {
            offset,
            size,
            write: Some(value),
        })
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("seen", self.seen() as u64)]
    }
}

/// Is late itself.
struct Slow(Mutex<Sender<Completion>>);

impl Device for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn read(&self, _offset: u64, _size: u8) -> Response {
        let (ticket, completion) = Ticket::pair();
        self.0.lock().unwrap().send(completion).unwrap();
        Response::Later(ticket)
    }

    fn write(&self, offset: u64, size: u8, _value: u64) -> Response {
        self.read(offset, size)
    }

    fn resume(&self, _offset: u64, _size: u8, _write: Option<u64>) -> Response {
        Response::Done(0x7e)
    }
}

fn slow() -> (Arc<Slow>, Receiver<Completion>) {
    let (asked, questions) = channel();
    (Arc::new(Slow(Mutex::new(asked))), questions)
}

fn delay(lateness: Lateness) -> Delay {
    Delay {
        lateness,
        after: 0,
        seed: 7,
    }
}

fn later(response: Response) -> Ticket {
    match response {
        Response::Later(ticket) => ticket,
        Response::Done(value) => panic!("answered {value:#x} at once"),
    }
}

#[test]
fn the_device_is_asked_once_and_at_once_and_its_answer_comes_later() {
    let (delays, device) = (Delays::new().unwrap(), Arc::new(Counting::default()));
    let delayed = delays.wrap(device.clone(), delay(SOON));
    delays.set_paused(true);
    let read = later(delayed.read(3, 2));
    let write = later(delayed.write(4, 1, 0xab));
    assert_eq!(device.seen(), 2, "at once");
    assert_eq!((read.try_take(), write.try_take()), (None, None), "paused");
    delays.set_paused(false);
    assert_eq!(read.wait_timeout(LONG), Some(1));
    assert_eq!(write.wait_timeout(LONG), Some(2));
    let expected = [(3, 2, None), (4, 1, Some(0xab))].map(|(offset, size, write)| Access { offset, size, write });
    assert_eq!(*device.seen.lock().unwrap(), expected);
    assert_eq!((delayed.name(), delayed.counters()), ("counting", vec![("seen", 2)]));
}

#[test]
fn answers_come_in_the_order_of_their_times_and_not_before() {
    let (delays, device) = (Delays::new().unwrap(), Arc::new(Counting::default()));
    let within = |ms| Lateness::Within {
        min: Duration::from_millis(ms),
        max: Duration::from_millis(ms),
    };
    let (slow, fast) = (
        delays.wrap(device.clone(), delay(within(60))),
        delays.wrap(device, delay(within(20))),
    );
    let begin = std::time::Instant::now();
    let (order, arrivals) = channel();
    for (name, device) in [("slow", slow), ("fast", fast)] {
        let order = order.clone();
        let ticket = later(device.read(0, 1));
        ticket.on_ready(move || order.send((name, begin.elapsed())).unwrap());
    }
    let (first, second) = (
        arrivals.recv_timeout(LONG).unwrap(),
        arrivals.recv_timeout(LONG).unwrap(),
    );
    assert!(first.1 >= Duration::from_millis(20) && second.1 >= Duration::from_millis(60));
    assert_eq!((first.0, second.0), ("fast", "slow"));
}

#[test]
fn the_same_seed_gives_the_same_times_and_each_device_has_its_own() {
    let draw = |name: &str, seed: u64| -> Vec<Duration> {
        let timer = Timer::default();
        let slot = timer.enrol(
            name,
            Delay {
                seed,
                ..delay(Lateness::Within {
                    min: Duration::from_micros(100),
                    max: Duration::from_micros(500),
                })
            },
        );
        (0..1000)
            .map(|_| match timer.draw(slot) {
                Drawn::Late(time) => time,
                _ => panic!(),
            })
            .collect()
    };
    let times = draw("serial", 7);
    assert_eq!(times, draw("serial", 7));
    assert_ne!(times, draw("serial", 8));
    assert_ne!(times, draw("rtc", 7));
    let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    assert!(*least >= Duration::from_micros(100) && *most <= Duration::from_micros(500));
    assert!(
        *least < Duration::from_micros(120) && *most > Duration::from_micros(480),
        "over the whole range"
    );
}

#[test]
fn a_silent_device_was_asked_and_never_answers() {
    let (delays, device) = (Delays::new().unwrap(), Arc::new(Counting::default()));
    let delayed = delays.wrap(
        device.clone(),
        Delay {
            after: 1,
            ..delay(Lateness::Never)
        },
    );
    assert!(matches!(delayed.read(0, 1), Response::Done(1)), "prompt before that");
    let ticket = later(delayed.read(0, 1));
    assert_eq!(ticket.wait_timeout(Duration::from_millis(20)), None);
    assert_eq!(device.seen(), 2);
    drop(delays);
    assert!(ticket.is_lost(), "nobody is left who could answer");
    assert!(matches!(delayed.read(0, 1), Response::Done(3)), "prompt after that");
}

#[test]
fn a_device_that_is_gone_is_not_asked_and_its_ticket_is_lost() {
    let (delays, device) = (Delays::new().unwrap(), Arc::new(Counting::default()));
    let ticket = later(delays.wrap(device.clone(), delay(Lateness::Lost)).read(0, 1));
    assert_eq!((ticket.try_take(), ticket.is_lost()), (Some(u64::MAX), true));
    assert_eq!(device.seen(), 0);
}

#[test]
fn a_device_that_is_late_itself_is_later_and_one_that_goes_is_gone_at_once() {
    let delays = Delays::new().unwrap();
    let (device, questions) = slow();
    let delayed = delays.wrap(device, delay(SOON));
    let ticket = later(delayed.read(0, 1));
    assert_eq!(ticket.try_take(), None);
    questions.recv().unwrap().complete(0x42);
    assert_eq!(ticket.wait_timeout(LONG), Some(0x42));
    assert!(!ticket.is_lost());
    let ticket = later(delayed.read(0, 1));
    drop(questions.recv().unwrap());
    assert!(ticket.is_lost());
}

#[test]
fn rule_23_what_is_owed_is_saved_and_answered_elsewhere_without_asking_again() {
    let delays = Delays::new().unwrap();
    let device = Arc::new(Counting::default());
    let delayed = delays.wrap(device.clone(), delay(SOON));
    let (late, questions) = slow();
    let later_still = delays.wrap(late, delay(Lateness::Never));
    delays.set_paused(true);
    let _read = later(delayed.read(3, 2));
    let _write = later(delayed.write(4, 1, 0xab));
    drop(later(delayed.read(5, 1)));
    let _slow = later(later_still.read(0, 4));
    let _question = questions.recv().unwrap();
    let saved = serde_json::to_vec(&delays.state()).unwrap();
    assert_eq!(device.seen(), 3);

    let elsewhere = Delays::new().unwrap();
    let fresh = Arc::new(Counting::default());
    let wrapped = elsewhere.wrap(fresh.clone(), delay(SOON));
    let also = elsewhere.wrap(slow().0, delay(Lateness::Never));
    elsewhere.set_paused(true);
    let state: DelaysState = serde_json::from_slice(&saved).unwrap();
    assert_eq!(state.devices[0].owed.len(), 2, "nobody waits for the third any more");
    elsewhere.restore(state.clone()).unwrap();
    assert_eq!(elsewhere.state(), state, "saved again before anybody asked");

    let bus = Bus::new();
    bus.insert(Space::Port, 0x10, 8, wrapped).unwrap();
    let write = later(bus.resume(Space::Port, 0x14, 1, Some(0xab)));
    let read = later(bus.resume(Space::Port, 0x13, 2, None));
    let resumed = elsewhere.state();
    assert_eq!(resumed.devices[0].owed.len(), 2, "owed again");
    elsewhere.set_paused(false);
    assert_eq!(read.wait_timeout(LONG), Some(1));
    assert_eq!(write.wait_timeout(LONG), Some(0));
    assert_eq!(fresh.seen(), 0, "nothing was asked again");
    assert_eq!(
        bus.resume(Space::Port, 0x13, 2, None).wait(),
        0xffff,
        "once, and it is forgotten"
    );
    assert_eq!(
        later(also.resume(0, 4, None)).try_take(),
        None,
        "silent for ever, there too"
    );
}

#[test]
fn a_state_of_devices_that_are_not_delayed_is_refused_and_changes_nothing() {
    let delays = Delays::new().unwrap();
    let delayed = delays.wrap(Arc::new(Counting::default()), delay(Lateness::Never));
    let ticket = later(delayed.read(0, 1));
    let mut state = delays.state();
    state.devices[0].device = "other".to_owned();
    assert_eq!(
        delays.restore(state),
        Err(NotDelayed {
            device: "other".to_owned()
        })
    );
    assert!(!ticket.is_lost());
    assert_eq!(delays.state().devices[0].owed.len(), 1);
}

#[test]
fn questions_that_nobody_waits_for_do_not_pile_up() {
    let delays = Delays::new().unwrap();
    let delayed = delays.wrap(Arc::new(Counting::default()), delay(Lateness::Never));
    let kept = later(delayed.read(0, 1));
    let (told, stale) = channel();
    for _ in 0..10_000 {
        let told = told.clone();
        later(delayed.read(0, 1)).on_ready(move || {
            let _ = told.send(());
        });
    }
    drop(told);
    assert!(delays.timer.waiting() <= 1024);
    assert_eq!(kept.try_take(), None);
    assert!(stale.try_iter().count() >= 9000, "and their wakers have run");
}
