//! The control queue (virtio 1.2, "Control Virtqueue").

use std::sync::Arc;

use virtio_bindings::virtio_net as bits;

use super::filter::{TABLE, Table};
use super::mode::Refused;
use super::{ANNOUNCE, MacAddress, Ordering, Shared, count};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::device::{Handled, QueueHandler};

const CLASS_RX: u8 = bits::VIRTIO_NET_CTRL_RX as u8;
const CLASS_MAC: u8 = bits::VIRTIO_NET_CTRL_MAC as u8;
const CLASS_ANNOUNCE: u8 = bits::VIRTIO_NET_CTRL_ANNOUNCE as u8;
const CLASS_MQ: u8 = bits::VIRTIO_NET_CTRL_MQ as u8;
const CLASS_OFFLOADS: u8 = bits::VIRTIO_NET_CTRL_GUEST_OFFLOADS as u8;
const OK: u8 = bits::VIRTIO_NET_OK as u8;
const ERROR: u8 = bits::VIRTIO_NET_ERR as u8;

/// Bytes of a command before its data: class and command.
const COMMAND: u64 = 2;
/// Bytes of a table before its addresses: how many there are.
const TABLE_HEADER: u64 = 4;
/// Bytes of an address.
const ADDRESS: u64 = 6;

/// Serves the control queue.
pub(super) struct Controller {
    shared: Arc<Shared>,
}

/// Why a command was not carried out.
enum Failed {
    Chain(ChainError),
    Refused,
}

impl From<ChainError> for Failed {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

impl From<Refused> for Failed {
    fn from(_: Refused) -> Self {
        Self::Refused
    }
}

impl Controller {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn carry_out(&self, chain: &Chain<'_>) -> Result<(), Failed> {
        let [class, command] = read(chain, 0)?;
        let mode = &self.shared.mode;
        match (class, u32::from(command)) {
            (CLASS_RX, command) => {
                let [on] = read(chain, COMMAND)?;
                let on = match on {
                    0 => false,
                    1 => true,
                    _ => return Err(Failed::Refused),
                };
                let mut known = true;
                mode.change_filter(|filter| match command {
                    bits::VIRTIO_NET_CTRL_RX_PROMISC => filter.promiscuous = on,
                    bits::VIRTIO_NET_CTRL_RX_ALLMULTI => filter.all_multicast = on,
                    bits::VIRTIO_NET_CTRL_RX_ALLUNI => filter.all_unicast = on,
                    bits::VIRTIO_NET_CTRL_RX_NOMULTI => filter.no_multicast = on,
                    bits::VIRTIO_NET_CTRL_RX_NOUNI => filter.no_unicast = on,
                    bits::VIRTIO_NET_CTRL_RX_NOBCAST => filter.no_broadcast = on,
                    _ => known = false,
                });
                if known { Ok(()) } else { Err(Failed::Refused) }
            }
            (CLASS_MAC, bits::VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                let (unicast, end) = table(chain, COMMAND)?;
                let (multicast, _) = table(chain, end)?;
                mode.change_filter(|filter| (filter.unicast, filter.multicast) = (unicast, multicast));
                Ok(())
            }
            (CLASS_MAC, bits::VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                let mac = MacAddress::new(read(chain, COMMAND)?);
                if mac.is_group() {
                    return Err(Failed::Refused);
                }
                mode.set_mac(mac);
                Ok(())
            }
            (CLASS_ANNOUNCE, bits::VIRTIO_NET_CTRL_ANNOUNCE_ACK) if mode.accepted() & ANNOUNCE != 0 => {
                self.shared.announce.store(false, Ordering::SeqCst);
                Ok(())
            }
            (CLASS_MQ, bits::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                let pairs = u16::from_le_bytes(read(chain, COMMAND)?);
                Ok(mode.set_pairs(pairs, self.shared.pairs, &*self.shared.link)?)
            }
            (CLASS_OFFLOADS, bits::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                let offloads = u64::from_le_bytes(read(chain, COMMAND)?);
                Ok(mode.set_offloads(offloads, &*self.shared.link)?)
            }
            _ => Err(Failed::Refused),
        }
    }
}

fn read<const LENGTH: usize>(chain: &Chain<'_>, offset: u64) -> Result<[u8; LENGTH], ChainError> {
    let mut bytes = [0; LENGTH];
    chain.read(offset, &mut bytes)?;
    Ok(bytes)
}

/// The table at `offset`, and where it ends. All of it is there, however long it says it is.
fn table(chain: &Chain<'_>, offset: u64) -> Result<(Table, u64), ChainError> {
    let count = u64::from(u32::from_le_bytes(read(chain, offset)?));
    let start = offset + TABLE_HEADER;
    let end = start + count * ADDRESS;
    if end > chain.readable() {
        return Err(ChainError::Short);
    }
    let mut table = Table {
        addresses: Vec::new(),
        overflows: count > TABLE as u64,
    };
    for index in 0..count.min(TABLE as u64) {
        table
            .addresses
            .push(MacAddress::new(read(chain, start + index * ADDRESS)?));
    }
    Ok((table, end))
}

impl QueueHandler for Controller {
    fn begin(&mut self, features: u64) {
        self.shared.mode.begin(features, &*self.shared.link);
    }

    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        // The last byte is where the answer goes.
        let place = chain.writable().checked_sub(1).ok_or(ChainError::Short)?;
        let counters = &self.shared.counters;
        count(&counters.control, 1);
        let (answer, result) = match self.carry_out(chain) {
            Ok(()) => (OK, Ok(())),
            Err(Failed::Refused) => (ERROR, Ok(())),
            Err(Failed::Chain(error)) => (ERROR, Err(error)),
        };
        if answer == ERROR {
            count(&counters.control_refused, 1);
        }
        chain.write(place, &[answer])?;
        result.map(|()| Handled::Used(if place == 0 { 1 } else { 0 }))
    }
}
