//! The commands that work on a database file. No server needs to run.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use event_pipeline::store;
use indicatif::ProgressBar;

/// Check a database for damage: checksums, index, statistics and pages
///
/// Reads the whole file and names everything that is damaged. A server may run on the file at the same time; its
/// write-ahead log grows while the command checks the pages.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 sound; 1 damaged, not readable, or written in another format or by another program;
2 wrong usage."
)]
pub struct Check {
    /// SQLite file
    #[arg(env = "DATABASE_PATH", hide_env_values = true, default_value = "data/events.db", value_name = "FILE")]
    database: PathBuf,
}

/// Save the readable part of a damaged database to a new file
///
/// Copies every event that matches its checksum, with its id, and the idempotency keys and durable subscriptions;
/// rebuilds the index and the statistics. The damaged file is only read. No server may run on it. To use the new file,
/// stop the server, remove the -wal and -shm files of the old one, and replace the old one.
#[derive(Args)]
pub struct Repair {
    /// Damaged SQLite file
    #[arg(env = "DATABASE_PATH", hide_env_values = true, default_value = "data/events.db", value_name = "FILE")]
    database: PathBuf,
    /// File to create
    #[arg(long, value_name = "NEW FILE")]
    into: PathBuf,
}

/// Copy the database to a new file, while a server may run on it
///
/// The copy has everything that was stored at one moment, and is checked and synced before it gets its name. While it
/// reads, the write-ahead log of a running server grows.
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline backup --to /backups/events-$(date +%F).db
  event-pipeline backup --to /backups/events.db /var/lib/event-pipeline/events.db

Exit codes: 0 done; 1 there is no new file, and why; 2 wrong usage.")]
pub struct Backup {
    /// SQLite file
    #[arg(env = "DATABASE_PATH", hide_env_values = true, default_value = "data/events.db", value_name = "FILE")]
    database: PathBuf,
    /// File to create
    #[arg(long, value_name = "NEW FILE")]
    to: PathBuf,
}

/// Copy a backup to where a server will use it
///
/// The backup is only read, and the copy is checked. Nothing is overwritten: move the files of the former database away
/// first, with the server stopped. A server that starts on the copy begins another epoch, so clients with a newer cursor
/// learn that there is a gap.
#[derive(Args)]
#[command(after_help = "Example:
  event-pipeline restore --from /backups/events-2026-01-15.db --into data/events.db

Exit codes: 0 done; 1 there is no new file, and why; 2 wrong usage.")]
pub struct Restore {
    /// Backup, or any other database file that no server uses
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// File to create
    #[arg(long, value_name = "NEW FILE")]
    into: PathBuf,
}

/// Shows that a long work goes on. Nothing is shown where stderr is no terminal.
fn spinner(message: &'static str) -> ProgressBar {
    let progress = ProgressBar::new_spinner().with_message(message);
    progress.enable_steady_tick(Duration::from_millis(100));
    progress
}

/// Runs a copy, and tells what it has made.
fn report(into: &Path, copy: impl FnOnce(&dyn Fn(u64)) -> Result<u64, store::CopyError>) -> anyhow::Result<()> {
    let progress = spinner("copying");
    let copied = copy(&|events| progress.set_message(format!("{events} events of the copy checked")));
    progress.finish_and_clear();
    Ok(writeln!(io::stdout(), "{}: {} events, checked", into.display(), copied?)?)
}

impl Backup {
    pub fn run(self) -> anyhow::Result<()> {
        report(&self.to, |progress| store::copy(&self.database, &self.to, progress))
    }
}

impl Restore {
    pub fn run(self) -> anyhow::Result<()> {
        report(&self.into, |progress| store::restore(&self.from, &self.into, progress))
    }
}

impl Check {
    pub fn run(self) -> anyhow::Result<()> {
        let path = self.database.display();
        let progress = spinner("events read");
        let mut stdout = io::stdout().lock();
        let (mut damaged, mut written) = (0, Ok(()));
        let found = |finding: String| {
            damaged += 1;
            written = progress.suspend(|| writeln!(stdout, "{finding}"));
        };
        let checked = store::check(&self.database, found, |events| {
            progress.set_message(format!("{events} events read"));
        });
        progress.finish_and_clear();
        written?;
        let events = checked.with_context(|| format!("check {path}"))?;
        anyhow::ensure!(
            damaged == 0,
            "{path} is damaged ({damaged} findings): `event-pipeline repair` saves the sound part"
        );
        writeln!(stdout, "{path} is sound: {events} events")?;
        Ok(())
    }
}

impl Repair {
    pub fn run(self) -> anyhow::Result<()> {
        let saved = store::repair(&self.database, &self.into)?;
        let mut stdout = io::stdout().lock();
        for id in &saved.damaged {
            writeln!(stdout, "{id} is damaged and was left out")?;
        }
        if let Some(frame) = saved.broken_frame {
            writeln!(stdout, "the write-ahead log is damaged at frame {frame}; the frames after it were read too")?;
        }
        let store::Repaired { events, missing, deleted, keys, subscriptions, .. } = saved;
        let path = self.into.display();
        writeln!(stdout, "{path}: {events} events, {keys} idempotency keys, {subscriptions} durable subscriptions")?;
        if missing > 0 {
            writeln!(stdout, "{missing} numbers between the first and the last have no event; {deleted} were deleted")?;
        }
        Ok(())
    }
}
