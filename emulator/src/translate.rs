//! The second tier: hot code of the guest, of 64 bits or of 32 with flat segments, as code of the host.
//!
//! # Purpose
//! Guest and host speak the same instruction set, so most instructions are copied: with the registers that their operands live
//! in, and with a memory operand behind an inline check of the software TLB that the interpreter uses too. The interpreter stays
//! the owner of the semantics: whatever is not plain (a fault, a device, an operand across two pages, an instruction that is not
//! translated) leaves translated code before the instruction has changed anything, and is interpreted, carefully if need be.
//!
//! # Registers
//! Host RSP leads to the [`Frame`](state::Frame). Twelve guest registers live in host registers, R8 to R11 in the frame; RCX, R10
//! and R11 are temporaries. The guest's status flags are the host's: nothing that is emitted beside the copies changes a flag, so
//! they are exact at every exit. Flags that the architecture leaves undefined are those of the host; the interpreter has those of
//! the modelled processor. The others are in the frame. Vector registers and MXCSR are the host's from the first block on that
//! uses them (see `thunks`), until translated code is left.
//!
//! # 32-bit code
//! It is translated while the segments that it uses without saying so are flat: base 0, limit 4 GiB. Addresses are computed in
//! 32 bits, which is where they wrap; an operand that reaches beyond the last page is the interpreter's, like any that crosses
//! one. Instructions that 64-bit code does not have are interpreted, in the middle of a block where that can be. Blocks and jump
//! caches of both sizes are apart.
//!
//! # Invariants
//! * When translated code leaves, the registers are those before the instruction that the [`Site`](block::Site) names, and the
//!   count of instructions is exact.
//! * A block is entered only while the linear address leads to the page that it was read from, and that page's generation is the
//!   one it was read under: jumps within a page are direct, since the block that jumps was entered in this way itself; all others
//!   go through the jump cache, which forgets everything when translations change or code is overwritten.
//! * Whoever overwrites code signals every CPU; each looks at its signals at the start of every block.
//!
//! # Life of a block
//! interpreted [`Translation::threshold`] times -> translated -> linked to others as they are reached -> dropped with all the
//! others when the buffer is full, or never found again once its page has another generation.
//!
//! # Parts
//! `state`: what translated code reaches. `buffer`, `assembler`: where and how code is written. `class`: what is translated.
//! `listing`: which instructions a block has. `block`: their host code, and its exits; `copied`, `memory`, `stack`, `branch`, `vector`,
//! `control`, `divide`: instructions by kind; `ways`: where it goes on. `thunks`: the way in and out. `cache`: all blocks of a CPU. The
//! driver is `emulator::tier`.

mod assembler;
mod block;
mod branch;
mod buffer;
mod cache;
mod class;
mod control;
mod copied;
mod divide;
mod listing;
mod memory;
mod stack;
pub(crate) mod state;
mod thunks;
mod vector;
mod ways;

pub(crate) use block::{Exit, NO_FUEL, Sort};
pub(crate) use cache::{Known, Made, Translator};

/// How hot code is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// How often a block is interpreted before it is translated, at most 200.
    pub threshold: u8,
    /// Bytes of host code that a CPU keeps; the host's memory is taken as they are used.
    pub buffer: usize,
    /// What makes it harder, for tests.
    pub stress: Stress,
}

/// What makes life hard for translated code, and changes nothing of what it does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stress {
    /// Half of the blocks, chosen by this number and their addresses, are interpreted for ever.
    pub spared: Option<u64>,
    /// Nothing is found: the TLB forgets all pages but one, the jump cache all targets, and blocks are not linked.
    pub starved: bool,
}

impl Stress {
    /// The block at `linear` is interpreted.
    pub(crate) fn spares(self, linear: u64) -> bool {
        self.spared.is_some_and(|seed| {
            let mixed = (linear ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed >> 63 != 0
        })
    }
}

impl Default for Translation {
    fn default() -> Translation {
        Translation {
            threshold: 24,
            buffer: 64 << 20,
            stress: Stress::default(),
        }
    }
}

/// Code cannot be translated; it is interpreted.
#[derive(Debug, thiserror::Error)]
pub enum TranslationError {
    /// An instruction that translated code consists of.
    #[error("the processor lacks BMI2")]
    Processor,
    /// The host does not let memory be executed that was written.
    #[error("no memory for executable code")]
    Memory {
        /// The cause.
        source: std::io::Error,
    },
}
