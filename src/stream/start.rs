//! Where a subscription starts and ends in the record.

use std::ops::ControlFlow;

use crate::event::{Seq, Timestamp};
use crate::record::Gap;
use crate::store::{self, Order, Query, Reader};
use crate::wire::note::Opening;
use crate::wire::request::{Start, Subscribe};

/// Where a subscription starts and ends.
pub(super) struct Found {
    /// The stream begins after this event.
    pub(super) after: Seq,
    /// The stream ends with this event, if the subscriber has set an end.
    pub(super) last: Option<Seq>,
    pub(super) snapshot: Vec<Seq>,
    pub(super) opening: Opening,
}

/// Most events of a snapshot: their numbers are found and held in memory before the first event is sent.
const SNAPSHOT_EVENTS_MAX: usize = 100_000;

/// Finds the start that a subscriber asked for. The inner error says in words for the client why there is none. Blocks.
pub(super) fn find(reader: &Reader, request: &Subscribe) -> store::Result<Result<Found, String>> {
    let extent = reader.extent()?;
    let (newest, filter) = (extent.newest, &request.filters.filter);
    let mut gap = None;
    let after = match &request.start {
        Start::Now => newest,
        Start::Since(time) => reader.before_time(*time)?,
        Start::Last(count) => reader.before_last(filter, *count, newest)?,
        Start::Position(confirmed) => {
            gap = Gap::deleted_after(*confirmed, &extent);
            *confirmed
        }
        Start::After(id) => {
            let Some(cursor) = reader.seq_of(id)? else { return Ok(Err("'after' is not an event id".to_owned())) };
            gap = Gap::after(id, cursor, request.epoch.as_deref(), &extent);
            match gap {
                // The id is from another epoch, so the events after it are not known.
                Some(Gap::Unknown(_)) => newest,
                _ => cursor,
            }
        }
    };
    let last = match request.until {
        None => None,
        Some(until) => Some(last_before(reader, until, newest)?),
    };
    let snapshot = match request.snapshot {
        None => Vec::new(),
        Some(field) => reader.latest_by(field, filter, newest, SNAPSHOT_EVENTS_MAX)?,
    };
    let opening = Opening { retained: extent, gap };
    Ok(Ok(Found { after, last, snapshot, opening }))
}

/// The last stored event before a time.
fn last_before(reader: &Reader, until: Timestamp, newest: Seq) -> store::Result<Seq> {
    let query =
        Query { until: Some(until), before: Some(newest.next()), order: Order::NewestFirst, ..Query::default() };
    let mut last = Seq::ZERO;
    reader.scan(&query, |event| {
        last = event.seq;
        ControlFlow::Break(())
    })?;
    Ok(last)
}
