//! Holding a whole file against itself: every row against its checksum, the index and the statistics against the
//! events, the numbers against what was deleted, and the pages against each other.
//!
//! Segment by segment, each in several short transactions, so that a server that runs on the file is not disturbed: a
//! long one would keep the write-ahead log from starting over.

use std::collections::{HashMap, HashSet};
use std::ops::{ControlFlow, RangeInclusive};
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, Transaction};

use super::damage::{damaged, is_damage, within};
use super::holes::Holes;
use super::keys::{self, select_keys};
use super::migrate::python;
use super::read::{self, EVENTS_PER_LOOK_AT_CLOCK, Readers, TRANSACTION_TIME, kept};
use super::schema::{self, Text, meta};
use super::segments::{self, SEGMENT_EVENTS, Segment};
use super::{Kept, wal};
use crate::event::{Seq, Timestamp};
use crate::wire::StoredEvent;

/// Why a file was not looked at, or not to its end.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CheckError {
    #[error("it is not a file of the event pipeline")]
    NotOurs,
    #[error("it is of an earlier format or of the Python service: start the server on it once, which upgrades it")]
    Former,
    #[error("it was written by a newer version (format {0}, this one knows {known})", known = schema::VERSION)]
    Newer(i64),
    #[error(transparent)]
    Unreadable(#[from] rusqlite::Error),
}

/// Holds a whole file against itself and hands each damaged thing to `found`, by name. A server may run on it.
/// Returns how many events there were.
///
/// # Errors
/// When it is of another format or program, or cannot be opened or read for another reason than damage.
pub fn check(path: &Path, mut found: impl FnMut(String), mut progress: impl FnMut(u64)) -> Result<u64, CheckError> {
    let mut is_severed = false;
    // A server that writes meanwhile may make a log look broken, but hardly twice at the same place.
    match wal::examine(path).and_then(|first| Ok((first, wal::examine(path)?))) {
        Ok((Some(first), Some(again))) if first.frame == again.frame => {
            let wal::Severed { frame, commits, .. } = again;
            is_severed = true;
            found(format!("write-ahead log: frame {frame} is broken, {commits} commits behind it are dropped"));
        }
        Ok(_) => {}
        Err(error) => found(format!("write-ahead log: {error}")),
    }
    let connection = schema::open_reader(path)?;
    match can_be_verified(&connection) {
        // Behind the damage may stand what it is.
        _ if is_severed => {}
        Err(CheckError::Unreadable(error)) if is_damage(&error) => {}
        can_be => can_be?,
    }
    pages(&connection, Pages::All, &mut found)?;
    match schema::verify(&connection) {
        Err(error) if is_damage(&error) => {
            // Nothing that follows could be read.
            found(error.to_string());
            return Ok(0);
        }
        verified => verified?,
    }
    let mut check = Check {
        source: &connection,
        found: &mut found,
        between: &mut |events| {
            progress(events);
            ControlFlow::Continue(())
        },
    };
    Ok(check.rows()?.expect("nothing ended it"))
}

/// Whether a file is of a format whose rows can be held against anything.
fn can_be_verified(connection: &Connection) -> Result<(), CheckError> {
    let (version, is_ours) = (schema::version(connection)?, schema::is_ours(connection)?);
    if python::wrote(connection)? {
        return Err(CheckError::Former);
    }
    if !is_ours && (schema::is_foreign(connection)? || schema::is_empty(connection)?) {
        return Err(CheckError::NotOurs);
    }
    match version {
        version if (1..*schema::VERIFIED.start()).contains(&version) => Err(CheckError::Former),
        version if version > schema::VERSION => Err(CheckError::Newer(version)),
        _ => Ok(()),
    }
}

/// How thoroughly the pages are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// `quick_check`, and `integrity_check` of the idempotency keys alone.
    Quick,
    /// `integrity_check`, which also holds SQLite's indexes against their tables.
    All,
}

/// Where a check has its transactions from.
pub(super) trait Source {
    /// One transaction, which must be short. Never call it within another.
    fn with<T>(&self, read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<T>;
}

/// Behind a server it is one of its readers: a checkpoint that needs the log to itself keeps it out, too.
impl Source for Readers {
    fn with<T>(&self, read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        Readers::with(self, read)
    }
}

impl Source for Connection {
    fn with<T>(&self, read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        read(&self.unchecked_transaction()?)
    }
}

/// A reading of a whole file.
pub(super) struct Check<'c, S> {
    pub source: &'c S,
    /// Takes what is damaged, by name.
    pub found: &'c mut dyn FnMut(String),
    /// Is told between two transactions how many events were looked at so far, and may end it.
    pub between: &'c mut dyn FnMut(u64) -> ControlFlow<()>,
}

