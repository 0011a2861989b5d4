use std::io::Write;

use super::super::testing::{BUFFERS, Driver, VERSION_1};
use super::*;

fn driver(path: &Path) -> Driver {
    let mut driver = Driver::new(Arc::new(Rng::open(path).unwrap()));
    driver.run(VERSION_1);
    driver
}

#[test]
fn requests_are_filled_from_the_file_up_to_4096_bytes() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..6000_u32).map(|i| (i % 251) as u8).collect();
    file.write_all(&content).unwrap();
    let mut driver = driver(file.path());
    let length = driver.request(0, &[(BUFFERS, 10, true), (BUFFERS + 0x1000, 0x1000, true)]);
    assert_eq!(length, 4096);
    assert_eq!(driver.get(BUFFERS, 10), content[..10]);
    assert_eq!(driver.get(BUFFERS + 0x1000, 4086), content[10..4096]);
    assert_eq!(driver.request(0, &[(BUFFERS, 4096, true)]), 1904);
    assert_eq!(driver.request(0, &[(BUFFERS, 4096, true)]), 0, "a file that has ended");
    assert_eq!(driver.counter("bytes"), 6000);
}

#[test]
fn a_request_with_nothing_to_fill_is_malformed() {
    let mut driver = driver(Path::new("/dev/urandom"));
    assert_eq!(driver.request(0, &[(BUFFERS, 64, false)]), 0);
    assert_eq!(driver.request(0, &[(1 << 40, 64, true)]), 0);
    assert_eq!(driver.counter("malformed"), 2);
    assert_eq!(driver.request(0, &[(BUFFERS, 64, true)]), 64);
}

#[test]
fn a_source_that_is_not_there_is_named() {
    let error = Rng::open(Path::new("/nowhere/entropy")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the source of entropy /nowhere/entropy cannot be opened"
    );
}
