//! The command `record`: a real day in a database becomes a recording that can be shown to others.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::numbers::grouped;

/// Turn events in a database into a recording for `classroom --recording`
///
/// The ids of sessions and users are hashed with a key that is thrown away, and every text and number in a payload is
/// replaced by one of the same length. Types, sources, the names of payload fields and the times between events stay as
/// they are. Events without a session are left out. A server may go on using the database.
#[derive(Args, Debug, Clone)]
pub struct Record {
    /// The database of a server
    #[arg(value_name = "DATABASE")]
    database: PathBuf,
    /// Where to write the recording
    #[arg(value_name = "RECORDING")]
    recording: PathBuf,
    /// Begin with this time, such as 2026-11-30T08:00:00
    #[arg(long, value_name = "TIME", default_value = "")]
    since: String,
    /// End before this time
    #[arg(long, value_name = "TIME", default_value = "9999")]
    until: String,
}

impl Record {
    /// Writes the recording, and says on stderr what it holds.
    ///
    /// # Errors
    /// The database cannot be read, has no such events, or the file cannot be written.
    pub fn write(&self) -> anyhow::Result<()> {
        let (database, recording) = (self.database.display(), self.recording.display());
        let connection = Connection::open_with_flags(&self.database, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .with_context(|| format!("open {database}"))?;
        let file = File::create_new(&self.recording).with_context(|| format!("create {recording}"))?;
        let (mut out, hashes) = (BufWriter::new(file), RandomState::new());
        let hashed = |id: &str| format!("{:016x}", hashes.hash_one(id));
        let mut events = connection.prepare(
            "SELECT event_type, source, session_id, user_id, payload, unixepoch(timestamp, 'subsec')
             FROM readable_events WHERE timestamp >= ? AND timestamp < ? ORDER BY seq",
        )?;
        let mut rows = events.query([&self.since, &self.until])?;
        let (mut first, mut last, mut written, mut left_out) = (None, 0, 0_u64, 0_u64);
        while let Some(row) = rows.next()? {
            let Some(session) = row.get::<_, Option<String>>(2)? else {
                left_out += 1;
                continue;
            };
            let millis = (row.get::<_, f64>(5)? * 1e3) as i64;
            // An event that was stored later never comes earlier, even if a clock was set back.
            last = (millis - *first.get_or_insert(millis)).max(last);
            let mut event = json!({
                "event_type": row.get::<_, String>(0)?,
                "source": row.get::<_, String>(1)?,
                "session_id": hashed(&session),
            });
            if let Some(user) = row.get::<_, Option<String>>(3)? {
                event["user_id"] = hashed(&user).into();
            }
            let payload = serde_json::from_str(&row.get::<_, String>(4)?).context("a payload")?;
            event["payload"] = of_same_shape(payload);
            writeln!(out, "{}", json!({ "offset_ms": last, "event": event }))?;
            written += 1;
        }
        if written == 0 {
            fs::remove_file(&self.recording)?;
            bail!("{database} has no events with a session between these times");
        }
        out.flush().with_context(|| format!("write to {recording}"))?;
        let [events, left_out] = [written, left_out].map(|count| grouped(count as f64));
        eprintln!(
            "loadtest: {events} events of {:.1} s in {recording}; {left_out} without a session left out",
            last as f64 / 1e3
        );
        Ok(())
    }
}

/// The same structure with other texts and numbers of the same length.
fn of_same_shape(value: Value) -> Value {
    match value {
        Value::String(text) => "x".repeat(text.len()).into(),
        Value::Number(number) => {
            let digits = number.to_string().replace(|c: char| c.is_ascii_digit() && c != '0', "1");
            serde_json::from_str(&digits).unwrap_or_else(|_| 1.into())
        }
        Value::Array(items) => items.into_iter().map(of_same_shape).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, of_same_shape(value))).collect(),
        plain => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_tells_lengths_and_nothing_else() {
        let payload =
            json!({ "name": "Åsa", "score": 907, "rate": -0.25, "right": [true, null, "b"], "inner": { "n": 0 } });
        let shape =
            json!({ "name": "xxxx", "score": 101, "rate": -0.11, "right": [true, null, "x"], "inner": { "n": 0 } });
        assert_eq!(of_same_shape(payload), shape);
    }
}
