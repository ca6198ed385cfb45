//! The command that shows events live.

use std::io;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use event_pipeline::client::{Client, Disconnected, Refused, Socket};
use event_pipeline::event::{EventId, Seq, means_any};
use event_pipeline::wire::note::Note;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::printer::{Printer, plain};
use super::{Filter, Server, time};

/// Show events live, one on each line
///
/// Begins now, or earlier with --after, --since or --last: then history comes first and goes over into live
/// without gap or repeat. A lost connection is made again, and goes on after the last event seen.
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline tail --type answer_submitted,quiz_completed --last 20
  event-pipeline tail --session s1 --since 10m --json | jq .payload
  event-pipeline tail --filter '{\"payload\":{\"quiz_id\":\"demo-quiz\"},\"exclude\":{\"event_types\":[\"timer_tick\"]}}'")]
pub struct Tail {
    #[command(flatten)]
    filter: Filter,
    /// Begin after the event with this id
    #[arg(long, value_name = "ID", conflicts_with_all = ["since", "last"], help_heading = "Which events")]
    after: Option<EventId>,
    /// Begin after this time: RFC 3339, or how long ago: 30s, 10m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "last", help_heading = "Which events")]
    since: Option<String>,
    /// Begin with the last N matching events
    #[arg(long, value_name = "N", help_heading = "Which events")]
    last: Option<u32>,
    /// End after N events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print each event as received, in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

/// A server that restarts is back within a second; one that is down is not asked more often than this.
const RECONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// The server breaks a silence after 30 s by default; after a longer one it is asked for a sign of life.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const SILENT: &str = "the server is silent";

impl Tail {
    pub async fn run(self) -> anyhow::Result<()> {
        let client = self.server.client()?;
        let mut out = Printer::new(self.json);
        let mut left = self.count.unwrap_or(u64::MAX);
        // The id after which a new connection goes on.
        let mut after = self.after.map(|id| id.to_string());
        // The life of the database that this id is from.
        let mut epoch = None;
        let mut connected = false;
        let mut pause = RECONNECT_PAUSES.0;
        while left > 0 {
            let message = self.first_message(after.as_deref(), epoch.as_ref())?;
            let lost = match subscribed(&client, &message, SILENCE_MAX).await {
                Ok((socket, answer)) => {
                    if connected {
                        eprintln!("event-pipeline: connected again");
                    }
                    (connected, pause) = (true, RECONNECT_PAUSES.0);
                    let answer: Value = serde_json::from_str(&answer)?;
                    // An empty database has no last event, and what comes first follows this one.
                    let newest = answer["last_event_id"].as_str().map_or(Seq::ZERO.id().to_string(), Into::into);
                    let begins_now = after.is_none() && self.since.is_none() && self.last.is_none();
                    if tell_gap(&answer) || begins_now {
                        after = Some(newest.clone());
                    }
                    epoch = Some(answer["epoch"].clone());
                    let lost = follow(socket, &mut out, &mut left, &mut after, newest).await?;
                    let Some(lost) = lost else { break };
                    let resume = after.as_ref().map_or(String::new(), |id| format!(" after {id}"));
                    let lost = anyhow::Error::new(lost);
                    if !is_final(&lost) {
                        eprintln!("event-pipeline: {lost}; connecting again, to go on{resume}");
                    }
                    lost
                }
                Err(error) => error,
            };
            if !connected || is_final(&lost) {
                return Err(lost);
            }
            sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_PAUSES.1);
        }
        Ok(())
    }

