use proptest::prelude::*;

use super::*;

/// Nanoseconds at which pulse `pulse` has just passed.
fn at(pulse: u64) -> u64 {
    (pulse * 88_000).div_ceil(105)
}

/// Writes `word` to the control port and `count` to counter `number`, low byte first, at pulse `when`.
fn program(pit: &mut Pit, word: u8, count: u16, when: u64) {
    let port = 0x40 + u16::from(word >> 6);
    pit.write(0x43, word, at(when));
    for byte in count.to_le_bytes() {
        pit.write(port, byte, at(when));
    }
}

fn count(pit: &mut Pit, number: u8, when: u64) -> u16 {
    pit.write(0x43, number << 6, at(when));
    let port = 0x40 + u16::from(number);
    u16::from_le_bytes([pit.read(port, at(when)), pit.read(port, at(when))])
}

/// The output of a counter, by the read-back command.
fn output(pit: &mut Pit, number: u8, when: u64) -> bool {
    pit.write(0x43, 0xe0 | 2 << number, at(when));
    pit.read(0x40 + u16::from(number), at(when)) & 0x80 != 0
}

fn waveform(pit: &mut Pit, number: u8, pulses: std::ops::Range<u64>) -> String {
    pulses
        .map(|pulse| if output(pit, number, pulse) { '^' } else { '_' })
        .collect()
}

#[test]
fn a_second_has_1193182_pulses() {
    assert_eq!(pulse(1_000_000_000), 1_193_181);
    assert_eq!(pulse(at(1_193_182)), 1_193_182);
    assert_eq!(pulse(at(1_193_182) - 1), 1_193_181);
}

#[test]
fn mode_0_raises_its_output_at_the_terminal_count_and_keeps_it() {
    let mut pit = Pit::new();
    program(&mut pit, 0x30, 4, 0);
    assert_eq!(waveform(&mut pit, 0, 0..9), "_____^^^^");
    assert_eq!(
        (count(&mut pit, 0, 2), count(&mut pit, 0, 5), count(&mut pit, 0, 6)),
        (3, 0, 0xffff)
    );
    program(&mut pit, 0x30, 4, 10);
    assert_eq!(waveform(&mut pit, 0, 10..16), "_____^");
}

#[test]
fn mode_0_stops_with_the_first_of_two_bytes() {
    let mut pit = Pit::new();
    program(&mut pit, 0x30, 4, 0);
    assert!(output(&mut pit, 0, 6));
    pit.write(0x40, 2, at(7));
    assert!(!output(&mut pit, 0, 8));
    pit.write(0x40, 0, at(10));
    assert_eq!(waveform(&mut pit, 0, 10..15), "___^^");
}

#[test]
fn mode_0_holds_its_count_while_the_gate_is_low() {
    let mut pit = Pit::new();
    pit.write(0x61, 1, 0);
    program(&mut pit, 0xb0, 10, 0);
    pit.write(0x61, 0, at(4));
    assert_eq!((count(&mut pit, 2, 5), count(&mut pit, 2, 90)), (7, 7));
    pit.write(0x61, 1, at(100));
    assert_eq!(
        (count(&mut pit, 2, 103), waveform(&mut pit, 2, 105..109)),
        (4, "__^^".into())
    );
}

#[test]
fn mode_1_is_a_one_shot_that_the_gate_triggers_again() {
    let mut pit = Pit::new();
    program(&mut pit, 0xb2, 3, 0);
    assert_eq!(waveform(&mut pit, 2, 0..5), "^^^^^");
    pit.write(0x61, 1, at(9));
    assert_eq!(waveform(&mut pit, 2, 9..15), "____^^");
    pit.write(0x61, 0, at(20));
    pit.write(0x61, 1, at(20));
    assert_eq!(waveform(&mut pit, 2, 20..23), "___");
    pit.write(0x61, 0, at(23));
    pit.write(0x61, 1, at(23));
    assert_eq!(waveform(&mut pit, 2, 23..28), "____^");
}

