//! Guests that call, in 64-bit mode, each vCPU on page tables that both share.

use iced_x86::code_asm::*;
use proptest::prelude::*;
use reprise_emulator::Ram;
use reprise_emulator::cpu::segment::Attributes;
use reprise_emulator::cpu::{Cr0, Cr4, Efer, Seg, Segment, gpr};
use vm_memory::{Bytes, GuestAddress};

use super::super::super::ioapic::MessageBus;
use super::super::super::lapic::Now;
use super::super::super::message::{Delivery, Destination, Message};
use super::super::super::vm::SoftVm;
use super::*;
use crate::{CpuModel, GuestMemory, VmSettings};

/// Where the code of vCPU 0 and of vCPU 1 is.
const CODES: [u64; 2] = [0x1000, 0x2000];
/// Input of calls.
const INPUT: u64 = 0x3_0000;
/// A linear page that moves from one page to another, and its page-table entry.
const MOVING: u64 = 0x4_0000;
const FROM: u64 = 0x4_0000;
const TO: u64 = 0x4_1000;
const ENTRY: u64 = 0x1_3000 + (MOVING >> 12) * 8;
/// What the two tell each other.
const SEEN: u64 = 0x5_0000;
const COUNT: u64 = 0x5_0008;
/// A linear page where there is a device.
const DEVICE: u64 = 0x1f_f000;
const DEVICE_GPA: u64 = 0xd000_0000;

const FLUSH_SPACE: u64 = 0x2;
const GUEST_OS_ID: u32 = 0x4000_0000;

/// A machine with two vCPUs that are within reach.
struct Two {
    memory: GuestMemory,
    machine: Arc<Machine>,
    ram: Arc<Ram>,
    model: Arc<Model>,
}

/// What vCPU `index` of two answers.
fn cpuid(index: usize, hyperv: bool) -> CpuidTable {
    CpuidTable::new(crate::soft::cpuid::entries(index as u32, 2, hyperv, CpuModel::Host))
}

type Code<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

impl Two {
    fn new(hyperv: bool) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let two = Self {
            machine: Arc::new(Machine::new(2, hyperv).unwrap()),
            ram: Arc::new(Ram::new(memory.clone()).unwrap()),
            model: Arc::new(Model::new()),
            memory,
        };
        for (table, next) in [(0x1_0000, 0x1_1000u64), (0x1_1000, 0x1_2000), (0x1_2000, 0x1_3000)] {
            two.put(table, next | 7);
        }
        for page in 0..512 {
            two.put(0x1_3000 + page * 8, page << 12 | 7);
        }
        two.put(0x1_3000 + (DEVICE >> 12) * 8, DEVICE_GPA | 7);
        two.put(FROM, 0xa);
        two.put(TO, 0xb);
        // Address space, flags (all processors, all spaces), processors.
        two.put(INPUT + 8, 3);
        two
    }

    fn put(&self, address: u64, value: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn get(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// vCPU `index`, which executes `code`. Its guest has said who it is.
    fn vcpu(&self, index: usize, code: Code<'_>) -> SoftVcpu {
        let mut assembler = CodeAssembler::new(64).unwrap();
        code(&mut assembler).unwrap();
        let bytes = assembler.assemble(CODES[index]).unwrap();
        self.memory.write_slice(&bytes, GuestAddress(CODES[index])).unwrap();
        let (machine, ram, model) = (
            Arc::clone(&self.machine),
            Arc::clone(&self.ram),
            Arc::clone(&self.model),
        );
        let mut vcpu = SoftVcpu::new(
            index,
            machine,
            ram,
            model,
            cpuid(index, self.machine.partition.is_some()),
        );
        vcpu.emulator.change(|cpu| {
            cpu.cr0.0 |= Cr0::PE | Cr0::PG;
            cpu.cr3 = 0x1_0000;
            cpu.cr4.0 |= Cr4::PAE;
            cpu.efer.0 |= Efer::LME | Efer::LMA;
            for seg in Seg::ALL {
                cpu.segments[seg] = Segment::flat(16, Attributes(0xc093));
            }
            cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(0xa09b));
            cpu.rip = CODES[index];
            cpu.activity = Activity::Running;
        });
        if self.machine.partition.is_some() {
            vcpu.msrs.write(GUEST_OS_ID, 1).unwrap();
        }
        vcpu
    }
}

