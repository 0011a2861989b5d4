//! Where a guest's ACPI learns which PCI devices came, which are to go, and says which it has let go of.
//!
//! # Purpose
//! Bus 0 has no native hot-plug. The DSDT's methods read these registers when the general-purpose event
//! [`GPE_PCI`](crate::acpi::ports::GPE_PCI) is raised, and notify the slots' devices; `_EJ0` writes here. The DSDT repeats the
//! numbers in this module.
//!
//! # Invariants
//! - A device that is to go is there until the guest ejects it. Nothing is ejected that was not asked for: a guest that turns
//!   a slot off by itself finds the device again when it turns it on.
//! - A request is told once; who asks again raises it again.
//!
//! # Life
//! [`Hotplug::remove`] -the guest reads [`REMOVED`]-> told -the guest writes [`EJECT`]-> gone.

use std::fmt;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::acpi::Acpi;
use crate::bus::{Bus, BusError, Device, Response, Space};
use crate::sync::lock;

/// The first port.
pub const PORT: u64 = 0x620;
/// The number of ports: three registers of 32 bits, one bit for each device number. Only whole registers can be accessed.
pub const PORTS: u64 = 12;
/// Read: the devices that came since this was read last.
pub const ADDED: u64 = 0;
/// Read: the devices whose removal was asked for since this was read last.
pub const REMOVED: u64 = 4;
/// Write: the devices that the guest has let go of.
pub const EJECT: u64 = 8;

/// What a [`Hotplug`] remembers: one bit for each device number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugState {
    /// Devices that came, of which the guest does not know yet.
    pub added: u32,
    /// Devices that are to go, of which the guest does not know yet.
    pub removed: u32,
    /// Devices that are to go and are still there.
    pub going: u32,
}

/// Who takes the device away that the guest has let go of, by its device number. The caller is a vCPU amid an access: it must
/// not wait.
pub type OnEject = Box<dyn Fn(u8) + Send + Sync>;

/// The registers.
pub struct Hotplug {
    state: Mutex<HotplugState>,
    acpi: Arc<Acpi>,
    on_eject: OnEject,
}

impl Hotplug {
    /// Registers that tell of nothing, raise their event in `acpi`, and call `on_eject`.
    #[must_use]
    pub fn new(acpi: Arc<Acpi>, on_eject: OnEject) -> Self {
        Self {
            state: Mutex::default(),
            acpi,
            on_eject,
        }
    }

    /// Puts the registers at [`PORT`].
    ///
    /// # Errors
    /// [`BusError`] if a port is taken.
    pub fn attach(self: &Arc<Self>, bus: &Bus) -> Result<(), BusError> {
        bus.insert(Space::Port, PORT, PORTS, Arc::clone(self) as Arc<dyn Device>)
    }

    /// Tells the guest that there is a device at `number` now.
    pub fn add(&self, number: u8) {
        lock(&self.state).added |= bit(number);
        self.acpi.raise_pci_event();
    }

    /// Asks the guest to let go of the device at `number`.
    pub fn remove(&self, number: u8) {
        {
            let mut state = lock(&self.state);
            state.removed |= bit(number);
            state.going |= bit(number);
            // It need not hear of what it came for.
            state.added &= !bit(number);
        }
        self.acpi.raise_pci_event();
    }

    /// Whether the device at `number` is to go.
    #[must_use]
    pub fn is_going(&self, number: u8) -> bool {
        lock(&self.state).going & bit(number) != 0
    }

    /// What is remembered.
    #[must_use]
    pub fn state(&self) -> HotplugState {
        *lock(&self.state)
    }

    /// Goes on from `state`; the event is part of ACPI's state.
    pub fn restore(&self, state: HotplugState) {
        *lock(&self.state) = state;
    }

    fn eject(&self, numbers: u32) {
        let granted = {
            let mut state = lock(&self.state);
            let granted = numbers & state.going;
            state.going &= !granted;
            state.removed &= !granted;
            granted
        };
        if numbers != granted {
            tracing::debug!(devices = numbers & !granted, "a guest ejects devices that are to stay");
        }
        for number in (0..32).filter(|number| granted & bit(*number) != 0) {
            (self.on_eject)(number);
        }
    }
}

fn bit(number: u8) -> u32 {
    1_u32.checked_shl(number.into()).unwrap_or(0)
}

