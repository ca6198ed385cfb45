//! The driver of NATS: JetStream, which stores the messages of a subject in files, and core NATS without it.

pub mod wire;

use std::fs;
use std::process::Command;

use anyhow::{Context, bail};
use loadtest::{Connection, Dialect, Driver, Folder, Outcome, Process, Receive, Scratch, Subject, Target};
use serde_json::{Value, json};

use crate::binary::{Binary, version_parts};
use wire::{Operation, operations};

const SUBJECT: &str = "events";
const STREAM: &str = "EVENTS";

/// The first version that can sync every message (`sync_interval: always`).
const SYNC_ALWAYS_SINCE: (u32, u32) = (2, 10);

#[derive(Debug, Clone)]
pub struct Nats {
    pub binary: Binary,
    pub mode: Mode,
}

/// A mode of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    JetStream(Sync),
    /// Without JetStream.
    Core,
}

/// When a stream's file is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    Always,
    /// Every two minutes.
    ByDefault,
}

/// The server, if it is installed.
///
/// # Errors
/// It does not say its version.
pub fn installed() -> anyhow::Result<Option<Binary>> {
    Binary::find("nats-server", |line| line.split_once(": v").map(|(_, version)| version.trim()))
}

/// Whether this server can sync every message.
pub fn can_sync_always(binary: &Binary) -> bool {
    version_parts(&binary.version) >= SYNC_ALWAYS_SINCE
}

/// Where the acknowledgements of one producer arrive.
fn inbox(producer: usize) -> String {
    format!("_INBOX.loadtest.{producer}")
}

impl Nats {
    /// What it is called, and what its acknowledgements promise.
    fn subject(&self) -> Subject {
        let version = &self.binary.version;
        let (name, acknowledged_means) = match self.mode {
            Mode::JetStream(Sync::Always) => (format!("NATS JetStream {version}, sync always"), "synced to disk"),
            Mode::JetStream(Sync::ByDefault) => (
                format!("NATS JetStream {version}, default sync"),
                "written to the operating system; synced to disk every 2 minutes",
            ),
            Mode::Core => (format!("NATS core {version}"), "handed to the subscribers; never stored"),
        };
        Subject { name, acknowledged_means: acknowledged_means.to_owned() }
    }
}

impl Driver for Nats {
    fn start(&self, folder: Folder) -> anyhow::Result<Target> {
        let jet_stream = match self.mode {
            Mode::JetStream(sync) => {
                let always = if sync == Sync::Always { ", sync_interval: always" } else { "" };
                format!("jetstream {{ store_dir: {:?}{always} }}\n", folder.path())
            }
            Mode::Core => String::new(),
        };
        let file = folder.path().join("nats.conf");
        fs::write(&file, format!("host: 127.0.0.1\nport: -1\n{jet_stream}")).context("configure NATS")?;
        let process = Process::start(Command::new(&self.binary.path).arg("-c").arg(file), folder)?;
        let authority = process.wait_for(|line| {
            let (_, address) = line.split_once("Listening for client connections on ")?;
            Some(address.trim().to_owned())
        })?;
        Ok(Target::of_process(authority, self.subject(), process))
    }

    async fn prepare(&self, target: &Target) -> anyhow::Result<()> {
        let Mode::JetStream(_) = self.mode else { return Ok(()) };
        let stream = json!({ "name": STREAM, "subjects": [SUBJECT], "storage": "file", "num_replicas": 1 });
        request(target, &format!("$JS.API.STREAM.CREATE.{STREAM}"), stream.to_string().as_bytes()).await?;
        Ok(())
    }

    fn render(&self) -> fn(&mut Vec<u8>, usize, &[u8]) {
        match self.mode {
            Mode::JetStream(_) => |out, producer, event| wire::publish(out, SUBJECT, Some(&inbox(producer)), event),
            Mode::Core => |out, _, event| wire::publish(out, SUBJECT, None, event),
        }
    }

    fn dialect(&self) -> Dialect {
        match self.mode {
            Mode::JetStream(_) => Dialect::Peer { answers: acknowledgements, after_burst: b"" },
            // Nothing is acknowledged, but a ping is answered once everything before it is handed on.
            Mode::Core => Dialect::Peer { answers: pongs, after_burst: wire::PING },
        }
    }

    async fn producer(&self, target: &Target, number: usize, scratch: &Scratch) -> anyhow::Result<Connection> {
        connect(target, Some(&inbox(number)), scratch).await
    }

    async fn subscriber(&self, target: &Target, scratch: &Scratch) -> anyhow::Result<Connection> {
        connect(target, Some(SUBJECT), scratch).await
    }

