//! The settings as values, with their defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::words::{CorsOrigins, Durability, Hosts, LogFormat, Networks, Rate};
use crate::event::{EventTypes, Limits};

/// The effective configuration of a server. Here is what each setting is for. Its name, range and help are a row of the
/// table in `config/table.rs`, its default is in [`Config::default`].
#[derive(Clone)]
pub struct Config {
    /// Address to listen on; by default one that only this machine can reach.
    pub host: IpAddr,
    /// TCP port; with 0 the system chooses a free one, and the log names it.
    pub port: u16,
    /// Browser origins that may read answers and open sockets.
    pub cors_origins: CorsOrigins,
    /// Names under which the server may be addressed while it asks for no key.
    pub allowed_hosts: Hosts,
    /// The certificate to show, and those that vouch for it, in PEM. With it every connection is TLS.
    pub tls_cert: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Whether a certificate is made at the start instead, for this machine's own names.
    pub tls_self_signed: bool,
    /// Where `/metrics` and `/health` are served besides, without a key.
    pub metrics_address: Option<SocketAddr>,
    /// Threads that serve sockets, beside the writer's. Half of the cores by default: on a machine with
    /// two cores, one thread carries as much as two, because the writer, the fan-out and the clients need the other core.
    pub network_threads: usize,

    /// The key that allows everything. If it is empty and `require_auth` is on, every client is refused.
    pub api_key: String,
    /// Whether clients must show a key. `None`: if there is a keys file, or tokens can be verified.
    pub require_auth: Option<bool>,
    /// The named keys; `None` is `keys.toml` in the folder of the database, where it exists.
    pub keys_file: Option<PathBuf>,
    /// The secret of tokens that are signed by HS256; empty: no such token is accepted.
    pub jwt_secret: String,
    /// The public keys of tokens.
    pub jwt_keys_file: Option<PathBuf>,
    /// The `iss` that tokens must have; empty: any.
    pub jwt_issuer: String,
    /// The `aud` that tokens must have; empty: any.
    pub jwt_audience: String,
    /// Whether the server may listen on an address that other machines reach without asking for a key.
    pub allow_unauthenticated: bool,
    /// Where deletions, refusals and changes of keys are written down; `None`: nowhere.
    pub audit_file: Option<PathBuf>,
    /// Proxies that are believed when they say whom a request comes from.
    pub trusted_proxies: Networks,
    /// Most requests that publish, per key or, without one, per client address.
    pub rate_limit_publish: Option<Rate>,
    /// Most requests that read, per key or address.
    pub rate_limit_query: Option<Rate>,
    /// Most requests that delete, per key or address.
    pub rate_limit_admin: Option<Rate>,

    /// The SQLite file; created with its folder when missing.
    pub database_path: PathBuf,
    /// What an acknowledgement survives.
    pub durability: Durability,
    /// Bytes that must stay free on the volume of the database, because SQLite needs space to recover. With less, events
    /// are refused and reads go on. 1 MiB, so that small volumes work, too.
    pub free_space_min_bytes: u64,
    /// Whether the whole file is checked for damage after the start, while the server serves.
    pub check_at_start: bool,

    /// For how many microseconds at most the writer spins for the next event, while events come one by one. 400: longer
    /// than a client on the same machine takes from an answer to its next event. 0 is off, and the default where a spinning
    /// thread takes the processor from those that it waits for.
    pub writer_spin_micros: u64,

    /// Limits on one event's payload.
    pub limits: Limits,
    /// The types that may be published: the built-in ones and those the configuration adds.
    pub event_types: EventTypes,

    /// Events waiting for the writer. Beyond it, producers over WebSocket are slowed and those over HTTP are refused; no
    /// event is dropped. 10,000 are about five commits at full speed, which take 25 ms.
    pub max_queue_size: usize,
    /// Bytes of events waiting for the writer, so that large payloads cannot fill the memory.
    pub max_queue_bytes: usize,
    /// Subscribers at one time.
    pub max_subscribers: usize,
    /// Durable subscriptions and groups; each costs a row and some memory, also while no subscriber is connected.
    pub max_subscriptions: usize,
    /// Connections of any kind at one time; twice the subscribers, so that these leave slots for the producers.
    pub max_connections: usize,
    /// WebSockets with one key or, without one, from one address at one time; 0 is unlimited, because a school is often one address.
    pub max_ws_connections_per_ip: usize,
    /// Bytes of one WebSocket message; a larger one is answered with an error.
    pub max_ws_message_bytes: usize,
    /// Bytes of one HTTP body; 16 MiB are enough for 1,000 events of 16 KiB. At most 256 MiB can be set: a batch counts
    /// its bytes in 31 bits, and the smallest events grow sixfold when they are encoded.
    pub max_body_bytes: usize,
    /// Bytes of memory for all HTTP bodies and WebSocket messages in progress, small ones aside, and for the events parsed
    /// from them. 256 MiB hold two bodies of the largest size at one time, or 36 MiB of smaller ones, which a gigabit line
    /// brings in a third of a second.
    pub max_bodies_bytes: usize,
    /// Bytes of memory for all pages of `GET /events` and other answers, small ones aside, that are being read or sent.
    /// 256 MiB hold 64 pages of the largest size, or a thousand of 1,000 usual events. A client that takes no byte is given
    /// up after `write_timeout`.
    pub max_pages_bytes: usize,
    /// Unanswered events a publishing socket may have before it is no longer read, so that TCP slows its producer.
    pub max_in_flight: usize,
    /// Bytes waiting for one subscriber before it is served from storage instead. The same amount may be in the write under
    /// way, so a slow subscriber costs twice that; if one delivery is larger than this, the subscriber costs that delivery.
    pub max_subscriber_bytes: usize,

