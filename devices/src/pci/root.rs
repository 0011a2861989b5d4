//! The root complex: bus 0, its host bridge, and the two ways to configuration space.
//!
//! # Purpose
//! Configuration Mechanism #1 (an address in port 0xCF8, data at 0xCFC) and ECAM (memory, one page for each function) lead
//! to the same registers. When a write changes what a BAR decodes, the range on the bus follows before the write is answered.
//!
//! # Invariants
//! - One lock orders all changes of ranges; it is never held while a device is called, but to tell it where its BARs are.
//! - A BAR that found its place taken is tried again whenever any BAR moves.
//!
//! # Life
//! [`PciRoot::attach`] puts the ports, ECAM and the host bridge on a bus. [`PciRoot::add`] gives a function the next device
//! number and its BARs addresses, as firmware would; memory space is off until the guest enables it. [`PciRoot::remove`] takes
//! the function away again, and what it had is free for the next.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};

use serde::{Deserialize, Serialize};
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

use super::config::{Bar, ConfigSpace, ConfigSpaceError, Identity};
use super::function::{Function, FunctionState, FunctionStateError, Registers};
use super::spec;
use crate::bus::{Bus, BusError, Device, Response, Space};
use crate::sync::lock;

/// CONFIG_ADDRESS; CONFIG_DATA is the next.
pub const CONFIG_PORT: u64 = 0xcf8;
/// The number of ports of both.
pub const CONFIG_PORTS: u64 = 8;
/// Device numbers of a bus.
pub const DEVICES: u8 = 32;
/// Bytes of ECAM for a bus.
pub const ECAM_LENGTH: u64 = DEVICES as u64 * FUNCTIONS * spec::EXTENDED_LENGTH;

/// Function numbers of a device.
const FUNCTIONS: u64 = 8;
/// In CONFIG_ADDRESS: accesses of CONFIG_DATA are configuration accesses.
const ENABLE: u32 = 1 << 31;
/// Bits of CONFIG_ADDRESS that are there: enable, bus, device, function, register.
const ADDRESS_BITS: u32 = ENABLE | 0x00ff_fffc;
/// The port of CONFIG_DATA, from CONFIG_ADDRESS on.
const DATA: u64 = 4;

/// Where things lie in guest-physical memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The first byte of ECAM, [`ECAM_LENGTH`] bytes for bus 0.
    pub ecam: u64,
    /// Where BARs are put at first.
    pub low: Range<u64>,
    /// Where BARs of 64 bits are put that do not fit below.
    pub high: Range<u64>,
}

/// A function cannot be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// The ports or ECAM are taken.
    #[error("PCI configuration space cannot be placed")]
    Place {
        /// By whom.
        #[from]
        source: BusError,
    },
    /// A window is none.
    #[error("{start:#x}..{end:#x} is no window for PCI devices")]
    Window {
        /// Its first address.
        start: u64,
        /// The address after its last.
        end: u64,
    },
    /// All device numbers are taken.
    #[error("{name} is one PCI device too many; there is room for 31")]
    Full {
        /// The device that is refused.
        name: String,
    },
    /// Another function has the name.
    #[error("there are two PCI devices called {name}")]
    Name {
        /// The name.
        name: String,
    },
    /// There is no room for a BAR.
    #[error("there is no room for BAR {bar} of {name}, {size:#x} bytes")]
    NoRoom {
        /// The device.
        name: String,
        /// The BAR.
        bar: u8,
        /// Its size in bytes.
        size: u64,
    },
    /// A device describes itself in a way that cannot be.
    #[error("the configuration space of {name} cannot be laid out")]
    Config {
        /// The device.
        name: String,
        /// Why.
        source: ConfigSpaceError,
    },
}

/// What a [`PciRoot`] and its functions remember; the devices' own states are theirs to save.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// CONFIG_ADDRESS.
    pub address: u32,
    /// The functions by name.
    pub functions: BTreeMap<String, FunctionState>,
    /// Their device numbers by name.
    pub numbers: BTreeMap<String, u8>,
}

/// Functions that cannot go on from a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PciStateError {
    /// Others were saved than there are.
    #[error("the saved PCI devices are {}; this machine has {}", saved.join(", "), own.join(", "))]
    Functions {
        /// The names saved.
        saved: Vec<String>,
        /// The names here.
        own: Vec<String>,
    },
    /// The device numbers are none, or not one for each function.
    #[error("the saved PCI devices have the device numbers {numbers:?}; expected one from 1 to 31 for each")]
    Numbers {
        /// The numbers saved.
        numbers: Vec<u8>,
    },
    /// A function refuses.
    #[error("the PCI device {name} cannot be restored")]
    Function {
        /// Its name.
        name: String,
        /// Why.
        source: FunctionStateError,
    },
}

