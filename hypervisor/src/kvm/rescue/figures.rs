//! What rescues have done, for `vm.counters`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, OnceLock, PoisonError};

use iced_x86::Mnemonic;

/// Figures of one vCPU.
#[derive(Debug, Default)]
pub struct Figures {
    /// Instructions that KVM could not emulate, and that were finished here.
    by_mnemonic: BTreeMap<Mnemonic, u64>,
    /// The same, altogether.
    pub rescued: u64,
    /// Times that state went from KVM to the emulator, or back.
    pub transfers: u64,
    /// Instructions executed behind rescued ones.
    pub ahead: u64,
    /// The most of them behind one.
    pub longest: u64,
}

impl Figures {
    /// An instruction was rescued.
    pub fn count(&mut self, mnemonic: Mnemonic) {
        self.rescued += 1;
        *self.by_mnemonic.entry(mnemonic).or_default() += 1;
    }

    /// `instructions` were executed behind it.
    pub fn count_ahead(&mut self, instructions: u64) {
        self.ahead += instructions;
        self.longest = self.longest.max(instructions);
    }

    /// Name and value: first the sums, then each instruction that there was.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        let mut list = vec![
            ("rescues", self.rescued),
            ("rescue_state_transfers", self.transfers),
            ("rescue_run_ahead", self.ahead),
            ("rescue_run_ahead_longest", self.longest),
        ];
        list.extend(
            self.by_mnemonic
                .iter()
                .map(|(mnemonic, count)| (name(*mnemonic), *count)),
        );
        list
    }
}

/// `rescued_` and the mnemonic. Names live as long as the program; there are no more of them than mnemonics.
fn name(mnemonic: Mnemonic) -> &'static str {
    static NAMES: OnceLock<Mutex<HashMap<Mnemonic, &'static str>>> = OnceLock::new();
    let names = NAMES.get_or_init(Mutex::default);
    let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
    names.entry(mnemonic).or_insert_with(|| {
        let name = format!("rescued_{mnemonic:?}").to_lowercase();
        Box::leak(name.into_boxed_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_told_by_mnemonic_behind_the_sums() {
        let mut figures = Figures::default();
        for mnemonic in [Mnemonic::Xrstor, Mnemonic::Cmpxchg16b, Mnemonic::Xrstor] {
            figures.count(mnemonic);
        }
        figures.count_ahead(7);
        figures.count_ahead(3);
        let list = figures.list();
        assert_eq!(list[0], ("rescues", 3));
        assert_eq!(list[2..4], [("rescue_run_ahead", 10), ("rescue_run_ahead_longest", 7)]);
        assert_eq!(list[4..], [("rescued_cmpxchg16b", 1), ("rescued_xrstor", 2)]);
    }
}
