//! The translated blocks of one CPU: made, found, linked, dropped.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use iced_x86::{Encoder, InstructionInfoFactory};

use super::assembler::{Assembler, distance};
use super::block::{Emitter, Entry, Site, Sort, Tools};
use super::buffer::Buffer;
use super::listing::Listing;
use super::state::State;
use super::thunks::Thunks;
use super::{Stress, Translation, TranslationError};
use crate::attention::Attention;
use crate::blocks::PlaceHasher;
use crate::code_pages::line_mask;
use crate::fast::Fast;
use crate::op::Op;
use crate::ram::{PAGE_SIZE, Ram};
use crate::table::Table;
use crate::tlb::FetchPage;

/// More bytes than one block takes.
const ROOM: usize = 32 << 10;
const PAGE: usize = PAGE_SIZE as usize;
/// Most bytes of an instruction.
const LONGEST: usize = 15;
/// How often a block is read whose page is being written.
const TRIES: u32 = 4;

/// Where a block is in guest memory, both ways, and for which code and data accesses it was translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    linear: u64,
    /// Number of the page; then whether it is 64-bit code, and the context in the low bits.
    place: u64,
}

impl Key {
    fn new(linear: u64, page: usize, sort: Sort) -> Key {
        Key {
            linear,
            place: (page as u64) << 3 | u64::from(sort.is_64) << 2 | u64::from(sort.context),
        }
    }
}

/// A translated block; it is right as long as its page has this generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// Where it begins.
    pub(crate) entry: Entry,
    /// Where jumps within the page lead: there, or, for a block in two pages, to a way through the jump cache, which is always right.
    pub(crate) near: Entry,
    generation: u32,
    /// Number and generation of the page that it runs on into.
    pub(crate) second: Option<(usize, u32)>,
}

/// What became of an attempt to translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// A block.
    Block(Entry),
    /// Nothing: the first instruction is the interpreter's.
    Nothing,
    /// Nothing: the whole block is better interpreted.
    Interpreted,
}

/// Translated code of one CPU.
pub(crate) struct Translator {
    buffer: Buffer,
    thunks: Thunks,
    /// Where the blocks begin in the buffer.
    first: usize,
    assembler: Assembler,
    tools: Tools,
    listing: Listing,
    /// The page that is being translated, and the next one.
    bytes: Box<[u8; 2 * PAGE]>,
    /// Where code leaves, by the number behind the call.
    sites: Vec<Site>,
    /// What the interpreter executes in the middle of blocks.
    steps: Vec<Op<Fast>>,
    blocks: HashMap<Key, Known, BuildHasherDefault<PlaceHasher>>,
    /// How often a block is interpreted before it is translated.
    pub(crate) threshold: u8,
    /// What makes it harder.
    pub(crate) stress: Stress,
    /// Blocks translated, ever.
    pub(crate) made: u64,
    /// How often the buffer was full.
    pub(crate) evictions: u64,
}

impl Translator {
    pub(crate) fn new(translation: Translation) -> Result<Translator, TranslationError> {
        if !std::arch::is_x86_feature_detected!("bmi2") {
            return Err(TranslationError::Processor);
        }
        let mut buffer = Buffer::new(translation.buffer.clamp(4 * ROOM, 1 << 30))?;
        let mut assembler = Assembler::default();
        let thunks = Thunks::write(&mut buffer, &mut assembler);
        Ok(Translator {
            first: buffer.used(),
            buffer,
            thunks,
            assembler,
            tools: Tools {
                encoder: Encoder::new(64),
                factory: InstructionInfoFactory::new(),
            },
            listing: Listing::default(),
            bytes: Box::new([0; 2 * PAGE]),
            sites: Vec::new(),
            steps: Vec::new(),
            blocks: HashMap::default(),
            threshold: translation.threshold,
            stress: translation.stress,
            made: 0,
            evictions: 0,
        })
    }

    /// Drops all blocks.
    pub(crate) fn clear(&mut self, state: &mut State) {
        state.forget_jumps();
        self.blocks.clear();
        self.sites.clear();
        self.steps.clear();
        self.buffer.truncate(self.first);
    }

    /// The block at `linear`, in `page`, if there is a valid one; whether the second page of one that lies in two is valid, the
    /// caller must look.
    pub(crate) fn find(&self, page: FetchPage, linear: u64, sort: Sort, ram: &Ram) -> Option<Known> {
        find(
            &self.blocks,
            ram.code.generation(page.number),
            page.number,
            linear,
            sort,
        )
    }

    /// Translates the block at `linear`, in the first page; with a second one, what runs on into that.
    pub(crate) fn translate(
        &mut self,
        (page, second): (FetchPage, Option<FetchPage>),
        linear: u64,
        sort: Sort,
        table: &Table<Fast>,
        fast: &mut Fast,
        attention: &Attention,
    ) -> Made {
        if self.buffer.free() < ROOM {
            self.evictions += 1;
            self.clear(&mut fast.tlb.state);
        }
        let read = match second {
            None => self
                .read(page, linear, sort, table, fast, attention)
                .map(|first| (first, None)),
            Some(next) => self.read_across([page, next], linear, sort, table, fast, attention),
        };
        let Some((generation, second)) = read else {
            return Made::Nothing;
        };
        if self.listing.is_better_interpreted() {
            return Made::Interpreted;
        }
        let known = |target: u64| find(&self.blocks, generation, page.number, target, sort).map(|known| known.near);
        let (base, first_site) = (self.buffer.used(), self.sites.len());
        while self.listing.len() > 0 {
            self.assembler.begin(base);
            self.sites.truncate(first_site);
            let mut emitter = Emitter::new(
                &mut self.assembler,
                &mut self.tools,
                &mut self.sites,
                self.thunks,
                sort,
                &known,
                self.steps.len() as u32,
            );
            let way = second.map(|_| emitter.way_to(linear));
            match emitter.block(&self.listing) {
                Ok(entry) => {
                    self.buffer.append(self.assembler.bytes());
                    self.steps.extend_from_slice(&self.listing.steps);
                    let known = Known {
                        entry,
                        near: way.unwrap_or(entry),
                        generation,
                        second,
                    };
                    self.blocks.insert(Key::new(linear, page.number, sort), known);
                    self.made += 1;
                    return Made::Block(entry);
                }
                Err(number) => self.listing.truncate(number),
            }
        }
        self.sites.truncate(first_site);
        Made::Nothing
    }

