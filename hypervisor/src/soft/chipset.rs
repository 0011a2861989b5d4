//! The interrupt fabric of one machine: local APICs, IO-APIC, PICs, PIT and the lines between them.
//!
//! # Lock order
//! PIT, then lines, then IO-APIC or PICs, then a local APIC; never two of one rank. Nobody holds a lock while a guest
//! runs or a thread sleeps, so each is held for a moment.
//! # Wiring
//! Line `n` is the IO-APIC's pin `n` and, below 16, the PICs' IRQ `n`. The PIT is IRQ 0 of the PICs and, as on every PC,
//! pin 2 of the IO-APIC; the firmware tables tell the guest. The PICs' output is LINT0 of the bootstrap processor.

mod state;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::alarm::Alarms;
use super::clock::Clock;
use super::doorbell::Doorbell;
use super::ioapic::{self, IoApic, MessageBus};
use super::lapic::{Effect, Lapic};
use super::message::{Delivery, Destination, Message};
use super::pic::Pic;
use super::pit::Pit;
use super::signals::Doorbells;
use crate::tsc::TscRate;

/// The number of interrupt lines.
pub const LINES: usize = ioapic::PINS;

/// The IO-APIC's pin that the PIT drives.
const PIT_PIN: usize = 2;

/// A vCPU as the rest of the machine sees it.
#[derive(Debug)]
pub struct Seat {
    lapic: Mutex<Lapic>,
    /// Rung when the local APIC has accepted something.
    pub bell: Doorbell,
    /// A KVM guest kicked this vCPU: it does not stay in HLT.
    pub unhalted: AtomicBool,
}

impl Seat {
    fn new(index: usize) -> Self {
        Self {
            lapic: Mutex::new(Lapic::new(index)),
            bell: Doorbell::default(),
            unhalted: AtomicBool::new(false),
        }
    }

    /// The local APIC, locked.
    pub fn lapic(&self) -> MutexGuard<'_, Lapic> {
        lock(&self.lapic)
    }
}

/// The interrupt fabric of one machine.
#[derive(Debug)]
pub struct Chipset {
    /// The machine's clock.
    pub clock: Clock,
    /// How fast the vCPUs' time-stamp counters count, in kHz.
    tsc_khz: AtomicU32,
    /// The deadlines of the vCPUs, by index, and then that of the PIT.
    pub alarms: Alarms,
    seats: Box<[Seat]>,
    ioapic: Mutex<IoApic>,
    pic: Mutex<Pic>,
    pit: Mutex<Pit>,
    /// How many sources assert each line: it is up while any does.
    asserted: Mutex<[u32; LINES]>,
    /// Where guests write to signal events.
    pub doorbells: Doorbells,
    /// Where the search for the taker of a lowest-priority message begins, so that equals take turns.
    turn: AtomicUsize,
}

impl Chipset {
    /// The fabric of a machine with `vcpus` vCPUs.
    pub fn new(vcpus: usize) -> Self {
        let chipset = Self {
            clock: Clock::new(),
            tsc_khz: AtomicU32::new(TscRate::GIGAHERTZ.khz()),
            alarms: Alarms::new(vcpus + 1),
            seats: (0..vcpus).map(Seat::new).collect(),
            ioapic: Mutex::new(IoApic::new()),
            pic: Mutex::new(Pic::new()),
            pit: Mutex::new(Pit::new()),
            asserted: Mutex::new([0; LINES]),
            doorbells: Doorbells::default(),
            turn: AtomicUsize::new(0),
        };
        // The PIT's output is up before anybody programs it. The interrupt controllers know from the start, while all is
        // masked, so that it does not rise when somebody looks at it.
        chipset.with_pit(|_, _| ());
        chipset
    }

    /// How fast the vCPUs' time-stamp counters count.
    #[inline]
    pub fn tsc_rate(&self) -> TscRate {
        TscRate::new(self.tsc_khz.load(Ordering::Relaxed)).unwrap_or(TscRate::GIGAHERTZ)
    }

