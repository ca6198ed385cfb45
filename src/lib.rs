//! The event pipeline: receives events over HTTP and WebSocket, stores them durably in SQLite, and delivers them live to
//! every matching subscriber.
//!
//! It is one process with one database file. It is not a broker with topics and partitions, not a cluster, and not a cache
//! of events that may be lost: an acknowledged event is committed and synced to the disk, unless the operator
//! (`DURABILITY`) or the producer (`?ack=`) asked for less.
//!
//! The modules in the order in which an event passes through them; ARCHITECTURE.md has the picture and the words:
//!
//! * [`config`]: every setting, with its default and limits
//! * [`server`]: starts everything, accepts connections, shuts down in order
//! * [`event`]: what an event is: fields, rules, ids, times, filters; its parser
//! * [`record`]: the words of the record: what is retained, how safe an event is, what became of it, why not
//! * [`wire`]: what crosses the network, as bytes: frames, batches, messages, refusals
//! * [`http`]: routes, request bodies, answers, event streams, the handshake of WebSockets
//! * [`ws`]: one WebSocket, which publishes or subscribes
//! * [`transport`]: the byte stream under HTTP and WebSocket
//! * [`tls`]: the certificate that the server shows, read again when it changes
//! * [`watch`]: whether files have changed
//! * [`auth`]: API keys, principals, origins, rates, connection slots
//! * [`budget`]: memory and other amounts that all clients share
//! * [`histogram`]: how long things take
//! * [`pipeline`]: the state that all connections share
//! * [`store`]: the durable, ordered record in SQLite; the only module with SQL
//! * [`audience`]: whether anything follows the commits
//! * [`hub`]: the index of subscribers by filter, and the fan-out of commits to them
//! * [`outbox`]: a bounded queue of what waits to leave one socket
//! * [`doorbell`]: one signal that wakes many tasks of another thread
//! * [`feed`]: one subscriber's way through the record: history, then live
//! * [`stream`]: a feed with what its subscriber asked for besides, such as a snapshot or conflation
//! * [`ledger`]: which member of a consumer group has which event in hand
//! * [`group`]: consumer groups, whose members share one stream
//! * [`subscriptions`]: durable subscriptions, stored under a name
//! * [`web`]: the documents of the interface, and pages, as files in the binary
//! * [`client`]: the client that the commands and the load test use

pub mod audience;
pub mod auth;
pub mod budget;
pub mod client;
pub mod config;
pub mod doorbell;
pub mod event;
pub mod feed;
pub mod group;
pub mod histogram;
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
pub mod tls;
pub mod transport;
pub mod watch;
pub mod web;
pub mod wire;
pub mod ws;

#[cfg(all(test, feature = "shuttle"))]
mod model;
#[cfg(test)]
mod sim;
