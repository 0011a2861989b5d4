//! A machine that is saved on one backend goes on on the other: whatever was under way ends as if nothing had happened.

use iced_x86::code_asm::*;
use reprise_hypervisor::{
    Access, GuestMemory, Hypervisor, HypervisorKind, IoRequest, SoftHypervisor, StateError, Vcpu, VcpuError, VcpuState,
    VmEntry, VmExit, VmState,
};
use vm_memory::{Bytes, GuestAddress};

use crate::world::{CODE, DEVICE, HANDLER, RAM_END, Start, World, answer, io, kvm};

/// A machine of one vCPU, and what it is owed.
struct Machine {
    world: World,
    vcpu: Box<dyn Vcpu>,
}

impl Machine {
    /// A guest at [`CODE`].
    fn new(hypervisor: &dyn Hypervisor, start: Start, write: impl FnOnce(&World)) -> Self {
        let world = World::new(hypervisor, 1);
        write(&world);
        // A machine in software counts as those on KVM do, so that it can go on there.
        world.vm.set_paused(true);
        let mut state = world.vm.state().unwrap();
        if let Some(khz) = khz() {
            state.tsc_khz = khz;
            world.vm.restore(&state).unwrap();
        }
        let mut vcpu = world.vcpu(0, start);
        if let Some(kvm) = kvm() {
            // And announces no more than KVM does.
            let mut state = vcpu.state().unwrap();
            state.cpuid = World::new(&kvm, 1).vm.create_vcpu(0).unwrap().state().unwrap().cpuid;
            vcpu.restore(state).unwrap();
        }
        world.vm.set_paused(false);
        Self { world, vcpu }
    }

    fn save(&self) -> (VmState, VcpuState) {
        self.world.vm.set_paused(true);
        let state = (self.world.vm.state().unwrap(), self.vcpu.state().unwrap());
        serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap()
    }

    /// The same machine on `hypervisor`, by way of a file.
    fn on(&self, hypervisor: &dyn Hypervisor) -> Self {
        let (vm, vcpu) = self.save();
        Self::restored(hypervisor, &self.world.memory, &vm, vcpu)
    }

    fn restored(hypervisor: &dyn Hypervisor, memory: &GuestMemory, vm: &VmState, vcpu: VcpuState) -> Self {
        let mut bytes = vec![0; RAM_END as usize];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let copy = GuestMemory::from_ranges(&[(GuestAddress(0), bytes.len())]).unwrap();
        copy.write_slice(&bytes, GuestAddress(0)).unwrap();
        let world = World::with(hypervisor, 1, copy);
        world.vm.restore(vm).unwrap();
        let mut own = world.vm.create_vcpu(0).unwrap();
        own.restore(vcpu).unwrap_or_else(|error| panic!("{error:?}"));
        world.vm.set_paused(false);
        Self { world, vcpu: own }
    }

    fn next(&mut self) -> IoRequest {
        let entry = match self.vcpu.waiting() {
            Some(request) => panic!("{request:?} is owed"),
            None => VmEntry::Resume,
        };
        io(self.vcpu.run(entry).unwrap())
    }

    fn answer(&mut self, value: u64) -> IoRequest {
        let id = self.vcpu.waiting().expect("something is owed").id;
        io(self.vcpu.run(answer(id, value)).unwrap())
    }
}

/// How fast time-stamp counters count on this host's KVM.
fn khz() -> Option<u32> {
    let world = World::new(&kvm()?, 1);
    let _vcpu = world.vm.create_vcpu(0).unwrap();
    Some(world.vm.state().unwrap().tsc_khz)
}

/// Runs `test` with every way from one backend to another, and to another machine of the same.
fn every_way(test: impl Fn(&dyn Hypervisor, &dyn Hypervisor)) {
    let kvm = kvm();
    let mut backends: Vec<&dyn Hypervisor> = vec![&SoftHypervisor];
    backends.extend(kvm.as_ref().map(|kvm| kvm as &dyn Hypervisor));
    for from in &backends {
        for to in &backends {
            eprintln!("from {:?} to {:?}", from.kind(), to.kind());
            test(*from, *to);
        }
    }
}

