//! What `vm.snapshot` and `vm.restore` take.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ConfigError;

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
    /// Interfaces for virtio-net devices; not there yet.
    #[serde(
        default,
        deserialize_with = "super::null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub net_fds: Vec<RestoredNetConfig>,
}

/// Interfaces for the network device of a machine that is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoredNetConfig {
    /// The device.
    pub id: String,
    /// How many come with the request.
    pub num_fds: usize,
}

impl RestoreConfig {
    /// The folder.
    ///
    /// # Errors
    /// [`ConfigError::Value`] if none is named, [`ConfigError::NotSupported`] if more is asked for than there is.
    pub fn path(&self) -> Result<PathBuf, ConfigError> {
        if !self.net_fds.is_empty() {
            return Err(ConfigError::NotSupported {
                field: "net_fds".to_owned(),
                asked: "network interfaces".to_owned(),
                expected: "none".to_owned(),
            });
        }
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
        let asks_for_more = read(r#"{"source_url": "file:///s", "net_fds": [{"id": "n", "num_fds": 1}]}"#).unwrap();
        assert!(matches!(asks_for_more.path(), Err(ConfigError::NotSupported { field, .. }) if field == "net_fds"));
        for text in [
            "{}",
            r#"{"source_url": "file:///s", "colour": 1}"#,
            r#"{"source_url": 1}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
