use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;

/// A folder for snapshots, and the path of one in it.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    (folder, path)
}

/// Begins at `path` and writes all files, each with `text`.
fn draft(path: &Path, text: &str) -> Draft {
    let mut draft = Draft::begin(path).unwrap();
    for name in FILES {
        draft.create(name).unwrap().write_all(text.as_bytes()).unwrap();
    }
    draft
}

fn text(path: &Path) -> String {
    fs::read_to_string(path.join(STATE)).unwrap()
}

/// The names in `folder`.
fn listing(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn hidden(folder: &TempDir) -> PathBuf {
    folder.path().join(".snapshot.reprise-draft")
}

#[test]
fn a_snapshot_is_there_once_it_is_published_and_nothing_else() {
    let (folder, path) = place();
    let draft = draft(&path, "one");
    assert!(!path.exists());
    draft.publish().unwrap();
    assert_eq!(listing(&folder), ["snapshot"]);
    assert_eq!(text(&path), "one");
    for (what, mode) in [(path.clone(), 0o700), (path.join(MEMORY), 0o600)] {
        assert_eq!(
            fs::metadata(what).unwrap().mode() & 0o777,
            mode,
            "memory is the guest's secret"
        );
    }
}

#[test]
fn a_draft_that_is_given_up_leaves_what_was_there() {
    let (folder, path) = place();
    drop(draft(&path, "none"));
    assert_eq!(listing(&folder), [""; 0]);
    draft(&path, "one").publish().unwrap();
    drop(draft(&path, "two"));
    assert_eq!(
        (listing(&folder), text(&path)),
        (vec!["snapshot".to_owned()], "one".to_owned())
    );
}

#[test]
fn an_empty_folder_is_taken_and_keeps_its_mode() {
    let (folder, path) = place();
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    draft(&path, "one").publish().unwrap();
    assert_eq!(
        (listing(&folder), text(&path)),
        (vec!["snapshot".to_owned()], "one".to_owned())
    );
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o750);
}

#[test]
fn a_snapshot_is_replaced_and_who_has_the_old_one_open_keeps_it() {
    let (folder, path) = place();
    draft(&path, "one").publish().unwrap();
    let mut old = Folder::open(&path).unwrap();
    draft(&path, "two").publish().unwrap();
    assert_eq!(
        (listing(&folder), text(&path)),
        (vec!["snapshot".to_owned()], "two".to_owned())
    );
    assert_eq!(io::read_to_string(old.file(MEMORY)).unwrap(), "one");
}

#[test]
fn a_link_to_a_snapshot_stays_a_link() {
    let (folder, path) = place();
    draft(&path, "one").publish().unwrap();
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    draft(&link, "two").publish().unwrap();
    assert_eq!(listing(&folder), ["link", "snapshot"]);
    assert_eq!((text(&path), fs::read_link(&link).unwrap()), ("two".to_owned(), path));
}

#[test]
fn what_is_no_snapshot_is_left_alone() {
    let (folder, path) = place();
    let foreign = |path: &Path| {
        let refused = Draft::begin(path).err();
        assert!(
            matches!(&refused, Some(SnapshotError::Foreign { path: named }) if named == path),
            "{refused:?}"
        );
    };
    fs::write(&path, "a file").unwrap();
    foreign(&path);
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    fs::write(path.join(CONFIG), "a folder of configurations").unwrap();
    foreign(&path);

    fs::remove_dir_all(&path).unwrap();
    draft(&path, "one").publish().unwrap();
    fs::write(path.join("notes"), "mine").unwrap();
    foreign(&path);
    assert_eq!(
        (listing(&folder), text(&path)),
        (vec!["snapshot".to_owned()], "one".to_owned())
    );
}

#[test]
fn what_appears_meanwhile_is_left_alone_too() {
    let (folder, path) = place();
    let unpublished = draft(&path, "one");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("notes"), "mine").unwrap();
    assert!(matches!(unpublished.publish(), Err(SnapshotError::Foreign { .. })));
    assert_eq!(fs::read_to_string(path.join("notes")).unwrap(), "mine");
    assert_eq!(listing(&folder), ["snapshot"]);
}

