use proptest::prelude::*;

use super::spec::{self, BASE_ADDRESS, BASE_ENABLE, BASE_X2APIC, lvt};
use super::*;

const ZERO: Now = Now { clock: 0, tsc: 0 };

fn fixed(vector: u8) -> Message {
    Message {
        destination: Destination::Everyone,
        delivery: Delivery::Fixed(vector),
        level: false,
        lowest: false,
    }
}

/// An application processor's local APIC, enabled by software.
fn xapic(index: usize) -> Lapic {
    let mut lapic = Lapic::new(index);
    page(&mut lapic, spec::SVR, 0x1ff);
    lapic
}

fn x2apic(index: usize) -> Lapic {
    let mut lapic = xapic(index);
    let base = lapic.base();
    lapic.set_base(base | BASE_X2APIC, 46).unwrap();
    lapic
}

fn page(lapic: &mut Lapic, register: u8, value: u32) -> Effect {
    lapic.write_page(u64::from(register) << 4, 4, u64::from(value), ZERO)
}

fn read(lapic: &mut Lapic, register: u8) -> u32 {
    lapic.read_page(u64::from(register) << 4, 4, ZERO) as u32
}

#[test]
fn after_power_up_the_registers_read_as_the_manual_says() {
    let mut lapic = Lapic::new(3);
    assert_eq!(lapic.base(), 0xfee0_0800);
    assert_eq!(read(&mut lapic, spec::ID), 3 << 24);
    assert_eq!(read(&mut lapic, spec::VERSION) & 0xff_00ff, 0x5_0014);
    assert_eq!(read(&mut lapic, spec::SVR), 0xff);
    assert_eq!(read(&mut lapic, spec::DFR), u32::MAX);
    for register in spec::LVT_TIMER..=spec::LVT_ERROR {
        assert_eq!(read(&mut lapic, register), lvt::MASKED, "register {register:#x}");
    }
    for register in (spec::ISR..spec::ESR).chain([spec::TPR, spec::PPR, spec::LDR, spec::INITIAL_COUNT]) {
        assert_eq!(read(&mut lapic, register), 0, "register {register:#x}");
    }
}

#[test]
fn the_bootstrap_processor_starts_in_virtual_wire_mode() {
    let mut lapic = Lapic::new(0);
    assert_eq!(lapic.base(), 0xfee0_0900);
    assert!(!lapic.external_pending());
    assert!(lapic.set_lint0(true));
    assert!(lapic.external_pending());
    page(&mut lapic, spec::LVT_TIMER + 3, lvt::MASKED | lvt::EXTINT << 8);
    assert!(!lapic.external_pending());
}

#[test]
fn the_highest_vector_is_taken_first_and_blocks_its_class_and_those_below() {
    let mut lapic = xapic(1);
    for vector in [0x31, 0x42, 0x41] {
        assert!(lapic.accept(&fixed(vector)));
    }
    assert_eq!(lapic.take(), Some(0x42));
    assert_eq!((lapic.ppr(), lapic.pending()), (0x40, None));
    assert!(lapic.accept(&fixed(0x50)));
    assert_eq!(lapic.take(), Some(0x50));
    page(&mut lapic, spec::EOI, 0);
    assert_eq!(lapic.take(), None);
    page(&mut lapic, spec::EOI, 0);
    assert_eq!(lapic.take(), Some(0x41));
    page(&mut lapic, spec::EOI, 0);
    assert_eq!(lapic.take(), Some(0x31));
}

#[test]
fn the_task_priority_holds_back_its_class_and_cr8_is_its_upper_half() {
    let mut lapic = xapic(1);
    lapic.accept(&fixed(0x45));
    page(&mut lapic, spec::TPR, 0x47);
    assert_eq!((lapic.cr8(), lapic.ppr(), lapic.pending()), (4, 0x47, None));
    lapic.set_cr8(3);
    assert_eq!((read(&mut lapic, spec::TPR), lapic.pending()), (0x30, Some(0x45)));
    lapic.take();
    assert_eq!(lapic.ppr(), 0x40);
    lapic.set_cr8(4);
    assert_eq!(lapic.ppr(), 0x40);
    page(&mut lapic, spec::TPR, 0x51);
    assert_eq!(lapic.ppr(), 0x51);
}

