//! What translated code reaches through the host's RSP: registers, tables of translations, a private stack.
//!
//! # Layout
//! ```text
//! private stack | [`Frame`]: registers, TLB, jump caches
//!               ^ RSP, 4 bytes before the frame
//! ```
//! While translated code runs, RSP is [`STACK`] bytes and 12 from the start of the mapping, so its low six bits are 12: as the
//! count of a shift RSP means "to the page number" (see `memory`). Calls and signal frames go below it, as on any stack.
//!
//! # Invariants
//! * Tables are written by Rust only, and only while translated code of this CPU does not run.
//! * A slot of a table that holds nothing has a key that nothing of that slot can have ([`NO_PAGE`], [`Jump::none`]).
#![allow(unsafe_code, reason = "the frame is shared with translated code")]

use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;
use std::alloc::{Layout, handle_alloc_error};

use vm_memory::MmapRegion;

use crate::cpu::Fpu;
use crate::cpu::fpu::MXCSR_INIT;
use crate::tlb::half;

/// Bytes of the private stack. Signal handlers of the host run on it.
const STACK: usize = 256 << 10;
/// Distance of the frame from RSP.
const FRAME: usize = 4;
/// Entries of the TLB for each context and direction: as many as a byte has values.
pub(crate) const TLB_SIZE: usize = 256;
/// Contexts of data accesses; see [`View`](crate::cpu::View).
pub(crate) const CONTEXTS: usize = 4;
/// Contexts that code is translated for: those without alignment checks.
pub(crate) const CODE_CONTEXTS: usize = 3;
/// Entries of a jump cache: as many as a word has values.
const JUMPS: usize = 1 << 16;

/// The number of the jump cache for code of 64 or 32 bits.
pub(crate) const fn jump_cache(context: u8, is_64: bool) -> u8 {
    if is_64 { context } else { context + CODE_CONTEXTS as u8 }
}

/// Most slots of the jump caches that are listed as used by one half of the address space: as often as both halves take over the same
/// slot from each other, it is listed again.
const MOST_USED: usize = 4 * JUMPS;

/// Bits of an address below its page number.
const PAGE_BITS: u32 = 12;

/// Keys of a table that holds nothing: each slot has the key of a page that belongs into another one, far away.
pub(crate) const NO_PAGE: [u64; TLB_SIZE] = {
    let mut keys = [0; TLB_SIZE];
    let mut slot = 0;
    while slot < TLB_SIZE {
        keys[slot] = (((slot ^ (TLB_SIZE / 2)) as u64) << PAGE_BITS).wrapping_neg();
        slot += 1;
    }
    keys
};

/// Translations for one context and direction, by the low bits of the linear page number.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Translations {
    /// Linear addresses of pages, negated: key + address + size - 1 is below 4096 if the whole operand lies in the page.
    pub(crate) keys: [u64; TLB_SIZE],
    /// What is added to a linear address to make it one of the host's.
    pub(crate) addends: [u64; TLB_SIZE],
}

impl Translations {
    pub(crate) fn slot(linear: u64) -> usize {
        (linear >> PAGE_BITS) as usize % TLB_SIZE
    }

    /// The host's address of an operand of `size` bytes, 1 to 4096, if it does not cross into another page.
    #[inline(always)]
    pub(crate) fn find(&self, linear: u64, size: u64) -> Option<*mut u8> {
        let slot = Translations::slot(linear);
        let last = self.keys[slot].wrapping_add(linear).wrapping_add(size - 1);
        (last >> PAGE_BITS == 0)
            .then(|| core::ptr::with_exposed_provenance_mut(linear.wrapping_add(self.addends[slot]) as usize))
    }

    /// Adds the page of `linear`, which is at `host`.
    pub(crate) fn insert(&mut self, linear: u64, host: *mut u8) {
        let page = linear >> PAGE_BITS << PAGE_BITS;
        let slot = Translations::slot(linear);
        self.keys[slot] = page.wrapping_neg();
        self.addends[slot] = (host.expose_provenance() as u64).wrapping_sub(page);
    }

    pub(crate) fn forget(&mut self, linear: u64) {
        let slot = Translations::slot(linear);
        self.keys[slot] = NO_PAGE[slot];
    }

    pub(crate) fn clear(&mut self) {
        self.keys = NO_PAGE;
    }

    /// Forgets the lower (0) or the upper (1) half of the address space.
    pub(crate) fn clear_half(&mut self, half: usize) {
        for (key, none) in self.keys.iter_mut().zip(NO_PAGE) {
            if half_of_key(*key) == half {
                *key = none;
            }
        }
    }
}

/// The half of the address space that a negated linear address is in.
fn half_of_key(key: u64) -> usize {
    half(key.wrapping_neg())
}

