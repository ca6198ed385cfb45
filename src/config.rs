//! Every default, limit and unit, with its reason. What an operator typed becomes a checked [`Config`]
//! before anything is opened or bound.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgMatches};
use tracing_subscriber::EnvFilter;

use crate::event::{EventTypes, Limits};

/// The effective configuration of a server. Each field is one row of [`SETTINGS`], which holds its name,
/// its range and its help; the defaults are in [`Config::default`]. Here is what each one is for.
#[derive(Clone)]
pub struct Config {
    /// Address to listen on; every interface by default, as the service this one replaces did.
    pub host: IpAddr,
    /// TCP port; 0 takes any free one, which the log then names.
    pub port: u16,
    /// Browser origins that may read answers and open sockets; any by default, for a classroom's own network.
    pub cors_origins: CorsOrigins,
    /// Threads that serve sockets, beside the writer's. Half of the cores by default: one thread carries as
    /// much as two on a two-core machine, where the writer, the fan-out and the clients need the other core.
    pub network_threads: usize,

    /// The key that opens everything; empty lets nobody in once `require_auth` is on.
    pub api_key: String,
    /// Whether a key is asked for at all.
    pub require_auth: bool,
    /// Most requests that publish, per client address.
    pub rate_limit_publish: Option<Rate>,
    /// Most requests that read, per client address.
    pub rate_limit_query: Option<Rate>,
    /// Most requests that delete, per client address.
    pub rate_limit_admin: Option<Rate>,

    /// The SQLite file; created with its folder when missing.
    pub database_path: PathBuf,
    /// What an acknowledgement survives.
    pub durability: Durability,
    /// Bytes that must stay free on the volume of the database: below it events are refused while reads go on,
    /// because SQLite needs room to recover. 1 MiB, so that small volumes work too.
    pub free_space_min_bytes: u64,
    pub check_at_start: bool,

    /// Limits on one event's payload.
    pub limits: Limits,
    /// The types that may be published: the built-in ones and those the configuration adds.
    pub event_types: EventTypes,

    /// Events waiting for the writer; beyond it producers are slowed or told, and nothing is dropped.
    /// 10,000 are about five commits at full speed, 25 ms of waiting.
    pub max_queue_size: usize,
    /// Bytes of events waiting for the writer, so that large payloads cannot fill the memory.
    pub max_queue_bytes: usize,
    /// Subscribers at one time.
    pub max_subscribers: usize,
    /// Durable subscriptions that are kept; each costs a row and some memory, whether anybody is connected or not.
    pub max_subscriptions: usize,
    /// Sockets of any kind at one time; twice the subscribers, so that these never shut out the producers.
    pub max_connections: usize,
    /// WebSockets from one address at one time; 0 is unlimited, because a school is often one address.
    pub max_ws_connections_per_ip: usize,
    /// Bytes of one WebSocket message; a larger one is answered with an error.
    pub max_ws_message_bytes: usize,
    /// Bytes of one HTTP body; enough for 1,000 events of 16 KiB. At most 256 MiB: a batch counts its
    /// bytes in 31 bits, and the smallest events grow sixfold when they are encoded.
    pub max_body_bytes: usize,
    /// Bytes of memory for all HTTP bodies and WebSocket messages under way and what is read from them, apart from small
    /// ones. Two bodies of the largest size at one time, or 36 MiB of smaller ones: a third of a second of a gigabit line.
    pub max_bodies_bytes: usize,
    /// Bytes of memory for all pages of `GET /events` that are being read or not taken yet, and for all other answers, apart
    /// from small ones: 64 pages of
    /// the largest, or a thousand of 1,000 usual events. A client that takes none is given up after `write_timeout`.
    pub max_pages_bytes: usize,
    /// Unanswered events a publishing socket may have before it is no longer read, so that TCP slows its producer.
    pub max_in_flight: usize,
    /// Bytes waiting for one subscriber before it is served from storage instead. As many may be being written, so a
    /// slow one costs twice that; where one delivery is larger than this, it costs that delivery.
    pub max_subscriber_bytes: usize,

    /// Time for the head of a request to be complete; a silent connection is closed.
    pub header_timeout: Duration,
    /// Time for the body of a request to be complete.
    pub body_timeout: Duration,
    /// Time for one search of the stored events before an answer begins. In 10 s some ten million events are looked at;
    /// an export has no such bound.
    pub read_timeout: Duration,
    /// A peer that takes no byte for so long is closed, also when what it does not take lies in the system's buffers.
    pub write_timeout: Duration,
    /// Time for a subscriber's first message.
    pub subscribe_timeout: Duration,
    /// Silence towards a subscriber after which it is sent a keep-alive; below the 60 s of usual proxies. A WebSocket
    /// that says nothing for so long is pinged with the next one.
    pub keepalive_interval: Duration,
    /// A WebSocket that says nothing for so long after a ping, looked at once a keep-alive, is closed. Long, because who
    /// is slow finds the ping behind all that it has yet to read; who vanished from the network is found by
    /// `write_timeout`, as the ping itself does not get through.
    pub ping_timeout: Duration,
    /// Time for an orderly end, of which producers get a quarter, storing half, and subscribers the rest; then the
    /// process exits regardless. Container runtimes kill after 10 s.
    pub shutdown_timeout: Duration,