/// Moves the page, and has everybody forget where it was.
fn move_and_flush(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(qword_ptr(ENTRY), (TO | 7) as i32)?;
    flush(a)
}

fn flush(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rcx, FLUSH_SPACE)?;
    a.mov(rdx, INPUT)?;
    a.vmmcall()
}

/// Runs `vcpu` until it is kicked, a little later, and is `there`: on a busy host it is kicked on its way, too.
fn kicked(vcpu: &mut SoftVcpu, there: impl Fn(&SoftVcpu) -> bool) {
    for _ in 0..10_000 {
        let kick = vcpu.kick();
        let exit = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(5));
                kick.kick();
            });
            vcpu.run(VmEntry::Resume).unwrap()
        });
        assert_eq!(exit, VmExit::Interrupted);
        if there(vcpu) {
            return;
        }
    }
    panic!("it does not get there: {:?}", vcpu.emulator.cpu());
}

/// Its call is not answered yet.
fn waits(vcpu: &SoftVcpu) -> bool {
    vcpu.emulator.waiting_for().is_some()
}

#[test]
fn after_a_flush_no_other_vcpu_uses_an_old_translation() {
    let two = Two::new(true);
    let mut reader = two.vcpu(1, &|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(MOVING))?;
        a.mov(qword_ptr(SEEN), rax)?;
        a.inc(qword_ptr(COUNT))?;
        a.jmp(again)
    });
    let mut mover = two.vcpu(0, &|a| {
        let mut warm = a.create_label();
        a.set_label(&mut warm)?;
        a.cmp(qword_ptr(COUNT), 10)?;
        a.jb(warm)?;
        move_and_flush(a)?;
        // One iteration may have been under way; the one after it was not.
        a.mov(rbx, qword_ptr(COUNT))?;
        a.add(rbx, 2)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.cmp(qword_ptr(COUNT), rbx)?;
        a.jb(wait)?;
        a.mov(rax, qword_ptr(SEEN))?;
        a.out(0x80, eax)
    });
    let kick = reader.kick();
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(reader.run(VmEntry::Resume).unwrap(), VmExit::Interrupted));
        let seen = written(&mut mover, 0x80);
        kick.kick();
        assert_eq!(seen, 0xb);
    });
    assert_eq!(counter(&mover, "hv_flush_space"), 1);
}

#[test]
fn rule_13_a_call_s_arguments_leave_no_trace_in_the_record_and_an_answered_call_is_made_once() {
    let two = Two::new(true);
    let mut parked = two.vcpu(1, &|a| {
        a.mov(rsi, DEVICE)?;
        a.mov(rdi, MOVING)?;
        a.movsb()?;
        a.out(0x81, al)
    });
    let VmExit::Io(read) = parked.run(VmEntry::Resume).unwrap() else {
        panic!("a read")
    };
    assert_eq!((read.address, read.access), (DEVICE_GPA, Access::Read));
    let mut caller = two.vcpu(0, &|a| {
        move_and_flush(a)?;
        a.out(0x80, eax)
    });
    // The other one is in the middle of an instruction that will write through the old translation.
    for _ in 0..2 {
        kicked(&mut caller, waits);
        let waiting = caller.emulator.waiting_for().expect("the call is not answered");
        assert_eq!(waiting.space, Space::Hypercall);
        assert_eq!(caller.waiting(), None, "no device owes an answer");
        let record = caller.emulator.record();
        assert!(!record.is_empty(), "the instruction's own bytes are there");
        let arguments = |address: u64| address & !0xfff == INPUT;
        assert!(
            record.iter().all(|entry| !arguments(entry.question.address)),
            "{record:?}"
        );
        assert_eq!(counter(&caller, "hv_flush_space"), 0);
    }
    assert_eq!(two.get(FROM), 0xa);
    parked.kick().kick();
    assert_eq!(parked.run(answer(read.id, 0x5a)).unwrap(), VmExit::Interrupted);
    assert_eq!(
        (two.get(FROM), two.get(TO)),
        (0x5a, 0xb),
        "as its first pass has translated"
    );
    // Once more it is made from its beginning, and now it is answered: what its arguments become later does not matter.
    assert_eq!(written(&mut caller, 0x80), 0);
    two.put(INPUT + 8, u64::MAX);
    assert_eq!(counter(&caller, "hv_flush_space"), 1);
    assert_eq!(counter(&caller, "hypercalls_refused"), 0);
}

