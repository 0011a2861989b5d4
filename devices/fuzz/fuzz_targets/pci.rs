//! PCI configuration space against what its registers say.
#![no_main]

#[path = "../../tests/pci/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model::operate(bytes);
});
