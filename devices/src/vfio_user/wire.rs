//! Messages as they are on the socket (vfio-user protocol, version 0.1): a header of 16 bytes, then what the command needs, all
//! little-endian.

/// Bytes of a header.
pub(super) const HEADER: usize = 16;
/// Bytes of data that one message carries at most, in either direction.
pub(super) const MAX_DATA: usize = 1 << 20;
/// Bytes of the longest message that anybody has a reason to send: data, and what stands before it.
pub(super) const MAX_MESSAGE: usize = MAX_DATA + 256;
/// The version that is spoken.
pub(super) const VERSION: (u16, u16) = (0, 1);

/// What a message asks for.
pub(super) mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DEVICE_GET_INFO: u16 = 4;
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub const DEVICE_SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const DEVICE_RESET: u16 = 13;
}

/// Flags of a header.
pub(super) mod flag {
    /// The bits that tell a reply from a command.
    pub const TYPE: u32 = 0xf;
    /// In them: this is a reply.
    pub const REPLY: u32 = 1;
    /// The sender wants none.
    pub const NO_REPLY: u32 = 1 << 4;
    /// The command failed.
    pub const ERROR: u32 = 1 << 5;
}

/// Flags of a device.
pub(super) mod device {
    pub const RESET: u32 = 1 << 0;
    pub const PCI: u32 = 1 << 1;
}

/// Flags of a region.
pub(super) mod region {
    pub const READ: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
}

/// Flags of an interrupt type.
pub(super) mod irq {
    pub const EVENTFD: u32 = 1 << 0;
    pub const MASKABLE: u32 = 1 << 1;
}

/// Flags of DEVICE_SET_IRQS.
pub(super) mod set_irqs {
    pub const DATA_NONE: u32 = 1 << 0;
    pub const DATA_EVENTFD: u32 = 1 << 2;
    pub const ACTION_MASK: u32 = 1 << 3;
    pub const ACTION_UNMASK: u32 = 1 << 4;
    pub const ACTION_TRIGGER: u32 = 1 << 5;
}

/// Flags of DMA_MAP: the device may read and write.
pub(super) const DMA_READ_WRITE: u32 = 0b11;

/// Regions of a PCI device: six BARs, the expansion ROM, configuration space.
pub(super) const BARS: u32 = 6;
pub(super) const CONFIG_REGION: u32 = 7;
pub(super) const PCI_REGIONS: u32 = 8;
/// The interrupt type of MSI-X.
pub(super) const MSIX_IRQ: u32 = 2;

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Names a command; its reply has the same.
    pub id: u16,
    pub command: u16,
    /// Bytes of the message, these 16 included.
    pub size: u32,
    pub flags: u32,
    pub error: u32,
}

impl Header {
    pub fn parse(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, rest @ ..] = bytes;
        let word = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        Self {
            id: u16::from_le_bytes([a, b]),
            command: u16::from_le_bytes([c, d]),
            size: word(0),
            flags: word(4),
            error: word(8),
        }
    }

    pub fn is_reply(&self) -> bool {
        self.flags & flag::TYPE == flag::REPLY
    }

    pub fn is_error(&self) -> bool {
        self.flags & flag::ERROR != 0
    }
}

/// A message of `parts` behind a header.
pub(super) fn message(id: u16, command: u16, flags: u32, error: u32, parts: &[&[u8]]) -> Vec<u8> {
    let size = HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(size);
    bytes.extend(id.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend((size as u32).to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(error.to_le_bytes());
    for part in parts {
        bytes.extend(*part);
    }
    bytes
}

/// Some words in a row.
pub(super) fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// What REGION_READ and REGION_WRITE begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RegionAccess {
    pub offset: u64,
    pub region: u32,
    pub count: u32,
}

impl RegionAccess {
    pub const LENGTH: usize = 16;

    pub fn bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.region.to_le_bytes());
        bytes[12..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }
}

/// Reads a message's body from the front. What is missing is an error of whoever wrote it.
pub(super) struct Body<'a>(pub &'a [u8]);

impl<'a> Body<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Bytes that arrived, taken apart into messages.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// How many of them are behind us.
    taken: usize,
}

/// A message that cannot be one, and ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message says it has {size} bytes; expected {HEADER} to {MAX_MESSAGE}")]
pub(super) struct BadSize {
    pub size: u32,
}

impl Inbox {
    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend(bytes);
    }

    /// The next message, if all of it is there: its header and its body.
    pub fn next(&mut self) -> Result<Option<(Header, &[u8])>, BadSize> {
        let waiting = &self.bytes[self.taken..];
        let Some((header, _)) = waiting.split_first_chunk() else {
            return Ok(None);
        };
        let header = Header::parse(*header);
        let size = header.size as usize;
        if !(HEADER..=MAX_MESSAGE).contains(&size) {
            return Err(BadSize { size: header.size });
        }
        let Some(message) = waiting.get(..size) else {
            return Ok(None);
        };
        self.taken += size;
        Ok(Some((header, &message[HEADER..])))
    }

    /// Has the message that was taken last, whose header this is, be the next again.
    pub fn put_back(&mut self, header: Header) {
        self.taken = self.taken.saturating_sub(header.size as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_arrive() {
        let stream = [
            message(1, command::REGION_READ, flag::REPLY, 0, &[&[1, 2], &[3]]),
            message(2, command::DEVICE_RESET, 0, 7, &[]),
        ]
        .concat();
        for step in 1..=stream.len() {
            let (mut inbox, mut found) = (Inbox::default(), Vec::new());
            for part in stream.chunks(step) {
                inbox.push(part);
                while let Some((header, body)) = inbox.next().unwrap() {
                    found.push((header.id, header.is_reply(), header.error, body.to_vec()));
                }
            }
            assert_eq!(
                found,
                [(1, true, 0, vec![1, 2, 3]), (2, false, 7, vec![])],
                "in {step}s"
            );
        }
    }

    #[test]
    fn a_size_that_is_none_is_told_before_its_bytes_come() {
        for size in [0, 15, MAX_MESSAGE as u32 + 1, u32::MAX] {
            let mut bytes = message(1, 1, 0, 0, &[]);
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            let mut inbox = Inbox::default();
            inbox.push(&bytes);
            assert_eq!(inbox.next().err(), Some(BadSize { size }));
        }
    }
}
