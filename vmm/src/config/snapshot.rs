//! What `vm.snapshot` and `vm.restore` take.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ConfigError, VmConfig};

/// Where a snapshot is written to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSnapshotConfig {
    /// The folder, as file:// and an absolute path: a free path, an empty folder, or a snapshot to replace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_url: Option<String>,
}

impl VmSnapshotConfig {
    /// The folder.
    ///
    /// # Errors
    /// [`ConfigError::Value`] if none is named.
    pub fn path(&self) -> Result<PathBuf, ConfigError> {
        path("destination_url", self.destination_url.as_deref())
    }
}

/// What is restored, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    /// The folder that vm.snapshot wrote, as file:// and an absolute path.
    pub source_url: String,
    /// Whether all memory is read at once, and the folder not needed afterwards, instead of page by page when the guest
    /// touches it.
    #[serde(default)]
    pub prefault: bool,
    /// Whether the guest goes on at once, instead of when vm.resume says so.
    #[serde(default)]
    pub resume: bool,
    /// Taps for those network interfaces of the snapshot whose taps were given as file descriptors.
    #[serde(
        default,
        deserialize_with = "super::null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub net_fds: Vec<RestoredNetConfig>,
}

/// The tap of a network interface of a machine that is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoredNetConfig {
    /// The device.
    pub id: String,
    /// How many queue pairs it has.
    pub num_fds: usize,
    /// The queues, already open: file descriptors that this process has inherited, one for each pair. None come with a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fds: Option<Vec<i32>>,
}

impl VmConfig {
    /// Replaces the file descriptors of network interfaces, which were another process's, by those of `given`.
    ///
    /// # Errors
    /// [`ConfigError::Value`] if an interface gets none, or not as many as it had, or `given` is for none.
    pub(crate) fn replace_fds(&mut self, given: &[RestoredNetConfig]) -> Result<(), ConfigError> {
        let refused = |field: String, value: String, expected: String| ConfigError::Value { field, value, expected };
        let mut left: Vec<_> = self.net.iter_mut().filter(|net| net.fds.is_some()).collect();
        for (index, entry) in given.iter().enumerate() {
            let field = |name: &str| format!("net_fds[{index}].{name}");
            let Some(at) = left.iter().position(|net| net.id.as_deref() == Some(&entry.id)) else {
                let names: Vec<_> = left.iter().filter_map(|net| net.id.as_deref()).collect();
                let expected = format!(
                    "once, an interface of the snapshot whose tap was given as file descriptors, of which there are: {}",
                    names.join(", ")
                );
                return Err(refused(field("id"), entry.id.clone(), expected));
            };
            let net = left.remove(at);
            let Some(fds) = &entry.fds else {
                let expected = "file descriptors that this process has inherited: none come with a request";
                return Err(refused(field("fds"), "missing".to_owned(), expected.to_owned()));
            };
            let pairs = net.fds.as_ref().map_or(0, Vec::len);
            for (name, count) in [("num_fds", entry.num_fds), ("fds", fds.len())] {
                if count != pairs {
                    let expected = format!("{pairs}, one for each queue pair of {}", entry.id);
                    return Err(refused(field(name), count.to_string(), expected));
                }
            }
            net.fds = Some(fds.clone());
        }
        match left.first() {
            None => Ok(()),
            Some(net) => {
                let id = net.id.as_deref().unwrap_or_default();
                let expected = format!("an entry with id {id}, for its tap's file descriptors were another process's");
                Err(refused("net_fds".to_owned(), format!("nothing for {id}"), expected))
            }
        }
    }
}

impl RestoreConfig {
    /// The folder.
    ///
    /// # Errors
    /// [`ConfigError::Value`] if none is named.
    pub fn path(&self) -> Result<PathBuf, ConfigError> {
        path("source_url", Some(&self.source_url))
    }
}

