use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::NoInterrupt;
use crate::testing::{Line as Wire, Recorder, access, accesses, through_json};

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const LSR: u64 = 5;
const SCR: u64 = 7;

const DATA_READY: u64 = 1;
const TRANSMITTER_EMPTY: u64 = 0x60;
const FOREVER: Duration = Duration::MAX;

/// A port at COM1, and everything around it.
struct World {
    bus: Bus,
    serial: Arc<Serial>,
    wire: Arc<Wire>,
    recorder: Recorder,
}

impl World {
    fn new() -> Self {
        let (bus, wire, recorder) = (Bus::new(), Arc::new(Wire::default()), Recorder::default());
        let output = Arc::new(Output::new(recorder.sink()).unwrap());
        let serial = Arc::new(Serial::new(wire.clone(), output));
        serial.attach(&bus).unwrap();
        Self {
            bus,
            serial,
            wire,
            recorder,
        }
    }

    fn read(&self, register: u64) -> u64 {
        self.bus.read(Space::Port, COM1 + register, 1).wait()
    }

    fn write(&self, register: u64, byte: u8) {
        assert_eq!(self.bus.write(Space::Port, COM1 + register, 1, byte.into()).wait(), 0);
    }

    fn drain(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.read(LSR) & DATA_READY != 0 {
            bytes.push(u8::try_from(self.read(DATA)).unwrap());
        }
        bytes
    }
}

#[test]
fn what_the_guest_transmits_is_printed() {
    let world = World::new();
    for byte in *b"Linux version 6.1\n# " {
        assert_eq!(world.read(LSR), TRANSMITTER_EMPTY);
        world.write(DATA, byte);
    }
    assert!(world.serial.output().drain(FOREVER));
    assert_eq!(world.recorder.bytes(), b"Linux version 6.1\n# ");
    assert_eq!(world.serial.counters(), [("written", 20), ("lost", 0), ("received", 0)]);
}

#[test]
fn a_driver_finds_a_16550a() {
    let world = World::new();
    world.write(SCR, 0x5a);
    assert_eq!(world.read(SCR), 0x5a);
    world.write(IIR, 0x01);
    assert_eq!(world.read(IIR) & 0xc0, 0xc0, "FIFOs enabled");
}

#[test]
fn the_divisor_latch_hides_data_and_interrupt_enable() {
    let world = World::new();
    world.write(LCR, 0x83);
    world.write(DATA, 1);
    world.write(IER, 2);
    assert_eq!((world.read(DATA), world.read(IER)), (1, 2));
    assert_eq!(world.serial.state().divisor, [1, 2]);
    world.write(LCR, 0x03);
    assert_eq!(world.read(IER), 0);
    assert_eq!(world.recorder.bytes(), b"");
}

#[test]
fn input_interrupts_and_is_read_in_order() {
    let world = World::new();
    world.write(IER, 1);
    assert_eq!(world.serial.enqueue(b"ls\n"), 3);
    assert_eq!(world.wire.take(), [true, false], "one edge");
    assert_eq!(world.read(IIR) & 0x0f, 0x04, "received data");
    assert_eq!(world.drain(), b"ls\n");
    assert_eq!(world.read(IIR) & 0x0f, 0x01, "nothing pending");
}

#[test]
fn input_that_came_while_masked_interrupts_when_unmasked() {
    let world = World::new();
    assert_eq!(world.serial.enqueue(b"x"), 1);
    assert!(world.wire.take().is_empty());
    world.write(IER, 1);
    assert_eq!(world.wire.take(), [true, false]);
}

#[test]
fn an_empty_transmitter_interrupts_when_enabled_and_after_each_byte() {
    let world = World::new();
    world.write(IER, 2);
    assert_eq!(world.wire.take(), [true, false]);
    assert_eq!(world.read(IIR) & 0x0f, 0x02);
    world.write(DATA, b'x');
    assert_eq!(world.wire.take(), [true, false]);
}

#[test]
fn what_does_not_fit_is_refused_and_room_is_announced_once() {
    let world = World::new();
    let (rooms, announced) = mpsc::channel();
    world.serial.on_room(move || rooms.send(()).unwrap());
    assert_eq!(world.serial.enqueue(&[b'x'; 100]), FIFO_SIZE);
    assert_eq!(world.serial.enqueue(&[b'y'; 1]), 0);
    assert!(!world.serial.wait_for_room(Duration::ZERO));
    world.read(DATA);
    assert!(announced.try_recv().is_err(), "one byte of room is not worth a wake-up");
    assert_eq!(world.drain().len(), FIFO_SIZE - 1);
    assert_eq!(announced.try_iter().count(), 1);
    assert!(world.serial.wait_for_room(Duration::ZERO));
    // Nothing was refused this time, so nobody waits.
    assert_eq!(world.serial.enqueue(b"z"), 1);
    world.drain();
    assert_eq!(announced.try_iter().count(), 0);
}