    /// Directives of the log's filter: a level, or `target=level` separated by commas.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[cfg(test)]
impl Config {
    /// For a store in a test: nothing is synced, and no disk is too full.
    pub fn of_test(database_path: impl Into<PathBuf>) -> Self {
        let durability = Durability::Off;
        Self { database_path: database_path.into(), durability, free_space_min_bytes: 0, ..Self::default() }
    }
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            host: Ipv4Addr::UNSPECIFIED.into(),
            port: 8001,
            cors_origins: CorsOrigins::Any,
            network_threads: (cores / 2).max(1),
            api_key: String::new(),
            require_auth: false,
            rate_limit_publish: None,
            rate_limit_query: None,
            rate_limit_admin: None,
            database_path: "data/events.db".into(),
            durability: Durability::Full,
            free_space_min_bytes: MIB,
            check_at_start: true,
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

/// The one table of settings: the name in the environment (the flag and the TOML key are the same name,
/// spelled `--max-queue-size` and `max_queue_size`), what is allowed, what `--help` says, the field it sets.
#[rustfmt::skip]
const SETTINGS: &[Setting] = &[
    Setting::new("Listening", "HOST", |c| &mut c.host, Words("ADDRESS", "an IP address or localhost"),
        "Address to listen on"),
    Setting::new("Listening", "PORT", |c| &mut c.port, Count(0, 65_535),
        "TCP port; 0 takes any free one"),
    Setting::new("Listening", "CORS_ORIGINS", |c| &mut c.cors_origins, ORIGINS,
        "Browser origins that may connect"),
    Setting::new("Listening", "NETWORK_THREADS", |c| &mut c.network_threads, Count(1, 256),
        "Threads that serve sockets"),

    Setting::new("Access", "API_KEY", |c| &mut c.api_key, Secret,
        "The key clients must show; better given in the environment, where no process list shows it"),
    Setting::new("Access", "REQUIRE_AUTH", |c| &mut c.require_auth, Switch,
        "Ask every client for the key"),
    Setting::new("Access", "RATE_LIMIT_PUBLISH", |c| &mut c.rate_limit_publish, RATE,
        "Publishing requests per client address"),
    Setting::new("Access", "RATE_LIMIT_QUERY", |c| &mut c.rate_limit_query, RATE,
        "Reading requests per client address"),
    Setting::new("Access", "RATE_LIMIT_ADMIN", |c| &mut c.rate_limit_admin, RATE,
        "Deleting requests per client address"),

    Setting::new("Storage", "DATABASE_PATH", |c| &mut c.database_path, Words("FILE", "a path"),
        "The SQLite file, created when missing"),
    Setting::new("Storage", "DURABILITY", |c| &mut c.durability, Words("LEVEL", "full, normal or off"),
        "What an acknowledged event survives: full a power cut, normal and off only the end of the process"),
    Setting::new("Storage", "FREE_SPACE_MIN_BYTES", |c| &mut c.free_space_min_bytes, Bytes(0, 1024 * GIB),
        "Free space on the volume below which events are refused"),
    Setting::new("Storage", "CHECK_AT_START", |c| &mut c.check_at_start, Switch,
        "Hold the whole file against itself while serving: one reading of all pages, then a fifth of a core"),

    Setting::new("Events", "MAX_PAYLOAD_KEYS", |c| &mut c.limits.payload_keys_max, Count(1, 1_000_000),
        "Top-level keys of one payload"),
    Setting::new("Events", "MAX_PAYLOAD_BYTES", |c| &mut c.limits.payload_bytes_max, Bytes(2, 16 * MIB),
        "Size of one payload"),
    Setting::new("Events", "EVENT_TYPES", |c| &mut c.event_types, TYPES,
        "Event types beside the built-in ones; a table [event_types] in the file"),

    Setting::new("Limits", "MAX_QUEUE_SIZE", |c| &mut c.max_queue_size, Count(1, 10_000_000),
        "Events waiting for the writer"),
    Setting::new("Limits", "MAX_QUEUE_BYTES", |c| &mut c.max_queue_bytes, Bytes(1, 64 * GIB),
        "Size of the events waiting for the writer"),
    Setting::new("Limits", "MAX_SUBSCRIBERS", |c| &mut c.max_subscribers, Count(0, 1_000_000),
        "Subscribers at one time"),
    Setting::new("Limits", "MAX_SUBSCRIPTIONS", |c| &mut c.max_subscriptions, Count(0, 1_000_000),
        "Durable subscriptions and groups that are kept"),
    Setting::new("Limits", "MAX_CONNECTIONS", |c| &mut c.max_connections, Count(1, 1_000_000),
        "Sockets of any kind at one time"),
    Setting::new("Limits", "MAX_WS_CONNECTIONS_PER_IP", |c| &mut c.max_ws_connections_per_ip, Count(0, 1_000_000),
        "WebSockets from one address at one time; 0 is unlimited"),
    Setting::new("Limits", "MAX_WS_MESSAGE_BYTES", |c| &mut c.max_ws_message_bytes, Bytes(1, 16 * MIB),
        "Size of one WebSocket message"),
    Setting::new("Limits", "MAX_BODY_BYTES", |c| &mut c.max_body_bytes, Bytes(1, 256 * MIB),
        "Size of one HTTP body"),
    Setting::new("Limits", "MAX_BODIES_BYTES", |c| &mut c.max_bodies_bytes, Bytes(1, 64 * GIB),
        "Memory for all HTTP bodies and WebSocket messages above 16 KiB that are in progress, and for their events"),
    Setting::new("Limits", "MAX_PAGES_BYTES", |c| &mut c.max_pages_bytes, Bytes(1, 64 * GIB),
        "Memory for all pages of GET /events and other answers above 64 KiB that are not sent yet"),
    Setting::new("Limits", "MAX_IN_FLIGHT", |c| &mut c.max_in_flight, Count(1, 1_000_000),
        "Unanswered events of a publishing socket before it is no longer read"),
    Setting::new("Limits", "MAX_SUBSCRIBER_BYTES", |c| &mut c.max_subscriber_bytes, Bytes(1, GIB),
        "What may wait for one subscriber before it is served from storage"),

    Setting::new("Timeouts", "HEADER_TIMEOUT_SECONDS", |c| &mut c.header_timeout, SECONDS,
        "Until the head of a request is complete"),
    Setting::new("Timeouts", "BODY_TIMEOUT_SECONDS", |c| &mut c.body_timeout, SECONDS,
        "Until the body of a request is complete"),
    Setting::new("Timeouts", "READ_TIMEOUT_SECONDS", |c| &mut c.read_timeout, SECONDS,
        "Until a search of the stored events is given up and its request is refused"),
    Setting::new("Timeouts", "WRITE_TIMEOUT_SECONDS", |c| &mut c.write_timeout, SECONDS,
        "Until a peer that takes no byte is closed"),
    Setting::new("Timeouts", "SUBSCRIBE_TIMEOUT_SECONDS", |c| &mut c.subscribe_timeout, SECONDS,
        "Until a subscriber has sent its first message"),
    Setting::new("Timeouts", "KEEPALIVE_SECONDS", |c| &mut c.keepalive_interval, SECONDS,
        "Silence towards a subscriber before it is sent a keep-alive, and of a WebSocket before it is pinged"),
    Setting::new("Timeouts", "PING_TIMEOUT_SECONDS", |c| &mut c.ping_timeout, SECONDS,
        "Until a WebSocket that says nothing after a ping is closed"),
    Setting::new("Timeouts", "SHUTDOWN_TIMEOUT_SECONDS", |c| &mut c.shutdown_timeout, SECONDS,
        "Until the process ends although work is left"),

    Setting::new("Logging", "LOG_LEVEL", |c| &mut c.log_level, DIRECTIVES,
        "What is logged"),
    Setting::new("Logging", "LOG_FORMAT", |c| &mut c.log_format, Words("FORMAT", "text or json"),
        "How log lines look"),
];

const ORIGINS: Allowed =
    Words("ORIGINS", "*, or origins such as https://school.example, separated by commas or as a JSON array");
const TYPES: Allowed = Words("TYPES", "name=description pairs separated by commas, or a JSON object");
const DIRECTIVES: Allowed =
    Words("LEVEL", "trace, debug, info, warn, error or off, or target=level pairs separated by commas");
const RATE: Allowed =
    Words("RATE", "a rate such as 200/minute (second, minute, hour or day), or nothing for unlimited");
/// A hundredth of a second is for tests; a day is longer than any proxy keeps an idle connection.
const SECONDS: Allowed = Seconds(0.01, 86_400.0);
/// The file that is read when it exists and no other is named.
const DEFAULT_FILE: &str = "event-pipeline.toml";

impl Config {
    /// The configuration that flags, environment, file and defaults give, in this order of precedence.
    /// The file is `--config`, else `CONFIG_FILE`, else `event-pipeline.toml` where it exists.
    ///
    /// # Errors
    /// One line that names the setting, where it was set, its value and what is allowed.
    pub fn load(flags: &ArgMatches) -> Result<Config, ConfigError> {
        Self::load_from(flags, |name| std::env::var_os(name), Path::new(DEFAULT_FILE))
    }

