//! One subscriber's way through the record: history from storage, then live, with no gap and no repeat.
//!
//! A feed has a position: every event up to it that passes the filter was handed out, and no event after it was. The
//! feed reads pages from storage until it is near the end of the record. It then registers with the hub, *after that*
//! reads the high-water mark, reads storage up to that mark, and continues with what the hub delivers, without what it
//! has read already. In this order no event is lost: an event that was committed before the feed looked at the mark is
//! read, and an event that was committed after it is delivered.
//!
//! When a subscriber is too slow for the live stream, its outbox overflows; then its [`OnLag`] decides what follows.

mod page;
mod standing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[cfg(test)]
pub(crate) use page::PAGE_BYTES;
pub use page::{Page, PageRequest};
pub use standing::{Doing, Standing, StandsAt};

use crate::event::{Filter, Seq};
use crate::hub::{Delivery, Hub, Registration};
use crate::outbox::Taken;
use crate::store::{self, Reading, Store};
use crate::wire::committed::Run;
use crate::wire::request::OnLag;

/// A subscriber's position in the record, and how it gets the events after it.
#[derive(Debug)]
pub struct Feed {
    store: Store,
    hub: Arc<Hub>,
    filter: Filter,
    on_lag: OnLag,
    pub(crate) position: Seq,
    /// The events of a snapshot that were not handed out yet. They come first and do not move the position.
    snapshot: VecDeque<Seq>,
    /// The event with which the feed ends; `None` if it has no end.
    last: Option<Seq>,
    /// Storage serves the feed, which has to hand out [`Chunk::CaughtUp`] once it is live.
    is_behind: bool,
    stage: Stage,
    /// The next filters, each with the last event for which the filter before it counts.
    changes: VecDeque<(Filter, Seq)>,
    /// Deliveries that were taken out of the outbox and not handed out yet.
    taken: Vec<Delivery>,
    /// A page that is being read. It outlives [`Feed::next`], which a caller may drop many times before the page is read.
    reading: Option<Reading<Page>>,
    /// Where others see how far it is.
    standing: Option<Arc<Standing>>,
    is_paced: bool,
}

#[derive(Debug)]
enum Stage {
    /// Far from the end of the record, or not begun.
    History,
    /// Registered with the hub. The high-water mark has not been read since.
    Registered(Registration),
    /// Reading storage up to this event, while deliveries of later events arrive.
    Joining(Registration, Seq),
    Live(Registration),
    /// Too slow: the events up to the high-water mark will be left out. The mark is read after registering.
    Skipping(Option<Registration>),
    /// Counting the events that are left out, up to this one, while deliveries of later events arrive.
    Counting(Registration, Seq),
    /// Too slow, which ends the stream.
    TooSlow,
}

/// What a feed hands out.
#[derive(Debug)]
pub enum Chunk {
    /// Events, in order.
    Events(Vec<Run>),
    /// All events for the former filter were handed out. The next ones pass the new filter.
    FilterChanged,
    /// The subscriber was too slow. Storage serves it from its position on.
    FellBehind,
    /// History is over. The next events are live.
    CaughtUp,
    /// The subscriber was too slow. `missed` events up to `last` are left out.
    Lagged { missed: u64, last: Seq },
    /// The subscriber was too slow, and its `on_lag` says that this ends the stream.
    TooSlow,
    /// The event with which the feed ends was handed out.
    Complete,
    /// The server is shutting down, and every event was handed out.
    End,
}

/// What a feed has to do next.
#[derive(Debug)]
pub enum Step {
    /// Read this page, which blocks, and pass it to [`Feed::page_read`].
    Read(PageRequest),
    /// Hand out this chunk.
    Give(Chunk),
    /// Wait for the hub with [`Feed::wait`].
    Wait,
    /// Call [`Feed::step`] again.
    Again,
}

/// A feed that is at most this many events behind the high-water mark registers with the hub, and reads the rest while
/// deliveries arrive.
const JOIN_DISTANCE: u64 = if cfg!(test) { 16 } else { 4_096 };

/// Most events of a snapshot in one page. A page may end earlier, by its size.
const SNAPSHOT_EVENTS_PER_PAGE: usize = 1_024;

impl Feed {
    /// A feed of the events after `position`.
    pub fn new(store: Store, hub: Arc<Hub>, filter: Filter, position: Seq) -> Self {
        Self {
            store,
            hub,
            filter,
            on_lag: OnLag::CatchUp,
            position,
            snapshot: VecDeque::new(),
            last: None,
            is_behind: false,
            stage: Stage::History,
            changes: VecDeque::new(),
            taken: Vec::new(),
            reading: None,
            standing: None,
            is_paced: false,
        }
    }

    /// The same feed, which does this when it is too slow for the live stream.
    pub fn on_lag(self, on_lag: OnLag) -> Self {
        Self { on_lag, ..self }
    }

    /// The same feed, which reports when history is over.
    pub fn from_history(self) -> Self {
        Self { is_behind: true, ..self }
    }

    /// The same feed, which ends with the event `last`.
    pub fn up_to(self, last: Seq) -> Self {
        Self { last: Some(last), ..self }
    }

