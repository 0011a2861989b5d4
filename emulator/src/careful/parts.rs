//! Operands in parts: up to eight bytes within a page, each recorded, staged or asked for by itself.

use super::{Careful, OBTAINED, PAGES, STORES, Store, Translated, Waiting, Wanted};
use crate::access::{Linear, Stop};
use crate::cpu::Cpu;
use crate::event::{self, Exception};
use crate::fast::non_canonical;
use crate::paging::{self, Intent, Privilege};
use crate::ram::PAGE_SIZE;
use crate::replay::{Entry, Kind, Question, ReplayError};
use crate::request::{Direction, Request, Space};
use crate::word::Word;

/// As many ones as `width` bytes (1 to 8) have bits.
pub(super) fn ones(width: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(width))
}

fn check_canonical(cpu: &Cpu, at: Linear, length: u64) -> Result<(), Stop> {
    let last = at.address.wrapping_add(length - 1);
    if cpu.view.is_ia32e() && !(paging::is_canonical(cpu, at.address) && paging::is_canonical(cpu, last)) {
        return Err(non_canonical(at));
    }
    Ok(())
}

/// What the alignment check demands of an operand of `length` bytes (SDM Vol. 3, Alignment Requirements by Data Type).
///
/// # Errors
/// #AC.
fn check_alignment(at: Linear, length: u64) -> Result<(), Stop> {
    let alignment = match length {
        10 => 8,
        // The x87 environment and state, of 16 and of 32 bits.
        14 | 94 => 2,
        28 | 108 => 4,
        1 | 2 | 4 | 8 | 16 => length,
        32 | 64 => 16,
        _ => 1,
    };
    if at.address.is_multiple_of(alignment) {
        Ok(())
    } else {
        Err(Exception::with_code(event::AC, 0).into())
    }
}

/// Where the bytes of an operand lie: in one page or in two.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) first: u64,
    pub(super) first_length: u64,
    pub(super) second: u64,
    pub(super) length: u64,
}

impl Place {
    /// The parts: guest-physical address, width (8, 4, 2 or 1), offset within the operand.
    pub(super) fn parts(self) -> impl Iterator<Item = (u64, u8, usize)> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let (gpa, left) = if done < self.first_length {
                (self.first + done, self.first_length - done)
            } else {
                (self.second + (done - self.first_length), self.length - done)
            };
            if left == 0 {
                return None;
            }
            let width = 1 << left.min(8).ilog2();
            let offset = done as usize;
            done += width;
            Some((gpa, width as u8, offset))
        })
    }
}

/// Reads and writes of single parts.
impl Careful {
    pub(super) fn request(&mut self, space: Space, address: u64, size: u8, direction: Direction) -> Request {
        // No CPU lives that long, but a saved one may say so.
        self.last_id = self.last_id.wrapping_add(1);
        Request {
            id: self.last_id,
            space,
            address,
            size,
            direction,
        }
    }

    #[cold]
    pub(super) fn fail(&mut self, error: ReplayError) -> Stop {
        self.error = Some(error);
        Stop::Failed
    }

    pub(super) fn recall(&mut self, question: Question) -> Result<Option<Entry>, Stop> {
        self.cache.recall(question).map_err(|error| self.fail(error))
    }

    pub(super) fn reserve(&mut self, entries: usize) -> Result<(), Stop> {
        self.cache.reserve(entries).map_err(|error| self.fail(error))
    }

    pub(super) fn record_value(&mut self, question: Question, value: u64) -> Result<(), Stop> {
        self.cache
            .record(question, value, false)
            .map_err(|error| self.fail(error))
    }

    /// Keeps an answer for a question that is yet to be asked; false if there is no room.
    pub(crate) fn obtain(&mut self, space: Space, address: u64, width: u8, value: u64) -> bool {
        let room = self.obtained.len() < OBTAINED && matches!(width, 1 | 2 | 4 | 8);
        if room {
            let kind = match space {
                Space::Memory => Kind::Data,
                _ => Kind::Device,
            };
            self.obtained.push(Entry {
                question: Question {
                    kind,
                    space,
                    address,
                    width,
                },
                value: value & ones(width),
                refused: false,
            });
        }
        room
    }

    /// The answer to `question` that was obtained before, now recorded.
    fn take_obtained(&mut self, question: Question) -> Result<Option<u64>, Stop> {
        let same = |entry: &Entry| {
            let Question {
                space, address, width, ..
            } = entry.question;
            (space, address, width) == (question.space, question.address, question.width)
        };
        let Some(place) = self.obtained.iter().position(same) else {
            return Ok(None);
        };
        let value = self.obtained[place].value;
        self.record_value(question, value)?;
        self.obtained.remove(place);
        Ok(Some(value))
    }

