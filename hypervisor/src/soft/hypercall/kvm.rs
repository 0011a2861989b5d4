//! KVM's hypercalls (Linux, `Documentation/virt/kvm/x86/hypercalls.rst`): the number in RAX, arguments in RBX, RCX, RDX and
//! RSI, the result in RAX. A caller outside 64-bit mode passes the low halves and gets one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use reprise_emulator::Aside;
use reprise_emulator::cpu::gpr;

use super::super::chipset::Chipset;
use super::super::ioapic::MessageBus;
use super::super::lapic::Now;
use super::super::message::{Delivery, Destination, Message};
use super::Name;

const VAPIC_POLL_IRQ: u64 = 1;
const KICK_CPU: u64 = 5;
const CLOCK_PAIRING: u64 = 9;
const SEND_IPI: u64 = 10;
const SCHED_YIELD: u64 = 11;

/// The errors, by their names in KVM's ABI.
const EPERM: u64 = 1;
const EFAULT: u64 = 14;
const EINVAL: u64 = 22;
const EOPNOTSUPP: u64 = 95;
const ENOSYS: u64 = 1000;

/// The one kind of clock that is paired: the time of day.
const WALL_CLOCK: u64 = 0;

/// Fields of the interrupt command register that a paravirtual IPI cannot have: destination mode and shorthand.
const ICR_DESTINATION: u32 = 1 << 11 | 0b11 << 18;
/// Level-triggered, and asserted.
const ICR_LEVEL: u32 = 1 << 15;
const ICR_ASSERT: u32 = 1 << 14;

/// Makes the call that the caller's registers describe: which one it was, and what it returns.
pub fn call(guest: &Aside<'_>, chipset: &Chipset, now: Now) -> (Name, u64) {
    let cpu = guest.cpu();
    let long = cpu.view.is_long();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    let [number, a0, a1, a2, a3] =
        [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX, gpr::RSI].map(|register| cpu.gpr.get(register) & mask);
    let outcome = if cpu.cpl() != 0 {
        Err(EPERM)
    } else {
        match number {
            VAPIC_POLL_IRQ => Err(0),
            KICK_CPU => Ok((Name::KvmKick, kick(chipset, a1))),
            CLOCK_PAIRING => pair_clocks(guest, chipset, now, a0, a1).map(|()| (Name::KvmClockPairing, 0)),
            SEND_IPI => {
                let width = if long { 64 } else { 32 };
                send_ipi(chipset, [a0, a1], width, a2, a3 as u32).map(|sent| (Name::KvmSendIpi, sent))
            }
            SCHED_YIELD => {
                std::thread::yield_now();
                Ok((Name::KvmSchedYield, 0))
            }
            _ => Err(ENOSYS),
        }
    };
    let (name, result) = outcome.unwrap_or_else(|error| (Name::Refused, error.wrapping_neg()));
    if long {
        (name, result)
    } else {
        // EDX stays as it is.
        (name, cpu.gpr.get(gpr::RDX) << 32 | result & mask)
    }
}

/// Wakes the vCPU with this APIC id from HLT, even if it takes no interrupts; one that runs does not halt next time.
fn kick(chipset: &Chipset, apic_id: u64) -> u64 {
    if let Some(seat) = usize::try_from(apic_id)
        .ok()
        .and_then(|index| chipset.seats().get(index))
    {
        seat.unhalted.store(true, Ordering::SeqCst);
        seat.bell.ring();
    }
    0
}

/// Sends what `icr` says to the vCPUs whose APIC ids, less `min`, are set in a bitmap of two words of `width` bits; how many
/// have accepted it.
fn send_ipi(chipset: &Chipset, bitmap: [u64; 2], width: u32, min: u64, icr: u32) -> Result<u64, u64> {
    if icr & ICR_DESTINATION != 0 {
        return Err(EINVAL);
    }
    let Some((delivery, _)) = Delivery::decode(icr >> 8, icr as u8) else {
        return Err(EINVAL);
    };
    // The de-assert of INIT does nothing to anybody.
    if delivery == Delivery::Init && icr & (ICR_LEVEL | ICR_ASSERT) == ICR_LEVEL {
        return Ok(0);
    }
    // An APIC id has 32 bits, whatever the register holds.
    let min = u64::from(min as u32);
    let mut sent = 0;
    for (word, first) in bitmap.into_iter().zip([min, min + u64::from(width)]) {
        let mut left = word;
        while left != 0 {
            let id = first + u64::from(left.trailing_zeros());
            left &= left - 1;
            if id >= chipset.seats().len() as u64 {
                break;
            }
            let message = Message {
                destination: Destination::Physical(id as u32),
                delivery,
                level: false,
                lowest: false,
            };
            sent += u64::from(chipset.deliver(&message));
        }
    }
    Ok(sent)
}

/// Writes the time of day and this vCPU's counter at one moment to `address`: seconds, nanoseconds, ticks, flags, padding.
fn pair_clocks(guest: &Aside<'_>, chipset: &Chipset, now: Now, address: u64, clock: u64) -> Result<(), u64> {
    if clock != WALL_CLOCK {
        return Err(EOPNOTSUPP);
    }
    let wall = chipset.clock.wall_at_zero() + Duration::from_nanos(now.clock);
    let mut pair = [0; 64];
    for (place, value) in pair
        .chunks_exact_mut(8)
        .zip([wall.as_secs(), u64::from(wall.subsec_nanos()), now.tsc])
    {
        place.copy_from_slice(&value.to_le_bytes());
    }
    if guest.write(address, &pair) {
        Ok(())
    } else {
        Err(EFAULT)
    }
}
