//! Translation of linear to guest-physical addresses (SDM Vol. 3, Paging).
//!
//! One walker serves both ways to memory: the fast one reads page tables as they are, the careful one records what it
//! reads. Rights are checked after the whole walk; accessed and dirty bits are set only when the access is allowed,
//! atomically on the live entry, and a walk whose entry has changed meanwhile begins again.

use crate::access::Stop;
use crate::cpu::{Cpu, Cr0, Cr4, Efer, flags};

/// Width of guest-physical addresses in bits, as CPUID announces it.
pub const PHYSICAL_BITS: u32 = 46;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12 of a 64-bit entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits 51:MAXPHYADDR.
const ABOVE_PHYSICAL: u64 = ADDRESS & !((1 << PHYSICAL_BITS) - 1);

/// Reserved low bits of a page-directory-pointer entry of PAE paging.
const POINTER_RESERVED: u64 = 0x1e6;

/// Page-fault error code (SDM Vol. 3, Page-Fault Exceptions).
pub mod error_code {
    /// The page was present; its rights forbade the access.
    pub const PRESENT: u16 = 1 << 0;
    /// A write.
    pub const WRITE: u16 = 1 << 1;
    /// A user-mode access.
    pub const USER: u16 = 1 << 2;
    /// A reserved bit was set.
    pub const RESERVED: u16 = 1 << 3;
    /// An instruction fetch.
    pub const FETCH: u16 = 1 << 4;
    /// The page's protection key forbade the access.
    pub const PROTECTION_KEY: u16 = 1 << 5;
}

/// What is done with the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Data is read.
    Read,
    /// Data is written.
    Write,
    /// An instruction is fetched.
    Fetch,
}

/// With whose rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 3.
    User,
    /// CPL 0 to 2; SMAP can be overridden by RFLAGS.AC.
    Supervisor,
    /// The processor itself, for descriptor tables and task state: RFLAGS.AC does not count.
    Implicit,
}

impl Privilege {
    /// The rights of an ordinary access at privilege level `cpl`.
    #[inline]
    pub fn of(cpl: u8) -> Privilege {
        if cpl == 3 {
            Privilege::User
        } else {
            Privilege::Supervisor
        }
    }
}

/// Where a linear address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub gpa: u64,
    /// log2 of the page size: 12, 21, 22 or 30. Without paging, 12.
    pub page_bits: u32,
    /// CR3 does not flush it (CR4.PGE is set).
    pub global: bool,
}

/// The walker's way to page tables.
pub trait Tables {
    /// Reads an entry of 4 or 8 bytes.
    ///
    /// # Errors
    /// [`Stop`] if it cannot be read now.
    fn entry(&mut self, gpa: u64, size: u8) -> Result<u64, Stop>;

    /// Sets `bits` in an entry that was read as `seen`, atomically; false if it has changed since.
    ///
    /// # Errors
    /// [`Stop`] if it cannot be written now.
    fn set_bits(&mut self, gpa: u64, size: u8, seen: u64, bits: u64) -> Result<bool, Stop>;

    /// Makes the page fault: keeps the linear address, returns the exception with the error code.
    fn page_fault(&mut self, linear: u64, error_code: u16) -> Stop;
}

/// The shape of the paging structures in the CPU's mode.
struct Shape {
    levels: u32,
    entry_size: u8,
    /// Index bits of each level.
    index_bits: u32,
}

impl Shape {
    fn of(cpu: &Cpu) -> Shape {
        if cpu.efer.any(Efer::LMA) {
            let levels = if cpu.cr4.any(Cr4::LA57) { 5 } else { 4 };
            Shape {
                levels,
                entry_size: 8,
                index_bits: 9,
            }
        } else if cpu.cr4.any(Cr4::PAE) {
            Shape {
                levels: 3,
                entry_size: 8,
                index_bits: 9,
            }
        } else {
            Shape {
                levels: 2,
                entry_size: 4,
                index_bits: 10,
            }
        }
    }

