//! Registers of a type 0 configuration space header, and of the capabilities that are used here.

/// Bytes of a function's configuration space that can hold anything: the header and the capabilities.
pub const CONFIG_LENGTH: usize = 256;
/// Bytes of a function's configuration space as ECAM shows it. Beyond [`CONFIG_LENGTH`] there are no extended capabilities.
pub const EXTENDED_LENGTH: u64 = 4096;

/// Vendor ID.
pub const VENDOR_ID: u8 = 0x00;
/// Device ID.
pub const DEVICE_ID: u8 = 0x02;
/// Command.
pub const COMMAND: u8 = 0x04;
/// Status.
pub const STATUS: u8 = 0x06;
/// Revision ID, followed by the class code in three bytes.
pub const REVISION_ID: u8 = 0x08;
/// Cache Line Size.
pub const CACHE_LINE_SIZE: u8 = 0x0c;
/// Base Address Registers, six of them.
pub const BAR0: u8 = 0x10;
/// Subsystem Vendor ID.
pub const SUBSYSTEM_VENDOR_ID: u8 = 0x2c;
/// Subsystem ID.
pub const SUBSYSTEM_ID: u8 = 0x2e;
/// Capabilities Pointer.
pub const CAPABILITIES: u8 = 0x34;
/// Interrupt Line.
pub const INTERRUPT_LINE: u8 = 0x3c;
/// The first byte behind the header.
pub const HEADER_END: u8 = 0x40;

/// Bits of Command.
pub mod command {
    /// Memory Space Enable.
    pub const MEMORY: u16 = 1 << 1;
    /// Bus Master Enable.
    pub const MASTER: u16 = 1 << 2;
    /// Interrupt Disable.
    pub const INTX_DISABLE: u16 = 1 << 10;
    /// Those that can be set.
    pub const WRITABLE: u16 = MEMORY | MASTER | INTX_DISABLE;
}

/// Bits of Status.
pub mod status {
    /// There is a list of capabilities.
    pub const CAPABILITIES: u16 = 1 << 4;
}

/// Bits of a memory BAR.
pub mod bar {
    /// It is an I/O BAR, and the other bits are others.
    pub const IO: u32 = 1 << 0;
    /// The bits of Type.
    pub const TYPE: u32 = 0b11 << 1;
    /// Type: 64 bits wide.
    pub const WIDE: u32 = 0b10 << 1;
    /// Prefetchable.
    pub const PREFETCHABLE: u32 = 1 << 3;
    /// Those below the address.
    pub const FLAGS: u32 = 0xf;
}

/// Capability IDs.
pub mod capability {
    /// MSI.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}