#[test]
fn a_mebibyte_pasted_into_a_guest_arrives_whole() {
    let world = World::new();
    let paste: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    let arrived = thread::scope(|scope| {
        scope.spawn(|| {
            let mut rest = &paste[..];
            while !rest.is_empty() {
                rest = &rest[world.serial.enqueue(rest)..];
                assert!(rest.is_empty() || world.serial.wait_for_room(FOREVER));
            }
        });
        let mut arrived = Vec::new();
        while arrived.len() < paste.len() {
            arrived.extend(world.drain());
            thread::yield_now();
        }
        arrived
    });
    assert!(arrived == paste);
    assert_eq!(world.serial.counters()[2], ("received", 1 << 20));
}

#[test]
fn the_notified_may_enqueue_at_once() {
    let world = World::new();
    let (serial, paste) = (Arc::downgrade(&world.serial), [b'x'; 200]);
    let sent = Mutex::new(world.serial.enqueue(&paste));
    world.serial.on_room(move || {
        let mut sent = sent.lock().unwrap();
        *sent += serial.upgrade().unwrap().enqueue(&paste[*sent..]);
    });
    assert_eq!(world.drain(), paste);
}

#[test]
fn in_loopback_the_guest_hears_itself_and_nobody_else() {
    let world = World::new();
    let (rooms, announced) = mpsc::channel();
    world.serial.on_room(move || rooms.send(()).unwrap());
    world.write(MCR.into(), 0x1e);
    assert_eq!(world.serial.enqueue(b"outside"), 0);
    world.write(DATA, b'm');
    assert_eq!(world.drain(), b"m");
    assert!(announced.try_recv().is_err());
    world.write(MCR.into(), 0x0b);
    assert_eq!(announced.try_iter().count(), 1, "there is room when the loop is opened");
    assert!(world.serial.wait_for_room(Duration::ZERO));
    assert_eq!(world.recorder.bytes(), b"");
}

#[test]
fn a_full_console_answers_the_guest_late() {
    let recorder = Recorder::shut();
    let output = Arc::new(Output::with_limits(recorder.sink(), 4, FOREVER).unwrap());
    let serial = Serial::new(Arc::new(NoInterrupt), output);
    let mut count = 0;
    let parked = loop {
        count += 1;
        if let Response::Later(ticket) = serial.write(DATA, 1, b'x'.into()) {
            break ticket;
        }
    };
    // The port is not locked meanwhile: another vCPU, and the snapshot, find it awake.
    assert_eq!(serial.read(LSR, 1).wait(), TRANSMITTER_EMPTY);
    recorder.open();
    assert_eq!(parked.wait(), 0);
    assert!(serial.output().drain(FOREVER));
    assert_eq!(recorder.bytes().len(), count);
}

#[test]
fn a_wide_access_is_one_byte_after_another() {
    let world = World::new();
    assert_eq!(world.bus.write(Space::Port, COM1, 2, 0x01_41).wait(), 0);
    world.recorder.wait_for(b"A");
    assert_eq!(world.read(IER), 1);
    assert_eq!(world.bus.read(Space::Port, COM1 + 4, 4).wait(), 0x00b0_6008);
}

#[test]
fn state_survives_saving_and_restoring() {
    let old = World::new();
    old.write(IER, 1);
    old.write(SCR, 0x77);
    assert_eq!(old.serial.enqueue(b"typed ahead"), 11);
    let saved = serde_json::to_string(&old.serial.state()).unwrap();

    let new = World::new();
    new.serial.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
    assert_eq!(new.serial.state(), old.serial.state());
    assert!(new.wire.take().is_empty(), "what is pending has interrupted already");
    assert_eq!(new.read(SCR), 0x77);
    assert_eq!(new.drain(), b"typed ahead");
}

#[test]
fn input_is_held_while_the_machine_is_paused_and_comes_in_afterwards() {
    let world = World::new();
    let calls = Arc::new(AtomicUsize::new(0));
    world.serial.on_room({
        let calls = Arc::clone(&calls);
        move || {
            calls.fetch_add(1, SeqCst);
        }
    });
    world.serial.hold_input(true);
    assert_eq!(world.serial.enqueue(b"typed"), 0);
    assert!(!world.serial.wait_for_room(Duration::ZERO));
    assert_eq!(world.serial.state(), SerialState::default());
    world.serial.hold_input(false);
    assert_eq!(calls.load(SeqCst), 1);
    assert!(world.serial.wait_for_room(Duration::ZERO));
    assert_eq!(world.serial.enqueue(b"typed"), 5);
}

#[test]
fn a_state_with_more_input_than_fits_is_refused() {
    let world = World::new();
    let state = SerialState {
        input: vec![0; FIFO_SIZE + 1],
        scratch: 9,
        ..SerialState::default()
    };
    assert_eq!(
        world.serial.restore(&state),
        Err(RestoreError::Input { length: FIFO_SIZE + 1 })
    );
    assert_eq!(world.serial.state(), SerialState::default());
}

#[test]
fn a_reset_makes_room_for_those_who_wait() {
    let world = World::new();
    assert_eq!(world.serial.enqueue(&[0; 65]), 64);
    world.serial.restore(&SerialState::default()).unwrap();
    assert!(world.serial.wait_for_room(Duration::ZERO));
}