/// A guest that reads, computes and writes, and in the end compares what it has with what it had: port 0x99 tells.
fn guest(world: &World) {
    world.code(32, CODE, |a| {
        a.mov(ebx, 0x1234_5678)?;
        a.mov(ecx, 7)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        // Two reads and a store to RAM.
        a.mov(esi, DEVICE as i32)?;
        a.mov(edi, (DEVICE + 0x40) as i32)?;
        a.cmpsd()?;
        a.pushfd()?;
        a.pop(eax)?;
        a.and(eax, 0x8d5)?;
        a.add(ebx, eax)?;
        a.mov(eax, dword_ptr((DEVICE + 8) as i32))?;
        a.add(ebx, eax)?;
        a.rol(ebx, 3)?;
        // A read and a write of the same register.
        a.add(dword_ptr((DEVICE + 0x10) as i32), ebx)?;
        a.in_(al, 0x60)?;
        a.mov(byte_ptr(ecx + 0x5000), al)?;
        a.out(0x80, al)?;
        // Elements, answered one by one, some before and some behind a snapshot.
        a.mov(edi, 0x6000)?;
        a.push(ecx)?;
        a.mov(ecx, 5)?;
        a.mov(edx, 0x70)?;
        a.rep().insb()?;
        a.mov(esi, 0x6000)?;
        a.mov(ecx, 3)?;
        a.rep().outsb()?;
        a.pop(ecx)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.mov(eax, ebx)?;
        a.out(0x99, eax)?;
        a.hlt()
    });
}

