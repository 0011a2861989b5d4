//! The event stream: one JSON object a line, for whoever watches a machine from outside.
//!
//! # Purpose
//! Logs are for people; events are for programs. Each line has `timestamp` (seconds and nanoseconds since the stream was
//! opened, monotonic), `source`, `event` and `properties`.
//!
//! # Invariants
//! - Emitting never blocks: a thread of its own writes, behind a queue of [`QUEUE`] events.
//! - A reader too slow for that loses events, is told so by a `lost` event with their number, and holds nobody up.
//! - Order is the order of emission.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::inherited::inherited;

/// Events that may wait to be written.
const QUEUE: usize = 1024;

/// How long the last events may take to reach their reader when the stream is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// Where the event stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventTarget {
    /// A file, created if need be and emptied; or a FIFO.
    Path(PathBuf),
    /// An inherited descriptor.
    Fd(RawFd),
}

impl fmt::Display for EventTarget {
    /// As [`FromStr`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "path={}", path.display()),
            Self::Fd(fd) => write!(f, "fd={fd}"),
        }
    }
}

impl FromStr for EventTarget {
    type Err = String;

    /// Reads `path=FILE` or `fd=N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} names no event stream; expected path=FILE or fd=N");
        match text.split_once('=') {
            Some(("path", path)) if !path.is_empty() => Ok(Self::Path(path.into())),
            Some(("fd", fd)) => fd.parse().ok().filter(|fd| *fd >= 0).map(Self::Fd).ok_or_else(refused),
            _ => Err(refused()),
        }
    }
}

/// The event stream's sending end; copies send into the same stream. The default sends nowhere.
#[derive(Debug, Clone, Default)]
pub struct Events {
    stream: Option<Arc<Stream>>,
}

#[derive(Debug)]
struct Stream {
    opened: Instant,
    queue: Mutex<Option<SyncSender<Vec<u8>>>>,
    lost: AtomicU64,
    /// Disconnected when the writer has written everything.
    finished: Mutex<Receiver<()>>,
}

/// One line.
#[derive(Serialize)]
struct Event<'a> {
    timestamp: Timestamp,
    source: &'a str,
    event: &'a str,
    properties: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct Timestamp {
    secs: u64,
    nanos: u32,
}

impl Events {
    /// Opens the stream that `target` names.
    ///
    /// # Errors
    /// The operating system's, if it cannot be opened.
    pub fn open(target: &EventTarget) -> io::Result<Self> {
        match target {
            EventTarget::Path(path) => {
                // A FIFO that is opened for writing alone waits for its reader, who may come later or never; fifo(7).
                let fifo = path.metadata().is_ok_and(|found| found.file_type().is_fifo());
                Self::to(
                    OpenOptions::new()
                        .read(fifo)
                        .write(true)
                        .create(true)
                        .truncate(true)
                        .open(path)?,
                )
            }
            EventTarget::Fd(fd) => Self::to(File::from(inherited(*fd)?)),
        }
    }

    /// A stream into `output`. Events end when a write fails, as when a pipe's reader is gone.
    ///
    /// # Errors
    /// The operating system's, if there can be no thread for it.
    pub fn to(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let (alive, finished) = channel();
        thread::Builder::new().name("events".to_owned()).spawn(move || {
            write_lines(&lines, output);
            drop(alive);
        })?;
        let stream = Stream {
            opened: Instant::now(),
            queue: Mutex::new(Some(queue)),
            lost: AtomicU64::new(0),
            finished: Mutex::new(finished),
        };
        Ok(Self {
            stream: Some(Arc::new(stream)),
        })
    }

    /// Says that `event` happened in `source`, like `("vm", "booted")`.
    pub fn emit(&self, source: &str, event: &str, properties: &[(&str, &str)]) {
        tracing::info!(source, event, ?properties, "event");
        if let Some(stream) = &self.stream {
            let properties = properties
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Value::from(*value)))
                .collect();
            stream.send(source, event, &properties);
        }
    }

    /// Ends the stream: what was emitted is written, unless its reader takes more than a second. Later events go nowhere.
    pub fn close(&self) {
        if let Some(stream) = &self.stream {
            lock(&stream.queue).take();
            if lock(&stream.finished).recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!("the reader of the event stream is too slow; the last events are lost");
            }
        }
    }
}

