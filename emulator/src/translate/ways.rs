//! Ways on from a block: to others of its page directly, to other pages through the jump cache.

use super::assembler::{ADDEND, ADDRESS, COUNTER, Memory};
use super::block::{Emitter, Exit, Taken};
use super::state::{at, jump_cache};
use crate::ram::PAGE_SIZE;

impl Emitter<'_> {
    /// The jump cache for targets of such code.
    pub(super) fn jumps(&self) -> i32 {
        at::jumps(jump_cache(self.sort.context, self.sort.is_64))
    }

    pub(super) fn is_near(&self, target: u64) -> bool {
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
    pub(super) fn link(&mut self, target: u64, place: usize) {
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
    pub(super) fn go_far(&mut self, target: u64) {
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
