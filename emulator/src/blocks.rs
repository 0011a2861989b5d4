//! Decoded blocks of one CPU, found by linear address.
//!
//! # Purpose
//! A block is a run of instructions in one page, decoded once and executed many times. It is kept by guest-physical
//! address and code size; a jump cache in front finds the block for a linear address with one comparison.
//!
//! # Invariants
//! * A block does not cross a page, and ends behind the first instruction that branches or may change the mode. But an instruction
//!   that runs on into the next page is a block of its own, which lies in two.
//! * A block is executed only while its pages' generations are those under which it was decoded.
//! * A hit in the jump cache holds for one address space: whatever forgets translations begins a new one.
//!
//! # Bounds
//! Storage is limited; when it is full, all blocks are dropped and decoding begins anew.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::attention::Attention;
use crate::code_pages::line_mask;
use crate::cpu::{CodeSize, View};
use crate::decode::decode;
use crate::elsewhere::Elsewhere;
use crate::fast::Fast;
use crate::op::Op;
use crate::ram::{PAGE_SIZE, Ram};
use crate::table::{Flow, Table};
use crate::tlb::{FetchPage, Spaces, half};

/// Most instructions in a block.
pub(crate) const BLOCK_OPS: usize = 32;
/// Most bytes in a block, so that an [`Op::off`] holds it.
const BLOCK_BYTES: usize = 224;
/// Most decoded instructions of one CPU, 16 MiB of them; a Debian boot decodes 0.4 million.
const OPS: usize = 1 << 19;
/// Entries of the jump cache.
const JUMPS: usize = 1 << 16;
/// Bits that remember, by page number, where the blocks of the jump cache may lie.
const EXECUTED: usize = 1 << 14;

/// In [`Block::page`]: the block lies in two pages, and the rest is its number in [`Blocks::across`].
const ACROSS: u32 = 1 << 31;
/// Most bytes of an instruction.
const LONGEST: usize = 15;

/// A decoded block.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Index of its first instruction.
    first: u32,
    /// Number of instructions; none if the first one must be executed carefully.
    pub count: u8,
    /// Bytes to the instruction after the block, or 0 if the last one sets RIP.
    pub advance: u8,
    /// Bytes.
    pub length: u8,
    /// How often it has been found, or what the second tier makes of it.
    pub heat: Heat,
    /// Number of its page, or [`ACROSS`].
    page: u32,
    generation: u32,
}

impl Block {
    /// It is one instruction that runs on into the next page.
    pub(crate) fn is_across(self) -> bool {
        self.page & ACROSS != 0
    }
}

/// The pages of a block that lies in two, and the second one's generation.
#[derive(Debug, Clone, Copy)]
struct Across {
    pages: [u32; 2],
    second_generation: u32,
}

/// How hot a block is: a count up to 200, or a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heat(pub u8);

impl Heat {
    /// The block is not translated: it is interpreted.
    pub const INTERPRETED: Heat = Heat(253);
    /// The first instruction is not translated: it is interpreted alone.
    pub const SINGLE: Heat = Heat(254);
    /// The block has been translated.
    pub const TRANSLATED: Heat = Heat(255);
    const COLD: Heat = Heat(0);
}

#[derive(Debug, Clone, Copy)]
struct Jump {
    linear: u64,
    /// Address space and code context.
    context: u64,
    block: Block,
}

impl Jump {
    const NONE: Jump = Jump {
        linear: 0,
        context: u64::MAX,
        block: Block {
            first: 0,
            count: 0,
            advance: 0,
            length: 0,
            heat: Heat::COLD,
            page: 0,
            generation: 0,
        },
    };
}

/// What decoding depends on besides the bytes.
pub(crate) struct Decoding<'a> {
    /// Those that are not executed here.
    pub(crate) elsewhere: Option<Elsewhere>,
    /// The instructions there are.
    pub(crate) table: &'a Table<Fast>,
    /// The CPU's mode.
    pub(crate) view: View,
    /// Translations for writing that go when a page becomes code.
    pub(crate) fast: &'a mut Fast,
    /// The CPU's own signals.
    pub(crate) attention: &'a Attention,
}

/// All decoded blocks of a CPU.
pub struct Blocks {
    ops: Vec<Op<Fast>>,
    by_place: HashMap<u64, Placed, BuildHasherDefault<PlaceHasher>>,
    /// Blocks that lie in two pages.
    across: Vec<Across>,
    /// The bytes of decoded blocks, if memory changes without anybody saying so.
    bytes: Option<Vec<u8>>,
    jumps: Box<[Jump]>,
    /// The present address spaces, for each half; see the module `tlb::spaces`.
    spaces: [u64; 2],
    /// Pages that the jump cache may have blocks of, for each half; others share their bits.
    executed: [Box<[u64; EXECUTED / 64]>; 2],
    /// Blocks decoded, ever.
    pub(crate) decoded: u64,
}

