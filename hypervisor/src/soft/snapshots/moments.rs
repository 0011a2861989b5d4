//! Time goes on where it stood: nothing that runs is early or late, and what stands stays.
//!
//! A saved machine is plain data, so its clock can be put where a test wants it. No vCPU ever waits here.

use std::time::Duration;

use iced_x86::code_asm::*;
use reprise_emulator::cpu::gpr;

use super::super::world::{CODE, IDT, World};
use crate::testing::through_json;
use crate::{Access, Answer, IoRequest, Vcpu, VcpuState, Vm, VmEntry, VmExit, VmState};

const HANDLER: u64 = 0x2000;
/// What the guest writes to when it has been through its loop once more, and when it is interrupted.
const LOOP: u64 = 0x80;
const INTERRUPTED: u64 = 0x81;

/// A machine of one vCPU whose clock stands.
struct Stopped {
    world: World,
    vcpu: Box<dyn Vcpu>,
}

impl Stopped {
    /// One that does `begin`, and then for ever reads something into EAX with `look` and writes it to [`LOOP`].
    fn new(
        begin: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
        look: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        let world = World::new(1);
        world.code(32, CODE, |a| {
            begin(a)?;
            a.sti()?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            look(a)?;
            a.out(LOOP as u32, eax)?;
            a.jmp(again)
        });
        world.code(32, HANDLER, |a| {
            a.out(INTERRUPTED as u32, eax)?;
            a.mov(dword_ptr(0xfee0_00b0_u32), 0)?;
            a.iretd()
        });
        for vector in [0x30, 0x41] {
            world.gate(IDT, vector, HANDLER);
        }
        let vcpu = world.flat(0);
        world.vm.set_paused(true);
        Self { world, vcpu }
    }

    /// The next port that it writes to, and what.
    fn next(&mut self) -> (u64, u64) {
        let entry = match self.vcpu.waiting() {
            Some(IoRequest { id, .. }) => VmEntry::Answer(Answer { id, value: 0 }),
            None => VmEntry::Resume,
        };
        // The vCPU looks up after this instruction: nobody rings for a clock that stands.
        self.vcpu.kick().kick();
        match self.vcpu.run(entry).unwrap() {
            VmExit::Interrupted => match self.vcpu.run(VmEntry::Resume).unwrap() {
                VmExit::Io(IoRequest {
                    address,
                    access: Access::Write(value),
                    ..
                }) => (address, value),
                exit => panic!("{exit:?}"),
            },
            exit => panic!("{exit:?}"),
        }
    }

    /// Another machine, restored when this one's clock would say `passed` nanoseconds more.
    fn later(&self, passed: u64) -> Self {
        let (mut vm, vcpu): (VmState, VcpuState) =
            through_json(&(self.world.vm.state().unwrap(), self.vcpu.state().unwrap()));
        vm.clock += passed;
        let world = World::with(1, self.world.memory.clone());
        world.vm.restore(&vm).unwrap();
        let mut own = world.vm.create_vcpu(0).unwrap();
        own.restore(vcpu).unwrap();
        Self { world, vcpu: own }
    }

    fn clock(&self) -> u64 {
        self.world.vm.state().unwrap().clock
    }
}

const MILLISECOND: u64 = 1_000_000;

/// A timer that was set to 10 milliseconds interrupts after 10, of which 7 are before the snapshot.
fn has_3_milliseconds_left(mut machine: Stopped) {
    assert_eq!(machine.next().0, LOOP);
    let mut restored = machine.later(7 * MILLISECOND);
    assert_eq!(restored.next().0, LOOP);
    // A clock pulse of the PIT is 838 nanoseconds, and the count is loaded by the one after the write.
    let mut early = restored.later(3 * MILLISECOND - 2_000);
    assert_eq!(early.next().0, LOOP, "it is early");
    let mut due = early.later(4_000);
    assert_eq!(due.next().0, INTERRUPTED, "it is late");
    assert_eq!(due.later(0).next().0, LOOP, "it comes once");
}

#[test]
fn an_apic_timer_with_3_milliseconds_left_has_3_milliseconds_left() {
    let machine = || {
        Stopped::new(
            |a| {
                a.mov(dword_ptr(0xfee0_03e0_u32), 0b1011)?;
                a.mov(dword_ptr(0xfee0_0320_u32), 0x41)?;
                a.mov(dword_ptr(0xfee0_0380_u32), 10 * MILLISECOND as u32)
            },
            |a| a.mov(eax, dword_ptr(0xfee0_0390_u32)),
        )
    };
    has_3_milliseconds_left(machine());
    let mut machine = machine();
    assert_eq!(machine.next(), (LOOP, 10 * MILLISECOND));
    assert_eq!(
        machine.later(7 * MILLISECOND).next(),
        (LOOP, 3 * MILLISECOND),
        "to the nanosecond"
    );
}

