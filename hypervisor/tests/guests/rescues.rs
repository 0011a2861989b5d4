//! Instructions that a hypervisor may not emulate, on RAM and on a device, in ring 0 and ring 3: whatever runs them, memory,
//! registers and the device's accesses are the same in the end.
//!
//! A KVM in software gives most of them up in ring 0, and all of them on a device; there they are rescued. In ring 3 it leaves
//! those on RAM to the processor, as one that is hardware's does in ring 0 too: so the emulator is compared with that as well.
//! KVM is asked to announce what it does not offer; what needs a register that it does not have (AVX-512) is not there.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::Cpu;
use reprise_emulator::cpu::segment::Attributes;
use reprise_emulator::cpu::{Cr0, Cr4, Mode, Seg, Segment, flags};
use reprise_hypervisor::kvm::{Backing, KvmVcpuError};
use reprise_hypervisor::{Access, Hypervisor, KvmHypervisor, SoftHypervisor, Space, VcpuError, VmEntry, VmExit};
use vm_memory::{Bytes, GuestAddress};

use crate::world::{CODE, DEVICE, HANDLER, Start, World, answer, counter, io, kvm, on_each, what};

/// RAM that the guest works on.
const DATA: u64 = 0x4000;
/// A port at which the guest says that it is done.
const DONE: u64 = 0x80;

