//! The stages of an event's path one by one, and the whole path. `cargo bench --bench pipeline` measures; words after `--`
//! choose benches (`-- commit`). The test command runs each bench once, with few events.
//!
//! `commit` and `query` also measure in files with a million and ten million rows. These are filled once, which takes half
//! a minute and 1.4 GB below the target folder; `commit` works on a copy, which takes as much again while it runs.
//! `BENCH_ROWS_MAX` limits the rows; 100000000 adds a file that takes ten times as much.

mod access;
mod commit;
mod end_to_end;
mod filled;
mod frame;
mod hub;
mod parse;
mod query;
mod queue;
mod render;
mod seal;
#[path = "../workload/mod.rs"]
mod workload;

use criterion::{criterion_group, criterion_main};

/// The allocator of the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

criterion_group!(
    stages,
    access::keys,
    frame::decode,
    frame::encode,
    parse::parse,
    render::answers,
    render::events,
    queue::queue,
    commit::commit,
    commit::commit_filled,
    commit::commit_keyed,
    seal::seal,
    hub::deliver,
    query::query,
    end_to_end::end_to_end
);
criterion_main!(stages);
