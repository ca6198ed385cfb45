//! Durable subscriptions as they are stored.

use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::checksum;
use super::damage::damaged;
use crate::event::Seq;

/// A durable subscription as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSubscription {
    pub name: Arc<str>,
    /// The filters of the subscriber's request, in JSON.
    pub filters: Arc<str>,
    /// Everything up to this event is confirmed.
    pub position: Seq,
    /// When it was last used. The server that served it sets this, so it is the same in each copy of a record.
    pub last_seen: String,
}

/// A row that is not what was stored.
#[derive(Debug)]
pub(super) struct Damaged {
    /// Empty if it cannot be read.
    pub name: String,
}

impl From<Damaged> for rusqlite::Error {
    fn from(_: Damaged) -> Self {
        damaged("subscriptions: a row is damaged")
    }
}

impl StoredSubscription {
    /// All of them.
    ///
    /// # Errors
    /// What SQLite reports, and a row that is not what was stored.
    pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let rows = Self::rows(connection)?;
        rows.into_iter().map(|row| row.map_err(rusqlite::Error::from)).collect()
    }

    /// All rows: the subscription, or the name of a damaged one.
    pub(super) fn rows(connection: &Connection) -> rusqlite::Result<Vec<Result<Self, Damaged>>> {
        const SQL: &str = "SELECT name, filters, position, last_seen, checksum FROM subscriptions";
        let mut statement = connection.prepare(SQL)?;
        let mut rows = statement.query([])?;
        let mut stored = Vec::new();
        while let Some(row) = rows.next()? {
            let checksum = row.get::<_, i32>(4).ok();
            let whole = Self::read(row).ok().filter(|stored| Some(stored.checksum()) == checksum);
            stored.push(whole.ok_or_else(|| Damaged { name: row.get(0).unwrap_or_default() }));
        }
        Ok(stored)
    }

    /// From a row's first columns: name, filters, position, last_seen.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (name, filters): (String, String) = (row.get(0)?, row.get(1)?);
        let position = Seq(row.get::<_, i64>(2)? as u64);
        Ok(Self { name: name.into(), filters: filters.into(), position, last_seen: row.get(3)? })
    }

    pub(super) fn store(&self, connection: &Connection) -> rusqlite::Result<()> {
        const SQL: &str = "INSERT OR REPLACE INTO subscriptions (name, filters, position, last_seen, checksum) \
                           VALUES (?1, ?2, ?3, ?4, ?5)";
        let columns = (&*self.name, &*self.filters, self.position.0 as i64, &self.last_seen, self.checksum());
        connection.prepare_cached(SQL)?.execute(columns).map(drop)
    }

    pub(super) fn checksum(&self) -> i32 {
        checksum::of_subscription(&self.name, &self.filters, self.position.0 as i64, &self.last_seen)
    }
}