/// Bus 0 and what is on it.
pub struct PciRoot {
    bus: Weak<Bus>,
    slots: Mutex<Slots>,
    address: Mutex<u32>,
}

struct Slots {
    /// By device number.
    taken: BTreeMap<u8, Slot>,
    low: AddressAllocator,
    high: AddressAllocator,
}

struct Slot {
    function: Arc<Function>,
    /// What is on the bus in the function's name: itself, or what was wrapped around it.
    device: Arc<dyn Device>,
    /// What was wrapped around it is to see every access.
    wrapped: bool,
    /// By BAR: where it is on the bus.
    placed: BTreeMap<u8, u64>,
    /// The addresses that its BARs were given at first.
    given: Vec<RangeInclusive>,
}

impl PciRoot {
    /// Puts the ports, ECAM and a host bridge on `bus`.
    ///
    /// # Errors
    /// [`PciError`] if an address is taken or a window is none.
    pub fn attach(bus: &Arc<Bus>, layout: &Layout) -> Result<Arc<Self>, PciError> {
        let window = |range: &Range<u64>| {
            let (start, end) = (range.start, range.end);
            let length = end.checked_sub(start).ok_or(PciError::Window { start, end })?;
            AddressAllocator::new(start, length).map_err(|_| PciError::Window { start, end })
        };
        let root = Arc::new(Self {
            bus: Arc::downgrade(bus),
            slots: Mutex::new(Slots {
                taken: BTreeMap::new(),
                low: window(&layout.low)?,
                high: window(&layout.high)?,
            }),
            address: Mutex::new(0),
        });
        let bridge = Function::new("pci-host", ConfigSpace::new(HOST_BRIDGE), Arc::new(HostBridge));
        root.add(Arc::new(bridge))?;
        let ports = Ports(Arc::clone(&root));
        bus.insert(Space::Port, CONFIG_PORT, CONFIG_PORTS, Arc::new(ports))?;
        let ecam = Ecam(Arc::clone(&root));
        bus.insert(Space::Memory, layout.ecam, ECAM_LENGTH, Arc::new(ecam))?;
        Ok(root)
    }

    /// Gives `function` the lowest free device number, which is returned, and its BARs addresses.
    ///
    /// # Errors
    /// [`PciError`] if there is no room, or another function has the name.
    pub fn add(&self, function: Arc<Function>) -> Result<u8, PciError> {
        let mut slots = lock(&self.slots);
        let name = function.name().to_owned();
        if slots.taken.values().any(|slot| slot.function.name() == name) {
            return Err(PciError::Name { name });
        }
        let Some(number) = (0..DEVICES).find(|number| !slots.taken.contains_key(number)) else {
            return Err(PciError::Full { name });
        };
        let mut given = Vec::new();
        for (bar, _) in function.decoded() {
            let Some(range) = slots.allocate(bar) else {
                slots.free(&given);
                return Err(PciError::NoRoom {
                    name,
                    bar: bar.index,
                    size: bar.size,
                });
            };
            function.set_address(bar, range.start());
            given.push(range);
        }
        let device = Arc::clone(&function) as Arc<dyn Device>;
        let placed = BTreeMap::new();
        slots.taken.insert(
            number,
            Slot {
                function,
                device,
                wrapped: false,
                placed,
                given,
            },
        );
        Ok(number)
    }

    /// Takes the function called `name` away; what it had is free then, and its number is returned. Whoever accesses it now
    /// still gets its answer. `None` if there is no such function; the host bridge stays.
    pub fn remove(&self, name: &str) -> Option<u8> {
        let slot = {
            let mut slots = lock(&self.slots);
            let (number, _) = slots.taken.range(1..).find(|(_, slot)| slot.function.name() == name)?;
            let number = *number;
            let slot = slots.taken.remove(&number)?;
            slots.free(&slot.given);
            slot.leave_all();
            if let Some(bus) = self.bus.upgrade() {
                for start in slot.placed.values() {
                    bus.remove(Space::Memory, *start);
                }
            }
            (number, slot)
        };
        // Somebody else may have waited for its place.
        self.place();
        Some(slot.0)
    }

    /// The name of the function with device number `number`.
    #[must_use]
    pub fn name_of(&self, number: u8) -> Option<String> {
        let slots = lock(&self.slots);
        Some(slots.taken.get(&number)?.function.name().to_owned())
    }

