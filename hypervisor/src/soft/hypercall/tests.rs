//! What the calls in a caller's registers and memory are.

use std::sync::Arc;

use proptest::prelude::*;
use reprise_emulator::cpu::segment::Attributes;
use reprise_emulator::cpu::{Cr0, Cr4, Efer, Seg, Segment, gpr};
use reprise_emulator::{Aside, Cpu, CpuidTable, Emulator, Model, Ram};
use vm_memory::GuestAddress;

use super::super::chipset::{Chipset, Seat};
use super::super::lapic::Now;
use super::super::msr::Surroundings;
use super::hyperv::{Call, Deed, Invalid, decode, may_call};
use super::*;
use crate::GuestMemory;

const R8: u8 = 8;
const MEMORY: u64 = 0x1_0000;

/// A caller, the memory it has its arguments in, and the machine around it.
struct Caller {
    emulator: Emulator,
    ram: Arc<Ram>,
    chipset: Arc<Chipset>,
}

impl Caller {
    /// In 64-bit mode, at the highest privilege.
    fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let ram = Arc::new(Ram::new(memory).unwrap());
        let chipset = Arc::new(Chipset::new(3));
        let host = Arc::new(Surroundings::new(Arc::clone(&chipset)));
        let (model, cpuid) = (Arc::new(Model::new()), Arc::new(CpuidTable::default()));
        let emulator = Emulator::new(Cpu::reset(), Arc::clone(&ram), host, model, cpuid);
        let mut caller = Self { emulator, ram, chipset };
        caller.emulator.change(|cpu| {
            cpu.cr0.0 |= Cr0::PE | Cr0::PG;
            cpu.cr4.0 |= Cr4::PAE;
            cpu.efer.0 |= Efer::LME | Efer::LMA;
        });
        caller.segments(0xa09b, 0xc093);
        caller
    }

    fn segments(&mut self, code: u16, data: u16) {
        self.emulator.change(|cpu| {
            for seg in Seg::ALL {
                cpu.segments[seg] = Segment::flat(16, Attributes(data));
            }
            cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(code));
        });
    }

    /// In 32-bit protected mode.
    fn narrow() -> Self {
        let mut caller = Self::new();
        caller.emulator.change(|cpu| {
            cpu.cr0.0 &= !Cr0::PG;
            cpu.efer.0 &= !(Efer::LME | Efer::LMA);
        });
        caller.segments(0xc09b, 0xc093);
        caller
    }

    /// In user mode.
    fn user() -> Self {
        let mut caller = Self::new();
        caller.segments(0xa0fb, 0xc0f3);
        caller
    }

    fn set(&mut self, registers: &[(u8, u64)]) -> &mut Self {
        self.emulator.change(|cpu| {
            for (register, value) in registers {
                cpu.gpr.set(*register, *value);
            }
        });
        self
    }

    fn memory(&mut self, address: u64, words: &[u64]) -> &mut Self {
        for (word, at) in words.iter().zip((address..).step_by(8)) {
            assert!(self.ram.write(at, 8, *word));
        }
        self
    }

    fn aside(&mut self) -> Aside<'_> {
        self.emulator.aside()
    }

    fn kvm(&mut self) -> (Name, u64) {
        let chipset = Arc::clone(&self.chipset);
        let now = Now {
            clock: chipset.clock.now(),
            tsc: 77,
        };
        kvm::call(&self.aside(), &chipset, now)
    }

    /// A Hyper-V call by memory at 0x1000.
    fn hyperv(&mut self, control: u64, words: &[u64]) -> Result<Call, Invalid> {
        self.memory(0x1000, words)
            .set(&[(gpr::RCX, control), (gpr::RDX, 0x1000)]);
        decode(&self.aside())
    }

    /// A fast one.
    fn fast(&mut self, control: u64, words: &[u64]) -> Result<Call, Invalid> {
        let word = |index: usize| words.get(index).copied().unwrap_or(u64::MAX);
        self.set(&[(gpr::RCX, control | FAST), (gpr::RDX, word(0)), (R8, word(1))]);
        self.emulator.change(|cpu| {
            for (index, vector) in cpu.fpu.vectors.iter_mut().take(6).enumerate() {
                vector[..2].copy_from_slice(&[word(2 + 2 * index), word(3 + 2 * index)]);
            }
        });
        decode(&self.aside())
    }
}

fn error(number: u64) -> (Name, u64) {
    (Name::Refused, number.wrapping_neg())
}

