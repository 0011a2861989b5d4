//! What can go wrong with KVM.

use std::io;
use std::path::PathBuf;

use reprise_emulator::cpu::Mode;

use super::failure::EmulationFailure;
use crate::RequestId;

/// KVM cannot be used, or refuses something.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device is not there.
    #[error("there is no {}: this host has no virtualisation, or its KVM module is not loaded", path.display())]
    NoDevice {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The device may not be opened.
    #[error(
        "{} may not be opened for reading and writing by this user; membership in its group, usually kvm, allows it",
        path.display()
    )]
    Permission {
        /// The device.
        path: PathBuf,
    },
    /// The device cannot be opened.
    #[error("{} cannot be opened", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another hypervisor has the processor's virtualisation to itself.
    #[error("KVM is busy: another hypervisor on this host uses the processor's virtualisation")]
    Busy,
    /// The device speaks another language.
    #[error("KVM has API version {found}; expected {expected}")]
    Version {
        /// What it says.
        found: i32,
        /// What is needed.
        expected: i32,
    },
    /// The host's KVM cannot do something that is needed.
    #[error("this host's KVM has no {capability}; a newer kernel has it")]
    Capability {
        /// Its name.
        capability: &'static str,
    },
    /// Hyper-V's interface is asked for.
    #[error("Hyper-V's interface is not there on KVM, only on the soft backend")]
    HyperV,
    /// More interrupts than KVM has routes for.
    #[error("KVM has no more than {most} interrupts that events signal")]
    Interrupts {
        /// How many there are.
        most: usize,
    },
    /// A call failed.
    #[error("KVM refused {call}")]
    Call {
        /// Which.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// A vCPU refuses the state that processors begin with.
    #[error("a new vCPU cannot be given its first state")]
    FirstState {
        /// Why.
        source: KvmVcpuError,
    },
    /// A region of guest memory is not taken.
    #[error("KVM refused memory slot {slot}, {length:#x} bytes at guest-physical {address:#x}")]
    MemorySlot {
        /// The slot's number.
        slot: u32,
        /// Where the region begins.
        address: u64,
        /// Its length in bytes.
        length: u64,
        /// What KVM said.
        source: io::Error,
    },
}

impl KvmError {
    /// KVM_CREATE_VM said `source`.
    pub(super) fn no_machine(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EBUSY) => Self::Busy,
            _ => Self::Call {
                call: "KVM_CREATE_VM",
                source,
            },
        }
    }
}

/// A vCPU on KVM cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum KvmVcpuError {
    /// A call failed.
    #[error("KVM refused {call}")]
    Call {
        /// Which.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The machine's clock does not tell the time.
    #[error("the machine's clock cannot be read")]
    Clock {
        /// Why.
        source: Box<KvmError>,
    },
    /// A model-specific register does not take its value.
    #[error("KVM refused {value:#x} for model-specific register {msr:#x}")]
    Msr {
        /// Its number.
        msr: u32,
        /// The value.
        value: u64,
    },
    /// There is no such model-specific register.
    #[error("KVM has no model-specific register {msr:#x}")]
    NoMsr {
        /// Its number.
        msr: u32,
    },
    /// An instruction that KVM cannot emulate.
    #[error("KVM cannot emulate an instruction: {failure}")]
    Emulation {
        /// Which.
        failure: Box<EmulationFailure>,
    },
    /// An instruction that KVM cannot emulate, and the emulator failed to.
    #[error(
        "an instruction that KVM cannot emulate cannot be finished at RIP {rip:#x}, {mode:?} mode, bytes {bytes:02x?}"
    )]
    Rescue {
        /// Its address.
        rip: u64,
        /// The mode of the processor.
        mode: Mode,
        /// The bytes that KVM supplied with the instruction that began the rescue, which may lie before this one.
        bytes: Vec<u8>,
        /// What failed.
        source: reprise_emulator::Error,
    },
    /// An answer that nobody waits for.
    #[error("the answer is not the one that is waited for ({waiting:?})")]
    AnswerOwed {
        /// The request whose answer is.
        waiting: Option<RequestId>,
    },
    /// KVM gives up for another reason than an instruction.
    #[error(
        "KVM gave up at RIP {rip:#x}, {mode:?} mode, bytes {bytes:02x?}: {} (internal error {suberror}, {data:x?})",
        suberror_name(*suberror)
    )]
    Internal {
        /// The address of the instruction.
        rip: u64,
        /// The mode of the processor.
        mode: Mode,
        /// What is in memory there, up to 15 bytes; none if that is not to be had.
        bytes: Vec<u8>,
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// What else KVM says.
        data: Vec<u64>,
    },
    /// The processor does not take the guest's state.
    #[error(
        "the processor refused to enter the guest at RIP {rip:#x}, {mode:?} mode, bytes {bytes:02x?}: hardware reason {reason:#x}"
    )]
    FailEntry {
        /// The address of the instruction.
        rip: u64,
        /// The mode of the processor.
        mode: Mode,
        /// What is in memory there, up to 15 bytes; none if that is not to be had.
        bytes: Vec<u8>,
        /// What it said.
        reason: u64,
    },
    /// KVM came out for a reason that this program does not know.
    #[error("KVM came out at RIP {rip:#x} for the unknown reason {reason}")]
    UnknownExit {
        /// The address of the instruction.
        rip: u64,
        /// KVM_EXIT_*.
        reason: u32,
    },
    /// A device access of a size that no instruction makes.
    #[error("KVM came out at RIP {rip:#x} for an access of {length} bytes at {address:#x}")]
    Access {
        /// The address of the instruction.
        rip: u64,
        /// A port or a guest-physical address.
        address: u64,
        /// Its size.
        length: u64,
    },
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "an instruction cannot be emulated",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions at the same time",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit that it does not know",
        _ => "unknown",
    }
}

/// Names the call that failed.
pub trait Named<T> {
    /// For the machine as a whole.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    fn of_vm(self, call: &'static str) -> Result<T, KvmError>;

    /// For one vCPU.
    ///
    /// # Errors
    /// [`KvmVcpuError::Call`].
    fn of_vcpu(self, call: &'static str) -> Result<T, KvmVcpuError>;
}

impl<T> Named<T> for Result<T, kvm_ioctls::Error> {
    fn of_vm(self, call: &'static str) -> Result<T, KvmError> {
        self.map_err(|error| KvmError::Call {
            call,
            source: io::Error::from_raw_os_error(error.errno()),
        })
    }

    fn of_vcpu(self, call: &'static str) -> Result<T, KvmVcpuError> {
        self.map_err(|error| KvmVcpuError::Call {
            call,
            source: io::Error::from_raw_os_error(error.errno()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_whose_processor_another_hypervisor_has_is_busy() {
        let refused = |errno| KvmError::no_machine(io::Error::from_raw_os_error(errno));
        assert!(matches!(refused(libc::EBUSY), KvmError::Busy));
        let other = refused(libc::ENOMEM);
        assert!(
            matches!(
                &other,
                KvmError::Call {
                    call: "KVM_CREATE_VM",
                    ..
                }
            ),
            "{other:?}"
        );
    }
}