#[test]
fn only_the_end_of_a_level_interrupt_is_broadcast() {
    let mut lapic = xapic(1);
    lapic.accept(&Message {
        level: true,
        ..fixed(0x41)
    });
    assert_eq!(read(&mut lapic, spec::TMR + 2), 2);
    lapic.take();
    assert_eq!(page(&mut lapic, spec::EOI, 0), Effect::EndOfInterrupt(0x41));
    lapic.accept(&fixed(0x41));
    lapic.take();
    assert_eq!(page(&mut lapic, spec::EOI, 0), Effect::Nothing);
    assert_eq!(page(&mut lapic, spec::EOI, 0), Effect::Nothing, "nothing in service");
}

#[test]
fn the_broadcast_can_be_suppressed() {
    let mut lapic = xapic(1);
    page(&mut lapic, spec::SVR, 0x11ff);
    lapic.accept(&Message {
        level: true,
        ..fixed(0x41)
    });
    lapic.take();
    assert_eq!(page(&mut lapic, spec::EOI, 0), Effect::Nothing);
}

#[test]
fn software_disable_masks_the_table_and_refuses_interrupts_but_not_nmi_init_and_sipi() {
    let mut lapic = xapic(1);
    page(&mut lapic, spec::LVT_TIMER, 0x40);
    page(&mut lapic, spec::SVR, 0xff);
    assert_eq!(read(&mut lapic, spec::LVT_TIMER), lvt::MASKED | 0x40);
    page(&mut lapic, spec::LVT_TIMER, 0x40);
    assert_eq!(read(&mut lapic, spec::LVT_TIMER), lvt::MASKED | 0x40);
    assert!(!lapic.accept(&fixed(0x41)));
    for delivery in [Delivery::Nmi, Delivery::Init, Delivery::Startup(9)] {
        assert!(lapic.accept(&Message { delivery, ..fixed(0) }));
    }
    assert!(lapic.take_nmi() && lapic.take_init());
    assert_eq!(lapic.take_startup(), Some(9));
}

#[test]
fn init_forgets_everything_but_id_mode_and_a_start_up_that_came_after() {
    let mut lapic = x2apic(5);
    lapic.accept(&fixed(0x41));
    lapic.accept(&fixed(0x51));
    lapic.take();
    lapic.accept(&Message {
        delivery: Delivery::Startup(1),
        ..fixed(0)
    });
    lapic.accept(&Message {
        delivery: Delivery::Init,
        ..fixed(0)
    });
    lapic.accept(&Message {
        delivery: Delivery::Startup(2),
        ..fixed(0)
    });
    assert!(lapic.take_init());
    lapic.init();
    assert_eq!(lapic.read_msr(spec::ID, ZERO), Ok(5));
    assert_eq!(lapic.read_msr(spec::SVR, ZERO), Ok(0xff));
    assert_eq!((lapic.ppr(), lapic.pending()), (0, None));
    assert_eq!(lapic.take_startup(), Some(2));
}

#[test]
fn physical_destinations_match_the_id_and_shorthands_their_index() {
    let lapic = xapic(5);
    assert!(lapic.matches(Destination::Physical(5)));
    assert!(!lapic.matches(Destination::Physical(4)));
    assert!(lapic.matches(Destination::Everyone));
    assert!(lapic.matches(Destination::Only(5)) && !lapic.matches(Destination::Only(4)));
    assert!(lapic.matches(Destination::Others(4)) && !lapic.matches(Destination::Others(5)));
}

#[test]
fn logical_destinations_match_by_the_flat_or_the_cluster_model() {
    let mut lapic = xapic(5);
    page(&mut lapic, spec::LDR, 0x2200_0000);
    assert_eq!(read(&mut lapic, spec::LDR), 0x2200_0000);
    for (destination, flat, cluster) in [
        (0x22, true, true),
        (0x02, true, false),
        (0x32, true, false),
        (0x21, true, false),
        (0x11, false, false),
    ] {
        page(&mut lapic, spec::DFR, 0xf000_0000);
        assert_eq!(
            lapic.matches(Destination::Logical(destination)),
            flat,
            "flat {destination:#x}"
        );
        page(&mut lapic, spec::DFR, 0x0000_0000);
        assert_eq!(
            lapic.matches(Destination::Logical(destination)),
            cluster,
            "cluster {destination:#x}"
        );
    }
}

