//! Makes a case that differs as small as it goes.

use crate::case::Case;
use crate::emulated::TF;

/// Replaces parts of `case` by simpler ones as long as it `differs`.
pub fn shrink(case: &Case, mut differs: impl FnMut(&Case) -> bool) -> Case {
    let mut best = *case;
    // Anything else would be seen if that went elsewhere.
    if case.mask.mxcsr_mask.is_some() {
        return best;
    }
    let mut attempt = |best: &mut Case, change: &dyn Fn(&mut Case)| {
        let mut next = *best;
        change(&mut next);
        if differs(&next) {
            *best = next;
        }
    };
    // One simplification may enable another.
    for _ in 0..2 {
        for i in 0..best.input.patches.len() {
            attempt(&mut best, &|case| case.input.patches[i].length = 0);
            for word in 0..9 {
                attempt(&mut best, &|case| case.input.patches[i].bytes[8 * word..][..8].fill(0));
            }
        }
        for i in 0..16 {
            attempt(&mut best, &|case| case.input.state.gpr[i] = 0);
            attempt(&mut best, &|case| case.input.state.gpr[i] &= 0xffff);
            attempt(&mut best, &|case| case.input.state.gpr[i] &= 0xff);
        }
        for bit in [0, 2, 4, 6, 7, 10, 11, 14, 18, 21] {
            attempt(&mut best, &|case| case.input.state.flags &= !(1 << bit));
        }
        attempt(&mut best, &|case| case.input.state.fs_base = 0);
        attempt(&mut best, &|case| case.input.state.gs_base = 0);
        for i in 0..16 {
            attempt(&mut best, &|case| case.input.state.xsave.set_vector(i, [0; 32]));
            for word in 0..4 {
                attempt(&mut best, &|case| {
                    let mut vector = case.input.state.xsave.vector(i);
                    vector[8 * word..][..8].fill(0);
                    case.input.state.xsave.set_vector(i, vector);
                });
            }
        }
        for i in 0..8 {
            attempt(&mut best, &|case| case.input.state.xsave.set(32 + 16 * i, &[0; 10]));
        }
        attempt(&mut best, &|case| {
            case.input.state.xsave.set(24, &0x1f80u32.to_le_bytes());
        });
        for (at, length) in [(6, 2), (8, 8), (16, 8)] {
            attempt(&mut best, &|case| case.input.state.xsave.set(at, &[0; 8][..length]));
        }
        attempt(&mut best, &|case| {
            case.input.state.xsave.set(0, &0x37fu16.to_le_bytes());
            case.input.state.xsave.set(2, &[0; 2]);
        });
        attempt(&mut best, &|case| case.input.state.xsave.set(4, &[0xff]));
        attempt(&mut best, &|case| case.input.state.xsave.set(4, &[0]));
    }
    debug_assert_eq!(best.input.state.flags & TF, case.input.state.flags & TF);
    best
}
