//! Guest memory as the CPUs see it: raw pointers to pages, and atomics on them.
//!
//! # Purpose
//! Guest memory is shared: by vCPUs in other threads, by devices, by the host. References to it would be a lie, so this
//! module hands out [`Slot`]s, each a pointer to one operand, which are read and written by single machine accesses. It
//! also keeps, beside each page, what the CPUs must know about each other ([`CodePages`]).
//!
//! # Invariants
//! * A [`HostPage`] points at 4096 bytes of a mapping that lives as long as the [`Ram`] it came from.
//! * A [`Slot`] lies within one page.
//!
//! This is one of the modules with unsafe code (the TLB, which keeps `HostPage`s, is another): pointers into memory
//! that others change at any time cannot be had otherwise.
#![allow(
    unsafe_code,
    reason = "guest memory is shared with other threads and cannot be borrowed"
)]

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::code_pages::CodePages;
use crate::word::Word;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

/// The memory of one virtual machine.
#[derive(Debug)]
pub struct Ram {
    regions: Box<[Region]>,
    /// Which pages hold decoded code; see the module.
    pub code: CodePages,
    /// Keeps the mappings alive.
    memory: GuestMemoryMmap<()>,
}

#[derive(Debug)]
struct Region {
    start: u64,
    length: u64,
    host: *mut u8,
    /// Number of the region's first page among all pages of all regions.
    first_page: usize,
}

// SAFETY: the pointers lead into mappings that `memory` keeps alive, and are only used for volatile and atomic
// accesses.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

/// A page of guest memory in the host's address space.
#[derive(Debug, Clone, Copy)]
pub struct HostPage<'a> {
    pointer: *mut u8,
    /// The page's number in [`CodePages`].
    pub(crate) number: usize,
    life: PhantomData<&'a Ram>,
}

impl Ram {
    /// The memory that `memory` maps. Parts of regions that do not fill a page are left out.
    ///
    /// # Errors
    /// [`RamError`] if a region cannot be addressed by the host.
    pub fn new(memory: GuestMemoryMmap<()>) -> Result<Ram, RamError> {
        let mut regions = Vec::new();
        let mut pages = 0;
        for region in memory.iter() {
            let start = region.start_addr().raw_value();
            let length = region.len() & !(PAGE_SIZE - 1);
            let pointer = region.get_host_address(vm_memory::MemoryRegionAddress(0)).ok();
            let aligned = start.is_multiple_of(PAGE_SIZE);
            let Some(host) = pointer.filter(|host| aligned && (*host as u64).is_multiple_of(PAGE_SIZE)) else {
                return Err(RamError::Region { start });
            };
            regions.push(Region {
                start,
                length,
                host,
                first_page: pages,
            });
            pages += (length / PAGE_SIZE) as usize;
        }
        Ok(Ram {
            regions: regions.into_boxed_slice(),
            code: CodePages::new(pages),
            memory,
        })
    }

