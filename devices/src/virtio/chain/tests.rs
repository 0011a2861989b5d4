use std::sync::Mutex;

use super::super::testing::{BUFFERS, Driver, INDIRECT, NEXT, VERSION_1, WRITE, rings};
use super::super::{DeviceKind, Handled, QueueHandler, VirtioDevice};
use super::*;
use std::sync::Arc;

/// What a chain looked like: bytes readable, bytes writable, the first 64 readable bytes.
type Seen = Arc<Mutex<Vec<(u64, u64, Vec<u8>)>>>;

/// Writes down every chain, and answers with 0xaa.
#[derive(Default)]
struct Witness(Seen);

impl VirtioDevice for Witness {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![16]
    }
    fn config(&self) -> Vec<u8> {
        vec![]
    }
    fn handler(&self, _index: u16) -> Box<dyn QueueHandler> {
        Box::new(Handler(Arc::clone(&self.0)))
    }
}

struct Handler(Seen);

impl QueueHandler for Handler {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        let mut bytes = vec![0; chain.readable().min(64) as usize];
        chain.read(0, &mut bytes)?;
        chain.write(0, &vec![0xaa; chain.writable().min(64) as usize])?;
        self.0.lock().unwrap().push((chain.readable(), chain.writable(), bytes));
        Ok(Handled::Used(chain.writable() as u32))
    }
}

fn driver() -> (Driver, Seen) {
    let seen = Seen::default();
    let mut driver = Driver::new(Arc::new(Witness(Arc::clone(&seen))));
    driver.run(VERSION_1 | 1 << 28);
    (driver, seen)
}

/// Makes the chain at `head` available and waits until it is used.
fn answer(driver: &mut Driver, head: u16) -> u32 {
    let before = driver.used(0);
    driver.make_available(0, head);
    driver.notify(0);
    super::super::testing::eventually("the answer", || driver.used(0) != before);
    driver.used_element(0, before).1
}

#[test]
fn buffers_are_two_streams_of_bytes_wherever_they_are_cut() {
    let (mut driver, seen) = driver();
    driver.put(BUFFERS, b"abc");
    driver.put(BUFFERS + 0x100, b"defgh");
    let length = driver.request(
        0,
        &[
            (BUFFERS, 3, false),
            (BUFFERS + 0x100, 5, false),
            (BUFFERS + 0x200, 1, true),
            (BUFFERS + 0x300, 2, true),
        ],
    );
    assert_eq!(length, 3);
    assert_eq!(*seen.lock().unwrap(), [(8, 3, b"abcdefgh".to_vec())]);
    assert_eq!(
        (driver.get(BUFFERS + 0x200, 2), driver.get(BUFFERS + 0x300, 3)),
        (vec![0xaa, 0], vec![0xaa, 0xaa, 0])
    );
    let writes = driver.writes.0.lock().unwrap();
    for told in [(BUFFERS + 0x200, 1), (BUFFERS + 0x300, 2)] {
        assert!(writes.contains(&told), "{told:x?} in {writes:x?}");
    }
}

#[test]
fn an_indirect_table_is_a_chain_like_another() {
    let (mut driver, seen) = driver();
    let table = BUFFERS + 0x1000;
    driver.put(BUFFERS, b"indirect");
    driver.describe(table, 0, BUFFERS, 8, NEXT, 2);
    driver.describe(table, 2, BUFFERS + 0x100, 4, WRITE, 0);
    driver.describe(rings(0).0, 0, table, 48, INDIRECT, 0);
    assert_eq!(answer(&mut driver, 0), 4);
    assert_eq!(*seen.lock().unwrap(), [(8, 4, b"indirect".to_vec())]);
}

#[test]
fn what_is_no_chain_is_given_back_unused_and_the_queue_goes_on() {
    let (mut driver, seen) = driver();
    let (desc, ..) = rings(0);
    let table = BUFFERS + 0x1000;
    // By head: a loop of two; one that leads out of the table; to be read after to be written; longer than 4 GiB; outside
    // memory; tables that are not whole, nested, outside memory, looping, empty.
    driver.describe(desc, 0, BUFFERS, 1, NEXT, 1);
    driver.describe(desc, 1, BUFFERS, 1, NEXT, 0);
    driver.describe(desc, 2, BUFFERS, 1, NEXT, 999);
    driver.describe(desc, 3, BUFFERS, 1, NEXT | WRITE, 4);
    driver.describe(desc, 4, BUFFERS, 1, 0, 0);
    driver.describe(desc, 5, BUFFERS, u32::MAX, NEXT, 6);
    driver.describe(desc, 6, BUFFERS, u32::MAX, 0, 0);
    driver.describe(desc, 7, u64::MAX - 3, 8, WRITE, 0);
    driver.describe(desc, 8, table, 40, INDIRECT, 0);
    driver.describe(desc, 9, table, 16, INDIRECT, 0);
    driver.describe(table, 0, table, 16, INDIRECT, 0);
    driver.describe(desc, 10, u64::MAX - 15, 32, INDIRECT, 0);
    driver.describe(desc, 11, table + 0x100, 32, INDIRECT, 0);
    driver.describe(table + 0x100, 0, BUFFERS, 1, NEXT, 1);
    driver.describe(table + 0x100, 1, BUFFERS, 1, NEXT, 0);
    driver.describe(desc, 12, table, 0, INDIRECT, 0);
    let heads = [0, 2, 3, 5, 7, 8, 9, 10, 11, 12];
    for head in heads {
        assert_eq!(answer(&mut driver, head), 0, "{head}");
    }
    assert_eq!(*seen.lock().unwrap(), [], "no device has seen one of them");
    assert_eq!(driver.counter("malformed"), heads.len() as u64);
    driver.describe(desc, 13, BUFFERS, 1, WRITE, 0);
    assert_eq!(answer(&mut driver, 13), 1);
    assert_eq!(driver.status(), 0xf);
}

#[test]
fn a_chain_has_no_more_buffers_than_the_queue_has_descriptors() {
    let (mut driver, _) = driver();
    let table = BUFFERS + 0x1000;
    for index in 0..17 {
        driver.describe(table, index, BUFFERS, 1, NEXT | WRITE, index + 1);
    }
    for (last, used) in [(16, 0), (15, 16)] {
        driver.describe(table, last, BUFFERS, 1, WRITE, 0);
        driver.describe(rings(0).0, 0, table, 17 * 16, INDIRECT, 0);
        assert_eq!(answer(&mut driver, 0), used, "{} buffers", last + 1);
    }
}
