//! One counter of the 8254 (Intel 8254 data sheet), as a function of time.
//!
//! Nothing ticks: the counter remembers when its counting element was loaded, and count and output follow from the tick
//! at which they are looked at. Ticks are clock pulses of 1.193182 MHz, signed so that a period may have begun before 0.

pub mod state;

/// How bytes of the count go over the data port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Low,
    High,
    /// Low byte first, then the high one.
    Both,
}

/// A count that waits for its moment to be loaded.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    count: i64,
    /// When it is loaded without being asked; `None` waits for a trigger.
    at: Option<i64>,
}

/// One counter.
#[derive(Debug, Clone)]
pub struct Channel {
    /// 0 to 5.
    mode: u8,
    bcd: bool,
    access: Access,
    /// The initial count, 1 to 0x10000 (10000 in BCD); `None` until one is written.
    count: Option<i64>,
    waiting: Option<Waiting>,
    /// The tick at which the count was loaded.
    start: i64,
    gate: bool,
    /// How far the count had come when the gate fell.
    held: Option<i64>,
    /// Modes 1 and 5 count after a rising edge of the gate only.
    triggered: bool,
    low_written: Option<u8>,
    high_next: bool,
    latched: Option<u16>,
    status: Option<u8>,
}

impl Channel {
    /// A counter with its gate at `gate`, not programmed yet: its output is high.
    pub fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: Access::Both,
            count: None,
            waiting: None,
            start: 0,
            gate,
            held: None,
            triggered: false,
            low_written: None,
            high_next: false,
            latched: None,
            status: None,
        }
    }

    /// A control word with this counter's number: a mode, or the counter latch command.
    pub fn command(&mut self, word: u8, now: i64) {
        self.access = match word >> 4 & 3 {
            0 => return self.latch_count(now),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        // In modes 2 and 3 the upper bit does not count.
        self.mode = if word >> 1 & 7 >= 6 {
            word >> 1 & 3
        } else {
            word >> 1 & 7
        };
        self.bcd = word & 1 != 0;
        self.count = None;
        self.waiting = None;
        self.held = None;
        self.triggered = false;
        self.low_written = None;
        self.high_next = false;
        self.latched = None;
        self.status = None;
    }

    /// Latches the count, unless one is latched already.
    pub fn latch_count(&mut self, now: i64) {
        if self.latched.is_none() {
            self.latched = Some(self.counter(now));
            self.high_next = false;
        }
    }

    /// Latches the status, unless one is latched already.
    pub fn latch_status(&mut self, now: i64) {
        if self.status.is_none() {
            let access = match self.access {
                Access::Low => 1,
                Access::High => 2,
                Access::Both => 3,
            };
            self.settle(now);
            let null = self.count.is_none() || self.waiting.is_some() || now < self.start;
            let output = u8::from(self.output(now));
            self.status = Some(output << 7 | u8::from(null) << 6 | access << 4 | self.mode << 1 | u8::from(self.bcd));
        }
    }

    /// Reads the data port.
    pub fn read(&mut self, now: i64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let counter = self.latched.unwrap_or_else(|| self.counter(now));
        let [low, high] = counter.to_le_bytes();
        let (byte, last) = match (self.access, self.high_next) {
            (Access::Low, _) => (low, true),
            (Access::High, _) => (high, true),
            (Access::Both, false) => (low, false),
            (Access::Both, true) => (high, true),
        };
        self.high_next = !last;
        if last {
            self.latched = None;
        }
        byte
    }

    /// Writes the data port.
    pub fn write(&mut self, byte: u8, now: i64) {
        let value = match (self.access, self.low_written.take()) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, byte]),
            (Access::Both, None) => {
                self.low_written = Some(byte);
                // In mode 0 the first byte stops the count and lowers the output.
                if self.mode == 0 {
                    self.count = None;
                }
                return;
            }
        };
        self.load(value, now);
    }

    /// Sets the gate input.
    pub fn set_gate(&mut self, gate: bool, now: i64) {
        self.settle(now);
        let (rises, falls) = (gate && !self.gate, !gate && self.gate);
        self.gate = gate;
        match self.mode {
            1 | 5 if rises => {
                self.trigger(now);
                self.triggered = true;
            }
            2 | 3 if rises => self.trigger(now),
            0 | 4 if rises => self.start = now - self.held.take().unwrap_or(0),
            0 | 2 | 3 | 4 if falls => self.held = Some(self.elapsed(now)),
            _ => {}
        }
    }

    /// The output.
    pub fn output(&mut self, now: i64) -> bool {
        self.settle(now);
        let Some(count) = self.count else { return self.mode != 0 };
        let elapsed = self.elapsed(now);
        match self.mode {
            0 => elapsed >= count,
            1 => !self.triggered || elapsed >= count,
            2 => !self.gate || elapsed % count != count - 1,
            3 => !self.gate || elapsed % count < high_half(count),
            4 => elapsed != count,
            _ => !self.triggered || elapsed != count,
        }
    }

    /// The first tick after `after` at which the output rises.
    pub fn next_rise(&mut self, after: i64) -> Option<i64> {
        self.settle(after);
        let count = self.count?;
        if !self.gate && !matches!(self.mode, 1 | 5) {
            return None;
        }
        let rise = match self.mode {
            0 => self.start + count,
            1 if self.triggered => self.start + count,
            // A count of 1 is illegal in these modes, and gives no edges.
            2 | 3 if count > 1 => {
                let rise = self.start + (self.elapsed(after) / count + 1) * count;
                match self.waiting {
                    // The period that is under way in mode 3 ends with the half of a new count.
                    Some(Waiting { at: Some(at), count }) if at < rise => at + low_half(count),
                    _ => rise,
                }
            }
            4 => self.start + count + 1,
            5 if self.triggered => self.start + count + 1,
            _ => return None,
        };
        (rise > after).then_some(rise)
    }

    /// Takes a complete count from the data port.
    fn load(&mut self, value: u16, now: i64) {
        self.settle(now);
        let count = match (self.bcd, value) {
            (false, 0) => 0x1_0000,
            (false, value) => i64::from(value),
            (true, value) => match from_bcd(value) {
                0 => 10_000,
                value => value,
            },
        };
        match (self.mode, self.count) {
            (2, Some(old)) => {
                let at = self.start + (self.elapsed(now) / old + 1) * old;
                self.waiting = Some(Waiting {
                    count,
                    at: self.gate.then_some(at),
                });
            }
            (3, Some(old)) => {
                let (periods, within) = (self.elapsed(now) / old, self.elapsed(now) % old);
                let end = if within < high_half(old) { high_half(old) } else { old };
                let at = self.start + periods * old + end;
                self.waiting = Some(Waiting {
                    count,
                    at: self.gate.then_some(at),
                });
            }
            (1 | 5, Some(_)) if self.triggered => self.waiting = Some(Waiting { count, at: None }),
            _ => {
                self.count = Some(count);
                // The pulse after the write loads the count.
                self.start = now + 1;
                self.held = (!self.gate).then_some(0);
            }
        }
    }

    /// Loads a waiting count whose moment has come.
    fn settle(&mut self, now: i64) {
        if let Some(Waiting { count, at: Some(at) }) = self.waiting
            && now >= at
        {
            let old = self.count.unwrap_or(count);
            // At the end of the high half in mode 3 the low half of the new count follows.
            let in_low_half = self.mode == 3 && (at - self.start) % old != 0;
            self.start = if in_low_half { at - high_half(count) } else { at };
            self.count = Some(count);
            self.waiting = None;
        }
    }

    /// A rising edge of the gate where it begins the count anew.
    fn trigger(&mut self, now: i64) {
        if let Some(waiting) = self.waiting.take() {
            self.count = Some(waiting.count);
        }
        self.held = None;
        self.start = now + 1;
    }

    /// Ticks since the count was loaded, less those while the gate held it.
    fn elapsed(&self, now: i64) -> i64 {
        self.held.unwrap_or_else(|| (now - self.start).max(0))
    }

    /// What the counting element holds.
    fn counter(&mut self, now: i64) -> u16 {
        self.settle(now);
        let Some(count) = self.count else { return 0 };
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let elapsed = if matches!(self.mode, 1 | 5) && !self.triggered {
            0
        } else {
            self.elapsed(now)
        };
        let value = match self.mode {
            2 => count - elapsed % count,
            // Counts down by two, from an even number, once for each half.
            3 => {
                let within = elapsed % count;
                let within = if within < high_half(count) {
                    within
                } else {
                    within - high_half(count)
                };
                (count & !1) - 2 * within
            }
            _ => count - elapsed,
        };
        let value = value.rem_euclid(modulus) as u16;
        if self.bcd { to_bcd(value) } else { value }
    }
}

/// Mode 3: for how many ticks of a period the output is high; one more than low if the count is odd.
fn high_half(count: i64) -> i64 {
    (count + 1) / 2
}

fn low_half(count: i64) -> i64 {
    count / 2
}

fn from_bcd(value: u16) -> i64 {
    // A digit above 9 counts for what it is worth; the result stays within the modulus.
    (0..4)
        .rev()
        .fold(0, |sum, digit| sum * 10 + i64::from(value >> (4 * digit) & 0xf))
        % 10_000
}

fn to_bcd(value: u16) -> u16 {
    let digit = |power: u16| value / power % 10;
    digit(1) | digit(10) << 4 | digit(100) << 8 | digit(1000) << 12
}
