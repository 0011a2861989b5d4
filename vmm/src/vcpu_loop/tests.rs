use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use reprise_devices::{Completion, Device, Ticket};

use super::*;
use crate::machine::double::{Act, Scripted};
use crate::machine::gate::Gate;

/// Answers the port number at port 1, and late at port 2.
struct Slow(Mutex<Sender<Completion>>);

impl Device for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn read(&self, offset: u64, _size: u8) -> Response {
        if offset == 1 {
            return Response::Done(0x11);
        }
        let (ticket, completion) = Ticket::pair();
        self.0.lock().unwrap().send(completion).unwrap();
        Response::Later(ticket)
    }

    fn write(&self, offset: u64, size: u8, _value: u64) -> Response {
        self.read(offset, size)
    }
}

fn bus() -> (Bus, Receiver<Completion>) {
    let (asked, questions) = channel();
    let bus = Bus::new();
    bus.insert(Space::Port, 0, 8, Arc::new(Slow(Mutex::new(asked))))
        .unwrap();
    (bus, questions)
}

/// As long as it takes.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_prompt_answer_is_the_next_entry() {
    let (bus, _questions) = bus();
    let (mut vcpu, record) = Scripted::new(&[Act::Read(1), Act::Write(1, 5), Act::Shutdown]);
    let gate = Gate::new(1);
    gate.open();
    assert!(matches!(run(&mut vcpu, &bus, &gate.seat(0)), Ended::Shutdown));
    assert_eq!(record.answers(), [0x11, 0], "the value read; nothing for a write");
}

#[test]
fn what_the_vcpu_cannot_survive_ends_the_loop() {
    let (bus, _questions) = bus();
    let gate = Gate::new(1);
    gate.open();
    let (mut vcpu, _) = Scripted::new(&[Act::Fail]);
    assert!(matches!(
        run(&mut vcpu, &bus, &gate.seat(0)),
        Ended::Failed(VcpuError::AnswerOwed { .. })
    ));
}

#[test]
fn a_machine_is_held_while_a_device_owes_an_answer_and_the_answer_waits_for_it_to_go_on() {
    let (bus, questions) = bus();
    let (mut vcpu, record) = Scripted::new(&[Act::Read(2), Act::Shutdown]);
    let gate = Gate::new(1);
    gate.open();
    let seat = gate.seat(0);
    let running = thread::spawn(move || run(&mut vcpu, &bus, &seat));
    let completion = questions.recv().unwrap();
    gate.hold();
    assert_eq!(gate.wait_held(LONG), Ok(()), "without a kick: it is inside no guest");
    completion.complete(0x22);
    assert_eq!(gate.wait_held(LONG), Ok(()));
    assert!(record.answers().is_empty(), "held");
    gate.open();
    assert!(matches!(running.join().unwrap(), Ended::Shutdown));
    assert_eq!(record.answers(), [0x22]);
}

#[test]
fn a_device_that_never_answers_does_not_keep_a_machine_from_stopping() {
    let (bus, questions) = bus();
    let (mut vcpu, _record) = Scripted::new(&[Act::Read(2)]);
    let gate = Gate::new(1);
    gate.open();
    let seat = gate.seat(0);
    let running = thread::spawn(move || run(&mut vcpu, &bus, &seat));
    let completion = questions.recv().unwrap();
    gate.stop();
    assert!(matches!(running.join().unwrap(), Ended::Stopped));
    completion.complete(0);
}

#[test]
fn a_device_that_forgets_its_question_has_answered_all_ones() {
    let (bus, questions) = bus();
    let (mut vcpu, record) = Scripted::new(&[Act::Read(2), Act::Shutdown]);
    let gate = Gate::new(1);
    gate.open();
    let seat = gate.seat(0);
    let running = thread::spawn(move || run(&mut vcpu, &bus, &seat));
    drop(questions.recv().unwrap());
    running.join().unwrap();
    assert_eq!(record.answers(), [0xff]);
}
