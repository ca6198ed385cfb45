use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use event_pipeline::audience::Audience;
use event_pipeline::event::{Field, Filter};
use event_pipeline::hub::{FanOut, Hub};

use crate::workload;

/// The fan-out of one commit into the outboxes of its subscribers. Taking it out of them is not measured.
pub fn deliver(c: &mut Criterion) {
    const EVENTS: usize = 1_000;
    let commits = [Arc::new(workload::commit(&workload::school(EVENTS)))];
    type FilterOf = fn(u32) -> Filter;
    // Not 100,000 subscribers to everything: no deployment has them, and the copying would be all that is measured.
    let audiences: [(&str, FilterOf, &[u32]); 3] = [
        ("everything", |_| Filter::default(), &[1, 1_000]),
        ("a session each", workload::own_session, &[1, 1_000, 100_000]),
        ("mixed", mixed, &[1_000, 100_000]),
    ];
    for (name, filter, sizes) in audiences {
        let mut group = c.benchmark_group(format!("deliver 1000 events, {name}"));
        group.throughput(Throughput::Elements(EVENTS as u64));
        for &subscribers in sizes {
            group.bench_function(BenchmarkId::from_parameter(subscribers), |b| {
                let hub = Hub::new(Audience::default(), 1 << 30);
                let registrations: Vec<_> = (0..subscribers).map(|i| hub.register(&filter(i))).collect();
                let (mut fan_out, mut taken) = (FanOut::default(), Vec::new());
                let take = || {
                    for registration in &registrations {
                        registration.outbox().try_take(&mut taken);
                        taken.clear();
                    }
                };
                b.iter_batched(take, |()| hub.deliver(&commits, &mut fan_out), BatchSize::PerIteration);
            });
        }
    }
}

/// Mostly students and teachers who watch one session or one user, some who watch types, and one in a thousand
/// who watches everything.
fn mixed(number: u32) -> Filter {
    let any = Filter::default();
    match number % 1_000 {
        0 => any,
        1..=49 => any.with_types(["quiz_started", "quiz_completed"]),
        50..=99 => any.with_types(["answer_submitted"]).with(Field::Source, ["quiz-engine"]),
        100..=499 => any.with(Field::User, [workload::user_id(number % workload::USERS)]),
        _ => workload::own_session(number),
    }
}
