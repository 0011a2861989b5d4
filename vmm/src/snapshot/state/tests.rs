use serde_json::{Value, json};

use super::*;

fn content() -> Content<Value> {
    Content {
        config: Text::of(b"{}"),
        memory: serde_json::from_value(json!({"length": 4096, "ranges": [[0, 4096]], "chunks": [[0, 7]]})).unwrap(),
        machine: json!({"rip": u64::MAX, "name": "a \"quoted\" name\n", "list": [1, 2.5, null, true]}),
    }
}

fn read(text: &[u8]) -> Result<Content<Box<RawValue>>, SnapshotError> {
    parse(Path::new("/s/state.json"), text)
}

#[test]
fn what_was_rendered_is_parsed() {
    let text = render(&content()).unwrap();
    let found = read(&text).unwrap();
    assert_eq!(found.config, content().config);
    assert_eq!(found.memory, content().memory);
    assert_eq!(
        serde_json::from_str::<Value>(found.machine.get()).unwrap(),
        content().machine
    );
}

#[test]
fn every_byte_counts() {
    let text = render(&content()).unwrap();
    for at in 0..text.len() {
        let truncated = read(&text[..at]);
        assert!(
            matches!(truncated, Err(SnapshotError::Damaged { .. })),
            "{at}: {truncated:?}"
        );
        for change in 1..=255 {
            let mut other = text.clone();
            other[at] ^= change;
            let refused = read(&other);
            assert!(
                matches!(
                    refused,
                    Err(SnapshotError::Damaged { .. } | SnapshotError::Format { .. } | SnapshotError::Version { .. })
                ),
                "{at} {change}: {refused:?}"
            );
        }
    }
    for more in ["\n", " ", "}", "\0"] {
        let refused = read(&[&text, more.as_bytes()].concat());
        assert!(matches!(refused, Err(SnapshotError::Damaged { .. })), "{refused:?}");
    }
}

#[test]
fn a_newer_and_an_older_version_are_told_by_both_numbers_whatever_else_they_say() {
    for other in [1, 2, VERSION + 1, u64::MAX] {
        for rest in ["", r#","signature":"x","content":{"vcpus":[]},"crc32":{}"#] {
            let text = format!(r#"{{"format":"reprise-snapshot","version":{other}{rest}}}"#);
            let refused = read(text.as_bytes());
            assert!(
                matches!(refused, Err(SnapshotError::Version { found, reads: VERSION, .. }) if found == other),
                "{refused:?}"
            );
            let told = refused.unwrap_err().to_string();
            assert!(
                told.contains(&format!("version {other} ")) && told.ends_with(&format!("version {VERSION}")),
                "{told}"
            );
        }
    }
}

#[test]
fn what_others_wrote_is_no_snapshot() {
    for text in [
        r#"{"snapshots":{},"snapshot_data":null}"#,
        r#"{"format":"another","version":1}"#,
        r#"{"format":"reprise-snapshot"}"#,
        "{}",
    ] {
        let refused = read(text.as_bytes());
        assert!(
            matches!(refused, Err(SnapshotError::Format { .. })),
            "{text}: {refused:?}"
        );
    }
    for text in ["", "[]", "null", "\0\0\0\0", "hello"] {
        assert!(read(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_text_is_known_by_its_length_and_its_bytes() {
    let text = Text::of(b"{\"a\": 1}");
    let path = Path::new("/s/config.json");
    text.check(path, b"{\"a\": 1}").unwrap();
    for other in ["", "{\"a\": 1", "{\"a\": 1}\n"] {
        assert!(matches!(
            text.check(path, other.as_bytes()),
            Err(SnapshotError::Length { .. })
        ));
    }
    assert!(matches!(
        text.check(path, b"{\"a\": 2}"),
        Err(SnapshotError::Damaged { .. })
    ));
}