/// Holds the pages against each other. Returns whether it came to the end: the connection's progress handler may stop
/// it.
///
/// # Errors
/// What SQLite reports, other than damage.
pub(super) fn pages(connection: &Connection, pages: Pages, mut found: impl FnMut(String)) -> rusqlite::Result<bool> {
    let pragmas: &[&str] = match pages {
        // Only its index tells where a key is, and it is small enough to be held against its table.
        Pages::Quick => &["PRAGMA quick_check", "PRAGMA integrity_check('idempotency_keys')"],
        Pages::All => &["PRAGMA integrity_check"],
    };
    for pragma in pragmas {
        let looked = connection.prepare(pragma).and_then(|mut statement| {
            statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()
        });
        match looked {
            Ok(lines) => lines.into_iter().filter(|line| line != "ok").for_each(&mut found),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => return Ok(false),
            Err(error) if is_damage(&error) => found(format!("{pragma}: {error}")),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// What of the events comes out of the walk.
#[derive(Clone, Default)]
struct Tally {
    events: u64,
    by_type: HashMap<String, (u64, Timestamp)>,
    last: Option<(Seq, Timestamp)>,
    /// Some could not be read: what they counted for is not known.
    has_gaps: bool,
}

impl Tally {
    fn note(&mut self, event: &StoredEvent<'_>) {
        self.last = Some((event.seq, event.time));
        self.events += 1;
        match self.by_type.get_mut(event.event_type) {
            Some(of_type) => *of_type = (of_type.0 + 1, event.time),
            None => drop(self.by_type.insert(event.event_type.to_owned(), (1, event.time))),
        }
    }
}

/// What is known of the file before the walk.
#[derive(Clone, Copy)]
struct Known {
    unchecked_through: Seq,
    /// The file is of a format whose keys and holes have no checksums.
    is_former: bool,
    /// What was deleted when the walk began ([`deletions_in_file`]).
    began_with: (Seq, Option<i64>),
}

impl<S: Source> Check<'_, S> {
    /// Looks at every row. Returns how many events there were, or `None` if it was ended.
    ///
    /// # Errors
    /// What SQLite reports, other than damage.
    pub fn rows(&mut self) -> rusqlite::Result<Option<u64>> {
        let Self { source, found, between } = self;
        // A page that cannot be read has one name, however often the check comes to it.
        let mut told = HashSet::new();
        let found = &mut |what: String| {
            if told.insert(what.clone()) {
                found(what);
            }
        };
        let known = match source.with(|transaction| known(transaction, found)) {
            Ok(known) => known,
            Err(error) => return end_at(error, 0, found),
        };
        let (mut tally, mut disturbed) = (Tally::default(), 0);
        let mut look = Look::new(0, tally.clone(), known);
        loop {
            let looked = source.with(|transaction| look.go_on(transaction, disturbed < LOOKS_MAX - 1));
            let events = look.tally.events;
            match looked {
                Ok(Looked::Part) => {}
                Ok(Looked::Whole) => {
                    look.damage.drain(..).for_each(&mut *found);
                    if look.is_last {
                        return Ok(Some(events));
                    }
                    (tally, disturbed) = (look.tally, 0);
                    look = Look::new(look.number + 1, tally.clone(), known);
                }
                Ok(Looked::Disturbed) => {
                    disturbed += 1;
                    look = Look::new(look.number, tally.clone(), known);
                }
                Err(error) => {
                    look.damage.drain(..).for_each(&mut *found);
                    return end_at(error, events, found);
                }
            }
            if between(events).is_break() {
                return Ok(None);
            }
        }
    }
}

/// Where even the ends of a table cannot be found there is nothing to go on with.
fn end_at(error: rusqlite::Error, events: u64, found: &mut dyn FnMut(String)) -> rusqlite::Result<Option<u64>> {
    if !is_damage(&error) {
        return Err(error);
    }
    found(format!("the rest of the file cannot be read ({error})"));
    Ok(Some(events))
}

/// Looks at the small tables, and at what the walk has to know.
fn known(connection: &Connection, found: &mut dyn FnMut(String)) -> rusqlite::Result<Known> {
    if let Err(error) = Kept::all(connection) {
        found(name_of_damage(error)?);
    }
    let unchecked_through = match marks(connection) {
        Ok(unchecked_through) => unchecked_through,
        Err(error) => {
            found(name_of_damage(error)?);
            Seq::ZERO
        }
    };
    if let Err(error) = chosen(connection) {
        found(name_of_damage(error)?);
    }
    let is_former = schema::version(connection)? < schema::HOLES_CHECKED_SINCE;
    Ok(Known { unchecked_through, is_former, began_with: deletions_in_file(connection)? })
}

fn marks(connection: &Connection) -> rusqlite::Result<Seq> {
    for mark in [meta::LAST_SEQ, meta::LAST_TIME_US, meta::EPOCH, meta::INODE] {
        meta::get(connection, mark)?;
    }
    meta::get(connection, meta::UNCHECKED_THROUGH).map(|seq| Seq(seq as u64))
}

/// The name of damage. Gives back any other error.
fn name_of_damage(error: rusqlite::Error) -> rusqlite::Result<String> {
    if is_damage(&error) { Ok(error.to_string()) } else { Err(error) }
}

/// What a deletion changes for good: where the events begin, and how many were chosen out of the middle, unless damage
/// hides it.
fn deletions_in_file(connection: &Connection) -> rusqlite::Result<(Seq, Option<i64>)> {
    let oldest = kept(connection)?.map_or(Seq::MAX, |kept| *kept.start());
    Ok((oldest, unless_damaged(chosen(connection))?))
}

/// How many events were chosen to be deleted.
fn chosen(connection: &Connection) -> rusqlite::Result<i64> {
    const SQL: &str = "SELECT coalesce(sum(count), 0) FROM holes";
    let chosen = connection.prepare_cached(SQL)?.query_row([], |row| row.get(0));
    chosen.map_err(|error| within("holes", error))
}

/// What was read; nothing where it is damaged.
fn unless_damaged<T>(read: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match read {
        Err(error) if is_damage(&error) => Ok(None),
        read => read.map(Some),
    }
}

/// How far one transaction came.
enum Looked {
    Part,
    Whole,
    /// Events of the segment were deleted since the look at it began: what was read before does not fit to what would
    /// be read now.
    Disturbed,
}

/// A look at one segment, in several transactions. Of what may change between two of them, new events are taken along,
/// and deletions are noticed by what they leave behind: then the segment is looked at again from its beginning. It is
/// sealed only once it is full, so whether it is matters at the end of its events alone.
struct Look {
    number: u64,
    /// No event was seen before this segment.
    is_first: bool,
    known: Known,
    /// What was deleted of the segment when the look began ([`Look::deletions_in_segment`]).
    began_with: Option<(Seq, Option<i64>)>,
    is_disturbed: bool,
    /// What was found damaged. Told only once the look is complete: a look that begins again finds it again.
    damage: Vec<String>,
    /// With the events of this segment.
    tally: Tally,
    rows_seen: i64,
    present: Vec<bool>,
    segment: Segment,
    /// No event comes after the segment.
    is_last: bool,
    /// Its lists were all stored when its last event had been read.
    is_sealed: bool,
    lists_right: usize,
    lists_wrong: usize,
    next: Next,
}

/// What comes next in a look.
enum Next {
    /// The events from this one on.
    Rows(Seq),
    /// The keys from that of this event on.
    Keys(Seq),
    /// The lists after this one.
    Lists(i64, Box<[u8]>),
}

/// The time of one transaction.
struct Slice {
    until: Instant,
    looked: usize,
}

impl Slice {
    fn begin() -> Self {
        Self { until: Instant::now() + TRANSACTION_TIME, looked: 0 }
    }

    /// Counts a row that was looked at. Returns whether it is the last in this transaction.
    fn is_over(&mut self) -> bool {
        self.looked += 1;
        self.looked.is_multiple_of(EVENTS_PER_LOOK_AT_CLOCK) && self.until <= Instant::now()
    }
}

impl Look {
    /// At this segment, or at the first after it that has events. `tally` is of the events before it.
    fn new(number: u64, tally: Tally, known: Known) -> Self {
        Self {
            number,
            is_first: tally.last.is_none(),
            known,
            began_with: None,
            is_disturbed: false,
            damage: Vec::new(),
            tally,
            rows_seen: 0,
            present: vec![false; SEGMENT_EVENTS as usize],
            segment: Segment::new(number),
            is_last: false,
            is_sealed: false,
            lists_right: 0,
            lists_wrong: 0,
            next: Next::Rows(Seq::ZERO),
        }
    }

    /// Goes on in another transaction. A look that is disturbed and may not begin again still holds every row against
    /// its checksum and the rows against their order, and nothing else.
    fn go_on(&mut self, connection: &Connection, may_begin_again: bool) -> rusqlite::Result<Looked> {
        let Some(kept) = kept(connection)? else {
            self.is_last = true;
            self.statistics(connection)?;
            return Ok(Looked::Whole);
        };
        if self.began_with.is_none() {
            self.number = segments::segment_of(*kept.start()).max(self.number);
            self.segment = Segment::new(self.number);
        }
        let deletions = self.deletions_in_segment(connection, &kept)?;
        if *self.began_with.get_or_insert(deletions) != deletions {
            if may_begin_again {
                return Ok(Looked::Disturbed);
            }
            self.is_disturbed = true;
        }
        match std::mem::replace(&mut self.next, Next::Rows(Seq::ZERO)) {
            Next::Rows(from) => self.rows(connection, &kept, from),
            Next::Keys(from) => self.keys(connection, from),
            Next::Lists(kind, key) => self.lists(connection, (kind, &*key)),
        }
    }

    fn numbers_of_segment(&self) -> RangeInclusive<Seq> {
        segments::first_of(self.number)..=segments::first_of(self.number + 1).prev()
    }

    /// Where the events of the segment begin, and how many were chosen out of it. With every event of it that is
    /// deleted one of the two becomes larger than it ever was. Where damage hides the holes, none can be chosen.
    fn deletions_in_segment(
        &self,
        connection: &Connection,
        kept: &RangeInclusive<Seq>,
    ) -> rusqlite::Result<(Seq, Option<i64>)> {
        const HOLES: &str = "SELECT coalesce((SELECT count FROM holes WHERE segment = ?1), 0)";
        let chosen = connection.prepare_cached(HOLES)?.query_row([self.number as i64], |row| row.get(0));
        Ok((*self.numbers_of_segment().start().max(kept.start()), unless_damaged(chosen)?))
    }

    /// The events of the segment from one on; behind the last, what has to fit to them in the same transaction.
    fn rows(&mut self, connection: &Connection, kept: &RangeInclusive<Seq>, mut from: Seq) -> rusqlite::Result<Looked> {
        let whole = self.numbers_of_segment();
        let numbers = *whole.start().max(kept.start())..=*whole.end().min(kept.end());
        self.is_last = self.number >= segments::segment_of(*kept.end());
        let mut slice = Slice::begin();
        const SQL: &str = read::select_events!("seq BETWEEN ?1 AND ?2 ORDER BY seq");
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query([from.max(*numbers.start()).0 as i64, numbers.end().0 as i64])?;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => {
                    self.tally.has_gaps = true;
                    self.note(within("events", error))?;
                    return Ok(Looked::Whole);
                }
            };
            self.rows_seen += 1;
            match read::stored(row, self.known.unchecked_through) {
                Ok(event) => self.event(&event, &numbers),
                Err(error) => {
                    self.tally.has_gaps = true;
                    self.note(error)?;
                }
            }
            // A row out of order would have the next transaction read rows again, so none ends there.
            let seq = Seq(row.get::<_, i64>(0)? as u64);
            if seq >= from && numbers.contains(&seq) {
                from = seq.next();
                if slice.is_over() {
                    self.next = Next::Rows(from);
                    return Ok(Looked::Part);
                }
            }
        }

        if self.is_last {
            self.statistics(connection)?;
        }
        if !self.known.is_former {
            self.holes(connection, &numbers)?;
        }
        self.numbers(&numbers);
        self.is_sealed = (self.number as i64) < meta::get(connection, meta::SEALED_BEFORE)?;
        // The first look also takes the keys from before the first event: a key stays while any of its events does.
        Ok(match self.known.is_former {
            false => self.go_on_with(Next::Keys(if self.is_first { Seq::ZERO } else { *whole.start() })),
            true => self.go_on_with_lists(),
        })
    }

    fn go_on_with(&mut self, next: Next) -> Looked {
        self.next = next;
        Looked::Part
    }

    fn go_on_with_lists(&mut self) -> Looked {
        // No field is below 0.
        if self.is_sealed { self.go_on_with(Next::Lists(-1, Box::default())) } else { Looked::Whole }
    }

    /// An event that is whole.
    fn event(&mut self, event: &StoredEvent<'_>, numbers: &RangeInclusive<Seq>) {
        let is_in_order = self.tally.last.is_none_or(|(seq, time)| event.seq > seq && event.time > time);
        if !numbers.contains(&event.seq) || !is_in_order {
            self.damage.push(format!("events: {} is out of order", event.seq.id()));
            return;
        }
        self.present[usize::from(segments::offset_of(event.seq))] = true;
        self.segment.note(event.seq, &event.columns());
        self.tally.note(event);
    }

    /// The numbers without an event, against how many were deleted.
    fn numbers(&mut self, numbers: &RangeInclusive<Seq>) {
        let Some((_, Some(deleted))) = self.began_with.filter(|_| !self.is_disturbed) else { return };
        let missing = numbers.end().0 as i64 + 1 - numbers.start().0 as i64 - self.rows_seen;
        // The count includes holes before the first and behind the last kept event.
        if missing > deleted || (*numbers == self.numbers_of_segment() && missing < deleted) {
            let id = numbers.start().id();
            self.damage
                .push(format!("events: {missing} are missing from {id} on in their segment, {deleted} were deleted"));
        }
    }

    /// The holes of the segment, against the numbers without an event.
    fn holes(&mut self, connection: &Connection, numbers: &RangeInclusive<Seq>) -> rusqlite::Result<()> {
        let holes = match Holes::of(connection, self.number) {
            Ok(holes) => holes.and_then(|holes| holes.offsets),
            Err(error) => return self.note(within("holes", error)),
        };
        let Some(holes) = holes.filter(|_| !self.tally.has_gaps && !self.is_disturbed) else { return Ok(()) };
        let wrong = holes.iter().filter(|hole| self.is_present(**hole)).count();
        if wrong > 0 {
            let id = numbers.start().id();
            self.damage.push(format!("holes: {wrong} of the segment of {id} have their events"));
        }
        Ok(())
    }

    fn is_present(&self, offset: u16) -> bool {
        self.present.get(usize::from(offset)).is_some_and(|is_present| *is_present)
    }

    /// The keys of the segment from that of an event on, each against its checksum.
    fn keys(&mut self, connection: &Connection, mut from: Seq) -> rusqlite::Result<Looked> {
        let mut slice = Slice::begin();
        const SQL: &str = select_keys!("WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq");
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query([from.0 as i64, self.numbers_of_segment().end().0 as i64])?;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => {
                    self.note(error)?;
                    break;
                }
            };
            keys::Kept::read(row).map(drop).or_else(|error| self.note(error))?;
            let seq = Seq(row.get::<_, i64>(1)? as u64);
            // As above: no transaction ends at a row out of order.
            if seq >= from {
                from = seq.next();
                if slice.is_over() {
                    return Ok(self.go_on_with(Next::Keys(from)));
                }
            }
        }
        Ok(self.go_on_with_lists())
    }

    /// The lists of the segment after one, against those of its events.
    fn lists(&mut self, connection: &Connection, after: (i64, &[u8])) -> rusqlite::Result<Looked> {
        let mut slice = Slice::begin();
        const SQL: &str = "SELECT kind, key, offsets, checksum FROM event_index \
                           WHERE segment = ?1 AND (kind, key) > (?2, ?3) ORDER BY kind, key";
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query((self.number as i64, after.0, Text(Some(after.1))))?;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => {
                    self.note(error)?;
                    return Ok(Looked::Whole);
                }
            };
            let list =
                segments::field_of(row.get(0)?).ok_or_else(|| damaged("event_index: no such kind")).and_then(|field| {
                    let key = row.get_ref(1)?.as_bytes()?;
                    Ok((field, key, read::list(row, 2, self.number, field, key)?))
                });
            match list {
                Ok((field, key, mut offsets)) => {
                    // Lists keep the numbers of events that were deleted.
                    offsets.retain(|offset| self.is_present(*offset));
                    let events = self.segment.list(field, key).unwrap_or_default();
                    let is_right = *offsets == *events;
                    self.lists_right += usize::from(is_right && !events.is_empty());
                    self.lists_wrong += usize::from(!is_right);
                    // As above: no transaction ends at a row out of order.
                    if (field as i64, key) > after && slice.is_over() {
                        return Ok(self.go_on_with(Next::Lists(field as i64, key.into())));
                    }
                }
                Err(error) => self.note(error)?,
            }
        }
        let (right, wrong) = (self.lists_right, self.lists_wrong);
        let lacking = self.segment.lists().saturating_sub(right + wrong);
        if wrong + lacking > 0 && !self.is_disturbed {
            let number = self.number;
            self.damage
                .push(format!("event_index: of segment {number} {wrong} lists are wrong and {lacking} are missing"));
        }
        Ok(Looked::Whole)
    }

    /// The statistics, against all events if none was deleted since the walk began.
    fn statistics(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let told = match told_by_type(connection).map_err(|error| within("event_stats", error)) {
            Ok(told) => told,
            Err(error) => return self.note(error),
        };
        if self.tally.has_gaps
            || self.known.began_with.1.is_none()
            || deletions_in_file(connection)? != self.known.began_with
        {
            return Ok(());
        }
        let counted = self.tally.by_type.iter().map(|(of, (count, last))| (of.clone(), (*count, last.to_string())));
        if told != counted.collect() {
            self.damage.push("event_stats: the statistics are not those of the events".to_owned());
        }
        Ok(())
    }

    /// Notes damage by its name, and gives back any other error.
    fn note(&mut self, error: rusqlite::Error) -> rusqlite::Result<()> {
        name_of_damage(error).map(|name| self.damage.push(name))
    }
}

