use std::sync::Arc;

use vm_memory::GuestAddress;

use super::super::chipset::Chipset;
use super::super::lapic::GeneralProtection;
use super::super::msr::{Msrs, Surroundings};
use super::*;
use crate::GuestMemory;

const IA32_APIC_BASE: u32 = 0x1b;

/// Two virtual processors with 16 KiB of memory, their clock standing still.
struct World {
    ram: Arc<Ram>,
    chipset: Arc<Chipset>,
    processors: [Msrs; 2],
}

impl World {
    fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let ram = Arc::new(Ram::new(memory).unwrap());
        let chipset = Arc::new(Chipset::new(2));
        chipset.set_paused(true);
        let partition = Arc::new(Partition::default());
        let processors = [0, 1].map(|index| {
            let surroundings = Arc::new(Surroundings::new(Arc::clone(&chipset)));
            Msrs::new(index, surroundings, Arc::clone(&ram), Some(Arc::clone(&partition)))
        });
        Self {
            ram,
            chipset,
            processors,
        }
    }

    fn read(&mut self, processor: usize, msr: u32) -> Result<u64, GeneralProtection> {
        self.processors[processor].read(msr)
    }

    fn write(&mut self, processor: usize, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        self.processors[processor].write(msr, value)
    }
}

#[test]
fn identity_and_hypercall_page_are_the_partition_s_and_the_index_the_processor_s() {
    let mut world = World::new();
    world.write(0, GUEST_OS_ID, 0x8100_0000_0000_0001).unwrap();
    world.write(0, HYPERCALL, 0x3001).unwrap();
    for processor in [0, 1] {
        assert_eq!(world.read(processor, GUEST_OS_ID), Ok(0x8100_0000_0000_0001));
        assert_eq!(world.read(processor, HYPERCALL), Ok(0x3001));
        assert_eq!(world.read(processor, VP_INDEX), Ok(processor as u64));
    }
    assert_eq!(world.write(0, VP_INDEX, 7), Err(GeneralProtection));
}

#[test]
fn the_hypercall_page_calls_and_returns() {
    let mut world = World::new();
    world.write(0, GUEST_OS_ID, 1).unwrap();
    world.write(0, HYPERCALL, 0x3001).unwrap();
    //                                              vmmcall     ret
    assert_eq!(
        world.ram.read(0x3000, 4),
        Some(u64::from(u32::from_le_bytes([0x0f, 0x01, 0xd9, 0xc3])))
    );
}

#[test]
fn there_is_no_hypercall_page_before_the_guest_has_said_who_it_is_nor_after_it_took_that_back() {
    let mut world = World::new();
    world.write(0, HYPERCALL, 0x3001).unwrap();
    assert_eq!(
        (world.read(0, HYPERCALL), world.ram.read(0x3000, 4)),
        (Ok(0x3000), Some(0))
    );
    world.write(0, GUEST_OS_ID, 1).unwrap();
    world.write(0, HYPERCALL, 0x3001).unwrap();
    world.write(1, GUEST_OS_ID, 0).unwrap();
    assert_eq!(world.read(0, HYPERCALL), Ok(0x3000));
}

#[test]
fn a_hypercall_page_where_there_is_no_memory_faults_and_a_locked_one_stays() {
    let mut world = World::new();
    world.write(0, GUEST_OS_ID, 1).unwrap();
    for page in [0x4000, 0xfee0_0000, 1 << 46, PAGE] {
        assert_eq!(world.write(0, HYPERCALL, page | 1), Err(GeneralProtection), "{page:#x}");
        assert_eq!(world.read(0, HYPERCALL), Ok(0));
    }
    world.write(0, HYPERCALL, 0x3003).unwrap();
    world.write(0, HYPERCALL, 0x1001).unwrap();
    assert_eq!(
        (world.read(0, HYPERCALL), world.ram.read(0x1000, 4)),
        (Ok(0x3003), Some(0))
    );
}

#[test]
fn the_reference_time_is_the_same_from_the_page_and_from_the_counter() {
    let mut world = World::new();
    world.write(0, REFERENCE_TSC, 0x2001).unwrap();
    assert_eq!(world.read(1, REFERENCE_TSC), Ok(0x2001));
    for offset in [0, 1, 99, 100, 12_345_678_900, u64::MAX >> 1] {
        let clock = world.chipset.clock.now().wrapping_add(offset);
        let word = |offset: u64| u128::from(world.ram.read(0x2000 + offset, 8).unwrap());
        assert_eq!(word(0), 1, "the sequence number: valid");
        let from_page = ((u128::from(clock) * word(8)) >> 64) as u64 + word(16) as u64;
        assert_eq!(from_page, reference_time(clock));
        assert!(from_page.abs_diff(clock / 100) <= 1, "units of 100 ns");
    }
    let clock = world.chipset.clock.now();
    assert_eq!(world.read(0, TIME_REF_COUNT), Ok(reference_time(clock)));
    assert_eq!(world.write(0, TIME_REF_COUNT, 0), Err(GeneralProtection));
}

