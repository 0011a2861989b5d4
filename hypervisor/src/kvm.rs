//! The backend that runs guests on the host's KVM.
//!
//! # Purpose
//! The same machines behind the same traits as [`soft`](crate::soft)'s. The interrupt controllers and kvmclock are the
//! kernel's; what it emulates of instructions, it emulates with the devices' answers taken the way the soft backend
//! takes them: an access is an exit, its answer is the argument of the next [`run`](crate::Vcpu::run), and KVM_RUN is not
//! called while an answer is owed.
//! # Map
//! - `vm`, `vcpu`: the machine and its vCPUs; `exchange`: one exit's accesses, one by one; `kick`: out of KVM_RUN.
//! - `cpu`: the whole processor, put together from `registers`, `segments`, `xsave`, `msrs` and `events`, each of which
//!   translates between the crate's own structures and KVM's, both ways.
//! - `local_apic`, `chips`: the interrupt controllers as plain data, both ways; `pit`: the interval timer, which is not KVM's.
//! - `clock`, `counters`: the machine's time, and the time-stamp counters.
//! - `cpuid`: the model of the processor, as asked for and as announced; `lines`: interrupt lines.
//! - `capabilities`: what KVM must be able to do; `backing`: whether the processor is behind it.
//! - `signals`: irqfd, ioeventfd and routes; `dirty`: the log of written memory.
//! - `software`: an instruction that was in flight when the restored state was taken.
//! - `failure`, `rescue`: instructions that KVM cannot emulate.
//! - `sys`: the only unsafe code.
//! # Limits
//! - KVM serves an INIT when the vCPU runs: one that waits for a device is not reset before the device has answered.
//! - The time-stamp counters, and the timers of local APICs, go on while the machine is paused; kvmclock and the interval timer
//!   stand still.
//! - A read that waits is saved with a record that the emulator makes from memory as it is then. Should another vCPU have
//!   changed the instruction meanwhile, the device is asked once more.
//! - `kvm_pvm`, a KVM in software, has no IOPL in ring 3, where it reads as 0; MOVBE in ring 0, and IRETD in 64-bit mode,
//!   fault without being given up. It leaves SYSCALL of ring 3 half done, which `rescue` finishes. It announces the processor's
//!   instructions on its own account: `cpuid` reads back what guests are told.
//! - The signal SIGRTMIN+1 is used to get threads out of KVM_RUN. It must not be blocked there.

mod backing;
mod capabilities;
mod chips;
mod clock;
mod counters;
mod cpu;
mod cpuid;
mod dirty;
mod error;
mod events;
mod exchange;
mod failure;
mod kick;
mod lines;
mod local_apic;
mod msrs;
mod pit;
mod registers;
pub mod rescue;
mod segments;
mod signals;
mod software;
mod sys;
mod vcpu;
mod vm;
mod xsave;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use vm_memory::GuestAddress;

use error::Named;

use crate::{CpuModel, GuestMemory, Hypervisor, HypervisorError, HypervisorKind, Vm, VmSettings};

pub use backing::Backing;
pub use error::{KvmError, KvmVcpuError};
pub use failure::{EmulationFailure, Obtained};
pub use rescue::{Rescued, Rescuer};

/// Where KVM is.
const DEVICE: &str = "/dev/kvm";

/// The host's KVM.
#[derive(Debug)]
pub struct KvmHypervisor {
    kvm: Kvm,
    backing: Backing,
    /// Guests are told of instructions that KVM does not offer.
    instructions: bool,
}

impl KvmHypervisor {
    /// Opens KVM, and checks that it can do everything that is needed.
    ///
    /// # Errors
    /// [`KvmError`] naming what is missing.
    pub fn open() -> Result<Self, KvmError> {
        Self::open_at(Path::new(DEVICE))
    }

    /// The same, its guests being told of every instruction that the emulator executes, though this KVM does not offer it.
    ///
    /// A KVM in software offers hardly more than SSE2, and gives up what else guest kernels execute: it is rescued. This is for
    /// trying that. What the processor does not have is still #UD where it executes guest code itself.
    #[must_use]
    pub fn announcing_instructions(self) -> Self {
        Self {
            instructions: true,
            ..self
        }
    }

