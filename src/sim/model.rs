//! What must be true: a list of events and a few rules.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::wish::Wish;
use super::{Random, Server};
use crate::event::{Event, EventTypes, Field, Seq, Timestamp};
use crate::record::{AckLevel, Failure, Outcome, Outcomes};
use crate::store::{Order, Query, Store, Stored};
use crate::wire::batch::Commit;
use crate::wire::{Batch, Committed};

pub const TYPES: [&str; 3] = ["quiz_started", "timer_tick", "answer_submitted"];
pub const SOURCES: [&str; 2] = ["quiz-engine", "timer"];
pub const SESSIONS: [&str; 3] = ["class-a", "class-b", "\u{fc}\"c"];
pub const USERS: [&str; 4] = ["1", "2", "3", "4"];
/// What a payload's number may be.
pub const NUMBERS: [u64; 6] = [0, 1, 2, 3, 4, 5];
const PADDING_BYTES_MAX: u64 = 600;
/// More than the frame of any event has.
pub const EVENT_BYTES_MAX: usize = PADDING_BYTES_MAX as usize + 300;

/// Something that was asked of the store, polled by hand.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, Failure>>>>;

/// Looks whether an answer has come; the first look sends the question.
pub fn poll<T>(pending: &mut Pending<T>) -> Poll<Result<T, Failure>> {
    pending.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

#[derive(Default)]
pub struct Model {
    /// Makes each key another one.
    keys: u64,
    /// Everything up to this one was acknowledged as synced.
    synced: Seq,
    /// Every acknowledged event, deleted or not; the first has number 1.
    events: Vec<ModelEvent>,
    /// So many of them are deleted.
    deleted: u64,
    /// What was handed in and not answered, in that order.
    pub unanswered: VecDeque<Unanswered>,
    pub deletions: VecDeque<Deletion>,
    /// So many of the deleted ones were told of to whoever asked for it.
    told_of: u64,
    /// The store may refuse what it has no room for.
    pub disk_had_an_end: bool,
    /// The store may break off deletions.
    pub is_ending: bool,
}

#[derive(Clone)]
pub struct ModelEvent {
    event_type: &'static str,
    source: &'static str,
    session_id: Option<&'static str>,
    user_id: Option<&'static str>,
    pub number: Option<u64>,
    payload: String,
    key: Option<String>,
    pub time: Timestamp,
    is_deleted: bool,
}

/// A deletion that was asked for, or a slice of one that chooses.
pub struct Deletion {
    doomed: Doomed,
    answer: Pending<u64>,
}

enum Doomed {
    /// What came before a time, or everything, up to at least the event that was the last when it was asked for.
    Oldest(Option<Timestamp>, Seq),
    These(Vec<Seq>),
}

impl Model {
    pub fn last(&self) -> Seq {
        Seq(self.events.len() as u64)
    }

    /// An event to be stored, one in four with a key.
    pub fn new_event(&mut self, random: &mut Random) -> ModelEvent {
        let mut event = ModelEvent::random(random);
        if random.one_in(4) {
            self.keys += 1;
            event.key = Some(format!("key{}", self.keys));
        }
        event
    }

    /// A stored event that has a key, as its producer sent it.
    pub fn keyed(&self, random: &mut Random) -> Option<(Seq, ModelEvent)> {
        let any = Wish::default();
        let keyed: Vec<_> = self.kept(&any).filter(|(_, event)| event.key.is_some()).collect();
        // Its key is used again once it is deleted.
        random.place(keyed.len()).map(|place| (keyed[place].0, keyed[place].1.clone()))
    }

    /// Any event that was ever acknowledged.
    pub fn event(&self, seq: Seq) -> &ModelEvent {
        &self.events[seq.0 as usize - 1]
    }

    pub fn is_deleted(&self, seq: Seq) -> bool {
        self.event(seq).is_deleted
    }

    /// The stored events that pass.
    pub fn kept<'m>(&'m self, wish: &'m Wish) -> impl DoubleEndedIterator<Item = (Seq, &'m ModelEvent)> {
        self.kept_between(wish, Seq::ZERO, self.last())
    }

    /// The stored events that pass, after one and up to another.
    pub fn kept_between<'m>(
        &'m self,
        wish: &'m Wish,
        after: Seq,
        through: Seq,
    ) -> impl DoubleEndedIterator<Item = (Seq, &'m ModelEvent)> {
        let end = through.min(self.last()).0 as usize;
        let start = (after.0 as usize).min(end);
        let events = self.events[start..end].iter().enumerate();
        let numbered = events.map(move |(i, event)| (Seq((start + i) as u64 + 1), event));
        numbered.filter(|(_, event)| !event.is_deleted && wish.passes(event))
    }

    /// A time at, beside or far from that of an event.
    pub fn time(&self, random: &mut Random) -> Timestamp {
        let chosen = random.below(self.last().0 + 1) as usize;
        let time = self.events.get(chosen).map_or(Timestamp::now(), |event| event.time);
        Timestamp(time.0 + random.pick(&[-4_000_000_000, -1, 0, 1, 4_000_000_000]))
    }

    pub fn delete_oldest(&mut self, before: Option<Timestamp>, mut answer: Pending<u64>) {
        assert!(poll(&mut answer).is_pending());
        self.deletions.push_back(Deletion { doomed: Doomed::Oldest(before, self.last()), answer });
    }

    pub fn delete_these(&mut self, these: Vec<Seq>, mut answer: Pending<u64>) {
        assert!(poll(&mut answer).is_pending());
        self.deletions.push_back(Deletion { doomed: Doomed::These(these), answer });
    }

    /// Whether a slice of chosen events is being deleted.
    pub fn waits_for_slice(&self) -> bool {
        self.deletions.iter().any(|deletion| matches!(deletion.doomed, Doomed::These(_)))
    }

    /// Takes note of what the writer has done since `last` was the last event, and `commits` waited for the
    /// fan-out.
    pub fn settle(&mut self, store: &Store, commits: usize, last: Seq) {
        // Events whose keys are used again.
        let mut anew = Vec::new();
        while let Some(Ok(answer)) = self.unanswered.front_mut().map(|batch| batch.answer.try_recv()) {
            let Unanswered { events, repeats, witness, .. } = self.unanswered.pop_front().expect("just looked at");
            match answer {
                Ok(Stored { batch, outcomes }) if batch.is_empty() => match (repeats, outcomes) {
                    (Some(seq), Outcomes::Each(each, _)) => {
                        assert_eq!(*each, [Outcome::Replayed(self.first_under(seq))]);
                    }
                    (repeats, _) => assert!(repeats.is_none() && events.is_empty()),
                },
                Ok(Stored { batch, outcomes }) => {
                    anew.extend(repeats.map(|seq| self.first_under(seq)));
                    self.acknowledged(events, &batch);
                    if let Outcomes::From(_, AckLevel::Synced) | Outcomes::Each(_, AckLevel::Synced) = outcomes {
                        self.synced = self.last();
                    }
                    let saw = witness.saw.lock().take().expect("whoever waits for an answer is woken");
                    let stored = saw.newest == Some(saw.committed) && saw.committed >= self.last();
                    assert!(stored, "acknowledged before it was stored");
                    assert!(saw.commits <= commits, "delivered before it was acknowledged");
                }
                Err(failure) => assert!(failure == Failure::StorageFull && self.disk_had_an_end, "{failure}"),
            }
        }
        assert!(self.unanswered.iter().all(|later| later.answer.is_empty()), "answered out of order");
        self.settle_deletions(store, last);
        assert!(anew.into_iter().all(|seq| self.is_deleted(seq)), "stored twice under one key");
    }

    /// The event that is stored under the key of another one now: that event itself or, once it is deleted, a later
    /// one.
    fn first_under(&self, seq: Seq) -> Seq {
        let key = &self.event(seq).key;
        let under = self.events.iter().rposition(|event| event.key == *key).expect("it is one of them");
        Seq(under as u64 + 1)
    }

    fn acknowledged(&mut self, events: Vec<ModelEvent>, batch: &Committed) {
        assert_eq!((batch.first(), batch.len()), (self.last().next(), events.len()), "dense, and in order");
        for (i, event) in events.into_iter().enumerate() {
            self.stored(event, &batch.json(i));
        }
    }

    /// An event was stored as the next one, and told as `json`.
    fn stored(&mut self, mut event: ModelEvent, json: &[u8]) {
        let time = &json[json.len() - Timestamp::LEN - 2..json.len() - 2];
        event.time = Timestamp::parse_floor(std::str::from_utf8(time).expect("ASCII")).expect("a time");
        assert!(self.events.last().is_none_or(|before| event.time > before.time), "times increase");
        assert_eq!(json, event.json(self.last().next()).as_bytes());
        self.events.push(event);
    }

    /// Looks for what is gone, and whether it had to go.
    fn settle_deletions(&mut self, store: &Store, last: Seq) {
        if self.deletions.is_empty() {
            return;
        }
        let gone = self.find_gone(store);
        let chosen = self.deletions.iter().filter_map(|deletion| match &deletion.doomed {
            Doomed::These(these) => Some(these),
            Doomed::Oldest(..) => None,
        });
        let chosen: BTreeSet<Seq> = chosen.flatten().copied().collect();
        let end = self.deletions.iter().map(|deletion| deletion.end(self, last)).max().unwrap_or(0);
        for seq in &gone {
            assert!(chosen.contains(seq) || seq.0 <= end, "{} was deleted by nobody", seq.id());
            self.events[seq.0 as usize - 1].is_deleted = true;
        }
        self.deleted += gone.len() as u64;
        if let Some(newest) = gone.iter().rev().find(|seq| !chosen.contains(seq)) {
            let older = self.kept_between(&Wish::default(), Seq::ZERO, *newest).next().map(|(seq, _)| seq);
            assert_eq!(older, None, "deleted {}, which is not the oldest", newest.id());
        }
        while let Some(deletion) = self.deletions.front_mut() {
            match poll(&mut deletion.answer) {
                Poll::Pending => return,
                Poll::Ready(Ok(count)) => {
                    self.told_of += count;
                    let deletion = self.deletions.pop_front().expect("just looked at");
                    let is_left = match &deletion.doomed {
                        Doomed::Oldest(_, asked) => {
                            let end = Seq(deletion.end(self, *asked));
                            self.kept_between(&Wish::default(), Seq::ZERO, end).next().is_some()
                        }
                        Doomed::These(these) => these.iter().any(|seq| !self.is_deleted(*seq)),
                    };
                    assert!(!is_left, "deleted too little");
                }
                Poll::Ready(Err(failure)) => {
                    let excused = match failure {
                        Failure::Unavailable => self.is_ending,
                        Failure::StorageFull => self.disk_had_an_end,
                        Failure::QueueFull | Failure::Locked | Failure::Damaged => false,
                    };
                    assert!(excused, "{failure}");
                    self.deletions.pop_front();
                    // A part of its events may be gone, and nobody is told how many.
                    self.told_of = self.deleted;
                }
            }
        }
        if self.is_ending {
            // Of several turns some may have been broken off.
            self.told_of = self.deleted;
        }
        assert_eq!(self.told_of, self.deleted, "told of other numbers than were deleted");
    }

    /// What was there and is no more.
    fn find_gone(&self, store: &Store) -> Vec<Seq> {
        let any = Wish::default();
        let mut gone = Vec::new();
        let mut kept = self.kept(&any).map(|(seq, _)| seq).peekable();
        let found = store.reader().scan(&Query::default(), |event| {
            while kept.peek().is_some_and(|seq| *seq < event.seq) {
                gone.extend(kept.next());
            }
            // Others may be stored of which nobody has heard yet.
            assert!(kept.next() == Some(event.seq) || event.seq > self.last(), "{} came back", event.seq.id());
            ControlFlow::Continue(())
        });
        found.expect("read");
        gone.extend(kept);
        gone
    }

    /// The power was cut: of what was not synced the end may be gone, with deletions that were done there.
    pub fn lost_its_end(&mut self, store: &Store, is_synced: bool) {
        let last = store.committed();
        assert!(last >= self.synced && last <= self.last(), "{} was synced, {} is there", self.synced.0, last.0);
        self.events.truncate(last.0 as usize);
        let found = store.reader().scan(&Query::default(), |event| {
            let came_back = std::mem::take(&mut self.events[event.seq.0 as usize - 1].is_deleted);
            assert!(!came_back || !is_synced, "{} came back", event.seq.id());
            ControlFlow::Continue(())
        });
        found.expect("read");
        self.deleted = self.events.iter().filter(|event| event.is_deleted).count() as u64;
        self.told_of = self.deleted;
    }

    /// The server is gone, in the middle of a commit if `unheard`, and another one has read the files.
    pub fn reopened(&mut self, store: &Store, unheard: Option<Unheard>) {
        // Whoever still waits for a deletion gets no answer; a part of it may have been done.
        self.is_ending = true;
        self.settle_deletions(store, store.committed());
        assert!(self.deletions.is_empty(), "a deletion was left without an answer");
        let stored = store.committed().0 - self.last().0;
        match unheard {
            None => assert_eq!(stored, 0, "numbers are used that nobody was told of"),
            Some(Unheard { events, is_torn }) => {
                assert!(stored == events || (stored == 0 && (is_torn || self.disk_had_an_end)), "{stored} of {events}");
            }
        }
        while self.last() < store.committed() {
            let Unanswered { events, answer, .. } = self.unanswered.pop_front().expect("nothing else can be stored");
            drop(answer);
            for event in events {
                let seq = self.last().next();
                let json =
                    store.reader().event(&seq.id().to_string()).expect("read").expect("all of a batch, or nothing");
                self.stored(event, &json);
            }
        }
        assert_eq!(store.committed(), self.last(), "numbers are lost or used again");
        self.unanswered.drain(..).for_each(Unanswered::must_be_unavailable);
        (self.is_ending, self.disk_had_an_end) = (false, false);
    }

    /// Notes which batches the writer has taken, for whoever handed them in has lost them.
    pub fn unheard(&mut self, is_torn: bool) -> Unheard {
        let mut unanswered = std::mem::take(&mut self.unanswered);
        let (mut events, mut anew) = (0, Vec::new());
        for batch in unanswered.iter_mut().take_while(|batch| !batch.answer.is_empty()) {
            if let Some(under) = batch.repeats.map(|seq| self.first_under(seq)) {
                if !self.is_deleted(under) || anew.contains(&under) {
                    // Of a repeat nothing is stored.
                    batch.events.clear();
                }
                // The first one after a deletion is stored anew, and those behind it repeat that.
                anew.push(under);
            }
            events += batch.events.len() as u64;
        }
        self.unanswered = unanswered;
        Unheard { events, is_torn }
    }
}

