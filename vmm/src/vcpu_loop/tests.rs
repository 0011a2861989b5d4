use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use reprise_devices::{Completion, Device, Response, Space, Ticket};
use reprise_hypervisor::{Access, RequestId};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::Parked;
use crate::machine::double::{Act, DoubleVm, Record, Scripted};
use crate::machine::gate::Gate;

/// Answers the port number at port 1, and late at port 2. Port 3 counts: each third access is late, and the others answer
/// with their number.
struct Slow {
    asked: Mutex<Sender<Completion>>,
    seen: Mutex<Vec<Option<u64>>>,
}

impl Device for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn read(&self, offset: u64, _size: u8) -> Response {
        self.see(offset, None)
    }

    fn write(&self, offset: u64, _size: u8, value: u64) -> Response {
        self.see(offset, Some(value))
    }

    fn resume(&self, offset: u64, size: u8, write: Option<u64>) -> Response {
        assert_eq!(size, 1);
        match (offset, write) {
            (2 | 3, None) => Response::Done(0x33),
            (3, Some(0x62)) => Response::Done(0),
            other => panic!("{other:?}"),
        }
    }
}

impl Slow {
    fn see(&self, offset: u64, write: Option<u64>) -> Response {
        let mut seen = self.seen.lock().unwrap();
        seen.push(write);
        match offset {
            1 => Response::Done(0x11),
            3 if !seen.len().is_multiple_of(3) => Response::Done(seen.len() as u64),
            _ => {
                let (ticket, completion) = Ticket::pair();
                self.asked.lock().unwrap().send(completion).unwrap();
                Response::Later(ticket)
            }
        }
    }
}

/// As long as it takes.
const LONG: Duration = Duration::from_secs(60);

/// A loop with a device behind it.
struct World {
    bus: Arc<Bus>,
    device: Arc<Slow>,
    memory: GuestMemory,
    vm: Arc<DoubleVm>,
    questions: Receiver<Completion>,
    gate: Arc<Gate>,
    record: Arc<Record>,
    vcpu: Option<Scripted>,
}

impl World {
    fn new(script: &[Act]) -> Self {
        let (asked, questions) = channel();
        let bus = Bus::new();
        let device = Arc::new(Slow {
            asked: Mutex::new(asked),
            seen: Mutex::default(),
        });
        bus.insert(Space::Port, 0, 8, device.clone()).unwrap();
        let gate = Gate::new(1);
        let (vcpu, record) = Scripted::new(script);
        vcpu.on_call(gate.call(0));
        gate.open();
        Self {
            bus: Arc::new(bus),
            device,
            memory: GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap(),
            vm: Arc::default(),
            questions,
            gate,
            record,
            vcpu: Some(vcpu),
        }
    }

    fn start(&mut self) -> JoinHandle<Ended> {
        self.start_telling(Events::default())
    }

    fn start_telling(&mut self, events: Events) -> JoinHandle<Ended> {
        let (bus, seat, mut vcpu) = (Arc::clone(&self.bus), self.gate.seat(0), self.vcpu.take().unwrap());
        let (memory, vm) = (self.memory.clone(), Arc::clone(&self.vm));
        thread::spawn(move || {
            let outside = Outside {
                bus: &bus,
                memory: &memory,
                vm: &*vm,
                events: &events,
            };
            let ended = run(&mut vcpu, outside, &seat);
            seat.publish(vcpu.counters());
            ended
        })
    }

    /// The device's end of the question that the vCPU asks next.
    fn question(&self) -> Completion {
        self.questions.recv_timeout(LONG).unwrap()
    }

    fn counter(&self, name: &str) -> u64 {
        let told = self.gate.counters(|| (), Duration::ZERO);
        told[0].iter().find(|(counter, _)| *counter == name).unwrap().1
    }
}

