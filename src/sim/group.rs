//! Consumer groups: members that come and go, confirm late, twice and out of order, or let events expire.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::feed_task::FeedTask;
use super::filter::ModelFilter;
use super::model::Model;
use super::random::Random;
use super::server::Server;
use super::subscriber::each;
use crate::event::{Field, Seq};
use crate::feed::{Chunk, Feed};
use crate::group::Distributor;
use crate::ledger::{Limits, MemberId};
use crate::store::Store;

const ACK_WAIT: Duration = Duration::from_secs(30);
const LIMITS: Limits = Limits { window_events: 7, window_bytes: 1_500, ack_wait: ACK_WAIT };
const MEMBERS_MAX: usize = 4;

/// A group that has members, with the task that serves it.
pub struct Group {
    filter: ModelFilter,
    pub task: FeedTask,
    distributor: Distributor,
    /// The position at which the group began: events up to it were confirmed before.
    began: Seq,
    now: Instant,
    newcomer: MemberId,
    /// The events that each member was sent, in order.
    sent: BTreeMap<MemberId, Vec<Seq>>,
    /// The member that has each event in hand, and since when.
    hands: BTreeMap<Seq, (MemberId, Instant)>,
    confirmed: BTreeSet<Seq>,
}

impl Group {
    pub fn new(server: &Server, filter: &ModelFilter, position: Seq) -> Self {
        let feed = Feed::new(server.store.clone(), server.hub.clone(), filter.real.clone(), position);
        let mut group = Self {
            filter: filter.clone(),
            task: FeedTask::new(feed),
            distributor: Distributor::new(position, LIMITS),
            began: position,
            now: Instant::now(),
            newcomer: 0,
            sent: BTreeMap::new(),
            hands: BTreeMap::new(),
            confirmed: BTreeSet::new(),
        };
        group.join();
        group
    }

    pub fn join(&mut self) {
        if self.sent.len() < MEMBERS_MAX {
            self.newcomer += 1;
            self.distributor.ledger.join(self.newcomer);
            self.sent.insert(self.newcomer, Vec::new());
        }
    }

    /// Lets a member leave. Returns whether others are left.
    pub fn leave(&mut self, random: &mut Random) -> bool {
        if let Some(member) = self.any_member(random) {
            self.distributor.ledger.leave(member);
            self.sent.remove(&member);
            self.hands.retain(|_, (holder, _)| *holder != member);
        }
        !self.sent.is_empty()
    }

    fn any_member(&self, random: &mut Random) -> Option<MemberId> {
        random.index(self.sent.len()).and_then(|index| self.sent.keys().nth(index).copied())
    }

    /// A member confirms an event, most likely the last one that it was sent.
    pub fn confirm(&mut self, random: &mut Random, model: &Model) {
        let Some(member) = self.any_member(random) else { return };
        let sent = &self.sent[&member];
        let Some(index) = random.index(sent.len()) else { return };
        let index = if random.one_in(2) { sent.len() - 1 } else { index };
        let anything = Seq(random.below(model.last().0 + 2));
        let seq = if random.one_in(16) { anything } else { sent[index] };
        self.confirm_by(member, seq);
    }

    fn confirm_by(&mut self, member: MemberId, seq: Seq) {
        let is_with = |seq: &Seq| self.hands.get(seq).is_some_and(|(holder, _)| *holder == member);
        let has_it = is_with(&seq);
        assert_eq!(self.distributor.ledger.confirm(member, seq), has_it, "{} by {member}", seq.id());
        if has_it {
            // The event may have been sent several times: the confirmation means the first.
            let through = self.sent[&member].iter().position(|sent| *sent == seq).expect("it was sent");
            let done: Vec<Seq> = self.sent[&member][..=through].iter().copied().filter(is_with).collect();
            self.hands.retain(|seq, _| !done.contains(seq));
            self.confirmed.extend(done);
        }
    }

    /// Lets time pass, so that events that are in hand for too long expire.
    pub fn pass_time(&mut self, random: &mut Random, model: &Model) {
        self.now += Duration::from_secs(random.below(20));
        self.distributor.ledger.expire(self.now);
        let session = |seq: &Seq| model.event(*seq).field(Field::Session);
        let overdue = self.hands.iter().filter(|(_, (_, since))| *since + ACK_WAIT <= self.now).map(|(seq, _)| *seq);
        let overdue: Vec<Seq> = overdue.collect();
        let goes =
            |seq: &Seq| overdue.iter().any(|of| of == seq || (session(of).is_some() && session(of) == session(seq)));
        self.hands.retain(|seq, _| !goes(seq));
    }

    /// Takes a step of its task, unless the task sleeps or the window is full. Returns whether it did.
    pub fn step(&mut self, store: &Store) -> bool {
        if !self.task.is_awake() || !self.distributor.needs_events() {
            return false;
        }
        match self.task.step(store) {
            Some(Chunk::Events(runs)) => self.distributor.push(runs, self.task.feed.position()),
            Some(Chunk::FellBehind | Chunk::CaughtUp) | None => {}
            Some(chunk) => panic!("{chunk:?}"),
        }
        true
    }

    /// Deals out what is due, and returns how far everything is confirmed, if that is further than before.
    pub fn deal(&mut self, model: &Model) -> Option<Seq> {
        let before = self.distributor.position;
        for (member, frame) in self.distributor.assign(self.now) {
            for seq in each(&frame, &self.filter, model) {
                self.dealt(member, seq, model);
            }
        }
        let position = self.distributor.position;
        assert!(position >= before && self.hands.len() <= LIMITS.window_events);
        assert!(self.hands.keys().all(|seq| *seq > position), "an event up to {} is still in hand", position.id());
        let mut done = model.stored_between(&self.filter, before, position).map(|(seq, _)| seq);
        assert_eq!(
            done.find(|seq| !self.confirmed.contains(seq)),
            None,
            "the position {} passes an unconfirmed event",
            position.id()
        );
        (position > before).then_some(position)
    }

    fn dealt(&mut self, member: MemberId, seq: Seq, model: &Model) {
        assert!(seq > self.began && !self.confirmed.contains(&seq), "{} was confirmed before", seq.id());
        let session = model.event(seq).field(Field::Session);
        for (of, (holder, _)) in &self.hands {
            let is_neighbour = session.is_some() && model.event(*of).field(Field::Session) == session;
            assert!(
                !is_neighbour || (*holder == member && *of < seq),
                "a session is out of order, or with two members"
            );
        }
        let former = self.hands.insert(seq, (member, self.now));
        assert_eq!(former, None, "{} is in hand twice", seq.id());
        self.sent.get_mut(&member).expect("only members are sent to").push(seq);
    }

    /// Confirms everything that is in hand. Returns whether there was anything.
    pub fn confirm_all(&mut self) -> bool {
        let is_busy = !self.hands.is_empty();
        while let Some((seq, (member, _))) = self.hands.last_key_value().map(|(seq, hand)| (*seq, *hand)) {
            self.confirm_by(member, seq);
        }
        is_busy
    }

    pub fn must_have_everything(&self, model: &Model) {
        let mut wanted = model.stored_between(&self.filter, self.began, model.last()).map(|(seq, _)| seq);
        assert_eq!(wanted.find(|seq| !self.confirmed.contains(seq)), None, "no member got this event");
    }
}
