//! What can be typed: the server, its clients, and what looks after its file.

mod database;
mod printer;
mod publish;
mod query;
mod tail;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use event_pipeline::client::Client;
use event_pipeline::config;
use event_pipeline::event::Timestamp;

use database::{Check, Repair};
use publish::{Publish, Replay};
use query::{Query, Stats};
use tail::Tail;

/// What the command line asks for. A mistake in it ends the process with an explanation and exit code 2.
pub fn parse() -> Task {
    let matches = command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match (cli.command, matches.subcommand()) {
        (Some(Command::Client(command)), _) => Task::Client(command),
        (Some(Command::File(command)), _) => Task::File(command),
        (_, Some((_, flags))) => Task::Serve(flags.clone()),
        (_, None) => Task::Serve(matches),
    }
}

pub enum Task {
    /// With the flags that [`config::args`] defines.
    Serve(ArgMatches),
    Client(ClientCommand),
    File(FileCommand),
}

/// The flags of `serve` come from the table of settings; they are taken without the command too.
fn command() -> clap::Command {
    Cli::command()
        .args(config::args().into_iter().map(|arg| arg.hide(true)))
        .mut_subcommand("serve", |serve| serve.args(config::args()))
}

/// Takes events in over HTTP and WebSocket, stores them durably in SQLite, and delivers them live to every matching
/// subscriber.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    override_usage = "event-pipeline [OPTIONS OF SERVE]\n       event-pipeline <COMMAND>",
    after_help = "Without a command it serves, on port 8001, into data/events.db; every flag of serve works then too.

Examples:
  event-pipeline                                    serve, with the defaults
  event-pipeline tail                               show the events as they arrive
  event-pipeline replay data/classroom.ndjson       publish a recorded class in its own rhythm

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT
    ///
    /// Settings come from flags, then environment variables, then a TOML file, then defaults. In the file a
    /// setting has the name of its variable in small letters: max_queue_size = 10000.
    #[command(after_help = "Examples:
  event-pipeline serve --port 9000 --database-path /var/lib/events/events.db
  API_KEY=secret event-pipeline serve --require-auth --log-format json")]
    Serve,
    #[command(flatten)]
    Client(ClientCommand),
    #[command(flatten)]
    File(FileCommand),
}

/// Commands that look at the database themselves.
#[derive(Subcommand)]
pub enum FileCommand {
    Check(Check),
    Repair(Repair),
}

impl FileCommand {
    /// Runs the command to its end, writing to stdout.
    ///
    /// # Errors
    /// What went wrong, or is. A bare [`std::io::Error`] is one of stdout.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check(check) => check.run(),
            Self::Repair(repair) => repair.run(),
        }
    }
}

#[derive(Subcommand)]
pub enum ClientCommand {
    Publish(Publish),
    Tail(Tail),
    Query(Query),
    Stats(Stats),
    Replay(Replay),
}

impl ClientCommand {
    /// Runs the command to its end, writing to stdout.
    ///
    /// # Errors
    /// What went wrong. A bare [`std::io::Error`] is one of stdout.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Publish(publish) => publish.run().await,
            Self::Tail(tail) => tail.run().await,
            Self::Query(query) => query.run().await,
            Self::Stats(stats) => stats.run().await,
            Self::Replay(replay) => replay.run().await,
        }
    }
}

/// Where the server is and how it is opened.
#[derive(Args)]
#[command(next_help_heading = "Server")]
struct Server {
    /// Address of the server
    #[arg(long, env = "EVENT_PIPELINE_URL", default_value = "http://127.0.0.1:8001", value_parser = url)]
    url: String,
    /// Key to show, when the server asks for one
    #[arg(long, env = "API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
}

impl Server {
    fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.url, self.api_key.as_deref().filter(|key| !key.is_empty()))
    }
}

