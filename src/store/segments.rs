//! The segment index: for each segment of 65,536 consecutive events, the posting lists of the values of its events:
//! which of them have this type, session, user or source. The lists of the open segment grow in memory. The lists of a
//! full segment are encoded, sorted, and appended to `event_index`. There a list does not change, and is removed with
//! its last event. So every write is at the right edge of a tree, which an ordinary index on random keys cannot do.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use hashbrown::HashTable;
use rusqlite::Connection;

use super::checksum;
use super::schema::Text;
use crate::event::{Columns, Field, Filter, Seq, ValueHash};
use crate::wire::Batch;

/// Events of a segment. 65,536: an offset within a segment fits 16 bits, and its lists take a few MiB of memory.
#[cfg(not(test))]
pub const SEGMENT_EVENTS: u64 = 1 << 16;
/// Unit tests and the simulation go through many segments with few events. Tests with a real server have segments of
/// the real size.
#[cfg(test)]
pub const SEGMENT_EVENTS: u64 = 1 << 5;

/// The field that a posting list is about, as `event_index.kind` has it.
pub fn field_of(kind: i64) -> Option<Field> {
    Field::ALL.into_iter().find(|field| *field as i64 == kind)
}

/// The segment an event belongs to. Segment 0 begins with event 1.
pub fn segment_of(seq: Seq) -> u64 {
    (seq.0 - 1) / SEGMENT_EVENTS
}

/// The first event of a segment.
pub fn first_of(segment: u64) -> Seq {
    Seq(segment * SEGMENT_EVENTS + 1)
}

/// The offset of an event within its segment, from 0.
pub fn offset_of(seq: Seq) -> u16 {
    ((seq.0 - 1) % SEGMENT_EVENTS) as u16
}

/// The posting lists of one segment in memory.
#[derive(Debug)]
pub struct Segment {
    number: u64,
    /// By the number of the field.
    lists: [Lists; Field::ALL.len()],
}

/// The posting lists of one field.
#[derive(Debug, Default)]
struct Lists(HashTable<List>);

/// A posting list in memory, ascending.
#[derive(Debug)]
struct List {
    hash: ValueHash,
    value: Box<[u8]>,
    offsets: Vec<u16>,
}

impl Lists {
    #[inline]
    fn note(&mut self, value: &[u8], hash: ValueHash, offset: u16) {
        // Two values may have one hash, so the text decides. It is compared only where the hash is the same.
        match self.0.find_mut(hash.spread(), |list| list.hash == hash && *list.value == *value) {
            Some(list) => list.offsets.push(offset),
            None => self.begin(value, hash, offset),
        }
    }

    #[cold]
    fn begin(&mut self, value: &[u8], hash: ValueHash, offset: u16) {
        // An allocator gives out 8 bytes at least, which hold four offsets.
        let mut offsets = Vec::with_capacity(4);
        offsets.push(offset);
        let list = List { hash, value: value.into(), offsets };
        self.0.insert_unique(hash.spread(), list, |list| list.hash.spread());
    }
}

