//! The local APIC's registers as the guest reads and writes them: the xAPIC page, the x2APIC MSRs, IA32_APIC_BASE.

use super::spec::{self, BASE_BSP, BASE_ENABLE, BASE_X2APIC, SVR_ENABLE, lvt};
use super::timer::Now;
use super::{Delivery, Destination, Effect, GeneralProtection, Lapic, Message};

impl Lapic {
    /// Reads `size` bytes at `offset` (0..0x1000) of the xAPIC page.
    ///
    /// Registers are 32 bits wide at multiples of 16. A narrower read inside one gives its part and a wider one is
    /// filled with zeros, though no driver does either; between the registers there is nothing but zeros.
    pub fn read_page(&mut self, offset: u64, size: u8, now: Now) -> u64 {
        let within = offset & 0xf;
        if within >= 4 {
            return 0;
        }
        let register = (offset >> 4) as u8;
        let value = match self.read(register, now) {
            Some(value) if offset < 0x400 => value,
            _ => {
                self.error(spec::ERROR_ILLEGAL_REGISTER);
                0
            }
        };
        let mask = if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 };
        u64::from(value) >> (within * 8) & mask
    }

    /// Writes `size` bytes at `offset` (0..0x1000) of the xAPIC page. Only whole registers can be written.
    pub fn write_page(&mut self, offset: u64, size: u8, value: u64, now: Now) -> Effect {
        if offset & 0xf != 0 || size < 4 {
            return Effect::Nothing;
        }
        let (register, value) = ((offset >> 4) as u8, value as u32);
        match register {
            _ if offset >= 0x400 => self.error(spec::ERROR_ILLEGAL_REGISTER),
            spec::LDR => self.ldr = (value >> 24) as u8,
            spec::DFR => self.dfr = value | 0x0fff_ffff,
            spec::ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value) & spec::ICR_WRITABLE;
                return self.send();
            }
            spec::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            spec::SELF_IPI => self.error(spec::ERROR_ILLEGAL_REGISTER),
            // Nothing listens behind the read-only ones.
            spec::ID | spec::VERSION | spec::APR | spec::PPR | spec::RRD | spec::CURRENT_COUNT => {}
            spec::ISR..spec::ESR => {}
            _ => match self.write(register, value, now) {
                Some(effect) => return effect,
                None => self.error(spec::ERROR_ILLEGAL_REGISTER),
            },
        }
        Effect::Nothing
    }

    /// Reads the x2APIC register behind MSR `0x800 + register`.
    ///
    /// # Errors
    /// [`GeneralProtection`] outside x2APIC mode, for registers that are not there, and for the write-only ones.
    pub fn read_msr(&self, register: u8, now: Now) -> Result<u64, GeneralProtection> {
        if !self.enabled() || !self.x2apic() {
            return Err(GeneralProtection);
        }
        match register {
            spec::ICR => Ok(self.icr),
            spec::EOI | spec::APR | spec::RRD | spec::DFR | spec::ICR_HIGH => Err(GeneralProtection),
            _ => self.read(register, now).map(u64::from).ok_or(GeneralProtection),
        }
    }

    /// Writes the x2APIC register behind MSR `0x800 + register`.
    ///
    /// # Errors
    /// [`GeneralProtection`] outside x2APIC mode, for registers that are not there, for the read-only ones, and for
    /// reserved bits.
    pub fn write_msr(&mut self, register: u8, value: u64, now: Now) -> Result<Effect, GeneralProtection> {
        if !self.enabled() || !self.x2apic() {
            return Err(GeneralProtection);
        }
        let allowed = match register {
            spec::ICR => spec::ICR_WRITABLE | spec::ICR_STATUS,
            spec::TPR | spec::SELF_IPI => 0xff,
            spec::SVR => u64::from(spec::SVR_WRITABLE),
            // Only 0 can be written.
            spec::EOI | spec::ESR => 0,
            spec::LVT_TIMER..=spec::LVT_ERROR => {
                let place = usize::from(register - spec::LVT_TIMER);
                u64::from(lvt::WRITABLE[place] | lvt::READ_ONLY[place])
            }
            spec::INITIAL_COUNT => 0xffff_ffff,
            spec::DIVIDE => 0b1011,
            _ => return Err(GeneralProtection),
        };
        if value & !allowed != 0 {
            return Err(GeneralProtection);
        }
        match register {
            spec::ICR => {
                self.icr = value & spec::ICR_WRITABLE;
                Ok(self.send())
            }
            spec::SELF_IPI => {
                if value < 16 {
                    self.error(spec::ERROR_SEND_ILLEGAL_VECTOR);
                } else if self.software_enabled() {
                    self.request(value as u8, false);
                }
                Ok(Effect::Nothing)
            }
            _ => self.write(register, value as u32, now).ok_or(GeneralProtection),
        }
    }

    /// Writes IA32_APIC_BASE, of a processor with `physical_bits` of physical address.
    ///
    /// # Errors
    /// [`GeneralProtection`] for reserved bits and for the transitions between disabled, xAPIC and x2APIC mode that
    /// there are not (SDM Vol. 3, "x2APIC State Transitions").
    pub fn set_base(&mut self, value: u64, physical_bits: u32) -> Result<(), GeneralProtection> {
        let address = u64::MAX.checked_shr(64 - physical_bits.min(64)).unwrap_or(0) & !0xfff;
        if value & !(address | BASE_BSP | BASE_ENABLE | BASE_X2APIC) != 0 {
            return Err(GeneralProtection);
        }
        let mode = |base: u64| (base & BASE_ENABLE != 0, base & BASE_X2APIC != 0);
        match (mode(self.base), mode(value)) {
            // No such mode; and x2APIC mode can only be left by disabling, and not be reached from there.
            (_, (false, true)) | ((true, true), (true, false)) | ((false, false), (true, true)) => {
                return Err(GeneralProtection);
            }
            // Disabling loses the state, as INIT does; the pending events are not the APIC's.
            ((true, _), (false, _)) => {
                let (nmi, init) = (self.nmi, self.init);
                self.init();
                (self.nmi, self.init) = (nmi, init);
            }
            _ => {}
        }
        self.base = value;
        Ok(())
    }

    /// The task-priority class, as CR8 shows it.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes the task priority through CR8: the class, 0 to 15.
    pub fn set_cr8(&mut self, class: u8) {
        self.tpr = class << 4;
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE.
    pub fn set_tsc_deadline(&mut self, value: u64) {
        self.timer.set_tsc_deadline(value);
    }

    /// A register that reads alike in both modes; `None` if there is no such register.
    fn read(&self, register: u8, now: Now) -> Option<u32> {
        Some(match register {
            spec::ID if self.x2apic() => self.id(),
            spec::ID => self.id() << 24,
            spec::VERSION => spec::VERSION_VALUE,
            spec::TPR => u32::from(self.tpr),
            spec::PPR => u32::from(self.ppr()),
            spec::APR | spec::EOI | spec::RRD => 0,
            spec::LDR => self.ldr(),
            spec::DFR => self.dfr,
            spec::SVR => self.svr,
            spec::ISR..spec::TMR => self.isr.word(register - spec::ISR),
            spec::TMR..spec::IRR => self.tmr.word(register - spec::TMR),
            spec::IRR..spec::ESR => self.irr.word(register - spec::IRR),
            spec::ESR => self.esr,
            spec::ICR => self.icr as u32,
            spec::ICR_HIGH => (self.icr >> 32) as u32,
            spec::LVT_TIMER..=spec::LVT_ERROR => self.lvt[usize::from(register - spec::LVT_TIMER)],
            spec::INITIAL_COUNT => self.timer.initial(),
            spec::CURRENT_COUNT => self.timer.current(now),
            spec::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes a register that takes alike in both modes; `None` if there is no such register.
    fn write(&mut self, register: u8, value: u32, now: Now) -> Option<Effect> {
        match register {
            spec::TPR => self.tpr = value as u8,
            spec::EOI => return Some(self.end_of_interrupt()),
            spec::SVR => {
                self.svr = value & spec::SVR_WRITABLE;
                if !self.software_enabled() {
                    self.lvt.iter_mut().for_each(|entry| *entry |= lvt::MASKED);
                }
            }
            spec::ESR => self.esr = std::mem::take(&mut self.errors),
            spec::LVT_TIMER..=spec::LVT_ERROR => {
                let place = usize::from(register - spec::LVT_TIMER);
                // While disabled by software every entry is masked, and stays so.
                let masked = if self.svr & SVR_ENABLE == 0 { lvt::MASKED } else { 0 };
                self.lvt[place] = value & lvt::WRITABLE[place] | masked;
                if place == lvt::TIMER {
                    self.timer.set_entry(self.lvt[place]);
                }
            }
            spec::INITIAL_COUNT => self.timer.set_initial(value, now),
            spec::DIVIDE => self.timer.set_divide(value, now),
            _ => return None,
        }
        Some(Effect::Nothing)
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else {
            return Effect::Nothing;
        };
        self.isr.set(vector, false);
        if self.tmr.contains(vector) && self.svr & spec::SVR_SUPPRESS_EOI_BROADCAST == 0 {
            Effect::EndOfInterrupt(vector)
        } else {
            Effect::Nothing
        }
    }

    /// Sends what the interrupt command register says.
    fn send(&mut self) -> Effect {
        let (icr, vector) = (self.icr, self.icr as u8);
        let Some((delivery, lowest)) = Delivery::decode((icr >> 8) as u32, vector) else {
            return Effect::Nothing;
        };
        match delivery {
            Delivery::Fixed(0..16) => {
                self.error(spec::ERROR_SEND_ILLEGAL_VECTOR);
                return Effect::Nothing;
            }
            // The de-assert only synchronised the arbitration ids of the old serial bus.
            Delivery::Init if icr & (spec::ICR_LEVEL | spec::ICR_ASSERT) == spec::ICR_LEVEL => return Effect::Nothing,
            _ => {}
        }
        let fixed = matches!(delivery, Delivery::Fixed(_)) && !lowest;
        let logical = icr & spec::ICR_LOGICAL != 0;
        let destination = match icr >> 18 & 3 {
            0b00 if self.x2apic() => Destination::wide((icr >> 32) as u32, logical),
            0b00 => Destination::narrow((icr >> 56) as u8, logical),
            // Nobody can send himself anything but a fixed interrupt.
            0b01 if fixed => Destination::Only(self.index),
            0b10 if fixed => Destination::Everyone,
            0b11 => Destination::Others(self.index),
            _ => return Effect::Nothing,
        };
        Effect::Send(Message {
            destination,
            delivery,
            level: false,
            lowest,
        })
    }
}
