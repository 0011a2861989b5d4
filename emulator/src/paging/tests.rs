//! Each test is a sentence of SDM Vol. 3, Paging.

use std::collections::BTreeMap;

use super::error_code::{FETCH, PRESENT as P, RESERVED, USER as U, WRITE};
use super::*;
use crate::cpu::{Seg, Segment};

/// Page tables in a map; an absent entry is zero.
#[derive(Default)]
struct World {
    entries: BTreeMap<u64, u64>,
    fault_address: Option<u64>,
    /// Entries that another processor changes once, just before bits are set in them.
    changed_meanwhile: Vec<(u64, u64)>,
}

impl Tables for World {
    fn entry(&mut self, gpa: u64, size: u8) -> Result<u64, Stop> {
        let entry = self.entries.get(&gpa).copied().unwrap_or(0);
        Ok(if size == 4 { entry & 0xffff_ffff } else { entry })
    }

    fn set_bits(&mut self, gpa: u64, _: u8, seen: u64, bits: u64) -> Result<bool, Stop> {
        if let Some(i) = self.changed_meanwhile.iter().position(|(at, _)| *at == gpa) {
            let (at, entry) = self.changed_meanwhile.remove(i);
            self.entries.insert(at, entry);
        }
        let entry = self.entries.entry(gpa).or_default();
        if *entry != seen {
            return Ok(false);
        }
        *entry |= bits;
        Ok(true)
    }

    fn page_fault(&mut self, linear: u64, error_code: u16) -> Stop {
        self.fault_address = Some(linear);
        Exception::with_code(crate::event::PF, error_code).into()
    }
}

use crate::event::Exception;

const ROOT: u64 = 0x1000;
const LINEAR: u64 = 0x0000_1234_5678_9abc;
const LEAF: u64 = 0x5000;
const RW: u64 = WRITABLE | PRESENT;

/// A 64-bit supervisor with 4-level paging.
fn cpu() -> Cpu {
    let mut cpu = Cpu::reset();
    cpu.cr0.0 |= Cr0::PE | Cr0::PG | Cr0::WP;
    cpu.cr4.0 |= Cr4::PAE;
    cpu.efer.0 |= Efer::LME | Efer::LMA | Efer::NXE;
    cpu.cr3 = ROOT;
    cpu.segments[Seg::Cs] = Segment::flat(8, crate::cpu::Attributes(0xa09b));
    cpu.refresh();
    cpu
}

/// Tables for `LINEAR` whose last entry is `leaf` and whose others allow everything.
fn mapped(leaf: u64) -> World {
    let mut world = World::default();
    let index = |level: u32| LINEAR >> (12 + 9 * (level - 1)) & 511;
    for (level, table) in [(4, ROOT), (3, 0x2000), (2, 0x3000)] {
        world
            .entries
            .insert(table + index(level) * 8, (table + 0x1000) | RW | USER);
    }
    world.entries.insert(0x4000 + index(1) * 8, leaf);
    world
}

fn leaf_of(world: &World) -> u64 {
    world.entries[&(0x4000 + (LINEAR >> 12 & 511) * 8)]
}

fn fault(code: u16) -> Result<Translation, Stop> {
    Err(Exception::with_code(crate::event::PF, code).into())
}

#[test]
fn four_levels_lead_to_the_page() {
    let translation = translate(
        &cpu(),
        &mut mapped(LEAF | RW),
        LINEAR,
        Intent::Read,
        Privilege::Supervisor,
    );
    assert_eq!(
        translation,
        Ok(Translation {
            gpa: LEAF | 0xabc,
            page_bits: 12,
            global: false
        })
    );
}

#[test]
fn five_levels_lead_to_the_page() {
    let mut cpu = cpu();
    cpu.cr4.0 |= Cr4::LA57;
    cpu.cr3 = 0x9000;
    let mut world = mapped(LEAF | RW);
    world.entries.insert(0x9000 + 8 * 3, ROOT | RW);
    let translation = translate(&cpu, &mut world, 3 << 48 | LINEAR, Intent::Read, Privilege::Supervisor);
    assert_eq!(translation.map(|t| t.gpa), Ok(LEAF | 0xabc));
}

#[test]
fn a_read_sets_accessed_everywhere_and_a_write_sets_dirty_in_the_last_entry() {
    let mut world = mapped(LEAF | RW);
    translate(&cpu(), &mut world, LINEAR, Intent::Read, Privilege::Supervisor).unwrap();
    assert!(
        world
            .entries
            .values()
            .all(|entry| entry & (ACCESSED | DIRTY) == ACCESSED)
    );
    translate(&cpu(), &mut world, LINEAR, Intent::Write, Privilege::Supervisor).unwrap();
    assert_eq!(leaf_of(&world) & DIRTY, DIRTY);
    assert_eq!(world.entries.values().filter(|entry| *entry & DIRTY != 0).count(), 1);
}