impl Segment {
    pub fn new(number: u64) -> Self {
        Self { number, lists: Default::default() }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// Notes one event of this segment. Events come in order.
    pub fn note(&mut self, seq: Seq, event: &Columns<'_>) {
        for field in Field::ALL {
            if let Some(value) = event.field(field) {
                self.lists[field as usize].note(value, ValueHash::of(value), offset_of(seq));
            }
        }
    }

    /// Notes these events of a batch, which are all of this segment; the first has the number `first`. They are noted field
    /// by field: look-ups in one table that do not depend on each other wait for memory together.
    fn note_run(&mut self, first: Seq, batch: &Batch, events: Range<usize>) {
        for (field, lists) in Field::ALL.into_iter().zip(&mut self.lists) {
            for (index, offset) in events.clone().zip(usize::from(offset_of(first))..) {
                if let Some((value, hash)) = batch.field(index, field) {
                    lists.note(value, hash, offset as u16);
                }
            }
        }
    }

    pub fn list(&self, field: Field, value: &[u8]) -> Option<&[u16]> {
        let list = self.lists[field as usize].0.find(ValueHash::of(value).spread(), |list| *list.value == *value);
        list.map(|list| &*list.offsets)
    }

    /// The lists of a field, each with its value.
    pub fn lists_of(&self, field: Field) -> impl Iterator<Item = (&[u8], &[u16])> {
        self.lists[field as usize].0.iter().map(|list| (&*list.value, &*list.offsets))
    }

    /// How many lists there are.
    pub fn lists(&self) -> usize {
        self.lists.iter().map(|lists| lists.0.len()).sum()
    }

    /// Every list as a row of `event_index`, in the order of its primary key. Costs a sort of all values: some 50 ms
    /// for 65,536 of them, so the writer's thread must not do it.
    pub fn rows(&self) -> Vec<IndexRow> {
        let mut rows = Vec::with_capacity(self.lists());
        for field in Field::ALL {
            let mut lists: Vec<_> = self.lists_of(field).collect();
            lists.sort_unstable_by_key(|(value, _)| *value);
            rows.extend(lists.into_iter().map(|(value, list)| {
                let offsets = encode(list);
                let checksum = checksum::of_list(self.number as i64, field as i64, value, &offsets);
                IndexRow { field, key: value.into(), offsets, checksum }
            }));
        }
        rows
    }
}

/// A row of `event_index`.
#[derive(Debug)]
pub struct IndexRow {
    pub field: Field,
    pub key: Box<[u8]>,
    pub offsets: Vec<u8>,
    pub checksum: i32,
}

/// Stores rows of a segment in `event_index`.
pub fn store<'r>(
    connection: &Connection,
    segment: u64,
    rows: impl IntoIterator<Item = &'r IndexRow>,
) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO event_index (segment, kind, key, offsets, checksum) VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut insert = connection.prepare_cached(SQL)?;
    for IndexRow { field, key, offsets, checksum } in rows {
        insert.raw_bind_parameter(1, segment as i64)?;
        insert.raw_bind_parameter(2, *field as i64)?;
        insert.raw_bind_parameter(3, Text(Some(key)))?;
        insert.raw_bind_parameter(4, offsets)?;
        insert.raw_bind_parameter(5, checksum)?;
        insert.raw_execute()?;
    }
    Ok(())
}

/// The segments whose lists are in memory: the open one, and full ones until their last row is committed.
#[derive(Debug)]
pub struct Recent {
    pub open: Segment,
    pub full: Vec<Arc<Segment>>,
}

impl Recent {
    /// Notes an event that was read back.
    pub fn note(&mut self, seq: Seq, event: &Columns<'_>) {
        self.open_for(seq);
        self.open.note(seq, event);
    }

    /// Notes a new batch, whose first event has the number `first`. Each segment that is full then goes to `filled`.
    pub fn note_batch(&mut self, first: Seq, batch: &Batch, mut filled: impl FnMut(Arc<Segment>)) {
        let mut from = 0;
        while from < batch.len() {
            let seq = first.plus(from);
            if let Some(full) = self.open_for(seq) {
                filled(full);
            }
            let left = SEGMENT_EVENTS as usize - usize::from(offset_of(seq));
            let events = from..batch.len().min(from + left);
            from = events.end;
            self.open.note_run(seq, batch, events);
        }
    }

    /// Opens the segment of an event, unless it is open. The segment before, now full, is returned.
    fn open_for(&mut self, seq: Seq) -> Option<Arc<Segment>> {
        let number = segment_of(seq);
        (number != self.open.number).then(|| {
            assert!(number > self.open.number, "no event is added to a full segment");
            let full = Arc::new(std::mem::replace(&mut self.open, Segment::new(number)));
            self.full.push(full.clone());
            full
        })
    }

    /// A segment, if it is in memory.
    pub fn segment(&self, number: u64) -> Option<&Segment> {
        self.full.iter().map(|full| &**full).chain([&self.open]).find(|segment| segment.number == number)
    }

    /// The oldest segment in memory; all before it are in the table.
    pub fn lowest(&self) -> u64 {
        self.full.first().map_or(self.open.number, |full| full.number)
    }

