//! `vm.snapshot` and `vm.restore`, over REST and as calls.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use reprise_vmm::events::Events;
use reprise_vmm::lifecycle::{Restore, VmState, VmmError, WhenGuestEnds};
use reprise_vmm::snapshot::SnapshotError;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::doubles::Doubles;
use crate::world::{World, chain};

/// A place for snapshots.
struct Shelf {
    _folder: TempDir,
    path: PathBuf,
}

impl Shelf {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            path: folder.path().join("snap"),
            _folder: folder,
        }
    }

    fn url(&self) -> String {
        format!("file://{}", self.path.display())
    }

    fn destination(&self) -> Value {
        json!({"destination_url": self.url()})
    }

    fn source(&self) -> Value {
        json!({"source_url": self.url()})
    }
}

const DONE: (u16, Value) = (204, Value::Null);

fn paused() -> World {
    let world = World::running();
    world.doubles.set_word(7);
    assert_eq!(world.put("vm.pause", &Value::Null), DONE);
    world
}

/// The snapshot of a VM on a shelf.
fn saved() -> Shelf {
    let shelf = Shelf::new();
    assert_eq!(paused().put("vm.snapshot", &shelf.destination()), DONE);
    shelf
}

#[test]
fn a_vm_is_saved_goes_on_and_is_restored_by_another_vmm() {
    let (world, shelf) = (paused(), Shelf::new());
    assert_eq!(world.put("vm.snapshot", &shelf.destination()), DONE);
    assert_eq!(world.state(), "Paused");
    assert_eq!(world.put("vm.resume", &Value::Null), DONE);
    assert_eq!(world.doubles.asked(), ["build", "start", "pause", "snapshot", "resume"]);
    let saved = world.get("vm.info").1["config"].take();

    let other = World::new();
    assert_eq!(other.put("vm.restore", &shelf.source()), DONE);
    let (status, info) = other.get("vm.info");
    assert_eq!(
        (status, &info["state"], &info["config"]),
        (200, &json!("Paused"), &saved)
    );
    assert_eq!(other.doubles.word(), 7);
    assert_eq!(other.put("vm.resume", &Value::Null), DONE);
    assert_eq!(other.state(), "Running");
    assert_eq!(other.doubles.asked(), ["restore", "resume"]);
    // What was restored lives like any other: it can end, and begin anew.
    assert_eq!(other.put("vm.reboot", &Value::Null), DONE);
    assert_eq!(other.put("vm.shutdown", &Value::Null), DONE);
    assert_eq!(other.put("vm.boot", &Value::Null), DONE);
    assert_eq!(
        other.doubles.asked()[2..],
        ["stop", "build", "start", "stop", "build", "start"]
    );
}

#[test]
fn a_vm_can_go_on_at_once_and_have_its_memory_at_once() {
    let (world, shelf) = (World::new(), saved());
    let mut how = shelf.source();
    (how["resume"], how["prefault"]) = (json!(true), json!(true));
    assert_eq!(world.put("vm.restore", &how), DONE);
    assert_eq!(world.state(), "Running");
    assert_eq!(world.doubles.asked(), ["restore at once", "resume"]);
}

#[test]
fn what_is_paused_only_can_be_saved() {
    let shelf = Shelf::new();
    let world = World::new();
    let refused = |world: &World, status: u16| {
        let (found, body) = world.put("vm.snapshot", &shelf.destination());
        assert_eq!(found, status, "{body}");
        assert!(chain(&body).contains("expected"), "{body}");
        assert!(!shelf.path.exists());
    };
    refused(&world, 404);
    refused(&World::created(), 409);
    refused(&World::running(), 409);
}

#[test]
fn a_vm_is_restored_where_there_is_none() {
    let shelf = saved();
    for world in [World::created(), World::running()] {
        let state = world.state();
        assert_eq!(world.put("vm.restore", &shelf.source()).0, 409);
        assert_eq!(world.state(), state);
    }
}

#[test]
fn urls_that_lead_nowhere_are_refused_by_name() {
    let world = paused();
    for body in [
        json!({}),
        json!({"destination_url": null}),
        json!({"destination_url": "/tmp/x"}),
    ] {
        let (status, answer) = world.put("vm.snapshot", &body);
        assert_eq!(status, 400, "{body}");
        let told = chain(&answer);
        assert!(
            told.contains("destination_url") && told.contains("expected file://"),
            "{told}"
        );
    }
    for (body, name) in [
        (json!({}), "source_url"),
        (json!({"source_url": "tmp"}), "source_url"),
        (json!({"source_url": "file:///nowhere", "colour": 1}), "colour"),
    ] {
        let (status, answer) = World::new().put("vm.restore", &body);
        assert_eq!(status, 400, "{body}");
        assert!(chain(&answer).contains(name), "{answer}");
    }
}

