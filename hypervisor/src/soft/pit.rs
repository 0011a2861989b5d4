//! The programmable interval timer of a PC (Intel 8254) and the system control port that gates its third counter.
//!
//! Time is handed in, in nanoseconds of the machine's clock. The owner raises the timer's interrupt line as
//! [`Pit::update`] says, and comes again at [`Pit::deadline`].

mod channel;
#[cfg(test)]
mod tests;

use channel::Channel;
use channel::state::moment;

use crate::StateError;
use crate::state::PitState;

/// Clock pulses to nanoseconds: the crystal of 14.31818 MHz divided by 12 is 105/88 MHz.
const PULSES: i128 = 105;
const NANOSECONDS: i128 = 88_000;

/// The refresh bit of port 0x61 toggles about every 15 microseconds.
const REFRESH: u64 = 15_085;

/// What the interrupt line of counter 0 did since it was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// It rose at least once.
    pub rose: bool,
    /// Its level now.
    pub level: bool,
}

/// The interval timer.
#[derive(Debug, Clone)]
pub struct Pit {
    channels: [Channel; 3],
    /// Bits 3:0 of port 0x61 as written: gate of counter 2, speaker, two check enables.
    control: u8,
    /// The pulse up to which the line of counter 0 was told.
    told: i64,
    level: bool,
}

impl Pit {
    /// A timer that has not been programmed: the line of counter 0 is high and stays so.
    pub fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            control: 0,
            told: 0,
            level: true,
        }
    }

    /// Registers, and when what is under way began.
    pub fn state(&self) -> PitState {
        let [first, second, third] = &self.channels;
        PitState {
            counters: [first.state(), second.state(), third.state()],
            port_61: self.control,
            told: self.told,
            out_0: self.level,
        }
    }

    /// The timer that was in `state`.
    ///
    /// # Errors
    /// [`StateError::Register`] if none can be.
    pub fn from_state(state: &PitState) -> Result<Self, StateError> {
        let PitState {
            counters: [first, second, third],
            port_61,
            told,
            out_0,
        } = state;
        StateError::unless(*port_61 < 0x10, "port 0x61", *port_61)?;
        moment(*told)?;
        Ok(Self {
            channels: [
                Channel::from_state(first)?,
                Channel::from_state(second)?,
                Channel::from_state(third)?,
            ],
            control: *port_61,
            told: *told,
            level: *out_0,
        })
    }

    /// Whether `port` is one of the timer's: 0x40 to 0x43, 0x61.
    pub fn claims(port: u16) -> bool {
        matches!(port, 0x40..=0x43 | 0x61)
    }

    /// Reads one of the [claimed](Self::claims) ports.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        let pulse = pulse(now);
        match port {
            0x40..=0x42 => self.channels[usize::from(port & 3)].read(pulse),
            0x61 => {
                let refresh = ((now / REFRESH) & 1) as u8;
                let output = u8::from(self.channels[2].output(pulse));
                self.control | refresh << 4 | output << 5
            }
            // The control word cannot be read back.
            _ => 0xff,
        }
    }

    /// Writes one of the [claimed](Self::claims) ports; ask for the line and the deadline afterwards.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        let pulse = pulse(now);
        match port {
            0x40..=0x42 => self.channels[usize::from(port & 3)].write(value, pulse),
            0x43 => self.command(value, pulse),
            _ => {
                self.control = value & 0xf;
                self.channels[2].set_gate(value & 1 != 0, pulse);
            }
        }
    }

    /// What the line of counter 0 did up to now; call it before and after each write, and at each deadline.
    pub fn update(&mut self, now: u64) -> Line {
        let pulse = pulse(now).max(self.told);
        let level = self.channels[0].clone().output(pulse);
        let rose = self.channels[0].next_rise(self.told).is_some_and(|rise| rise <= pulse) || level && !self.level;
        // Settles what changed on the way.
        self.level = self.channels[0].output(pulse);
        self.told = pulse;
        Line { rose, level }
    }

    /// When the line of counter 0 rises next, on the machine's clock.
    pub fn deadline(&mut self) -> Option<u64> {
        let rise = self.channels[0].next_rise(self.told)?;
        // Rounded up, so that the rise is not ahead any more then.
        let nanoseconds = (i128::from(rise) * NANOSECONDS + PULSES - 1).div_euclid(PULSES);
        Some(u64::try_from(nanoseconds).unwrap_or(0))
    }

    fn command(&mut self, word: u8, pulse: i64) {
        if word >> 6 < 3 {
            return self.channels[usize::from(word >> 6)].command(word, pulse);
        }
        // The read-back command: bits 3:1 select counters, bits 5 and 4, if clear, say what to latch of them.
        for (number, channel) in self.channels.iter_mut().enumerate() {
            if word & 2 << number != 0 {
                if word & 0x20 == 0 {
                    channel.latch_count(pulse);
                }
                if word & 0x10 == 0 {
                    channel.latch_status(pulse);
                }
            }
        }
    }
}

/// The clock pulses that have passed by `now`.
fn pulse(now: u64) -> i64 {
    // 105 / 88000 of a u64 fits in 63 bits.
    (i128::from(now) * PULSES / NANOSECONDS) as i64
}
