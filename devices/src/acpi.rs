//! ACPI's fixed hardware: power management registers, PM timer, power button, reset register.
//!
//! # Purpose
//! The full (not hardware-reduced) model of the ACPI specification, "ACPI Hardware Specification", so that any guest's
//! own driver shuts down on the power button and powers off through S5. [`ports`] has every number that the FADT and
//! DSDT must repeat; whoever builds the tables takes them from there.
//!
//! # Invariants
//! - The machine starts in ACPI mode (SMI_CMD is 0 in the FADT), so SCI_EN reads 1 for good.
//! - The SCI is a level: up while some enabled status bit is set.
//!
//! # Left out
//! The general-purpose event block has one event, [`ports::GPE_PCI`]; there is no second event block. TMR_STS is set when a guest looks, not when the
//! timer's top bit changes; nothing wakes up to raise the SCI for it.

use std::fmt;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::Interrupt;
use crate::bus::{Bus, BusError, Device, Response, Space};
use crate::bytes;
use crate::clock::Clock;
use crate::event::{MachineEvent, MachineEvents};
use crate::sync::lock;

/// Where the registers are, and what the tables say about them. FADT field names in brackets.
pub mod ports {
    /// The first port of all.
    pub const BASE: u64 = PM1A_EVT;
    /// The number of ports.
    pub const LENGTH: u64 = 0x10;
    /// PM1 status and enable registers (PM1a_EVT_BLK).
    pub const PM1A_EVT: u64 = 0x600;
    /// (PM1_EVT_LEN).
    pub const PM1A_EVT_LENGTH: u64 = 4;
    /// PM1 control register (PM1a_CNT_BLK).
    pub const PM1A_CNT: u64 = 0x604;
    /// (PM1_CNT_LEN).
    pub const PM1A_CNT_LENGTH: u64 = 2;
    /// The PM timer (PM_TMR_BLK), 32 bits wide (flag TMR_VAL_EXT).
    pub const PM_TMR: u64 = 0x608;
    /// (PM_TMR_LEN).
    pub const PM_TMR_LENGTH: u64 = 4;
    /// The reset register (RESET_REG, flag RESET_REG_SUP), one byte.
    pub const RESET: u64 = 0x60c;
    /// What to write there (RESET_VALUE).
    pub const RESET_VALUE: u8 = 1;
    /// General-purpose event status and enable registers (GPE0_BLK), one byte each.
    pub const GPE0: u64 = 0x60e;
    /// (GPE0_BLK_LEN).
    pub const GPE0_LENGTH: u64 = 2;
    /// The general-purpose event that says that PCI devices come or go: `\\_GPE._E01` in the DSDT.
    pub const GPE_PCI: u8 = 1;
    /// The global system interrupt of the SCI (SCI_INT), level-triggered and active high.
    pub const SCI_GSI: u32 = 9;
    /// SLP_TYP of S5, for the DSDT's `\_S5`.
    pub const SLP_TYP_S5: u8 = 5;
    /// The PM timer's frequency in hertz.
    pub const PM_TMR_FREQUENCY: u64 = 3_579_545;
}

/// PM1 status and enable registers.
mod pm1 {
    pub const TMR: u16 = 1 << 0;
    pub const GBL: u16 = 1 << 5;
    pub const PWRBTN: u16 = 1 << 8;
    pub const SLPBTN: u16 = 1 << 9;
    pub const RTC: u16 = 1 << 10;
    /// The bits that exist, in both.
    pub const ENABLES: u16 = TMR | GBL | PWRBTN | SLPBTN | RTC;
}

/// PM1 control register.
mod control {
    pub const SCI_EN: u16 = 1 << 0;
    /// BM_RLD, and SLP_TYP in bits 10 to 12: what a guest may keep there.
    pub const KEPT: u16 = 1 << 1 | SLP_TYP << SLP_TYP_SHIFT;
    pub const SLP_TYP: u16 = 7;
    pub const SLP_TYP_SHIFT: u32 = 10;
    pub const SLP_EN: u16 = 1 << 13;
}

