use proptest::prelude::*;

use super::super::testing::{Inbox, Scratch};
use super::super::{Messages, Msix, MsixPlace};
use super::*;

const ECAM: u64 = 0xe000_0000;
const LOW: u64 = 0xc000_0000;

fn layout() -> Layout {
    Layout {
        ecam: ECAM,
        low: LOW..ECAM,
        high: 0x10_0000_0000..0x20_0000_0000,
    }
}

fn root() -> (Arc<Bus>, Arc<PciRoot>) {
    let bus = Arc::new(Bus::new());
    let root = PciRoot::attach(&bus, &layout()).unwrap();
    (bus, root)
}

/// A function with a 64-bit BAR of `size` bytes, and MSI-X in it: the table at 0x800, the pending bits at 0xc00.
fn function(name: &str, size: u64) -> (Arc<Function>, Arc<Scratch>, Arc<Inbox>) {
    let (scratch, inbox) = (Arc::new(Scratch::default()), Arc::new(Inbox::default()));
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1042,
        ..Identity::default()
    });
    config
        .add_bar(Bar {
            index: 0,
            size,
            wide: true,
            prefetchable: false,
        })
        .unwrap();
    let msix = Arc::new(Msix::new(2, Arc::clone(&inbox) as Arc<dyn Messages>));
    let place = MsixPlace {
        bar: 0,
        table: 0x800,
        pending: 0xc00,
        pending_bar: 0,
    };
    let function = Function::new(name, config, Arc::clone(&scratch) as Arc<dyn Registers>)
        .with_msix(msix, place)
        .unwrap();
    (Arc::new(function), scratch, inbox)
}

fn ecam(device: u64, register: u64) -> u64 {
    ECAM + (device << 15) + register
}

fn read(bus: &Bus, address: u64, size: u8) -> u64 {
    bus.read(Space::Memory, address, size).wait()
}

fn write(bus: &Bus, address: u64, size: u8, value: u64) {
    let _ = bus.write(Space::Memory, address, size, value).wait();
}

/// Where the device's BAR is on the bus.
fn places(bus: &Bus, name: &str) -> Vec<u64> {
    let claims = bus.claims().into_iter();
    claims
        .filter(|claim| claim.name == name)
        .map(|claim| claim.start)
        .collect()
}

#[test]
fn ports_and_ecam_lead_to_the_same_registers() {
    let (bus, root) = root();
    root.add(function("disk", 0x1000).0).unwrap();
    let port = |port, size, value: Option<u64>| match value {
        None => bus.read(Space::Port, port, size).wait(),
        Some(value) => bus.write(Space::Port, port, size, value).wait(),
    };
    port(0xcf8, 4, Some(0x8000_0800));
    assert_eq!(port(0xcf8, 4, None), 0x8000_0800);
    assert_eq!(port(0xcfc, 4, None), 0x1042_1af4);
    assert_eq!(port(0xcfe, 2, None), 0x1042);
    assert_eq!(port(0xcff, 1, None), 0x10);
    assert_eq!(read(&bus, ecam(1, 0), 8), 0x0010_0000_1042_1af4);
    port(0xcf8, 4, Some(0x8000_083c));
    port(0xcfc, 1, Some(0x2a));
    assert_eq!(read(&bus, ecam(1, 0x3c), 1), 0x2a);
}

#[test]
fn only_accesses_of_four_bytes_reach_config_address() {
    let (bus, _root) = root();
    let _ = bus.write(Space::Port, 0xcf8, 4, 0xffff_ffff).wait();
    assert_eq!(bus.read(Space::Port, 0xcf8, 4).wait(), 0x80ff_fffc);
    for (port, size) in [(0xcf8, 1), (0xcf9, 1), (0xcfa, 2), (0xcfb, 4)] {
        let _ = bus.write(Space::Port, port, size, 0x06).wait();
        let ones = (1_u64 << (8 * u32::from(size))) - 1;
        assert_eq!(bus.read(Space::Port, port, size).wait(), ones);
    }
    assert_eq!(bus.read(Space::Port, 0xcf8, 4).wait(), 0x80ff_fffc);
}

#[test]
fn where_nobody_is_reads_are_ones_and_writes_are_dropped() {
    let (bus, _root) = root();
    for (device, function) in [(1, 0), (31, 0), (0, 1), (0, 7)] {
        let address = ecam(device, 0) + (function << 12);
        write(&bus, address, 4, 0);
        assert_eq!(read(&bus, address, 4), 0xffff_ffff, "{device}.{function}");
    }
    for address in [0x8001_0000_u64, 0x0000_0000] {
        let _ = bus.write(Space::Port, 0xcf8, 4, address).wait();
        assert_eq!(
            bus.read(Space::Port, 0xcfc, 4).wait(),
            0xffff_ffff,
            "bus 1, or no enable bit"
        );
    }
    assert_eq!(read(&bus, ecam(0, 0x100), 4), 0, "no extended capabilities");
    assert_eq!(read(&bus, ecam(0, 0xffc), 8), 0);
}

