//! Applying appends: events get their numbers and times, idempotency keys are judged, and rows are inserted.

use std::ops::Range;
use std::sync::LazyLock;

use rusqlite::{Connection, Statement};

use super::command::Append;
use super::housekeeping::LeftOut;
use super::position::Position;
use crate::event::{Columns, Field, Seq, Timestamp, TimestampText, ValueHash};
use crate::record::Outcome;
use crate::store::checksum;
use crate::store::keys::{self, Judgement, Seen};
use crate::store::rollups;
use crate::store::schema::Text;
use crate::store::shared::Shared;
use crate::wire::batch::{Batch, Keyed};

/// Events of one statement: 16 take 16 % fewer instructions than single ones, 64 take 12 % more. With more than 16, the
/// parameters do not fit into the lookaside memory of a connection, and each costs an allocation.
const ROWS_PER_INSERT: usize = 16;

const COLUMNS: usize = 7;
const INSERT_FIRST: &str = "INSERT INTO events (time_us, event_type, source, session_id, user_id, payload, checksum, \
                            seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
/// For a table in which a damaged row has a larger number than the last event. SQLite would go on from that number, so
/// each event names its own. An event that comes to the damaged number replaces the damaged row.
const INSERT_NAMED: &str = "INSERT OR REPLACE INTO events (time_us, event_type, source, session_id, user_id, payload, \
                            checksum, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
const INSERT_ONE: &str = "INSERT INTO events (time_us, event_type, source, session_id, user_id, payload, checksum) \
                          VALUES (?, ?, ?, ?, ?, ?, ?)";
static INSERT_MANY: LazyLock<String> =
    LazyLock::new(|| INSERT_ONE.to_owned() + &", (?, ?, ?, ?, ?, ?, ?)".repeat(ROWS_PER_INSERT - 1));

pub struct Inserter {
    /// Whether the last number that was given is also the largest in the table.
    is_last_largest: bool,
    time_text: TimestampText,
    /// For checksums.
    scratch: Vec<u8>,
}

/// What one transaction has inserted until now.
pub struct Inserted {
    pub last: Seq,
    pub last_time: Timestamp,
    /// In the order in which they first occur. They are few, so they are searched one after the other.
    pub by_type: Vec<OfType>,
    /// Complete after [`Inserted::end_minute`].
    pub by_minute: Vec<OfMinute>,
    /// Events from this time on are of a later minute than those before.
    minute_end: Timestamp,
}

/// The new events of one type and one minute.
pub struct OfMinute {
    pub minute: i64,
    /// The index of the type in [`Inserted::by_type`].
    pub of: usize,
    pub events: u64,
}

/// The new events of one type.
pub struct OfType {
    pub name: Box<[u8]>,
    hash: ValueHash,
    pub events: u64,
    pub last_seen: Timestamp,
    /// How many of them are in [`Inserted::by_minute`].
    by_minute: u64,
}

impl Inserter {
    pub fn new(is_last_largest: bool) -> Self {
        Self { is_last_largest, time_text: TimestampText::default(), scratch: Vec::new() }
    }

    /// Inserts the events that are new.
    pub fn insert(
        &mut self,
        connection: &Connection,
        shared: &Shared,
        position: Position,
        appends: &mut [Append],
        left_out: &mut LeftOut,
    ) -> rusqlite::Result<Inserted> {
        let inserted = Inserted::after(position);
        let mut inserting = Inserting { inserter: self, connection, shared, position, left_out, inserted };
        for appends in appends.chunk_by_mut(|one, other| !one.has_keys() && !other.has_keys()) {
            match appends {
                [append] if append.has_keys() => inserting.keyed(append)?,
                appends => {
                    let len = appends.iter().map(|append| append.batch.len()).sum();
                    let events = appends.iter_mut().map(|a| (a.time, 0..a.batch.len(), &mut a.batch));
                    inserting.run(events, len)?;
                }
            }
        }
        let mut inserted = inserting.inserted;
        inserted.end_minute();
        Ok(inserted)
    }
}

/// The appends of one transaction on their way into the table.
struct Inserting<'t> {
    inserter: &'t mut Inserter,
    connection: &'t Connection,
    shared: &'t Shared,
    /// Where the record stood before the transaction.
    position: Position,
    left_out: &'t mut LeftOut,
    inserted: Inserted,
}

