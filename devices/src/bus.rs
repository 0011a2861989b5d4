//! Ranges of ports and guest-physical memory, and the devices behind them.
//!
//! # Purpose
//! A vCPU thread asks the bus on behalf of its guest. A device that knows its answer gives it at once
//! ([`Response::Done`]); one that must ask somebody else hands out a [`Ticket`] ([`Response::Later`]) and keeps the other
//! end, a [`Completion`], with which any thread answers, once. No vCPU thread is ever held inside a device.
//!
//! # Invariants
//! - Ranges of one space never overlap, so every byte has at most one owner.
//! - The bus holds no lock while it calls a device: a device may change the bus from within an access.
//! - Whatever a device says, the guest sees no bit beyond the width it asked for.
//!
//! # Accesses that do not fit
//! The device whose range holds the first byte is asked. If the access runs over the end of that range, the device is
//! asked for the widest power of two of bytes that lies inside, and the rest is nobody's: it reads as ones, and is
//! dropped when written, even if another range begins there. Chipsets split such accesses in ways of their own, and no
//! driver makes them; what matters is that they are harmless. Bytes that nobody claims read as ones, as on an idle bus.
//!
//! # Life
//! Ranges come and go at any time ([`Bus::insert`], [`Bus::remove`]) beside accesses in other threads; an access that
//! found its device before the removal still finishes there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use crate::sync::lock;

mod ticket;

pub use ticket::{Carrier, Completion, Ticket};

/// One of the two address spaces of a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// I/O ports.
    Port,
    /// Guest-physical memory.
    Memory,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "port",
            Self::Memory => "memory",
        })
    }
}

/// What became of an access.
#[derive(Debug)]
pub enum Response {
    /// Finished: the value read (0 for a write), in the low bytes.
    Done(u64),
    /// The device will answer through the ticket.
    Later(Ticket),
}

impl Response {
    /// The answer, waiting for a late one as long as it takes. For tests and tools; a vCPU loop parks on the ticket.
    #[must_use]
    pub fn wait(self) -> u64 {
        match self {
            Self::Done(value) => value,
            Self::Later(ticket) => ticket.wait(),
        }
    }
}

/// A device on the bus. Devices lock for themselves (`&self`), so that two vCPUs may be in two devices at once.
pub trait Device: Send + Sync {
    /// The name in logs, counters and device trees; no other device of the machine has it.
    fn name(&self) -> &str;

    /// Reads `size` bytes (1, 2, 4 or 8) at `offset` bytes from the start of the device's range. Bits of the answer
    /// beyond `size` are ignored.
    fn read(&self, offset: u64, size: u8) -> Response;

    /// Writes the low `size` bytes of `value` (the rest are zero) at `offset`.
    fn write(&self, offset: u64, size: u8, value: u64) -> Response;

    /// Gives the answer to an access that was made before the machine was saved, and was owed then; this device's state has
    /// been restored. The access itself must not happen again. `offset`, `size` and the value written, if it was a write,
    /// are those of that access.
    ///
    /// Unless the device says otherwise it has forgotten, and answers all ones, as one that is gone.
    fn resume(&self, offset: u64, size: u8, write: Option<u64>) -> Response {
        let _ = (offset, size, write);
        Response::Done(u64::MAX)
    }

    /// Figures of the device's own for `vm.counters`, beside the bus's `reads`, `writes` and `late`.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Some addresses of one space and the name of the device that claims them, as shown in a [`BusError`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The device's name.
    pub name: String,
    /// The address space.
    pub space: Space,
    /// The first address.
    pub start: u64,
    /// The last address, part of the claim.
    pub last: u64,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at {} {:#x}..={:#x}",
            self.name, self.space, self.start, self.last
        )
    }
}

/// Why a range could not be inserted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Some address of the new range is taken.
    #[error("{new} overlaps {old}")]
    Overlap {
        /// The range that was to be inserted.
        new: Claim,
        /// The range that is there.
        old: Claim,
    },
    /// The range has no addresses, or addresses beyond the end of its space (2^16 ports, 2^64 bytes).
    #[error("{name}: {length:#x} addresses from {space} {start:#x} are no range of that space")]
    NotARange {
        /// The device's name.
        name: String,
        /// The address space.
        space: Space,
        /// The first address.
        start: u64,
        /// The number of addresses.
        length: u64,
    },
}