/// A block, and where its bytes are kept.
#[derive(Debug, Clone, Copy)]
struct Placed {
    block: Block,
    bytes: u32,
}

/// Spreads guest-physical addresses; they are not under an attacker's control in a way that could exhaust more than the
/// attacker's own CPU.
#[derive(Default)]
pub(crate) struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
    }
}

/// An instruction at `linear` may run on into the next page.
pub(crate) fn is_near_end(linear: u64) -> bool {
    linear % PAGE_SIZE + LONGEST as u64 > PAGE_SIZE
}

/// What a block is kept by.
fn place_of(gpa: u64, elsewhere: Option<Elsewhere>, code: CodeSize) -> u64 {
    gpa << 4 | Elsewhere::number(elsewhere) << 2 | code as u64
}

impl Blocks {
    pub(crate) fn new() -> Blocks {
        Blocks {
            ops: Vec::new(),
            by_place: HashMap::default(),
            across: Vec::new(),
            bytes: None,
            jumps: vec![Jump::NONE; JUMPS].into_boxed_slice(),
            spaces: [0; 2],
            executed: [(); 2].map(|()| Box::new([0; EXECUTED / 64])),
            decoded: 0,
        }
    }

    /// From now on, memory changes without anybody saying so: blocks are compared with it when they are found first after
    /// their address space is another.
    pub(crate) fn distrust_memory(&mut self) {
        self.clear();
        self.bytes = Some(Vec::new());
    }

    /// What is in memory at `gpa` is what the block was decoded from, as far as that must be asked.
    fn is_still_there(&self, placed: Placed, gpa: u64, ram: &Ram) -> bool {
        let Some(kept) = &self.bytes else { return true };
        let length = usize::from(placed.block.length);
        let mut live = [0; BLOCK_BYTES + LONGEST];
        if let Some(span) = ram.page(gpa).and_then(|page| page.span(gpa, length)) {
            span.load(&mut live[..length]);
        }
        kept[placed.bytes as usize..][..length] == live[..length]
    }

    /// The block's instructions.
    #[inline(always)]
    pub(crate) fn ops(&self, block: Block) -> &[Op<Fast>] {
        &self.ops[block.first as usize..][..usize::from(block.count)]
    }

    /// The block that consists of the first instruction of `block`.
    pub(crate) fn first_of(&self, block: Block) -> Block {
        match self.ops(block) {
            [first, _, ..] => Block {
                count: 1,
                advance: first.len,
                length: first.len,
                ..block
            },
            _ => block,
        }
    }

    /// Nobody has written over the block's page since it was decoded.
    #[inline(always)]
    pub(crate) fn is_valid(&self, block: Block, ram: &Ram) -> bool {
        if block.is_across() {
            return self.is_valid_across(block, ram);
        }
        ram.code.generation(block.page as usize) == block.generation
    }

    fn is_valid_across(&self, block: Block, ram: &Ram) -> bool {
        let across = self.across[(block.page & !ACROSS) as usize];
        let generations = across.pages.map(|page| ram.code.generation(page as usize));
        generations == [block.generation, across.second_generation]
    }

    #[inline(always)]
    fn slot(linear: u64) -> usize {
        (linear ^ linear >> 12) as usize % JUMPS
    }

    /// The block at a linear address, if it has been executed in this address space and is still valid.
    #[inline(always)]
    pub(crate) fn jump(&self, linear: u64, code_context: u8, ram: &Ram) -> Option<Block> {
        let jump = &self.jumps[Blocks::slot(linear)];
        let hit = jump.linear == linear
            && jump.context == self.spaces[half(linear)] | u64::from(code_context)
            && self.is_valid(jump.block, ram);
        hit.then_some(jump.block)
    }

    /// From now on, these are the address spaces of the halves.
    pub(crate) fn set_spaces(&mut self, spaces: &Spaces) {
        self.spaces = spaces.numbers();
    }

    /// Nothing is executed in this half of the address space that `set_spaces` has told of.
    pub(crate) fn forget_executed(&mut self, half: usize) {
        self.executed[half].fill(0);
    }

    /// The jump cache may have blocks in this linear page. Most pages whose translation is invalidated hold data.
    pub(crate) fn is_executed(&self, linear: u64) -> bool {
        let (word, bit) = Blocks::executed_bit(linear);
        self.executed[half(linear)][word] & bit != 0
    }