    /// The same feed, which first hands out these events, in ascending order.
    pub fn after_snapshot(self, events: Vec<Seq>) -> Self {
        Self { snapshot: events.into(), ..self }
    }

    /// The same feed, which shows there what it does. `is_paced`: history is handed out in a rhythm, so it takes its time.
    pub fn shown_in(self, standing: Arc<Standing>, is_paced: bool) -> Self {
        Self { standing: Some(standing), is_paced, ..self }
    }

    /// Every event up to this one was handed out.
    pub fn position(&self) -> Seq {
        self.position
    }

    /// Changes the filter after the event `last`, or after the position if that is later. [`Chunk::FilterChanged`] marks
    /// the change.
    pub fn change_filter(&mut self, filter: Filter, last: Seq) {
        self.changes.push_back((filter, last));
        // A delivery may have events beyond `last`, so storage is read instead, exactly up to it.
        self.stage = Stage::History;
        self.taken.clear();
        self.reading = None;
    }

    /// The next chunk. Cancel-safe: a chunk that was not handed out comes again.
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

    /// Does one step. A step reads or changes at most one thing that other threads change too, so that a test can put any
    /// of their steps between two of these.
    pub fn step(&mut self) -> Step {
        let step = self.next_step();
        if let Some(standing) = &self.standing {
            standing.set(self.doing(), self.position);
        }
        step
    }

    fn doing(&self) -> Doing {
        match &self.stage {
            _ if self.last.is_some() => Doing::Replaying,
            Stage::Live(_) => Doing::Live,
            Stage::Skipping(_) | Stage::Counting(..) | Stage::TooSlow => Doing::Skipping,
            Stage::History | Stage::Registered(_) | Stage::Joining(..) if self.is_paced => Doing::Replaying,
            Stage::History | Stage::Registered(_) | Stage::Joining(..) => Doing::CatchingUp,
        }
    }

    fn next_step(&mut self) -> Step {
        if !self.snapshot.is_empty() {
            let next = self.snapshot.iter().take(SNAPSHOT_EVENTS_PER_PAGE).copied();
            return Step::Read(PageRequest::Numbers(next.collect()));
        }
        if let Some((_, last)) = self.changes.front() {
            // The change may lie beyond the end of the feed.
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
                self.stage = Stage::Registered(self.register());
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
            Stage::Skipping(None) => {
                self.stage = Stage::Skipping(Some(self.register()));
                Step::Again
            }
            Stage::Skipping(Some(registration)) => {
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

    fn register(&self) -> Registration {
        let registration = self.hub.register(&self.filter);
        if let Some(standing) = &self.standing {
            standing.registered(registration.outbox());
        }
        registration
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
            // The registration is dropped. Storage has the events that the outbox lost.
            Some(Taken::Overflowed) => self.fall_behind(),
            Some(Taken::Closed) => {
                self.stage = Stage::Live(registration);
                Step::Give(Chunk::End)
            }
            Some(Taken::Items) => {
                let position = self.position;
                self.taken.retain(|delivery| delivery.through > position);
                self.stage = match self.taken.first() {
                    // The beginning of the delivery was read from storage, so its rest is read from there too.
                    Some(first) if first.after < position => Stage::Joining(registration, self.taken.remove(0).through),
                    _ => Stage::Live(registration),
                };
                self.give_taken()
            }
        }
    }

    fn fall_behind(&mut self) -> Step {
        self.hub.losses.overflows.fetch_add(1, Ordering::Relaxed);
        match self.on_lag {
            OnLag::CatchUp => {
                self.is_behind = true;
                Step::Give(Chunk::FellBehind)
            }
            OnLag::Skip => {
                self.stage = Stage::Skipping(None);
                Step::Again
            }
            OnLag::Disconnect => {
                self.stage = Stage::TooSlow;
                Step::Again
            }
        }
    }

    /// Resolves once the live stream has ended, for a caller that has no use for the next chunk yet. Cancel-safe.
    pub async fn ended(&self) {
        self.hub.ended().await;
    }

    /// Waits until the hub has delivered something. Cancel-safe.
    pub async fn wait(&mut self) {
        if let Stage::Live(registration) = &self.stage {
            // The outbox shows an overflow or its end to the next step again.
            registration.outbox().take(&mut self.taken).await;
        }
    }

    /// Moves on by a page that was read, and returns what is to be handed out.
    pub fn page_read(&mut self, page: Page) -> Option<Chunk> {
        let Page { events, count, reached } = page;
        if !self.snapshot.is_empty() {
            let read = self.snapshot.partition_point(|seq| *seq <= reached);
            self.snapshot.drain(..read);
            return events.map(|events| Chunk::Events(vec![Run::whole(events)]));
        }
        self.position = self.position.max(reached);
        match std::mem::replace(&mut self.stage, Stage::History) {
            Stage::Counting(registration, last) => {
                self.stage = Stage::Live(registration);
                // The count is 0 if storage had served all events of the outbox before it overflowed.
                self.hub.losses.skipped_events.fetch_add(count, Ordering::Relaxed);
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
