use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
use event_pipeline::wire::decoder::Decoder;
use event_pipeline::wire::frame::{self, OpCode, Role};

use crate::workload;

/// Decoding the bytes of a socket.
pub fn decode(c: &mut Criterion) {
    let events = workload::class();
    let stream = workload::frames(&events);
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("decode", |b| {
        b.iter_batched(
            || Decoder::new(Role::Server, 1 << 20).with_received(&stream),
            |mut decoder| {
                while let Some(message) = decoder.next().expect("valid frames") {
                    black_box(message);
                }
            },
            BatchSize::LargeInput,
        );
    });
}

/// Writing frames, unmasked as the server does and masked as a client does.
pub fn encode(c: &mut Criterion) {
    let events = workload::class();
    let mut out = workload::frames(&events);
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("encode", |b| {
        b.iter(|| {
            out.clear();
            events.iter().for_each(|text| frame::text(&mut out, text.as_bytes()));
        });
    });
    group.bench_function("encode masked", |b| {
        b.iter(|| {
            out.clear();
            events.iter().for_each(|text| frame::masked(&mut out, OpCode::Text, text.as_bytes(), workload::MASK));
        });
    });
}