// KVM's.

#[test]
fn kvm_knows_five_calls_and_refuses_user_mode() {
    let mut caller = Caller::new();
    for number in (0..64).chain([u64::MAX, 1 << 32 | 5]) {
        caller.set(&[(gpr::RAX, number), (gpr::RSI, 0x40)]);
        let (name, result) = caller.kvm();
        match number {
            1 => assert_eq!((name, result), (Name::Refused, 0), "there is no virtual APIC to poll"),
            5 => assert_eq!((name, result), (Name::KvmKick, 0)),
            9 => assert_eq!(name, Name::KvmClockPairing),
            10 => assert_eq!((name, result), (Name::KvmSendIpi, 0)),
            11 => assert_eq!((name, result), (Name::KvmSchedYield, 0)),
            _ => assert_eq!((name, result), error(1000), "KVM_ENOSYS for {number:#x}"),
        }
    }
    for number in [5, 9, 10, 11, 99] {
        assert_eq!(Caller::user().set(&[(gpr::RAX, number)]).kvm(), error(1), "KVM_EPERM");
    }
}

/// The vectors that each vCPU was sent.
fn sent(chipset: &Chipset) -> Vec<Option<u8>> {
    chipset.seats().iter().map(|seat| seat.lapic().take()).collect()
}

/// Lets the application processors' APICs listen too.
fn listen(chipset: &Chipset) {
    let now = Now { clock: 0, tsc: 0 };
    for seat in chipset.seats() {
        seat.lapic().write_page(0xf0, 4, 0x1ff, now);
    }
}

#[test]
fn kvm_s_ipis_go_to_the_apic_ids_of_a_bitmap_above_the_lowest() {
    for (low, high, min, expected) in [
        (0b101u64, 0, 0, [Some(0x41), None, Some(0x41)]),
        (0b11, 0, 1, [None, Some(0x41), Some(0x41)]),
        (u64::MAX, u64::MAX, 2, [None, None, Some(0x41)]),
        (0b111, 0, u64::from(u32::MAX), [None; 3]),
        (1, 1, 1 << 32 | 2, [None, None, Some(0x41)]),
        (1, u64::MAX, u64::from(u32::MAX) - 64, [None; 3]),
    ] {
        let mut caller = Caller::new();
        listen(&caller.chipset);
        caller.set(&[(gpr::RAX, 10), (gpr::RBX, low), (gpr::RCX, high), (gpr::RDX, min)]);
        caller.set(&[(gpr::RSI, 0x41)]);
        let accepted = expected.iter().flatten().count() as u64;
        assert_eq!(caller.kvm(), (Name::KvmSendIpi, accepted));
        assert_eq!(sent(&caller.chipset), expected, "{low:#x} {high:#x} from {min:#x}");
    }
}

#[test]
fn kvm_s_second_bitmap_begins_32_higher_outside_64_bit_mode() {
    let mut caller = Caller::narrow();
    listen(&caller.chipset);
    // Only the low halves count: the lowest id is 2 less 32.
    let lowest = u64::from(2u32.wrapping_sub(32)) | 0xdead << 32;
    caller.set(&[
        (gpr::RAX, 0xbeef << 32 | 10),
        (gpr::RBX, 0),
        (gpr::RCX, 1),
        (gpr::RSI, 0x41),
    ]);
    caller.set(&[(gpr::RDX, lowest)]);
    assert_eq!(caller.kvm().1 as u32, 0, "an id does not wrap around");
    caller.set(&[(gpr::RBX, 0b100), (gpr::RDX, 0x55 << 32)]);
    assert_eq!(caller.kvm(), (Name::KvmSendIpi, 1), "EDX is kept: 0");
    assert_eq!(sent(&caller.chipset), [None, None, Some(0x41)]);
    caller.set(&[(gpr::RAX, 1000), (gpr::RDX, 7)]);
    assert_eq!(caller.kvm().1, 7 << 32 | u64::from(1000u32.wrapping_neg()));
}

