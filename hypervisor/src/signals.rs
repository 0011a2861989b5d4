//! Interrupts and doorbells as events: what another thread, or a device in another process, signals or waits for without
//! anybody in between.
//!
//! A [`MessageEvent`] interrupts the guest when its event is written to, as long as it has a [`Message`] to send; a
//! [`DoorbellAddress`] signals an event when the guest writes there, and the vCPU goes on without coming out. On KVM both are
//! the kernel's (irqfd and ioeventfd).

use vmm_sys_util::eventfd::EventFd;

use crate::{HypervisorError, Space};

/// A message-signalled interrupt: what a device would write, and where (SDM Vol. 3, "Message Signalled Interrupts").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message {
    /// The address, 0xFEEx_xxxx.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// One interrupt of a device, such as a vector of MSI-X. It is masked at first.
pub trait MessageEvent: Send + Sync {
    /// Sends `message` from now on when signalled; with `None` it is masked. What is signalled while it is masked is sent,
    /// once, when it is masked no longer.
    ///
    /// # Errors
    /// [`HypervisorError`] if the host refuses; it is as before then.
    fn set(&self, message: Option<Message>) -> Result<(), HypervisorError>;

    /// Whoever writes to this event signals the interrupt; it may be given to another process.
    fn event(&self) -> &EventFd;

    /// Signals the interrupt.
    fn signal(&self) {
        // Fails only if it was signalled 2⁶⁴ times and nobody has taken notice.
        let _already_signalled = self.event().write(1);
    }
}

/// Where a guest writes to signal an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DoorbellAddress {
    /// The address space.
    pub space: Space,
    /// The address that the write begins at.
    pub address: u64,
    /// Only this value in so many bytes, 1, 2, 4 or 8; `None` is anything.
    pub value: Option<(u64, u8)>,
}

impl DoorbellAddress {
    /// Whether a write of `size` bytes with `value` at `address` rings.
    pub(crate) fn rings(&self, space: Space, address: u64, size: u8, value: u64) -> bool {
        let wanted = self.value.is_none_or(|(own, bytes)| (own, bytes) == (value, size));
        (self.space, self.address) == (space, address) && wanted
    }
}

/// A doorbell; without it, the guest's writes are device accesses again.
pub struct Doorbell(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Doorbell {
    /// One that is taken away by `remove`.
    pub(crate) fn new(remove: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(remove)))
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        if let Some(remove) = self.0.take() {
            remove();
        }
    }
}
