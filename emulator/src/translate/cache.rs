//! The translated blocks of one CPU: made, found, linked, dropped.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use iced_x86::{Encoder, InstructionInfoFactory};

use super::assembler::{Assembler, distance};
use super::block::{Emitter, Entry, Listing, Site, Sort, Tools};
use super::buffer::Buffer;
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
const ROOM: usize = 16 << 10;
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
struct Known {
    entry: Entry,
    generation: u32,
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
    /// The page that is being translated.
    bytes: Box<[u8; PAGE_SIZE as usize]>,
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
            bytes: Box::new([0; PAGE_SIZE as usize]),
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

    /// The block at `linear`, in `page`, if there is a valid one.
    pub(crate) fn find(&self, page: FetchPage, linear: u64, sort: Sort, ram: &Ram) -> Option<Entry> {
        find(
            &self.blocks,
            ram.code.generation(page.number),
            page.number,
            linear,
            sort,
        )
    }

    /// Translates the block at `linear`, in `page`.
    pub(crate) fn translate(
        &mut self,
        page: FetchPage,
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
        let Some(generation) = self.read(page, linear, sort, table, fast, attention) else {
            return Made::Nothing;
        };
        if self.listing.is_better_interpreted() {
            return Made::Interpreted;
        }
        let known = |target: u64| find(&self.blocks, generation, page.number, target, sort);
        let (base, first_site) = (self.buffer.used(), self.sites.len());
        while self.listing.len() > 0 {
            self.assembler.begin(base);
            self.sites.truncate(first_site);
            let emitter = Emitter::new(
                &mut self.assembler,
                &mut self.tools,
                &mut self.sites,
                self.thunks,
                sort,
                &known,
                self.steps.len() as u32,
            );
            match emitter.block(&self.listing) {
                Ok(entry) => {
                    self.buffer.append(self.assembler.bytes());
                    self.steps.extend_from_slice(&self.listing.steps);
                    let known = Known { entry, generation };
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
            live.load(&mut self.bytes[..]);
            self.listing.read(table, sort.is_64, &self.bytes[..], linear);
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
) -> Option<Entry> {
    let known = blocks.get(&Key::new(linear, page, sort))?;
    (known.generation == generation).then_some(known.entry)
}
