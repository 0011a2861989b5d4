//! All connections of a device: who they are between, and what happens to them next.
//!
//! # Invariants
//! - Nothing here blocks, and everything is bounded: connections, clients that have not said what they want, resets that wait
//!   for a buffer of the guest.
//! - Events of sockets come edge by edge and are kept with the connection, so that a socket with something to read for which
//!   the guest has no room keeps no thread busy.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::connection::{Connection, Outgoing, Violation};
use super::packet::{HOST, Header, STREAM, op};
use crate::virtio::bell::Bell;

/// The most connections. Each holds a descriptor and up to [`BUFFER`](super::connection::BUFFER) bytes. Tests share the descriptors
/// of one process.
pub(super) const MOST_CONNECTIONS: usize = if cfg!(test) { 63 } else { 1023 };
/// The most clients that have not said yet what port they want; of more, the oldest goes.
pub(super) const MOST_CLIENTS: usize = 64;
/// The most resets for what is no connection that wait for a buffer of the guest; of more, none is told.
const MOST_RESETS: usize = 256;
/// The longest line of a client: `CONNECT 4294967295`.
const MOST_LINE: usize = 32;
/// The ports that the host's ends of its own connections have.
const FIRST_PORT: u32 = 1 << 30;
/// Clients taken in at once.
const MOST_ACCEPTED: usize = 64;

const LISTENER: u64 = 0;
const BELL: u64 = 1;
const FIRST_TOKEN: u64 = 2;

/// The ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ends {
    host: u32,
    guest: u32,
}

/// A client of the host's that is still saying what it wants.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

/// Figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) connections: u64,
    pub(super) refused: u64,
    pub(super) to_guest: u64,
    pub(super) from_guest: u64,
    pub(super) dropped: u64,
}

pub(super) struct Hub {
    guest: u64,
    path: PathBuf,
    listener: UnixListener,
    epoll: OwnedFd,
    /// Rings when the guest was left something without an event of a socket.
    bell: Bell,
    /// There may be clients to take in.
    knocks: bool,
    clients: BTreeMap<u64, Client>,
    connections: HashMap<Ends, Connection>,
    tokens: HashMap<u64, Ends>,
    /// Those that have something for the guest, each once, in turn.
    queue: VecDeque<Ends>,
    resets: VecDeque<Header>,
    next_token: u64,
    next_port: u32,
    pub(super) figures: Figures,
}

