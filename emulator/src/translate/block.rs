//! One block: which instructions it has, and the host code around them.
//!
//! ```text
//! stop:         leave
//! entry:        fuel -= instructions, back to "stop" if there is too little
//!               back to "stop" if somebody signals
//!               leave if it uses vector registers and may not
//!               instructions, each behind checks that leave with everything as it was before it
//!               the way on
//! taken branches, each with its own way on
//! ```
//! Every block looks at the signals: code that another CPU has overwritten before something that this one has seen is not
//! executed any more.

use iced_x86::{Decoder, DecoderError, Encoder, Instruction, InstructionInfoFactory, Mnemonic};

use super::assembler::{ADDEND, ADDRESS, Assembler, COUNTER, Memory, STATE};
use super::class::{Class, can_be_stepped, class, is_flat, is_wide};
use super::stack::run_of;
use super::state::{at, jump_cache};
use super::thunks::Thunks;
use crate::blocks::{BLOCK_OPS, is_near_end};
use crate::cpu::CodeSize;
use crate::decode::{decode, form};
use crate::fast::Fast;
use crate::op::Op;
use crate::ram::PAGE_SIZE;
use crate::table::{Flow, Table};

/// Most bytes from the first instruction of a group to its last, so that an [`Op::off`] holds them.
const GROUP_BYTES: u64 = 200;
/// What is left of the fuel when no more instructions may be executed.
pub(crate) const NO_FUEL: u64 = 4096;

/// Why translated code leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A data access is not in the TLB; the instruction begins at `resume` of the buffer.
    Miss { resume: u32, size: u8, writes: bool },
    /// The instruction is the interpreter's.
    Interpret,
    /// So are some, after which translated code goes on at `resume` of the buffer: operations from number `first` on.
    Step { first: u32, count: u8, resume: u32 },
    /// The time-stamp counter is read, with TSC_AUX or without; it goes on at `resume` of the buffer.
    Clock { resume: u32, aux: bool },
    /// Somebody signals, or the fuel is used up.
    LookAround,
    /// To code that was not known. The distance at `patch`, if it is in the same page, is to lead there.
    Jump { patch: Option<u32> },
    /// To the address in the frame, after `release` has been added to RSP.
    Indirect { release: u32 },
}

/// A place where translated code leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site {
    /// RIP there.
    pub(crate) rip: u64,
    /// Instructions that are paid for and not executed.
    pub(crate) undone: u8,
    pub(crate) exit: Exit,
    /// STI comes before the instruction that is to be executed, which has not been.
    pub(crate) follows_sti: bool,
}

/// Where a translated block is in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry(pub(super) u32);

/// An instruction that is not translated after all.
pub(super) struct Unencodable;

/// A block's instructions: they may lead on through jumps, calls and returns within the page.
#[derive(Default)]
pub(super) struct Listing {
    instructions: Vec<(Instruction, Class)>,
    /// What is executed after the last of them, if that does not say otherwise.
    end: u64,
    /// RIP's valid bits.
    mask: u64,
    /// Where calls return to that the block has gone on at the target of.
    returns: Vec<u64>,
    /// What follows is the interpreter's.
    interpret: bool,
    /// What follows runs on into the next page.
    runs_over: bool,
    /// Where the last turn of a loop that is written several times over begins.
    turn: usize,
    /// Those that are stepped, by group; each is relative to where its group begins.
    pub(super) steps: Vec<Op<Fast>>,
}

