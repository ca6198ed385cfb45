//! From a file of the Python service to the newest format: its events are copied into our tables in the order of their
//! times, in one transaction of the same file.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Row, TransactionBehavior};

use super::payload::Payloads;
use crate::event::{Columns, Seq, Timestamp};
use crate::store::rebuild::Rebuild;
use crate::store::schema;

/// Whether the Python service wrote the file: its `events` table has that service's columns, and not our `seq`.
pub fn wrote(connection: &Connection) -> rusqlite::Result<bool> {
    const SQL: &str = "
        SELECT count(*) = 7 AND NOT EXISTS (SELECT 1 FROM pragma_table_info('events') WHERE name = 'seq')
        FROM pragma_table_info('events')
        WHERE name IN ('id', 'event_type', 'source', 'session_id', 'user_id', 'payload', 'timestamp')";
    connection.query_row(SQL, [], |row| row.get(0))
}

/// Brings a file of the Python service to the newest format. After a crash the file is entirely as before or entirely
/// new. No other connection may be open. Memory does not grow with the number of events.
///
/// Events keep their ids as `legacy_id`. They are numbered from 1 in the order of their times, and events of equal time
/// in the order in which they were stored. A time that is not later than the one before it becomes the next
/// microsecond. An event whose time cannot be read gets the time of the event stored before it, and so comes right
/// after it. If no event is before it, it gets the first time that can be read.
///
/// # Errors
/// One line that says what could not be done. The file is as before then.
pub fn run(connection: &mut Connection) -> Result<(), UpgradeError> {
    let began = Instant::now();
    let synchronous: i64 =
        connection.pragma_query_value(None, "synchronous", |row| row.get(0)).map_err(during("read its settings"))?;
    // With a rollback journal the copy is written directly to the end of the file, and a failure cuts it off again.
    // With the write-ahead log it would be written twice, first to the log and then to the file, and the log would not
    // shrink after a failure. EXTRA also syncs the removal of the journal: if the journal were there again after a
    // power cut, it would undo all that was stored since.
    connection
        .execute_batch("PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA")
        .map_err(during("get it for this server alone (does the Python service still run?)"))?;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Exclusive)
        .map_err(during("get it for this server alone (does the Python service still run?)"))?;

    let events = check_free_space(&transaction)?;
    tracing::info!(events, "upgrading the database of the Python service");
    replace_tables(&transaction).map_err(during("replace its tables"))?;
    let stand_in = note_times(&transaction).map_err(during("read the times of its events"))?;
    copy(&transaction, stand_in, events).map_err(during("copy its events"))?;
    tracing::info!("indexing the old ids");
    finish(&transaction).map_err(during("index the old ids"))?;
    transaction.commit().map_err(during("commit"))?;

    connection
        .execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}"))
        .map_err(during("go back to the write-ahead log"))?;
    tracing::info!(events, seconds = began.elapsed().as_secs_f64(), "upgraded the database of the Python service");
    Ok(())
}

/// Why an upgrade cannot be done. Shown to the operator.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("the copy of its events needs {needed_mib} MiB of disk, only {free_mib} MiB are free")]
    DiskShort { needed_mib: u64, free_mib: u64 },
    #[error("{step}: {error}")]
    Database { step: &'static str, error: rusqlite::Error },
}

fn during(step: &'static str) -> impl FnOnce(rusqlite::Error) -> UpgradeError {
    move |error| UpgradeError::Database { step, error }
}

/// Time between two log lines about how far the copy is. 3 s: short enough that an operator does not take the start for
/// stuck.
const PROGRESS_EVERY: Duration = Duration::from_secs(3);