impl Inserting<'_> {
    /// Inserts the new events of a batch with idempotency keys, message by message. Which events are new is noted
    /// beside the batch. The batch itself stays as it is until the commit, because the transaction may begin again.
    fn keyed(&mut self, append: &mut Append) -> rusqlite::Result<()> {
        let mut outcomes = Vec::with_capacity(append.batch.len());
        for (message, keys) in keys::messages(&append.batch) {
            match self.left_out.keys && !keys.is_empty() {
                true => outcomes.extend(message.map(|_| Outcome::Damaged)),
                false => self.message((append.time, &mut append.batch), message, &keys, &mut outcomes)?,
            }
        }
        let are_all_new = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Stored(_)));
        append.outcomes = (!are_all_new).then(|| outcomes.into());
        Ok(())
    }

    /// Inserts the new events of a message, and its keys. Adds the outcome of each event to the outcomes of the
    /// messages before.
    fn message(
        &mut self,
        (time, batch): (Timestamp, &mut Batch),
        message: Range<usize>,
        keys: &[Keyed],
        outcomes: &mut Vec<Outcome>,
    ) -> rusqlite::Result<()> {
        let record = self.shared.record_at(self.connection, self.position.deleted_through);
        let judged = keys::judge(record, batch, &message, keys);
        let database = (self.connection, self.shared);
        let seen = match self.left_out.despite_damage(database, |left_out| &mut left_out.keys, judged)? {
            Some(Judgement::Accepted(seen)) => seen,
            Some(Judgement::Refused(index)) => {
                outcomes.extend(message.map(|_| Outcome::Refused(index)));
                return Ok(());
            }
            // Nothing shows whether it is a repeat, and damage must not end the server.
            None => {
                outcomes.extend(message.map(|_| Outcome::Damaged));
                return Ok(());
            }
        };
        let mut index = message.start;
        for alike in seen.chunk_by(|one, other| (*one == Seen::Never) == (*other == Seen::Never)) {
            let events = index..index + alike.len();
            index = events.end;
            if alike[0] == Seen::Never {
                let first = self.inserted.last.next();
                outcomes.extend((0..events.len()).map(|n| Outcome::Stored(first.plus(n))));
                self.run([(time, events.clone(), &mut *batch)].into_iter(), events.len())?;
                continue;
            }
            for before in alike {
                let seq = match *before {
                    Seen::Stored(seq) => seq,
                    Seen::InBatch(index) => match outcomes[index] {
                        Outcome::Stored(seq) | Outcome::Replayed(seq) => seq,
                        Outcome::Refused(_) | Outcome::Damaged => unreachable!("a message is refused as a whole"),
                    },
                    Seen::Never => unreachable!("chunks are of one kind"),
                };
                outcomes.push(Outcome::Replayed(seq));
            }
        }
        let stored = keys::store(self.connection, batch, keys, outcomes);
        self.left_out.note_damage_of(self.shared, |left_out| &mut left_out.keys, stored)
    }

    /// Inserts `len` events, [`ROWS_PER_INSERT`] with each statement. Only the first names its number. The others get
    /// the next numbers from SQLite, which then appends without searching the table for each. The events of a batch are
    /// a microsecond apart. They begin at the time of the batch, or right after the last event if that is later, so
    /// that times increase.
    fn run<'b>(
        &mut self,
        events: impl Iterator<Item = (Timestamp, Range<usize>, &'b mut Batch)>,
        len: usize,
    ) -> rusqlite::Result<()> {
        let Inserter { is_last_largest, time_text, scratch } = &mut *self.inserter;
        let is_last_largest = *is_last_largest;
        let after_first = len.saturating_sub(1);
        let in_many = if is_last_largest { after_first / ROWS_PER_INSERT * ROWS_PER_INSERT } else { 0 };
        // In a small commit it costs as much to find a statement as to run it, so only those that are needed are
        // prepared.
        let prepare = |sql, is_needed: bool| is_needed.then(|| self.connection.prepare_cached(sql)).transpose();
        let mut first = self.connection.prepare_cached(if is_last_largest { INSERT_FIRST } else { INSERT_NAMED })?;
        let mut many = prepare(&INSERT_MANY, in_many > 0)?;
        let mut one = prepare(INSERT_ONE, is_last_largest && in_many < after_first)?;
        let (mut rows, inserted) = (0_usize, &mut self.inserted);
        for (time, events, batch) in events {
            let mut time = Timestamp(time.0.max(inserted.last_time.0 + 1));
            let begin = events.start;
            for index in events {
                inserted.last = inserted.last.next();
                batch.stamp(index, inserted.last, &time_text.render(time));
                let columns = batch.columns(index);
                let checksum = checksum::of_event(scratch, inserted.last, time, &columns, None);
                match (rows.checked_sub(1).filter(|_| is_last_largest), &mut many, &mut one) {
                    (None, ..) => {
                        first.raw_bind_parameter(COLUMNS + 1, inserted.last.0 as i64)?;
                        bind(&mut first, 0, time, &columns, checksum, false)?;
                        first.raw_execute()?;
                    }
                    (Some(nth), Some(many), _) if nth < in_many => {
                        let row = nth % ROWS_PER_INSERT;
                        // The statement still has what this row was bound to before.
                        let is_source_bound = nth >= ROWS_PER_INSERT
                            && index >= begin + ROWS_PER_INSERT
                            && batch.has_source_of(index, index - ROWS_PER_INSERT);
                        bind(many, row, time, &columns, checksum, is_source_bound)?;
                        if row + 1 == ROWS_PER_INSERT {
                            many.raw_execute()?;
                        }
                    }
                    (_, _, one) => {
                        let one = one.as_mut().expect("prepared for what is left");
                        bind(one, 0, time, &columns, checksum, false)?;
                        one.raw_execute()?;
                    }
                }
                rows += 1;
                inserted.count(columns.event_type, batch.hash(index, Field::Type), time);
                inserted.last_time = time;
                time.0 += 1;
            }
        }
        let numbered_as_stamped = rows == 0 || self.connection.last_insert_rowid() as u64 == inserted.last.0;
        assert!(numbered_as_stamped, "SQLite numbers events as they are stamped");
        Ok(())
    }
}

