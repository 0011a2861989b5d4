//! Which frames a driver wants (virtio 1.2, "Packet Receive Filtering" and "Setting MAC Address Filtering").

use serde::{Deserialize, Serialize};

use super::MacAddress;

/// The most addresses of a table; with more, every frame of their kind is received.
pub(super) const TABLE: usize = 64;

/// What is received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Filter {
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) all_unicast: bool,
    pub(super) no_multicast: bool,
    pub(super) no_unicast: bool,
    pub(super) no_broadcast: bool,
    pub(super) unicast: Table,
    pub(super) multicast: Table,
}

/// Addresses besides the card's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    /// At most [`TABLE`].
    pub(super) addresses: Vec<MacAddress>,
    /// There were more than can be kept.
    pub(super) overflows: bool,
}

impl Table {
    fn has(&self, address: MacAddress) -> bool {
        self.overflows || self.addresses.contains(&address)
    }
}

impl Filter {
    /// What a driver gets that has not said what it wants: everything.
    pub(super) fn new() -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Table::default(),
            multicast: Table::default(),
        }
    }

    /// Whether a frame to `destination` is received by a card with the address `own`.
    pub(super) fn admits(&self, destination: MacAddress, own: MacAddress) -> bool {
        if self.promiscuous {
            true
        } else if destination == MacAddress::BROADCAST {
            !self.no_broadcast
        } else if destination.is_group() {
            !self.no_multicast && (self.all_multicast || self.multicast.has(destination))
        } else {
            !self.no_unicast && (self.all_unicast || destination == own || self.unicast.has(destination))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 2]);
    const GROUP: MacAddress = MacAddress::new([0x33, 0x33, 0, 0, 0, 1]);

    fn admitted(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, MacAddress::BROADCAST].map(|destination| filter.admits(destination, OWN))
    }

    #[test]
    fn each_mode_admits_what_its_name_says() {
        let sober = Filter {
            promiscuous: false,
            ..Filter::new()
        };
        let with = |change: fn(&mut Filter)| {
            let mut filter = sober.clone();
            change(&mut filter);
            admitted(&filter)
        };
        assert_eq!(admitted(&Filter::new()), [true; 4]);
        assert_eq!(admitted(&sober), [true, false, false, true]);
        assert_eq!(with(|filter| filter.all_multicast = true), [true, false, true, true]);
        assert_eq!(with(|filter| filter.all_unicast = true), [true, true, false, true]);
        assert_eq!(with(|filter| filter.no_unicast = true), [false, false, false, true]);
        assert_eq!(with(|filter| filter.no_broadcast = true), [true, false, false, false]);
        assert_eq!(
            with(|filter| filter.unicast.addresses.push(OTHER)),
            [true, true, false, true]
        );
        assert_eq!(
            with(|filter| filter.multicast.addresses.push(GROUP)),
            [true, false, true, true]
        );
        assert_eq!(
            with(|filter| filter.multicast.overflows = true),
            [true, false, true, true]
        );
        let quiet = |filter: &mut Filter| (filter.all_multicast, filter.no_multicast) = (true, true);
        assert_eq!(with(quiet), [true, false, false, true]);
    }
}