impl Hub {
    pub(super) fn new(guest: u64, listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = Bell::new()?;
        let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), edges)?;
        epoll::add(
            &epoll,
            bell.as_fd(),
            epoll::EventData::new_u64(BELL),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            guest,
            path,
            listener,
            epoll,
            bell,
            knocks: true,
            clients: BTreeMap::new(),
            connections: HashMap::new(),
            tokens: HashMap::new(),
            queue: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_PORT,
            figures: Figures::default(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What can be read when [`poll`](Self::poll) is of use.
    pub(super) fn events(&self) -> io::Result<OwnedFd> {
        self.epoll.try_clone()
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.connections.len(), self.clients.len(), self.resets.len())
    }

    /// Forgets every connection, as after a reset of the device.
    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.tokens.clear();
        self.queue.clear();
        self.resets.clear();
    }

    /// Sees to what the sockets have to say.
    pub(super) fn poll(&mut self) {
        self.bell.hush();
        let mut events = Vec::with_capacity(64);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Those that do not fit come next time: the descriptor stays readable.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now));
        for event in events {
            // The kernel's structure is packed.
            let (flags, data) = (event.flags, event.data);
            let gone = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            match data.u64() {
                LISTENER => self.knocks = true,
                BELL => {}
                token => self.wake(token, gone),
            }
        }
        if self.knocks {
            self.welcome();
        }
    }

    fn wake(&mut self, token: u64, gone: bool) {
        if let Some(ends) = self.tokens.get(&token).copied() {
            self.with(ends, |connection| {
                connection.wake(gone);
                Ok(())
            });
        } else if let Some(client) = self.clients.remove(&token) {
            self.listen_to(token, client);
        }
    }

    /// Takes clients in.
    fn welcome(&mut self) {
        for _ in 0..MOST_ACCEPTED {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.knocks = false;
                    return;
                }
                // It has gone again, or there is no descriptor for it: it is tried again with the next event.
                Err(_) => return,
            };
            let token = self.take_token();
            if self.connections.len() >= MOST_CONNECTIONS || self.watch(&stream, token).is_err() {
                self.figures.refused += 1;
                continue;
            }
            if self.clients.len() >= MOST_CLIENTS {
                self.clients.pop_first();
                self.figures.refused += 1;
            }
            let line = Vec::new();
            self.listen_to(token, Client { stream, line });
        }
        // There may be more.
        self.bell.ring();
    }

    fn watch(&self, stream: &UnixStream, token: u64) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, stream, epoll::EventData::new_u64(token), flags)?;
        Ok(())
    }

    fn take_token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    /// Reads a client's line, byte by byte: what follows it is the guest's.
    fn listen_to(&mut self, token: u64, mut client: Client) {
        loop {
            let mut byte = [0];
            match client.stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => break,
                Ok(1) if client.line.len() < MOST_LINE => client.line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.clients.insert(token, client);
                    return;
                }
                // It has gone, or talks nonsense.
                _ => return,
            }
        }
        let port = std::str::from_utf8(&client.line).ok().and_then(|line| {
            let (word, port) = line.trim_end().split_once(' ')?;
            word.eq_ignore_ascii_case("connect").then_some(())?;
            port.parse::<u32>().ok()
        });
        let Some(guest) = port else { return };
        let Some(ends) = self.free_ends(guest) else { return };
        self.insert(ends, Connection::requested(client.stream, token));
    }

    /// Ends that no connection has, for one of the host's to port `guest`.
    fn free_ends(&mut self, guest: u32) -> Option<Ends> {
        if self.connections.len() >= MOST_CONNECTIONS {
            self.figures.refused += 1;
            return None;
        }
        loop {
            let ends = Ends {
                host: self.next_port,
                guest,
            };
            // There are more ports than connections.
            self.next_port = FIRST_PORT | (self.next_port.wrapping_add(1) % FIRST_PORT);
            if !self.connections.contains_key(&ends) {
                return Some(ends);
            }
        }
    }

    fn insert(&mut self, ends: Ends, connection: Connection) {
        self.figures.connections += 1;
        self.tokens.insert(connection.token, ends);
        self.connections.insert(ends, connection);
        self.enqueue(ends);
    }

    /// Puts a connection that has news among those that have.
    fn enqueue(&mut self, ends: Ends) {
        if let Some(connection) = self.connections.get_mut(&ends)
            && !connection.queued
            && connection.has_news()
        {
            connection.queued = true;
            self.queue.push_back(ends);
        }
    }

    fn remove(&mut self, ends: Ends) {
        if let Some(connection) = self.connections.remove(&ends) {
            self.tokens.remove(&connection.token);
            if connection.queued {
                // A guest that calls and hangs up without taking a packet must not leave anything behind.
                self.queue.retain(|queued| *queued != ends);
            }
        }
    }

    /// Does something to a connection, which is reset if that was against the rules.
    fn with(&mut self, ends: Ends, act: impl FnOnce(&mut Connection) -> Result<(), Violation>) {
        if let Some(connection) = self.connections.get_mut(&ends) {
            if act(connection) == Err(Violation) {
                connection.reset();
            }
            self.enqueue(ends);
        }
    }

    /// A packet from the guest; true if there is something for it now.
    pub(super) fn receive(&mut self, header: &Header, data: &[u8]) -> bool {
        if header.source_cid != self.guest || header.destination_cid != HOST {
            // As on a network: there is nobody who could answer.
            self.figures.dropped += 1;
            return false;
        }
        let ends = Ends {
            host: header.destination_port,
            guest: header.source_port,
        };
        if header.kind != STREAM {
            self.refuse(header);
        } else if header.op == op::RST {
            self.remove(ends);
        } else if let Some(connection) = self.connections.get_mut(&ends) {
            connection.credit(header.buf_alloc, header.fwd_cnt);
            if header.op == op::RW {
                self.figures.from_guest += data.len() as u64;
            }
            self.with(ends, |connection| match header.op {
                op::RESPONSE => connection.respond(ends.host),
                op::RW => connection.receive(data),
                op::SHUTDOWN => {
                    connection.shut_down(header.flags);
                    Ok(())
                }
                op::CREDIT_UPDATE => Ok(()),
                op::CREDIT_REQUEST => {
                    connection.credit_request();
                    Ok(())
                }
                _ => Err(Violation),
            });
        } else if header.op == op::REQUEST {
            self.dial(ends, header);
        } else {
            self.refuse(header);
        }
        let news = !self.queue.is_empty() || !self.resets.is_empty();
        if news {
            self.bell.ring();
        }
        news
    }

    /// The guest wants a connection to a port of the host: to the socket that has this number behind its name.
    fn dial(&mut self, ends: Ends, header: &Header) {
        let token = self.take_token();
        let stream = if self.connections.len() < MOST_CONNECTIONS {
            self.call(ends.host)
                .and_then(|stream| self.watch(&stream, token).map(|()| stream))
        } else {
            Err(ErrorKind::QuotaExceeded.into())
        };
        match stream {
            Ok(stream) => {
                let mut connection = Connection::accepted(stream, token);
                connection.credit(header.buf_alloc, header.fwd_cnt);
                self.insert(ends, connection);
            }
            Err(error) => {
                tracing::debug!(port = ends.host, %error, "nobody answers a guest's call");
                self.figures.refused += 1;
                self.refuse(header);
            }
        }
    }

    fn call(&self, port: u32) -> io::Result<UnixStream> {
        let mut name = self.path.clone().into_os_string();
        name.push(format!("_{port}"));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Where somebody listens and does not answer, this says so at once.
        connect(&socket, &SocketAddrUnix::new(Path::new(&name))?)?;
        Ok(socket.into())
    }

    /// Says that there is no such connection.
    fn refuse(&mut self, header: &Header) {
        if header.op == op::RST || self.resets.len() >= MOST_RESETS {
            self.figures.dropped += 1;
            return;
        }
        self.resets.push_back(Header {
            source_cid: HOST,
            destination_cid: self.guest,
            source_port: header.destination_port,
            destination_port: header.source_port,
            kind: header.kind,
            op: op::RST,
            ..Header::default()
        });
    }

    /// The next packet for the guest, whose data are put into `buffer`, at least one byte.
    pub(super) fn next(&mut self, buffer: &mut [u8]) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(ends) = self.queue.pop_front() {
            let Some(connection) = self.connections.get_mut(&ends) else {
                continue;
            };
            connection.queued = false;
            let Some(outgoing) = connection.next(buffer) else {
                continue;
            };
            let Outgoing {
                op,
                flags,
                length,
                fwd_cnt,
            } = outgoing;
            if connection.is_over() {
                self.remove(ends);
            } else {
                self.enqueue(ends);
            }
            self.figures.to_guest += length as u64;
            return Some(Header {
                source_cid: HOST,
                destination_cid: self.guest,
                source_port: ends.host,
                destination_port: ends.guest,
                // At most 64 KiB.
                length: length as u32,
                kind: STREAM,
                op,
                flags,
                buf_alloc: super::connection::BUFFER as u32,
                fwd_cnt,
            });
        }
        None
    }

    /// A packet did not reach the guest: its connection has lost data.
    pub(super) fn lost(&mut self, header: &Header) {
        let ends = Ends {
            host: header.source_port,
            guest: header.destination_port,
        };
        self.with(ends, |_| Err(Violation));
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Somebody may have removed it before us.
        let _ = std::fs::remove_file(&self.path);
    }
}