    /// Code at this linear address is executed.
    pub(crate) fn note_executed(&mut self, linear: u64) {
        let (word, bit) = Blocks::executed_bit(linear);
        self.executed[half(linear)][word] |= bit;
    }

    /// Counts that the block at `linear` was found, if the jump cache has it.
    pub(crate) fn warm(&mut self, linear: u64) {
        let jump = &mut self.jumps[Blocks::slot(linear)];
        if jump.linear == linear {
            let heat = &mut jump.block.heat;
            heat.0 = heat.0.saturating_add(1).min(200);
        }
    }

    /// Says what the second tier makes of the block at `linear`, and at this guest-physical address if that is known.
    pub(crate) fn set_heat(&mut self, linear: u64, place: Option<(u64, CodeSize)>, heat: Heat) {
        let jump = &mut self.jumps[Blocks::slot(linear)];
        if jump.linear == linear {
            jump.block.heat = heat;
        }
        if let Some((gpa, code)) = place
            && let Some(placed) = self.by_place.get_mut(&place_of(gpa, None, code))
        {
            placed.block.heat = heat;
        }
    }

    /// Memory changes without anybody saying so.
    pub(crate) fn distrusts(&self) -> bool {
        self.bytes.is_some()
    }

    fn executed_bit(linear: u64) -> (usize, u64) {
        let number = (linear / PAGE_SIZE) as usize % EXECUTED;
        (number / 64, 1 << (number % 64))
    }

    /// Finds or decodes the block at `linear`, in `page`.
    #[cold]
    #[inline(never)]
    pub(crate) fn find(&mut self, page: FetchPage, linear: u64, decoding: &mut Decoding<'_>) -> Block {
        let gpa = page.gpa | linear & (PAGE_SIZE - 1);
        let place = place_of(gpa, decoding.elsewhere, decoding.view.code);
        let ram = decoding.fast.tlb.ram().clone();
        let block = match self.by_place.get(&place).copied() {
            Some(placed) if self.is_valid(placed.block, &ram) && self.is_still_there(placed, gpa, &ram) => {
                if placed.block.is_across() {
                    // Whether it is the one that is here, `find_across` knows.
                    return Block {
                        count: 0,
                        ..placed.block
                    };
                }
                placed.block
            }
            _ => {
                let placed = self.decode(page.number, gpa, &ram, decoding);
                self.by_place.insert(place, placed);
                placed.block
            }
        };
        if block.count == 0 && is_near_end(linear) {
            // What the next page holds may be known next time.
            return block;
        }
        let context = self.spaces[half(linear)] | u64::from(decoding.view.code_context);
        self.note_executed(linear);
        self.jumps[Blocks::slot(linear)] = Jump { linear, context, block };
        block
    }

    /// Finds or decodes the instruction at `linear` that runs on from `pages[0]` into `pages[1]`, where that is one.
    #[cold]
    pub(crate) fn find_across(
        &mut self,
        pages: [FetchPage; 2],
        linear: u64,
        decoding: &mut Decoding<'_>,
    ) -> Option<Block> {
        if self.distrusts() || pages.iter().any(|page| page.number >= ACROSS as usize) {
            return None;
        }
        let gpa = pages[0].gpa | linear & (PAGE_SIZE - 1);
        let place = place_of(gpa, decoding.elsewhere, decoding.view.code);
        let ram = decoding.fast.tlb.ram().clone();
        let numbers = pages.map(|page| page.number as u32);
        let is_right = |placed: &Placed| {
            let page = placed.block.page;
            page & ACROSS != 0 && self.across[(page & !ACROSS) as usize].pages == numbers
        };
        let placed = self.by_place.get(&place).copied().filter(is_right);
        let block = match placed.filter(|placed| self.is_valid(placed.block, &ram)) {
            Some(placed) => placed.block,
            None => {
                let block = self.decode_across(pages, gpa, &ram, decoding)?;
                self.by_place.insert(place, Placed { block, bytes: 0 });
                block
            }
        };
        let context = self.spaces[half(linear)] | u64::from(decoding.view.code_context);
        self.note_executed(linear);
        self.note_executed(linear.wrapping_add(PAGE_SIZE));
        self.jumps[Blocks::slot(linear)] = Jump { linear, context, block };
        Some(block)
    }