/// Ports and memory of one machine, and who answers there.
#[derive(Default)]
pub struct Bus {
    ports: RwLock<Ranges>,
    memory: RwLock<Ranges>,
    unclaimed: Tally,
    /// What was asked of each device, by its name, also of those that answer nowhere now. Locked after the ranges.
    tallies: Mutex<BTreeMap<String, Kept>>,
}

/// The tally of a device, for as long as there is the device.
struct Kept {
    tally: Arc<Tally>,
    device: Weak<dyn Device>,
}

impl Bus {
    /// A bus where nobody answers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `length` addresses from `start` to `device`, which sees offset 0 at `start`. One device may have several
    /// ranges.
    ///
    /// # Errors
    /// [`BusError`] if an address is taken or the range does not fit into the space; nothing has changed then.
    pub fn insert(&self, space: Space, start: u64, length: u64, device: Arc<dyn Device>) -> Result<(), BusError> {
        self.insert_part(space, start, length, device, 0)
    }

    /// As [`insert`](Self::insert), but the device sees `first_offset` at `start`: a device whose registers lie
    /// scattered among other devices' (the keyboard controller's 0x60 and 0x64) gets one range for each part.
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub fn insert_part(
        &self,
        space: Space,
        start: u64,
        length: u64,
        device: Arc<dyn Device>,
        first_offset: u64,
    ) -> Result<(), BusError> {
        let top = match space {
            Space::Port => u64::from(u16::MAX),
            Space::Memory => u64::MAX,
        };
        let last = length
            .checked_sub(1)
            .and_then(|beyond| start.checked_add(beyond))
            .filter(|last| *last <= top);
        let offsets_fit = first_offset.checked_add(length).is_some();
        let Some(last) = last.filter(|_| offsets_fit) else {
            return Err(BusError::NotARange {
                name: device.name().to_owned(),
                space,
                start,
                length,
            });
        };
        let mut ranges = self.ranges(space).write().unwrap_or_else(PoisonError::into_inner);
        let mut tallies = lock(&self.tallies);
        let kept = tallies.get(device.name()).filter(|kept| kept.is_of_use());
        let tally = kept.map(|kept| Arc::clone(&kept.tally)).unwrap_or_default();
        let kept = Kept {
            tally: Arc::clone(&tally),
            device: Arc::downgrade(&device),
        };
        let name = device.name().to_owned();
        let range = Arc::new(Range {
            start,
            last,
            first_offset,
            device,
            tally,
        });
        ranges.insert(range).map_err(|(new, old)| BusError::Overlap {
            new: new.claim(space),
            old: old.claim(space),
        })?;
        tallies.insert(name, kept);
        Ok(())
    }

    /// Puts what `wrap` makes of it in the place of the device called `name`, in all of its ranges; false, and `wrap` was
    /// not called, if there is no such device. Accesses that have found the device already finish there.
    pub fn wrap(&self, name: &str, wrap: impl FnOnce(Arc<dyn Device>) -> Arc<dyn Device>) -> bool {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        let ranges = ports.sorted.iter_mut().chain(&mut memory.sorted);
        let mut of_device = ranges.filter(|range| range.device.name() == name).peekable();
        let Some(first) = of_device.peek() else { return false };
        let wrapped = wrap(Arc::clone(&first.device));
        for range in of_device {
            *range = Arc::new(range.with(Arc::clone(&wrapped)));
        }
        if let Some(kept) = lock(&self.tallies).get_mut(name) {
            kept.device = Arc::downgrade(&wrapped);
        }
        true
    }

    /// Takes back the range that begins at `start`, and returns its device; `None` if no range begins there.
    pub fn remove(&self, space: Space, start: u64) -> Option<Arc<dyn Device>> {
        let mut ranges = self.ranges(space).write().unwrap_or_else(PoisonError::into_inner);
        ranges.remove(start).map(|range| Arc::clone(&range.device))
    }

