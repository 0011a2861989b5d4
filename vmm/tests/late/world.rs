//! A running `reprise serve` and its guest.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::code::image;
use crate::tier;

/// Long enough for anything that is going to happen.
pub const EVENTUALLY: Duration = Duration::from_secs(120);

/// A program that serves, and what it has; killed at the end.
pub struct World {
    child: Child,
    folder: TempDir,
}

impl World {
    /// Boots a guest of this code.
    pub fn boot(code: &[u8], vcpus: u32, delays: &Value) -> Self {
        Self::boot_with(code, vcpus, "delays", delays)
    }

    /// Boots a guest of this code, in a machine whose configuration has `value` in a section.
    pub fn boot_with(code: &[u8], vcpus: u32, section: &str, value: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        fs::write(&kernel, image(code)).unwrap();
        let world = Self::serve(folder);
        let config = json!({
            "cpus": {"boot_vcpus": vcpus, "max_vcpus": vcpus, "translate": tier::translates()},
            "memory": {"size": 16 << 20},
            "payload": {"kernel": kernel},
            "serial": {"mode": "Socket", "socket": world.path("console")},
            section: value,
        });
        let (status, body) = world.call("PUT", "vm.create", &config.to_string());
        assert_eq!(status, 204, "{body}");
        world.put("vm.boot");
        world
    }

    /// A program that serves, with nothing to run.
    fn serve(folder: TempDir) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_reprise"))
            .args(["serve", "--hypervisor", "soft", "--api-socket"])
            .arg(folder.path().join("api"))
            .arg("--event-monitor")
            .arg(format!("path={}", folder.path().join("events").display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let world = Self { child, folder };
        eventually("the API socket", || UnixStream::connect(world.path("api")).is_ok());
        world
    }

    /// Kills it, and goes on from a snapshot in another process.
    pub fn restored(mut self, snapshot: &Path) -> Self {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        let world = Self::serve(folder);
        let source = json!({"source_url": format!("file://{}", snapshot.display()), "resume": true});
        let (status, body) = world.call("PUT", "vm.restore", &source.to_string());
        assert_eq!(status, 204, "{body}");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One call: the status and the body.
    pub fn call(&self, method: &str, name: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.path("api")).unwrap();
        stream.set_read_timeout(Some(EVENTUALLY)).unwrap();
        write!(
            stream,
            "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        assert!(read.is_ok(), "{name} waits");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    pub fn put(&self, name: &str) {
        let (status, body) = self.call("PUT", name, "");
        assert_eq!(status, 204, "{name}: {body}");
    }

    pub fn get(&self, name: &str) -> Value {
        let (status, body) = self.call("GET", name, "");
        assert_eq!(status, 200, "{name}: {body}");
        body
    }

    pub fn state(&self) -> String {
        self.get("vm.info")["state"].as_str().unwrap().to_owned()
    }

    /// One of the figures of `vm.counters`.
    pub fn counter(&self, device: &str, name: &str) -> u64 {
        let counters = self.get("vm.counters");
        counters[device][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} of {device}: {counters}"))
    }

    /// Waits until the vCPU has been parked `times` times, and then for long enough to be counted.
    pub fn wait_parked(&self, vcpu: &str, times: u64) {
        eventually("a parked vCPU", || self.counter(vcpu, "parked") == times);
        let before = self.counter(vcpu, "parked_us");
        eventually("time", || self.counter(vcpu, "parked_us") > before);
    }

    pub fn console(&self) -> Console {
        let mut stream = None;
        eventually("the console", || {
            stream = UnixStream::connect(self.path("console")).ok();
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(EVENTUALLY)).unwrap();
        Console(stream)
    }

    /// The events so far, as `source event`, and their properties.
    pub fn events(&self) -> Vec<(String, Value)> {
        let text = fs::read_to_string(self.path("events")).unwrap();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole
            .map(|line| {
                let mut event: Value = serde_json::from_str(line).unwrap();
                let text = |name: &str| event[name].as_str().unwrap().to_owned();
                (
                    format!("{} {}", text("source"), text("event")),
                    event["properties"].take(),
                )
            })
            .collect()
    }

    /// Waits until an event has come so often.
    pub fn wait_event(&self, name: &str, times: usize) {
        let count = || self.events().iter().filter(|(event, _)| event == name).count();
        eventually(name, || count() >= times);
        assert_eq!(count(), times);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The guest's serial port.
pub struct Console(UnixStream);

impl Console {
    pub fn read(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn expect(&mut self, text: &str) {
        assert_eq!(self.read(text.len()), text);
    }

    pub fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + EVENTUALLY;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
