//! Packets (virtio 1.2, "Socket Device", "Device Operation").

/// Bytes of a header.
pub(super) const HEADER: usize = 44;
/// The most data of one packet.
pub(super) const MOST_DATA: usize = 64 << 10;
/// The host's CID.
pub(super) const HOST: u64 = 2;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const STREAM: u16 = 1;

/// VIRTIO_VSOCK_OP_*.
pub(super) mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of SHUTDOWN: what the sender of the packet does no more.
pub(super) mod shutdown {
    pub const RECEIVE: u32 = 1;
    pub const SEND: u32 = 2;
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A packet's header. `length` bytes of data follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let mut at = 0;
        let mut next = |length: usize| {
            let mut field = [0; 8];
            field[..length].copy_from_slice(&bytes[at..at + length]);
            at += length;
            u64::from_le_bytes(field)
        };
        Self {
            source_cid: next(8),
            destination_cid: next(8),
            source_port: next(4) as u32,
            destination_port: next(4) as u32,
            length: next(4) as u32,
            kind: next(2) as u16,
            op: next(2) as u16,
            flags: next(4) as u32,
            buf_alloc: next(4) as u32,
            fwd_cnt: next(4) as u32,
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.source_cid.to_le_bytes());
        put(&self.destination_cid.to_le_bytes());
        put(&self.source_port.to_le_bytes());
        put(&self.destination_port.to_le_bytes());
        put(&self.length.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}
