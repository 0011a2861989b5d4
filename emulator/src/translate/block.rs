//! One block: the host code of its instructions, and what is around them.
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

use iced_x86::{Encoder, Instruction, InstructionInfoFactory, Mnemonic};

use super::assembler::{Assembler, COUNTER, Memory, STATE};
use super::class::Class;
use super::listing::Listing;
use super::stack::run_of;
use super::state::at;
use super::thunks::Thunks;

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

/// What encodes instructions, kept from block to block.
pub(super) struct Tools {
    pub(super) encoder: Encoder,
    pub(super) factory: InstructionInfoFactory,
}

/// A jump whose target gets its own way on behind the block.
pub(super) struct Taken {
    pub(super) place: usize,
    pub(super) target: u64,
    pub(super) undone: u8,
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
    pub(super) start: u64,
    pub(super) own: Entry,
    pub(super) taken: Vec<Taken>,
    apart: Vec<Apart>,
    /// The instruction that is being translated,
    pub(super) rip: u64,
    /// where it begins,
    pub(super) resume: usize,
    /// how many have not been executed where it begins,
    pub(super) undone: u8,
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
}
