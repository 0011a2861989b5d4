//! The clock's registers: 128 bytes of CMOS memory, some of which tell the time.

use serde::{Deserialize, Serialize};

use super::{CENTURY, CalendarTime, INDEX_MASK, MemorySize};

/// Places in CMOS memory.
mod place {
    pub const SECONDS: u8 = 0x00;
    pub const MINUTES: u8 = 0x02;
    pub const HOURS: u8 = 0x04;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
    /// KiB below 640 KiB, two bytes.
    pub const BASE_MEMORY: usize = 0x15;
    /// KiB from 1 MiB up, two bytes, and again.
    pub const EXTENDED_MEMORY: [usize; 2] = [0x17, 0x30];
    /// 64 KiB units from 16 MiB up, two bytes.
    pub const MEMORY_ABOVE_16M: usize = 0x34;
    /// 64 KiB units from 4 GiB up, three bytes.
    pub const MEMORY_ABOVE_4G: usize = 0x5b;
}

/// Register A: update in progress; at reset, the 32.768 kHz divider and the customary periodic rate.
const UIP: u8 = 1 << 7;
const A_AT_RESET: u8 = 0x26;
/// Register B: the clock is held; data mode binary; 24-hour mode.
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Register D: memory and time are valid.
const VRT: u8 = 1 << 7;
/// In 12-hour mode, the hour's bit 7.
const PM: u8 = 1 << 7;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The time registers as binary numbers, and as they are while a guest sets the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcTime {
    /// The date and time of day.
    pub time: CalendarTime,
    /// The day of the week, Sunday being 1. Nothing follows from it.
    pub weekday: u8,
}

/// What an [`Rtc`](super::Rtc) remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// The place that the data port shows, below 128.
    pub index: u8,
    /// The 128 bytes, as four rows. Those of the time registers mean nothing.
    pub memory: [[u8; 32]; 4],
    /// Seconds by which the guest's time is ahead of the host's.
    pub ahead: i64,
    /// The time registers, while the guest holds the clock.
    pub held: Option<RtcTime>,
}

impl RtcState {
    pub(super) fn new(memory: MemorySize) -> Self {
        let mut state = Self {
            index: 0,
            memory: [[0; 32]; 4],
            ahead: 0,
            held: None,
        };
        *state.byte(place::A.into()) = A_AT_RESET;
        *state.byte(place::B.into()) = HOURS_24;
        let mut put = |at: usize, width: usize, figure: u64| {
            let most = (1 << (8 * width)) - 1;
            for (offset, byte) in figure.min(most).to_le_bytes().into_iter().take(width).enumerate() {
                *state.byte(at + offset) = byte;
            }
        };
        let from = |start: u64| memory.below_4g.saturating_sub(start);
        put(place::BASE_MEMORY, 2, memory.below_4g.min(640 * KIB) / KIB);
        for at in place::EXTENDED_MEMORY {
            put(at, 2, from(MIB) / KIB);
        }
        put(place::MEMORY_ABOVE_16M, 2, from(16 * MIB) / (64 * KIB));
        put(place::MEMORY_ABOVE_4G, 3, memory.above_4g / (64 * KIB));
        state
    }

    /// This state as the registers can hold it, when the host's clock says `now`.
    pub(super) fn legal(mut self, now: i64) -> Self {
        self.index &= INDEX_MASK;
        *self.byte(place::A.into()) &= !UIP;
        // The clock is held exactly while SET is set.
        self.held = self.mode(SET).then(|| self.time(now));
        self
    }

