//! Format 3 has a checksum in each row. The small tables are written again with theirs. Events keep their rows, because
//! adding checksums would rewrite the whole file: `meta.unchecked_through` says which events have none.

use rusqlite::Connection;

use crate::store::checksum;
use crate::store::schema::{each, meta};

pub fn run(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "ALTER TABLE events ADD COLUMN checksum INTEGER;
        ALTER TABLE event_index RENAME TO former_index;
        ALTER TABLE subscriptions RENAME TO former_subscriptions;
        ALTER TABLE meta RENAME TO former_meta;
        CREATE TABLE event_index (
            segment INTEGER NOT NULL,
            kind INTEGER NOT NULL,
            key TEXT NOT NULL,
            offsets BLOB NOT NULL,
            checksum INTEGER NOT NULL,
            PRIMARY KEY (segment, kind, key)
        ) WITHOUT ROWID;
        CREATE TABLE subscriptions (
            name TEXT PRIMARY KEY,
            filters TEXT NOT NULL,
            position INTEGER NOT NULL,
            last_seen TEXT NOT NULL,
            checksum INTEGER NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE meta (
            key TEXT PRIMARY KEY,
            value INTEGER NOT NULL,
            checksum INTEGER NOT NULL
        ) WITHOUT ROWID;",
    )?;
    each(connection, "SELECT key, value FROM former_meta", |row| {
        meta::set(connection, row.get_ref(0)?.as_str()?, row.get(1)?)
    })?;
    let last: i64 = connection.query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| row.get(0))?;
    meta::set(connection, meta::UNCHECKED_THROUGH, last)?;

    let mut insert = connection.prepare("INSERT INTO event_index VALUES (?1, ?2, ?3, ?4, ?5)")?;
    each(connection, "SELECT segment, kind, key, offsets FROM former_index ORDER BY segment, kind, key", |row| {
        let (segment, kind): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (key, offsets) = (row.get_ref(2)?.as_str()?, row.get_ref(3)?.as_blob()?);
        insert
            .execute((segment, kind, key, offsets, checksum::of_list(segment, kind, key.as_bytes(), offsets)))
            .map(drop)
    })?;
    let mut insert = connection.prepare("INSERT INTO subscriptions VALUES (?1, ?2, ?3, ?4, ?5)")?;
    each(connection, "SELECT name, filters, position, last_seen FROM former_subscriptions", |row| {
        let (name, filters) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
        let (position, last_seen): (i64, _) = (row.get(2)?, row.get_ref(3)?.as_str()?);
        let checksum = checksum::of_subscription(name, filters, position, last_seen);
        insert.execute((name, filters, position, last_seen, checksum)).map(drop)
    })?;
    connection.execute_batch("DROP TABLE former_index; DROP TABLE former_subscriptions; DROP TABLE former_meta")
}
