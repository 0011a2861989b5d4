//! What the tests on KVM share.

use super::KvmHypervisor;

/// The host's KVM. Where there is none, the test says that it is skipped, or fails if `REPRISE_REQUIRE` names `kvm`.
pub fn kvm() -> Option<KvmHypervisor> {
    match KvmHypervisor::open() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            let required = std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "kvm"));
            assert!(!required, "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}
