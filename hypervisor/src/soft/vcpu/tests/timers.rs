//! Timers that interrupt.

use iced_x86::code_asm::*;

use super::*;

#[test]
fn the_pit_interrupts_through_the_pics() {
    let world = World::new(1);
    world.real_vector(0x30, HANDLER);
    world.code(16, CODE, |a| {
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 4),
            (0x21, 1),
            (0x21, 0xfe),
            (0x43, 0x34),
        ] {
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        for _ in 0..2 {
            a.mov(al, 0x10)?;
            a.out(0x40, al)?;
        }
        a.sti()?;
        a.hlt()?;
        a.hlt()?;
        a.out(0x81, al)
    });
    world.code(16, HANDLER, |a| {
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.iret()
    });
    let mut vcpu = world.real(0);
    written(&mut *vcpu, 0x81);
    assert!(counter(&*vcpu, "interrupts") >= 2, "one more if the host is slow");
}

#[test]
fn the_tsc_deadline_timer_ends_hlt() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.code(32, CODE, |a| {
        a.mov(dword_ptr(0xfee0_0320u32), 2 << 17 | 0x41)?;
        a.rdtsc()?;
        a.add(eax, 2_000_000)?;
        a.adc(edx, 0)?;
        a.mov(ecx, 0x6e0)?;
        a.wrmsr()?;
        a.sti()?;
        a.hlt()?;
        a.rdmsr()?;
        a.or(eax, edx)?;
        a.out(0x81, al)
    });
    world.code(32, HANDLER, |a| a.iretd());
    let mut vcpu = world.flat(0);
    assert_eq!(written(&mut *vcpu, 0x81), 0, "the deadline reads 0 when it has passed");
}

#[test]
fn the_timer_interrupts_a_guest_that_never_stops_to_listen() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.code(32, CODE, |a| {
        a.mov(dword_ptr(0xfee0_0320u32), 0x41)?;
        a.mov(dword_ptr(0xfee0_0380u32), 1_000_000)?;
        a.sti()?;
        a.db(&[0xeb, 0xfe])
    });
    world.code(32, HANDLER, |a| a.out(0x81, al));
    written(&mut *world.flat(0), 0x81);
}

#[test]
fn a_paused_machine_fires_no_timer_and_a_continued_one_does() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.code(32, CODE, |a| {
        a.mov(dword_ptr(0xfee0_0320u32), 0x41)?;
        a.mov(dword_ptr(0xfee0_0380u32), 1_000)?;
        a.sti()?;
        a.hlt()
    });
    world.code(32, HANDLER, |a| a.out(0x81, al));
    let mut vcpu = world.flat(0);
    world.vm.set_paused(true);
    let kick = vcpu.kick();
    std::thread::scope(|scope| {
        soon(scope, || kick.kick());
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
        assert_eq!(counter(&*vcpu, "interrupts"), 0);
        soon(scope, || world.vm.set_paused(false));
        written(&mut *vcpu, 0x81);
    });
}
