//! Options such as `boot=2,max=2` and `512M`, read as the JSON types they stand for: what a VM is made of is defined once,
//! in [`config`](crate::config), and the command line only spells it differently.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::config::{
    BalloonConfig, ConfigError, ConsoleConfig, ConsoleMode, CpusConfig, DelayConfig, DiskConfig, FsConfig,
    LandlockConfig, MemoryConfig, NetConfig, RateLimitGroupConfig, RestoredNetConfig, RngConfig, UserDeviceConfig,
    VsockConfig, from_json, parse_size,
};
use crate::lifecycle::chain;

/// Reads `N`, `boot=N` or `boot=N,max=M,…` with the names of [`CpusConfig`].
pub(super) fn cpus(text: &str) -> Result<CpusConfig, String> {
    let mut object = members(text, "boot_vcpus", &[("boot", "boot_vcpus"), ("max", "max_vcpus")])?;
    if let (Some(boot), None) = (object.get("boot_vcpus").cloned(), object.get("max_vcpus")) {
        object.insert("max_vcpus".to_owned(), boot);
    }
    number(&object, "boot_vcpus", "a number of processors, like 2")?;
    read(object)
}

/// Reads `512M`, `size=512M` or `size=512M,…` with the names of [`MemoryConfig`].
pub(super) fn memory(text: &str) -> Result<MemoryConfig, String> {
    let object = members(text, "size", &[])?;
    number(&object, "size", "bytes, or a number with K, M, G or T, like 512M")?;
    read(object)
}

/// Refuses a word where the member `name` is a number, in the words of who wrote it: that a type is wrong says nothing
/// about how sizes are written.
fn number(object: &Map<String, Value>, name: &str, expected: &str) -> Result<(), String> {
    match object.get(name) {
        Some(Value::String(text)) => Err(format!("{name} is {text:?}; expected {expected}")),
        _ => Ok(()),
    }
}

/// Reads `tty`, `pty`, `null`, `off`, `file=PATH` or `socket=PATH`.
pub(super) fn console(text: &str) -> Result<ConsoleConfig, String> {
    match text.split_once('=') {
        Some(("file", path)) if !path.is_empty() => Ok(ConsoleConfig::file(path)),
        Some(("socket", path)) if !path.is_empty() => Ok(ConsoleConfig::socket(path)),
        None if text == "tty" => Ok(ConsoleConfig::tty()),
        None if text == "pty" => Ok(ConsoleConfig::of(ConsoleMode::Pty)),
        None if text == "null" => Ok(ConsoleConfig::null()),
        None if text == "off" => Ok(ConsoleConfig::of(ConsoleMode::Off)),
        _ => Err("expected tty, pty, null, off, file=PATH or socket=PATH".to_owned()),
    }
}

/// Reads `device=NAME,us=MIN..MAX,…` with the names of [`DelayConfig`].
pub(super) fn delay(text: &str) -> Result<DelayConfig, String> {
    read(members(text, "device", &[])?)
}

/// Reads `PATH` or `path=PATH,readonly=on,…` with the names of [`DiskConfig`].
pub(super) fn disk(text: &str) -> Result<DiskConfig, String> {
    const WORDS: [&str; 6] = ["path", "id", "serial", "image_type", "vhost_socket", "rate_limit_group"];
    const ALIASES: [(&str, &str); 1] = [("socket", "vhost_socket")];
    read(with_rate_limits(members_with(text, "path", &ALIASES, &WORDS)?)?)
}

/// Reads `TAP` or `tap=TAP,ip=ADDRESS,…` with the names of [`NetConfig`], `fd=N` or `fd=[N,M]` for queues that are open already,
/// and rate limits as [`with_rate_limits`] has them. `tap=` is a tap that the host names.
pub(super) fn net(text: &str) -> Result<NetConfig, String> {
    const WORDS: [&str; 9] = [
        "tap",
        "ip",
        "mask",
        "mac",
        "host_mac",
        "id",
        "vhost_socket",
        "vhost_mode",
        "fds",
    ];
    const ALIASES: [(&str, &str); 2] = [("fd", "fds"), ("socket", "vhost_socket")];
    let mut object = with_rate_limits(members_with(text, "tap", &ALIASES, &WORDS)?)?;
    if object.get("tap").is_some_and(|tap| tap == "") {
        object.remove("tap");
    }
    numbers(&mut object)?;
    read(object)
}

