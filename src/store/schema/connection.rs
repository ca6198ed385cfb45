//! Connections to the database. No other module opens one.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use percent_encoding::{AsciiSet, percent_encode};
use rusqlite::{Connection, OpenFlags};

use crate::config::Durability;

/// A read-write connection. Opening it changes nothing in the file.
pub fn open_writer(path: &Path) -> rusqlite::Result<Connection> {
    assert!(
        rusqlite::version_number() >= SQLITE_VERSION_MIN,
        "this build holds SQLite {}, which is older than 3.51.3 and can lose commits",
        rusqlite::version()
    );
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Sets up a read-write connection: a write-ahead log, and no checkpoints of SQLite's own, because the store does them
/// off the commit path.
pub fn prepare(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // What a start changes is synced. The writer sets it to less once the sidecar says that unsynced commits are
    // possible.
    let synchronous = if durability == Durability::Off { "OFF" } else { "FULL" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "secure_delete", SECURE_DELETE)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_LIMIT)?;
    connection.pragma_update(None, "cache_size", -(WRITER_CACHE_KIB as i64))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// A connection that changes nothing, takes no lock and creates no files, for a file that may be another program's. It
/// does not see what is only in the write-ahead log.
pub fn open_untouched(path: &Path) -> rusqlite::Result<Connection> {
    /// Characters of a path that mean something else in a URI.
    const ESCAPED: &AsciiSet = &percent_encoding::CONTROLS.add(b'%').add(b'?').add(b'#');
    let uri = format!("file:{}?immutable=1", percent_encode(path.as_os_str().as_bytes(), ESCAPED));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags)
}

/// A connection that can only read, and does not read the definitions of the tables yet.
pub fn open_unread(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// A connection that can only read.
pub fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = open_unread(path)?;
    connection.pragma_update(None, "cache_size", -(READER_CACHE_KIB as i64))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Older SQLite can lose commits when the writer and the checkpointer are different connections.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// SQLite overwrites a deleted cell with zeros on a page that is written anyway. Without that, a row that moved to
/// another page, as most posting lists do when a segment is sealed, would leave a copy that stays in the file when the
/// row is deleted.
pub const SECURE_DELETE: &str = "FAST";

/// How long a connection waits for a lock. Our own connections have one only for an instant, at a start or a recovery,
/// so a wait of 5 s is for another program that writes.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes to which SQLite truncates a larger write-ahead log when it starts over (`journal_size_limit`).
pub const WAL_BYTES_LIMIT: i64 = 64 << 20;

/// The page cache of a read-write connection. The writer changes the right edges of a few trees; 8 MiB are enough for
/// these and for the pages of a deletion.
const WRITER_CACHE_KIB: usize = 8 << 10;

/// The page cache of a read-only connection. 2 MiB are enough for the upper pages of the trees and for one read.
const READER_CACHE_KIB: usize = 2 << 10;
