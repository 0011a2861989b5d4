use std::sync::mpsc;

use super::*;
use crate::testing::{Recorder, through_json};

/// Longer than any test runs, unless it fails.
const FOREVER: Duration = Duration::from_secs(100);

fn output(recorder: &Recorder, capacity: usize, patience: Duration) -> Output {
    Output::with_limits(recorder.sink(), capacity, patience).unwrap()
}

fn push(output: &Output, bytes: &[u8]) {
    for byte in bytes {
        assert!(
            matches!(output.push(*byte), Response::Done(0)),
            "late at {:?}",
            char::from(*byte)
        );
    }
}

/// Has the writer in a sink that takes nothing, fills the queue behind it, and parks one more write.
fn fill(output: &Output) -> (Vec<u8>, Ticket) {
    push(output, b"<");
    while lock(&output.shared.state).writer != Writer::Writing {
        thread::yield_now();
    }
    push(output, b"12345678");
    match output.push(b'>') {
        Response::Later(ticket) => (b"<12345678>".to_vec(), ticket),
        Response::Done(_) => panic!("a queue of 8 took 9"),
    }
}

#[test]
fn a_prompt_appears_without_a_line_feed() {
    let recorder = Recorder::default();
    let output = output(&recorder, 100, FOREVER);
    push(&output, b"login: ");
    recorder.wait_for(b"login: ");
}

#[test]
fn bytes_arrive_once_and_in_order() {
    let recorder = Recorder::default();
    let output = output(&recorder, 1 << 20, FOREVER);
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    push(&output, &bytes);
    assert!(output.drain(FOREVER));
    assert!(recorder.bytes() == bytes);
    assert_eq!((output.written(), output.lost()), (400_000, 0));
}

#[test]
fn what_came_while_the_sink_was_busy_leaves_as_one_write() {
    let recorder = Recorder::shut();
    let output = output(&recorder, 100_000, FOREVER);
    push(&output, b"first");
    while lock(&output.shared.state).writer != Writer::Writing {
        thread::yield_now();
    }
    push(&output, &[b'x'; 90_000]);
    recorder.open();
    assert!(output.drain(FOREVER));
    assert!(recorder.writes() <= 3, "{} writes", recorder.writes());
    assert_eq!(output.written(), 90_005);
}

#[test]
fn a_slow_consumer_loses_nothing_and_holds_the_guest_until_it_has_read() {
    let recorder = Recorder::shut();
    let output = output(&recorder, 8, FOREVER);
    let (bytes, ticket) = fill(&output);
    assert_eq!(ticket.try_take(), None);
    recorder.open();
    assert_eq!(ticket.wait(), 0);
    assert!(output.drain(FOREVER));
    assert_eq!(recorder.bytes(), bytes);
    assert_eq!(output.lost(), 0);
}

#[test]
fn a_consumer_that_takes_nothing_holds_the_guest_for_its_patience_and_no_longer() {
    let recorder = Recorder::shut();
    let output = output(&recorder, 8, Duration::from_millis(1));
    let (bytes, ticket) = fill(&output);
    assert_eq!(ticket.wait(), 0, "the watcher lets the guest go");
    push(&output, b"into the void");
    assert_eq!(output.lost(), 13);
    // It comes back: what it had not read is there, and so is what comes now.
    recorder.open();
    assert!(output.drain(FOREVER));
    push(&output, b"again");
    assert!(output.drain(FOREVER));
    assert_eq!(recorder.bytes(), [&bytes[..], b"again"].concat());
    assert_eq!(output.lost(), 13);
    // And it is given the same patience as before.
    recorder.shut_again();
    let (_, ticket) = fill(&output);
    assert_eq!(ticket.wait(), 0);
    recorder.open();
}

#[test]
fn a_consumer_that_refuses_loses_what_it_refused_and_may_take_the_next() {
    let recorder = Recorder::default();
    recorder.refuse(Some(ErrorKind::BrokenPipe));
    let output = output(&recorder, 100, FOREVER);
    push(&output, b"refused");
    assert!(output.drain(FOREVER));
    assert_eq!((output.written(), output.lost()), (0, 7));
    recorder.refuse(None);
    push(&output, b"taken");
    assert!(output.drain(FOREVER));
    assert_eq!(recorder.bytes(), b"taken");
}