impl Device for Hotplug {
    fn name(&self) -> &str {
        "pci-hotplug"
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        let mut state = lock(&self.state);
        let value = match (offset, size) {
            (ADDED, 4) => std::mem::take(&mut state.added).into(),
            (REMOVED, 4) => std::mem::take(&mut state.removed).into(),
            (EJECT, 4) => 0,
            _ => u64::MAX,
        };
        Response::Done(value)
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        if (offset, size) == (EJECT, 4) {
            self.eject(value as u32);
        }
        Response::Done(0)
    }
}

impl fmt::Debug for Hotplug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hotplug").field(&self.state()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::ports;
    use crate::testing::{Events, Line, TestClock};

    struct World {
        bus: Bus,
        hotplug: Arc<Hotplug>,
        ejected: Arc<Mutex<Vec<u8>>>,
    }

    impl World {
        fn new() -> Self {
            let bus = Bus::new();
            let acpi = Arc::new(Acpi::new(
                Arc::new(TestClock::default()),
                Arc::new(Line::default()),
                Arc::new(Events::default()),
            ));
            acpi.attach(&bus).unwrap();
            let ejected = Arc::new(Mutex::new(Vec::new()));
            let told = Arc::clone(&ejected);
            let hotplug = Hotplug::new(acpi, Box::new(move |number| told.lock().unwrap().push(number)));
            let hotplug = Arc::new(hotplug);
            hotplug.attach(&bus).unwrap();
            Self { bus, hotplug, ejected }
        }

        fn read(&self, port: u64, size: u8) -> u64 {
            self.bus.read(Space::Port, port, size).wait()
        }

        fn eject(&self, bits: u64) -> Vec<u8> {
            let _ = self.bus.write(Space::Port, PORT + EJECT, 4, bits).wait();
            std::mem::take(&mut *self.ejected.lock().unwrap())
        }

        fn event(&self) -> bool {
            let raised = self.read(ports::GPE0, 1) != 0;
            let _ = self.bus.write(Space::Port, ports::GPE0, 1, 0xff).wait();
            raised
        }
    }

    #[test]
    fn what_came_and_what_is_to_go_is_told_once_with_an_event() {
        let world = World::new();
        assert!(!world.event());
        world.hotplug.add(3);
        assert!(world.event());
        world.hotplug.remove(31);
        assert!(world.event());
        assert_eq!((world.read(PORT, 4), world.read(PORT + REMOVED, 4)), (1 << 3, 1 << 31));
        assert_eq!((world.read(PORT, 4), world.read(PORT + REMOVED, 4)), (0, 0));
        world.hotplug.remove(31);
        assert_eq!(world.read(PORT + REMOVED, 4), 1 << 31, "who asks again is heard again");
    }

    #[test]
    fn only_what_is_to_go_is_ejected_and_only_once() {
        let world = World::new();
        world.hotplug.remove(2);
        world.hotplug.remove(5);
        assert!(world.eject(0xffff_ffdb).is_empty());
        assert_eq!(world.eject(0xffff_ffff), [2, 5]);
        assert!(!world.hotplug.is_going(2));
        assert!(world.eject(0xffff_ffff).is_empty());
        assert_eq!(world.read(PORT + REMOVED, 4), 0, "nobody need hear of it any more");
    }

    #[test]
    fn parts_of_registers_are_no_registers() {
        let world = World::new();
        world.hotplug.remove(1);
        for (offset, size) in [(0, 1), (1, 4), (4, 2), (4, 8), (5, 4), (9, 1), (10, 2)] {
            let ones = if size == 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
            assert_eq!(world.read(PORT + offset, size), ones, "{offset} {size}");
            let _ = world.bus.write(Space::Port, PORT + offset, size, u64::MAX).wait();
        }
        assert_eq!(world.eject(2), [1], "it is still to go");
        assert_eq!(world.read(PORT + EJECT, 4), 0);
    }

    #[test]
    fn what_is_to_go_is_to_go_in_the_next_machine() {
        let (own, other) = (World::new(), World::new());
        own.hotplug.add(1);
        own.hotplug.remove(2);
        other
            .hotplug
            .restore(crate::testing::through_json(&own.hotplug.state()));
        assert_eq!((other.read(PORT, 4), other.read(PORT + REMOVED, 4)), (2, 4));
        assert_eq!(other.eject(4), [2]);
    }
}
