//! Claims about what a configuration may say.

use proptest::prelude::*;

use super::*;

/// The smallest configuration, with `extra` members.
fn config(extra: &str) -> Result<VmConfig, ConfigError> {
    let comma = if extra.is_empty() { "" } else { "," };
    let config = VmConfig::from_json(format!(r#"{{"payload":{{"kernel":"/k"}}{comma}{extra}}}"#).as_bytes())?;
    config.validate()?;
    Ok(config)
}

/// The whole chain of an error in one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Everything at its default, as clients send it that spell out the whole configuration.
const WHOLE: &str = r#"{
    "cpus": {"boot_vcpus": 2, "max_vcpus": 2, "topology": null, "kvm_hyperv": false, "max_phys_bits": 46,
             "nested": true, "affinity": null, "features": {"amx": false}},
    "memory": {"size": 536870912, "hotplug_size": 0, "hotplugged_size": null, "mergeable": false,
               "hotplug_method": "Acpi", "shared": false, "hugepages": false, "hugepage_size": null,
               "prefault": false, "thp": true, "zones": []},
    "payload": {"firmware": null, "kernel": "/k", "cmdline": "console=ttyS0", "initramfs": "/i"},
    "disks": null, "net": [], "rng": {"src": "/dev/urandom"}, "balloon": null, "fs": [], "pmem": [],
    "serial": {"mode": "Tty", "file": null, "socket": null}, "console": {"mode": "Off"},
    "debug_console": {"mode": "Off", "iobase": 233}, "devices": [], "user_devices": [], "vdpa": [],
    "vsock": null, "numa": [], "iommu": false, "watchdog": false, "pvpanic": false, "pci_segments": null,
    "platform": {"num_pci_segments": 1, "tdx": false}, "tpm": null, "landlock_enable": false,
    "landlock_rules": null, "rate_limit_groups": null}"#;

#[test]
fn a_kernel_is_all_that_is_needed() {
    let config = config("").unwrap();
    assert_eq!((config.cpus.boot_vcpus, config.memory.size), (1, 512 << 20));
    assert_eq!(config.serial, ConsoleConfig::null());
}

#[test]
fn hot_code_is_translated_unless_the_configuration_says_otherwise() {
    assert!(config("").unwrap().cpus.translate);
    let cpus = |translate: &str| format!(r#""cpus":{{"boot_vcpus":1,"max_vcpus":1{translate}}}"#);
    // As in configurations that are older than the member.
    assert!(config(&cpus("")).unwrap().cpus.translate);
    assert!(config(&cpus(r#","translate":true"#)).unwrap().cpus.translate);
    let off = config(&cpus(r#","translate":false"#)).unwrap();
    assert!(!off.cpus.translate);
    // It is spelled out, so that it stays what it is.
    let again = VmConfig::from_json(&serde_json::to_vec(&off).unwrap()).unwrap();
    assert!(!again.cpus.translate);
    assert!(config(&cpus(r#","translate":"fast""#)).is_err());
}

#[test]
fn every_default_spelled_out_is_accepted() {
    let config = VmConfig::from_json(WHOLE.as_bytes()).unwrap();
    config.validate().unwrap();
    assert_eq!(config.cpus, CpusConfig::of(2));
    assert_eq!(
        config.memory,
        MemoryConfig {
            hotplug_size: Some(0),
            ..MemoryConfig::default()
        }
    );
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let config = VmConfig::from_json(WHOLE.as_bytes()).unwrap();
    assert_eq!(
        VmConfig::from_json(&serde_json::to_vec(&config).unwrap()).unwrap(),
        config
    );
}

#[test]
fn an_unknown_field_is_refused_with_its_path() {
    for (extra, path) in [
        (r#""colour": 1"#, "colour"),
        (
            r#""cpus": {"boot_vcpus": 1, "max_vcpus": 1, "sockets": 2}"#,
            "cpus.sockets",
        ),
        (
            r#""disks": [{"path": "/a"}, {"path": "/b", "cache": "none"}]"#,
            "disks[1].cache",
        ),
    ] {
        let error = config(extra).unwrap_err();
        let ConfigError::Json { path: found, source } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(found, path);
        assert!(source.to_string().contains("unknown field"), "{}", told(&error));
    }
}

#[test]
fn a_wrong_type_and_a_missing_field_are_refused_with_their_path() {
    for (extra, path) in [
        (r#""memory": {"size": "512M"}"#, "memory.size"),
        (r#""cpus": {"boot_vcpus": -1, "max_vcpus": 1}"#, "cpus.boot_vcpus"),
        (r#""cpus": {"boot_vcpus": 1}"#, "cpus"),
        (r#""serial": {"mode": "tty"}"#, "serial.mode"),
    ] {
        let error = config(extra).unwrap_err();
        assert!(
            matches!(&error, ConfigError::Json { path: found, .. } if found == path),
            "{extra}: {error:?}"
        );
    }
    assert!(
        matches!(VmConfig::from_json(b"{}"), Err(ConfigError::Json { .. })),
        "payload is required"
    );
    assert_eq!(
        told(&VmConfig::from_json(b"garbage").unwrap_err()),
        "the configuration cannot be read: expected value at line 1 column 1",
        "no path into what is no JSON"
    );
    assert!(
        VmConfig::from_json(b"{\"payload\":{\"kernel\":\"/k\"}} {").is_err(),
        "one value and no more"
    );
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    for (extra, field) in [
        (r#""disks": [{"path": "/a", "direct": true}]"#, "disks[0].direct"),
        (
            r#""disks": [{"path": "/a"}, {"path": "/b", "iommu": true}]"#,
            "disks[1].iommu",
        ),
        (
            r#""disks": [{"path": "/a", "vhost_socket": "/s"}]"#,
            "disks[0].vhost_socket",
        ),
        (r#""disks": [{"path": "/a", "pci_segment": 1}]"#, "disks[0].pci_segment"),
        (
            r#""disks": [{"path": "/a", "image_type": "Vhdx"}]"#,
            "disks[0].image_type",
        ),
        (
            r#""disks": [{"path": "/a", "queue_affinity": [{"queue_index": 0}]}]"#,
            "disks[0].queue_affinity",
        ),
        (r#""net": [{"tap": "t"}, {"vhost_user": true}]"#, "net[1].vhost_user"),
        (r#""net": [{"vhost_socket": "/s"}]"#, "net[0].vhost_socket"),
        (r#""net": [{"iommu": true}]"#, "net[0].iommu"),
        (r#""net": [{"ip": "fe80::1"}]"#, "net[0].ip"),
        (r#""rng": {"src": "/dev/random", "iommu": true}"#, "rng.iommu"),
        (
            r#""fs": [{"tag": "t", "socket": "s", "pci_segment": 1}]"#,
            "fs[0].pci_segment",
        ),
        (r#""pmem": [{"file": "f"}]"#, "pmem"),
        (r#""console": {"mode": "Null", "iommu": true}"#, "console.iommu"),
        (
            r#""debug_console": {"mode": "File", "file": "f"}"#,
            "debug_console.mode",
        ),
        (r#""serial": {"mode": "Tty", "iommu": true}"#, "serial.iommu"),
        (r#""devices": [{"path": "p"}]"#, "devices"),
        (
            r#""user_devices": [{"socket": "s"}, {"socket": "t", "pci_segment": 1}]"#,
            "user_devices[1].pci_segment",
        ),
        (r#""vdpa": [{"path": "p"}]"#, "vdpa"),
        (r#""vsock": {"cid": 3, "socket": "s", "iommu": true}"#, "vsock.iommu"),
        (
            r#""vsock": {"cid": 3, "socket": "s", "pci_segment": 1}"#,
            "vsock.pci_segment",
        ),
        (r#""numa": [{"guest_numa_id": 0}]"#, "numa"),
        (r#""iommu": true"#, "iommu"),
        (r#""watchdog": true"#, "watchdog"),
        (r#""pvpanic": true"#, "pvpanic"),
        (r#""pci_segments": [{"pci_segment": 1}]"#, "pci_segments"),
        (r#""platform": {"uuid": "u"}"#, "platform.uuid"),
        (r#""tpm": {"socket": "s"}"#, "tpm"),
        (r#""landlock_enable": true"#, "landlock_enable"),
        (r#""landlock_rules": [{"path": "p", "access": "r"}]"#, "landlock_rules"),
        (r#""memory": {"size": 4096, "hugepages": true}"#, "memory.hugepages"),
        (r#""memory": {"size": 4096, "hotplug_size": 1}"#, "memory.hotplug_size"),
        (
            r#""memory": {"size": 4096, "hotplug_method": "VirtioMem"}"#,
            "memory.hotplug_method",
        ),
        (
            r#""memory": {"size": 0, "zones": [{"id": "z", "size": 4096}]}"#,
            "memory.zones",
        ),
        (r#""memory": {"size": 4096, "thp": false}"#, "memory.thp"),
        (r#""cpus": {"boot_vcpus": 1, "max_vcpus": 2}"#, "cpus.max_vcpus"),
        (
            r#""cpus": {"boot_vcpus": 1, "max_vcpus": 1, "topology": {"packages": 1}}"#,
            "cpus.topology",
        ),
        (
            r#""cpus": {"boot_vcpus": 1, "max_vcpus": 1, "features": {"amx": true}}"#,
            "cpus.features.amx",
        ),
    ] {
        let error = config(extra).unwrap_err();
        assert!(
            matches!(&error, ConfigError::NotSupported { field: found, .. } if found == field),
            "{extra}: {error:?}"
        );
    }
}

#[test]
fn hyper_v_s_interface_can_be_asked_for() {
    let config = config(r#""cpus": {"boot_vcpus": 1, "max_vcpus": 1, "kvm_hyperv": true}"#).unwrap();
    assert!(config.cpus.kvm_hyperv);
}

#[test]
fn a_value_that_makes_no_machine_is_refused_by_name() {
    for (extra, field) in [
        (r#""cpus": {"boot_vcpus": 0, "max_vcpus": 0}"#, "cpus.boot_vcpus"),
        (r#""cpus": {"boot_vcpus": 2, "max_vcpus": 1}"#, "cpus.max_vcpus"),
        (r#""memory": {"size": 0}"#, "memory.size"),
        (r#""memory": {"size": 4097}"#, "memory.size"),
        (r#""net": [{}, {"num_queues": 3}]"#, "net[1].num_queues"),
        (r#""net": [{"num_queues": 0}]"#, "net[0].num_queues"),
        (r#""net": [{"queue_size": 100}]"#, "net[0].queue_size"),
        (r#""net": [{"mac": "52:54:00:00:00"}]"#, "net[0].mac"),
        (r#""net": [{"mac": "01:00:5e:00:00:01"}]"#, "net[0].mac"),
        (r#""net": [{"host_mac": "me"}]"#, "net[0].host_mac"),
        (r#""net": [{"ip": "192.0.2"}]"#, "net[0].ip"),
        (r#""net": [{"ip": "192.0.2.1", "mask": "255.0.255.0"}]"#, "net[0].mask"),
        (r#""net": [{"mask": "255.255.255.0"}]"#, "net[0].mask"),
        (r#""net": [{"mtu": 67}]"#, "net[0].mtu"),
        (r#""net": [{"fds": [3], "tap": "t"}]"#, "net[0].tap"),
        (r#""net": [{"fds": [3, 4]}]"#, "net[0].num_queues"),
        (r#""net": [{"fds": []}]"#, "net[0].num_queues"),
        (
            r#""rate_limit_groups": [{"id": "", "rate_limiter_config": {}}]"#,
            "rate_limit_groups[0].id",
        ),
        (
            r#""rate_limit_groups": [{"id": "g", "rate_limiter_config": {}}, {"id": "g", "rate_limiter_config": {}}]"#,
            "rate_limit_groups[1].id",
        ),
        (
            r#""disks": [{"path": "/a", "rate_limit_group": "g"}]"#,
            "disks[0].rate_limit_group",
        ),
        (
            r#""rate_limit_groups": [{"id": "g", "rate_limiter_config": {}}], "disks": [{"path": "/a", "rate_limit_group": "g",
               "rate_limiter_config": {"ops": {"size": 1, "refill_time": 1}}}]"#,
            "disks[0].rate_limit_group",
        ),
        (r#""serial": {"mode": "File"}"#, "serial.file"),
        (r#""serial": {"mode": "Socket"}"#, "serial.socket"),
        (r#""console": {"mode": "File"}"#, "console.file"),
        (r#""console": {"mode": "Socket"}"#, "console.socket"),
        (
            r#""serial": {"mode": "Tty"}, "console": {"mode": "Tty"}"#,
            "console.mode",
        ),
        (r#""vsock": {"cid": 2, "socket": "s"}"#, "vsock.cid"),
        (r#""vsock": {"cid": 4294967295, "socket": "s"}"#, "vsock.cid"),
        (r#""vsock": {"cid": 3, "socket": ""}"#, "vsock.socket"),
        (r#""vsock": {"cid": 3, "socket": "s", "id": ""}"#, "vsock.id"),
        (r#""balloon": {"size": 536870912}"#, "balloon.size"),
        (r#""balloon": {"size": 4097}"#, "balloon.size"),
    ] {
        let error = config(extra).unwrap_err();
        assert!(
            matches!(&error, ConfigError::Value { field: found, .. } if found == field),
            "{extra}: {error:?}"
        );
    }
    let no_kernel = VmConfig::default().validate().unwrap_err();
    assert!(
        matches!(&no_kernel, ConfigError::Value { field, .. } if field == "payload.kernel"),
        "{no_kernel:?}"
    );
}

#[test]
fn devices_are_made_late_by_name() {
    let delays = |text: &str| config(&format!(r#""delays": [{text}]"#)).map(|config| config.delays);
    let found = delays(
        r#"{"device": "serial", "us": "0..500", "seed": 7}, {"device": "*", "us": 20, "after": 9},
           {"device": "rtc", "us": "never"}, {"device": "post", "us": "lost"}"#,
    )
    .unwrap();
    let times = [
        DelayTime::Within { min: 0, max: 500 },
        DelayTime::Within { min: 20, max: 20 },
        DelayTime::Never,
        DelayTime::Lost,
    ];
    assert!(found.iter().map(|delay| delay.us).eq(times));
    assert_eq!((found[0].seed, found[1].after), (7, 9));
    for time in times {
        assert_eq!(time.to_string().parse(), Ok(time));
    }
    assert!(config(r#""delays": null"#).unwrap().delays.is_empty());
    for (text, field, told) in [
        (r#"{"device": "serail", "us": 1}"#, "delays[0].device", "serial"),
        (r#"{"device": "", "us": 1}"#, "delays[0].device", "*"),
        (
            r#"{"device": "*", "us": "5..2"}"#,
            "delays[0].us",
            "smaller number first",
        ),
        (r#"{"device": "*", "us": "0..60000001"}"#, "delays[0].us", "60000000"),
    ] {
        let error = delays(text).unwrap_err();
        assert!(
            matches!(&error, ConfigError::Value { field: found, .. } if found == field),
            "{text}: {error:?}"
        );
        assert!(error.to_string().contains(told), "{error}");
    }
    for (text, path) in [
        (r#"{"device": "*", "us": "soon"}"#, "delays[0].us"),
        (r#"{"device": "*", "us": "1..2..3"}"#, "delays[0].us"),
        (r#"{"device": "*", "us": "+1"}"#, "delays[0].us"),
        (r#"{"device": "*", "us": -1}"#, "delays[0].us"),
        (r#"{"device": "*", "us": true}"#, "delays[0].us"),
        (r#"{"device": "*"}"#, "delays[0]"),
        (r#"{"device": "*", "us": 1, "ms": 2}"#, "delays[0].ms"),
    ] {
        let error = delays(text).unwrap_err();
        assert!(
            matches!(&error, ConfigError::Json { path: found, .. } if found == path),
            "{text}: {error:?}"
        );
    }
    let off = config(r#""serial": {"mode": "Off"}, "delays": [{"device": "serial", "us": 1}]"#);
    assert!(off.is_err(), "there is no serial port then");
}

#[test]
fn network_cards_and_limits_are_understood() {
    let config = config(
        r#""net": [{"tap": "t", "mac": "52:54:00:00:00:01", "ip": "192.0.2.1", "mask": "255.255.255.0", "mtu": 1500,
                    "num_queues": 4, "rate_limiter_config": {"bandwidth": {"size": 1, "refill_time": 1}}},
                   {"fds": [3, 4], "num_queues": 4}, {"mac": null}],
           "rate_limit_groups": [{"id": "g", "rate_limiter_config": {"ops": {"size": 5, "refill_time": 10}}}],
           "disks": [{"path": "/a", "rate_limit_group": "g", "rate_limiter_config": {"ops": {"size": 0, "refill_time": 0}}}]"#,
    )
    .unwrap();
    assert_eq!(config.net[0].mac.as_deref(), Some("52:54:00:00:00:01"));
    for net in &config.net[1..] {
        let made = net.mac.clone().unwrap();
        assert_eq!(
            made.len(),
            17,
            "an address is made when the configuration is read, and stays: {made}"
        );
    }
    let again = VmConfig::from_json(serde_json::to_string(&config).unwrap().as_bytes()).unwrap();
    assert_eq!(again.net, config.net);
}

#[test]
fn sizes_are_read_as_people_write_them() {
    for (text, bytes) in [
        ("4096", 4096),
        ("1k", 1024),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("1T", 1 << 40),
        ("0", 0),
    ] {
        assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
    }
    for text in [
        "",
        "M",
        "512MB",
        "-1",
        "+1",
        "1.5G",
        "16777216T",
        "99999999999999999999",
        "5é",
        "é",
    ] {
        assert_eq!(parse_size(text).unwrap_err().text, text);
    }
}

proptest! {
    /// Bytes that are nearly right get further into the reader.
    #[test]
    fn a_configuration_with_one_thing_changed_is_read_or_refused(at in 0..WHOLE.len(), with in ".{0,4}", cut in 0_usize..20) {
        let mut text = WHOLE.as_bytes().to_vec();
        let end = text.len().min(at + cut);
        text.splice(at..end, with.into_bytes());
        match VmConfig::from_json(&text) {
            // What is read can be written, and is then read the same.
            Ok(config) => {
                let _ = config.validate();
                let written = serde_json::to_vec(&config).unwrap();
                prop_assert_eq!(VmConfig::from_json(&written).unwrap(), config);
            }
            Err(error) => prop_assert!(!told(&error).is_empty()),
        }
    }

    #[test]
    fn any_text_is_a_size_or_an_error(text in ".{0,24}") {
        if let Ok(bytes) = parse_size(&text) {
            prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
        }
    }
}

#[test]
fn disks_and_entropy_that_make_no_sense_are_refused_by_field() {
    let disks = |count: usize| format!(r#""disks": [{}]"#, vec![r#"{"path": "/d"}"#; count].join(","));
    for (extra, field) in [
        (r#""disks": [{}]"#.to_owned(), "disks[0].path"),
        (r#""disks": [{"path": ""}]"#.to_owned(), "disks[0].path"),
        (
            r#""disks": [{"path": "/d", "num_queues": 0}]"#.to_owned(),
            "disks[0].num_queues",
        ),
        (
            r#""disks": [{"path": "/d", "queue_size": 100}]"#.to_owned(),
            "disks[0].queue_size",
        ),
        (
            r#""disks": [{"path": "/d", "queue_size": 0}]"#.to_owned(),
            "disks[0].queue_size",
        ),
        (r#""disks": [{"path": "/d", "id": ""}]"#.to_owned(), "disks[0].id"),
        (
            r#""disks": [{"path": "/d", "backing_files": true}]"#.to_owned(),
            "disks[0].backing_files",
        ),
        (r#""disks": [{"path": "/d", "id": "*"}]"#.to_owned(), "disks[0].id"),
        (
            r#""disks": [{"path": "/d", "serial": "123456789012345678901"}]"#.to_owned(),
            "disks[0].serial",
        ),
        (
            r#""disks": [{"path": "/d", "id": "a"}, {"path": "/e", "id": "a"}]"#.to_owned(),
            "id of PCI device 1",
        ),
        (
            r#""disks": [{"path": "/d", "id": "rng"}]"#.to_owned(),
            "id of PCI device 1",
        ),
        (
            r#""disks": [{"path": "/d", "id": "acpi"}]"#.to_owned(),
            "id of PCI device 0",
        ),
        (
            r#""disks": [{"path": "/d", "id": "vcpu0"}]"#.to_owned(),
            "id of PCI device 0",
        ),
        (disks(31), "disks"),
        (r#""rng": {"src": ""}"#.to_owned(), "rng.src"),
    ] {
        let error = config(&extra).unwrap_err();
        assert!(
            matches!(&error, ConfigError::Value { field: found, .. } if found == field),
            "{extra}: {error:?}"
        );
    }
    let named = config(r#""disks": [{"path": "/d", "id": "root"}, {"path": "/e"}]"#).unwrap();
    assert_eq!(named.pci_device_names(), ["root", "disk1", "rng"]);
    assert!(config(&disks(30)).is_ok());
}

/// JSON of any shape, with names that configurations have among others.
fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let names = prop::sample::select(vec![
        "payload",
        "kernel",
        "disks",
        "path",
        "id",
        "net",
        "cpus",
        "boot_vcpus",
        "max_vcpus",
        "memory",
        "size",
        "rng",
        "src",
        "vsock",
        "cid",
        "socket",
        "user_devices",
        "fs",
        "tag",
        "balloon",
        "console",
        "serial",
        "mode",
        "delays",
        "device",
        "us",
        "num_queues",
        "queue_size",
        "rate_limiter_config",
        "landlock_rules",
        "access",
        "colour",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0_u64..40).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9./]{0,12}|Off|Null|Tty|File|rng|disk0|never|0..9|vcpu1".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 96, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..8)
                .prop_map(|members| Value::from(serde_json::Map::from_iter(members))),
        ]
    })
}

/// `into` with the members of `from` put at random places.
fn graft(into: &mut serde_json::Value, from: &serde_json::Value, path: &[usize]) {
    use serde_json::Value;
    match (path, into) {
        ([at, rest @ ..], Value::Object(object)) if !object.is_empty() => {
            let at = at % object.len();
            graft(object.values_mut().nth(at).unwrap(), from, rest);
        }
        ([at, rest @ ..], Value::Array(items)) if !items.is_empty() => {
            let at = at % items.len();
            graft(&mut items[at], from, rest);
        }
        (_, place) => *place = from.clone(),
    }
}

proptest! {
    #[test]
    fn a_configuration_is_read_and_checked_or_refused_whatever_it_says(
        grafts in prop::collection::vec((json(), prop::collection::vec(any::<usize>(), 0..4)), 0..4),
    ) {
        let mut value = serde_json::from_str(WHOLE).unwrap();
        for (part, path) in &grafts {
            graft(&mut value, part, path);
        }
        let text = value.to_string();
        let Ok(mut config) = VmConfig::from_json(text.as_bytes()) else { return Ok(()) };
        let valid = config.validate();
        if let Err(error) = &valid {
            prop_assert!(!told(error).is_empty());
        }
        // What was read is written as what reads the same, and named devices stay what they are.
        let again = VmConfig::from_json(&serde_json::to_vec(&config).unwrap()).unwrap();
        prop_assert_eq!(&again, &config);
        let names = config.pci_device_names();
        config.name_devices();
        prop_assert_eq!(&config.pci_device_names(), &names);
        if valid.is_ok() {
            prop_assert!(config.validate().is_ok());
            for name in names {
                config.remove_device(&name);
            }
            prop_assert!(config.pci_device_names().len() <= 3, "only what every machine has is left");
        }
    }

    #[test]
    fn any_bytes_are_a_configuration_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = VmConfig::from_json(&bytes) {
            prop_assert!(!told(&error).is_empty());
        }
    }
}