    /// What the data port shows when the host's clock says `now`.
    pub(super) fn read(&self, now: i64) -> u8 {
        let RtcTime { time, weekday } = self.time(now);
        match self.index {
            place::SECONDS => self.shown(time.second),
            place::MINUTES => self.shown(time.minute),
            place::HOURS if self.mode(HOURS_24) => self.shown(time.hour),
            place::HOURS => {
                let hour = time.hour.rem_euclid(24);
                let pm = if hour >= 12 { PM } else { 0 };
                self.shown((hour + 11) % 12 + 1) | pm
            }
            place::WEEKDAY => self.shown(weekday.into()),
            place::DAY => self.shown(time.day),
            place::MONTH => self.shown(time.month),
            place::YEAR => self.shown(time.year.rem_euclid(100)),
            CENTURY => self.shown(time.year.div_euclid(100)),
            place::C => 0,
            place::D => VRT,
            index => self.memory[usize::from(index) / 32 % 4][usize::from(index) % 32],
        }
    }

    /// Takes a byte on the data port when the host's clock says `now`.
    pub(super) fn write(&mut self, now: i64, byte: u8) {
        let RtcTime { mut time, mut weekday } = self.time(now);
        match self.index {
            place::SECONDS => time.second = self.meant(byte),
            place::MINUTES => time.minute = self.meant(byte),
            place::HOURS if self.mode(HOURS_24) => time.hour = self.meant(byte),
            place::HOURS => {
                let afternoon = if byte & PM != 0 { 12 } else { 0 };
                time.hour = self.meant(byte & !PM) % 12 + afternoon;
            }
            place::WEEKDAY => weekday = u8::try_from(self.meant(byte)).unwrap_or(0),
            place::DAY => time.day = self.meant(byte),
            place::MONTH => time.month = self.meant(byte),
            place::YEAR => {
                let century = time.year.div_euclid(100).saturating_mul(100);
                time.year = century.saturating_add(self.meant(byte));
            }
            CENTURY => time.year = self.meant(byte) * 100 + time.year.rem_euclid(100),
            place::B => {
                *self.byte(place::B.into()) = byte;
                // Register B lets go of the clock, or takes hold of it as it stands.
                return self.set(now, RtcTime { time, weekday });
            }
            place::C | place::D => return,
            place::A => *self.byte(place::A.into()) = byte & !UIP,
            index => *self.byte(index.into()) = byte,
        }
        let time_register = matches!(self.index, place::SECONDS | place::MINUTES | place::HOURS | CENTURY)
            || (place::WEEKDAY..=place::YEAR).contains(&self.index);
        if time_register {
            self.set(now, RtcTime { time, weekday });
        }
    }

    /// The time registers when the host's clock says `now`.
    pub(super) fn time(&self, now: i64) -> RtcTime {
        self.held.unwrap_or_else(|| {
            let time = CalendarTime::from_unix_seconds(now.saturating_add(self.ahead));
            RtcTime {
                time,
                weekday: time.weekday(),
            }
        })
    }

    fn set(&mut self, now: i64, to: RtcTime) {
        if self.mode(SET) {
            self.held = Some(to);
        } else {
            self.held = None;
            self.ahead = to.time.unix_seconds().saturating_sub(now);
        }
    }

    /// Whether a bit of register B is set.
    fn mode(&self, bit: u8) -> bool {
        let [row, ..] = &self.memory;
        row[usize::from(place::B)] & bit != 0
    }

    /// A number as the registers show it, its last two digits in BCD or its last eight bits in binary.
    fn shown(&self, number: i64) -> u8 {
        let digits = number.rem_euclid(100);
        let shown = if self.mode(BINARY) {
            number.rem_euclid(256)
        } else {
            digits / 10 * 16 + digits % 10
        };
        // Both fit: at most 0x99, and at most 0xff.
        u8::try_from(shown).unwrap_or(0)
    }

    /// The number that a register written with `byte` means.
    fn meant(&self, byte: u8) -> i64 {
        if self.mode(BINARY) {
            byte.into()
        } else {
            i64::from(byte >> 4) * 10 + i64::from(byte & 0xf)
        }
    }

    fn byte(&mut self, at: usize) -> &mut u8 {
        &mut self.memory[at / 32 % 4][at % 32]
    }
}