#[test]
fn a_bar_is_on_the_bus_where_and_while_the_guest_wants_it() {
    let (bus, root) = root();
    root.add(function("disk", 0x1000).0).unwrap();
    assert_eq!(read(&bus, ecam(1, 0x10), 8), LOW | 4, "the address that firmware gives");
    assert_eq!(places(&bus, "disk"), [0; 0], "memory space is off");
    write(&bus, ecam(1, 4), 2, 2);
    assert_eq!(places(&bus, "disk"), [LOW]);
    assert_eq!(read(&bus, LOW + 8, 2), 0x5a5a);

    write(&bus, LOW + 8, 2, 0x1234);
    write(&bus, ecam(1, 0x14), 4, 0x11);
    assert_eq!(places(&bus, "disk"), [LOW | 0x11_0000_0000], "moved while it is on");
    assert_eq!(read(&bus, (LOW | 0x11_0000_0000) + 8, 2), 0x1234);
    assert_eq!(read(&bus, LOW + 8, 2), 0xffff);

    write(&bus, ecam(1, 4), 2, 0);
    assert_eq!(places(&bus, "disk"), [0; 0]);
}

#[test]
fn a_bar_put_onto_another_answers_nowhere_until_one_of_them_moves() {
    let (bus, root) = root();
    root.add(function("one", 0x1000).0).unwrap();
    root.add(function("two", 0x1000).0).unwrap();
    for device in [1, 2] {
        write(&bus, ecam(device, 4), 2, 2);
    }
    write(&bus, ecam(2, 0x10), 4, LOW);
    assert_eq!((places(&bus, "one"), places(&bus, "two")), (vec![LOW], vec![]));
    write(&bus, ecam(1, 0x10), 4, LOW + 0x10_0000);
    assert_eq!(
        (places(&bus, "one"), places(&bus, "two")),
        (vec![LOW + 0x10_0000], vec![LOW])
    );
    // Onto ECAM itself, and to where it would end beyond the last address.
    for address in [ECAM, 0xffff_ffff_ffff_f000] {
        write(&bus, ecam(1, 0x10), 8, address);
    }
    assert_eq!(places(&bus, "pci-ecam"), [ECAM]);
    assert_eq!(places(&bus, "one"), [0xffff_ffff_ffff_f000]);
}

#[test]
fn msix_lies_in_the_bar_and_a_message_is_sent_by_a_bus_master_only() {
    let (bus, root) = root();
    let (function, scratch, inbox) = function("disk", 0x1000);
    root.add(Arc::clone(&function)).unwrap();
    write(&bus, ecam(1, 4), 2, 2);
    write(&bus, LOW + 0x810, 8, 0xfee0_0000);
    write(&bus, LOW + 0x818, 8, 0x41);
    assert_eq!(read(&bus, LOW + 0x818, 4), 0x41);
    assert_eq!(
        read(&bus, LOW + 0x7fc, 4),
        0x5a5a_5a5a,
        "the device's own, beside the table"
    );
    assert_eq!(read(&bus, LOW + 0xc00, 8), 0);

    assert_eq!(read(&bus, ecam(1, 0x40), 4), 0x0001_0011, "two vectors");
    assert_eq!(read(&bus, ecam(1, 0x44), 8), 0x0000_0c00_0000_0800);
    write(&bus, ecam(1, 0x42), 2, 0x8000);
    function.msix().unwrap().signal(1);
    assert_eq!(inbox.take(), []);
    write(&bus, ecam(1, 4), 2, 6);
    assert_eq!(inbox.take().len(), 1);
    assert_eq!(scratch.master.lock().unwrap().last(), Some(&true));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let (bus, root) = root();
    assert!(matches!(PciRoot::attach(&bus, &layout()), Err(PciError::Place { .. })));
    root.add(function("disk", 0x1000).0).unwrap();
    assert!(matches!(
        root.add(function("disk", 0x1000).0),
        Err(PciError::Name { .. })
    ));
    root.add(function("large", 1 << 30).0).unwrap();
    assert_eq!(read(&bus, ecam(2, 0x10), 8), 0x10_0000_0004, "into the upper window");
    assert!(matches!(
        root.add(function("vast", 1 << 40).0),
        Err(PciError::NoRoom { .. })
    ));
    for index in 0..29 {
        root.add(function(&format!("f{index}"), 0x1000).0).unwrap();
    }
    assert!(matches!(
        root.add(function("last", 0x1000).0),
        Err(PciError::Full { .. })
    ));
}

