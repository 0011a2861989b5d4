mod disk;
mod real;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use reprise_devices::{acpi::ports, debug_exit, i8042};
use tempfile::TempDir;

use super::double::{Act, Doubles};
use super::*;
use crate::boot::test_images::{BzImage, Elf};
use crate::config::{ConsoleConfig, CpusConfig, DelayConfig, DelayTime, MemoryConfig, PayloadConfig};

/// As long as it takes.
const LONG: Duration = Duration::from_secs(60);

fn kernel(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("vmlinux");
    std::fs::write(
        &path,
        Elf {
            pvh: Some(0x20_0004),
            ..Elf::default()
        }
        .bytes(),
    )
    .unwrap();
    path
}

fn config(kernel: PathBuf, vcpus: u32) -> VmConfig {
    VmConfig {
        cpus: CpusConfig::of(vcpus),
        memory: MemoryConfig::of(16 << 20),
        payload: PayloadConfig {
            kernel: Some(kernel),
            ..PayloadConfig::default()
        },
        serial: ConsoleConfig::null(),
        ..VmConfig::default()
    }
}

/// A machine of scripted vCPUs, and its ends.
fn machine(scripts: &[&[Act]]) -> (Machine, Doubles, Receiver<MachineEnd>) {
    let folder = tempfile::tempdir().unwrap();
    let doubles = Doubles::new(scripts);
    let (told, ends) = channel();
    let config = config(kernel(&folder), u32::try_from(scripts.len()).unwrap());
    let options = MachineOptions {
        debug_exit: true,
        ..MachineOptions::default()
    };
    let machine = Machine::new(&config, &doubles, options, Box::new(move |end| told.send(end).unwrap())).unwrap();
    (machine, doubles, ends)
}

fn refused(config: &VmConfig) -> MachineError {
    Machine::new(
        config,
        &Doubles::new(&[&[]]),
        MachineOptions::default(),
        Box::new(|_| ()),
    )
    .err()
    .unwrap()
}

#[test]
fn nothing_runs_before_the_start_and_the_bootstrap_processor_has_the_entry_state() {
    let (machine, doubles, _ends) = machine(&[&[], &[]]);
    assert_eq!(doubles.record(0).entries(), []);
    machine.start();
    doubles.record(0).wait_asleep();
    doubles.record(1).wait_asleep();
    machine.stop();
}

#[test]
fn what_the_guest_asks_the_devices_for_is_the_machine_s_end() {
    let port = |port: u64| u16::try_from(port).unwrap();
    let soft_off = [Act::Write(port(ports::PM1A_CNT) + 1, 0x20 | ports::SLP_TYP_S5 << 2)];
    let acpi_reset = [Act::Write(port(ports::RESET), ports::RESET_VALUE)];
    let keyboard_reset = [Act::Write(port(i8042::COMMAND_PORT), 0xfe)];
    let debug_exit = [
        Act::Write(port(debug_exit::PORT), 0x2a),
        Act::Write(port(debug_exit::PORT), 0x2b),
    ];
    for (script, expected) in [
        (&soft_off[..], MachineEnd::PowerOff),
        (&acpi_reset, MachineEnd::Reset),
        (&keyboard_reset, MachineEnd::Reset),
        (&debug_exit, MachineEnd::DebugExit(0x2a)),
        (&[Act::Shutdown], MachineEnd::Shutdown),
    ] {
        let (machine, _doubles, ends) = machine(&[script, &[]]);
        machine.start();
        assert_eq!(ends.recv_timeout(LONG).unwrap(), expected);
        machine.stop();
        assert!(ends.try_recv().is_err(), "only once");
    }
}

#[test]
fn a_vcpu_that_fails_or_panics_ends_the_machine_and_says_where() {
    let (failing, _doubles, ends) = machine(&[&[Act::Fail]]);
    failing.start();
    let MachineEnd::Failed(reason) = ends.recv_timeout(LONG).unwrap() else {
        panic!()
    };
    for part in [
        "vCPU 0",
        "RIP 0x200004",
        "Protected mode",
        "CR3",
        "bytes 20 61 6e 64 20 6d 6f 72 65",
    ] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    failing.stop();

    let (machine, _doubles, ends) = machine(&[&[], &[Act::Panic]]);
    machine.start();
    assert!(matches!(ends.recv_timeout(LONG).unwrap(), MachineEnd::Failed(reason) if reason.contains("vCPU 1")));
    machine.stop();
}

#[test]
fn a_paused_machine_executes_nothing_and_its_clocks_stand_until_it_is_resumed() {
    let (machine, doubles, _ends) = machine(&[&[], &[]]);
    machine.start();
    doubles.record(1).wait_asleep();
    machine.pause().unwrap();
    let entries = doubles.record(1).entries().len();
    machine.power_button();
    assert_eq!(
        machine.counters()["vcpu1"]["entries"],
        entries as u64,
        "counters do not wake it"
    );
    assert_eq!(doubles.record(1).entries().len(), entries);
    machine.resume();
    doubles.record(1).wait_entries(entries + 1);
    assert_eq!(*doubles.vm.paused.lock().unwrap(), [true, false]);
    machine.stop();
}

#[test]
fn a_machine_that_was_never_started_stops() {
    let (machine, _doubles, ends) = machine(&[&[], &[]]);
    machine.stop();
    assert!(ends.try_recv().is_err(), "being stopped is no end of its own");
}

