//! One subscriber's way through the record: history from storage, then live, with no gap and no repeat.
//!
//! A feed has a position: everything up to it that passes the filter was handed out, nothing after it
//! was. It reads pages from storage until it is near the end of the record, registers with the hub,
//! *then* looks how far the record has come, reads up to there, and goes on with what the hub delivers,
//! skipping what it has read. In this order nothing can fall between: an event stored before the look
//! is read, one stored after it is delivered. A subscriber too slow for the live stream loses its
//! outbox and starts again from its position.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::event::{Filter, Seq};
use crate::hub::{Delivery, Hub, Registration};
use crate::outbox::Taken;
use crate::store::{Order, Query, Store};

/// A page ends with the event that brings it to this size: large enough that a read's fixed cost does
/// not count, small enough that no reader keeps the log from starting over for long.
pub(crate) const PAGE_BYTES: usize = if cfg!(test) { 1 << 10 } else { 256 << 10 };

/// With fewer events than this between a feed and the end of the record it joins the live stream and
/// reads the rest with deliveries already coming in.
const JOIN_DISTANCE: u64 = if cfg!(test) { 16 } else { 4_096 };

/// A subscriber's stream of frames.
#[derive(Debug)]
pub struct Feed {
    store: Store,
    hub: Arc<Hub>,
    filter: Filter,
    pub(crate) position: Seq,
    stage: Stage,
    /// Filters to be changed to, and the last event that the present one is for.
    changes: VecDeque<(Filter, Seq)>,
    taken: Vec<Delivery>,
}

#[derive(Debug)]
enum Stage {
    /// Far from the end, or not yet begun.
    History,
    /// Registered; how far to read before the deliveries take over is not known yet.
    Registered(Registration),
    /// Reading up to and including this event, with deliveries coming in behind it.
    Joining(Registration, Seq),
    Live(Registration),
}

/// What a feed hands out.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// WebSocket frames, whole ones in order.
    Frames(Vec<Bytes>),
    /// Everything for the former filter was handed out; what follows passes the new one.
    FilterChanged,
    /// The server is shutting down and everything was handed out.
    End,
}

/// What a feed has to do next.
#[derive(Debug)]
pub enum Step {
    /// Read this page, which blocks, and hand it to [`Feed::page_read`].
    Read(PageRequest),
    /// Hand this out.
    Give(Chunk),
    /// Wait for the hub: [`Feed::wait`].
    Wait,
    /// Call again.
    Again,
}

/// Events to be read from storage, rendered as frames.
#[derive(Debug, Clone)]
pub struct PageRequest {
    filter: Filter,
    after: Seq,
    through: Seq,
}

/// A page that was read.
#[derive(Debug)]
pub struct Page {
    frames: Vec<u8>,
    reached: Seq,
}

impl PageRequest {
    /// Reads the page. Blocks.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn read(&self, store: &Store) -> rusqlite::Result<Page> {
        let query = Query {
            filter: self.filter.clone(),
            after: self.after,
            before: Some(self.through.next()),
            order: Order::OldestFirst,
            ..Query::default()
        };
        let (mut frames, mut scratch) = (Vec::new(), Vec::new());
        let broken_off = store.scan(&query, |event| {
            event.write_frame(&mut frames, &mut scratch);
            if frames.len() < PAGE_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(Page { frames, reached: broken_off.unwrap_or(self.through) })
    }
}

impl Feed {
    /// A feed of the events after `position`.
    pub fn new(store: Store, hub: Arc<Hub>, filter: Filter, position: Seq) -> Self {
        Self { store, hub, filter, position, stage: Stage::History, changes: VecDeque::new(), taken: Vec::new() }
    }

    /// After the event `last`, or what was handed out already if that is more, the feed is for `filter`;
    /// up to it, for the present one. [`Chunk::FilterChanged`] marks the place.
    pub fn change_filter(&mut self, filter: Filter, last: Seq) {
        self.changes.push_back((filter, last));
        // What the hub delivers may pass that place; storage is read exactly up to it.
        self.stage = Stage::History;
        self.taken.clear();
    }

