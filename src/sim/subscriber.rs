//! Subscribers, each with the task that serves it, and checks of everything that it is sent.

use std::collections::VecDeque;

use super::event::EVENT_BYTES_MAX;
use super::feed_task::FeedTask;
use super::filter::ModelFilter;
use super::model::Model;
use super::server::Server;
use crate::event::{EventId, Seq};
use crate::feed::{Chunk, Feed, PAGE_BYTES};
use crate::store::Store;
use crate::wire::committed::Run;
use crate::wire::frame;
use crate::wire::request::OnLag;

/// Most events of a round: three commits of eight, each with up to four more of the last message. An empty outbox takes
/// that whatever its bound.
const ROUND_EVENTS_MAX: usize = 3 * 12;

/// The request of a subscriber.
#[derive(Clone)]
pub struct Request {
    pub filter: ModelFilter,
    pub start: Seq,
    pub on_lag: OnLag,
    /// Whether it is told when it has caught up with history.
    pub from_history: bool,
    /// The event with which the stream ends.
    pub end: Option<Seq>,
    /// The events of the snapshot, which come first.
    pub snapshot: Vec<Seq>,
}

pub struct Subscriber {
    pub task: FeedTask,
    filter: ModelFilter,
    on_lag: OnLag,
    end: Option<Seq>,
    /// The part of its snapshot that has not come yet.
    snapshot: VecDeque<Seq>,
    /// Filters that it has requested, each with the event after which it comes into force.
    changes: VecDeque<(ModelFilter, Seq)>,
    /// The last event at the time of its last request.
    request: Seq,
    /// Up to this event it has everything that it wants.
    seen: Seq,
    /// The last event that it received, after which it would resume.
    received: Seq,
    /// While it is told when it has caught up: the last event when storage began to serve it.
    behind: Option<Seq>,
    /// The model's count at the time of the feed's, and up to which event.
    counted: Option<(u64, Seq)>,
    chunk_bytes_max: usize,
}

/// Why a stream is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The server has ended.
    Served,
    TooSlow,
    Complete,
}

impl Subscriber {
    pub fn new(server: &Server, request: Request, outbox_bytes_max: usize) -> Self {
        let Request { filter, start, on_lag, from_history, end, snapshot } = request;
        let feed = Feed::new(server.store.clone(), server.hub.clone(), filter.real.clone(), start).on_lag(on_lag);
        let feed = if from_history { feed.from_history() } else { feed };
        let feed = end.into_iter().fold(feed, Feed::up_to).after_snapshot(snapshot.clone());
        Self {
            task: FeedTask::new(feed),
            filter,
            on_lag,
            end,
            snapshot: snapshot.into(),
            changes: VecDeque::new(),
            request: start,
            seen: start,
            received: start,
            behind: from_history.then(|| server.store.committed()),
            counted: None,
            chunk_bytes_max: outbox_bytes_max.max(PAGE_BYTES + EVENT_BYTES_MAX).max(ROUND_EVENTS_MAX * EVENT_BYTES_MAX),
        }
    }

    pub fn is_awake(&self) -> bool {
        self.task.is_awake()
    }

    /// Requests another filter, in a message that the server reads `later` events after the one before.
    pub fn change_filter(&mut self, filter: ModelFilter, later: u64, model: &Model) {
        self.request.0 = (self.request.0 + later).min(model.last().0.max(self.request.0));
        let former = self.changes.back().map_or(self.task.feed.position, |(_, after)| *after);
        let after = self.end.map_or(self.request, |end| end.min(self.request));
        self.changes.push_back((filter.clone(), after.max(former)));
        self.task.feed.change_filter(filter.real, self.request);
        self.interrupt();
    }

