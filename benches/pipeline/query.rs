use std::hint::black_box;
use std::ops::ControlFlow;

use criterion::{Bencher, Criterion};
use event_pipeline::event::{Field, Filter, Seq, Timestamp, TimestampText};
use event_pipeline::store::{Order, Query, Store};

use crate::filled;
use crate::workload::{self, Record};

/// The reads of HTTP, rendered as HTTP renders them, in a file with many rows.
pub fn query(c: &mut Criterion) {
    for rows in filled::sizes() {
        let mut group = c.benchmark_group(format!("query {rows} rows"));
        let middle = Seq(rows as u64 / 2);
        let absent = Filter::default().with(Field::Session, ["nobody"]);
        let newest = |filter| Query { filter, order: Order::NewestFirst, ..Query::default() };
        let pages = [
            ("last 100", newest(Filter::default())),
            ("last 100 of a session", newest(workload::own_session(7))),
            ("last 100 of a type", newest(Filter::default().with_types(["timer_tick"]))),
            ("an absent session", newest(absent)),
            ("100 before an id", Query { before: Some(middle), ..newest(Filter::default()) }),
            ("100 before an id of a session", Query { before: Some(middle), ..newest(workload::own_session(7)) }),
        ];
        for (name, query) in pages {
            group.bench_function(name, |b| page(b, &open(rows).store, &query));
        }
        group.bench_function("last 100 since a time", |b| {
            let record = open(rows);
            page(b, &record.store, &Query { since: Some(time_of(&record.store, middle)), ..newest(Filter::default()) });
        });
        group.bench_function("one event", |b| {
            let (record, id) = (open(rows), middle.id().to_string());
            b.iter(|| record.store.reader().event(&id, &Filter::default()).expect("readable").expect("an event"));
        });
        group.bench_function("statistics", |b| {
            let record = open(rows);
            b.iter(|| record.store.reader().stats(Timestamp::now()).expect("readable"));
        });
    }
}

/// Opened where it is measured, so that a bench that is not chosen fills no file.
fn open(rows: usize) -> Record {
    Record::at(&filled::file(rows))
}

fn page(b: &mut Bencher<'_>, store: &Store, query: &Query) {
    let (mut out, mut time) = (Vec::new(), TimestampText::default());
    b.iter(|| {
        out.clear();
        let mut left = 100;
        let scanned = store.reader().scan(query, |event| {
            event.write_json(&mut out, &mut time);
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        black_box(scanned.expect("readable"))
    });
}

fn time_of(store: &Store, seq: Seq) -> Timestamp {
    let mut time = None;
    let after = Query { after: seq.prev(), ..Query::default() };
    let scanned = store.reader().scan(&after, |event| {
        time = Some(event.time);
        ControlFlow::Break(())
    });
    scanned.expect("readable");
    time.expect("an event")
}
