//! Hyper-V's model-specific registers (TLFS: Hypervisor Top-Level Functional Specification).
//!
//! # What is there
//! What [`cpuid`](super::cpuid) announces: identity and hypercall page, VP index, reference time as counter and as page,
//! frequencies, and the registers of the interrupt controller. Every other one faults, as TLFS wants it. There is no
//! synthetic interrupt controller and no synthetic timer: the local APIC has both.
//! # The hypercall page
//! On Hyper-V it is an overlay over whatever the guest has there. Here it is RAM of the guest into which the call is
//! written when the page is enabled: its former content is lost, a guest that overwrites it harms itself, and where there
//! is no RAM there can be no page.

use std::sync::{Mutex, MutexGuard, PoisonError};

use reprise_emulator::Ram;

use super::clock::TSC_KHZ;
use super::lapic::{Effect, GeneralProtection, Lapic, Now, spec};
use crate::state::HypervState;

/// MSR: who the guest is; 0 until it has said so.
pub const GUEST_OS_ID: u32 = 0x4000_0000;
/// MSR: where the hypercall page shall be.
pub const HYPERCALL: u32 = 0x4000_0001;
/// MSR: the number of the virtual processor.
pub const VP_INDEX: u32 = 0x4000_0002;
/// MSR: the reference time, in units of 100 ns.
pub const TIME_REF_COUNT: u32 = 0x4000_0020;
/// MSR: where the page shall be from which the reference time is computed.
pub const REFERENCE_TSC: u32 = 0x4000_0021;
/// MSR: the frequency of the time-stamp counter, in Hz.
pub const TSC_FREQUENCY: u32 = 0x4000_0022;
/// MSR: the frequency of the local APIC timer's input, in Hz.
pub const APIC_FREQUENCY: u32 = 0x4000_0023;
/// MSR: the end of an interrupt.
pub const EOI: u32 = 0x4000_0070;
/// MSR: the interrupt command register.
pub const ICR: u32 = 0x4000_0071;
/// MSR: the task priority.
pub const TPR: u32 = 0x4000_0072;
/// MSR: where the page shall be that hypervisor and virtual processor share.
pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;

/// Bit 0 of the registers that place a page.
const ENABLE: u64 = 1;
/// Bit 1 of [`HYPERCALL`]: it cannot be changed any more.
const LOCKED: u64 = 2;
/// The page's address in those registers.
const PAGE: u64 = !0xfff;

/// The hypercall page: VMMCALL, RET.
const HYPERCALL_CODE: u64 = 0xc3d9_010f;

/// 2⁶⁴ times the units of 100 ns in a tick of the time-stamp counter, of a nanosecond.
const TSC_SCALE: u64 = (1u128 << 64).div_euclid(100) as u64;

/// What the virtual processors of a machine share.
#[derive(Debug, Default)]
pub struct Partition {
    state: Mutex<HypervState>,
}

impl Partition {
    /// Whether the guest has said who it is; before that it may make no hypercall.
    pub fn is_identified(&self) -> bool {
        self.lock().guest_os_id != 0
    }

    /// The shared registers.
    pub fn state(&self) -> HypervState {
        *self.lock()
    }

    /// Replaces them. The pages that they place are restored with the memory.
    pub fn restore(&self, state: HypervState) {
        *self.lock() = state;
    }

    fn lock(&self) -> MutexGuard<'_, HypervState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reference time at `clock` nanoseconds of the machine's clock, in units of 100 ns. It is computed as a guest does from the
/// page, so that both agree to the last bit.
fn reference_time(clock: u64) -> u64 {
    ((u128::from(clock) * u128::from(TSC_SCALE)) >> 64) as u64
}

/// What an access to these registers reaches.
pub struct Place<'a> {
    /// The vCPU.
    pub index: usize,
    /// What it shares with the others.
    pub partition: &'a Partition,
    /// HV_X64_MSR_VP_ASSIST_PAGE.
    pub assist_page: &'a mut u64,
    /// Its local APIC, locked.
    pub lapic: MutexGuard<'a, Lapic>,
}

