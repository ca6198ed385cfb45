//! One subscriber's way through the record: history from storage, then live, with no gap and no repeat.
//!
//! A feed has a position: everything up to it that passes the filter was handed out, nothing after it
//! was. It reads pages from storage until it is near the end of the record, registers with the hub,
//! *then* looks how far the record has come, reads up to there, and goes on with what the hub delivers,
//! skipping what it has read. In this order nothing can fall between: an event stored before the look
//! is read, one stored after it is delivered. A subscriber too slow for the live stream loses its
//! outbox; then its [`OnLag`] decides.
//!
//! A [`Stream`] is a feed with what its subscriber asked for besides: where to start, a film's rhythm,
//! only the latest of each key.

mod conflate;
mod film;
mod stream;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

pub use stream::{Said, Stream};

use crate::event::{Filter, Seq};
use crate::hub::{Delivery, Hub, Registration};
use crate::outbox::Taken;
use crate::store::{self, Order, Query, Reader, Reading, Store};
use crate::wire::Batch;
use crate::wire::batch::StoredText;
use crate::wire::committed::{Committed, Run};
use crate::wire::request::OnLag;

/// A page ends with the event that brings it to this size: large enough that a read's fixed cost does
/// not count, small enough that no reader keeps the log from starting over for long.
pub(crate) const PAGE_BYTES: usize = if cfg!(test) { 1 << 10 } else { 256 << 10 };

/// With fewer events than this between a feed and the end of the record it joins the live stream and
/// reads the rest with deliveries already coming in.
const JOIN_DISTANCE: u64 = if cfg!(test) { 16 } else { 4_096 };

/// A subscriber's stream of events.
#[derive(Debug)]
pub struct Feed {
    store: Store,
    hub: Arc<Hub>,
    filter: Filter,
    on_lag: OnLag,
    pub(crate) position: Seq,
    /// Events to be handed out first, whatever the position: a snapshot.
    first: VecDeque<Seq>,
    /// The event with which it ends, if it does.
    last: Option<Seq>,
    /// Storage serves it, and it is to be told once the live stream does.
    is_behind: bool,
    stage: Stage,
    /// Filters to be changed to, and the last event that the present one is for.
    changes: VecDeque<(Filter, Seq)>,
    taken: Vec<Delivery>,
    /// A page on its way. Who waits for it may turn to something else many times before it is there.
    reading: Option<Reading<Page>>,
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
    /// Too slow: what lies up to the end of the record is going to be left out.
    Leaving(Option<Registration>),
    /// Counting what is left out, up to and including this event, with deliveries coming in behind it.
    Counting(Registration, Seq),
    /// Too slow, and that was the end.
    TooSlow,
}

/// What a feed hands out.
#[derive(Debug)]
pub enum Chunk {
    /// Events, in order.
    Events(Vec<Run>),
    /// Everything for the former filter was handed out; what follows passes the new one.
    FilterChanged,
    /// The subscriber was too slow: storage serves it from its position on.
    FellBehind,
    /// History is over: what follows is live.
    CaughtUp,
    /// The subscriber was too slow: so many events up to and including this one are left out.
    Lagged { missed: u64, last: Seq },
    /// The subscriber was too slow, and asked to be told by the end of the stream.
    TooSlow,
    /// The event that was to be the last has been handed out.
    Complete,
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

/// What is to be read from storage.
#[derive(Debug, Clone)]
pub enum PageRequest {
    /// The events that pass, after the first number and up to the second.
    Events(Filter, Seq, Seq),
    /// How many these are.
    Count(Filter, Seq, Seq),
    /// The events of these numbers, ascending.
    These(Vec<Seq>),
}

/// A page that was read.
#[derive(Debug)]
pub struct Page {
    events: Option<Arc<Committed>>,
    count: u64,
    reached: Seq,
}

/// Events of a snapshot that are asked for at once; a page may end before.
const SNAPSHOT_EVENTS_PER_PAGE: usize = 1_024;

impl PageRequest {
    /// Reads the page. Blocks.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn read(&self, reader: &Reader) -> store::Result<Page> {
        let (mut batch, mut seqs, mut text, mut bytes) = (Batch::default(), Vec::new(), StoredText::default(), 0);
        let mut push = |event: crate::wire::StoredEvent<'_>| {
            bytes += batch.push_stored(&event, &mut text);
            seqs.push(event.seq);
            if bytes < PAGE_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let (broken_off, asked, count) = match self {
            Self::Events(filter, after, through) => {
                (reader.scan_some(&between(filter, *after, *through), &mut push)?, *through, 0)
            }
            Self::Count(filter, after, through) => (None, *through, reader.count(&between(filter, *after, *through))?),
            Self::These(these) => {
                (reader.scan_these(these, &mut push)?, *these.last().expect("nobody asks for nothing"), 0)
            }
        };
        let events = (!batch.is_empty()).then(|| Arc::new(batch.read_back(seqs)));
        Ok(Page { events, count, reached: broken_off.unwrap_or(asked) })
    }
}