    /// Time until the head of a request is complete; after it, a silent connection is closed.
    pub header_timeout: Duration,
    /// Time until the body of a request is complete.
    pub body_timeout: Duration,
    /// Time for one search of the stored events before an answer begins. In 10 s some ten million events are looked at. An
    /// export has no such limit.
    pub read_timeout: Duration,
    /// A peer that takes no byte for this long is closed, also if the bytes it does not take lie in the system's buffers.
    pub write_timeout: Duration,
    /// Time for a subscriber's first message.
    pub subscribe_timeout: Duration,
    /// A subscriber that was sent nothing for this long is sent a keep-alive; usual proxies close after 60 s. A WebSocket
    /// that sends nothing for this long is pinged with the next keep-alive.
    pub keepalive_interval: Duration,
    /// A WebSocket that sends nothing for this long after a ping is closed; this is checked with each keep-alive. It is
    /// long, because a slow peer gets the ping only after everything that was sent before it. A peer that vanished from the
    /// network is found by `write_timeout`, because it does not take the ping either.
    pub ping_timeout: Duration,
    /// Time for an orderly shutdown: a quarter of it for producers, half for storing, the rest for subscribers. After it
    /// the process exits regardless. Container runtimes kill after 10 s.
    pub shutdown_timeout: Duration,

    /// Directives of the log's filter: a level, or `target=level` pairs separated by commas.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Config {
    /// Whether clients speak TLS with the server.
    pub fn serves_tls(&self) -> bool {
        self.tls_cert.is_some() || self.tls_self_signed
    }

    /// Where the named keys are, whether the file exists or not.
    pub fn keys_path(&self) -> PathBuf {
        self.keys_file.clone().unwrap_or_else(|| self.database_path.with_file_name("keys.toml"))
    }

    /// Where the key of the hashes in the audit is: beside the audit.
    pub fn audit_key_path(&self) -> Option<PathBuf> {
        self.audit_file.as_ref().map(|path| path.with_added_extension("key"))
    }
}

#[cfg(test)]
impl Config {
    /// The configuration of a store in a test: nothing is synced, and no free space is demanded.
    pub fn of_test(database_path: impl Into<PathBuf>) -> Self {
        let durability = Durability::Off;
        Self { database_path: database_path.into(), durability, free_space_min_bytes: 0, ..Self::default() }
    }
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let processors = rustix::thread::sched_getaffinity(None).map_or(cores, |set| set.count() as usize);
        Self {
            host: Ipv4Addr::LOCALHOST.into(),
            port: 8001,
            cors_origins: CorsOrigins::Auto,
            allowed_hosts: Hosts::default(),
            tls_cert: None,
            tls_key: None,
            tls_self_signed: false,
            metrics_address: None,
            network_threads: (cores / 2).max(1),
            api_key: String::new(),
            require_auth: None,
            keys_file: None,
            jwt_secret: String::new(),
            jwt_keys_file: None,
            jwt_issuer: String::new(),
            jwt_audience: String::new(),
            allow_unauthenticated: false,
            audit_file: None,
            trusted_proxies: Networks::default(),
            rate_limit_publish: None,
            rate_limit_query: None,
            rate_limit_admin: None,
            database_path: "data/events.db".into(),
            durability: Durability::Full,
            free_space_min_bytes: 1 << 20,
            check_at_start: true,
            writer_spin_micros: spin_micros(cores, processors),
            limits: Limits { payload_keys_max: 50, payload_bytes_max: 64 << 10 },
            event_types: EventTypes::builtin(),
            max_queue_size: 10_000,
            max_queue_bytes: 64 << 20,
            max_subscribers: 10_000,
            max_subscriptions: 10_000,
            max_connections: 20_000,
            max_ws_connections_per_ip: 0,
            max_ws_message_bytes: 1 << 20,
            max_body_bytes: 16 << 20,
            max_bodies_bytes: 256 << 20,
            max_pages_bytes: 256 << 20,
            max_in_flight: 4096,
            max_subscriber_bytes: 4 << 20,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            subscribe_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(60),
            shutdown_timeout: Duration::from_secs(8),
            log_level: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}

/// The default of `writer_spin_micros`. `cores` is how many threads can run at one time, `processors` how many processors
/// they may run on. The first is less than the second where a control group limits the time of the processors: spinning
/// would use up that time.
fn spin_micros(cores: usize, processors: usize) -> u64 {
    if cores > 1 && cores >= processors { 400 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_does_not_spin_on_one_processor_or_under_a_limit_of_processor_time() {
        let of = [(1, 1), (2, 2), (64, 64), (1, 2), (3, 4)].map(|(cores, processors)| spin_micros(cores, processors));
        assert_eq!(of, [0, 400, 400, 0, 0]);
    }
}