/// Where translated code for a linear address is.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Jump {
    /// The linear address, negated.
    pub(crate) key: u64,
    /// The host's address.
    pub(crate) host: u64,
}

impl Jump {
    /// The slot of a linear address: its low 16 bits.
    pub(crate) fn slot(linear: u64) -> usize {
        linear as usize % JUMPS
    }

    /// An entry of `slot` for no address: fresh memory is such, but for the first slot, where zero is address zero.
    const fn none(slot: usize) -> Jump {
        Jump {
            key: (slot == 0) as u64,
            host: 0,
        }
    }
}

/// Everything at fixed distances from RSP.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Frame {
    /// Instructions left, and 4096.
    pub(crate) fuel: u64,
    /// What is zero if the CPU is to look around.
    pub(crate) quiet: *const AtomicU32,
    /// An operand that waits for a check.
    pub(crate) scratch: u64,
    /// General-purpose registers, from R8 on; see [`gpr_slot`].
    pub(crate) gpr: [u64; 16],
    /// Bases of FS and GS.
    pub(crate) bases: [u64; 2],
    /// OF in bit 0; SF, ZF, AF, PF and CF as in RFLAGS, from bit 8 on.
    pub(crate) flags: u16,
    /// The address that an exit is about.
    pub(crate) address: u64,
    /// The host's address behind the call that was the exit.
    pub(crate) returned: u64,
    /// RSP of whoever entered.
    pub(crate) host_stack: u64,
    /// The address of the guest's vector registers.
    pub(crate) vectors: u64,
    /// 1 while they are in the host's, and MXCSR with them.
    pub(crate) loaded: u64,
    /// MXCSR of the host.
    pub(crate) host_mxcsr: u32,
    /// 0 if code may use vector registers as they are: the code of SSE, and that of AVX.
    pub(crate) pending: [u64; 2],
    /// What of that is still to be 1 when they are loaded.
    pub(crate) refused: [u64; 2],
    /// The other flags, as PUSHF stores them.
    pub(crate) control: u64,
    /// 0 if the program may change IF.
    pub(crate) unprivileged: u64,
    /// 0 if nobody waits for interrupts to be enabled.
    pub(crate) awaited: u64,
    /// 0 if the last STI enabled them.
    pub(crate) was_enabled: u64,
    /// To a multiple of 64 bytes.
    _padding: [u64; 2],
    /// By context.
    pub(crate) read: [Translations; CONTEXTS],
    /// By context.
    pub(crate) write: [Translations; CONTEXTS],
    /// By context, of 64-bit code and then of 32-bit code.
    pub(crate) jumps: [[Jump; JUMPS]; 2 * CODE_CONTEXTS],
}

/// The place of a general-purpose register in [`Frame::gpr`]: R8 to R11, which live there always, are nearest.
pub(crate) const fn gpr_slot(register: u8) -> usize {
    (register as usize + 8) % 16
}

const fn from_rsp(offset: usize) -> i32 {
    (offset + FRAME) as i32
}

/// Distances from RSP.
pub(super) mod at {
    use super::*;

    pub(in super::super) const FUEL: i32 = from_rsp(offset_of!(Frame, fuel));
    pub(in super::super) const QUIET: i32 = from_rsp(offset_of!(Frame, quiet));
    pub(in super::super) const SCRATCH: i32 = from_rsp(offset_of!(Frame, scratch));
    pub(in super::super) const FLAGS: i32 = from_rsp(offset_of!(Frame, flags));
    pub(in super::super) const ADDRESS: i32 = from_rsp(offset_of!(Frame, address));
    pub(in super::super) const RETURNED: i32 = from_rsp(offset_of!(Frame, returned));
    pub(in super::super) const HOST_STACK: i32 = from_rsp(offset_of!(Frame, host_stack));

    pub(in super::super) const VECTORS: i32 = from_rsp(offset_of!(Frame, vectors));
    pub(in super::super) const LOADED: i32 = from_rsp(offset_of!(Frame, loaded));
    pub(in super::super) const HOST_MXCSR: i32 = from_rsp(offset_of!(Frame, host_mxcsr));

    pub(in super::super) const CONTROL: i32 = from_rsp(offset_of!(Frame, control));
    pub(in super::super) const UNPRIVILEGED: i32 = from_rsp(offset_of!(Frame, unprivileged));
    pub(in super::super) const AWAITED: i32 = from_rsp(offset_of!(Frame, awaited));
    pub(in super::super) const WAS_ENABLED: i32 = from_rsp(offset_of!(Frame, was_enabled));

    /// What makes code wait that uses vector registers.
    pub(in super::super) const fn pending(avx: bool) -> i32 {
        from_rsp(offset_of!(Frame, pending) + 8 * avx as usize)
    }

