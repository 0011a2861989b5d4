use std::fs;
use std::sync::Arc;

use super::*;
use crate::virtio::net::{Net, NetOptions};
use crate::virtio::testing::{BUFFERS, Driver, VERSION_1, eventually};

/// Taps need a host that makes them, and a user who may.
fn may() -> bool {
    match Tap::open(&TapOptions {
        pairs: 1,
        ..TapOptions::default()
    }) {
        Ok(_) => true,
        Err(error) => {
            let required = std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "tap"));
            assert!(!required, "no tap can be made: {error}");
            eprintln!("skipped: no tap can be made: {error}");
            false
        }
    }
}

fn named(name: &str, pairs: u16) -> TapOptions {
    TapOptions {
        name: Some(name.to_owned()),
        pairs,
        ..TapOptions::default()
    }
}

fn fact(name: &str, what: &str) -> String {
    fs::read_to_string(format!("/sys/class/net/{name}/{what}"))
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn a_tap_is_made_as_asked_and_goes_with_its_last_file() {
    if !may() {
        return;
    }
    let options = TapOptions {
        ip: Some(Ipv4Addr::new(192, 0, 2, 1)),
        mask: Some(Ipv4Addr::new(255, 255, 255, 252)),
        host_mac: Some("2e:00:00:00:00:05".parse().unwrap()),
        mtu: Some(1400),
        ..named("reprise-made", 1)
    };
    let tap = Tap::open(&options).unwrap();
    assert_eq!(tap.name(), "reprise-made");
    assert_eq!(fact("reprise-made", "address"), "2e:00:00:00:00:05");
    assert_eq!(fact("reprise-made", "mtu"), "1400");
    let flags = u32::from_str_radix(&fact("reprise-made", "flags")[2..], 16).unwrap();
    assert_eq!(flags & 1, 1, "it is up");
    let routes = fs::read_to_string("/proc/net/route").unwrap();
    let route = routes.lines().find(|line| line.starts_with("reprise-made")).unwrap();
    assert!(route.contains("FCFFFFFF"), "{route}");
    drop(tap);
    assert!(!Path::new("/sys/class/net/reprise-made").exists());
}

#[test]
fn a_tap_that_is_made_for_a_guest_has_the_same_address_each_time() {
    if !may() {
        return;
    }
    for (guest, host) in [
        ("52:54:00:00:00:07", "fe:54:00:00:00:07"),
        ("fe:00:00:00:00:07", "fa:00:00:00:00:07"),
    ] {
        let options = TapOptions {
            guest_mac: Some(guest.parse().unwrap()),
            ..named("reprise-same", 2)
        };
        let tap = Tap::open(&options).unwrap();
        assert_eq!(fact("reprise-same", "address"), host);
        drop(tap);
    }
}

#[test]
fn a_tap_that_was_there_keeps_its_address() {
    if !may() {
        return;
    }
    let there = Tap::open(&named("reprise-kept", 1)).unwrap();
    sys::set_stays(there.pair(0), true).unwrap();
    drop(there);
    let address = fact("reprise-kept", "address");
    let options = TapOptions {
        guest_mac: Some("52:54:00:00:00:07".parse().unwrap()),
        ..named("reprise-kept", 1)
    };
    let tap = Tap::open(&options).unwrap();
    assert_eq!(fact("reprise-kept", "address"), address);
    sys::set_stays(tap.pair(0), false).unwrap();
}

#[test]
fn a_tap_without_a_name_gets_one() {
    if !may() {
        return;
    }
    let options = TapOptions {
        pairs: 1,
        ..TapOptions::default()
    };
    let (one, two) = (Tap::open(&options).unwrap(), Tap::open(&options).unwrap());
    assert!(one.name().starts_with("vmtap"), "{}", one.name());
    assert_ne!(one.name(), two.name());
}

#[test]
fn queues_are_attached_and_detached() {
    if !may() {
        return;
    }
    let tap = Tap::open(&named("reprise-queues", 3)).unwrap();
    let queues = || {
        let folder = fs::read_dir("/sys/class/net/reprise-queues/queues").unwrap();
        let names = folder.map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("tx-")).count()
    };
    for pairs in [1, 3, 2, 2, 1] {
        tap.set_pairs(pairs).unwrap();
        assert_eq!(queues(), usize::from(pairs));
    }
    tap.set_offloads(libc::TUN_F_CSUM | libc::TUN_F_TSO4).unwrap();
    tap.set_offloads(0).unwrap();
}

