//! What must be true: a list of events and a few rules.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::task::Poll;

use super::event::ModelEvent;
use super::filter::ModelFilter;
use super::pending::{Pending, poll};
use super::random::Random;
use super::unanswered::Unanswered;
use crate::event::{Filter, Seq, Timestamp};
use crate::record::{AckLevel, Failure, Outcome, Outcomes};
use crate::store::{Query, Store, Stored};
use crate::wire::Committed;

#[derive(Default)]
pub struct Model {
    /// How many keys were given out: makes each a different one.
    keys: u64,
    /// Every event up to this one was acknowledged as synced.
    synced: Seq,
    /// Every acknowledged event, deleted or not; the first has number 1.
    events: Vec<ModelEvent>,
    /// How many of them are deleted.
    deleted: u64,
    /// Batches that are not answered, in the order in which they were taken.
    pub unanswered: VecDeque<Unanswered>,
    pub deletions: VecDeque<Deletion>,
    /// How many deleted events the answers to deletions have counted.
    counted: u64,
    /// The disk was full at some time: the store may refuse events.
    pub disk_was_full: bool,
    /// The server is ending: the store may break off deletions.
    pub is_ending: bool,
}

/// A requested deletion, or a slice of a deletion by filter.
pub struct Deletion {
    scope: Scope,
    answer: Pending<u64>,
}

enum Scope {
    /// All events before a time, or all, up to at least the last event at the time of the request.
    Oldest(Option<Timestamp>, Seq),
    Chosen(Vec<Seq>),
}

impl Model {
    pub fn last(&self) -> Seq {
        Seq(self.events.len() as u64)
    }

