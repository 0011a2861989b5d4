//! The PCI devices of a configuration, whichever section they stand in.
//!
//! # Invariants
//! - A device has one name for as long as it is there. Who gives none is given one: the section's word and a number, and
//!   [`VmConfig::name_devices`] writes it down, so that it stays when a device before it goes.
//! - What is added to a configuration, and what is taken out, goes through here: the machine and its configuration never differ.

use std::collections::BTreeSet;

use super::{
    BalloonConfig, ConsoleConfig, ConsoleMode, DiskConfig, FsConfig, NetConfig, RngConfig, UserDeviceConfig, VmConfig,
    VsockConfig,
};

/// A PCI device as a section of the configuration asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSpec {
    /// An entry of `disks`.
    Disk(DiskConfig),
    /// `rng`.
    Rng(RngConfig),
    /// An entry of `net`.
    Net(NetConfig),
    /// `balloon`.
    Balloon(BalloonConfig),
    /// An entry of `fs`.
    Fs(FsConfig),
    /// `console`.
    Console(ConsoleConfig),
    /// `vsock`.
    Vsock(VsockConfig),
    /// An entry of `user_devices`.
    User(UserDeviceConfig),
}

impl DeviceSpec {
    /// The section of the configuration.
    pub fn section(&self) -> &'static str {
        match self {
            Self::Disk(_) => "disks",
            Self::Rng(_) => "rng",
            Self::Net(_) => "net",
            Self::Balloon(_) => "balloon",
            Self::Fs(_) => "fs",
            Self::Console(_) => "console",
            Self::Vsock(_) => "vsock",
            Self::User(_) => "user_devices",
        }
    }

    /// What names that are made begin with.
    fn word(&self) -> &'static str {
        match self {
            Self::Disk(_) => "disk",
            Self::Rng(_) => "rng",
            Self::Net(_) => "net",
            Self::Balloon(_) => "balloon",
            Self::Fs(_) => "fs",
            Self::Console(_) => "console",
            Self::Vsock(_) => "vsock",
            Self::User(_) => "user",
        }
    }

    /// Whether there can be several, whose names are numbered.
    fn numbered(&self) -> bool {
        matches!(self, Self::Disk(_) | Self::Net(_) | Self::Fs(_) | Self::User(_))
    }

    /// The name, if the configuration gives one.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Disk(DiskConfig { id, .. })
            | Self::Net(NetConfig { id, .. })
            | Self::Fs(FsConfig { id, .. })
            | Self::Vsock(VsockConfig { id, .. })
            | Self::User(UserDeviceConfig { id, .. }) => id.as_deref(),
            Self::Rng(_) | Self::Balloon(_) | Self::Console(_) => None,
        }
    }

    /// Gives it a name, where the section has room for one.
    fn set_id(&mut self, name: &str) {
        match self {
            Self::Disk(DiskConfig { id, .. })
            | Self::Net(NetConfig { id, .. })
            | Self::Fs(FsConfig { id, .. })
            | Self::Vsock(VsockConfig { id, .. })
            | Self::User(UserDeviceConfig { id, .. }) => *id = Some(name.to_owned()),
            Self::Rng(_) | Self::Balloon(_) | Self::Console(_) => {}
        }
    }
}

impl VmConfig {
    /// The PCI devices with their names, in the order of their device numbers: names are what the configuration says, or
    /// `disk0`, `disk1`, `net0`, …, `rng`, `balloon`, `console` and `vsock`.
    pub fn pci_devices(&self) -> Vec<(String, DeviceSpec)> {
        let specs = self.specs();
        let mut taken: BTreeSet<String> = specs.iter().filter_map(|spec| Some(spec.id()?.to_owned())).collect();
        let mut sections = std::collections::BTreeMap::new();
        let named = specs.into_iter().map(|spec| {
            let index = sections.entry(spec.section()).or_insert(0_usize);
            let name = match spec.id() {
                Some(id) => id.to_owned(),
                None if !spec.numbered() => spec.word().to_owned(),
                None => (*index..)
                    .map(|number| format!("{}{number}", spec.word()))
                    .find(|name| !taken.contains(name))
                    .expect("there are more numbers than devices"),
            };
            *index += 1;
            taken.insert(name.clone());
            (name, spec)
        });
        named.collect()
    }

    /// The names of the PCI devices, in the order of their device numbers.
    pub fn pci_device_names(&self) -> Vec<String> {
        self.pci_devices().into_iter().map(|(name, _)| name).collect()
    }

    /// Whether the guest's memory is where other processes can map it: because the configuration says so, or because it has
    /// devices in other processes.
    pub fn shares_memory(&self) -> bool {
        let disks = self.disks.iter().any(|disk| disk.vhost_user);
        self.memory.shared || disks || !self.fs.is_empty() || !self.user_devices.is_empty()
    }

    /// Writes down the names that were made.
    pub fn name_devices(&mut self) {
        for (place, (name, mut spec)) in self.pci_devices().into_iter().enumerate() {
            if spec.id().is_none() {
                spec.set_id(&name);
                self.replace(place, spec);
            }
        }
    }

    /// Adds a device to its section, and returns its name, which is written down. Whether the whole is a machine is for
    /// [`validate`](Self::validate) to say. `None` if the section takes one only and has it.
    pub fn add_device(&mut self, spec: DeviceSpec) -> Option<String> {
        let section = spec.section();
        match spec {
            DeviceSpec::Disk(config) => self.disks.push(config),
            DeviceSpec::Net(config) => self.net.push(config),
            DeviceSpec::Fs(config) => self.fs.push(config),
            DeviceSpec::User(config) => self.user_devices.push(config),
            DeviceSpec::Vsock(config) if self.vsock.is_none() => self.vsock = Some(config),
            DeviceSpec::Balloon(config) if self.balloon.is_none() => self.balloon = Some(config),
            DeviceSpec::Vsock(_) | DeviceSpec::Balloon(_) | DeviceSpec::Rng(_) | DeviceSpec::Console(_) => return None,
        }
        self.name_devices();
        let devices = self.pci_devices();
        let added = devices.into_iter().rev().find(|(_, spec)| spec.section() == section);
        added.map(|(name, _)| name)
    }