    /// Bit number where the index of `level` (1 is the page table) begins.
    fn shift(&self, level: u32) -> u32 {
        12 + (level - 1) * self.index_bits
    }

    /// Reserved bits of a present entry.
    fn reserved(&self, cpu: &Cpu, level: u32, entry: u64, large: bool) -> u64 {
        if self.entry_size == 4 {
            // A 4 MiB page: bit 21 is reserved, bits 20:13 are address bits 39:32 (PSE-36).
            return if large { entry & 1 << 21 } else { 0 };
        }
        let mut reserved = ABOVE_PHYSICAL;
        if !cpu.efer.any(Efer::NXE) {
            reserved |= NO_EXECUTE;
        }
        if self.levels == 3 {
            reserved |= 0x7ff0_0000_0000_0000;
            if level == 3 {
                reserved |= NO_EXECUTE | POINTER_RESERVED;
            }
        } else if level >= 4 {
            reserved |= LARGE;
        }
        if large {
            reserved |= ((1 << self.shift(level)) - 1) & ADDRESS & !(1 << 12);
        }
        entry & reserved
    }

    fn allows_large(&self, cpu: &Cpu, level: u32) -> bool {
        match (self.levels, level) {
            (2, 2) => cpu.cr4.any(Cr4::PSE),
            (3, 2) => true,
            (4 | 5, 2 | 3) => true,
            _ => false,
        }
    }
}

/// A page-directory-pointer entry of PAE paging that is present has a reserved bit set: 2:1, 8:5, 63:MAXPHYADDR.
fn is_bad_pointer(entry: u64) -> bool {
    entry & PRESENT != 0 && entry & (!((1 << PHYSICAL_BITS) - 1) | POINTER_RESERVED) != 0
}

