//! Doubles for the tests of this crate: they record what they are told and answer when they are told to.

use std::io::{self, Write};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Clock, Device, Interrupt, MachineEvent, MachineEvents};

/// What a state is after it was written to a file and read again.
pub(crate) fn through_json<T: Serialize + DeserializeOwned>(state: &T) -> T {
    serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
}

/// An access: offset, width, and what is written, if anything.
pub(crate) type Access = (u64, u8, Option<u64>);

/// Random accesses to a device of `length` registers.
pub(crate) fn accesses(length: u64) -> impl Strategy<Value = Vec<Access>> {
    let width = prop::sample::select(vec![1_u8, 1, 2, 4]);
    // A register of a driver's choice is seldom an arbitrary number.
    let value = prop_oneof![any::<u64>(), 0_u64..0x100, (0_u32..16).prop_map(|bit| 1 << bit)];
    prop::collection::vec((0..length, width, prop::option::of(value)), 0..60)
}

/// Makes an access; what a read gives.
pub(crate) fn access(device: &dyn Device, (offset, width, written): Access) -> u64 {
    match written {
        Some(value) => device.write(offset, width, value).wait(),
        None => device.read(offset, width).wait(),
    }
}

/// A sink that keeps what it is given, and takes it only while it is open.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    shared: Arc<(Mutex<Recorded>, Condvar)>,
}

#[derive(Default)]
struct Recorded {
    bytes: Vec<u8>,
    shut: bool,
    refuses: Option<io::ErrorKind>,
    refusals: usize,
    writes: usize,
    dropped: bool,
}

impl Recorder {
    pub(crate) fn sink(&self) -> Box<dyn Write + Send> {
        Box::new(Sink(self.clone()))
    }

    /// A recorder whose sink blocks until [`open`](Self::open).
    pub(crate) fn shut() -> Self {
        let recorder = Self::default();
        recorder.shut_again();
        recorder
    }

    pub(crate) fn shut_again(&self) {
        self.lock().shut = true;
    }

    pub(crate) fn open(&self) {
        self.lock().shut = false;
        self.shared.1.notify_all();
    }

    /// Answers writes with an error, or takes them again.
    pub(crate) fn refuse(&self, with: Option<io::ErrorKind>) {
        self.lock().refuses = with;
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// The number of calls that took something.
    pub(crate) fn writes(&self) -> usize {
        self.lock().writes
    }

    pub(crate) fn dropped(&self) -> bool {
        self.lock().dropped
    }

    /// Waits until the sink has taken exactly `bytes`.
    pub(crate) fn wait_for(&self, bytes: &[u8]) {
        self.wait_until(|recorded| recorded.bytes.len() >= bytes.len());
        assert_eq!(
            self.bytes().escape_ascii().to_string(),
            bytes.escape_ascii().to_string()
        );
    }

    /// Waits until `count` writes have been answered with an error.
    pub(crate) fn wait_for_refusals(&self, count: usize) {
        self.wait_until(|recorded| recorded.refusals >= count);
    }

    fn wait_until(&self, what: impl Fn(&Recorded) -> bool) {
        drop(
            self.shared
                .1
                .wait_while(self.lock(), |recorded| !what(recorded))
                .unwrap(),
        );
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.shared.0.lock().unwrap()
    }
}

struct Sink(Recorder);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self(recorder) = self;
        let mut recorded = recorder
            .shared
            .1
            .wait_while(recorder.lock(), |recorded| recorded.shut)
            .unwrap();
        recorder.shared.1.notify_all();
        if let Some(kind) = recorded.refuses {
            recorded.refusals += 1;
            return Err(kind.into());
        }
        recorded.bytes.extend(bytes);
        recorded.writes += 1;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.lock().dropped = true;
    }
}

/// An interrupt line that counts rises and remembers its level.
#[derive(Default)]
pub(crate) struct Line {
    changes: Mutex<Vec<bool>>,
}

impl Line {
    /// Every level set since the last call.
    pub(crate) fn take(&self) -> Vec<bool> {
        std::mem::take(&mut self.changes.lock().unwrap())
    }
}

impl Interrupt for Line {
    fn set(&self, level: bool) {
        self.changes.lock().unwrap().push(level);
    }
}

/// Remembers the events raised.
#[derive(Default)]
pub(crate) struct Events {
    raised: Mutex<Vec<MachineEvent>>,
}

impl Events {
    /// Every event since the last call.
    pub(crate) fn take(&self) -> Vec<MachineEvent> {
        std::mem::take(&mut self.raised.lock().unwrap())
    }
}

impl MachineEvents for Events {
    fn raise(&self, event: MachineEvent) {
        self.raised.lock().unwrap().push(event);
    }
}

/// A clock that stands where it is put.
#[derive(Default)]
pub(crate) struct TestClock {
    pub(crate) seconds: AtomicI64,
    pub(crate) nanoseconds: AtomicU64,
}

impl Clock for TestClock {
    fn unix_seconds(&self) -> i64 {
        self.seconds.load(SeqCst)
    }

    fn monotonic_nanoseconds(&self) -> u64 {
        self.nanoseconds.load(SeqCst)
    }
}
