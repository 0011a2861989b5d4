//! The processor's own model-specific registers: the crate's, and KVM's.
//!
//! Which of them there are in KVM depends on the host. What KVM does not have is kept beside it: nothing depends on those
//! registers but what the guest reads back, and that is answered here, as KVM comes out for registers that it does not
//! have.

use kvm_bindings::{Msrs as List, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use reprise_emulator::cpu::Msrs;

use super::error::{KvmVcpuError, Named};

/// A register: its number, and where it is.
type Register = (u32, fn(&mut Msrs) -> &mut u64);

/// All of them.
const REGISTERS: [Register; 46] = [
    (0xc000_0081, |msrs| &mut msrs.star),
    (0xc000_0082, |msrs| &mut msrs.lstar),
    (0xc000_0083, |msrs| &mut msrs.cstar),
    (0xc000_0084, |msrs| &mut msrs.fmask),
    (0xc000_0102, |msrs| &mut msrs.kernel_gs_base),
    (0x174, |msrs| &mut msrs.sysenter_cs),
    (0x175, |msrs| &mut msrs.sysenter_esp),
    (0x176, |msrs| &mut msrs.sysenter_eip),
    (0x277, |msrs| &mut msrs.pat),
    (0xc000_0103, |msrs| &mut msrs.tsc_aux),
    (0x1a0, |msrs| &mut msrs.misc_enable),
    (0x48, |msrs| &mut msrs.spec_ctrl),
    (0xda0, |msrs| &mut msrs.xss),
    (0x2ff, |msrs| &mut msrs.mtrr.default_type),
    (0x250, |msrs| &mut msrs.mtrr.fixed[0]),
    (0x258, |msrs| &mut msrs.mtrr.fixed[1]),
    (0x259, |msrs| &mut msrs.mtrr.fixed[2]),
    (0x268, |msrs| &mut msrs.mtrr.fixed[3]),
    (0x269, |msrs| &mut msrs.mtrr.fixed[4]),
    (0x26a, |msrs| &mut msrs.mtrr.fixed[5]),
    (0x26b, |msrs| &mut msrs.mtrr.fixed[6]),
    (0x26c, |msrs| &mut msrs.mtrr.fixed[7]),
    (0x26d, |msrs| &mut msrs.mtrr.fixed[8]),
    (0x26e, |msrs| &mut msrs.mtrr.fixed[9]),
    (0x26f, |msrs| &mut msrs.mtrr.fixed[10]),
    (0x200, |msrs| &mut msrs.mtrr.variable[0]),
    (0x201, |msrs| &mut msrs.mtrr.variable[1]),
    (0x202, |msrs| &mut msrs.mtrr.variable[2]),
    (0x203, |msrs| &mut msrs.mtrr.variable[3]),
    (0x204, |msrs| &mut msrs.mtrr.variable[4]),
    (0x205, |msrs| &mut msrs.mtrr.variable[5]),
    (0x206, |msrs| &mut msrs.mtrr.variable[6]),
    (0x207, |msrs| &mut msrs.mtrr.variable[7]),
    (0x208, |msrs| &mut msrs.mtrr.variable[8]),
    (0x209, |msrs| &mut msrs.mtrr.variable[9]),
    (0x20a, |msrs| &mut msrs.mtrr.variable[10]),
    (0x20b, |msrs| &mut msrs.mtrr.variable[11]),
    (0x20c, |msrs| &mut msrs.mtrr.variable[12]),
    (0x20d, |msrs| &mut msrs.mtrr.variable[13]),
    (0x20e, |msrs| &mut msrs.mtrr.variable[14]),
    (0x20f, |msrs| &mut msrs.mtrr.variable[15]),
    (0x17a, |msrs| &mut msrs.mcg[0]),
    (0x17b, |msrs| &mut msrs.mcg[1]),
    (0xc001_0015, |msrs| &mut msrs.hwcr),
    (0xc001_0010, |msrs| &mut msrs.syscfg),
    (0xc001_1029, |msrs| &mut msrs.de_cfg),
];

/// Which of the registers a KVM has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known(Vec<Register>);

impl Known {
    /// Tries them, each by itself, on a vCPU that has its CPUID: KVM has those that can be read and written back.
    pub fn probe(vcpu: &VcpuFd) -> Self {
        let there = |number: u32| get(vcpu, &[number]).is_ok_and(|values| set(vcpu, &[(number, values[0])]).is_ok());
        Self(REGISTERS.into_iter().filter(|(number, _)| there(*number)).collect())
    }

    /// Reads the registers that KVM has, over those in `to`.
    ///
    /// # Errors
    /// What KVM says.
    pub fn read(&self, vcpu: &VcpuFd, to: &mut Msrs) -> Result<(), KvmVcpuError> {
        let numbers: Vec<u32> = self.0.iter().map(|(number, _)| *number).collect();
        for ((_, place), value) in self.0.iter().zip(get(vcpu, &numbers)?) {
            *place(to) = value;
        }
        Ok(())
    }

    /// As [`read`](Self::read), and the register `besides` in the same call.
    ///
    /// # Errors
    /// What KVM says.
    pub fn read_besides(&self, vcpu: &VcpuFd, to: &mut Msrs, besides: u32) -> Result<u64, KvmVcpuError> {
        let numbers: Vec<u32> = self
            .0
            .iter()
            .map(|(number, _)| *number)
            .chain(std::iter::once(besides))
            .collect();
        let values = get(vcpu, &numbers)?;
        for ((_, place), value) in self.0.iter().zip(&values) {
            *place(to) = *value;
        }
        Ok(values.last().copied().unwrap_or(0))
    }

    /// Writes the registers that KVM has.
    ///
    /// # Errors
    /// [`KvmVcpuError::Msr`] naming the first that does not take its value.
    pub fn write(&self, vcpu: &VcpuFd, from: &Msrs) -> Result<(), KvmVcpuError> {
        let mut from = from.clone();
        let entries: Vec<(u32, u64)> = self
            .0
            .iter()
            .map(|(number, place)| (*number, *place(&mut from)))
            .collect();
        set(vcpu, &entries)
    }
}

/// Reads registers.
///
/// # Errors
/// What KVM says, or that it has not all of them.
pub fn get(vcpu: &VcpuFd, numbers: &[u32]) -> Result<Vec<u64>, KvmVcpuError> {
    let entries: Vec<kvm_msr_entry> = numbers
        .iter()
        .map(|index| kvm_msr_entry {
            index: *index,
            ..kvm_msr_entry::default()
        })
        .collect();
    let mut list = list(&entries);
    let count = vcpu.get_msrs(&mut list).of_vcpu("KVM_GET_MSRS")?;
    match numbers.get(count) {
        Some(msr) => Err(KvmVcpuError::NoMsr { msr: *msr }),
        None => Ok(list.as_slice().iter().map(|entry| entry.data).collect()),
    }
}

/// Writes registers.
///
/// # Errors
/// What KVM says, or which register does not take its value.
pub fn set(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), KvmVcpuError> {
    let entries: Vec<kvm_msr_entry> = values
        .iter()
        .map(|(index, data)| kvm_msr_entry {
            index: *index,
            data: *data,
            ..kvm_msr_entry::default()
        })
        .collect();
    let count = vcpu.set_msrs(&list(&entries)).of_vcpu("KVM_SET_MSRS")?;
    match values.get(count) {
        Some((msr, value)) => Err(KvmVcpuError::Msr {
            msr: *msr,
            value: *value,
        }),
        None => Ok(()),
    }
}

fn list(entries: &[kvm_msr_entry]) -> List {
    List::from_entries(entries).expect("fewer registers than KVM_MAX_MSR_ENTRIES")
}

const _: () = assert!(REGISTERS.len() < kvm_bindings::KVM_MAX_MSR_ENTRIES);
