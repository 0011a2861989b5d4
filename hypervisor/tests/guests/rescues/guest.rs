//! The guest of everything that is known to fail somewhere, and what it leaves behind on each backend.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::Cpu;
use reprise_emulator::cpu::segment::Attributes;
use reprise_emulator::cpu::{Cr0, Cr4, Seg, Segment, flags};
use reprise_hypervisor::kvm::Backing;
use reprise_hypervisor::{Access, Hypervisor, KvmHypervisor, SoftHypervisor, Space, VmEntry, VmExit};
use vm_memory::{Bytes, GuestAddress};

use crate::world::{CODE, DEVICE, Start, World, answer, kvm, what};

/// RAM that the guest works on.
pub(super) const DATA: u64 = 0x4000;
/// A port at which the guest says that it is done.
pub(super) const DONE: u64 = 0x80;

/// What a guest leaves behind.
#[derive(Debug, PartialEq)]
pub(super) struct Left {
    pub(super) accesses: Vec<(Space, u64, u8, Access)>,
    pub(super) cpu: serde_json::Value,
    pub(super) data: Vec<u8>,
    pub(super) counters: Vec<(&'static str, u64)>,
}

/// A 64-bit processor with SSE, in `ring`.
pub(super) fn processor(world: &World, ring: u8) -> Cpu {
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
pub(super) fn run(
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
pub(super) fn everything() -> Option<KvmHypervisor> {
    Some(kvm()?.announcing_instructions())
}

/// The same guest on both backends leaves the same behind. What it is on KVM, if there is one.
pub(super) fn same(kind: (u8, bool), write: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Option<Left> {
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
pub(super) fn begin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rbp, DATA)?;
    a.mov(rax, 0x0123_4567_89ab_cdef_u64)?;
    a.mov(rcx, 0x1111_2222_3333_4444_u64)?;
    a.mov(rdx, 0xfedc_ba98_7654_3210_u64)?;
    a.mov(rsi, 0x0f0f_00ff_1234_8421_u64)?;
    a.xor(r15d, r15d)
}

/// Everything that is known to fail somewhere, on what `rbx` leads to.
pub(super) fn classes(a: &mut CodeAssembler) -> Result<(), IcedError> {
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
pub(super) fn wide_classes(a: &mut CodeAssembler) -> Result<(), IcedError> {
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
pub(super) fn program(a: &mut CodeAssembler, rounds: u32, wide: bool) -> Result<(), IcedError> {
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