#[test]
fn a_vcpu_that_executes_nothing_is_not_waited_for_and_forgets_before_it_goes_on() {
    let two = Two::new(true);
    let mut sleeper = two.vcpu(1, &|a| {
        a.mov(rax, qword_ptr(MOVING))?;
        a.hlt()?;
        a.mov(rax, qword_ptr(MOVING))?;
        a.out(0x81, eax)
    });
    kicked(&mut sleeper, |sleeper| {
        sleeper.emulator.cpu().activity == Activity::Halted
    });
    assert_eq!(sleeper.emulator.cpu().gpr.get(gpr::RAX), 0xa);
    let mut caller = two.vcpu(0, &|a| {
        move_and_flush(a)?;
        a.out(0x80, eax)
    });
    assert_eq!(written(&mut caller, 0x80), 0);
    two.machine.chipset.seats()[1].unhalted.store(true, Ordering::SeqCst);
    assert_eq!(written(&mut sleeper, 0x81), 0xb);
}

#[test]
fn two_that_flush_each_other_do_not_wait_for_each_other() {
    let two = Two::new(true);
    let code = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ebx, 2000)?;
        a.set_label(&mut again)?;
        flush(a)?;
        a.dec(ebx)?;
        a.jne(again)?;
        a.out(0x80, eax)
    };
    std::thread::scope(|scope| {
        for index in 0..2 {
            let mut vcpu = two.vcpu(index, &code);
            scope.spawn(move || {
                written(&mut vcpu, 0x80);
                assert_eq!(counter(&vcpu, "hv_flush_space"), 2000);
                // A port's write is not complete yet, so this one would be waited for.
                vcpu.kick().kick();
                let done = answer(vcpu.waiting().unwrap().id, 0);
                assert_eq!(vcpu.run(done).unwrap(), VmExit::Interrupted);
            });
        }
    });
}

#[test]
fn init_ends_a_call_that_waits() {
    let two = Two::new(true);
    let mut parked = two.vcpu(0, &|a| {
        a.mov(rsi, DEVICE)?;
        a.mov(rdi, MOVING)?;
        a.movsb()
    });
    assert!(matches!(parked.run(VmEntry::Resume).unwrap(), VmExit::Io(_)));
    let mut caller = two.vcpu(1, &|a| {
        flush(a)?;
        a.out(0x80, eax)
    });
    kicked(&mut caller, waits);
    assert_eq!(counter(&caller, "cancellations"), 0);
    two.machine.chipset.deliver(&init(1));
    kicked(&mut caller, |caller| !waits(caller));
    assert_eq!(counter(&caller, "cancellations"), 1);
    assert_eq!(caller.emulator.cpu().activity, Activity::WaitForSipi);
}

fn init(index: u32) -> Message {
    Message {
        destination: Destination::Physical(index),
        delivery: Delivery::Init,
        level: false,
        lowest: false,
    }
}

#[test]
fn a_call_that_waits_is_saved_and_answered_in_another_machine() {
    let two = Two::new(true);
    let mut parked = two.vcpu(1, &|a| {
        a.mov(rsi, DEVICE)?;
        a.mov(rdi, MOVING)?;
        a.movsb()
    });
    let VmExit::Io(read) = parked.run(VmEntry::Resume).unwrap() else {
        panic!("a read")
    };
    let mut caller = two.vcpu(0, &|a| {
        move_and_flush(a)?;
        a.out(0x80, eax)
    });
    kicked(&mut caller, waits);

    let other = Two {
        memory: two.memory.clone(),
        machine: Arc::new(Machine::new(2, true).unwrap()),
        ram: Arc::clone(&two.ram),
        model: Arc::clone(&two.model),
    };
    let mut new = [0, 1].map(|index| {
        let (machine, ram, model) = (
            Arc::clone(&other.machine),
            Arc::clone(&other.ram),
            Arc::clone(&other.model),
        );
        SoftVcpu::new(index, machine, ram, model, cpuid(index, true))
    });
    let states = [&caller, &parked].map(|vcpu| vcpu.state().unwrap());
    let shared = two.machine.partition.as_ref().unwrap().state();
    other.machine.partition.as_ref().unwrap().restore(shared);
    for (vcpu, state) in new.iter_mut().zip(states) {
        vcpu.restore(state).unwrap();
    }
    let [caller, parked] = &mut new;
    // The other one is still in mid-instruction.
    kicked(caller, waits);
    parked.kick().kick();
    assert_eq!(parked.run(answer(read.id, 0x5a)).unwrap(), VmExit::Interrupted);
    assert_eq!(written(caller, 0x80), 0);
    assert_eq!(counter(caller, "hv_flush_space"), 1);
}

