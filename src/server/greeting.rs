//! The greeting: what the server logs as soon as it listens. It says where to open it, where its data is, and who may
//! connect.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::auth::Access as Rules;
use crate::config::{Config, CorsOrigins, LogFormat};
use crate::event::{Seq, Timestamp};
use crate::pipeline::Pipeline;

/// The log target of the whole module `server`, so that `LOG_LEVEL` treats the greeting like its other lines.
const TARGET: &str = "event_pipeline::server";

/// Everything that an operator needs to know after a start. The settings are logged at the level debug, and
/// `event-pipeline config show` prints them.
pub struct Greeting<'a> {
    config: &'a Config,
    rules: &'a Rules,
    /// Of a certificate that the server has made itself.
    fingerprint: Option<&'a str>,
    /// With the port that the system chose, if the setting is 0.
    address: SocketAddr,
    database: PathBuf,
    /// How many events are stored; `None` if that cannot be read.
    events: Option<u64>,
    last_event: Seq,
}

impl<'a> Greeting<'a> {
    /// Counts the stored events. The cost does not depend on their number.
    pub async fn new(pipeline: &'a Pipeline, fingerprint: Option<&'a str>, address: SocketAddr) -> Self {
        let Pipeline { config, access: rules, store, .. } = pipeline;
        let stats = store.reading(|reader| reader.stats(Timestamp::now())).await;
        let events = stats.inspect_err(|error| tracing::warn!(%error, "count the stored events")).ok();
        Self {
            config,
            rules,
            fingerprint,
            // An IPv4 address in the form of an IPv6 one means the same.
            address: SocketAddr::new(address.ip().to_canonical(), address.port()),
            // Absolute, because a reader of the log may not know the working directory. If that directory has been
            // removed since the file was opened, the path is shown as it is set.
            database: std::path::absolute(&config.database_path).unwrap_or_else(|_| config.database_path.clone()),
            events: events.map(|stats| stats.total_events),
            last_event: store.committed(),
        }
    }

    /// Logs one structured line for programs, or a block of a few lines for people.
    pub fn log(&self) {
        match self.config.log_format {
            LogFormat::Text => tracing::info!(target: TARGET, "{self}"),
            LogFormat::Json => {
                let Self { address, last_event, events, .. } = self;
                let (url, database) = (self.url(), self.database.display());
                let (access, last_event) = (self.access().word(), last_event.id());
                let origins = self.origins().unwrap_or_else(|| "*".into());
                let version = env!("CARGO_PKG_VERSION");
                tracing::info!(
                    target: TARGET,
                    %address, version, url, docs = format!("{url}docs"), %database, events, %last_event, access, origins,
                    fingerprint = self.fingerprint,
                    "listening"
                );
            }
        }
    }

    /// An address that a browser on this machine can open.
    fn url(&self) -> String {
        let scheme = if self.config.serves_tls() { "https" } else { "http" };
        match self.address.ip() {
            ip if ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST => {
                format!("{scheme}://localhost:{}/", self.address.port())
            }
            _ => format!("{scheme}://{}/", self.address),
        }
    }

    fn access(&self) -> Access {
        match (self.rules.keys.are_required(), self.rules.keys.counts()) {
            (false, _) => Access::Open,
            (true, (0, false)) => Access::Nobody,
            (true, (named, has_api_key)) => Access::Keys(named, has_api_key),
        }
    }

    /// The origins whose web pages may connect, besides the server's own; `None` means every origin.
    fn origins(&self) -> Option<String> {
        match &self.config.cors_origins {
            _ if self.rules.pages.are_any() => None,
            CorsOrigins::List(origins) => Some(origins.join(", ")),
            CorsOrigins::Auto | CorsOrigins::Any => Some("auto".to_owned()),
        }
    }
}

/// Which clients the server admits.
#[derive(Clone, Copy)]
enum Access {
    /// All that can connect.
    Open,
    /// Those that send a key. How many named keys there are, and whether there is an `API_KEY`.
    Keys(usize, bool),
    /// None: a key is required, and there is none.
    Nobody,
}

impl Access {
    /// For programs.
    fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Keys(..) => "key",
            Self::Nobody => "nobody",
        }
    }
}

