//! What the CPU needs from the world besides memory and devices.

/// Clock and chance, shared by the CPUs of one virtual machine.
pub trait Host: Send + Sync {
    /// The time-stamp counter now, offset included.
    fn tsc(&self) -> u64;

    /// 64 random bits that a guest may use as keys.
    fn random(&self) -> u64;
}
