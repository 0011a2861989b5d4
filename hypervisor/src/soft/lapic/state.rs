//! The local APIC as plain data, and back.

use reprise_emulator::paging::PHYSICAL_BITS;

use super::Lapic;
use super::spec::{self, BASE_BSP, BASE_ENABLE, BASE_X2APIC, SVR_ENABLE, lvt};
use super::timer::Timer;
use super::vectors::Vectors;
use crate::StateError;
use crate::state::{LocalApicState, LocalVectorTable};
use crate::tsc::TscRate;

/// The error status bits that this APIC reports.
const ERRORS: u32 = spec::ERROR_SEND_ILLEGAL_VECTOR | spec::ERROR_RECEIVE_ILLEGAL_VECTOR | spec::ERROR_ILLEGAL_REGISTER;

/// The entries' names, by place.
const ENTRIES: [&str; lvt::COUNT] = [
    "LVT timer",
    "LVT thermal sensor",
    "LVT performance counters",
    "LVT LINT0",
    "LVT LINT1",
    "LVT error",
];

impl Lapic {
    /// Registers, and what is pending.
    pub fn state(&self) -> LocalApicState {
        let [timer, thermal, performance, lint0, lint1, error] = self.lvt;
        LocalApicState {
            apic_base: self.base,
            tpr: self.tpr,
            ldr: self.ldr,
            dfr: self.dfr,
            svr: self.svr,
            isr: self.isr.words(),
            tmr: self.tmr.words(),
            irr: self.irr.words(),
            esr: self.esr,
            errors: self.errors,
            icr: self.icr,
            lvt: LocalVectorTable {
                timer,
                thermal,
                performance,
                lint0,
                lint1,
                error,
            },
            timer: self.timer.state(),
            nmi: self.nmi,
            init: self.init,
            sipi: self.startup,
        }
    }

    /// Goes on from `state`. The id and the level of LINT0, which is the PICs', stay what they are.
    ///
    /// # Errors
    /// [`StateError::Register`] if no local APIC can be in this state; nothing has changed then.
    pub fn restore(&mut self, state: &LocalApicState) -> Result<(), StateError> {
        let LocalApicState {
            apic_base,
            tpr,
            ldr,
            dfr,
            svr,
            isr,
            tmr,
            irr,
            esr,
            errors,
            icr,
            lvt,
            timer,
            nmi,
            init,
            sipi,
        } = *state;
        let address = ((1 << PHYSICAL_BITS) - 1) & !0xfff;
        let sound = apic_base & !(address | BASE_BSP | BASE_ENABLE | BASE_X2APIC) == 0
            && apic_base & (BASE_ENABLE | BASE_X2APIC) != BASE_X2APIC;
        StateError::unless(sound, "IA32_APIC_BASE", apic_base)?;
        StateError::unless(dfr | 0xf000_0000 == u32::MAX, "DFR", dfr)?;
        StateError::unless(svr & !spec::SVR_WRITABLE == 0, "SVR", svr)?;
        // No interrupt has one of the first 16 vectors.
        for (register, [first, ..]) in [("ISR", isr), ("TMR", tmr), ("IRR", irr)] {
            StateError::unless(first & 0xffff == 0, register, first)?;
        }
        StateError::unless(esr & !ERRORS == 0, "ESR", esr)?;
        StateError::unless(errors & !ERRORS == 0, "ESR", errors)?;
        StateError::unless(icr & !spec::ICR_WRITABLE == 0, "ICR", icr)?;
        let entries = [lvt.timer, lvt.thermal, lvt.performance, lvt.lint0, lvt.lint1, lvt.error];
        for (place, entry) in entries.into_iter().enumerate() {
            let masked = svr & SVR_ENABLE != 0 || entry & lvt::MASKED != 0;
            StateError::unless(masked && entry & !lvt::WRITABLE[place] == 0, ENTRIES[place], entry)?;
        }
        *self = Self {
            index: self.index,
            base: apic_base,
            tpr,
            ldr,
            dfr,
            svr,
            isr: Vectors::from_words(isr),
            tmr: Vectors::from_words(tmr),
            irr: Vectors::from_words(irr),
            esr,
            errors,
            icr,
            lvt: entries,
            timer: Timer::from_state(&timer, lvt.timer)?.at_rate(self.timer.rate()),
            lint0: self.lint0,
            nmi,
            init,
            startup: sipi,
        };
        Ok(())
    }

    /// Has the time-stamp counter beside this APIC count at `rate`.
    pub fn set_rate(&mut self, rate: TscRate) {
        self.timer = self.timer.clone().at_rate(rate);
    }

    /// Puts the pin the PIC is wired to at `level`, where it was already: it neither rises nor falls.
    pub fn place_lint0(&mut self, level: bool) {
        self.lint0 = level;
    }
}

#[cfg(test)]
mod tests;
