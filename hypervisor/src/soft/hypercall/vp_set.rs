//! Sets of virtual processors.

use super::super::vm::MAX_VCPUS;

/// Virtual processors in a bank.
const BANK: usize = 64;

/// A set of vCPUs, by index. Those that no machine can have are not kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VpSet([u64; (MAX_VCPUS as usize).div_ceil(BANK)]);

impl VpSet {
    /// Every vCPU.
    pub const ALL: Self = Self([u64::MAX; (MAX_VCPUS as usize).div_ceil(BANK)]);

    /// The first 64 vCPUs that `mask` names.
    pub fn of(mask: u64) -> Self {
        let mut set = Self::default();
        set.add_bank(0, mask);
        set
    }

    /// Adds the vCPUs of bank `bank` that `mask` names.
    pub fn add_bank(&mut self, bank: u32, mask: u64) {
        if let Some(own) = self.0.get_mut(bank as usize) {
            *own |= mask;
        }
    }

    /// Whether vCPU `index` is one of them.
    pub fn contains(&self, index: usize) -> bool {
        self.0
            .get(index / BANK)
            .is_some_and(|bank| bank >> (index % BANK) & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bank_holds_64_and_banks_that_no_machine_needs_are_forgotten() {
        let mut set = VpSet::of(1 << 63 | 1);
        set.add_bank(3, 1 << 62);
        set.add_bank(4, u64::MAX);
        set.add_bank(u32::MAX, u64::MAX);
        let members: Vec<usize> = (0..1000).filter(|index| set.contains(*index)).collect();
        assert_eq!(members, [0, 63, 254]);
        assert!((0..255).all(|index| VpSet::ALL.contains(index)));
    }
}