/// What a guest leaves behind.
#[derive(Debug, PartialEq)]
struct Left {
    accesses: Vec<(Space, u64, u8, Access)>,
    cpu: serde_json::Value,
    data: Vec<u8>,
    counters: Vec<(&'static str, u64)>,
}

/// A 64-bit processor with SSE, in `ring`.
fn processor(world: &World, ring: u8) -> Cpu {
    let mut cpu = world.cpu(Start::Long);
    cpu.cr0.0 = cpu.cr0.0 & !(Cr0::EM | Cr0::TS) | Cr0::MP;
    cpu.cr4.0 |= Cr4::OSFXSR | Cr4::OSXMMEXCPT;
    if ring == 3 {
        for seg in Seg::ALL {
            cpu.segments[seg] = Segment::flat(16 | 3, Attributes(0xc0f3));
        }
        cpu.segments[Seg::Cs] = Segment::flat(24 | 3, Attributes(0xa0fb));
        cpu.flags.set_bits(cpu.flags.bits() | flags::IOPL);
        // Every page is the user's.
        for table in [0x10000, 0x11000, 0x12000_u64] {
            for entry in (table..table + 0x1000).step_by(8).map(GuestAddress) {
                let value: u64 = world.memory.read_obj(entry).unwrap();
                world.memory.write_obj(value | ((value & 1) << 2), entry).unwrap();
            }
        }
    }
    cpu.refresh();
    cpu
}

/// Runs a guest to its end. The device's registers read as what was written last, else as a number made of their address.
fn run(
    hypervisor: &dyn Hypervisor,
    (ring, wide): (u8, bool),
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Left {
    let world = World::new(hypervisor, 1);
    world.code(64, CODE, write);
    for i in 0..0x400_u64 {
        let value = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        world.memory.write_obj(value, GuestAddress(DATA + 8 * i)).unwrap();
    }
    // The header of an XSAVE area.
    world
        .memory
        .write_obj([0_u64; 8], GuestAddress(DATA + 0x800 + 512))
        .unwrap();
    let mut vcpu = world.vm.create_vcpu(0).unwrap();
    let mut cpu = processor(&world, ring);
    if wide {
        cpu.cr4.0 |= Cr4::OSXSAVE;
        cpu.xcr0 = 7;
    }
    vcpu.set_cpu(&cpu).unwrap();
    let mut accesses = Vec::new();
    let mut registers = std::collections::HashMap::new();
    let mut entry = VmEntry::Resume;
    loop {
        let request = match vcpu.run(entry) {
            Ok(VmExit::Io(request)) => request,
            other => panic!(
                "{other:x?} on {:?} at {:#x}, MXCSR saved as {:#x}",
                hypervisor.kind(),
                vcpu.cpu().unwrap().rip,
                world.read::<u32>(DATA + 0x1000 + 24)
            ),
        };
        let (space, address, size, access) = what(&request);
        accesses.push((space, address, size, access));
        if (space, address) == (Space::Port, DONE) {
            break;
        }
        entry = answer(
            request.id,
            match access {
                Access::Read => {
                    let bytes: Vec<u8> = (address..address + u64::from(size))
                        .map(|at| *registers.get(&at).unwrap_or(&(at.wrapping_mul(0x6b) as u8 ^ 0x35)))
                        .collect();
                    let mut value = [0; 8];
                    value[..bytes.len()].copy_from_slice(&bytes);
                    u64::from_le_bytes(value)
                }
                Access::Write(value) => {
                    registers.extend((address..).zip(value.to_le_bytes()).take(size.into()));
                    0
                }
                other => panic!("{other:?} is not asked for"),
            },
        );
    }
    let mut cpu = vcpu.cpu().unwrap();
    // The processor stands before or behind the port's instruction, as the backend likes it; nobody counts its time.
    cpu.rip = 0;
    cpu.msr = Cpu::reset().msr;
    if ring == 3 && Backing::of_this_host() != Backing::Hardware {
        // kvm_pvm runs ring 3 without IOPL: KVM_GET_REGS and the guest's own PUSHF say 0, whatever was set.
        cpu.flags.set_bits(cpu.flags.bits() & !flags::IOPL);
    }
    // KVM has not the selectors of x87 pointers, and AMD's processors save none of it without an exception.
    (cpu.fpu.cs, cpu.fpu.ds) = (0, 0);
    if ring == 3 {
        (cpu.fpu.ip, cpu.fpu.dp, cpu.fpu.opcode) = (0, 0, 0);
    }
    let mut data = vec![0; 0x2000];
    world.memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    // What of an FXSAVE or XSAVE area differs between processors: the bits that MXCSR has, and whether reserved bytes are written.
    for area in [0x800, 0x1000] {
        data[area + 28..area + 32].fill(0);
        data[area + 416..area + 512].fill(0);
        if ring == 3 {
            data[area + 6..area + 24].fill(0);
        }
    }
    Left {
        accesses,
        cpu: serde_json::to_value(&*cpu).unwrap(),
        data,
        counters: vcpu.counters(),
    }
}

/// KVM, if it is there, announcing every instruction.
fn everything() -> Option<KvmHypervisor> {
    Some(kvm()?.announcing_instructions())
}

/// The same guest on both backends leaves the same behind. What it is on KVM, if there is one.
fn same(kind: (u8, bool), write: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Option<Left> {
    let soft = run(&SoftHypervisor, kind, &write);
    let mut kvm = None;
    if let Some(hypervisor) = everything() {
        kvm = Some(run(&hypervisor, kind, &write));
    }
    let kvm = kvm?;
    assert_eq!(kvm.accesses, soft.accesses);
    let differ = kvm.data.iter().zip(&soft.data).position(|(one, other)| one != other);
    assert_eq!(differ, None, "offset of the first byte that differs, of {kind:?}");
    let (serde_json::Value::Object(one), serde_json::Value::Object(other)) = (&kvm.cpu, &soft.cpu) else {
        panic!("a processor is an object")
    };
    for (name, value) in one {
        assert_eq!(*value, other[name], "{name}");
    }
    Some(kvm)
}

/// Registers with something in them.
fn begin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rbp, DATA)?;
    a.mov(rax, 0x0123_4567_89ab_cdef_u64)?;
    a.mov(rcx, 0x1111_2222_3333_4444_u64)?;
    a.mov(rdx, 0xfedc_ba98_7654_3210_u64)?;
    a.mov(rsi, 0x0f0f_00ff_1234_8421_u64)?;
    a.xor(r15d, r15d)
}

/// Everything that is known to fail somewhere, on what `rbx` leads to.
fn classes(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // cmpxchg16b: one that fails and one that succeeds.
    a.push(rbx)?;
    a.mov(rdi, rbx)?;
    a.mov(r8, rcx)?;
    a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
    a.mov(rbx, 0x5555_6666_7777_8888_u64)?;
    a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
    a.pop(rbx)?;
    a.setz(r9b)?;
    a.movnti(qword_ptr(rbx + 64), r8)?;
    // MMX and SSE.
    a.movd(mm0, dword_ptr(rbx + 4))?;
    a.movq(mm1, qword_ptr(rbx + 8))?;
    a.paddw(mm0, mm1)?;
    a.movq(qword_ptr(rbx + 72), mm0)?;
    a.emms()?;
    a.movd(xmm0, dword_ptr(rbx))?;
    a.movq(xmm1, qword_ptr(rbx + 8))?;
    a.movss(xmm2, dword_ptr(rbx + 16))?;
    a.movsd_2(xmm3, qword_ptr(rbx + 24))?;
    a.movdqu(xmm4, xmmword_ptr(rbx + 8))?;
    a.movups(xmm5, xmmword_ptr(rbx + 24))?;
    a.pxor(xmm4, xmm5)?;
    a.paddd(xmm4, xmmword_ptr(rbx + 32))?;
    a.cvtsi2sd(xmm6, rcx)?;
    a.cvtsi2sd(xmm7, rsi)?;
    a.addsd(xmm6, xmm7)?;
    a.mulps(xmm0, xmm6)?;
    a.sqrtsd(xmm7, xmm6)?;
    a.movdqu(xmmword_ptr(rbx + 80), xmm4)?;
    a.movq(qword_ptr(rbx + 96), xmm6)?;
    a.movss(dword_ptr(rbx + 104), xmm2)?;
    // x87.
    a.fninit()?;
    a.fild(qword_ptr(rbx + 16))?;
    a.fild(dword_ptr(rbx + 20))?;
    a.fmulp(st1, st0)?;
    a.fld1()?;
    a.faddp(st1, st0)?;
    a.fst(qword_ptr(rbx + 176))?;
    a.fstp(tword_ptr(rbx + 184))?;
    a.fnstcw(word_ptr(rbx + 194))?;
    a.fnstsw(ax)?;
    a.fxsave(byte_ptr(rbp + 0x1000))?;
    a.ldmxcsr(dword_ptr(rbp + 0x1000 + 24))?;
    a.stmxcsr(dword_ptr(rbx + 196))?;
    a.mov(rax, r11)?;
    a.mov(rcx, r12)?;
    a.mov(rdx, r13)
}

/// What came after SSE2. MOVBE is not among it: a KVM in software raises #UD for it by itself, announced or not.
fn wide_classes(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // Integers.
    a.popcnt(r10, qword_ptr(rbx + 8))?;
    a.crc32(r10, qword_ptr(rbx + 16))?;
    a.crc32(r10d, byte_ptr(rbx + 24))?;
    a.andn(r12, rsi, qword_ptr(rbx + 40))?;
    a.bextr(r13, qword_ptr(rbx + 48), rcx)?;
    a.blsr(r14, qword_ptr(rbx + 56))?;
    a.pdep(r8, rsi, qword_ptr(rbx + 8))?;
    a.pext(rdi, rdx, qword_ptr(rbx + 8))?;
    a.mulx(r9, r11, qword_ptr(rbx + 16))?;
    a.rorx(r12, qword_ptr(rbx + 24), 13)?;
    a.shlx(r13, qword_ptr(rbx + 32), rcx)?;
    a.adcx(r14, qword_ptr(rbx + 40))?;
    a.adox(r8, qword_ptr(rbx + 48))?;
    a.lzcnt(rdi, qword_ptr(rbx + 56))?;
    a.tzcnt(r9, qword_ptr(rbx + 56))?;
    a.pshufb(xmm5, xmm4)?;
    a.pcmpistri(xmm4, xmm5, 0x0c)?;
    a.aesenc(xmm4, xmm5)?;
    // AVX.
    a.vmovdqu(ymm8, ymmword_ptr(rbx + 32))?;
    a.vpaddq(ymm9, ymm8, ymmword_ptr(rbx))?;
    a.vpxor(ymm10, ymm9, ymm8)?;
    a.vpermq(ymm11, ymm10, 0x1b)?;
    a.vmulpd(ymm12, ymm11, ymm9)?;
    a.vmovdqu(ymmword_ptr(rbx + 128), ymm11)?;
    a.vmovd(xmm13, r10d)?;
    a.vextracti128(xmmword_ptr(rbx + 160), ymm10, 1)?;
    a.push(rax)?;
    a.xor(ecx, ecx)?;
    a.xgetbv()?;
    a.add(r15, rax)?;
    a.pop(rax)?;
    a.mov(eax, 7)?;
    a.xor(edx, edx)?;
    a.xsave(byte_ptr(rbp + 0x800))?;
    a.vzeroall()?;
    a.xrstor(byte_ptr(rbp + 0x800))
}

/// All of them on RAM and on the device, `rounds` times.
fn program(a: &mut CodeAssembler, rounds: u32, wide: bool) -> Result<(), IcedError> {
    begin(a)?;
    let mut again = a.create_label();
    for (place, step) in [(DATA, 16), (DEVICE, 16)] {
        a.mov(rbx, place)?;
        a.push(rbp)?;
        for _ in 0..rounds {
            classes(a)?;
            if wide {
                wide_classes(a)?;
            }
            a.add(rbx, step)?;
        }
        a.pop(rbp)?;
    }
    a.set_label(&mut again)?;
    a.out(DONE as u32, al)
}

#[test]
fn a_guest_of_everything_that_fails_ends_the_same_in_both_rings() {
    for ring in [0, 3] {
        for wide in [false, true] {
            // What the processor executes itself, it must have.
            if ring == 3 && wide && !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("adx")) {
                eprintln!("skipped in ring 3: this processor has no AVX2");
                continue;
            }
            // More of the wide ones do not fit below the data.
            let left = same((ring, wide), |a| program(a, if wide { 10 } else { 20 }, wide));
            if let Some(kvm) = left {
                let software = kvm
                    .counters
                    .iter()
                    .filter(|(name, _)| ["rescues", "rescue_run_ahead"].contains(name));
                assert!(software.map(|(_, count)| count).sum::<u64>() > 20, "{:?}", kvm.counters);
            }
        }
    }
}

