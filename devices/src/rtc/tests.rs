use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;

use super::*;
use crate::testing::{TestClock, access, accesses, through_json};

/// 2026-02-28T23:58:57Z, a Saturday.
const NOW: i64 = 1_772_323_137;
const MIB: u64 = 1 << 20;

struct World {
    bus: Bus,
    rtc: Arc<Rtc>,
    clock: Arc<TestClock>,
}

impl World {
    fn new() -> Self {
        Self::with(MemorySize {
            below_4g: 512 * MIB,
            above_4g: 0,
        })
    }

    fn with(memory: MemorySize) -> Self {
        let (bus, clock) = (Bus::new(), Arc::new(TestClock::default()));
        clock.seconds.store(NOW, SeqCst);
        let rtc = Arc::new(Rtc::new(clock.clone(), memory));
        rtc.attach(&bus).unwrap();
        Self { bus, rtc, clock }
    }

    fn read(&self, index: u8) -> u8 {
        let _ = self.bus.write(Space::Port, PORT, 1, index.into());
        self.bus.read(Space::Port, PORT + 1, 1).wait() as u8
    }

    fn write(&self, index: u8, byte: u8) {
        let _ = self.bus.write(Space::Port, PORT, 1, index.into());
        let _ = self.bus.write(Space::Port, PORT + 1, 1, byte.into());
    }

    /// Century, year, month, day, weekday, hour, minute, second, as the registers show them.
    fn time(&self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| self.read(index))
    }

    fn pass(&self, seconds: i64) {
        self.clock.seconds.fetch_add(seconds, SeqCst);
    }
}

#[test]
fn the_date_is_shown_in_bcd_and_24_hours_after_reset() {
    let world = World::new();
    assert_eq!(world.time(), [0x20, 0x26, 0x02, 0x28, 7, 0x23, 0x58, 0x57]);
    world.pass(63);
    assert_eq!(world.time(), [0x20, 0x26, 0x03, 0x01, 1, 0x00, 0x00, 0x00]);
}

#[test]
fn register_b_chooses_binary_and_12_hours() {
    let world = World::new();
    world.write(0x0b, 0x06);
    assert_eq!(world.time(), [20, 26, 2, 28, 7, 23, 58, 57]);
    world.write(0x0b, 0x04);
    assert_eq!(world.read(4), 0x80 | 11);
    world.write(0x0b, 0x00);
    assert_eq!(world.read(4), 0x80 | 0x11);
    world.pass(3600);
    assert_eq!(world.read(4), 0x12, "midnight is 12 in the morning");
    world.pass(12 * 3600);
    assert_eq!(world.read(4), 0x80 | 0x12, "noon is 12 in the afternoon");
    assert_eq!(world.read(0x0b), 0x00);
}

#[test]
fn the_clock_is_always_valid_and_never_amid_an_update() {
    let world = World::new();
    world.write(0x0a, 0xa6);
    assert_eq!(world.read(0x0a), 0x26);
    world.write(0x0d, 0);
    assert_eq!(world.read(0x0d), 0x80);
    world.write(0x0c, 0xff);
    assert_eq!(world.read(0x0c), 0);
}

#[test]
fn a_guest_sets_the_clock_while_it_is_held() {
    let world = World::new();
    world.write(0x0b, 0x82);
    world.pass(100);
    assert_eq!(world.time(), [0x20, 0x26, 0x02, 0x28, 7, 0x23, 0x58, 0x57], "held");
    // The day before the month: no date is impossible on the way.
    for (index, byte) in [
        (0, 0x05),
        (2, 0x04),
        (4, 0x03),
        (7, 0x31),
        (8, 0x12),
        (9, 0x99),
        (0x32, 0x19),
        (6, 3),
    ] {
        world.write(index, byte);
    }
    world.pass(100);
    assert_eq!(world.time(), [0x19, 0x99, 0x12, 0x31, 3, 0x03, 0x04, 0x05]);
    world.write(0x0b, 0x02);
    world.pass(1);
    assert_eq!(
        world.time(),
        [0x19, 0x99, 0x12, 0x31, 6, 0x03, 0x04, 0x06],
        "running, and a Friday"
    );
}