/// A commit that nobody heard of.
#[derive(Clone, Copy)]
pub struct Unheard {
    /// So many events are in it.
    events: u64,
    /// The machine stopped in the middle of writing it.
    is_torn: bool,
}

impl ModelEvent {
    pub fn random(random: &mut Random) -> Self {
        let padding = if random.one_in(4) { random.below(PADDING_BYTES_MAX) } else { 0 };
        let padding = "x".repeat(padding as usize);
        let number = (!random.one_in(8)).then(|| random.pick(&NUMBERS));
        let payload = match number {
            Some(number) => format!(r#"{{"n":{number},"padding":"{padding}"}}"#),
            None => format!(r#"{{"padding":"{padding}"}}"#),
        };
        Self {
            event_type: random.pick(&TYPES),
            source: random.pick(&SOURCES),
            session_id: (!random.one_in(4)).then(|| random.pick(&SESSIONS)),
            user_id: (!random.one_in(4)).then(|| random.pick(&USERS)),
            number,
            payload,
            key: None,
            time: Timestamp::default(),
            is_deleted: false,
        }
    }

    pub fn push_to(&self, batch: &mut Batch, types: &EventTypes) {
        let Self { source, session_id, user_id, ref payload, ref key, .. } = *self;
        let event_type = types.get(self.event_type).expect("built in");
        batch.push(&Event { event_type, source, session_id, user_id, payload, idempotency_key: key.as_deref() }, types);
    }

    pub fn field(&self, field: Field) -> Option<&'static str> {
        match field {
            Field::Type => Some(self.event_type),
            Field::Source => Some(self.source),
            Field::Session => self.session_id,
            Field::User => self.user_id,
        }
    }

    pub fn json(&self, seq: Seq) -> String {
        let Self { event_type, source, payload, time, .. } = self;
        let [session, user] = [self.session_id, self.user_id].map(|id| serde_json::to_string(&id).expect("JSON"));
        let (id, ids) = (seq.id(), format!(r#""session_id":{session},"user_id":{user}"#));
        let fields = format!(r#""event_type":"{event_type}","source":"{source}",{ids},"payload":{payload}"#);
        format!(r#"{{"id":"{id}",{fields},"timestamp":"{time}"}}"#)
    }
}

impl Deletion {
    /// The number up to which it deletes what is among the events up to `last`, if it goes by time.
    fn end(&self, model: &Model, last: Seq) -> u64 {
        let Doomed::Oldest(before, _) = &self.doomed else { return 0 };
        let stored = &model.events[..model.events.len().min(last.0 as usize)];
        before.map_or(stored.len(), |before| stored.partition_point(|event| event.time < before)) as u64
    }
}

/// A batch that was handed in, and who waits for its answer.
pub struct Unanswered {
    events: Vec<ModelEvent>,
    /// The event that its only event repeats, if it does.
    repeats: Option<Seq>,
    /// Events and KiB it takes in the queue.
    pub cost: (usize, usize),
    answer: Answer,
    witness: Arc<Witness>,
}

type Answer = oneshot::Receiver<Result<Stored, Failure>>;

impl Unanswered {
    pub fn new(
        events: Vec<ModelEvent>,
        repeats: Option<Seq>,
        cost: (usize, usize),
        mut answer: Answer,
        server: &Server,
    ) -> Self {
        let (store, commits) = (server.store.clone(), server.parts.commits.clone());
        let witness = Arc::new(Witness { store, commits, saw: Mutex::new(None) });
        let waker = Waker::from(witness.clone());
        assert!(pin!(&mut answer).poll(&mut Context::from_waker(&waker)).is_pending());
        Self { events, repeats, cost, answer, witness }
    }

    pub fn must_be_unavailable(mut self) {
        assert!(matches!(self.answer.try_recv(), Ok(Err(Failure::Unavailable))));
    }
}

/// Woken by an answer, in the middle of the writer's turn, it looks around at that moment.
struct Witness {
    store: Store,
    commits: Receiver<Arc<Commit>>,
    saw: Mutex<Option<Saw>>,
}

struct Saw {
    committed: Seq,
    /// The newest event that a query finds.
    newest: Option<Seq>,
    /// Commits that wait for the fan-out.
    commits: usize,
}

impl Wake for Witness {
    fn wake(self: Arc<Self>) {
        let query = Query { order: Order::NewestFirst, ..Query::default() };
        let newest = self.store.reader().scan(&query, |_| ControlFlow::Break(())).expect("read");
        *self.saw.lock() = Some(Saw { committed: self.store.committed(), newest, commits: self.commits.len() });
    }
}
