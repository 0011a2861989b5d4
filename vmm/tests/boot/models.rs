//! Processor models, as Linux sees them.

use serde_json::json;

use crate::guest::Guest;
use crate::serve::Serve;

#[test]
fn every_processor_model_boots_with_the_flags_of_its_level_and_without_those_of_the_next() {
    let Some(guest) = Guest::get() else { return };
    let v2 = ["cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2", "aes"];
    let v3 = [
        "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave", "adx",
    ];
    let v4 = ["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];
    // A kernel that is entered at its PVH entry has missed its chance of five-level paging, and does not show `la57`.
    let host = ["gfni", "vaes", "pku", "ospke", "rdpid"];
    let levels = [("v2", &v2[..]), ("v3", &v3[..]), ("v4", &v4[..]), ("host", &host[..])];
    for (own, (model, _)) in levels.iter().enumerate() {
        // Multiplications with additions are the host's own.
        if own > 0 && !is_x86_feature_detected!("fma") {
            eprintln!("skipped: {model}: this processor has no FMA");
            continue;
        }
        let serve = Serve::start();
        let cpus = json!({"boot_vcpus": 1, "max_vcpus": 1, "model": model});
        let mut console = serve.boot_with(&guest, &guest.kernel, &cpus, "console=ttyS0", &json!([]));
        console.wait_for_shell();
        let line = console.run("grep -m1 ^flags /proc/cpuinfo");
        let flags: Vec<&str> = line.split_whitespace().collect();
        for (level_number, (level, expected)) in levels.iter().enumerate() {
            for flag in *expected {
                // XSAVE itself is there without what it is for.
                let is_left_out = *model == "host" && *level == "v4" && !is_x86_feature_detected!("avx512f");
                let there = level_number <= own && !is_left_out || *flag == "xsave";
                assert_eq!(flags.contains(flag), there, "{flag} of {model}: {line}");
            }
        }
        serve.put("vm.shutdown");
    }
}
