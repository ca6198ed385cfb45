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

use super::arguments::{EVENTS, Filter, Server, time};
use super::printer::{Printer, plain};

/// Show events live, one on each line
///
/// Begins with the next event. With --after, --since or --last, it first shows stored events and then continues live,
/// without gap or repeat. After a lost connection it connects again and continues after the last event shown.
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline tail --type answer_submitted,quiz_completed --last 20
  event-pipeline tail --session s1 --since 10m --json | jq .payload
  event-pipeline tail --filter '{\"payload\":{\"quiz_id\":\"demo-quiz\"}}'
  event-pipeline tail --filter '{\"exclude\":{\"event_types\":[\"timer_tick\"]}}'")]
pub struct Tail {
    /// Exit after N events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print each event as the JSON that the server sent
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    filter: Filter,
    /// Begin after the event with this id
    #[arg(long, value_name = "ID", conflicts_with_all = ["since", "last"], help_heading = EVENTS)]
    after: Option<EventId>,
    /// Begin after this time, in RFC 3339, or an age: 30s, 10m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "last", help_heading = EVENTS)]
    since: Option<String>,
    /// Begin with the last N matching events
    #[arg(long, value_name = "N", help_heading = EVENTS)]
    last: Option<u32>,
    #[command(flatten)]
    server: Server,
}

/// The shortest and the longest pause before connecting again; each is twice the one before. A server that restarts is
/// back within a second, and one that is down should not be asked more often than every 5 s.
const RECONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Twice the server's default keep-alive interval, 30 s. After a longer silence, the client sends a ping.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const SILENT: &str = "the server is silent";

impl Tail {
    pub async fn run(self) -> anyhow::Result<()> {
        let client = self.server.client()?;
        let mut out = Printer::new(self.json);
        let mut left = self.count.unwrap_or(u64::MAX);
        // The id after which a new connection continues.
        let mut after = self.after.map(|id| id.to_string());
        // The epoch of the database that this id comes from.
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
                    // An empty database has no last event, so the first event will follow number 0.
                    let newest = answer["last_event_id"].as_str().map_or(Seq::ZERO.id().to_string(), Into::into);
                    let begins_now = after.is_none() && self.since.is_none() && self.last.is_none();
                    if report_gap(&answer) || begins_now {
                        after = Some(newest.clone());
                    }
                    epoch = Some(answer["epoch"].clone());
                    let lost = follow(socket, &mut out, &mut left, &mut after, newest).await?;
                    let Some(lost) = lost else { break };
                    let resume = after.as_ref().map_or(String::new(), |id| format!(" after {id}"));
                    let lost = anyhow::Error::new(lost);
                    if !is_final(&lost) {
                        eprintln!("event-pipeline: {lost}; connecting again, to continue{resume}");
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
        // An empty value means any.
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

/// A subscription and the server's answer to it. A server that accepts the connection and does not answer counts as lost.
async fn subscribed(client: &Client, message: &str, time_max: Duration) -> anyhow::Result<(Socket, String)> {
    let silent = |_| Err(Disconnected::Lost(SILENT.into()).into());
    timeout(time_max, client.subscriber(message)).await.unwrap_or_else(silent)
}

/// Reports which of the requested events cannot be shown. Returns whether the server does not know the id, and so
/// begins with the next event.
fn report_gap(answer: &Value) -> bool {
    let gap = |what: &str| answer["gap"][what].as_str().map(plain);
    if let Some(last) = gap("missing_through") {
        eprintln!("event-pipeline: events up to {last} are deleted and cannot be shown");
    }
    if let Some(cursor) = gap("unknown_cursor") {
        eprintln!("event-pipeline: the server does not know {cursor}; continuing with new events");
    }
    gap("unknown_cursor").is_some()
}

/// Prints `left` events and returns `None`, or how the connection ended before. If history had no matching event, `after`
/// becomes the event that was the `newest` at the beginning.
///
/// # Errors
/// Writing to stdout failed.
async fn follow(
    mut socket: Socket,
    out: &mut Printer,
    left: &mut u64,
    after: &mut Option<String>,
    newest: String,
) -> io::Result<Option<Disconnected>> {
    let caught_up = Note::CaughtUp.json().to_string();
    let mut has_pinged = false;
    loop {
        let mut printed = Ok(());
        let received = timeout(
            SILENCE_MAX,
            socket.receive_batch(|text| {
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
                // All is shown, so it does not matter whether the Close frame arrives.
                let _ = socket.close(1000, "").await;
                return Ok(None);
            }
            Ok(Ok(_)) => has_pinged = false,
            Ok(Err(lost)) => return Ok(Some(lost)),
            Err(_) if has_pinged => return Ok(Some(Disconnected::Lost(SILENT.into()))),
            Err(_) => match socket.send(r#"{"type":"ping"}"#).await {
                Ok(()) => has_pinged = true,
                Err(lost) => return Ok(Some(lost)),
            },
        }
    }
}

/// Whether a second try would fail in the same way. A server that cannot be reached gives neither of these errors.
fn is_final(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(Disconnected::is_final) || error.downcast_ref().is_some_and(Refused::is_final)
}

#[cfg(test)]
mod tests {
    use event_pipeline::client::Trust;

    use super::*;

    #[tokio::test]
    async fn a_server_that_accepts_and_does_not_answer_counts_as_lost() {
        let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", mute.local_addr().expect("an address"));
        let client = Client::new(&url, None, &Trust::System).expect("a client");
        let Err(error) = subscribed(&client, "{}", Duration::from_millis(1)).await else { panic!("nobody answered") };
        assert_eq!(error.to_string(), Disconnected::Lost(SILENT.into()).to_string());
        assert!(!is_final(&error), "another try may find it");
    }
}
