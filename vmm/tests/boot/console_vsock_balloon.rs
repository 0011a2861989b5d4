//! A virtio console, sockets between guest and host, and a balloon, with the guest's own drivers.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use serde_json::json;

use crate::console::Console;
use crate::guest::Guest;
use crate::serve::Serve;
use crate::wait::{Background, EVENTUALLY, accepted, eventually};

/// What the host has given a process, in bytes.
fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn a_guest_has_a_virtio_console_sockets_to_its_host_and_a_balloon() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let path = |name: &str| serve.folder.path().join(name);
    let mut console = serve.boot_config(&json!({
        "memory": {"size": 512 << 20},
        "payload": {"kernel": guest.kernel, "initramfs": guest.initramfs, "cmdline": "console=ttyS0"},
        "serial": {"mode": "Socket", "socket": serve.console()},
        "console": {"mode": "Socket", "socket": path("hvc")},
        "vsock": {"cid": 42, "socket": path("v.sock")},
        "balloon": {"size": 128 << 20, "free_page_reporting": true},
    }));
    console.wait_for_shell();

    let mut hvc = Console::connect(&path("hvc"));
    console.run("stty -F /dev/hvc0 -echo; echo to the host >/dev/hvc0");
    hvc.expect("to the host\r\n");
    hvc.stream.write_all(b"to the guest\n").unwrap();
    assert!(console.run("head -n 1 </dev/hvc0").contains("to the guest"));

    let total = console.run("grep MemTotal /proc/meminfo");
    let total: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    eprintln!("MemTotal with a balloon of 128 MiB: {total} KiB");
    let figures = eventually("the balloon", || {
        let figures = serve.get("vm.counters")["balloon"].clone();
        (figures["actual_bytes"] == 128 << 20).then_some(figures)
    });
    assert_eq!(figures["inflated_pages"], (128 << 20) / 4096, "{figures}");
    let now = console.run("grep MemTotal /proc/meminfo");
    let now: u64 = now.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(now < (512 - 128) << 10, "{now} KiB");
    console.run("dd if=/dev/zero of=/tmp/large bs=1M count=128 2>/dev/null");
    let full = resident(serve.child.id());
    console.run("rm /tmp/large");
    let less = eventually("memory that the guest does not use", || {
        let less = resident(serve.child.id());
        (less + (100 << 20) < full).then_some(less)
    });
    eprintln!(
        "resident: {} MiB with a large file in the guest, {} MiB after",
        full >> 20,
        less >> 20
    );

    if !console.run("command -v vsock").contains("/bin/vsock") {
        eprintln!("skipped: the guest has no program for vsock, since scripts/guest.sh found no C compiler");
        return;
    }
    let listener = UnixListener::bind(path("v.sock_5000")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let answering = Background::start(move || {
        let mut caller = accepted(|| listener.accept());
        caller.set_read_timeout(Some(EVENTUALLY)).unwrap();
        let mut said = String::new();
        caller.read_to_string(&mut said).unwrap();
        caller.write_all(format!("you said {said}\n").as_bytes()).unwrap();
    });
    assert!(console.run("vsock call 5000 ping").contains("you said ping"));
    answering.finish("the guest's call");
    assert!(console.run("vsock call 5001 ping").contains("reset"), "nobody is there");

    console.run("vsock echo 52 &");
    let mut caller = eventually("the guest's answer", || {
        let mut caller = UnixStream::connect(path("v.sock")).unwrap();
        caller.set_read_timeout(Some(EVENTUALLY)).unwrap();
        caller.set_write_timeout(Some(EVENTUALLY)).unwrap();
        caller.write_all(b"CONNECT 52\n").unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            if caller.read(&mut byte).unwrap() == 0 {
                return None;
            }
            line.push(byte[0]);
        }
        assert!(line.starts_with(b"OK "), "{line:?}");
        Some(caller)
    });
    // More than any buffer on the way holds.
    let sent: Vec<u8> = (0..2_u32 << 20).map(|at| (at % 251) as u8).collect();
    let mut speaker = caller.try_clone().unwrap();
    let text = sent.clone();
    let speaking = Background::start(move || {
        speaker.write_all(&text).unwrap();
        speaker.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let start = Instant::now();
    let mut heard = Vec::new();
    caller.read_to_end(&mut heard).unwrap();
    eprintln!("2 MiB to the guest and back in {:?}", start.elapsed());
    speaking.finish("what is said to the guest");
    assert!(heard == sent, "{} bytes came back", heard.len());
    let figures = serve.get("vm.counters")["vsock"].clone();
    assert!(figures["from_guest"].as_u64().unwrap() >= 2 << 20, "{figures}");
}