#[test]
fn what_guests_of_kvm_and_of_hyper_v_have_set_up_is_saved() {
    let kvm = Two::new(false);
    let (mut old, mut new) = (kvm.vcpu(0, &|a| a.hlt()), Two::new(false).vcpu(0, &|a| a.hlt()));
    old.msrs.write(0x4b56_4d03, 0x5_0041).unwrap();
    old.msrs.set_preempted(true);
    old.seat().unhalted.store(true, Ordering::SeqCst);
    new.restore(old.state().unwrap()).unwrap();
    assert_eq!(new.state().unwrap(), old.state().unwrap());
    assert_eq!(new.msrs.read(0x4b56_4d03), Ok(0x5_0041));
    assert!(new.seat().unhalted.load(Ordering::SeqCst));

    let settings = |hyperv| VmSettings {
        vcpus: 1,
        memory: kvm.memory.clone(),
        hyperv,
        model: CpuModel::Host,
    };
    let [old, new] = [true, true].map(|hyperv| SoftVm::new(settings(hyperv)).unwrap());
    let mut state = old.state().unwrap();
    let shared = crate::state::HypervState {
        guest_os_id: 1,
        hypercall: 0x6_0001,
        reference_tsc: 0x6_1001,
    };
    assert_eq!(state.hyperv, Some(crate::state::HypervState::default()));
    state.hyperv = Some(shared);
    new.restore(&state).unwrap();
    assert_eq!(new.state().unwrap().hyperv, Some(shared));
    assert!(SoftVm::new(settings(false)).unwrap().restore(&state).is_err());
}

#[test]
fn a_kick_ends_hlt_though_interrupts_are_off_be_it_before_or_after() {
    let two = Two::new(false);
    let kick = |a: &mut CodeAssembler| {
        a.mov(eax, 5)?;
        a.mov(ecx, 1)?;
        a.vmmcall()
    };
    let mut halted = two.vcpu(1, &|a| {
        a.cli()?;
        a.hlt()?;
        a.hlt()?;
        a.out(0x81, al)
    });
    let mut kicker = two.vcpu(0, &|a| {
        kick(a)?;
        a.out(0x80, al)?;
        kick(a)?;
        a.out(0x80, al)
    });
    assert_eq!(written(&mut kicker, 0x80), 0);
    // Only the first HLT is over.
    kicked(&mut halted, |halted| counter(halted, "sleeps") > 0);
    assert_eq!(counter(&halted, "sleeps"), 1);
    std::thread::scope(|scope| {
        scope.spawn(move || written(&mut halted, 0x81));
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(written(&mut kicker, 0x80), 0);
    });
    assert_eq!(counter(&kicker, "kvm_kick"), 2);
}

#[test]
fn kvm_s_ipi_interrupts_the_other_processor() {
    let two = Two::new(false);
    let seats = two.machine.chipset.seats();
    seats[1].lapic().write_page(0xf0, 4, 0x1ff, Now { clock: 0, tsc: 0 });
    let mut caller = two.vcpu(0, &|a| {
        a.mov(eax, 10)?;
        a.mov(ebx, 0b10)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(esi, 0x41)?;
        a.vmmcall()?;
        a.out(0x80, eax)
    });
    assert_eq!(written(&mut caller, 0x80), 1, "accepted by one");
    assert_eq!(seats[1].lapic().take(), Some(0x41));
    assert_eq!(counter(&caller, "kvm_send_ipi"), 1);
}

#[test]
fn hyper_v_s_ipi_interrupts_every_processor_that_it_names() {
    let two = Two::new(true);
    let seats = two.machine.chipset.seats();
    seats[1].lapic().write_page(0xf0, 4, 0x1ff, Now { clock: 0, tsc: 0 });
    let mut caller = two.vcpu(0, &|a| {
        a.mov(ecx, 0x1_000b)?;
        a.mov(edx, 0x41)?;
        a.mov(r8d, 0b1011)?;
        a.vmmcall()?;
        a.out(0x80, eax)?;
        a.mov(ecx, 0x1_0008)?;
        a.vmmcall()?;
        a.out(0x80, eax)
    });
    assert_eq!(written(&mut caller, 0x80), 0);
    assert_eq!([0, 1].map(|index| seats[index].lapic().take()), [Some(0x41); 2]);
    assert_eq!(written(&mut caller, 0x80), 0);
    assert_eq!(
        (counter(&caller, "hv_send_ipi"), counter(&caller, "hv_long_spin")),
        (1, 1)
    );
}