    /// What it is then.
    pub(in super::super) const fn refused(avx: bool) -> i32 {
        from_rsp(offset_of!(Frame, refused) + 8 * avx as usize)
    }

    /// The guest's MXCSR, from its vector registers.
    pub(in super::super) const MXCSR: i32 = offset_of!(Fpu, mxcsr) as i32 - offset_of!(Fpu, vectors) as i32;

    pub(in super::super) const fn gpr(register: u8) -> i32 {
        from_rsp(offset_of!(Frame, gpr) + 8 * gpr_slot(register))
    }

    /// The base of FS (0) or GS (1).
    pub(in super::super) const fn base(segment: usize) -> i32 {
        from_rsp(offset_of!(Frame, bases) + 8 * segment)
    }

    /// The keys of a TLB; the addends are [`ADDENDS`] further on.
    pub(in super::super) const fn keys(context: u8, writes: bool) -> i32 {
        let table = if writes {
            offset_of!(Frame, write)
        } else {
            offset_of!(Frame, read)
        };
        from_rsp(table + context as usize * size_of::<Translations>())
    }

    pub(in super::super) const ADDENDS: i32 = offset_of!(Translations, addends) as i32;

    /// A jump cache; the host's address is [`JUMP_HOST`] further on.
    pub(in super::super) const fn jumps(cache: u8) -> i32 {
        from_rsp(offset_of!(Frame, jumps) + cache as usize * JUMPS * size_of::<Jump>())
    }

    pub(in super::super) const JUMP_HOST: i32 = offset_of!(Jump, host) as i32;
}

/// The mapping with stack and frame.
#[derive(Debug)]
pub(crate) struct State {
    frame: NonNull<Frame>,
    /// Keeps the frame alive.
    _mapping: MmapRegion<()>,
    /// Slots of the jump caches that may be in use, for each half of the address space.
    used_jumps: [Vec<(u8, u16)>; 2],
}

// SAFETY: the frame belongs to the state alone; the pointer in it is not followed by Rust.
unsafe impl Send for State {}

impl State {
    /// Without any translations. Like other allocations it ends the program where there is no memory; most of it is used when
    /// code is translated only.
    pub(crate) fn new() -> State {
        const BYTES: usize = STACK + 16 + size_of::<Frame>();
        const LAYOUT: Layout = match Layout::from_size_align(BYTES, 4096) {
            Ok(layout) => layout,
            Err(_) => panic!(),
        };
        let mapping = MmapRegion::new(BYTES.next_multiple_of(4096)).unwrap_or_else(|_| handle_alloc_error(LAYOUT));
        // SAFETY: the mapping is that long, and page-aligned, so the frame is aligned as `Frame` wants it. It is all zeros,
        // which is a value of each field.
        let frame = unsafe { NonNull::new_unchecked(mapping.as_ptr().add(STACK + 16).cast::<Frame>()) };
        let mut state = State {
            frame,
            _mapping: mapping,
            used_jumps: [Vec::new(), Vec::new()],
        };
        let frame = state.frame_mut();
        for table in frame.read.iter_mut().chain(&mut frame.write) {
            table.clear();
        }
        frame.host_mxcsr = MXCSR_INIT;
        for jumps in &mut frame.jumps {
            jumps[0] = Jump::none(0);
        }
        state
    }

