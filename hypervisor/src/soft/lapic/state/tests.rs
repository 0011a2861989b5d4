use proptest::prelude::*;

use super::super::{Destination, Effect, GeneralProtection, Message, Now};
use super::*;
use crate::soft::message::Delivery;
use crate::testing::{spoilt, through_json};

/// A kind, a place, a value, and nanoseconds that pass before.
type Step = (u8, u8, u64, u32);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any::<Step>(), 0..80)
}

/// What an act brought about, as far as anybody can tell.
#[derive(Debug, PartialEq)]
struct Seen {
    read: u64,
    effect: Result<Effect, GeneralProtection>,
    taken: Option<u8>,
    deadline: Option<u64>,
    pending: (Option<u8>, bool, bool, bool),
}

/// Lets time pass and does something to the APIC.
fn act(lapic: &mut Lapic, clock: &mut u64, (kind, place, value, passed): Step) -> Seen {
    *clock += u64::from(passed >> (kind >> 4));
    let now = Now {
        clock: *clock,
        tsc: clock.wrapping_add(1 << 40),
    };
    lapic.expire(now);
    let (mut read, mut effect, mut taken) = (0, Ok(Effect::Nothing), None);
    let register = place & 0x3f;
    match kind & 0xf {
        0..4 => effect = Ok(lapic.write_page(u64::from(register) << 4, 4, value, now)),
        4 => read = lapic.read_page(u64::from(register) << 4, 4, now),
        5 | 6 => effect = lapic.write_msr(register, value & 0xffff_ffff, now),
        7 => read = lapic.read_msr(register, now).unwrap_or(0),
        8 => {
            effect = lapic
                .set_base(BASE_BSP | u64::from(value as u16 & 0xc00) | 0xfee0_0000, 46)
                .map(|()| Effect::Nothing);
        }
        9 => lapic.set_tsc_deadline(now.tsc.wrapping_add(value & 0xffff)),
        10 => lapic.set_cr8(value as u8 & 0xf),
        11 | 12 => {
            let delivery = match value & 0xf00 {
                0 => Delivery::Nmi,
                0x100 => Delivery::Init,
                0x200 => Delivery::Startup(value as u8),
                _ => Delivery::Fixed(value as u8),
            };
            lapic.accept(&Message {
                destination: Destination::Everyone,
                delivery,
                level: value & 0x1000 != 0,
                lowest: false,
            });
        }
        13 => taken = lapic.take(),
        14 => drop(lapic.set_lint0(value & 1 != 0)),
        _ => {
            taken = lapic.take_startup();
            lapic.take_nmi();
            if lapic.take_init() {
                lapic.init();
            }
        }
    }
    Seen {
        read,
        effect,
        taken,
        deadline: lapic.deadline(now),
        pending: (
            lapic.pending(),
            lapic.nmi_pending(),
            lapic.init_pending(),
            lapic.external_pending(),
        ),
    }
}

proptest! {
    #[test]
    fn a_restored_apic_goes_on_as_the_saved_one(index in 0_usize..3, before in steps(), after in steps()) {
        let (mut own, mut clock) = (Lapic::new(index), 0);
        for step in before { act(&mut own, &mut clock, step); }
        let saved = own.state();
        let mut other = Lapic::new(index);
        other.place_lint0(own.lint0);
        other.restore(&through_json(&saved)).unwrap();
        prop_assert_eq!(other.state(), saved);
        let mut same_clock = clock;
        for step in after {
            prop_assert_eq!(act(&mut own, &mut clock, step), act(&mut other, &mut same_clock, step));
        }
        prop_assert_eq!(own.state(), other.state());
    }

    #[test]
    fn a_spoilt_state_is_refused_or_does_no_harm(
        before in steps(), after in steps(), start in 0..crate::soft::clock::LATEST,
        changes in prop::collection::vec(any::<(usize, u64)>(), 1..6),
    ) {
        let (mut lapic, mut clock) = (Lapic::new(0), 0);
        for step in before { act(&mut lapic, &mut clock, step); }
        if let Some(state) = spoilt(&lapic.state(), &changes) {
            let mut clock = start;
            let (unchanged, refused) = (lapic.state(), lapic.restore(&state).is_err());
            if refused {
                prop_assert_eq!(lapic.state(), unchanged);
            }
            for step in after { act(&mut lapic, &mut clock, step); }
        }
    }
}

#[test]
fn a_timer_that_has_3_milliseconds_left_has_3_milliseconds_left() {
    let at = |clock| Now { clock, tsc: clock };
    let page = |lapic: &mut Lapic, register: u8, value: u32, now| {
        lapic.write_page(u64::from(register) << 4, 4, u64::from(value), now);
    };
    let mut lapic = Lapic::new(0);
    page(&mut lapic, spec::DIVIDE, 0b1011, at(0));
    page(&mut lapic, spec::LVT_TIMER, 0x41, at(0));
    page(&mut lapic, spec::INITIAL_COUNT, 10_000_000, at(0));
    let mut other = Lapic::new(0);
    other.restore(&through_json(&lapic.state())).unwrap();
    assert_eq!(other.read_page(0x390, 4, at(7_000_000)), 3_000_000);
    other.expire(at(9_999_999));
    assert_eq!(other.pending(), None);
    other.expire(at(10_000_000));
    assert_eq!(other.pending(), Some(0x41));
}

#[test]
fn the_pin_of_the_pic_is_not_part_of_it_and_does_not_rise() {
    let mut lapic = Lapic::new(0);
    lapic.write_page(u64::from(spec::LVT_TIMER + 3) << 4, 4, 0x41, Now { clock: 0, tsc: 0 });
    let saved = lapic.state();
    let mut other = Lapic::new(0);
    other.restore(&saved).unwrap();
    other.place_lint0(true);
    assert_eq!(other.pending(), None);
    other.restore(&saved).unwrap();
    assert!(!other.set_lint0(true), "it is up already");
}

#[test]
fn vectors_and_modes_that_there_are_not_are_refused() {
    let sound = Lapic::new(0).state();
    let refused = |change: fn(&mut LocalApicState)| {
        let mut state = sound.clone();
        change(&mut state);
        match Lapic::new(0).restore(&state) {
            Err(StateError::Register { register, .. }) => Some(register),
            Err(other) => panic!("{other}"),
            Ok(()) => None,
        }
    };
    assert_eq!(refused(|_| ()), None);
    assert_eq!(refused(|state| state.irr[0] = 1 << 15), Some("IRR"));
    assert_eq!(refused(|state| state.isr[0] = 1), Some("ISR"));
    assert_eq!(refused(|state| state.apic_base = 0xfee0_0400), Some("IA32_APIC_BASE"));
    assert_eq!(refused(|state| state.apic_base |= 1 << 60), Some("IA32_APIC_BASE"));
    assert_eq!(refused(|state| state.svr |= 1 << 31), Some("SVR"));
    assert_eq!(refused(|state| state.icr = 1 << 12), Some("ICR"));
    assert_eq!(refused(|state| state.lvt.error = 1 << 12), Some("LVT error"));
    assert_eq!(
        refused(|state| (state.svr, state.lvt.timer) = (0xff, 0x41)),
        Some("LVT timer"),
        "while disabled by software every entry is masked"
    );
    assert_eq!(
        refused(|state| state.timer.expires_at = Some(5)),
        Some("the end of the APIC timer's count")
    );
    assert_eq!(refused(|state| state.timer.tsc_deadline = 5), Some("IA32_TSC_DEADLINE"));
}
