use super::super::testing::{Inbox, Scratch};
use super::super::{ConfigSpace, Function, Identity};
use super::*;

/// A function with 4 vectors, that is a bus master.
fn function() -> (Function, Arc<Msi>, Arc<Inbox>) {
    let inbox = Arc::new(Inbox::default());
    let msi = Arc::new(Msi::new(2, Arc::clone(&inbox) as Arc<dyn Messages>));
    let config = ConfigSpace::new(Identity::default());
    let function = Function::new("f", config, Arc::new(Scratch::default()))
        .with_msi(Arc::clone(&msi))
        .unwrap();
    function.write_config(0x04, 2, 4);
    function.write_config(0x44, 8, 0xfee0_1000);
    function.write_config(0x4c, 2, 0x4140);
    (function, msi, inbox)
}

#[test]
fn the_capability_offers_four_vectors_with_64_bit_addresses_and_masks() {
    let (function, ..) = function();
    assert_eq!(function.read_config(0x40, 4), 0x0184_0005);
    function.write_config(0x42, 2, 0xffff);
    assert_eq!(function.read_config(0x42, 2), 0x01f5, "enable and multiple enable");
    function.write_config(0x50, 4, u64::MAX);
    assert_eq!(
        function.read_config(0x50, 8),
        0xf,
        "a mask for each vector, none pending"
    );
}

#[test]
fn enabled_vectors_differ_in_the_low_bits_of_the_data() {
    let (function, msi, inbox) = function();
    msi.signal(0);
    assert_eq!(inbox.take(), [], "disabled");
    for (enabled, expected) in [(0, 0x4140), (1, 0x4141), (2, 0x4143), (7, 0x4143)] {
        function.write_config(0x42, 2, enabled << 4 | 1);
        msi.signal(3);
        let address = 0xfee0_1000;
        assert_eq!(
            inbox.take(),
            [Message {
                address,
                data: expected
            }],
            "{enabled}"
        );
    }
    msi.signal(4);
    assert_eq!(inbox.take(), [], "there are four");
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let (function, msi, inbox) = function();
    function.write_config(0x42, 2, 0x21);
    function.write_config(0x50, 4, 0b0010);
    msi.signal(1);
    assert_eq!((inbox.take(), function.read_config(0x54, 4)), (vec![], 0b0010));
    function.write_config(0x54, 4, 0);
    assert_eq!(function.read_config(0x54, 4), 0b0010, "pending bits cannot be written");
    let state = function.state();
    function.write_config(0x50, 1, 0);
    assert_eq!(inbox.take().len(), 1);
    assert_eq!(function.read_config(0x54, 4), 0);

    let (other, _, inbox) = self::function();
    other.restore(&state).unwrap();
    assert_eq!((inbox.take(), other.read_config(0x54, 4)), (vec![], 0b0010));
    other.write_config(0x50, 1, 0);
    assert_eq!(inbox.take().len(), 1, "pending across a snapshot");
}

#[test]
fn disabled_or_no_bus_master_nothing_is_sent() {
    let (function, msi, inbox) = function();
    function.write_config(0x42, 2, 1);
    function.write_config(0x04, 2, 0);
    msi.signal(0);
    assert_eq!(inbox.take(), []);
    function.write_config(0x04, 2, 4);
    assert_eq!(inbox.take().len(), 1);
    function.write_config(0x50, 4, 1);
    msi.signal(0);
    function.write_config(0x42, 2, 0);
    function.write_config(0x50, 4, 0);
    function.write_config(0x42, 2, 1);
    assert_eq!(inbox.take(), [], "disabling forgets");
}