    /// Abandons the pass until `direction` at `question`'s place is answered.
    pub(super) fn wait(&mut self, question: Question, direction: Direction) -> Stop {
        if let Err(error) = self.cache.reserve_answer() {
            return self.fail(error);
        }
        let request = self.request(question.space, question.address, question.width, direction);
        self.waiting = Some(Waiting {
            request,
            question: Some(question),
        });
        // The pass is over, and what it staged was for nothing: the next one stages it again.
        self.unstage();
        Stop::Await
    }

    /// Asks the platform (a port, an MSR, a hypercall), once; `None` if it refuses.
    pub(super) fn ask(
        &mut self,
        space: Space,
        address: u64,
        width: u8,
        direction: Direction,
    ) -> Result<Option<u64>, Stop> {
        let question = Question {
            kind: Kind::Device,
            space,
            address,
            width,
        };
        match self.recall(question)? {
            Some(entry) => Ok((!entry.refused).then_some(entry.value)),
            None => match self.take_obtained(question)? {
                Some(value) => Ok(Some(value)),
                None => Err(self.wait(question, direction)),
            },
        }
    }

    /// Reads one part of guest-physical memory, with the stores of this instruction on top.
    pub(super) fn read_part(&mut self, kind: Kind, gpa: u64, width: u8) -> Result<u64, Stop> {
        // Most instructions read before they store.
        let (staged, mask) = match self.stores.is_empty() {
            true => (0, 0),
            false => self.staged(gpa, width),
        };
        let all = ones(width);
        if mask == all {
            return Ok(staged);
        }
        let question = Question {
            kind,
            space: Space::Memory,
            address: gpa,
            width,
        };
        let value = match self.recall(question)? {
            Some(entry) => entry.value,
            None => match self.ram.read(gpa, width) {
                Some(value) => {
                    self.record_value(question, value)?;
                    value
                }
                // A bystander asks no device.
                None if self.cache.is_suspended() => all,
                None => match self.take_obtained(question)? {
                    Some(value) => value,
                    None => return Err(self.wait(question, Direction::Read)),
                },
            },
        };
        Ok(value & !mask | staged)
    }

    /// What this instruction has stored at `gpa`, and which bits of the part that covers.
    pub(super) fn staged(&self, gpa: u64, width: u8) -> (u64, u64) {
        let (mut value, mut mask) = (0, 0);
        for store in self.stores.iter().filter(|store| store.space == Space::Memory) {
            for i in 0..u64::from(width) {
                let offset = (gpa + i).wrapping_sub(store.address);
                if offset < u64::from(store.width) {
                    let byte = store.value >> (8 * offset) & 0xff;
                    value = value & !(0xff << (8 * i)) | byte << (8 * i);
                    mask |= 0xff << (8 * i);
                }
            }
        }
        (value, mask)
    }

    pub(super) fn stage(&mut self, space: Space, address: u64, width: u8, value: u64) -> Result<(), Stop> {
        if self.stores.len() == STORES {
            return Err(self.fail(ReplayError::Overflow { capacity: STORES }));
        }
        self.stores.push(Store {
            space,
            address,
            width,
            value,
        });
        Ok(())
    }

    /// Translates an address, once for each page and use of it.
    pub(super) fn translate(
        &mut self,
        cpu: &Cpu,
        linear: u64,
        intent: Intent,
        privilege: Privilege,
    ) -> Result<u64, Stop> {
        let (page, offset) = (linear & !(PAGE_SIZE - 1), linear % PAGE_SIZE);
        let wanted = Wanted {
            cr3: cpu.cr3,
            page,
            intent,
            privilege,
        };
        let (seen, earlier) = self.translated.split_at(self.seen);
        if let Some(known) = seen.iter().find(|known| known.wanted.covers(&wanted)) {
            return Ok(known.gpa | offset);
        }
        // An earlier pass came here too, and what its walk has read is what this one's would read.
        if let Some(known) = earlier.first()
            && known.wanted == wanted
            && known.position == self.cache.position()
            && self.cache.skip(known.entries)
        {
            self.seen += 1;
            return Ok(known.gpa | offset);
        }
        let position = self.cache.position();
        let gpa = paging::translate(cpu, self, linear, intent, privilege)?.gpa;
        if self.seen < PAGES && !self.cache.is_suspended() {
            self.translated.truncate(self.seen);
            self.translated.push(Translated {
                wanted,
                gpa: gpa & !(PAGE_SIZE - 1),
                position,
                entries: self.cache.position() - position,
            });
            self.seen += 1;
        }
        Ok(gpa)
    }

