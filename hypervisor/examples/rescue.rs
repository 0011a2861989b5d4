//! A KVM loop of one's own, to which the rescue is added: the guest reads 32 bytes of a device at once and exchanges 16 there,
//! which KVM alone gives up. `cargo run -p reprise-hypervisor --example rescue`
use kvm_bindings::{KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use reprise_emulator::Ram;
use reprise_hypervisor::kvm::{EmulationFailure, Rescued, Rescuer};
use reprise_hypervisor::{Answer, GuestMemory, IoRequest};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// vmovdqu ymm0, [rbx]; lock cmpxchg16b [rbx]; hlt
const CODE: [u8; 10] = [0xc5, 0xfe, 0x6f, 0x03, 0xf0, 0x48, 0x0f, 0xc7, 0x0b, 0xf4];
const DEVICE: u64 = 0x20_0000;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (kvm, mut enable) = (Kvm::new()?, kvm_enable_cap::default());
    (enable.cap, enable.args[0]) = (KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
    let vm = kvm.create_vm()?;
    vm.enable_cap(&enable)?;
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)])?;
    memory.write_slice(&CODE, GuestAddress(0x1000))?;
    memory.write_obj(0x3003_u64, GuestAddress(0x2000))?;
    memory.write_obj(0x4003_u64, GuestAddress(0x3000))?;
    memory.write_obj([0x83, DEVICE | 0x83], GuestAddress(0x4000))?;
    let mut slot = kvm_userspace_memory_region::default();
    (slot.memory_size, slot.userspace_addr) = (0x10000, memory.get_host_address(GuestAddress(0))? as u64);
    // SAFETY: the memory is mapped there as long as `ram` lives, which is to the end.
    unsafe { vm.set_user_memory_region(slot)? };
    let (ram, mut vcpu) = (std::sync::Arc::new(Ram::new(memory)?), vm.create_vcpu(0)?);
    let mut cpuid = kvm.get_supported_cpuid(256)?;
    for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx |= 1 << 28 | 1 << 26 | 1 << 13; // AVX, XSAVE, CMPXCHG16B: it is the rescue that executes them
    }
    vcpu.set_cpuid2(&cpuid)?;
    let (mut system, mut xcrs, mut registers) = (vcpu.get_sregs()?, vcpu.get_xcrs()?, vcpu.get_regs()?);
    (system.cr0, system.cr3, system.cr4, system.efer) = (0x8000_0033, 0x2000, 0x4_0620, 0x500);
    (system.cs.base, system.cs.l, system.cs.type_) = (0, 1, 11);
    (xcrs.nr_xcrs, xcrs.xcrs[0].value) = (1, 7);
    (registers.rip, registers.rbx, registers.rflags) = (0x1000, DEVICE, 2);
    vcpu.set_sregs(&system)
        .and(vcpu.set_xcrs(&xcrs))
        .and(vcpu.set_regs(&registers))?;
    let mut rescuer = Rescuer::new(&mut vcpu, &ram)?;
    loop {
        match vcpu.run()? {
            VcpuExit::MmioRead(_, data) => data.fill(7),
            VcpuExit::InternalError => {
                let failure = EmulationFailure::of(&mut vcpu).ok_or("KVM gave up for another reason")?;
                println!("rescued: {failure}");
                let mut step = rescuer.rescue(&mut vcpu, failure)?;
                while let Rescued::Io(IoRequest { id, .. }) = step {
                    step = rescuer.answer(&mut vcpu, Answer { id, value: 7 })?;
                }
                continue;
            }
            _ => break, // HLT
        }
        rescuer.note(&mut vcpu);
    }
    Ok(())
}
