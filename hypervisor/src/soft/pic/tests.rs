use proptest::prelude::*;

use super::*;

/// A pair as a PC's kernel initialises it: vectors 0x30 and 0x38, every line unmasked.
fn initialised(icw4: u8) -> Pic {
    let mut pic = Pic::new();
    for (port, words) in [(0x20, [0x11, 0x30, 0x04, icw4]), (0xa0, [0x11, 0x38, 0x02, icw4])] {
        pic.write(port, words[0]);
        for word in &words[1..] {
            pic.write(port + 1, *word);
        }
    }
    pic
}

fn pc() -> Pic {
    initialised(0x01)
}

fn pulse(pic: &mut Pic, irq: u8) {
    pic.set_line(irq, true);
    pic.set_line(irq, false);
}

fn irr(pic: &mut Pic, port: u16) -> u8 {
    pic.write(port, 0x0a);
    pic.read(port)
}

fn isr(pic: &mut Pic, port: u16) -> u8 {
    pic.write(port, 0x0b);
    pic.read(port)
}

#[test]
fn a_request_becomes_its_vector() {
    let mut pic = pc();
    assert!(!pic.output());
    pulse(&mut pic, 4);
    assert!(pic.output());
    assert_eq!(irr(&mut pic, 0x20), 0x10);
    assert_eq!(pic.acknowledge(), 0x34);
    assert_eq!(
        (irr(&mut pic, 0x20), isr(&mut pic, 0x20), pic.output()),
        (0, 0x10, false)
    );
}

#[test]
fn a_higher_priority_nests_and_a_lower_one_waits() {
    let mut pic = pc();
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x34);
    pulse(&mut pic, 5);
    assert!(!pic.output());
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    pic.write(0x20, 0x20);
    assert_eq!(
        isr(&mut pic, 0x20),
        0x10,
        "the non-specific end is for the highest in service"
    );
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn the_second_chip_comes_through_line_2() {
    let mut pic = pc();
    pulse(&mut pic, 8);
    assert_eq!(irr(&mut pic, 0x20), 0x04);
    assert_eq!(pic.acknowledge(), 0x38);
    assert_eq!((isr(&mut pic, 0x20), isr(&mut pic, 0xa0)), (0x04, 0x01));
    pulse(&mut pic, 9);
    assert!(!pic.output());
    pic.write(0xa0, 0x20);
    assert!(!pic.output(), "line 2 of the first chip is still in service");
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x39);
}

#[test]
fn special_fully_nested_mode_lets_the_second_chip_nest() {
    let mut pic = initialised(0x11);
    pulse(&mut pic, 9);
    assert_eq!(pic.acknowledge(), 0x39);
    pulse(&mut pic, 8);
    assert_eq!(pic.acknowledge(), 0x38);
}

#[test]
fn with_automatic_end_nothing_stays_in_service() {
    let mut pic = initialised(0x03);
    for irq in [9, 8, 4] {
        pulse(&mut pic, irq);
    }
    assert_eq!(
        [pic.acknowledge(), pic.acknowledge(), pic.acknowledge()],
        [0x38, 0x39, 0x34]
    );
    assert_eq!((isr(&mut pic, 0x20), isr(&mut pic, 0xa0), pic.output()), (0, 0, false));
}

#[test]
fn a_masked_line_keeps_its_request() {
    let mut pic = pc();
    pic.write(0x21, 0x10);
    pulse(&mut pic, 4);
    assert!(!pic.output());
    assert_eq!(pic.read(0x21), 0x10);
    pic.write(0x21, 0);
    assert_eq!(pic.acknowledge(), 0x34);
}

#[test]
fn a_request_that_vanishes_before_the_acknowledge_is_spurious_line_7() {
    let mut pic = pc();
    pic.write(0x4d0, 0x20);
    pic.set_line(5, true);
    assert!(pic.output());
    pic.set_line(5, false);
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(isr(&mut pic, 0x20), 0);
}

#[test]
fn a_spurious_interrupt_of_the_second_chip_leaves_line_2_of_the_first_in_service() {
    let mut pic = pc();
    pic.write(0x4d1, 0x04);
    pic.set_line(10, true);
    pic.set_line(10, false);
    assert_eq!(pic.acknowledge(), 0x3f);
    assert_eq!((isr(&mut pic, 0x20), isr(&mut pic, 0xa0)), (0x04, 0));
}

#[test]
fn a_level_requests_until_it_is_lowered() {
    let mut pic = pc();
    pic.write(0x4d0, 0xff);
    pic.write(0x4d1, 0xff);
    assert_eq!(
        (pic.read(0x4d0), pic.read(0x4d1)),
        (0xf8, 0xde),
        "some lines are always edges"
    );
    pic.set_line(11, true);
    assert_eq!(pic.acknowledge(), 0x3b);
    pic.write(0xa0, 0x20);
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x3b);
    pic.set_line(11, false);
    pic.write(0xa0, 0x20);
    pic.write(0x20, 0x20);
    assert!(!pic.output());
}

