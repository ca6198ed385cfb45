use std::hint::black_box;

use criterion::{Criterion, Throughput};
use event_pipeline::wire::Batch;

use crate::workload;

/// From a producer's text to a checked event, and to the frame of its delivery.
pub fn parse(c: &mut Criterion) {
    let (events, mut parser) = (workload::class(), workload::parser());
    let types = parser.types().clone();
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("event", |b| {
        b.iter(|| {
            for text in &events {
                let parsed = parser.parse(text, |event| {
                    black_box(event);
                });
                black_box(&parsed);
            }
        });
    });
    group.bench_function("event and encode", |b| {
        b.iter(|| {
            for read in events.chunks(workload::BATCH_EVENTS) {
                let mut batch = Batch::default();
                for text in read {
                    black_box(&parser.parse(text, |event| batch.push(&event, &types)));
                }
                black_box(batch);
            }
        });
    });
    let array = format!("[{}]", events.join(","));
    group.bench_function("array and encode", |b| {
        b.iter(|| {
            let mut batch = Batch::default();
            black_box(&parser.parse(&array, |event| batch.push(&event, &types)));
            batch
        });
    });
}
