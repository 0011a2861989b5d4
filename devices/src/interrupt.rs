//! The line on which a device asks for attention.

/// One interrupt line, as a device sees it. Called with device locks held, so an implementation neither blocks nor calls
/// back into a device.
pub trait Interrupt: Send + Sync {
    /// Asserts (true) or deasserts (false) the line.
    fn set(&self, level: bool);

    /// Asserts and deasserts at once, as an edge-triggered source does.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A line that leads nowhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoInterrupt;

impl Interrupt for NoInterrupt {
    fn set(&self, _level: bool) {}
}