    fn load_from(
        flags: &ArgMatches,
        env: impl Fn(&str) -> Option<OsString>,
        default_file: &Path,
    ) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        let named =
            flags.get_one::<String>("config").map(PathBuf::from).or_else(|| env("CONFIG_FILE").map(PathBuf::from));
        match named {
            Some(path) => config.apply_file(&path)?,
            None if default_file.exists() => config.apply_file(default_file)?,
            None => {}
        }
        for setting in SETTINGS {
            if let Some(value) = env(setting.name) {
                let value = value.into_string().map_err(|_| ConfigError::NotUtf8(setting.name))?;
                setting.set(&mut config, &value, || format!("{} (environment)", setting.name))?;
            }
        }
        for setting in SETTINGS {
            if let Some(value) = flags.get_one::<String>(setting.name) {
                setting.set(&mut config, value, || format!("--{}", setting.flag()))?;
            }
        }
        Ok(config)
    }

    fn apply_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable(file.clone(), error))?;
        self.apply(&text, &file)
    }

    /// Takes over the settings of a TOML text; `file` is what errors call it.
    ///
    /// # Errors
    /// One line, as for [`Config::load`]. Settings before the one at fault are taken over.
    pub fn apply(&mut self, text: &str, file: &str) -> Result<(), ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            ConfigError::Syntax(file.to_owned(), line, error.message().replace('\n', ", "))
        })?;
        for (key, value) in &table {
            let setting = SETTINGS.iter().find(|s| s.key() == *key);
            let setting = setting.ok_or_else(|| ConfigError::Unknown(file.to_owned(), key.clone()))?;
            let text = match value {
                toml::Value::String(text) => text.clone(),
                other => serde_json::to_string(other).expect("a TOML value has a JSON form"),
            };
            setting.set(self, &text, || format!("{key} in {file}"))?;
        }
        Ok(())
    }

    /// Every setting and its effective value, for the log. A secret is only `set` or `not set`.
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let mut copy = self.clone();
        SETTINGS.iter().map(|setting| (setting.name, setting.show(&mut copy))).collect()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.describe()).finish()
    }
}

