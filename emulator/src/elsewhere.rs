//! Instructions that somebody else executes.
//!
//! An emulator that finishes what a hypervisor cannot may run on for a while, but there are instructions whose effects are
//! the hypervisor's business (its own registers, its translations, its interrupts). Before those it comes out.

use iced_x86::Instruction;

/// Which instructions are left to somebody else; those that the emulator does not know are, always.
#[derive(Debug, Clone, Copy)]
pub struct Elsewhere {
    /// 1 to 3; decoded instructions are kept apart by it.
    number: u8,
    leaves: fn(&Instruction) -> bool,
}

impl Elsewhere {
    /// Those that `leaves` says, known as `number`, 1 to 3: two with the same number must say the same of every
    /// instruction.
    pub const fn new(number: u8, leaves: fn(&Instruction) -> bool) -> Elsewhere {
        assert!(matches!(number, 1..=3), "0 is for leaving nothing to anybody");
        Elsewhere { number, leaves }
    }

    /// Its number among decoded instructions; 0 for none.
    pub(crate) fn number(this: Option<Elsewhere>) -> u64 {
        this.map_or(0, |elsewhere| u64::from(elsewhere.number))
    }

    pub(crate) fn leaves(&self, instruction: &Instruction) -> bool {
        (self.leaves)(instruction)
    }
}