/// Looks at the page-directory-pointer entries, which PAE paging loads with CR3 (SDM Vol. 3, PDPTE Registers): whether one of
/// them cannot be loaded. What is loaded is not kept: as AMD's processors with nested paging do, the walk reads them again.
///
/// # Errors
/// [`Stop`]: whatever keeps `tables` from answering.
pub(crate) fn has_bad_pointers(tables: &mut impl Tables, cr3: u64, cr4: Cr4) -> Result<bool, Stop> {
    if !cr4.any(Cr4::PAE) {
        return Ok(false);
    }
    for at in (cr3 & 0xffff_ffe0..).step_by(8).take(4) {
        if is_bad_pointer(tables.entry(at, 8)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Translates `linear`.
///
/// # Errors
/// [`Stop`]: a page fault, or whatever keeps `tables` from answering.
pub fn translate<T: Tables>(
    cpu: &Cpu,
    tables: &mut T,
    linear: u64,
    intent: Intent,
    privilege: Privilege,
) -> Result<Translation, Stop> {
    if !cpu.cr0.any(Cr0::PG) {
        return Ok(Translation {
            gpa: linear,
            page_bits: 12,
            global: false,
        });
    }
    let shape = Shape::of(cpu);
    let user = privilege == Privilege::User;
    let mut code = 0;
    if intent == Intent::Write {
        code |= error_code::WRITE;
    }
    if user {
        code |= error_code::USER;
    }
    if intent == Intent::Fetch && (cpu.efer.any(Efer::NXE) && shape.entry_size == 8 || cpu.cr4.any(Cr4::SMEP)) {
        code |= error_code::FETCH;
    }
    'walk: loop {
        let mut table = match shape.levels {
            3 => cpu.cr3 & 0xffff_ffe0,
            2 => cpu.cr3 & 0xffff_f000,
            _ => cpu.cr3 & ADDRESS & !ABOVE_PHYSICAL,
        };
        let mut rights = WRITABLE | USER;
        let mut no_execute = 0;
        let mut path = [(0u64, 0u64); 5];
        let mut level = shape.levels;
        let (entry, large) = loop {
            let index = linear >> shape.shift(level) & ((1 << shape.index_bits) - 1);
            let at = table
                + (index & if shape.levels == 3 && level == 3 { 3 } else { u64::MAX }) * u64::from(shape.entry_size);
            let entry = tables.entry(at, shape.entry_size)?;
            if entry & PRESENT == 0 {
                return Err(tables.page_fault(linear, code));
            }
            let large = entry & LARGE != 0 && shape.allows_large(cpu, level);
            if shape.reserved(cpu, level, entry, large) != 0 {
                return Err(tables.page_fault(linear, code | error_code::PRESENT | error_code::RESERVED));
            }
            path[level as usize - 1] = (at, entry);
            // The PAE directory pointers have neither rights nor an accessed bit.
            if shape.levels != 3 || level != 3 {
                rights &= entry;
                no_execute |= entry & NO_EXECUTE;
            }
            if level == 1 || large {
                break (entry, large);
            }
            table = if shape.entry_size == 4 {
                entry & 0xffff_f000
            } else {
                entry & ADDRESS
            };
            level -= 1;
        };
        let user_page = rights & USER != 0;
        let denied = match (intent, privilege) {
            (Intent::Fetch, Privilege::User) => !user_page || no_execute != 0,
            (Intent::Fetch, _) => no_execute != 0 || user_page && cpu.cr4.any(Cr4::SMEP),
            (_, Privilege::User) => !user_page || intent == Intent::Write && rights & WRITABLE == 0,
            (_, _) => {
                let smap = cpu.cr4.any(Cr4::SMAP)
                    && user_page
                    && (privilege == Privilege::Implicit || !cpu.flags.any(flags::AC));
                smap || intent == Intent::Write && rights & WRITABLE == 0 && cpu.cr0.any(Cr0::WP)
            }
        };
        let key = key_error(cpu, intent, privilege, user_page, entry);
        if denied || key != 0 {
            return Err(tables.page_fault(linear, code | key | error_code::PRESENT));
        }
        let leaf = level;
        for level in (leaf..=shape.levels).rev() {
            if shape.levels == 3 && level == 3 {
                continue;
            }
            let (at, entry) = path[level as usize - 1];
            let wanted = if level == leaf && intent == Intent::Write {
                ACCESSED | DIRTY
            } else {
                ACCESSED
            };
            if entry & wanted != wanted && !tables.set_bits(at, shape.entry_size, entry, wanted)? {
                continue 'walk;
            }
        }
        let page_bits = shape.shift(leaf);
        let offset = (1u64 << page_bits) - 1;
        let frame = match (shape.entry_size, large) {
            (4, true) => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
            (4, false) => entry & 0xffff_f000,
            _ => entry & ADDRESS & !offset,
        };
        let global = entry & GLOBAL != 0 && cpu.cr4.any(Cr4::PGE);
        return Ok(Translation {
            gpa: frame | linear & offset,
            page_bits,
            global,
        });
    }
}

/// [`error_code::PROTECTION_KEY`] if the rights of the page's key in PKRU forbid the access: to data, on a user page (SDM
/// Vol. 3, Protection Keys).
fn key_error(cpu: &Cpu, intent: Intent, privilege: Privilege, user_page: bool, entry: u64) -> u16 {
    if !cpu.cr4.any(Cr4::PKE) || !cpu.efer.any(Efer::LMA) || !user_page || intent == Intent::Fetch {
        return 0;
    }
    let rights = cpu.fpu.pkru >> (2 * (entry >> 59 & 0xf));
    let writes = intent == Intent::Write && (privilege == Privilege::User || cpu.cr0.any(Cr0::WP));
    let forbidden = rights & 1 != 0 || rights & 2 != 0 && writes;
    if forbidden { error_code::PROTECTION_KEY } else { 0 }
}

/// The address is sign-extended from bit 47 (56 with 5-level paging), as 64-bit mode demands.
#[inline]
pub fn is_canonical(cpu: &Cpu, linear: u64) -> bool {
    let unused = if cpu.cr4.any(Cr4::LA57) { 64 - 57 } else { 64 - 48 };
    ((linear << unused) as i64 >> unused) as u64 == linear
}

#[cfg(test)]
mod tests;
