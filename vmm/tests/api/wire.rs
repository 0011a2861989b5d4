//! What goes over the socket, byte by byte and all at once.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use hyper::body::Bytes;
use serde_json::Value;

use crate::world::{World, config, http};

#[test]
fn ch_remotes_bytes_are_understood_and_it_understands_ours() {
    let world = World::new();
    // The request as that client writes it, and the answer as its parser looks for it.
    let body = config().to_string();
    let head = "Host: localhost\r\nAccept: */*\r\n";
    let request = format!(
        "PUT /api/v1/vm.create HTTP/1.1\r\n{head}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = |stream: &mut UnixStream, request: &str| {
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        let mut buffer = [0; 256];
        loop {
            let count = stream.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            let Some(end) = text.find("\r\n\r\n") else { continue };
            let Some(start) = text.find("Content-Length: ") else {
                return text;
            };
            let length: usize = text[start + 16..].split("\r\n").next().unwrap().parse().unwrap();
            if text.len() >= end + 4 + length {
                return text;
            }
        }
    };
    let mut stream = world.connect();
    assert!(exchange(&mut stream, &request).starts_with("HTTP/1.1 204 "));
    let again = exchange(&mut stream, &request);
    assert!(again.starts_with("HTTP/1.1 409 "), "{again}");
    let end = again.find("\r\n\r\n").unwrap();
    let texts: Vec<String> = serde_json::from_str(&again[end + 4..]).unwrap();
    assert!(!texts.is_empty());
    let info = exchange(&mut stream, &format!("GET /api/v1/vm.info HTTP/1.1\r\n{head}\r\n"));
    assert!(
        info.starts_with("HTTP/1.1 200 ") && info.contains("\"state\":\"Created\""),
        "{info}"
    );
    assert!(exchange(&mut stream, &format!("PUT /api/v1/vm.boot HTTP/1.1\r\n{head}\r\n")).starts_with("HTTP/1.1 204 "));
}

#[test]
fn ping_and_info_answer_while_a_call_takes_its_time() {
    let world = World::running();
    world.doubles.close_gate();
    let socket = world.socket.clone();
    let slow = thread::spawn(move || http(&socket, "PUT", "/api/v1/vm.pause", Bytes::new()).status().as_u16());
    world.doubles.wait_at_gate();
    assert_eq!(world.get("vmm.ping").0, 200);
    assert_eq!(world.state(), "Running");
    assert!(!slow.is_finished());
    world.doubles.open_gate();
    assert_eq!(slow.join().unwrap(), 204);
    assert_eq!(world.state(), "Paused");
}

#[test]
fn more_slow_calls_than_threads_still_leave_ping_an_answer() {
    let world = World::running();
    world.doubles.close_gate();
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let socket = world.socket.clone();
            thread::spawn(move || http(&socket, "PUT", "/api/v1/vm.pause", Bytes::new()).status().as_u16())
        })
        .collect();
    world.doubles.wait_at_gate();
    for _ in 0..10 {
        assert_eq!(world.get("vmm.ping").0, 200);
        assert_eq!(world.state(), "Running");
    }
    world.doubles.open_gate();
    let mut statuses: Vec<u16> = calls.into_iter().map(|call| call.join().unwrap()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses[0], 204, "the first pauses");
    assert!(
        statuses[1..].iter().all(|status| *status == 409),
        "and the others come too late: {statuses:?}"
    );
}

#[test]
fn clients_that_dawdle_starve_nobody() {
    let world = World::new();
    let half = b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: l\r\nContent-Length: 50\r\n\r\n{";
    let dawdlers: Vec<UnixStream> = (0..300)
        .map(|i| {
            let mut stream = world.connect();
            // Some never finish their header, some never their body.
            let part = if i % 2 == 0 { &half[..] } else { &half[..20] };
            let _ = stream.write_all(part);
            stream
        })
        .collect();
    assert_eq!(world.get("vmm.ping").0, 200);
    drop(dawdlers);
    assert_eq!(world.get("vmm.ping").0, 200);
}

#[test]
fn bytes_that_are_no_http_harm_nobody() {
    let world = World::new();
    for bytes in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"GET\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"PUT /api/v1/vm.boot HTTP/9.9\r\n\r\n",
    ] {
        let mut stream = world.connect();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{answer:?}");
    }
    assert_eq!(world.get("vmm.ping").0, 200);
}

#[test]
fn a_client_that_leaves_does_not_stop_its_call() {
    let world = World::running();
    world.doubles.close_gate();
    let mut stream = world.connect();
    stream
        .write_all(b"PUT /api/v1/vm.pause HTTP/1.1\r\nHost: l\r\n\r\n")
        .unwrap();
    world.doubles.wait_at_gate();
    drop(stream);
    world.doubles.open_gate();
    // The next call comes after it, and finds what it did.
    assert_eq!(world.put("vm.resume", &Value::Null).0, 204);
}

#[test]
fn shutting_the_vmm_down_answers_first_and_leaves_no_socket() {
    let mut world = World::running();
    let mut idle = world.connect();
    idle.write_all(b"HEAD /api/v1/vmm.ping HTTP/1.1\r\nHost: l\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        idle.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert_eq!(world.put("vmm.shutdown", &Value::Null), (204, Value::Null));
    world.vmm.wait();
    drop(world.server.take());
    assert!(!world.socket.exists());
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "idle connections are closed");
}
