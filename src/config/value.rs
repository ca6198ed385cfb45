//! How a setting is read from text and shown as text: numbers, sizes, times, switches, paths.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

const BYTE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// The type of a setting: read from text, and shown as text that reads back as the same value.
pub trait Value {
    /// # Errors
    /// What was expected instead, for the end of "expected …".
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String>;
    fn show(&self) -> String;
}

/// Sets the field to a value; if there is none, says what is allowed.
pub fn put<T>(field: &mut T, value: Option<T>, allowed: &Allowed) -> Result<(), String> {
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
pub fn show_bytes(number: &str) -> String {
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

impl Value for IpAddr {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let value = if text == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { text.parse().ok() };
        put(self, value, allowed)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Nothing switches it off.
impl Value for Option<SocketAddr> {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        put(self, if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }, allowed)
    }

    fn show(&self) -> String {
        self.map_or_else(String::new, |address| address.to_string())
    }
}

impl Value for PathBuf {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        // For SQLite that name is a database without a file.
        put(self, (!text.is_empty() && text != ":memory:").then(|| text.into()), allowed)
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

/// Nothing leaves the choice to the program.
impl Value for Option<PathBuf> {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        put(self, Some((!text.is_empty()).then(|| text.into())), allowed)
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(String::new, |path| path.display().to_string())
    }
}

/// Texts: keys and secrets, which must fit into a header or a line, names of others, and the log's filter.
impl Value for String {
    fn set(&mut self, text: &str, allowed: &Allowed) -> Result<(), String> {
        let value = match allowed {
            Secret => (!text.contains(char::is_control)).then(|| text.to_owned()),
            Text(_) => Some(text.to_owned()),
            _ => log_directives(text),
        };
        put(self, value, allowed)
    }

    fn show(&self) -> String {
        self.clone()
    }
}

/// The directives of the log's filter, with Python's names of levels replaced by the filter's. A word alone must be a
/// level: the filter would take a misspelled one for the name of a target, and log nothing.
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

/// The values that a setting may have. Displays as the end of "expected …".
#[derive(Clone, Copy)]
pub enum Allowed {
    Count(u64, u64),
    Bytes(u64, u64),
    Seconds(f64, f64),
    Switch,
    /// A switch that can be left to the program.
    SwitchOrAuto,
    Secret,
    /// Any text, with the placeholder in the help.
    Text(&'static str),
    /// The placeholder in the help, and the grammar as a text.
    Words(&'static str, &'static str),
}
use Allowed::{Bytes, Count, Seconds, Secret, Switch, SwitchOrAuto, Text, Words};

impl Allowed {
    /// The placeholder in the help.
    pub fn value_name(self) -> &'static str {
        match self {
            Count(..) => "N",
            Bytes(..) => "SIZE",
            Seconds(..) => "SECONDS",
            Switch | SwitchOrAuto => "BOOL",
            Secret => "KEY",
            Text(name) | Words(name, _) => name,
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
            SwitchOrAuto => f.write_str("true, false or auto"),
            Secret => f.write_str("characters that a header can carry"),
            Text(_) => f.write_str("any text"),
            Words(_, words) => f.write_str(words),
        }
    }
}
