//! Idempotency keys: an event, or all events of a request, stored once however often they are sent.
//!
//! A key stays for as long as any of its events. A digest of the stored events shows whether a repeat is the same,
//! because some of the events may be deleted by then. A batch without keys does not use this module. Each key costs a
//! look-up and an insert into an index on random keys, which the record itself avoids.

use std::ops::Range;

use ring::digest::{Context, SHA256};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row};

use super::damage::{damaged, is_damage};
use super::read::Record;
use super::{checksum, read};
use crate::event::{Columns, Field, Seq};
use crate::record::Outcome;
use crate::wire::batch::{Batch, Keyed};

/// Whether the events of one message may be stored.
pub(super) enum Judgement {
    Accepted(Vec<Seen>),
    /// The key of the event with this index in the message was used for a different event.
    Refused(usize),
}

/// Whether an event was seen before under its key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Never,
    /// It is stored under this number.
    Stored(Seq),
    /// It repeats the event with this index in the batch.
    InBatch(usize),
}

/// Selects keys by a condition, with the columns that [`StoredKey::read`] expects.
macro_rules! select_keys {
    ($which:literal) => {
        concat!("SELECT key, seq, count, digest, checksum FROM idempotency_keys ", $which)
    };
}
pub(super) use select_keys;

/// The messages of a batch, in order, each with those of its keys.
pub(super) fn messages(batch: &Batch) -> Vec<(Range<usize>, Vec<Keyed>)> {
    let mut messages: Vec<(Range<usize>, Vec<Keyed>)> = Vec::new();
    let mut end = 0;
    for keyed in batch.keyed() {
        match messages.last_mut() {
            Some((message, keys)) if *message == keyed.message => keys.push(keyed.clone()),
            _ => {
                // The messages between have no keys, so they may count as one.
                if keyed.message.start > end {
                    messages.push((end..keyed.message.start, Vec::new()));
                }
                messages.push((keyed.message.clone(), vec![keyed.clone()]));
            }
        }
        end = keyed.message.end;
    }
    if end < batch.len() {
        messages.push((end..batch.len(), Vec::new()));
    }
    messages
}

/// Finds which events of a message were stored before. Everything before the message in this transaction must be in the
/// tables. A key whose events are all deleted is free again, whether its row is removed yet or not.
pub(super) fn judge(
    record: Record<'_>,
    batch: &Batch,
    message: &Range<usize>,
    keys: &[Keyed],
) -> rusqlite::Result<Judgement> {
    let mut seen = vec![Seen::Never; message.len()];
    let mut find = record.connection.prepare_cached(select_keys!("WHERE key = ?1"))?;
    for (nth, keyed) in keys.iter().enumerate() {
        let index = keyed.events.start - message.start;
        if let Some(before) = keys[..nth].iter().find(|before| before.key == keyed.key) {
            // Only a key of a single event can be in a message with other keys.
            let like = before.events.start;
            if !is_alike(&batch.columns(like), &batch.columns(keyed.events.start)) {
                return Ok(Judgement::Refused(index));
            }
            seen[index] = match seen[like - message.start] {
                Seen::Never => Seen::InBatch(like),
                earlier => earlier,
            };
            continue;
        }
        let found = find.query_row([&*keyed.key], |row| Ok(StoredKey::read(row))).optional()?.transpose()?;
        let Some(stored) = found else { continue };
        if stored.last() <= record.deleted_through {
            StoredKey::remove(stored.first, record.connection)?;
            continue;
        }
        let digest = Digest::of(keyed.events.clone().map(|index| batch.columns(index)));
        let is_same = stored.count == keyed.events.len() as u64 && stored.digest(record)? == Some(digest);
        if !is_same {
            return Ok(Judgement::Refused(index));
        }
        for (n, index) in keyed.events.clone().enumerate() {
            seen[index - message.start] = Seen::Stored(stored.first.plus(n));
        }
    }
    Ok(Judgement::Accepted(seen))
}

/// Whether two events have the same fields and payload.
fn is_alike(one: &Columns<'_>, other: &Columns<'_>) -> bool {
    Field::ALL.into_iter().all(|field| one.field(field) == other.field(field)) && one.payload == other.payload
}

