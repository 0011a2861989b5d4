//! Guests whose hot code is translated, and what they executed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use reprise_hypervisor::{Hypervisor, SoftHypervisor, Stress, Translation};
use reprise_vmm::config::{CpusConfig, MemoryConfig, PayloadConfig, VmConfig};
use reprise_vmm::console::Console;
use reprise_vmm::machine::{Machine, MachineEnd, MachineOptions};

use crate::guest::Guest;
use crate::log::Log;
use crate::wait::{EVENTUALLY, eventually, output};

/// What the guest is asked to do.
const CMDLINE: &str =
    r#"console=ttyS0 quiet reprise.test="dd if=/dev/zero bs=64k count=64 2>/dev/null | sha256sum; nproc""#;

fn assert_printed(printed: &[u8], vcpus: &str) {
    let printed = String::from_utf8_lossy(printed);
    let zeros = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8  -";
    for line in [zeros, vcpus, "reprise: status 0"] {
        assert!(
            printed.lines().any(|printed| printed.trim() == line),
            "{line}: {printed}"
        );
    }
}

#[test]
fn two_vcpus_boot_and_work_and_are_profiled_whether_hot_code_is_translated_or_not() {
    let Some(guest) = Guest::get() else { return };
    for cpus in ["2", "2,translate=off"] {
        boot_and_profile(&guest, cpus);
    }
}

fn boot_and_profile(guest: &Guest, cpus: &str) {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("profile");
    let output = output(
        Command::new(env!("CARGO_BIN_EXE_reprise"))
            .args(["run", "--hypervisor", "soft", "--memory", "512M"])
            .args(["--seccomp", "on", "--landlock", "on", "--cpus", cpus, "--cmdline"])
            .arg(CMDLINE)
            .arg("--kernel")
            .arg(&guest.kernel)
            .arg("--initramfs")
            .arg(&guest.initramfs)
            .arg("--profile")
            .arg(&profile),
    );
    assert_printed(&output.stdout, "2");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    if told.contains("is not translated") {
        eprintln!("interpreted all the same, for this host lacks something: {told}");
    }
    let profile = fs::read_to_string(profile).unwrap();
    let mut samples = 0;
    for line in profile.lines() {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        let frames: Vec<&str> = stack.split(';').collect();
        assert!(frames.len() >= 3 || stack == "others", "{line}");
        assert!(frames[0].starts_with("vcpu"), "{line}");
        samples += count.parse::<u64>().unwrap();
    }
    // A boot is some hundred million instructions at least.
    assert!(samples > 1000, "{samples}");
    for who in ["vcpu0;kernel;", "vcpu1;kernel;", ";user;"] {
        assert!(profile.contains(who), "{who}");
    }
}

/// What a machine prints.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Boots a guest on two vCPUs to its end: what it prints, and the counters of one of them.
fn boot(guest: &Guest, hypervisor: &dyn Hypervisor, cmdline: &str) -> (Vec<u8>, BTreeMap<String, u64>) {
    let config = VmConfig {
        cpus: CpusConfig::of(2),
        memory: MemoryConfig::of(512 << 20),
        payload: PayloadConfig {
            kernel: Some(guest.kernel.clone()),
            initramfs: Some(guest.initramfs.clone()),
            cmdline: Some(cmdline.to_owned()),
            ..PayloadConfig::default()
        },
        ..VmConfig::default()
    };
    let printed = Printed::default();
    let options = MachineOptions {
        console: Some(Console::sink(Box::new(printed.clone())).unwrap()),
        ..MachineOptions::default()
    };
    let (tell, ends) = channel();
    let on_end = Box::new(move |end| tell.send(end).unwrap());
    let machine = Machine::new(&config, hypervisor, options, on_end).unwrap();
    machine.start();
    let end = ends.recv_timeout(EVENTUALLY);
    let own = eventually("the counters of a vCPU that has ended", || {
        let own = machine.counters().remove("vcpu0")?;
        own.contains_key("blocks_translated").then_some(own)
    });
    machine.stop();
    let printed = printed.0.lock().unwrap().clone();
    assert_printed(&printed, "2");
    assert_eq!(end, Ok(MachineEnd::PowerOff));
    (printed, own)
}

#[test]
fn a_guest_with_a_tier_chosen_at_random_for_each_block_prints_the_same_as_an_interpreted_one_but_for_times() {
    if std::env::var_os("REPRISE_LONG").is_none() {
        eprintln!("skipped: it takes long; REPRISE_LONG=1 runs it");
        return;
    }
    let Some(guest) = Guest::get() else { return };
    let cmdline = CMDLINE.replace(" quiet", "");
    // In a buffer that is full again and again.
    let translation = Translation {
        threshold: 8,
        buffer: 4 << 20,
        stress: Stress {
            spared: Some(7),
            starved: false,
        },
    };
    let (interpreted, own) = boot(&guest, &SoftHypervisor.interpreting(), &cmdline);
    assert_eq!(own["blocks_translated"], 0);
    let (mixed, own) = boot(&guest, &SoftHypervisor.translating(translation), &cmdline);
    println!("{own:?}");
    let log = |printed: &[u8]| Log::of(&String::from_utf8_lossy(printed));
    log(&mixed).assert_same(&log(&interpreted));
    if own["blocks_translated"] > 0 {
        assert!(own["translated_instructions"] * 10 > own["instructions"], "{own:?}");
        assert!(own["translated_instructions"] < own["instructions"], "{own:?}");
        assert!(own["translated_bytes"] <= 4 << 20, "{own:?}");
    }
}