    /// The mappings.
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// The page that holds guest-physical address `gpa`, if that is RAM.
    #[inline]
    pub fn page(&self, gpa: u64) -> Option<HostPage<'_>> {
        for region in &self.regions {
            let offset = gpa.wrapping_sub(region.start);
            if offset < region.length {
                let page = offset / PAGE_SIZE;
                // SAFETY: the offset is below the region's length, which is within the mapping.
                let pointer = unsafe { region.host.add((page * PAGE_SIZE) as usize) };
                let number = region.first_page + page as usize;
                return Some(HostPage {
                    pointer,
                    number,
                    life: PhantomData,
                });
            }
        }
        None
    }

    /// The operand at `gpa`, if it is RAM and does not cross a page.
    #[inline]
    pub fn slot<T: Word>(&self, gpa: u64) -> Option<Slot<'_, T>> {
        self.page(gpa)?.slot(gpa)
    }

    /// Reads 1 to 8 bytes that do not cross a page, zero-extended; `None` if that is not RAM.
    #[inline]
    pub fn read(&self, gpa: u64, width: u8) -> Option<u64> {
        let page = self.page(gpa)?;
        match width {
            1 => Some(u64::from(page.slot::<u8>(gpa)?.load())),
            2 => Some(u64::from(page.slot::<u16>(gpa)?.load())),
            4 => Some(u64::from(page.slot::<u32>(gpa)?.load())),
            8 => Some(page.slot::<u64>(gpa)?.load()),
            _ => {
                let mut value = 0;
                for i in 0..u64::from(width.min(8)) {
                    value |= u64::from(
                        page.slot::<u8>(gpa & !(PAGE_SIZE - 1) | (gpa + i) & (PAGE_SIZE - 1))?
                            .load(),
                    ) << (8 * i);
                }
                Some(value)
            }
        }
    }

    /// Writes the low `width` bytes (1 to 8, not crossing a page) and drops instructions decoded from them; false if
    /// that is not RAM.
    pub fn write(&self, gpa: u64, width: u8, value: u64) -> bool {
        let Some(page) = self.page(gpa) else { return false };
        let in_page = |i: u64| gpa & !(PAGE_SIZE - 1) | (gpa + i) & (PAGE_SIZE - 1);
        match (
            width,
            page.slot::<u64>(gpa),
            page.slot::<u32>(gpa),
            page.slot::<u16>(gpa),
        ) {
            (8, Some(slot), ..) => slot.store(value),
            (4, _, Some(slot), _) => slot.store(value as u32),
            (2, _, _, Some(slot)) => slot.store(value as u16),
            _ => {
                for i in 0..u64::from(width.min(8)) {
                    if let Some(slot) = page.slot::<u8>(in_page(i)) {
                        slot.store((value >> (8 * i)) as u8);
                    }
                }
            }
        }
        self.code.written(page.number, gpa & (PAGE_SIZE - 1), u64::from(width));
        true
    }

    /// Says that somebody else (a device, the loader) wrote `length` bytes at `gpa`: instructions decoded from there
    /// are not executed any more.
    pub fn written_by_host(&self, gpa: u64, length: u64) {
        let mut at = gpa;
        let end = gpa.saturating_add(length);
        while at < end {
            if let Some((first, count)) = self.whole_pages(at, end) {
                self.code.written_pages(first, count);
                at += count as u64 * PAGE_SIZE;
                continue;
            }
            let page_end = (at | (PAGE_SIZE - 1)).saturating_add(1);
            if let Some(page) = self.page(at) {
                self.code
                    .written(page.number, at & (PAGE_SIZE - 1), page_end.min(end) - at);
            }
            at = page_end;
        }
    }

    /// The first of the whole pages of RAM that `gpa` begins, and how many follow each other before `end`.
    fn whole_pages(&self, gpa: u64, end: u64) -> Option<(usize, usize)> {
        let region = |region: &&Region| gpa.wrapping_sub(region.start) < region.length;
        let region = self.regions.iter().find(region)?;
        let offset = gpa - region.start;
        let count = (end - gpa).min(region.length - offset) / PAGE_SIZE;
        let is_whole = offset.is_multiple_of(PAGE_SIZE) && count > 0;
        is_whole.then_some((region.first_page + (offset / PAGE_SIZE) as usize, count as usize))
    }
}

/// Guest memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// A region that does not begin at a page boundary, in the guest or in the host.
    #[error("the memory region at {start:#x} does not begin at a page boundary")]
    Region {
        /// Guest-physical start of the region.
        start: u64,
    },
}

impl<'a> HostPage<'a> {
    /// Takes the page out of the lifetime of its [`Ram`], for a cache that keeps the `Ram` alive itself.
    pub(crate) fn pointer(self) -> *mut u8 {
        self.pointer
    }

    /// The operand at this offset (bits above the page offset are ignored), if it does not cross the page's end.
    #[inline(always)]
    pub fn slot<T: Word>(self, address: u64) -> Option<Slot<'a, T>> {
        let offset = address & (PAGE_SIZE - 1);
        // SAFETY: the operand lies within the page.
        (offset + T::SIZE as u64 <= PAGE_SIZE).then(|| unsafe { self.slot_unchecked(offset) })
    }

    /// The bytes at this offset (bits above the page offset are ignored), if they do not cross the page's end.
    #[inline(always)]
    pub fn span(self, address: u64, length: usize) -> Option<Span<'a>> {
        let offset = (address & (PAGE_SIZE - 1)) as usize;
        if length > PAGE_SIZE as usize - offset {
            return None;
        }
        // SAFETY: the offset lies within the page.
        let pointer = unsafe { self.pointer.add(offset) };
        Some(Span {
            pointer,
            length,
            life: PhantomData,
        })
    }

    /// The operand at `offset`.
    ///
    /// # Safety
    /// `offset + T::SIZE` is at most 4096.
    #[inline(always)]
    pub(crate) unsafe fn slot_unchecked<T: Word>(self, offset: u64) -> Slot<'a, T> {
        // SAFETY: the caller keeps the operand within the page.
        let pointer = unsafe { self.pointer.add(offset as usize) };
        Slot {
            pointer,
            life: PhantomData,
        }
    }
}

