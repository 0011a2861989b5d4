use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::rate_limiter::{Bucket, RateLimits};
use super::super::testing::{BUFFERS, Driver, EVENT_IDX, VERSION_1, eventually};
use super::*;
use crate::clock::HostClock;

mod control;
mod hostile;
mod receiving;
mod state;
mod transmitting;

const CTRL_VQ: u64 = 1 << 17;
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A link whose other end is the test: messages of a socket are frames.
#[derive(Debug)]
struct Wire {
    ours: Vec<UnixDatagram>,
    theirs: Vec<UnixDatagram>,
    /// What the device has asked for, in order.
    asked: Mutex<VecDeque<Asked>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Offloads(u32),
    Pairs(u16),
}

impl Wire {
    fn new(pairs: u16) -> Arc<Self> {
        let (ours, theirs) = (0..pairs).map(|_| UnixDatagram::pair().unwrap()).unzip();
        let wire = Self {
            ours,
            theirs,
            asked: Mutex::default(),
        };
        for end in wire.ours.iter().chain(&wire.theirs) {
            end.set_nonblocking(true).unwrap();
        }
        Arc::new(wire)
    }

    fn send(&self, pair: usize, header: [u8; 12], frame: &[u8]) {
        self.theirs[pair].send(&[&header[..], frame].concat()).unwrap();
    }

    /// The frame that the device has sent, and its header, if it has.
    fn receive(&self, pair: usize) -> Option<([u8; 12], Vec<u8>)> {
        let mut bytes = vec![0; 1 << 17];
        let length = self.theirs[pair].recv(&mut bytes).ok()?;
        let (header, frame) = bytes[..length].split_at(12);
        Some((header.try_into().unwrap(), frame.to_vec()))
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().drain(..).collect()
    }
}

impl Link for Wire {
    fn pairs(&self) -> u16 {
        self.ours.len() as u16
    }

    fn pair(&self, index: u16) -> BorrowedFd<'_> {
        self.ours[usize::from(index)].as_fd()
    }

    fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        self.asked.lock().unwrap().push_back(Asked::Offloads(offloads));
        Ok(())
    }

    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        self.asked.lock().unwrap().push_back(Asked::Pairs(pairs));
        Ok(())
    }
}

fn options() -> NetOptions {
    NetOptions::new(MacAddress::new(OWN))
}

/// A card of one pair, and a driver that has accepted `features` besides the version.
fn card(features: u64) -> (Arc<Wire>, Driver) {
    card_of(1, features, options())
}

fn card_of(pairs: u16, features: u64, options: NetOptions) -> (Arc<Wire>, Driver) {
    let wire = Wire::new(pairs);
    let net = Net::new(Arc::clone(&wire) as _, options).unwrap();
    let mut driver = Driver::new(Arc::new(net));
    driver.run(VERSION_1 | features);
    (wire, driver)
}

/// Limits, each as tokens and milliseconds.
fn limiter(bandwidth: Option<(u64, u64)>, ops: Option<(u64, u64)>) -> Arc<RateLimiter> {
    let bucket = |(size, milliseconds)| Bucket {
        size,
        one_time_burst: 0,
        refill_time: Duration::from_millis(milliseconds),
    };
    let limits = RateLimits {
        bandwidth: bandwidth.map(bucket),
        ops: ops.map(bucket),
    };
    Arc::new(RateLimiter::new(&limits, Arc::new(HostClock::new())))
}

/// A frame of `length` bytes to the card.
fn frame(length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|i| (i % 253) as u8).collect();
    frame[..6].copy_from_slice(&OWN);
    frame
}

/// Sends `frame` behind `header` from one buffer.
fn transmit(driver: &mut Driver, header: [u8; 12], frame: &[u8]) {
    driver.put(BUFFERS, &[&header[..], frame].concat());
    driver.request(1, &[(BUFFERS, 12 + frame.len() as u32, false)]);
}

/// A command on queue `queue`: its answer.
fn command(driver: &mut Driver, queue: usize, command: &[u8]) -> u8 {
    driver.put(BUFFERS, command);
    driver.put(BUFFERS + 0x4000, &[0xee]);
    let buffers = [(BUFFERS, command.len() as u32, false), (BUFFERS + 0x4000, 1, true)];
    driver.request(queue, &buffers);
    driver.get(BUFFERS + 0x4000, 1)[0]
}