const EVT_STATUS: u64 = ports::PM1A_EVT - ports::BASE;
const EVT_ENABLE: u64 = EVT_STATUS + ports::PM1A_EVT_LENGTH / 2;
const CNT: u64 = ports::PM1A_CNT - ports::BASE;
const TMR: u64 = ports::PM_TMR - ports::BASE;
const RESET: u64 = ports::RESET - ports::BASE;
const GPE_STATUS: u64 = ports::GPE0 - ports::BASE;
const GPE_ENABLE: u64 = GPE_STATUS + ports::GPE0_LENGTH / 2;
/// The general-purpose events that exist.
const GPES: u8 = 1 << ports::GPE_PCI;

/// Registers of an [`Acpi`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AcpiState {
    /// PM1 status.
    pub pm1_status: u16,
    /// PM1 enable.
    pub pm1_enable: u16,
    /// PM1 control, without SCI_EN.
    pub pm1_control: u16,
    /// The PM timer, with more bits than a guest sees.
    pub timer: u64,
    /// How far the timer is on its way to the next tick, in ticks per 10⁹ and below that.
    pub timer_fraction: u64,
    /// General-purpose event status.
    pub gpe0_status: u8,
    /// General-purpose event enable.
    pub gpe0_enable: u8,
}

/// The fixed hardware of one machine.
pub struct Acpi {
    registers: Mutex<Registers>,
    clock: Arc<dyn Clock>,
    sci: Arc<dyn Interrupt>,
    events: Arc<dyn MachineEvents>,
}

/// The registers as of the last look; the timer stood at `state.timer` when the clock stood at `looked`.
struct Registers {
    state: AcpiState,
    /// Nanoseconds.
    looked: u64,
    level: bool,
}

const NANOSECONDS: u64 = 1_000_000_000;

impl Acpi {
    /// The fixed hardware after reset, with its timer at 0.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, sci: Arc<dyn Interrupt>, events: Arc<dyn MachineEvents>) -> Self {
        let looked = clock.monotonic_nanoseconds();
        let registers = Registers {
            state: AcpiState::default(),
            looked,
            level: false,
        };
        Self {
            registers: Mutex::new(registers),
            clock,
            sci,
            events,
        }
    }

    /// Puts the registers at [`ports::BASE`].
    ///
    /// # Errors
    /// [`BusError`] if a port is taken.
    pub fn attach(self: &Arc<Self>, bus: &Bus) -> Result<(), BusError> {
        bus.insert(
            Space::Port,
            ports::BASE,
            ports::LENGTH,
            Arc::clone(self) as Arc<dyn Device>,
        )
    }

    /// Presses the power button: sets PWRBTN_STS, which a guest takes as the wish that it shut down. A guest that has
    /// not enabled it (PWRBTN_EN) finds the bit when it does.
    pub fn press_power_button(&self) {
        self.with(|registers| registers.state.pm1_status |= pm1::PWRBTN);
    }

    /// Raises the general-purpose event [`ports::GPE_PCI`]. A guest that has not enabled it finds the bit when it does.
    pub fn raise_pci_event(&self) {
        self.with(|registers| registers.state.gpe0_status |= 1 << ports::GPE_PCI);
    }

    /// The registers, the timer as it stands now.
    #[must_use]
    pub fn state(&self) -> AcpiState {
        self.with(|registers| registers.state.clone())
    }

    /// Replaces the registers; the timer goes on from where it stood. `AcpiState::default()` is the hardware after reset.
    pub fn restore(&self, state: &AcpiState) {
        self.with(|registers| {
            registers.state = AcpiState {
                pm1_status: state.pm1_status & pm1::ENABLES,
                pm1_enable: state.pm1_enable & pm1::ENABLES,
                pm1_control: state.pm1_control & control::KEPT,
                timer_fraction: state.timer_fraction.min(NANOSECONDS - 1),
                gpe0_status: state.gpe0_status & GPES,
                gpe0_enable: state.gpe0_enable & GPES,
                ..*state
            };
        });
    }

    /// Brings the timer up to date, does something, and sets the SCI as it must be then.
    fn with<T>(&self, work: impl FnOnce(&mut Registers) -> T) -> T {
        let mut registers = lock(&self.registers);
        registers.advance(self.clock.monotonic_nanoseconds());
        let result = work(&mut registers);
        let AcpiState {
            pm1_status,
            pm1_enable,
            gpe0_status,
            gpe0_enable,
            ..
        } = registers.state;
        let level = pm1_status & pm1_enable != 0 || gpe0_status & gpe0_enable != 0;
        if level != registers.level {
            registers.level = level;
            self.sci.set(level);
        }
        result
    }
}

