//! The hot path, stage by stage. Each stage prepares everything, and then does its work inside [`counted`].

use std::hint::black_box;
use std::ops::ControlFlow;
use std::slice;
use std::sync::Arc;

use event_pipeline::audience::Audience;
use event_pipeline::event::{Event, Filter, Parsed, Seq};
use event_pipeline::hub::{FanOut, Hub};
use event_pipeline::record::{AckLevel, Outcomes};
use event_pipeline::store::Query;
use event_pipeline::wire::Batch;
use event_pipeline::wire::answer::{Ack, AnswerWriter, Answered, Answers};
use event_pipeline::wire::batch::StoredText;
use event_pipeline::wire::decoder::Decoder;
use event_pipeline::wire::frame::Role;

use crate::workload::{self, BATCH_EVENTS, Record};

/// A stage of an event's path.
pub struct Stage {
    pub name: &'static str,
    /// The thread that does the work.
    pub thread: &'static str,
    /// Events that pass through the stage.
    pub events: usize,
    run: fn(usize, Done<'_>),
}

/// Called at the end of a stage, while everything that it uses still exists.
type Done<'d> = &'d dyn Fn();

/// The thread that runs the stages.
pub const MAIN: &str = "main";

/// Enough events that the cost of a commit or of a batch has its real share.
const EVENTS: usize = 10_000;
const COMMIT_EVENTS: usize = 1_000;

pub const STAGES: &[Stage] = &[
    Stage { name: "decode", thread: MAIN, events: EVENTS, run: decode },
    Stage { name: "parse", thread: MAIN, events: EVENTS, run: parse },
    Stage { name: "encode", thread: MAIN, events: EVENTS, run: encode },
    Stage { name: "stamp", thread: MAIN, events: EVENTS, run: stamp },
    Stage { name: "store", thread: "writer", events: EVENTS, run: |events, done| store(events, COMMIT_EVENTS, done) },
    Stage { name: "store-one", thread: "writer", events: 1_000, run: |events, done| store(events, 1, done) },
    Stage { name: "seal", thread: "sealer", events: workload::SEGMENT_EVENTS, run: seal },
    Stage { name: "answer", thread: MAIN, events: 100 * BATCH_EVENTS, run: answer },
    Stage {
        name: "deliver-all",
        thread: MAIN,
        events: EVENTS,
        run: |events, done| deliver(events, 100, anything, done),
    },
    Stage {
        name: "deliver-own",
        thread: MAIN,
        events: EVENTS,
        run: |events, done| deliver(events, workload::SESSIONS, workload::own_session, done),
    },
    Stage { name: "read", thread: MAIN, events: EVENTS, run: read },
];

impl Stage {
    pub fn run(&self, done: Done<'_>) {
        (self.run)(self.events, done);
    }

    /// Runs with few events, as a test.
    pub fn run_once(&self) {
        (self.run)(self.events.min(2), &|| {});
    }
}

/// Does the work of a stage. Callgrind finds this function by its name, and counts what the calling thread does inside.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
    // With nothing after it, the call would become a jump, and callgrind would not see the return.
    black_box(());
}

fn decode(events: usize, done: Done<'_>) {
    let stream = workload::frames(&workload::school(events));
    let mut decoder = Decoder::new(Role::Server, 1 << 20).with_received(&stream);
    counted(&mut || {
        while let Some(message) = decoder.next().expect("valid frames") {
            black_box(message);
        }
    });
    done();
}

fn parse(events: usize, done: Done<'_>) {
    let (events, mut parser) = (workload::school(events), workload::parser());
    let mut parse = |text: &String| {
        let parsed = parser.parse(text, |event| {
            black_box(event);
        });
        parsed.result.expect("an event");
    };
    // The first parse detects the vector instructions, and allocates.
    parse(&events[0]);
    counted(&mut || events.iter().for_each(&mut parse));
    done();
}

