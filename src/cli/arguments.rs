//! Arguments that several commands share.

use std::path::PathBuf;

use clap::Args;
use event_pipeline::client::{Address, Client, Trust};
use event_pipeline::event::Timestamp;

/// The heading of the help under which flags that select events stand.
pub const EVENTS: &str = "Which events";

/// The flags that say which server to connect to.
#[derive(Args)]
#[command(next_help_heading = "Server")]
pub struct Server {
    /// Address of the server
    #[arg(long, env = "EVENT_PIPELINE_URL", hide_env_values = true, default_value = "http://127.0.0.1:8001", value_parser = url)]
    url: String,
    /// API key, if the server requires one
    #[arg(long, env = "API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Certificates in PEM that vouch for the server, instead of those that this machine trusts
    #[arg(long, env = "EVENT_PIPELINE_CA", hide_env_values = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Accept every certificate: whoever is in between can read and change everything
    #[arg(long, conflicts_with = "ca")]
    insecure: bool,
}

impl Server {
    pub fn client(&self) -> anyhow::Result<Client> {
        let trust = match &self.ca {
            _ if self.insecure => Trust::Anything,
            Some(file) => Trust::File(file.clone()),
            None => Trust::System,
        };
        Client::new(&self.url, self.api_key.as_deref().filter(|key| !key.is_empty()), &trust)
    }
}

/// The flags that select events. Without any of them, every event passes.
#[derive(Args)]
#[command(next_help_heading = EVENTS)]
pub struct Filter {
    /// Only events of these types; separate them with commas, or repeat the flag
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<String>,
    /// Only events from this source
    #[arg(long)]
    pub source: Option<String>,
    /// Only events of this session
    #[arg(long)]
    pub session: Option<String>,
    /// Only events of this user
    #[arg(long)]
    pub user: Option<String>,
    /// Only events that pass this filter, a JSON object; it also supports lists, payload keys and exclusions
    #[arg(long = "filter", value_name = "JSON", value_parser = filter)]
    pub expression: Option<String>,
}

/// Checks a filter by the rules of the server.
fn filter(text: &str) -> Result<String, String> {
    use event_pipeline::event::{Filter, Object, only_known};
    let asked = Object::read(text.as_bytes(), &|_, _| true).map_err(|error| error.to_string())?;
    only_known(&asked.members, Filter::is_key, "the filter")?;
    match asked.repeated_anywhere() {
        Some(key) => Err(format!("the filter has the key '{key}' twice")),
        None => Filter::parse(&asked.members).map(|_| text.to_owned()),
    }
}

fn url(text: &str) -> Result<String, String> {
    Address::parse(text).map(|_| text.to_owned()).map_err(|error| format!("{error:#}"))
}

/// A time in RFC 3339 is returned unchanged. An age such as `10m` becomes the time 10 minutes ago.
pub fn time(text: &str) -> Result<String, String> {
    match (span_micros(text), Timestamp::parse_floor(text)) {
        (Some(age), _) => Ok(Timestamp(Timestamp::now().0 - age).to_string()),
        (None, Ok(_)) => Ok(text.into()),
        (None, Err(error)) => Err(format!("{error}, nor an age such as 30s, 10m, 2h or 1d")),
    }
}

/// The microseconds of a span such as 30s, 10m, 2h or 1d.
pub fn span_micros(text: &str) -> Option<i64> {
    const UNITS: [(char, i64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    UNITS.into_iter().find_map(|(unit, seconds)| {
        let count: u32 = text.strip_suffix(unit)?.parse().ok()?;
        Some(i64::from(count) * seconds * 1_000_000)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_rfc_3339_or_an_age() {
        assert_eq!(time("2026-01-15T10:30:00+01:00").as_deref(), Ok("2026-01-15T10:30:00+01:00"));
        let hour_ago = Timestamp::now().0 - 3_600_000_000;
        let age = Timestamp::parse_floor(&time("1h").expect("an age")).expect("an RFC 3339 time").0;
        assert!((hour_ago..hour_ago + 60_000_000).contains(&age));
        for text in ["", "h", "1w", "-1h", "yesterday", "10 m", "é"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
