use proptest::prelude::*;

use super::super::testing::{BUFFERS, Driver, RING_RESET as RESET, VERSION_1 as V1, eventually, rings};
use super::super::{DeviceKind, DeviceStateError, QueueHandler, Rng};
use super::*;
use std::collections::BTreeMap;
use std::path::Path;

use vmm_sys_util::eventfd::EventFd;

fn driver() -> Driver {
    Driver::new(Arc::new(Rng::open(Path::new("/dev/urandom")).unwrap()))
}

/// A device with a configuration structure, which is all that it remembers.
struct Configured {
    config: Mutex<Vec<u8>>,
    change: Mutex<Option<ConfigChange>>,
    resets: AtomicU64,
}

impl Configured {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            config: Mutex::new((1..=12).collect()),
            change: Mutex::default(),
            resets: AtomicU64::new(0),
        })
    }

    /// Puts a byte, and tells.
    fn change(&self, at: usize, byte: u8) {
        lock(&self.config)[at] = byte;
        lock(&self.change).as_ref().unwrap().announce();
    }
}

impl VirtioDevice for Configured {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }
    fn features(&self) -> u64 {
        1 << 3
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![16, 256]
    }
    fn config(&self) -> Vec<u8> {
        lock(&self.config).clone()
    }
    /// Bytes 8 to 11 are the driver's.
    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = lock(&self.config);
        for (at, byte) in (offset as usize..).zip(data) {
            if at >= 8 {
                config[at] = *byte;
            }
        }
    }
    fn connect(&self, change: ConfigChange) {
        *lock(&self.change) = Some(change);
    }
    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn save(&self) -> Vec<u8> {
        lock(&self.config).clone()
    }
    fn restore(&self, saved: &[u8]) -> Result<(), DeviceStateError> {
        if saved.len() != 12 {
            return Err(DeviceStateError::new("it is not 12 bytes"));
        }
        *lock(&self.config) = saved.to_vec();
        Ok(())
    }
    fn handler(&self, _index: u16) -> Box<dyn QueueHandler> {
        Rng::open(Path::new("/dev/zero")).unwrap().handler(0)
    }
}

fn configured() -> Driver {
    Driver::new(Configured::new())
}

#[test]
fn the_capabilities_tell_where_everything_is() {
    let driver = configured();
    let config = |at, size| driver.function.read_config(at, size);
    assert_eq!(config(0, 4), 0x1043_1af4);
    assert_eq!(config(8, 1), 1, "modern");
    let mut found = Vec::new();
    let mut at = config(0x34, 1);
    while at != 0 {
        match config(at, 1) {
            9 => found.push((
                config(at + 3, 1),
                config(at + 4, 1),
                config(at + 8, 4),
                config(at + 12, 4),
            )),
            other => assert_eq!((other, config(at + 2, 2)), (0x11, 2), "three vectors"),
        }
        at = config(at + 1, 1);
    }
    assert_eq!(
        found,
        [
            (1, 0, 0x0000, 0x3c),
            (2, 0, 0x3000, 8),
            (3, 0, 0x1000, 1),
            (4, 0, 0x2000, 12),
            (5, 0, 0, 0)
        ]
    );
}

#[test]
fn the_configuration_structure_is_read_in_any_width() {
    let driver = configured();
    assert_eq!(driver.read(0x2000, 8), 0x0807_0605_0403_0201);
    assert_eq!(driver.read(0x2003, 2), 0x0504);
    assert_eq!(driver.read(0x200a, 4), 0x0c0b, "zero beyond its end");
}

#[test]
fn the_driver_writes_what_the_device_lets_it_write_and_nothing_behind() {
    let driver = configured();
    driver.write(0x2000, 4, 0xffff_ffff);
    assert_eq!(driver.read(0x2000, 4), 0x0403_0201);
    driver.write(0x2008, 4, 0xa1a2_a3a4);
    assert_eq!(driver.read(0x2008, 4), 0xa1a2_a3a4);
    driver.write(0x200a, 8, u64::MAX);
    assert_eq!(driver.read(0x2008, 8), 0xffff_a3a4);
    driver.write(0x200c, 4, 7);
    driver.write(0x2fff, 8, 7);
    assert_eq!(driver.read(0x200c, 4), 0);
}