/// The arguments of `serve`: one flag for each setting, and `--config`.
pub fn args() -> impl IntoIterator<Item = Arg> {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help(format!("TOML file with settings [env: CONFIG_FILE] [default: {DEFAULT_FILE} where it exists]"));
    std::iter::once(file).chain(SETTINGS.iter().map(Setting::arg))
}

/// Why a configuration cannot be used, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{place} is {value}: expected {expected}")]
    Value { place: String, value: String, expected: String },
    #[error("{0} (environment) is not UTF-8")]
    NotUtf8(&'static str),
    #[error("configuration file {0} cannot be read: {1}")]
    Unreadable(String, std::io::Error),
    #[error("{0}, line {1}: {2}")]
    Syntax(String, usize, String),
    #[error("{0} has the unknown setting {1:?}; event-pipeline serve --help lists all of them")]
    Unknown(String, String),
}

/// Who may read answers from a page of another origin, and open a WebSocket from one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    Any,
    List(Vec<String>),
}

impl CorsOrigins {
    /// Whether a page of this origin (as browsers spell it: scheme, host, port if unusual) may.
    pub fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::List(list) => list.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)),
        }
    }
}

/// What an acknowledged event survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Synced to the disk before it is acknowledged: survives a power cut.
    Full,
    /// Written before it is acknowledged, synced at checkpoints: survives a crash or a kill of the process; a
    /// power cut may take the last seconds, and leaves a sound file.
    Normal,
    /// Never synced: survives a crash or a kill of the process; a power cut may take anything, the file included.
    Off,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// At most `count` requests in each `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub count: NonZeroU32,
    pub per: Duration,
}

impl Rate {
    const UNITS: [(&str, u64); 4] = [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400)];
}

struct Setting {
    /// Where the help lists it.
    heading: &'static str,
    /// Its name in the environment.
    name: &'static str,
    field: fn(&mut Config) -> &mut dyn Value,
    allowed: Allowed,
    help: &'static str,
}

impl Setting {
    const fn new(
        heading: &'static str,
        name: &'static str,
        field: fn(&mut Config) -> &mut dyn Value,
        allowed: Allowed,
        help: &'static str,
    ) -> Self {
        Self { heading, name, field, allowed, help }
    }

    fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    fn key(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    fn set(&self, config: &mut Config, text: &str, place: impl Fn() -> String) -> Result<(), ConfigError> {
        (self.field)(config).set(text.trim(), &self.allowed).map_err(|expected| ConfigError::Value {
            place: place(),
            value: if matches!(self.allowed, Secret) { "(not shown)".into() } else { format!("{text:?}") },
            expected,
        })
    }

    fn show(&self, config: &mut Config) -> String {
        let value = (self.field)(config).show();
        match &self.allowed {
            Secret => if value.is_empty() { "not set" } else { "set" }.into(),
            Bytes(..) => show_bytes(&value),
            _ => value,
        }
    }

    fn arg(&self) -> Arg {
        let Setting { heading, name, allowed, help, .. } = *self;
        let default = match self.show(&mut Config::default()) {
            none if none.is_empty() => none,
            default => format!(" [default: {default}]"),
        };
        let arg = Arg::new(name)
            .long(self.flag())
            .help_heading(heading)
            .value_name(allowed.value_name())
            .help(format!("{help} [env: {name}]{default}"));
        match allowed {
            Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
            _ => arg,
        }
    }
}

/// What a value may be. Displays as the end of "expected …".
#[derive(Clone, Copy)]
enum Allowed {
    Count(u64, u64),
    Bytes(u64, u64),
    Seconds(f64, f64),
    Switch,
    Secret,
    /// The placeholder in the help, and the grammar in words.
    Words(&'static str, &'static str),
}
use Allowed::{Bytes, Count, Seconds, Secret, Switch, Words};

impl Allowed {
    fn value_name(self) -> &'static str {
        match self {
            Count(..) => "N",
            Bytes(..) => "SIZE",
            Seconds(..) => "SECONDS",
            Switch => "BOOL",
            Secret => "KEY",
            Words(name, _) => name,
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Count(min, max) => write!(f, "a whole number from {min} to {max}"),
            Bytes(min, max) => {
                let (min, max) = (show_bytes(&min.to_string()), show_bytes(&max.to_string()));
                write!(f, "a size from {min} to {max}, in bytes or with KiB, MiB or GiB")
            }
            Seconds(min, max) => write!(f, "seconds from {min} to {max}"),
            Switch => f.write_str("true or false"),
            Secret => f.write_str("characters that a header can carry"),
            Words(_, words) => f.write_str(words),
        }
    }
}

/// The type of a setting: read from text, shown as text that reads back as the same value.
trait Value {
    /// # Errors
    /// What was expected instead.
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String>;
    fn show(&self) -> String;
}

fn put<T>(field: &mut T, value: Option<T>, allowed: &Allowed) -> Result<(), String> {
    *field = value.ok_or_else(|| allowed.to_string())?;
    Ok(())
}