impl Stream {
    fn send(&self, source: &str, event: &str, properties: &Map<String, Value>) {
        // Held over the whole, so that the order of lines is that of their timestamps; nothing here blocks.
        let queue = lock(&self.queue);
        let Some(queue) = queue.as_ref() else { return };
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            let count = Map::from_iter([("count".to_owned(), Value::from(lost))]);
            match queue.try_send(self.line("events", "lost", &count)) {
                Ok(()) => self.lost.store(0, Ordering::Relaxed),
                Err(TrySendError::Full(_)) => {
                    self.lost.store(lost + 1, Ordering::Relaxed);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => return,
            }
        }
        if let Err(TrySendError::Full(_)) = queue.try_send(self.line(source, event, properties)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn line(&self, source: &str, event: &str, properties: &Map<String, Value>) -> Vec<u8> {
        let since = self.opened.elapsed();
        let timestamp = Timestamp {
            secs: since.as_secs(),
            nanos: since.subsec_nanos(),
        };
        let mut line = serde_json::to_vec(&Event {
            timestamp,
            source,
            event,
            properties,
        })
        .expect("an event is strings and numbers, which are always JSON");
        line.push(b'\n');
        line
    }
}

/// Writes until the last sender is gone or the reader is.
fn write_lines(lines: &Receiver<Vec<u8>>, mut output: impl Write) {
    for line in lines {
        if let Err(error) = output.write_all(&line).and_then(|()| output.flush()) {
            tracing::warn!(%error, "the event stream ends: it cannot be written");
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What these locks guard is whole after every statement, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn lines(input: impl io::Read) -> impl Iterator<Item = Value> {
        BufReader::new(input)
            .lines()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
    }

    #[test]
    fn each_event_is_one_line_with_all_four_members() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let events = Events::to(ours).unwrap();
        events.emit("vm", "booted", &[]);
        events.emit("vcpu", "failed", &[("reason", "two\nlines")]);
        events.close();
        let found: Vec<Value> = lines(theirs).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(
            (&found[0]["source"], &found[0]["event"]),
            (&"vm".into(), &"booted".into())
        );
        assert_eq!(found[0]["properties"], Value::Object(Map::new()));
        assert!(found[0]["timestamp"]["secs"].is_u64() && found[0]["timestamp"]["nanos"].is_u64());
        assert_eq!(found[1]["properties"]["reason"], "two\nlines");
    }

    #[test]
    fn a_reader_who_sleeps_holds_nobody_up_and_is_told_what_it_lost() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let events = Events::to(ours).unwrap();
        let long = "x".repeat(4096);
        for _ in 0..4 * QUEUE {
            events.emit("vm", "tick", &[("long", &long)]);
        }
        let reader = thread::spawn(move || lines(theirs).collect::<Vec<Value>>());
        // The queue drains now; the first event that finds room is preceded by the count.
        while lock(&events.stream.as_ref().unwrap().queue).is_some() {
            events.emit("vm", "after", &[]);
            if events.stream.as_ref().unwrap().lost.load(Ordering::Relaxed) == 0 {
                events.close();
            }
            thread::yield_now();
        }
        let found = reader.join().unwrap();
        let lost: u64 = found
            .iter()
            .filter(|e| e["event"] == "lost")
            .map(|e| e["properties"]["count"].as_u64().unwrap())
            .sum();
        let ticks = found.iter().filter(|e| e["event"] == "tick").count() as u64;
        let after = found.iter().filter(|e| e["event"] == "after").count() as u64;
        assert!(lost > 0 && after >= 1);
        assert!(ticks + after + lost >= 4 * QUEUE as u64, "{ticks} + {after} + {lost}");
    }

    #[test]
    fn a_reader_who_is_gone_is_no_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let events = Events::to(ours).unwrap();
        events.emit("vm", "booted", &[]);
        events.close();
        events.emit("vm", "deleted", &[]);
    }

    #[test]
    fn a_fifo_whose_reader_comes_late_tells_everything() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        let events = Events::open(&EventTarget::Path(path.clone())).unwrap();
        events.emit("vm", "booted", &[]);
        let mut reader = lines(File::open(&path).unwrap());
        assert_eq!(reader.next().unwrap()["event"], "booted");
    }

    #[test]
    fn targets_are_a_path_or_a_descriptor() {
        assert_eq!("path=/e".parse(), Ok(EventTarget::Path("/e".into())));
        assert_eq!("fd=5".parse(), Ok(EventTarget::Fd(5)));
        for text in ["path=/e", "fd=5"] {
            assert_eq!(text.parse::<EventTarget>().unwrap().to_string(), text);
        }
        for text in ["", "/e", "path=", "fd=", "fd=-1", "fd=x", "file=/e"] {
            assert!(text.parse::<EventTarget>().is_err(), "{text}");
        }
    }
}