#[test]
fn kvm_s_ipis_can_be_nmis_but_name_their_destination_only_once() {
    let mut caller = Caller::new();
    caller.set(&[(gpr::RAX, 10), (gpr::RBX, 0b11), (gpr::RSI, 0x400)]);
    assert_eq!(caller.kvm(), (Name::KvmSendIpi, 2));
    assert!(caller.chipset.seats()[1].lapic().nmi_pending());
    for icr in [0x41 | 1 << 11, 0x41 | 1 << 18, 0x41 | 1 << 19, 0x200, 0x700] {
        assert_eq!(
            caller.set(&[(gpr::RSI, icr)]).kvm(),
            error(22),
            "KVM_EINVAL for {icr:#x}"
        );
    }
    // What INIT once ended with.
    assert_eq!(caller.set(&[(gpr::RSI, 0x8500)]).kvm(), (Name::KvmSendIpi, 0));
    assert!(!caller.chipset.seats()[1].lapic().init_pending());
}

#[test]
fn kvm_pairs_the_time_of_day_with_the_counter() {
    let mut caller = Caller::new();
    caller.set(&[(gpr::RAX, 9), (gpr::RBX, 0x2ff8), (gpr::RCX, 0)]);
    let before = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    caller.memory(0x3010, &[u64::MAX; 5]);
    assert_eq!(caller.kvm(), (Name::KvmClockPairing, 0));
    let word = |index: u64| caller.ram.read(0x2ff8 + 8 * index, 8).unwrap();
    let paired = std::time::Duration::new(word(0), word(1) as u32);
    assert!(paired.abs_diff(before).as_secs() < 60);
    assert_eq!([2, 3, 4, 5, 6, 7].map(word), [77, 0, 0, 0, 0, 0]);
    for address in [MEMORY - 8, MEMORY, 0xfee0_0000, u64::MAX - 7, u64::MAX] {
        assert_eq!(
            caller.set(&[(gpr::RBX, address)]).kvm(),
            error(14),
            "KVM_EFAULT at {address:#x}"
        );
    }
    assert_eq!(
        caller.set(&[(gpr::RCX, 1)]).kvm(),
        error(95),
        "KVM_EOPNOTSUPP for another clock"
    );
}

#[test]
fn a_kick_is_for_one_vcpu_and_one_that_is_not_there_is_nobody() {
    let mut caller = Caller::new();
    for id in [1, 3, u64::from(u32::MAX), u64::MAX] {
        assert_eq!(caller.set(&[(gpr::RAX, 5), (gpr::RCX, id)]).kvm(), (Name::KvmKick, 0));
    }
    let unhalted = |seat: &Seat| seat.unhalted.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(
        caller.chipset.seats().iter().map(unhalted).collect::<Vec<_>>(),
        [false, true, false]
    );
}

// Hyper-V's.

const FLUSH_SPACE: u64 = 0x2;
const FLUSH_LIST: u64 = 0x3;
const LONG_SPIN: u64 = 0x8;
const SEND_IPI: u64 = 0xb;
const FLUSH_SPACE_EX: u64 = 0x13;
const FLUSH_LIST_EX: u64 = 0x14;
const SEND_IPI_EX: u64 = 0x15;
const FAST: u64 = 1 << 16;

fn variable(words: u64) -> u64 {
    words << 17
}

fn reps(count: u64, start: u64) -> u64 {
    count << 32 | start << 48
}

fn banks(banks: &[(u32, u64)]) -> VpSet {
    let mut set = VpSet::default();
    for (bank, mask) in banks {
        set.add_bank(*bank, *mask);
    }
    set
}

#[test]
fn hyper_v_is_called_from_protected_mode_at_the_highest_privilege() {
    assert!(may_call(Caller::new().emulator.cpu()));
    assert!(may_call(Caller::narrow().emulator.cpu()));
    assert!(!may_call(Caller::user().emulator.cpu()));
    assert!(!may_call(&Cpu::reset()), "real mode");
}