#[test]
fn a_guest_sets_one_register_of_the_running_clock() {
    let world = World::new();
    world.write(4, 0x01);
    world.pass(3);
    assert_eq!(world.time(), [0x20, 0x26, 0x02, 0x28, 7, 0x01, 0x59, 0x00]);
    world.write(0x0b, 0x00);
    world.write(4, 0x80 | 0x12);
    assert_eq!(world.read(4), 0x92, "noon");
    world.write(4, 0x12);
    world.write(0x0b, 0x02);
    assert_eq!(world.read(4), 0x00, "midnight");
}

#[test]
fn impossible_dates_are_carried_over() {
    let world = World::new();
    world.write(0x0b, 0x86);
    for (index, byte) in [(0, 61), (2, 0), (4, 24), (7, 31), (8, 2), (9, 26)] {
        world.write(index, byte);
    }
    assert_eq!(world.read(8), 2, "as written while held");
    world.write(0x0b, 0x06);
    assert_eq!(world.time(), [20, 26, 3, 4, 4, 0, 1, 1]);
}

#[test]
fn the_nmi_mask_in_the_index_is_ignored() {
    let world = World::new();
    assert_eq!(world.read(0x80 | 9), 0x26);
    assert_eq!(
        world.bus.read(Space::Port, PORT, 1).wait(),
        0xff,
        "the index is write-only"
    );
    assert_eq!(world.bus.read(Space::Port, PORT, 2).wait(), 0x26ff);
    let _ = world.bus.write(Space::Port, PORT, 2, 0xa0_0b);
    assert_eq!(world.read(0x0b), 0xa0, "a word is an index and its data");
}

#[test]
fn the_rest_is_memory() {
    let world = World::new();
    for index in (0x0e..0x80).filter(|index| *index != CENTURY).chain([1, 3, 5]) {
        world.write(index, index ^ 0x5a);
    }
    for index in (0x0e..0x80).filter(|index| *index != CENTURY).chain([1, 3, 5]) {
        assert_eq!(world.read(index), index ^ 0x5a, "{index:#x}");
    }
    assert_eq!(world.time()[1..], [0x26, 0x02, 0x28, 7, 0x23, 0x58, 0x57]);
}

#[test]
fn memory_tells_how_much_memory_there_is() {
    let size = |memory| {
        let world = World::with(memory);
        let number = |places: &[u8]| {
            places
                .iter()
                .rev()
                .fold(0, |sum, place| sum << 8 | u32::from(world.read(*place)))
        };
        assert_eq!(number(&[0x17, 0x18]), number(&[0x30, 0x31]));
        [
            number(&[0x15, 0x16]),
            number(&[0x17, 0x18]),
            number(&[0x34, 0x35]),
            number(&[0x5b, 0x5c, 0x5d]),
        ]
    };
    let memory = |below_4g, above_4g| MemorySize { below_4g, above_4g };
    assert_eq!(size(memory(512 * MIB, 0)), [640, 0xffff, 496 * 16, 0]);
    assert_eq!(size(memory(8 * MIB, 0)), [640, 7 * 1024, 0, 0]);
    assert_eq!(
        size(memory(3072 * MIB, 5120 * MIB)),
        [640, 0xffff, 3056 * 16, 5120 * 16]
    );
    assert_eq!(size(memory(0, 0)), [0; 4]);
    assert_eq!(size(memory(u64::MAX, u64::MAX)), [640, 0xffff, 0xffff, 0xff_ffff]);
}

#[test]
fn state_survives_saving_and_restoring() {
    let old = World::new();
    old.write(9, 0x30);
    old.write(0x0f, 0x0a);
    old.write(0x0b, 0x86);
    let saved = serde_json::to_string(&old.rtc.state()).unwrap();
    let new = World::with(MemorySize {
        below_4g: 0,
        above_4g: 0,
    });
    new.pass(1_000_000);
    new.rtc.restore(&serde_json::from_str(&saved).unwrap());
    assert_eq!(new.time(), old.time(), "held");
    new.write(0x0b, 0x06);
    new.pass(1);
    assert_eq!((new.read(9), new.read(0), new.read(0x0f)), (30, 58, 0x0a));
}