/// One operand in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Slot<'a, T> {
    pointer: *mut u8,
    life: PhantomData<&'a T>,
}

/// Some bytes of one page.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    pointer: *mut u8,
    length: usize,
    life: PhantomData<&'a u8>,
}

impl Span<'_> {
    /// The bytes at `pointer`.
    ///
    /// # Safety
    /// They lie within one page, whose `Ram` outlives the span.
    #[inline(always)]
    pub(crate) unsafe fn from_pointer(pointer: *mut u8, length: usize) -> Self {
        Span {
            pointer,
            length,
            life: PhantomData,
        }
    }

    /// Reads the first `bytes.len()` bytes.
    ///
    /// # Panics
    /// If there are not as many.
    #[inline(always)]
    pub fn load(self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.length);
        let mut offset = 0;
        let mut chunks = bytes.chunks_exact_mut(8);
        for chunk in &mut chunks {
            // SAFETY: eight bytes at the offset lie within the span, which lies within a live mapping.
            let word = unsafe { self.pointer.add(offset).cast::<Unaligned<u64>>().read_volatile() }.0;
            chunk.copy_from_slice(&word.to_ne_bytes());
            offset += 8;
        }
        for byte in chunks.into_remainder() {
            // SAFETY: as above, for one byte.
            *byte = unsafe { self.pointer.add(offset).read_volatile() };
            offset += 1;
        }
    }

    /// Writes `bytes` over the first bytes.
    ///
    /// # Panics
    /// If there are more than the span has.
    #[inline(always)]
    pub fn store(self, bytes: &[u8]) {
        assert!(bytes.len() <= self.length);
        let mut offset = 0;
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let word = Unaligned(u64::from_ne_bytes(*word));
            // SAFETY: eight bytes at the offset lie within the span, which lies within a live mapping.
            unsafe { self.pointer.add(offset).cast::<Unaligned<u64>>().write_volatile(word) };
            offset += 8;
        }
        for byte in rest {
            // SAFETY: as above, for one byte.
            unsafe { self.pointer.add(offset).write_volatile(*byte) };
            offset += 1;
        }
    }

    /// Copies all bytes to `to`, which has as many, with the effect of copying byte by byte upwards. False, and nothing
    /// is copied, if they overlap such that copying at once would have another effect.
    pub fn copy_to(self, to: Span<'_>) -> bool {
        let (from, into) = (self.pointer as usize, to.pointer as usize);
        // A destination that begins within the source repeats its beginning.
        if self.length != to.length || into.wrapping_sub(from) < self.length {
            return false;
        }
        // SAFETY: both spans lie within live mappings. Others may access them meanwhile, as with any guest memory.
        unsafe { core::ptr::copy(self.pointer, to.pointer, self.length) };
        true
    }

    /// Fills the span with copies of `value`.
    pub fn fill<T: Word>(self, value: T) {
        let value = value.zero_extend();
        if value == 0 || T::SIZE == 1 {
            // SAFETY: the span lies within a live mapping.
            unsafe { core::ptr::write_bytes(self.pointer, value as u8, self.length) };
            return;
        }
        for i in 0..self.length / T::SIZE {
            // SAFETY: as above; the element lies within the span.
            unsafe {
                self.pointer
                    .add(i * T::SIZE)
                    .cast::<Unaligned<T>>()
                    .write_volatile(Unaligned(T::truncate(value)));
            };
        }
    }
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned<T>(T);

