use std::cell::{Cell, OnceCell};
use std::time::Duration;

use criterion::{BatchSize, Bencher, BenchmarkId, Criterion, Throughput};

use crate::filled;
use crate::workload::{self, Record};

/// Events of one transaction.
const LENS: [usize; 5] = [1, 10, 100, 1_000, 10_000];

/// One transaction, from the append to its receipt, with the sync. Sealing and checkpoints happen as often as in the server.
pub fn commit(c: &mut Criterion) {
    let events = workload::school(10_000);
    let mut group = c.benchmark_group("commit");
    for len in LENS {
        group.throughput(Throughput::Elements(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |b| commits(b, &Record::new(), &events[..len]));
    }
}

/// The same in a file with at least this number of rows.
pub fn commit_filled(c: &mut Criterion) {
    let events = workload::school(1_000);
    for rows in filled::sizes() {
        let mut group = c.benchmark_group(format!("commit to {rows} rows"));
        // Few samples: with more, the file would double while it is measured.
        group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
        // Copied here, so that a bench that is not chosen neither fills nor copies a file.
        let copy = OnceCell::new();
        for len in [1, 1_000] {
            group.throughput(Throughput::Elements(len as u64));
            group.bench_function(BenchmarkId::from_parameter(len), |b| {
                let copy = copy.get_or_init(|| filled::Copy::of(rows));
                commits(b, &Record::at(copy.path()), &events[..len]);
            });
        }
    }
}

/// The same with a random idempotency key for each event: the cost of keys, by the number of keys in the file.
pub fn commit_keyed(c: &mut Criterion) {
    let events = workload::school(1_000);
    let mut group = c.benchmark_group("commit with keys");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for present in filled::sizes() {
        let record = OnceCell::new();
        let next = Cell::new(0);
        let keyed = |len: usize| {
            let batch = workload::keyed(&events[..len], next.get());
            next.set(next.get() + len);
            batch
        };
        for len in [1, 1_000] {
            group.throughput(Throughput::Elements(len as u64));
            group.bench_function(BenchmarkId::new(format!("{present} keys"), len), |b| {
                let record = record.get_or_init(|| {
                    let record = Record::new();
                    (0..present.div_ceil(1_000)).for_each(|_| record.store(keyed(1_000)));
                    record
                });
                b.iter_batched(|| keyed(len), |batch| record.store(batch), BatchSize::PerIteration);
            });
        }
    }
}

fn commits(b: &mut Bencher<'_>, record: &Record, events: &[String]) {
    b.iter_batched(|| workload::batch(events), |batch| record.store(batch), BatchSize::PerIteration);
}
