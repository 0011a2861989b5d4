//! Small guests on whole machines, each of which does one thing. Guest code is real-mode or flat 32-bit code at [`CODE`];
//! vectors lead to handlers that the test places.

mod exits;
mod hypercalls;
mod interrupts;
mod processors;
mod timers;

use super::super::world::{CODE, IDT, World};
use super::*;
use crate::{Access, Vm};

const HANDLER: u64 = 0x2000;

/// INIT and start-up IPIs as messages: for vCPU 1.
const TO_1: u64 = 0xfee0_1000;
const INIT: u32 = 0x500;
const STARTUP: u32 = 0x600;
const NMI: u32 = 0x400;

/// Answers what is owed, and runs until the next device access, which must be a write to `port`; the value.
fn written(vcpu: &mut dyn Vcpu, port: u64) -> u64 {
    let entry = vcpu.waiting().map_or(VmEntry::Resume, |request| answer(request.id, 0));
    let exit = vcpu.run(entry).unwrap();
    let VmExit::Io(IoRequest {
        space: crate::Space::Port,
        address,
        access: Access::Write(value),
        ..
    }) = exit
    else {
        panic!("{exit:?}")
    };
    assert_eq!(address, port, "value {value:#x}");
    value
}

/// Runs until the next device access, which must be a read.
fn asked(vcpu: &mut dyn Vcpu) -> IoRequest {
    match vcpu.run(VmEntry::Resume).unwrap() {
        VmExit::Io(request) if request.access == Access::Read => request,
        exit => panic!("{exit:?}"),
    }
}

fn answer(id: RequestId, value: u64) -> VmEntry {
    VmEntry::Answer(crate::Answer { id, value })
}

fn counter(vcpu: &dyn Vcpu, name: &str) -> u64 {
    vcpu.counters()
        .into_iter()
        .find(|(own, _)| *own == name)
        .expect("the counter is there")
        .1
}

/// Runs `what` on another thread in a moment, when the vCPU is likely to be running or asleep.
fn soon<'a>(scope: &'a std::thread::Scope<'a, '_>, what: impl FnOnce() + Send + 'a) {
    scope.spawn(|| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        what();
    });
}
