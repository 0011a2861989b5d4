//! One entry of the replay cache: recorded, and replayed.
//!
//! All figures are for one entry. Goal: at most 3 ns each, whatever the number of entries.
//! - `record/N`, `replay/N`: the record holds N entries; 235 is what another emulator reserves, 1000 is more than any
//!   instruction is seen to read.
//! - `search/235`: the same replay from a store that is searched for (address, size) from its start, as the shape suggests
//!   itself; half of the entries are passed on average.
//!
//! `cargo bench -p reprise-emulator --bench replay`

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use reprise_emulator::Space;
use reprise_emulator::replay::{Kind, Question, ReplayCache};
use rustix::time::{ClockId, clock_gettime};

/// Words of memory one after the other, as a large operand has them.
fn question(i: u64) -> Question {
    Question {
        kind: Kind::Data,
        space: Space::Memory,
        address: 0x1000 + 8 * i,
        width: 8,
    }
}

/// CPU time that this thread has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Lets criterion count entries: `pass` handles `length` of them.
fn by_entry(length: u64, mut pass: impl FnMut()) -> impl FnMut(u64) -> Duration {
    move |entries| {
        let passes = entries.div_ceil(length);
        let start = cpu_time();
        for _ in 0..passes {
            pass();
        }
        (cpu_time() - start).mul_f64(entries as f64 / (passes * length) as f64)
    }
}

fn record(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    for length in [8, 64, 235, 1000] {
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            let mut cache = ReplayCache::default();
            b.iter_custom(by_entry(length, || {
                cache.clear();
                for i in 0..length {
                    let value = cache.read(question(black_box(i)), || black_box(i));
                    black_box(value.expect("there is room"));
                }
            }));
        });
    }
}

fn replay(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay");
    for length in [8, 64, 235, 1000] {
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            let mut cache = ReplayCache::default();
            for i in 0..length {
                cache.record(question(i), i, false).expect("there is room");
            }
            b.iter_custom(by_entry(length, || {
                cache.rewind();
                for i in 0..length {
                    let value = cache.read(question(black_box(i)), || unreachable!("all is recorded"));
                    black_box(value.expect("the same is asked"));
                }
            }));
        });
    }
}

/// A store without order: what was read at an address, with what size.
struct Searched(Vec<(u64, u8, u64)>);

impl Searched {
    fn find(&self, address: u64, size: u8) -> Option<u64> {
        self.0
            .iter()
            .find(|entry| entry.0 == address && entry.1 == size)
            .map(|entry| entry.2)
    }
}

fn search(c: &mut Criterion) {
    let mut group = c.benchmark_group("search");
    let length = 235;
    group.bench_function(BenchmarkId::from_parameter(length), |b| {
        let store = Searched(
            (0..length)
                .map(|i| (question(i).address, question(i).width, i))
                .collect(),
        );
        b.iter_custom(by_entry(length, || {
            for i in 0..length {
                let question = question(black_box(i));
                let value = store.find(question.address, question.width);
                black_box(value.expect("all is recorded"));
            }
        }));
    });
}

criterion_group!(benches, record, replay, search);
criterion_main!(benches);
