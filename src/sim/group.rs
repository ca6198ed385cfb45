//! Consumer groups: members that come and go, confirm late, twice and out of order, or let events expire.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::model::Model;
use super::subscriber::{Bell, Reading, each};
use super::wish::Wish;
use super::{Random, Server};
use crate::event::{Field, Seq};
use crate::feed::{Chunk, Feed, Step};
use crate::group::Sharing;
use crate::ledger::{Limits, MemberId};
use crate::store::Store;

const ACK_WAIT: Duration = Duration::from_secs(30);
const LIMITS: Limits = Limits { window_events: 7, window_bytes: 1_500, ack_wait: ACK_WAIT };
const MEMBERS_MAX: usize = 4;

/// A group that has members, with the task that serves it.
pub struct Group {
    wish: Wish,
    feed: Feed,
    sharing: Sharing,
    reading: Option<Reading>,
    bell: Arc<Bell>,
    /// Where this service began: what was confirmed before may be up to there.
    began: Seq,
    now: Instant,
    newcomer: MemberId,
    /// What each member was sent, in order.
    sent: BTreeMap<MemberId, Vec<Seq>>,
    /// Who has which event in hand, and since when.
    hands: BTreeMap<Seq, (MemberId, Instant)>,
    confirmed: BTreeSet<Seq>,
}

impl Group {
    pub fn new(server: &Server, wish: &Wish, position: Seq) -> Self {
        let feed = Feed::new(server.store.clone(), server.hub.clone(), wish.filter.clone(), position);
        let mut group = Self {
            wish: wish.clone(),
            feed,
            sharing: Sharing::new(position, LIMITS),
            reading: None,
            bell: Arc::new(Bell(AtomicBool::new(true))),
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
            self.sharing.ledger.join(self.newcomer);
            self.sent.insert(self.newcomer, Vec::new());
        }
    }

    /// One member leaves. Returns whether there are others.
    pub fn leave(&mut self, random: &mut Random) -> bool {
        if let Some(member) = self.any_member(random) {
            self.sharing.ledger.leave(member);
            self.sent.remove(&member);
            self.hands.retain(|_, (holder, _)| *holder != member);
        }
        !self.sent.is_empty()
    }

    fn any_member(&self, random: &mut Random) -> Option<MemberId> {
        random.place(self.sent.len()).and_then(|place| self.sent.keys().nth(place).copied())
    }

    /// A member confirms something, most likely the last that it was sent.
    pub fn confirm(&mut self, random: &mut Random, model: &Model) {
        let Some(member) = self.any_member(random) else { return };
        let sent = &self.sent[&member];
        let Some(place) = random.place(sent.len()) else { return };
        let place = if random.one_in(2) { sent.len() - 1 } else { place };
        let anything = Seq(random.below(model.last().0 + 2));
        let seq = if random.one_in(16) { anything } else { sent[place] };
        self.confirm_this(member, seq);
    }

    fn confirm_this(&mut self, member: MemberId, seq: Seq) {
        let is_with = |seq: &Seq| self.hands.get(seq).is_some_and(|(holder, _)| *holder == member);
        let has_it = is_with(&seq);
        assert_eq!(self.sharing.ledger.confirm(member, seq), has_it, "{} by {member}", seq.id());
        if has_it {
            // It may mean the first of several sendings.
            let through = self.sent[&member].iter().position(|sent| *sent == seq).expect("it was sent");
            let done: Vec<Seq> = self.sent[&member][..=through].iter().copied().filter(is_with).collect();
            self.hands.retain(|seq, _| !done.contains(seq));
            self.confirmed.extend(done);
        }
    }

    /// Time passes, for some too much.
    pub fn pass_time(&mut self, random: &mut Random, model: &Model) {
        self.now += Duration::from_secs(random.below(20));
        self.sharing.ledger.expire(self.now);
        let session = |seq: &Seq| model.event(*seq).field(Field::Session);
        let overdue = self.hands.iter().filter(|(_, (_, since))| *since + ACK_WAIT <= self.now).map(|(seq, _)| *seq);
        let overdue: Vec<Seq> = overdue.collect();
        let goes =
            |seq: &Seq| overdue.iter().any(|of| of == seq || (session(of).is_some() && session(of) == session(seq)));
        self.hands.retain(|seq, _| !goes(seq));
    }

    /// A step of its task, unless it sleeps or has its hands full. Returns whether there was one.
    pub fn step(&mut self, store: &Store) -> bool {
        if !self.bell.0.load(Ordering::SeqCst) || !self.sharing.is_hungry() {
            return false;
        }
        let chunk = match self.reading.take() {
            Some(Reading::Asked(request)) => {
                self.reading = Some(Reading::Read(request.read(&store.reader()).expect("read")));
                return true;
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
        match chunk {
            Some(Chunk::Events(runs)) => self.sharing.take(runs, self.feed.position()),
            Some(Chunk::FellBehind | Chunk::CaughtUp) | None => {}
            Some(chunk) => panic!("{chunk:?}"),
        }
        true
    }

    /// Something else came first, so its task drops what it waits for and begins again.
    pub fn is_called_away(&mut self) {
        self.reading = None;
        self.bell.0.store(true, Ordering::SeqCst);
    }

    /// Deals out what is due, and returns how far everything is confirmed, if that is further than before.
    pub fn deal(&mut self, model: &Model) -> Option<Seq> {
        let before = self.sharing.position;
        for (member, frame) in self.sharing.deal(self.now) {
            for seq in each(&frame, &self.wish, model) {
                self.dealt(member, seq, model);
            }
        }
        let position = self.sharing.position;
        assert!(position >= before && self.hands.len() <= LIMITS.window_events);
        assert!(self.hands.keys().all(|seq| *seq > position), "somebody has an event up to {}", position.id());
        let mut done = model.kept_between(&self.wish, before, position).map(|(seq, _)| seq);
        assert_eq!(done.find(|seq| !self.confirmed.contains(seq)), None, "up to {} as if confirmed", position.id());
        (position > before).then_some(position)
    }

    fn dealt(&mut self, member: MemberId, seq: Seq, model: &Model) {
        assert!(seq > self.began && !self.confirmed.contains(&seq), "{} was done with", seq.id());
        let session = model.event(seq).field(Field::Session);
        for (of, (holder, _)) in &self.hands {
            let is_neighbour = session.is_some() && model.event(*of).field(Field::Session) == session;
            assert!(!is_neighbour || (*holder == member && *of < seq), "a session out of order, or with two");
        }
        let former = self.hands.insert(seq, (member, self.now));
        assert_eq!(former, None, "{} is in two hands", seq.id());
        self.sent.get_mut(&member).expect("only members are sent to").push(seq);
    }

    /// Every member is done with everything it has. Returns whether anybody had something.
    pub fn confirm_all(&mut self) -> bool {
        let is_busy = !self.hands.is_empty();
        while let Some((seq, (member, _))) = self.hands.last_key_value().map(|(seq, hand)| (*seq, *hand)) {
            self.confirm_this(member, seq);
        }
        is_busy
    }

    pub fn must_have_everything(&self, model: &Model) {
        let mut wanted = model.kept_between(&self.wish, self.began, model.last()).map(|(seq, _)| seq);
        assert_eq!(wanted.find(|seq| !self.confirmed.contains(seq)), None, "nobody of the group got it");
    }
}