    /// Has the vCPUs' time-stamp counters, which have not counted yet, count at `rate`.
    pub fn count_at(&self, rate: TscRate) {
        self.tsc_khz.store(rate.khz(), Ordering::Relaxed);
        self.seats.iter().for_each(|seat| seat.lapic().set_rate(rate));
    }

    /// The vCPUs, by index.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// What the alarm thread does when the deadline of `slot` has come.
    pub fn goes_off(&self, slot: usize) {
        match self.seats.get(slot) {
            Some(seat) => seat.bell.ring(),
            None => {
                let pit = lock(&self.pit);
                // A machine that is paused is left alone, so that a snapshot finds it the same everywhere; whoever
                // continues it looks at the PIT.
                if !self.clock.is_held() {
                    self.work_on_pit(pit, |_, _| ());
                }
            }
        }
    }

    /// Stops (true) or continues (false) the clock and everything that waits for it.
    pub fn set_paused(&self, paused: bool) {
        self.clock.set_paused(paused);
        // Who found the clock running is done with the PIT after this.
        drop(lock(&self.pit));
        self.alarms.clock_changed();
        if !paused {
            self.settle_lines();
            // Sleepers work out anew how long they have to wait.
            self.seats.iter().for_each(|seat| seat.bell.ring());
        }
    }

    /// One more (true) or one less source asserts line `line`.
    pub fn change_line(&self, line: usize, more: bool) {
        let mut asserted = lock(&self.asserted);
        let Some(sources) = asserted.get_mut(line) else { return };
        let before = *sources;
        *sources = if more { before + 1 } else { before.saturating_sub(1) };
        if (before == 0) != (*sources == 0) {
            self.set_pic_line(line, more);
            lock(&self.ioapic).set_line(line, more, self);
        }
    }

    /// The processor's acknowledge cycles to the PICs: the vector.
    pub fn acknowledge_pic(&self) -> u8 {
        self.with_pic(Pic::acknowledge)
    }

    /// The end of a level-triggered interrupt, from a local APIC.
    pub fn end_of_interrupt(&self, vector: u8) {
        lock(&self.ioapic).end_of_interrupt(vector, self);
    }