    /// Translates an operand, checking every page.
    pub(super) fn place(
        &mut self,
        cpu: &Cpu,
        at: Linear,
        length: u64,
        intent: Intent,
        privilege: Privilege,
    ) -> Result<Place, Stop> {
        check_canonical(cpu, at, length)?;
        let mask = if cpu.view.is_ia32e() { u64::MAX } else { 0xffff_ffff };
        let linear = at.address & mask;
        let last = at.address.wrapping_add(length - 1) & mask;
        let first_length = (PAGE_SIZE - linear % PAGE_SIZE).min(length);
        let first = self.translate(cpu, linear, intent, privilege)?;
        let second = if first_length < length {
            self.translate(cpu, last & !(PAGE_SIZE - 1), intent, privilege)?
        } else {
            0
        };
        Ok(Place {
            first,
            first_length,
            second,
            length,
        })
    }

    /// Translates a word, with the alignment check (SDM Vol. 3, Alignment Check Exception).
    pub(super) fn word<T: Word>(&mut self, cpu: &Cpu, at: Linear, intent: Intent) -> Result<Place, Stop> {
        self.operand(cpu, at, T::SIZE as u64, intent)
    }

    /// Translates an operand of any length, with the alignment check, which on the modelled processor comes first.
    pub(super) fn operand(&mut self, cpu: &Cpu, at: Linear, length: u64, intent: Intent) -> Result<Place, Stop> {
        if cpu.view.checks_alignment() {
            check_canonical(cpu, at, length)?;
            check_alignment(at, length)?;
        }
        self.place(cpu, at, length, intent, Privilege::of(cpu.cpl()))
    }

    pub(super) fn load_place(&mut self, place: Place) -> Result<u64, Stop> {
        let mut value = 0;
        for (gpa, width, offset) in place.parts() {
            value |= self.read_part(Kind::Data, gpa, width)? << (8 * offset);
        }
        Ok(value)
    }

    pub(super) fn stage_place(&mut self, place: Place, value: u64) -> Result<(), Stop> {
        for (gpa, width, offset) in place.parts() {
            self.stage(Space::Memory, gpa, width, value >> (8 * offset) & ones(width))?;
        }
        Ok(())
    }

    /// An atomic operation on one part of RAM, or one read and one write of whatever else it is.
    pub(super) fn atomic_place<T: Word, R>(
        &mut self,
        place: Place,
        mut f: impl FnMut(T) -> (Option<T>, R),
    ) -> Result<R, Stop> {
        let in_one_page = place.first_length == place.length;
        let question = Question {
            kind: Kind::Atomic,
            space: Space::Memory,
            address: place.first,
            width: T::SIZE as u8,
        };
        if in_one_page {
            if let Some(entry) = self.recall_kind(question)? {
                return Ok(f(T::truncate(entry.value)).1);
            }
            let ram = self.ram.clone();
            if let Some((page, slot)) = ram
                .page(place.first)
                .and_then(|page| Some((page, page.slot::<T>(place.first)?)))
            {
                self.reserve(1)?;
                let (old, result) = slot.atomic(|old| {
                    let (new, result) = f(old);
                    (new, (old, result))
                });
                ram.code.written(page.number, place.first % PAGE_SIZE, T::SIZE as u64);
                self.record_value(question, old.zero_extend())?;
                return Ok(result);
            }
        }
        let old = T::truncate(self.load_place(place)?);
        let (new, result) = f(old);
        self.stage_place(place, new.unwrap_or(old).zero_extend())?;
        Ok(result)
    }

    /// As [`Careful::recall`], but if the record holds a plain read here, the operation was no atomic one on RAM.
    pub(super) fn recall_kind(&mut self, question: Question) -> Result<Option<Entry>, Stop> {
        match self.cache.peek() {
            Some(entry) if entry.question.kind != question.kind => Ok(None),
            _ => self.recall(question),
        }
    }

    pub(super) fn read_bytes(&mut self, place: Place, bytes: &mut [u8]) -> Result<(), Stop> {
        for (gpa, width, offset) in place.parts() {
            let value = self.read_part(Kind::Data, gpa, width)?;
            bytes[offset..offset + usize::from(width)].copy_from_slice(&value.to_le_bytes()[..usize::from(width)]);
        }
        Ok(())
    }

    pub(super) fn write_bytes(&mut self, place: Place, bytes: &[u8]) -> Result<(), Stop> {
        for (gpa, width, offset) in place.parts() {
            let mut value = [0; 8];
            value[..usize::from(width)].copy_from_slice(&bytes[offset..offset + usize::from(width)]);
            self.stage(Space::Memory, gpa, width, u64::from_le_bytes(value))?;
        }
        Ok(())
    }
}