#[test]
fn a_wrapped_function_stays_wrapped_wherever_its_bar_goes() {
    struct Loud(Arc<dyn Device>);
    impl Device for Loud {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn read(&self, _offset: u64, _size: u8) -> Response {
            Response::Done(0x77)
        }
        fn write(&self, offset: u64, size: u8, value: u64) -> Response {
            self.0.write(offset, size, value)
        }
    }
    let (bus, root) = root();
    root.add(function("disk", 0x1000).0).unwrap();
    assert_eq!(root.names(), ["disk"]);
    assert!(root.wrap("disk", |device| Arc::new(Loud(device))));
    assert!(!root.wrap("nobody", |device| device));
    write(&bus, ecam(1, 4), 2, 2);
    assert_eq!(read(&bus, LOW, 1), 0x77);
    write(&bus, ecam(1, 0x10), 4, 0xd000_0000);
    assert_eq!(read(&bus, 0xd000_0000, 1), 0x77);
}

#[test]
fn a_device_is_told_where_its_bar_is_and_when_it_is_nowhere() {
    let (bus, root) = root();
    let (one, scratch, _) = function("one", 0x1000);
    root.add(one).unwrap();
    root.add(function("two", 0x1000).0).unwrap();
    assert_eq!(scratch.take_placed(), [], "memory space is off");
    for device in [1, 2] {
        write(&bus, ecam(device, 4), 2, 2);
    }
    assert_eq!(scratch.take_placed(), [(0, Some(LOW))]);
    write(&bus, ecam(1, 4), 2, 6);
    write(&bus, ecam(1, 0x10), 4, LOW);
    assert_eq!(scratch.take_placed(), [], "it has not moved");
    write(&bus, ecam(1, 0x10), 4, 0xd000_0000);
    assert_eq!(scratch.take_placed(), [(0, None), (0, Some(0xd000_0000))]);
    let second = places(&bus, "two")[0];
    write(&bus, ecam(1, 0x10), 4, second);
    assert_eq!(scratch.take_placed(), [(0, None)], "somebody else is there");
    assert_eq!(root.remove("two"), Some(2));
    assert_eq!(scratch.take_placed(), [(0, Some(second))]);
    let saved = root.state();
    write(&bus, ecam(1, 4), 2, 0);
    assert_eq!(scratch.take_placed(), [(0, None)]);
    root.restore(&saved).unwrap();
    assert_eq!(scratch.take_placed(), [(0, Some(second))]);
    assert_eq!(root.remove("one"), Some(1));
    assert_eq!(scratch.take_placed(), [(0, None)]);
}

#[test]
fn what_is_wrapped_around_a_function_sees_every_access_so_its_bars_are_nowhere_for_itself() {
    let (bus, root) = root();
    let (function, scratch, _) = function("disk", 0x1000);
    root.add(function).unwrap();
    write(&bus, ecam(1, 4), 2, 2);
    assert_eq!(scratch.take_placed(), [(0, Some(LOW))]);
    assert!(root.wrap("disk", |device| device));
    assert_eq!(scratch.take_placed(), [(0, None)]);
    write(&bus, ecam(1, 0x10), 4, 0xd000_0000);
    assert!(scratch.take_placed().iter().all(|(_, address)| address.is_none()));
    assert_eq!(places(&bus, "disk"), [0xd000_0000]);
}

#[test]
fn a_state_of_other_functions_is_refused_and_changes_nothing() {
    let (_bus, one) = root();
    one.add(function("disk", 0x1000).0).unwrap();
    let (bus, other) = root();
    other.add(function("net", 0x1000).0).unwrap();
    let error = other.restore(&one.state()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the saved PCI devices are disk; this machine has net"
    );

    let (_, two) = root();
    two.add(function("disk", 0x1000).0).unwrap();
    for spoil in [
        |state: &mut FunctionState| _ = state.config.pop(),
        |state: &mut FunctionState| state.config.clear(),
        |state: &mut FunctionState| state.config[0] ^= 1,
        |state: &mut FunctionState| state.msix = None,
        |state: &mut FunctionState| _ = state.msix.as_mut().unwrap().vectors.pop(),
    ] {
        let mut state = one.state();
        spoil(state.functions.get_mut("disk").unwrap());
        let before = two.state();
        assert!(matches!(two.restore(&state), Err(PciStateError::Function { .. })));
        assert_eq!(two.state(), before);
    }
    drop(bus);
}

