use std::fs;

use serde::Deserialize;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::config::{ConfigError, MemoryConfig, PayloadConfig};

/// A machine's state, as far as this module is concerned.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Machine {
    name: String,
    registers: Vec<u64>,
}

fn machine() -> Machine {
    Machine {
        name: "one".to_owned(),
        registers: vec![0, 7, u64::MAX],
    }
}

fn config() -> VmConfig {
    VmConfig {
        memory: MemoryConfig::of(4 << 20),
        payload: PayloadConfig {
            kernel: Some("/a kernel".into()),
            ..PayloadConfig::default()
        },
        ..VmConfig::default()
    }
}

fn memory() -> GuestMemory {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
    memory.write_slice(b"a guest", GuestAddress(0x1234)).unwrap();
    memory
}

fn saved() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    save(&path, &config(), &memory(), &machine()).unwrap();
    (folder, path)
}

#[test]
fn what_was_saved_is_restored() {
    let (_folder, path) = saved();
    let snapshot = Snapshot::open(&path).unwrap();
    assert_eq!(*snapshot.config(), config());
    assert_eq!(snapshot.machine::<Machine>().unwrap(), machine());
    for prefault in [Prefault::No, Prefault::Yes] {
        let mut text = [0; 7];
        let memory = snapshot.memory(prefault).unwrap();
        memory.read_slice(&mut text, GuestAddress(0x1234)).unwrap();
        assert_eq!(&text, b"a guest");
    }
}

#[test]
fn an_open_snapshot_outlives_its_folder() {
    let (_folder, path) = saved();
    let snapshot = Snapshot::open(&path).unwrap();
    fs::remove_dir_all(&path).unwrap();
    assert!(snapshot.memory(Prefault::No).is_ok());
}

#[test]
fn every_byte_of_the_configuration_counts() {
    let (_folder, path) = saved();
    let file = path.join("config.json");
    let text = fs::read(&file).unwrap();
    let refused = |text: &[u8]| {
        fs::write(&file, text).unwrap();
        Snapshot::open(&path).unwrap_err()
    };
    for at in 0..text.len() {
        let error = refused(&text[..at]);
        assert!(
            matches!(&error, SnapshotError::Length { path, .. } if *path == file),
            "{error:?}"
        );
        let mut other = text.clone();
        other[at] ^= 1 << (at % 8);
        let error = refused(&other);
        assert!(
            matches!(&error, SnapshotError::Damaged { path, .. } if *path == file),
            "{error:?}"
        );
    }
    refused(b"");
    fs::write(&file, &text).unwrap();
    Snapshot::open(&path).unwrap();
}

#[test]
fn a_state_that_is_not_this_machine_s_is_an_error_that_says_what() {
    let (_folder, path) = saved();
    let error = Snapshot::open(&path).unwrap().machine::<Vec<u8>>().unwrap_err();
    assert!(matches!(error, SnapshotError::Content { .. }), "{error:?}");
}

#[test]
fn a_configuration_says_what_its_json_says() {
    let (_folder, path) = saved();
    let text = fs::read(path.join("config.json")).unwrap();
    let read: Result<VmConfig, ConfigError> = VmConfig::from_json(&text);
    assert_eq!(read.unwrap(), config());
}