#[test]
fn an_access_that_faults_sets_nothing() {
    let mut world = mapped(LEAF | PRESENT);
    let before = world.entries.clone();
    assert_eq!(
        translate(&cpu(), &mut world, LINEAR, Intent::Write, Privilege::Supervisor),
        fault(P | WRITE)
    );
    assert_eq!((world.entries, world.fault_address), (before, Some(LINEAR)));
}

#[test]
fn an_entry_that_changes_under_the_walker_makes_it_begin_again() {
    let mut world = mapped(LEAF | RW);
    let leaf = 0x4000 + (LINEAR >> 12 & 511) * 8;
    world.changed_meanwhile.push((leaf, 0x7000 | RW));
    let translation = translate(&cpu(), &mut world, LINEAR, Intent::Read, Privilege::Supervisor);
    assert_eq!(translation.map(|t| t.gpa), Ok(0x7abc));
}

#[test]
fn large_pages_of_2_mib_and_1_gib_take_their_offsets_from_the_address() {
    for (level, table, bits) in [(2, 0x3000u64, 21), (3, 0x2000, 30)] {
        let mut world = mapped(0);
        let index = LINEAR >> (12 + 9 * (level - 1)) & 511;
        world.entries.insert(table + index * 8, 0x40_0000_0000 | LARGE | RW);
        let translation = translate(&cpu(), &mut world, LINEAR, Intent::Read, Privilege::Supervisor).unwrap();
        assert_eq!(translation.gpa, 0x40_0000_0000 | LINEAR & ((1 << bits) - 1));
        assert_eq!(translation.page_bits, bits);
    }
}

