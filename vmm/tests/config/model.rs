//! A configuration with all that can be configured, changed by bytes.

use reprise_vmm::config::{DeviceSpec, VmConfig};
use serde_json::Value;

const WHOLE: &str = r#"{
    "cpus": {"boot_vcpus": 2, "max_vcpus": 2, "topology": null, "kvm_hyperv": false, "max_phys_bits": 46, "nested": true, "affinity": null,
             "features": {"amx": false}},
    "memory": {"size": 536870912, "hotplug_size": 0, "hotplugged_size": null, "mergeable": false, "hotplug_method": "Acpi",
               "shared": true, "hugepages": false, "hugepage_size": null, "prefault": false, "thp": true, "zones": []},
    "payload": {"firmware": null, "kernel": "/k", "cmdline": "console=ttyS0", "initramfs": "/i"},
    "disks": [{"path": "/d", "readonly": true, "num_queues": 2, "queue_size": 256, "id": "d0", "serial": "s",
               "image_type": "Qcow2", "rate_limiter_config": {"bandwidth": {"size": 1048576, "one_time_burst": 5,
               "refill_time": 100}, "ops": {"size": 10, "refill_time": 10}}},
              {"vhost_user": true, "vhost_socket": "/blk"}],
    "net": [{"tap": "tap0", "ip": "192.168.249.1", "mask": "255.255.255.0", "mac": "2e:89:a8:e4:bf:01", "num_queues": 2,
             "queue_size": 256, "id": "n0"}],
    "rng": {"src": "/dev/urandom"},
    "balloon": {"size": 1048576, "deflate_on_oom": true, "free_page_reporting": true},
    "fs": [{"tag": "t", "socket": "/fs", "num_queues": 1, "queue_size": 1024, "id": "f0"}],
    "serial": {"mode": "File", "file": "/f", "socket": null},
    "console": {"mode": "Null"},
    "debug_console": {"mode": "Off", "iobase": 233},
    "user_devices": [{"socket": "/u", "id": "u0"}],
    "vsock": {"cid": 3, "socket": "/v", "id": "v0"},
    "pmem": [], "devices": [], "vdpa": [], "numa": [], "iommu": false, "watchdog": false, "pvpanic": false,
    "pci_segments": null, "platform": {"num_pci_segments": 1, "tdx": false}, "tpm": null,
    "landlock_enable": false, "landlock_rules": null,
    "rate_limit_groups": []}"#;

/// What stands where something else is expected.
fn odd(which: u8, amount: u8) -> Value {
    let amount = u64::from(amount);
    match which % 16 {
        0 => Value::Null,
        1 => true.into(),
        2 => amount.into(),
        3 => u64::MAX.into(),
        4 => (1_u64 << (amount % 64)).into(),
        5 => ((1_u64 << (amount % 64)) - 1).into(),
        6 => (-1 - amount as i64).into(),
        7 => (amount as f64 * 1e300).into(),
        8 => "".into(),
        9 => "é\u{0}/../".repeat(amount as usize).into(),
        10 => "d0".into(),
        11 => "disk0".into(),
        12 => Value::Array(vec![Value::Null; amount as usize]),
        13 => serde_json::json!([{}, {"id": "d0"}]),
        14 => serde_json::json!({}),
        _ => serde_json::json!({"size": 0, "id": "n0", "mode": "Socket", "socket": "/v"}),
    }
}

/// The value number `place` below `value`, in the order in which they stand there.
fn find<'v>(value: &'v mut Value, place: &mut usize) -> Option<&'v mut Value> {
    if *place == 0 {
        return Some(value);
    }
    *place -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|value| find(value, place)),
        Value::Object(members) => members.values_mut().find_map(|value| find(value, place)),
        _ => None,
    }
}

/// The configuration after these changes, of four bytes each: what is done, a place, and with what.
pub fn changed(bytes: &[u8]) -> String {
    let mut config: Value = serde_json::from_str(WHOLE).unwrap();
    let mut flips = Vec::new();
    for change in bytes.chunks_exact(4) {
        let [what, low, high, amount] = *change else {
            unreachable!("chunks of four")
        };
        let place = usize::from(low) | usize::from(high) << 8;
        let mut left = place % 256;
        if what % 16 == 15 {
            flips.push((place, amount));
            continue;
        }
        let Some(value) = find(&mut config, &mut left) else {
            continue;
        };
        match (what % 4, value) {
            // One more, or one less.
            (1, Value::Array(list)) => match list.last().cloned() {
                Some(last) if list.len() < 300 => list.push(last),
                _ => list.clear(),
            },
            (1, Value::Object(members)) => {
                members.insert(format!("x{}", amount % 3), odd(what >> 4, amount));
            }
            (2, Value::Object(members)) if !members.is_empty() => {
                let name = members.keys().nth(usize::from(amount) % members.len()).cloned();
                name.and_then(|name| members.remove(&name));
            }
            (_, value) => *value = odd(what >> 4, amount),
        }
    }
    let mut text = config.to_string().into_bytes();
    for (place, amount) in flips {
        let length = text.len().max(1);
        if let Some(byte) = text.get_mut(place % length) {
            *byte ^= amount;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads a configuration that these bytes changed, and all of its parts; whether it is valid.
pub fn read(bytes: &[u8]) -> bool {
    let Ok(mut config) = VmConfig::from_json(changed(bytes).as_bytes()) else {
        return false;
    };
    let again = serde_json::to_vec(&config).unwrap();
    assert_eq!(VmConfig::from_json(&again).unwrap(), config, "written out and read");
    let valid = config.validate().is_ok();
    let (names, devices) = (config.device_names(), config.pci_devices());
    if valid {
        for name in &config.pci_device_names() {
            assert!(names.contains(name), "{name}");
        }
        config.name_devices();
        config.validate().unwrap();
        assert_eq!(config.pci_devices().len(), devices.len());
        for (name, spec) in devices {
            // Some every machine has, or has from its beginning.
            let stays = matches!(spec, DeviceSpec::Rng(_) | DeviceSpec::Console(_));
            let removed = config.remove_device(&name).map(|spec| spec.section());
            assert_eq!(removed, (!stays).then_some(spec.section()), "{name}");
        }
    }
    valid
}
