//! Format 4 has the offsets of the holes of each segment, and a digest with each key. SQLite adds columns without
//! rewriting the stored rows; the keys that are stored stay without a digest.

use rusqlite::Connection;

use crate::event::Seq;
use crate::store::holes::{self, Holes};
use crate::store::schema::{each, meta};
use crate::store::segments;

pub fn run(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "ALTER TABLE idempotency_keys ADD COLUMN digest BLOB;
        ALTER TABLE idempotency_keys ADD COLUMN checksum INTEGER;
        ALTER TABLE holes ADD COLUMN offsets BLOB;
        ALTER TABLE holes ADD COLUMN checksum INTEGER;",
    )?;
    // Which numbers of the open segment were given is known only now, so the holes of segments that are not sealed are
    // found here. The sealer finds those of the others later.
    let stored: i64 = connection.query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| row.get(0))?;
    let last = Seq(stored.max(meta::get(connection, meta::LAST_SEQ)?) as u64);
    let sealed_before = meta::get(connection, meta::SEALED_BEFORE)?;
    let sql = format!("SELECT segment, count FROM holes WHERE segment >= {sealed_before}");
    each(connection, &sql, |row| {
        let (segment, count) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
        let mut offsets = holes::find(connection, segment)?;
        offsets.retain(|offset| segments::first_of(segment).plus((*offset).into()) <= last);
        Holes { count, offsets: Some(offsets) }.store(connection, segment)
    })
}