#[test]
fn an_edge_held_high_requests_once() {
    let mut pic = pc();
    pic.set_line(4, true);
    pic.acknowledge();
    pic.write(0x20, 0x64);
    assert!(!pic.output());
    pic.set_line(4, true);
    assert!(!pic.output());
}

#[test]
fn a_specific_end_ends_its_line() {
    let mut pic = pc();
    for irq in [4, 1] {
        pulse(&mut pic, irq);
        pic.acknowledge();
    }
    pic.write(0x20, 0x64);
    assert_eq!(isr(&mut pic, 0x20), 0x02);
}

#[test]
fn rotation_makes_the_line_just_served_the_lowest() {
    let mut pic = pc();
    pulse(&mut pic, 4);
    pic.acknowledge();
    pic.write(0x20, 0xa0);
    for irq in [4, 0, 5] {
        pulse(&mut pic, irq);
    }
    assert_eq!(pic.acknowledge(), 0x35);
    pic.write(0x20, 0xe0);
    assert_eq!(isr(&mut pic, 0x20), 0x20, "the specific rotation ended line 0, not 5");
    pic.write(0x20, 0x65);
    assert_eq!(pic.acknowledge(), 0x34, "after line 0 became the lowest");
}

#[test]
fn the_priority_can_be_set_outright() {
    let mut pic = pc();
    pic.write(0x20, 0xc3);
    for irq in [3, 4] {
        pulse(&mut pic, irq);
    }
    assert_eq!(pic.acknowledge(), 0x34);
}

#[test]
fn automatic_end_can_rotate() {
    let mut pic = initialised(0x03);
    pic.write(0x20, 0x80);
    for irq in [0, 1] {
        pulse(&mut pic, irq);
    }
    assert_eq!(pic.acknowledge(), 0x30);
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x31);
}

#[test]
fn special_mask_mode_lets_lower_lines_through_a_masked_one_in_service() {
    let mut pic = pc();
    pulse(&mut pic, 4);
    pic.acknowledge();
    pulse(&mut pic, 6);
    pic.write(0x21, 0x10);
    assert!(!pic.output());
    pic.write(0x20, 0x68);
    assert_eq!(pic.acknowledge(), 0x36);
    pic.write(0x20, 0x20);
    assert_eq!(
        isr(&mut pic, 0x20),
        0x10,
        "the masked line is not ended by a non-specific end"
    );
    pic.write(0x20, 0x48);
    pic.write(0x21, 0);
    pulse(&mut pic, 6);
    assert!(!pic.output());
}

#[test]
fn a_poll_acknowledges() {
    let mut pic = pc();
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20), 0);
    pulse(&mut pic, 4);
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20), 0x84);
    assert_eq!(isr(&mut pic, 0x20), 0x10);
}

#[test]
fn initialising_again_clears_mask_service_and_edges() {
    let mut pic = pc();
    pulse(&mut pic, 4);
    pic.acknowledge();
    pulse(&mut pic, 5);
    pic.write(0x21, 0xff);
    pic.write(0x20, 0x11);
    for word in [0x50, 0x04, 0x01] {
        pic.write(0x21, word);
    }
    assert_eq!((pic.read(0x21), irr(&mut pic, 0x20), isr(&mut pic, 0x20)), (0, 0, 0));
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x54);
}

#[test]
fn a_single_chip_skips_the_third_word_and_without_the_fourth_it_is_zero() {
    let mut pic = initialised(0x03);
    pic.write(0x20, 0x12);
    pic.write(0x21, 0x60);
    pic.write(0x21, 0xfe);
    assert_eq!(pic.read(0x21), 0xfe, "the mask, not a command word");
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x60);
    assert_eq!(isr(&mut pic, 0x20), 0x01, "no automatic end");
}

proptest! {
    #[test]
    fn an_acknowledge_gives_the_vector_of_the_request_or_the_spurious_one(
        steps in prop::collection::vec((0u8..5, any::<u8>(), any::<u8>()), 0..300),
    ) {
        let mut pic = pc();
        for (kind, place, value) in steps {
            let port = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][usize::from(place % 6)];
            match kind {
                0 => pic.set_line(place % 18, value & 1 != 0),
                1 => pic.write(port, value),
                2 => { pic.read(port); }
                3 => pulse(&mut pic, place % 16),
                _ if pic.output() => {
                    let chips = pic.chips.clone();
                    let vector = pic.acknowledge();
                    match chips[0].request() {
                        Some(2) => prop_assert_eq!(vector, chips[1].vector(chips[1].request().unwrap_or(7))),
                        line => prop_assert_eq!(Some(vector), line.map(|line| chips[0].vector(line))),
                    }
                }
                _ => {
                    let vector = pic.acknowledge();
                    prop_assert_eq!(vector, pic.chips[0].vector(7));
                }
            }
        }
    }
}