/// The block for people.
impl fmt::Display for Greeting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, last_event, .. } = self;
        let (url, ip) = (self.url(), address.ip());
        writeln!(f, "event-pipeline {} is ready", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "  open    {url} and {url}docs")?;
        write!(f, "  listen  {address}")?;
        match (ip.is_unspecified(), ip.is_ipv4()) {
            (true, true) => writeln!(f, ", all IPv4 addresses of this machine")?,
            (true, false) => writeln!(f, ", all addresses of this machine")?,
            (false, _) => writeln!(f)?,
        }
        if let Some(fingerprint) = self.fingerprint {
            writeln!(f, "  tls     a certificate of its own; SHA-256 {fingerprint}")?;
        }
        let database = plain(&self.database.display().to_string());
        write!(f, "  data    {database}: ")?;
        match self.events {
            _ if *last_event == Seq::ZERO => writeln!(f, "empty")?,
            Some(events) => writeln!(f, "{} events, last id {}", grouped(events), last_event.id())?,
            None => writeln!(f, "an unknown number of events, last id {}", last_event.id())?,
        }
        let who = match (ip.is_loopback(), ip.is_unspecified()) {
            (true, _) => "every program on this machine",
            (false, true) => "everyone who can reach this machine",
            (false, false) => "everyone who can reach this address",
        };
        match self.access() {
            Access::Open => write!(f, "  access  {who}, without a key")?,
            Access::Keys(0, _) => write!(f, "  access  {who}, with the API_KEY")?,
            Access::Keys(named, has_api_key) => {
                let (one_of, or) = (
                    if named == 1 { "the key" } else { "one of the keys" },
                    if has_api_key { " or the API_KEY" } else { "" },
                );
                let (path, count) = (self.config.keys_path(), grouped(named as u64));
                write!(f, "  access  {who}, with {one_of} of {} ({count}){or}", plain(&path.display().to_string()))?;
            }
            Access::Nobody => write!(f, "  access  nobody: authentication is on and there is no key")?,
        }
        match self.origins().as_deref() {
            None => Ok(()),
            Some(_) if self.config.cors_origins == CorsOrigins::Auto => write!(f, "; web pages of this machine only"),
            Some("") => write!(f, "; no web pages but its own"),
            Some(origins) => write!(f, "; web pages only from {origins}"),
        }
    }
}

/// A path on one line: a line break in it could show a line that the server has not written.
fn plain(path: &str) -> String {
    path.replace(char::is_control, "\u{fffd}")
}

/// A number as people read it: 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = (digits.len() - 1) % 3 + 1;
    let (first, rest) = digits.split_at(first);
    rest.as_bytes().chunks(3).fold(first.to_owned(), |text, group| text + "," + &String::from_utf8_lossy(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_reach_the_server_depends_on_its_address_and_the_key() {
        let check = |address: &str, set: fn(&mut Config), expected: [&str; 3]| {
            let mut config = Config::default();
            set(&mut config);
            let address = address.parse().expect("an address");
            let database = "/events.db".into();
            config.allow_unauthenticated = true;
            let rules = &Rules::new(&config).expect("no keys file");
            let (events, last_event) = (Some(0), Seq(5));
            let fingerprint = config.tls_self_signed.then_some("AB:CD");
            let greeting =
                Greeting { config: &config, rules, fingerprint, address, database, events, last_event }.to_string();
            for expected in expected {
                assert!(greeting.contains(expected), "{greeting}\nlacks {expected}");
            }
        };
        check(
            "[::]:8001",
            |_| {},
            [
                "open    http://localhost:8001/ and",
                "listen  [::]:8001, all addresses of this machine\n",
                "access  everyone who can reach this machine, without a key",
            ],
        );
        check(
            "[2001:db8::7]:80",
            |config| config.require_auth = Some(true),
            [
                "open    http://[2001:db8::7]:80/ and http://[2001:db8::7]:80/docs\n",
                "listen  [2001:db8::7]:80\n",
                "access  nobody: authentication is on and there is no key",
            ],
        );
        check(
            "127.0.0.1:8001",
            |config| config.tls_self_signed = true,
            ["open    https://localhost:8001/ and https://localhost:8001/docs\n", "SHA-256 AB:CD\n", ""],
        );
        check(
            "10.0.0.7:80",
            |config| (config.require_auth, config.api_key) = (Some(true), "k".into()),
            ["", "data    /events.db: 0 events, last id evt_000000000005\n", "this address, with the API_KEY"],
        );
        check(
            "[::1]:80",
            |config| config.cors_origins = CorsOrigins::List(Vec::new()),
            [
                "",
                "listen  [::1]:80\n",
                "access  every program on this machine, without a key; no web pages but its own",
            ],
        );
    }

    #[test]
    fn digits_are_grouped_by_three() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