    /// The offsets that pass a filter, for every segment in memory; see [`select`].
    pub fn select(&self, filter: &Filter) -> Vec<(u64, Vec<u16>)> {
        let all = self.full.iter().map(|s| &**s).chain([&self.open]);
        all.map(|segment| {
            let lists = |field, key: &str| -> Result<_, std::convert::Infallible> {
                Ok(segment.list(field, key.as_bytes()).map(<[u16]>::to_vec))
            };
            let Ok(offsets) = select(filter, lists);
            (segment.number, offsets)
        })
        .collect()
    }
}

/// The offsets within one segment whose events have the field values that a filter names, ascending. The filter must
/// name some. `list` finds the list of a value. The fields with the rarest values come first: a segment that has no
/// event of the session costs one look-up.
pub fn select<E>(
    filter: &Filter,
    mut list: impl FnMut(Field, &str) -> Result<Option<Vec<u16>>, E>,
) -> Result<Vec<u16>, E> {
    const BY_RARITY: [Field; 4] = [Field::Session, Field::User, Field::Source, Field::Type];
    let mut passing: Option<Vec<u16>> = None;
    for (field, wanted) in BY_RARITY.into_iter().filter_map(|field| Some((field, filter.wanted(field)?))) {
        let mut found = Vec::new();
        for key in wanted {
            found.extend(list(field, key)?.unwrap_or_default());
        }
        if wanted.len() > 1 {
            // An event has one value of a field, so the lists share no offset.
            found.sort_unstable();
        }
        let both = passing.map_or_else(|| found.clone(), |passing| intersect(&passing, &found));
        if both.is_empty() {
            return Ok(both);
        }
        passing = Some(both);
    }
    Ok(passing.unwrap_or_default())
}

/// The offsets that are in both ascending lists. Those of the short list are looked up in the long one.
fn intersect(a: &[u16], b: &[u16]) -> Vec<u16> {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let mut rest = long;
    let mut both = Vec::new();
    for offset in short {
        rest = &rest[rest.partition_point(|o| o < offset)..];
        if rest.first() == Some(offset) {
            both.push(*offset);
        }
    }
    both
}

/// First byte of a list whose gaps follow as LEB128 varints, the first counted from -1.
const GAPS: u8 = 0;
/// First byte of a list that follows as a bitmap of the whole segment, lowest bit first.
const BITMAP: u8 = 1;
const BITMAP_LEN: usize = (1 << 16) / 8;

/// The blob of `event_index.offsets`. A list with more offsets than the bitmap has bytes becomes a bitmap: its gaps
/// would be longer.
pub fn encode(offsets: &[u16]) -> Vec<u8> {
    if offsets.len() > BITMAP_LEN {
        let mut blob = vec![0; 1 + BITMAP_LEN];
        blob[0] = BITMAP;
        for &offset in offsets {
            blob[1 + usize::from(offset) / 8] |= 1 << (offset % 8);
        }
        return blob;
    }
    let mut blob = Vec::with_capacity(1 + offsets.len() * 2);
    blob.push(GAPS);
    let mut last = -1;
    for &offset in offsets {
        let mut gap = (i32::from(offset) - last - 1) as u32;
        last = i32::from(offset);
        while gap >= 0x80 {
            blob.push(gap as u8 | 0x80);
            gap >>= 7;
        }
        blob.push(gap as u8);
    }
    blob
}

/// The offsets of a blob, or `None` when it is not one that `encode` made.
pub fn decode(blob: &[u8]) -> Option<Vec<u16>> {
    match blob.split_first()? {
        (&GAPS, mut rest) => {
            let mut offsets = Vec::with_capacity(rest.len());
            let mut next = 0u32;
            while !rest.is_empty() {
                let (mut gap, mut shift) = (0u32, 0);
                loop {
                    let (&byte, tail) = rest.split_first()?;
                    rest = tail;
                    gap |= u32::from(byte & 0x7f) << shift;
                    shift += 7;
                    if byte < 0x80 {
                        break;
                    }
                    if shift > 14 {
                        return None;
                    }
                }
                let offset = u16::try_from(next + gap).ok()?;
                offsets.push(offset);
                next = u32::from(offset) + 1;
            }
            Some(offsets)
        }
        (&BITMAP, bits) if bits.len() == BITMAP_LEN => {
            let set =
                |at: usize| (0..8u16).filter(move |bit| bits[at] & 1 << bit != 0).map(move |bit| at as u16 * 8 + bit);
            Some((0..BITMAP_LEN).flat_map(set).collect())
        }
        _ => None,
    }
}

