//! The program `reprise`: from one process to another, killed, and on a full disk.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use reprise_vmm::snapshot::{Prefault, Snapshot};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{guest, tier};

/// Long enough for anything that is going to happen.
const EVENTUALLY: Duration = Duration::from_secs(120);

const REPRISE: &str = env!("CARGO_BIN_EXE_reprise");

/// A folder for everything, with a kernel and a configuration in it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        guest::write(&place.path("kernel"));
        let config = json!({
            "payload": {"kernel": place.path("kernel")},
            "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "translate": tier::translates()},
            "memory": {"size": 16 << 20},
            "serial": {"mode": "Socket", "socket": place.path("console")},
        });
        fs::write(place.path("config"), config.to_string()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&self) -> Serve {
        self.serve_with(&mut Command::new(REPRISE))
    }

    /// `command` is `reprise`, or something that becomes it.
    fn serve_with(&self, command: &mut Command) -> Serve {
        let socket = self.path("api");
        let _ = fs::remove_file(&socket);
        let command = command
            .arg("serve")
            .arg("--api-socket")
            .arg(&socket)
            .stdin(Stdio::null());
        let mut serve = Serve {
            child: command.spawn().unwrap(),
            socket,
        };
        eventually("the API socket", || {
            assert_eq!(serve.child.try_wait().unwrap(), None, "it ended");
            UnixStream::connect(&serve.socket).ok()
        });
        serve
    }

    fn console(&self) -> Console {
        let stream = eventually("the console", || UnixStream::connect(self.path("console")).ok());
        stream.set_read_timeout(Some(EVENTUALLY)).unwrap();
        Console(stream)
    }

    /// Boots the guest.
    fn boot(&self, serve: &Serve) -> Console {
        serve.done(&["create", self.path("config").to_str().unwrap()]);
        serve.done(&["boot"]);
        let mut console = self.console();
        console.expect("!");
        console
    }
}

/// A running `reprise serve`, killed at the end if it still runs.
struct Serve {
    child: Child,
    socket: PathBuf,
}

impl Serve {
    fn ctl(&self, call: &[&str]) -> Output {
        self.ctl_command(call).output().unwrap()
    }

    fn ctl_command(&self, call: &[&str]) -> Command {
        let mut command = Command::new(REPRISE);
        command
            .arg("ctl")
            .arg("--api-socket")
            .arg(&self.socket)
            .args(call)
            .stdin(Stdio::null());
        command
    }

    fn done(&self, call: &[&str]) {
        let output = self.ctl(call);
        assert!(output.status.success(), "{call:?}: {}", stderr(&output));
    }

