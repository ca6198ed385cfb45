//! The table of settings.

use clap::Arg;

use super::fields::Config;
use super::value::{Allowed, Value, show_bytes};
use Allowed::{Bytes, Count, Seconds, Secret, Switch, SwitchOrAuto, Text, Words};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The one table of settings: the name in the environment (the flag and the TOML key are the same name, spelled
/// `--max-queue-size` and `max_queue_size`), the field it sets, the allowed values, the text of `--help`.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    Setting::new("Listening", "HOST", |c| &mut c.host, Words("ADDRESS", "an IP address or localhost"),
        "Address to listen on; 0.0.0.0 is every IPv4 address of the machine, :: every address. One that other machines reach \
         needs authentication, or ALLOW_UNAUTHENTICATED"),
    Setting::new("Listening", "PORT", |c| &mut c.port, Count(0, 65_535),
        "TCP port; with 0 the system chooses a free one, and the log names it"),
    Setting::new("Listening", "CORS_ORIGINS", |c| &mut c.cors_origins, ORIGINS,
        "Origins whose web pages may read answers, change something and open WebSockets; * is every origin. The server's own \
         pages always may. With auto it is every origin if clients need a key, and else the pages of this machine").reloadable(),
    Setting::new("Listening", "ALLOWED_HOSTS", |c| &mut c.allowed_hosts, HOSTS,
        "Names, besides localhost, under which clients may address the server while it asks for no key; a request that \
         names another host is refused (421), so that no web page reaches the server by a name of its own").reloadable(),
    Setting::new("Listening", "TLS_CERT", |c| &mut c.tls_cert, Words("FILE", "the path of a file"),
        "Speak TLS (https, wss) and show the certificate in this file, in PEM, followed by those that vouch for it; it is read \
         again, with its key, when one of the two changes").default_by("none"),
    Setting::new("Listening", "TLS_KEY", |c| &mut c.tls_key, Words("FILE", "the path of a file"),
        "The private key of the certificate, in PEM and without a password").default_by("none"),
    Setting::new("Listening", "TLS_SELF_SIGNED", |c| &mut c.tls_self_signed, Switch,
        "Speak TLS with a certificate for localhost that is made at each start, for a trial; the log shows its fingerprint"),
    Setting::new("Listening", "METRICS_ADDRESS", |c| &mut c.metrics_address, METRICS,
        "A second address, on which GET /metrics and GET /health are answered and nothing else, without a key: whoever reaches \
         it reads figures of the server, and no event").default_by("none"),
    Setting::new("Listening", "NETWORK_THREADS", |c| &mut c.network_threads, Count(1, 256),
        "Threads that serve connections").default_by("half of the processors, at least 1"),

    Setting::new("Access", "API_KEY", |c| &mut c.api_key, Secret,
        "A key that allows everything, if authentication is on; set it in the environment, where no process list shows it").reloadable(),
    Setting::new("Access", "KEYS_FILE", |c| &mut c.keys_file, Words("FILE", "the path of a file"),
        "The file of the named keys, which event-pipeline keys writes; it is read again when it changes")
        .default_by("keys.toml in the folder of the database, where it exists"),
    Setting::new("Access", "JWT_SECRET", |c| &mut c.jwt_secret, Secret,
        "Accept tokens (JWT) that are signed with this secret by HS256; set it in the environment, where no process list shows it"),
    Setting::new("Access", "JWT_KEYS_FILE", |c| &mut c.jwt_keys_file, Words("FILE", "the path of a file"),
        "Accept tokens (JWT) that are signed by one of the keys in this file: a set of keys (JWKS), or a public key in PEM; \
         RS256, ES256 or EdDSA; it is read again when it changes").default_by("none"),
    Setting::new("Access", "JWT_ISSUER", |c| &mut c.jwt_issuer, Text("ISSUER"),
        "Accept only tokens of this issuer (iss)"),
    Setting::new("Access", "JWT_AUDIENCE", |c| &mut c.jwt_audience, Text("AUDIENCE"),
        "Accept only tokens for this audience (aud)"),
    Setting::new("Access", "REQUIRE_AUTH", |c| &mut c.require_auth, SwitchOrAuto,
        "Authentication: admit only clients that send a key or a token; if none is known, no client is admitted. With auto it is on if \
         there is a keys file, or if tokens are accepted").reloadable(),
    Setting::new("Access", "ALLOW_UNAUTHENTICATED", |c| &mut c.allow_unauthenticated, Switch,
        "Listen without authentication on an address that other machines reach: everyone who reaches it may read, publish \
         and delete"),
    Setting::new("Access", "AUDIT_FILE", |c| &mut c.audit_file, Words("FILE", "the path of a file"),
        "The file to which is added, one JSON object a line, who has deleted what, who was refused, and how the keys have \
         changed; a SIGHUP opens it again").default_by("none"),
    Setting::new("Access", "TRUSTED_PROXIES", |c| &mut c.trusted_proxies, NETWORKS,
        "Proxies that are believed when they say, in Forwarded or X-Forwarded-For, which address a request comes from"),
    Setting::new("Access", "RATE_LIMIT_PUBLISH", |c| &mut c.rate_limit_publish, RATE,
        "How many requests and WebSocket messages that publish are accepted with one key, or without a key from one address; further ones are refused (429)").reloadable(),
    Setting::new("Access", "RATE_LIMIT_QUERY", |c| &mut c.rate_limit_query, RATE,
        "How many requests that read or subscribe are accepted with one key, or without a key from one address; further ones are refused (429)").reloadable(),
    Setting::new("Access", "RATE_LIMIT_ADMIN", |c| &mut c.rate_limit_admin, RATE,
        "How many requests that delete are accepted with one key, or without a key from one address; further ones are refused (429)").reloadable(),

    Setting::new("Storage", "DATABASE_PATH", |c| &mut c.database_path, Words("FILE", "the path of a file"),
        "The SQLite file; it and its folder are created when missing"),
    Setting::new("Storage", "DURABILITY", |c| &mut c.durability, Words("LEVEL", "full, normal or off"),
        "What an acknowledged event survives: with full a power cut, with normal and off only the end of the process; with off \
         a power cut may also damage the file"),
    Setting::new("Storage", "FREE_SPACE_MIN_BYTES", |c| &mut c.free_space_min_bytes, Bytes(0, 1024 * GIB),
        "Events are refused while the volume of the database has less free space than this").reloadable(),
    Setting::new("Storage", "CHECK_AT_START", |c| &mut c.check_at_start, Switch,
        "Check the whole file for damage after the start, while serving; reads every page once, then uses a fifth of a core"),

    Setting::new("Storage", "WRITER_SPIN_MICROSECONDS", |c| &mut c.writer_spin_micros, Count(0, 10_000),
        "How long the thread that stores events looks for the next one before it sleeps, while events come one by one within \
         this time: each is stored some 20 µs sooner, and the thread uses up to one processor meanwhile; with 0 it always sleeps")
        .default_by("400; 0 with one processor, or with a limit of processor time (cgroup)"),

    Setting::new("Events", "MAX_PAYLOAD_KEYS", |c| &mut c.limits.payload_keys_max, Count(1, 1_000_000),
        "Maximum number of top-level keys of a payload; an event with more is refused").reloadable(),
    Setting::new("Events", "MAX_PAYLOAD_BYTES", |c| &mut c.limits.payload_bytes_max, Bytes(2, 16 * MIB),
        "Largest payload; an event with a larger one is refused").reloadable(),
    Setting::new("Events", "EVENT_TYPES", |c| &mut c.event_types, TYPES,
        "Event types besides the built-in ones; in the file a table [event_types] of names and descriptions"),

    Setting::new("Limits", "MAX_QUEUE_SIZE", |c| &mut c.max_queue_size, Count(1, 10_000_000),
        "Maximum number of events that wait to be stored; beyond it WebSockets are not read and HTTP requests are refused (503)"),
    Setting::new("Limits", "MAX_QUEUE_BYTES", |c| &mut c.max_queue_bytes, Bytes(1, 64 * GIB),
        "Maximum bytes of the events that wait to be stored; beyond it the same happens as beyond MAX_QUEUE_SIZE"),
    Setting::new("Limits", "MAX_SUBSCRIBERS", |c| &mut c.max_subscribers, Count(0, 1_000_000),
        "Maximum number of subscribers at one time (subscribing WebSockets, event streams and waiting requests); further ones are refused").reloadable(),
    Setting::new("Limits", "MAX_SUBSCRIPTIONS", |c| &mut c.max_subscriptions, Count(0, 1_000_000),
        "Maximum number of durable subscriptions and groups; further names are refused").reloadable(),
    Setting::new("Limits", "MAX_CONNECTIONS", |c| &mut c.max_connections, Count(1, 1_000_000),
        "Maximum number of connections of any kind at one time; further ones are refused (503); lowered if the system allows fewer open files").reloadable(),
    Setting::new("Limits", "MAX_WS_CONNECTIONS_PER_IP", |c| &mut c.max_ws_connections_per_ip, Count(0, 1_000_000),
        "Maximum number of WebSockets with one key, or without a key from one address, at one time; further ones are closed (4002); 0 is unlimited").reloadable(),
    Setting::new("Limits", "MAX_WS_MESSAGE_BYTES", |c| &mut c.max_ws_message_bytes, Bytes(1, 16 * MIB),
        "Largest WebSocket message; a larger one is answered with an error").reloadable(),
    Setting::new("Limits", "MAX_BODY_BYTES", |c| &mut c.max_body_bytes, Bytes(1, 256 * MIB),
        "Largest HTTP body; a larger one is refused (413)").reloadable(),
    Setting::new("Limits", "MAX_BODIES_BYTES", |c| &mut c.max_bodies_bytes, Bytes(1, 64 * GIB),
        "Memory for all HTTP bodies and WebSocket messages over 16 KiB that are arriving or being stored; while it is used \
         up, further ones are refused (503)"),
    Setting::new("Limits", "MAX_PAGES_BYTES", |c| &mut c.max_pages_bytes, Bytes(1, 64 * GIB),
        "Memory for all pages of GET /events and other answers over 64 KiB that are not sent yet; while it is used up, \
         requests for further ones are refused (503)"),
    Setting::new("Limits", "MAX_IN_FLIGHT", |c| &mut c.max_in_flight, Count(1, 1_000_000),
        "Maximum number of unanswered events of one publishing WebSocket; beyond it the WebSocket is not read").reloadable(),
    Setting::new("Limits", "MAX_SUBSCRIBER_BYTES", |c| &mut c.max_subscriber_bytes, Bytes(1, GIB),
        "Maximum bytes that wait for one subscriber; beyond it the subscriber is too slow, and its on_lag decides what happens").reloadable(),

    Setting::new("Timeouts", "HEADER_TIMEOUT_SECONDS", |c| &mut c.header_timeout, SECONDS,
        "Time within which the head of a request must arrive").reloadable(),
    Setting::new("Timeouts", "BODY_TIMEOUT_SECONDS", |c| &mut c.body_timeout, SECONDS,
        "Time within which the body of a request must arrive").reloadable(),
    Setting::new("Timeouts", "READ_TIMEOUT_SECONDS", |c| &mut c.read_timeout, SECONDS,
        "Time after which a search of the stored events is given up, and the request refused").reloadable(),
    Setting::new("Timeouts", "WRITE_TIMEOUT_SECONDS", |c| &mut c.write_timeout, SECONDS,
        "Time after which a connection is closed whose client takes no byte").reloadable(),
    Setting::new("Timeouts", "SUBSCRIBE_TIMEOUT_SECONDS", |c| &mut c.subscribe_timeout, SECONDS,
        "Time within which a subscriber must send its first message").reloadable(),
    Setting::new("Timeouts", "KEEPALIVE_SECONDS", |c| &mut c.keepalive_interval, SECONDS,
        "How long nothing is sent to a subscriber before it gets a keep-alive, or received from a WebSocket before it is pinged").reloadable(),
    Setting::new("Timeouts", "PING_TIMEOUT_SECONDS", |c| &mut c.ping_timeout, SECONDS,
        "Time after a ping within which a WebSocket must send something; else it is closed").reloadable(),
    Setting::new("Timeouts", "SHUTDOWN_TIMEOUT_SECONDS", |c| &mut c.shutdown_timeout, SECONDS,
        "Time after which a shutdown ends the process even if work is left").reloadable(),

    Setting::new("Logging", "LOG_LEVEL", |c| &mut c.log_level, DIRECTIVES,
        "Which lines are logged: those of a level and of more severe ones, for all targets or for some").reloadable(),
    Setting::new("Logging", "LOG_FORMAT", |c| &mut c.log_format, Words("FORMAT", "text or json"),
        "Format of the log: lines for people, or one JSON object a line"),
];

