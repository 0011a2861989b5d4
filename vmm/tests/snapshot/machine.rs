//! In one process, through the library.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proptest::prelude::*;
use reprise_hypervisor::{Hypervisor, SoftHypervisor, StateError, VcpuError, auto};
use reprise_vmm::config::{ConsoleConfig, CpusConfig, DelayConfig, MemoryConfig, PayloadConfig, VmConfig};
use reprise_vmm::console::Console;
use reprise_vmm::lifecycle::chain;
use reprise_vmm::machine::{Machine, MachineEnd, MachineError, MachineOptions};
use reprise_vmm::snapshot::{self, Prefault, Snapshot};
use serde_json::Value;
use tempfile::TempDir;

use crate::backends::{AT_ONCE, on_each};
use crate::{guest, tier};

/// As long as it takes.
const LONG: Duration = Duration::from_secs(120);

struct Guest {
    machine: Machine,
    console: UnixStream,
    ends: Receiver<MachineEnd>,
}

/// A folder with a kernel in it and room for snapshots.
struct Place {
    folder: TempDir,
    config: VmConfig,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        guest::write(&kernel);
        let config = VmConfig {
            cpus: CpusConfig {
                translate: tier::translates(),
                ..CpusConfig::of(1)
            },
            memory: MemoryConfig::of(16 << 20),
            payload: PayloadConfig {
                kernel: Some(kernel),
                ..PayloadConfig::default()
            },
            ..VmConfig::default()
        };
        Self { folder, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn boot(&self) -> Guest {
        self.boot_on(&SoftHypervisor)
    }

    fn boot_on(&self, hypervisor: &dyn Hypervisor) -> Guest {
        let mut guest =
            with_console(|options, on_end| Machine::new(&self.config, hypervisor, options, on_end)).unwrap();
        guest.machine.start();
        guest.expect("!");
        guest
    }

    /// A guest that was asked once and saved.
    fn saved(&self, name: &str) -> Snapshot {
        let mut guest = self.boot();
        assert_eq!(guest.ask(b'a'), "a11");
        guest.machine.pause().unwrap();
        guest.machine.snapshot(&self.config, &self.path(name)).unwrap();
        Snapshot::open(&self.path(name)).unwrap()
    }

    /// As it was saved, but for what `change` does.
    fn changed(&self, change: impl FnOnce(&mut VmConfig, &mut Value)) -> Snapshot {
        let original = self.saved("original");
        let (mut config, mut machine) = (original.config().clone(), original.machine().unwrap());
        change(&mut config, &mut machine);
        let memory = original.memory(Prefault::No).unwrap();
        snapshot::save(&self.path("changed"), &config, &memory, &machine).unwrap();
        Snapshot::open(&self.path("changed")).unwrap()
    }
}

fn with_console(
    build: impl FnOnce(MachineOptions, Box<dyn Fn(MachineEnd) + Send + Sync>) -> Result<Machine, MachineError>,
) -> Result<Guest, MachineError> {
    let (console, serial) = UnixStream::pair().unwrap();
    console.set_read_timeout(Some(LONG)).unwrap();
    let options = MachineOptions {
        debug_exit: true,
        console: Some(Console::stream(serial).unwrap()),
        ..MachineOptions::default()
    };
    let (tell, ends) = channel();
    let machine = build(options, Box::new(move |end| tell.send(end).unwrap()))?;
    Ok(Guest { machine, console, ends })
}

fn restore(snapshot: &Snapshot, prefault: Prefault) -> Result<Guest, MachineError> {
    restore_on(&SoftHypervisor, snapshot, prefault)
}

fn restore_on(hypervisor: &dyn Hypervisor, snapshot: &Snapshot, prefault: Prefault) -> Result<Guest, MachineError> {
    with_console(|options, on_end| Machine::restore(snapshot, prefault, hypervisor, options, on_end))
}

impl Guest {
    fn expect(&mut self, text: &str) {
        let mut found = vec![0; text.len()];
        self.console.read_exact(&mut found).unwrap();
        assert_eq!(String::from_utf8_lossy(&found), text);
    }