/// Reads `id=NAME,fd=N` or `id=NAME,fd=[N,M]`: file descriptors for a network card that is restored.
pub(super) fn net_fds(text: &str) -> Result<RestoredNetConfig, String> {
    let mut object = members_with(text, "id", &[("fd", "fds")], &["id", "fds"])?;
    let count = numbers(&mut object)?;
    object.insert("num_fds".to_owned(), count.into());
    read(object)
}

/// Has `fds` be the numbers that its text stands for, and counts them.
fn numbers(object: &mut Map<String, Value>) -> Result<usize, String> {
    let Some(fds) = object.get("fds").and_then(Value::as_str) else {
        return Ok(0);
    };
    let list = fds
        .strip_prefix('[')
        .and_then(|list| list.strip_suffix(']'))
        .unwrap_or(fds);
    let numbers: Result<Vec<i32>, _> = list.split(',').map(str::parse).collect();
    let numbers = numbers.map_err(|_| format!("fd is {fds:?}; expected a number, or several like [3,4]"))?;
    let count = numbers.len();
    object.insert("fds".to_owned(), Value::from(numbers));
    Ok(count)
}

/// Reads `id=NAME,…` with rate limits as [`with_rate_limits`] has them.
pub(super) fn rate_limit_group(text: &str) -> Result<RateLimitGroupConfig, String> {
    let mut object = with_rate_limits(members_with(text, "id", &[], &["id"])?)?;
    object.entry("rate_limiter_config").or_insert_with(|| Map::new().into());
    read(object)
}

/// Gathers `bw_size`, `bw_one_time_burst`, `bw_refill_time` and the same with `ops_` as they stand in a `rate_limiter_config`.
fn with_rate_limits(mut object: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut config = Map::new();
    for (prefix, name) in [("bw", "bandwidth"), ("ops", "ops")] {
        let mut bucket = Map::new();
        for member in ["size", "one_time_burst", "refill_time"] {
            if let Some(value) = object.remove(&format!("{prefix}_{member}")) {
                bucket.insert(member.to_owned(), value);
            }
        }
        if bucket.is_empty() {
            continue;
        }
        for member in ["size", "refill_time"] {
            if !bucket.contains_key(member) {
                return Err(format!(
                    "{prefix}_{member} is missing; a limit takes {prefix}_size and {prefix}_refill_time"
                ));
            }
        }
        config.insert(name.to_owned(), bucket.into());
    }
    if !config.is_empty() {
        object.insert("rate_limiter_config".to_owned(), config.into());
    }
    Ok(object)
}

/// Reads `PATH` or `src=PATH`.
pub(super) fn rng(text: &str) -> Result<RngConfig, String> {
    read(members_with(text, "src", &[], &["src"])?)
}

/// Reads `tag=NAME,socket=PATH,…` with the names of [`FsConfig`].
pub(super) fn fs(text: &str) -> Result<FsConfig, String> {
    read(members_with(text, "socket", &[], &["tag", "socket", "id"])?)
}

/// Reads `PATH` or `socket=PATH,id=NAME` with the names of [`UserDeviceConfig`].
pub(super) fn user_device(text: &str) -> Result<UserDeviceConfig, String> {
    read(members_with(text, "socket", &[], &["socket", "id"])?)
}

/// Reads `path=PATH,access=rw`.
pub(super) fn landlock_rule(text: &str) -> Result<LandlockConfig, String> {
    let rule: LandlockConfig = read(members_with(text, "path", &[], &["path", "access"])?)?;
    match rule.access.as_str() {
        "r" | "w" | "rw" => Ok(rule),
        other => Err(format!("access is {other:?}; expected r, w or rw")),
    }
}

/// Reads `cid=N,socket=PATH,…` with the names of [`VsockConfig`].
pub(super) fn vsock(text: &str) -> Result<VsockConfig, String> {
    let object = members_with(text, "cid", &[], &["socket", "id"])?;
    number(&object, "cid", "a number, like 3")?;
    read(object)
}

/// Reads `SIZE` or `size=SIZE,deflate_on_oom=on,…` with the names of [`BalloonConfig`].
pub(super) fn balloon(text: &str) -> Result<BalloonConfig, String> {
    let object = members(text, "size", &[])?;
    number(&object, "size", "bytes, or a number with K, M, G or T, like 512M")?;
    read(object)
}