#[test]
fn the_x2apic_logical_id_follows_from_the_id() {
    let lapic = x2apic(0x25);
    assert_eq!(lapic.read_msr(spec::LDR, ZERO), Ok(0x0002_0020));
    assert!(lapic.matches(Destination::Logical(0x0002_0021)));
    assert!(!lapic.matches(Destination::Logical(0x0002_0001)));
    assert!(!lapic.matches(Destination::Logical(0x0001_0020)));
}

#[test]
fn an_xapic_command_is_sent_by_its_low_half() {
    let mut lapic = xapic(1);
    assert_eq!(page(&mut lapic, spec::ICR_HIGH, 0x0300_0000), Effect::Nothing);
    let message = Message {
        destination: Destination::Physical(3),
        ..fixed(0x41)
    };
    assert_eq!(page(&mut lapic, spec::ICR, 0x4041), Effect::Send(message));
    let message = Message {
        destination: Destination::Logical(3),
        lowest: true,
        ..message
    };
    assert_eq!(page(&mut lapic, spec::ICR, 0x4941), Effect::Send(message));
    assert_eq!(read(&mut lapic, spec::ICR_HIGH), 0x0300_0000);
    assert_eq!(read(&mut lapic, spec::ICR), 0x4941);
}

#[test]
fn an_x2apic_command_is_one_register_with_a_destination_of_32_bits() {
    let mut lapic = x2apic(1);
    let message = Message {
        destination: Destination::Physical(0x103),
        ..fixed(0x41)
    };
    assert_eq!(
        lapic.write_msr(spec::ICR, 0x103_0000_4041, ZERO),
        Ok(Effect::Send(message))
    );
    assert_eq!(lapic.read_msr(spec::ICR, ZERO), Ok(0x103_0000_4041));
    let message = Message {
        destination: Destination::Everyone,
        ..fixed(0x41)
    };
    assert_eq!(
        lapic.write_msr(spec::ICR, 0xffff_ffff_0000_0841, ZERO),
        Ok(Effect::Send(message))
    );
    let message = Message {
        destination: Destination::Physical(0xff),
        ..fixed(0x41)
    };
    assert_eq!(
        lapic.write_msr(spec::ICR, 0xff_0000_0041, ZERO),
        Ok(Effect::Send(message))
    );
}

#[test]
fn shorthands_name_self_all_and_others() {
    let mut lapic = xapic(2);
    let sent = |destination, delivery| {
        Effect::Send(Message {
            destination,
            delivery,
            ..fixed(0)
        })
    };
    assert_eq!(
        page(&mut lapic, spec::ICR, 0x4_4041),
        sent(Destination::Only(2), Delivery::Fixed(0x41))
    );
    assert_eq!(
        page(&mut lapic, spec::ICR, 0x8_4041),
        sent(Destination::Everyone, Delivery::Fixed(0x41))
    );
    assert_eq!(
        page(&mut lapic, spec::ICR, 0xc_4041),
        sent(Destination::Others(2), Delivery::Fixed(0x41))
    );
    assert_eq!(
        page(&mut lapic, spec::ICR, 0xc_4400),
        sent(Destination::Others(2), Delivery::Nmi)
    );
    assert_eq!(
        page(&mut lapic, spec::ICR, 0xc_4500),
        sent(Destination::Others(2), Delivery::Init)
    );
    assert_eq!(
        page(&mut lapic, spec::ICR, 0xc_4608),
        sent(Destination::Others(2), Delivery::Startup(8))
    );
    assert_eq!(
        page(&mut lapic, spec::ICR, 0x4_4400),
        Effect::Nothing,
        "no NMI to oneself"
    );
    assert_eq!(
        page(&mut lapic, spec::ICR, 0x8_4500),
        Effect::Nothing,
        "no INIT to oneself"
    );
}

#[test]
fn the_init_level_de_assert_does_nothing() {
    let mut lapic = xapic(2);
    assert!(matches!(page(&mut lapic, spec::ICR, 0xc500), Effect::Send(_)));
    assert_eq!(page(&mut lapic, spec::ICR, 0x8500), Effect::Nothing);
}

