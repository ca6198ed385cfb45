//! A load test for the event pipeline, measured as its users would measure it: from outside, over the wire.
//!
//! One thread does everything, so that the server has the other cores to itself: requests are rendered before
//! the clock starts, and answers are read for their ids and nothing else. Every run is also verified: one that finds a
//! broken promise says so and ends with 1, and so does one in which what the scenario exists for did not happen.
//!
//! An event is *due* at its intended send time. At a rate, latency counts from then, so that a server that stalls does
//! not make the load test omit the latencies of the events that had to wait (coordinated omission).
//!
//! Words, beside those of `ARCHITECTURE.md`:
//!
//! | word | meaning |
//! |---|---|
//! | **target** | the server under test; **site**: the target of one run, with what it had stored before |
//! | **told** | written for a person: in a table, on a page, on stderr |
//! | **asked** | wanted by the options, such as a rate; in queries, sent to the server |
//! | **window** | most requests, or events, that are under way on one connection |
//! | **flow** | what a producer waits for before it sends, besides its window |
//! | **turn** | a producer's part in a rate: a share of it, or times of its own |
//! | **names** | the types, sessions and users that events can have; **keys**: which of them one event has |
//! | **audience** | subscribers with one kind of filter; **way**: how they get their events |
//! | **dialect** | how a server answers producers; **framing**: how requests are put to it |
//! | **to exercise** | to make happen what a scenario is there for, such as a refusal |
//!
//! Besides the command line, the crate offers what `loadtest-peers` needs to bring other servers under the same load: a
//! [`Driver`] for each, and a [`program`] that measures them in turns.
//!
//! Imports point strictly down this list:
//!
//! * [`cli`] — the command line
//! * [`peer`] — a server of another kind under the same load
//! * [`floors`] — what the machine gives: syncs, bare answers, bare sends
//! * [`scenario`] — the workloads, each with its options and what it verifies
//! * [`program`] — what a program of this crate does: measures in turns, and ends with an exit code
//! * [`output`] — what is made of runs: text, files, pages, and the exit code
//! * [`summary`] — all runs of a call at a glance
//! * [`html`] — runs as a page with plots
//! * [`export`] — runs in the formats of other tools
//! * [`fail_if`] — conditions under which runs count as failed
//! * [`record`] — recordings from a database
//! * [`compare`] — what changed from one set of runs to the next
//! * [`run_files`] — runs read from files, and which of them measured the same
//! * [`metric`] — the metrics of runs, their spread, and how they differ
//! * [`rank_test`] — how often chance alone makes such a difference
//! * [`report`] — one run as a table or as JSON
//! * [`read_back`] — whether what is stored is what was sent
//! * [`workload`] — producers, subscribers and readers, driven, measured and verified together
//! * [`query_client`] — sends queries and checks the answers
//! * [`query`] — a query, and the check of its answer
//! * [`producer`] — publishes, as fast as its window allows or at a rate
//! * [`tracker`] — the requests of a producer, and the check of their answers
//! * [`subscriber`] — receives events and checks them
//! * [`deliveries`] — what subscribers must receive, and what they have received
//! * [`tasks`] — all tasks of one run
//! * [`run`] — what they share: the clock, the counts, the latencies, the verification
//! * [`measurement`] — what was counted and used in the measured interval
//! * [`progress`] — what a person sees meanwhile
//! * [`timeline`] — how a run went over time
//! * [`options`] — options of every scenario
//! * [`schedule`] — rates, and when requests are due
//! * [`connection`] — one socket: batches out, frames or responses in
//! * [`target`] — the server under test: one of our own, one that runs already, or one of another kind
//! * [`dial`] — how a connection is made
//! * [`process`] — a server started from here, and its folder
//! * [`wire`] — frames, responses and event streams in what a server sends
//! * [`usage`], [`disk`] — what a process used, from `/proc` and its disk
//! * [`interrupt`] — Ctrl-C
//! * [`verification`] — which events were acknowledged, and which promises were broken
//! * [`due_times`] — when each event was due
//! * [`finding`] — what a run found beside counts and latencies
//! * [`latency`] — what is timed, and its percentiles
//! * [`answer`] — the ids in an answer, found without parsing
//! * [`requests`] — requests rendered in advance
//! * [`events`] — the events that are published, and their key space
//! * [`recording`] — a recorded class, and copies of it
//! * [`random`] — random numbers that are the same in each run
//! * [`numbers`] — numbers as people read them
//! * [`machine`] — the machine that everything runs on

mod answer;
mod cli;
mod compare;
mod connection;
mod deliveries;
mod dial;
mod disk;
mod due_times;
mod events;
mod export;
mod fail_if;
mod finding;
mod floors;
mod html;
mod interrupt;
mod latency;
mod machine;
mod measurement;
mod metric;
mod numbers;
mod options;
mod output;
mod peer;
mod process;
mod producer;
pub mod program;
mod progress;
mod query;
mod query_client;
mod random;
mod rank_test;
mod read_back;
mod record;
mod recording;
mod report;
mod requests;
mod run;
mod run_files;
mod scenario;
mod schedule;
mod subscriber;
mod summary;
mod target;
mod tasks;
mod timeline;
mod tracker;
mod usage;
mod verification;
mod wire;
mod workload;

pub use cli::main;
pub use connection::{Connection, Scratch};
pub use options::Common;
pub use output::Output;
pub use peer::Driver;
pub use process::{Folder, Process};
pub use report::Report;
pub use scenario::fanout::Fanout;
pub use scenario::publish::{Publish, Via};
pub use schedule::Rate;
pub use subscriber::Receive;
pub use target::{Subject, Target};
pub use tracker::{Answers, Dialect, Outcome};
pub use wire::in_two_pieces;