#[test]
fn counters_tell_of_every_device_and_vcpu() {
    let (machine, doubles, _ends) = machine(&[&[Act::Read(0x80), Act::Read(0x3fd)]]);
    machine.start();
    doubles.record(0).wait_asleep();
    let counters = machine.counters();
    assert_eq!(counters["post"]["reads"], 1);
    assert_eq!(counters["serial"]["reads"], 1);
    assert!(counters["vcpu0"]["entries"] >= 3);
    machine.stop();
}

#[test]
fn a_configuration_that_makes_no_machine_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = config(kernel(&folder), 1);
    let with = |change: fn(&mut VmConfig)| {
        let mut config = good.clone();
        change(&mut config);
        refused(&config)
    };
    assert!(matches!(
        with(|config| config.payload.kernel = None),
        MachineError::NoKernel
    ));
    for count in [0, 2] {
        let error = refused(&VmConfig {
            cpus: CpusConfig::of(count),
            ..good.clone()
        });
        assert!(
            matches!(error, MachineError::Hypervisor { source: HypervisorError::VcpuCount { wanted, max: 1 } } if wanted == count),
            "{error:?}"
        );
    }
    assert!(matches!(
        with(|config| config.memory.size = 0),
        MachineError::Memory { .. }
    ));
    assert!(matches!(
        with(|config| config.memory.size = 1 << 50),
        MachineError::Memory { .. }
    ));
    assert!(
        matches!(with(|config| config.memory.size = 2 << 20), MachineError::Boot { .. }),
        "a kernel at 2 MiB"
    );
    assert!(matches!(
        with(|config| config.serial = ConsoleConfig::file("/nowhere/at/all")),
        MachineError::Console { .. }
    ));
    assert!(matches!(
        with(|config| config.payload.kernel = Some("/nowhere".into())),
        MachineError::Boot { .. }
    ));
}

#[test]
fn the_devices_of_a_machine_have_the_names_that_its_configuration_gives() {
    for serial in [ConsoleConfig::null(), ConsoleConfig::default()] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinuz");
        std::fs::write(&path, BzImage::default().bytes()).unwrap();
        let config = VmConfig {
            serial,
            ..config(path, 1)
        };
        let options = MachineOptions {
            debug_exit: true,
            ..MachineOptions::default()
        };
        let machine = Machine::new(&config, &Doubles::new(&[&[]]), options, Box::new(|_| ())).unwrap();
        let names: Vec<_> = machine.board.device_names().into_iter().collect();
        assert_eq!(names, config.device_names());
    }
}

#[test]
fn a_delay_for_a_device_that_is_not_there_is_refused_with_those_that_are() {
    let folder = tempfile::tempdir().unwrap();
    let late = |device: &str| DelayConfig {
        device: device.to_owned(),
        us: DelayTime::Never,
        after: 0,
        seed: 0,
    };
    let config = VmConfig {
        delays: vec![late("*"), late("debug-exit")],
        ..config(kernel(&folder), 1)
    };
    let error = refused(&config);
    let MachineError::Board {
        source: BoardError::NoSuchDevice { device, known },
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(device, "debug-exit");
    assert_eq!(
        known,
        [
            "acpi",
            "i8042",
            "pci-config",
            "pci-ecam",
            "pci-hotplug",
            "post",
            "rng",
            "rtc",
            "serial"
        ]
    );
}

#[test]
fn of_several_delays_that_mean_a_device_the_last_counts_and_others_are_prompt() {
    let late = |device: &str, us: &str| DelayConfig {
        device: device.to_owned(),
        us: us.parse().unwrap(),
        after: 0,
        seed: 0,
    };
    let folder = tempfile::tempdir().unwrap();
    let script = [Act::Read(0x80), Act::Read(0x3fd), Act::Read(0x71)];
    for (delays, answers, late) in [
        (vec![], 3, [0, 0, 0]),
        (vec![late("post", "0..9")], 3, [1, 0, 0]),
        (vec![late("*", "never"), late("post", "0..9")], 1, [1, 1, 0]),
        (vec![late("post", "never"), late("*", "0..9")], 3, [1, 1, 1]),
        (
            vec![late("rtc", "never"), late("serial", "5"), late("serial", "lost")],
            2,
            [0, 1, 1],
        ),
    ] {
        let config = VmConfig {
            delays,
            ..config(kernel(&folder), 1)
        };
        let doubles = Doubles::new(&[&script]);
        let machine = Machine::new(&config, &doubles, MachineOptions::default(), Box::new(|_| ())).unwrap();
        machine.start();
        doubles.record(0).wait_entries(1 + answers);
        if answers == script.len() {
            doubles.record(0).wait_asleep();
        }
        machine.pause().unwrap();
        let counters = machine.counters();
        assert_eq!(["post", "serial", "rtc"].map(|device| counters[device]["late"]), late);
        machine.stop();
    }
}

#[test]
fn a_machine_without_a_serial_port_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vmlinuz");
    std::fs::write(&path, BzImage::default().bytes()).unwrap();
    let config = VmConfig {
        serial: ConsoleConfig::default(),
        ..config(path, 1)
    };
    let doubles = Doubles::new(&[&[Act::Read(0x3fd)]]);
    let machine = Machine::new(&config, &doubles, MachineOptions::default(), Box::new(|_| ())).unwrap();
    machine.start();
    doubles.record(0).wait_asleep();
    assert_eq!(doubles.record(0).answers(), [0xff]);
    assert!(!machine.counters().contains_key("serial"));
    machine.stop();
}
