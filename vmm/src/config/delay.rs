//! Devices that answer late, for tests of guests and of this VMM. A section of our own, which cloud-hypervisor's API does
//! not have.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use reprise_devices::{Delay, Lateness};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

/// The longest delay, in microseconds: a minute.
const MOST: u64 = 60_000_000;

/// One device, or all of them, made to answer late. Of several entries that mean a device the last counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DelayConfig {
    /// The device's name, as in `vm.counters`; `*` for all devices of the bus.
    pub device: String,
    /// By how many microseconds: `MIN..MAX` for a random time, evenly distributed, or one number; `never` for a device that
    /// falls silent, `lost` for one that goes away: its registers then read as ones.
    #[schema(value_type = String)]
    pub us: DelayTime,
    /// How many accesses are answered at once before that. Default: 0.
    #[serde(default)]
    pub after: u64,
    /// Where the random times begin; the same seed gives the same times. Default: 0.
    #[serde(default)]
    pub seed: u64,
}

impl DelayConfig {
    /// The name that means every device.
    pub const EVERY_DEVICE: &'static str = "*";

    /// The delay, as the devices take it.
    #[must_use]
    pub fn delay(&self) -> Delay {
        Delay {
            lateness: match self.us {
                DelayTime::Within { min, max } => Lateness::Within {
                    min: Duration::from_micros(min),
                    max: Duration::from_micros(max),
                },
                DelayTime::Never => Lateness::Never,
                DelayTime::Lost => Lateness::Lost,
            },
            after: self.after,
            seed: self.seed,
        }
    }

    /// Why the times make no delay, in words of what was expected.
    pub(super) fn refusal(&self) -> Option<String> {
        match self.us {
            DelayTime::Within { min, max } if min > max => Some("the smaller number first".to_owned()),
            DelayTime::Within { max, .. } if max > MOST => Some(format!("at most {MOST} microseconds")),
            _ => None,
        }
    }
}

/// How late answers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayTime {
    /// By a random time.
    Within {
        /// The shortest, in microseconds.
        min: u64,
        /// The longest, in microseconds.
        max: u64,
    },
    /// For ever.
    Never,
    /// For ever, and the device says so by dropping the question.
    Lost,
}

impl fmt::Display for DelayTime {
    /// As [`FromStr`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Within { min, max } => write!(f, "{min}..{max}"),
            Self::Never => f.write_str("never"),
            Self::Lost => f.write_str("lost"),
        }
    }
}

impl FromStr for DelayTime {
    type Err = String;

    /// Reads `MIN..MAX`, one number, `never` or `lost`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().ok().filter(|_| !text.starts_with('+'));
        let within = match (text, text.split_once("..")) {
            ("never", _) => return Ok(Self::Never),
            ("lost", _) => return Ok(Self::Lost),
            (_, Some((min, max))) => number(min).zip(number(max)),
            (_, None) => number(text).map(|exact| (exact, exact)),
        };
        within.map(|(min, max)| Self::Within { min, max }).ok_or_else(|| {
            format!("{text:?} is no time; expected microseconds as MIN..MAX or one number, never or lost")
        })
    }
}

impl Serialize for DelayTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DelayTime {
    /// A text, or a number: people write `"us": 200`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected microseconds as \"MIN..MAX\" or one number, \"never\" or \"lost\""
        )]
        enum Spelling<'a> {
            Number(u64),
            Text(Cow<'a, str>),
        }
        match Spelling::deserialize(deserializer)? {
            Spelling::Number(exact) => Ok(Self::Within { min: exact, max: exact }),
            Spelling::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}
