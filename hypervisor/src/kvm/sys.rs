//! What cannot be said to KVM without unsafe code: the run structure, memory slots, XSAVE areas, and the signal that gets a
//! thread out of KVM_RUN.
//!
//! # The run structure
//! The kernel shares it with us: it writes while KVM_RUN runs, we read and write while it does not, and other threads touch
//! one byte of it at any time, `immediate_exit`. So it is reached through pointers and never through references, and the
//! mapping outlives whoever may kick. [`RunPage`] is the owner's end, [`ExitFlag`] everybody else's.
#![allow(
    unsafe_code,
    reason = "the kernel shares the run structure, and reads and writes where ioctls point"
)]

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_OUT,
    KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_MEM_LOG_DIRTY_PAGES, KVM_SYNC_X86_EVENTS,
    KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_ioapic_state, kvm_irqchip, kvm_pic_state, kvm_regs, kvm_run,
    kvm_run__bindgen_ty_1, kvm_run__bindgen_ty_1__bindgen_ty_6, kvm_run__bindgen_ty_1__bindgen_ty_23,
    kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

/// Why KVM_RUN came back, copied out of the run structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// `count` elements of `size` bytes at a port; they lie at offset `data` of the run structure.
    Port {
        /// Whether the guest writes.
        write: bool,
        /// The port of each.
        port: u16,
        /// Bytes of each.
        size: u8,
        /// How many.
        count: u32,
        /// Where they are.
        data: usize,
    },
    /// Up to 8 bytes of guest-physical memory; they lie at offset `data` of the run structure.
    Memory {
        /// Whether the guest writes.
        write: bool,
        /// The first.
        address: u64,
        /// How many.
        length: u32,
        /// Where they are.
        data: usize,
    },
    /// RDMSR of a register that KVM does not have.
    ReadMsr {
        /// Which.
        index: u32,
    },
    /// WRMSR of a register that KVM does not have, or of a value that it refuses.
    WriteMsr {
        /// Which.
        index: u32,
        /// The value.
        value: u64,
    },
    /// A triple fault.
    Shutdown,
    /// A signal.
    Interrupted,
    /// A breakpoint of KVM_SET_GUEST_DEBUG.
    Debug,
    /// KVM cannot emulate an instruction.
    Emulation {
        /// The instruction bytes, if KVM tells them.
        bytes: [u8; 15],
        /// How many of them there are.
        length: usize,
    },
    /// KVM gives up for another reason.
    Internal {
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// How much it has to say about it.
        length: usize,
        /// What it says.
        data: [u64; 4],
    },
    /// The processor refused to enter the guest.
    FailEntry {
        /// What it said.
        reason: u64,
    },
    /// Something that this program does not ask for.
    Other(u32),
}

/// What of the processor KVM_RUN leaves in the run structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// General-purpose registers, RIP and RFLAGS. It costs next to nothing.
    General,
    /// Besides, system and segment registers, and events: some hundredths of what an exit costs.
    All,
}

/// The owner's end of a vCPU's run structure.
#[derive(Debug)]
pub struct RunPage(Arc<Mapping>);

/// The flag that makes KVM_RUN return at once; set from any thread.
#[derive(Debug, Clone)]
pub struct ExitFlag(Arc<Mapping>);

#[derive(Debug)]
struct Mapping {
    start: NonNull<kvm_run>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread. `RunPage`, of which there is one, has all of it but one byte, and that is
// accessed atomically.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `length` are those of our mapping, and nobody else has a pointer into it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

impl ExitFlag {
    /// Sets or clears it.
    pub fn set(&self, on: bool) {
        let byte = offset_of!(kvm_run, immediate_exit);
        // SAFETY: the byte is within the mapping, which lives as long as `self`. We access it atomically only, and so
        // does the kernel.
        let flag = unsafe { AtomicU8::from_ptr(self.0.start.as_ptr().cast::<u8>().add(byte)) };
        flag.store(u8::from(on), Ordering::SeqCst);
    }
}

impl RunPage {
    /// Maps the run structure of `vcpu`, `length` bytes as KVM_GET_VCPU_MMAP_SIZE says.
    ///
    /// # Errors
    /// What the system says.
    pub fn map(vcpu: &VcpuFd, length: usize) -> io::Result<Self> {
        if length < size_of::<kvm_run>() {
            return Err(io::Error::other("the run structure is too small"));
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self(Arc::new(Mapping { start, length })))
    }

