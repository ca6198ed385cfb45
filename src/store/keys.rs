//! Idempotency keys: an event, or all events of a request, stored once however often they are sent.
//!
//! A key is kept for as long as any of its events. Whether a repeat says the same is told by a digest of what was
//! stored, because some of the events may be deleted by then. A batch without keys never comes here; one with keys
//! costs a look-up and an insert into an index of random keys for each, which is what the log itself avoids.

use std::ops::Range;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row};
use sha2::{Digest as _, Sha256};

use super::damage::{damaged, is_damage};
use super::read::Record;
use super::{Shared, checksum, read};
use crate::event::{Columns, Field, Seq};
use crate::record::Outcome as Fate;
use crate::wire::batch::{Batch, Keyed};

/// What is to become of the events of one message.
pub(super) enum Verdict {
    Accepted(Vec<Known>),
    /// The key of the event in this place of the message was used for another one.
    Refused(usize),
}

/// Whether an event was seen before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    New,
    /// It is stored under this number.
    Stored(Seq),
    /// It stands in this place of the batch too.
    Like(usize),
}

/// Selects keys by a condition, with the columns that [`Kept::read`] expects.
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
                // What lies between has no keys, and is one message as good as many.
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

/// Looks which events of a message were stored before. Everything before it in this transaction must be in the
/// tables.
pub(super) fn judge(
    record: Record<'_>,
    batch: &Batch,
    message: &Range<usize>,
    keys: &[Keyed],
) -> rusqlite::Result<Verdict> {
    let mut known = vec![Known::New; message.len()];
    let mut find = record.connection.prepare_cached(select_keys!("WHERE key = ?1"))?;
    for (nth, keyed) in keys.iter().enumerate() {
        let place = keyed.events.start - message.start;
        if let Some(before) = keys[..nth].iter().find(|before| before.key == keyed.key) {
            // Only keys of single events stand beside others.
            let like = before.events.start;
            if !is_alike(&batch.columns(like), &batch.columns(keyed.events.start)) {
                return Ok(Verdict::Refused(place));
            }
            known[place] = match known[like - message.start] {
                Known::New => Known::Like(like),
                earlier => earlier,
            };
            continue;
        }
        let Some(kept) = find.query_row([&*keyed.key], |row| Ok(Kept::read(row))).optional()?.transpose()? else {
            continue;
        };
        let said = Digest::of(keyed.events.clone().map(|index| batch.columns(index)));
        let is_same = kept.count == keyed.events.len() as u64 && kept.digest(record)? == Some(said);
        if !is_same {
            return Ok(Verdict::Refused(place));
        }
        for (n, index) in keyed.events.clone().enumerate() {
            known[index - message.start] = Known::Stored(kept.first.plus(n));
        }
    }
    Ok(Verdict::Accepted(known))
}

/// Whether two events say the same.
fn is_alike(one: &Columns<'_>, other: &Columns<'_>) -> bool {
    Field::ALL.into_iter().all(|field| one.field(field) == other.field(field)) && one.payload == other.payload
}