#[test]
fn a_folder_that_cannot_be_is_refused_by_name() {
    let (folder, path) = place();
    for bad in [
        path.join("deeper"),
        "/".into(),
        folder.path().join("nowhere/.."),
        "".into(),
    ] {
        let refused = Draft::begin(&bad).err();
        assert!(
            matches!(&refused, Some(SnapshotError::NoParent { path }) if *path == bad),
            "{bad:?}: {refused:?}"
        );
    }
    fs::write(&path, "a file").unwrap();
    let refused = Draft::begin(&path.join("under a file")).err();
    assert!(refused.is_some());
    let long = folder.path().join("x".repeat(250));
    let refused = Draft::begin(&long).err();
    assert!(
        matches!(&refused, Some(SnapshotError::Write { path, .. }) if *path == long),
        "{refused:?}"
    );
}

#[test]
fn one_writes_at_a_time() {
    let (folder, path) = place();
    let first = draft(&path, "one");
    assert!(matches!(Draft::begin(&path), Err(SnapshotError::InUse { path: named }) if named == path));
    // Another name is another place.
    drop(draft(&folder.path().join("other"), "other"));
    first.publish().unwrap();
    draft(&path, "two").publish().unwrap();
    assert_eq!(text(&path), "two");
}

#[test]
fn a_snapshot_whose_writer_is_not_done_with_it_is_in_use() {
    let (folder, path) = place();
    draft(&path, "one").publish().unwrap();
    let second = draft(&path, "two");
    let held = File::open(&path).unwrap();
    rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(matches!(second.publish(), Err(SnapshotError::InUse { .. })));
    assert_eq!(
        (listing(&folder), text(&path)),
        (vec!["snapshot".to_owned()], "one".to_owned())
    );
}

#[test]
fn leftovers_of_a_killed_writer_are_removed_by_the_next() {
    let (folder, path) = place();
    // Killed while it wrote, or after the exchange, before the old one was removed.
    for left in [&[MEMORY][..], &FILES, &[]] {
        fs::create_dir(hidden(&folder)).unwrap();
        for name in left {
            fs::write(hidden(&folder).join(name), "half").unwrap();
        }
        draft(&path, "whole").publish().unwrap();
        assert_eq!(
            (listing(&folder), text(&path)),
            (vec!["snapshot".to_owned()], "whole".to_owned())
        );
    }
}

#[test]
fn many_writers_at_once_leave_one_whole_snapshot() {
    let (folder, path) = place();
    let published: usize = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let path = &path;
                scope.spawn(move || {
                    let mut published = 0;
                    for round in 0..50 {
                        let text = format!("{writer} {round}");
                        let written = Draft::begin(path).and_then(|mut draft| {
                            for name in FILES {
                                draft.create(name)?.write_all(text.as_bytes()).unwrap();
                            }
                            draft.publish()
                        });
                        match written {
                            Ok(()) => published += 1,
                            Err(SnapshotError::InUse { .. }) => {}
                            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
                        }
                        if let Ok(mut seen) = Folder::open(path) {
                            let texts = FILES.map(|name| io::read_to_string(seen.file(name)).unwrap());
                            assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
                        }
                    }
                    published
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    });
    assert!(published > 0);
    assert_eq!(listing(&folder), ["snapshot"]);
}

#[test]
fn what_is_missing_is_named() {
    let (folder, path) = place();
    assert!(matches!(Folder::open(&path), Err(SnapshotError::Missing { path: named }) if named == path));
    fs::write(&path, "a file").unwrap();
    assert!(matches!(Folder::open(&path), Err(SnapshotError::Missing { .. })));
    fs::remove_file(&path).unwrap();
    for name in FILES {
        draft(&path, "one").publish().unwrap();
        fs::remove_file(path.join(name)).unwrap();
        let refused = Folder::open(&path).err();
        assert!(
            matches!(&refused, Some(SnapshotError::Read { path: named, .. }) if *named == path.join(name)),
            "{name}: {refused:?}"
        );
        fs::create_dir(path.join(name)).unwrap();
        let refused = Folder::open(&path).err();
        assert!(
            matches!(&refused, Some(SnapshotError::Format { path: named }) if *named == path.join(name)),
            "{name}: {refused:?}"
        );
        fs::remove_dir_all(&path).unwrap();
    }
    drop(folder);
}
