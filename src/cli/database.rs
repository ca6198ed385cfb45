//! The commands that look at a database file themselves: no server needs to run.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use event_pipeline::store;
use indicatif::ProgressBar;

/// Hold a database against itself: checksums, index, statistics, pages
///
/// Reads the whole file and prints what is damaged, by name. A server may run on it meanwhile.
/// While it looks at the pages, the write-ahead log of that server grows.
#[derive(Args)]
#[command(after_help = "Exit codes: 0 sound, 1 damaged, not readable, or of another format or program, 2 wrong usage.")]
pub struct Check {
    /// The SQLite file
    #[arg(env = "DATABASE_PATH", default_value = "data/events.db", value_name = "FILE")]
    database: PathBuf,
}

/// Save what can be read of a damaged database into a new file
///
/// Takes over every event that matches its checksum, under its id, with keys and durable subscriptions, and
/// builds the index and the statistics anew. The damaged file is only read; no server may run on it. Serve from
/// the new file by putting it in the place of the old one, together with no -wal or -shm file.
#[derive(Args)]
pub struct Repair {
    /// The damaged SQLite file
    #[arg(env = "DATABASE_PATH", default_value = "data/events.db", value_name = "FILE")]
    database: PathBuf,
    /// The file to make
    #[arg(long, value_name = "NEW FILE")]
    into: PathBuf,
}

impl Check {
    pub fn run(self) -> anyhow::Result<()> {
        let path = self.database.display();
        let progress = ProgressBar::new_spinner().with_message("events read");
        progress.enable_steady_tick(Duration::from_millis(100));
        let mut stdout = io::stdout().lock();
        let (mut damaged, mut said) = (0, Ok(()));
        let found = |what: String| {
            damaged += 1;
            said = progress.suspend(|| writeln!(stdout, "{what}"));
        };
        let checked = store::check(&self.database, found, |events| {
            progress.set_message(format!("{events} events read"));
        });
        progress.finish_and_clear();
        said?;
        let events = checked.with_context(|| format!("check {path}"))?;
        anyhow::ensure!(damaged == 0, "{path} is damaged ({damaged} findings): `event-pipeline repair` saves the rest");
        writeln!(stdout, "{path} is sound: {events} events")?;
        Ok(())
    }
}

impl Repair {
    pub fn run(self) -> anyhow::Result<()> {
        let saved = store::repair(&self.database, &self.into)?;
        let mut stdout = io::stdout().lock();
        for id in &saved.damaged {
            writeln!(stdout, "{id} is damaged and left out")?;
        }
        if let Some(frame) = saved.broken_frame {
            writeln!(stdout, "the write-ahead log is broken at frame {frame}; what comes behind was read too")?;
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