const METRICS: Allowed = Words("ADDRESS", "an IP address and a port such as 127.0.0.1:9464");
const ORIGINS: Allowed =
    Words("ORIGINS", "auto, *, or origins such as https://school.example, separated by commas or as a JSON array");
const NETWORKS: Allowed = Words("NETWORKS", "IP addresses or networks such as 10.0.0.0/8, separated by commas");
const HOSTS: Allowed = Words("HOSTS", "host names without a port, separated by commas, or * for every name");
const TYPES: Allowed = Words("TYPES", "name=description pairs separated by commas, or a JSON object");
const DIRECTIVES: Allowed =
    Words("LEVEL", "trace, debug, info, warn, error or off, or target=level pairs separated by commas");
const RATE: Allowed =
    Words("RATE", "a rate such as 200/minute (second, minute, hour or day), or nothing for unlimited");
/// 10 ms: tests need such a short time. A day: longer than any proxy keeps an idle connection.
const SECONDS: Allowed = Seconds(0.01, 86_400.0);

/// The names of the settings whose new value a running server could take.
pub fn reloadable() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().filter(|setting| setting.is_reloadable).map(|setting| setting.name)
}

/// What has set a setting to its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetBy {
    Default,
    /// A TOML file, by the path with which it was opened.
    File(String),
    /// The environment variable with the setting's name.
    Environment,
    Flag,
}