#[test]
fn a_reference_page_that_is_not_enabled_or_nowhere_is_not_written() {
    let mut world = World::new();
    for value in [0x2000, 0x4001, 1 << 46 | 1, u64::MAX] {
        world.write(0, REFERENCE_TSC, value).unwrap();
        assert_eq!(world.read(0, REFERENCE_TSC), Ok(value));
    }
    assert_eq!(world.ram.read(0x2000, 8), Some(0));
}

#[test]
fn both_frequencies_are_one_gigahertz() {
    let mut world = World::new();
    for msr in [TSC_FREQUENCY, APIC_FREQUENCY] {
        assert_eq!(world.read(0, msr), Ok(1_000_000_000));
        assert_eq!(world.write(0, msr, 1), Err(GeneralProtection));
    }
}

#[test]
fn the_assist_page_promises_nothing_and_must_be_memory() {
    let mut world = World::new();
    world.ram.write(0x2000, 8, u64::MAX);
    world.write(1, VP_ASSIST_PAGE, 0x2001).unwrap();
    assert_eq!(
        world.ram.read(0x2000, 8),
        Some(0xffff_ffff_0000_0000),
        "only the first word is ours"
    );
    assert_eq!(
        (world.read(1, VP_ASSIST_PAGE), world.read(0, VP_ASSIST_PAGE)),
        (Ok(0x2001), Ok(0))
    );
    assert_eq!(world.write(1, VP_ASSIST_PAGE, 0x4001), Err(GeneralProtection));
    assert_eq!(world.read(1, VP_ASSIST_PAGE), Ok(0x2001));
    world.write(1, VP_ASSIST_PAGE, 0x4000).unwrap();
}

#[test]
fn the_interrupt_controller_s_registers_reach_the_local_apic_in_either_mode() {
    let mut world = World::new();
    for mode in [0xfee0_0900, 0xfee0_0d00] {
        world.write(0, IA32_APIC_BASE, mode).unwrap();
        world.write(0, TPR, 0x20).unwrap();
        assert_eq!(
            (world.read(0, TPR), world.chipset.seats()[0].lapic().cr8()),
            (Ok(0x20), 2)
        );
        // To oneself, and back.
        world.write(0, ICR, 1 << 18 | 0x41).unwrap();
        assert_eq!(world.read(0, ICR).unwrap() & 0xff, 0x41);
        assert_eq!(world.chipset.seats()[0].lapic().take(), Some(0x41));
        world.write(0, EOI, 0).unwrap();
        assert_eq!(world.chipset.seats()[0].lapic().ppr(), 0x20, "nothing is in service");
        assert_eq!(world.read(0, EOI), Err(GeneralProtection));
    }
    // The other processor, in the upper half of an xAPIC's register; it has to be listening.
    world.write(1, IA32_APIC_BASE, 0xfee0_0800).unwrap();
    world.chipset.seats()[1]
        .lapic()
        .write_page(0xf0, 4, 0x1ff, Now { clock: 0, tsc: 0 });
    let mut world = World {
        processors: {
            let [zero, one] = world.processors;
            [one, zero]
        },
        ..world
    };
    world.write(0, ICR, 1 << 56 | 0x42).unwrap();
    assert_eq!(world.chipset.seats()[1].lapic().take(), Some(0x42));
}

#[test]
fn what_is_not_announced_faults_and_so_does_kvm_s() {
    let mut world = World::new();
    let absent = [
        0x4000_0003, // RESET
        0x4000_0010, // VP_RUNTIME
        0x4000_0080, // SCONTROL
        0x4000_00b0, // STIMER0_CONFIG
        0x4000_00f0, // GUEST_IDLE
        0x4000_0100, // CRASH_P0
        0x4000_0106, // REENLIGHTENMENT_CONTROL
        0x4000_0118, // TSC_INVARIANT_CONTROL
        0x4000_ffff,
        0x4b56_4d00,
        0x4b56_4d01,
        0x4b56_4d03,
    ];
    for msr in absent {
        assert_eq!(world.read(0, msr), Err(GeneralProtection), "{msr:#x}");
        assert_eq!(world.write(0, msr, 0), Err(GeneralProtection), "{msr:#x}");
    }
}
