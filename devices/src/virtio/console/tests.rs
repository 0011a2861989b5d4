use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use vm_memory::GuestMemoryMmap;

use super::super::testing::{BUFFERS, Driver, VERSION_1, eventually};
use super::*;
use crate::testing::Recorder;

const OUT: usize = 1;

fn world(output: Output) -> (Driver, Arc<Console>) {
    let console = Arc::new(Console::new(Arc::new(output)).unwrap());
    let mut driver = Driver::new(Arc::clone(&console) as _);
    driver.run(VERSION_1 | console.features());
    (driver, console)
}

fn recorded() -> (Driver, Arc<Console>, Recorder) {
    let sink = Recorder::default();
    let (driver, console) = world(Output::new(sink.sink()).unwrap());
    (driver, console, sink)
}

#[test]
fn what_the_guest_prints_comes_out_in_order_however_it_is_cut() {
    let (mut driver, _console, sink) = recorded();
    driver.put(BUFFERS, b"hello, world");
    assert_eq!(driver.request(OUT, &[(BUFFERS, 5, false), (BUFFERS + 5, 2, false)]), 0);
    assert_eq!(driver.request(OUT, &[(BUFFERS + 7, 5, false)]), 0);
    sink.wait_for(b"hello, world");
    assert_eq!(driver.counter("transmitted"), 12);
}

#[test]
fn input_waits_for_a_buffer_and_a_buffer_for_input() {
    let (mut driver, console, _) = recorded();
    assert_eq!(console.enqueue(b"early"), 5);
    assert_eq!(driver.request(0, &[(BUFFERS, 3, true)]), 3);
    driver.offer(0, &[(BUFFERS + 3, 64, true)]);
    driver.offer(0, &[(BUFFERS + 0x100, 64, true)]);
    driver.notify(0);
    eventually("the rest", || driver.used(0) == 2);
    assert_eq!(driver.get(BUFFERS, 5), b"early");
    console.enqueue(b"late");
    eventually("what came late", || driver.used(0) == 3);
    assert_eq!(driver.used_element(0, 2).1, 4);
    assert_eq!(driver.get(BUFFERS + 0x100, 4), b"late");
}