    /// Does what an access to a local APIC asked for; that local APIC must not be locked.
    pub fn perform(&self, effect: Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::EndOfInterrupt(vector) => self.end_of_interrupt(vector),
            Effect::Send(message) => {
                self.deliver(&message);
            }
        }
    }

    /// Reads `size` bytes of ports; `None` if none of the chips here has the first of them.
    ///
    /// The registers are bytes. A wider access takes the ports one after the other, and reads ones where there is none.
    pub fn read_ports(&self, port: u16, size: u8) -> Option<u64> {
        if !Pic::claims(port) && !Pit::claims(port) {
            return None;
        }
        let byte = |offset: u8| match port.wrapping_add(u16::from(offset)) {
            port if Pic::claims(port) => self.with_pic(|pic| pic.read(port)),
            port if Pit::claims(port) => self.with_pit(|pit, now| pit.read(port, now)),
            _ => 0xff,
        };
        Some((0..size.min(8)).fold(0, |value, offset| value | u64::from(byte(offset)) << (8 * offset)))
    }

    /// Writes `size` bytes to ports; false if none of the chips here has the first of them.
    pub fn write_ports(&self, port: u16, size: u8, value: u64) -> bool {
        if !Pic::claims(port) && !Pit::claims(port) {
            return false;
        }
        for offset in 0..size.min(8) {
            let byte = (value >> (8 * offset)) as u8;
            match port.wrapping_add(u16::from(offset)) {
                port if Pic::claims(port) => self.with_pic(|pic| pic.write(port, byte)),
                port if Pit::claims(port) => self.with_pit(|pit, now| pit.write(port, byte, now)),
                _ => {}
            }
        }
        true
    }

    /// Reads the IO-APIC's window; `None` if the address is outside.
    pub fn read_memory(&self, address: u64, size: u8) -> Option<u64> {
        let offset = address
            .checked_sub(ioapic::BASE)
            .filter(|offset| *offset < ioapic::LENGTH)?;
        Some(lock(&self.ioapic).read(offset, size))
    }

    /// Writes the IO-APIC's window; false if the address is outside.
    pub fn write_memory(&self, address: u64, value: u64) -> bool {
        let Some(offset) = address
            .checked_sub(ioapic::BASE)
            .filter(|offset| *offset < ioapic::LENGTH)
        else {
            return false;
        };
        lock(&self.ioapic).write(offset, value, self);
        true
    }

    fn set_pic_line(&self, line: usize, level: bool) {
        if let Ok(irq @ 0..16) = u8::try_from(line) {
            self.with_pic(|pic| pic.set_line(irq, level));
        }
    }

    /// Lets `f` work on the PICs, and carries their output to the bootstrap processor while they are still locked, so
    /// that two who change it agree on what it is in the end.
    fn with_pic<R>(&self, f: impl FnOnce(&mut Pic) -> R) -> R {
        let mut pic = lock(&self.pic);
        let result = f(&mut pic);
        if let Some(bsp) = self.seats.first()
            && bsp.lapic().set_lint0(pic.output())
        {
            bsp.bell.ring();
        }
        result
    }

    fn with_pit<R>(&self, f: impl FnOnce(&mut Pit, u64) -> R) -> R {
        self.work_on_pit(lock(&self.pit), f)
    }

    /// Lets `f` work on the PIT, and carries what its line did to the interrupt controllers.
    fn work_on_pit<R>(&self, mut pit: MutexGuard<'_, Pit>, f: impl FnOnce(&mut Pit, u64) -> R) -> R {
        let now = self.clock.now();
        let before = pit.update(now);
        let result = f(&mut pit, now);
        let after = pit.update(now);
        if before.rose || after.rose {
            self.set_pit_line(false);
            self.set_pit_line(true);
        }
        self.set_pit_line(after.level);
        self.alarms.arm(self.seats.len(), pit.deadline());
        result
    }

    fn set_pit_line(&self, level: bool) {
        self.set_pic_line(0, level);
        lock(&self.ioapic).set_line(PIT_PIN, level, self);
    }
}

impl MessageBus for Chipset {
    fn deliver(&self, message: &Message) -> bool {
        let accept = |seat: &Seat| {
            let accepted = seat.lapic().accept(message);
            match message.delivery {
                _ if !accepted => {}
                // Not even a device that owes an answer holds it up.
                Delivery::Init => seat.bell.call_owner(),
                _ => seat.bell.ring(),
            }
            accepted
        };
        // Most messages name one processor, and name it by its index.
        if let (Destination::Physical(id), false) = (message.destination, message.lowest) {
            let seat = self
                .seats
                .get(id as usize)
                .filter(|seat| seat.lapic().matches(message.destination));
            return seat.is_some_and(accept);
        }
        let addressed = |seat: &&Seat| seat.lapic().matches(message.destination);
        if !message.lowest {
            let accepted = self.seats.iter().filter(addressed).filter(|seat| accept(seat));
            return accepted.count() > 0;
        }
        let start = self.turn.load(Ordering::Relaxed);
        let count = self.seats.len();
        let winner = (0..count)
            .map(|step| (start + step) % count)
            .filter(|index| addressed(&&self.seats[*index]))
            .filter_map(|index| Some((self.seats[index].lapic().bid()?, index)))
            .min_by_key(|(priority, _)| priority >> 4);
        let Some((_, index)) = winner else { return false };
        self.turn.store((index + 1) % count, Ordering::Relaxed);
        accept(&self.seats[index])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
