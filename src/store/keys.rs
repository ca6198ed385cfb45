//! Idempotency keys: an event, or all events of a request, stored once however often they are sent.
//!
//! A key is kept for as long as its events. Whether a repeat says the same is told by the stored events
//! themselves, so nothing else is kept. A batch without keys never comes here; one with keys costs a look-up and
//! an insert into an index of random keys for each, which is what the log itself avoids.

use std::ops::Range;

use rusqlite::{Connection, OptionalExtension};

use super::read::Record;
use crate::event::{Columns, Field, Seq};
use crate::wire::batch::{Batch, Fate, Keyed};

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
    const FIND: &str = "SELECT seq, count FROM idempotency_keys WHERE key = ?1";
    let mut find = record.connection.prepare_cached(FIND)?;
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
        let found =
            find.query_row([&*keyed.key], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).optional()?;
        let Some((first, count)) = found else { continue };
        let mut is_same = count as usize == keyed.events.len();
        for (n, index) in keyed.events.clone().enumerate() {
            let seq = Seq(first as u64).plus(n);
            is_same = is_same && is_stored_as(record, seq, batch, index)?;
            known[index - message.start] = Known::Stored(seq);
        }
        if !is_same {
            return Ok(Verdict::Refused(place));
        }
    }
    Ok(Verdict::Accepted(known))
}

/// Whether an event of a batch says what is stored under a number.
fn is_stored_as(record: Record<'_>, seq: Seq, batch: &Batch, index: usize) -> rusqlite::Result<bool> {
    let mut is_same = false;
    record.event(seq, |stored| is_same = is_alike(&stored.columns(), &batch.columns(index)))?;
    Ok(is_same)
}

/// Whether two events say the same.
fn is_alike(one: &Columns<'_>, other: &Columns<'_>) -> bool {
    Field::ALL.into_iter().all(|field| one.field(field) == other.field(field)) && one.payload == other.payload
}

/// Keeps the keys of a message whose events without a number got the next ones.
pub(super) fn keep(connection: &Connection, keys: &[Keyed], fates: &[Fate]) -> rusqlite::Result<()> {
    const KEEP: &str = "INSERT INTO idempotency_keys (seq, count, key) VALUES (?1, ?2, ?3)";
    let mut keep = connection.prepare_cached(KEEP)?;
    for keyed in keys {
        if let Fate::Stored(first) = fates[keyed.events.start] {
            keep.execute((first.0 as i64, keyed.events.len() as i64, &*keyed.key))?;
        }
    }
    Ok(())
}

/// Forgets the keys of the events up to one.
pub(super) fn forget_through(connection: &Connection, last: Seq) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM idempotency_keys WHERE seq <= ?1")?.execute([last.0 as i64]).map(drop)
}

/// Forgets the key of an event, which it may share with others.
pub(super) fn forget(connection: &Connection, seq: Seq) -> rusqlite::Result<()> {
    const FORGET: &str = "DELETE FROM idempotency_keys WHERE seq = (SELECT max(seq) FROM idempotency_keys \
                          WHERE seq <= ?1) AND seq + count > ?1";
    connection.prepare_cached(FORGET)?.execute([seq.0 as i64]).map(drop)
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
