//! The files that a configuration names, and whether they lie beneath what is let through.

use std::path::{Path, PathBuf};

use crate::config::{ConsoleConfig, LandlockConfig, VmConfig};

/// What the process uses whatever it runs, to read.
pub(super) const ALWAYS_READ: [&str; 6] = [
    "/proc",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/sys/class/net",
    "/sys/devices/virtual/net",
    "/dev/urandom",
];
/// The same, to write too.
pub(super) const ALWAYS_WRITTEN: [&str; 6] = [
    "/dev/kvm",
    "/dev/net/tun",
    "/dev/null",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
];

/// A file or folder that is used.
pub(super) struct Named {
    /// The field that names it.
    pub(super) field: String,
    /// Itself.
    pub(super) path: PathBuf,
    access: Access,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    /// It is made, so its folder counts.
    Make,
}

impl Named {
    /// The rule that lets it through.
    pub(super) fn rule(&self) -> LandlockConfig {
        let (path, access) = match self.access {
            Access::Read => (self.path.clone(), "r"),
            Access::Write => (self.path.clone(), "rw"),
            Access::Make => (folder(&self.path), "rw"),
        };
        LandlockConfig {
            path,
            access: access.to_owned(),
        }
    }
}

/// Whether `path` lies beneath one of `rules`, or what is let through always.
pub(super) fn beneath(path: &Path, rules: &[LandlockConfig]) -> bool {
    // What is not there yet lies where its folder does.
    let real = |path: &Path| {
        let whole = path.canonicalize();
        whole.or_else(|_| folder(path).canonicalize())
    };
    let Ok(path) = real(path) else {
        // That it is not there is for somebody else to say.
        return true;
    };
    let always = ALWAYS_READ.iter().chain(&ALWAYS_WRITTEN).map(Path::new);
    let rules = rules.iter().map(|rule| &*rule.path);
    let mut places = rules
        .chain(always)
        .map(|place| real(place).unwrap_or_else(|_| place.to_owned()));
    places.any(|place| path.starts_with(place))
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The files that `config` names.
pub(super) fn named(config: &VmConfig) -> Vec<Named> {
    let mut named = Vec::new();
    let mut add = |field: String, path: Option<PathBuf>, access| {
        named.extend(path.map(|path| Named { field, path, access }));
    };
    let payload = &config.payload;
    add("payload.kernel".to_owned(), payload.kernel.clone(), Access::Read);
    add("payload.initramfs".to_owned(), payload.initramfs.clone(), Access::Read);
    for (index, disk) in config.disks.iter().enumerate() {
        let access = if disk.readonly { Access::Read } else { Access::Write };
        add(format!("disks[{index}].path"), disk.path.clone(), access);
        let socket = disk.vhost_socket.clone().map(PathBuf::from);
        add(format!("disks[{index}].vhost_socket"), socket, Access::Write);
        if disk.backing_files {
            // The images behind it are told by itself; they usually lie beside it.
            add(
                format!("disks[{index}].path"),
                disk.path.as_deref().map(folder),
                Access::Read,
            );
        }
    }
    add("rng.src".to_owned(), Some(config.rng.src.clone().into()), Access::Read);
    for (index, fs) in config.fs.iter().enumerate() {
        add(
            format!("fs[{index}].socket"),
            Some(fs.socket.clone().into()),
            Access::Write,
        );
    }
    for (index, device) in config.user_devices.iter().enumerate() {
        add(
            format!("user_devices[{index}].socket"),
            Some(device.socket.clone()),
            Access::Write,
        );
    }
    if let Some(vsock) = &config.vsock {
        add(
            "vsock.socket".to_owned(),
            Some(vsock.socket.clone().into()),
            Access::Make,
        );
    }
    for (name, console) in [("serial", &config.serial), ("console", &config.console)] {
        let ConsoleConfig { file, socket, .. } = console;
        add(format!("{name}.file"), file.clone(), Access::Make);
        add(format!("{name}.socket"), socket.clone(), Access::Make);
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(path: &Path) -> LandlockConfig {
        LandlockConfig {
            path: path.to_owned(),
            access: "rw".to_owned(),
        }
    }

    #[test]
    fn a_path_lies_beneath_a_rule_by_its_real_name_also_before_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("inside"), folder.path().join("outside"));
        for folder in [&inside, &outside] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::write(outside.join("file"), "").unwrap();
        std::os::unix::fs::symlink(outside.join("file"), inside.join("link")).unwrap();
        let rules = [rule(&inside)];
        assert!(beneath(&inside.join("new"), &rules));
        assert!(!beneath(&outside.join("new"), &rules));
        assert!(!beneath(&inside.join("link"), &rules), "it leads outside");
        assert!(!beneath(&inside.join("../outside/file"), &rules));
        assert!(!beneath(&outside.join("file"), &[]));
    }

    #[test]
    fn what_a_configuration_names_is_told_with_its_field() {
        let config: VmConfig = serde_json::from_str(
            r#"{"payload": {"kernel": "/k"}, "disks": [{"path": "/d", "readonly": true}, {"path": "/e"}],
                "serial": {"mode": "Socket", "socket": "/run/s"}}"#,
        )
        .unwrap();
        let told: Vec<_> = named(&config)
            .iter()
            .map(|named| {
                let LandlockConfig { path, access } = named.rule();
                format!("{} {} {access}", named.field, path.display())
            })
            .collect();
        assert_eq!(
            told,
            [
                "payload.kernel /k r",
                "disks[0].path /d r",
                "disks[1].path /e rw",
                "rng.src /dev/urandom r",
                "serial.socket /run rw",
            ]
        );
    }
}
