use std::time::Duration;

use super::super::testing::{BUFFERS, Driver, MEMORY, VERSION_1};
use super::*;

/// A balloon of 8 pages, what it gives back, and its driver.
struct World {
    driver: Driver,
    balloon: Arc<Balloon>,
    given: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl World {
    fn new() -> Self {
        let given = Arc::new(Mutex::default());
        let host = {
            let given: Arc<Mutex<Vec<(u64, u64)>>> = Arc::clone(&given);
            move |address: u64, length: u64| {
                if address.checked_add(length).is_none_or(|end| end > MEMORY) {
                    return Err(io::Error::other("outside"));
                }
                lock(&given).push((address, length));
                Ok(())
            }
        };
        let options = BalloonOptions {
            size: 8 * PAGE + 1,
            deflate_on_oom: true,
            free_page_reporting: true,
        };
        let balloon = Arc::new(Balloon::new(options, Box::new(host)));
        let mut driver = Driver::new(Arc::clone(&balloon) as _);
        driver.run(VERSION_1 | DEFLATE_ON_OOM | REPORTING);
        driver.write(0x10, 2, 0);
        Self { driver, balloon, given }
    }

    fn numbers(&self, numbers: &[u32]) -> [(u64, u32, bool); 1] {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.driver.put(BUFFERS, &bytes);
        [(BUFFERS, bytes.len() as u32, false)]
    }

    fn given(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut lock(&self.given))
    }
}

#[test]
fn features_and_queues_are_those_that_were_asked_for() {
    let make = |deflate_on_oom, free_page_reporting| {
        let options = BalloonOptions {
            size: 0,
            deflate_on_oom,
            free_page_reporting,
        };
        let balloon = Balloon::new(options, Box::new(|_, _| Ok(())));
        (balloon.features(), balloon.queue_sizes().len())
    };
    assert_eq!(make(false, false), (0, 2));
    assert_eq!(make(true, false), (4, 2));
    assert_eq!(make(false, true), (0x20, 5));
}

#[test]
fn the_pages_of_the_balloon_are_given_back_in_runs() {
    let mut world = World::new();
    let buffers = world.numbers(&[9, 3, 4, 5, 7, 4]);
    assert_eq!(world.driver.request(0, &buffers), 0);
    assert_eq!(world.given(), [(0x3000, 0x3000), (0x7000, 0x1000), (0x9000, 0x1000)]);
    assert_eq!(world.driver.counter("inflated_pages"), 5);
    let buffers = world.numbers(&[3, 4]);
    world.driver.request(1, &buffers);
    assert_eq!((world.given(), world.driver.counter("deflated_pages")), (vec![], 2));
}

#[test]
fn pages_outside_memory_are_left_alone_and_the_others_are_taken() {
    let mut world = World::new();
    let outside = (MEMORY / PAGE) as u32;
    let buffers = world.numbers(&[2, outside, u32::MAX]);
    world.driver.request(0, &buffers);
    assert_eq!(world.given(), [(0x2000, 0x1000)]);
    assert_eq!(world.driver.counter("refused"), 2);
}

#[test]
fn requests_that_are_none_take_nothing() {
    let mut world = World::new();
    world.numbers(&[1, 2, 3]);
    for queue in [0, 1] {
        for buffers in [
            [(BUFFERS, 3, false)],
            [(BUFFERS, 12, true)],
            [(BUFFERS, MOST as u32 + 4, false)],
            [(1 << 40, 12, false)],
        ] {
            assert_eq!(world.driver.request(queue, &buffers), 0);
        }
    }
    world.driver.request(2, &[(BUFFERS, 0x1000, false)]);
    assert_eq!((world.given(), world.driver.counter("malformed")), (vec![], 9));
}

#[test]
fn reported_pages_are_given_back_as_far_as_they_are_whole() {
    for queue in [2, 4] {
        let mut world = World::new();
        let buffers = [
            (0x2_0000, 0x2000, true),
            (0x3_0001, 0x2fff, true),
            (0x4_0800, 0x0c00, true),
            (MEMORY - 0x1000, 0x2000, true),
            (u64::MAX - 0xfff, 0x2000, true),
            (u64::MAX - 1, 1, true),
        ];
        assert_eq!(world.driver.request(queue, &buffers), 0);
        assert_eq!(world.given(), [(0x2_0000, 0x2000), (0x3_1000, 0x2000)]);
        assert_eq!(world.driver.counter("reported_bytes"), 0x4000);
        assert_eq!(world.driver.counter("refused"), 3);
    }
}

#[test]
fn a_new_size_is_a_changed_configuration_and_the_driver_says_how_far_it_is() {
    let world = World::new();
    let driver = &world.driver;
    assert_eq!(driver.read(0x2000, 8), 8);
    world.balloon.resize(0x6000).unwrap();
    assert_eq!((driver.read(0x2000, 4), driver.inbox.take().len()), (6, 1));
    world.balloon.resize(0x6fff).unwrap();
    assert_eq!(driver.inbox.take().len(), 0, "no whole page more");
    driver.write(0x2004, 4, 5);
    assert_eq!((driver.read(0x2004, 4), world.balloon.actual()), (5, 0x5000));
    driver.write(0x2005, 1, 1);
    driver.write(0x2000, 4, 99);
    assert_eq!(driver.read(0x2000, 8), 0x105_0000_0006, "num_pages is the device's");
    world.balloon.resize(u64::MAX).unwrap();
    assert_eq!(driver.read(0x2000, 4), 0xffff_ffff);
    driver.negotiate(VERSION_1);
    assert_eq!(world.balloon.actual(), 0, "a reset deflates it");
}

#[test]
fn target_and_size_go_with_the_machine() {
    let old = World::new();
    old.balloon.resize(0x5000).unwrap();
    old.driver.write(0x2004, 4, 3);
    assert!(old.driver.device.set_paused(true, Duration::from_secs(60)));
    let state = crate::testing::through_json(&old.driver.device.state().unwrap());
    let new = World::new();
    new.driver.device.restore(&state).unwrap();
    assert_eq!((new.balloon.target(), new.balloon.actual()), (0x5000, 0x3000));
    let mut spoilt = state;
    spoilt.device.pop();
    assert!(new.driver.device.restore(&spoilt).is_err());
    assert_eq!(new.balloon.actual(), 0x3000);
}
