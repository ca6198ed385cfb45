//! The event pipeline: takes events in over HTTP and WebSocket, stores them durably in SQLite, and delivers
//! them live to every matching subscriber.
//!
//! It is one process with one file. It is not a broker with topics and partitions, not a cluster, and
//! not a place for events that may be lost: an acknowledgement means committed and synced to the disk, unless
//! the operator (`DURABILITY`) or the producer (`?ack=`) asked for less.
//!
//! The rooms, in the order an event walks through them (ARCHITECTURE.md has the picture):
//!
//! * [`event`] — what an event is: fields, rules, ids, times, filters; the parser
//! * [`record`] — the words of the record: what is retained, how safe an event is, what became of it, why not
//! * [`wire`] — what crosses the wire, as bytes: frames, batches, messages, refusals
//! * [`config`] — every default, limit and unit
//! * [`server`] — builds everything, accepts, shuts down
//! * [`http`] — routes, bodies, answers; the handshake of WebSockets
//! * [`ws`] — one WebSocket: publish or subscribe
//! * [`auth`] — keys, principals, origins, rates, slots
//! * [`transport`] — the byte stream under both
//! * [`store`] — the ordered, durable record: append, read, committed; the only SQL
//! * [`hub`] — who wants which events, and the fan-out to them
//! * [`audience`] — whether anybody follows the commits
//! * [`budget`] — memory and places that everybody shares
//! * [`outbox`] — what waits to leave one socket
//! * [`doorbell`] — one signal for all of a thread's tasks that have news
//! * [`feed`] — one subscriber's way through the record: history, then live
//! * [`ledger`] — who of a consumer group has which event in hand
//! * [`group`] — consumer groups: one stream, shared by members
//! * [`subscriptions`] — durable subscriptions: what is kept under a name
//! * [`pipeline`] — what every connection shares
//! * [`client`] — the client that commands, tests and the load test use

pub mod audience;
pub mod auth;
pub mod budget;
pub mod client;
pub mod config;
pub mod doorbell;
pub mod event;
pub mod feed;
pub mod group;
pub mod http;
pub mod hub;
pub mod ledger;
pub mod outbox;
pub mod pipeline;
pub mod record;
pub mod server;
pub mod store;
pub mod stream;
pub mod subscriptions;
mod sync;
pub mod transport;
pub mod wire;
pub mod ws;

#[cfg(all(test, feature = "shuttle"))]
mod model;
#[cfg(test)]
mod sim;
