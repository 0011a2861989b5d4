//! The local APIC: the crate's own state, and KVM's register page, both ways.
//!
//! # What is lost
//! - KVM keeps no errors: the error status register reads 0.
//! - A one-shot count that has come to its end is not told from one that has just begun; so its initial count is 0 in KVM,
//!   and it does not end again.

use kvm_bindings::kvm_lapic_state;

use crate::soft::lapic::spec;
use crate::state::{ApicTimerState, LocalApicState, LocalVectorTable};

/// LVT timer, bits 18:17: TSC-deadline mode.
const TSC_DEADLINE: u32 = 0b10;

/// What is not in the register page.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
    /// An NMI is pending.
    pub nmi: bool,
    /// The machine's clock at the moment that the page shows.
    pub clock: u64,
}

/// The local APIC that KVM shows as `page`.
pub fn read(page: &kvm_lapic_state, beside: Beside) -> LocalApicState {
    let words = |first: u8| std::array::from_fn(|index| get(page, first + index as u8));
    let lvt = |entry: u8| get(page, spec::LVT_TIMER + entry);
    let (timer, divide) = (lvt(0), get(page, spec::DIVIDE) & 0b1011);
    let (initial, current) = (get(page, spec::INITIAL_COUNT), get(page, spec::CURRENT_COUNT));
    let counts = mode(timer) != TSC_DEADLINE && initial != 0 && current != 0;
    let svr = get(page, spec::SVR) & spec::SVR_WRITABLE;
    let masked = |entry: u8| {
        // KVM leaves LINT0 open after INIT, though the APIC is disabled.
        let disabled = if svr & spec::SVR_ENABLE == 0 {
            spec::lvt::MASKED
        } else {
            0
        };
        lvt(entry) & spec::lvt::WRITABLE[usize::from(entry)] | disabled
    };
    LocalApicState {
        apic_base: beside.apic_base,
        tpr: get(page, spec::TPR) as u8,
        ldr: match beside.apic_base & spec::BASE_X2APIC {
            0 => (get(page, spec::LDR) >> 24) as u8,
            _ => 0,
        },
        dfr: get(page, spec::DFR) | 0x0fff_ffff,
        svr,
        isr: words(spec::ISR),
        tmr: words(spec::TMR),
        irr: words(spec::IRR),
        esr: 0,
        errors: 0,
        icr: (u64::from(get(page, spec::ICR_HIGH)) << 32 | u64::from(get(page, spec::ICR))) & spec::ICR_WRITABLE,
        lvt: LocalVectorTable {
            timer: masked(0),
            thermal: masked(1),
            performance: masked(2),
            lint0: masked(3),
            lint1: masked(4),
            error: masked(5),
        },
        timer: ApicTimerState {
            divide_configuration: divide,
            initial_count: initial,
            expires_at: counts.then(|| beside.clock + u64::from(current) * divisor(divide)),
            tsc_deadline: match mode(timer) {
                TSC_DEADLINE => beside.tsc_deadline,
                _ => 0,
            },
        },
        nmi: beside.nmi,
        init: false,
        sipi: None,
    }
}

/// Puts a local APIC into the register page, the machine's clock being at `clock`; its id and version stay.
pub fn write(from: &LocalApicState, clock: u64, page: &mut kvm_lapic_state) {
    let LocalVectorTable {
        timer,
        thermal,
        performance,
        lint0,
        lint1,
        error,
    } = from.lvt;
    put(page, spec::TPR, from.tpr.into());
    if from.apic_base & spec::BASE_X2APIC == 0 {
        put(page, spec::LDR, u32::from(from.ldr) << 24);
        put(page, spec::DFR, from.dfr);
    }
    put(page, spec::SVR, from.svr);
    for (first, words) in [(spec::ISR, from.isr), (spec::TMR, from.tmr), (spec::IRR, from.irr)] {
        for (register, word) in (first..).zip(words) {
            put(page, register, word);
        }
    }
    put(page, spec::ESR, 0);
    put(page, spec::ICR, from.icr as u32);
    put(page, spec::ICR_HIGH, (from.icr >> 32) as u32);
    let entries = [timer, thermal, performance, lint0, lint1, error];
    for (register, entry) in (spec::LVT_TIMER..).zip(entries) {
        put(page, register, entry);
    }
    let divide = from.timer.divide_configuration;
    put(page, spec::DIVIDE, divide);
    let left = from.timer.expires_at.map(|expiry| {
        let counts = expiry.saturating_sub(clock).div_ceil(divisor(divide));
        u32::try_from(counts).unwrap_or(u32::MAX).max(1)
    });
    put(page, spec::INITIAL_COUNT, left.map_or(0, |_| from.timer.initial_count));
    put(page, spec::CURRENT_COUNT, left.unwrap_or(0));
}

