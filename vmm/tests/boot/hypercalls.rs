//! What Linux asks of a hypervisor that it knows.

use serde_json::json;

use crate::guest::Guest;
use crate::serve::Serve;

/// Has processes move from one vCPU to another and leave translations of what they give back behind.
const WANDER: &str = "i=0; while [ $i -lt 40 ]; do taskset 1 taskset 2 true; i=$((i + 1)); done";

#[test]
fn a_guest_of_kvm_makes_kvm_s_hypercalls() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    // With two processors an IPI never goes to several, and with three only if there is no shorthand for "all others".
    let cpus = json!({"boot_vcpus": 3, "max_vcpus": 3});
    let mut console = serve.boot_with(
        &guest,
        &guest.kernel,
        &cpus,
        "console=ttyS0 no_ipi_broadcast=1",
        &json!([]),
    );
    console.wait_for_shell();
    let log = console.run("dmesg");
    for line in [
        "Hypervisor detected: KVM",
        "kvm-guest: setup PV IPIs",
        "kvm-guest: PV spinlocks enabled",
        "kvm-guest: setup PV sched yield",
    ] {
        assert!(log.contains(line), "{line:?} is not in\n{log}");
    }
    console.run(WANDER);
    assert!(serve.vcpus_counter("kvm_send_ipi") > 0);
    // How often a processor was kicked or yielded to is a matter of luck; that nothing was refused is not.
    assert_eq!(serve.vcpus_counter("hypercalls_refused"), 0);
    serve.put("vm.shutdown");
}

#[test]
fn a_guest_of_hyper_v_makes_hyper_v_s_hypercalls() {
    let Some(guest) = Guest::get() else { return };
    let serve = Serve::start();
    let cpus = json!({"boot_vcpus": 2, "max_vcpus": 2, "kvm_hyperv": true});
    let mut console = serve.boot_with(&guest, &guest.kernel, &cpus, "console=ttyS0", &json!([]));
    console.wait_for_shell();
    let log = console.run("dmesg");
    for line in [
        "Hypervisor detected: Microsoft Hyper-V",
        "Hyper-V: Using hypercall for remote TLB flush",
        "Hyper-V: Using IPI hypercalls",
    ] {
        assert!(log.contains(line), "{line:?} is not in\n{log}");
    }
    assert!(!log.contains("unchecked MSR access"), "{log}");
    let clock = console.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
    assert_eq!(clock.trim(), "hyperv_clocksource_tsc_page");
    console.run(WANDER);
    for name in ["hv_send_ipi", "hv_flush_space"] {
        assert!(serve.vcpus_counter(name) > 0, "{name}");
    }
    for name in ["hypercalls_refused", "kvm_send_ipi", "kvm_kick"] {
        assert_eq!(serve.vcpus_counter(name), 0, "{name}");
    }
    serve.put("vm.shutdown");
}
