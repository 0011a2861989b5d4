//! A machine that does what a test tells it, and a VMM around it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use reprise_hypervisor::GuestMemory;
use reprise_vmm::config::{DeviceSpec, VmConfig};
use reprise_vmm::events::Events;
use reprise_vmm::lifecycle::{Guest, GuestError, Guests, OnEnd, VmCounters, Vmm, WhenGuestEnds};
use reprise_vmm::machine::{MachineEnd, OnEject};
use reprise_vmm::snapshot::{self, Prefault, Snapshot, SnapshotError};
use vm_memory::{Bytes, GuestAddress};

/// Long enough for anything that is going to happen.
pub const EVENTUALLY: Duration = Duration::from_secs(60);

/// Builds machines that do nothing, and writes down what is asked of them.
#[derive(Clone)]
pub struct Doubles {
    inner: Arc<Inner>,
}

struct Inner {
    asked: Mutex<Vec<&'static str>>,
    on_end: Mutex<Option<OnEnd>>,
    /// What machines have in their memory.
    word: Mutex<u64>,
    /// What `build` says instead of building.
    refusal: Mutex<Option<String>>,
    /// Whether `pause` waits, and how many do.
    gate: Mutex<(bool, u32)>,
    gate_changed: Condvar,
    started: Mutex<Sender<()>>,
    starts: Mutex<Receiver<()>>,
    devices: Mutex<Devices>,
}

/// The devices of the machine built last.
#[derive(Default)]
struct Devices {
    there: BTreeMap<String, u8>,
    going: Vec<String>,
    ejected: Vec<String>,
    on_eject: Option<OnEject>,
}

struct Double {
    inner: Arc<Inner>,
}

impl Doubles {
    pub fn new() -> Self {
        let (started, starts) = channel();
        Self {
            inner: Arc::new(Inner {
                asked: Mutex::default(),
                on_end: Mutex::default(),
                word: Mutex::default(),
                refusal: Mutex::default(),
                gate: Mutex::default(),
                gate_changed: Condvar::new(),
                started: Mutex::new(started),
                starts: Mutex::new(starts),
                devices: Mutex::default(),
            }),
        }
    }

    pub fn vmm(&self, when_guest_ends: WhenGuestEnds, events: Events) -> Vmm {
        Vmm::new(self.clone(), when_guest_ends, events).unwrap()
    }

    /// What was asked of machines so far.
    pub fn asked(&self) -> Vec<&'static str> {
        self.inner.asked.lock().unwrap().clone()
    }

    /// What the machine restored last has in its memory.
    pub fn word(&self) -> u64 {
        *self.inner.word.lock().unwrap()
    }

    /// What machines have in their memory from now on.
    pub fn set_word(&self, word: u64) {
        *self.inner.word.lock().unwrap() = word;
    }

    /// From now on machines cannot be built.
    pub fn refuse(&self, why: &str) {
        *self.inner.refusal.lock().unwrap() = Some(why.to_owned());
    }

    /// From now on `pause` waits for [`open_gate`](Self::open_gate).
    pub fn close_gate(&self) {
        self.inner.gate.lock().unwrap().0 = true;
    }

    pub fn open_gate(&self) {
        self.inner.gate.lock().unwrap().0 = false;
        self.inner.gate_changed.notify_all();
    }

    /// Waits until somebody waits in `pause`.
    pub fn wait_at_gate(&self) {
        let gate = self.inner.gate.lock().unwrap();
        let (_gate, timeout) = self
            .inner
            .gate_changed
            .wait_timeout_while(gate, EVENTUALLY, |(_, waiting)| *waiting == 0)
            .unwrap();
        assert!(!timeout.timed_out(), "nobody came");
    }

    /// The guest of the machine built last ends.
    pub fn end(&self, end: MachineEnd) {
        (self
            .inner
            .on_end
            .lock()
            .unwrap()
            .as_ref()
            .expect("no machine was built"))(end);
    }

    /// The guest of the machine built last lets go of a device.
    pub fn eject(&self, id: &str) {
        let mut devices = self.inner.devices.lock().unwrap();
        assert!(devices.there.remove(id).is_some() && devices.going.iter().any(|going| going == id));
        devices.going.retain(|going| going != id);
        devices.ejected.push(id.to_owned());
        (devices.on_eject.as_ref().unwrap())();
    }

    /// What the machine built last would call, to be called when it is gone.
    pub fn take_on_end(&self) -> OnEnd {
        self.inner.on_end.lock().unwrap().take().expect("no machine was built")
    }

    /// Waits for the next start of a machine.
    pub fn wait_start(&self) {
        self.inner
            .starts
            .lock()
            .unwrap()
            .recv_timeout(EVENTUALLY)
            .expect("no machine was started");
    }
}