    fn decode_across(
        &mut self,
        pages: [FetchPage; 2],
        gpa: u64,
        ram: &Ram,
        decoding: &mut Decoding<'_>,
    ) -> Option<Block> {
        self.make_room();
        let here = (PAGE_SIZE - gpa % PAGE_SIZE) as usize;
        if !is_near_end(gpa) {
            return None;
        }
        let lines = [
            line_mask(gpa % PAGE_SIZE, here as u64),
            line_mask(0, (LONGEST - here) as u64),
        ];
        let numbers = pages.map(|page| page.number);
        loop {
            // The order is that of the module `code_pages`.
            let fast = &mut *decoding.fast;
            for (page, lines) in numbers.into_iter().zip(lines) {
                ram.code
                    .publish(page, lines, decoding.attention, || fast.tlb.flush_writes());
            }
            let generations = numbers.map(|page| ram.code.generation(page));
            let mut bytes = [0; LONGEST];
            let (first, second) = bytes.split_at_mut(here);
            ram.page(gpa)?.span(gpa, here)?.load(first);
            ram.page(pages[1].gpa)?.span(0, second.len())?.load(second);
            let decoded = decode(decoding.elsewhere, decoding.table, decoding.view.code, &bytes, 0).ok();
            let is_stable = numbers
                .into_iter()
                .zip(lines)
                .all(|(page, lines)| ram.code.still_published(page, lines));
            if !is_stable {
                continue;
            }
            let decoded = decoded.filter(|decoded| usize::from(decoded.op.len) > here)?;
            let number = self.across.len() as u32;
            self.across.push(Across {
                pages: numbers.map(|page| page as u32),
                second_generation: generations[1],
            });
            self.ops.push(decoded.op);
            self.decoded += 1;
            let length = decoded.op.len;
            return Some(Block {
                first: self.ops.len() as u32 - 1,
                count: 1,
                advance: if decoded.flow == Flow::Branch { 0 } else { length },
                length,
                heat: Heat::COLD,
                page: number | ACROSS,
                generation: generations[0],
            });
        }
    }

    fn make_room(&mut self) {
        if self.ops.len() + BLOCK_OPS > OPS || self.by_place.len() >= OPS {
            self.clear();
        }
    }

    fn decode(&mut self, page: usize, gpa: u64, ram: &Ram, decoding: &mut Decoding<'_>) -> Placed {
        self.make_room();
        self.decoded += 1;
        let offset = gpa & (PAGE_SIZE - 1);
        let available = ((PAGE_SIZE - offset) as usize).min(BLOCK_BYTES + LONGEST);
        let lines = line_mask(offset, available as u64);
        let first = self.ops.len();
        loop {
            // The order is that of the module `code_pages`.
            let fast = &mut *decoding.fast;
            ram.code
                .publish(page, lines, decoding.attention, || fast.tlb.flush_writes());
            let generation = ram.code.generation(page);
            let mut bytes = [0; BLOCK_BYTES + LONGEST];
            let bytes = &mut bytes[..available];
            if let Some(span) = ram.page(gpa).and_then(|page| page.span(gpa, available)) {
                span.load(bytes);
            }
            let (advance, length) = self.decode_ops(decoding, bytes);
            if ram.code.still_published(page, lines) {
                let count = (self.ops.len() - first) as u8;
                let block = Block {
                    first: first as u32,
                    count,
                    advance,
                    length,
                    heat: Heat::COLD,
                    page: page as u32,
                    generation,
                };
                let kept = self.bytes.as_mut().map_or(0, |kept| {
                    kept.extend_from_slice(&bytes[..usize::from(length)]);
                    kept.len() - usize::from(length)
                });
                return Placed {
                    block,
                    bytes: kept as u32,
                };
            }
            self.ops.truncate(first);
        }
    }

    /// Decodes instructions until one branches or the bytes end; returns the block's advance and length.
    fn decode_ops(&mut self, decoding: &Decoding<'_>, bytes: &[u8]) -> (u8, u8) {
        let (table, code) = (decoding.table, decoding.view.code);
        let first = self.ops.len();
        let mut off = 0;
        while off < BLOCK_BYTES.min(bytes.len()) && self.ops.len() < first + BLOCK_OPS {
            let rest = &bytes[off..(off + LONGEST).min(bytes.len())];
            let Ok(decoded) = decode(decoding.elsewhere, table, code, rest, off as u8) else {
                break;
            };
            off += usize::from(decoded.op.len);
            if off > bytes.len() {
                // An undefined instruction whose length is not known; it runs carefully, in a block of its own.
                off -= usize::from(decoded.op.len);
                break;
            }
            self.ops.push(decoded.op);
            match decoded.flow {
                Flow::Next => {}
                Flow::Branch => return (0, off as u8),
                Flow::End => break,
            }
        }
        (off as u8, off as u8)
    }

    /// Drops all blocks.
    pub(crate) fn clear(&mut self) {
        self.ops.clear();
        self.by_place.clear();
        self.across.clear();
        if let Some(bytes) = &mut self.bytes {
            bytes.clear();
        }
        self.jumps.fill(Jump::NONE);
    }
}
