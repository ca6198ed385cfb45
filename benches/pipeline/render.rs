use std::ops::ControlFlow;

use criterion::{Criterion, Throughput};
use event_pipeline::event::{Parsed, Seq, TimestampText};
use event_pipeline::record::{AckLevel, Outcomes};
use event_pipeline::store::Query;
use event_pipeline::wire::Batch;
use event_pipeline::wire::answer::{Ack, AckMode, AnswerWriter, Answered, Answers, write_ids};
use event_pipeline::wire::batch::StoredText;

use crate::workload::{self, Record};

/// The answers to the events of one read, once they are committed.
pub fn answers(c: &mut Criterion) {
    const EVENTS: usize = workload::BATCH_EVENTS;
    let mut answers = Answers::default();
    (0..EVENTS).for_each(|_| answers.note(&Parsed { reference: None, result: Ok(None) }));
    let single = Answered { outcomes: Ok(Outcomes::From(Seq(1), AckLevel::Synced)), answers };
    let mut answers = Answers::default();
    (0..EVENTS).for_each(|_| answers.note(&Parsed { reference: Some("12345"), result: Ok(None) }));
    let referring = Answered { outcomes: Ok(Outcomes::From(Seq(1), AckLevel::Synced)), answers };

    let mut out = Vec::new();
    let mut group = c.benchmark_group("render");
    group.throughput(Throughput::Elements(EVENTS as u64));
    let each = [
        ("acknowledgements one by one", AckMode::Each, &single),
        ("acknowledgements with ref", AckMode::Each, &referring),
        ("one acknowledgement for all", AckMode::Batch, &single),
    ];
    for (name, mode, answered) in each {
        let mut writer = AnswerWriter::new(Ack { mode, level: None });
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                writer.write(answered, &mut out);
                writer.finish(&mut out);
            });
        });
    }
    group.bench_function("ids of an array", |b| {
        b.iter(|| {
            out.clear();
            write_ids((0..EVENTS).map(|n| Seq(1).plus(n)), &mut out);
        });
    });
}

/// Stored events as a query gets them, and as a subscriber to history does; the read itself is included.
pub fn events(c: &mut Criterion) {
    let events = workload::class();
    let record = Record::new();
    record.store(workload::batch(&events));
    let (mut out, mut time, mut text) = (Vec::new(), TimestampText::default(), StoredText::default());
    let mut group = c.benchmark_group("render");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("stored events as JSON", |b| {
        b.iter(|| {
            out.clear();
            let scanned = record.store.reader().scan(&Query::default(), |event| {
                event.write_json(&mut out, &mut time);
                ControlFlow::Continue(())
            });
            scanned.expect("readable")
        });
    });
    group.bench_function("stored events as frames", |b| {
        b.iter(|| {
            let mut batch = Batch::default();
            let scanned = record.store.reader().scan(&Query::default(), |event| {
                batch.push_stored(&event, &mut text);
                ControlFlow::Continue(())
            });
            scanned.map(|_| batch).expect("readable")
        });
    });
}
