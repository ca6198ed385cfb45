//! The command line: the server, its clients, and the commands that work on its database file.

mod arguments;
mod config;
mod config_check;
mod database;
mod health;
mod keys;
mod packaging;
mod printer;
mod publish;
mod publisher;
mod query;
mod replay;
mod stats;
mod tail;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use event_pipeline::config::args as settings;

use config::Config;
use database::{Backup, Check, Repair, Restore};
use health::Health;
use keys::Keys;
use packaging::{Completions, Man};
use publish::Publish;
use query::Query;
use replay::Replay;
use stats::Stats;
use tail::Tail;

pub use config::Show;
pub use config_check::Check as CheckConfig;

/// Reads the command line. A mistake in it ends the process with an explanation and exit code 2.
pub fn parse() -> Invocation {
    let matches = command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // The settings are no part of `Cli`: they are read from the matches of the innermost command.
    let mut flags = &matches;
    while let Some((_, of_subcommand)) = flags.subcommand() {
        flags = of_subcommand;
    }
    match cli.command {
        Some(Subcommands::Command(command)) => Invocation::Command(command),
        Some(Subcommands::Config(Config::Show(show))) => Invocation::ShowConfig(show, flags.clone()),
        Some(Subcommands::Config(Config::Check(check))) => Invocation::CheckConfig(check, flags.clone()),
        Some(Subcommands::Keys(keys)) => Invocation::Keys(keys, flags.clone()),
        Some(Subcommands::Health(health)) => Invocation::Health(health, flags.clone()),
        Some(Subcommands::Serve) | None => Invocation::Serve(flags.clone()),
    }
}

/// What the process has to do.
pub enum Invocation {
    /// With the flags of the settings.
    Serve(ArgMatches),
    /// With the same flags.
    ShowConfig(Show, ArgMatches),
    CheckConfig(CheckConfig, ArgMatches),
    Keys(Keys, ArgMatches),
    Health(Health, ArgMatches),
    Command(Command),
}

/// The flags of `serve` come from the table of settings. They are accepted without the command, and by `config show`,
/// `config check` and `health`, too.
fn command() -> clap::Command {
    let hidden = || settings().into_iter().map(|arg| arg.hide(true));
    Cli::command()
        .args(hidden())
        .mut_subcommand("serve", |serve| serve.args(settings()))
        .mut_subcommand("config", |config| config.mut_subcommands(|command| command.args(hidden())))
        .mut_subcommand("health", |health| health.args(hidden()))
        .mut_subcommand("keys", |keys| {
            keys.mut_subcommands(|command| {
                // Of the settings only those that say where the file is mean something.
                let file = settings()
                    .into_iter()
                    .filter(|arg| ["config", "KEYS_FILE", "DATABASE_PATH"].contains(&arg.get_id().as_str()));
                command.args(file)
            })
        })
}

/// Receives events over HTTP and WebSocket, stores them durably in SQLite, and delivers them live to every matching
/// subscriber.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    override_usage = "event-pipeline [OPTIONS OF SERVE]\n       event-pipeline <COMMAND>",
    max_term_width = 100,
    after_help = "Without a command, the program runs the server with the flags of serve: by default on port 8001,
with the database data/events.db.

Examples:
  event-pipeline                                    run the server with the default settings
  event-pipeline tail                               show events as they arrive
  event-pipeline replay data/classroom.ndjson       publish a recorded class in its original rhythm

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

A running server describes its interface at /docs, by default http://localhost:8001/docs."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Subcommands>,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Run the server until SIGTERM or SIGINT
    ///
    /// A flag overrides an environment variable, which overrides a TOML file, which overrides the default. In the file,
    /// a setting has the name of its environment variable in lower case. `event-pipeline config show` prints every
    /// setting with its value.
    #[command(after_help = "Example of a file:
  port = 9000
  database_path = \"/var/lib/events/events.db\"
  max_queue_bytes = \"128 MiB\"

Examples:
  event-pipeline serve --port 9000 --database-path /var/lib/events/events.db
  API_KEY=secret event-pipeline serve --require-auth --log-format json")]
    Serve,
    #[command(flatten)]
    Command(Command),
    /// Show the configuration, or check it
    #[command(subcommand)]
    Config(Config),
    /// Make, list and revoke API keys
    #[command(subcommand)]
    Keys(Keys),
    Health(Health),
}

/// The commands that need no configuration: the clients of a running server, and those that work on a database file or
/// for a package.
#[derive(Subcommand)]
pub enum Command {
    Publish(Publish),
    Tail(Tail),
    Query(Query),
    Stats(Stats),
    Replay(Replay),
    Check(Check),
    Repair(Repair),
    Backup(Backup),
    Restore(Restore),
    Completions(Completions),
    Man(Man),
}

impl Command {
    /// Runs the command to its end and writes its results to stdout.
    ///
    /// # Errors
    /// The command failed, or the file is damaged. A bare [`std::io::Error`] comes from stdout.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Publish(publish) => publish.run().await,
            Self::Tail(tail) => tail.run().await,
            Self::Query(query) => query.run().await,
            Self::Stats(stats) => stats.run().await,
            Self::Replay(replay) => replay.run().await,
            Self::Check(check) => check.run(),
            Self::Repair(repair) => repair.run(),
            Self::Backup(backup) => backup.run(),
            Self::Restore(restore) => restore.run(),
            Self::Completions(completions) => completions.run(command()),
            Self::Man(man) => man.run(command()),
        }
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
    fn contradictory_or_invalid_arguments_are_refused() {
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
            "query --url ftp://somewhere",
            "query --url http://host:b",
            "tail --ca file --insecure",
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
    fn without_a_command_the_server_runs_with_the_same_flags() {
        for line in ["event-pipeline --port 9000", "event-pipeline serve --port 9000"] {
            let matches = command().get_matches_from(line.split(' '));
            let flags = matches.subcommand().map_or(&matches, |(_, flags)| flags);
            assert_eq!(flags.get_one::<String>("PORT").map(String::as_str), Some("9000"), "{line}");
        }
    }

    #[test]
    fn the_path_of_a_query_has_only_the_parameters_that_were_given() {
        let check = |line: &str, path: &str| {
            let matches = command().get_matches_from(std::iter::once("event-pipeline").chain(line.split(' ')));
            let Ok(Cli { command: Some(Subcommands::Command(Command::Query(query))) }) =
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
