//! Guests all of whose devices answer late.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use crate::console::Console;
use crate::guest::Guest;
use crate::log::Log;
use crate::serve::Serve;
use crate::wait::eventually;

/// What was printed by machines with prompt devices, by their number of vCPUs: one boot serves several tests.
static PROMPT: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());

pub fn remember(vcpus: u32, console: &Console) {
    let mut prompt = PROMPT.lock().unwrap_or_else(PoisonError::into_inner);
    prompt.insert(vcpus, console.boot_log().to_owned());
}

fn prompt_log(guest: &Guest, vcpus: u32) -> Log {
    let known = || {
        PROMPT
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&vcpus)
            .cloned()
    };
    if known().is_none() {
        let serve = Serve::start();
        let mut console = serve.boot(guest, &guest.kernel, vcpus);
        console.wait_for_shell();
        remember(vcpus, &console);
        serve.put("vm.delete");
    }
    Log::of(&known().unwrap())
}

/// Every access to every device is answered late, and the guest sees nothing of it but time.
fn boot_with_every_device_late(vcpus: u32, translates: bool) {
    let Some(guest) = Guest::get() else { return };
    let prompt = prompt_log(&guest, vcpus);
    let serve = Serve::start();
    let delays = json!([{"device": "*", "us": "0..300", "seed": vcpus}]);
    let cpus = json!({"boot_vcpus": vcpus, "max_vcpus": vcpus, "translate": translates});
    let mut console = serve.boot_with(&guest, &guest.kernel, &cpus, "console=ttyS0", &delays);
    console.wait_for_shell();
    Log::of(console.boot_log()).assert_same(&prompt);

    assert_eq!(console.run("nproc").trim(), vcpus.to_string());
    console.run("for i in 1 2 3 4; do (dd if=/dev/zero bs=64k count=50 2>/dev/null | md5sum > /tmp/$i) & done; wait");
    assert_eq!(console.run("cat /tmp/[1-4] | sort -u | wc -l").trim(), "1");
    serve.put("vm.pause");
    let counters = serve.get("vm.counters");
    let figure = |device: &str, name: &str| counters[device][name].as_u64().unwrap();
    for device in ["acpi", "i8042", "post", "rtc", "serial"] {
        let accesses = figure(device, "reads") + figure(device, "writes");
        assert_eq!(figure(device, "late"), accesses, "{device}");
    }
    let all = counters.as_object().unwrap().values();
    let late: u64 = all.filter_map(|own| own["late"].as_u64()).sum();
    assert!(late > 10_000 && figure("rtc", "late") > 10, "{counters}");
    let parked: u64 = (0..vcpus).map(|vcpu| figure(&format!("vcpu{vcpu}"), "parked")).sum();
    assert_eq!(parked, late, "each of them parked a vCPU");
    serve.put("vm.resume");
    serve.put("vm.power-button");
    console.expect("The system is going down NOW!");
    eventually("the power-off", || (serve.state() == "Shutdown").then_some(()));
}

#[test]
fn with_every_device_late_an_interpreted_guest_prints_the_same_as_a_translated_one_but_for_times() {
    boot_with_every_device_late(1, false);
}

#[test]
fn with_every_device_late_a_guest_on_two_vcpus_prints_the_same_but_for_times() {
    boot_with_every_device_late(2, true);
}
