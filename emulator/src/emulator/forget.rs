//! What the guest has the CPU forget: translations of addresses, and with them which code is where.

use super::Emulator;
use crate::careful::Flush;
use crate::cpu::Cr4;

impl Emulator {
    pub(super) fn forget(&mut self, flush: Flush) {
        let tlb = &mut self.fast.tlb;
        let cr4 = self.cpu.cr4;
        let pcid = if cr4.any(Cr4::PCIDE) {
            self.cpu.cr3 as u16 & 0xfff
        } else {
            0
        };
        let before = tlb.spaces().numbers();
        match flush {
            Flush::None => return,
            Flush::Page(linear) => {
                if !tlb.flush_page(linear) {
                    if !self.blocks.is_executed(linear) {
                        return;
                    }
                    tlb.renew_space(linear);
                }
            }
            Flush::Switch { keep } => tlb.switch(pcid, keep),
            Flush::Pcid(pcid) => tlb.flush_pcid(pcid),
            Flush::Local => tlb.flush_local(pcid),
            Flush::All => {
                tlb.flush();
                tlb.switch(pcid, false);
            }
        }
        self.follow_spaces(before);
    }

    /// Forgets which code is at which linear address.
    pub(super) fn forget_linear(&mut self) {
        let before = self.fast.tlb.spaces().numbers();
        self.fast.tlb.renew_spaces();
        self.follow_spaces(before);
    }

    /// Address spaces have changed, perhaps, since they were those `before`: code is no longer where it was.
    fn follow_spaces(&mut self, before: [u64; 2]) {
        let spaces = self.fast.tlb.spaces();
        let (now, is_alone) = (spaces.numbers(), spaces.is_alone());
        self.blocks.set_spaces(spaces);
        for half in 0..2 {
            if now[half] != before[half] {
                // What others have executed is found when they are back.
                if half == 1 || is_alone {
                    self.blocks.forget_executed(half);
                }
                self.fast.tlb.state.forget_jumps_of(half);
            }
        }
    }
}