    /// # Errors
    /// The filter and another option ask for the same field.
    fn first_message(&self, after: Option<&str>, epoch: Option<&Value>) -> anyhow::Result<String> {
        let Filter { types, source, session, user, expression } = &self.filter;
        let asked = expression.as_ref().map(|json| json.parse().expect("checked when it was read"));
        let mut message: Value = asked.unwrap_or_else(|| json!({}));
        // What is empty means any.
        let types: Vec<_> = if types.iter().all(String::is_empty) { Vec::new() } else { types.clone() };
        let asked = json!({ "event_types": types, "source": source, "session_id": session, "user_id": user });
        for (key, value) in asked.as_object().expect("just made").iter().filter(|(_, value)| !means_any(value)) {
            ensure!(message.get(key).is_none(), "--filter and another option both ask for '{key}'");
            message[key] = value.clone();
        }
        message["signals"] = true.into();
        match (after, &self.since, self.last) {
            (Some(after), _, _) => {
                message["after"] = after.into();
                message["epoch"] = epoch.cloned().unwrap_or_default();
            }
            (_, Some(since), _) => message["since"] = since.as_str().into(),
            (_, _, Some(last)) => message["last"] = last.into(),
            _ => {}
        }
        Ok(message.to_string())
    }
}

/// A subscription and its answer. A server that accepts and says nothing is one that was lost.
async fn subscribed(client: &Client, message: &str, patience: Duration) -> anyhow::Result<(Socket, String)> {
    let silent = |_| Err(Disconnected::Lost(SILENT.into()).into());
    timeout(patience, client.subscriber(message)).await.unwrap_or_else(silent)
}

/// Tells what of the events that were asked for cannot be shown. Returns whether the server knows nothing of the
/// cursor, and begins now.
fn tell_gap(answer: &Value) -> bool {
    let gap = |what: &str| answer["gap"][what].as_str().map(plain);
    if let Some(last) = gap("missing_through") {
        eprintln!("event-pipeline: events up to {last} are deleted and cannot be shown");
    }
    if let Some(cursor) = gap("unknown_cursor") {
        eprintln!("event-pipeline: the server does not know {cursor}; going on with what comes now");
    }
    gap("unknown_cursor").is_some()
}

/// Prints events until as many as were `left` have been: then `None`, else how the connection ended. Where history had
/// none, `after` becomes the event that was the `newest` at the beginning.
///
/// # Errors
/// Stdout's.
async fn follow(
    mut socket: Socket,
    out: &mut Printer,
    left: &mut u64,
    after: &mut Option<String>,
    newest: String,
) -> io::Result<Option<Disconnected>> {
    let caught_up = Note::CaughtUp.json().to_string();
    let mut asked = false;
    loop {
        let mut printed = Ok(());
        let received = timeout(
            SILENCE_MAX,
            socket.recv_batch(|text| {
                if *left > 0 && printed.is_ok() {
                    printed = out.event(text).map(|id| {
                        if let Some(id) = id {
                            *left -= 1;
                            *after = Some(id);
                        } else if after.is_none() && text == caught_up {
                            *after = Some(newest.clone());
                        }
                    });
                }
            }),
        );
        let received = received.await;
        printed.and_then(|()| out.flush())?;
        match received {
            _ if *left == 0 => {
                // Enough was seen; whether the goodbye arrives matters to nobody.
                let _ = socket.close(1000, "").await;
                return Ok(None);
            }
            Ok(Ok(_)) => asked = false,
            Ok(Err(lost)) => return Ok(Some(lost)),
            Err(_) if asked => return Ok(Some(Disconnected::Lost(SILENT.into()))),
            Err(_) => match socket.send(r#"{"type":"ping"}"#).await {
                Ok(()) => asked = true,
                Err(lost) => return Ok(Some(lost)),
            },
        }
    }
}

/// Whether a second try would meet the same refusal. What is neither is a server that cannot be reached.
fn is_final(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(Disconnected::is_final) || error.downcast_ref().is_some_and(Refused::is_final)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_accepts_and_says_nothing_is_lost() {
        let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", mute.local_addr().expect("an address"));
        let client = Client::new(&url, None).expect("a client");
        let Err(error) = subscribed(&client, "{}", Duration::from_millis(1)).await else { panic!("nobody answered") };
        assert_eq!(error.to_string(), Disconnected::Lost(SILENT.into()).to_string());
        assert!(!is_final(&error), "another try may find it");
    }
}
