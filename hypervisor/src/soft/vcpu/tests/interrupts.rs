//! Interrupts and NMIs, from wherever they come.

use iced_x86::code_asm::*;

use super::*;

#[test]
fn an_interrupt_from_another_thread_ends_hlt() {
    let world = World::new(1);
    world.real_vector(0x41, HANDLER);
    world.code(16, CODE, |a| {
        a.sti()?;
        a.hlt()?;
        a.out(0x81, al)
    });
    world.code(16, HANDLER, |a| {
        a.out(0x80, al)?;
        a.iret()
    });
    let mut vcpu = world.real(0);
    std::thread::scope(|scope| {
        soon(scope, || world.vm.signal_msi(0xfee0_0000, 0x41));
        written(&mut *vcpu, 0x80);
    });
    written(&mut *vcpu, 0x81);
    assert_eq!(counter(&*vcpu, "interrupts"), 1);
}

#[test]
fn an_interrupt_waits_until_the_guest_lets_it_in() {
    let world = World::new(1);
    world.real_vector(0x41, HANDLER);
    world.code(16, CODE, |a| {
        a.cli()?;
        a.out(0x81, al)?;
        a.sti()?;
        a.nop()?;
        a.out(0x82, al)
    });
    world.code(16, HANDLER, |a| {
        a.out(0x80, al)?;
        a.iret()
    });
    let mut vcpu = world.real(0);
    world.vm.signal_msi(0xfee0_0000, 0x41);
    written(&mut *vcpu, 0x81);
    written(&mut *vcpu, 0x80);
    written(&mut *vcpu, 0x82);
}

#[test]
fn the_instruction_after_sti_is_not_interrupted() {
    let world = World::new(1);
    world.real_vector(0x41, HANDLER);
    world.code(16, CODE, |a| {
        a.sti()?;
        a.out(0x81, al)?;
        a.out(0x82, al)
    });
    world.code(16, HANDLER, |a| {
        a.out(0x80, al)?;
        a.iret()
    });
    let mut vcpu = world.real(0);
    world.vm.signal_msi(0xfee0_0000, 0x41);
    written(&mut *vcpu, 0x81);
    written(&mut *vcpu, 0x80);
    written(&mut *vcpu, 0x82);
}

#[test]
fn an_nmi_waits_for_the_end_of_the_one_before() {
    let world = World::new(1);
    world.real_vector(2, HANDLER);
    world.code(16, CODE, |a| {
        a.hlt()?;
        a.out(0x81, al)?;
        a.hlt()
    });
    world.code(16, HANDLER, |a| {
        a.inc(ax)?;
        a.out(0x80, al)?;
        a.iret()
    });
    let mut vcpu = world.real(0);
    world.vm.signal_msi(0xfee0_0000, NMI);
    assert_eq!(written(&mut *vcpu, 0x80), 1);
    world.vm.signal_msi(0xfee0_0000, NMI);
    assert_eq!(
        written(&mut *vcpu, 0x80),
        2,
        "not nested: at the first instruction after IRET"
    );
    assert_eq!(counter(&*vcpu, "nmis"), 2);
}

#[test]
fn an_interrupt_that_came_with_an_nmi_follows_it() {
    let world = World::new(1);
    world.real_vector(2, HANDLER);
    world.real_vector(0x41, HANDLER + 0x100);
    world.code(16, CODE, |a| {
        a.sti()?;
        a.nop()?;
        a.hlt()
    });
    world.code(16, HANDLER, |a| {
        a.out(0x80, al)?;
        a.iret()
    });
    world.code(16, HANDLER + 0x100, |a| a.out(0x81, al));
    let mut vcpu = world.real(0);
    world.vm.signal_msi(0xfee0_0000, 0x41);
    world.vm.signal_msi(0xfee0_0000, NMI);
    written(&mut *vcpu, 0x80);
    written(&mut *vcpu, 0x81);
}

#[test]
fn a_self_ipi_in_the_register_page_is_taken_and_its_end_lets_the_next_one_in() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.gate(IDT, 0x42, HANDLER + 0x100);
    world.code(32, CODE, |a| {
        a.mov(ebx, 0xfee0_0000u32)?;
        a.sti()?;
        a.mov(dword_ptr(ebx + 0x300), 0x4_4041)?;
        a.out(0x83, al)
    });
    world.code(32, HANDLER, |a| {
        // A second one of the same class waits for the end of this one.
        a.mov(dword_ptr(ebx + 0x300), 0x4_4042)?;
        a.sti()?;
        a.nop()?;
        a.out(0x80, al)?;
        a.mov(dword_ptr(ebx + 0xb0), 0)?;
        a.out(0x82, al)?;
        a.iretd()
    });
    world.code(32, HANDLER + 0x100, |a| {
        a.out(0x81, al)?;
        a.mov(dword_ptr(ebx + 0xb0), 0)?;
        a.iretd()
    });
    let mut vcpu = world.flat(0);
    written(&mut *vcpu, 0x80);
    written(&mut *vcpu, 0x81);
    written(&mut *vcpu, 0x82);
    written(&mut *vcpu, 0x83);
}

#[test]
fn a_line_interrupts_through_the_io_apic_the_guest_programmed() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.code(32, CODE, |a| {
        a.mov(dword_ptr(0xfec0_0000u32), 0x10 + 2 * 5)?;
        a.mov(dword_ptr(0xfec0_0010u32), 0x8041)?;
        a.sti()?;
        a.hlt()?;
        a.out(0x82, al)
    });
    world.code(32, HANDLER, |a| {
        a.out(0x81, al)?;
        a.mov(dword_ptr(0xfee0_00b0u32), 0)?;
        a.iretd()
    });
    let line = world.vm.interrupt_line(5).unwrap();
    line.set(true);
    let mut vcpu = world.flat(0);
    written(&mut *vcpu, 0x81);
    written(&mut *vcpu, 0x81);
    line.set(false);
    written(&mut *vcpu, 0x82);
}