#[test]
fn the_generation_changes_whenever_the_configuration_was_seen_to_change() {
    let device = Configured::new();
    let driver = Driver::new(Arc::clone(&device) as _);
    let generation = || driver.read(0x15, 1);
    assert_eq!((generation(), generation()), (0, 0));
    // Amid a driver's reading of several fields, and before the device has told.
    let before = generation();
    assert_eq!(driver.read(0x2000, 4), 0x0403_0201);
    lock(&device.config)[5] = 0x55;
    assert_eq!(driver.read(0x2004, 2), 0x5505);
    assert_eq!(generation(), before + 1, "what was read belongs to two states");
    assert_eq!(generation(), before + 1);
    for byte in 0..=255 {
        device.change(0, byte);
        generation();
    }
    assert_eq!(generation(), before + 1, "modulo 2^8");
}

#[test]
fn a_change_interrupts_by_the_vector_for_configuration_or_the_isr() {
    let device = Configured::new();
    let mut driver = Driver::new(Arc::clone(&device) as _);
    assert!(driver.negotiate(V1));
    device.change(0, 9);
    assert_eq!(
        (driver.read(0x1000, 1), driver.read(0x1000, 1)),
        (2, 0),
        "by the ISR without MSI-X"
    );
    driver.run(V1);
    device.change(0, 10);
    assert_eq!(driver.inbox.take(), vec![], "the driver has chosen no vector");
    driver.write(0x10, 2, 0);
    device.change(0, 11);
    assert_eq!(driver.inbox.take().len(), 1);
    assert_eq!(driver.read(0x1000, 1), 0);
    assert_eq!(driver.status(), 0xf);
}

#[test]
fn a_device_is_told_of_a_reset() {
    let device = Configured::new();
    let driver = Driver::new(Arc::clone(&device) as _);
    driver.write(0x14, 1, 3);
    assert_eq!(device.resets.load(Ordering::SeqCst), 0);
    driver.write(0x14, 1, 0);
    assert_eq!(device.resets.load(Ordering::SeqCst), 1);
}

#[test]
fn what_a_device_remembers_and_its_generation_go_with_it() {
    let device = Configured::new();
    let old = Driver::new(Arc::clone(&device) as _);
    device.change(1, 0x77);
    assert_eq!((old.read(0x15, 1), old.read(0x2001, 1)), (1, 0x77));
    let state: VirtioState = crate::testing::through_json(&old.device.state().unwrap());
    let new = configured();
    new.device.restore(&state).unwrap();
    assert_eq!((new.read(0x15, 1), new.read(0x2001, 1)), (1, 0x77));
    // Another host may have another configuration for it.
    let mut other = state.clone();
    other.device[2] = 0x99;
    new.device.restore(&other).unwrap();
    assert_eq!(new.read(0x15, 1), 2);
    other.device.clear();
    assert!(matches!(
        new.device.restore(&other),
        Err(VirtioStateError::Device { .. })
    ));
    assert_eq!(new.read(0x2002, 1), 0x99);
    // One that remembers nothing does not take anything.
    let rng = driver();
    let mut state = rng.device.state().unwrap();
    state.device.push(1);
    assert!(matches!(
        rng.device.restore(&state),
        Err(VirtioStateError::Device { .. })
    ));
}