impl Guests for Doubles {
    fn max_vcpus(&self) -> u32 {
        4
    }

    fn build(&self, config: &VmConfig, on_end: OnEnd) -> Result<Box<dyn Guest>, GuestError> {
        if let Some(why) = &*self.inner.refusal.lock().unwrap() {
            return Err(why.as_str().into());
        }
        self.inner.asked.lock().unwrap().push("build");
        *self.inner.devices.lock().unwrap() = Devices {
            there: config.pci_device_names().into_iter().zip(1..).collect(),
            ..Devices::default()
        };
        *self.inner.on_end.lock().unwrap() = Some(on_end);
        Ok(Box::new(Double {
            inner: self.inner.clone(),
        }))
    }

    fn restore(&self, snapshot: &Snapshot, prefault: Prefault, on_end: OnEnd) -> Result<Box<dyn Guest>, GuestError> {
        let what = match prefault {
            Prefault::No => "restore",
            Prefault::Yes => "restore at once",
        };
        let memory = snapshot.memory(prefault)?;
        self.set_word(snapshot.machine::<u64>()? + memory.read_obj::<u64>(GuestAddress(0))?);
        self.inner.asked.lock().unwrap().push(what);
        *self.inner.on_end.lock().unwrap() = Some(on_end);
        Ok(Box::new(Double {
            inner: self.inner.clone(),
        }))
    }
}

impl Double {
    fn note(&self, what: &'static str) {
        self.inner.asked.lock().unwrap().push(what);
    }
}

impl Guest for Double {
    fn start(&self) {
        self.note("start");
        self.inner.started.lock().unwrap().send(()).unwrap();
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.note("pause");
        let mut gate = self.inner.gate.lock().unwrap();
        gate.1 += 1;
        self.inner.gate_changed.notify_all();
        while gate.0 {
            gate = self.inner.gate_changed.wait(gate).unwrap();
        }
        gate.1 -= 1;
        Ok(())
    }

    fn resume(&self) {
        self.note("resume");
    }

    fn snapshot(&self, config: &VmConfig, destination: &Path) -> Result<(), SnapshotError> {
        self.note("snapshot");
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let word = *self.inner.word.lock().unwrap();
        memory.write_obj(word - 1, GuestAddress(0)).unwrap();
        snapshot::save(destination, config, &memory, &1_u64)
    }

    fn add_device(&self, name: &str, _spec: &DeviceSpec) -> Result<u8, GuestError> {
        if let Some(why) = &*self.inner.refusal.lock().unwrap() {
            return Err(why.as_str().into());
        }
        self.note("add-device");
        let there = &mut self.inner.devices.lock().unwrap().there;
        let number = (1..)
            .find(|number| !there.values().any(|taken| taken == number))
            .unwrap();
        assert_eq!(there.insert(name.to_owned(), number), None);
        Ok(number)
    }

    fn remove_device(&self, name: &str) -> bool {
        let mut devices = self.inner.devices.lock().unwrap();
        let there = devices.there.contains_key(name);
        if there {
            devices.going.push(name.to_owned());
        }
        there
    }

    fn resize_device(&self, name: &str, bytes: u64) -> Result<(), GuestError> {
        self.note("resize-device");
        if !bytes.is_multiple_of(512) {
            return Err(format!("{bytes} is no size for {name}").into());
        }
        Ok(())
    }

    fn going(&self) -> Vec<String> {
        self.inner.devices.lock().unwrap().going.clone()
    }

    fn on_eject(&self, tell: OnEject) {
        self.inner.devices.lock().unwrap().on_eject = Some(tell);
    }

    fn take_ejected(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.devices.lock().unwrap().ejected)
    }

    fn devices(&self) -> BTreeMap<String, u8> {
        self.inner.devices.lock().unwrap().there.clone()
    }

    fn power_button(&self) {
        self.note("power-button");
    }

    fn counters(&self) -> VmCounters {
        VmCounters(BTreeMap::from([(
            "serial".to_owned(),
            BTreeMap::from([("bytes_out".to_owned(), 7)]),
        )]))
    }

    fn stop(self: Box<Self>) {
        self.note("stop");
    }
}
