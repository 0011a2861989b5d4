//! Devices that come and go.
//!
//! A device is added to the configuration of a VM that does not run, and plugged into a machine that does. One that is to go
//! is taken out of the configuration at once if there is no machine; else the guest is asked, and an event says when it has
//! let go. A guest that is switched off or reset has let go of everything.

use std::sync::Arc;

use super::{Control, DeviceNode, Guest, Inner, News, PciDeviceInfo, View, VmState, Vmm, VmmError, lock};
use crate::config::{ConfigError, DeviceSpec, VmConfig, VmResize};

/// The name of the balloon.
const BALLOON: &str = "balloon";
/// What a balloon counts in (virtio 1.2, "Traditional Memory Balloon Device").
const PAGE: u64 = 4096;

impl Vmm {
    /// Adds the device that `spec` asks for, on behalf of `call`. Of a machine that runs, or is paused, it is told where the
    /// device is.
    ///
    /// # Errors
    /// [`VmmError::NoVm`]; [`VmmError::BadConfig`] if the configuration takes no such device; [`VmmError::Device`] if the
    /// machine cannot have it. The VM is as before then.
    pub fn add_device(&self, call: &'static str, spec: DeviceSpec) -> Result<Option<PciDeviceInfo>, VmmError> {
        let inner = &self.inner;
        let control = inner.control()?;
        let mut config = VmConfig::clone(&inner.view()?.config);
        let section = spec.section();
        let one = || ConfigError::Value {
            field: section.to_owned(),
            value: "there already".to_owned(),
            expected: "one at most".to_owned(),
        };
        let refused = |source| VmmError::BadConfig { source };
        let id = config.add_device(spec).ok_or_else(|| refused(one()))?;
        inner.check(&config).map_err(refused)?;
        let Some(machine) = &control.machine else {
            inner.set_config(config);
            inner.events.emit("vm", "device-added", &[("id", &id)]);
            return Ok(None);
        };
        let spec = config.pci_devices().into_iter().find(|(name, _)| *name == id);
        let (_, spec) = spec.expect("it was added above");
        let number = machine.add_device(&id, &spec).map_err(|source| VmmError::Device {
            call,
            id: id.clone(),
            source,
        })?;
        let node = DeviceNode::new(&id, number);
        let bdf = node.pci_bdf.clone();
        inner.set_config(config);
        inner.change(|view| _ = view.devices.insert(id.clone(), node));
        inner.events.emit("vm", "device-added", &[("id", &id), ("bdf", &bdf)]);
        Ok(Some(PciDeviceInfo { id, bdf }))
    }

    /// Takes the device called `id` out of a VM that does not run, or asks the guest to let go of it: the event
    /// `device-removed` says when it has, and the name is free only then. Who asks again reminds the guest.
    ///
    /// # Errors
    /// [`VmmError::NoVm`], [`VmmError::NoDevice`], [`VmmError::Fixed`], or [`VmmError::BadConfig`] if something else in the
    /// configuration names the device.
    pub fn remove_device(&self, id: &str) -> Result<(), VmmError> {
        let inner = &self.inner;
        let control = inner.control()?;
        let mut config = VmConfig::clone(&inner.view()?.config);
        let known = config.pci_device_names();
        if !known.iter().any(|name| name == id) {
            let id = id.to_owned();
            return Err(VmmError::NoDevice { id, known });
        }
        if config.remove_device(id).is_none() {
            return Err(VmmError::Fixed { id: id.to_owned() });
        }
        inner.check(&config).map_err(|source| VmmError::BadConfig { source })?;
        match &control.machine {
            Some(machine) if machine.remove_device(id) => {
                inner.change(|view| {
                    if let Some(node) = view.devices.get_mut(id) {
                        node.removing = true;
                    }
                });
                inner.events.emit("vm", "device-removing", &[("id", id)]);
            }
            _ => {
                inner.set_config(config);
                inner.events.emit("vm", "device-removed", &[("id", id)]);
            }
        }
        Ok(())
    }