#[test]
fn a_prompt_answer_is_the_next_entry() {
    let mut world = World::new(&[Act::Read(1), Act::Write(1, 5), Act::Shutdown]);
    assert!(matches!(world.start().join().unwrap(), Ended::Shutdown));
    assert_eq!(world.record.answers(), [0x11, 0], "the value read; nothing for a write");
    assert_eq!((world.counter("parked"), world.counter("parked_us")), (0, 0));
}

#[test]
fn what_the_vcpu_cannot_survive_ends_the_loop() {
    assert!(matches!(
        World::new(&[Act::Fail]).start().join().unwrap(),
        Ended::Failed(VcpuError::AnswerOwed { .. })
    ));
}

#[test]
fn rule_21_a_parked_vcpu_is_held_and_goes_on_waiting() {
    let mut world = World::new(&[Act::Read(2), Act::Shutdown]);
    let running = world.start();
    let completion = world.question();
    world.gate.hold();
    assert_eq!(
        world.gate.wait_held(LONG),
        Ok(()),
        "without a kick: it is inside no guest"
    );
    completion.complete(0x22);
    assert_eq!(world.gate.wait_held(LONG), Ok(()));
    assert!(world.record.answers().is_empty(), "held");
    world.gate.open();
    assert!(matches!(running.join().unwrap(), Ended::Shutdown));
    assert_eq!(world.record.answers(), [0x22]);
    assert_eq!(world.counter("parked"), 1);
}

#[test]
fn rule_21_a_kick_and_a_call_for_nothing_do_not_end_the_wait() {
    let mut world = World::new(&[Act::Read(2), Act::Shutdown]);
    let running = world.start();
    let completion = world.question();
    for _ in 0..10 {
        world.record.call();
        reprise_hypervisor::Kick::kick(&*world.record);
    }
    assert!(world.record.answers().is_empty());
    completion.complete(0x22);
    running.join().unwrap();
    assert_eq!(world.record.answers(), [0x22]);
    assert_eq!(world.counter("stale_answers"), 0);
}

#[test]
fn rule_20_a_wait_that_is_cancelled_ends_at_once_and_the_answer_is_counted_as_stale() {
    let mut world = World::new(&[Act::Read(2), Act::Read(1), Act::Shutdown]);
    let running = world.start();
    let completion = world.question();
    world.record.cancel();
    assert!(
        matches!(running.join().unwrap(), Ended::Shutdown),
        "the device is silent"
    );
    assert_eq!(world.record.answers(), [0x11]);
    assert_eq!(world.counter("stale_answers"), 0, "it has not come yet");
    completion.complete(0x22);
    assert_eq!(world.counter("stale_answers"), 1);
    assert_eq!(world.record.answers(), [0x11]);
}

#[test]
fn rule_20_a_cancelled_wait_goes_on_only_when_the_machine_does() {
    let mut world = World::new(&[Act::Read(2), Act::Shutdown]);
    let running = world.start();
    let _completion = world.question();
    world.gate.hold();
    world.record.cancel();
    assert_eq!(world.gate.wait_held(LONG), Ok(()));
    assert_eq!(world.record.entries().len(), 1, "not entered again");
    world.gate.open();
    running.join().unwrap();
}

#[test]
fn a_parked_vcpu_is_counted_while_it_waits() {
    let mut world = World::new(&[Act::Read(2), Act::Shutdown]);
    let running = world.start();
    let completion = world.question();
    let mut before = 0;
    for _ in 0..3 {
        // Time goes on, however slowly.
        while world.counter("parked") == 0 || world.counter("parked_us") <= before {
            thread::yield_now();
        }
        before = world.counter("parked_us");
    }
    assert_eq!((world.counter("parked"), world.counter("entries")), (1, 1));
    world.gate.hold();
    completion.complete(1);
    let answered = loop {
        let figure = world.counter("parked_us");
        thread::sleep(Duration::from_millis(2));
        if world.counter("parked_us") == figure {
            break figure;
        }
    };
    world.gate.open();
    running.join().unwrap();
    assert_eq!(world.counter("parked_us"), answered, "until the answer was there");
}

