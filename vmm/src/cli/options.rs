//! Options such as `boot=2,max=2` and `512M`, read as the JSON types they stand for: what a VM is made of is defined once,
//! in [`config`](crate::config), and the command line only spells it differently.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::config::{
    ConfigError, ConsoleConfig, ConsoleMode, CpusConfig, DelayConfig, DiskConfig, MemoryConfig, RngConfig, from_json,
    parse_size,
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

/// Reads `tty`, `null`, `off`, `file=PATH` or `socket=PATH`.
pub(super) fn serial(text: &str) -> Result<ConsoleConfig, String> {
    match text.split_once('=') {
        Some(("file", path)) if !path.is_empty() => Ok(ConsoleConfig::file(path)),
        Some(("socket", path)) if !path.is_empty() => Ok(ConsoleConfig::socket(path)),
        None if text == "tty" => Ok(ConsoleConfig::tty()),
        None if text == "null" => Ok(ConsoleConfig::null()),
        None if text == "off" => Ok(ConsoleConfig::of(ConsoleMode::Off)),
        _ => Err("expected tty, null, off, file=PATH or socket=PATH".to_owned()),
    }
}

/// Reads `device=NAME,us=MIN..MAX,…` with the names of [`DelayConfig`].
pub(super) fn delay(text: &str) -> Result<DelayConfig, String> {
    read(members(text, "device", &[])?)
}

/// Reads `PATH` or `path=PATH,readonly=on,…` with the names of [`DiskConfig`].
pub(super) fn disk(text: &str) -> Result<DiskConfig, String> {
    const WORDS: [&str; 6] = ["path", "id", "serial", "image_type", "vhost_socket", "rate_limit_group"];
    read(members_with(text, "path", &[], &WORDS)?)
}

/// Reads `PATH` or `src=PATH`.
pub(super) fn rng(text: &str) -> Result<RngConfig, String> {
    read(members_with(text, "src", &[], &["src"])?)
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
    for (i, part) in text.split(',').enumerate() {
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
        assert!(cpus("2,translate=on").unwrap().translate);
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
    fn entropy_is_a_path() {
        for text in ["/dev/random", "src=/dev/random", "src=/dev/random,iommu=off"] {
            assert_eq!(rng(text).unwrap().src, "/dev/random", "{text}");
        }
        assert!(rng("src=/dev/random,speed=9").is_err());
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
    fn serial_is_a_word_or_a_path() {
        assert_eq!(serial("tty").unwrap(), ConsoleConfig::tty());
        assert_eq!(serial("file=/f=1").unwrap(), ConsoleConfig::file("/f=1"));
        assert_eq!(serial("socket=/s").unwrap(), ConsoleConfig::socket("/s"));
        for text in ["", "Tty", "file", "file=", "socket=", "pty", "tty=1"] {
            assert!(serial(text).is_err(), "{text}");
        }
    }
}