    /// A new event, one in four with a key.
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
        let any = ModelFilter::default();
        let keyed: Vec<_> = self.stored(&any).filter(|(_, event)| event.key.is_some()).collect();
        // A deleted event is left out: its key is free again.
        random.index(keyed.len()).map(|index| (keyed[index].0, keyed[index].1.clone()))
    }

    /// An event that was acknowledged, deleted or not.
    pub fn event(&self, seq: Seq) -> &ModelEvent {
        &self.events[seq.0 as usize - 1]
    }

    pub fn is_deleted(&self, seq: Seq) -> bool {
        self.event(seq).is_deleted
    }

    /// The stored events that pass a filter.
    pub fn stored<'m>(&'m self, filter: &'m ModelFilter) -> impl DoubleEndedIterator<Item = (Seq, &'m ModelEvent)> {
        self.stored_between(filter, Seq::ZERO, self.last())
    }

    /// The stored events that pass a filter, after one event and up to another.
    pub fn stored_between<'m>(
        &'m self,
        filter: &'m ModelFilter,
        after: Seq,
        through: Seq,
    ) -> impl DoubleEndedIterator<Item = (Seq, &'m ModelEvent)> {
        let end = through.min(self.last()).0 as usize;
        let start = (after.0 as usize).min(end);
        let events = self.events[start..end].iter().enumerate();
        let numbered = events.map(move |(i, event)| (Seq((start + i) as u64 + 1), event));
        numbered.filter(|(_, event)| !event.is_deleted && filter.passes(event))
    }

    /// A time at, beside or far from that of an event.
    pub fn time(&self, random: &mut Random) -> Timestamp {
        let chosen = random.below(self.last().0 + 1) as usize;
        let time = self.events.get(chosen).map_or(Timestamp::now(), |event| event.time);
        Timestamp(time.0 + random.pick(&[-4_000_000_000, -1, 0, 1, 4_000_000_000]))
    }

    pub fn delete_oldest(&mut self, before: Option<Timestamp>, mut answer: Pending<u64>) {
        assert!(poll(&mut answer).is_pending());
        self.deletions.push_back(Deletion { scope: Scope::Oldest(before, self.last()), answer });
    }

    pub fn delete_chosen(&mut self, chosen: Vec<Seq>, mut answer: Pending<u64>) {
        assert!(poll(&mut answer).is_pending());
        self.deletions.push_back(Deletion { scope: Scope::Chosen(chosen), answer });
    }

    /// Whether a slice of a deletion by filter is under way.
    pub fn is_deleting_slice(&self) -> bool {
        self.deletions.iter().any(|deletion| matches!(deletion.scope, Scope::Chosen(_)))
    }

    /// Checks what the writer has done since `last` was the last event and `commits` commits waited for the fan-out.
    pub fn settle(&mut self, store: &Store, commits: usize, last: Seq) {
        // Earlier events under keys that were stored again: these must be deleted.
        let mut anew = Vec::new();
        while let Some(Ok(answer)) = self.unanswered.front_mut().map(|batch| batch.answer.try_recv()) {
            let Unanswered { events, repeats, observer, .. } = self.unanswered.pop_front().expect("just looked at");
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
                    let saw = observer.saw.lock().take().expect("the waiting producer is woken");
                    let stored = saw.newest == Some(saw.committed) && saw.committed >= self.last();
                    assert!(stored, "acknowledged before it was stored");
                    assert!(saw.commits <= commits, "delivered before it was acknowledged");
                }
                Err(failure) => assert!(failure == Failure::StorageFull && self.disk_was_full, "{failure}"),
            }
        }
        assert!(self.unanswered.iter().all(|later| later.answer.is_empty()), "answered out of order");
        self.settle_deletions(store, last);
        assert!(anew.into_iter().all(|seq| self.is_deleted(seq)), "stored twice under one key");
    }

    /// The event that is now stored under the key of this event: itself or, once it was deleted, a later one.
    fn first_under(&self, seq: Seq) -> Seq {
        let key = &self.event(seq).key;
        let under = self.events.iter().rposition(|event| event.key == *key).expect("it is one of them");
        Seq(under as u64 + 1)
    }

    fn acknowledged(&mut self, events: Vec<ModelEvent>, batch: &Committed) {
        assert_eq!((batch.first(), batch.len()), (self.last().next(), events.len()), "dense, and in order");
        for (i, event) in events.into_iter().enumerate() {
            self.push(event, &batch.json(i));
        }
    }

    /// Adds an event that was stored as the next one, and delivered as `json`.
    fn push(&mut self, mut event: ModelEvent, json: &[u8]) {
        let time = &json[json.len() - Timestamp::LEN - 2..json.len() - 2];
        event.time = Timestamp::parse_floor(std::str::from_utf8(time).expect("ASCII")).expect("a time");
        assert!(self.events.last().is_none_or(|before| event.time > before.time), "times increase");
        assert_eq!(json, event.json(self.last().next()).as_bytes());
        self.events.push(event);
    }

    /// Finds the events that are gone, and checks that each belongs to a requested deletion.
    fn settle_deletions(&mut self, store: &Store, last: Seq) {
        if self.deletions.is_empty() {
            return;
        }
        let gone = self.find_gone(store);
        let chosen = self.deletions.iter().filter_map(|deletion| match &deletion.scope {
            Scope::Chosen(chosen) => Some(chosen),
            Scope::Oldest(..) => None,
        });
        let chosen: BTreeSet<Seq> = chosen.flatten().copied().collect();
        let end = self.deletions.iter().map(|deletion| deletion.end(self, last)).max().unwrap_or(0);
        for seq in &gone {
            assert!(chosen.contains(seq) || seq.0 <= end, "{} is gone, and no deletion asked for that", seq.id());
            self.events[seq.0 as usize - 1].is_deleted = true;
        }
        self.deleted += gone.len() as u64;
        if let Some(newest) = gone.iter().rev().find(|seq| !chosen.contains(seq)) {
            let older = self.stored_between(&ModelFilter::default(), Seq::ZERO, *newest).next().map(|(seq, _)| seq);
            assert_eq!(older, None, "deleted {}, which is not the oldest", newest.id());
        }
        while let Some(deletion) = self.deletions.front_mut() {
            match poll(&mut deletion.answer) {
                Poll::Pending => return,
                Poll::Ready(Ok(count)) => {
                    self.counted += count;
                    let deletion = self.deletions.pop_front().expect("just looked at");
                    let is_left = match &deletion.scope {
                        Scope::Oldest(_, asked) => {
                            let end = Seq(deletion.end(self, *asked));
                            self.stored_between(&ModelFilter::default(), Seq::ZERO, end).next().is_some()
                        }
                        Scope::Chosen(chosen) => chosen.iter().any(|seq| !self.is_deleted(*seq)),
                    };
                    assert!(!is_left, "deleted too little");
                }
                Poll::Ready(Err(failure)) => {
                    let excused = match failure {
                        Failure::Unavailable => self.is_ending,
                        Failure::StorageFull => self.disk_was_full,
                        Failure::QueueFull | Failure::Locked | Failure::Damaged => false,
                    };
                    assert!(excused, "{failure}");
                    self.deletions.pop_front();
                    // Some of its events may be gone, and no answer counts them.
                    self.counted = self.deleted;
                }
            }
        }
        if self.is_ending {
            // A deletion in several commits may have been broken off.
            self.counted = self.deleted;
        }
        assert_eq!(self.counted, self.deleted, "the answers count other numbers than were deleted");
    }

    /// The events that were stored and are gone.
    fn find_gone(&self, store: &Store) -> Vec<Seq> {
        let any = ModelFilter::default();
        let mut gone = Vec::new();
        let mut expected = self.stored(&any).map(|(seq, _)| seq).peekable();
        let found = store.reader().scan(&Query::default(), |event| {
            while expected.peek().is_some_and(|seq| *seq < event.seq) {
                gone.extend(expected.next());
            }
            // Later events may be stored that are not acknowledged yet.
            assert!(expected.next() == Some(event.seq) || event.seq > self.last(), "{} came back", event.seq.id());
            ControlFlow::Continue(())
        });
        found.expect("read");
        gone.extend(expected);
        gone
    }

    /// After a power cut: the last unsynced events may be gone, and unsynced deletions undone.
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
        self.counted = self.deleted;
    }

    /// After a start: the server before had ended, if `unacknowledged` in or after a commit that it did not
    /// acknowledge.
    pub fn reopened(&mut self, store: &Store, unacknowledged: Option<Unacknowledged>) {
        // Deletions under way got no answer, and some of their events may be gone.
        self.is_ending = true;
        self.settle_deletions(store, store.committed());
        assert!(self.deletions.is_empty(), "a deletion was left without an answer");
        let stored = store.committed().0 - self.last().0;
        match unacknowledged {
            None => assert_eq!(stored, 0, "events are stored that no producer sent"),
            Some(Unacknowledged { events, is_torn }) => {
                assert!(stored == events || (stored == 0 && (is_torn || self.disk_was_full)), "{stored} of {events}");
            }
        }
        while self.last() < store.committed() {
            let Unanswered { events, answer, .. } = self.unanswered.pop_front().expect("nothing else can be stored");
            drop(answer);
            for event in events {
                let seq = self.last().next();
                let json = store
                    .reader()
                    .event(&seq.id().to_string(), &Filter::default())
                    .expect("read")
                    .expect("all of a batch, or nothing");
                self.push(event, &json);
            }
        }
        assert_eq!(store.committed(), self.last(), "numbers are lost or used again");
        self.unanswered.drain(..).for_each(Unanswered::must_be_unavailable);
        (self.is_ending, self.disk_was_full) = (false, false);
    }

    /// The commit that the writer has just made without acknowledging it: its batches are those whose receipts are
    /// gone.
    pub fn unacknowledged(&mut self, is_torn: bool) -> Unacknowledged {
        let mut unanswered = std::mem::take(&mut self.unanswered);
        let (mut events, mut anew) = (0, Vec::new());
        for batch in unanswered.iter_mut().take_while(|batch| !batch.answer.is_empty()) {
            if let Some(under) = batch.repeats.map(|seq| self.first_under(seq)) {
                if !self.is_deleted(under) || anew.contains(&under) {
                    // A repeat stores nothing.
                    batch.events.clear();
                }
                // The first one after a deletion is stored as a new event, and later ones repeat that.
                anew.push(under);
            }
            events += batch.events.len() as u64;
        }
        self.unanswered = unanswered;
        Unacknowledged { events, is_torn }
    }
}

/// A commit that was not acknowledged.
#[derive(Clone, Copy)]
pub struct Unacknowledged {
    /// How many events are in it.
    events: u64,
    /// The machine stopped in the middle of writing it.
    is_torn: bool,
}

impl Deletion {
    /// If it goes by time: up to which number it deletes events, considering those up to `last`.
    fn end(&self, model: &Model, last: Seq) -> u64 {
        let Scope::Oldest(before, _) = &self.scope else { return 0 };
        let stored = &model.events[..model.events.len().min(last.0 as usize)];
        before.map_or(stored.len(), |before| stored.partition_point(|event| event.time < before)) as u64
    }
}