/// The events that pass, after one and up to another.
fn between(filter: &Filter, after: Seq, through: Seq) -> Query {
    let (filter, before) = (filter.clone(), Some(through.next()));
    Query { filter, after, before, order: Order::OldestFirst, ..Query::default() }
}

impl Feed {
    /// A feed of the events after `position`.
    pub fn new(store: Store, hub: Arc<Hub>, filter: Filter, position: Seq) -> Self {
        Self {
            store,
            hub,
            filter,
            on_lag: OnLag::CatchUp,
            position,
            first: VecDeque::new(),
            last: None,
            is_behind: false,
            stage: Stage::History,
            changes: VecDeque::new(),
            taken: Vec::new(),
            reading: None,
        }
    }

    /// The same feed, but it does this when it is too slow for the live stream.
    pub fn on_lag(self, on_lag: OnLag) -> Self {
        Self { on_lag, ..self }
    }

    /// The same feed, but it tells when history is over.
    pub fn from_history(self) -> Self {
        Self { is_behind: true, ..self }
    }

    /// The same feed, but it ends with the event `last`.
    pub fn up_to(self, last: Seq) -> Self {
        Self { last: Some(last), ..self }
    }

    /// The same feed, but these events, ascending, come first.
    pub fn after_snapshot(self, events: Vec<Seq>) -> Self {
        Self { first: events.into(), ..self }
    }

    /// Everything up to this event was handed out.
    pub fn position(&self) -> Seq {
        self.position
    }

    /// After the event `last`, or what was handed out already if that is more, the feed is for `filter`;
    /// up to it, for the present one. [`Chunk::FilterChanged`] marks the place.
    pub fn change_filter(&mut self, filter: Filter, last: Seq) {
        self.changes.push_back((filter, last));
        // What the hub delivers may pass that place; storage is read exactly up to it.
        self.stage = Stage::History;
        self.taken.clear();
        self.reading = None;
    }

    /// The next chunk. Cancel-safe: what was not handed out comes again.
    ///
    /// # Errors
    /// What SQLite reports.
    pub async fn next(&mut self) -> store::Result<Chunk> {
        loop {
            if let Some(reading) = &mut self.reading {
                let read = reading.await;
                self.reading = None;
                if let Some(chunk) = self.page_read(read?) {
                    return Ok(chunk);
                }
            }
            match self.step() {
                Step::Give(chunk) => return Ok(chunk),
                Step::Again => {}
                Step::Wait => self.wait().await,
                Step::Read(request) => {
                    self.reading = Some(self.store.reading(move |reader| request.read(reader)));
                }
            }
        }
    }

