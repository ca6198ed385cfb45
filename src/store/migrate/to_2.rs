//! Format 2 has idempotency keys, and the number of holes of each segment.

use rusqlite::Connection;

pub fn run(connection: &Connection) -> rusqlite::Result<()> {
    // The first servers that had `holes` still called their format 1.
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS idempotency_keys (
            seq INTEGER PRIMARY KEY,
            count INTEGER NOT NULL,
            key TEXT NOT NULL UNIQUE
        );
        CREATE TABLE IF NOT EXISTS holes (
            segment INTEGER PRIMARY KEY,
            count INTEGER NOT NULL
        );",
    )
}
