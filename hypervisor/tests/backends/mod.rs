//! The backends that there are on this host.

use reprise_hypervisor::{Hypervisor, KvmHypervisor, SoftHypervisor, Stress, Translation};

/// Everything is translated when it is executed first.
pub const AT_ONCE: Translation = Translation {
    threshold: 0,
    buffer: 1 << 20,
    stress: Stress {
        spared: None,
        starved: false,
    },
};

/// Runs `test` on every backend that there is here.
pub fn on_each(mut test: impl FnMut(&dyn Hypervisor)) {
    eprintln!("on the soft backend, all code interpreted");
    test(&SoftHypervisor.interpreting());
    eprintln!("on the soft backend, hot code translated");
    test(&SoftHypervisor.translating(Translation::default()));
    eprintln!("on the soft backend, all code translated");
    test(&SoftHypervisor.translating(AT_ONCE));
    if let Some(kvm) = kvm() {
        eprintln!("on KVM");
        test(&kvm);
    }
}

/// KVM, if it is there. `REPRISE_REQUIRE=kvm` makes it an error if it is not.
pub fn kvm() -> Option<KvmHypervisor> {
    match KvmHypervisor::open() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            let required = std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "kvm"));
            assert!(!required, "{error}");
            eprintln!("skipped on KVM: {error}");
            None
        }
    }
}