/// One row of the table.
pub struct Setting {
    /// The heading under which it is listed.
    pub heading: &'static str,
    /// Its name in the environment.
    pub name: &'static str,
    field: fn(&mut Config) -> &mut dyn Value,
    pub allowed: Allowed,
    /// What it does.
    pub help: &'static str,
    /// How the default is chosen, where it depends on the machine.
    pub default_rule: Option<&'static str>,
    /// Whether a running server could take a new value, because every use reads the value again. The value of any other
    /// setting is built into a thread, a queue, a file or a table at the start.
    is_reloadable: bool,
}

impl Setting {
    const fn new(
        heading: &'static str,
        name: &'static str,
        field: fn(&mut Config) -> &mut dyn Value,
        allowed: Allowed,
        help: &'static str,
    ) -> Self {
        Self { heading, name, field, allowed, help, default_rule: None, is_reloadable: false }
    }

    const fn reloadable(self) -> Self {
        Self { is_reloadable: true, ..self }
    }

    const fn default_by(self, rule: &'static str) -> Self {
        Self { default_rule: Some(rule), ..self }
    }

    /// Its flag, without the dashes.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// Its key in the TOML file.
    pub fn key(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    /// Whether its value must not be shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.allowed, Secret)
    }

    pub(super) fn set(&self, config: &mut Config, text: &str, set_by: &SetBy) -> Result<(), InvalidValue> {
        (self.field)(config).set(text.trim(), &self.allowed).map_err(|expected| InvalidValue {
            place: match set_by {
                SetBy::Default => self.name.into(),
                SetBy::File(path) => format!("{} in {path}", self.key()),
                SetBy::Environment => format!("{} (environment)", self.name),
                SetBy::Flag => format!("--{}", self.flag()),
            },
            value: if self.is_secret() { "(not shown)".into() } else { format!("{text:?}") },
            expected,
        })
    }

