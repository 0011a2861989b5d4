use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;

use super::*;
use crate::testing::{Events, Line, TestClock, access, accesses, through_json};

/// Where a driver finds the enable half of the event block.
const PM1A_EN: u64 = ports::PM1A_EVT + ports::PM1A_EVT_LENGTH / 2;
const PWRBTN: u64 = 1 << 8;

struct World {
    bus: Bus,
    acpi: Arc<Acpi>,
    clock: Arc<TestClock>,
    sci: Arc<Line>,
    events: Arc<Events>,
}

impl World {
    fn new() -> Self {
        let (bus, clock) = (Bus::new(), Arc::new(TestClock::default()));
        let (sci, events) = (Arc::new(Line::default()), Arc::new(Events::default()));
        let acpi = Arc::new(Acpi::new(clock.clone(), sci.clone(), events.clone()));
        acpi.attach(&bus).unwrap();
        Self {
            bus,
            acpi,
            clock,
            sci,
            events,
        }
    }

    fn read(&self, port: u64, size: u8) -> u64 {
        self.bus.read(Space::Port, port, size).wait()
    }

    fn write(&self, port: u64, size: u8, value: u64) {
        assert_eq!(self.bus.write(Space::Port, port, size, value).wait(), 0);
    }

    fn timer_after(&self, nanoseconds: u64) -> u64 {
        self.clock.nanoseconds.store(nanoseconds, SeqCst);
        self.read(ports::PM_TMR, 4)
    }
}

#[test]
fn the_machine_starts_in_acpi_mode_and_stays() {
    let world = World::new();
    assert_eq!(world.read(ports::PM1A_CNT, 2), 1);
    world.write(ports::PM1A_CNT, 2, 0);
    assert_eq!(world.read(ports::PM1A_CNT, 2), 1);
}

#[test]
fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
    let world = World::new();
    world.write(PM1A_EN, 2, PWRBTN);
    world.acpi.press_power_button();
    assert_eq!(world.sci.take(), [true]);
    assert_eq!(world.read(ports::PM1A_EVT, 2), PWRBTN);
    world.write(ports::PM1A_EVT, 2, PWRBTN);
    assert_eq!(world.sci.take(), [false]);
    assert_eq!(world.read(ports::PM1A_EVT, 2), 0);
}

#[test]
fn a_button_pressed_before_its_event_is_enabled_waits() {
    let world = World::new();
    world.acpi.press_power_button();
    assert!(world.sci.take().is_empty());
    world.write(PM1A_EN, 2, PWRBTN);
    assert_eq!(world.sci.take(), [true]);
    world.write(PM1A_EN, 2, 0);
    assert_eq!(world.sci.take(), [false]);
}

#[test]
fn a_status_bit_is_cleared_by_writing_one_and_kept_by_writing_zero() {
    let world = World::new();
    world.acpi.press_power_button();
    world.write(ports::PM1A_EVT, 2, 0xffff & !PWRBTN);
    assert_eq!(world.read(ports::PM1A_EVT, 2), PWRBTN);
    world.write(ports::PM1A_EVT + 1, 1, 1);
    assert_eq!(world.read(ports::PM1A_EVT, 2), 0);
}

#[test]
fn the_event_of_pci_raises_the_sci_until_its_status_is_cleared_and_waits_to_be_enabled() {
    let world = World::new();
    let (status, enable) = (ports::GPE0, ports::GPE0 + 1);
    world.acpi.raise_pci_event();
    assert!(world.sci.take().is_empty());
    world.write(enable, 1, 0xff);
    assert_eq!(world.read(status, 2), 0x0202, "there is one event");
    assert_eq!(world.sci.take(), [true]);
    world.write(status, 1, 0xfd);
    assert_eq!(world.sci.take(), Vec::<bool>::new(), "zero keeps it");
    world.write(status, 1, 2);
    assert_eq!(world.sci.take(), [false]);
}

#[test]
fn status_and_enable_can_be_read_together() {
    let world = World::new();
    world.write(PM1A_EN, 2, 0x0120);
    world.acpi.press_power_button();
    assert_eq!(world.read(ports::PM1A_EVT, 4), 0x0120_0100);
}

#[test]
fn sleep_state_s5_powers_off() {
    let world = World::new();
    let s5 = u64::from(ports::SLP_TYP_S5) << 10;
    world.write(ports::PM1A_CNT, 2, s5);
    assert_eq!(world.events.take(), [], "SLP_TYP alone does nothing");
    assert_eq!(world.read(ports::PM1A_CNT, 2), s5 | 1);
    world.write(ports::PM1A_CNT, 2, s5 | 1 << 13 | 1);
    assert_eq!(world.events.take(), [MachineEvent::PowerOff]);
    assert_eq!(world.read(ports::PM1A_CNT, 2) & 1 << 13, 0, "SLP_EN is write-only");
}

#[test]
fn sleep_states_that_do_not_exist_do_nothing() {
    let world = World::new();
    for sleep in (0..8).filter(|sleep| *sleep != u64::from(ports::SLP_TYP_S5)) {
        world.write(ports::PM1A_CNT, 2, sleep << 10 | 1 << 13);
    }
    assert_eq!(world.events.take(), []);
}

#[test]
fn the_reset_register_resets_with_its_value_only() {
    let world = World::new();
    world.write(ports::RESET, 1, 0);
    world.write(ports::RESET, 1, 6);
    assert_eq!(world.events.take(), []);
    world.write(ports::RESET, 1, ports::RESET_VALUE.into());
    assert_eq!(world.events.take(), [MachineEvent::Reset]);
}