#[test]
fn what_only_a_kernel_executes_ends_the_same() {
    let software = Backing::of_this_host() != Backing::Hardware;
    let left = same((0, true), |a| {
        begin(a)?;
        a.fninit()?;
        for place in [DATA, DEVICE] {
            a.mov(rbx, place)?;
            a.xor(ecx, ecx)?;
            a.xgetbv()?;
            a.add(r15, rax)?;
            // XSETBV is KVM's; what it sets is seen by the next rescue.
            a.mov(eax, 3)?;
            a.xsetbv()?;
            a.xgetbv()?;
            a.add(r15, rax)?;
            a.mov(eax, 7)?;
            a.xsetbv()?;
            a.rdtscp()?;
            a.rdtsc()?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.add(r14, rcx)?;
            a.clac()?;
            a.stac()?;
            a.pushfq()?;
            a.pop(r13)?;
            a.clac()?;
            if software {
                a.movdiri(qword_ptr(rbx + 40), rsi)?;
                a.movdiri(dword_ptr(rbx + 52), esi)?;
            }
            a.fld(dword_ptr(rbx))?;
            a.fxsave(byte_ptr(rbp + 0x1000))?;
            a.fxrstor(byte_ptr(rbp + 0x1000))?;
        }
        a.out(DONE as u32, al)
    });
    let Some(kvm) = left else { return };
    if software {
        let names: Vec<_> = kvm.counters.iter().map(|(name, _)| *name).collect();
        for name in ["rescued_xgetbv", "rescued_rdtscp", "rescued_clac", "rescued_movdiri"] {
            let ahead = kvm
                .counters
                .iter()
                .any(|(own, count)| *own == "rescue_run_ahead" && *count > 0);
            assert!(names.contains(&name) || ahead, "{name}: {:?}", kvm.counters);
        }
    }
}