/// How many offsets of a blob are in a range and no holes, or `None` when it is not one that `encode` made. A bitmap is
/// counted byte by byte, in about 5 µs; decoding it takes 100 µs.
pub fn count(blob: &[u8], range: &RangeInclusive<u16>, holes: &[u16]) -> Option<u64> {
    match blob.split_first()? {
        (&BITMAP, bits) if bits.len() == BITMAP_LEN => {
            let set_before = |end: usize| {
                let whole: u64 = bits[..end / 8].iter().map(|byte| u64::from(byte.count_ones())).sum();
                let rest = bits.get(end / 8).map_or(0, |byte| byte & ((1 << (end % 8)) - 1));
                whole + u64::from(rest.count_ones())
            };
            let is_set = |offset: u16| bits[usize::from(offset) / 8] & 1 << (offset % 8) != 0;
            let set = set_before(usize::from(*range.end()) + 1) - set_before(usize::from(*range.start()));
            Some(set - holes.iter().filter(|hole| range.contains(hole) && is_set(**hole)).count() as u64)
        }
        _ => decode(blob).map(|list| count_in(&list, range, holes)),
    }
}

/// How many offsets of a list are in a range and no holes.
pub fn count_in(list: &[u16], range: &RangeInclusive<u16>, holes: &[u16]) -> u64 {
    list.iter().filter(|offset| range.contains(offset) && holes.binary_search(offset).is_err()).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn check(offsets: &[u16]) {
        assert_eq!(decode(&encode(offsets)).as_deref(), Some(offsets));
    }

    #[test]
    fn encoding_and_decoding_gives_the_same_list_at_every_density() {
        check(&[]);
        check(&[0]);
        check(&[u16::MAX]);
        check(&[0, 1, 128, 129, 300, 20_000, u16::MAX]);
        check(&(0..=u16::MAX).collect::<Vec<_>>());
        check(&(0..BITMAP_LEN as u16).collect::<Vec<_>>());
        check(&(0..=BITMAP_LEN as u16).collect::<Vec<_>>());
    }

    #[test]
    fn a_segment_ends_where_the_next_begins() {
        let last = Seq(SEGMENT_EVENTS);
        assert_eq!((segment_of(Seq(1)), segment_of(last), segment_of(last.next())), (0, 0, 1));
        assert_eq!((first_of(0), first_of(1)), (Seq(1), last.next()));
        assert_eq!((offset_of(last), offset_of(last.next())), ((SEGMENT_EVENTS - 1) as u16, 0));
    }

    proptest! {
        #[test]
        fn encoding_and_decoding_gives_the_same_list(offsets: BTreeSet<u16>) {
            check(&offsets.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_bytes_decode_to_an_ascending_list_or_nothing(blob: Vec<u8>) {
            if let Some(offsets) = decode(&blob) {
                prop_assert!(offsets.is_sorted_by(|a, b| a < b));
            }
        }

        #[test]
        fn counting_a_blob_gives_the_same_as_counting_its_decoded_list(
            offsets: BTreeSet<u16>, is_dense: bool, holes: BTreeSet<u16>, start: u16, end: u16,
        ) {
            let all = (0..=u16::MAX).filter(|offset| !offsets.contains(offset));
            let list: Vec<u16> = if is_dense { all.collect() } else { offsets.iter().copied().collect() };
            let want = list.iter().filter(|offset| (start..=end).contains(offset) && !holes.contains(offset)).count();
            let holes: Vec<u16> = holes.into_iter().collect();
            prop_assume!(start <= end);
            prop_assert_eq!(count(&encode(&list), &(start..=end), &holes), Some(want as u64));
        }

        #[test]
        fn intersecting_lists_gives_the_same_as_intersecting_sets(a: BTreeSet<u8>, b: BTreeSet<u8>) {
            let list = |s: &BTreeSet<u8>| s.iter().map(|&o| u16::from(o)).collect::<Vec<_>>();
            let want: Vec<u16> = a.intersection(&b).map(|&o| u16::from(o)).collect();
            prop_assert_eq!(intersect(&list(&a), &list(&b)), want);
        }
    }
}