#[test]
fn a_tap_that_cannot_be_used_is_named() {
    if !may() {
        return;
    }
    let single = Tap::open(&named("reprise-one", 1)).unwrap();
    assert!(matches!(Tap::open(&named("reprise-one", 1)), Err(TapError::Busy { name, .. }) if name == "reprise-one"));
    let error = Tap::open(&named("reprise-one", 2)).unwrap_err();
    assert!(
        matches!(error, TapError::Kind { .. } | TapError::Busy { .. }),
        "{error:?}"
    );
    drop(single);
    let error = Tap::open(&named("lo", 2)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the interface lo is not a tap that several queues can use"
    );
    for name in ["", "a-name-of-16-chars", "a/b", "a b", "..", "tap%d"] {
        assert!(
            matches!(Tap::open(&named(name, 1)), Err(TapError::Name { .. })),
            "{name}"
        );
    }
    for pairs in [0, 65] {
        assert!(matches!(
            Tap::open(&named("reprise-one", pairs)),
            Err(TapError::Pairs { .. })
        ));
    }
}

#[test]
fn descriptors_that_were_opened_before_are_a_tap_s_or_refused() {
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let error = Tap::from_queues(vec![null()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "file descriptor 0 of a network card is not one of a tap"
    );
    assert!(matches!(Tap::from_queues(vec![]), Err(TapError::Pairs { .. })));
    if !may() {
        return;
    }
    let copies = |tap: &Tap| {
        tap.queues
            .iter()
            .map(|queue| queue.try_clone().unwrap())
            .collect::<Vec<_>>()
    };
    let tap = Tap::open(&named("reprise-given", 2)).unwrap();
    let given = Tap::from_queues(copies(&tap)).unwrap();
    assert_eq!((given.name(), given.pairs()), ("reprise-given", 2));
    given.set_pairs(1).unwrap();
    let other = Tap::open(&named("reprise-other", 1)).unwrap();
    let mixed = copies(&tap).into_iter().chain(copies(&other)).collect();
    let error = Tap::from_queues(mixed).unwrap_err();
    assert!(matches!(error, TapError::Unfit { index: 2, .. }), "{error}");
}

#[test]
fn the_host_answers_a_guest_through_a_tap() {
    if !may() {
        return;
    }
    let options = TapOptions {
        ip: Some(Ipv4Addr::new(198, 18, 88, 1)),
        mask: Some(Ipv4Addr::new(255, 255, 255, 252)),
        ..named("reprise-arp", 1)
    };
    let (own, tap) = ([2, 0, 0, 0, 0, 9], Tap::open(&options).unwrap());
    let net = Net::new(Arc::new(tap), NetOptions::new(MacAddress::new(own))).unwrap();
    let mut driver = Driver::new(Arc::new(net));
    // Mergeable buffers, checksums and segments from the host.
    driver.run(VERSION_1 | 1 << 15 | 1 << 1 | 1 << 7);
    // RFC 826: who has 198.18.88.1? Tell 198.18.88.2.
    let mut question = vec![0; 12];
    question.extend([0xff; 6]);
    question.extend(own);
    question.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    question.extend(own);
    question.extend([198, 18, 88, 2, 0, 0, 0, 0, 0, 0, 198, 18, 88, 1]);
    driver.put(BUFFERS, &question);
    driver.request(1, &[(BUFFERS, question.len() as u32, false)]);
    assert_eq!((driver.counter("tx_frames"), driver.counter("tx_drops")), (1, 0));
    let mut seen = 0;
    driver.offer(0, &[(BUFFERS + 0x1000, 2000, true)]);
    driver.notify(0);
    eventually("an answer", || {
        if driver.used(0) == seen {
            return false;
        }
        seen += 1;
        // The host may have something to say of its own before.
        let frame = driver.get(BUFFERS + 0x1000, 12 + 42);
        driver.offer(0, &[(BUFFERS + 0x1000, 2000, true)]);
        driver.notify(0);
        frame[12..18] == own
            && frame[24..34] == [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2]
            && frame[40..44] == [198, 18, 88, 1]
    });
}
