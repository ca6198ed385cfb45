//! Pages: what a feed reads from storage in one read.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::event::{Filter, Seq};
use crate::store::{self, Order, Query, Reader};
use crate::wire::batch::StoredText;
use crate::wire::committed::Committed;
use crate::wire::{Batch, StoredEvent};

/// A page ends with the event that brings it to this size. The size is large enough that a read's fixed cost does not
/// count, and small enough that no reader keeps the write-ahead log from starting over for long.
pub(crate) const PAGE_BYTES: usize = if cfg!(test) { 1 << 10 } else { 256 << 10 };

/// What a feed needs from storage.
#[derive(Debug, Clone)]
pub enum PageRequest {
    /// The events that pass the filter, after the first number and up to the second.
    Events(Filter, Seq, Seq),
    /// The number of these events.
    Count(Filter, Seq, Seq),
    /// The events with these numbers, which ascend.
    Numbers(Vec<Seq>),
}

/// A page that was read.
#[derive(Debug)]
pub struct Page {
    pub(super) events: Option<Arc<Committed>>,
    pub(super) count: u64,
    /// The page has everything of its request up to this event.
    pub(super) reached: Seq,
}

impl PageRequest {
    /// Reads the page. Blocks.
    pub fn read(&self, reader: &Reader) -> store::Result<Page> {
        let (mut batch, mut seqs, mut text, mut bytes) = (Batch::default(), Vec::new(), StoredText::default(), 0);
        let mut push = |event: StoredEvent<'_>| {
            bytes += batch.push_stored(&event, &mut text);
            seqs.push(event.seq);
            if bytes < PAGE_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let (stopped_at, requested, count) = match self {
            Self::Events(filter, after, through) => {
                (reader.scan_some(&between(filter, *after, *through), &mut push)?, *through, 0)
            }
            Self::Count(filter, after, through) => (None, *through, reader.count(&between(filter, *after, *through))?),
            Self::Numbers(seqs) => {
                (reader.scan_these(seqs, &mut push)?, *seqs.last().expect("a request has a number"), 0)
            }
        };
        let events = (!batch.is_empty()).then(|| Arc::new(batch.read_back(seqs)));
        Ok(Page { events, count, reached: stopped_at.unwrap_or(requested) })
    }
}

/// The query for the events that pass the filter, after one number and up to another.
fn between(filter: &Filter, after: Seq, through: Seq) -> Query {
    let (filter, before) = (filter.clone(), Some(through.next()));
    Query { filter, after, before, order: Order::OldestFirst, ..Query::default() }
}