/// The members of `text`; a first part without `=` is the member `bare`.
fn members(text: &str, bare: &str, aliases: &[(&str, &str)]) -> Result<Map<String, Value>, String> {
    members_with(text, bare, aliases, &[])
}

/// As [`members`], where those of `words` are taken as they stand: a disk may be called 1G, and a serial number be one.
fn members_with(
    text: &str,
    bare: &str,
    aliases: &[(&str, &str)],
    words: &[&str],
) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for (i, part) in parts(text).into_iter().enumerate() {
        let (name, value) = match part.split_once('=') {
            Some(pair) => pair,
            None if i == 0 => (bare, part),
            None => return Err(format!("{part:?} is no option; expected name=value")),
        };
        let name = aliases
            .iter()
            .find(|(alias, _)| *alias == name)
            .map_or(name, |(_, name)| name);
        let value = if words.contains(&name) {
            Value::from(value)
        } else {
            scalar(value)
        };
        if object.insert(name.to_owned(), value).is_some() {
            return Err(format!("{name} is given twice; expected once"));
        }
    }
    Ok(object)
}

/// The parts of `text` between commas that are not inside brackets.
fn parts(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let is_end = |c: char| {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    text.split(is_end).collect()
}

/// `on`, `off`, a size, or a word.
fn scalar(text: &str) -> Value {
    match text {
        "on" | "true" => Value::Bool(true),
        "off" | "false" => Value::Bool(false),
        _ => parse_size(text).map_or_else(|_| Value::from(text), Value::from),
    }
}

fn read<T: DeserializeOwned>(object: Map<String, Value>) -> Result<T, String> {
    let text = Value::Object(object).to_string();
    from_json(text.as_bytes()).map_err(|error| match &error {
        // The line and column of JSON that nobody wrote would only confuse.
        ConfigError::Json { path, source } => {
            let told = source.to_string();
            let told = told.rfind(" at line ").map_or(told.as_str(), |end| &told[..end]);
            format!("{path}: {told}")
        }
        other => chain(other).join(": "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CpuModel;

    #[test]
    fn cpus_are_a_number_or_the_names_of_the_config() {
        for text in ["2", "boot=2", "boot_vcpus=2", "boot=2,max=2", "boot=2,nested=on"] {
            assert_eq!(cpus(text).unwrap(), CpusConfig::of(2), "{text}");
        }
        assert_eq!(cpus("boot=1,max=4").unwrap().max_vcpus, 4);
        assert!(cpus("2,kvm_hyperv=on").unwrap().kvm_hyperv);
        assert_eq!(cpus("2,model=v3").unwrap().model, CpuModel::V3);
        assert_eq!(cpus("2,translate=on").unwrap(), CpusConfig::of(2));
        assert!(!cpus("2,translate=off").unwrap().translate);
        assert_eq!(cpus("boot=1,model=host").unwrap(), CpusConfig::of(1));
        for text in [
            "",
            "many",
            "-1",
            "max=2",
            "boot=1,boot=2",
            "boot=1,sockets=2",
            "2,2",
            "boot=4294967296",
            "1,model=v5",
            "1,model=on",
        ] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_a_size_or_the_names_of_the_config() {
        for text in [
            "512M",
            "size=512M",
            "536870912",
            "size=512M,shared=off,hotplug_method=Acpi",
        ] {
            assert_eq!(memory(text).unwrap(), MemoryConfig::of(512 << 20), "{text}");
        }
        for text in ["", "much", "512MB", "shared=off", "size=1G,colour=2", "size=on"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn delays_have_the_names_of_the_config() {
        let serial = delay("device=serial,us=0..500,seed=7").unwrap();
        assert_eq!((serial.device.as_str(), serial.seed, serial.after), ("serial", 7, 0));
        assert_eq!(serial.us.to_string(), "0..500");
        assert_eq!(delay("*,us=200,after=3").unwrap().us.to_string(), "200..200");
        assert_eq!(delay("rtc,us=never").unwrap().us.to_string(), "never");
        for text in [
            "",
            "serial",
            "serial,us=soon",
            "serial,us=1,ms=2",
            "us=1",
            "serial,us=-1",
        ] {
            assert!(delay(text).is_err(), "{text}");
        }
    }

    #[test]
    fn disks_are_a_path_or_the_names_of_the_config() {
        for text in [
            "/d.img",
            "path=/d.img",
            "path=/d.img,readonly=off,num_queues=1,queue_size=128",
        ] {
            let disk = disk(text).unwrap();
            assert_eq!(
                (disk.path, disk.readonly, disk.num_queues),
                (Some("/d.img".into()), false, 1),
                "{text}"
            );
        }
        let odd = disk("path=1G,readonly=on,id=on,serial=0012,num_queues=4,queue_size=1K,sparse=off").unwrap();
        assert_eq!(odd.path, Some("1G".into()));
        assert_eq!((odd.id.as_deref(), odd.serial.as_deref()), (Some("on"), Some("0012")));
        assert!(odd.readonly && !odd.sparse);
        let served = disk("vhost_user=on,socket=/s").unwrap();
        assert_eq!((served.vhost_user, served.vhost_socket.as_deref()), (true, Some("/s")));
        assert_eq!((odd.num_queues, odd.queue_size), (4, 1024));
        for text in [
            "path=/d,readonly=maybe",
            "path=/d,colour=red",
            "path=/d,path=/e",
            "/d,/e",
            "path=/d,queue_size=1M",
        ] {
            assert!(disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_landlock_rule_is_a_path_and_what_may_be_done() {
        assert_eq!(
            landlock_rule("path=/a,access=rw").unwrap(),
            LandlockConfig::new("/a", "rw")
        );
        for text in ["/a", "path=/a,access=x", "access=r", "path=/a,access=r,more=on"] {
            assert!(landlock_rule(text).is_err(), "{text}");
        }
    }

    #[test]
    fn network_cards_are_a_tap_or_the_names_of_the_config() {
        for text in [
            "tap0",
            "tap=tap0",
            "tap=tap0,num_queues=2,queue_size=256,offload_tso=on,iommu=off",
        ] {
            let net = net(text).unwrap();
            assert_eq!((net.tap.as_deref(), net.num_queues), (Some("tap0"), 2), "{text}");
            assert!(net.mac.is_some_and(|mac| mac.len() == 17), "one is made");
        }
        let full = net("tap=,ip=192.0.2.1,mask=255.255.255.0,mac=52:54:00:00:00:01,host_mac=52:54:00:00:00:02,mtu=1400,\
                        num_queues=4,id=1G,offload_csum=off,bw_size=1M,bw_refill_time=100,ops_size=5,ops_one_time_burst=7,\
                        ops_refill_time=10")
        .unwrap();
        assert_eq!((full.tap, full.id.as_deref(), full.mtu), (None, Some("1G"), Some(1400)));
        assert_eq!(
            (full.ip.as_deref(), full.mask.as_deref()),
            (Some("192.0.2.1"), Some("255.255.255.0"))
        );
        assert_eq!(full.mac.as_deref(), Some("52:54:00:00:00:01"));
        assert!(!full.offload_csum && full.offload_tso);
        let limits = full.rate_limiter_config.unwrap();
        let (bandwidth, ops) = (limits.bandwidth.unwrap(), limits.ops.unwrap());
        assert_eq!(
            (bandwidth.size, bandwidth.one_time_burst, bandwidth.refill_time),
            (1 << 20, None, 100)
        );
        assert_eq!((ops.size, ops.one_time_burst, ops.refill_time), (5, Some(7), 10));
        assert_eq!(net("fd=3").unwrap().fds, Some(vec![3]));
        assert_eq!(net("fd=[3,4],num_queues=4").unwrap().fds, Some(vec![3, 4]));
        for text in [
            "t,colour=red",
            "t,fd=x",
            "fd=[3,4",
            "fd=[]",
            "t,bw_size=5",
            "t,ops_refill_time=5",
            "t,mtu=70000",
            "a,b",
        ] {
            assert!(net(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_tap_for_a_restored_card_is_a_name_and_file_descriptors() {
        let given = net_fds("id=net0,fd=[3,4]").unwrap();
        assert_eq!(
            (given.id.as_str(), given.num_fds, given.fds),
            ("net0", 2, Some(vec![3, 4]))
        );
        assert_eq!(net_fds("net0,fd=7").unwrap().fds, Some(vec![7]));
        for text in ["fd=3", "net0,fd=x", "net0,fd=[]", "net0,tap=t"] {
            assert!(net_fds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn disks_are_limited_alone_or_in_groups() {
        let limited = disk("/d,bw_size=1M,bw_refill_time=100").unwrap();
        assert_eq!(limited.rate_limiter_config.unwrap().bandwidth.unwrap().size, 1 << 20);
        assert_eq!(
            disk("/d,rate_limit_group=g").unwrap().rate_limit_group.as_deref(),
            Some("g")
        );
        let group = rate_limit_group("id=g,ops_size=100,ops_refill_time=1000").unwrap();
        assert_eq!(
            (group.id.as_str(), group.rate_limiter_config.ops.unwrap().size),
            ("g", 100)
        );
        assert!(rate_limit_group("g").is_ok());
        assert!(rate_limit_group("ops_size=1,ops_refill_time=1").is_err());
    }

    #[test]
    fn entropy_is_a_path() {
        for text in ["/dev/random", "src=/dev/random", "src=/dev/random,iommu=off"] {
            assert_eq!(rng(text).unwrap().src, "/dev/random", "{text}");
        }
        assert!(rng("src=/dev/random,speed=9").is_err());
    }

    #[test]
    fn devices_in_other_processes_are_a_socket_and_a_name() {
        for text in ["/s", "socket=/s", "socket=/s,pci_segment=0"] {
            assert_eq!(user_device(text).unwrap().socket, std::path::Path::new("/s"), "{text}");
        }
        assert_eq!(user_device("socket=1G,id=1G").unwrap().id.as_deref(), Some("1G"));
        assert!(user_device("id=a").is_err());
    }

    #[test]
    fn shares_are_a_tag_and_a_socket() {
        let share = fs("tag=64,socket=/s,num_queues=2").unwrap();
        assert_eq!(
            (share.tag.as_str(), share.socket.as_str(), share.num_queues),
            ("64", "/s", 2)
        );
        for text in ["/s", "tag=t", "tag=t,socket=/s,speed=1"] {
            assert!(fs(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_vsock_has_an_address_and_a_socket() {
        let own = vsock("cid=3,socket=/tmp/v=1").unwrap();
        assert_eq!((own.cid, own.socket.as_str()), (3, "/tmp/v=1"));
        assert_eq!(vsock("7,socket=1G,id=on").unwrap().id.as_deref(), Some("on"));
        for text in [
            "",
            "cid=3",
            "socket=/s",
            "cid=three,socket=/s",
            "cid=3,socket=/s,port=1",
            "cid=-3,socket=/s",
        ] {
            assert!(vsock(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_balloon_is_a_size_or_the_names_of_the_config() {
        assert_eq!(balloon("256M").unwrap().size, 256 << 20);
        let own = balloon("size=0,deflate_on_oom=on,free_page_reporting=on").unwrap();
        assert!(own.size == 0 && own.deflate_on_oom && own.free_page_reporting);
        for text in ["", "much", "size=1M,size=2M", "deflate_on_oom=on", "size=1M,colour=red"] {
            assert!(balloon(text).is_err(), "{text}");
        }
    }

    #[test]
    fn errors_name_the_option() {
        assert_eq!(
            memory("size=512MB").unwrap_err(),
            "size is \"512MB\"; expected bytes, or a number with K, M, G or T, like 512M"
        );
        assert_eq!(
            cpus("many").unwrap_err(),
            "boot_vcpus is \"many\"; expected a number of processors, like 2"
        );
        assert!(cpus("1,sockets=2").unwrap_err().starts_with("sockets: unknown field"));
    }

    #[test]
    fn consoles_are_a_word_or_a_path() {
        assert_eq!(console("tty").unwrap(), ConsoleConfig::tty());
        assert_eq!(console("pty").unwrap().mode, ConsoleMode::Pty);
        assert_eq!(console("file=/f=1").unwrap(), ConsoleConfig::file("/f=1"));
        assert_eq!(console("socket=/s").unwrap(), ConsoleConfig::socket("/s"));
        for text in ["", "Tty", "file", "file=", "socket=", "pty=", "tty=1"] {
            assert!(console(text).is_err(), "{text}");
        }
    }
}
