//! What of a device's configuration space is ours, and what is its own.

use super::error::VfioUserError;
use super::session::Description;
use super::wire;
use crate::pci::config::ConfigSpaceError;
use crate::pci::spec::{self, CONFIG_LENGTH, bar, capability, status};
use crate::pci::{Bar, ConfigSpace, Identity, MsixPlace};

/// The most capabilities that 256 bytes have room for: a list that is longer is a loop.
const MAX_CAPABILITIES: usize = 48;
/// Bytes of MSI-X's capability.
const MSIX_LENGTH: usize = 12;
/// Header Type: the layout of the header, without the bit for several functions.
const HEADER_LAYOUT: u8 = 0x7f;
const HEADER_TYPE: usize = 0x0e;

/// A device's MSI-X.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MsixLayout {
    /// Where its capability is.
    pub at: u8,
    pub place: MsixPlace,
    /// How many vectors both its table and its process have.
    pub vectors: u16,
}

/// Who owns which byte of configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// 0xff where it is the device's.
    theirs: [u8; CONFIG_LENGTH],
    pub msix: Option<MsixLayout>,
}

impl Layout {
    /// That of a device, and its configuration space as a guest sees it, but for MSI-X.
    pub fn new(description: &Description) -> Result<(Self, ConfigSpace), VfioUserError> {
        let own = &description.config;
        if own[HEADER_TYPE] & HEADER_LAYOUT != 0 {
            let what = format!("its header is of type {:#x}; expected 0", own[HEADER_TYPE]);
            return Err(VfioUserError::Unusable { what });
        }
        let mut space = ConfigSpace::new(identity(own));
        let unusable = |error: ConfigSpaceError| VfioUserError::Unusable {
            what: error.to_string(),
        };
        let bars = bars(description)?;
        for bar in &bars {
            space.add_bar(*bar).map_err(unusable)?;
        }
        let mut layout = Self {
            theirs: [0; CONFIG_LENGTH],
            msix: None,
        };
        layout.theirs[spec::HEADER_END.into()..].fill(0xff);
        for (at, id) in capabilities(own) {
            match id {
                // A guest that finds it would wait for interrupts that nobody sends.
                capability::MSI => {}
                capability::MSIX => {
                    let msix = msix(description, at, &bars)?;
                    let range = usize::from(at)..usize::from(at) + MSIX_LENGTH;
                    layout.theirs[range].fill(0);
                    layout.msix = msix.or(layout.msix);
                }
                _ => {
                    space.place_capability(at, id, &[], &[]).map_err(unusable)?;
                    layout.theirs[usize::from(at)..][..2].fill(0);
                }
            }
        }
        Ok((layout, space))
    }

    /// Which bits of `size` bytes at `offset` are the device's.
    pub fn theirs(&self, offset: u64, size: u8) -> u64 {
        crate::bytes::read(offset, size, |at| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            self.theirs.get(at).copied().unwrap_or(0)
        })
    }
}

/// `size` bytes of ones.
pub(super) fn ones(size: u8) -> u64 {
    crate::bytes::read(0, size, |_| 0xff)
}

/// Whether `now` is the device that was described as `before`.
pub(super) fn same(before: &Description, now: &Description) -> Result<(), VfioUserError> {
    let differs = |what| Err(VfioUserError::Another { what });
    if identity(&before.config) != identity(&now.config) {
        return differs("its identity is another");
    }
    if before.regions != now.regions {
        return differs("its regions are others");
    }
    if (before.vectors, before.maskable) != (now.vectors, now.maskable) {
        return differs("its interrupts are others");
    }
    let all = |of: &Description| capabilities(&of.config).collect::<Vec<_>>();
    if all(before) != all(now) {
        return differs("its capabilities are others");
    }
    Ok(())
}

fn u16_at(config: &[u8; CONFIG_LENGTH], at: usize) -> u16 {
    u16::from_le_bytes([config[at], config[at + 1]])
}

