//! The example device as a process of its own: this test program once more, told to serve.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::eventually;

/// In the environment of a process that is to serve.
const SERVES: &str = "REPRISE_TEST_SERVES";

/// Serves until its client goes, if this process was started for that: as `cargo run --example user_device -- SOCKET` does,
/// whose first argument is the socket's path too.
#[test]
fn server_process() {
    if std::env::var_os(SERVES).is_some() {
        // Its client goes without saying so.
        let _ended = super::example::main();
    }
}

/// A process that serves the device; killed at the end.
pub struct Process {
    child: Child,
    pub socket: PathBuf,
}

impl Process {
    pub fn start(socket: &Path) -> Self {
        let _left_behind = std::fs::remove_file(socket);
        // As the test harness calls it: without this program's name in front.
        let server = concat!(module_path!(), "::server_process");
        let (_, server) = server.split_once("::").unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .arg(socket)
            .args([server, "--exact"])
            .env(SERVES, "1")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the device's socket", || socket.exists());
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
