//! The `event-pipeline` program: the server, its clients, and the commands that work on its database file.

mod cli;

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::ArgMatches;
use event_pipeline::auth::AccessError;
use event_pipeline::client::Refused;
use event_pipeline::config::{Config, LoadedConfig, LogFormat};
use event_pipeline::server;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command failed while it ran.
const FAILURE: u8 = 1;
/// The arguments or the configuration are wrong. Nothing was opened or bound.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match cli::parse() {
        cli::Invocation::Serve(flags) => serve(&flags),
        cli::Invocation::ShowConfig(show, flags) => with_config(&flags, |loaded| show.run(loaded).map_err(Into::into)),
        cli::Invocation::CheckConfig(check, flags) => check_config(&check, &flags),
        cli::Invocation::Keys(keys, flags) => with_config(&flags, |loaded| keys.run(loaded.config())),
        cli::Invocation::Health(health, flags) => with_config(&flags, |loaded| block_on(health.run(loaded.config()))),
        cli::Invocation::Command(command) => end(block_on(command.run())),
    }
}

fn serve(flags: &ArgMatches) -> ExitCode {
    let loaded = match LoadedConfig::load(flags) {
        Ok(loaded) => loaded,
        Err(error) => return fail(USAGE, error),
    };
    log_to_stderr(loaded.config());
    for shown in loaded.settings() {
        tracing::debug!(name = shown.setting.name, value = shown.value, set_by = shown.source_in_words(), "setting");
    }
    match server::run(loaded.into_config()) {
        Ok(()) => ExitCode::SUCCESS,
        // It says in two lines of their own what mends it.
        Err(server::Error::Access(error @ AccessError::Unauthenticated(_))) => {
            eprintln!("event-pipeline: {error}");
            ExitCode::from(USAGE)
        }
        Err(error @ (server::Error::Access(_) | server::Error::Tls(_))) => fail(USAGE, error),
        Err(error) => fail(FAILURE, anyhow::Error::new(error)),
    }
}

/// Runs a command that reads the configuration of the server.
fn with_config(flags: &ArgMatches, run: impl FnOnce(&LoadedConfig) -> anyhow::Result<()>) -> ExitCode {
    match LoadedConfig::load(flags) {
        Ok(loaded) => end(run(&loaded)),
        Err(error) => fail(USAGE, error),
    }
}

/// What was found has an exit code of its own, so that a script can tell it from a configuration that cannot be used.
fn check_config(check: &cli::CheckConfig, flags: &ArgMatches) -> ExitCode {
    let loaded = match LoadedConfig::load(flags) {
        Ok(loaded) => loaded,
        Err(error) => return fail(USAGE, error),
    };
    match check.run(&loaded) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILURE),
        Err(error) if error.is::<io::Error>() => end(Err(error)),
        Err(error) => fail(USAGE, error),
    }
}

fn log_to_stderr(config: &Config) {
    // h2 warns about what any client can cause, so it is off. A `LOG_LEVEL` that names it overrides that, because the
    // later directive counts.
    let filter = EnvFilter::new(format!("h2=off,{}", config.log_level));
    let log = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

/// The exit code of a command that has done its work or failed.
fn end(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Only stdout gives a bare IO error. Its reader, such as `head`, has closed the pipe, which is no failure.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) if is_unauthorized(&error) => {
            fail(FAILURE, format!("{error:#}; give a key or a token with --api-key, or as API_KEY in the environment"))
        }
        Err(error) => fail(FAILURE, error),
    }
}

/// Whether a server has refused a request that showed no valid key.
fn is_unauthorized(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<Refused>().is_some_and(|refused| refused.status.as_u16() == 401))
}

/// Writes the error to stderr, on one line.
fn fail(code: u8, error: impl Display) -> ExitCode {
    eprintln!("event-pipeline: {}", format!("{error:#}").replace('\n', " "));
    ExitCode::from(code)
}