#[test]
fn features_are_accepted_if_they_are_offered_and_version_1_is_among_them() {
    let driver = configured();
    assert_eq!(driver.offered(), V1 | RESET | 1 << 29 | 1 << 28 | 1 << 3);
    driver.write(0, 4, 2);
    assert_eq!(driver.read(4, 4), 0, "there are two halves");
    assert!(driver.negotiate(V1));
    assert!(driver.negotiate(driver.offered()));
    assert!(!driver.negotiate(1 << 3), "not without VERSION_1");
    assert!(!driver.negotiate(V1 | 1 << 4), "not what is not offered");
    driver.write(0x14, 1, 0xf);
    assert_eq!(driver.status(), 3, "no DRIVER_OK without FEATURES_OK");
    assert!(driver.negotiate(V1));
    driver.write(0x08, 4, 0);
    driver.write(0x0c, 4, 1 << 3);
    assert_eq!(driver.read(0x0c, 4), 0, "they stand after FEATURES_OK");
}

#[test]
fn queue_registers_are_the_selected_queue_s() {
    let driver = configured();
    let size_of = |queue| {
        driver.write(0x16, 2, queue);
        driver.read(0x18, 2)
    };
    assert_eq!((size_of(0), size_of(1), size_of(2), size_of(0xffff)), (16, 256, 0, 0));
    driver.write(0x16, 2, 1);
    assert_eq!((driver.read(0x1e, 2), driver.read(0x12, 2)), (1, 2));
    for (wanted, taken) in [(128, 128), (0, 128), (100, 128), (512, 128), (256, 256)] {
        driver.write(0x18, 2, wanted);
        assert_eq!(driver.read(0x18, 2), taken, "{wanted}");
    }
    driver.write(0x20, 4, 0x1234_5678);
    driver.write(0x24, 4, 0x9);
    assert_eq!(driver.read(0x20, 8), 0x9_1234_5678, "by halves");
    driver.write(0x22, 1, 0xff);
    assert_eq!(driver.read(0x20, 8), 0x9_12ff_5678, "even by bytes");
    for (vector, taken) in [(0, 0), (2, 2), (3, 0xffff), (0xfffe, 0xffff)] {
        driver.write(0x1a, 2, vector);
        driver.write(0x10, 2, vector);
        assert_eq!((driver.read(0x1a, 2), driver.read(0x10, 2)), (taken, taken), "{vector}");
    }
    driver.write(0x1c, 2, 1);
    driver.write(0x18, 2, 16);
    driver.write(0x20, 8, 0);
    assert_eq!(
        (driver.read(0x18, 2), driver.read(0x22, 1)),
        (256, 0xff),
        "an enabled queue stands"
    );
    driver.write(0x1c, 2, 0);
    assert_eq!(driver.read(0x1c, 2), 1);
}

#[test]
fn rings_outside_memory_or_askew_stop_the_device_and_are_not_touched() {
    for (desc, driver_area, device) in [
        (1 << 40, rings(0).1, rings(0).2),
        (rings(0).0, u64::MAX - 1, rings(0).2),
        (rings(0).0, rings(0).1, (1 << 20) - 8),
        (rings(0).0 + 8, rings(0).1, rings(0).2),
        (rings(0).0, rings(0).1 + 1, rings(0).2),
        (rings(0).0, rings(0).1, rings(0).2 + 2),
        (0, 0, 0),
    ] {
        let driver = driver();
        assert!(driver.negotiate(V1));
        driver.write(0x20, 8, desc);
        driver.write(0x28, 8, driver_area);
        driver.write(0x30, 8, device);
        driver.write(0x1c, 2, 1);
        driver.write(0x14, 1, 0xf);
        assert_eq!(driver.status(), 0x4f, "{desc:#x} {driver_area:#x} {device:#x}");
        driver.notify(0);
        driver.write(0x14, 1, 0);
        assert_eq!(driver.status(), 0);
        assert!(driver.writes.0.lock().unwrap().is_empty());
    }
}

#[test]
fn a_device_that_needs_a_reset_interrupts_for_its_configuration() {
    let driver = driver();
    assert!(driver.negotiate(V1));
    driver.write(0x1c, 2, 1);
    driver.write(0x14, 1, 0xf);
    assert_eq!(
        (driver.read(0x1000, 1), driver.read(0x1000, 1)),
        (2, 0),
        "by the ISR without MSI-X"
    );
}