impl Listing {
    /// Reads instructions from the page with these bytes, beginning at `linear`; from two pages, one that lies in both.
    pub(super) fn read(&mut self, table: &Table<Fast>, is_64: bool, bytes: &[u8], linear: u64) {
        let code = if is_64 { CodeSize::Bits64 } else { CodeSize::Bits32 };
        self.mask = if is_64 { u64::MAX } else { 0xffff_ffff };
        let most = if bytes.len() > PAGE_SIZE as usize { 1 } else { BLOCK_OPS };
        self.turn = 0;
        self.instructions.clear();
        self.steps.clear();
        self.returns.clear();
        // Where the present group begins.
        let mut group = None;
        self.interpret = false;
        self.runs_over = false;
        self.end = linear;
        let mut decoder = Decoder::with_ip(code.bits(), bytes, linear, table.options);
        seek(&mut decoder, linear);
        let mut instruction = Instruction::default();
        while self.instructions.len() < most && decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if most > 1 && decoder.last_error() == DecoderError::NoMoreBytes && is_near_end(instruction.ip()) {
                self.runs_over = true;
                return;
            }
            let at = (instruction.ip() % PAGE_SIZE) as usize;
            let form = form(table, &instruction, code, &bytes[at..at + instruction.len()]);
            let class = form.and_then(
                |form| match class(&instruction).filter(|_| is_64 || is_flat(&instruction)) {
                    // STI ends a block of the interpreter's only where it lets interrupts in.
                    Some(class) if form.flow == Flow::End && class != Class::Flag => None,
                    Some(class) if leads_somewhere(&instruction, class) => Some(class),
                    Some(_) => None,
                    None if can_be_stepped(&instruction, form.flow) => {
                        let from = group.filter(|from| instruction.ip() - from < GROUP_BYTES);
                        let off = from.map_or(0, |from| instruction.ip() - from);
                        let decoded = decode(None, table, code, &bytes[at..], off as u8).ok()?;
                        group = Some(instruction.ip() - off);
                        self.steps.push(decoded.op);
                        let first = off == 0;
                        Some(Class::Stepped { first })
                    }
                    None => None,
                },
            );
            let Some(class) = class else {
                self.interpret = true;
                return;
            };
            if !matches!(class, Class::Stepped { .. }) {
                group = None;
            }
            let (class, next) = self.goes_on(&instruction, class, linear);
            self.instructions.push((instruction, class));
            if class == Class::LoopOn {
                self.turn = self.instructions.len();
            }
            self.end = next;
            if next != self.follower(&instruction) {
                seek(&mut decoder, next);
            }
            let is_loop = matches!(class, Class::JumpIf) && instruction.near_branch_target() <= instruction.ip();
            if class.ends_block() || is_loop {
                return;
            }
        }
    }

    /// Whether the block goes on through a transfer, and where.
    fn goes_on(&mut self, instruction: &Instruction, class: Class, start: u64) -> (Class, u64) {
        let next = self.follower(instruction);
        let is_new = |listing: &Listing, target: u64| {
            let is_near = target / PAGE_SIZE == instruction.ip() / PAGE_SIZE;
            let mut turn = listing.instructions[listing.turn..].iter();
            is_near && turn.all(|(other, _)| other.ip() != target)
        };
        // A short loop is written several times over, as long as a whole turn fits.
        let is_loop = |listing: &Listing, target: u64| {
            let length = listing.instructions.len() + 1;
            target == start && length - listing.turn <= BLOCK_OPS - length
        };
        match class {
            Class::JumpIf if is_loop(self, instruction.near_branch_target()) => (Class::LoopOn, start),
            Class::Jump if is_new(self, instruction.near_branch_target()) => {
                (Class::JumpOn, instruction.near_branch_target())
            }
            Class::Call if is_new(self, instruction.near_branch_target()) => {
                self.returns.push(next);
                (Class::CallOn, instruction.near_branch_target())
            }
            Class::Return => match self.returns.pop() {
                Some(to) if is_new(self, to) => (Class::ReturnOn { to }, to),
                _ => (class, next),
            },
            _ => (class, next),
        }
    }

    /// The address behind the instruction.
    fn follower(&self, instruction: &Instruction) -> u64 {
        instruction.next_ip() & self.mask
    }

    /// Where the first instruction ends, from the start of its page.
    pub(super) fn first_end(&self) -> usize {
        self.places().next().map_or(0, |place| place.end)
    }

    /// Where the instructions' bytes are in the page.
    pub(super) fn places(&self) -> impl Iterator<Item = core::ops::Range<usize>> + use<'_> {
        self.instructions.iter().map(|(instruction, _)| {
            let at = (instruction.ip() % PAGE_SIZE) as usize;
            at..at + instruction.len()
        })
    }

    pub(super) fn len(&self) -> usize {
        self.instructions.len()
    }

    /// So much of it is stepped that it is better interpreted.
    pub(super) fn is_better_interpreted(&self) -> bool {
        let is_wide = |(instruction, class): &&(Instruction, Class)| {
            matches!(class, Class::Stepped { .. }) && is_wide(instruction)
        };
        3 * self.instructions.iter().filter(is_wide).count() > self.len()
    }

    /// Leaves the instructions from number `length` on to the interpreter.
    pub(super) fn truncate(&mut self, length: usize) {
        if let Some((first, _)) = self.instructions.get(length) {
            self.end = first.ip();
            self.interpret = true;
            self.runs_over = false;
            self.instructions.truncate(length);
        }
    }
}