    fn ask(&mut self, byte: u8) -> String {
        self.console.write_all(&[byte]).unwrap();
        let mut answer = [0; 3];
        self.console.read_exact(&mut answer).unwrap();
        String::from_utf8(answer.to_vec()).unwrap()
    }
}

#[test]
fn a_guest_goes_on_on_the_other_backend_and_back() {
    let soft = auto::soft();
    on_each(|hypervisor| {
        let place = Place::new();
        let mut guest = place.boot_on(hypervisor);
        let mut expected = ["a11", "b22", "c33", "d44", "e55"].into_iter();
        for (index, next) in [&*soft, hypervisor, &*soft, hypervisor].into_iter().enumerate() {
            let answer = expected.next().unwrap();
            assert_eq!(guest.ask(answer.as_bytes()[0]), answer, "{index}");
            guest.machine.pause().unwrap();
            let name = format!("{index}");
            guest.machine.snapshot(&place.config, &place.path(&name)).unwrap();
            let snapshot = Snapshot::open(&place.path(&name)).unwrap();
            guest = restore_on(next, &snapshot, Prefault::Yes)
                .unwrap_or_else(|error| panic!("{}", chain(&error).join(": ")));
            guest.machine.resume();
        }
        let answer = expected.next().unwrap();
        assert_eq!(guest.ask(answer.as_bytes()[0]), answer);
    });
}

#[test]
fn a_guest_goes_on_where_it_was_and_so_does_each_that_is_restored() {
    let place = Place::new();
    let mut guest = place.boot();
    assert_eq!(guest.ask(b'a'), "a11");
    guest.machine.pause().unwrap();
    guest.machine.snapshot(&place.config, &place.path("one")).unwrap();
    guest.machine.resume();
    assert_eq!(guest.ask(b'b'), "b22", "a snapshot disturbs nothing");

    let one = Snapshot::open(&place.path("one")).unwrap();
    assert_eq!(*one.config(), place.config);
    for prefault in [Prefault::No, Prefault::Yes] {
        let [mut first, mut second] = [(); 2].map(|()| restore(&one, prefault).unwrap());
        first.machine.resume();
        assert_eq!([first.ask(b'b'), first.ask(b'c')], ["b22", "c33"]);
        second.machine.resume();
        assert_eq!(second.ask(b'x'), "x22", "neither sees the other");
        first.console.write_all(b"q").unwrap();
        assert_eq!(first.ends.recv_timeout(LONG).unwrap(), MachineEnd::DebugExit(0));
        assert_eq!(second.ask(b'y'), "y33");
    }
    assert_eq!(guest.ask(b'd'), "d33");
}

#[test]
fn what_was_restored_is_saved_again_over_the_snapshot_that_it_lives_on() {
    let place = Place::new();
    drop(place.saved("one"));
    for (asked, answered) in [(b'b', "b22"), (b'f', "f33"), (b'd', "d44")] {
        let mut guest = restore(&Snapshot::open(&place.path("one")).unwrap(), Prefault::No).unwrap();
        guest.machine.resume();
        assert_eq!(guest.ask(asked), answered);
        guest.machine.pause().unwrap();
        guest.machine.snapshot(&place.config, &place.path("one")).unwrap();
        guest.machine.resume();
        assert_eq!(guest.ask(b'x')[..1], *"x");
    }
    let memory = Snapshot::open(&place.path("one"))
        .unwrap()
        .memory(Prefault::No)
        .unwrap();
    let mut filled = vec![0; guest::FILL as usize];
    vm_memory::Bytes::read_slice(&memory, &mut filled, vm_memory::GuestAddress(0x40_0000)).unwrap();
    assert!(filled.iter().all(|byte| *byte == 0x5a));
}

/// A place whose guest finds `device` late.
fn late(device: &str, us: &str, after: u64) -> Place {
    let mut place = Place::new();
    place.config.delays = vec![DelayConfig {
        device: device.to_owned(),
        us: us.parse().unwrap(),
        after,
        seed: 7,
    }];
    place
}

fn is_parked(snapshot: &Snapshot) -> bool {
    !snapshot.machine::<Value>().unwrap()["vcpus"][0]["parked"].is_null()
}

#[test]
fn rule_23_an_access_under_way_is_finished_in_another_machine_and_made_once() {
    // Interpreted, translated, and from one to the other each time.
    let (interpreting, translating) = (SoftHypervisor.interpreting(), SoftHypervisor.translating(AT_ONCE));
    let pairs: [[&dyn Hypervisor; 2]; 3] = [
        [&interpreting, &interpreting],
        [&translating, &translating],
        [&interpreting, &translating],
    ];
    for engines in pairs {
        is_finished_in_another_machine(engines);
    }
}

fn is_finished_in_another_machine(engines: [&dyn Hypervisor; 2]) {
    let place = late("*", "100..3000", 0);
    let mut guest = place.boot_on(engines[0]);
    let mut parked = 0;
    for (count, byte) in (b'1'..=b'9').zip(b'a'..) {
        let count = char::from(count);
        assert_eq!(guest.ask(byte), format!("{}{count}{count}", char::from(byte)));
        // In the middle of whatever it does now: it asks its serial port without end.
        std::thread::sleep(Duration::from_micros(u64::from(byte % 7) * 500));
        guest.machine.pause().unwrap();
        guest.machine.snapshot(&place.config, &place.path("one")).unwrap();
        let one = Snapshot::open(&place.path("one")).unwrap();
        parked += u32::from(is_parked(&one));
        guest.machine.stop();
        guest = restore_on(engines[usize::from(byte % 2)], &one, Prefault::No).unwrap();
        guest.machine.resume();
    }
    assert!(parked > 0, "a device of which it waits most of the time");
}

#[test]
fn rule_23_a_vcpu_that_waits_for_a_silent_device_is_saved_waiting_and_waits_on() {
    let place = late("serial", "never", 100);
    let guest = place.boot();
    let waits = |guest: &Guest| guest.machine.counters()["vcpu0"]["parked"] > 0;
    while !waits(&guest) {
        std::thread::yield_now();
    }
    guest.machine.pause().unwrap();
    guest.machine.snapshot(&place.config, &place.path("one")).unwrap();
    let [one, two] = ["one", "two"].map(|name| place.path(name));
    let one = Snapshot::open(&one).unwrap();
    assert!(is_parked(&one));
    let restored = restore(&one, Prefault::No).unwrap();
    restored.machine.snapshot(&place.config, &two).unwrap();
    let two = Snapshot::open(&two).unwrap();
    assert_eq!(one.machine::<Value>().unwrap(), two.machine::<Value>().unwrap());
    for machine in [&guest.machine, &restored.machine] {
        machine.resume();
        machine.power_button();
        machine.pause().unwrap();
        machine.resume();
    }
    while !waits(&restored) {
        std::thread::yield_now();
    }
    restored.machine.stop();
    guest.machine.stop();
    assert!(restored.ends.try_recv().is_err() && guest.ends.try_recv().is_err());
}

#[test]
fn restoring_changes_nothing() {
    let place = Place::new();
    let one = place.saved("one");
    let guest = restore(&one, Prefault::No).unwrap();
    guest.machine.snapshot(&place.config, &place.path("two")).unwrap();
    let two = Snapshot::open(&place.path("two")).unwrap();
    let [one, two]: [Value; 2] = [one, two].map(|snapshot| snapshot.machine().unwrap());
    assert_eq!(one, two, "no clock has moved, and nothing else");
}

#[test]
fn a_snapshot_that_cannot_be_written_disturbs_nothing_either() {
    let place = Place::new();
    let mut guest = place.boot();
    guest.machine.pause().unwrap();
    std::fs::write(place.path("file"), "mine").unwrap();
    assert!(guest.machine.snapshot(&place.config, &place.path("file")).is_err());
    guest.machine.resume();
    assert_eq!(guest.ask(b'a'), "a11");
}

#[test]
fn another_cpu_model_is_refused_by_what_differs() {
    let place = Place::new();
    let other = place.changed(|_, machine| {
        let cpuid = machine["vcpus"][0]["state"]["cpuid"].as_array_mut().unwrap();
        let leaf = cpuid.iter_mut().find(|entry| entry["leaf"] == 7).unwrap();
        // HLE, which no model has.
        leaf["registers"]["ebx"] = Value::from(leaf["registers"]["ebx"].as_u64().unwrap() | 1 << 4);
    });
    let error = restore(&other, Prefault::No).err().unwrap();
    assert!(
        matches!(
            &error,
            MachineError::FirstState {
                vcpu: 0,
                source: VcpuError::State {
                    source: StateError::CpuModel { leaf: 7, .. }
                }
            }
        ),
        "{error:?}"
    );
    let told = chain(&error).pop().unwrap();
    assert!(
        told.contains("another CPU model") && told.contains("leaf 0x7"),
        "{told}"
    );
}

#[test]
fn a_machine_of_another_shape_is_refused() {
    let place = Place::new();
    let refused = |change: fn(&mut VmConfig, &mut Value)| restore(&place.changed(change), Prefault::No).err().unwrap();
    let error = refused(|config, _| config.memory.size = 32 << 20);
    assert!(matches!(error, MachineError::MemorySize { .. }), "{error:?}");
    let error = refused(|config, _| config.cpus = CpusConfig::of(2));
    assert!(
        matches!(error, MachineError::VcpuStates { saved: 1, own: 2 }),
        "{error:?}"
    );
    let error = refused(|_, machine| machine["board"]["serial"] = Value::Null);
    assert!(matches!(error, MachineError::Devices { .. }), "{error:?}");
    let error = refused(|_, machine| machine["vm"] = Value::Null);
    assert!(matches!(error, MachineError::Snapshot { .. }), "{error:?}");
}

#[test]
fn a_machine_without_a_serial_port_comes_back_without_one() {
    let place = Place::new();
    let config = VmConfig {
        serial: ConsoleConfig::default(),
        ..place.config.clone()
    };
    let machine = Machine::new(&config, &SoftHypervisor, MachineOptions::default(), Box::new(|_| ())).unwrap();
    machine.start();
    machine.pause().unwrap();
    machine.snapshot(&config, &place.path("none")).unwrap();
    let snapshot = Snapshot::open(&place.path("none")).unwrap();
    assert!(restore(&snapshot, Prefault::No).is_err(), "a serial port does not grow");
    let machine = Machine::restore(
        &snapshot,
        Prefault::No,
        &SoftHypervisor,
        MachineOptions::default(),
        Box::new(|_| ()),
    )
    .unwrap();
    machine.resume();
    assert!(!machine.counters().contains_key("serial"));
}

#[test]
fn a_machine_that_has_ended_is_not_saved() {
    let place = Place::new();
    let mut guest = place.boot();
    guest.console.write_all(b"q").unwrap();
    guest.ends.recv_timeout(LONG).unwrap();
    guest.machine.pause().unwrap();
    let refused = guest.machine.snapshot(&place.config, &place.path("ended"));
    assert!(refused.is_err());
    assert!(!place.path("ended").exists());
}

/// The places of numbers in `value`.
fn numbers(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                numbers(item, format!("{at}/{index}"), found);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                numbers(member, format!("{at}/{name}"), found);
            }
        }
        _ => {}
    }
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        Just(u64::MAX),
        Just(0),
        0..64_u64,
        (0..64_u32).prop_map(|bit| 1 << bit)
    ]
}

