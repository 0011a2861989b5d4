//! Guests whose hot code is translated.

use std::process::Command;

use crate::guest::Guest;
use crate::wait::output;

#[test]
fn two_vcpus_whose_hot_code_is_translated_boot_and_work() {
    let Some(guest) = Guest::get() else { return };
    let output = output(
        Command::new(env!("CARGO_BIN_EXE_reprise"))
            .args(["run", "--hypervisor", "soft", "--memory", "512M"])
            .args(["--cpus", "2,translate=on", "--cmdline"])
            .arg(r#"console=ttyS0 quiet reprise.test="dd if=/dev/zero bs=64k count=64 2>/dev/null | sha256sum; nproc""#)
            .arg("--kernel")
            .arg(&guest.kernel)
            .arg("--initramfs")
            .arg(&guest.initramfs),
    );
    let printed = String::from_utf8_lossy(&output.stdout);
    let zeros = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8  -";
    for line in [zeros, "2", "reprise: status 0"] {
        assert!(
            printed.lines().any(|printed| printed.trim() == line),
            "{line}: {printed}"
        );
    }
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    if told.contains("is not translated") {
        eprintln!("interpreted all the same, for this host lacks something: {told}");
    }
}
