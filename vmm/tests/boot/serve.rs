//! A running `reprise serve`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::console::Console;
use crate::guest::Guest;
use crate::wait::{EVENTUALLY, eventually};

/// A running `reprise serve`, killed at the end if it still runs.
pub struct Serve {
    pub child: Child,
    pub folder: TempDir,
}

impl Serve {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    pub fn start_in(folder: TempDir) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_reprise"))
            .args(["serve", "--hypervisor", "soft", "--api-socket"])
            .arg(folder.path().join("api"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let serve = Self { child, folder };
        eventually("the API socket", || {
            UnixStream::connect(serve.folder.path().join("api")).ok()
        });
        serve
    }

    /// Kills it, and starts another one in the same place.
    pub fn another(mut self) -> Self {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Self::start_in(folder)
    }

    pub fn console(&self) -> PathBuf {
        self.folder.path().join("console")
    }

    /// One call: the status and the body.
    pub fn call(&self, method: &str, name: &str, body: Option<&Value>) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.folder.path().join("api")).unwrap();
        stream.set_read_timeout(Some(EVENTUALLY)).unwrap();
        stream.set_write_timeout(Some(EVENTUALLY)).unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            stream,
            "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        read.unwrap_or_else(|error| panic!("{name} is not answered: {error}"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    pub fn put(&self, name: &str) {
        self.put_with(name, None);
    }

    pub fn put_with(&self, name: &str, body: Option<&Value>) {
        let (status, body) = self.call("PUT", name, body);
        assert_eq!(status, 204, "{name}: {body}");
    }

    pub fn get(&self, name: &str) -> Value {
        let (status, body) = self.call("GET", name, None);
        assert_eq!(status, 200, "{name}: {body}");
        body
    }

    /// The sum of a counter over all vCPUs.
    pub fn vcpus_counter(&self, name: &str) -> u64 {
        let counters = self.get("vm.counters");
        let vcpus = counters.as_object().unwrap().iter();
        vcpus
            .filter(|(device, _)| device.starts_with("vcpu"))
            .map(|(_, figures)| figures[name].as_u64().unwrap())
            .sum()
    }

    pub fn state(&self) -> String {
        self.get("vm.info")["state"].as_str().unwrap().to_owned()
    }

    /// Creates and boots the machine, and connects to its console.
    pub fn boot(&self, guest: &Guest, kernel: &Path, vcpus: u32) -> Console {
        let cpus = json!({"boot_vcpus": vcpus, "max_vcpus": vcpus});
        self.boot_with(guest, kernel, &cpus, "console=ttyS0", &json!([]))
    }

    /// The same, with these `cpus` and this command line, and devices that are late.
    pub fn boot_with(&self, guest: &Guest, kernel: &Path, cpus: &Value, cmdline: &str, delays: &Value) -> Console {
        self.boot_config(&json!({
            "cpus": cpus,
            "memory": {"size": 512 << 20},
            "payload": {"kernel": kernel, "initramfs": guest.initramfs, "cmdline": cmdline},
            "serial": {"mode": "Socket", "socket": self.console()},
            "delays": delays,
        }))
    }

    /// The same, with a whole configuration whose serial port leads to the console's socket.
    pub fn boot_config(&self, config: &Value) -> Console {
        let (status, body) = self.call("PUT", "vm.create", Some(config));
        assert_eq!(status, 204, "{body}");
        self.put("vm.boot");
        Console::connect(&self.console())
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