#[test]
fn the_window_in_configuration_space_leads_to_the_registers() {
    let driver = configured();
    let mut at = driver.function.read_config(0x34, 1);
    while driver.function.read_config(at + 3, 1) != 5 {
        at = driver.function.read_config(at + 1, 1);
    }
    let access = |offset, size| {
        driver.function.write_config(at + 4, 1, 0);
        driver.function.write_config(at + 8, 4, offset);
        driver.function.write_config(at + 12, 4, size);
    };
    access(0x12, 2);
    assert_eq!(driver.function.read_config(at + 16, 2), 2, "num_queues");
    access(0x14, 1);
    driver.function.write_config(at + 16, 1, 3);
    assert_eq!(driver.status(), 3);
    // Nothing, and nothing bad.
    for (bar, offset, size) in [
        (1, 0, 4),
        (0, 2, 4),
        (0, 0, 8),
        (0, 0, 3),
        (0, 0xffff_fffc, 4),
        (0, 0x4000, 4),
    ] {
        access(offset, size);
        driver.function.write_config(at + 4, 1, bar);
        driver.function.write_config(at + 16, 4, 0);
        let _ = driver.function.read_config(at + 16, 4);
        assert_eq!(driver.status(), 3, "{bar} {offset:#x} {size}");
    }
}

/// A kernel that takes notifications, of the first queues of a device only.
#[derive(Default)]
struct Kernel {
    bells: Arc<Mutex<BTreeMap<u64, EventFd>>>,
}

struct KeptBell(Arc<Mutex<BTreeMap<u64, EventFd>>>, u64);

impl Drop for KeptBell {
    fn drop(&mut self) {
        lock(&self.0).remove(&self.1);
    }
}

impl Kernel {
    fn addresses(&self) -> Vec<u64> {
        lock(&self.bells).keys().copied().collect()
    }
}

impl Doorbells for Kernel {
    fn keep(&self, address: u64, bell: &EventFd) -> Option<Kept> {
        let mut bells = lock(&self.bells);
        assert!(!bells.contains_key(&address), "the old one is gone before");
        if bells.len() == 1 {
            return None;
        }
        bells.insert(address, bell.try_clone().unwrap());
        Some(Box::new(KeptBell(Arc::clone(&self.bells), address)))
    }
}

#[test]
fn a_queue_s_bell_hangs_where_the_bar_is_as_long_as_it_is_there() {
    let driver = configured();
    let kernel = Arc::new(Kernel::default());
    driver.function.placed(0, Some(0xc000_0000));
    assert!(kernel.addresses().is_empty(), "nobody takes notifications");
    driver.device.take_notifications_by(Arc::clone(&kernel) as _);
    driver.function.placed(0, Some(0xc000_0000));
    assert_eq!(kernel.addresses(), [0xc000_3000], "the second is refused");
    driver.function.placed(0, Some(0xd000_0000));
    assert_eq!(kernel.addresses(), [0xd000_3000]);
    driver.function.placed(0, None);
    assert!(kernel.addresses().is_empty());
    driver.function.placed(0, Some(0xd000_0000));
    drop(driver);
    assert!(kernel.addresses().is_empty());
}

#[test]
fn a_bell_that_the_kernel_rings_is_a_notification_and_counted_as_both() {
    let mut driver = driver();
    let kernel = Arc::new(Kernel::default());
    driver.device.take_notifications_by(Arc::clone(&kernel) as _);
    driver.function.placed(0, Some(0xc000_0000));
    driver.run(V1);
    driver.request(0, &[(BUFFERS, 16, true)]);
    assert_eq!((driver.counter("notifications"), driver.counter("doorbells")), (1, 0));
    driver.offer(0, &[(BUFFERS, 16, true)]);
    lock(&kernel.bells)[&0xc000_3000].write(1).unwrap();
    eventually("the answer", || driver.used(0) == 2);
    assert_eq!((driver.counter("notifications"), driver.counter("doorbells")), (2, 1));
    assert_eq!(driver.inbox.take().len(), 2);
}

