//! How far software runs on behind an instruction that KVM could not emulate.
//!
//! Where such instructions follow one another, moving the processor's state back and forth costs more than executing what
//! lies between them. So the bound doubles as long as KVM comes out with the next failure and nothing else, and halves when it
//! comes out for something else although software had not met an instruction that is KVM's yet. Where software does not get far, because an instruction that is KVM's comes soon, it is
//! left alone for a while.

/// The largest bound: some ten microseconds.
const MOST: u32 = 4096;
/// A bound from which on it can be told whether it pays.
const TELLING: u32 = 32;
/// Instructions that pay for the state that running on needs.
const WORTH: u64 = 16;
/// So many failures it is left alone.
const PATIENCE: u32 = 64;

/// The bound, and what it depends on.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    bound: u32,
    hold: u32,
    /// Software was stopped by the bound, and not by an instruction that is KVM's.
    ran_out: bool,
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            bound: 1,
            hold: 0,
            ran_out: true,
        }
    }
}

impl Ahead {
    /// The bound for the failure at hand, in instructions; `directly` if KVM came out for nothing else since the last.
    pub fn bound(&mut self, directly: bool) -> u32 {
        if !directly {
            if self.ran_out {
                self.bound = (self.bound / 2).max(1);
            }
        } else if self.hold > 0 {
            self.hold -= 1;
        } else {
            self.bound = (self.bound * 2).min(MOST);
        }
        self.bound
    }

    /// Software has executed `instructions`; `ran_out` if it could have gone on.
    pub fn ended(&mut self, instructions: u64, ran_out: bool) {
        self.ran_out = ran_out;
        if self.bound >= TELLING && instructions < WORTH {
            self.bound = 1;
            self.hold = PATIENCE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_grows_while_failures_follow_one_another_and_has_an_end() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.bound(false), 1);
        let bounds: Vec<_> = (0..14)
            .map(|_| {
                let bound = ahead.bound(true);
                ahead.ended(bound.into(), true);
                bound
            })
            .collect();
        assert_eq!(bounds[..5], [2, 4, 8, 16, 32]);
        assert_eq!(bounds[11..], [MOST; 3]);
        assert_eq!(ahead.bound(false), MOST / 2);
        ahead.ended(1000, false);
        assert_eq!(ahead.bound(false), MOST / 2, "that is as far as it goes");
    }

    #[test]
    fn what_does_not_pay_is_left_alone_for_a_while() {
        let mut ahead = Ahead::default();
        while ahead.bound(true) < TELLING {}
        ahead.ended(WORTH - 1, false);
        assert!((0..PATIENCE).all(|_| ahead.bound(true) == 1));
        assert_eq!(ahead.bound(true), 2);
    }
}