impl Inserted {
    fn after(position: Position) -> Self {
        let (by_type, by_minute, minute_end) = (Vec::new(), Vec::new(), Timestamp(i64::MIN));
        Self { last: position.seq, last_time: position.time, by_type, by_minute, minute_end }
    }

    #[inline]
    fn count(&mut self, event_type: &[u8], hash: ValueHash, time: Timestamp) {
        if time >= self.minute_end {
            self.end_minute();
            self.minute_end = rollups::start_of(rollups::minute_of(time) + 1);
        }
        match self.by_type.iter_mut().find(|of| of.hash == hash && *of.name == *event_type) {
            Some(of) => {
                of.events += 1;
                of.last_seen = time;
            }
            None => {
                self.by_type.push(OfType { name: event_type.into(), hash, events: 1, last_seen: time, by_minute: 0 })
            }
        }
    }

    /// Takes down the events of the minute until now.
    fn end_minute(&mut self) {
        for (of, each) in self.by_type.iter_mut().enumerate().filter(|(_, each)| each.events > each.by_minute) {
            let (minute, events) = (rollups::minute_of(each.last_seen), each.events - each.by_minute);
            self.by_minute.push(OfMinute { minute, of, events });
            each.by_minute = each.events;
        }
    }
}

/// Binds the parameters of row number `row` of a statement. The source may be bound to the same text already: to bind a text
/// costs 300 instructions, and the events of one socket mostly have one source.
#[inline]
fn bind(
    insert: &mut Statement<'_>,
    row: usize,
    time: Timestamp,
    columns: &Columns<'_>,
    checksum: i32,
    is_source_bound: bool,
) -> rusqlite::Result<()> {
    let before = row * COLUMNS;
    insert.raw_bind_parameter(before + 1, time.0)?;
    insert.raw_bind_parameter(before + 2, Text(Some(columns.event_type)))?;
    if !is_source_bound {
        insert.raw_bind_parameter(before + 3, Text(Some(columns.source)))?;
    }
    insert.raw_bind_parameter(before + 4, Text(columns.session_id))?;
    insert.raw_bind_parameter(before + 5, Text(columns.user_id))?;
    insert.raw_bind_parameter(before + 6, Text(Some(columns.payload)))?;
    insert.raw_bind_parameter(before + 7, checksum)
}