/// What the device says to its access of this number.
fn says(number: u64) -> u64 {
    (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11
}

/// The accesses of the guest, and what it has in the end. Whenever `moves` says so the machine goes on elsewhere.
fn trace(mut machine: Machine, mut moves: impl FnMut(u64, &Machine) -> Option<Machine>) -> Vec<(u64, u8, Access)> {
    let mut trace = Vec::new();
    let mut request = machine.next();
    loop {
        if let Some(other) = moves(trace.len() as u64, &machine) {
            assert_eq!(other.vcpu.waiting().map(|own| own.address), Some(request.address));
            machine = other;
            request = machine.vcpu.waiting().expect("what was owed is owed");
        }
        let elements = match request.access {
            // A batch is refused, and asked for one by one.
            Access::ReadTo { .. } | Access::WriteFrom { .. } => {
                request = machine.answer(0);
                continue;
            }
            access => access,
        };
        trace.push((request.address, request.size, elements));
        if request.address == 0x99 {
            return trace;
        }
        let ones = u64::MAX >> (64 - 8 * u32::from(request.size));
        let value = says(trace.len() as u64) & ones;
        request = machine.answer(if elements == Access::Read { value } else { 0 });
    }
}

#[test]
fn rule_23_an_instruction_that_waits_is_saved_on_one_backend_and_finished_on_the_other() {
    let alone = trace(Machine::new(&SoftHypervisor, Start::Flat, guest), |_, _| None);
    assert_eq!(alone.len(), 7 * (2 + 1 + 2 + 2 + 5 + 3) + 1);
    every_way(|from, to| {
        for first in 0..15 {
            // There at one access, and back at a later one.
            let way = |number, machine: &Machine| match number {
                _ if number == first => Some(machine.on(to)),
                _ if number == first + 4 => Some(machine.on(from)),
                _ => None,
            };
            let other = trace(Machine::new(from, Start::Flat, guest), way);
            assert_eq!(alone, other, "moved at {first}");
        }
        let always = |_, machine: &Machine| Some(machine.on(to));
        assert_eq!(alone, trace(Machine::new(from, Start::Flat, guest), always));
    });
}

#[test]
fn a_machine_that_was_saved_goes_on_as_if_it_had_not_been() {
    every_way(|from, _| {
        let looked_at = |_, machine: &Machine| {
            drop(machine.save());
            machine.vcpu.cpu().unwrap();
            machine.world.vm.set_paused(false);
            None
        };
        let alone = trace(Machine::new(from, Start::Flat, guest), |_, _| None);
        assert_eq!(alone, trace(Machine::new(from, Start::Flat, guest), looked_at));
    });
}

#[test]
fn an_interrupt_that_is_pending_comes_when_it_can_be_taken() {
    every_way(|from, to| {
        let mut machine = Machine::new(from, Start::Flat, |world| {
            world.code(32, CODE, |a| {
                a.mov(dword_ptr(0xfee0_00f0_u32), 0x1ff)?;
                a.in_(al, 0x80)?;
                a.sti()?;
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.hlt()?;
                a.jmp(again)
            });
            world.gate(0x41, HANDLER);
            world.code(32, HANDLER, |a| {
                a.out(0x81, al)?;
                a.mov(dword_ptr(0xfee0_00b0_u32), 0)?;
                a.add(esp, 12)?;
                a.sti()?;
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.hlt()?;
                a.jmp(again)
            });
        });
        assert_eq!(machine.next().address, 0x80);
        machine.world.vm.signal_msi(0xfee0_0000, 0x41);
        let mut other = machine.on(to);
        assert_eq!(other.answer(5).address, 0x81);

        // It is served once, and its like is heard after its end.
        other.world.vm.signal_msi(0xfee0_0000, 0x41);
        let mut other = other.on(from);
        assert_eq!(other.answer(0).address, 0x81);
    });
}

#[test]
fn a_local_apic_timer_and_a_tsc_deadline_come_after_a_restore() {
    every_way(|from, to| {
        for deadline in [false, true] {
            let mut machine = Machine::new(from, Start::Flat, |world| {
                world.code(32, CODE, |a| {
                    a.mov(dword_ptr(0xfee0_00f0_u32), 0x1ff)?;
                    a.mov(dword_ptr(0xfee0_03e0_u32), 0b1011)?;
                    if deadline {
                        a.mov(dword_ptr(0xfee0_0320_u32), 2 << 17 | 0x41)?;
                        a.rdtsc()?;
                        a.add(eax, 200_000_000)?;
                        a.adc(edx, 0)?;
                        a.mov(ecx, 0x6e0)?;
                        a.wrmsr()?;
                    } else {
                        a.mov(dword_ptr(0xfee0_0320_u32), 0x41)?;
                        a.mov(dword_ptr(0xfee0_0380_u32), 100_000_000)?;
                    }
                    a.in_(al, 0x80)?;
                    a.sti()?;
                    let mut again = a.create_label();
                    a.set_label(&mut again)?;
                    a.hlt()?;
                    a.jmp(again)
                });
                world.gate(0x41, HANDLER);
                world.code(32, HANDLER, |a| a.out(0x81, al));
            });
            assert_eq!(machine.next().address, 0x80);
            assert_eq!(machine.on(to).answer(0).address, 0x81);
        }
    });
}

#[test]
fn the_interval_timer_goes_on_interrupting_through_the_pics() {
    every_way(|from, to| {
        let mut machine = Machine::new(from, Start::Real, |world| {
            world.code(16, CODE, |a| {
                for (port, value) in [
                    (0x20, 0x11),
                    (0x21, 0x20),
                    (0x21, 4),
                    (0x21, 1),
                    (0x21, 0xfe),
                    // Mode 2, 2000 pulses.
                    (0x43, 0x34),
                    (0x40, 0xd0),
                    (0x40, 0x07),
                ] {
                    a.mov(al, value)?;
                    a.out(port, al)?;
                }
                a.in_(al, 0x80)?;
                a.sti()?;
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.hlt()?;
                a.jmp(again)
            });
            world.real_vector(0x20, HANDLER);
            world.code(16, HANDLER, |a| {
                a.out(0x81, al)?;
                a.mov(al, 0x20)?;
                a.out(0x20, al)?;
                a.iret()
            });
        });
        assert_eq!(machine.next().address, 0x80);
        let (own, _) = machine.save();
        let mut other = machine.on(to);
        let (vm, _) = other.save();
        assert_eq!(vm.pit.counters[0].count, Some(2000));
        assert_eq!(vm.pit.counters[0].start, own.pit.counters[0].start, "its phase too");
        assert_eq!((vm.pic.master.imr, vm.pic.master.vector_base), (0xfe, 0x20));
        other.world.vm.set_paused(false);
        let mut next = other.answer(0);
        while next.address != 0x81 {
            next = other.answer(0);
        }
        for _ in 0..3 {
            let next = other.answer(0);
            assert!(matches!(next.address, 0x20 | 0x81), "{next:?}");
        }
    });
}

#[test]
fn the_time_stamp_counter_goes_on_where_it_was() {
    every_way(|from, to| {
        let mut machine = Machine::new(from, Start::Flat, |world| {
            world.code(32, CODE, |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.rdtsc()?;
                a.mov(dword_ptr(0x5000), eax)?;
                a.mov(dword_ptr(0x5004), edx)?;
                a.in_(al, 0x80)?;
                a.jmp(again)
            });
        });
        machine.next();
        let seen = |machine: &Machine| machine.world.read::<u64>(0x5000);
        let mut last = seen(&machine);
        for (index, hypervisor) in [to, from, to].into_iter().enumerate() {
            // Time on disk is none.
            let (vm, vcpu) = machine.save();
            std::thread::sleep(std::time::Duration::from_millis(50));
            let tsc_start = vcpu.msrs.tsc_start;
            let begin = std::time::Instant::now();
            machine = Machine::restored(hypervisor, &machine.world.memory, &vm, vcpu);
            machine.answer(0);
            let passed = begin.elapsed().as_nanos() as u64;
            let now = seen(&machine);
            let jumped = machine.save().1.msrs.tsc_start.wrapping_sub(tsc_start) as i64;
            if hypervisor.kind() == HypervisorKind::Kvm && jumped.unsigned_abs() > 5 * u64::from(vm.tsc_khz) {
                eprintln!("skipped: this host's KVM does not set the time-stamp counter");
                last = now;
                continue;
            }
            assert!(now > last, "{index}: {now:#x} after {last:#x}");
            // From the last look to the snapshot, and from the restore to this one.
            let most = u64::from(vm.tsc_khz) * (passed / 1_000 + 40_000) / 1_000;
            assert!(now - last < most, "{index}: {} ticks", now - last);
            last = now;
        }
    });
}

