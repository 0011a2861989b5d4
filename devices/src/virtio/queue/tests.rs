use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::super::testing::{BUFFERS, Driver, EVENT_IDX, RING_RESET, VERSION_1, eventually, rings};
use super::super::{Chain, ChainError, DeviceKind, VirtioDevice};
use super::*;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vm_memory::{Bytes, GuestAddress};

/// A device whose handler says when it has begun a request, and waits for leave to finish it.
struct Slow {
    began: SyncSender<()>,
    leave: Arc<Mutex<Receiver<()>>>,
}

impl VirtioDevice for Slow {
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
        Box::new(SlowHandler(self.began.clone(), Arc::clone(&self.leave)))
    }
}

struct SlowHandler(SyncSender<()>, Arc<Mutex<Receiver<()>>>);

impl QueueHandler for SlowHandler {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        let _ = self.0.send(());
        let _ = self.1.lock().unwrap().recv();
        chain.write(0, &[0x77])?;
        Ok(Handled::Used(1))
    }
}

fn slow() -> (Driver, Receiver<()>, SyncSender<()>) {
    let (began, has_begun) = sync_channel(16);
    let (finish, leave) = sync_channel(16);
    let leave = Arc::new(Mutex::new(leave));
    let mut driver = Driver::new(Arc::new(Slow { began, leave }));
    driver.run(VERSION_1 | RING_RESET);
    (driver, has_begun, finish)
}

const BUFFER: [(u64, u32, bool); 1] = [(BUFFERS, 1, true)];

#[test]
fn the_status_after_a_reset_is_the_new_one_while_the_new_rings_are_served() {
    let (mut driver, has_begun, finish) = slow();
    // Not as far as DRIVER_OK the first time.
    assert!(driver.negotiate(VERSION_1));
    driver.run(VERSION_1);
    driver.offer(0, &BUFFER);
    driver.notify(0);
    has_begun.recv().unwrap();
    assert_eq!(driver.status(), 0xf);
    finish.send(()).unwrap();
}

#[test]
fn a_reset_amid_a_request_holds_nobody_and_ends_when_the_request_has() {
    let (mut driver, has_begun, finish) = slow();
    driver.offer(0, &BUFFER);
    driver.offer(0, &BUFFER);
    driver.notify(0);
    has_begun.recv().unwrap();
    driver.write(0x14, 1, 0);
    assert_eq!(driver.status(), 0xf, "not yet");
    finish.send(()).unwrap();
    eventually("the reset", || driver.status() == 0);
    assert!(has_begun.try_recv().is_err(), "the second request is not touched");

    driver.run(VERSION_1);
    assert_eq!(driver.used(0), 0, "the new rings are at their beginning");
    finish.send(()).unwrap();
    assert_eq!(driver.request(0, &BUFFER), 1);
}

#[test]
fn a_queue_is_reset_alone_and_set_up_again() {
    let (mut driver, has_begun, finish) = slow();
    driver.offer(0, &BUFFER);
    driver.notify(0);
    has_begun.recv().unwrap();
    driver.write(0x3a, 2, 1);
    assert_eq!((driver.read(0x3a, 2), driver.read(0x1c, 2)), (1, 0), "under way");
    finish.send(()).unwrap();
    eventually("the reset", || driver.read(0x3a, 2) == 0);
    assert_eq!(driver.status(), 0xf, "the device runs on");
    assert_eq!((driver.read(0x20, 8), driver.read(0x1a, 2)), (0, 0xffff));
    driver.set_up(0);
    finish.send(()).unwrap();
    assert_eq!(driver.request(0, &BUFFER), 1);
}

#[test]
fn a_paused_device_finishes_its_request_and_begins_no_other() {
    let (mut driver, has_begun, finish) = slow();
    driver.offer(0, &BUFFER);
    driver.offer(0, &BUFFER);
    driver.notify(0);
    has_begun.recv().unwrap();
    assert!(
        !driver.device.set_paused(true, Duration::from_millis(1)),
        "it is at work"
    );
    assert!(driver.device.state().is_err());
    finish.send(()).unwrap();
    assert!(driver.device.set_paused(true, Duration::from_secs(60)));
    assert_eq!(driver.used(0), 1);
    driver.notify(0);
    let state = driver.device.state().unwrap();
    assert_eq!(
        (state.queues[0].next_avail, state.queues[0].next_used),
        (Some(1), Some(1))
    );
    assert!(has_begun.try_recv().is_err());
    finish.send(()).unwrap();
    driver.device.set_paused(false, Duration::ZERO);
    eventually("the second request", || driver.used(0) == 2);
}