fn encode(events: usize, done: Done<'_>) {
    let types = workload::types();
    let texts: Vec<serde_json::Value> =
        workload::school(events).iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
    let payloads: Vec<String> = texts.iter().map(|event| event["payload"].to_string()).collect();
    let events: Vec<Event<'_>> = texts
        .iter()
        .zip(&payloads)
        .map(|(event, payload)| Event {
            event_type: types.get(event["event_type"].as_str().expect("a type")).expect("built in"),
            source: event["source"].as_str().expect("a source"),
            session_id: event["session_id"].as_str(),
            user_id: event["user_id"].as_str(),
            payload,
            idempotency_key: None,
        })
        .collect();
    counted(&mut || {
        for events in events.chunks(BATCH_EVENTS) {
            let mut batch = Batch::default();
            events.iter().for_each(|event| batch.push(event, &types));
            black_box(batch);
        }
    });
    done();
}

fn stamp(events: usize, done: Done<'_>) {
    let mut batch = workload::batch(&workload::school(events));
    counted(&mut || workload::stamp(&mut batch, Seq(1)));
    done();
}

fn store(events: usize, commit_events: usize, done: Done<'_>) {
    let record = Record::new();
    let batches: Vec<_> = workload::school(events).chunks(commit_events).map(workload::batch).collect();
    batches.into_iter().for_each(|batch| record.store(batch));
    done();
}

/// Fills a segment and begins the next one, which has the first one sealed.
fn seal(events: usize, done: Done<'_>) {
    let record = Record::new();
    for chunk in workload::school(events + 1).chunks(COMMIT_EVENTS) {
        record.store(workload::batch(chunk));
    }
    if events == workload::SEGMENT_EVENTS {
        record.wait_until_sealed(1);
    }
    done();
}

fn answer(events: usize, done: Done<'_>) {
    let mut answers = Answers::default();
    (0..BATCH_EVENTS).for_each(|_| answers.note(&Parsed { reference: None, result: Ok(None) }));
    let answered = Answered { outcomes: Ok(Outcomes::From(Seq(1), AckLevel::Synced)), answers };
    let (mut writer, mut out) = (AnswerWriter::new(Ack::default()), Vec::new());
    let mut answer = |_| {
        out.clear();
        writer.write(&answered, &mut out);
    };
    // The first answers allocate.
    answer(0);
    counted(&mut || (0..events / BATCH_EVENTS).for_each(&mut answer));
    done();
}

fn anything(_: u32) -> Filter {
    Filter::default()
}

/// The fan-out of commits to the outboxes of subscribers.
fn deliver(events: usize, subscribers: u32, filter: fn(u32) -> Filter, done: Done<'_>) {
    let commits: Vec<_> = workload::school(events).chunks(COMMIT_EVENTS).map(workload::commit).map(Arc::new).collect();
    let hub = Hub::new(Audience::default(), 1 << 30);
    let registrations: Vec<_> = (0..subscribers).map(|i| hub.register(&filter(i))).collect();
    let (mut fan_out, mut taken) = (FanOut::default(), Vec::new());
    let mut take = || {
        for registration in &registrations {
            registration.outbox().try_take(&mut taken);
            taken.clear();
        }
    };
    // The first commit allocates.
    hub.deliver(&commits[..1], &mut fan_out);
    for commit in &commits {
        take();
        counted(&mut || {
            hub.deliver(slice::from_ref(commit), &mut fan_out);
        });
    }
    done();
}

/// Events from storage, as frames.
fn read(events: usize, done: Done<'_>) {
    let record = Record::new();
    record.store(workload::batch(&workload::school(events)));
    let mut text = StoredText::default();
    let mut read = || {
        let mut batch = Batch::default();
        let scanned = record.store.reader().scan(&Query::default(), |event| {
            batch.push_stored(&event, &mut text);
            ControlFlow::Continue(())
        });
        scanned.expect("readable");
    };
    // The first read opens the connection.
    read();
    counted(&mut read);
    done();
}
