use std::time::{Duration, Instant};

use criterion::Criterion;

use crate::workload::{self, Record, SEGMENT_EVENTS};

/// Sealing a full segment: from the event that begins the next one until the last row of the index is on disk. The sealer's
/// thread encodes the lists, and the writer stores them; between the slices the writer is free for other commands.
pub fn seal(c: &mut Criterion) {
    let school = workload::school(SEGMENT_EVENTS);
    let strangers: Vec<_> = (0..SEGMENT_EVENTS).map(workload::stranger).collect();
    let mut group = c.benchmark_group("seal");
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(2));
    for (name, events) in [("2,000 sessions and 5,000 users", &school), ("no two events alike", &strangers)] {
        group.bench_function(name, |b| b.iter_custom(|segments| (0..segments).map(|_| seal_one(events)).sum()));
    }
}

fn seal_one(events: &[String]) -> Duration {
    let record = Record::new();
    events.chunks(8_192).for_each(|chunk| record.store(workload::batch(chunk)));
    let next = workload::batch(&events[..1]);
    let start = Instant::now();
    record.store(next);
    record.wait_until_sealed(1);
    start.elapsed()
}
