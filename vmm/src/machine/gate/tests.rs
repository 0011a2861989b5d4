use std::thread;

use super::*;
use crate::machine::double::Scripted;

/// A vCPU to be asked for its state.
fn vcpu() -> Scripted {
    Scripted::new(&[]).0
}

/// As long as it takes.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_gate_begins_closed_and_lets_go_when_it_opens() {
    let gate = Gate::new(1);
    assert_eq!(gate.wait_held(LONG), Ok(()));
    let seat = gate.seat(0);
    let vcpu = thread::spawn(move || (seat.may_go_on(&vcpu()), seat));
    gate.open();
    let (goes_on, seat) = vcpu.join().unwrap();
    assert!(goes_on);
    assert_eq!(gate.wait_held(Duration::ZERO), Err(0), "it runs");
    drop(seat);
    assert_eq!(gate.wait_held(LONG), Ok(()), "one that is gone does not run");
}

#[test]
fn the_one_that_does_not_come_out_is_named() {
    let gate = Gate::new(2);
    let seats = [gate.seat(0), gate.seat(1)];
    gate.open();
    assert!(seats.iter().all(|seat| seat.may_go_on(&vcpu())));
    gate.hold();
    let [first, second] = seats;
    let held = thread::spawn(move || first.may_go_on(&vcpu()));
    assert_eq!(gate.wait_held(Duration::from_millis(20)), Err(1));
    drop(second);
    assert_eq!(gate.wait_held(LONG), Ok(()));
    gate.open();
    assert!(held.join().unwrap());
}

#[test]
fn stopping_is_final() {
    let gate = Gate::new(1);
    gate.stop();
    gate.open();
    gate.hold();
    assert!(!gate.seat(0).may_go_on(&vcpu()));
}

#[test]
fn counters_are_those_told_after_they_were_asked_for() {
    let gate = Gate::new(1);
    gate.open();
    let seat = gate.seat(0);
    assert!(seat.may_go_on(&vcpu()));
    seat.publish(vec![("exits", 1)]);
    let told = gate.counters(|| seat.publish(vec![("exits", 2)]), LONG);
    assert_eq!(told[0][0], ("exits", 2));
    let told = gate.counters(|| (), Duration::ZERO);
    assert_eq!(told[0][0], ("exits", 2), "the last, from one that does not come out");
}

#[test]
fn a_vcpu_tells_its_state_while_it_is_held() {
    let gate = Gate::new(2);
    let threads: Vec<_> = (0..2)
        .map(|index| {
            let seat = gate.seat(index);
            thread::spawn(move || seat.may_go_on(&vcpu()))
        })
        .collect();
    for _ in 0..3 {
        let states = gate.states(LONG).unwrap();
        assert!(
            states
                .iter()
                .all(|state| state.as_ref().unwrap() == &vcpu().state().unwrap())
        );
    }
    gate.open();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}

#[test]
fn one_that_is_gone_or_runs_tells_nothing() {
    let gate = Gate::new(2);
    let [first, second] = [gate.seat(0), gate.seat(1)];
    gate.open();
    assert!(first.may_go_on(&vcpu()));
    assert_eq!(gate.states(Duration::from_millis(20)).unwrap_err(), 0);
    gate.hold();
    let held = thread::spawn(move || first.may_go_on(&vcpu()));
    drop(second);
    assert_eq!(gate.states(LONG).unwrap_err(), 1, "and it is not waited for");
    gate.open();
    assert!(held.join().unwrap());
}