    /// The flag that makes KVM_RUN return at once.
    pub fn exit_flag(&self) -> ExitFlag {
        ExitFlag(Arc::clone(&self.0))
    }

    /// Why KVM_RUN came back.
    pub fn exit(&self) -> Exit {
        let union = offset_of!(kvm_run, __bindgen_anon_1);
        // SAFETY: nobody writes to the structure now, and whatever is there is a valid value: it is numbers throughout.
        let (reason, exit) = unsafe {
            let run = self.0.start.as_ptr();
            let reason = (&raw const (*run).exit_reason).read_volatile();
            (reason, (&raw const (*run).__bindgen_anon_1).read_volatile())
        };
        // SAFETY: in each arm: the exit reason says that this is the union's live field, and every field is numbers.
        unsafe {
            match reason {
                KVM_EXIT_IO => Exit::Port {
                    write: u32::from(exit.io.direction) == KVM_EXIT_IO_OUT,
                    port: exit.io.port,
                    size: exit.io.size,
                    count: exit.io.count,
                    data: usize::try_from(exit.io.data_offset).unwrap_or(usize::MAX),
                },
                KVM_EXIT_MMIO => Exit::Memory {
                    write: exit.mmio.is_write != 0,
                    address: exit.mmio.phys_addr,
                    length: exit.mmio.len.min(8),
                    data: union + offset_of!(kvm_run__bindgen_ty_1__bindgen_ty_6, data),
                },
                KVM_EXIT_X86_RDMSR => Exit::ReadMsr { index: exit.msr.index },
                KVM_EXIT_X86_WRMSR => Exit::WriteMsr {
                    index: exit.msr.index,
                    value: exit.msr.data,
                },
                KVM_EXIT_SHUTDOWN => Exit::Shutdown,
                KVM_EXIT_INTR => Exit::Interrupted,
                KVM_EXIT_DEBUG => Exit::Debug,
                KVM_EXIT_INTERNAL_ERROR => internal_error(&exit),
                KVM_EXIT_FAIL_ENTRY => Exit::FailEntry {
                    reason: exit.fail_entry.hardware_entry_failure_reason,
                },
                other => Exit::Other(other),
            }
        }
    }

    /// The general-purpose registers as KVM_RUN left them; KVM must have been asked to with [`see`](Self::see).
    pub fn registers(&self) -> kvm_regs {
        // SAFETY: nobody writes to the structure now, and registers are numbers. The union's other field is padding.
        unsafe { (&raw const (*self.0.start.as_ptr()).s.regs.regs).read_volatile() }
    }

    /// Has KVM_RUN leave this in the run structure.
    pub fn see(&mut self, what: Seen) {
        let parts = match what {
            Seen::General => KVM_SYNC_X86_REGS,
            Seen::All => KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS,
        };
        // SAFETY: nobody else writes to the structure now; the field is a number.
        unsafe {
            let valid = &raw mut (*self.0.start.as_ptr()).kvm_valid_regs;
            valid.write_volatile(parts.into());
        }
    }

    /// Answers [`Exit::ReadMsr`] or [`Exit::WriteMsr`]; `None` is a general-protection fault.
    pub fn answer_msr(&mut self, value: Option<u64>) {
        let msr = offset_of!(kvm_run, __bindgen_anon_1);
        self.store(
            msr + offset_of!(kvm_run__bindgen_ty_1__bindgen_ty_23, error),
            1,
            u64::from(value.is_none()),
        );
        self.store(
            msr + offset_of!(kvm_run__bindgen_ty_1__bindgen_ty_23, data),
            8,
            value.unwrap_or(0),
        );
    }