#[test]
fn hyper_v_s_calls_are_the_same_by_memory_and_by_registers() {
    let rows: [(u64, &[u64], Deed, u64); 7] = [
        (LONG_SPIN, &[1000], Deed::Yield, 0),
        (FLUSH_SPACE, &[0x5000, 0, 0b101], Deed::Flush(VpSet::of(0b101)), 0),
        (FLUSH_SPACE, &[0, 0b111, 0], Deed::Flush(VpSet::ALL), 0),
        (
            FLUSH_LIST | reps(2, 0),
            &[0x5000, 4, 2, 0x1000, 0x2003],
            Deed::Flush(VpSet::of(2)),
            2 << 32,
        ),
        (SEND_IPI, &[0x41, 0b11], Deed::Interrupt(VpSet::of(0b11), 0x41), 0),
        (
            FLUSH_SPACE_EX | variable(2),
            &[0x5000, 0, 0, 0b1001, 0b10, 0b100],
            Deed::Flush(banks(&[(0, 0b10), (3, 0b100)])),
            0,
        ),
        (
            SEND_IPI_EX | variable(1),
            &[0xff, 0, 0b10, 0b1],
            Deed::Interrupt(banks(&[(1, 1)]), 0xff),
            0,
        ),
    ];
    for (control, words, deed, result) in rows {
        let by_memory = Caller::new().hyperv(control, words).unwrap();
        assert_eq!((by_memory.deed, by_memory.result), (deed, result), "{control:#x}");
        assert_eq!(Caller::new().fast(control, words), Ok(by_memory), "fast {control:#x}");
    }
    let list = Caller::new().hyperv(FLUSH_LIST_EX | variable(1) | reps(3, 1), &[0, 0, 0, 1, 0b10]);
    assert_eq!(
        list.map(|call| (call.deed, call.result)),
        Ok((Deed::Flush(VpSet::of(2)), 3 << 32))
    );
    let all = Caller::new().hyperv(SEND_IPI_EX, &[0x41, 1, 0]);
    assert_eq!(all.map(|call| call.deed), Ok(Deed::Interrupt(VpSet::ALL, 0x41)));
}

#[test]
fn outside_64_bit_mode_registers_pair_up() {
    let mut caller = Caller::narrow();
    caller.set(&[(gpr::RDX, 0xffff_ffff_0000_0000), (gpr::RAX, SEND_IPI | FAST)]);
    caller.set(&[
        (gpr::RBX, 0),
        (gpr::RCX, 0x41),
        (gpr::RDI, 1),
        (gpr::RSI, 0xdead_0000_0002),
    ]);
    let call = decode(&caller.aside()).unwrap();
    assert_eq!(call.deed, Deed::Interrupt(VpSet::of(1 << 32 | 2), 0x41));
}

#[test]
fn a_code_that_there_is_not_is_told_first() {
    for code in [0, 1, 4, 9, 0xc, 0x5c, 0x8001, 0xffff] {
        let refused = Caller::new().hyperv(code | 0xf << 60, &[]);
        assert_eq!(refused, Err(Invalid::HypercallCode), "{code:#x}");
    }
}

#[test]
fn control_words_that_make_no_sense_are_refused() {
    for control in [
        FLUSH_SPACE | reps(1, 0),
        FLUSH_SPACE | reps(0, 1),
        FLUSH_LIST,
        FLUSH_LIST | reps(2, 2),
        FLUSH_LIST | reps(0xfff, 0xfff),
        FLUSH_LIST_EX | reps(0, 1),
        LONG_SPIN | reps(1, 0),
        LONG_SPIN | variable(1),
        SEND_IPI | variable(1),
        FLUSH_SPACE | variable(1),
        SEND_IPI | 1 << 27,
        SEND_IPI | 1 << 31,
        SEND_IPI | 1 << 44,
        SEND_IPI | 1 << 63,
        // Banks that the mask does not name, and the other way round.
        SEND_IPI_EX | variable(2),
        SEND_IPI_EX,
        // More than the registers hold.
        FLUSH_LIST | FAST | reps(12, 0),
        FLUSH_SPACE_EX | FAST | variable(11),
    ] {
        let refused = Caller::new().hyperv(control, &[0x41, 0, 1, 0]);
        assert_eq!(refused, Err(Invalid::HypercallInput), "{control:#x}");
    }
    assert!(Caller::new().fast(FLUSH_LIST | reps(11, 0), &[0, 1, 0]).is_ok());
}