    /// Lists the instructions of a block, and makes them code; the generation that they are from. `None` if there are none, or
    /// somebody keeps writing there.
    fn read(
        &mut self,
        page: FetchPage,
        linear: u64,
        sort: Sort,
        table: &Table<Fast>,
        fast: &mut Fast,
        attention: &Attention,
    ) -> Option<u32> {
        let ram = fast.tlb.ram().clone();
        let live = ram.page(page.gpa)?.span(0, PAGE_SIZE as usize)?;
        for _ in 0..TRIES {
            live.load(&mut self.bytes[..PAGE]);
            self.listing.read(table, sort.is_64, &self.bytes[..PAGE], linear);
            if self.listing.len() == 0 {
                return None;
            }
            // The order is that of the module `code_pages`.
            let lines = self.listing.places().fold(0, |lines, place| {
                lines | line_mask(place.start as u64, place.len() as u64)
            });
            ram.code
                .publish(page.number, lines, attention, || fast.tlb.flush_writes());
            let generation = ram.code.generation(page.number);
            let is_same = self.listing.places().all(|place| {
                let mut now = [0; LONGEST];
                let now = &mut now[..place.len()];
                if let Some(span) = ram
                    .page(page.gpa)
                    .and_then(|page| page.span(place.start as u64, place.len()))
                {
                    span.load(now);
                }
                *now == self.bytes[place]
            });
            if is_same && ram.code.still_published(page.number, lines) {
                return Some(generation);
            }
        }
        None
    }

    /// As `read`, for one instruction that runs on into the second of `pages`; with that one's number and generation.
    fn read_across(
        &mut self,
        pages: [FetchPage; 2],
        linear: u64,
        sort: Sort,
        table: &Table<Fast>,
        fast: &mut Fast,
        attention: &Attention,
    ) -> Option<(u32, Option<(usize, u32)>)> {
        let ram = fast.tlb.ram().clone();
        let at = (linear % PAGE_SIZE) as usize;
        let here = PAGE - at;
        if here >= LONGEST {
            return None;
        }
        let lines = [line_mask(at as u64, here as u64), line_mask(0, (LONGEST - here) as u64)];
        for _ in 0..TRIES {
            // The order is that of the module `code_pages`.
            for (page, lines) in pages.iter().zip(lines) {
                ram.code
                    .publish(page.number, lines, attention, || fast.tlb.flush_writes());
            }
            let [first, second] = pages.map(|page| ram.code.generation(page.number));
            let (head, tail) = (pages[0].gpa + at as u64, pages[1].gpa);
            ram.page(head)?.span(head, here)?.load(&mut self.bytes[at..PAGE]);
            ram.page(tail)?
                .span(tail, LONGEST)?
                .load(&mut self.bytes[PAGE..PAGE + LONGEST]);
            self.listing
                .read(table, sort.is_64, &self.bytes[..PAGE + LONGEST], linear);
            let mut both = pages.iter().zip(lines);
            if both.all(|(page, lines)| ram.code.still_published(page.number, lines)) {
                let is_across = self.listing.first_end() > PAGE;
                return is_across.then_some((first, Some((pages[1].number, second))));
            }
        }
        None
    }

    /// Where a block is entered.
    pub(crate) fn address(&self, entry: Entry) -> u64 {
        self.buffer.address(entry.0 as usize)
    }

    /// Where the host's code at `at` of the buffer is.
    pub(crate) fn resume(&self, at: u32) -> u64 {
        self.buffer.address(at as usize)
    }

    /// Bytes of code that there are now.
    pub(crate) fn code_bytes(&self) -> u64 {
        self.buffer.used() as u64
    }

    /// What a site has the interpreter execute.
    pub(crate) fn step(&self, number: u32) -> Op<Fast> {
        self.steps[number as usize]
    }

    /// Makes the jump at `patch` lead to a block in the same page; where that goes.
    pub(crate) fn link(&mut self, patch: u32, entry: Entry) -> u64 {
        let to = entry.0 as usize;
        if self.stress.starved {
            return self.buffer.address(to);
        }
        self.buffer.patch(patch as usize, distance(patch as usize, to));
        self.buffer.address(to)
    }

    /// Executes translated code until it leaves.
    pub(crate) fn enter(&self, state: &mut State, host: u64) -> Site {
        let number = self.thunks.enter(&self.buffer, state, host);
        self.sites[number as usize]
    }
}

fn find(
    blocks: &HashMap<Key, Known, BuildHasherDefault<PlaceHasher>>,
    generation: u32,
    page: usize,
    linear: u64,
    sort: Sort,
) -> Option<Known> {
    let known = blocks.get(&Key::new(linear, page, sort))?;
    (known.generation == generation).then_some(*known)
}
