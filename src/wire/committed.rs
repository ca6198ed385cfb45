//! Batches on disk, and what is shared of them: runs of neighbouring events, and the commits that the store hands on.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::event_json::SKELETON;
use super::row::Row;
use crate::event::{Columns, Seq, Timestamp};

/// A batch on disk: its events are numbered, and all subscribers share its bytes.
#[derive(Debug)]
pub struct Committed {
    pub(super) seqs: Seqs,
    pub(super) frames: Bytes,
    pub(super) decoded: Vec<u8>,
    pub(super) rows: Vec<Row>,
}

/// The numbers of a batch's events.
#[derive(Debug)]
pub(super) enum Seqs {
    /// Just committed: this one and those that follow it.
    From(Seq),
    /// Read back through a filter.
    Each(Vec<Seq>),
}

impl Committed {
    /// The number of the first event. A batch that was read back must have one.
    pub fn first(&self) -> Seq {
        self.seq(0)
    }

    /// The number of an event. Those of a batch just committed follow each other without a gap.
    pub fn seq(&self, index: usize) -> Seq {
        match &self.seqs {
            Seqs::From(first) => first.plus(index),
            Seqs::Each(seqs) => seqs[index],
        }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The WebSocket frames of all events, one after the other.
    pub fn frames(&self) -> Bytes {
        self.frames.clone()
    }

    /// The WebSocket frames of the events `from..to`.
    pub fn frames_between(&self, from: usize, to: usize) -> Bytes {
        self.frames.slice(self.frames_range(from, to))
    }

    fn frames_range(&self, from: usize, to: usize) -> Range<usize> {
        let start = from.checked_sub(1).map_or(0, |before| self.rows[before].end as usize);
        start..self.rows[to - 1].end as usize
    }

    /// The event itself, as JSON.
    pub fn json(&self, index: usize) -> Bytes {
        let row = &self.rows[index];
        self.frames.slice(row.json as usize..row.end as usize)
    }

    /// When the event was stored.
    pub fn time(&self, index: usize) -> Timestamp {
        let end = self.rows[index].end as usize - SKELETON[7].len();
        let text = std::str::from_utf8(&self.frames[end - Timestamp::LEN..end]).expect("digits are ASCII");
        Timestamp::parse_floor(text).expect("the writer spells times")
    }

    #[inline]
    pub fn columns(&self, index: usize) -> Columns<'_> {
        self.rows[index].columns(&self.frames, &self.decoded)
    }
}

/// Neighbouring events of a batch, shared by all subscribers that get them.
#[derive(Debug, Clone)]
pub struct Run {
    batch: Arc<Committed>,
    from: u32,
    to: u32,
}

impl Run {
    /// The events `from..to`, at least one.
    pub fn new(batch: Arc<Committed>, from: usize, to: usize) -> Self {
        debug_assert!(from < to && to <= batch.len());
        Self { batch, from: from as u32, to: to as u32 }
    }

    /// All events of a batch that has any.
    pub fn whole(batch: Arc<Committed>) -> Self {
        let len = batch.len();
        Self::new(batch, 0, len)
    }

    /// Their WebSocket frames.
    pub fn frames(&self) -> Bytes {
        self.batch.frames_between(self.from as usize, self.to as usize)
    }

    pub fn batch(&self) -> &Arc<Committed> {
        &self.batch
    }

    /// Their indexes in the batch.
    pub fn range(&self) -> Range<usize> {
        self.from as usize..self.to as usize
    }

    /// Bytes of their frames.
    pub fn bytes(&self) -> usize {
        self.batch.frames_range(self.from as usize, self.to as usize).len()
    }

    /// Whether the event with the index `next` in `batch` follows the last event of the run.
    pub fn is_before(&self, batch: &Arc<Committed>, next: usize) -> bool {
        Arc::ptr_eq(&self.batch, batch) && self.to as usize == next
    }

    /// Makes the run longer: it ends before `to` then.
    pub fn extend(&mut self, to: usize) {
        debug_assert!((self.to as usize) < to && to <= self.batch.len());
        self.to = to as u32;
    }
}

/// The batches of one transaction, in order: what the store hands on to the fan-out.
#[derive(Debug)]
pub struct Commit {
    pub batches: Vec<Arc<Committed>>,
    /// The number of the last event. Everything up to it is stored.
    pub through: Seq,
}

impl Commit {
    /// Bytes of its events' frames.
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(|batch| batch.frames.len()).sum()
    }
}
