//! Which translations hold: numbers that stand for address spaces as they are at the moment.
//!
//! What is kept by linear address is kept with the [`Spaces::number`] of its half of the address space, and holds while that number is
//! the current one. A load of CR3 changes the lower half's number, back to an old one if the PCID's translations are kept (SDM Vol. 3,
//! Process-Context Identifiers). The upper half, where kernels are, has one number for all PCIDs, since its pages are global; as soon
//! as one is found that is not, a load of CR3 forgets everything.

/// The least difference of two numbers; what is below it belongs to the user.
const STEP: u64 = 0x100;
/// PCIDs have 12 bits.
const PCIDS: usize = 1 << 12;

/// The half of the address space that a linear address is in: 1 for the upper one.
#[inline(always)]
pub(crate) fn half(linear: u64) -> usize {
    (linear >> 63) as usize
}

/// Numbers of address spaces.
#[derive(Debug)]
pub(crate) struct Spaces {
    /// Of each half.
    current: [u64; 2],
    pcid: u16,
    /// Of the lower half, by PCID, if not below `oldest`.
    kept: Box<[u64; PCIDS]>,
    oldest: u64,
    last: u64,
    /// Other PCIDs may have numbers that hold.
    has_others: bool,
    /// The upper half has had a translation that is not global.
    is_upper_local: bool,
}

impl Spaces {
    pub(super) fn new() -> Spaces {
        let mut spaces = Spaces {
            current: [0; 2],
            pcid: 0,
            kept: Box::new([0; PCIDS]),
            oldest: 0,
            last: 0,
            has_others: false,
            is_upper_local: false,
        };
        spaces.forget_all();
        spaces
    }

    /// The current number of the half that `linear` is in.
    #[inline(always)]
    pub(crate) fn number(&self, linear: u64) -> u64 {
        self.current[half(linear)]
    }

    /// The current numbers of both halves.
    pub(crate) fn numbers(&self) -> [u64; 2] {
        self.current
    }

    /// No PCID but the current one has translations of the lower half.
    pub(crate) fn is_alone(&self) -> bool {
        !self.has_others
    }

    /// Notes that there is a translation of `linear`.
    #[inline]
    pub(super) fn note(&mut self, linear: u64, global: bool) {
        self.is_upper_local |= half(linear) == 1 && !global;
    }

    fn fresh(&mut self) -> u64 {
        self.last += STEP;
        self.last
    }

    /// No number of the lower half holds any more, whatever its PCID.
    pub(super) fn forget_local(&mut self) {
        self.oldest = self.last + STEP;
        self.has_others = false;
        self.renew(0);
    }

    /// No number holds any more.
    pub(super) fn renew_all(&mut self) {
        self.forget_local();
        self.renew(1);
    }

    /// No number holds any more, and there are no translations.
    pub(super) fn forget_all(&mut self) {
        self.renew_all();
        self.is_upper_local = false;
    }

    /// The current number of this half holds no longer.
    pub(super) fn renew(&mut self, half: usize) {
        self.current[half] = self.fresh();
        if half == 0 {
            self.kept[usize::from(self.pcid)] = self.current[0];
        }
    }

    /// CR3 was loaded: `keep` says that the PCID's translations still hold. False, and nothing happens, if the upper half's may not.
    pub(super) fn switch(&mut self, pcid: u16, keep: bool) -> bool {
        if self.is_upper_local {
            return false;
        }
        self.has_others |= pcid != self.pcid;
        self.pcid = pcid % PCIDS as u16;
        let kept = self.kept[usize::from(self.pcid)];
        if keep && kept >= self.oldest {
            self.current[0] = kept;
        } else {
            self.renew(0);
        }
        true
    }

    /// Translations of the lower half under another PCID are forgotten; false if it is the current one.
    pub(super) fn forget_other(&mut self, pcid: u16) -> bool {
        let is_other = pcid != self.pcid;
        if is_other {
            self.kept[usize::from(pcid) % PCIDS] = 0;
        }
        is_other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPPER: u64 = 1 << 63;

    #[test]
    fn a_pcid_that_is_kept_gets_its_number_back_and_others_never_do() {
        let mut spaces = Spaces::new();
        let [first, upper] = spaces.numbers();
        assert!(spaces.switch(1, true));
        let second = spaces.number(0);
        assert_ne!(second, first);
        assert!(spaces.switch(0, true) && spaces.number(0) == first);
        assert!(spaces.switch(1, false));
        let third = spaces.number(0);
        assert!(third != first && third != second);
        assert!(spaces.switch(0, true) && spaces.switch(1, true));
        assert_eq!(spaces.numbers(), [third, upper]);
    }

    #[test]
    fn what_is_forgotten_is_not_kept() {
        type Forget = fn(&mut Spaces);
        let ways: [Forget; 4] = [
            |spaces| assert!(spaces.forget_other(0)),
            Spaces::forget_local,
            Spaces::forget_all,
            |spaces| {
                assert!(spaces.switch(0, true) && !spaces.forget_other(0));
                spaces.renew(0);
                assert!(spaces.switch(1, true));
            },
        ];
        for forget in ways {
            let mut spaces = Spaces::new();
            let first = spaces.number(0);
            assert!(spaces.is_alone() && spaces.switch(1, true) && !spaces.is_alone());
            forget(&mut spaces);
            assert!(spaces.switch(0, true));
            assert_ne!(spaces.number(0), first);
        }
    }

    #[test]
    fn the_upper_half_is_kept_unless_a_page_there_is_not_global() {
        let mut spaces = Spaces::new();
        let upper = spaces.number(UPPER);
        spaces.note(UPPER, true);
        spaces.note(0, false);
        assert!(spaces.switch(0, false) && spaces.number(UPPER) == upper);
        spaces.note(UPPER, false);
        assert!(!spaces.switch(0, true));
        spaces.forget_all();
        assert!(spaces.switch(0, true) && spaces.number(UPPER) != upper);
    }
}