#[test]
fn what_kvm_has_read_for_an_instruction_is_not_read_again() {
    let left = same((0, false), |a| {
        begin(a)?;
        a.mov(rbx, DEVICE)?;
        a.lock().cmpxchg16b(xmmword_ptr(rbx))?;
        a.out(DONE as u32, al)
    });
    let Some(kvm) = left else { return };
    let reads = kvm.accesses.iter().filter(|access| access.3 == Access::Read);
    assert_eq!(reads.count(), 2, "{:?}", kvm.accesses);
}

#[test]
fn rescued_instructions_are_counted_by_mnemonic() {
    let left = same((0, false), |a| {
        begin(a)?;
        a.mov(rbx, DEVICE)?;
        for _ in 0..3 {
            a.paddq(xmm0, xmmword_ptr(rbx))?;
        }
        a.out(DONE as u32, al)
    });
    let Some(kvm) = left else { return };
    let figure = |name| {
        kvm.counters
            .iter()
            .find(|(own, _)| *own == name)
            .map_or(0, |(_, count)| *count)
    };
    let moves = figure("rescued_paddq");
    assert_eq!(moves, figure("rescues"));
    assert!((1..=3).contains(&moves) && figure("rescue_state_transfers") == 2 * moves);
}

#[test]
fn where_failures_come_thick_software_runs_on() {
    let left = same((0, false), |a| {
        begin(a)?;
        a.mov(rbx, DEVICE)?;
        a.mov(ecx, 200)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.paddq(xmm0, xmmword_ptr(rbx))?;
        a.paddd(xmm1, xmm0)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.out(DONE as u32, al)
    });
    let Some(kvm) = left else { return };
    let figure = |name| {
        kvm.counters
            .iter()
            .find(|(own, _)| *own == name)
            .map_or(0, |(_, count)| *count)
    };
    assert!(figure("rescues") < 20, "{:?}", kvm.counters);
    assert!(figure("rescue_run_ahead") > 500, "{:?}", kvm.counters);
}