impl Registers {
    /// Lets the timer count up to `now`.
    fn advance(&mut self, now: u64) {
        let elapsed = u128::from(now.saturating_sub(self.looked));
        let ticks = elapsed * u128::from(ports::PM_TMR_FREQUENCY) + u128::from(self.state.timer_fraction);
        let (whole, fraction) = (ticks / u128::from(NANOSECONDS), ticks % u128::from(NANOSECONDS));
        // The remainder is less than 10^9; the whole, less than 2^64 * 0.0036.
        self.state.timer_fraction = u64::try_from(fraction).unwrap_or(0);
        let timer = self.state.timer.wrapping_add(u64::try_from(whole).unwrap_or(0));
        if timer >> 31 != self.state.timer >> 31 {
            self.state.pm1_status |= pm1::TMR;
        }
        self.state.timer = timer;
        self.looked = self.looked.max(now);
    }

    /// All ports as bytes. Reading changes nothing.
    fn image(&self) -> [u8; ports::LENGTH as usize] {
        let mut image = [0; ports::LENGTH as usize];
        let mut put = |at: u64, bytes: &[u8]| {
            for (place, byte) in image.iter_mut().skip(at as usize).zip(bytes) {
                *place = *byte;
            }
        };
        put(EVT_STATUS, &self.state.pm1_status.to_le_bytes());
        put(EVT_ENABLE, &self.state.pm1_enable.to_le_bytes());
        put(CNT, &(self.state.pm1_control | control::SCI_EN).to_le_bytes());
        put(TMR, &self.state.timer.to_le_bytes()[..4]);
        put(GPE_STATUS, &[self.state.gpe0_status, self.state.gpe0_enable]);
        image
    }

    /// Writes one byte; what it asks of the machine, if anything. SLP_TYP and SLP_EN are in one byte, so bytes will do.
    fn write(&mut self, at: u64, byte: u8) -> Option<MachineEvent> {
        let part = |register: u64| {
            let shift = 8 * (at - register);
            (u16::from(byte) << shift, 0xff_u16 << shift)
        };
        match at {
            EVT_STATUS..EVT_ENABLE => self.state.pm1_status &= !part(EVT_STATUS).0,
            EVT_ENABLE..CNT => {
                let (value, mask) = part(EVT_ENABLE);
                self.state.pm1_enable = (self.state.pm1_enable & !mask | value) & pm1::ENABLES;
            }
            CNT..=0x5 => {
                let (value, mask) = part(CNT);
                self.state.pm1_control = (self.state.pm1_control & !mask | value) & control::KEPT;
                let sleep = self.state.pm1_control >> control::SLP_TYP_SHIFT & control::SLP_TYP;
                if value & control::SLP_EN != 0 {
                    if sleep == u16::from(ports::SLP_TYP_S5) {
                        return Some(MachineEvent::PowerOff);
                    }
                    tracing::warn!(sleep, "a guest asks for a sleep state that the machine does not have");
                }
            }
            GPE_STATUS => self.state.gpe0_status &= !byte,
            GPE_ENABLE => self.state.gpe0_enable = byte & GPES,
            RESET if byte == ports::RESET_VALUE => return Some(MachineEvent::Reset),
            _ => (),
        }
        None
    }
}

impl Device for Acpi {
    fn name(&self) -> &str {
        "acpi"
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        let image = self.with(|registers| registers.image());
        let byte = |at: u64| {
            usize::try_from(at)
                .ok()
                .and_then(|at| image.get(at))
                .copied()
                .unwrap_or(0xff)
        };
        Response::Done(bytes::read(offset, size, byte))
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        let mut event = None;
        self.with(|registers| {
            bytes::write(offset, size, value, |at, byte| {
                event = registers.write(at, byte).or(event);
            });
        });
        if let Some(event) = event {
            self.events.raise(event);
        }
        Response::Done(0)
    }
}

impl fmt::Debug for Acpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Acpi").field(&self.state()).finish()
    }
}

#[cfg(test)]
mod tests;
