//! Devices that come and go over the API.

use serde_json::{Value, json};

use crate::world::{World, chain};

fn ids(world: &World, section: &str) -> Vec<String> {
    let (_, info) = world.get("vm.info");
    let entries = info["config"][section].as_array().unwrap().iter();
    entries.map(|entry| entry["id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until the VM's disks are called so.
fn wait_for_disks(world: &World, expected: &[&str]) {
    let deadline = std::time::Instant::now() + crate::doubles::EVENTUALLY;
    while ids(world, "disks") != expected {
        assert!(std::time::Instant::now() < deadline, "{:?}", ids(world, "disks"));
        std::thread::yield_now();
    }
}

fn remove(world: &World, id: &str) -> (u16, Value) {
    world.put("vm.remove-device", &json!({ "id": id }))
}

#[test]
fn a_vm_that_does_not_run_takes_devices_into_its_configuration() {
    let world = World::created();
    let disk = json!({"path": "/a"});
    assert_eq!(world.put("vm.add-disk", &disk), (204, Value::Null));
    assert_eq!(
        world.put("vm.add-disk", &json!({"path": "/b", "id": "b"})),
        (204, Value::Null)
    );
    assert_eq!(ids(&world, "disks"), ["disk0", "b"]);
    assert_eq!(world.get("vm.info").1["device_tree"], json!({}));
    assert_eq!(remove(&world, "disk0"), (204, Value::Null));
    assert_eq!(ids(&world, "disks"), ["b"]);
    assert!(world.doubles.asked().is_empty(), "there is no machine");
    world.put("vm.boot", &Value::Null);
    assert_eq!(world.get("vm.info").1["device_tree"]["b"]["pci_bdf"], "0000:00:01.0");
}

#[test]
fn a_vm_that_runs_is_told_of_a_device_and_the_caller_where_it_is() {
    let world = World::running();
    let (status, body) = world.put("vm.add-disk", &json!({"path": "/a"}));
    assert_eq!((status, body), (200, json!({"id": "disk0", "bdf": "0000:00:02.0"})));
    assert_eq!(ids(&world, "disks"), ["disk0"]);
    let node = &world.get("vm.info").1["device_tree"]["disk0"];
    assert_eq!(
        (&node["pci_bdf"], &node["removing"]),
        (&json!("0000:00:02.0"), &json!(false))
    );
    world.put("vm.pause", &Value::Null);
    assert_eq!(
        world.put("vm.add-disk", &json!({"path": "/b"})).0,
        200,
        "also while it is paused"
    );
}

#[test]
fn the_name_of_a_device_is_free_only_when_the_guest_has_let_go_of_it() {
    let world = World::running();
    let disk = json!({"path": "/a", "id": "data"});
    assert_eq!(world.put("vm.add-disk", &disk).0, 200);
    assert_eq!(remove(&world, "data"), (204, Value::Null));
    assert_eq!(world.get("vm.info").1["device_tree"]["data"]["removing"], true);
    assert_eq!(ids(&world, "disks"), ["data"]);
    let (status, body) = world.put("vm.add-disk", &disk);
    assert_eq!(status, 400);
    assert!(chain(&body).contains("data"), "{body}");
    assert_eq!(remove(&world, "data").0, 204, "who asks again reminds the guest");
    world.doubles.eject("data");
    wait_for_disks(&world, &[]);
    assert_eq!(world.put("vm.add-disk", &disk).0, 200);
}

#[test]
fn a_guest_that_is_reset_or_switched_off_has_let_go_of_what_was_to_go() {
    for (call, again) in [("vm.reboot", None), ("vm.shutdown", Some("vm.boot"))] {
        let world = World::running();
        for id in ["stays", "goes"] {
            assert_eq!(world.put("vm.add-disk", &json!({"path": "/a", "id": id})).0, 200);
        }
        assert_eq!(remove(&world, "goes").0, 204);
        assert_eq!(world.put(call, &Value::Null).0, 204);
        assert_eq!(ids(&world, "disks"), ["stays"], "{call}");
        if let Some(again) = again {
            assert_eq!(world.put(again, &Value::Null).0, 204);
        }
        let tree = &world.get("vm.info").1["device_tree"];
        assert_eq!(tree.as_object().unwrap().keys().collect::<Vec<_>>(), ["rng", "stays"]);
    }
}

#[test]
fn what_cannot_be_added_is_refused_by_name_and_changes_nothing() {
    let world = World::running();
    world.put("vm.add-disk", &json!({"path": "/a", "id": "a"}));
    for (call, body, told) in [
        ("vm.add-disk", json!({"path": "/b", "id": "a"}), "id of PCI device 1"),
        ("vm.add-disk", json!({"path": "/b", "id": "rng"}), "rng"),
        ("vm.add-disk", json!({"path": "/b", "colour": "red"}), "colour"),
        ("vm.add-disk", json!({"path": ""}), "disks[1].path"),
        (
            "vm.add-disk",
            json!({"path": "/b", "num_queues": 0}),
            "disks[1].num_queues",
        ),
        ("vm.add-vsock", json!({"cid": 2}), "socket"),
        ("vm.add-user-device", json!({"id": "x"}), "socket"),
        ("vm.add-fs", json!({"tag": "t"}), "socket"),
        ("vm.add-net", json!({"pci_segment": 70000}), "pci_segment"),
        ("vm.remove-device", json!({"id": "rng"}), "every machine has it"),
        ("vm.remove-device", json!({}), "id"),
    ] {
        let (status, answer) = world.put(call, &body);
        assert_eq!(status, 400, "{call} {body}: {answer}");
        assert!(chain(&answer).contains(told), "{call} {body}: {answer}");
    }
    let (status, body) = remove(&world, "serial");
    assert_eq!(status, 404);
    assert!(chain(&body).contains("expected one of a, rng"), "{body}");
    world.doubles.refuse("no such image");
    let (status, body) = world.put("vm.add-disk", &json!({"path": "/b", "id": "b"}));
    assert_eq!(status, 400);
    assert_eq!(chain(&body), "vm.add-disk cannot add the device b: no such image");
    assert_eq!(ids(&world, "disks"), ["a"]);
}

#[test]
fn there_is_room_for_31_devices() {
    let world = World::running();
    for number in 0..30 {
        assert_eq!(world.put("vm.add-disk", &json!({"path": format!("/{number}")})).0, 200);
    }
    let (status, body) = world.put("vm.add-disk", &json!({"path": "/31"}));
    assert_eq!(status, 400);
    assert!(chain(&body).contains("at most 31 PCI devices"), "{body}");
}

#[test]
fn without_a_vm_there_is_nothing_to_add_to() {
    let world = World::new();
    assert_eq!(world.put("vm.add-disk", &json!({"path": "/a"})).0, 404);
    assert_eq!(remove(&world, "disk0").0, 404);
}

#[test]
fn a_disk_of_a_vm_that_runs_is_resized() {
    let world = World::created();
    world.put("vm.add-disk", &json!({"path": "/a", "id": "a"}));
    let resize = |id: &str, size: Value| world.put("vm.resize-disk", &json!({"id": id, "desired_size": size}));
    assert_eq!(resize("a", json!(1024)).0, 409, "there is no machine");
    world.put("vm.boot", &Value::Null);
    assert_eq!(resize("a", json!(1024)), (204, Value::Null));
    for (id, size, status, told) in [
        (
            "a",
            json!(1000),
            400,
            "vm.resize-disk cannot change the size of the device a: 1000",
        ),
        ("b", json!(1024), 404, "expected one of a"),
        ("rng", json!(1024), 404, "expected one of a"),
        ("a", json!(-1), 400, "desired_size"),
    ] {
        let (found, body) = resize(id, size);
        assert_eq!(found, status, "{body}");
        assert!(chain(&body).contains(told), "{body}");
    }
}

#[test]
fn what_of_a_vm_cannot_be_resized_is_refused_by_name() {
    let world = World::running();
    assert_eq!(world.put("vm.resize", &json!({})), (204, Value::Null));
    assert_eq!(
        world
            .put("vm.resize", &json!({"desired_vcpus": 2, "desired_ram": 512 << 20}))
            .0,
        204
    );
    for (body, field) in [
        (json!({"desired_vcpus": 3}), "desired_vcpus"),
        (json!({"desired_ram": 1 << 30}), "desired_ram"),
        (json!({"desired_balloon": 4096}), "desired_balloon"),
        (json!({"desired_size": 4096}), "desired_size"),
    ] {
        let (status, answer) = world.put("vm.resize", &body);
        assert_eq!(status, 400, "{body}");
        assert!(chain(&answer).contains(field), "{answer}");
    }
}
