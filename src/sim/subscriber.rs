//! Clients that subscribe, each with the task that serves it, and what they may be told.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use super::Server;
use super::model::{EVENT_BYTES_MAX, Model};
use super::wish::Wish;
use crate::event::{EventId, Seq};
use crate::feed::{Chunk, Feed, PAGE_BYTES, Page, PageRequest, Step};
use crate::store::Store;
use crate::wire::batch::Run;
use crate::wire::frame;
use crate::wire::subscription::OnLag;

/// Most events of a round: three commits of eight, each with up to four more of the last message. An empty outbox takes
/// that whatever its bound.
const ROUND_EVENTS_MAX: usize = 3 * 12;

/// What a client asks for.
#[derive(Clone)]
pub struct Asked {
    pub wish: Wish,
    pub start: Seq,
    pub on_lag: OnLag,
    /// Whether it is told when history is over.
    pub from_history: bool,
    /// The event with which it ends.
    pub end: Option<Seq>,
    /// Events that come first.
    pub snapshot: Vec<Seq>,
}

pub struct Subscriber {
    pub feed: Feed,
    wish: Wish,
    on_lag: OnLag,
    end: Option<Seq>,
    /// What is left of its snapshot.
    snapshot: VecDeque<Seq>,
    /// Filters it asked for, each with the event after which it comes into force.
    changes: VecDeque<(Wish, Seq)>,
    /// The last event when it last asked for one.
    asked: Seq,
    /// It needs nothing up to this event.
    seen: Seq,
    /// The last event it received, after which it would resume.
    received: Seq,
    /// While it is told when it has caught up: the last event when storage began to serve it.
    behind: Option<Seq>,
    /// What the model counted while the feed did, and up to where.
    counted: Option<(u64, Seq)>,
    chunk_bytes_max: usize,
    reading: Option<Reading>,
    pub bell: Arc<Bell>,
}

pub enum Reading {
    Asked(PageRequest),
    Read(Page),
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
    pub fn new(server: &Server, asked: Asked, outbox_bytes_max: usize) -> Self {
        let Asked { wish, start, on_lag, from_history, end, snapshot } = asked;
        let feed = Feed::new(server.store.clone(), server.hub.clone(), wish.filter.clone(), start).on_lag(on_lag);
        let feed = if from_history { feed.from_history() } else { feed };
        let feed = end.into_iter().fold(feed, Feed::up_to).after_snapshot(snapshot.clone());
        Self {
            feed,
            wish,
            on_lag,
            end,
            snapshot: snapshot.into(),
            changes: VecDeque::new(),
            asked: start,
            seen: start,
            received: start,
            behind: from_history.then(|| server.store.committed()),
            counted: None,
            chunk_bytes_max: outbox_bytes_max.max(PAGE_BYTES + EVENT_BYTES_MAX).max(ROUND_EVENTS_MAX * EVENT_BYTES_MAX),
            reading: None,
            bell: Arc::new(Bell(AtomicBool::new(true))),
        }
    }

    pub fn is_awake(&self) -> bool {
        self.bell.0.load(Ordering::SeqCst)
    }

    /// Asks for other events, in a message that was read `later` events after the one before, or now.
    pub fn change_filter(&mut self, wish: Wish, later: u64, model: &Model) {
        self.asked.0 = (self.asked.0 + later).min(model.last().0.max(self.asked.0));
        let former = self.changes.back().map_or(self.feed.position, |(_, after)| *after);
        let after = self.end.map_or(self.asked, |end| end.min(self.asked));
        self.changes.push_back((wish.clone(), after.max(former)));
        self.feed.change_filter(wish.filter, self.asked);
        self.is_called_away();
    }