#[test]
fn a_tsc_deadline_with_3_milliseconds_left_has_3_milliseconds_left() {
    has_3_milliseconds_left(Stopped::new(
        |a| {
            a.mov(dword_ptr(0xfee0_0320_u32), 2 << 17 | 0x41)?;
            a.rdtsc()?;
            a.add(eax, 10 * MILLISECOND as u32)?;
            a.adc(edx, 0)?;
            a.mov(ecx, 0x6e0)?;
            a.wrmsr()
        },
        |a| a.nop(),
    ));
}

#[test]
fn a_pit_with_3_milliseconds_left_has_3_milliseconds_left() {
    has_3_milliseconds_left(Stopped::new(
        |a| {
            let words: [(u32, u32); 8] = [
                (0x20, 0x11),
                (0x21, 0x30),
                (0x21, 4),
                (0x21, 1),
                (0x21, 0xfe),
                (0x43, 0x30),
                (0x40, 11_932 & 0xff),
                (0x40, 11_932 >> 8),
            ];
            for (port, value) in words {
                a.mov(al, value)?;
                a.out(port, al)?;
            }
            Ok(())
        },
        // Whoever looks at the PIT learns what its line did.
        |a| a.in_(al, 0x61),
    ));
}

#[test]
fn a_pit_whose_time_passes_while_the_machine_is_paused_waits_for_it_to_continue() {
    let mut machine = Stopped::new(
        |a| {
            a.mov(al, 0x30)?;
            a.out(0x43, al)?;
            a.mov(al, 1)?;
            a.out(0x40, al)?;
            a.out(0x40, al)
        },
        |a| a.nop(),
    );
    assert_eq!(machine.next().0, LOOP);
    let restored = machine.later(500 * MILLISECOND);
    let saved = restored.world.vm.state().unwrap();
    assert!(!saved.pit.out_0);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(restored.world.vm.state().unwrap(), saved, "nothing moves");
    restored.world.vm.set_paused(false);
    assert!(restored.world.vm.state().unwrap().pit.out_0);
}

#[test]
fn the_time_stamp_counter_goes_on_without_a_jump() {
    let mut machine = Stopped::new(
        |a| {
            // IA32_TSC_ADJUST.
            a.mov(ecx, 0x3b)?;
            a.mov(eax, 5_000)?;
            a.xor(edx, edx)?;
            a.wrmsr()
        },
        |a| {
            a.rdtsc()?;
            a.mov(esi, edx)
        },
    );
    let tsc = |machine: &mut Stopped| {
        let (port, low) = machine.next();
        assert_eq!(port, LOOP);
        low | machine.vcpu.cpu().unwrap().gpr.get(gpr::RSI) << 32
    };
    assert_eq!(tsc(&mut machine), machine.clock() + 5_000);
    // However long it lay on disk.
    std::thread::sleep(Duration::from_millis(2));
    let mut restored = machine.later(0);
    assert_eq!(tsc(&mut restored), machine.clock() + 5_000);
    let mut ahead = restored.later(1 << 40);
    assert_eq!(tsc(&mut ahead), machine.clock() + 5_000 + (1 << 40));
    ahead.world.vm.set_paused(false);
    assert!(
        tsc(&mut ahead) > machine.clock() + 5_000 + (1 << 40),
        "and then it runs"
    );
}

#[test]
fn a_timer_that_is_due_when_the_machine_continues_ends_its_sleep() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.code(32, CODE, |a| {
        a.mov(dword_ptr(0xfee0_0320_u32), 0x41)?;
        a.mov(dword_ptr(0xfee0_0380_u32), 1_000)?;
        a.out(LOOP as u32, al)?;
        a.sti()?;
        a.hlt()
    });
    world.code(32, HANDLER, |a| a.out(INTERRUPTED as u32, al));
    let vcpu = world.flat(0);
    world.vm.set_paused(true);
    let mut machine = Stopped { world, vcpu };
    assert_eq!(machine.next().0, LOOP);
    let mut restored = machine.later(1);
    restored.world.vm.set_paused(false);
    assert_eq!(restored.next().0, INTERRUPTED);
}