    /// Makes a small machine and lets go of it: what stands in the way of one is found here, such as another hypervisor that has
    /// the processor to itself.
    ///
    /// # Errors
    /// [`HypervisorError`] naming what is refused.
    pub fn try_out(&self) -> Result<(), HypervisorError> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).map_err(|error| KvmError::Call {
            call: "mmap of guest memory",
            source: io::Error::other(error),
        })?;
        let settings = VmSettings {
            vcpus: 1,
            memory,
            hyperv: false,
            model: CpuModel::Host,
        };
        self.create_vm(settings)?.create_vcpu(0)?;
        Ok(())
    }

    /// The one rate, in kHz, at which this KVM's time-stamp counters can count; `None` if it can have them count at any.
    ///
    /// # Errors
    /// [`KvmError`] naming what is refused.
    pub fn only_tsc_khz(&self) -> Result<Option<u32>, KvmError> {
        if self.kvm.check_extension(Cap::TscControl) {
            return Ok(None);
        }
        let vm = self.kvm.create_vm().of_vm("KVM_CREATE_VM")?;
        let vcpu = vm.create_vcpu(0).of_vm("KVM_CREATE_VCPU")?;
        vcpu.get_tsc_khz().of_vm("KVM_GET_TSC_KHZ").map(Some)
    }

    fn open_at(path: &Path) -> Result<Self, KvmError> {
        let name = path.as_os_str().to_string_lossy();
        let kvm = std::ffi::CString::new(name.as_bytes())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
            .and_then(|name| Kvm::new_with_path(name).map_err(|error| io::Error::from_raw_os_error(error.errno())))
            .map_err(|source| {
                let path = PathBuf::from(path);
                match source.kind() {
                    io::ErrorKind::NotFound => KvmError::NoDevice { path },
                    io::ErrorKind::PermissionDenied => KvmError::Permission { path },
                    // The node is there, and no module behind it.
                    _ if matches!(source.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {
                        KvmError::NoDevice { path }
                    }
                    _ => KvmError::Open { path, source },
                }
            })?;
        capabilities::check(&kvm)?;
        sys::install_kick_signal().map_err(|source| KvmError::Call {
            call: "the handler of the kick signal",
            source,
        })?;
        Ok(Self {
            kvm,
            backing: Backing::of_this_host(),
            instructions: false,
        })
    }
}

impl KvmHypervisor {
    /// What guests can be told of the processor.
    fn offers(&self) -> Result<CpuId, KvmError> {
        let supported = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let mut supported = supported.of_vm("KVM_GET_SUPPORTED_CPUID")?;
        if self.instructions {
            cpuid::add_instructions(&mut supported);
        }
        Ok(supported)
    }
}

impl Hypervisor for KvmHypervisor {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Kvm
    }

    fn max_vcpus(&self) -> u32 {
        // Beyond, APIC ids need more than 8 bits, and with that interrupt remapping.
        u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX).min(255)
    }

    fn create_vm(&self, settings: VmSettings) -> Result<Arc<dyn Vm>, HypervisorError> {
        Ok(Arc::new(vm::KvmVm::new(self, settings)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_kvm_is_told_so() {
        let missing = KvmHypervisor::open_at(Path::new("/dev/there-is-no-kvm"));
        assert!(matches!(missing, Err(KvmError::NoDevice { .. })), "{missing:?}");
    }

    #[test]
    fn a_device_that_this_user_may_not_open_is_told_by_name() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("reprise-no-permission-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
        // Root may open anything; this thread is nobody for the file system.
        let own = path.clone();
        let refused = std::thread::spawn(move || {
            sys::tests::become_nobody();
            KvmHypervisor::open_at(&own)
        });
        let refused = refused.join().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(
            matches!(&refused, Err(KvmError::Permission { path: named }) if *named == path),
            "{refused:?}"
        );
    }

    #[test]
    fn memory_that_kvm_does_not_take_is_told_by_slot_and_address() {
        let Ok(kvm) = KvmHypervisor::open() else {
            eprintln!("skipped: no KVM");
            return;
        };
        // No processor has so wide addresses.
        let beyond = 1 << 52;
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(beyond), 0x1000)]).unwrap();
        let refused = kvm.create_vm(VmSettings {
            vcpus: 1,
            memory,
            hyperv: false,
            model: CpuModel::Host,
        });
        let Err(HypervisorError::Kvm {
            source: KvmError::MemorySlot {
                slot, address, length, ..
            },
        }) = refused
        else {
            panic!("{:?}", refused.err())
        };
        assert_eq!((slot, address, length), (1, beyond, 0x1000));
    }

    #[test]
    fn a_file_that_is_no_kvm_is_refused() {
        let other = KvmHypervisor::open_at(Path::new("/dev/null"));
        assert!(matches!(other, Err(KvmError::Version { found: -1, .. })), "{other:?}");
    }
}