    /// The next chunk. Cancel-safe: what was not handed out comes again.
    ///
    /// # Errors
    /// What SQLite reports.
    pub async fn next(&mut self) -> rusqlite::Result<Chunk> {
        loop {
            match self.step() {
                Step::Give(chunk) => return Ok(chunk),
                Step::Again => {}
                Step::Wait => self.wait().await,
                Step::Read(request) => {
                    let store = self.store.clone();
                    let read = tokio::task::spawn_blocking(move || request.read(&store)).await;
                    let page = read.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))?;
                    if let Some(chunk) = self.page_read(page) {
                        return Ok(chunk);
                    }
                }
            }
        }
    }

    /// One step; each looks at or changes at most one thing that others change too, so that a test can
    /// interleave them with everything else.
    pub fn step(&mut self) -> Step {
        if let Some((_, last)) = self.changes.front() {
            if self.position < *last {
                return self.read_through(*last);
            }
            let (filter, last) = self.changes.pop_front().expect("just looked at");
            (self.filter, self.position) = (filter, self.position.max(last));
            return Step::Give(Chunk::FilterChanged);
        }
        match std::mem::replace(&mut self.stage, Stage::History) {
            Stage::History => {
                let end = self.store.committed();
                if end.0.saturating_sub(self.position.0) > JOIN_DISTANCE {
                    return self.read_through(end);
                }
                self.stage = Stage::Registered(self.hub.register(&self.filter));
                Step::Again
            }
            Stage::Registered(registration) => {
                self.stage = Stage::Joining(registration, self.store.committed());
                Step::Again
            }
            Stage::Joining(registration, through) if self.position < through => {
                self.stage = Stage::Joining(registration, through);
                self.read_through(through)
            }
            Stage::Joining(registration, _) => {
                self.stage = Stage::Live(registration);
                Step::Again
            }
            Stage::Live(registration) => {
                let outcome = match self.taken.is_empty() {
                    true => registration.outbox().try_take(&mut self.taken),
                    false => Some(Taken::Items),
                };
                match outcome {
                    None => {
                        self.stage = Stage::Live(registration);
                        Step::Wait
                    }
                    // The registration is dropped; storage has what the outbox lost.
                    Some(Taken::Overflowed) => Step::Again,
                    Some(Taken::Closed) => {
                        self.stage = Stage::Live(registration);
                        Step::Give(Chunk::End)
                    }
                    Some(Taken::Items) => {
                        let position = self.position;
                        self.taken.retain(|delivery| delivery.through > position);
                        self.stage = match self.taken.first() {
                            // Its beginning was read from storage, and so its end is too.
                            Some(first) if first.after < position => {
                                Stage::Joining(registration, self.taken.remove(0).through)
                            }
                            _ => Stage::Live(registration),
                        };
                        self.give_taken()
                    }
                }
            }
        }
    }

    /// Waits until the hub has something. Cancel-safe.
    pub async fn wait(&mut self) {
        if let Stage::Live(registration) = &self.stage {
            // What ends the stream stays visible to the next step.
            registration.outbox().take(&mut self.taken).await;
        }
    }

    /// Takes note of a page that was read.
    pub fn page_read(&mut self, page: Page) -> Option<Chunk> {
        self.position = self.position.max(page.reached);
        (!page.frames.is_empty()).then(|| Chunk::Frames(vec![page.frames.into()]))
    }

    fn read_through(&self, through: Seq) -> Step {
        Step::Read(PageRequest { filter: self.filter.clone(), after: self.position, through })
    }

    fn give_taken(&mut self) -> Step {
        let Stage::Live(_) = self.stage else { return Step::Again };
        let Some(last) = self.taken.last() else { return Step::Again };
        self.position = last.through;
        Step::Give(Chunk::Frames(self.taken.drain(..).flat_map(|delivery| delivery.frames.to_vec()).collect()))
    }
}