#[test]
fn a_snapshot_that_cannot_be_written_leaves_the_vm_and_what_was_there() {
    let (world, shelf) = (paused(), Shelf::new());
    fs::create_dir(&shelf.path).unwrap();
    fs::write(shelf.path.join("notes"), "mine").unwrap();
    let (status, body) = world.put("vm.snapshot", &shelf.destination());
    assert_eq!(status, 400);
    let told = chain(&body);
    assert!(
        told.contains("exists and is no snapshot") && told.contains("expected"),
        "{told}"
    );
    assert_eq!(fs::read_to_string(shelf.path.join("notes")).unwrap(), "mine");

    let (status, body) = world.put("vm.snapshot", &json!({"destination_url": "file:///nowhere/at/all"}));
    assert_eq!(status, 400, "{body}");
    let (status, body) = world.put("vm.snapshot", &json!({"destination_url": "file:///proc/self/snap"}));
    assert_eq!(status, 500, "{body}");

    assert_eq!(world.state(), "Paused");
    assert_eq!(world.put("vm.resume", &Value::Null), DONE);
}

#[test]
fn a_place_where_another_snapshot_is_being_written_is_a_conflict() {
    let (world, shelf) = (paused(), Shelf::new());
    let hidden = shelf.path.with_file_name(".snap.reprise-draft");
    fs::create_dir(&hidden).unwrap();
    let writer = fs::File::open(&hidden).unwrap();
    writer.try_lock().unwrap();
    let (status, body) = world.put("vm.snapshot", &shelf.destination());
    assert_eq!(status, 409);
    assert!(chain(&body).contains("is in use"), "{body}");
    assert!(hidden.exists() && !shelf.path.exists());
    drop(writer);
    assert_eq!(world.put("vm.snapshot", &shelf.destination()), DONE);
    assert!(!hidden.exists());
}

#[test]
fn a_snapshot_that_is_none_is_refused_and_no_vm_is_there() {
    let world = World::new();
    let refused = |source: &Path, part: &str| {
        let (status, body) = world.put(
            "vm.restore",
            &json!({"source_url": format!("file://{}", source.display())}),
        );
        assert_eq!(status, 400, "{body}");
        let told = chain(&body);
        assert!(
            told.contains("the snapshot cannot be restored") && told.contains(part),
            "{told}"
        );
        assert_eq!(world.get("vm.info").0, 404);
    };
    refused(
        Path::new("/nowhere/at/all"),
        "there is no snapshot at \"/nowhere/at/all\"",
    );
    let shelf = saved();
    let state = shelf.path.join("state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text.replacen("\"version\":3", "\"version\":4", 1)).unwrap();
    refused(
        &shelf.path,
        "version 4 of the snapshot format; this program reads version 3",
    );
    fs::write(&state, &text[..text.len() / 2]).unwrap();
    refused(&shelf.path, "state.json\" is damaged");
    fs::write(&state, &text).unwrap();
    fs::write(shelf.path.join("memory"), "short").unwrap();
    refused(&shelf.path, "memory\" has 5 bytes; expected 1048576");
    fs::remove_file(shelf.path.join("memory")).unwrap();
    refused(&shelf.path, "memory\" cannot be read");
    assert!(world.doubles.asked().is_empty());
    assert_eq!(
        world.put("vm.create", &crate::world::config()),
        DONE,
        "a VM can be made all the same"
    );
}

#[test]
fn a_snapshot_replaces_the_one_before() {
    let (world, shelf) = (paused(), Shelf::new());
    assert_eq!(world.put("vm.snapshot", &shelf.destination()), DONE);
    world.doubles.set_word(8);
    assert_eq!(world.put("vm.snapshot", &shelf.destination()), DONE);
    let other = World::new();
    assert_eq!(other.put("vm.restore", &shelf.source()), DONE);
    assert_eq!(other.doubles.word(), 8);
}

#[test]
fn events_tell_the_beginning_and_the_end() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let vmm = Doubles::new().vmm(WhenGuestEnds::Stay, Events::to(ours).unwrap());
    let shelf = saved();
    let how = Restore {
        serial: Some(reprise_vmm::config::ConsoleConfig::file("/another/place")),
        ..Restore::default()
    };
    let missing = vmm.restore(Path::new("/nowhere"), how.clone()).unwrap_err();
    assert!(matches!(missing, VmmError::Restore { source } if source.downcast_ref::<SnapshotError>().is_some()));
    vmm.restore(&shelf.path, how).unwrap();
    let info = vmm.info().unwrap();
    assert_eq!(info.state, VmState::Paused);
    assert_eq!(info.config.serial.file, Some("/another/place".into()));
    vmm.snapshot(&shelf.path).unwrap();
    vmm.close();
    let lines = BufReader::new(theirs).lines();
    let events: Vec<Value> = lines
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    let told = [
        "started",
        "restoring",
        "restoring",
        "restored",
        "snapshotting",
        "snapshotted",
        "stopping",
    ];
    assert_eq!(names, told);
    let place = shelf.path.to_str().unwrap();
    assert_eq!(
        (
            &events[3]["properties"]["source"],
            &events[5]["properties"]["destination"]
        ),
        (&json!(place), &json!(place))
    );
}