/// The number of events, if the disk has space for what is certainly written: their text, their ids once more in the
/// index, and about 20 bytes for each row.
fn check_free_space(connection: &Connection) -> Result<u64, UpgradeError> {
    const SQL: &str = "
        SELECT count(*), CAST(20 * count(*) + 2 * total(octet_length(id)) + total(octet_length(event_type))
            + total(octet_length(source)) + total(octet_length(session_id)) + total(octet_length(user_id))
            + total(octet_length(payload)) AS INTEGER),
            (SELECT freelist_count FROM pragma_freelist_count) * (SELECT page_size FROM pragma_page_size)
        FROM events";
    let number = |row: &Row<'_>, column: usize| row.get::<_, i64>(column).map(|number| number as u64);
    let (events, copy, reused) = connection
        .query_row(SQL, [], |row| Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?)))
        .map_err(during("measure its events"))?;
    let needed = copy.saturating_sub(reused);
    let disk = connection.path().and_then(|path| rustix::fs::statvfs(path).ok());
    let free = disk.map_or(u64::MAX, |fs| fs.f_bavail * fs.f_frsize);
    if needed > free {
        return Err(UpgradeError::DiskShort { needed_mib: needed.div_ceil(1 << 20), free_mib: free >> 20 });
    }
    Ok(events)
}

/// Renames the old table of events and creates our tables, empty. What the Python service stored in its other tables is
/// either in the events too, or has no meaning here.
fn replace_tables(connection: &Connection) -> rusqlite::Result<()> {
    // With `legacy_alter_table` a rename does not change views that a person may have made: they read the new table
    // afterwards.
    connection.execute_batch(&format!(
        "PRAGMA legacy_alter_table = ON;
        ALTER TABLE events RENAME TO events_before_upgrade;
        PRAGMA legacy_alter_table = OFF;
        DROP TABLE IF EXISTS event_stats;
        DROP TABLE IF EXISTS subscriptions;
        {}
        PRAGMA application_id = {};
        PRAGMA user_version = {};",
        schema::TABLES,
        schema::APPLICATION_ID,
        schema::VERSION
    ))
}

/// Fills the temporary table `arrival`, which SQLite has in a file, with the time of each old event, or NULL before the
/// first time that can be read. Returns that time.
fn note_times(connection: &Connection) -> rusqlite::Result<Timestamp> {
    connection.execute_batch("CREATE TEMP TABLE arrival (old INTEGER PRIMARY KEY, time_us INTEGER)")?;
    let mut insert = connection.prepare("INSERT INTO temp.arrival (old, time_us) VALUES (?1, ?2)")?;
    let mut select =
        connection.prepare("SELECT rowid, CAST(timestamp AS TEXT) FROM events_before_upgrade ORDER BY rowid")?;
    let mut rows = select.query([])?;
    let (mut first, mut last, mut unreadable) = (None, None, 0u64);
    while let Some(row) = rows.next()? {
        match text(row, 1)?.and_then(|time| parse_time(&time)) {
            Some(time) => last = Some(time),
            None => unreadable += 1,
        }
        first = first.or(last);
        insert.execute((row.get::<_, i64>(0)?, last.map(|time| time.0)))?;
    }
    if unreadable > 0 {
        tracing::warn!(
            events = unreadable,
            "times that cannot be read: these events follow the one stored before them"
        );
    }
    Ok(first.unwrap_or_else(Timestamp::now))
}

/// A time as Python and SQLite spell it: RFC 3339, also without an offset, which means UTC, and also with a `Z` behind
/// the offset, a common mistake.
fn parse_time(text: &str) -> Option<Timestamp> {
    Timestamp::parse_floor(text.trim().trim_end_matches(['Z', 'z'])).ok()
}

