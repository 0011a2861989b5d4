//! PICs and IO-APIC: the crate's own state, and KVM's, both ways.
//!
//! # Pins
//! KVM remembers of the IO-APIC's pins only what it needs to interrupt. Their levels are known to who asserts them, see
//! [`Lines`](super::lines::Lines); KVM is told those of level-triggered pins, which is no second interrupt as long as the
//! first is being served, and not those of edge-triggered ones, which would be an edge.
//! # The cascade
//! In KVM the slave's output pulses line 2 of the master; here it holds it.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state, kvm_irqchip, kvm_pic_state,
};
use kvm_ioctls::VmFd;

use super::error::{KvmError, Named};
use super::sys;
use crate::soft::ioapic::{self, IoApic};
use crate::soft::pic::Pic;
use crate::state::{IoApicState, PicChipState, PicState};
use crate::{HypervisorError, StateError};

/// An entry's level-triggered bit.
const LEVEL: u64 = 1 << 15;
/// An entry's remote IRR.
const REMOTE_IRR: u64 = 1 << 14;
/// Lines of the pair that can be level-triggered.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// The chips after power-up: everything is masked, and the interval timer's line is up.
///
/// # Errors
/// What KVM says.
pub fn power_up(fd: &VmFd) -> Result<(), KvmError> {
    let mut pic = Pic::new();
    pic.set_line(0, true);
    write(fd, &pic.state(), &IoApic::new().state())
}

/// The PICs.
///
/// # Errors
/// What KVM says.
pub fn read_pics(fd: &VmFd) -> Result<PicState, HypervisorError> {
    let chip = |id| Ok::<_, KvmError>(from_pic(&sys::pic(&read(fd, id)?)));
    let state = PicState {
        master: chip(KVM_IRQCHIP_PIC_MASTER)?,
        slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
    };
    // Line 2 is what the slave says.
    Ok(Pic::from_state(&state)?.cascaded().state())
}

/// The IO-APIC, with its pins as `pins` say.
///
/// # Errors
/// What KVM says.
pub fn read_io_apic(fd: &VmFd, pins: u32) -> Result<IoApicState, KvmError> {
    let from = sys::io_apic(&read(fd, KVM_IRQCHIP_IOAPIC)?);
    let entry = |bits: u64| match bits & LEVEL {
        0 => bits & ioapic::WRITABLE,
        _ => bits & (ioapic::WRITABLE | REMOTE_IRR),
    };
    Ok(IoApicState {
        id: (from.id & 0xf) as u8,
        ioregsel: from.ioregsel as u8,
        ioredtbl: sys::io_apic_entries(&from).map(entry),
        pins,
    })
}

/// What KVM can make of `pic`.
///
/// # Errors
/// [`StateError`] naming what it cannot be.
pub fn check(pic: &PicState) -> Result<(), StateError> {
    for chip in [&pic.master, &pic.slave] {
        let alone = chip.single && chip.expected_icw == 2;
        StateError::unless(!alone, "ICW1, SNGL, on KVM", u64::from(chip.single))?;
    }
    Ok(())
}

/// Puts PICs and IO-APIC into KVM.
///
/// # Errors
/// What KVM says.
pub fn write(fd: &VmFd, pic: &PicState, io_apic: &IoApicState) -> Result<(), KvmError> {
    let chips = [
        (KVM_IRQCHIP_PIC_MASTER, &pic.master),
        (KVM_IRQCHIP_PIC_SLAVE, &pic.slave),
    ];
    for ((id, chip), elcr_mask) in chips.into_iter().zip(ELCR_MASK) {
        let mut to = to_pic(chip, elcr_mask);
        if id == KVM_IRQCHIP_PIC_MASTER {
            to.last_irr &= !(1 << 2);
        }
        put(fd, &sys::of_pic(id, to))?;
    }
    let level = (0..).zip(io_apic.ioredtbl).filter(|(_, entry)| entry & LEVEL != 0);
    let level = level.fold(0, |pins, (pin, _)| pins | 1_u32 << pin);
    let mut to = kvm_ioapic_state {
        base_address: ioapic::BASE,
        ioregsel: io_apic.ioregsel.into(),
        id: io_apic.id.into(),
        irr: io_apic.pins & level,
        ..kvm_ioapic_state::default()
    };
    for (own, entry) in to.redirtbl.iter_mut().zip(io_apic.ioredtbl) {
        own.bits = entry;
    }
    put(fd, &sys::of_io_apic(KVM_IRQCHIP_IOAPIC, to))
}

fn read(fd: &VmFd, id: u32) -> Result<kvm_irqchip, KvmError> {
    let mut chip = kvm_irqchip {
        chip_id: id,
        ..kvm_irqchip::default()
    };
    fd.get_irqchip(&mut chip).of_vm("KVM_GET_IRQCHIP")?;
    Ok(chip)
}

fn put(fd: &VmFd, chip: &kvm_irqchip) -> Result<(), KvmError> {
    fd.set_irqchip(chip).of_vm("KVM_SET_IRQCHIP")
}

fn from_pic(from: &kvm_pic_state) -> PicChipState {
    PicChipState {
        irr: from.irr,
        isr: from.isr,
        imr: from.imr,
        elcr: from.elcr,
        lines: from.last_irr,
        vector_base: from.irq_base & 0xf8,
        expected_icw: match from.init_state {
            state @ 1..=3 => state + 1,
            _ => 0,
        },
        icw4_needed: from.init4 != 0,
        single: false,
        auto_eoi: from.auto_eoi != 0,
        special_fully_nested: from.special_fully_nested_mode != 0,
        rotate_in_auto_eoi: from.rotate_on_auto_eoi != 0,
        lowest_priority: from.priority_add.wrapping_sub(1) & 7,
        special_mask: from.special_mask != 0,
        read_isr: from.read_reg_select != 0,
        poll: from.poll != 0,
    }
}

fn to_pic(from: &PicChipState, elcr_mask: u8) -> kvm_pic_state {
    kvm_pic_state {
        last_irr: from.lines,
        irr: from.irr,
        imr: from.imr,
        isr: from.isr,
        priority_add: (from.lowest_priority + 1) & 7,
        irq_base: from.vector_base,
        read_reg_select: from.read_isr.into(),
        poll: from.poll.into(),
        special_mask: from.special_mask.into(),
        init_state: from.expected_icw.saturating_sub(1),
        auto_eoi: from.auto_eoi.into(),
        rotate_on_auto_eoi: from.rotate_in_auto_eoi.into(),
        special_fully_nested_mode: from.special_fully_nested.into(),
        init4: from.icw4_needed.into(),
        elcr: from.elcr,
        elcr_mask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pic_survives_in_every_state_of_its_initialisation_and_priorities() {
        let plain = Pic::new().state().slave;
        for expected_icw in [0, 2, 3, 4] {
            for lowest_priority in 0..8 {
                let own = PicChipState {
                    irr: 0x12,
                    isr: 0x20,
                    imr: 0x81,
                    elcr: 0x0c,
                    lines: 0x13,
                    vector_base: 0x70,
                    expected_icw,
                    icw4_needed: true,
                    lowest_priority,
                    auto_eoi: true,
                    read_isr: true,
                    ..plain.clone()
                };
                assert_eq!(from_pic(&to_pic(&own, 0xde)), own);
            }
        }
    }
}
