//! `event-pipeline keys`.

use std::io::{self, BufWriter, Write};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use event_pipeline::auth::{KeyRecord, KeysFile, NewKey, Scope};
use event_pipeline::config::Config;
use event_pipeline::event::Timestamp;
use serde_json::json;

use super::arguments::span_micros;
use super::printer::plain;

#[derive(Subcommand)]
pub enum Keys {
    Add(Add),
    List(List),
    Revoke(Revoke),
}

/// Make a key, and show it once
///
/// Only the key is written to stdout. The keys file (KEYS_FILE) keeps its SHA-256. A server that runs with authentication
/// takes the key within a second; one that runs without it has to be started again.
#[derive(Args)]
#[command(
    override_usage = "event-pipeline keys add [OPTIONS] --scope <SCOPE> <NAME>",
    after_help = "Examples:
  event-pipeline keys add timers --scope publish --source timer_service
  event-pipeline keys add dashboard --scope subscribe,query --expires 90d
  event-pipeline keys add class-7b --scope subscribe --session quiz-7b-monday

Scopes: publish (send events), subscribe (WebSocket and event stream), query (read what is
stored), admin (delete), metrics.

Two keys with the same name share the names of their subscriptions and their idempotency keys:
to replace a key, add another one of the same name, give it to the clients, and revoke the first.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration."
)]
pub struct Add {
    /// What people call the key; it stands in `keys list`
    name: String,
    /// What its clients may do; separate scopes with commas, or repeat the flag
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_delimiter = ',', value_parser = scope)]
    scopes: Vec<Scope>,
    /// Only for events of these types; separate them with commas, or repeat the flag
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    event_types: Vec<String>,
    /// Only for events of this session; can be repeated
    #[arg(long = "session", value_name = "ID")]
    session_id: Vec<String>,
    /// Only for events of this user; can be repeated
    #[arg(long = "user", value_name = "ID")]
    user_id: Vec<String>,
    /// Only for events from this source; can be repeated
    #[arg(long, value_name = "SOURCE")]
    source: Vec<String>,
    /// Where names of subscriptions and idempotency keys belong [default: NAME]; empty is where those of the API_KEY are
    #[arg(long, value_name = "SPACE")]
    space: Option<String>,
    /// When the key ends: a time, or for how long it is valid, such as 12h or 90d
    #[arg(long, value_name = "TIME", value_parser = end)]
    expires: Option<Timestamp>,
}

/// Show the keys, without their secrets
#[derive(Args)]
#[command(override_usage = "event-pipeline keys list [OPTIONS]")]
pub struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// End a key
///
/// A running server closes the connections that use it within a second.
#[derive(Args)]
#[command(override_usage = "event-pipeline keys revoke [OPTIONS] <ID>")]
pub struct Revoke {
    /// The id of the key, as `keys list` shows it: the part after ep_
    id: String,
}

impl Keys {
    /// # Errors
    /// The keys file cannot be used, or there is no such key.
    pub fn run(&self, config: &Config) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.run(config),
            Self::List(list) => list.run(&KeysFile::read_or_none(&config.keys_path())?),
            Self::Revoke(revoke) => revoke.run(config),
        }
    }
}

impl Add {
    fn run(&self, config: &Config) -> anyhow::Result<()> {
        let path = config.keys_path();
        let text = KeysFile::change(&path, |file| {
            let key = loop {
                let key = NewKey::random().context("get random bytes")?;
                if file.keys.iter().all(|known| known.id != key.id) {
                    break key;
                }
            };
            let record = KeyRecord {
                id: key.id,
                name: self.name.clone(),
                sha256: key.digest,
                scopes: self.scopes.clone(),
                space: self.space.clone(),
                event_types: self.event_types.clone(),
                session_id: self.session_id.clone(),
                user_id: self.user_id.clone(),
                source: self.source.clone(),
                created: Some(Timestamp::now()),
                expires: self.expires,
            };
            record.check().map_err(anyhow::Error::msg)?;
            file.keys.push(record);
            Ok::<_, anyhow::Error>(key.text)
        })?;
        writeln!(io::stdout(), "{text}")?;
        eprintln!("The key is shown only this once. {} has its SHA-256.", plain(&path.display().to_string()));
        Ok(())
    }
}

impl List {
    fn run(&self, file: &KeysFile) -> anyhow::Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        if self.json {
            let keys: Vec<_> = file.keys.iter().map(object).collect();
            writeln!(out, "{:#}", json!({ "keys": keys }))?;
        } else if file.keys.is_empty() {
            writeln!(out, "There is no key.")?;
        } else {
            writeln!(out, "{:<8}  {:<20}  {:<28}  {:<27}  ONLY FOR", "ID", "NAME", "SCOPES", "EXPIRES")?;
            for key in &file.keys {
                let scopes = key.scopes.iter().map(|scope| scope.name()).collect::<Vec<_>>().join(",");
                let expires = key.expires.map_or_else(|| "never".to_owned(), |expires| expires.to_string());
                let only = pins(key).map(|(field, values)| format!("{field}={}", values.join(",")));
                let only = plain(&only.collect::<Vec<_>>().join(" ")).into_owned();
                let line = format!("{:<8}  {:<20}  {scopes:<28}  {expires:<27}  {only}", key.id, plain(&key.name));
                writeln!(out, "{}", line.trim_end())?;
            }
        }
        out.flush().map_err(Into::into)
    }
}

impl Revoke {
    fn run(&self, config: &Config) -> anyhow::Result<()> {
        let path = config.keys_path();
        KeysFile::change(&path, |file| {
            let before = file.keys.len();
            file.keys.retain(|key| key.id != self.id);
            if file.keys.len() == before {
                bail!("{} has no key {:?}; `event-pipeline keys list` shows the ids", path.display(), self.id);
            }
            Ok(())
        })
    }
}

/// One key. Each has the same members.
fn object(key: &KeyRecord) -> serde_json::Value {
    json!({
        "id": key.id,
        "name": key.name,
        "scopes": key.scopes,
        "space": key.space(),
        "only_for": pins(key).map(|(field, values)| (field.to_owned(), json!(values))).collect::<serde_json::Map<_, _>>(),
        "created": key.created.map(|time| time.to_string()),
        "expires": key.expires.map(|time| time.to_string()),
    })
}

/// The fields whose values the key is limited to.
fn pins(key: &KeyRecord) -> impl Iterator<Item = (&'static str, &Vec<String>)> {
    let fields = [
        ("event_types", &key.event_types),
        ("session_id", &key.session_id),
        ("user_id", &key.user_id),
        ("source", &key.source),
    ];
    fields.into_iter().filter(|(_, values)| !values.is_empty())
}

fn scope(word: &str) -> Result<Scope, String> {
    let names = || Scope::ALL.map(Scope::name).join(", ");
    Scope::ALL.into_iter().find(|scope| scope.name() == word).ok_or_else(|| format!("not one of {}", names()))
}

fn end(text: &str) -> Result<Timestamp, String> {
    let now = Timestamp::now();
    let end = match (span_micros(text), Timestamp::parse_floor(text)) {
        (Some(span), _) => Timestamp(now.0 + span),
        (None, Ok(end)) => end,
        (None, Err(error)) => return Err(format!("{error}, nor a time from now such as 12h or 90d")),
    };
    if end <= now { Err("the key would have expired already".to_owned()) } else { Ok(end) }
}