/// Which events; nothing means every one.
#[derive(Args)]
#[command(next_help_heading = "Which events")]
struct Filter {
    /// Only events of these types; separated by commas or repeated
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    types: Vec<String>,
    /// Only events from this source
    #[arg(long)]
    source: Option<String>,
    /// Only events of this session
    #[arg(long)]
    session: Option<String>,
    /// Only events of this user
    #[arg(long)]
    user: Option<String>,
    /// Only events that pass this filter as JSON, which knows lists, payload keys and exclusions
    #[arg(long = "filter", value_name = "JSON", value_parser = filter)]
    expression: Option<String>,
}

/// A filter that the server would take.
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
    Client::new(text, None).map(|_| text.to_owned()).map_err(|error| format!("{error:#}"))
}

/// RFC 3339 stays as it is; an age such as `10m` becomes the time so long ago.
fn time(text: &str) -> Result<String, String> {
    const UNITS: [(char, i64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    for (unit, seconds) in UNITS {
        if let Some(Ok(count)) = text.strip_suffix(unit).map(str::parse::<u32>) {
            let age_micros = i64::from(count) * seconds * 1_000_000;
            return Ok(Timestamp(Timestamp::now().0 - age_micros).to_string());
        }
    }
    match Timestamp::parse_floor(text) {
        Ok(_) => Ok(text.into()),
        Err(error) => Err(format!("{error}, nor an age such as 30s, 10m, 2h or 1d")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "tail --since soon",
            "tail --filter x",
            "query --filter {\"source\":7}",
            "tail --filter {\"sesion_id\":\"s\"}",
            "query --filter {\"session_id\":\"s\",\"session_id\":\"t\"}",
            "tail --filter {\"payload\":{\"n\":1,\"n\":2}}",
            "tail --after 5",
            "tail --after evt_000000000001 --last 5",
            "query --limit 0",
            "query --all --limit 5",
            "query --url https://somewhere",
            "publish",
            "publish --type t --payload [1]",
            "publish events.ndjson --type t",
            "replay",
            "repair f",
            "check a b",
            "replay f --speed 0",
            "--port 1 tail",
            "dance",
        ] {
            let words = std::iter::once("event-pipeline").chain(line.split(' '));
            assert!(command().try_get_matches_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn serve_is_what_happens_without_a_command() {
        for line in ["event-pipeline --port 9000", "event-pipeline serve --port 9000"] {
            let matches = command().get_matches_from(line.split(' '));
            let flags = matches.subcommand().map_or(&matches, |(_, flags)| flags);
            assert_eq!(flags.get_one::<String>("PORT").map(String::as_str), Some("9000"), "{line}");
        }
    }

    #[test]
    fn times_are_rfc_3339_or_ages() {
        assert_eq!(time("2026-01-15T10:30:00+01:00").as_deref(), Ok("2026-01-15T10:30:00+01:00"));
        let hour_ago = Timestamp::now().0 - 3_600_000_000;
        let age = Timestamp::parse_floor(&time("1h").expect("an age")).expect("an RFC 3339 time").0;
        assert!((hour_ago..hour_ago + 60_000_000).contains(&age));
        for text in ["", "h", "1w", "-1h", "yesterday", "10 m", "é"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_query_names_only_what_was_asked_for() {
        let check = |line: &str, path: &str| {
            let matches = command().get_matches_from(std::iter::once("event-pipeline").chain(line.split(' ')));
            let Ok(Cli { command: Some(Command::Client(ClientCommand::Query(query))) }) =
                Cli::from_arg_matches(&matches)
            else {
                panic!("{line} is no query")
            };
            assert_eq!(query.path(), path);
        };
        check("query", "/events?limit=100");
        check("query --type a,b --type c --limit 5", "/events?event_type=a,b,c&limit=5");
        check("query --all --session s&1/ü", "/events?session_id=s%261%2F%C3%BC");
        check("query --all --since 2026-01-15T10:30:00+01:00", "/events?since=2026-01-15T10%3A30%3A00%2B01%3A00");
    }
}