#[test]
fn rule_23_what_a_parked_vcpu_waits_for_can_be_saved_with_the_answer_if_it_is_there() {
    let mut world = World::new(&[Act::Read(2), Act::Shutdown]);
    let running = world.start();
    let completion = world.question();
    world.gate.hold();
    let parked = loop {
        if let Some(parked) = world.gate.parked(0) {
            break parked;
        }
        thread::yield_now();
    };
    assert_eq!(
        (parked.request.address, parked.done, parked.access),
        (2, 0, Access::Read)
    );
    assert_eq!(parked.answer, None);
    completion.complete(0x122);
    let answered = Parked {
        answer: Some(0x22),
        ..parked
    };
    assert_eq!(world.gate.parked(0), Some(answered), "at once, and no wider than asked");
    world.gate.open();
    running.join().unwrap();
    assert_eq!(world.gate.parked(0), None);

    for (restored, expected) in [(Some(answered), 0x22), (Some(parked), 0x33), (None, 0x33)] {
        let mut world = World::new(&[Act::Shutdown]);
        world.vcpu.as_mut().unwrap().restore_waiting(parked.request);
        if let Some(restored) = restored {
            world.gate.restore(0, restored);
            assert_eq!(world.gate.parked(0), Some(restored), "saved again before it runs");
        }
        assert!(matches!(world.start().join().unwrap(), Ended::Shutdown));
        assert_eq!(world.record.answers(), [expected]);
        assert!(world.questions.try_recv().is_err(), "not asked again");
        assert_eq!(world.gate.parked(0), None);
    }

    let mut world = World::new(&[Act::Shutdown]);
    world.vcpu.as_mut().unwrap().restore_waiting(parked.request);
    let mut other = answered;
    other.request.id = RequestId(0);
    world.gate.restore(0, other);
    world.start().join().unwrap();
    assert_eq!(world.record.answers(), [0x33], "the answer to another request is none");
}

#[test]
fn a_device_that_never_answers_does_not_keep_a_machine_from_stopping() {
    let mut world = World::new(&[Act::Read(2)]);
    let running = world.start();
    let completion = world.question();
    world.gate.stop();
    assert!(matches!(running.join().unwrap(), Ended::Stopped));
    completion.complete(0);
}

#[test]
fn rule_22_a_device_that_drops_its_ticket_has_answered_all_ones_and_is_told_of_once() {
    use std::io::{BufRead, BufReader};
    let mut world = World::new(&[Act::Read(2), Act::Write(2, 1), Act::Read(1), Act::Shutdown]);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let events = Events::to(ours).unwrap();
    let running = world.start_telling(events.clone());
    drop(world.question());
    drop(world.question());
    assert!(matches!(running.join().unwrap(), Ended::Shutdown), "the guest goes on");
    assert_eq!(world.record.answers(), [0xff, 0, 0x11]);
    assert_eq!(world.bus.counters()["slow"]["lost"], 2);
    events.close();
    let lines: Vec<serde_json::Value> = BufReader::new(theirs)
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (&lines[0]["source"], &lines[0]["event"]),
        (&"device".into(), &"gone".into())
    );
    assert_eq!(lines[0]["properties"]["device"], "slow");
}

#[test]
fn a_batch_from_a_prompt_device_is_moved_at_once_and_told_of_once() {
    let mut world = World::new(&[Act::ReadTo(1, 0x100, 4), Act::WriteFrom(1, 0x200, 3), Act::Shutdown]);
    world.memory.write_slice(b"abc", GuestAddress(0x200)).unwrap();
    world.start().join().unwrap();
    assert_eq!(world.record.answers(), [4, 3], "how many were moved");
    let mut read = [0; 5];
    world.memory.read_slice(&mut read, GuestAddress(0x100)).unwrap();
    assert_eq!(read, [0x11, 0x11, 0x11, 0x11, 0]);
    let seen = [None, None, None, None, Some(0x61), Some(0x62), Some(0x63)];
    assert_eq!(*world.device.seen.lock().unwrap(), seen);
    assert_eq!(
        *world.vm.written.lock().unwrap(),
        [(0x100, 4)],
        "nothing for what was read from memory"
    );
}