#[test]
fn input_that_does_not_fit_is_refused_and_asked_for_when_there_is_room() {
    let (mut driver, console, _) = recorded();
    let asked = Arc::new(AtomicUsize::new(0));
    let asks = Arc::clone(&asked);
    console.on_room(move || {
        asks.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(console.enqueue(&[7; CAPACITY + 1]), CAPACITY);
    assert_eq!(console.enqueue(b"x"), 0);
    driver.request(0, &[(BUFFERS, 16, true)]);
    eventually("the question", || asked.load(Ordering::SeqCst) == 1);
    driver.request(0, &[(BUFFERS, 16, true)]);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "nothing was refused since");
    assert_eq!(console.enqueue(&[7; 40]), 32);
}

#[test]
fn a_console_that_nobody_reads_keeps_the_buffer_and_neither_pause_nor_reset_wait() {
    let sink = Recorder::shut();
    let (mut driver, _console) = world(Output::with_limits(sink.sink(), 8, Duration::MAX).unwrap());
    let text: Vec<u8> = (0..200).collect();
    driver.put(BUFFERS, &text);
    driver.offer(OUT, &[(BUFFERS, 200, false)]);
    driver.notify(OUT);
    eventually("two full queues", || driver.counter("transmitted") == 16);
    assert!(driver.device.set_paused(true, Duration::from_secs(60)));
    assert_eq!(driver.used(OUT), 0);
    driver.device.set_paused(false, Duration::ZERO);
    sink.open();
    eventually("the rest", || driver.used(OUT) == 1);
    sink.wait_for(&text);
}

#[test]
fn a_buffer_that_was_printed_in_part_is_printed_on_by_another_machine() {
    let sink = Recorder::shut();
    let (mut old, _console) = world(Output::with_limits(sink.sink(), 8, Duration::MAX).unwrap());
    old.put(BUFFERS, b"0123456789abcdefghijklmnopqrstuvwxyz");
    old.offer(OUT, &[(BUFFERS, 36, false)]);
    old.notify(OUT);
    eventually("two full queues", || old.counter("transmitted") == 16);
    assert!(old.device.set_paused(true, Duration::from_secs(60)));
    let (state, function) = (old.device.state().unwrap(), old.function.state());
    let memory: GuestMemoryMmap = old.memory.clone();
    sink.open();
    drop(old);

    let sink = Recorder::default();
    let console = Arc::new(Console::new(Arc::new(Output::new(sink.sink()).unwrap())).unwrap());
    let new = Driver::with(console, memory);
    assert!(new.device.set_paused(true, Duration::ZERO));
    new.function.restore(&function).unwrap();
    new.device.restore(&state).unwrap();
    new.device.set_paused(false, Duration::ZERO);
    eventually("the rest", || new.used(OUT) == 1);
    // The first 16 had not reached the old sink.
    sink.wait_for(b"0123456789abcdefghijklmnopqrstuvwxyz");
}

#[test]
fn a_resized_terminal_is_a_changed_configuration() {
    let (driver, console, _) = recorded();
    assert_eq!(driver.read(0x2000, 4), 0, "nobody knows");
    driver.write(0x10, 2, 0);
    let size = ConsoleSize { columns: 132, rows: 43 };
    console.resize(size);
    assert_eq!(driver.inbox.take().len(), 1);
    assert_eq!((driver.read(0x2000, 2), driver.read(0x2002, 2)), (132, 43));
    console.resize(size);
    assert_eq!(driver.inbox.take().len(), 0, "as before");
}

#[test]
fn an_emergency_write_needs_no_driver() {
    let sink = Recorder::default();
    let console = Console::new(Arc::new(Output::new(sink.sink()).unwrap())).unwrap();
    let driver = Driver::new(Arc::new(console));
    driver.write(0x2008, 4, u64::from(b'O'));
    driver.write(0x2008, 1, u64::from(b'h'));
    driver.write(0x2004, 8, u64::from(b'!') << 32 | 7);
    driver.write(0x2009, 2, u64::from(b'?'));
    driver.write(0x2000, 4, u64::from(b'?'));
    sink.wait_for(b"Oh!");
    assert_eq!(driver.read(0x2008, 4), 0);
}

#[test]
fn input_and_size_go_with_the_machine_and_a_spoilt_state_is_refused() {
    let (driver, console, _) = recorded();
    console.enqueue(b"typed ahead");
    console.resize(ConsoleSize { columns: 80, rows: 25 });
    assert!(driver.device.set_paused(true, Duration::from_secs(60)));
    let state = driver.device.state().unwrap();
    let (mut other, _, _) = recorded();
    for cut in 0..state.device.len() {
        let mut spoilt = state.clone();
        spoilt.device.truncate(cut);
        assert!(other.device.restore(&spoilt).is_err(), "{cut}");
    }
    let mut large = state.clone();
    large.device = postcard::to_stdvec(&ConsoleState {
        size: ConsoleSize::default(),
        pending: vec![0; CAPACITY + 1],
        printed: 0,
        output: OutputState::default(),
    })
    .unwrap();
    assert!(other.device.restore(&large).is_err());
    other.device.restore(&state).unwrap();
    other.device.set_paused(false, Duration::ZERO);
    assert_eq!((other.read(0x2000, 2), other.read(0x2002, 2)), (80, 25));
    other.run(VERSION_1);
    assert_eq!(other.request(0, &[(BUFFERS, 64, true)]), 11);
    assert_eq!(other.get(BUFFERS, 11), b"typed ahead");
}

#[test]
fn buffers_that_are_none_are_given_back_and_the_console_goes_on() {
    let (mut driver, console, sink) = recorded();
    console.enqueue(b"kept");
    assert_eq!(driver.request(0, &[(BUFFERS, 4, false)]), 0, "nothing to fill");
    assert_eq!(driver.request(0, &[(1 << 40, 4, true)]), 0);
    assert_eq!(driver.request(OUT, &[(1 << 40, 4, false)]), 0);
    assert_eq!(driver.request(OUT, &[(u64::MAX - 1, u32::MAX, false)]), 0);
    assert_eq!(driver.counter("malformed"), 4);
    assert_eq!(driver.request(0, &[(BUFFERS, 64, true)]), 4);
    driver.put(BUFFERS, b"ok");
    assert_eq!(driver.request(OUT, &[(BUFFERS, 2, false), (BUFFERS, 9, true)]), 0);
    sink.wait_for(b"ok");
}