#[test]
fn a_removed_function_leaves_its_number_its_addresses_and_its_place_to_the_next() {
    let (bus, root) = root();
    for name in ["a", "b", "c"] {
        root.add(function(name, 0x1000).0).unwrap();
    }
    write(&bus, ecam(2, 4), 2, 2);
    let [place] = places(&bus, "b")[..] else {
        panic!("it is on the bus")
    };
    assert_eq!(root.remove("b"), Some(2));
    assert_eq!(root.remove("b"), None);
    assert_eq!(root.remove("pci-host"), None, "the bridge stays");
    assert_eq!(read(&bus, ecam(2, 0), 4), 0xffff_ffff);
    assert!(places(&bus, "b").is_empty());
    assert_eq!(root.names(), ["a", "c"]);
    assert_eq!(root.add(function("d", 0x1000).0).unwrap(), 2);
    write(&bus, ecam(2, 4), 2, 2);
    assert_eq!(places(&bus, "d"), [place]);
    assert_eq!(root.name_of(2).as_deref(), Some("d"));
}

#[test]
fn restored_functions_have_the_numbers_that_they_had() {
    let build = |names: [&str; 3]| {
        let (bus, root) = root();
        for name in names {
            root.add(function(name, 0x1000).0).unwrap();
        }
        (bus, root)
    };
    let (_bus, own) = build(["a", "b", "c"]);
    own.remove("a");
    own.remove("b");
    assert_eq!(own.add(function("d", 0x1000).0).unwrap(), 1);
    own.add(function("a", 0x1000).0).unwrap();
    let saved = own.state();
    let (_bus, other) = build(["a", "c", "d"]);
    other.restore(&saved).unwrap();
    assert_eq!(other.names(), ["d", "a", "c"]);
    assert_eq!(other.state(), saved);
    for (name, number) in [("a", 1), ("a", 0), ("a", 32)] {
        let mut spoilt = saved.clone();
        spoilt.numbers.insert(name.to_owned(), number);
        let refused = other.restore(&spoilt);
        assert!(
            matches!(refused, Err(PciStateError::Numbers { .. })),
            "{number}: {refused:?}"
        );
    }
    assert_eq!(other.state(), saved, "a refusal changes nothing");
}

proptest! {
    #[test]
    fn whatever_a_guest_writes_the_ranges_follow_the_bars_and_survive_a_snapshot(
        writes in prop::collection::vec(
            (0_u64..4, 0_u64..0x60, prop::sample::select(vec![1_u8, 2, 4, 8]), any::<u64>(), any::<bool>()),
            0..60,
        ),
    ) {
        let (bus, root) = root();
        let names = ["one", "two"];
        let made = names.map(|name| function(name, 0x1000));
        let functions = made.each_ref().map(|(function, ..)| Arc::clone(function));
        let mut told = [None; 2];
        for function in &functions {
            root.add(Arc::clone(function)).unwrap();
        }
        for (device, register, size, value, place) in writes {
            // Often into a BAR, and near the other: random addresses alone would never meet.
            if place {
                write(&bus, ecam(device, 0x10), 8, LOW + (value & 0x3000));
                write(&bus, ecam(device, 4), 1, value >> 60);
            } else {
                write(&bus, ecam(device, register), size, value);
            }
            let wanted = functions.each_ref().map(|function| function.decoded()[0].1);
            let found = names.map(|name| places(&bus, name));
            for (wanted, found) in wanted.iter().zip(&found) {
                prop_assert!(found.iter().all(|start| Some(*start) == *wanted));
            }
            for ((told, (_, scratch, _)), found) in told.iter_mut().zip(&made).zip(&found) {
                for (_, address) in scratch.take_placed() {
                    prop_assert!(told.is_none() || address.is_none(), "it leaves its place first");
                    *told = address;
                }
                prop_assert_eq!(*told, found.first().copied());
            }
            let free = |address: &u64| address.checked_add(0xfff).is_some_and(|last| last < ECAM || *address >= ECAM + ECAM_LENGTH);
            match wanted {
                [Some(one), Some(two)] if one == two => prop_assert!(found.concat().len() <= 1),
                _ => for (wanted, found) in wanted.iter().zip(&found) {
                    let expected = wanted.iter().copied().filter(free).collect::<Vec<_>>();
                    prop_assert_eq!(&expected, found);
                },
            }
        }
        let state: PciState = serde_json::from_str(&serde_json::to_string(&root.state()).unwrap()).unwrap();
        let (other_bus, other) = self::root();
        for name in names {
            other.add(function(name, 0x1000).0).unwrap();
        }
        other.restore(&state).unwrap();
        prop_assert_eq!(other.state(), state);
        if functions[0].decoded()[0].1 != functions[1].decoded()[0].1 {
            for name in names {
                prop_assert_eq!(places(&other_bus, name), places(&bus, name));
            }
        }
    }
}