/// Has the decoder of a page go on at this address in it.
fn seek(decoder: &mut Decoder<'_>, address: u64) {
    // The page's bytes are all there, so every place in it is.
    let _ = decoder.set_position((address % PAGE_SIZE) as usize);
    decoder.set_ip(address);
}

/// A direct transfer has a target that no mode faults on.
fn leads_somewhere(instruction: &Instruction, class: Class) -> bool {
    match class {
        Class::Jump | Class::JumpIf | Class::JumpIfZero | Class::Loop | Class::Call => {
            is_canonical(instruction.near_branch_target())
        }
        _ => true,
    }
}

/// Canonical with four levels of paging, and so with five.
pub(super) fn is_canonical(address: u64) -> bool {
    address.wrapping_add(1 << 47) >> 48 == 0
}

/// What encodes instructions, kept from block to block.
pub(super) struct Tools {
    pub(super) encoder: Encoder,
    pub(super) factory: InstructionInfoFactory,
}

/// A jump whose target gets its own way on behind the block.
struct Taken {
    place: usize,
    target: u64,
    undone: u8,
}

/// Pushes or pops that are checked at once, for the case that they cannot be.
struct Apart {
    /// Of the jump that is taken then.
    place: usize,
    /// Where the block goes on.
    back: usize,
    instructions: Vec<(Instruction, Class)>,
    undone: u8,
    follows_sti: bool,
}

/// What a block is translated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sort {
    /// Of the data accesses.
    pub(crate) context: u8,
    /// 64-bit code; or 32-bit code in flat segments.
    pub(crate) is_64: bool,
}