/// The path that a URL leads to: taken as it stands, for the clients of this API do not encode what they send.
fn path(field: &str, url: Option<&str>) -> Result<PathBuf, ConfigError> {
    let path = url.and_then(|url| url.strip_prefix("file://"));
    path.filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .ok_or_else(|| ConfigError::Value {
            field: field.to_owned(),
            value: url.map_or_else(|| "missing".to_owned(), |url| format!("{url:?}")),
            expected: "file:// and an absolute path, like file:///tmp/snapshot".to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(url: &str) -> Result<PathBuf, ConfigError> {
        let destination_url = Some(url.to_owned());
        VmSnapshotConfig { destination_url }.path()
    }

    #[test]
    fn urls_are_of_files_and_absolute() {
        assert_eq!(destination("file:///tmp/snap").unwrap(), PathBuf::from("/tmp/snap"));
        let as_it_stands = "/tmp/100%25 snap";
        assert_eq!(
            destination(&format!("file://{as_it_stands}")).unwrap(),
            PathBuf::from(as_it_stands)
        );
        for url in [
            "",
            "/tmp/snap",
            "file:/tmp/snap",
            "file://",
            "file://host/tmp",
            "http:///tmp",
            "FILE:///tmp",
        ] {
            let refused = destination(url).unwrap_err().to_string();
            assert!(
                refused.contains("destination_url") && refused.contains("expected file://"),
                "{url}: {refused}"
            );
        }
        assert!(VmSnapshotConfig::default().path().is_err());
    }

    #[test]
    fn what_clients_spell_out_is_understood() {
        let read = |text: &str| crate::config::from_json::<RestoreConfig>(text.as_bytes());
        for text in [
            r#"{"source_url": "file:///s"}"#,
            r#"{"source_url": "file:///s", "prefault": false, "resume": false, "net_fds": null}"#,
        ] {
            let config = read(text).unwrap();
            assert_eq!((config.prefault, config.resume), (false, false));
            assert_eq!(config.path().unwrap(), PathBuf::from("/s"));
        }
        let taps = read(r#"{"source_url": "file:///s", "net_fds": [{"id": "n", "num_fds": 1}]}"#).unwrap();
        assert_eq!((taps.net_fds[0].num_fds, &taps.net_fds[0].fds), (1, &None));
        for text in [
            "{}",
            r#"{"source_url": "file:///s", "colour": 1}"#,
            r#"{"source_url": 1}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn each_interface_of_file_descriptors_gets_as_many_as_it_had_and_others_get_none() {
        let text = r#"{"payload": {"kernel": "/k"}, "net": [
            {"id": "a", "fds": [3, 4], "num_queues": 4}, {"id": "b", "tap": "t"}, {"id": "c", "fds": [5]}]}"#;
        let saved: VmConfig = crate::config::from_json(text.as_bytes()).unwrap();
        let with = |given: &str| {
            let given: Vec<RestoredNetConfig> = serde_json::from_str(given).unwrap();
            let mut config = saved.clone();
            config.replace_fds(&given).map(|()| config)
        };
        let a = r#"{"id": "a", "num_fds": 2, "fds": [7, 8]}"#;
        let given = with(&format!(r#"[{{"id": "c", "num_fds": 1, "fds": [9]}}, {a}]"#)).unwrap();
        let fds: Vec<_> = given.net.iter().map(|net| net.fds.clone()).collect();
        assert_eq!(fds, [Some(vec![7, 8]), None, Some(vec![9])]);
        for (wrong, told) in [
            ("[]".to_owned(), "net_fds is nothing for a"),
            (format!("[{a}]"), "net_fds is nothing for c"),
            (format!("[{a}, {a}]"), "net_fds[1].id is a"),
            (
                r#"[{"id": "b", "num_fds": 1, "fds": [7]}]"#.to_owned(),
                "net_fds[0].id is b",
            ),
            (r#"[{"id": "a", "num_fds": 2}]"#.to_owned(), "net_fds[0].fds is missing"),
            (
                r#"[{"id": "a", "num_fds": 1, "fds": [7]}]"#.to_owned(),
                "net_fds[0].num_fds is 1",
            ),
            (
                r#"[{"id": "a", "num_fds": 2, "fds": [7]}]"#.to_owned(),
                "net_fds[0].fds is 1",
            ),
        ] {
            let refused = with(&wrong).unwrap_err().to_string().replace('`', "");
            assert!(refused.contains(told), "{wrong}: {refused}");
        }
    }
}