    /// The device numbers behind the host bridge's by name.
    #[must_use]
    pub fn numbers(&self) -> BTreeMap<String, u8> {
        let slots = lock(&self.slots);
        let numbers = slots.taken.range(1..);
        numbers
            .map(|(number, slot)| (slot.function.name().to_owned(), *number))
            .collect()
    }

    /// The names of the functions behind the host bridge, in the order of their device numbers.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let slots = lock(&self.slots);
        slots.functions().map(|function| function.name().to_owned()).collect()
    }

    /// As [`Bus::wrap`], also for BARs that are not on the bus now.
    pub fn wrap(&self, name: &str, wrap: impl FnOnce(Arc<dyn Device>) -> Arc<dyn Device>) -> bool {
        let mut slots = lock(&self.slots);
        let Some(slot) = slots.taken.values_mut().find(|slot| slot.function.name() == name) else {
            return false;
        };
        slot.leave_all();
        slot.wrapped = true;
        slot.device = wrap(Arc::clone(&slot.device));
        let wrapped = Arc::clone(&slot.device);
        if let Some(bus) = self.bus.upgrade() {
            bus.wrap(name, |_| wrapped);
        }
        true
    }

    /// The functions' own figures by name, also of those that are not on the bus now.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<String, Vec<(&'static str, u64)>> {
        let functions: Vec<_> = lock(&self.slots).functions().cloned().collect();
        let figures = functions
            .iter()
            .map(|function| (function.name().to_owned(), function.counters()));
        figures.collect()
    }

    /// What is remembered.
    #[must_use]
    pub fn state(&self) -> PciState {
        let functions: Vec<_> = lock(&self.slots).functions().cloned().collect();
        PciState {
            address: *lock(&self.address),
            functions: functions
                .iter()
                .map(|function| (function.name().to_owned(), function.state()))
                .collect(),
            numbers: self.numbers(),
        }
    }

    /// Goes on from `state`; the functions have the device numbers and the BARs the addresses that they had.
    ///
    /// # Errors
    /// [`PciStateError`] if it is of other functions; nothing has changed then.
    pub fn restore(&self, state: &PciState) -> Result<(), PciStateError> {
        let functions: Vec<_> = lock(&self.slots).functions().cloned().collect();
        let mut own: Vec<_> = functions.iter().map(|function| function.name().to_owned()).collect();
        own.sort();
        if !own.iter().eq(state.functions.keys()) {
            let saved = state.functions.keys().cloned().collect();
            return Err(PciStateError::Functions { saved, own });
        }
        let mut numbers: Vec<u8> = state.numbers.values().copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        let sound = numbers.len() == own.len() && numbers.iter().all(|number| (1..DEVICES).contains(number));
        if !sound || !own.iter().eq(state.numbers.keys()) {
            let numbers = state.numbers.values().copied().collect();
            return Err(PciStateError::Numbers { numbers });
        }
        let each = |act: fn(&Function, &FunctionState) -> Result<(), FunctionStateError>| {
            functions.iter().try_for_each(|function| {
                let name = function.name();
                act(function, &state.functions[name]).map_err(|source| PciStateError::Function {
                    name: name.to_owned(),
                    source,
                })
            })
        };
        each(Function::check)?;
        each(Function::restore)?;
        *lock(&self.address) = state.address & ADDRESS_BITS;
        {
            let mut slots = lock(&self.slots);
            let moved = slots.taken.split_off(&1).into_values();
            // Each has a number of its own; that was checked.
            slots
                .taken
                .extend(moved.filter_map(|slot| Some((*state.numbers.get(slot.function.name())?, slot))));
        }
        self.place();
        Ok(())
    }

    /// The function at `address`, an offset in ECAM, and the offset in its configuration space.
    fn function(&self, address: u64) -> Option<(Arc<Function>, u64)> {
        let (page, offset) = (address / spec::EXTENDED_LENGTH, address % spec::EXTENDED_LENGTH);
        let device = u8::try_from(page / FUNCTIONS).ok().filter(|_| page % FUNCTIONS == 0)?;
        let slots = lock(&self.slots);
        let slot = slots.taken.get(&device)?;
        Some((Arc::clone(&slot.function), offset))
    }

    fn read(&self, address: u64, size: u8) -> Response {
        match self.function(address) {
            Some((function, offset)) => function.ask_config(offset, size),
            None => Response::Done(u64::MAX),
        }
    }

    fn write(&self, address: u64, size: u8, value: u64) -> Response {
        let Some((function, offset)) = self.function(address) else {
            return Response::Done(0);
        };
        let before = function.decoded();
        let response = function.write_config(offset, size, value);
        if function.decoded() != before {
            self.place();
        }
        response
    }

    /// Brings the ranges on the bus in line with what the BARs say.
    fn place(&self) {
        let mut slots = lock(&self.slots);
        let Some(bus) = self.bus.upgrade() else { return };
        // Those that leave first: somebody else may have taken their place in the same moment.
        let mut wanted = Vec::new();
        for (number, slot) in &mut slots.taken {
            for (bar, address) in slot.function.decoded() {
                let placed = slot.placed.get(&bar.index).copied();
                if placed != address {
                    if let Some(start) = placed {
                        slot.function.placed(bar.index, None);
                        bus.remove(Space::Memory, start);
                        slot.placed.remove(&bar.index);
                    }
                    wanted.extend(address.map(|address| (*number, bar, address)));
                }
            }
        }
        for (number, bar, address) in wanted {
            let Some(slot) = slots.taken.get_mut(&number) else {
                continue;
            };
            let device = Arc::clone(&slot.device);
            match bus.insert_part(Space::Memory, address, bar.size, device, Function::first_offset(bar)) {
                Ok(()) => {
                    slot.placed.insert(bar.index, address);
                    if !slot.wrapped {
                        slot.function.placed(bar.index, Some(address));
                    }
                }
                Err(error) => tracing::debug!(
                    device = slot.function.name(),
                    bar = bar.index,
                    %error,
                    "a BAR answers nowhere"
                ),
            }
        }
    }

    fn config_address(&self) -> u32 {
        *lock(&self.address)
    }

    /// Where CONFIG_DATA leads, as an offset in ECAM; `None` if that is no configuration access, or one on another bus.
    fn data(&self) -> Option<u64> {
        let address = u64::from(self.config_address());
        let (bus, function, register) = (address >> 16 & 0xff, address >> 8 & 0xff, address & 0xfc);
        let enabled = address & u64::from(ENABLE) != 0;
        (enabled && bus == 0).then_some(function * spec::EXTENDED_LENGTH + register)
    }
}

