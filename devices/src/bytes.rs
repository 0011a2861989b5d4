//! Wide accesses to devices whose registers are bytes.
//!
//! An 8-bit device on the ISA bus sees a wide access as one byte after another at rising addresses, lowest byte first
//! (the chipset's byte-lane steering); so do ours.

/// The value of `size` bytes from `offset` on, each asked of `byte`.
pub(crate) fn read(offset: u64, size: u8, mut byte: impl FnMut(u64) -> u8) -> u64 {
    let mut value = [0; 8];
    for (place, at) in value.iter_mut().take(size.into()).zip(0..) {
        *place = byte(offset.wrapping_add(at));
    }
    u64::from_le_bytes(value)
}

/// Gives `byte` each of the low `size` bytes of `value` with its offset, from `offset` on.
pub(crate) fn write(offset: u64, size: u8, value: u64, mut byte: impl FnMut(u64, u8)) {
    for (part, at) in value.to_le_bytes().into_iter().take(size.into()).zip(0..) {
        byte(offset.wrapping_add(at), part);
    }
}