    fn receive(&self) -> Receive {
        |bytes, out, visit| {
            operations(bytes, out, |operation| match operation {
                Operation::Message(event) => {
                    visit(None, event);
                    Ok(())
                }
                other => bail!("{other:?} is not for a subscriber"),
            })
        }
    }

    async fn stored(&self, target: &Target) -> anyhow::Result<Option<u64>> {
        let Mode::JetStream(_) = self.mode else { return Ok(None) };
        let stream = request(target, &format!("$JS.API.STREAM.INFO.{STREAM}"), b"").await?;
        let stored = stream["state"]["messages"].as_u64();
        stored.map(Some).with_context(|| format!("no number of messages in {stream}"))
    }

    fn note(&self) -> Option<&'static str> {
        matches!(self.mode, Mode::JetStream(_)).then_some("Subscribers get an event before it is stored.")
    }
}

/// A connection that has subscribed and got an answer to its first ping.
async fn connect(target: &Target, subject: Option<&str>, scratch: &Scratch) -> anyhow::Result<Connection> {
    let mut connection = Connection::open(target, scratch).await?;
    connection.out().extend_from_slice(wire::CONNECT);
    if let Some(subject) = subject {
        wire::subscribe(connection.out(), subject);
    }
    connection.out().extend_from_slice(wire::PING);
    let heard = connection.ask(|bytes, out, answer| {
        operations(bytes, out, |operation| {
            if operation == Operation::Pong {
                *answer = Some(());
            }
            Ok(())
        })
    });
    heard.await?;
    Ok(connection)
}

/// Asks something of JetStream.
async fn request(target: &Target, subject: &str, body: &[u8]) -> anyhow::Result<Value> {
    const INBOX: &str = "_INBOX.loadtest.request";
    let mut connection = connect(target, Some(INBOX), &Scratch::default()).await?;
    wire::publish(connection.out(), subject, Some(INBOX), body);
    let answer = connection.ask(|bytes, out, answer| {
        operations(bytes, out, |operation| {
            if let Operation::Message(message) = operation {
                *answer = Some(serde_json::from_slice::<Value>(message)?);
            }
            Ok(())
        })
    });
    let answer = answer.await?;
    if let Some(error) = answer.get("error") {
        bail!("{subject}: {error}");
    }
    Ok(answer)
}

fn acknowledgements(
    bytes: &[u8],
    out: &mut Vec<u8>,
    visit: &mut dyn FnMut(Outcome) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    operations(bytes, out, |operation| {
        let Operation::Message(message) = operation else { bail!("{operation:?} is no acknowledgement") };
        visit(wire::acknowledgement(message)?.map_or_else(Outcome::Refused, Outcome::Stored))
    })
}

fn pongs(
    bytes: &[u8],
    out: &mut Vec<u8>,
    visit: &mut dyn FnMut(Outcome) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    operations(bytes, out, |operation| match operation {
        Operation::Pong => visit(Outcome::BurstPassedOn),
        other => bail!("{other:?} is no answer to a ping"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_tell_what_became_of_events() {
        let outcomes = |read: loadtest::Answers, bytes: &[u8]| {
            let mut seen = Vec::new();
            let mut visit = |outcome| {
                seen.push(outcome);
                Ok(())
            };
            read(bytes, &mut Vec::new(), &mut visit).map(|used| (used, seen))
        };
        let message = |text: &str| format!("MSG _INBOX.loadtest.0 1 {}\r\n{text}\r\n", text.len());
        let stored = message(r#"{"stream":"EVENTS","seq":7}"#);
        let refused = message(r#"{"error":{"description":"full"}}"#);
        let seen = vec![Outcome::Stored(7), Outcome::Refused("full".to_owned())];
        let bytes = format!("{stored}{refused}");
        assert_eq!(outcomes(acknowledgements, bytes.as_bytes()).expect("answers"), (bytes.len(), seen));
        assert!(outcomes(acknowledgements, b"PONG\r\n").is_err());
        let seen = vec![Outcome::BurstPassedOn, Outcome::BurstPassedOn];
        assert_eq!(outcomes(pongs, b"PONG\r\nPONG\r\nPON").expect("answers"), (12, seen));
        assert!(outcomes(pongs, stored.as_bytes()).is_err());
    }

    #[test]
    fn only_newer_servers_sync_every_message() {
        let of = |version: &str| can_sync_always(&Binary { path: "nats-server".into(), version: version.to_owned() });
        assert_eq!(["2.9.10", "2.10.0", "2.11.1-beta.2", "3.0.0"].map(of), [false, true, true, true]);
    }
}
