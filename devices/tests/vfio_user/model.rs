//! A client of a process that sends what it likes: bytes say what it answers, and what it says unasked.
//!
//! # What holds
//! Every question is answered: with what the process said to it, if that is what it said, and else with all ones. Guest memory
//! is written where the process asked for it, and the client is there no longer than the process keeps to the protocol.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use reprise_devices::pci::{Message, Messages};
use reprise_devices::vfio_user::{EventMessages, UserDevice};
use reprise_devices::virtio::Dma;
use reprise_devices::{Device, Response};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const MEMORY: u64 = 1 << 16;

struct NoMessages;

impl Messages for NoMessages {
    fn send(&self, _message: Message) {}
}

impl EventMessages for NoMessages {
    fn event(&self, _vector: u16) -> io::Result<EventFd> {
        EventFd::new(0)
    }
}

/// The bytes of the fuzzer, from the front; zeros when there are no more.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.next(), self.next(), self.next(), self.next()])
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = [id.to_le_bytes(), command.to_le_bytes()].concat();
    bytes.extend(words(&[16 + body.len() as u32, flags, 0]));
    bytes.extend(body);
    bytes
}

/// What an honest process replies: one with a BAR of 4 KiB that reads as 0x5a, and MSI-X with a vector in it.
fn honest(command: u16, body: &[u8]) -> Vec<u8> {
    let word = |at: usize| {
        body.get(at..at + 4)
            .map_or(0, |word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
    };
    match command {
        1 => vec![0, 0, 1, 0],
        4 => words(&[16, 3, 9, 5]),
        5 => {
            let size = match word(8) {
                0 => 0x1000,
                7 => 0x100,
                _ => 0,
            };
            words(&[32, 3, word(8), 0, size, 0, 0, 0])
        }
        7 => words(&[16, 3, word(8), 1]),
        9 if word(8) == 7 => {
            let config = match word(0) {
                0x00 => 0x00fe_1b36,
                0x04 => 0x10_0000,
                0x34 => 0x40,
                0x40 => 0x11,
                0x44 => 0x800,
                0x48 => 0xc00,
                _ => 0_u32,
            };
            let data = u64::from(config).to_le_bytes();
            [body, &data[..(word(12) as usize).min(8)]].concat()
        }
        9 => [body, &vec![0x5a; (word(12) as usize).min(8)]].concat(),
        _ => Vec::new(),
    }
}

/// Serves one connection as `bytes` say, until it ends.
fn serve(mut stream: UnixStream, bytes: &[u8], honest_first: usize) -> io::Result<()> {
    let mut bytes = Bytes(bytes);
    let mut count = 0;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (id, command) = (word(0) as u16, (word(0) >> 16) as u16);
        let mut body = vec![0; word(4) as usize - 16];
        stream.read_exact(&mut body)?;
        if word(8) & 0xf == 1 {
            continue;
        }
        count += 1;
        let is_wanted = word(8) & 0x10 == 0;
        let whim = if count > honest_first { bytes.next() % 16 } else { 0 };
        let mut reply = message(id, command, 1, &honest(command, &body));
        match whim {
            // Something else in a byte of the reply.
            1 | 2 => {
                let at = usize::from(bytes.next()) % reply.len();
                let new = bytes.next();
                reply[at] = new;
            }
            // Something unasked before it.
            3 | 4 => {
                let length = usize::from(bytes.next()) % 64;
                let command = u16::from(bytes.next() % 16);
                let flags = u32::from(bytes.next());
                let body: Vec<u8> = (0..length).map(|_| bytes.next()).collect();
                stream.write_all(&message(bytes.next().into(), command, flags, &body))?;
            }
            // An access to memory.
            5..8 => {
                let write = whim == 7;
                let (address, count) = (bytes.word() % (2 * MEMORY as u32), bytes.next() % 32);
                let mut body = [u64::from(address).to_le_bytes(), u64::from(count).to_le_bytes()].concat();
                if write {
                    body.extend((0..count).map(|_| 0x77));
                }
                stream.write_all(&message(id, if write { 12 } else { 11 }, 0, &body))?;
            }
            // The reply in two parts, if one is wanted, or with an error, or too long, or none.
            8 => {
                let at = usize::from(bytes.next()) % reply.len();
                if is_wanted {
                    stream.write_all(&reply[..at])?;
                    thread::yield_now();
                    reply.drain(..at);
                }
            }
            9 => reply = message(id, command, 0x21, &[]),
            10 => {
                reply.push(0);
            }
            11 => return Ok(()),
            12 => {
                let noise: Vec<u8> = (0..bytes.next()).map(|_| bytes.next()).collect();
                stream.write_all(&noise)?;
                return Ok(());
            }
            _ => {}
        }
        if is_wanted {
            stream.write_all(&reply)?;
        }
    }
}

/// Has a client use a process that does as `bytes` say; how many answers were what the process's BAR reads as.
pub fn operate(bytes: &[u8]) -> usize {
    let mut own = Bytes(bytes);
    // Mostly the beginning is well, or nothing else would ever be tried.
    let honest_first = match own.next() {
        first @ 0..64 => usize::from(first),
        _ => 90,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let script = bytes.to_vec();
    let process = thread::spawn(move || {
        let Ok((stream, _)) = listener.accept() else { return };
        // Should the client wait for somebody who waits for it: soon where that is to be expected.
        let patience = if honest_first < 64 { 50 } else { 2000 };
        let _ = stream.set_read_timeout(Some(Duration::from_millis(patience)));
        drop(listener);
        let _gone = serve(stream, &script, honest_first);
    });
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a file in memory");
    ftruncate(&file, MEMORY).expect("its size");
    let ranges = [(
        GuestAddress(0),
        MEMORY as usize,
        Some(FileOffset::new(File::from(file), 0)),
    )];
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges).expect("memory");
    let dma = Dma::new(
        memory,
        Arc::new(|address: u64, length: u64| {
            assert!(
                address.saturating_add(length) <= 2 * MEMORY + 32,
                "a write of {length} bytes at {address:#x}"
            );
        }),
    );
    let mut right = 0;
    if let Ok((device, function)) = UserDevice::connect("device", &socket, &dma, Arc::new(NoMessages)) {
        let _ = function.write_config(4, 2, 6).wait();
        for step in 0..24_u64 {
            let size = 1 << (own.next() % 4);
            let offset = u64::from(own.next()) * 8;
            let answer = match step % 3 {
                0 => Device::write(&function, offset % 0x800, size, 1).wait(),
                1 => function.ask_config(0x50 + offset % 0x40, size).wait(),
                // The table of MSI-X too, which is the client's own.
                _ => {
                    let ones = u64::MAX >> (64 - 8 * u32::from(size));
                    let answer = match Device::read(&function, offset % 0x800, size) {
                        Response::Done(value) => value,
                        Response::Later(ticket) => ticket.wait(),
                    };
                    right += usize::from(answer & ones == 0x5a5a_5a5a_5a5a_5a5a & ones);
                    answer
                }
            };
            let _ = answer;
            let _ = Device::write(&function, 0x80c, 4, step % 2).wait();
        }
        drop((device, function));
    }
    process.join().expect("the process does not panic");
    right
}