    /// Takes the device called `name` out, and returns what asked for it. `None` if there is none of that name, or one that
    /// every machine has.
    pub fn remove_device(&mut self, name: &str) -> Option<DeviceSpec> {
        self.name_devices();
        let (_, spec) = self.pci_devices().into_iter().find(|(own, _)| own == name)?;
        let is = |id: &Option<String>| id.as_deref() == Some(name);
        match &spec {
            DeviceSpec::Disk(_) => self.disks.retain(|disk| !is(&disk.id)),
            DeviceSpec::Net(_) => self.net.retain(|net| !is(&net.id)),
            DeviceSpec::Fs(_) => self.fs.retain(|fs| !is(&fs.id)),
            DeviceSpec::User(_) => self.user_devices.retain(|user| !is(&user.id)),
            DeviceSpec::Vsock(_) => self.vsock = None,
            DeviceSpec::Balloon(_) => self.balloon = None,
            DeviceSpec::Rng(_) | DeviceSpec::Console(_) => return None,
        }
        Some(spec)
    }

    fn specs(&self) -> Vec<DeviceSpec> {
        let mut specs: Vec<_> = self.disks.iter().cloned().map(DeviceSpec::Disk).collect();
        specs.push(DeviceSpec::Rng(self.rng.clone()));
        specs.extend(self.net.iter().cloned().map(DeviceSpec::Net));
        specs.extend(self.balloon.iter().cloned().map(DeviceSpec::Balloon));
        specs.extend(self.fs.iter().cloned().map(DeviceSpec::Fs));
        if self.console.mode != ConsoleMode::Off {
            specs.push(DeviceSpec::Console(self.console.clone()));
        }
        specs.extend(self.vsock.iter().cloned().map(DeviceSpec::Vsock));
        specs.extend(self.user_devices.iter().cloned().map(DeviceSpec::User));
        specs
    }

    /// Puts `spec` in the place of the device that stands at `place` in [`specs`](Self::specs).
    fn replace(&mut self, place: usize, spec: DeviceSpec) {
        let section = spec.section();
        let before = self.specs().into_iter().take(place);
        let index = before.filter(|other| other.section() == section).count();
        match spec {
            DeviceSpec::Disk(config) => self.disks[index] = config,
            DeviceSpec::Net(config) => self.net[index] = config,
            DeviceSpec::Fs(config) => self.fs[index] = config,
            DeviceSpec::User(config) => self.user_devices[index] = config,
            DeviceSpec::Vsock(config) => self.vsock = Some(config),
            DeviceSpec::Rng(_) | DeviceSpec::Balloon(_) | DeviceSpec::Console(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_json;

    fn config(text: &str) -> VmConfig {
        from_json(format!(r#"{{"payload": {{"kernel": "/k"}}{text}}}"#).as_bytes()).unwrap()
    }

    fn disk(text: &str) -> DeviceSpec {
        DeviceSpec::Disk(from_json(text.as_bytes()).unwrap())
    }

    #[test]
    fn a_name_that_was_made_is_free_and_stays_when_others_go() {
        let mut config = config(r#", "disks": [{"path": "/a", "id": "disk1"}, {"path": "/b"}, {"path": "/c"}]"#);
        assert_eq!(config.pci_device_names(), ["disk1", "disk2", "disk3", "rng"]);
        assert!(config.remove_device("disk1").is_some());
        assert_eq!(config.pci_device_names(), ["disk2", "disk3", "rng"]);
        assert_eq!(config.disks[0].id.as_deref(), Some("disk2"));
        assert_eq!(config.add_device(disk(r#"{"path": "/d"}"#)).as_deref(), Some("disk4"));
        assert_eq!(
            config.add_device(disk(r#"{"path": "/e", "id": "e"}"#)).as_deref(),
            Some("e")
        );
        assert_eq!(config.remove_device("disk1"), None);
        assert_eq!(config.remove_device("rng"), None, "every machine has it");
    }

    #[test]
    fn every_section_can_be_added_to_and_taken_from() {
        let mut own = config("");
        let specs = [
            ("disk0", disk(r#"{"path": "/a"}"#)),
            ("net0", DeviceSpec::Net(from_json(b"{}").unwrap())),
            (
                "fs0",
                DeviceSpec::Fs(from_json(br#"{"tag": "t", "socket": "/s"}"#).unwrap()),
            ),
            ("user0", DeviceSpec::User(from_json(br#"{"socket": "/s"}"#).unwrap())),
            (
                "vsock",
                DeviceSpec::Vsock(from_json(br#"{"cid": 3, "socket": "/s"}"#).unwrap()),
            ),
            ("balloon", DeviceSpec::Balloon(from_json(br#"{"size": 0}"#).unwrap())),
        ];
        for (name, spec) in &specs {
            assert_eq!(own.add_device(spec.clone()).as_deref(), Some(*name));
        }
        assert_eq!(own.add_device(specs[4].1.clone()), None, "there is one vsock");
        for (name, spec) in &specs {
            let taken = own.remove_device(name).unwrap();
            assert_eq!((taken.section(), taken.word()), (spec.section(), spec.word()));
        }
        assert_eq!(own, config(""));
    }
}