/// What the statistics tell of each type.
fn told_by_type(connection: &Connection) -> rusqlite::Result<HashMap<String, (u64, String)>> {
    let mut statement = connection.prepare("SELECT event_type, count, last_seen FROM event_stats WHERE count > 0")?;
    let told = statement.query_map([], |row| Ok((row.get(0)?, (row.get::<_, i64>(1)? as u64, row.get(2)?))))?;
    told.collect()
}

/// Most looks at one segment while its events are being deleted; in the last only its checksums and the order of its rows
/// count. 8: a choice; more would make a check beside steady deletions longer.
const LOOKS_MAX: u32 = 8;

/// After each transaction the check rests this many times as long as it took: a fifth of a core is its share.
pub(super) const REST: u32 = 4;

/// A check of the pages that had to give way is tried again so much later, and after twice as long each further time, up
/// to [`TRY_AGAIN_MAX`].
pub(super) const TRY_AGAIN: Duration = Duration::from_secs(1);
pub(super) const TRY_AGAIN_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::config::Config;
    use crate::event::{Event, Field, Filter, TimestampText};
    use crate::sim::random::Random;
    use crate::store::{Parts, Query, Receipt, Store, TypeStats, repair};
    use crate::wire::Batch;

    fn open(path: &Path) -> Result<(Store, Parts), crate::store::OpenError> {
        Store::open_parts(&Config::of_test(path))
    }

    fn append(store: &Store, parts: &mut Parts, numbers: std::ops::Range<u64>) {
        hand_in(store, numbers);
        settle(parts);
    }

    fn settle(parts: &mut Parts) {
        while parts.write() | parts.seal() {}
    }

    fn hand_in(store: &Store, numbers: std::ops::Range<u64>) {
        let types = Config::default().event_types;
        for n in numbers {
            let (session, user) = (format!("session-{}", n % 5), format!("user-{n}"));
            let event = Event {
                event_type: types.get(if n % 3 == 0 { "quiz_started" } else { "timer_tick" }).expect("built in"),
                source: "quiz.web",
                session_id: Some(&session),
                user_id: (n % 2 == 0).then_some(&user),
                payload: &format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(n as usize % 70)),
                idempotency_key: (n % 7 == 0).then_some(&user),
            };
            let mut batch = Batch::default();
            batch.push(&event, &types);
            store.try_append(batch, Receipt::new().0).expect("room");
        }
    }

    /// A file with sealed and open segments, keys, a durable subscription, and holes.
    fn filled(path: &Path) -> (Store, Parts) {
        let (store, mut parts) = open(path).expect("a new file");
        append(&store, &mut parts, 0..200);
        store.keep(Kept { name: "n".into(), filters: "{}".into(), position: Seq(7), last_seen: "then".into() });
        {
            let mut chosen = std::pin::pin!(store.delete_these(vec![Seq(40), Seq(41), Seq(101)]));
            let mut context = Context::from_waker(Waker::noop());
            assert!(chosen.as_mut().poll(&mut context).is_pending());
            while parts.write() {}
            assert_eq!(chosen.poll(&mut context), Poll::Ready(Ok(3)));
        }
        (store, parts)
    }

    /// Hands a deletion to the writer.
    fn begin<T>(deletion: impl Future<Output = T>) {
        let mut deletion = std::pin::pin!(deletion);
        assert!(deletion.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    /// Looks at every row of a file as its server does, and has something happen between two transactions.
    fn looked(store: &Store, mut between: impl FnMut(u64)) -> (Option<u64>, Vec<String>) {
        let mut found = Vec::new();
        let mut check = Check {
            source: &store.shared.readers,
            found: &mut |what| found.push(what),
            between: &mut |events| {
                between(events);
                ControlFlow::Continue(())
            },
        };
        let events = check.rows().expect("read");
        (events, found)
    }

    fn finish((store, parts): (Store, Parts)) {
        store.close();
        drop(parts.finish());
    }

    fn found(path: &Path) -> (Result<u64, CheckError>, Vec<String>) {
        let mut found = Vec::new();
        let events = check(path, |what| found.push(what), |_| {});
        (events, found)
    }

    /// What a client can read, and whether each reading came to its end.
    #[derive(Debug, PartialEq)]
    struct Told {
        /// Everything, and what the index finds of two sessions and a type.
        events: Vec<(Vec<String>, bool)>,
        rest: Option<(Vec<TypeStats>, Vec<Kept>)>,
    }

    fn told(store: &Store) -> Told {
        let sessions = ["session-1", "session-4"].map(|session| Filter::default().with(Field::Session, [session]));
        let filters = [Filter::default(), Filter::default().with_types(["quiz_started"])].into_iter().chain(sessions);
        let events = filters.map(|filter| {
            let mut events = Vec::new();
            let read = store.scan(&Query { filter, ..Query::default() }, |event| {
                let mut json = Vec::new();
                event.write_json(&mut json, &mut TimestampText::default());
                events.push(String::from_utf8(json).expect("UTF-8"));
                ControlFlow::Continue(())
            });
            (events, read.is_ok())
        });
        let events = events.collect();
        let stats = store.stats(Timestamp(i64::MAX / 2));
        let rest = stats.and_then(|stats| Ok((stats.by_type, store.kept_subscriptions()?)));
        Told { events, rest: rest.ok() }
    }

    #[test]
    fn a_file_that_is_whole_is_sound_and_a_repair_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, new) = (folder.path().join("a.db"), folder.path().join("b.db"));
        let parts = filled(&path);
        assert_eq!(found(&path), (Ok(197), vec![]), "while a server runs on it");
        finish(parts);
        assert_eq!(found(&path), (Ok(197), vec![]));
        let repaired = repair(&path, &new).expect("repaired");
        assert_eq!((repaired.events, repaired.missing, repaired.deleted), (197, 3, 3));
        assert_eq!((repaired.keys, repaired.subscriptions, repaired.damaged.len()), (29, 1, 0));
        assert_eq!(found(&new), (Ok(197), vec![]));
        let (before, after) = (open(&path).expect("whole").0, open(&new).expect("whole").0);
        assert_eq!(told(&before), told(&after));
        assert_ne!(before.epoch(), after.epoch());
        assert_eq!(before.committed(), after.committed());
    }

    #[test]
    fn no_transaction_looks_at_more_than_some_rows() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = open(&folder.path().join("a.db")).expect("a new file");
        let events = 3 * SEGMENT_EVENTS;
        append(&store, &mut parts, 0..events + 1);
        let mut came_to = vec![0];
        assert_eq!(looked(&store, |events| came_to.push(events)), (Some(events + 1), vec![]));
        let rows = EVENTS_PER_LOOK_AT_CLOCK as u64;
        assert!(came_to.is_sorted_by(|before, then| *then <= before + rows), "{came_to:?}");
        // Of a segment there are the types, the sessions, the users of every other event, and the source.
        let lists = 2 + 5 + SEGMENT_EVENTS / 2 + 1;
        // The last transaction for events, or for lists, finds no more of them, and keys there are few.
        let of_segment = (SEGMENT_EVENTS / rows + 1) + 1 + (lists / rows + 1);
        // The open segment has two, for its event and for its keys, and nothing comes behind the last of all.
        assert_eq!(came_to.len() as u64 - 1, 3 * of_segment + 1);
    }

    /// The time of the first event after a number.
    fn time_after(store: &Store, after: Seq) -> Option<Timestamp> {
        let mut time = None;
        let query = Query { after, ..Query::default() };
        let read = store.scan(&query, |event| {
            time = Some(event.time);
            ControlFlow::Break(())
        });
        read.map(|_| time).expect("read")
    }

    #[test]
    fn what_is_stored_sealed_and_deleted_during_a_check_is_no_damage() {
        let mut disturbed = 0;
        for seed in 0..60 {
            let mut random = Random(seed);
            let folder = tempfile::tempdir().expect("a folder");
            let (store, mut parts) = open(&folder.path().join("a.db")).expect("a new file");
            let mut next = 5 * SEGMENT_EVENTS + random.below(SEGMENT_EVENTS);
            hand_in(&store, 0..next);
            // The last segments are sealed meanwhile, or not at all.
            for _ in 0..random.below(60) {
                parts.write();
                parts.seal();
            }
            let mut came_to = 0;
            let (_, found) = looked(&store, |events| {
                disturbed += u64::from(events < came_to);
                came_to = events;
                for _ in 0..random.below(3) {
                    match random.below(20) {
                        0..=3 => {
                            let first = next;
                            next += random.below(5);
                            hand_in(&store, first..next);
                        }
                        4 | 5 => {
                            let near = random.below(next);
                            begin(store.delete_these(random.some(&[1, 2, 3, 9, 10].map(|n| Seq(near + n)), 2)));
                        }
                        6 => {
                            if let Some(time) = time_after(&store, Seq(random.below(events + 2))) {
                                begin(store.delete(Some(time), Filter::default()));
                            }
                        }
                        7 | 8 => _ = parts.seal(),
                        _ => _ = parts.write(),
                    }
                }
            });
            assert_eq!(found, Vec::<String>::new(), "seed {seed}");
            settle(&mut parts);
            let (events, found) = looked(&store, |_| {});
            assert_eq!((events, found), (Some(store.count(&Query::default()).expect("read")), vec![]), "seed {seed}");
        }
        assert!(disturbed > 0, "no segment was looked at again");
    }

    #[test]
    fn damage_is_told_once_however_often_a_look_at_its_segment_is_disturbed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.db");
        let (store, mut parts) = open(&path).expect("a new file");
        append(&store, &mut parts, 0..2 * SEGMENT_EVENTS);
        let damage = "UPDATE events SET checksum = checksum + 1 WHERE seq = 3;
            DELETE FROM events WHERE seq = 5;
            DELETE FROM event_index WHERE segment = 0 AND kind = 1 AND key = 'session-1'";
        schema::open_writer(&path).and_then(|file| file.execute_batch(damage)).expect("written");
        let (mut found_after, mut doomed) = (Vec::new(), Seq(SEGMENT_EVENTS));
        for last_disturbance in [0, 3, u64::MAX] {
            let mut transactions = 0_u64;
            let (_, mut found) = looked(&store, |_| {
                transactions += 1;
                // One in each look: the second transaction of a look finds that it is disturbed.
                if transactions <= last_disturbance && !transactions.is_multiple_of(2) {
                    doomed = doomed.prev();
                    begin(store.delete_these(vec![doomed]));
                    settle(&mut parts);
                }
            });
            assert_eq!(found.remove(0), "events: evt_000000000003 is damaged");
            found_after.push(found);
        }
        let unfit = |missing: u64, deleted: u64| {
            let id = Seq(1).id();
            [
                format!("events: {missing} are missing from {id} on in their segment, {deleted} were deleted"),
                "event_index: of segment 0 0 lists are wrong and 1 are missing".to_owned(),
            ]
        };
        assert_eq!(found_after[0], unfit(1, 0));
        assert_eq!(found_after[1], unfit(3, 2));
        // Every look was disturbed: the rows were held against their checksums, and that was all.
        assert_eq!(found_after[2], [""; 0]);
    }

    /// Writes a damaged copy, as if nothing had ever been beside it.
    fn put(copy: &Path, damaged: &[u8]) {
        for end in ["-wal", "-shm", ".lock"] {
            let _ = std::fs::remove_file(crate::store::files::beside(copy, end));
        }
        std::fs::write(copy, damaged).expect("written");
    }

    fn are_true(events: &[String], truth: &Told) -> bool {
        events.iter().all(|event| truth.events[0].0.contains(event))
    }

    #[test]
    fn no_flipped_bit_is_served_as_data_or_goes_unnoticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, copy) = (folder.path().join("a.db"), folder.path().join("copy.db"));
        finish(filled(&path));
        let whole = std::fs::read(&path).expect("a file");
        let before = told(&open(&path).expect("whole").0);
        let (mut noticed, mut harmless, mut refused) = (0, 0, 0);
        // A prime stride passes all places within a page; each bit has its turn.
        for (turn, at) in (0..whole.len()).step_by(61).enumerate() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (turn % 8);
            put(&copy, &damaged);
            let (checked, damage) = found(&copy);
            let is_noticed = checked.is_err() || !damage.is_empty();
            let after = match open(&copy) {
                Ok((store, _parts)) => told(&store),
                Err(_) => {
                    refused += 1;
                    continue;
                }
            };
            for (events, is_complete) in &after.events {
                assert!(are_true(events, &before), "byte {at}: an event that was never stored: {events:?}");
                assert!(*is_complete || is_noticed, "byte {at}: a reading fails and the check is content");
            }
            if is_noticed {
                noticed += 1;
            } else {
                harmless += 1;
                assert!(after == before, "byte {at}: something else is told and the check is content");
            }
        }
        println!("{noticed} noticed, {refused} not opened, {harmless} without effect");
        assert!(noticed > 100 && refused > 10, "most of so small a file is unused, but not all");
    }

    #[test]
    fn a_flipped_bit_in_the_definition_of_a_table_is_refused_or_noticed_or_without_effect() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, copy) = (folder.path().join("a.db"), folder.path().join("copy.db"));
        finish(filled(&path));
        let whole = std::fs::read(&path).expect("a file");
        let before = told(&open(&path).expect("whole").0);
        let new = folder.path().join("new.db");
        let (mut refused, mut saved, mut noticed, mut harmless) = (0, 0, 0, 0);
        // The first page holds nothing else, after a header of 100 bytes.
        for (turn, at) in (100..4_096).step_by(3).enumerate() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (turn % 8);
            let around = String::from_utf8_lossy(&damaged[at - 20..(at + 20).min(4_096)]).into_owned();
            put(&copy, &damaged);
            match open(&copy) {
                Err(crate::store::OpenError::Damaged(..)) => {
                    refused += 1;
                    let (checked, damage) = found(&copy);
                    assert!(checked.is_err() || !damage.is_empty(), "byte {at}: the check is content");
                    let _ = std::fs::remove_file(&new);
                    let repaired = repair(&copy, &new);
                    saved += usize::from(repaired.is_ok_and(|repaired| repaired.events == 197));
                }
                Err(error) => panic!("byte {at}, {around:?}: {error}"),
                // The root of a tree is only known to be wrong once all pages are held against each other.
                Ok((store, _parts)) if !found(&copy).1.is_empty() => {
                    noticed += 1;
                    for (events, _) in &told(&store).events {
                        assert!(
                            are_true(events, &before),
                            "byte {at}, {around:?}: an event that was never stored: {events:?}"
                        );
                    }
                }
                Ok((store, mut parts)) => {
                    harmless += 1;
                    assert!(told(&store) == before, "byte {at}, {around:?}: something else is told");
                    append(&store, &mut parts, 200..201);
                    finish((store, parts));
                }
            }
        }
        println!("{refused} refused ({saved} of them saved whole), {noticed} noticed, {harmless} without effect");
        // What is not is a page that SQLite cannot take apart, or has no number of the tree of events.
        assert!(refused > 100 && harmless > 100 && saved > refused * 9 / 10);
    }

    #[test]
    fn one_bad_time_among_events_without_checksums_costs_only_its_event() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.db");
        finish(filled(&path));
        let file = schema::open_writer(&path).expect("whole");
        // Up to number 100 as in a file from before format 3; one time is centuries late, one days, one early.
        meta::set(&file, meta::UNCHECKED_THROUGH, 100).expect("written");
        file.execute_batch(
            "UPDATE events SET checksum = NULL WHERE seq <= 100;
            UPDATE events SET time_us = time_us + (1 << 52) WHERE seq IN (50, 100);
            UPDATE events SET time_us = time_us + (1 << 40) WHERE seq = 60;
            UPDATE events SET time_us = time_us - (1 << 40) WHERE seq = 70;",
        )
        .expect("written");
        drop(file);
        let new = folder.path().join("new.db");
        let repaired = repair(&path, &new).expect("repaired");
        assert_eq!(repaired.damaged, [50, 60, 70, 100].map(|seq| Seq(seq).id().to_string()));
        assert_eq!((repaired.events, found(&new)), (193, (Ok(193), vec![])));
    }

    #[test]
    fn what_is_readable_of_a_damaged_file_is_saved() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, copy) = (folder.path().join("a.db"), folder.path().join("copy.db"));
        finish(filled(&path));
        let whole = std::fs::read(&path).expect("a file");
        let before = told(&open(&path).expect("whole").0);
        const ROOT: &str = "SELECT rootpage FROM sqlite_schema WHERE name = 'events'";
        let connection = schema::open_reader(&path).expect("whole");
        let root: i64 = connection.query_row(ROOT, [], |row| row.get(0)).expect("a table");
        for page in 1..whole.len() / 4_096 {
            // A page that was never written, as a disk may return it.
            let mut damaged = whole.clone();
            damaged[page * 4_096..(page + 1) * 4_096].fill(0);
            put(&copy, &damaged);
            let new = folder.path().join("new.db");
            for file in ["new.db", "new.db.lock"] {
                let _ = std::fs::remove_file(folder.path().join(file));
            }
            let repaired = match repair(&copy, &new) {
                Ok(repaired) => repaired,
                Err(error) => {
                    // Without the root no event is found.
                    assert!(page as i64 + 1 == root && !new.exists(), "page {page}: {error}");
                    continue;
                }
            };
            assert_eq!(found(&new), (Ok(repaired.events), vec![]), "page {page}");
            let (after, is_complete) = told(&open(&new).expect("whole").0).events.swap_remove(0);
            assert!(is_complete && are_true(&after, &before), "page {page}");
            // A leaf holds some twenty events.
            assert!(after.len() as u64 == repaired.events && after.len() >= 150, "page {page}: {}", after.len());
        }
    }

    #[test]
    fn damage_that_hides_other_figures_is_named_and_hides_no_damage() {
        const NO_TEXT: &str =
            "UPDATE event_stats SET event_type = CAST(X'F4' AS TEXT) WHERE event_type = 'quiz_started'";
        const ROOT: &str = "SELECT rootpage FROM sqlite_schema WHERE name = 'holes'";
        for (named, damage) in [("holes: ", ""), ("event_stats: ", NO_TEXT)] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("a.db");
            finish(filled(&path));
            let file = schema::open_writer(&path).expect("whole");
            file.execute_batch(&format!("UPDATE events SET payload = '[}}' WHERE seq = 3; {damage}")).expect("written");
            let root: u32 = file.query_row(ROOT, [], |row| row.get(0)).expect("a table");
            drop(file);
            if damage.is_empty() {
                let mut bytes = std::fs::read(&path).expect("a file");
                bytes[(root as usize - 1) * 4_096..root as usize * 4_096].fill(0);
                put(&path, &bytes);
            }
            let (events, damage) = found(&path);
            assert_eq!(events, Ok(196), "{damage:?}");
            // What SQLite says of a page comes before.
            let told = |of: &str| damage.iter().filter(|what| what.starts_with(of)).collect::<Vec<_>>();
            assert_eq!(told(named).len(), 1, "{damage:?}");
            assert_eq!(told("events: "), ["events: evt_000000000003 is damaged"]);

            let (store, _parts) = open(&path).expect("what is damaged is not needed");
            let stats = store.stats(Timestamp::now()).expect("the rest of it");
            let told = stats.by_type.iter().map(|of_type| &*of_type.event_type).collect::<Vec<_>>();
            assert_eq!(told.contains(&"quiz_started"), named == "holes: ", "{told:?}");
            assert!(told.contains(&"timer_tick"), "{told:?}");
            let damage = store.integrity().damage;
            assert!(damage.len() == 1 && damage[0].starts_with(named), "{damage:?}");
        }
    }
}
