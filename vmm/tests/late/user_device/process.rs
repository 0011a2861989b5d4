//! Devices as processes of their own: this test program once more, told to serve.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::table;
use crate::world::eventually;

/// In the environment of a process that is to serve, what it serves: the example, or what [`table`] has.
const SERVES: &str = "REPRISE_TEST_SERVES";
const EXAMPLE: &str = "example";
pub const TABLE: &str = "table";

/// Serves until its client goes, if this process was started for that: as `cargo run --example user_device -- SOCKET` does,
/// whose first argument is the socket's path too.
#[test]
fn server_process() {
    let Ok(what) = std::env::var(SERVES) else { return };
    let socket = std::env::args_os().nth(1).unwrap();
    // Its client goes without saying so.
    let _ended = match &what[..] {
        TABLE => table::serve(socket.as_ref()),
        _ => super::example::main(),
    };
}

/// Whether connecting to `socket` would do (proc_pid_net(5)): one that is only there yet refuses.
fn is_listened_on(socket: &Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let listening = |line: &str| line.split_whitespace().nth(3) == Some("00010000");
    let mut lines = sockets.lines();
    lines.any(|line| line.ends_with(socket.to_str().unwrap()) && listening(line))
}

/// A process that serves a device; killed at the end.
pub struct Process {
    child: Child,
    pub socket: PathBuf,
}

impl Process {
    /// One that serves the example.
    pub fn start(socket: &Path) -> Self {
        Self::serve(EXAMPLE, socket)
    }

    pub fn serve(what: &str, socket: &Path) -> Self {
        let _left_behind = std::fs::remove_file(socket);
        // As the test harness calls it: without this program's name in front.
        let server = concat!(module_path!(), "::server_process");
        let (_, server) = server.split_once("::").unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .arg(socket)
            .args([server, "--exact"])
            .env(SERVES, what)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the device's socket", || is_listened_on(socket));
        Self {
            child,
            socket: socket.to_owned(),
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Kills it as it stands, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