#[test]
fn mode_2_is_low_for_the_last_pulse_of_each_period() {
    let mut pit = Pit::new();
    program(&mut pit, 0x34, 4, 0);
    assert_eq!(waveform(&mut pit, 0, 1..13), "^^^_^^^_^^^_");
    assert_eq!(
        [count(&mut pit, 0, 1), count(&mut pit, 0, 4), count(&mut pit, 0, 5)],
        [4, 1, 4]
    );
}

#[test]
fn mode_2_takes_a_new_count_at_the_end_of_the_period() {
    let mut pit = Pit::new();
    program(&mut pit, 0x34, 4, 0);
    for byte in [2, 0] {
        pit.write(0x40, byte, at(2));
    }
    assert_eq!(waveform(&mut pit, 0, 1..11), "^^^_^_^_^_");
}

#[test]
fn mode_3_is_a_square_wave_one_pulse_longer_high_if_odd() {
    let mut pit = Pit::new();
    program(&mut pit, 0x36, 4, 0);
    assert_eq!(waveform(&mut pit, 0, 1..9), "^^__^^__");
    assert_eq!([1, 2, 3, 4, 5].map(|pulse| count(&mut pit, 0, pulse)), [4, 2, 4, 2, 4]);
    program(&mut pit, 0x36, 5, 20);
    assert_eq!(waveform(&mut pit, 0, 21..31), "^^^__^^^__");
}

#[test]
fn mode_3_takes_a_new_count_at_the_end_of_the_half() {
    let mut pit = Pit::new();
    program(&mut pit, 0x36, 4, 0);
    for byte in [8, 0] {
        pit.write(0x40, byte, at(1));
    }
    assert_eq!(waveform(&mut pit, 0, 1..15), "^^____^^^^____");
}

#[test]
fn mode_3_tells_the_rise_of_a_period_that_changes_on_the_way() {
    let mut pit = Pit::new();
    program(&mut pit, 0x36, 4, 0);
    pit.update(0);
    for byte in [8, 0] {
        pit.write(0x40, byte, at(1));
    }
    assert_eq!(pit.deadline(), Some(at(7)));
    assert_eq!(
        pit.update(at(7)),
        Line {
            rose: true,
            level: true
        }
    );
    assert_eq!(pit.deadline(), Some(at(15)));
}

#[test]
fn the_gate_stops_the_square_wave_high_and_begins_it_anew() {
    let mut pit = Pit::new();
    pit.write(0x61, 1, 0);
    program(&mut pit, 0xb6, 4, 0);
    pit.write(0x61, 0, at(3));
    assert_eq!(waveform(&mut pit, 2, 3..8), "^^^^^");
    pit.write(0x61, 1, at(10));
    assert_eq!(waveform(&mut pit, 2, 11..15), "^^__");
}

#[test]
fn mode_4_strobes_once() {
    let mut pit = Pit::new();
    program(&mut pit, 0x38, 3, 0);
    assert_eq!(waveform(&mut pit, 0, 0..8), "^^^^_^^^");
}

#[test]
fn mode_5_strobes_after_a_trigger() {
    let mut pit = Pit::new();
    program(&mut pit, 0xba, 3, 0);
    assert_eq!(waveform(&mut pit, 2, 0..8), "^^^^^^^^");
    pit.write(0x61, 1, at(10));
    assert_eq!(waveform(&mut pit, 2, 10..17), "^^^^_^^");
}

#[test]
fn a_count_of_zero_is_the_largest() {
    let mut pit = Pit::new();
    program(&mut pit, 0x34, 0, 0);
    pit.update(0);
    assert_eq!(pit.deadline(), Some(at(0x1_0001)));
    program(&mut pit, 0x35, 0, 0);
    assert_eq!(pit.deadline(), Some(at(10_001)));
}

#[test]
fn bcd_counts_in_decimal() {
    let mut pit = Pit::new();
    program(&mut pit, 0x31, 0x1000, 0);
    assert_eq!((count(&mut pit, 0, 2), count(&mut pit, 0, 1003)), (0x0999, 0x9998));
}