impl Slot {
    /// Says of all BARs that they are nowhere.
    fn leave_all(&self) {
        for bar in self.placed.keys() {
            self.function.placed(*bar, None);
        }
    }
}

impl Slots {
    /// All functions but the host bridge.
    fn functions(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.taken.range(1..).map(|(_, slot)| &slot.function)
    }

    fn allocate(&mut self, bar: Bar) -> Option<RangeInclusive> {
        let from = |window: &mut AddressAllocator| window.allocate(bar.size, bar.size, AllocPolicy::FirstMatch).ok();
        from(&mut self.low).or_else(|| bar.wide.then(|| from(&mut self.high)).flatten())
    }

    fn free(&mut self, given: &[RangeInclusive]) {
        for range in given {
            // It is in the one or in the other.
            if self.low.free(range).is_err() {
                let _ = self.high.free(range);
            }
        }
    }
}

impl fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Intel's ID of a host bridge without chipset quirks, as other virtual machines have it.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x8086,
    device: 0x0d57,
    revision: 0,
    class: [0x06, 0x00, 0x00],
    subsystem_vendor: 0,
    subsystem: 0,
};

/// A host bridge has no registers outside its configuration space.
struct HostBridge;

impl Registers for HostBridge {
    fn read(&self, _bar: u8, _offset: u64, _size: u8) -> Response {
        Response::Done(u64::MAX)
    }

    fn write(&self, _bar: u8, _offset: u64, _size: u8, _value: u64) -> Response {
        Response::Done(0)
    }
}

/// Configuration Mechanism #1.
struct Ports(Arc<PciRoot>);

impl Device for Ports {
    fn name(&self) -> &str {
        "pci-config"
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        let value = match (offset, size) {
            (0, 4) => self.0.config_address().into(),
            // Only accesses of four bytes reach CONFIG_ADDRESS.
            (..DATA, _) => u64::MAX,
            _ => match self.0.data() {
                Some(address) => return self.0.read(address + offset - DATA, size),
                None => u64::MAX,
            },
        };
        Response::Done(value)
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        match (offset, size) {
            (0, 4) => *lock(&self.0.address) = value as u32 & ADDRESS_BITS,
            (..DATA, _) => {}
            _ => {
                if let Some(address) = self.0.data() {
                    return self.0.write(address + offset - DATA, size, value);
                }
            }
        }
        Response::Done(0)
    }
}

/// The Enhanced Configuration Access Mechanism.
struct Ecam(Arc<PciRoot>);

impl Device for Ecam {
    fn name(&self) -> &str {
        "pci-ecam"
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        self.0.read(offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        self.0.write(offset, size, value)
    }
}

#[cfg(test)]
mod tests;