fn u32_at(config: &[u8; CONFIG_LENGTH], at: usize) -> u32 {
    u32::from(u16_at(config, at)) | u32::from(u16_at(config, at + 2)) << 16
}

fn identity(config: &[u8; CONFIG_LENGTH]) -> Identity {
    let word = |at: u8| u16_at(config, at.into());
    let [revision, interface, subclass, class] = u32_at(config, spec::REVISION_ID.into()).to_le_bytes();
    Identity {
        vendor: word(spec::VENDOR_ID),
        device: word(spec::DEVICE_ID),
        revision,
        class: [class, subclass, interface],
        subsystem_vendor: word(spec::SUBSYSTEM_VENDOR_ID),
        subsystem: word(spec::SUBSYSTEM_ID),
    }
}

/// The memory BARs: of the type that configuration space says, and the size of their regions.
fn bars(description: &Description) -> Result<Vec<Bar>, VfioUserError> {
    let mut bars: Vec<Bar> = Vec::new();
    for (index, region) in (0..wire::BARS as u8).zip(description.regions) {
        let upper_half = bars.last().is_some_and(|bar| bar.wide && bar.index + 1 == index);
        let register = u32_at(&description.config, usize::from(spec::BAR0 + 4 * index));
        if region.size == 0 || upper_half {
            continue;
        }
        if register & bar::IO != 0 {
            tracing::warn!(bar = index, "an I/O BAR of a device in another process is left out");
            continue;
        }
        let size = region.size.max(16).checked_next_power_of_two();
        let size = size.ok_or_else(|| VfioUserError::Unusable {
            what: format!("BAR {index} has {:#x} bytes", region.size),
        })?;
        bars.push(Bar {
            index,
            size,
            wide: register & bar::TYPE == bar::WIDE,
            prefetchable: register & bar::PREFETCHABLE != 0,
        });
    }
    Ok(bars)
}

/// The capabilities: where, and which.
fn capabilities(config: &[u8; CONFIG_LENGTH]) -> impl Iterator<Item = (u8, u8)> {
    let listed = u16_at(config, spec::STATUS.into()) & status::CAPABILITIES != 0;
    let pointer = |at: usize| Some(config[at] & !3).filter(|at| *at >= spec::HEADER_END);
    let first = pointer(spec::CAPABILITIES.into()).filter(|_| listed);
    std::iter::successors(first, move |at| pointer(usize::from(*at) + 1))
        .map(|at| (at, config[usize::from(at)]))
        .take(MAX_CAPABILITIES)
}

/// MSI-X, as its capability at `at` has it; `None` if the process has no vectors.
fn msix(description: &Description, at: u8, bars: &[Bar]) -> Result<Option<MsixLayout>, VfioUserError> {
    let config = &description.config;
    let start = usize::from(at);
    if start + MSIX_LENGTH > CONFIG_LENGTH {
        let what = format!("its MSI-X capability at {at:#x} does not fit");
        return Err(VfioUserError::Unusable { what });
    }
    let entries = (u16_at(config, start + 2) & 0x7ff) + 1;
    let (table, pending) = (u32_at(config, start + 4), u32_at(config, start + 8));
    let place = MsixPlace {
        bar: (table & 7) as u8,
        table: table & !7,
        pending: pending & !7,
        pending_bar: (pending & 7) as u8,
    };
    let vectors = entries.min(description.vectors);
    if vectors == 0 {
        return Ok(None);
    }
    let fits = |index: u8, start: u32, length: u64| {
        let bar = bars.iter().find(|bar| bar.index == index);
        bar.is_some_and(|bar| u64::from(start) + length <= bar.size)
    };
    let pending_length = u64::from(entries).div_ceil(64) * 8;
    if !fits(place.bar, place.table, u64::from(entries) * 16) || !fits(place.pending_bar, place.pending, pending_length)
    {
        return Err(VfioUserError::Unusable {
            what: format!("its MSI-X structures are in no BAR: {place:?}"),
        });
    }
    Ok(Some(MsixLayout { at, place, vectors }))
}