macro_rules! whole_number {
    ($($number:ty)*) => {$(
        impl Value for $number {
            fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
                let value = match *allowed {
                    Bytes(min, max) => parse_bytes(text).filter(|n| (min..=max).contains(n)),
                    Count(min, max) => text.parse().ok().filter(|n| (min..=max).contains(n)),
                    _ => None,
                };
                put(self, value.and_then(|n| n.try_into().ok()), allowed)
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
whole_number!(u16 u64 usize);

const BYTE_UNITS: [(&str, u64); 3] = [("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (text[..digits].parse::<u64>().ok()?, text[digits..].trim());
    let factor = match unit {
        "" | "B" => 1,
        unit => BYTE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    number.checked_mul(factor)
}

/// The largest unit that needs no fraction.
fn show_bytes(number: &str) -> String {
    let bytes: u64 = number.parse().expect("a number was shown");
    match BYTE_UNITS.iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)) {
        Some((name, factor)) => format!("{} {name}", bytes / factor),
        None => bytes.to_string(),
    }
}

impl Value for Duration {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let Seconds(min, max) = *allowed else { return Err(allowed.to_string()) };
        let seconds = text.parse::<f64>().ok().filter(|s| (min..=max).contains(s));
        put(self, seconds.map(Duration::from_secs_f64), allowed)
    }

    fn show(&self) -> String {
        self.as_secs_f64().to_string()
    }
}

impl Value for bool {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let value = match &*text.to_ascii_lowercase() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        };
        put(self, value, allowed)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for IpAddr {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let value = if text == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { text.parse().ok() };
        put(self, value, allowed)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for PathBuf {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        put(self, (!text.is_empty()).then(|| text.into()), allowed)
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

/// The two plain texts: the key, which must fit into a header, and the log's filter.
impl Value for String {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let value = match allowed {
            Secret => (!text.contains(char::is_control)).then(|| text.to_owned()),
            _ => log_directives(text),
        };
        put(self, value, allowed)
    }

    fn show(&self) -> String {
        self.clone()
    }
}

/// Python's names of levels become those of the filter. A lone word must be a level: the filter would
/// take a misspelled one for the name of a target and log nothing.
fn log_directives(text: &str) -> Option<String> {
    let directive = |part: &str| {
        let part = part.trim();
        if part.contains('=') {
            return Some(part.to_owned());
        }
        let level = part.to_ascii_lowercase();
        match &*level {
            "trace" | "debug" | "info" | "warn" | "error" | "off" => Some(level),
            "warning" => Some("warn".into()),
            "critical" | "fatal" => Some("error".into()),
            _ => None,
        }
    };
    let directives = text.split(',').map(directive).collect::<Option<Vec<_>>>()?.join(",");
    EnvFilter::try_new(&directives).ok().map(|_| directives)
}

impl Value for LogFormat {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let value = match &*text.to_ascii_lowercase() {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        };
        put(self, value, allowed)
    }

    fn show(&self) -> String {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
        .into()
    }
}

impl Value for Durability {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let value = match &*text.to_ascii_lowercase() {
            "full" => Some(Self::Full),
            "normal" => Some(Self::Normal),
            "off" => Some(Self::Off),
            _ => None,
        };
        put(self, value, allowed)
    }

    fn show(&self) -> String {
        match self {
            Self::Full => "full",
            Self::Normal => "normal",
            Self::Off => "off",
        }
        .into()
    }
}

impl Value for CorsOrigins {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let origins: Option<Vec<String>> = match text.starts_with('[') {
            true => serde_json::from_str(text).ok(),
            false => Some(text.split(',').map(|o| o.trim().to_owned()).filter(|o| !o.is_empty()).collect()),
        };
        // An origin has a scheme and no path; one that no browser sends would silently allow nothing.
        let is_scheme = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let is_host = |h: &str| !h.is_empty() && !h.contains(|c: char| c == '/' || c == ',' || c.is_whitespace());
        let origin = |o: String| {
            let o = o.trim_end_matches('/');
            let parts = o.split_once("://");
            (o == "null" || parts.is_some_and(|(scheme, host)| is_scheme(scheme) && is_host(host)))
                .then(|| o.to_owned())
        };
        let value = origins.and_then(|origins| match origins.iter().any(|o| o == "*") {
            true => Some(Self::Any),
            false => origins.into_iter().map(origin).collect::<Option<_>>().map(Self::List),
        });
        put(self, value, allowed)
    }

    fn show(&self) -> String {
        match self {
            Self::Any => "*".into(),
            Self::List(list) => list.join(","),
        }
    }
}

impl Value for Option<Rate> {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        if text.is_empty() || text == "unlimited" {
            *self = None;
            return Ok(());
        }
        let rate = |text: &str| {
            let (count, unit) = text.split_once('/').or_else(|| text.split_once(" per "))?;
            let unit = unit.trim().to_ascii_lowercase();
            let unit = unit.strip_suffix('s').unwrap_or(&unit);
            let (_, seconds) = Rate::UNITS.iter().find(|(name, _)| *name == unit)?;
            Some(Rate { count: count.trim().parse().ok()?, per: Duration::from_secs(*seconds) })
        };
        put(self, rate(text).map(Some), allowed)
    }

    fn show(&self) -> String {
        let Some(Rate { count, per }) = self else { return "unlimited".into() };
        match Rate::UNITS.iter().find(|(_, seconds)| *seconds == per.as_secs()) {
            Some((unit, _)) => format!("{count}/{unit}"),
            None => format!("{count} in {} seconds", per.as_secs_f64()),
        }
    }
}

