//! What KVM must be able to do.

use kvm_bindings::*;
use kvm_ioctls::Kvm;

use super::error::KvmError;

/// It is there, whatever its value says besides.
const ANY: u32 = u32::MAX;

/// The capabilities that are needed: name, number, and what of its value must be there.
const NEEDED: [(&str, u32, u32); 23] = [
    ("KVM_CAP_USER_MEMORY", KVM_CAP_USER_MEMORY, ANY),
    ("KVM_CAP_IRQCHIP", KVM_CAP_IRQCHIP, ANY),
    ("KVM_CAP_IRQ_ROUTING", KVM_CAP_IRQ_ROUTING, ANY),
    ("KVM_CAP_IRQFD", KVM_CAP_IRQFD, ANY),
    ("KVM_CAP_IOEVENTFD", KVM_CAP_IOEVENTFD, ANY),
    ("KVM_CAP_SIGNAL_MSI", KVM_CAP_SIGNAL_MSI, ANY),
    ("KVM_CAP_SET_TSS_ADDR", KVM_CAP_SET_TSS_ADDR, ANY),
    ("KVM_CAP_SET_IDENTITY_MAP_ADDR", KVM_CAP_SET_IDENTITY_MAP_ADDR, ANY),
    ("KVM_CAP_EXT_CPUID", KVM_CAP_EXT_CPUID, ANY),
    ("KVM_CAP_MP_STATE", KVM_CAP_MP_STATE, ANY),
    ("KVM_CAP_VCPU_EVENTS", KVM_CAP_VCPU_EVENTS, ANY),
    ("KVM_CAP_EXCEPTION_PAYLOAD", KVM_CAP_EXCEPTION_PAYLOAD, ANY),
    ("KVM_CAP_DEBUGREGS", KVM_CAP_DEBUGREGS, ANY),
    ("KVM_CAP_XSAVE", KVM_CAP_XSAVE, ANY),
    ("KVM_CAP_XCRS", KVM_CAP_XCRS, ANY),
    ("KVM_CAP_ADJUST_CLOCK", KVM_CAP_ADJUST_CLOCK, ANY),
    ("KVM_CAP_GET_TSC_KHZ", KVM_CAP_GET_TSC_KHZ, ANY),
    ("KVM_CAP_TSC_DEADLINE_TIMER", KVM_CAP_TSC_DEADLINE_TIMER, ANY),
    ("KVM_CAP_IMMEDIATE_EXIT", KVM_CAP_IMMEDIATE_EXIT, ANY),
    ("KVM_CAP_SYNC_REGS", KVM_CAP_SYNC_REGS, ANY),
    ("KVM_CAP_X86_USER_SPACE_MSR", KVM_CAP_X86_USER_SPACE_MSR, ANY),
    (
        "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
        KVM_CAP_EXIT_ON_EMULATION_FAILURE,
        ANY,
    ),
    ("KVM_CAP_HLT", KVM_CAP_HLT, ANY),
];

/// Checks the API's version and the capabilities.
///
/// # Errors
/// [`KvmError`] naming the first that is missing.
pub fn check(kvm: &Kvm) -> Result<(), KvmError> {
    let found = kvm.get_api_version();
    let expected = KVM_API_VERSION as i32;
    if found != expected {
        return Err(KvmError::Version { found, expected });
    }
    check_with(|number| kvm.check_extension_raw(number.into()))
}

fn check_with(value: impl Fn(u32) -> i32) -> Result<(), KvmError> {
    let missing = NEEDED.into_iter().find(|(_, number, mask)| {
        // Negative is an error: it is not there.
        u32::try_from(value(*number)).unwrap_or(0) & mask == 0
    });
    match missing {
        Some((capability, ..)) => Err(KvmError::Capability { capability }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        for (name, number, _) in NEEDED {
            let without = check_with(|asked| if asked == number { 0 } else { i32::MAX });
            assert!(matches!(without, Err(KvmError::Capability { capability }) if capability == name));
        }
        assert!(matches!(check_with(|_| -1), Err(KvmError::Capability { .. })));
        assert!(check_with(|_| i32::MAX).is_ok());
    }
}