    /// Its value as text that reads back as the same; of a secret only `set` or `not set`.
    pub(super) fn show(&self, config: &mut Config) -> String {
        let value = (self.field)(config).show();
        match &self.allowed {
            Secret => if value.is_empty() { "not set" } else { "set" }.into(),
            Bytes(..) => show_bytes(&value),
            _ => value,
        }
    }

    /// The default, in words where it depends on the machine.
    pub fn default(&self) -> String {
        self.default_rule.map_or_else(|| self.show(&mut Config::default()), str::to_owned)
    }

    pub(super) fn arg(&self) -> Arg {
        let Setting { heading, name, allowed, help, .. } = *self;
        let default = match self.default() {
            empty if empty.is_empty() => empty,
            default => format!(" [default: {default}]"),
        };
        let arg = Arg::new(name)
            .long(self.flag())
            .help_heading(heading)
            .value_name(allowed.value_name())
            .help(format!("{help}\n[env: {name}]{default}"));
        match allowed {
            Switch | SwitchOrAuto => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
            _ => arg,
        }
    }
}

/// Why a value cannot be used, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{place} is {value}: expected {expected}")]
pub struct InvalidValue {
    /// Where the value was set, with the name that the setting has there, such as `--port`.
    place: String,
    value: String,
    expected: String,
}
