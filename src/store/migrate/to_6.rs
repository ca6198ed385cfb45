//! Format 6 counts events by minute and type (`rollups`). The writer counts those that are there in the background.

use rusqlite::Connection;

use crate::store::read;
use crate::store::schema::meta;

pub fn run(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "CREATE TABLE rollups (
            minute INTEGER NOT NULL,
            event_type TEXT NOT NULL,
            count INTEGER NOT NULL,
            PRIMARY KEY (minute, event_type)
        ) WITHOUT ROWID",
    )?;
    let last = meta::seq(connection, meta::LAST_SEQ)?.max(read::last_row(connection)?.unwrap_or_default());
    meta::set(connection, meta::NOT_ROLLED_UP, last.0 as i64)
}
