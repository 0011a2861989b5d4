//! Hypercalls: what a paravirtual guest asks of its hypervisor.
//!
//! # Purpose
//! Two families, of which a machine has one: those of KVM ([`kvm`]), and those of Hyper-V ([`hyperv`]) if its settings say
//! so. Both modules say what a call in the caller's registers and memory *is*; the vCPU does it.
//! # Invariants
//! - Arguments in memory are copied through [`Aside`](reprise_emulator::Aside): they are not the instruction's own reads, and leave nothing in its
//!   record. The call is answered once; a replay of the instruction takes the answer from the record.
//! - A call that has to wait (a flush, for a vCPU in mid-instruction) has changed nothing that is not changed again by
//!   making it from its beginning. So there is nothing to save of it but the instruction that waits for its answer.

pub mod hyperv;
pub mod kvm;
#[cfg(test)]
mod tests;
mod vp_set;

pub use vp_set::VpSet;

/// A hypercall that was made, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// KVM_HC_SEND_IPI.
    KvmSendIpi,
    /// KVM_HC_KICK_CPU.
    KvmKick,
    /// KVM_HC_SCHED_YIELD.
    KvmSchedYield,
    /// KVM_HC_CLOCK_PAIRING.
    KvmClockPairing,
    /// HvCallFlushVirtualAddressSpace and its extended form.
    HvFlushSpace,
    /// HvCallFlushVirtualAddressList and its extended form.
    HvFlushList,
    /// HvCallSendSyntheticClusterIpi and its extended form.
    HvSendIpi,
    /// HvCallNotifyLongSpinWait.
    HvLongSpin,
    /// Any call that was refused, or that there is not.
    Refused,
}

/// How often each was made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters([u64; Name::ALL.len()]);

impl Name {
    const ALL: [(Self, &'static str); 9] = [
        (Self::KvmSendIpi, "kvm_send_ipi"),
        (Self::KvmKick, "kvm_kick"),
        (Self::KvmSchedYield, "kvm_sched_yield"),
        (Self::KvmClockPairing, "kvm_clock_pairing"),
        (Self::HvFlushSpace, "hv_flush_space"),
        (Self::HvFlushList, "hv_flush_list"),
        (Self::HvSendIpi, "hv_send_ipi"),
        (Self::HvLongSpin, "hv_long_spin"),
        (Self::Refused, "hypercalls_refused"),
    ];
}

impl Counters {
    /// One more.
    pub fn count(&mut self, name: Name) {
        self.0[name as usize] += 1;
    }

    /// Name and value of each.
    pub fn figures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Name::ALL.iter().map(|(name, text)| (*text, self.0[*name as usize]))
    }
}