#[test]
fn a_device_goes_on_from_its_state_in_another_machine() {
    let mut old = driver();
    old.run(V1 | 1 << 29);
    assert_eq!(old.request(0, &[(BUFFERS, 8, true)]), 8);
    assert!(old.device.set_paused(true, Duration::from_secs(60)));
    old.offer(0, &[(BUFFERS + 0x100, 8, true)]);
    old.notify(0);
    let device: VirtioState =
        serde_json::from_str(&serde_json::to_string(&old.device.state().unwrap()).unwrap()).unwrap();
    let function = old.function.state();
    let memory = old.memory.clone();
    assert_eq!(old.used(0), 1, "paused");
    let new = Driver::with(Arc::new(Rng::open(Path::new("/dev/urandom")).unwrap()), memory);
    assert!(new.device.set_paused(true, Duration::ZERO));
    new.function.restore(&function).unwrap();
    new.device.restore(&device).unwrap();
    assert_eq!(new.device.state().unwrap(), device);
    assert_eq!((new.status(), new.inbox.take()), (0xf, vec![]));
    new.device.set_paused(false, Duration::ZERO);
    eventually("what was offered before", || new.used(0) == 2);
    new.notify(0);
    drop(old);
}

#[test]
fn a_state_that_cannot_be_is_refused_and_changes_nothing() {
    let mut driver = driver();
    driver.run(V1);
    let good = driver.device.state().unwrap();
    let spoilt: [fn(&mut VirtioState); 6] = [
        |state| state.queues.clear(),
        |state| state.queues[0].size = 3,
        |state| state.queues[0].size = 128,
        |state| state.queues[0].desc = 1 << 50,
        |state| state.queues[0].device += 1,
        |state| state.driver_features |= 1 << 50,
    ];
    for spoil in spoilt {
        let mut state = good.clone();
        spoil(&mut state);
        assert!(driver.device.restore(&state).is_err(), "{state:?}");
        assert_eq!(driver.device.state().unwrap(), good);
    }
    driver.device.restore(&good).unwrap();
    driver.device.set_paused(false, Duration::ZERO);
    assert_eq!(driver.request(0, &[(BUFFERS, 8, true)]), 8);
}

#[test]
fn a_device_without_queues_or_with_odd_ones_cannot_be_made() {
    struct Odd(Vec<u16>);
    impl VirtioDevice for Odd {
        fn kind(&self) -> DeviceKind {
            DeviceKind::Net
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> Vec<u16> {
            self.0.clone()
        }
        fn config(&self) -> Vec<u8> {
            vec![]
        }
        fn handler(&self, _index: u16) -> Box<dyn QueueHandler> {
            unreachable!("there is no queue")
        }
    }
    for sizes in [vec![], vec![16, 3], vec![0], vec![16; 256]] {
        let memory = driver().memory;
        let dma = Dma::new(memory, Arc::new(|_, _| ()));
        let made = VirtioPci::new(
            "odd",
            Arc::new(Odd(sizes)),
            dma,
            Arc::new(crate::pci::testing::Inbox::default()),
        );
        assert!(matches!(made, Err(VirtioError::Queues { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_written_wherever_the_device_can_be_reset_and_used(
        writes in prop::collection::vec(
            (prop_oneof![0_u64..0x40, 0_u64..0x8000], prop::sample::select(vec![1_u8, 2, 4, 8]), prop_oneof![0_u64..16, any::<u64>()]),
            0..100,
        ),
    ) {
        let mut driver = driver();
        for (offset, size, value) in writes {
            driver.write(offset, size, value);
            driver.read(offset, size);
        }
        driver.function.write_config(4, 2, 6);
        driver.run(V1);
        prop_assert_eq!(driver.request(0, &[(BUFFERS, 8, true)]), 8);
    }
}
