//! The local APIC of one vCPU (SDM Vol. 3, "Advanced Programmable Interrupt Controller").
//!
//! # Purpose
//! Holds interrupts until the processor takes them, and turns what the guest writes into messages for others. It is a
//! plain state machine: time is handed in, and what must happen elsewhere comes back as an [`Effect`].
//! # How the methods group
//! - *Guest*: [`Lapic::read_page`], [`Lapic::write_page`] (xAPIC), [`Lapic::read_msr`], [`Lapic::write_msr`] (x2APIC),
//!   [`Lapic::set_base`], [`Lapic::set_tpr`]; they are in `registers`.
//! - *Senders*, on any thread under the lock of the owner: [`Lapic::matches`], then [`Lapic::accept`];
//!   [`Lapic::set_lint0`].
//! - *Snapshots*: `state` and `restore`, in `state`.
//! - *The processor*, between instructions: [`Lapic::expire`], then [`Lapic::take_init`], [`Lapic::take_startup`],
//!   [`Lapic::take_nmi`], [`Lapic::pending`] and [`Lapic::take`].

mod registers;
pub mod spec;
mod state;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

pub use timer::Now;

use super::message::{Delivery, Destination, Message};
use spec::{BASE_ADDRESS, BASE_BSP, BASE_ENABLE, BASE_X2APIC, SVR_ENABLE, lvt};
use timer::Timer;
use vectors::Vectors;

/// What an access to a local APIC asks of the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Tell the IO-APIC that the level-triggered interrupt of this vector is over.
    EndOfInterrupt(u8),
    /// Deliver this message.
    Send(Message),
}

/// The guest did what earns a general-protection exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralProtection;

/// The local APIC of one vCPU.
#[derive(Debug, Clone)]
pub struct Lapic {
    index: usize,
    /// IA32_APIC_BASE.
    base: u64,
    tpr: u8,
    /// Logical id in xAPIC mode, bits 31:24; in x2APIC mode it follows from the id.
    ldr: u8,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    /// Errors the guest can see, and errors since it last looked.
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; lvt::COUNT],
    timer: Timer,
    lint0: bool,
    nmi: bool,
    init: bool,
    startup: Option<u8>,
}

impl Lapic {
    /// The local APIC of vCPU `index`, which is also its id, as firmware leaves it: that of the bootstrap processor
    /// in virtual-wire mode, the PIC coming through LINT0 and NMI through LINT1 (MultiProcessor Specification 1.4,
    /// "Virtual Wire Mode"), the others as after power-up.
    pub fn new(index: usize) -> Self {
        let bsp = if index == 0 { BASE_BSP } else { 0 };
        let mut lapic = Self {
            index,
            base: BASE_ADDRESS | BASE_ENABLE | bsp,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [lvt::MASKED; lvt::COUNT],
            timer: Timer::new(),
            lint0: false,
            nmi: false,
            init: false,
            startup: None,
        };
        if index == 0 {
            lapic.svr |= SVR_ENABLE;
            lapic.lvt[lvt::LINT0] = lvt::EXTINT << 8;
            lapic.lvt[lvt::LINT1] = lvt::NMI << 8;
        }
        lapic
    }

    /// What INIT does: everything as after power-up but id, base and mode. The pins are as they are.
    pub fn init(&mut self) {
        let fresh = Self::new(self.index);
        *self = Self {
            base: self.base,
            lint0: self.lint0,
            startup: self.startup,
            svr: 0xff,
            lvt: [lvt::MASKED; lvt::COUNT],
            timer: fresh.timer.clone().at_rate(self.timer.rate()),
            ..fresh
        };
    }