#[test]
fn vectors_below_16_are_errors_of_the_sender_and_of_the_receiver() {
    let mut lapic = xapic(1);
    page(&mut lapic, spec::LVT_ERROR, 0x61);
    assert_eq!(page(&mut lapic, spec::ICR, 0x400f), Effect::Nothing);
    assert_eq!(lapic.pending(), Some(0x61));
    assert!(!lapic.accept(&fixed(15)));
    assert_eq!(read(&mut lapic, spec::ESR), 0, "errors show after a write");
    page(&mut lapic, spec::ESR, 0);
    assert_eq!(read(&mut lapic, spec::ESR), 0x60);
    page(&mut lapic, spec::ESR, 0);
    assert_eq!(read(&mut lapic, spec::ESR), 0);
}

#[test]
fn a_register_that_is_not_there_is_an_error_in_the_page() {
    let mut lapic = xapic(1);
    assert_eq!(read(&mut lapic, 0x3a), 0);
    page(&mut lapic, spec::ESR, 0);
    assert_eq!(read(&mut lapic, spec::ESR), 0x80);
    page(&mut lapic, spec::SELF_IPI, 0x41);
    page(&mut lapic, spec::ESR, 0);
    assert_eq!((read(&mut lapic, spec::ESR), lapic.pending()), (0x80, None));
}

#[test]
fn x2apic_faults_where_the_manual_says() {
    let mut lapic = x2apic(1);
    let faulty_reads = [
        spec::EOI,
        spec::APR,
        spec::RRD,
        spec::DFR,
        spec::ICR_HIGH,
        spec::SELF_IPI,
        0x00,
        0x2f,
        0x3a,
    ];
    for register in faulty_reads {
        assert_eq!(
            lapic.read_msr(register, ZERO),
            Err(GeneralProtection),
            "read {register:#x}"
        );
    }
    let read_only = [
        spec::ID,
        spec::VERSION,
        spec::PPR,
        spec::LDR,
        spec::ISR,
        spec::TMR,
        spec::IRR,
        spec::CURRENT_COUNT,
    ];
    for register in read_only.into_iter().chain([spec::DFR, spec::ICR_HIGH, 0x2f, 0x3a]) {
        assert_eq!(
            lapic.write_msr(register, 0, ZERO),
            Err(GeneralProtection),
            "write {register:#x}"
        );
    }
    let reserved = [
        (spec::TPR, 0x100),
        (spec::EOI, 1),
        (spec::ESR, 1),
        (spec::SVR, 0x1_0000),
        (spec::ICR, 0x10_0000),
        (spec::LVT_TIMER, 0x8_0000),
        (spec::INITIAL_COUNT, 1 << 32),
        (spec::DIVIDE, 4),
        (spec::SELF_IPI, 0x100),
    ];
    for (register, value) in reserved {
        assert_eq!(
            lapic.write_msr(register, value, ZERO),
            Err(GeneralProtection),
            "{value:#x} to {register:#x}"
        );
    }
}

#[test]
fn in_x2apic_mode_there_is_no_page_and_in_xapic_mode_there_are_no_msrs() {
    assert_eq!(x2apic(1).page(), None);
    let mut lapic = xapic(1);
    assert_eq!(lapic.page(), Some(BASE_ADDRESS));
    assert_eq!(lapic.read_msr(spec::ID, ZERO), Err(GeneralProtection));
    assert_eq!(lapic.write_msr(spec::EOI, 0, ZERO), Err(GeneralProtection));
}

#[test]
fn the_self_ipi_requests_its_vector() {
    let mut lapic = x2apic(1);
    assert_eq!(lapic.write_msr(spec::SELF_IPI, 0x41, ZERO), Ok(Effect::Nothing));
    assert_eq!(lapic.pending(), Some(0x41));
}

#[test]
fn the_modes_change_only_along_the_state_diagram() {
    let (off, on, x2) = (
        BASE_ADDRESS,
        BASE_ADDRESS | BASE_ENABLE,
        BASE_ADDRESS | BASE_ENABLE | BASE_X2APIC,
    );
    let allowed = [
        (off, off),
        (off, on),
        (on, on),
        (on, x2),
        (on, off),
        (x2, x2),
        (x2, off),
    ];
    for from in [off, on, x2] {
        for to in [off, on, x2, BASE_ADDRESS | BASE_X2APIC] {
            let mut lapic = Lapic::new(1);
            lapic.set_base(from, 46).unwrap();
            let may = allowed.contains(&(from, to));
            assert_eq!(lapic.set_base(to, 46).is_ok(), may, "{from:#x} to {to:#x}");
            assert_eq!(lapic.base(), if may { to } else { from });
        }
    }
}

