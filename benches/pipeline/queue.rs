use std::time::{Duration, Instant};

use criterion::Criterion;
use event_pipeline::store::Receipt;
use event_pipeline::wire::Batch;

use crate::workload::Record;

/// The way to the writer's thread and back, without events: the cost of a batch apart from its events.
pub fn queue(c: &mut Criterion) {
    let record = Record::new();
    let hand_in = || {
        let (receipt, answer) = Receipt::synced();
        record.store.try_append(Batch::default(), receipt).expect("an empty queue");
        answer
    };
    let mut group = c.benchmark_group("queue");
    group.bench_function("hand in", |b| {
        b.iter_custom(|batches| {
            // As many as the queue holds, so that no append waits.
            const ROOM: u64 = 5_000;
            let (mut left, mut took, mut answers) = (batches, Duration::ZERO, Vec::new());
            while left > 0 {
                let some = left.min(ROOM);
                let start = Instant::now();
                answers.extend((0..some).map(|_| hand_in()));
                took += start.elapsed();
                answers.drain(..).for_each(|answer| drop(answer.blocking_recv().expect("an answer")));
                left -= some;
            }
            took
        });
    });
    group.bench_function("there and back", |b| b.iter(|| hand_in().blocking_recv().expect("an answer")));
}