    /// Takes a step of its task. Returns how the stream has ended, if it has.
    pub fn step(&mut self, store: &Store, model: &Model) -> Option<Over> {
        if let Some((after, through)) = self.task.counts_next() {
            self.counted = Some((model.stored_between(&self.filter, after, through).count() as u64, through));
        }
        match self.task.step(store)? {
            Chunk::Events(runs) => {
                let frames = runs.iter().map(Run::frames).collect::<Vec<_>>();
                self.receive(&frames.concat(), model);
            }
            Chunk::FellBehind => {
                assert!(self.on_lag == OnLag::CatchUp && self.behind.is_none(), "it was behind before");
                self.must_have_come_to(self.task.feed.position(), model);
                self.behind = Some(model.last());
                // A client that knows this would resume there.
                self.received = self.task.feed.position();
            }
            Chunk::CaughtUp => {
                let since = self.behind.take().expect("it fell behind before");
                assert!(self.task.feed.position() >= since, "it has not caught up with what was there");
                self.must_have_come_to(self.task.feed.position(), model);
            }
            Chunk::Lagged { missed, last } => {
                assert_eq!(self.on_lag, OnLag::Skip);
                assert_eq!(Some((missed, last)), self.counted.take(), "counted wrongly");
                assert!(last >= self.seen, "it had come further before");
                (self.seen, self.received) = (last, last);
            }
            Chunk::TooSlow => {
                assert_eq!(self.on_lag, OnLag::Disconnect);
                self.must_have_come_to(self.task.feed.position(), model);
                return Some(Over::TooSlow);
            }
            Chunk::Complete => {
                let end = self.end.expect("only a stream with an end is complete");
                assert!(self.changes.is_empty());
                self.must_have_up_to(end, model);
                self.snapshot_is_over(model);
                return Some(Over::Complete);
            }
            Chunk::FilterChanged => {
                self.snapshot_is_over(model);
                let (filter, after) = self.changes.pop_front().expect("only a requested filter is announced");
                self.must_have_come_to(after, model);
                (self.filter, self.seen) = (filter, after);
            }
            Chunk::End => return Some(Over::Served),
        }
        None
    }

    /// Another message is to be handled first, so the task drops what it waits for and begins again.
    pub fn interrupt(&mut self) {
        self.counted = None;
        self.task.interrupt();
    }

    /// Checks that each event is the next one that it must get.
    fn receive(&mut self, frames: &[u8], model: &Model) {
        assert!(frames.len() <= self.chunk_bytes_max);
        for id in each(frames, &self.filter, model) {
            if !self.snapshot.is_empty() && id <= self.seen {
                let left_out = |next: &Seq| *next != id;
                while let Some(next) = self.snapshot.pop_front().filter(left_out) {
                    assert!(model.is_deleted(next), "{} is left out of the snapshot", next.id());
                }
                continue;
            }
            self.snapshot_is_over(model);
            assert!(id > self.seen, "{} again, after {}", id.id(), self.seen.id());
            assert!(self.end.is_none_or(|end| id <= end), "{} after the end", id.id());
            self.must_have_up_to(id.prev(), model);
            (self.seen, self.received) = (id, id);
        }
    }

    fn snapshot_is_over(&mut self, model: &Model) {
        let left_out = self.snapshot.drain(..).find(|seq| !model.is_deleted(*seq));
        assert_eq!(left_out, None, "the snapshot ends before this");
    }

    /// Checks that it has everything that it wants up to this event, and nothing after.
    fn must_have_come_to(&self, seq: Seq, model: &Model) {
        assert!(self.seen <= seq, "it got events after {}", seq.id());
        self.must_have_up_to(seq, model);
    }

    /// Checks that no event that it wants is left out, but for events that were deleted before it came there.
    fn must_have_up_to(&self, seq: Seq, model: &Model) {
        let missed = model.stored_between(&self.filter, self.seen, seq).next();
        assert_eq!(missed.map(|(of, _)| of), None, "left out after {}", self.seen.id());
    }

    pub fn must_have_everything(&mut self, model: &Model) {
        assert!(self.changes.is_empty(), "a change of filters was forgotten");
        assert_eq!(self.behind, None, "it was not told that it has caught up");
        self.snapshot_is_over(model);
        self.must_have_up_to(model.last(), model);
    }

    /// The request with which the client resumes after its connection is gone.
    pub fn disconnect(mut self) -> Request {
        let newest = self.changes.pop_back().map(|(filter, _)| filter).unwrap_or(self.filter);
        let (start, on_lag, end) = (self.received, self.on_lag, self.end);
        Request { filter: newest, start, on_lag, from_history: true, end, snapshot: Vec::new() }
    }
}

/// The events of some frames, each compared with the model's.
pub fn each(mut frames: &[u8], filter: &ModelFilter, model: &Model) -> Vec<Seq> {
    let mut ids = Vec::new();
    while !frames.is_empty() {
        // The frame of a longer event has two bytes more of length.
        let json = if frames[1] < 126 { &frames[2..] } else { &frames[4..] };
        let EventId(seq) = std::str::from_utf8(&json[7..23]).expect("ASCII").parse().expect("an id");
        assert!(seq <= model.last(), "{} before it was stored", seq.id());
        let event = model.event(seq);
        assert!(filter.passes(event), "{} does not pass {:?}", seq.id(), filter.real);
        let mut frame = Vec::new();
        frame::text(&mut frame, event.json(seq).as_bytes());
        frames = frames.strip_prefix(&*frame).expect("the event's own bytes");
        ids.push(seq);
    }
    ids
}
