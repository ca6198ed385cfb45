//! Settings with words of their own: origins, durability, rates, event types, formats of the log.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use hyper::http::uri::Authority;
use ipnet::IpNet;

use super::value::{Allowed, Value, put};
use crate::event::EventTypes;

/// The browser origins whose pages may read answers and open WebSockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    /// Every one if clients need a key, else those of this machine.
    Auto,
    Any,
    List(Vec<String>),
}

/// Names under which the server may be addressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    Any,
    List(Vec<String>),
}

impl Default for Hosts {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

/// Networks of IP addresses.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Addresses and networks, separated by commas; `None` if one is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let network = |part: &str| part.parse().ok().or_else(|| part.parse::<IpAddr>().ok().map(IpNet::from));
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(network).collect::<Option<_>>().map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|network| network.contains(&ip))
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

/// A setting whose values are words. The first word of a value is the one that is shown.
pub trait Worded: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

impl<T: Worded> Value for T {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let known = T::WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
        put(self, known.map(|(_, value)| *value), allowed)
    }

    fn show(&self) -> String {
        T::WORDS.iter().find(|(_, value)| value == self).map_or("", |(word, _)| *word).to_owned()
    }
}

impl Worded for bool {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("true", true),
        ("1", true),
        ("yes", true),
        ("on", true),
        ("false", false),
        ("0", false),
        ("no", false),
        ("off", false),
    ];
}

impl Worded for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

impl Worded for Durability {
    const WORDS: &'static [(&'static str, Self)] =
        &[("full", Self::Full), ("normal", Self::Normal), ("off", Self::Off)];
}

/// `auto` leaves it to the program.
impl Value for Option<bool> {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let mut is_on = false;
        *self = match text {
            "" | "auto" => None,
            _ => is_on.set(text, allowed).map(|()| Some(is_on))?,
        };
        Ok(())
    }

    fn show(&self) -> String {
        self.map_or_else(|| "auto".to_owned(), |is_on| is_on.show())
    }
}

impl Value for CorsOrigins {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        if text == "auto" {
            *self = Self::Auto;
            return Ok(());
        }
        let origins: Option<Vec<String>> = match text.starts_with('[') {
            true => serde_json::from_str(text).ok(),
            false => Some(text.split(',').map(|o| o.trim().to_owned()).filter(|o| !o.is_empty()).collect()),
        };
        // An origin has a scheme and no path. One that no browser sends would match no page, and the operator would not
        // notice.
        let is_scheme = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        // Browsers leave out the port that a scheme has anyway.
        let is_usual =
            |scheme: &str, port| matches!((&*scheme.to_ascii_lowercase(), port), ("http", 80) | ("https", 443));
        let is_host = |scheme: &str, host: &str| {
            // A comma would be read back as the beginning of another origin.
            let host = host.parse::<Authority>().ok().filter(|_| !host.contains(['@', ',']));
            host.is_some_and(|host| !host.port_u16().is_some_and(|port| is_usual(scheme, port)))
        };
        let origin = |o: String| {
            let o = o.trim_end_matches('/');
            let parts = o.split_once("://");
            (o == "null" || parts.is_some_and(|(scheme, host)| is_scheme(scheme) && is_host(scheme, host)))
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
            Self::Auto => "auto".into(),
            Self::Any => "*".into(),
            Self::List(list) => list.join(","),
        }
    }
}

impl Value for Hosts {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let hosts: Vec<_> = text.split(',').map(str::trim).filter(|host| !host.is_empty()).collect();
        // A port, or a whole address, would match no host.
        let is_name = |host: &&str| host.parse::<Authority>().is_ok_and(|authority| authority.host() == *host);
        let list = || hosts.iter().all(is_name).then(|| Self::List(hosts.iter().map(|host| (*host).into()).collect()));
        put(self, if hosts.contains(&"*") { Some(Self::Any) } else { list() }, allowed)
    }

    fn show(&self) -> String {
        match self {
            Self::Any => "*".into(),
            Self::List(list) => list.join(","),
        }
    }
}

impl Value for Networks {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        put(self, Self::parse(text), allowed)
    }

    fn show(&self) -> String {
        let single = |network: &IpNet| network.prefix_len() == network.max_prefix_len();
        let texts =
            self.0.iter().map(|network| if single(network) { network.addr().to_string() } else { network.to_string() });
        texts.collect::<Vec<_>>().join(",")
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

    /// The types that were added, and built-in ones with another description.
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