#[test]
fn a_sink_that_would_block_is_tried_again() {
    let recorder = Recorder::default();
    recorder.refuse(Some(ErrorKind::WouldBlock));
    let output = output(&recorder, 100, FOREVER);
    push(&output, b"patience");
    recorder.wait_for_refusals(2);
    recorder.refuse(None);
    recorder.wait_for(b"patience");
    assert_eq!(output.lost(), 0);
}

#[test]
fn a_sink_that_takes_nothing_without_an_error_has_refused() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
            Ok(0)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let output = Output::with_limits(Box::new(Full), 100, FOREVER).unwrap();
    push(&output, b"lost");
    assert!(output.drain(FOREVER));
    assert_eq!(output.lost(), 4);
}

#[test]
fn a_sink_that_panics_takes_no_guest_with_it() {
    struct Mine(mpsc::Receiver<()>);
    impl Write for Mine {
        fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            std::panic::resume_unwind(Box::new("boom"));
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (fuse, lit) = mpsc::channel();
    let output = Output::with_limits(Box::new(Mine(lit)), 8, FOREVER).unwrap();
    let (_, ticket) = fill(&output);
    drop(fuse);
    assert_eq!(ticket.wait(), 0);
    assert!(output.drain(FOREVER));
    push(&output, b"nobody there");
    assert_eq!(output.lost(), 9 + 12, "what was queued and what came after");
}

#[test]
fn drain_says_when_it_gave_up() {
    let recorder = Recorder::shut();
    let output = output(&recorder, 100, Duration::ZERO);
    assert!(output.drain(Duration::ZERO), "nothing to drain");
    push(&output, b"stuck");
    assert!(!output.drain(Duration::from_millis(1)));
    recorder.open();
    assert!(output.drain(FOREVER));
}

#[test]
fn the_last_words_are_written_before_the_end() {
    let recorder = Recorder::default();
    let output = output(&recorder, 1 << 20, FOREVER);
    push(&output, &[b'!'; 10_000]);
    drop(output);
    assert_eq!(recorder.bytes().len(), 10_000);
    assert!(recorder.dropped(), "the thread has ended");
}

#[test]
fn a_dead_console_does_not_hold_up_the_end() {
    let recorder = Recorder::default();
    recorder.refuse(Some(ErrorKind::WouldBlock));
    let output = output(&recorder, 100, Duration::from_millis(1));
    push(&output, b"never read");
    drop(output);
    // Given up, the writer tries no more than once, and ends.
    while !recorder.dropped() {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(recorder.bytes(), b"");
}

#[test]
fn a_consumer_that_has_stalled_is_not_waited_for_at_the_end() {
    let recorder = Recorder::shut();
    let output = output(&recorder, 8, FOREVER);
    let (_, ticket) = fill(&output);
    // As the watcher does when patience is over.
    let mut state = lock(&output.shared.state);
    state.stalled = true;
    drop(output.shared.release(state));
    assert_eq!(ticket.wait(), 0);
    let begin = std::time::Instant::now();
    drop(output);
    assert!(begin.elapsed() < FOREVER);
    recorder.open();
}

#[test]
fn a_guest_parked_at_the_end_is_released() {
    let recorder = Recorder::shut();
    let output = output(&recorder, 8, Duration::from_millis(1));
    let (_, ticket) = fill(&output);
    drop(output);
    assert_eq!(ticket.wait(), 0);
    recorder.open();
}

#[test]
fn a_flood_from_a_caller_that_does_not_wait_stays_bounded() {
    let recorder = Recorder::shut();
    let output = output(&recorder, 8, FOREVER);
    for _ in 0..100_000 {
        let _ = output.push(b'x');
    }
    let held = lock(&output.shared.state).queue.len();
    assert!(held <= 8 + MAX_PARKED, "{held} bytes");
    recorder.open();
}

#[test]
fn discarded_output_costs_nothing_and_is_counted() {
    let output = Output::discard();
    push(&output, b"nobody reads this");
    assert!(output.drain(FOREVER));
    assert_eq!((output.written(), output.lost()), (0, 17));
}

/// What is saved of an output whose sink takes nothing.
fn saved(output: &Output) -> OutputState {
    through_json(&output.state())
}

#[test]
fn what_a_console_has_not_taken_the_next_one_prints() {
    let recorder = Recorder::shut();
    let own = output(&recorder, 8, FOREVER);
    let (bytes, ticket) = fill(&own);
    let state = saved(&own);
    assert_eq!(
        state.queued, bytes,
        "what the sink is busy with, the queue, and what is answered late"
    );
    assert_eq!(ticket.try_take(), None, "nobody is disturbed by that");
    let next = Recorder::default();
    let other = output(&next, 8, FOREVER);
    other.restore(&state);
    assert!(other.drain(FOREVER));
    assert_eq!(next.bytes(), bytes);
    recorder.open();
}

#[test]
fn what_a_console_has_taken_is_not_printed_again() {
    let recorder = Recorder::default();
    let own = output(&recorder, 100, FOREVER);
    push(&own, b"taken");
    assert!(own.drain(FOREVER));
    recorder.refuse(Some(ErrorKind::WouldBlock));
    push(&own, b"left");
    recorder.wait_for_refusals(1);
    assert_eq!(saved(&own).queued, b"left");
    recorder.refuse(None);
}

#[test]
fn restored_bytes_come_after_those_that_are_queued_and_before_those_to_come() {
    let recorder = Recorder::default();
    recorder.refuse(Some(ErrorKind::WouldBlock));
    let output = output(&recorder, 100, FOREVER);
    push(&output, b"1");
    output.restore(&OutputState { queued: b"2".to_vec() });
    push(&output, b"3");
    recorder.refuse(None);
    recorder.wait_for(b"123");
}

#[test]
fn more_than_fits_is_restored_whole_and_slows_the_guest_down() {
    let recorder = Recorder::shut();
    let output = output(&recorder, 8, FOREVER);
    let many = vec![b'm'; 100];
    output.restore(&OutputState { queued: many.clone() });
    while lock(&output.shared.state).writer != Writer::Writing {
        thread::yield_now();
    }
    output.restore(&OutputState { queued: many.clone() });
    let Response::Later(ticket) = output.push(b'!') else {
        panic!("a queue of 8 took 101")
    };
    recorder.open();
    assert_eq!(ticket.wait(), 0);
    assert!(output.drain(FOREVER));
    assert_eq!(recorder.bytes(), [many.clone(), many, b"!".to_vec()].concat());
}

#[test]
fn restored_bytes_that_nobody_reads_are_counted_as_lost() {
    let output = Output::discard();
    output.restore(&OutputState {
        queued: b"nobody".to_vec(),
    });
    assert_eq!((output.lost(), output.state()), (6, OutputState::default()));
}

#[test]
fn many_bytes_are_taken_as_far_as_there_is_room_and_the_rest_when_there_is_again() {
    let sink = Recorder::shut();
    let output = Output::with_limits(sink.sink(), 8, Duration::MAX).unwrap();
    let (mut sent, mut waits) = (0, 0);
    let text: Vec<u8> = (0..100).collect();
    while sent < text.len() {
        let (taken, ticket) = output.push_all(&text[sent..]);
        sent += taken;
        assert_eq!(ticket.is_none(), sent == text.len());
        if let Some(ticket) = ticket {
            waits += 1;
            if waits == 2 {
                // One batch is in the sink, one is queued.
                assert_eq!((sent, ticket.try_take()), (16, None));
                sink.open();
            }
            let _ = ticket.wait();
        }
    }
    assert!(output.drain(Duration::MAX));
    sink.wait_for(&text);
    assert_eq!(Output::discard().push_all(b"abc").0, 3);
}
