//! The two 8259A interrupt controllers of a PC, the second one's output on line 2 of the first, and the chipset's
//! edge/level control registers.

mod chip;
#[cfg(test)]
mod tests;

use chip::Chip;

use crate::StateError;
use crate::state::PicState;

/// Lines that are edge-triggered whatever the guest asks: timer, keyboard, cascade; real-time clock and coprocessor.
const ALWAYS_EDGE: [u8; 2] = [0b0000_0111, 0b0010_0001];

/// The pair of interrupt controllers.
#[derive(Debug, Clone)]
pub struct Pic {
    chips: [Chip; 2],
}

impl Pic {
    /// A pair before its initialisation.
    pub fn new() -> Self {
        Self {
            chips: [Chip::new(true), Chip::new(false)],
        }
    }

    /// Registers and lines.
    pub fn state(&self) -> PicState {
        let [master, slave] = &self.chips;
        PicState {
            master: master.state(),
            slave: slave.state(),
        }
    }

    /// The pair that was in `state`.
    ///
    /// # Errors
    /// [`StateError::Register`] if none can be.
    pub fn from_state(state: &PicState) -> Result<Self, StateError> {
        let [master, slave] = ALWAYS_EDGE;
        Ok(Self {
            chips: [
                Chip::from_state(&state.master, true, master)?,
                Chip::from_state(&state.slave, false, slave)?,
            ],
        })
    }

    /// The pair, once the second one's output has reached the first.
    #[must_use]
    pub fn cascaded(mut self) -> Self {
        self.cascade();
        self
    }

    /// Whether `port` is one of this pair's: 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1.
    pub fn claims(port: u16) -> bool {
        matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1)
    }

    /// The INTR output.
    pub fn output(&self) -> bool {
        self.chips[0].request().is_some()
    }

    /// Sets the line of IRQ `irq`, 0 to 15; IRQ 2 has none, its place is the cascade's.
    pub fn set_line(&mut self, irq: u8, level: bool) {
        match irq {
            2 | 16.. => {}
            0..8 => self.chips[0].set_line(irq, level),
            8..16 => {
                self.chips[1].set_line(irq - 8, level);
                self.cascade();
            }
        }
    }

    /// The processor's acknowledge cycles: takes the highest request into service and says its vector.
    pub fn acknowledge(&mut self) -> u8 {
        let line = self.chips[0].acknowledge();
        if line != 2 {
            return self.chips[0].vector(line);
        }
        let slave = self.chips[1].acknowledge();
        // The slave's output falls when it is acknowledged, so that its next request is an edge again.
        self.chips[0].set_line(2, false);
        self.cascade();
        self.chips[1].vector(slave)
    }

    /// Reads one of the [claimed](Self::claims) ports.
    pub fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            0x4d0 | 0x4d1 => self.chips[usize::from(port & 1)].elcr(),
            _ => self.chips[usize::from(port & 0x80 != 0)].read(port & 1 != 0),
        };
        self.cascade();
        value
    }

    /// Writes one of the [claimed](Self::claims) ports.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x4d0 | 0x4d1 => {
                let place = usize::from(port & 1);
                self.chips[place].set_elcr(value & !ALWAYS_EDGE[place]);
            }
            _ => self.chips[usize::from(port & 0x80 != 0)].write(port & 1 != 0, value),
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        let output = self.chips[1].request().is_some();
        self.chips[0].set_line(2, output);
    }
}