    /// Reads `size` bytes (1, 2, 4 or 8) at `address`.
    pub fn read(&self, space: Space, address: u64, size: u8) -> Response {
        self.ask(space, address, size, None, Errand::Fresh)
    }

    /// Writes the low `size` bytes (1, 2, 4 or 8) of `value` at `address`. The answer, prompt or late, is 0.
    pub fn write(&self, space: Space, address: u64, size: u8, value: u64) -> Response {
        self.ask(space, address, size, Some(value), Errand::Fresh)
    }

    /// Asks for the answer to an access that was made before the machine was saved, and was owed then: the read, or the
    /// write of the value in `write`, is not made again. The devices' states must have been restored.
    pub fn resume(&self, space: Space, address: u64, size: u8, write: Option<u64>) -> Response {
        self.ask(space, address, size, write, Errand::Resumed)
    }

    /// Says that the device at `address` dropped the ticket of an access there, which counts as `lost`. Its name, if this
    /// is the first that it lost.
    pub fn lost(&self, space: Space, address: u64) -> Option<String> {
        let range = self.find(space, address)?;
        let first = range.tally.lost.fetch_add(1, Relaxed) == 0;
        first.then(|| range.device.name().to_owned())
    }

    fn ask(&self, space: Space, address: u64, size: u8, write: Option<u64>, errand: Errand) -> Response {
        let asked = if write.is_none() { ones(size) } else { 0 };
        let Some(range) = self.find(space, address) else {
            self.unclaimed.count(write, errand);
            return Response::Done(asked);
        };
        range.tally.count(write, errand);
        let (offset, inside) = range.clip(address, size);
        let write = write.map(|value| value & ones(inside));
        let response = match (errand, write) {
            (Errand::Fresh, None) => range.device.read(offset, inside),
            (Errand::Fresh, Some(value)) => range.device.write(offset, inside, value),
            (Errand::Resumed, write) => range.device.resume(offset, inside, write),
        };
        let (keep, set) = (asked & ones(inside), asked & !ones(inside));
        match response {
            Response::Done(value) => Response::Done(value & keep | set),
            Response::Later(ticket) => {
                range.tally.late.fetch_add(1, Relaxed);
                Response::Later(ticket.masked(keep, set))
            }
        }
    }

    /// What has happened so far, by device name: `reads` and `writes` asked of the device, `late` for those of them that
    /// it answered later, `lost` for those that it will never answer, and the device's own figures. `unclaimed` counts accesses
    /// where nobody answers. A device that leaves the bus for a while keeps its figures.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<String, BTreeMap<&'static str, u64>> {
        let mut all = BTreeMap::<String, BTreeMap<&'static str, u64>>::new();
        let mut add = |name: &str, tally: &Tally| {
            let device = all.entry(name.to_owned()).or_default();
            for (counter, figure) in tally.figures() {
                *device.entry(counter).or_default() += figure;
            }
        };
        add("unclaimed", &self.unclaimed);
        let mut tallies = lock(&self.tallies);
        tallies.retain(|_, kept| kept.is_of_use());
        for (name, kept) in &*tallies {
            add(name, &kept.tally);
        }
        drop(tallies);
        let mut devices = Vec::new();
        for space in [Space::Port, Space::Memory] {
            let ranges = self.ranges(space).read().unwrap_or_else(PoisonError::into_inner);
            devices.extend(ranges.sorted.iter().map(|range| Arc::clone(&range.device)));
        }
        // Asked only now, with no lock held. A device with several ranges is asked for each, and says the same.
        for device in devices {
            all.entry(device.name().to_owned())
                .or_default()
                .extend(device.counters());
        }
        all
    }

    /// The ranges in use, ports before memory, each in rising order.
    #[must_use]
    pub fn claims(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        for space in [Space::Port, Space::Memory] {
            let ranges = self.ranges(space).read().unwrap_or_else(PoisonError::into_inner);
            claims.extend(ranges.sorted.iter().map(|range| range.claim(space)));
        }
        claims
    }

    fn ranges(&self, space: Space) -> &RwLock<Ranges> {
        match space {
            Space::Port => &self.ports,
            Space::Memory => &self.memory,
        }
    }

    fn find(&self, space: Space, address: u64) -> Option<Arc<Range>> {
        self.ranges(space)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .find(address)
            .cloned()
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.claims().iter().map(Claim::to_string))
            .finish()
    }
}