    /// One step; each looks at or changes at most one thing that others change too, so that a test can
    /// interleave them with everything else.
    pub fn step(&mut self) -> Step {
        if !self.first.is_empty() {
            let some = self.first.iter().take(SNAPSHOT_EVENTS_PER_PAGE).copied();
            return Step::Read(PageRequest::These(some.collect()));
        }
        if let Some((_, last)) = self.changes.front() {
            // A change that was asked for late lies beyond the end of a feed that has one.
            let last = self.last.map_or(*last, |end| end.min(*last));
            if self.position < last {
                return self.read_through(last);
            }
            let (filter, _) = self.changes.pop_front().expect("just looked at");
            (self.filter, self.position) = (filter, self.position.max(last));
            return Step::Give(Chunk::FilterChanged);
        }
        if let Some(last) = self.last {
            return if self.position < last { self.read_through(last) } else { Step::Give(Chunk::Complete) };
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
                match std::mem::take(&mut self.is_behind) {
                    true => Step::Give(Chunk::CaughtUp),
                    false => Step::Again,
                }
            }
            Stage::Live(registration) => self.step_live(registration),
            Stage::Leaving(None) => {
                self.stage = Stage::Leaving(Some(self.hub.register(&self.filter)));
                Step::Again
            }
            Stage::Leaving(Some(registration)) => {
                self.stage = Stage::Counting(registration, self.store.committed());
                Step::Again
            }
            Stage::Counting(registration, through) => {
                self.stage = Stage::Counting(registration, through);
                Step::Read(PageRequest::Count(self.filter.clone(), self.position, through))
            }
            Stage::TooSlow => {
                self.stage = Stage::TooSlow;
                Step::Give(Chunk::TooSlow)
            }
        }
    }

    fn step_live(&mut self, registration: Registration) -> Step {
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
            Some(Taken::Overflowed) => self.fall_behind(),
            Some(Taken::Closed) => {
                self.stage = Stage::Live(registration);
                Step::Give(Chunk::End)
            }
            Some(Taken::Items) => {
                let position = self.position;
                self.taken.retain(|delivery| delivery.through > position);
                self.stage = match self.taken.first() {
                    // Its beginning was read from storage, and so its end is too.
                    Some(first) if first.after < position => Stage::Joining(registration, self.taken.remove(0).through),
                    _ => Stage::Live(registration),
                };
                self.give_taken()
            }
        }
    }

    fn fall_behind(&mut self) -> Step {
        match self.on_lag {
            OnLag::CatchUp => {
                self.is_behind = true;
                Step::Give(Chunk::FellBehind)
            }
            OnLag::Skip => {
                self.stage = Stage::Leaving(None);
                Step::Again
            }
            OnLag::Disconnect => {
                self.stage = Stage::TooSlow;
                Step::Again
            }
        }
    }

    /// Resolves once nothing more will come live: for whoever has no use for the next chunk yet. Cancel-safe.
    pub async fn ended(&self) {
        self.hub.ended().await;
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
        let Page { events, count, reached } = page;
        if !self.first.is_empty() {
            let read = self.first.partition_point(|seq| *seq <= reached);
            self.first.drain(..read);
            return events.map(|events| Chunk::Events(vec![Run::whole(events)]));
        }
        self.position = self.position.max(reached);
        match std::mem::replace(&mut self.stage, Stage::History) {
            Stage::Counting(registration, last) => {
                self.stage = Stage::Live(registration);
                // What overflowed may have been read from storage before.
                return (count > 0).then_some(Chunk::Lagged { missed: count, last });
            }
            stage => self.stage = stage,
        }
        events.map(|events| Chunk::Events(vec![Run::whole(events)]))
    }

    fn read_through(&self, through: Seq) -> Step {
        Step::Read(PageRequest::Events(self.filter.clone(), self.position, through))
    }

    fn give_taken(&mut self) -> Step {
        let Stage::Live(_) = self.stage else { return Step::Again };
        let Some(last) = self.taken.last() else { return Step::Again };
        self.position = last.through;
        Step::Give(Chunk::Events(self.taken.drain(..).flat_map(|delivery| delivery.runs.to_vec()).collect()))
    }
}