/// Copies the events in order, and builds their index, statistics and marks.
fn copy(connection: &Connection, stand_in: Timestamp, events: u64) -> rusqlite::Result<()> {
    // The sort is over pairs of numbers, so that the payloads need not go through a temporary file.
    let mut order = connection.prepare("SELECT old, coalesce(time_us, ?1) FROM temp.arrival ORDER BY 2, 1")?;
    let mut old = connection.prepare(
        "SELECT CAST(id AS TEXT), coalesce(CAST(event_type AS TEXT), 'unknown'),
            coalesce(CAST(source AS TEXT), 'unknown'), CAST(session_id AS TEXT), CAST(user_id AS TEXT),
            CAST(payload AS TEXT)
        FROM events_before_upgrade WHERE rowid = ?1",
    )?;
    let mut rebuild = Rebuild::new(connection)?;
    let mut payloads = Payloads::new();
    let (mut seq, mut time) = (Seq::ZERO, Timestamp(i64::MIN));
    let mut logged = Instant::now();

    let mut arrivals = order.query([stand_in.0])?;
    while let Some(arrival) = arrivals.next()? {
        seq = seq.next();
        time = Timestamp(arrival.get::<_, i64>(1)?.max(time.0 + 1));
        let mut found = old.query([arrival.get::<_, i64>(0)?])?;
        let row = found.next()?.expect("every row of `arrival` is of an old event");
        let [id, event_type, source, session_id, user_id] =
            [text(row, 0)?, text(row, 1)?, text(row, 2)?, text(row, 3)?, text(row, 4)?];
        let payload = payloads.convert(row.get_ref(5)?.as_bytes_or_null()?);
        let [event_type, source] = [event_type, source].map(Option::unwrap_or_default);
        let event = Columns {
            event_type: event_type.as_bytes(),
            source: source.as_bytes(),
            session_id: session_id.as_deref().map(str::as_bytes),
            user_id: user_id.as_deref().map(str::as_bytes),
            payload: payload.as_bytes(),
        };
        rebuild.event(seq, time, &event, id.as_deref().map(str::as_bytes))?;
        if seq.0 % 1024 == 0 && logged.elapsed() >= PROGRESS_EVERY {
            logged = Instant::now();
            tracing::info!(copied = seq.0, events, "upgrading");
        }
    }
    payloads.log_conversions();
    rebuild.finish()
}

fn finish(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("DROP TABLE temp.arrival; DROP TABLE events_before_upgrade")?;
    connection.execute_batch(schema::LEGACY_INDEX)
}