/// LVT timer, bits 18:17.
fn mode(timer: u32) -> u32 {
    timer >> 17 & 3
}

fn divisor(divide: u32) -> u64 {
    match divide & 0b11 | divide >> 1 & 0b100 {
        0b111 => 1,
        shift => 2 << shift,
    }
}

fn get(page: &kvm_lapic_state, register: u8) -> u32 {
    let at = usize::from(register) * 16;
    let byte = |offset: usize| page.regs.get(at + offset).map_or(0, |byte| *byte as u8);
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

fn put(page: &mut kvm_lapic_state, register: u8, value: u32) {
    let at = usize::from(register) * 16;
    for (offset, byte) in value.to_le_bytes().into_iter().enumerate() {
        if let Some(place) = page.regs.get_mut(at + offset) {
            *place = byte as _;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> LocalApicState {
        LocalApicState {
            apic_base: 0xfee0_0900,
            tpr: 0x21,
            ldr: 4,
            dfr: 0x0fff_ffff,
            svr: 0x1ff,
            isr: [0, 0x10, 0, 0, 0, 0, 0, 1 << 31],
            tmr: [0, 0, 3, 0, 0, 0, 0, 0],
            irr: [0x1_0000, 0, 0, 0, 0x55, 0, 0, 0],
            esr: 0,
            errors: 0,
            icr: 0x0100_0000_0000_4041,
            lvt: LocalVectorTable {
                timer: 0x2_0041,
                thermal: 0x1_0000,
                performance: 0x1_0000,
                lint0: 0x700,
                lint1: 0x400,
                error: 0xfe,
            },
            timer: ApicTimerState {
                divide_configuration: 0b0011,
                initial_count: 1000,
                expires_at: Some(5000 + 16 * 600),
                tsc_deadline: 0,
            },
            nmi: true,
            init: false,
            sipi: None,
        }
    }

    fn back(own: &LocalApicState, clock: u64) -> LocalApicState {
        let mut page = kvm_lapic_state::default();
        write(own, clock, &mut page);
        let beside = Beside {
            apic_base: own.apic_base,
            tsc_deadline: own.timer.tsc_deadline,
            nmi: own.nmi,
            clock,
        };
        read(&page, beside)
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(back(&busy(), 5000), busy());
        let mut deadline = busy();
        deadline.lvt.timer = 0x4_0041;
        deadline.timer = ApicTimerState {
            initial_count: 0,
            expires_at: None,
            tsc_deadline: 77,
            ..deadline.timer
        };
        assert_eq!(back(&deadline, 5000), deadline);
    }

    #[test]
    fn a_count_that_is_overdue_ends_soon_and_one_that_is_over_does_not_begin() {
        let left = |own: &LocalApicState, clock| {
            let mut page = kvm_lapic_state::default();
            write(own, clock, &mut page);
            (get(&page, spec::INITIAL_COUNT), get(&page, spec::CURRENT_COUNT))
        };
        let mut own = busy();
        assert_eq!(left(&own, 1 << 40), (1000, 1));
        own.timer.expires_at = None;
        assert_eq!(left(&own, 5000), (0, 0));
    }
}