#[test]
fn code_that_kvm_has_changed_is_not_executed_as_it_was() {
    // Software runs on over this code, and then the guest changes it with a store that is KVM's.
    same((0, false), |a| {
        begin(a)?;
        a.mov(rbx, DEVICE)?;
        a.xor(r8d, r8d)?;
        a.mov(r9d, 60)?;
        let (mut again, mut place) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.paddq(xmm0, xmmword_ptr(rbx))?;
        a.set_label(&mut place)?;
        a.add(r8d, 1)?;
        a.nop()?;
        a.lea(rdi, qword_ptr(place))?;
        // The immediate.
        a.mov(byte_ptr(rdi + 3), r9b)?;
        a.dec(r9d)?;
        a.jnz(again)?;
        a.out(DONE as u32, al)
    });
}

/// A guest's handler says at a port what it was called for.
fn faults(
    hypervisor: &dyn Hypervisor,
    vector: u8,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Cpu {
    let world = World::new(hypervisor, 1);
    world.code(64, CODE, write);
    world.code(64, HANDLER, |a| a.out(DONE as u32, al));
    let gate = HANDLER & 0xffff | 24 << 16 | 0x8e00 << 32 | (HANDLER >> 16) << 48;
    let place = u64::from(vector) * 16;
    world.memory.write_obj([gate, 0], GuestAddress(place)).unwrap();
    let mut vcpu = world.vm.create_vcpu(0).unwrap();
    vcpu.set_cpu(&processor(&world, 0)).unwrap();
    let mut entry = VmEntry::Resume;
    loop {
        let request = io(vcpu.run(entry).unwrap());
        if request.space == Space::Port {
            break;
        }
        entry = answer(request.id, 0);
    }
    let mut cpu = *vcpu.cpu().unwrap();
    cpu.rip = 0;
    cpu
}

#[test]
fn an_instruction_that_faults_when_it_is_rescued_faults_as_on_the_processor() {
    let stack = |cpu: &Cpu| (cpu.gpr.get(4), cpu.cr2, cpu.flags.bits());
    let mut seen = Vec::new();
    on_each(|hypervisor| {
        // A page beyond those that there are; alignment; and #UD of what is meant to be undefined.
        let page = faults(hypervisor, 14, |a| {
            a.mov(rbx, 0x8000_0000_u64)?;
            a.paddq(xmm0, xmmword_ptr(rbx))
        });
        let aligned = faults(hypervisor, 13, |a| {
            a.mov(rbx, DEVICE + 8)?;
            a.movaps(xmm0, xmmword_ptr(rbx))
        });
        let undefined = faults(hypervisor, 6, |a| a.ud2());
        // Nobody has announced it.
        let vector = faults(hypervisor, 6, |a| a.vpaddq(zmm0, zmm0, zmm1));
        seen.push([stack(&page), stack(&aligned), stack(&undefined), stack(&vector)]);
    });
    assert!(seen.iter().all(|own| *own == seen[0]), "{seen:x?}");
    assert_eq!(seen[0][0].1, 0x8000_0000);
}

#[test]
fn what_nobody_can_execute_ends_the_vcpu_with_its_bytes() {
    let Some(kvm) = kvm() else { return };
    let world = World::new(&kvm, 1);
    // CLZERO.
    world
        .memory
        .write_slice(&[0x0f, 0x01, 0xfc], GuestAddress(CODE))
        .unwrap();
    let mut vcpu = world.vm.create_vcpu(0).unwrap();
    vcpu.set_cpu(&processor(&world, 0)).unwrap();
    for _ in 0..2 {
        let failed = vcpu.run(VmEntry::Resume);
        let Err(VcpuError::Kvm {
            source: KvmVcpuError::Emulation { failure },
        }) = failed
        else {
            panic!("{failed:?}")
        };
        assert_eq!((failure.rip, failure.mode, failure.bits), (CODE, Mode::Long, 64));
        assert_eq!(failure.bytes[..3], [0x0f, 0x01, 0xfc]);
        assert!(failure.to_string().contains("Clzero"), "{failure}");
    }
}

#[test]
fn a_vcpu_that_waits_in_a_rescue_shows_the_instruction_not_begun_and_can_be_put_elsewhere() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(64, CODE, |a| {
            a.mov(rbx, DEVICE)?;
            a.paddq(xmm0, xmmword_ptr(rbx))?;
            a.out(DONE as u32, al)
        });
        let mut vcpu = world.vm.create_vcpu(0).unwrap();
        vcpu.set_cpu(&processor(&world, 0)).unwrap();
        let first = io(vcpu.run(VmEntry::Resume).unwrap());
        let second = io(vcpu.run(answer(first.id, 1)).unwrap());
        assert_eq!(second.address, DEVICE + 8);
        assert_eq!(vcpu.waiting(), Some(second));
        assert!(matches!(vcpu.run(VmEntry::Resume), Err(VcpuError::AnswerOwed { .. })));
        let cpu = vcpu.cpu().unwrap();
        assert_eq!((cpu.rip, cpu.fpu.vectors[0][0]), (CODE + 10, 0));
        let mut elsewhere = processor(&world, 0);
        elsewhere.rip = CODE + 14;
        vcpu.set_cpu(&elsewhere).unwrap();
        assert_eq!(vcpu.waiting(), None);
        let done = io(vcpu.run(VmEntry::Resume).unwrap());
        assert_eq!(what(&done).1, DONE);
        assert_eq!(vcpu.cpu().unwrap().fpu.vectors[0][0], 0);
        assert_eq!(counter(&*vcpu, "cancellations"), 1);
    });
}

