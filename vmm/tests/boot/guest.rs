//! The guest's files, and whose turn it is.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The guest's files.
pub struct Guest {
    pub kernel: PathBuf,
    pub packed: PathBuf,
    pub initramfs: PathBuf,
    /// One whole guest at a time: they are as fast as the host, and several on one host only wait for each other.
    _turn: MutexGuard<'static, ()>,
}

impl Guest {
    pub fn get() -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
        let [kernel, packed, initramfs] = ["vmlinux", "vmlinuz", "initramfs.cpio.gz"].map(|name| folder.join(name));
        if kernel.exists() && packed.exists() && initramfs.exists() {
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            return Some(Self {
                kernel,
                packed,
                initramfs,
                _turn,
            });
        }
        let required = std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "guest"));
        assert!(
            !required,
            "there is no guest in {}; scripts/guest.sh makes one",
            folder.display()
        );
        eprintln!(
            "skipped: there is no guest in {}; scripts/guest.sh makes one",
            folder.display()
        );
        None
    }
}