/// Rights: what is tried on which leaf, with CR0, CR4 and RFLAGS changed, and the error code if it is denied.
type Row = (&'static str, u64, Intent, Privilege, fn(&mut Cpu), Option<u16>);

#[test]
fn rights() {
    use Intent::{Fetch, Read, Write};
    use Privilege::{Implicit, Supervisor, User};
    let plain: fn(&mut Cpu) = |_| ();
    let smap: fn(&mut Cpu) = |cpu| cpu.cr4.0 |= Cr4::SMAP;
    let smap_ac: fn(&mut Cpu) = |cpu| {
        cpu.cr4.0 |= Cr4::SMAP;
        cpu.flags.assign(flags::AC, true);
    };
    let smep: fn(&mut Cpu) = |cpu| cpu.cr4.0 |= Cr4::SMEP;
    let no_wp: fn(&mut Cpu) = |cpu| cpu.cr0.0 &= !Cr0::WP;
    let no_nx: fn(&mut Cpu) = |cpu| cpu.efer.0 &= !Efer::NXE;
    let rows: &[Row] = &[
        ("absent, supervisor read", 0, Read, Supervisor, plain, Some(0)),
        ("absent, user write", 0, Write, User, plain, Some(U | WRITE)),
        ("absent, fetch", 0, Fetch, User, plain, Some(U | FETCH)),
        ("absent, fetch without NX and SMEP", 0, Fetch, User, no_nx, Some(U)),
        (
            "user reads a supervisor page",
            LEAF | RW,
            Read,
            User,
            plain,
            Some(P | U),
        ),
        ("user reads a user page", LEAF | PRESENT | USER, Read, User, plain, None),
        (
            "user writes a read-only page",
            LEAF | PRESENT | USER,
            Write,
            User,
            plain,
            Some(P | U | WRITE),
        ),
        (
            "user writes a writable page",
            LEAF | RW | USER,
            Write,
            User,
            plain,
            None,
        ),
        (
            "supervisor writes a read-only page",
            LEAF | PRESENT,
            Write,
            Supervisor,
            plain,
            Some(P | WRITE),
        ),
        (
            "supervisor writes a read-only page without WP",
            LEAF | PRESENT,
            Write,
            Supervisor,
            no_wp,
            None,
        ),
        (
            "user writes a read-only page without WP",
            LEAF | PRESENT | USER,
            Write,
            User,
            no_wp,
            Some(P | U | WRITE),
        ),
        (
            "fetch from a no-execute page",
            LEAF | RW | NO_EXECUTE,
            Fetch,
            Supervisor,
            plain,
            Some(P | FETCH),
        ),
        (
            "read of a no-execute page",
            LEAF | RW | NO_EXECUTE,
            Read,
            Supervisor,
            plain,
            None,
        ),
        (
            "NX without EFER.NXE is reserved",
            LEAF | RW | NO_EXECUTE,
            Read,
            Supervisor,
            no_nx,
            Some(P | RESERVED),
        ),
        (
            "supervisor fetches from a user page",
            LEAF | RW | USER,
            Fetch,
            Supervisor,
            plain,
            None,
        ),
        (
            "the same under SMEP",
            LEAF | RW | USER,
            Fetch,
            Supervisor,
            smep,
            Some(P | FETCH),
        ),
        (
            "supervisor reads a user page under SMAP",
            LEAF | RW | USER,
            Read,
            Supervisor,
            smap,
            Some(P),
        ),
        (
            "the same with AC set",
            LEAF | RW | USER,
            Read,
            Supervisor,
            smap_ac,
            None,
        ),
        (
            "AC does not help implicit accesses",
            LEAF | RW | USER,
            Read,
            Implicit,
            smap_ac,
            Some(P),
        ),
        (
            "user reads a user page under SMAP",
            LEAF | RW | USER,
            Read,
            User,
            smap,
            None,
        ),
        (
            "an address beyond the physical width",
            1 << 50 | RW,
            Read,
            Supervisor,
            plain,
            Some(P | RESERVED),
        ),
    ];
    for (name, leaf, intent, privilege, change, denied) in rows {
        let mut cpu = cpu();
        change(&mut cpu);
        let outcome = translate(&cpu, &mut mapped(*leaf), LINEAR, *intent, *privilege);
        match denied {
            Some(code) => assert_eq!(outcome, fault(*code), "{name}"),
            None => assert!(outcome.is_ok(), "{name}: {outcome:?}"),
        }
    }
}

#[test]
fn two_levels_with_4_mib_pages_reach_beyond_4_gib() {
    let mut cpu = Cpu::reset();
    cpu.cr0.0 |= Cr0::PE | Cr0::PG;
    cpu.cr4.0 |= Cr4::PSE;
    cpu.cr3 = ROOT;
    let mut world = World::default();
    world.entries.insert(ROOT + 4 * 3, 0x0080_0000 | 5 << 13 | LARGE | RW);
    let translation = translate(&cpu, &mut world, 0x00c1_2345, Intent::Read, Privilege::Supervisor);
    assert_eq!(
        translation.map(|t| (t.gpa, t.page_bits)),
        Ok((5 << 32 | 0x0081_2345, 22))
    );
}

#[test]
fn three_levels_begin_with_four_directory_pointers_that_hold_no_rights() {
    let mut cpu = Cpu::reset();
    cpu.cr0.0 |= Cr0::PE | Cr0::PG | Cr0::WP;
    cpu.cr4.0 |= Cr4::PAE;
    cpu.cr3 = 0x1020;
    let mut world = World::default();
    world.entries.insert(0x1020 + 8 * 3, 0x2000 | PRESENT);
    world.entries.insert(0x2000, 0x3000 | RW | USER);
    world.entries.insert(0x3000 + 8, LEAF | RW | USER);
    let translation = translate(&cpu, &mut world, 0xc000_1010, Intent::Write, Privilege::User);
    assert_eq!(translation.map(|t| t.gpa), Ok(LEAF | 0x10));
    assert_eq!(world.entries[&(0x1020 + 24)], 0x2000 | PRESENT);
}

#[test]
fn without_paging_the_address_is_physical() {
    let translation = translate(
        &Cpu::reset(),
        &mut World::default(),
        0xffff_0000,
        Intent::Write,
        Privilege::User,
    );
    assert_eq!(translation.map(|t| t.gpa), Ok(0xffff_0000));
}

#[test]
fn protection_keys_forbid_data_of_user_pages_to_everybody() {
    let mut cpu = cpu();
    cpu.cr4.0 |= Cr4::PKE;
    let leaf = LEAF | RW | USER | 5 << 59;
    let outcome = |cpu: &Cpu, leaf, intent, privilege| translate(cpu, &mut mapped(leaf), LINEAR, intent, privilege);
    const PK: u16 = error_code::PROTECTION_KEY;
    for (rights, intent, privilege, code) in [
        (0b01, Intent::Read, Privilege::User, Some(P | U | PK)),
        (0b01, Intent::Write, Privilege::Supervisor, Some(P | WRITE | PK)),
        (0b01, Intent::Read, Privilege::Implicit, Some(P | PK)),
        (0b01, Intent::Fetch, Privilege::User, None),
        (0b10, Intent::Read, Privilege::User, None),
        (0b10, Intent::Write, Privilege::User, Some(P | WRITE | U | PK)),
        (0b10, Intent::Write, Privilege::Supervisor, Some(P | WRITE | PK)),
    ] {
        cpu.fpu.pkru = rights << 10;
        let found = outcome(&cpu, leaf, intent, privilege);
        match code {
            Some(code) => assert_eq!(found, fault(code), "{rights:#b} {intent:?} {privilege:?}"),
            None => assert!(found.is_ok(), "{rights:#b} {intent:?} {privilege:?}"),
        }
    }
    cpu.fpu.pkru = u32::MAX;
    let supervisors = leaf & !USER;
    assert!(outcome(&cpu, supervisors, Intent::Write, Privilege::Supervisor).is_ok());
    cpu.fpu.pkru = 0b10 << 10;
    cpu.cr0.0 &= !Cr0::WP;
    assert!(outcome(&cpu, leaf, Intent::Write, Privilege::Supervisor).is_ok());
    cpu.cr4.0 &= !Cr4::PKE;
    cpu.fpu.pkru = u32::MAX;
    assert!(outcome(&cpu, leaf, Intent::Write, Privilege::User).is_ok());
}