    /// Whether `length` bytes at `offset` lie within the run structure.
    pub fn holds(&self, offset: usize, length: usize) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.0.length)
    }

    /// `size` bytes at `offset`, zero-extended; zero outside of the run structure.
    pub fn load(&self, offset: usize, size: u8) -> u64 {
        let size = usize::from(size.min(8));
        let mut bytes = [0; 8];
        if self.holds(offset, size) {
            for (place, byte) in bytes[..size].iter_mut().enumerate() {
                // SAFETY: just checked that the byte is within the mapping; nobody writes to it now.
                *byte = unsafe {
                    let at = self.0.start.as_ptr().cast::<u8>().add(offset + place);
                    at.read_volatile()
                };
            }
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes the low `size` bytes of `value` at `offset`; nothing outside of the run structure.
    pub fn store(&mut self, offset: usize, size: u8, value: u64) {
        let size = usize::from(size.min(8));
        if self.holds(offset, size) {
            for (place, byte) in value.to_le_bytes().into_iter().take(size).enumerate() {
                // SAFETY: just checked that the byte is within the mapping; nobody else accesses it now.
                unsafe {
                    let at = self.0.start.as_ptr().cast::<u8>().add(offset + place);
                    at.write_volatile(byte);
                }
            }
        }
    }
}

/// The instruction bytes, and how many there are, if `run` says that KVM cannot emulate an instruction.
pub fn emulation_failure(run: &kvm_run) -> Option<([u8; 15], usize)> {
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    match internal_error(&run.__bindgen_anon_1) {
        Exit::Emulation { bytes, length } => Some((bytes, length)),
        _ => None,
    }
}

/// Address, size and data of a read of memory, if that is what `run` says.
pub fn memory_read(run: &kvm_run) -> Option<(u64, u8, u64)> {
    if run.exit_reason != KVM_EXIT_MMIO {
        return None;
    }
    // SAFETY: the exit reason says that this is the union's live field, and it is numbers throughout.
    let access = unsafe { run.__bindgen_anon_1.mmio };
    let length = access.len.min(8) as usize;
    let mut data = [0; 8];
    data[..length].copy_from_slice(&access.data[..length]);
    (access.is_write == 0).then_some((access.phys_addr, length as u8, u64::from_le_bytes(data)))
}

/// The exit reason must be KVM_EXIT_INTERNAL_ERROR.
fn internal_error(exit: &kvm_run__bindgen_ty_1) -> Exit {
    // SAFETY: the exit reason says that `internal` is live, and with it what it begins with; all of it is numbers.
    let internal = unsafe { exit.internal };
    if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
        let length = (internal.ndata as usize).min(4);
        let mut data = [0; 4];
        data[..length].copy_from_slice(&internal.data[..length]);
        return Exit::Internal {
            suberror: internal.suberror,
            length,
            data,
        };
    }
    // SAFETY: the suberror says that `emulation_failure` is live; it is numbers throughout.
    let (failure, instruction) = unsafe {
        let failure = exit.emulation_failure;
        (failure, failure.__bindgen_anon_1.__bindgen_anon_1)
    };
    // `ndata` counts quadwords from `flags` on; the bytes fill two.
    let told = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    let has_bytes = failure.ndata >= 3 && failure.flags & told != 0;
    Exit::Emulation {
        bytes: instruction.insn_bytes,
        length: if has_bytes {
            usize::from(instruction.insn_size).min(15)
        } else {
            0
        },
    }
}