#[test]
fn a_vcpu_that_waits_in_a_rescue_is_saved_and_goes_on_on_either_backend() {
    let Some(kvm) = kvm() else { return };
    let code = |a: &mut CodeAssembler| {
        a.mov(rbx, DEVICE)?;
        a.paddq(xmm0, xmmword_ptr(rbx))?;
        a.out(DONE as u32, al)
    };
    let world = World::new(&kvm, 1);
    world.code(64, CODE, code);
    let mut vcpu = world.vm.create_vcpu(0).unwrap();
    vcpu.set_cpu(&processor(&world, 0)).unwrap();
    let first = io(vcpu.run(VmEntry::Resume).unwrap());
    let second = io(vcpu.run(answer(first.id, 1)).unwrap());
    let state = vcpu.state().unwrap();
    for hypervisor in [&kvm as &dyn Hypervisor, &SoftHypervisor] {
        let again = World::new(hypervisor, 1);
        again.code(64, CODE, code);
        processor(&again, 0);
        let mut other = again.vm.create_vcpu(0).unwrap();
        other.restore(state.clone()).unwrap();
        let waiting = other.waiting().unwrap();
        assert_eq!(what(&waiting), what(&second));
        let exit = other.run(answer(waiting.id, 2)).unwrap();
        assert_eq!(what(&io(exit)).1, DONE);
        assert_eq!(other.cpu().unwrap().fpu.vectors[0][..2], [1, 2]);
    }
}