    /// The id: in xAPIC mode its low 8 bits count.
    pub fn id(&self) -> u32 {
        self.index as u32
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Whether the global enable (IA32_APIC_BASE bit 11) is set.
    pub fn enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    /// The guest-physical address of the register page, if there is one: in xAPIC mode.
    pub fn page(&self) -> Option<u64> {
        (self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE).then_some(self.base & !0xfff)
    }

    /// Whether a message for `destination` is for this APIC.
    pub fn matches(&self, destination: Destination) -> bool {
        if !self.enabled() {
            return false;
        }
        match destination {
            Destination::Everyone => true,
            Destination::Others(index) => index != self.index,
            Destination::Only(index) => index == self.index,
            Destination::Physical(id) => id == self.id(),
            Destination::Logical(address) if self.x2apic() => {
                let own = self.ldr();
                address >> 16 == own >> 16 && address & own & 0xffff != 0
            }
            Destination::Logical(address) => {
                let own = u32::from(self.ldr);
                match self.dfr >> 28 {
                    // Flat.
                    0xf => address & own != 0,
                    // Cluster: the number in the upper four bits, one processor in each of the lower four.
                    0x0 => address >> 4 == own >> 4 && address & own & 0xf != 0,
                    _ => false,
                }
            }
        }
    }

    /// Takes a message that [matches](Self::matches); true if it was accepted. The processor then has to look.
    pub fn accept(&mut self, message: &Message) -> bool {
        if !self.enabled() {
            return false;
        }
        match message.delivery {
            Delivery::Fixed(vector) => self.software_enabled() && self.request(vector, message.level),
            Delivery::Nmi => {
                self.nmi = true;
                true
            }
            Delivery::Init => {
                self.init = true;
                self.startup = None;
                true
            }
            Delivery::Startup(page) => {
                self.startup = Some(page);
                true
            }
        }
    }

    /// Whether lowest-priority delivery may choose this APIC, and its processor priority then: lower is better.
    pub fn bid(&self) -> Option<u8> {
        (self.enabled() && self.software_enabled()).then(|| self.ppr())
    }

    /// Sets the level of the pin the PIC is wired to; true if the processor has to look.
    pub fn set_lint0(&mut self, level: bool) -> bool {
        let rises = level && !self.lint0;
        self.lint0 = level;
        if !rises {
            return false;
        }
        let entry = self.lvt[lvt::LINT0];
        if !self.enabled() {
            return true;
        }
        if entry & lvt::MASKED != 0 {
            return false;
        }
        match entry >> 8 & 7 {
            lvt::EXTINT => true,
            lvt::FIXED => self.request(entry as u8, false),
            lvt::NMI => {
                self.nmi = true;
                true
            }
            _ => false,
        }
    }

    /// Whether the PIC asks for this processor: LINT0 is up and passes it on. With the APIC disabled the pin is INTR.
    pub fn external_pending(&self) -> bool {
        let entry = self.lvt[lvt::LINT0];
        self.lint0 && (!self.enabled() || entry & lvt::MASKED == 0 && entry >> 8 & 7 == lvt::EXTINT)
    }

    /// When the timer fires next, on the machine's clock.
    pub fn deadline(&self, now: Now) -> Option<u64> {
        self.timer.deadline(now)
    }

    /// Requests the timer's interrupt if its time has come.
    pub fn expire(&mut self, now: Now) {
        if self.timer.expire(now) {
            self.local(lvt::TIMER);
        }
    }

    /// Takes a pending INIT.
    pub fn take_init(&mut self) -> bool {
        std::mem::take(&mut self.init)
    }

    /// Whether an INIT is pending.
    pub fn init_pending(&self) -> bool {
        self.init
    }

    /// Takes a pending start-up IPI: the page at which to start. Only a processor that waits for it acts on it.
    pub fn take_startup(&mut self) -> Option<u8> {
        self.startup.take()
    }

    /// Takes a pending NMI.
    pub fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    /// Whether an NMI is pending.
    pub fn nmi_pending(&self) -> bool {
        self.nmi
    }

    /// The vector the processor has to be interrupted with: the highest requested one, if its priority class exceeds
    /// that of the processor.
    pub fn pending(&self) -> Option<u8> {
        self.irr.highest().filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// Moves the [pending](Self::pending) vector into service; the processor delivers it now.
    pub fn take(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        Some(vector)
    }

    /// The processor priority: the higher of the task's and of the interrupt's in service.
    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if in_service > self.tpr & 0xf0 {
            in_service
        } else {
            self.tpr
        }
    }

    fn x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
    }

    fn ldr(&self) -> u32 {
        match self.x2apic() {
            true => (self.id() >> 4) << 16 | 1 << (self.id() & 0xf),
            false => u32::from(self.ldr) << 24,
        }
    }

    /// Requests `vector`; false if it is one of the 16 that no interrupt can have.
    fn request(&mut self, vector: u8, level: bool) -> bool {
        if vector < 16 {
            self.error(spec::ERROR_RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
        true
    }

    /// Delivers the local interrupt of an entry of the local vector table that knows only fixed delivery.
    fn local(&mut self, place: usize) {
        let entry = self.lvt[place];
        if entry & lvt::MASKED == 0 {
            self.request(entry as u8, false);
        }
    }

    /// Notes an error; the first of its kind since the guest last looked is also told through the error entry.
    fn error(&mut self, error: u32) {
        if self.errors & error == 0 {
            self.errors |= error;
            self.local(lvt::ERROR);
        }
    }
}