/// Gives KVM one region of guest memory, or changes whether KVM logs which of its pages are written.
///
/// Whoever keeps the machine keeps the memory too: `Machine` has both, and every vCPU has the machine.
///
/// # Errors
/// What KVM says.
pub fn set_memory_slot(vm: &VmFd, slot: u32, region: &GuestRegionMmap<()>, log: bool) -> io::Result<()> {
    let host = region
        .get_host_address(MemoryRegionAddress(0))
        .map_err(io::Error::other)?;
    let region = kvm_userspace_memory_region {
        slot,
        flags: if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: host as u64,
    };
    // SAFETY: the region is mapped there, is guest memory, which anybody may write at any time, and stays mapped as long as
    // the virtual machine, see above.
    unsafe { vm.set_user_memory_region(region) }.map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// The PIC in a chip's state; other chips' states are misread.
pub fn pic(chip: &kvm_irqchip) -> kvm_pic_state {
    // SAFETY: the union is bytes throughout, all of them initialised, and every value of this field is valid.
    unsafe { chip.chip.pic }
}

/// The IO-APIC in a chip's state; other chips' states are misread.
pub fn io_apic(chip: &kvm_irqchip) -> kvm_ioapic_state {
    // SAFETY: as in `pic`.
    unsafe { chip.chip.ioapic }
}

/// The IO-APIC's redirection entries.
pub fn io_apic_entries(state: &kvm_ioapic_state) -> [u64; 24] {
    // SAFETY: both fields of an entry are its 64 bits.
    state.redirtbl.map(|entry| unsafe { entry.bits })
}

/// A PIC as KVM takes it.
pub fn of_pic(id: u32, pic: kvm_pic_state) -> kvm_irqchip {
    // The other fields are larger, and not to be left uninitialised.
    let mut chip = kvm_irqchip {
        chip_id: id,
        ..kvm_irqchip::default()
    };
    chip.chip.pic = pic;
    chip
}

/// An IO-APIC as KVM takes it.
pub fn of_io_apic(id: u32, io_apic: kvm_ioapic_state) -> kvm_irqchip {
    let mut chip = kvm_irqchip {
        chip_id: id,
        ..kvm_irqchip::default()
    };
    chip.chip.ioapic = io_apic;
    chip
}

/// KVM_RUN by somebody who may only look at the vCPU: with the flag set that makes it return at once, all it does is to
/// complete the last exit.
///
/// # Errors
/// What KVM says: EINTR when all is complete.
pub fn complete(vcpu: &VcpuFd) -> io::Result<()> {
    // SAFETY: the argument must be 0; what the kernel writes besides is the run structure, which is mapped as long as the
    // vCPU is, and is reached through pointers only.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_RUN, 0) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// KVM_RUN: _IO(KVMIO, 0x80).
const KVM_RUN: libc::c_ulong = 0xae80;

/// Stores x87 and vector state where the caller has room for it: it is too large to be passed from hand to hand.
///
/// # Errors
/// What KVM says.
pub fn get_xsave(vcpu: &VcpuFd, area: &mut kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM writes the 4096 bytes of the structure, of which every value is valid, and nothing else.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_XSAVE, std::ptr::from_mut(area)) } {
        0.. => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

/// KVM_GET_XSAVE: _IOR(KVMIO, 0xa4, struct kvm_xsave).
const KVM_GET_XSAVE: libc::c_ulong = 0x9000_aea4;

/// Loads x87 and vector state.
///
/// # Errors
/// What KVM says.
pub fn set_xsave(vcpu: &VcpuFd, area: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads no more than the 4096 bytes of the structure unless this process has asked for components
    // beyond them (arch_prctl), which we never do.
    unsafe { vcpu.set_xsave(area) }
}

/// The signal that gets a thread out of KVM_RUN. Its handler does nothing.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Has the kick signal interrupt what a thread waits in, and do nothing else. Once for the process.
///
/// # Errors
/// What the system says.
pub fn install_kick_signal() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: all zeros is a valid `sigaction`: no flags, nothing masked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        // KVM_RUN returns all the same; system calls that the signal hits by chance go on.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler does nothing, which it may do at any time on any thread.
        match unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// The calling thread's id.
pub fn thread_id() -> i32 {
    thread_local! {
        // SAFETY: has no preconditions.
        static ID: i32 = unsafe { libc::gettid() };
    }
    ID.with(|id| *id)
}

/// Sends the kick signal to a thread of this process. One that has ended meanwhile does not mind, nor does one that has
/// its id now.
pub fn signal_thread(id: i32) {
    // SAFETY: the signal has a handler that does nothing, see `install_kick_signal`.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, kick_signal()) };
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The calling thread is a user without privileges from now on, for the file system.
    pub fn become_nobody() {
        const NOBODY: libc::uid_t = 65534;
        // SAFETY: it is a number; only this thread's rights change.
        unsafe { libc::setfsuid(NOBODY) };
    }

    /// A run structure that no kernel writes to, saying that KVM_RUN came back for `reason`.
    fn page(reason: u32) -> RunPage {
        let length = 2 * size_of::<kvm_run>();
        let (protection, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, kind, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let start = NonNull::new(start.cast()).unwrap();
        let mut page = RunPage(Arc::new(Mapping { start, length }));
        page.store(offset_of!(kvm_run, exit_reason), 4, reason.into());
        page
    }

    /// Numbers of 32 bits, and of 64 bits behind them, at the start of what belongs to the reason.
    fn saying(reason: u32, words: &[u32], long: &[u64]) -> Exit {
        let mut page = page(reason);
        let start = offset_of!(kvm_run, __bindgen_anon_1);
        for (place, word) in (start..).step_by(4).zip(words) {
            page.store(place, 4, (*word).into());
        }
        for (place, word) in (start + 4 * words.len()..).step_by(8).zip(long) {
            page.store(place, 8, *word);
        }
        page.exit()
    }

    #[test]
    fn what_kvm_gives_up_for_is_told_apart() {
        // KVM_INTERNAL_ERROR_DELIVERY_EV: what it says is copied, and no more than there is room for.
        let delivery = saying(KVM_EXIT_INTERNAL_ERROR, &[3, 3], &[0x8000_0306, 49, 0x181]);
        let internal = |suberror, length, data| Exit::Internal { suberror, length, data };
        assert_eq!(delivery, internal(3, 3, [0x8000_0306, 49, 0x181, 0]));
        let long = saying(KVM_EXIT_INTERNAL_ERROR, &[4, 16], &[1, 2, 3, 4, 5]);
        assert_eq!(long, internal(4, 4, [1, 2, 3, 4]));
        assert_eq!(saying(KVM_EXIT_INTERNAL_ERROR, &[2, 0], &[]), internal(2, 0, [0; 4]));
        let entry = saying(KVM_EXIT_FAIL_ENTRY, &[], &[0x8000_0021]);
        assert_eq!(entry, Exit::FailEntry { reason: 0x8000_0021 });
        assert_eq!(saying(0x5a5, &[], &[]), Exit::Other(0x5a5));
    }

    #[test]
    fn an_instruction_that_cannot_be_emulated_comes_with_its_bytes_if_kvm_tells_them() {
        // Flags; the number of bytes, and the bytes.
        let told = [1, 0x1111_1111_1111_110f, 0x2222_2222_2222_2222];
        let Exit::Emulation { bytes, length } = saying(KVM_EXIT_INTERNAL_ERROR, &[1, 3], &told) else {
            panic!("it is one")
        };
        assert_eq!((bytes[0], bytes[7], length), (0x11, 0x22, 15));
        for (words, flags) in [([1, 0], 1), ([1, 6], 0)] {
            let untold = saying(KVM_EXIT_INTERNAL_ERROR, &words, &[flags, told[1], told[2]]);
            assert!(matches!(untold, Exit::Emulation { length: 0, .. }), "{untold:?}");
        }
    }

    #[test]
    fn nothing_outside_of_the_run_structure_is_touched() {
        let mut page = page(KVM_EXIT_INTR);
        for offset in [2 * size_of::<kvm_run>() - 3, usize::MAX - 2] {
            page.store(offset, 4, u64::MAX);
            assert_eq!(page.load(offset, 4), 0);
        }
        assert_eq!(page.exit(), Exit::Interrupted);
    }
}
