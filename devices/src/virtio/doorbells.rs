//! Notifications that somebody else takes from the driver: the host's kernel, before the guest's write is an exit.

use vmm_sys_util::eventfd::EventFd;

/// A doorbell that rings until it is dropped.
pub type Kept = Box<dyn Send + Sync>;

/// Who rings a queue's bell when the guest writes to its notification address. Called with device locks held, so an implementation
/// neither blocks on a guest nor calls back into a device.
pub trait Doorbells: Send + Sync {
    /// Has `bell` rung for each write at guest-physical `address`, of whatever width and value, in place of an access of the device,
    /// as long as what is returned is kept. `None` if that cannot be; then it is an access, as all others are.
    fn keep(&self, address: u64, bell: &EventFd) -> Option<Kept>;
}