#[test]
fn the_timer_counts_3579545_times_a_second_however_often_it_is_read() {
    let world = World::new();
    assert_eq!(world.timer_after(0), 0);
    assert_eq!(world.timer_after(279), 0);
    assert_eq!(world.timer_after(280), 1);
    for nanoseconds in (0..1_000_000_000).step_by(1_000_003) {
        world.timer_after(nanoseconds);
    }
    assert_eq!(
        world.timer_after(1_000_000_000),
        3_579_545,
        "no fraction was lost on the way"
    );
    assert_eq!(world.read(ports::PM_TMR, 2), 3_579_545 & 0xffff);
}

#[test]
fn the_timer_wraps_at_32_bits_and_says_so_in_its_status() {
    let world = World::new();
    let wrap = (1_u64 << 32) * 1_000_000_000 / ports::PM_TMR_FREQUENCY + 1;
    assert_eq!(world.timer_after(wrap / 2 - 1000) >> 16, 0x7fff);
    assert_eq!(world.read(ports::PM1A_EVT, 2), 0);
    assert_eq!(world.timer_after(wrap / 2 + 1000) >> 16, 0x8000);
    assert_eq!(world.read(ports::PM1A_EVT, 2), 1, "the top bit changed");
    world.write(ports::PM1A_EVT, 2, 1);
    assert_eq!(world.timer_after(wrap + 280), 1);
    assert_eq!(world.read(ports::PM1A_EVT, 2), 1);
}

#[test]
fn a_clock_that_goes_back_does_not_turn_the_timer_back() {
    let world = World::new();
    assert_eq!(world.timer_after(1_000_000), 3579);
    assert_eq!(world.timer_after(0), 3579);
    assert_eq!(world.timer_after(1_000_280), 3580);
}

#[test]
fn state_survives_saving_and_restoring() {
    let old = World::new();
    old.write(PM1A_EN, 2, PWRBTN);
    old.timer_after(1_000_000_000);
    old.acpi.press_power_button();
    let saved = serde_json::to_string(&old.acpi.state()).unwrap();

    let new = World::new();
    new.clock.nanoseconds.store(5, SeqCst);
    new.acpi.restore(&serde_json::from_str(&saved).unwrap());
    assert_eq!(new.sci.take(), [true], "the pending event interrupts here");
    assert_eq!(new.acpi.state(), old.acpi.state());
    assert_eq!(new.timer_after(1_000_000_005), 2 * 3_579_545);
}

#[test]
fn a_restored_state_has_no_bits_that_do_not_exist() {
    let world = World::new();
    let state = AcpiState {
        pm1_status: 0xffff,
        pm1_enable: 0xffff,
        pm1_control: 0xffff,
        timer: u64::MAX,
        timer_fraction: u64::MAX,
        gpe0_status: 0xff,
        gpe0_enable: 0xff,
    };
    world.acpi.restore(&state);
    assert_eq!(world.events.take(), []);
    assert_eq!(world.read(PM1A_EN, 2), u64::from(pm1::ENABLES));
    assert_eq!(
        world.read(ports::PM1A_CNT, 2),
        u64::from(control::KEPT | control::SCI_EN)
    );
    assert_eq!(world.read(ports::PM1A_EVT, 2), u64::from(pm1::ENABLES));
    assert_eq!(world.read(ports::GPE0, 2), 0x0202);
    assert_eq!(world.timer_after(280), 1, "wraps, and was as near to a tick as can be");
}

proptest! {
    /// The SCI follows the registers, and nothing panics, whatever a guest does at whatever time.
    #[test]
    fn the_sci_is_up_while_an_enabled_status_is_set(
        accesses in prop::collection::vec(
            (0_u64..16, prop::sample::select(vec![1_u8, 2, 4, 8]), any::<Option<u64>>(), any::<u64>()), 0..100),
    ) {
        let world = World::new();
        let mut level = false;
        for (offset, size, written, time) in accesses {
            world.clock.nanoseconds.store(time, SeqCst);
            match written {
                Some(value) => world.write(ports::BASE + offset, size, value),
                None => drop(world.read(ports::BASE + offset, size)),
            }
            match offset {
                15 => world.acpi.press_power_button(),
                13 => world.acpi.raise_pci_event(),
                _ => {}
            }
            let state = world.acpi.state();
            level = world.sci.take().last().copied().unwrap_or(level);
            let general = state.gpe0_status & state.gpe0_enable != 0;
            prop_assert_eq!(level, general || state.pm1_status & state.pm1_enable != 0);
        }
    }

    #[test]
    fn restored_registers_go_on_as_the_saved_ones(
        before in accesses(ports::LENGTH), after in accesses(ports::LENGTH), times: [u32; 7], ahead: u32,
    ) {
        let (own, other) = (World::new(), World::new());
        let pass = |world: &World, step: usize| world.clock.nanoseconds.fetch_add(times[step % 7].into(), SeqCst);
        for (step, what) in before.into_iter().enumerate() {
            pass(&own, step);
            access(&*own.acpi, what);
        }
        // Its clock need not stand where the other one stood.
        other.clock.nanoseconds.store(ahead.into(), SeqCst);
        let saved = own.acpi.state();
        other.acpi.restore(&through_json(&saved));
        prop_assert_eq!(other.acpi.state(), saved);
        let level = own.sci.take().last().copied().unwrap_or(false);
        prop_assert_eq!(other.sci.take().last().copied().unwrap_or(false), level);
        drop(own.events.take());
        for (step, what) in after.into_iter().enumerate() {
            pass(&own, step);
            pass(&other, step);
            prop_assert_eq!(access(&*own.acpi, what), access(&*other.acpi, what));
            prop_assert_eq!(own.sci.take(), other.sci.take());
            prop_assert_eq!(own.events.take(), other.events.take());
        }
        prop_assert_eq!(own.acpi.state(), other.acpi.state());
    }
}
