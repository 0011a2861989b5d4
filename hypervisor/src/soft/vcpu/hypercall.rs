//! The vCPU makes the hypercalls of its guest.

use std::sync::atomic::Ordering;
use std::time::Duration;

use reprise_emulator::Reply;

use super::super::hypercall::hyperv::{self, Deed};
use super::super::hypercall::{Name, VpSet, kvm};
use super::super::ioapic::MessageBus;
use super::super::message::{Delivery, Destination, Message};
use super::SoftVcpu;

/// How long a vCPU that waits for others spins, then lets others run, before it sleeps.
const SPINS: u64 = 200;
const YIELDS: u64 = 50;
/// How long it sleeps before it looks again. Nobody tells it: what it waits for is rare, and then takes a device's time.
const NAP: Duration = Duration::from_micros(100);

impl SoftVcpu {
    /// Makes the hypercall that the instruction in flight is; `None` if it has to be made again, since this vCPU is wanted
    /// elsewhere before it is done.
    pub(super) fn hypercall(&mut self) -> Option<Reply> {
        let guest = self.emulator.aside();
        let Some(partition) = &self.machine.partition else {
            let (name, result) = kvm::call(&guest, &self.machine.chipset, self.surroundings.now());
            self.hypercalls.count(name);
            return Some(Reply::Value(result));
        };
        if !hyperv::may_call(guest.cpu()) || !partition.is_identified() {
            self.hypercalls.count(Name::Refused);
            return Some(Reply::Refused);
        }
        let call = hyperv::decode(&guest);
        drop(guest);
        let call = match call {
            Ok(call) => call,
            Err(status) => {
                self.hypercalls.count(Name::Refused);
                return Some(Reply::Value(u64::from(status as u16)));
            }
        };
        match call.deed {
            Deed::Yield => std::thread::yield_now(),
            Deed::Interrupt(set, vector) => self.interrupt_all(&set, vector),
            Deed::Flush(set) if self.flush(&set) => {}
            Deed::Flush(_) => return None,
        }
        self.hypercalls.count(call.name);
        Some(Reply::Value(call.result))
    }

    fn interrupt_all(&self, set: &VpSet, vector: u8) {
        let chipset = self.chipset();
        for index in (0..chipset.seats().len()).filter(|index| set.contains(*index)) {
            chipset.deliver(&Message {
                destination: Destination::Physical(index as u32),
                delivery: Delivery::Fixed(vector),
                level: false,
                lowest: false,
            });
        }
    }

    /// Has every vCPU of `set` forget its translations, and waits until none of them can use an old one any more. A vCPU in
    /// mid-instruction still does, however long its device takes: as with an interrupt, it has to finish that first. False if
    /// this vCPU is kicked or reset before.
    ///
    /// Two that flush each other do not wait for each other: a hypercall has no operands in memory.
    fn flush(&self, set: &VpSet) -> bool {
        let seats = self.chipset().seats();
        let cpus = || {
            let addressed = seats.iter().zip(0..).filter(|(_, index)| set.contains(*index));
            addressed.filter_map(|(seat, _)| seat.bell.attention())
        };
        cpus().for_each(|cpu| cpu.request_flush());
        let mut tries = 0u64;
        while !cpus().all(|cpu| cpu.has_flushed()) {
            let own = self.seat();
            // Rings that are answered here still stop the CPU after its instruction, and it looks then.
            own.bell.answer();
            if self.kicked.load(Ordering::SeqCst) || own.lapic().init_pending() {
                return false;
            }
            tries += 1;
            if tries < SPINS {
                std::hint::spin_loop();
            } else if tries < SPINS + YIELDS {
                std::thread::yield_now();
            } else {
                own.bell.sleep(Some(NAP));
            }
        }
        true
    }
}