#[test]
fn reserved_bits_of_the_base_fault_and_the_page_moves_with_it() {
    let mut lapic = xapic(1);
    for reserved in [1 << 9, 1, 1 << 46] {
        assert_eq!(
            lapic.set_base(BASE_ADDRESS | BASE_ENABLE | reserved, 46),
            Err(GeneralProtection)
        );
    }
    lapic.set_base(0xfed0_0000 | BASE_ENABLE, 46).unwrap();
    assert_eq!(lapic.page(), Some(0xfed0_0000));
}

#[test]
fn disabling_the_apic_loses_its_state() {
    let mut lapic = x2apic(1);
    lapic.accept(&fixed(0x41));
    lapic.set_base(BASE_ADDRESS, 46).unwrap();
    assert_eq!(lapic.pending(), None);
    assert!(!lapic.accept(&fixed(0x41)));
    assert!(!lapic.matches(Destination::Everyone));
    lapic.set_base(BASE_ADDRESS | BASE_ENABLE, 46).unwrap();
    assert_eq!(read(&mut lapic, spec::SVR), 0xff);
}

#[test]
fn the_timer_interrupts_unless_it_is_masked() {
    for (entry, pending) in [(0x41, Some(0x41)), (0x1_0041, None)] {
        let mut lapic = xapic(1);
        page(&mut lapic, spec::LVT_TIMER, entry);
        page(&mut lapic, spec::DIVIDE, 0b1011);
        page(&mut lapic, spec::INITIAL_COUNT, 1000);
        assert_eq!(lapic.deadline(ZERO), Some(1000));
        lapic.expire(Now { clock: 999, tsc: 999 });
        assert_eq!(lapic.pending(), None);
        lapic.expire(Now { clock: 1000, tsc: 1000 });
        assert_eq!(lapic.pending(), pending);
    }
}

#[test]
fn lint0_can_be_an_ordinary_interrupt_or_an_nmi_on_its_rising_edge() {
    let mut lapic = xapic(1);
    page(&mut lapic, spec::LVT_TIMER + 3, 0x41);
    assert!(lapic.set_lint0(true) && !lapic.set_lint0(true) && !lapic.set_lint0(false));
    assert_eq!((lapic.take(), lapic.external_pending()), (Some(0x41), false));
    page(&mut lapic, spec::LVT_TIMER + 3, lvt::NMI << 8);
    assert!(lapic.set_lint0(true) && lapic.take_nmi());
}

#[test]
fn a_disabled_apic_lets_the_pic_through() {
    let mut lapic = Lapic::new(1);
    lapic.set_base(BASE_ADDRESS, 46).unwrap();
    assert!(lapic.set_lint0(true) && lapic.external_pending());
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics_or_breaks_the_priorities(
        start in any::<bool>(),
        accesses in prop::collection::vec((0u64..0x1010, any::<u8>(), any::<u64>(), any::<u32>()), 0..200),
    ) {
        let mut lapic = if start { xapic(1) } else { x2apic(1) };
        let mut clock = 0u64;
        for (offset, kind, value, step) in accesses {
            clock += u64::from(step);
            let now = Now { clock, tsc: clock.wrapping_add(value) };
            match kind % 10 {
                0 => { lapic.read_page(offset & 0xfff, kind, now); }
                1 | 2 => { lapic.write_page(offset & 0xff0, 4, value, now); }
                3 => { let _ = lapic.read_msr((offset >> 4) as u8, now); }
                4 | 5 => { let _ = lapic.write_msr((offset >> 4) as u8, value & 0xff_ffff, now); }
                6 => { lapic.accept(&Message { level: value & 1 != 0, ..fixed(kind) }); }
                7 => { lapic.set_tsc_deadline(value); }
                8 => { let _ = lapic.set_base(BASE_ADDRESS | value & 0xd00, 46); }
                _ => {
                    lapic.expire(now);
                    let ppr = lapic.ppr();
                    if let Some(vector) = lapic.take() {
                        prop_assert!(vector >= 16 && vector >> 4 > ppr >> 4);
                        prop_assert_eq!(lapic.ppr(), vector & 0xf0);
                    }
                }
            }
        }
    }
}
