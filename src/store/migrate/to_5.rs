//! Format 5 says in `meta` up to which event the record is deleted. In earlier formats the first row showed that.

use rusqlite::Connection;

use crate::event::{Seq, Timestamp};
use crate::store::holes;
use crate::store::read;
use crate::store::schema::meta;

/// Finds the first event and stores the number before it.
///
/// # Errors
/// Among others, damage of a page: then [`run_beside_damage`] has to do it in another transaction.
pub fn run(connection: &Connection) -> rusqlite::Result<()> {
    finish(connection, before_first(connection)?)
}

/// Where a damaged page hides the first event: the last numbers are not deleted, as many as the statistics count events
/// and `holes` counts holes.
pub fn run_beside_damage(connection: &Connection) -> rusqlite::Result<()> {
    let sum = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let events = sum("SELECT coalesce(sum(count), 0) FROM event_stats")?;
    let holes = sum("SELECT coalesce(sum(count), 0) FROM holes")?;
    let last = last(connection)?.0 as i64;
    finish(connection, Seq((last - events - holes).max(0) as u64))
}

fn finish(connection: &Connection, deleted_through: Seq) -> rusqlite::Result<()> {
    // It is defined again after the last step, and leaves out deleted events from then on.
    connection.execute_batch("DROP VIEW IF EXISTS readable_events")?;
    meta::set(connection, meta::DELETED_THROUGH, deleted_through.0 as i64)
}

fn last(connection: &Connection) -> rusqlite::Result<Seq> {
    Ok(meta::seq(connection, meta::LAST_SEQ)?.max(read::last_row(connection)?.unwrap_or_default()))
}

/// The number before the first event. It is never worked out again, so it should not come from a damaged row. It counts
/// back from the first undamaged event, one number for each damaged row before it, and skips holes.
fn before_first(connection: &Connection) -> rusqlite::Result<Seq> {
    // Where all rows are damaged, nothing counts as deleted.
    let Some((first, damaged)) = first_undamaged(connection)? else { return Ok(Seq::ZERO) };
    if damaged == 0 {
        return Ok(first.prev());
    }
    let mut deleted_through = Seq(first.0.saturating_sub(damaged + 1));
    loop {
        let events = holes::count_events(connection, deleted_through.next()..=first.prev())?;
        if events >= damaged || deleted_through == Seq::ZERO {
            return Ok(deleted_through);
        }
        deleted_through.0 = deleted_through.0.saturating_sub(damaged - events);
    }
}

/// The first undamaged event, and how many damaged rows are before it. In an empty table: the number after the last one that
/// was given. `None` if all rows are damaged.
fn first_undamaged(connection: &Connection) -> rusqlite::Result<Option<(Seq, u64)>> {
    const EVENTS: &str = "SELECT seq, time_us, event_type, source, session_id, user_id, payload, legacy_id, checksum \
                          FROM events ORDER BY seq";
    let unchecked_through = meta::seq(connection, meta::UNCHECKED_THROUGH)?;
    let mut statement = connection.prepare(EVENTS)?;
    let (mut rows, mut damaged) = (statement.query([])?, 0);
    // An event without a checksum, and how many damaged rows follow. The next readable event must come later; if none comes,
    // it is believed.
    let mut unproven: Option<(Seq, Timestamp, u64)> = None;
    while let Some(row) = rows.next()? {
        let Ok(event) = read::stored(row, unchecked_through) else {
            match &mut unproven {
                Some((.., after)) => *after += 1,
                None => damaged += 1,
            }
            continue;
        };
        match unproven.take() {
            Some((seq, time, _)) if event.seq > seq && event.time > time => return Ok(Some((seq, damaged))),
            Some((.., after)) => damaged += 1 + after,
            None => {}
        }
        if event.seq > unchecked_through {
            return Ok(Some((event.seq, damaged)));
        }
        unproven = Some((event.seq, event.time, 0));
    }
    match (unproven, damaged) {
        (Some((seq, ..)), _) => Ok(Some((seq, damaged))),
        (None, 0) => Ok(Some((last(connection)?.next(), 0))),
        (None, _) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::event::Filter;
    use crate::store::fixture::{delete, file_with, leaves, renumber, wipe_page};
    use crate::store::schema::{self, PAGE_BYTES};
    use crate::store::{Query, Store};

    /// A file as format 4 left it: without a mark.
    fn as_format_4(config: &Config, also: &str) {
        let file = schema::open_writer(&config.database_path).expect("undamaged");
        file.execute_batch(
            "DELETE FROM meta WHERE key = 'deleted_through'; DROP TABLE rollups; PRAGMA user_version = 4;",
        )
        .expect("written");
        file.execute_batch(also).expect("written");
    }

    /// What a start finds: up to where the file is deleted, and how many events the statistics count.
    fn upgraded(config: &Config) -> (u64, u64) {
        let (store, parts) = Store::open_parts(config).expect("it starts");
        drop(parts);
        let file = schema::open_reader(&config.database_path).expect("undamaged");
        let deleted_through = meta::seq(&file, meta::DELETED_THROUGH).expect("a mark");
        let stats = store.reader().stats(Timestamp::now()).expect("read");
        (deleted_through.0, stats.total_events)
    }

    /// Of 300 events, 290 are left: the first four went by their age, six were chosen.
    fn partly_deleted() -> (tempfile::TempDir, Config) {
        let (folder, config) = file_with(300);
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        delete(&store, &mut parts, (6..=11).map(Seq).collect());
        let mut fifth = Timestamp::default();
        let query = Query { after: Seq(4), before: Some(Seq(6)), ..Query::default() };
        let scanned = store.reader().scan(&query, |event| {
            fifth = event.time;
            std::ops::ControlFlow::Continue(())
        });
        assert_eq!(scanned, Ok(None));
        let mut deletion = std::pin::pin!(store.delete(Some(fifth), Filter::default()));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(deletion.as_mut().poll(&mut context).is_pending());
        while parts.write() | parts.seal() {}
        assert_eq!(deletion.poll(&mut context), std::task::Poll::Ready(Ok(4)));
        crate::store::fixture::close(&store, parts);
        (folder, config)
    }

    #[test]
    fn the_mark_of_an_upgraded_file_is_before_its_first_event_also_when_that_is_damaged() {
        for damage in ["", "UPDATE events SET checksum = checksum + 1 WHERE seq = 5"] {
            let (_folder, config) = partly_deleted();
            as_format_4(&config, damage);
            assert_eq!(upgraded(&config), (4, 290), "{damage}");
        }
    }

    #[test]
    fn a_file_whose_page_of_the_oldest_events_is_damaged_is_upgraded_and_counts_right() {
        let (_folder, config) = partly_deleted();
        as_format_4(&config, "");
        let page = leaves(&config.database_path, "events")[0] as u64 / PAGE_BYTES + 1;
        let mut bytes = std::fs::read(&config.database_path).expect("a file");
        wipe_page(&mut bytes, page as u32);
        std::fs::write(&config.database_path, bytes).expect("written");
        assert_eq!(upgraded(&config), (4, 290));
    }

    #[test]
    fn a_first_number_without_a_checksum_counts_only_if_the_next_event_comes_after_it() {
        let (_folder, config) = file_with(100);
        let unchecked = "UPDATE events SET checksum = NULL;";
        as_format_4(&config, unchecked);
        let file = schema::open_writer(&config.database_path).expect("undamaged");
        meta::set(&file, meta::UNCHECKED_THROUGH, 1 << 20).expect("written");
        file.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("moved");
        drop(file);
        renumber(&config.database_path, 1, 90);
        assert_eq!(upgraded(&config).0, 0);
    }
}
