use super::super::lapic::{Now, spec};
use super::super::message::{Delivery, decode_msi};
use super::*;

const NOW: Now = Now { clock: 0, tsc: 0 };

/// A machine whose local APICs are enabled by software.
pub(super) fn machine(vcpus: usize) -> Chipset {
    let chipset = Chipset::new(vcpus);
    for seat in chipset.seats() {
        seat.lapic().write_page(u64::from(spec::SVR) << 4, 4, 0x1ff, NOW);
    }
    chipset
}

/// Writes redirection entry `pin`.
pub(super) fn redirect(chipset: &Chipset, pin: u64, entry: u64) {
    for (index, value) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry & 0xffff_ffff)] {
        assert!(chipset.write_memory(ioapic::BASE, index));
        assert!(chipset.write_memory(ioapic::BASE + 0x10, value));
    }
}

/// Which vCPUs have `vector` pending.
pub(super) fn takers(chipset: &Chipset) -> Vec<(usize, u8)> {
    let take = |(index, seat): (usize, &Seat)| seat.lapic().pending().map(|vector| (index, vector));
    chipset.seats().iter().enumerate().filter_map(take).collect()
}

pub(super) fn end(chipset: &Chipset, index: usize) {
    let effect = chipset.seats()[index]
        .lapic()
        .write_page(u64::from(spec::EOI) << 4, 4, 0, NOW);
    chipset.perform(effect);
}

#[test]
fn a_line_goes_through_the_io_apic_to_the_processor_it_names() {
    let chipset = machine(3);
    redirect(&chipset, 5, 0x0200_0000_0000_0041);
    chipset.change_line(5, true);
    assert_eq!(takers(&chipset), [(2, 0x41)]);
    let rung: Vec<_> = chipset.seats().iter().map(|seat| seat.bell.rung()).collect();
    assert_eq!(rung, [false, false, true]);
}

#[test]
fn a_level_line_interrupts_again_after_its_end_until_every_source_lets_go() {
    let chipset = machine(1);
    redirect(&chipset, 5, 0x8041);
    chipset.change_line(5, true);
    chipset.change_line(5, true);
    for sources_that_let_go in [0, 1, 2] {
        assert_eq!(chipset.seats()[0].lapic().take(), Some(0x41));
        if sources_that_let_go > 0 {
            chipset.change_line(5, false);
        }
        end(&chipset, 0);
    }
    assert_eq!(takers(&chipset), []);
}

#[test]
fn lines_below_16_reach_the_pics_and_so_the_bootstrap_processor() {
    let chipset = Chipset::new(2);
    for (port, words) in [(0x20, [0x11, 0x30, 0x04, 0x01]), (0xa0, [0x11, 0x38, 0x02, 0x01])] {
        assert!(chipset.write_ports(port, 1, words[0]));
        words[1..]
            .iter()
            .for_each(|word| assert!(chipset.write_ports(port + 1, 1, *word)));
    }
    chipset.change_line(12, true);
    assert!(chipset.seats()[0].bell.rung() && chipset.seats()[0].lapic().external_pending());
    assert!(!chipset.seats()[1].bell.rung());
    assert_eq!(chipset.acknowledge_pic(), 0x3c);
    assert!(!chipset.seats()[0].lapic().external_pending());
}

#[test]
fn lowest_priority_goes_to_the_least_busy_and_equals_take_turns() {
    let chipset = machine(3);
    let message = Message {
        destination: Destination::Everyone,
        delivery: Delivery::Fixed(0x41),
        level: false,
        lowest: true,
    };
    chipset.seats()[1].lapic().set_cr8(2);
    let mut counts = [0; 3];
    for _ in 0..4 {
        assert!(chipset.deliver(&message));
        let [(index, _)] = takers(&chipset)[..] else {
            panic!("one taker")
        };
        chipset.seats()[index].lapic().take();
        end(&chipset, index);
        counts[index] += 1;
    }
    assert_eq!(counts, [2, 0, 2]);
}

#[test]
fn a_message_for_nobody_is_not_accepted() {
    let chipset = machine(2);
    assert!(!chipset.deliver(&decode_msi(0xfee0_9000, 0x41).unwrap()));
    assert!(chipset.deliver(&decode_msi(0xfee0_1000, 0x41).unwrap()));
    assert_eq!(takers(&chipset), [(1, 0x41)]);
}

#[test]
fn the_pit_drives_pin_2_and_irq_0() {
    let chipset = machine(1);
    redirect(&chipset, 2, 0x30);
    chipset.set_paused(true);
    chipset.write_ports(0x43, 1, 0x30);
    // One pulse; two with the one that loads the count.
    chipset.write_ports(0x40, 1, 1);
    chipset.write_ports(0x40, 1, 0);
    assert_eq!(takers(&chipset), []);
    chipset.set_paused(false);
    let programmed = chipset.clock.now();
    while chipset.clock.now() < programmed + 5_000 {
        std::thread::yield_now();
    }
    chipset.goes_off(1);
    assert_eq!(takers(&chipset), [(0, 0x30)]);
    assert_eq!(chipset.read_ports(0x20, 1), Some(1), "requested at the PIC, too");
}

#[test]
fn wide_port_accesses_are_byte_accesses_side_by_side() {
    let chipset = machine(1);
    chipset.write_ports(0x4d0, 2, 0xffff);
    assert_eq!(chipset.read_ports(0x4d0, 2), Some(0xdef8));
    assert_eq!(chipset.read_ports(0x4d1, 2), Some(0xffde));
    assert_eq!(
        (chipset.read_ports(0x60, 1), chipset.write_ports(0x60, 1, 0)),
        (None, false)
    );
}

#[test]
fn the_io_apic_window_ends_where_it_ends() {
    let chipset = machine(1);
    assert_eq!(chipset.read_memory(ioapic::BASE - 1, 1), None);
    assert_eq!(chipset.read_memory(ioapic::BASE + ioapic::LENGTH, 4), None);
    assert!(chipset.read_memory(ioapic::BASE, 4).is_some());
}

#[test]
fn two_threads_on_one_line_leave_it_as_the_last_one_says() {
    let chipset = machine(1);
    redirect(&chipset, 5, 0x8041);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..500 {
                    chipset.change_line(5, true);
                    chipset.change_line(5, false);
                }
            });
        }
    });
    chipset.seats()[0].lapic().take();
    end(&chipset, 0);
    assert_eq!(takers(&chipset), []);
}
