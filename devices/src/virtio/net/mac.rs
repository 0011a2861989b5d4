//! Hardware addresses.

use std::fmt;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

/// The hardware address of a network card (IEEE 802, EUI-48).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress([u8; 6]);

/// A text that is no hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no hardware address; expected six bytes like 52:54:00:12:34:56")]
pub struct NoMacAddress {
    /// The text.
    pub text: String,
}

impl MacAddress {
    /// To every station.
    pub(super) const BROADCAST: Self = Self([0xff; 6]);

    /// The address of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// A random address of one station, administered locally, so that no manufacturer has given it to anybody.
    ///
    /// # Errors
    /// The operating system's, if it has no randomness.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 6];
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        bytes[0] = bytes[0] & !0x01 | 0x02;
        Ok(Self(bytes))
    }

    /// The address of the host's side of a tap whose other side has this one: the same but for its first byte, which is FE,
    /// or FA where it is FE already. So high, it never becomes the address of a bridge that the tap joins.
    #[must_use]
    pub const fn of_host(self) -> Self {
        let Self([first, b, c, d, e, f]) = self;
        Self([if first == 0xfe { 0xfa } else { 0xfe }, b, c, d, e, f])
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Whether it stands for several stations.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it is administered locally, as random ones are.
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.0[0] & 2 != 0
    }
}

impl FromStr for MacAddress {
    type Err = NoMacAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let byte = |part: &str| {
            let is_byte = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            is_byte.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| NoMacAddress { text: text.to_owned() })
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_it_is_written() {
        let address: MacAddress = "52:54:00:aB:0f:ff".parse().unwrap();
        assert_eq!(address.bytes(), [0x52, 0x54, 0, 0xab, 0x0f, 0xff]);
        assert_eq!(address.to_string(), "52:54:00:ab:0f:ff");
        for text in [
            "",
            "52:54:00:ab:0f",
            "52:54:00:ab:0f:ff:00",
            "52:54:00:ab:0f:+1",
            "52-54-00-ab-0f-ff",
            "5:4:0:a:0:f",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_random_address_is_of_one_station_and_local() {
        let addresses: Vec<_> = (0..20).map(|_| MacAddress::random().unwrap()).collect();
        assert!(
            addresses
                .iter()
                .all(|address| !address.is_group() && address.is_local())
        );
        assert!(addresses.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
