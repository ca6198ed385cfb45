//! Simulation: the whole pipeline on one thread, driven by a seed. The files are real. The writer, the sealer, the
//! checkpointer, the fan-out and the tasks of subscribers and groups run step by step, so that a seed picks one order
//! of appends, commits, deliveries, catch-up, overflow, deletions, confirmations, repeats of keys, full disks, crashes
//! and power cuts, the same order each time.
//!
//! Beside it there is a model, a list of events and a few rules, and every step is compared with it. `SIM_SEED=123`
//! replays one seed. `SIM_SEEDS=3000` runs that many, from `SIM_FIRST` on, on as many threads as there are cores. One
//! seed in a hundred is run once for each of its actions, with a crash after that action; `SIM_CRASH_EVERY=1` does so
//! with all seeds.
//!
//! * [`seeds`] — the test: which seeds are run, and how one runs
//! * [`copies`] — another test: one history applied to two databases
//! * [`actions`] — what may happen next, and how often
//! * [`endings`] — crashes, power cuts and orderly restarts
//! * [`readers`], [`producers`] — what clients do, and what the server's threads do for them
//! * [`checks`] — the store's answers compared with the model
//! * [`world`] — the server, the model and all clients
//! * [`group`], [`subscriber`] — clients with the tasks that serve them
//! * [`feed_task`] — one step of such a task
//! * [`durable`] — the states of durable subscriptions that the store was asked to store
//! * [`model`] — what must be true
//! * [`unanswered`] — batches whose producers wait for an answer
//! * [`server`] — the real server, in parts
//! * [`filter`] — filters, and what each has to mean
//! * [`event`] — events, and the bytes that each has to become
//! * [`pending`], [`random`] — polling the store's promises; random numbers from a seed

mod actions;
mod checks;
mod copies;
mod durable;
mod endings;
mod event;
mod feed_task;
mod filter;
mod group;
mod model;
mod pending;
mod producers;
pub(crate) mod random;
mod readers;
mod seeds;
mod server;
mod subscriber;
mod unanswered;
mod world;
