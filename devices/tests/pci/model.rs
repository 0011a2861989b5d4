//! Accesses made of bytes, and what must hold after each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use reprise_devices::pci::{
    Bar, ConfigSpace, Function, Identity, Layout, Message, Messages, Msi, Msix, MsixPlace, PciRoot, PciState, Registers,
};
use reprise_devices::{Bus, Response, Space};

const ECAM: u64 = 0xe000_0000;
const SIZE: u64 = 0x1000;

/// Counts messages.
#[derive(Default)]
struct Count(AtomicUsize);

impl Messages for Count {
    fn send(&self, _message: Message) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Eight bytes of memory, wherever they are asked for.
#[derive(Default)]
struct Word(Mutex<u64>);

impl Registers for Word {
    fn read(&self, _bar: u8, _offset: u64, _size: u8) -> Response {
        Response::Done(*self.0.lock().unwrap())
    }

    fn write(&self, _bar: u8, _offset: u64, _size: u8, value: u64) -> Response {
        *self.0.lock().unwrap() = value;
        Response::Done(0)
    }
}

struct World {
    bus: Arc<Bus>,
    root: Arc<PciRoot>,
    msix: Arc<Msix>,
    msi: Arc<Msi>,
    count: Arc<Count>,
}

impl World {
    /// One function with a 64-bit BAR and MSI-X in it, and one with two BARs and MSI.
    fn new() -> Self {
        let bus = Arc::new(Bus::new());
        let layout = Layout {
            ecam: ECAM,
            low: 0xc000_0000..ECAM,
            high: 0x10_0000_0000..0x20_0000_0000,
        };
        let root = PciRoot::attach(&bus, &layout).unwrap();
        let count = Arc::new(Count::default());
        let messages = Arc::clone(&count) as Arc<dyn Messages>;
        let bar = |index, wide| Bar {
            index,
            size: SIZE,
            wide,
            prefetchable: wide,
        };
        let msix = Arc::new(Msix::new(3, Arc::clone(&messages)));
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1234,
            ..Identity::default()
        });
        config.add_bar(bar(0, true)).unwrap();
        let place = MsixPlace {
            bar: 0,
            table: 0,
            pending: 0x800,
            pending_bar: 0,
        };
        let one = Function::new("one", config, Arc::new(Word::default()));
        root.add(Arc::new(one.with_msix(Arc::clone(&msix), place).unwrap()))
            .unwrap();
        let msi = Arc::new(Msi::new(1, messages));
        let mut config = ConfigSpace::new(Identity::default());
        config.add_bar(bar(1, false)).unwrap();
        config.add_bar(bar(2, false)).unwrap();
        let two = Function::new("two", config, Arc::new(Word::default()));
        root.add(Arc::new(two.with_msi(Arc::clone(&msi)).unwrap())).unwrap();
        Self {
            bus,
            root,
            msix,
            msi,
            count,
        }
    }

    fn read(&self, address: u64, size: u8) -> u64 {
        self.bus.read(Space::Memory, address, size).wait()
    }

    fn config(&self, device: u64, register: u64) -> u64 {
        self.read(ECAM + (device << 15) + register, 4)
    }

    /// Where the BARs ask to be.
    fn wanted(&self) -> Vec<(&'static str, u64)> {
        let on = |device| self.config(device, 4) & 2 != 0;
        let mut wanted = Vec::new();
        if on(1) {
            wanted.push(("one", self.config(1, 0x10) & !0xf | self.config(1, 0x14) << 32));
        }
        if on(2) {
            wanted.extend([0x14, 0x18].map(|register| ("two", self.config(2, register) & !0xf)));
        }
        wanted.retain(|(_, address)| *address != 0);
        wanted
    }

    /// Where they are.
    fn placed(&self, name: &str) -> Vec<u64> {
        let claims = self.bus.claims().into_iter();
        claims
            .filter(|claim| claim.name == name)
            .map(|claim| claim.start)
            .collect()
    }

    fn check(&self) {
        let wanted = self.wanted();
        for name in ["one", "two"] {
            for start in self.placed(name) {
                assert!(wanted.contains(&(name, start)), "{name} at {start:#x}, {wanted:x?}");
            }
        }
        for (name, address) in &wanted {
            let free = |at: u64| !(ECAM..ECAM + (1 << 20)).contains(&at);
            let rival = wanted.iter().filter(|(_, other)| other == address).count() > 1;
            if !rival && free(*address) && address.checked_add(SIZE - 1).is_some() {
                assert!(self.placed(name).contains(address), "{name} is not at {address:#x}");
            }
        }
        for device in 0..3 {
            for register in (0..0x60).step_by(4) {
                let port = 0x8000_0000 | device << 11 | register;
                let before = self.bus.read(Space::Port, 0xcf8, 4).wait();
                let _ = self.bus.write(Space::Port, 0xcf8, 4, port).wait();
                let by_port = self.bus.read(Space::Port, 0xcfc, 4).wait();
                let _ = self.bus.write(Space::Port, 0xcf8, 4, before).wait();
                assert_eq!(by_port, self.config(device, register));
            }
        }
    }
}

/// What happened in the end.
pub struct Seen {
    /// Where the first function's BAR is.
    pub placed: Vec<u64>,
    /// Messages sent.
    pub sent: usize,
}

/// Operations of six bytes: what, two for a place, a width, two for a value.
pub fn operate(bytes: &[u8]) -> Seen {
    let mut world = World::new();
    let mut sent = 0;
    for operation in bytes.chunks_exact(6) {
        let [what, device, register, width, low, high] = *operation else {
            unreachable!("chunks of six")
        };
        let size = 1 << (width % 4);
        let value = u64::from(low) | u64::from(high) << 8;
        let (device, register) = (u64::from(device % 4), u64::from(register));
        match what % 6 {
            0 => {
                let address = ECAM + (device << 15) + register;
                let _ = world.bus.write(Space::Memory, address, size, value).wait();
            }
            1 => {
                let port = 0xcf8 + register % 8;
                let value = if port == 0xcf8 { 0x8000_0000 | value } else { value };
                let _ = world.bus.write(Space::Port, port, size.min(4), value).wait();
                let _ = world.bus.read(Space::Port, port, size.min(4)).wait();
            }
            2 => {
                let base = world.placed("one").first().copied().unwrap_or(0);
                let address = base + device * 0x400 + register;
                let _ = world.bus.write(Space::Memory, address, size, value).wait();
                let _ = world.read(address, size);
            }
            3 => world.msix.signal(device as u16),
            4 => world.msi.signal(device as u8),
            _ => {
                let text = serde_json::to_string(&world.root.state()).unwrap();
                let state: PciState = serde_json::from_str(&text).unwrap();
                sent += world.count.0.load(Ordering::Relaxed);
                let other = World::new();
                other.root.restore(&state).unwrap();
                assert_eq!(other.root.state(), state);
                world = other;
            }
        }
        world.check();
    }
    Seen {
        placed: world.placed("one"),
        sent: sent + world.count.0.load(Ordering::Relaxed),
    }
}