#[test]
fn a_batch_is_answered_short_after_an_element_that_comes_late() {
    let mut world = World::new(&[Act::ReadTo(3, 0x100, 5), Act::Shutdown]);
    let running = world.start();
    let completion = world.question();
    world.gate.hold();
    // The question comes before the vCPU parks.
    let parked = loop {
        if let Some(parked) = world.gate.parked(0) {
            break parked;
        }
        thread::yield_now();
    };
    assert_eq!((parked.done, parked.access), (2, Access::Read));
    assert_eq!(parked.request.access, Access::ReadTo { guest: 0x100, count: 5 });
    assert_eq!(*world.vm.written.lock().unwrap(), [(0x100, 2)], "told before it waits");
    completion.complete(0x77);
    world.gate.open();
    running.join().unwrap();
    assert_eq!(world.record.answers(), [3]);
    let mut read = [0; 4];
    world.memory.read_slice(&mut read, GuestAddress(0x100)).unwrap();
    assert_eq!(read, [1, 2, 0x77, 0]);
    assert_eq!(*world.vm.written.lock().unwrap(), [(0x100, 2), (0x102, 1)]);
    assert_eq!(world.device.seen.lock().unwrap().len(), 3);
}

#[test]
fn rule_23_a_batch_that_was_saved_half_done_goes_on_with_the_element_it_waited_for() {
    for (access, under_way, answer) in [
        (Access::ReadTo { guest: 0x100, count: 5 }, Access::Read, None),
        (Access::ReadTo { guest: 0x100, count: 5 }, Access::Read, Some(0x44)),
        (Access::WriteFrom { guest: 0x100, count: 5 }, Access::Write(0x62), None),
    ] {
        let request = IoRequest {
            id: RequestId(9),
            space: reprise_hypervisor::Space::Port,
            address: 3,
            size: 1,
            access,
        };
        let mut world = World::new(&[Act::Shutdown]);
        world.vcpu.as_mut().unwrap().restore_waiting(request);
        let parked = Parked {
            request,
            done: 1,
            access: under_way,
            answer,
        };
        world.gate.restore(0, parked);
        // What lies there by now is not what was written.
        world.memory.write_slice(b"zzzzz", GuestAddress(0x100)).unwrap();
        world.start().join().unwrap();
        assert_eq!(world.record.answers(), [2], "the one done before, and this one");
        let mut memory = [0; 5];
        world.memory.read_slice(&mut memory, GuestAddress(0x100)).unwrap();
        let element = match (under_way, answer) {
            (Access::Write(_), _) => b'z',
            (_, Some(_)) => 0x44,
            (_, None) => 0x33,
        };
        assert_eq!(memory, [b'z', element, b'z', b'z', b'z']);
        assert!(world.device.seen.lock().unwrap().is_empty(), "not asked again");
    }
}

#[test]
fn a_state_that_was_tampered_with_moves_nothing_outside() {
    let request = IoRequest {
        id: RequestId(9),
        space: reprise_hypervisor::Space::Memory,
        address: u64::MAX,
        size: 8,
        access: Access::ReadTo {
            guest: u64::MAX - 8,
            count: u32::MAX,
        },
    };
    for (done, moved) in [(u32::MAX, 0), (7, 8)] {
        let mut world = World::new(&[Act::Shutdown]);
        world.vcpu.as_mut().unwrap().restore_waiting(request);
        world.gate.restore(
            0,
            Parked {
                request,
                done,
                access: request.access,
                answer: None,
            },
        );
        assert!(matches!(world.start().join().unwrap(), Ended::Shutdown));
        assert_eq!(world.record.answers(), [moved]);
    }
}