    /// Changes what the balloon takes from the guest.
    ///
    /// # Errors
    /// [`VmmError::NoVm`], [`VmmError::BadConfig`] naming what cannot be changed, or [`VmmError::Resize`].
    pub fn resize(&self, resize: &VmResize) -> Result<(), VmmError> {
        let inner = &self.inner;
        let control = inner.control()?;
        let mut config = VmConfig::clone(&inner.view()?.config);
        let fixed = |field: &str, asked: u64, is: u64| match asked == is {
            true => Ok(()),
            false => Err(ConfigError::NotSupported {
                field: field.to_owned(),
                asked: format!("{asked}"),
                expected: format!("{is}, what there is"),
            }),
        };
        let refused = |source| VmmError::BadConfig { source };
        let vcpus = config.cpus.boot_vcpus;
        fixed(
            "desired_vcpus",
            resize.desired_vcpus.unwrap_or(vcpus).into(),
            vcpus.into(),
        )
        .map_err(refused)?;
        let ram = config.memory.size;
        fixed("desired_ram", resize.desired_ram.unwrap_or(ram), ram).map_err(refused)?;
        let Some(bytes) = resize.desired_balloon else {
            return Ok(());
        };
        let value = |expected: &str| {
            refused(ConfigError::Value {
                field: "desired_balloon".to_owned(),
                value: bytes.to_string(),
                expected: expected.to_owned(),
            })
        };
        let Some(balloon) = &mut config.balloon else {
            return Err(value("none, for the VM has no balloon"));
        };
        balloon.size = bytes;
        // What a configuration may say from the start.
        if !bytes.is_multiple_of(PAGE) || bytes >= ram {
            return Err(value(&format!(
                "a multiple of {PAGE} below the {ram} bytes of the VM's memory"
            )));
        }
        if let Some(machine) = &control.machine {
            inner.resize_device(&**machine, "vm.resize", BALLOON, bytes)?;
        }
        inner.set_config(config);
        Ok(())
    }

    /// Gives the disk called `id` a capacity of `bytes`.
    ///
    /// # Errors
    /// [`VmmError::NoVm`], [`VmmError::WrongState`], [`VmmError::NoDevice`], or [`VmmError::Resize`].
    pub fn resize_disk(&self, id: &str, bytes: u64) -> Result<(), VmmError> {
        const CALL: &str = "vm.resize-disk";
        let inner = &self.inner;
        let control = inner.control()?;
        inner.expect(CALL, "Running or Paused", &[VmState::Running, VmState::Paused])?;
        let config = inner.view()?.config;
        let known: Vec<_> = config.disks.iter().filter_map(|disk| disk.id.clone()).collect();
        if !known.iter().any(|name| name == id) {
            let id = id.to_owned();
            return Err(VmmError::NoDevice { id, known });
        }
        match &control.machine {
            Some(machine) => inner.resize_device(&**machine, CALL, id, bytes),
            None => Ok(()),
        }
    }
}

impl Inner {
    fn resize_device(&self, machine: &dyn Guest, call: &'static str, id: &str, bytes: u64) -> Result<(), VmmError> {
        machine.resize_device(id, bytes).map_err(|source| VmmError::Resize {
            call,
            id: id.to_owned(),
            source,
        })?;
        let size = bytes.to_string();
        self.events.emit("vm", "device-resized", &[("id", id), ("size", &size)]);
        Ok(())
    }

    /// Makes a new machine's acquaintance: what it has, and that it tells when that changes.
    pub(super) fn greet(&self, machine: &dyn Guest, generation: u64) {
        let news = self.news.clone();
        machine.on_eject(Box::new(move || {
            // Nobody listens only when the VMM itself is gone, and then nothing is left to do.
            let _ = news.send((generation, News::Ejected));
        }));
        let going = machine.going();
        let nodes = machine.devices().into_iter().map(|(name, number)| {
            let mut node = DeviceNode::new(&name, number);
            node.removing = going.contains(&name);
            (name, node)
        });
        let nodes = nodes.collect();
        let translating = machine.translates();
        self.change(|view| {
            view.devices = nodes;
            view.translating = translating;
        });
    }

    /// Brings the configuration in line with what the guest has let go of.
    pub(super) fn settle(&self, control: &Control) {
        if let Some(machine) = &control.machine {
            self.forget(&machine.take_ejected());
        }
    }

    /// Takes devices that are gone out of the configuration, and says so.
    pub(super) fn forget(&self, gone: &[String]) {
        for id in gone {
            self.change(|view| {
                let mut config = VmConfig::clone(&view.config);
                config.remove_device(id);
                view.config = Arc::new(config);
                view.devices.remove(id);
            });
            self.events.emit("vm", "device-removed", &[("id", id)]);
        }
    }

    fn set_config(&self, config: VmConfig) {
        self.change(|view| view.config = Arc::new(config));
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        if let Some(view) = &mut *lock(&self.view) {
            change(view);
        }
    }
}