#[test]
fn a_function_that_is_no_bus_master_serves_nothing() {
    let (mut driver, has_begun, finish) = slow();
    driver.function.write_config(4, 2, 2);
    driver.offer(0, &BUFFER);
    driver.notify(0);
    thread::sleep(Duration::from_millis(20));
    assert!(has_begun.try_recv().is_err());
    finish.send(()).unwrap();
    driver.function.write_config(4, 2, 6);
    eventually("the request", || driver.used(0) == 1);
}

#[test]
fn rings_that_are_none_stop_the_device_until_it_is_reset() {
    for spoil in [
        |driver: &mut Driver| driver.set_available(0, 17),
        // A head beyond the table.
        |driver: &mut Driver| driver.make_available(0, 16),
    ] {
        let (mut driver, _has_begun, finish) = slow();
        spoil(&mut driver);
        driver.notify(0);
        eventually("the wish for a reset", || driver.status() == 0x4f);
        assert_eq!(driver.inbox.take(), [], "the driver has set no vector for that");
        finish.send(()).unwrap();
        driver.run(VERSION_1);
        assert_eq!(driver.request(0, &BUFFER), 1);
    }
}

#[test]
fn the_driver_is_told_when_it_wants_to_know() {
    let (mut driver, _has_begun, finish) = slow();
    for _ in 0..3 {
        finish.send(()).unwrap();
    }
    driver.request(0, &BUFFER);
    eventually("the interrupt", || driver.inbox.take().len() == 1);

    driver.run(VERSION_1 | EVENT_IDX);
    // used_event: tell me of the second.
    let (_, available, _) = rings(0);
    driver
        .memory
        .write_obj(1_u16, GuestAddress(available + 4 + 2 * 16))
        .unwrap();
    driver.request(0, &BUFFER);
    eventually("the thread", || !driver.device.state().unwrap().needs_reset);
    assert_eq!(driver.inbox.take(), []);
    driver.device.set_paused(false, Duration::ZERO);
    driver.request(0, &BUFFER);
    eventually("the interrupt", || driver.inbox.take().len() == 1);
}

#[test]
fn without_msix_the_isr_says_that_buffers_were_used() {
    let (mut driver, _has_begun, finish) = slow();
    let at = driver.msix_control();
    driver.function.write_config(at, 2, 0);
    finish.send(()).unwrap();
    driver.request(0, &BUFFER);
    eventually("the ISR", || driver.read(0x1000, 1) == 1);
    assert_eq!(driver.read(0x1000, 1), 0, "reading clears it");
    assert_eq!(driver.inbox.take(), []);
}

/// Passes bytes from a pipe on, one buffer each.
struct Source(Arc<OwnedFd>);

impl VirtioDevice for Source {
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
        Box::new(SourceHandler(Arc::clone(&self.0)))
    }
}

struct SourceHandler(Arc<OwnedFd>);

impl QueueHandler for SourceHandler {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        let mut byte = [0];
        if rustix::io::read(&*self.0, &mut byte).is_err() {
            return Ok(Handled::NotNow);
        }
        chain.write(0, &byte)?;
        Ok(Handled::Used(1))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

#[test]
fn buffers_wait_for_a_source_and_are_filled_in_order() {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    let mut driver = Driver::new(Arc::new(Source(Arc::new(read))));
    driver.run(VERSION_1);
    driver.offer(0, &[(BUFFERS, 1, true)]);
    driver.offer(0, &[(BUFFERS + 1, 1, true)]);
    driver.notify(0);
    rustix::io::write(&write, b"a").unwrap();
    eventually("the first", || driver.used(0) == 1);
    assert!(driver.device.set_paused(true, Duration::from_secs(60)));
    rustix::io::write(&write, b"b").unwrap();
    let state = driver.device.state().unwrap();
    assert_eq!(state.queues[0].next_avail, Some(1), "the second was put back");
    driver.device.set_paused(false, Duration::ZERO);
    eventually("the second", || driver.used(0) == 2);
    assert_eq!(driver.get(BUFFERS, 2), b"ab");
}