#[test]
fn known_moments() {
    let time = |year, month, day, hour, minute, second| CalendarTime {
        year,
        month,
        day,
        hour,
        minute,
        second,
    };
    for (seconds, expected, weekday) in [
        (0, time(1970, 1, 1, 0, 0, 0), 5),
        (-1, time(1969, 12, 31, 23, 59, 59), 4),
        (951_782_400, time(2000, 2, 29, 0, 0, 0), 3),
        (1_709_251_199, time(2024, 2, 29, 23, 59, 59), 5),
        (4_107_542_400, time(2100, 3, 1, 0, 0, 0), 2),
        (NOW, time(2026, 2, 28, 23, 58, 57), 7),
    ] {
        let shown = CalendarTime::from_unix_seconds(seconds);
        assert_eq!((shown, shown.weekday()), (expected, weekday), "{seconds}");
        assert_eq!(expected.unix_seconds(), seconds);
    }
}

#[test]
fn every_day_of_400_years_follows_the_one_before() {
    let mut yesterday = CalendarTime::from_unix_seconds(-1);
    for day in 0..146_097 {
        let today = CalendarTime::from_unix_seconds(day * 86_400);
        let leap = today.year % 4 == 0 && (today.year % 100 != 0 || today.year % 400 == 0);
        let length = |month| match month {
            2 => 28 + i64::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let expected = if yesterday.day < length(yesterday.month) {
            (yesterday.year, yesterday.month, yesterday.day + 1)
        } else {
            (yesterday.year + yesterday.month / 12, yesterday.month % 12 + 1, 1)
        };
        assert_eq!((today.year, today.month, today.day), expected);
        assert_eq!(today.unix_seconds(), day * 86_400);
        yesterday = today;
    }
}

/// Any number, and often one from the ends.
fn extreme() -> impl Strategy<Value = i64> {
    prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX), Just(0)]
}

proptest! {
    #[test]
    fn dates_there_and_back(seconds in -100_000_000_000_i64..300_000_000_000) {
        prop_assert_eq!(CalendarTime::from_unix_seconds(seconds).unix_seconds(), seconds);
    }

    #[test]
    fn no_access_panics_at_any_time(
        now: i64,
        accesses in prop::collection::vec((any::<u8>(), any::<Option<u8>>(), any::<i64>()), 0..100),
    ) {
        let world = World::new();
        world.clock.seconds.store(now, SeqCst);
        for (index, written, now) in accesses {
            match written {
                Some(byte) => world.write(index, byte),
                None => drop(world.read(index)),
            }
            world.clock.seconds.store(now, SeqCst);
        }
    }

    #[test]
    fn no_state_panics(
        ahead in extreme(),
        fields in prop::array::uniform6(extreme()),
        weekday: u8,
        index: u8,
        b: u8,
        written: u8,
    ) {
        let world = World::new();
        let [year, month, day, hour, minute, second] = fields;
        let time = CalendarTime { year, month, day, hour, minute, second };
        let held = (b & 1 != 0).then_some(RtcTime { time, weekday });
        world.rtc.restore(&RtcState { index, memory: [[b; 32]; 4], ahead, held });
        for index in (0..16).chain([index, CENTURY]) {
            let _ = world.read(index);
            world.write(index, written);
            let _ = world.time();
        }
    }

    #[test]
    fn a_restored_clock_goes_on_as_the_saved_one(before in accesses(PORTS), after in accesses(PORTS), times: [u16; 7]) {
        let (own, other) = (World::new(), World::new());
        for (step, what) in before.into_iter().enumerate() {
            access(&*own.rtc, what);
            own.pass(times[step % 7].into());
        }
        other.clock.seconds.store(own.clock.seconds.load(SeqCst), SeqCst);
        let saved = own.rtc.state();
        other.rtc.restore(&through_json(&saved));
        prop_assert_eq!(other.rtc.state(), saved);
        for (step, what) in after.into_iter().enumerate() {
            prop_assert_eq!(access(&*own.rtc, what), access(&*other.rtc, what));
            own.pass(times[step % 7].into());
            other.pass(times[step % 7].into());
        }
        prop_assert_eq!(own.rtc.state(), other.rtc.state());
    }
}