/// A value that SQL has cast to text. Bytes that are not UTF-8 show as U+FFFD.
fn text<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<Option<Cow<'r, str>>> {
    Ok(row.get_ref(column)?.as_bytes_or_null()?.map(String::from_utf8_lossy))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use rusqlite::params;
    use rusqlite::types::Value;
    use tempfile::TempDir;

    use super::*;
    use crate::config::Durability;
    use crate::store::schema::meta;
    use crate::store::segments::{self, SEGMENT_EVENTS};

    const OLDER: &str = "
        CREATE TABLE events (id TEXT PRIMARY KEY, event_type TEXT NOT NULL, source TEXT, session_id TEXT,
            user_id TEXT, payload TEXT, timestamp TEXT NOT NULL, processed INTEGER DEFAULT 0);
        CREATE INDEX idx_events_session ON events(session_id);
        CREATE INDEX idx_events_timestamp ON events(timestamp);
        CREATE TABLE event_stats (event_type TEXT PRIMARY KEY, count INTEGER DEFAULT 0, last_seen TEXT);
        CREATE TABLE subscriptions (id TEXT PRIMARY KEY, filters TEXT);
        INSERT INTO event_stats VALUES ('timer_tick', 99, 'stale');
        INSERT INTO subscriptions VALUES ('sub_1', '{}');
        CREATE VIEW ids AS SELECT id FROM events;
        CREATE VIEW ticks AS SELECT source, session_id FROM events WHERE event_type = 'timer_tick';";

    const NEWER: &str = "
        CREATE TABLE events (timestamp, payload BLOB, user_id, session_id, source, event_type, id TEXT PRIMARY KEY);
        CREATE TABLE event_stats (event_type TEXT PRIMARY KEY, count INTEGER, last_seen TEXT);";

    struct File {
        path: PathBuf,
        _folder: TempDir,
    }

    /// A file as the Python service made it: without a write-ahead log.
    fn old_file(schema: &str, fill: impl FnOnce(&Connection)) -> File {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("events.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(&format!("{schema} BEGIN")).unwrap();
        fill(&connection);
        connection.execute_batch("COMMIT").unwrap();
        File { path, _folder: folder }
    }

    const INSERT: &str = "INSERT INTO events (id, event_type, source, session_id, user_id, payload, timestamp)
                          VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

    fn open(path: &Path) -> Connection {
        let connection = schema::open_writer(path).unwrap();
        schema::prepare(&connection, Durability::Normal).unwrap();
        connection
    }

    fn upgrade(file: &File) -> Connection {
        let mut connection = open(&file.path);
        assert!(wrote(&connection).unwrap());
        run(&mut connection).unwrap();
        assert!(!wrote(&connection).unwrap());
        assert_eq!(one::<String>(&connection, "PRAGMA integrity_check"), "ok");
        connection
    }

    fn one<T: rusqlite::types::FromSql>(connection: &Connection, sql: &str) -> T {
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Every row of a query, its columns as text with `|` between them and `-` for NULL.
    fn rows(connection: &Connection, sql: &str) -> Vec<String> {
        let mut statement = connection.prepare(sql).unwrap();
        let columns = statement.column_count();
        let spell = |value: Value| match value {
            Value::Null => "-".to_owned(),
            Value::Integer(number) => number.to_string(),
            Value::Real(number) => number.to_string(),
            Value::Text(text) => text,
            Value::Blob(_) => "<blob>".to_owned(),
        };
        let line = |row: &Row<'_>| Ok((0..columns).map(|i| spell(row.get_unwrap(i))).collect::<Vec<_>>().join("|"));
        statement.query_map([], line).unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn meta_value(connection: &Connection, key: &str) -> i64 {
        connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).unwrap()
    }

    #[test]
    fn both_schemas_of_the_python_service_are_upgraded() {
        for old in [OLDER, NEWER] {
            let file = old_file(old, |connection| {
                let events = [
                    (
                        "evt_b",
                        "quiz_started",
                        "s1",
                        None,
                        Some("u"),
                        r#"{"a": 1.0}"#,
                        "2025-03-01T10:00:01.500000+00:00",
                    ),
                    ("evt_a", "timer_tick", "s2", Some("x"), None, "{}", "2025-03-01T10:00:00+00:00"),
                    ("evt_c", "timer_tick", "s1", Some("x"), Some("u"), r#"{"b":"é"}"#, "2025-03-01T10:00:02"),
                ];
                events.iter().for_each(|&(a, b, c, d, e, f, g)| {
                    connection.execute(INSERT, (a, b, c, d, e, f, g)).unwrap();
                });
            });
            let connection = upgrade(&file);
            let columns = "seq, id, event_type, source, session_id, user_id, payload, timestamp";
            assert_eq!(
                rows(&connection, &format!("SELECT {columns} FROM readable_events ORDER BY seq")),
                [
                    "1|evt_a|timer_tick|s2|x|-|{}|2025-03-01T10:00:00.000000Z",
                    r#"2|evt_b|quiz_started|s1|-|u|{"a": 1.0}|2025-03-01T10:00:01.500000Z"#,
                    r#"3|evt_c|timer_tick|s1|x|u|{"b":"é"}|2025-03-01T10:00:02.000000Z"#,
                ]
            );
            assert_eq!(
                rows(&connection, "SELECT * FROM event_stats ORDER BY event_type"),
                ["quiz_started|1|2025-03-01T10:00:01.500000Z", "timer_tick|2|2025-03-01T10:00:02.000000Z"]
            );
            assert_eq!(
                rows(&connection, "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"),
                [
                    "event_index",
                    "event_stats",
                    "events",
                    "holes",
                    "idempotency_keys",
                    "meta",
                    "rollups",
                    "subscriptions"
                ]
            );
            assert_eq!(
                rows(&connection, "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"),
                ["events_legacy_id"]
            );
            assert_eq!(one::<i64>(&connection, "SELECT count(*) FROM subscriptions"), 0);
            assert_eq!(meta_value(&connection, meta::LAST_SEQ), 3);
            assert_eq!(meta_value(&connection, meta::LAST_TIME_US), 1_740_823_202_000_000);
            assert_eq!(meta_value(&connection, meta::SEALED_BEFORE), 0);
            assert_eq!(one::<i64>(&connection, "PRAGMA user_version"), schema::VERSION);
            assert_eq!(one::<i64>(&connection, "PRAGMA application_id"), schema::APPLICATION_ID);
            assert_eq!(one::<String>(&connection, "PRAGMA journal_mode"), "wal");
            assert_eq!(one::<i64>(&connection, "PRAGMA synchronous"), 2);
            assert_eq!(one::<i64>(&connection, "PRAGMA legacy_alter_table"), 0);
            if old == OLDER {
                assert_eq!(rows(&connection, "SELECT * FROM ticks"), ["s2|x", "s1|x"]);
            }
        }
    }

    #[test]
    fn only_a_file_of_the_python_service_is_recognised_as_one() {
        let check = |sql: &str, needed| {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(sql).unwrap();
            assert_eq!(wrote(&connection).unwrap(), needed, "{sql}");
        };
        check("", false);
        check(schema::TABLES, false);
        check("CREATE TABLE events (id TEXT PRIMARY KEY, title TEXT, timestamp TEXT)", false);
        check("CREATE TABLE other (id, event_type, source, session_id, user_id, payload, timestamp)", false);
        check("CREATE TABLE events (seq, id, event_type, source, session_id, user_id, payload, timestamp)", false);
        check(OLDER, true);
        check(NEWER, true);
    }

    #[test]
    fn a_file_of_the_python_service_without_events_is_upgraded() {
        let connection = upgrade(&old_file(OLDER, |_| {}));
        assert_eq!(one::<i64>(&connection, "SELECT count(*) FROM events"), 0);
        assert_eq!(one::<i64>(&connection, "SELECT count(*) FROM meta"), 0);
    }

    #[test]
    fn times_are_read_as_python_and_sqlite_spell_them() {
        for text in [
            "2026-01-15T10:30:00",
            "2026-01-15T10:30:00.000000",
            "2026-01-15T10:30:00Z",
            "2026-01-15T10:30:00+00:00",
            "2026-01-15T10:30:00.000+00:00",
            "2026-01-15T10:30:00+00:00Z",
            "2026-01-15T12:30:00.000000+02:00",
            "2026-01-15T05:00:00-05:30",
            "2026-01-15 10:30:00",
            "2026-01-15 10:30:00.000000+00:00",
            " 2026-01-15T10:30:00.0000004Z\n",
        ] {
            assert_eq!(parse_time(text), Some(Timestamp(1_768_473_000_000_000)), "{text}");
        }
        assert_eq!(parse_time("2026-01-15"), Some(Timestamp(1_768_435_200_000_000)));
        for text in ["", "Z", "yesterday", "1768473000", "2026-02-30T10:00:00", "0000-00-00T00:00:00"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    /// Stores events with these times, in this order, and compares the upgraded ones: the index that each had, and its
    /// microseconds after 2025-01-01T00:00:00Z.
    fn check_order(times: &[Option<&str>], want: &[(i64, i64)]) {
        let file = old_file(NEWER, |connection| {
            for (index, time) in (0i64..).zip(times) {
                connection
                    .execute(INSERT, params![index.to_string(), "t", "s", None::<&str>, None::<&str>, "{}", time])
                    .unwrap();
            }
        });
        let connection = upgrade(&file);
        let mut statement = connection
            .prepare("SELECT CAST(legacy_id AS INTEGER), time_us - 1735689600000000 FROM events ORDER BY seq")
            .unwrap();
        let found: Vec<(i64, i64)> =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(found, want, "{times:?}");
    }

    #[test]
    fn upgraded_events_are_in_the_order_of_their_times_which_strictly_increase() {
        let second = |s: u32| format!("2025-01-01T00:00:0{s}+00:00");
        let (zero, one, two) = (second(0), second(1), second(2));
        check_order(
            &[Some(&two), Some(&one), Some(&two), Some(&zero), Some(&two), Some("2025-01-01 00:00:02.000001")],
            &[(3, 0), (1, 1_000_000), (0, 2_000_000), (2, 2_000_001), (4, 2_000_002), (5, 2_000_003)],
        );
        // The same instant in other zones; text order would be another.
        check_order(
            &[Some("2025-01-01T05:00:00+05:00"), Some("2024-12-31T23:00:01-01:00"), Some("2025-01-01T00:00:00.5Z")],
            &[(0, 0), (2, 500_000), (1, 1_000_000)],
        );
    }

    #[test]
    fn an_event_without_a_readable_time_follows_the_one_stored_before_it() {
        let (early, late) = (Some("2025-01-01T00:00:01"), Some("2025-01-01T00:00:05"));
        check_order(
            &[late, Some("soon"), None, early, Some(""), late],
            &[(3, 1_000_000), (4, 1_000_001), (0, 5_000_000), (1, 5_000_001), (2, 5_000_002), (5, 5_000_003)],
        );
        check_order(&[None, Some("?"), late, early], &[(3, 1_000_000), (0, 5_000_000), (1, 5_000_001), (2, 5_000_002)]);
    }

    #[test]
    fn without_any_readable_time_events_get_the_time_of_the_upgrade() {
        let file = old_file(NEWER, |connection| {
            for id in ["a", "b"] {
                connection.execute(INSERT, params![id, "t", "s", None::<&str>, None::<&str>, "{}", "never"]).unwrap();
            }
        });
        let before = Timestamp::now().0;
        let connection = upgrade(&file);
        let first = one::<i64>(&connection, "SELECT time_us FROM events WHERE legacy_id = 'a'");
        assert!((before..=Timestamp::now().0).contains(&first));
        assert_eq!(one::<i64>(&connection, "SELECT time_us FROM events WHERE legacy_id = 'b'"), first + 1);
    }

    #[test]
    fn values_of_any_type_become_text() {
        let file = old_file(NEWER, |connection| {
            let time = "2025-01-01T00:00:00";
            connection.execute(INSERT, params![7, None::<&str>, None::<&str>, 42, 1.5, b"{\"a\":1}", time]).unwrap();
            connection.execute(INSERT, params![None::<&str>, 1, b"src", b"\xff", "", 12, time]).unwrap();
            connection
                .execute(
                    INSERT,
                    params![None::<&str>, "t", "s", None::<&str>, None::<&str>, None::<&str>, b"2025-01-01T00:00:00"],
                )
                .unwrap();
        });
        let connection = upgrade(&file);
        let columns = "event_type, source, session_id, user_id, payload, legacy_id";
        assert_eq!(
            rows(&connection, &format!("SELECT {columns} FROM events ORDER BY seq")),
            [r#"unknown|unknown|42|1.5|{"a":1}|7"#, "1|src|\u{fffd}||{\"legacy_payload\":\"12\"}|-", "t|s|-|-|{}|-",]
        );
        let types: String = one(
            &connection,
            "SELECT group_concat(DISTINCT typeof(session_id) || typeof(payload) || typeof(event_type)) FROM events",
        );
        assert_eq!(types, "texttexttext,nulltexttext");
        assert_eq!(rows(&connection, "SELECT event_type, count FROM event_stats"), ["1|1", "t|1", "unknown|1"]);
    }

    /// Events whose times decrease in the order of their rows, with few types and sources, many sessions and users.
    fn many(events: u64) -> File {
        old_file(OLDER, |connection| {
            let sql = "
                WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO events (id, event_type, source, session_id, user_id, payload, timestamp)
                SELECT 'evt_' || i, 'type_' || (i % 15), 'source_' || (i % 3),
                    CASE WHEN i % 7 THEN 'session_' || (i * 7919 % 501) END, CASE WHEN i % 5 THEN 'user_' || i END,
                    '{\"n\": ' || i || '}', strftime('%Y-%m-%dT%H:%M:%S', 1800000000 - i / 3, 'unixepoch')
                FROM n";
            connection.execute(sql, [events as i64]).unwrap();
        })
    }

    #[test]
    fn an_upgrade_indexes_full_segments_as_a_scan_of_the_events_would() {
        // The last segment stays open, full or not.
        const S: u64 = SEGMENT_EVENTS;
        for (events, full) in [(300 * S + S / 2, 300), (2 * S, 1), (S + 1, 1), (S - 1, 0)] {
            let connection = upgrade(&many(events));
            assert_eq!(meta_value(&connection, meta::LAST_SEQ), events as i64);
            assert_eq!(meta_value(&connection, meta::SEALED_BEFORE), full);
            assert_eq!(one::<i64>(&connection, "SELECT count(DISTINCT legacy_id) FROM events"), events as i64);
            let late =
                "SELECT count(*) FROM events AS a JOIN events AS b ON b.seq = a.seq + 1 WHERE b.time_us <= a.time_us";
            assert_eq!(one::<i64>(&connection, late), 0);

            type Lists = BTreeMap<(i64, i64, String), Vec<u16>>;
            let mut scanned = Lists::new();
            let mut scan = connection
                .prepare("SELECT seq, event_type, session_id, user_id, source FROM events ORDER BY seq")
                .unwrap();
            let mut events = scan.query([]).unwrap();
            while let Some(event) = events.next().unwrap() {
                let seq = event.get_unwrap::<_, i64>(0);
                let segment = segments::segment_of(Seq(seq as u64)) as i64;
                for kind in (0..4).filter(|_| segment < full) {
                    if let Some(key) = event.get_unwrap::<_, Option<String>>(kind as usize + 1) {
                        scanned.entry((segment, kind, key)).or_default().push(((seq - 1) as u64 % S) as u16);
                    }
                }
            }
            let mut select = connection.prepare("SELECT segment, kind, key, offsets FROM event_index").unwrap();
            let list = |row: &Row<'_>| {
                let offsets = segments::decode(row.get_ref(3)?.as_blob()?).unwrap();
                Ok(((row.get(0)?, row.get(1)?, row.get(2)?), offsets))
            };
            let indexed = select.query_map([], list).unwrap().collect::<Result<Lists, _>>().unwrap();
            assert!(indexed == scanned, "{full} full segments");

            let stats = "SELECT event_type, count(*), max(timestamp) FROM readable_events GROUP BY event_type";
            assert_eq!(rows(&connection, "SELECT * FROM event_stats"), rows(&connection, stats));
        }
    }

    #[test]
    fn an_upgrade_that_fails_midway_leaves_the_old_file_and_the_next_one_succeeds() {
        let file = many(70_000);
        let old = |connection: &Connection| rows(connection, "SELECT rowid, * FROM events ORDER BY rowid");
        let (before, pages) = {
            let connection = open(&file.path);
            (old(&connection), one::<i64>(&connection, "PRAGMA page_count"))
        };
        for more_pages in [0, 10, 500, 1500] {
            let mut connection = open(&file.path);
            connection.pragma_update(None, "max_page_count", pages + more_pages).unwrap();
            let error = run(&mut connection).unwrap_err();
            assert!(error.to_string().ends_with("database or disk is full"), "{error}");
            drop(connection);

            let connection = open(&file.path);
            assert!(wrote(&connection).unwrap());
            assert_eq!(one::<String>(&connection, "PRAGMA integrity_check"), "ok");
            assert_eq!(one::<i64>(&connection, "PRAGMA page_count"), pages);
            assert_eq!(one::<i64>(&connection, "SELECT count(*) FROM event_stats"), 1);
            assert_eq!(one::<i64>(&connection, "SELECT count(*) FROM subscriptions"), 1);
            assert!(old(&connection) == before);
        }
        assert_eq!(one::<i64>(&upgrade(&file), "SELECT count(*) FROM events"), 70_000);
    }

    #[test]
    fn an_upgrade_of_a_file_that_another_program_uses_is_refused() {
        let file = many(10);
        let mut connection = open(&file.path);
        connection.busy_timeout(Duration::ZERO).unwrap();
        let other = Connection::open(&file.path).unwrap();
        other.execute_batch("BEGIN; SELECT count(*) FROM events").unwrap();
        let error = run(&mut connection).unwrap_err().to_string();
        assert!(
            error.contains("does the Python service still run?") && error.ends_with("database is locked"),
            "{error}"
        );
        drop((other, connection));
        assert_eq!(one::<i64>(&upgrade(&file), "SELECT count(*) FROM events"), 10);
    }
}
