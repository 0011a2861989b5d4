use proptest::prelude::*;

use super::*;
use crate::testing::{Events, access, accesses, through_json};

struct World {
    bus: Bus,
    i8042: Arc<I8042>,
    events: Arc<Events>,
}

impl World {
    fn new() -> Self {
        let (bus, events) = (Bus::new(), Arc::new(Events::default()));
        let i8042 = Arc::new(I8042::new(events.clone()));
        i8042.attach(&bus).unwrap();
        Self { bus, i8042, events }
    }

    fn status(&self) -> u8 {
        self.bus.read(Space::Port, COMMAND_PORT, 1).wait() as u8
    }

    fn data(&self) -> u8 {
        self.bus.read(Space::Port, DATA_PORT, 1).wait() as u8
    }

    fn command(&self, code: u8) {
        assert_eq!(self.bus.write(Space::Port, COMMAND_PORT, 1, code.into()).wait(), 0);
    }

    fn write(&self, byte: u8) {
        assert_eq!(self.bus.write(Space::Port, DATA_PORT, 1, byte.into()).wait(), 0);
    }

    /// What the controller answers to a command, if it does.
    fn ask(&self, code: u8) -> Option<u8> {
        self.command(code);
        (self.status() & status::OUTPUT_FULL != 0).then(|| self.data())
    }
}

#[test]
fn the_reset_command_resets_the_machine() {
    let world = World::new();
    world.command(0xfe);
    assert_eq!(world.events.take(), [MachineEvent::Reset]);
}

#[test]
fn the_reset_line_of_the_output_port_resets_the_machine() {
    let world = World::new();
    world.command(0xd1);
    world.write(0xdf);
    assert_eq!(world.events.take(), [], "A20 alone");
    world.command(0xd1);
    world.write(0xde);
    assert_eq!(world.events.take(), [MachineEvent::Reset]);
}

#[test]
fn other_pulses_do_not_reset() {
    let world = World::new();
    for code in [0xf1, 0xfd, 0xff] {
        world.command(code);
    }
    assert_eq!(world.events.take(), []);
}

#[test]
fn the_ports_between_are_free() {
    let world = World::new();
    assert_eq!(world.bus.read(Space::Port, 0x61, 1).wait(), 0xff);
    assert_eq!(
        world.bus.claims().iter().map(|claim| claim.start).collect::<Vec<_>>(),
        [0x60, 0x64]
    );
}

#[test]
fn a_probing_driver_finds_a_sound_controller() {
    let world = World::new();
    assert_eq!(
        world.status() & (status::OUTPUT_FULL | 2),
        0,
        "nothing to flush, ready for a command"
    );
    assert_eq!(world.ask(0xaa), Some(0x55), "self-test");
    let before = world.ask(0x20).unwrap();
    world.command(0x60);
    world.write(before | 0x01);
    assert_eq!(world.ask(0x20), Some(before | 0x01));
    assert_eq!(world.ask(0xab), Some(0x00), "keyboard interface");
    assert_eq!(world.ask(0xa9), Some(0x00), "auxiliary interface");
    // Loopback through the auxiliary output buffer, which Linux tries.
    world.command(0xd3);
    world.write(0xa5);
    assert_eq!(world.status() & 0x21, 0x21);
    assert_eq!(world.data(), 0xa5);
    world.command(0xa7);
    assert_eq!(world.ask(0x20).unwrap() & AUX_OFF, AUX_OFF);
    world.command(0xa8);
    assert_eq!(world.ask(0x20).unwrap() & AUX_OFF, 0);
}

#[test]
fn nobody_is_behind_the_controller() {
    let world = World::new();
    world.write(0xf2);
    assert_eq!(
        world.status() & (status::OUTPUT_FULL | status::TIMEOUT),
        status::OUTPUT_FULL | status::TIMEOUT
    );
    assert_eq!(world.data(), NO_ANSWER);
    assert_eq!(world.status() & (status::OUTPUT_FULL | status::TIMEOUT), 0);
    world.command(0xd4);
    world.write(0xf2);
    assert_eq!(world.status() & status::AUX_OUTPUT, status::AUX_OUTPUT);
    assert_eq!(world.data(), NO_ANSWER);
}

#[test]
fn the_status_tells_which_port_was_written_last() {
    let world = World::new();
    world.command(0x60);
    assert_eq!(world.status() & status::COMMAND, status::COMMAND);
    world.write(0);
    assert_eq!(world.status() & status::COMMAND, 0);
}

#[test]
fn state_survives_saving_and_restoring_amid_a_command() {
    let old = World::new();
    old.command(0x60);
    let saved = serde_json::to_string(&old.i8042.state()).unwrap();
    let new = World::new();
    new.i8042.restore(&serde_json::from_str(&saved).unwrap());
    new.write(0x42);
    assert_eq!(new.ask(0x20), Some(0x42));
}

proptest! {
    #[test]
    fn no_access_panics(accesses in prop::collection::vec((any::<bool>(), any::<Option<u8>>()), 0..200)) {
        let world = World::new();
        for (data, written) in accesses {
            match (data, written) {
                (false, Some(code)) => world.command(code),
                (true, Some(byte)) => world.write(byte),
                (false, None) => prop_assert_eq!(world.status() & 2, 0, "always ready"),
                (true, None) => {
                    world.data();
                    prop_assert_eq!(world.status() & status::OUTPUT_FULL, 0);
                }
            }
        }
    }

    #[test]
    fn a_restored_controller_goes_on_as_the_saved_one(before in accesses(5), after in accesses(5)) {
        let (own, other) = (World::new(), World::new());
        for what in before {
            access(&*own.i8042, what);
        }
        let saved = own.i8042.state();
        other.i8042.restore(&through_json(&saved));
        prop_assert_eq!(other.i8042.state(), saved);
        drop(own.events.take());
        for what in after {
            prop_assert_eq!(access(&*own.i8042, what), access(&*other.i8042, what));
            prop_assert_eq!(own.events.take(), other.events.take());
        }
        prop_assert_eq!(own.i8042.state(), other.i8042.state());
    }

    #[test]
    fn no_state_panics_or_shows_bits_that_are_not_there(
        ram: [u8; 32], output: u8, status: u8, awaiting: Option<u8>, after in accesses(5),
    ) {
        let world = World::new();
        world.i8042.restore(&I8042State { ram, output, status, awaiting });
        prop_assert_eq!(world.status() & !(status::VARIABLE | status::SYSTEM | status::NOT_INHIBITED), 0);
        for what in after {
            access(&*world.i8042, what);
        }
    }
}
