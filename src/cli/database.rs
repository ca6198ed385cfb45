//! The commands that work on a database file. No server needs to run.

use std::io::{self, Write};
use std::path::PathBuf;
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

impl Check {
    pub fn run(self) -> anyhow::Result<()> {
        let path = self.database.display();
        let progress = ProgressBar::new_spinner().with_message("events read");
        progress.enable_steady_tick(Duration::from_millis(100));
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