#[test]
fn before_it_has_said_who_it_is_a_guest_of_hyper_v_gets_an_undefined_opcode() {
    let world = World::hyperv(1);
    world.gate(IDT, 6, HANDLER);
    world.code(32, CODE, |a| {
        a.mov(eax, 0x1_0008)?;
        a.vmmcall()
    });
    world.code(32, HANDLER, |a| a.out(0x81, al));
    let mut vcpu = world.flat(0);
    written(&mut *vcpu, 0x81);
    assert_eq!(counter(&*vcpu, "hypercalls_refused"), 1);
}

#[test]
fn the_hypercall_page_works_in_32_bit_mode_and_the_result_is_in_two_registers() {
    let world = World::hyperv(1);
    const PAGE: u64 = 0x5000;
    // Somebody has executed there before.
    world.code(32, PAGE, |a| a.ret());
    world.code(32, CODE, |a| {
        a.call(PAGE)?;
        a.xor(edx, edx)?;
        a.mov(ecx, GUEST_OS_ID)?;
        a.mov(eax, 1)?;
        a.wrmsr()?;
        a.mov(ecx, GUEST_OS_ID + 1)?;
        a.mov(eax, PAGE as u32 | 1)?;
        a.wrmsr()?;
        // A list of one, for all processors.
        a.mov(eax, 0x1_0003)?;
        a.mov(edx, 1)?;
        a.xor(ebx, ebx)?;
        a.xor(ecx, ecx)?;
        a.xor(edi, edi)?;
        a.mov(esi, 1)?;
        a.call(PAGE)?;
        a.out(0x80, eax)?;
        a.mov(eax, edx)?;
        a.out(0x80, eax)
    });
    let mut vcpu = world.flat(0);
    assert_eq!(written(&mut *vcpu, 0x80), 0, "success");
    assert_eq!(written(&mut *vcpu, 0x80), 1, "one repetition");
    assert_eq!(counter(&*vcpu, "hv_flush_list"), 1);
}

#[test]
fn outside_run_a_vcpu_is_preempted_as_the_guest_sees_it() {
    let world = World::new(1);
    world.code(32, CODE, |a| {
        a.mov(ecx, 0x4b56_4d03u32)?;
        a.mov(eax, 0x4041)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.in_(al, 0x60)?;
        a.mov(eax, dword_ptr(0x4050))?;
        a.out(0x80, eax)
    });
    let mut vcpu = world.flat(0);
    asked(&mut *vcpu);
    let preempted: u8 = world.memory.read_obj(GuestAddress(0x4050)).unwrap();
    assert_eq!(preempted, 1);
    assert_eq!(written(&mut *vcpu, 0x80), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_a_guest_calls_for_it_goes_on(
        hyperv in any::<bool>(),
        code in prop_oneof![0u64..0x20, any::<u64>()],
        registers in proptest::array::uniform6(prop_oneof![any::<u64>(), 0u64..0x100, Just(INPUT), Just(u64::MAX)]),
        input in proptest::array::uniform8(prop_oneof![any::<u64>(), 0u64..0x20]),
    ) {
        let two = Two::new(hyperv);
        for (word, address) in input.into_iter().zip((INPUT..).step_by(8)) {
            two.put(address, word);
        }
        let mut caller = two.vcpu(0, &|a| {
            a.vmmcall()?;
            a.out(0x80, eax)
        });
        caller.emulator.change(|cpu| {
            let [a, b, c, d, e, f] = registers;
            for (register, value) in [(gpr::RAX, code), (gpr::RBX, a), (gpr::RDX, b), (gpr::RSI, c), (8, d), (9, e)] {
                cpu.gpr.set(register, value);
            }
            cpu.gpr.set(gpr::RCX, if hyperv { code } else { f });
        });
        // An INIT or an NMI to itself takes it elsewhere, where there is no memory.
        let exit = caller.run(VmEntry::Resume).unwrap();
        prop_assert!(matches!(exit, VmExit::Io(_) | VmExit::Shutdown), "{exit:?}");
        let calls: u64 = caller.hypercalls.figures().map(|(_, count)| count).sum();
        prop_assert_eq!(calls, 1);
    }
}
