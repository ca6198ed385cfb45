//! The stages of an event's way, one by one, and the whole of it. `cargo bench --bench pipeline` measures; words
//! behind `--` choose (`-- commit`). The test command runs each once, with few events.
//!
//! `commit` and `query` also measure with a million and ten million rows present. Those are stored once, which
//! takes half a minute and 1.4 GB below the target folder; `commit` works on a copy, which takes as much again
//! while it runs. `BENCH_ROWS_MAX` says how many rows there may be; with 100000000 it takes ten times as much.

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

/// What the server allocates with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

criterion_group!(
    stages,
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