    fn state(&self) -> String {
        let info: Value = serde_json::from_slice(&self.ctl(&["info"]).stdout).unwrap();
        info["state"].as_str().unwrap().to_owned()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Console(UnixStream);

impl Console {
    fn expect(&mut self, text: &str) {
        let mut found = vec![0; text.len()];
        self.0.read_exact(&mut found).unwrap();
        assert_eq!(String::from_utf8_lossy(&found), text);
    }

    fn ask(&mut self, byte: u8, answer: &str) {
        self.0.write_all(&[byte]).unwrap();
        self.expect(answer);
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn eventually<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + EVENTUALLY;
    loop {
        if let Some(got) = get() {
            return got;
        }
        assert!(Instant::now() < deadline, "{what} never came");
        thread::sleep(Duration::from_millis(2));
    }
}

fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn whole(path: &Path) -> bool {
    Snapshot::open(path).is_ok_and(|snapshot| snapshot.memory(Prefault::No).is_ok())
}

#[test]
fn a_guest_moves_from_process_to_process() {
    let place = Place::new();
    let (mut first, snapshot) = (place.serve(), place.path("snapshot"));
    let name = snapshot.to_str().unwrap();
    let mut console = place.boot(&first);
    console.ask(b'a', "a11");
    first.done(&["snapshot", name]);
    assert_eq!(first.state(), "Running", "it ran before");
    console.ask(b'b', "b22");
    first.done(&["pause"]);
    first.done(&["snapshot", name]);
    assert_eq!(first.state(), "Paused", "it was paused before");
    first.kill();

    let second = place.serve();
    second.done(&["restore", name]);
    assert_eq!(second.state(), "Paused");
    second.done(&["resume"]);
    place.console().ask(b'c', "c33");
    second.done(&["pause"]);
    second.done(&["snapshot", name]);
    second.done(&["shutdown"]);
    second.done(&["delete"]);
    second.done(&["restore", name, "--resume", "--prefault"]);
    assert_eq!(second.state(), "Running");
    place.console().ask(b'd', "d44");
    assert_eq!(
        listing(place.folder.path()),
        ["api", "config", "console", "kernel", "snapshot"]
    );

    // A relative path, another console, and no server.
    let socket = place.path("another");
    let mut run = Command::new(REPRISE)
        .args(["run", "--restore", "snapshot", "--debug-exit", "--serial"])
        .arg(format!("socket={}", socket.display()))
        .current_dir(place.folder.path())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut console = Console(eventually("the console", || UnixStream::connect(&socket).ok()));
    console.ask(b'e', "e44");
    console.0.write_all(b"q").unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(1), "(0 << 1) | 1");
}

#[test]
fn a_reboot_needs_the_kernel_and_a_restore_does_not() {
    let place = Place::new();
    let serve = place.serve();
    drop(place.boot(&serve));
    let snapshot = place.path("snapshot");
    serve.done(&["snapshot", snapshot.to_str().unwrap()]);
    serve.done(&["delete"]);
    fs::remove_file(place.path("kernel")).unwrap();
    serve.done(&["restore", snapshot.to_str().unwrap(), "--resume"]);
    place.console().ask(b'a', "a11");
    let refused = serve.ctl(&["reboot"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("kernel"), "{}", stderr(&refused));
}

#[test]
fn what_is_no_snapshot_ends_run_with_status_1_and_its_reason() {
    let place = Place::new();
    let path = place.path("nowhere");
    let output = Command::new(REPRISE)
        .args(["run", "--serial", "null", "--restore"])
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(
        told.starts_with("error: the snapshot cannot be restored") && told.contains(path.to_str().unwrap()),
        "{told}"
    );
}

#[test]
fn a_kill_leaves_the_snapshot_before_or_the_new_one_or_none_and_never_half_of_one() {
    let place = Place::new();
    let mut serve = place.serve();
    let shelf = place.path("shelf");
    fs::create_dir(&shelf).unwrap();
    let (base, one) = (place.path("base"), shelf.join("one"));
    let one_name = one.to_str().unwrap();
    place.boot(&serve).ask(b'f', "f11");
    serve.done(&["pause"]);
    let start = Instant::now();
    serve.done(&["snapshot", base.to_str().unwrap()]);
    let took = start.elapsed();
    serve.kill();
    let mut left = 0;
    for tenth in 0..14 {
        let mut serve = place.serve();
        serve.done(&["restore", base.to_str().unwrap()]);
        let mut saving = serve
            .ctl_command(&["snapshot", one_name])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(took * tenth / 10);
        serve.kill();
        let saved = saving.wait().unwrap().success();
        assert_eq!(whole(&one), one.exists(), "killed after {tenth} tenths");
        assert!(one.exists() || !saved, "what was said to be there is");
        left += usize::from(listing(&shelf).iter().any(|name| name.starts_with('.')));
    }
    eprintln!("of 14 kills {left} left something behind");
    // Whatever they left, the next one is not held up by it and removes it.
    let serve = place.serve();
    serve.done(&["restore", base.to_str().unwrap()]);
    serve.done(&["snapshot", one_name]);
    assert!(whole(&one));
    assert_eq!(listing(&shelf), ["one"]);
}

#[test]
fn a_full_disk_is_an_error_and_leaves_the_vm_and_the_snapshot_before() {
    let place = Place::new();
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    // A file system of 600 KiB, which goes with the namespace of the process.
    let script = r#"mount -t tmpfs -o size=600k reprise "$1" && shift && exec "$@""#;
    let unshare = |program: &[&str]| {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(&disk)
            .args(program);
        command
    };
    if !unshare(&["true"]).output().is_ok_and(|output| output.status.success()) {
        let required = std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "mount"));
        assert!(!required, "there is no right to mount a file system");
        eprintln!("skipped: there is no right to mount a file system, and so no full disk");
        return;
    }
    let serve = place.serve_with(&mut unshare(&[REPRISE]));
    let seen_by_it = PathBuf::from(format!("/proc/{}/root{}", serve.child.id(), disk.display()));
    let mut console = place.boot(&serve);
    console.ask(b'a', "a11");
    let snapshot = disk.join("snapshot");
    let name = snapshot.to_str().unwrap();
    serve.done(&["snapshot", name]);
    let room = || rustix::fs::statvfs(&seen_by_it).unwrap().f_bavail;
    let before = room();
    console.ask(b'f', "f22");
    for destination in [name, disk.join("new").to_str().unwrap()] {
        let refused = serve.ctl(&["snapshot", destination]);
        assert_eq!(refused.status.code(), Some(1));
        let told = stderr(&refused);
        assert!(
            told.contains("No space left on device") && told.contains(destination),
            "{told}"
        );
        assert_eq!(listing(&seen_by_it), ["snapshot"], "nothing is left behind");
        assert_eq!(room(), before, "and the room is free again");
    }
    assert_eq!(serve.state(), "Running");
    console.ask(b'c', "c33");
    assert!(whole(&seen_by_it.join("snapshot")));
    drop(console);
    serve.done(&["delete"]);
    serve.done(&["restore", name, "--resume"]);
    place.console().ask(b'b', "b22");
}