/// The ranges of one space, in rising order and disjoint.
#[derive(Default)]
struct Ranges {
    sorted: Vec<Arc<Range>>,
}

impl Ranges {
    /// The range that holds `address`, by bisection.
    fn find(&self, address: u64) -> Option<&Arc<Range>> {
        let after = self.sorted.partition_point(|range| range.start <= address);
        self.sorted[..after].last().filter(|range| address <= range.last)
    }

    /// Inserts `new`, or returns it with the range in its way.
    fn insert(&mut self, new: Arc<Range>) -> Result<(), (Arc<Range>, Arc<Range>)> {
        // Disjoint ranges rise with their ends too, so only the first that does not end before `new` can be in its way.
        let place = self.sorted.partition_point(|range| range.last < new.start);
        match self.sorted.get(place) {
            Some(old) if old.start <= new.last => Err((new, Arc::clone(old))),
            _ => {
                self.sorted.insert(place, new);
                Ok(())
            }
        }
    }

    fn remove(&mut self, start: u64) -> Option<Arc<Range>> {
        self.sorted
            .binary_search_by_key(&start, |range| range.start)
            .ok()
            .map(|place| self.sorted.remove(place))
    }
}

struct Range {
    start: u64,
    last: u64,
    first_offset: u64,
    device: Arc<dyn Device>,
    tally: Arc<Tally>,
}

impl Kept {
    /// Whether its device is there.
    fn is_of_use(&self) -> bool {
        self.device.strong_count() > 0
    }
}

impl Range {
    /// The device's offset of `address`, which lies in this range, and how many of `size` bytes to ask of the device.
    fn clip(&self, address: u64, size: u8) -> (u64, u8) {
        let left = (self.last - address).saturating_add(1);
        let inside = match u8::try_from(left) {
            Ok(left) if left < size => 1 << left.ilog2(),
            _ => size,
        };
        (self.first_offset + (address - self.start), inside)
    }

    /// The same range with another device, and what was counted so far.
    fn with(&self, device: Arc<dyn Device>) -> Self {
        Self {
            start: self.start,
            last: self.last,
            first_offset: self.first_offset,
            device,
            tally: Arc::clone(&self.tally),
        }
    }

    fn claim(&self, space: Space) -> Claim {
        Claim {
            name: self.device.name().to_owned(),
            space,
            start: self.start,
            last: self.last,
        }
    }
}

/// Why a device is asked.
#[derive(Clone, Copy)]
enum Errand {
    /// For an access.
    Fresh,
    /// For the answer to one that was made before the machine was saved.
    Resumed,
}

/// Accesses counted. Relaxed, since nothing is ordered by them.
#[derive(Default)]
struct Tally {
    reads: AtomicU64,
    writes: AtomicU64,
    late: AtomicU64,
    lost: AtomicU64,
}

impl Tally {
    fn count(&self, write: Option<u64>, errand: Errand) {
        match (errand, write) {
            (Errand::Fresh, None) => self.reads.fetch_add(1, Relaxed),
            (Errand::Fresh, Some(_)) => self.writes.fetch_add(1, Relaxed),
            // Counted when it was made, in another process.
            (Errand::Resumed, _) => return,
        };
    }

    fn figures(&self) -> [(&'static str, u64); 4] {
        [
            ("reads", &self.reads),
            ("writes", &self.writes),
            ("late", &self.late),
            ("lost", &self.lost),
        ]
        .map(|(counter, figure)| (counter, figure.load(Relaxed)))
    }
}

/// `size` bytes of ones; all 64 bits for a size of 8 or more.
fn ones(size: u8) -> u64 {
    match size {
        0..8 => (1 << (8 * u32::from(size))) - 1,
        8.. => u64::MAX,
    }
}

#[cfg(test)]
mod tests;
