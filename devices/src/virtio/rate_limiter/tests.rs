use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

/// A clock that stands until it is moved.
#[derive(Default)]
struct Still(AtomicU64);

impl Still {
    fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_nanos() as u64, Ordering::SeqCst);
    }
}

impl Clock for Still {
    fn unix_seconds(&self) -> i64 {
        0
    }

    fn monotonic_nanoseconds(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn bucket(size: u64, one_time_burst: u64, milliseconds: u64) -> Bucket {
    Bucket {
        size,
        one_time_burst,
        refill_time: Duration::from_millis(milliseconds),
    }
}

fn limiter(bandwidth: Option<Bucket>, ops: Option<Bucket>) -> (Arc<Still>, RateLimiter) {
    let clock = Arc::new(Still::default());
    let limits = RateLimits { bandwidth, ops };
    (Arc::clone(&clock), RateLimiter::new(&limits, clock))
}

#[test]
fn a_full_bucket_is_emptied_at_once_and_fills_at_its_rate() {
    let (clock, limiter) = limiter(None, Some(bucket(10, 0, 1000)));
    for request in 0..10 {
        assert_eq!(limiter.wait(), Duration::ZERO, "request {request}");
        limiter.take(1, 1 << 40);
    }
    let wait = limiter.wait();
    assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");
    clock.pass(wait);
    assert_eq!(limiter.wait(), Duration::ZERO);
    limiter.take(1, 0);
    assert!(limiter.wait() > Duration::from_millis(99));
    clock.pass(Duration::from_secs(100));
    for request in 0..10 {
        assert_eq!(
            limiter.wait(),
            Duration::ZERO,
            "request {request} after it was full again"
        );
        limiter.take(1, 0);
    }
    assert_ne!(limiter.wait(), Duration::ZERO, "it holds no more than its size");
}

#[test]
fn the_burst_is_there_once() {
    let (clock, limiter) = limiter(Some(bucket(100, 50, 100)), None);
    limiter.take(1, 149);
    assert_eq!(limiter.wait(), Duration::ZERO, "one is left");
    limiter.take(1, 1);
    assert_ne!(limiter.wait(), Duration::ZERO);
    clock.pass(Duration::from_secs(9));
    limiter.take(1, 100);
    assert_ne!(limiter.wait(), Duration::ZERO);
}

#[test]
fn a_request_larger_than_the_bucket_is_served_and_paid_for() {
    let (clock, limiter) = limiter(Some(bucket(1000, 0, 1000)), None);
    assert_eq!(limiter.wait(), Duration::ZERO);
    limiter.take(1, 11_000);
    let wait = limiter.wait();
    assert!(
        wait > Duration::from_secs(10) && wait < Duration::from_millis(10_002),
        "{wait:?}"
    );
    clock.pass(wait);
    assert_eq!(limiter.wait(), Duration::ZERO);
}

#[test]
fn the_slower_of_both_buckets_counts() {
    let (_, limiter) = limiter(Some(bucket(1000, 0, 1000)), Some(bucket(2, 0, 1000)));
    limiter.take(2, 10);
    assert!(limiter.wait() > Duration::ZERO, "no requests, though bytes");
}

#[test]
fn a_bucket_without_a_rate_is_no_limit() {
    for none in [bucket(0, 0, 100), bucket(5, 0, 0), bucket(0, 7, 0)] {
        let (_, limiter) = limiter(Some(none), Some(none));
        limiter.take(u64::MAX, u64::MAX);
        assert_eq!(limiter.wait(), Duration::ZERO, "{none:?}");
    }
}

#[test]
fn the_largest_numbers_wrap_nowhere() {
    let huge = Bucket {
        size: u64::MAX,
        one_time_burst: u64::MAX,
        refill_time: Duration::MAX,
    };
    let (clock, limiter) = limiter(Some(huge), Some(bucket(1, 0, u64::MAX)));
    for _ in 0..10 {
        limiter.take(u64::MAX, u64::MAX);
        clock.pass(Duration::from_secs(1));
        assert!(limiter.wait() > Duration::ZERO);
    }
}

proptest! {
    #[test]
    fn over_any_time_no_more_is_taken_than_flows_in(
        size in 1_u64..5000,
        burst in 0_u64..5000,
        milliseconds in 1_u64..5000,
        requests in prop::collection::vec((1_u64..3000, 0_u64..50), 1..200),
    ) {
        let (clock, limiter) = limiter(Some(bucket(size, burst, milliseconds)), None);
        let (mut taken, mut last) = (0_u64, 0);
        for (bytes, pause) in requests {
            clock.pass(Duration::from_millis(pause));
            let wait = limiter.wait();
            clock.pass(wait);
            prop_assert_eq!(limiter.wait(), Duration::ZERO, "the wait that it named is enough");
            limiter.take(1, bytes);
            taken += bytes;
            last = last.max(bytes);
            let elapsed = u128::from(clock.monotonic_nanoseconds());
            let flowed = elapsed * u128::from(size) / (u128::from(milliseconds) * 1_000_000);
            prop_assert!(u128::from(taken) <= u128::from(size + burst + last) + flowed + 1);
        }
    }

    #[test]
    fn a_busy_guest_gets_its_whole_rate(size in 1000_u64..50_000, bytes in 1_u64..3000) {
        let (clock, limiter) = limiter(Some(bucket(size, 0, 1000)), None);
        let mut taken = 0;
        while clock.monotonic_nanoseconds() < 20_000_000_000 {
            clock.pass(limiter.wait());
            limiter.take(1, bytes);
            taken += bytes;
        }
        prop_assert!(taken >= 20 * size, "{taken} in 20 s at {size} a second");
    }
}