#[test]
fn a_state_that_no_machine_can_be_in_is_an_error_or_a_guest_s_misfortune_and_never_a_panic() {
    let place = Place::new();
    let one = place.saved("one");
    let (memory, machine): (_, Value) = (one.memory(Prefault::No).unwrap(), one.machine().unwrap());
    let mut found = Vec::new();
    numbers(&machine, String::new(), &mut found);
    // Of the lists of bytes a few are enough.
    found.retain(|at| {
        !at.rsplit('/')
            .next()
            .unwrap()
            .parse()
            .is_ok_and(|index: usize| index > 4)
    });
    let changes = proptest::collection::vec((0..found.len(), any_number()), 1..4);
    let runner = &mut proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let ran = runner.run(&changes, |changes| {
        let mut machine = machine.clone();
        for (at, number) in changes {
            *machine.pointer_mut(&found[at]).unwrap() = Value::from(number);
        }
        let path = place.path("changed");
        snapshot::save(&path, &place.config, &memory, &machine).unwrap();
        let snapshot = Snapshot::open(&path).unwrap();
        if let Ok(guest) = restore(&snapshot, Prefault::No) {
            guest.machine.resume();
            // Whatever it does, it is paused and stopped as any other.
            if let Ok(MachineEnd::Failed(reason)) = guest.ends.recv_timeout(Duration::from_millis(5)) {
                prop_assert!(!reason.contains("panicked"), "{}", reason);
            }
            guest.machine.pause().unwrap();
            guest.machine.stop();
        }
        Ok(())
    });
    ran.unwrap();
}

#[test]
fn a_snapshot_elsewhere_is_found() {
    // What is relative is relative to the process that names it.
    let missing = Snapshot::open(Path::new("nowhere/at/all")).unwrap_err();
    assert!(missing.to_string().contains("nowhere/at/all"), "{missing}");
}

#[test]
fn a_console_s_file_is_written_on() {
    let place = Place::new();
    let log = place.path("log");
    let config = VmConfig {
        serial: ConsoleConfig::file(&log),
        ..place.config.clone()
    };
    let quiet = || Box::new(|_| ());
    let machine = Machine::new(&config, &SoftHypervisor, MachineOptions::default(), quiet()).unwrap();
    machine.start();
    while std::fs::read(&log).unwrap().is_empty() {
        std::thread::yield_now();
    }
    machine.pause().unwrap();
    machine.snapshot(&config, &place.path("one")).unwrap();
    machine.stop();
    let one = Snapshot::open(&place.path("one")).unwrap();
    let machine = Machine::restore(&one, Prefault::No, &SoftHypervisor, MachineOptions::default(), quiet()).unwrap();
    machine.resume();
    machine.stop();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "!");
}