/// Translated code of one block, as it comes into being.
pub(super) struct Emitter<'a> {
    pub(super) assembler: &'a mut Assembler,
    pub(super) tools: &'a mut Tools,
    pub(super) sites: &'a mut Vec<Site>,
    pub(super) thunks: Thunks,
    pub(super) sort: Sort,
    /// Blocks of the same page.
    pub(super) known: &'a dyn Fn(u64) -> Option<Entry>,
    /// Number of the next operation that is stepped.
    step: u32,
    start: u64,
    own: Entry,
    taken: Vec<Taken>,
    apart: Vec<Apart>,
    /// The instruction that is being translated,
    rip: u64,
    /// where it begins,
    resume: usize,
    /// how many have not been executed where it begins,
    undone: u8,
    /// and whether it comes after an STI that is not left to the interpreter.
    follows_sti: bool,
    /// The top of the stack has been checked, and the addend is its.
    pub(super) is_top_checked: bool,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(
        assembler: &'a mut Assembler,
        tools: &'a mut Tools,
        sites: &'a mut Vec<Site>,
        thunks: Thunks,
        sort: Sort,
        known: &'a dyn Fn(u64) -> Option<Entry>,
        step: u32,
    ) -> Emitter<'a> {
        Emitter {
            assembler,
            tools,
            sites,
            thunks,
            sort,
            known,
            step,
            start: 0,
            own: Entry(0),
            taken: Vec::new(),
            apart: Vec::new(),
            rip: 0,
            resume: 0,
            undone: 0,
            follows_sti: false,
            is_top_checked: false,
        }
    }

    /// Writes what goes to `target` through the jump cache; where that is.
    pub(super) fn way_to(&mut self, target: u64) -> Entry {
        let entry = Entry(self.assembler.here() as u32);
        self.go_far(target);
        entry
    }

    /// Writes the block; or the number of an instruction that is not translated after all.
    pub(super) fn block(mut self, listing: &Listing) -> Result<Entry, usize> {
        let count = listing.len() as u8;
        self.start = listing.instructions.first().map_or(0, |(first, _)| first.ip());
        self.rip = self.start;
        self.undone = count;
        self.prologue(count);
        let has = |avx| {
            let mut classes = listing.instructions.iter().map(|(_, class)| *class);
            classes.any(|class| class == Class::Vector { avx })
        };
        if has(true) || has(false) {
            self.check_vectors(has(true));
        }
        let mut enables = false;
        // Instructions that have been translated with the one before.
        let mut joined = 0;
        for (number, (instruction, class)) in listing.instructions.iter().enumerate() {
            if joined > 0 {
                joined -= 1;
                continue;
            }
            self.rip = instruction.ip();
            self.resume = self.assembler.here();
            self.undone = count - number as u8;
            let next = listing.instructions.get(number + 1);
            let may_enable = next.is_some_and(|(_, class)| class.may_follow_sti());
            self.follows_sti = core::mem::take(&mut enables);
            match class {
                Class::Flag if may_enable => {
                    enables = instruction.mnemonic() == Mnemonic::Sti;
                    self.change_flag(instruction, enables);
                }
                Class::Push | Class::Pop if self.joins(&listing.instructions[number..], *class, &mut joined) => {}
                Class::Stepped { first: false } => {}
                Class::Stepped { first: true } => {
                    let group = listing.instructions[number + 1..].iter();
                    let others = group.take_while(|(_, class)| *class == Class::Stepped { first: false });
                    self.step(1 + others.count() as u8);
                }
                class => self.instruction(instruction, *class).map_err(|_| number)?,
            }
        }
        let ended = listing.instructions.last().is_some_and(|(_, class)| class.ends_block());
        self.undone = 0;
        self.follows_sti = false;
        self.rip = listing.end;
        if listing.interpret {
            self.exit(Exit::Interpret);
        } else if listing.runs_over {
            self.go_far(listing.end);
        } else if !ended {
            self.go(listing.end);
        }
        for apart in core::mem::take(&mut self.apart) {
            self.take_apart(&apart).map_err(|_| 0_usize)?;
        }
        (self.undone, self.follows_sti) = (0, false);
        for taken in core::mem::take(&mut self.taken) {
            let here = self.assembler.here();
            self.assembler.bind_far(taken.place, here);
            if taken.undone == 0 && self.is_near(taken.target) {
                self.link(taken.target, taken.place);
                continue;
            }
            if taken.undone > 0 {
                self.pay(-i32::from(taken.undone));
                self.assembler.store(Memory::frame(at::FUEL), COUNTER);
            }
            self.go(taken.target);
        }
        Ok(self.own)
    }

    /// Translates pushes or pops that are checked at once, if the first of these instructions begins such; how many are `joined`
    /// to that one.
    fn joins(&mut self, instructions: &[(Instruction, Class)], class: Class, joined: &mut usize) -> bool {
        let run = run_of(class, instructions);
        let next = instructions.get(run).filter(|_| class == Class::Pop);
        let returns = next.is_some_and(|(_, class)| matches!(class, Class::Return | Class::ReturnOn { .. }));
        if run == 0 || run + usize::from(returns) < 2 {
            return false;
        }
        let place = match class {
            Class::Push => self.push_all(&instructions[..run]),
            _ => self.pop_all(&instructions[..run], returns),
        };
        self.apart.push(Apart {
            place,
            back: self.assembler.here(),
            instructions: instructions[..run + usize::from(returns)].to_vec(),
            undone: self.undone,
            follows_sti: self.follows_sti,
        });
        *joined = run - 1;
        true
    }

    /// Does one by one what could not be done at once.
    fn take_apart(&mut self, apart: &Apart) -> Result<(), Unencodable> {
        let here = self.assembler.here();
        self.assembler.bind_far(apart.place, here);
        self.follows_sti = apart.follows_sti;
        for (undone, (instruction, class)) in (0..=apart.undone).rev().zip(&apart.instructions) {
            self.rip = instruction.ip();
            self.resume = self.assembler.here();
            self.undone = undone;
            match class {
                Class::Push => self.push(instruction)?,
                Class::Pop => self.pop(instruction)?,
                // The return itself is where it was.
                _ => {
                    self.top();
                }
            }
            self.follows_sti = false;
        }
        self.assembler.jump(apart.back);
        Ok(())
    }

    fn prologue(&mut self, count: u8) {
        let stop = self.assembler.here();
        self.exit(Exit::LookAround);
        self.own = Entry(self.assembler.here() as u32);
        self.pay(i32::from(count));
        self.assembler.store(Memory::frame(at::FUEL), COUNTER);
        self.assembler.shift_right(COUNTER, COUNTER, STATE);
        self.assembler.if_zero_back(stop);
        self.assembler.load(COUNTER, Memory::frame(at::QUIET));
        // MOV ECX, [RCX]
        self.assembler
            .with_memory(false, 0x8b, COUNTER, Memory::based(COUNTER, 0));
        self.assembler.if_zero_back(stop);
    }

    /// The fuel less `count`, in the counter.
    fn pay(&mut self, count: i32) {
        self.assembler.load(COUNTER, Memory::frame(at::FUEL));
        self.assembler.lea(true, COUNTER, Memory::based(COUNTER, -count));
    }

    /// Gives back what is paid for and not executed after the present instruction.
    pub(super) fn refund(&mut self) {
        if self.undone > 1 {
            self.pay(1 - i32::from(self.undone));
            self.assembler.store(Memory::frame(at::FUEL), COUNTER);
        }
    }

    fn instruction(&mut self, instruction: &Instruction, class: Class) -> Result<(), Unencodable> {
        match class {
            Class::Nothing => Ok(()),
            Class::Copied => self.copied(instruction),
            Class::Address => self.address_of(instruction),
            Class::Push => self.push(instruction),
            Class::Pop => self.pop(instruction),
            Class::Leave => self.leave_frame(),
            Class::Vector { .. } => self.vector(instruction),
            Class::Divide => self.divide(instruction),
            Class::Flag => {
                self.change_flag(instruction, false);
                Ok(())
            }
            Class::PushFlags => {
                self.push_flags();
                Ok(())
            }
            Class::Clock => {
                self.read_clock(instruction);
                Ok(())
            }
            _ => self.transfer(instruction, class),
        }
    }

    /// Leaves here.
    pub(super) fn exit(&mut self, exit: Exit) {
        self.assembler.call(self.thunks.leave);
        self.assembler.word(self.sites.len() as i32);
        self.sites.push(Site {
            rip: self.rip,
            undone: self.undone,
            follows_sti: self.follows_sti && self.undone > 0,
            exit,
        });
    }

    /// Has the interpreter execute the next `count` operations.
    fn step(&mut self, count: u8) {
        let (first, resume) = (self.step, self.behind_exit());
        self.step += u32::from(count);
        self.exit(Exit::Step { first, count, resume });
        debug_assert_eq!(self.assembler.here(), resume as usize);
    }

    /// The place behind an exit that begins here.
    pub(super) fn behind_exit(&self) -> u32 {
        const EXIT: usize = 9;
        (self.assembler.here() + EXIT) as u32
    }

    /// Leaves for a check that failed, before the instruction has changed anything.
    pub(super) fn miss(&mut self, size: u8, writes: bool) {
        let resume = self.resume as u32;
        self.exit(Exit::Miss { resume, size, writes });
    }

    /// The jump cache for targets of such code.
    pub(super) fn jumps(&self) -> i32 {
        at::jumps(jump_cache(self.sort.context, self.sort.is_64))
    }

    fn is_near(&self, target: u64) -> bool {
        self.start / PAGE_SIZE == target / PAGE_SIZE
    }

    /// Goes to `target` when nothing is left to be executed here.
    pub(super) fn go(&mut self, target: u64) {
        if self.is_near(target) {
            let next = self.assembler.here() + 5;
            let place = self.assembler.jump(next);
            self.link(target, place);
        } else {
            self.go_far(target);
        }
    }

    /// Makes the jump at `place` lead to `target` in the same page: at once, or when it is taken and the target is known. It
    /// leads here now.
    fn link(&mut self, target: u64, place: usize) {
        if !self.link_known(target, place) {
            let patch = Some(place as u32);
            self.undone = 0;
            self.rip = target;
            self.exit(Exit::Jump { patch });
        }
    }

    /// Makes the jump at `place` lead to `target` in the same page, if that is known.
    fn link_known(&mut self, target: u64, place: usize) -> bool {
        let known = if target == self.start {
            Some(self.own)
        } else {
            (self.known)(target)
        };
        if let Some(known) = known {
            self.assembler.bind_far(place, known.0 as usize);
        }
        known.is_some()
    }

    /// Goes to `target` in another page through the jump cache.
    fn go_far(&mut self, target: u64) {
        let slot = self.jumps() + 16 * (target & 0xffff) as i32;
        self.assembler.load(COUNTER, Memory::frame(slot));
        self.assembler.constant(ADDRESS, target);
        self.assembler.lea(true, COUNTER, Memory::sum(COUNTER, ADDRESS, 0));
        let hit = self.assembler.if_zero();
        self.undone = 0;
        self.rip = target;
        self.exit(Exit::Jump { patch: None });
        self.assembler.bind(hit);
        self.assembler.jump_through(Memory::frame(slot + at::JUMP_HOST));
    }

    /// Looks the address up in the jump cache; leaves if it is not there. The entry is in the addend, × 8.
    pub(super) fn look_up(&mut self, exit: Exit) {
        self.assembler.low_word(ADDEND, ADDRESS);
        self.assembler.lea(true, ADDEND, Memory::sum(ADDEND, ADDEND, 0));
        let jumps = self.jumps();
        self.assembler.load(COUNTER, Memory::table(ADDEND, jumps));
        self.assembler.lea(true, COUNTER, Memory::sum(COUNTER, ADDRESS, 0));
        let hit = self.assembler.if_zero();
        self.exit(exit);
        self.assembler.bind(hit);
    }

    /// A jump if `condition` holds, to `target`.
    pub(super) fn branch(&mut self, condition: u8, target: u64) {
        let place = self.assembler.jump_if(condition, 0);
        self.take(place, target);
    }

    /// A jump to `target`, in the middle of the block.
    pub(super) fn jump_away(&mut self, target: u64) {
        let place = self.assembler.jump(0);
        self.take(place, target);
    }

    fn take(&mut self, place: usize, target: u64) {
        let undone = self.undone - 1;
        if undone > 0 || !self.is_near(target) || !self.link_known(target, place) {
            self.taken.push(Taken { place, target, undone });
        }
    }
}