#[test]
fn one_byte_accesses_leave_the_other_byte_zero() {
    let mut pit = Pit::new();
    pit.write(0x43, 0x10, 0);
    pit.write(0x40, 9, 0);
    assert_eq!((pit.read(0x40, at(2)), pit.read(0x40, at(3))), (8, 7));
    pit.write(0x43, 0x20, 0);
    pit.write(0x40, 9, 0);
    assert_eq!(pit.read(0x40, at(2)), 8, "the high byte of 0x8ff");
}

#[test]
fn a_latched_count_stays_until_it_is_read() {
    let mut pit = Pit::new();
    program(&mut pit, 0x34, 1000, 0);
    pit.write(0x43, 0x00, at(11));
    pit.write(0x43, 0x00, at(50));
    let bytes = [pit.read(0x40, at(100)), pit.read(0x40, at(200))];
    assert_eq!(u16::from_le_bytes(bytes), 990);
    assert_eq!(pit.read(0x40, at(1)), (1000u16 & 0xff) as u8, "live again");
}

#[test]
fn the_read_back_command_latches_status_before_count() {
    let mut pit = Pit::new();
    pit.write(0x43, 0x34, 0);
    pit.write(0x43, 0xe2, 0);
    assert_eq!(pit.read(0x40, 0), 0xf4, "output high, null count, two bytes, mode 2");
    program(&mut pit, 0x34, 1000, 0);
    pit.write(0x43, 0xc2, at(11));
    assert_eq!(pit.read(0x40, at(20)), 0xb4);
    assert_eq!(
        u16::from_le_bytes([pit.read(0x40, at(20)), pit.read(0x40, at(20))]),
        990
    );
}

#[test]
fn port_61_shows_gate_refresh_and_output() {
    let mut pit = Pit::new();
    program(&mut pit, 0xb0, 10, 0);
    assert_eq!(pit.read(0x61, 0), 0x00);
    pit.write(0x61, 0xff, 0);
    assert_eq!(pit.read(0x61, 0) & 0x2f, 0x0f);
    assert_eq!(pit.read(0x61, at(20)) & 0x2f, 0x2f);
    assert_ne!(pit.read(0x61, 0) & 0x10, pit.read(0x61, REFRESH) & 0x10);
}

#[test]
fn the_line_of_counter_0_rises_once_per_period_whoever_looks_how_late() {
    let mut pit = Pit::new();
    program(&mut pit, 0x34, 100, 0);
    assert_eq!(
        pit.update(at(0)),
        Line {
            rose: false,
            level: true
        }
    );
    assert_eq!(pit.deadline(), Some(at(101)));
    assert_eq!(
        pit.update(at(101) - 1),
        Line {
            rose: false,
            level: false
        }
    );
    assert_eq!(
        pit.update(at(101)),
        Line {
            rose: true,
            level: true
        }
    );
    assert_eq!(
        pit.update(at(101)),
        Line {
            rose: false,
            level: true
        }
    );
    assert_eq!(
        pit.update(at(950)),
        Line {
            rose: true,
            level: true
        }
    );
    assert_eq!(pit.deadline(), Some(at(1001)));
}

#[test]
fn a_mode_0_count_has_one_deadline() {
    let mut pit = Pit::new();
    program(&mut pit, 0x30, 100, 0);
    assert_eq!(
        pit.update(0),
        Line {
            rose: false,
            level: false
        }
    );
    assert_eq!(pit.deadline(), Some(at(101)));
    assert_eq!(
        pit.update(at(101)),
        Line {
            rose: true,
            level: true
        }
    );
    assert_eq!(pit.deadline(), None);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics_and_deadlines_lie_ahead(
        steps in prop::collection::vec((0u16..5, any::<bool>(), any::<u8>(), 0u64..100_000_000), 0..300),
    ) {
        let mut pit = Pit::new();
        let mut now = 0;
        for (port, write, value, step) in steps {
            now += step;
            let port = [0x40, 0x41, 0x42, 0x43, 0x61][usize::from(port)];
            pit.update(now);
            if write { pit.write(port, value, now) } else { pit.read(port, now); }
            pit.update(now);
            if let Some(deadline) = pit.deadline() {
                prop_assert!(deadline > now);
                let mut later = pit.clone();
                prop_assert!(!later.update(deadline - 1).rose);
                prop_assert!(later.update(deadline).rose);
            }
        }
    }
}
