//! An instruction in flight as plain data: saved with its CPU, restored in another process, finished there.

use serde::{Deserialize, Serialize};

use super::{Careful, OBTAINED, STORES, Store, Waiting};
use crate::ram::PAGE_SIZE;
use crate::replay::{CAPACITY, Entry, Kind, Question};
use crate::request::{Direction, Request, RequestId, Space};

/// An instruction that has begun and not ended: what it has read, what it waits for, and, if it has retired already,
/// which of its stores are left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InFlight {
    record: Vec<Entry>,
    waiting: Option<Waiting>,
    stores: Vec<Store>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    obtained: Vec<Entry>,
}

/// Saved data that is no instruction in flight.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InFlightError {
    /// More than any instruction reads.
    #[error("the instruction's record has {entries} entries; expected at most {CAPACITY}")]
    RecordLength {
        /// How many there are.
        entries: usize,
    },
    /// More than any instruction stores.
    #[error("the instruction has {stores} stores left; expected at most {STORES}")]
    StoreCount {
        /// How many there are.
        stores: usize,
    },
    /// An access that no instruction makes.
    #[error("{what} at {address:#x} has {width} bytes; expected 1, 2, 4 or 8 within a page, or 1, 2 or 4 at a port")]
    Width {
        /// A recorded read, a store or a request.
        what: &'static str,
        /// Its address.
        address: u64,
        /// Its width.
        width: u8,
    },
    /// The instruction neither waits for an answer nor has stores left, or waits for what it does not ask.
    #[error("the request that the instruction waits for does not fit what it has recorded")]
    Inconsistent,
}

impl InFlight {
    /// An instruction that has retired elsewhere: a device has yet to take the store that `request` is, and then those in
    /// `left`, each with its place, its width and what is stored. `None` if that is no instruction in flight.
    pub fn retired(request: Request, left: &[(Space, u64, u8, u64)]) -> Option<InFlight> {
        let store = |&(space, address, width, value): &(Space, u64, u8, u64)| Store {
            space,
            address,
            width,
            value,
        };
        let own = InFlight {
            record: Vec::new(),
            waiting: Some(Waiting {
                request,
                question: None,
            }),
            stores: left.iter().map(store).collect(),
            obtained: Vec::new(),
        };
        own.validate().is_ok().then_some(own)
    }

    /// The same, its request known as `id`.
    #[must_use]
    pub fn renamed(mut self, id: RequestId) -> InFlight {
        if let Some(waiting) = &mut self.waiting {
            waiting.request.id = id;
        }
        self
    }

    /// The request whose answer the instruction waits for; `None` if only stores to RAM are left of it.
    pub fn request(&self) -> Option<Request> {
        self.waiting.map(|waiting| waiting.request)
    }

    /// What it has read so far, in order.
    pub fn record(&self) -> &[Entry] {
        &self.record
    }

    /// Checks data that comes from outside.
    fn validate(&self) -> Result<(), InFlightError> {
        let (entries, stores) = (self.record.len(), self.stores.len());
        if entries > CAPACITY {
            return Err(InFlightError::RecordLength { entries });
        }
        if stores > STORES {
            return Err(InFlightError::StoreCount { stores });
        }
        for Entry { question, .. } in self.record.iter().chain(&self.obtained) {
            check_question("a recorded read", question)?;
        }
        for store in &self.stores {
            check("a store", store.space, store.address, store.width)?;
        }
        match self.waiting {
            // Nothing but stores is left, or nothing but supplied bytes is there yet.
            None => (entries == 0 || stores == 0).then_some(()),
            Some(Waiting { request, question }) => {
                check("a request", request.space, request.address, request.size)?;
                if !fits_page(&request) {
                    return Err(InFlightError::Inconsistent);
                }
                match question {
                    // Having retired, it is told that a device has taken a store.
                    None => (entries == 0 && matches!(request.direction, Direction::Write(_))).then_some(()),
                    Some(question) => {
                        check_question("a request", &question)?;
                        let same = (question.space, question.address) == (request.space, request.address);
                        let wide =
                            question.width == request.size || question.kind == Kind::Batch && question.width == 8;
                        (stores == 0 && same && wide).then_some(())
                    }
                }
            }
        }
        .ok_or(InFlightError::Inconsistent)
    }
}

/// A batch has at least two elements, all in one page of RAM.
fn fits_page(request: &Request) -> bool {
    match request.direction {
        Direction::Read | Direction::Write(_) => true,
        Direction::ReadTo { guest, count } | Direction::WriteFrom { guest, count } => {
            count >= 2 && guest % PAGE_SIZE + u64::from(count) * u64::from(request.size) <= PAGE_SIZE
        }
    }
}

fn check_question(what: &'static str, question: &Question) -> Result<(), InFlightError> {
    let Question {
        kind,
        space,
        address,
        width,
    } = *question;
    match kind {
        Kind::Supplied if (1..=8).contains(&width) => Ok(()),
        // This is the width of a count; the address is where its first element is.
        Kind::Batch if width == 8 => check(what, space, address, 1),
        _ => check(what, space, address, width),
    }
}

/// No access is wider than 8 bytes, nor crosses a page of memory; ports have 16 bits of address and at most 4 bytes.
fn check(what: &'static str, space: Space, address: u64, width: u8) -> Result<(), InFlightError> {
    let fits = match space {
        Space::Memory => address % PAGE_SIZE + u64::from(width) <= PAGE_SIZE,
        Space::Port => address <= 0xffff && width <= 4,
        _ => true,
    };
    if matches!(width, 1 | 2 | 4 | 8) && fits {
        Ok(())
    } else {
        Err(InFlightError::Width { what, address, width })
    }
}

impl Careful {
    /// The instruction in flight, if there is one.
    pub(crate) fn save(&self) -> Option<InFlight> {
        self.in_flight().then(|| InFlight {
            record: self.cache.entries().to_vec(),
            waiting: self.waiting,
            // What an abandoned pass has staged is gone already: these are a retired instruction's.
            stores: self.stores[self.drained..].to_vec(),
            obtained: self.obtained.clone(),
        })
    }

    /// Takes over an instruction in flight, in place of whatever was.
    ///
    /// # Errors
    /// [`InFlightError`]; nothing has changed then.
    pub(crate) fn restore(&mut self, saved: Option<&InFlight>) -> Result<(), InFlightError> {
        saved.map_or(Ok(()), InFlight::validate)?;
        self.abandon();
        if let Some(InFlight {
            record,
            waiting,
            stores,
            obtained,
        }) = saved
        {
            self.cache.restore(record);
            self.stores.extend_from_slice(stores);
            self.obtained.extend(obtained.iter().take(OBTAINED));
            self.waiting = *waiting;
            let last = waiting.map_or(0, |waiting| waiting.request.id);
            self.last_id = self.last_id.max(last);
        }
        Ok(())
    }
}