    #[inline(always)]
    pub(crate) fn frame(&self) -> &Frame {
        // SAFETY: the frame lives as long as the mapping, and is written under `&mut self` only: by Rust, or by translated code
        // that was entered with it.
        unsafe { self.frame.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn frame_mut(&mut self) -> &mut Frame {
        // SAFETY: as in `frame`.
        unsafe { self.frame.as_mut() }
    }

    /// RSP while translated code runs.
    pub(super) fn stack_pointer(&mut self) -> *mut u8 {
        self.frame.as_ptr().cast::<u8>().wrapping_sub(FRAME)
    }

    /// Where translated code goes when it finds `linear` in a jump cache.
    pub(crate) fn jump(&self, cache: u8, linear: u64) -> Option<u64> {
        let jump = self.frame().jumps[usize::from(cache)][Jump::slot(linear)];
        (jump.key == linear.wrapping_neg()).then_some(jump.host)
    }

    /// Has translated code find what is at `host` for `linear`.
    pub(crate) fn insert_jump(&mut self, cache: u8, linear: u64, host: u64) {
        let key = linear.wrapping_neg();
        let slot = Jump::slot(linear);
        let half = half(linear);
        if self.used_jumps[half].len() >= MOST_USED {
            self.forget_jumps();
        }
        let jump = &mut self.frame_mut().jumps[usize::from(cache)][slot];
        let is_listed = *jump != Jump::none(slot) && half_of_key(jump.key) == half;
        *jump = Jump { key, host };
        if !is_listed {
            self.used_jumps[half].push((cache, slot as u16));
        }
    }

    /// Forgets which code is at which linear address.
    pub(crate) fn forget_jumps(&mut self) {
        self.forget_jumps_of(0);
        self.forget_jumps_of(1);
    }

    /// Forgets which code is at which linear address of the lower (0) or the upper (1) half.
    pub(crate) fn forget_jumps_of(&mut self, half: usize) {
        let mut used = core::mem::take(&mut self.used_jumps[half]);
        let frame = self.frame_mut();
        for (cache, slot) in used.drain(..) {
            let slot = usize::from(slot);
            let jump = &mut frame.jumps[usize::from(cache)][slot];
            // The other half may have taken it over.
            if half_of_key(jump.key) == half {
                *jump = Jump::none(slot);
            }
        }
        self.used_jumps[half] = used;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rsp_as_the_count_of_a_shift_leads_to_the_page_number() {
        let mut state = State::new();
        let rsp = state.stack_pointer() as u64;
        assert_eq!(rsp % 64, u64::from(PAGE_BITS));
        assert_eq!((&raw const state.frame().read) as usize % 64, 0);
    }

    #[test]
    fn an_empty_table_finds_nothing_not_even_across_pages() {
        let state = State::new();
        let table = &state.frame().read[0];
        for page in 0..2 * TLB_SIZE as u64 {
            for page in [page, page.wrapping_neg(), page | 1 << 47] {
                for offset in [0, 1, 4095] {
                    for size in [1, 8, 4096] {
                        assert!(table.find((page << PAGE_BITS) + offset, size).is_none());
                    }
                }
            }
        }
    }

    #[test]
    fn a_page_is_found_by_what_lies_within_it() {
        let mut state = State::new();
        let mut page = [0u8; 4096];
        let host = page.as_mut_ptr();
        for linear in [0, 0x7fff_ffff_f000, u64::MAX - 4095] {
            let table = &mut state.frame_mut().write[1];
            table.insert(linear + 5, host);
            assert_eq!(table.find(linear, 4096), Some(host));
            assert_eq!(table.find(linear + 4095, 1), Some(host.wrapping_add(4095)));
            assert_eq!(table.find(linear + 4095, 2), None);
            assert_eq!(table.find(linear.wrapping_sub(1), 2), None);
            table.forget(linear + 9);
            assert_eq!(table.find(linear, 1), None);
        }
    }

    #[test]
    fn fresh_jump_caches_lead_nowhere() {
        let mut state = State::new();
        for linear in [0, 1, 0xffff, 0x1_0000, u64::MAX, u64::MAX << 16] {
            assert_eq!(state.jump(0, linear), None);
        }
        state.insert_jump(2, 0x1_0000, 7);
        assert_eq!((state.jump(2, 0x1_0000), state.jump(1, 0x1_0000)), (Some(7), None));
        state.forget_jumps();
        assert_eq!((state.jump(2, 0x1_0000), state.jump(2, 0)), (None, None));
    }

    #[test]
    fn one_half_of_the_address_space_is_forgotten_whichever_took_slots_over() {
        const UPPER: u64 = 0xffff_8000_0000_0000;
        let mut state = State::new();
        let taken_over = [UPPER | 0x10, 0x10];
        for (slot, host) in [(0, 0x10), (1, 0x20)] {
            state.insert_jump(1, taken_over[slot], host);
        }
        for (slot, host) in [(1, 0x30), (0, 0x40)] {
            state.insert_jump(1, taken_over[slot] + 0x10, host);
        }
        state.insert_jump(1, 0, 0x50);
        state.forget_jumps_of(0);
        let left = [0, 0x10, UPPER | 0x10, 0x20, UPPER | 0x20].map(|linear| state.jump(1, linear));
        assert_eq!(left, [None, None, None, None, Some(0x40)]);
        state.insert_jump(1, 0x20, 0x60);
        state.forget_jumps_of(1);
        assert_eq!(state.jump(1, 0x20), Some(0x60));
        state.forget_jumps_of(0);
        assert_eq!(state.jump(1, 0x20), None);
        let mut table = Translations {
            keys: NO_PAGE,
            addends: [0; TLB_SIZE],
        };
        for (half, linear) in [(0, 0x7000), (1, UPPER | 0x8000)] {
            table.insert(0x7000, core::ptr::null_mut());
            table.insert(UPPER | 0x8000, core::ptr::null_mut());
            table.clear_half(half);
            assert!(table.find(linear, 1).is_none());
            assert!(table.find([UPPER | 0x8000, 0x7000][half], 1).is_some());
        }
    }
}
