//! What each call does.

use reprise_vmm::api::document;
use serde_json::{Value, json};

use crate::world::{World, config};

#[test]
fn ping_says_version_and_process() {
    let (status, body) = World::new().get("vmm.ping");
    assert_eq!(status, 200);
    assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(body["pid"], std::process::id());
    assert!(body["build_version"].is_string() && body["features"].is_array());
}

#[test]
fn a_vm_goes_through_its_life() {
    let world = World::new();
    for (call, body, state) in [
        ("vm.create", config(), "Created"),
        ("vm.boot", Value::Null, "Running"),
        ("vm.pause", Value::Null, "Paused"),
        ("vm.resume", Value::Null, "Running"),
        ("vm.power-button", Value::Null, "Running"),
        ("vm.reboot", Value::Null, "Running"),
        ("vm.shutdown", Value::Null, "Shutdown"),
        ("vm.boot", Value::Null, "Running"),
    ] {
        assert_eq!(world.put(call, &body), (204, Value::Null), "{call}");
        assert_eq!(world.state(), state, "after {call}");
    }
    assert_eq!(world.put("vm.delete", &Value::Null), (204, Value::Null));
    assert_eq!(world.get("vm.info").0, 404);
    let asked = [
        "build",
        "start",
        "pause",
        "resume",
        "power-button",
        "stop",
        "build",
        "start",
        "stop",
        "build",
        "start",
        "stop",
    ];
    assert_eq!(world.doubles.asked(), asked);
}

#[test]
fn info_spells_the_whole_configuration_out() {
    let world = World::running();
    let (status, body) = world.get("vm.info");
    assert_eq!(status, 200);
    assert_eq!(body["memory_actual_size"], 512 << 20);
    assert_eq!(body["config"]["cpus"]["max_phys_bits"], 46);
    assert_eq!(body["config"]["serial"]["mode"], "Null");
    // What was answered can be sent again.
    assert_eq!(world.put("vm.delete", &Value::Null).0, 204);
    assert_eq!(world.put("vm.create", &body["config"]), (204, Value::Null));
}

#[test]
fn counters_are_figures_by_device_and_name() {
    assert_eq!(
        World::running().get("vm.counters"),
        (200, json!({"serial": {"bytes_out": 7}}))
    );
}

/// The calls of the family's API, with their methods.
const GETS: [&str; 3] = ["vmm.ping", "vm.info", "vm.counters"];
const PUTS: [&str; 19] = [
    "vmm.shutdown",
    "vm.create",
    "vm.delete",
    "vm.boot",
    "vm.pause",
    "vm.resume",
    "vm.shutdown",
    "vm.reboot",
    "vm.power-button",
    "vm.snapshot",
    "vm.restore",
    "vm.resize",
    "vm.resize-disk",
    "vm.remove-device",
    "vm.add-disk",
    "vm.add-net",
    "vm.add-fs",
    "vm.add-vsock",
    "vm.add-user-device",
];
const NOT_YET: [&str; 9] = [
    "vm.nmi",
    "vm.resize-zone",
    "vm.coredump",
    "vm.receive-migration",
    "vm.send-migration",
    "vm.add-device",
    "vm.add-generic-vhost-user",
    "vm.add-pmem",
    "vm.add-vdpa",
];

#[test]
fn what_is_not_there_yet_says_so() {
    let world = World::new();
    for call in NOT_YET {
        let (status, body) = world.put(call, &json!({"any": "thing"}));
        assert_eq!(status, 501, "{call}");
        assert_eq!(body, json!([format!("{call} is not supported yet")]));
    }
}

#[test]
fn the_document_has_every_call() {
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), GETS.len() + PUTS.len() + NOT_YET.len());
    for (method, calls) in [("get", &GETS[..]), ("put", &PUTS), ("put", &NOT_YET)] {
        for call in calls {
            let path = &paths[&format!("/{call}")];
            assert!(
                path[method].is_object() && path.as_object().unwrap().len() == 1,
                "{method} {call}"
            );
        }
    }
    let body = &document["paths"]["/vm.create"]["put"]["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(body["$ref"], "#/components/schemas/VmConfig");
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["RestoreConfig"]["required"], json!(["source_url"]));
    assert!(schemas["VmSnapshotConfig"]["required"].is_null());
}