    /// A step of its task, a read of a page being one of its own. Returns how the stream has ended, if it has.
    pub fn step(&mut self, store: &Store, model: &Model) -> Option<Over> {
        let chunk = match self.reading.take() {
            Some(Reading::Asked(request)) => {
                if let PageRequest::Count(_, after, through) = &request {
                    let count = model.kept_between(&self.wish, *after, *through).count();
                    self.counted = Some((count as u64, *through));
                }
                self.reading = Some(Reading::Read(request.read(&store.reader()).expect("read")));
                return None;
            }
            Some(Reading::Read(page)) => self.feed.page_read(page),
            None => match self.feed.step() {
                Step::Give(chunk) => Some(chunk),
                Step::Again => None,
                Step::Read(request) => {
                    self.reading = Some(Reading::Asked(request));
                    None
                }
                Step::Wait => {
                    self.bell.wait(&mut self.feed);
                    None
                }
            },
        };
        match chunk? {
            Chunk::Events(runs) => {
                let frames = runs.iter().map(Run::frames).collect::<Vec<_>>();
                self.receive(&frames.concat(), model);
            }
            Chunk::FellBehind => {
                assert!(self.on_lag == OnLag::CatchUp && self.behind.is_none(), "it was behind already");
                self.must_have_come_to(self.feed.position(), model);
                self.behind = Some(model.last());
                // Whoever is told resumes there.
                self.received = self.feed.position();
            }
            Chunk::CaughtUp => {
                let since = self.behind.take().expect("it was told that it fell behind");
                assert!(self.feed.position() >= since, "it has not caught up with what was there");
                self.must_have_come_to(self.feed.position(), model);
            }
            Chunk::Lagged { missed, last } => {
                assert_eq!(self.on_lag, OnLag::Skip);
                assert_eq!(Some((missed, last)), self.counted.take(), "counted wrongly");
                assert!(last >= self.seen, "it has been there");
                (self.seen, self.received) = (last, last);
            }
            Chunk::TooSlow => {
                assert_eq!(self.on_lag, OnLag::Disconnect);
                self.must_have_come_to(self.feed.position(), model);
                return Some(Over::TooSlow);
            }
            Chunk::Complete => {
                let end = self.end.expect("only what has an end is complete");
                assert!(self.changes.is_empty());
                self.must_have_up_to(end, model);
                self.snapshot_is_over(model);
                return Some(Over::Complete);
            }
            Chunk::FilterChanged => {
                self.snapshot_is_over(model);
                let (wish, after) = self.changes.pop_front().expect("only what was asked for is announced");
                self.must_have_come_to(after, model);
                (self.wish, self.seen) = (wish, after);
            }
            Chunk::End => return Some(Over::Served),
        }
        None
    }

    /// Something else is to be done at once, so its task drops what it waits for and begins again.
    pub fn is_called_away(&mut self) {
        (self.reading, self.counted) = (None, None);
        self.bell.0.store(true, Ordering::SeqCst);
    }

    /// Holds every frame against what it must get next.
    fn receive(&mut self, frames: &[u8], model: &Model) {
        assert!(frames.len() <= self.chunk_bytes_max);
        for id in each(frames, &self.wish, model) {
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

    /// It has what it wants up to here, and nothing after.
    fn must_have_come_to(&self, seq: Seq, model: &Model) {
        assert!(self.seen <= seq, "it went on after {}", seq.id());
        self.must_have_up_to(seq, model);
    }

    /// Nothing it wants is left out, but what was deleted before it came there.
    fn must_have_up_to(&self, seq: Seq, model: &Model) {
        let missed = model.kept_between(&self.wish, self.seen, seq).next();
        assert_eq!(missed.map(|(of, _)| of), None, "left out after {}", self.seen.id());
    }

    pub fn must_have_everything(&mut self, model: &Model) {
        assert!(self.changes.is_empty(), "a change of filters was forgotten");
        assert_eq!(self.behind, None, "nobody told it that it has caught up");
        self.snapshot_is_over(model);
        self.must_have_up_to(model.last(), model);
    }

    /// What the client remembers when its connection is gone; nothing if it has what it wanted.
    pub fn disconnect(mut self) -> Asked {
        let newest = self.changes.pop_back().map(|(wish, _)| wish).unwrap_or(self.wish);
        let (start, on_lag, end) = (self.received, self.on_lag, self.end);
        Asked { wish: newest, start, on_lag, from_history: true, end, snapshot: Vec::new() }
    }
}

/// The events of some frames, each held against the model's.
pub fn each(mut frames: &[u8], wish: &Wish, model: &Model) -> Vec<Seq> {
    let mut ids = Vec::new();
    while !frames.is_empty() {
        // The frame of a longer event has two bytes more of length.
        let json = if frames[1] < 126 { &frames[2..] } else { &frames[4..] };
        let EventId(seq) = std::str::from_utf8(&json[7..23]).expect("ASCII").parse().expect("an id");
        assert!(seq <= model.last(), "{} before it was stored", seq.id());
        let event = model.event(seq);
        assert!(wish.passes(event), "{} does not pass {:?}", seq.id(), wish.filter);
        let mut frame = Vec::new();
        frame::text(&mut frame, event.json(seq).as_bytes());
        frames = frames.strip_prefix(&*frame).expect("the event's own bytes");
        ids.push(seq);
    }
    ids
}

/// Whether a task is awake.
pub struct Bell(pub AtomicBool);

impl Bell {
    /// The task of a feed sleeps unless there are news.
    pub fn wait(self: &Arc<Self>, feed: &mut Feed) {
        self.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(self.clone());
        let has_news = pin!(feed.wait()).poll(&mut Context::from_waker(&waker)).is_ready();
        self.0.fetch_or(has_news, Ordering::SeqCst);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}