impl<T: Word> Slot<'_, T> {
    /// The operand at `pointer`.
    ///
    /// # Safety
    /// It lies within one page, whose `Ram` outlives the slot.
    #[inline(always)]
    pub(crate) unsafe fn from_pointer(pointer: *mut u8) -> Self {
        Slot {
            pointer,
            life: PhantomData,
        }
    }

    /// Reads with one machine access.
    #[inline(always)]
    pub fn load(self) -> T {
        // SAFETY: the operand lies within a live mapping; `Unaligned` asks for no alignment.
        unsafe { self.pointer.cast::<Unaligned<T>>().read_volatile() }.0
    }

    /// Writes with one machine access.
    #[inline(always)]
    pub fn store(self, value: T) {
        // SAFETY: as in `load`.
        unsafe { self.pointer.cast::<Unaligned<T>>().write_volatile(Unaligned(value)) }
    }

    /// Replaces the value atomically by what `f` makes of it, or leaves it where `f` says `None`.
    #[inline(always)]
    pub fn atomic<R>(self, mut f: impl FnMut(T) -> (Option<T>, R)) -> R {
        let mut old = self.load();
        loop {
            let (new, result) = f(old);
            // A failed comparison writes the old value back, as LOCK CMPXCHG does (SDM Vol. 2).
            match self.compare_exchange(old, new.unwrap_or(old)) {
                Ok(()) => return result,
                Err(now) => old = now,
            }
        }
    }

    /// Replaces `old` by `new` atomically, or returns what is there instead.
    #[inline]
    fn compare_exchange(self, old: T, new: T) -> Result<(), T> {
        let (old, new) = (old.zero_extend(), new.zero_extend());
        let unaligned = self.pointer as usize & (T::SIZE - 1) != 0;
        macro_rules! exchange {
            ($atomic:ty, $t:ty) => {{
                // SAFETY: the operand lies within a live mapping and is aligned; all accesses to it are atomic or
                // volatile machine accesses.
                let atomic = unsafe { <$atomic>::from_ptr(self.pointer.cast::<$t>()) };
                atomic
                    .compare_exchange(old as $t, new as $t, Ordering::SeqCst, Ordering::SeqCst)
                    .map(|_| ())
                    .map_err(|now| T::truncate(u64::from(now)))
            }};
        }
        match T::SIZE {
            1 => exchange!(AtomicU8, u8),
            _ if unaligned => self.compare_exchange_split(old, new),
            2 => exchange!(AtomicU16, u16),
            4 => exchange!(AtomicU32, u32),
            _ => exchange!(AtomicU64, u64),
        }
    }

    /// The same on an operand that is not aligned: Rust's atomics do not know such, the processor does.
    #[cold]
    fn compare_exchange_split(self, old: u64, new: u64) -> Result<(), T> {
        let mut now = old;
        // SAFETY: the operand lies within a live mapping; LOCK CMPXCHG is atomic at any alignment. The narrow forms
        // leave the upper bits of RAX, which are zero, as they are.
        unsafe {
            match T::SIZE {
                2 => core::arch::asm!("lock cmpxchg word ptr [{p}], {n:x}", p = in(reg) self.pointer, n = in(reg) new,
                    inout("rax") now, options(nostack)),
                4 => core::arch::asm!("lock cmpxchg dword ptr [{p}], {n:e}", p = in(reg) self.pointer, n = in(reg) new,
                    inout("rax") now, options(nostack)),
                _ => core::arch::asm!("lock cmpxchg qword ptr [{p}], {n}", p = in(reg) self.pointer, n = in(reg) new,
                    inout("rax") now, options(nostack)),
            }
        }
        let now = now & T::MASK;
        if now == old { Ok(()) } else { Err(T::truncate(now)) }
    }
}

impl Slot<'_, u64> {
    /// Compares the 16 bytes that begin here with `expected` and replaces them by `new` if equal; returns what was
    /// there. `None` if they are not aligned or the host lacks CMPXCHG16B.
    pub fn compare_exchange_16(self, expected: u128, new: u128) -> Option<u128> {
        // Sixteen aligned bytes lie in one page.
        if !(self.pointer as usize).is_multiple_of(16) || !std::arch::is_x86_feature_detected!("cmpxchg16b") {
            return None;
        }
        let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
        // SAFETY: 16 aligned bytes lie within the page, and the instruction is there. RBX cannot be named as an
        // operand, so it is put back; the others are named, lest one of them be RBX.
        unsafe {
            core::arch::asm!(
                "xchg rbx, rsi",
                "lock cmpxchg16b xmmword ptr [rdi]",
                "xchg rbx, rsi",
                inout("rsi") new as u64 => _,
                in("rdi") self.pointer,
                inout("rax") low,
                inout("rdx") high,
                in("rcx") (new >> 64) as u64,
                options(nostack)
            );
        }
        Some(u128::from(low) | u128::from(high) << 64)
    }
}