/// Stores the keys of a message whose new events are stored.
///
/// # Errors
/// Damage, by name. A key or number that is in the table although [`judge`] did not find it is damage, too: the index
/// and the table differ.
pub(super) fn store(
    connection: &Connection,
    batch: &Batch,
    keys: &[Keyed],
    outcomes: &[Outcome],
) -> rusqlite::Result<()> {
    for keyed in keys {
        if let Outcome::Stored(first) = outcomes[keyed.events.start] {
            let digest = Digest::of(keyed.events.clone().map(|index| batch.columns(index)));
            let count = keyed.events.len() as u64;
            let stored = StoredKey { key: keyed.key.clone(), first, count, digest: Some(digest) };
            stored.store(connection).map_err(|error| {
                let is_there = error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation);
                match is_there || is_damage(&error) {
                    true => damaged(format!("idempotency_keys: one cannot be stored ({error})")),
                    false => error,
                }
            })?;
        }
    }
    Ok(())
}

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredKey {
    pub key: Box<str>,
    /// The first of the events that were stored under it. Their numbers follow each other.
    pub first: Seq,
    pub count: u64,
    /// The digest of these events. A key that was stored before format 4 has none until one of its events is to be
    /// deleted. Until then the digest is computed from the events.
    pub digest: Option<Digest>,
}

impl StoredKey {
    /// From a row of [`select_keys`].
    pub fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (key, first): (String, i64) = (row.get(0)?, row.get(1)?);
        let (first, count) = (Seq(first as u64), row.get::<_, i64>(2)? as u64);
        let mut stored = Self { key: key.into(), first, count, digest: None };
        let is_whole = match (row.get_ref(3)?, row.get_ref(4)?) {
            (ValueRef::Null, ValueRef::Null) => true,
            (ValueRef::Blob(digest), ValueRef::Integer(checksum)) => {
                stored.digest = digest.try_into().ok().map(Digest);
                stored.checksum().is_some_and(|expected| i64::from(expected) == checksum)
            }
            _ => false,
        };
        is_whole
            .then_some(stored)
            .ok_or_else(|| damaged(format!("idempotency_keys: that of {} is damaged", first.id())))
    }

    /// The last of its events.
    pub fn last(&self) -> Seq {
        self.first.plus(self.count as usize).prev()
    }

    pub fn store(&self, connection: &Connection) -> rusqlite::Result<()> {
        const SQL: &str =
            "INSERT INTO idempotency_keys (seq, count, key, digest, checksum) VALUES (?1, ?2, ?3, ?4, ?5)";
        let digest = self.digest.as_ref().map(|Digest(digest)| &digest[..]);
        let columns = (self.first.0 as i64, self.count as i64, &*self.key, digest, self.checksum());
        connection.prepare_cached(SQL)?.execute(columns).map(drop)
    }

    fn checksum(&self) -> Option<i32> {
        let Digest(digest) = self.digest.as_ref()?;
        Some(checksum::of_key(self.first.0 as i64, self.count as i64, self.key.as_bytes(), digest))
    }

    /// The digest of its events; `None` if it is not stored and some of the events are deleted.
    fn digest(&self, record: Record<'_>) -> rusqlite::Result<Option<Digest>> {
        if self.digest.is_some() {
            return Ok(self.digest);
        }
        let mut hash = Context::new(&SHA256);
        for n in 0..self.count as usize {
            let mut is_there = false;
            record.event(self.first.plus(n), |stored| {
                Digest::add(&mut hash, &stored.columns());
                is_there = true;
            })?;
            if !is_there {
                return Ok(None);
            }
        }
        Ok(Some(Digest::finish(hash)))
    }

    /// Stores the digest of its events, if all of them are still there.
    fn store_digest(self, record: Record<'_>) -> rusqlite::Result<()> {
        let digest = self.digest(record)?;
        const SQL: &str = "UPDATE idempotency_keys SET digest = ?2, checksum = ?3 WHERE seq = ?1";
        let Some(Digest(bytes)) = digest else { return Ok(()) };
        let checksum = Self { digest, ..self }.checksum();
        record.connection.prepare_cached(SQL)?.execute((self.first.0 as i64, &bytes[..], checksum)).map(drop)
    }

    fn remove(first: Seq, connection: &Connection) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM idempotency_keys WHERE seq = ?1")?.execute([first.0 as i64]).map(drop)
    }
}

/// A digest of events, by which a repeat is recognised: 128 bits of SHA-256. With fewer bits two different events could
/// have the same digest by chance, and the second would be taken for a repeat and not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest(pub [u8; 16]);

