//! What is refused, with which status, and in which words.

use serde_json::{Value, json};

use crate::world::{World, answer, chain, config};

#[test]
fn without_a_vm_a_call_finds_nothing() {
    let world = World::new();
    for call in ["vm.info", "vm.counters"] {
        let (status, body) = world.get(call);
        assert_eq!(status, 404, "{call}");
        assert!(chain(&body).contains("there is no VM"));
    }
    for call in [
        "vm.boot",
        "vm.shutdown",
        "vm.reboot",
        "vm.pause",
        "vm.resume",
        "vm.power-button",
        "vm.delete",
    ] {
        let (status, body) = world.put(call, &Value::Null);
        assert_eq!(status, 404, "{call}");
        assert!(chain(&body).contains("there is no VM"));
    }
}

#[test]
fn in_the_wrong_state_a_call_is_a_conflict_that_says_what_was_expected() {
    let expect = |world: &World, calls: &[&str], state: &str| {
        for call in calls {
            let (status, body) = world.put(call, &Value::Null);
            assert_eq!(status, 409, "{call} in {state}");
            let told = chain(&body);
            assert!(told.contains(state) && told.contains("expected"), "{told}");
        }
    };
    let world = World::created();
    assert_eq!(world.put("vm.create", &config()).0, 409);
    assert_eq!(world.get("vm.counters").0, 409);
    expect(
        &world,
        &["vm.pause", "vm.resume", "vm.shutdown", "vm.reboot", "vm.power-button"],
        "Created",
    );
    world.put("vm.boot", &Value::Null);
    expect(&world, &["vm.boot", "vm.resume"], "Running");
    world.put("vm.pause", &Value::Null);
    expect(&world, &["vm.boot", "vm.pause", "vm.power-button"], "Paused");
    world.put("vm.shutdown", &Value::Null);
    expect(
        &world,
        &["vm.pause", "vm.resume", "vm.shutdown", "vm.reboot", "vm.power-button"],
        "Shutdown",
    );
}

#[test]
fn a_machine_that_cannot_be_built_is_the_configurations_fault_and_the_vm_stays() {
    let world = World::created();
    world.doubles.refuse("/kernel is a directory; expected a kernel");
    let (status, body) = world.put("vm.boot", &Value::Null);
    assert_eq!(status, 400);
    assert!(chain(&body).ends_with("/kernel is a directory; expected a kernel"));
    assert_eq!(world.state(), "Created");
}

#[test]
fn a_bad_configuration_is_refused_by_name() {
    let world = World::new();
    for (body, names) in [
        (json!({}), "payload"),
        (json!({"payload": {}}), "payload.kernel"),
        (
            json!({"payload": {"kernel": "/k"}, "cpus": {"boot_vcpus": 0, "max_vcpus": 0}}),
            "cpus.boot_vcpus",
        ),
        (
            json!({"payload": {"kernel": "/k"}, "cpus": {"boot_vcpus": 5, "max_vcpus": 5}}),
            "cpus.boot_vcpus",
        ),
        (
            json!({"payload": {"kernel": "/k"}, "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "dies": 1}}),
            "cpus.dies",
        ),
        (
            json!({"payload": {"kernel": "/k"}, "memory": {"size": 0}}),
            "memory.size",
        ),
        (
            json!({"payload": {"kernel": "/k"}, "memory": {"size": 1_u64 << 60}}),
            "memory.size",
        ),
        (
            json!({"payload": {"kernel": "/k"}, "disks": [{"path": "/d", "direct": true}]}),
            "disks[0].direct",
        ),
        (json!([1]), "[0]"),
    ] {
        let (status, answer) = world.put("vm.create", &body);
        assert_eq!(status, 400, "{body}");
        let told = chain(&answer);
        assert!(told.contains(names), "{body}: {told}");
        assert!(
            told.contains("expected") || told.contains("missing field"),
            "{body}: {told}"
        );
    }
    assert_eq!(world.get("vm.info").0, 404, "nothing was created");
}

#[test]
fn garbage_is_refused_with_its_line_and_column() {
    let world = World::new();
    for body in [
        &b"{\n  \"payload\": }"[..],
        b"",
        b"\xff\xfe",
        b"{\"payload\":{\"kernel\":\"/k\"}}x",
        b"null",
        b"\"{",
    ] {
        let response = world.call("PUT", "/api/v1/vm.create", body);
        let (status, answer) = answer(&response);
        assert_eq!(status, 400, "{body:?}");
        assert!(chain(&answer).contains(" at line "), "{body:?}: {answer}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(answer(&world.call("PUT", "/api/v1/vm.create", deep)).0, 400);
}

#[test]
fn an_unknown_path_is_not_found() {
    let world = World::new();
    for path in [
        "/",
        "/api/v1",
        "/api/v1/",
        "/api/v1/vm.fly",
        "/api/v2/vmm.ping",
        "/api/v1/vmm.ping/",
    ] {
        let (status, body) = answer(&world.call("GET", path, ""));
        assert_eq!(status, 404, "{path}");
        assert!(chain(&body).contains(path));
    }
}

#[test]
fn a_wrong_method_is_told_the_right_one() {
    let world = World::new();
    for (method, call, allowed) in [
        ("PUT", "vmm.ping", "GET"),
        ("POST", "vm.info", "GET"),
        ("GET", "vm.boot", "PUT"),
        ("DELETE", "vm.delete", "PUT"),
        ("POST", "vm.create", "PUT"),
        ("GET", "vm.snapshot", "PUT"),
        ("GET", "vm.nmi", "PUT"),
    ] {
        let response = world.call(method, &format!("/api/v1/{call}"), "");
        let allow = response.headers().get("Allow").expect("Allow").to_str().unwrap();
        assert!(allow.split(',').any(|m| m == allowed), "{allow}");
        let (status, body) = answer(&response);
        assert_eq!(status, 405, "{method} {call}");
        assert!(chain(&body).contains(&format!("/api/v1/{call};")), "{body}");
    }
}

#[test]
fn a_body_of_100_mib_is_refused() {
    let world = World::new();
    // Announced in full, and sent in full as clients do that look for the answer afterwards only.
    let (status, body) = answer(&world.call("PUT", "/api/v1/vm.create", vec![b' '; 100 << 20]));
    assert_eq!(status, 413);
    assert!(chain(&body).contains("expected at most"));
    // Announced only.
    let answer = world.raw(
        b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: l\r\nContent-Length: 104857600\r\nExpect: 100-continue\r\n\
        Connection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // Not announced: in chunks.
    let mut request = b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\
        Connection: close\r\n\r\n"
        .to_vec();
    for _ in 0..40 {
        request.extend(b"10000\r\n");
        request.extend([b' '; 0x10000]);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    let answer = world.raw(&request);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(world.get("vmm.ping").0, 200);
}