impl Place<'_> {
    /// Reads an MSR.
    ///
    /// # Errors
    /// [`GeneralProtection`] if there is no such register, or it cannot be read.
    pub fn read(mut self, msr: u32, now: Now) -> Result<u64, GeneralProtection> {
        let state = *self.partition.lock();
        Ok(match msr {
            GUEST_OS_ID => state.guest_os_id,
            HYPERCALL => state.hypercall,
            VP_INDEX => self.index as u64,
            TIME_REF_COUNT => reference_time(now.clock),
            REFERENCE_TSC => state.reference_tsc,
            TSC_FREQUENCY | APIC_FREQUENCY => u64::from(TSC_KHZ) * 1000,
            ICR if self.lapic.page().is_some() => {
                let mut half = |register| self.lapic.read_page(offset(register), 4, now);
                half(spec::ICR_HIGH) << 32 | half(spec::ICR)
            }
            TPR if self.lapic.page().is_some() => self.lapic.read_page(offset(spec::TPR), 4, now),
            ICR => self.lapic.read_msr(spec::ICR, now)?,
            TPR => self.lapic.read_msr(spec::TPR, now)?,
            VP_ASSIST_PAGE => *self.assist_page,
            _ => return Err(GeneralProtection),
        })
    }

    /// Writes an MSR; what that asks of the rest of the machine.
    ///
    /// # Errors
    /// [`GeneralProtection`] if there is no such register, or it does not take this value.
    pub fn write(mut self, msr: u32, value: u64, ram: &Ram, now: Now) -> Result<Effect, GeneralProtection> {
        match msr {
            GUEST_OS_ID => {
                let mut state = self.partition.lock();
                state.guest_os_id = value;
                if value == 0 {
                    state.hypercall &= !ENABLE;
                }
            }
            HYPERCALL => place_hypercalls(&mut self.partition.lock(), value, ram)?,
            REFERENCE_TSC => place_reference_tsc(&mut self.partition.lock(), value, ram),
            VP_ASSIST_PAGE => {
                // Its first word allows an interrupt to end without being told; that is never given.
                if value & ENABLE != 0 && !ram.write(value & PAGE, 4, 0) {
                    return Err(GeneralProtection);
                }
                *self.assist_page = value;
            }
            EOI => return self.apic(spec::EOI, 0, now),
            ICR => {
                if self.lapic.page().is_some() {
                    self.lapic.write_page(offset(spec::ICR_HIGH), 4, value >> 32, now);
                }
                return self.apic(spec::ICR, value, now);
            }
            TPR => return self.apic(spec::TPR, value & 0xff, now),
            _ => return Err(GeneralProtection),
        }
        Ok(Effect::Nothing)
    }

    /// Writes a register of the local APIC, in whichever mode it is.
    fn apic(&mut self, register: u8, value: u64, now: Now) -> Result<Effect, GeneralProtection> {
        match self.lapic.page() {
            Some(_) => Ok(self.lapic.write_page(offset(register), 4, value & 0xffff_ffff, now)),
            None => self.lapic.write_msr(register, value, now),
        }
    }
}

/// Where a register is in the local APIC's page.
fn offset(register: u8) -> u64 {
    u64::from(register) << 4
}

fn place_hypercalls(state: &mut HypervState, value: u64, ram: &Ram) -> Result<(), GeneralProtection> {
    if state.hypercall & LOCKED != 0 {
        return Ok(());
    }
    let mut value = value;
    if state.guest_os_id == 0 {
        value &= !ENABLE;
    }
    if value & ENABLE != 0 && !ram.write(value & PAGE, 4, HYPERCALL_CODE) {
        return Err(GeneralProtection);
    }
    state.hypercall = value;
    Ok(())
}

/// An address where there is no memory gets no page; the guest then finds no sequence number there that it could use.
fn place_reference_tsc(state: &mut HypervState, value: u64, ram: &Ram) {
    state.reference_tsc = value;
    if value & ENABLE != 0 {
        let page = value & PAGE;
        // A sequence number of 0 says that the page is not valid. The counter and the clock agree, so there is no offset;
        // and as both stand still together, the page stays right for ever.
        for (offset, value) in [(0, 0), (8, TSC_SCALE), (16, 0), (0, 1)] {
            ram.write(page + offset, 8, value);
        }
    }
}

#[cfg(test)]
mod tests;