impl Digest {
    fn of<'b>(events: impl Iterator<Item = Columns<'b>>) -> Self {
        let mut hash = Context::new(&SHA256);
        events.for_each(|event| Self::add(&mut hash, &event));
        Self::finish(hash)
    }

    /// Adds each text with its length, so that different events are different bytes.
    fn add(hash: &mut Context, event: &Columns<'_>) {
        let Columns { event_type, source, session_id, user_id, payload } = *event;
        for text in [Some(event_type), Some(source), session_id, user_id, Some(payload)] {
            hash.update(&text.map_or(u32::MAX, |text| text.len() as u32).to_le_bytes());
            hash.update(text.unwrap_or_default());
        }
    }

    fn finish(hash: Context) -> Self {
        let hash = hash.finish();
        Self(std::array::from_fn(|byte| hash.as_ref()[byte]))
    }
}

/// The key under which an event was stored, alone or with other events.
fn of_event(connection: &Connection, seq: Seq) -> rusqlite::Result<Option<StoredKey>> {
    let mut find = connection.prepare_cached(select_keys!("WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1"))?;
    let stored = find.query_row([seq.0 as i64], |row| Ok(StoredKey::read(row))).optional()?.transpose()?;
    Ok(stored.filter(|stored| seq <= stored.last()))
}

/// The key of an event that is being deleted. It is found before the event is deleted, and removed afterwards if none
/// of its other events is left.
pub(super) struct KeyOfDeleted {
    first: Seq,
    count: u64,
}

impl KeyOfDeleted {
    /// Looks for the key of an event that is about to be deleted. A key without a digest gets one now, while all its
    /// events are there. If one of them is damaged, the key gets none: its repeats are refused, as before, until it is
    /// deleted with the last of its events.
    pub fn find(record: Record<'_>, seq: Seq) -> rusqlite::Result<Option<Self>> {
        let Some(stored) = of_event(record.connection, seq)? else { return Ok(None) };
        let this = Self { first: stored.first, count: stored.count };
        if stored.digest.is_none() && stored.count > 1 {
            match stored.store_digest(record) {
                Err(error) if is_damage(&error) => record.integrity.lock().note_error(&error),
                stored => stored?,
            }
        }
        Ok(Some(this))
    }

    /// Removes the key if none of its events is left.
    pub fn remove_if_last(self, record: Record<'_>) -> rusqlite::Result<()> {
        let numbers = self.first.max(record.deleted_through.next())..=self.first.plus(self.count as usize - 1);
        if numbers.is_empty() || self.count == 1 || !read::is_any_of(record.connection, numbers)? {
            StoredKey::remove(self.first, record.connection)?;
        }
        Ok(())
    }
}

/// Removes the keys that have no event after `last`.
pub(super) fn remove_through(connection: &Connection, last: Seq) -> rusqlite::Result<()> {
    const SQL: &str = "DELETE FROM idempotency_keys WHERE seq <= ?1 AND seq + count - 1 <= ?1";
    connection.prepare_cached(SQL)?.execute([last.0 as i64]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, EventTypes};
    use crate::store::fixture::tick;
    use proptest::prelude::*;

    proptest! {
        /// Messages as a socket reads them: each with some events, of which some have keys.
        #[test]
        fn messages_of_a_batch_have_each_event_once_and_each_key_with_its_event(
            drawn in prop::collection::vec(prop::collection::vec(prop::option::of("[a-c]"), 1..5), 0..8),
        ) {
            let types = EventTypes::builtin();
            let mut batch = Batch::default();
            for message in &drawn {
                let first = batch.len();
                for key in message {
                    batch.push(&Event { idempotency_key: key.as_deref(), ..tick() }, &types);
                }
                batch.end_message(first);
            }
            let found = messages(&batch);
            let indexes = found.iter().flat_map(|(message, _)| message.clone());
            prop_assert!(indexes.eq(0..batch.len()), "in order, without gap: {:?}", found);
            let mut first = 0;
            for message in &drawn {
                let keys = message.iter().enumerate().filter_map(|(nth, key)| Some((first + nth, key.as_deref()?)));
                let keys: Vec<_> = keys.collect();
                let range = first..first + message.len();
                first = range.end;
                if !keys.is_empty() {
                    let of_this = found.iter().find(|(message, _)| *message == range).map(|(_, keys)| keys);
                    let of_this = of_this.expect("a message with keys stands alone").iter();
                    prop_assert!(of_this.map(|keyed| (keyed.events.start, &*keyed.key)).eq(keys));
                }
            }
        }
    }
}
