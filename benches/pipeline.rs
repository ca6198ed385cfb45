//! The stages of an event's way, one by one, on the recorded class. `cargo bench` measures; the test
//! command runs each once.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use event_pipeline::audience::Audience;
use event_pipeline::config::Config;
use event_pipeline::event::{EventTypes, Filter, Limits, Parser, Seq, Timestamp, TimestampText};
use event_pipeline::hub::{FanOut, Hub};
use event_pipeline::store::{Order, Query, Receipt, Store};
use event_pipeline::wire::Batch;
use event_pipeline::wire::batch::Commit;
use event_pipeline::wire::frame::{Decoder, OpCode, Role, masked};

const RECORDING: &str = include_str!("../data/classroom.ndjson");

/// The events of the recording, as their producers sent them.
fn events() -> Vec<String> {
    let event = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line of the recording");
        line["event"].to_string()
    };
    RECORDING.lines().map(event).collect()
}

fn parser() -> Parser {
    Parser::new(Arc::new(EventTypes::builtin()), Limits { payload_keys_max: 50, payload_bytes_max: 65_536 })
}

/// `len` events of the recording, encoded.
fn batch(parser: &mut Parser, events: &[String], len: usize) -> Batch {
    let (mut batch, types) = (Batch::default(), parser.types().clone());
    for text in events.iter().cycle().take(len) {
        parser.parse(text, |event| batch.push(&event, &types)).outcome.expect("a valid event");
    }
    batch
}

fn commit(parser: &mut Parser, events: &[String], len: usize) -> Commit {
    let mut batch = batch(parser, events, len);
    let mut time = TimestampText::default();
    (0..len).for_each(|i| batch.stamp(i, Seq(1).plus(i), &time.render(Timestamp(i as i64))));
    Commit { batches: vec![Arc::new(batch.committed(Seq(1)))], through: Seq(len as u64) }
}

fn reading(c: &mut Criterion) {
    let (events, mut parser) = (events(), parser());
    let types = parser.types().clone();
    let bytes = events.iter().map(String::len).sum::<usize>();
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("parse", |b| {
        b.iter(|| {
            for text in &events {
                let _ = black_box(parser.parse(text, |event| {
                    black_box(event);
                }));
            }
        });
    });
    group.bench_function("parse and encode", |b| {
        b.iter(|| {
            let mut batch = Batch::default();
            for text in &events {
                let _ = parser.parse(text, |event| batch.push(&event, &types));
            }
            batch
        });
    });
    let mut stream = Vec::with_capacity(bytes + events.len() * 8);
    events.iter().for_each(|text| masked(&mut stream, OpCode::Text, text.as_bytes(), [1, 2, 3, 4]));
    group.bench_function("frames", |b| {
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
    group.finish();
}

fn storing(c: &mut Criterion) {
    let (events, mut parser) = (events(), parser());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = Config { database_path: folder.path().join("events.db"), ..Config::default() };
    let (store, running) = Store::open(&config).expect("a new database");
    let commits = running.commits;
    let drain = std::thread::spawn(move || commits.iter().for_each(drop));
    let mut group = c.benchmark_group("commit");
    for len in [1, 10, 100, 1_000, 10_000] {
        group.throughput(Throughput::Elements(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter_batched(
                || batch(&mut parser, &events, len),
                |batch| {
                    let (receipt, answer) = Receipt::new();
                    store.try_append(batch, receipt).expect("an empty queue");
                    answer.blocking_recv().expect("an answer").expect("stored")
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    let mut group = c.benchmark_group("query");
    let mut session = Filter::default();
    session.session_id = Some("exam-08".into());
    for (name, filter) in [("last 100", Filter::default()), ("last 100 of a session", session)] {
        let query = Query { filter, order: Order::NewestFirst, ..Query::default() };
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut left = 100;
                let scanned = store.scan(&query, |event| {
                    black_box(event);
                    left -= 1;
                    if left == 0 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
                });
                scanned.expect("readable")
            });
        });
    }
    group.finish();
    store.close();
    for thread in running.threads {
        thread.join().expect("no panic");
    }
    drain.join().expect("no panic");
}

fn fanning_out(c: &mut Criterion) {
    let (events, mut parser) = (events(), parser());
    let commits = [Arc::new(commit(&mut parser, &events, 1_000))];
    let mut group = c.benchmark_group("fan-out of 1,000 events");
    group.throughput(Throughput::Elements(1_000));
    for subscribers in [1, 1_000, 100_000] {
        let hub = Hub::new(parser.types().clone(), Audience::default(), 1 << 30);
        // One in a hundred wants everything, the others a session each that does not occur.
        let registrations: Vec<_> = (0..subscribers)
            .map(|i| {
                let mut filter = Filter::default();
                filter.session_id = (i % 100 != 0).then(|| format!("session-{i}").into());
                hub.register(&filter)
            })
            .collect();
        let (mut fan_out, mut taken) = (FanOut::default(), Vec::new());
        group.bench_function(BenchmarkId::new("subscribers", subscribers), |b| {
            b.iter(|| {
                hub.deliver(&commits, &mut fan_out);
                for registration in registrations.iter().step_by(100) {
                    registration.outbox().try_take(&mut taken);
                    taken.clear();
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, reading, storing, fanning_out);
criterion_main!(benches);