proptest! {
    #[test]
    fn no_access_panics(
        accesses in prop::collection::vec((0_u64..8, prop::sample::select(vec![1_u8, 2, 4, 8]), any::<Option<u64>>()), 0..200),
        input in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let serial = Serial::new(Arc::new(NoInterrupt), Arc::new(Output::discard()));
        for (offset, size, written) in accesses {
            let _ = match written {
                Some(value) => serial.write(offset, size, value).wait(),
                None => serial.read(offset, size).wait(),
            };
            let _ = serial.enqueue(&input);
            prop_assert!(serial.state().input.len() <= FIFO_SIZE);
        }
        prop_assert!(serial.restore(&serial.state()).is_ok());
    }

    #[test]
    fn a_restored_port_goes_on_as_the_saved_one(
        before in accesses(PORTS), after in accesses(PORTS), input in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let (own, other) = (World::new(), World::new());
        for (step, what) in before.into_iter().enumerate() {
            access(&*own.serial, what);
            if step % 5 == 0 {
                let _what_fits = own.serial.enqueue(&input);
            }
        }
        let saved = own.serial.state();
        other.serial.restore(&through_json(&saved)).unwrap();
        prop_assert_eq!(other.serial.state(), saved);
        drop(own.wire.take());
        prop_assert!(other.wire.take().is_empty());
        prop_assert!(own.serial.output().drain(FOREVER));
        let printed = own.recorder.bytes().len();
        for (step, what) in after.into_iter().enumerate() {
            prop_assert_eq!(access(&*own.serial, what), access(&*other.serial, what));
            if step % 5 == 0 {
                prop_assert_eq!(own.serial.enqueue(&input), other.serial.enqueue(&input));
            }
            prop_assert_eq!(own.wire.take(), other.wire.take());
        }
        prop_assert_eq!(own.serial.state(), other.serial.state());
        prop_assert!(own.serial.output().drain(FOREVER) && other.serial.output().drain(FOREVER));
        prop_assert_eq!(&own.recorder.bytes()[printed..], other.recorder.bytes());
    }

    #[test]
    fn a_state_that_is_accepted_does_no_harm(
        registers: [u8; 9], input in prop::collection::vec(any::<u8>(), 0..100), after in accesses(PORTS),
    ) {
        let world = World::new();
        let [low, high, interrupt_enable, interrupt_identification, line_control, line_status, modem_control,
            modem_status, scratch] = registers;
        let state = SerialState {
            divisor: [low, high], interrupt_enable, interrupt_identification, line_control, line_status, modem_control,
            modem_status, scratch, input,
        };
        prop_assert_eq!(world.serial.restore(&state).is_ok(), state.input.len() <= FIFO_SIZE);
        for what in after {
            access(&*world.serial, what);
            let _what_fits = world.serial.enqueue(b"more");
        }
        prop_assert!(world.serial.restore(&world.serial.state()).is_ok());
    }

    /// One types and another prints, over a machine that is saved and goes on in the next, again and again.
    #[test]
    fn nothing_typed_or_printed_is_lost_or_doubled_by_snapshots(
        text in prop::collection::vec(any::<u8>(), 0..300),
        steps in prop::collection::vec((0_usize..100, 0_usize..40, any::<bool>()), 1..12),
    ) {
        let (mut world, mut typed, mut heard, mut seen) = (World::new(), 0, Vec::new(), Vec::new());
        let mut printed = Vec::new();
        for (chunk, reads, reader) in steps {
            // A console that does not read for now keeps everything waiting.
            world.recorder.refuse((!reader).then_some(io::ErrorKind::WouldBlock));
            typed += world.serial.enqueue(&text[typed..text.len().min(typed + chunk)]);
            for _ in 0..reads {
                if world.read(LSR) & DATA_READY != 0 {
                    heard.push(u8::try_from(world.read(DATA)).unwrap());
                }
                let byte = printed.len() as u8;
                world.write(DATA, byte);
                printed.push(byte);
            }
            world.serial.hold_input(true);
            prop_assert_eq!(world.serial.enqueue(b"too late"), 0);
            if reader {
                prop_assert!(world.serial.output().drain(FOREVER));
            }
            let (port, output) = through_json(&(world.serial.state(), world.serial.output().state()));
            seen.extend(world.recorder.bytes());
            world.recorder.refuse(Some(io::ErrorKind::Other));
            let next = World::new();
            next.serial.hold_input(true);
            next.recorder.refuse(Some(io::ErrorKind::WouldBlock));
            next.serial.restore(&port).unwrap();
            next.serial.output().restore(&output);
            next.serial.hold_input(false);
            world = next;
        }
        world.recorder.refuse(None);
        loop {
            heard.extend(world.drain());
            if typed == text.len() {
                break;
            }
            typed += world.serial.enqueue(&text[typed..]);
        }
        heard.extend(world.drain());
        prop_assert!(world.serial.output().drain(FOREVER));
        seen.extend(world.recorder.bytes());
        prop_assert_eq!(heard, text);
        prop_assert_eq!(seen, printed);
    }
}