#[test]
fn a_rate_that_cannot_be_had_is_refused_by_name() {
    let Some(kvm) = kvm() else { return };
    let machine = Machine::new(&kvm, Start::Flat, guest);
    let (mut vm, vcpu) = machine.save();
    let own = vm.tsc_khz;
    vm.tsc_khz = own / 2;
    let world = World::new(&kvm, 1);
    world.vm.restore(&vm).unwrap();
    match world.vm.create_vcpu(0).unwrap().restore(vcpu) {
        Err(VcpuError::State {
            source: StateError::TscFrequency { saved, own: here },
        }) => assert_eq!((saved, here), (own / 2, own)),
        // With scaling, any rate can be had.
        Ok(()) => {}
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn a_halted_processor_stays_halted_until_it_is_interrupted() {
    every_way(|from, to| {
        let mut machine = Machine::new(from, Start::Flat, |world| {
            world.code(32, CODE, |a| {
                a.mov(dword_ptr(0xfee0_00f0_u32), 0x1ff)?;
                a.out(0x80, al)?;
                a.sti()?;
                a.hlt()?;
                a.out(0x82, al)
            });
            world.gate(0x41, HANDLER);
            world.code(32, HANDLER, |a| a.out(0x81, al));
        });
        let id = machine.next().id;
        let kick = machine.vcpu.kick();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                kick.kick();
            });
            assert_eq!(machine.vcpu.run(answer(id, 0)).unwrap(), VmExit::Interrupted);
        });
        let mut other = machine.on(to);
        other.world.vm.signal_msi(0xfee0_0000, 0x41);
        assert_eq!(other.next().address, 0x81);
    });
}