#[test]
fn input_lies_in_one_page_of_memory_aligned_to_8_bytes() {
    for (address, control, expected) in [
        (0x1fe8, FLUSH_SPACE, None),
        (0x1fe8, FLUSH_LIST | reps(1, 0), Some(Invalid::Alignment)),
        (0x1ff0, FLUSH_SPACE, Some(Invalid::Alignment)),
        (0x1000, FLUSH_LIST | reps(509, 0), None),
        (0x1000, FLUSH_LIST | reps(510, 0), Some(Invalid::Alignment)),
        (0x1000, FLUSH_LIST | reps(0xfff, 0xffe), Some(Invalid::Alignment)),
        (0x1000, SEND_IPI_EX | variable(0x3ff), Some(Invalid::Alignment)),
        (0x1004, FLUSH_SPACE, Some(Invalid::Alignment)),
        (0x1001, LONG_SPIN, Some(Invalid::Alignment)),
        (u64::MAX, FLUSH_SPACE, Some(Invalid::Alignment)),
        (u64::MAX - 0xfff, FLUSH_SPACE, Some(Invalid::Alignment)),
        (1 << 46, FLUSH_SPACE, Some(Invalid::Alignment)),
        ((1 << 46) - 24, FLUSH_SPACE, Some(Invalid::HypercallInput)),
        (MEMORY, FLUSH_SPACE, Some(Invalid::HypercallInput)),
        (MEMORY - 24, FLUSH_SPACE, None),
        (0xfee0_0000, SEND_IPI, Some(Invalid::HypercallInput)),
        (0xfee0_0000, LONG_SPIN, None),
    ] {
        let mut caller = Caller::new();
        caller.set(&[(gpr::RCX, control), (gpr::RDX, address)]);
        assert_eq!(decode(&caller.aside()).err(), expected, "{control:#x} at {address:#x}");
    }
}

#[test]
fn parameters_that_mean_nothing_are_refused() {
    for (control, words) in [
        (FLUSH_SPACE, &[0, 1 << 4, 1][..]),
        (FLUSH_LIST | reps(1, 0), &[0, 1 << 63, 1, 0]),
        (SEND_IPI, &[0xf, 1]),
        (SEND_IPI, &[0x100, 1]),
        (SEND_IPI, &[1 << 32 | 0x41, 1]),
        (SEND_IPI_EX, &[0x41, 2, 0]),
        (FLUSH_SPACE_EX, &[0, 0, u64::MAX, 0]),
    ] {
        let refused = Caller::new().hyperv(control, words);
        assert_eq!(refused, Err(Invalid::Parameter), "{control:#x} {words:x?}");
    }
    let padded = Caller::new().hyperv(SEND_IPI, &[0xffff_ff00_0000_0041, 1]);
    assert!(padded.is_ok(), "padding is ignored");
}

#[test]
fn every_counter_has_its_own_name() {
    let mut counters = Counters::default();
    for (times, (name, _)) in (1..).zip(Name::ALL) {
        (0..times).for_each(|_| counters.count(name));
    }
    let figures: Vec<u64> = counters.figures().map(|(_, value)| value).collect();
    assert_eq!(figures, (1..=9).collect::<Vec<_>>());
    let names: std::collections::BTreeSet<_> = counters.figures().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 9);
}

/// Words that mean something more often than chance has it.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u64..64).prop_map(|bit| 1 << bit),
        (0u64..64).prop_map(|bit| (1u64 << bit).wrapping_sub(1)),
        0u64..256,
        (0u64..MEMORY + 0x1000).prop_map(|address| address & !7),
    ]
}

fn control() -> impl Strategy<Value = u64> {
    let code = prop_oneof![0u64..0x20, any::<u16>().prop_map(u64::from)];
    (code, any::<bool>(), 0u64..20, word()).prop_map(|(code, fast, variable, more)| {
        let high = if more % 3 == 0 { more & 0x0fff_0fff_0000_0000 } else { 0 };
        code | u64::from(fast) << 16 | variable << 17 | high
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_call_of_a_hostile_guest_panics_or_leaves_the_record_changed(
        calls in proptest::collection::vec((control(), proptest::array::uniform8(word()), 0u64..16), 1..64),
        narrow in any::<bool>(),
    ) {
        let mut caller = if narrow { Caller::narrow() } else { Caller::new() };
        for (control, words, number) in calls {
            caller.memory((words[0] % (MEMORY / 2)) & !7, &words);
            caller.set(&[(gpr::RAX, number), (gpr::RBX, words[1]), (gpr::RCX, words[2]), (gpr::RDX, words[3])]);
            caller.set(&[(gpr::RSI, words[4])]);
            let (name, result) = caller.kvm();
            let low = if narrow { result & 0xffff_ffff } else { result };
            prop_assert!(name != Name::KvmSendIpi || low <= 6, "{name:?}: {low}");
            caller.set(&[(gpr::RAX, control), (gpr::RCX, control), (gpr::RDX, words[0]), (R8, words[5])]);
            if let Ok(call) = decode(&caller.aside()) {
                prop_assert!(call.result & 0xffff_ffff == 0);
                if let Deed::Interrupt(_, vector) = call.deed {
                    prop_assert!(vector >= 0x10);
                }
            }
            prop_assert!(caller.emulator.record().is_empty());
        }
    }
}