/// Keeps the keys of a message whose events without a number got the next ones.
///
/// # Errors
/// Damage, by name. A key or number that is in the table although [`judge`] did not find it is damage, too: index and
/// table disagree.
pub(super) fn keep(connection: &Connection, batch: &Batch, keys: &[Keyed], fates: &[Fate]) -> rusqlite::Result<()> {
    for keyed in keys {
        if let Fate::Stored(first) = fates[keyed.events.start] {
            let digest = Digest::of(keyed.events.clone().map(|index| batch.columns(index)));
            let count = keyed.events.len() as u64;
            let kept = Kept { key: keyed.key.clone(), first, count, digest: Some(digest) };
            kept.store(connection).map_err(|error| {
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
pub(super) struct Kept {
    pub key: Box<str>,
    /// The first of the events that were stored under it, which follow each other.
    pub first: Seq,
    pub count: u64,
    /// Of what they said. A key that was stored before format 4 gets its digest when the first of its events is
    /// deleted; until then the events themselves tell.
    pub digest: Option<Digest>,
}

impl Kept {
    /// From a row of [`select_keys`].
    pub fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (key, first): (String, i64) = (row.get(0)?, row.get(1)?);
        let (first, count) = (Seq(first as u64), row.get::<_, i64>(2)? as u64);
        let mut kept = Self { key: key.into(), first, count, digest: None };
        let is_whole = match (row.get_ref(3)?, row.get_ref(4)?) {
            (ValueRef::Null, ValueRef::Null) => true,
            (ValueRef::Blob(digest), ValueRef::Integer(checksum)) => {
                kept.digest = digest.try_into().ok().map(Digest);
                kept.checksum().is_some_and(|expected| i64::from(expected) == checksum)
            }
            _ => false,
        };
        is_whole.then_some(kept).ok_or_else(|| damaged(format!("idempotency_keys: that of {} is damaged", first.id())))
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
        let mut hash = Sha256::new();
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

    /// Stores the digest of its events, while all of them are still there.
    fn remember(self, record: Record<'_>) -> rusqlite::Result<()> {
        let digest = self.digest(record)?;
        const SQL: &str = "UPDATE idempotency_keys SET digest = ?2, checksum = ?3 WHERE seq = ?1";
        let Some(Digest(bytes)) = digest else { return Ok(()) };
        let checksum = Self { digest, ..self }.checksum();
        record.connection.prepare_cached(SQL)?.execute((self.first.0 as i64, &bytes[..], checksum)).map(drop)
    }

    fn forget(first: Seq, connection: &Connection) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM idempotency_keys WHERE seq = ?1")?.execute([first.0 as i64]).map(drop)
    }
}

/// Tells whether events say the same as others: 128 bits of SHA-256. With fewer bits two different events could have
/// the same digest by chance, and the second would be taken for a repeat and not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest(pub [u8; 16]);

impl Digest {
    fn of<'b>(events: impl Iterator<Item = Columns<'b>>) -> Self {
        let mut hash = Sha256::new();
        events.for_each(|event| Self::add(&mut hash, &event));
        Self::finish(hash)
    }

    /// Each text with its length, so that no two events look alike.
    fn add(hash: &mut Sha256, event: &Columns<'_>) {
        let Columns { event_type, source, session_id, user_id, payload } = *event;
        for text in [Some(event_type), Some(source), session_id, user_id, Some(payload)] {
            hash.update(text.map_or(u32::MAX, |text| text.len() as u32).to_le_bytes());
            hash.update(text.unwrap_or_default());
        }
    }

    fn finish(hash: Sha256) -> Self {
        let hash: [u8; 32] = hash.finalize().into();
        Self(std::array::from_fn(|byte| hash[byte]))
    }
}

/// The key that an event was stored under, which it may share with others.
fn of_event(connection: &Connection, seq: Seq) -> rusqlite::Result<Option<Kept>> {
    let mut find = connection.prepare_cached(select_keys!("WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1"))?;
    let kept = find.query_row([seq.0 as i64], |row| Ok(Kept::read(row))).optional()?.transpose()?;
    Ok(kept.filter(|kept| seq.0 < kept.first.0 + kept.count))
}

/// The key of an event that is being deleted: found before the event is deleted, and forgotten after it if no event of
/// the key is left.
pub(super) struct Parting {
    first: Seq,
    count: u64,
}

impl Parting {
    /// Looks for the key of an event that is about to be deleted. Where the event, or another one of the key, is damaged,
    /// the key goes with the last of them all the same; meanwhile its repeats are refused, as they were before.
    pub fn of(connection: &Connection, shared: &Shared, seq: Seq) -> rusqlite::Result<Option<Self>> {
        let Some(kept) = of_event(connection, seq)? else { return Ok(None) };
        let parting = Self { first: kept.first, count: kept.count };
        if kept.digest.is_none() && kept.count > 1 {
            match kept.remember(shared.record(connection)) {
                Err(error) if is_damage(&error) => shared.note_damage(&error),
                remembered => remembered?,
            }
        }
        Ok(Some(parting))
    }

    /// Forgets the key if no event under it is left.
    pub fn end(self, connection: &Connection) -> rusqlite::Result<()> {
        let last = self.first.plus(self.count as usize - 1);
        if self.count == 1 || !read::is_any_of(connection, self.first..=last)? {
            Kept::forget(self.first, connection)?;
        }
        Ok(())
    }
}

/// Forgets the keys that have no event after `last`.
pub(super) fn forget_through(connection: &Connection, last: Seq) -> rusqlite::Result<()> {
    const SQL: &str = "DELETE FROM idempotency_keys WHERE seq <= ?1 AND seq + count - 1 <= ?1";
    connection.prepare_cached(SQL)?.execute([last.0 as i64]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, EventTypes};
    use proptest::prelude::*;

    proptest! {
        /// Messages as a socket reads them: each with some events, of which some have keys.
        #[test]
        fn every_event_is_in_one_message_with_its_key(
            drawn in prop::collection::vec(prop::collection::vec(prop::option::of("[a-c]"), 1..5), 0..8),
        ) {
            let types = EventTypes::builtin();
            let event_type = types.get("timer_tick").expect("built in");
            let mut batch = Batch::default();
            for message in &drawn {
                let first = batch.len();
                for key in message {
                    let idempotency_key = key.as_deref();
                    let (source, session_id, user_id, payload) = ("s", None, None, "{}");
                    batch.push(&Event { event_type, source, session_id, user_id, payload, idempotency_key }, &types);
                }
                batch.end_message(first);
            }
            let found = messages(&batch);
            let places = found.iter().flat_map(|(message, _)| message.clone());
            prop_assert!(places.eq(0..batch.len()), "in order, without gap: {:?}", found);
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