impl Value for EventTypes {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let pair = |pair: &str| pair.split_once('=').map(|(name, d)| (name.trim().to_owned(), d.trim().to_owned()));
        let pairs: Option<Vec<(String, String)>> = match text.starts_with('{') {
            true => serde_json::from_str::<serde_json::Map<_, _>>(text)
                .ok()
                .and_then(|table| table.into_iter().map(|(name, d)| Some((name, d.as_str()?.to_owned()))).collect()),
            false => text.split(',').filter(|p| !p.trim().is_empty()).map(pair).collect(),
        };
        let mut types = EventTypes::builtin();
        for (name, description) in pairs.ok_or_else(|| allowed.to_string())? {
            types.extend(&name, &description).map_err(|reason| format!("{allowed}; {reason}"))?;
        }
        *self = types;
        Ok(())
    }

    /// Those that were added, or described otherwise.
    fn show(&self) -> String {
        let builtin = EventTypes::builtin();
        let own: Vec<_> = self.iter().filter(|own| !builtin.iter().any(|known| known == *own)).collect();
        let is_plain = |description: &str| !description.contains(',') && description == description.trim();
        match own.iter().all(|(_, description)| is_plain(description)) {
            true => own.iter().map(|(name, description)| format!("{name}={description}")).collect::<Vec<_>>().join(","),
            false => {
                let table = own.into_iter().map(|(name, description)| (name.to_owned(), description.into()));
                serde_json::Value::Object(table.collect()).to_string()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> ArgMatches {
        clap::Command::new("serve").no_binary_name(true).args(super::args()).get_matches_from(args)
    }

    fn load(args: &[&str], env: &[(&str, &str)], file: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("pipeline.toml");
        std::fs::write(&path, file).expect("a temporary file");
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        Config::load_from(&flags(args), env, &path)
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_defaults() {
        let check = |args: &[&str], env: &[(&str, &str)], file: &str, port: u16| {
            assert_eq!(load(args, env, file).expect("a valid configuration").port, port);
        };
        check(&[], &[], "", 8001);
        check(&[], &[], "port = 1", 1);
        check(&[], &[("PORT", "2")], "port = 1", 2);
        check(&["--port", "3"], &[("PORT", "2")], "port = 1", 3);
        check(&["--port=3"], &[], "", 3);
    }

    #[test]
    fn a_named_file_must_exist_and_replaces_the_default_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("own.toml");
        std::fs::write(&path, "port = 7").expect("a temporary file");
        let path = path.to_str().expect("a UTF-8 path");
        assert_eq!(load(&["--config", path], &[("CONFIG_FILE", "missing.toml")], "port = 1").expect("valid").port, 7);
        assert_eq!(load(&[], &[("CONFIG_FILE", path)], "port = 1").expect("valid").port, 7);
        let error = load(&[], &[("CONFIG_FILE", "missing.toml")], "").expect_err("no such file").to_string();
        assert!(error.starts_with("configuration file missing.toml cannot be read: "), "{error}");
    }

    #[test]
    fn every_spelling_of_a_value_is_read() {
        let config = load(
            &["--require-auth", "--network-threads", "3"],
            &[
                ("HOST", "localhost"),
                ("CORS_ORIGINS", r#"["https://a.example/", "http://localhost:3000"]"#),
                ("LOG_LEVEL", "WARNING,event_pipeline=debug"),
                ("RATE_LIMIT_PUBLISH", "200/minute"),
                ("RATE_LIMIT_QUERY", "5 per seconds"),
                ("RATE_LIMIT_ADMIN", ""),
                ("EVENT_TYPES", "coffee_break=Everybody left, bell = It rang"),
            ],
            r#"
            max_queue_bytes = "1 GiB"
            max_body_bytes = 4096
            max_ws_message_bytes = "64kib"
            write_timeout_seconds = 0.5
            header_timeout_seconds = "2"
            durability = "Normal"
            log_format = "json"
            rate_limit_admin = "1/day"
            cors_origins = ["https://overridden.example"]
            [event_types]
            overridden = "by the environment"
            "#,
        )
        .expect("a valid configuration");
        assert_eq!(config.host, Ipv4Addr::LOCALHOST);
        assert!(config.require_auth);
        assert_eq!(config.network_threads, 3);
        assert!(config.cors_origins.allows("https://a.example") && config.cors_origins.allows("http://localhost:3000"));
        assert!(!config.cors_origins.allows("https://overridden.example"));
        assert_eq!(config.log_level, "warn,event_pipeline=debug");
        let rate =
            |count, seconds| NonZeroU32::new(count).map(|count| Rate { count, per: Duration::from_secs(seconds) });
        assert_eq!(config.rate_limit_publish, rate(200, 60));
        assert_eq!(config.rate_limit_query, rate(5, 1));
        assert_eq!(config.rate_limit_admin, None);
        assert_eq!(config.max_queue_bytes, 1 << 30);
        assert_eq!(config.max_body_bytes, 4096);
        assert_eq!(config.max_ws_message_bytes, 65_536);
        assert_eq!(config.write_timeout, Duration::from_millis(500));
        assert_eq!(config.header_timeout, Duration::from_secs(2));
        assert_eq!(config.durability, Durability::Normal);
        assert_eq!(config.log_format, LogFormat::Json);
        assert!(config.event_types.get("bell").is_some() && config.event_types.get("overridden").is_none());
    }

    #[test]
    fn event_types_come_from_a_table_of_the_file() {
        let config =
            load(&[], &[], "[event_types]\ncoffee_break = \"Everybody left, for tea = fine\"\n").expect("valid");
        let added = config.event_types.iter().find(|(name, _)| *name == "coffee_break");
        assert_eq!(added, Some(("coffee_break", "Everybody left, for tea = fine")));
        assert_eq!(config.event_types.iter().count(), 16);
    }

    #[test]
    fn what_is_shown_reads_back_as_the_same() {
        let mut defaults = Config::default();
        for setting in SETTINGS.iter().filter(|s| !matches!(s.allowed, Secret)) {
            let shown = setting.show(&mut defaults);
            let mut config = Config::default();
            setting.set(&mut config, &shown, || setting.flag()).expect("what is shown is allowed");
            assert_eq!(setting.show(&mut config), shown, "{}", setting.name);
        }
        let types = |text| load(&[], &[("EVENT_TYPES", text)], "").expect("valid").describe();
        let shown = types(r#"{"bell": "It rings, twice", "pause": ""}"#);
        let (_, text) = shown.iter().find(|(name, _)| *name == "EVENT_TYPES").expect("it is a setting");
        assert_eq!(types(text), shown);
    }

    #[test]
    fn a_bad_value_is_one_line_that_names_it() {
        let check = |args: &[&str], env: &[(&str, &str)], file: &str, expected: &str| {
            let error = load(args, env, file).expect_err(expected).to_string();
            assert!(!error.contains('\n'), "{error}");
            assert!(error.contains(expected), "{error}\nlacks {expected}");
        };
        let env = |name, value, expected: &str| {
            check(&[], &[(name, value)], "", &format!("{name} (environment) is {value:?}: expected {expected}"));
        };
        env("HOST", "everywhere", "an IP address");
        env("PORT", "65536", "a whole number from 0 to 65535");
        env("PORT", "", "a whole number");
        env("CORS_ORIGINS", "localhost", "*, or origins");
        env("CORS_ORIGINS", "[1]", "*, or origins");
        env("CORS_ORIGINS", r#"["https://a.example,https://b.example"]"#, "*, or origins");
        env("CORS_ORIGINS", r#"["[https://a.example"]"#, "*, or origins");
        env("NETWORK_THREADS", "0", "a whole number from 1 to 256");
        env("REQUIRE_AUTH", "maybe", "true or false");
        env("RATE_LIMIT_PUBLISH", "200/fortnight", "a rate such as 200/minute");
        env("RATE_LIMIT_QUERY", "0/minute", "a rate");
        env("RATE_LIMIT_ADMIN", "many", "a rate");
        env("DATABASE_PATH", "", "a path");
        env("DURABILITY", "maximal", "full, normal or off");
        env("FREE_SPACE_MIN_BYTES", "-1", "a size from 0 to 1024 GiB");
        env("MAX_PAYLOAD_KEYS", "1.5", "a whole number");
        env("MAX_PAYLOAD_BYTES", "17 MiB", "a size from 2 to 16 MiB");
        env("MAX_BODY_BYTES", "1 parsec", "a size");
        env("MAX_QUEUE_SIZE", "0", "a whole number from 1 to 10000000");
        env("EVENT_TYPES", "Bad Name=x", "name=description pairs");
        env("EVENT_TYPES", "lonely", "name=description pairs");
        env("KEEPALIVE_SECONDS", "NaN", "seconds from 0.01 to 86400");
        env("HEADER_TIMEOUT_SECONDS", "0", "seconds");
        env("BODY_TIMEOUT_SECONDS", "soon", "seconds");
        env("LOG_LEVEL", "chatty", "trace, debug");
        env("LOG_LEVEL", "event_pipeline=loud", "trace, debug");
        env("LOG_FORMAT", "xml", "text or json");
        env("HOST", "two\nlines", "an IP address");
        check(&["--port", "x"], &[], "", "--port is \"x\": expected a whole number");
        check(&[], &[], "port = true", "pipeline.toml is \"true\": expected a whole number");
        check(&[], &[], "max_queue_sizes = 5", "pipeline.toml has the unknown setting \"max_queue_sizes\"");
        check(&[], &[], "[storage]\nport = 5", "unknown setting \"storage\"");
        check(&[], &[], "port = 5\nhost = \n", "pipeline.toml, line 2: ");
        check(&[], &[], "[event_types]\nbell = 5", "event_types in ");
    }

    #[test]
    fn the_key_is_never_shown() {
        let config = load(&[], &[("API_KEY", "opensesame")], "").expect("valid");
        assert_eq!(config.api_key, "opensesame");
        let shown = config.describe();
        assert!(shown.contains(&("API_KEY", "set".into())));
        assert!(!format!("{shown:?} {config:?}").contains("opensesame"));
        assert!(Config::default().describe().contains(&("API_KEY", "not set".into())));
        let error = load(&[], &[("API_KEY", "open\nsesame")], "").expect_err("no header can carry it").to_string();
        assert!(!error.contains("sesame"), "{error}");
    }

    #[test]
    fn the_help_names_every_setting_with_its_default() {
        let help = clap::Command::new("serve").args(super::args()).render_help().to_string();
        for part in ["--max-queue-size <N>", "[env: MAX_QUEUE_BYTES] [default: 64 MiB]", "--config <FILE>", "Timeouts:"]
        {
            assert!(help.contains(part), "{help}");
        }
    }
}
