//! The ledger of a consumer group: which member has which event in hand. It does no input or output and reads no clock:
//! times come from the caller.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::event::Seq;

/// Identifies a member. A number is never given to another member, as confirmations of the first may still be on their way.
pub type MemberId = u32;

/// How much a group may have unconfirmed, and how long a member may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most unconfirmed events at a time, in hand or waiting.
    pub window_events: usize,
    /// Most unconfirmed bytes at a time. The last event may exceed it, as a larger one could otherwise never be delivered.
    pub window_bytes: usize,
    /// How long a member may have an event in hand. The time for the events before it counts too, so this must be enough for a
    /// whole window.
    pub ack_wait: Duration,
}

/// An event that has to be sent to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment<T> {
    /// The member that has the event in hand from now on.
    pub member: MemberId,
    pub seq: Seq,
    /// How often the event has been sent, this time included.
    pub attempt: u32,
    /// What was passed to [`Ledger::offer`].
    pub item: T,
}

/// The unconfirmed events of a group. Each waits or is in the hand of one member.
///
/// Events with the same ordering key go to the same member, in order, as long as any of them is unconfirmed. So the confirmed
/// events of a key are always its first ones, and its waiting events come after those in hand.
#[derive(Debug)]
pub struct Ledger<T> {
    limits: Limits,
    /// The event up to which the stream has been read.
    read: Seq,
    /// All unconfirmed events.
    events: BTreeMap<Seq, Entry<T>>,
    bytes: usize,
    /// The ordering keys that have unconfirmed events.
    keys: HashMap<u64, Key, foldhash::fast::RandomState>,
    /// The events that no member has in hand.
    waiting: BTreeSet<Seq>,
    /// The members, and what each has in hand, by [`InHand::confirmation_order`].
    members: HashMap<MemberId, BTreeMap<SendNumber, Seq>, foldhash::fast::RandomState>,
    /// The events in hand, in the order in which they were sent: the first is the next to be overdue.
    sent: BTreeMap<SendNumber, Seq>,
    last_send: SendNumber,
}

/// Counts the events that were sent. Unlike an index, it stays the same when earlier ones are confirmed.
type SendNumber = u64;

#[derive(Debug)]
struct Entry<T> {
    key: u64,
    item: T,
    bytes: usize,
    attempts: u32,
    in_hand: Option<InHand>,
    /// The confirmation order that it had with members from which it was taken back. Almost always empty.
    former_orders: Vec<(MemberId, SendNumber)>,
}

#[derive(Debug)]
struct InHand {
    member: MemberId,
    /// A confirmation of an event covers the member's events with a smaller number. It is the number with which the member
    /// was sent the event for the first time.
    confirmation_order: SendNumber,
    send: SendNumber,
    since: Instant,
}

#[derive(Debug, Default)]
struct Key {
    /// Its unconfirmed events, in order.
    events: VecDeque<Seq>,
    /// The member that gets its events. It may have left.
    member: Option<MemberId>,
    /// The member that let its events expire, which is passed over when the next one is chosen.
    passed_over: Option<MemberId>,
}

impl<T: Clone> Ledger<T> {
    /// A group without members that has confirmed everything up to `position`.
    pub fn new(position: Seq, limits: Limits) -> Self {
        Self {
            limits,
            read: position,
            events: BTreeMap::new(),
            bytes: 0,
            keys: HashMap::default(),
            waiting: BTreeSet::new(),
            members: HashMap::default(),
            sent: BTreeMap::new(),
            last_send: 0,
        }
    }

    /// Adds a member. It gets events of keys without unconfirmed ones. All other keys stay with their members.
    pub fn join(&mut self, member: MemberId) {
        let former = self.members.insert(member, BTreeMap::new());
        assert!(former.is_none(), "a member joins once");
    }

    /// Removes a member. The events that it had in hand wait for other members.
    pub fn leave(&mut self, member: MemberId) {
        for seq in self.members.remove(&member).unwrap_or_default().into_values() {
            self.take_back(seq);
        }
    }

    /// Whether the window has room for one more event, whatever its size.
    pub fn has_room(&self) -> bool {
        self.events.len() < self.limits.window_events && self.bytes < self.limits.window_bytes
    }

    /// Adds the next event of the stream, for which there has to be room. Events with the same `key`, which is a hash
    /// already, stay together.
    pub fn offer(&mut self, seq: Seq, key: u64, item: T, bytes: usize) {
        assert!(seq > self.read, "events are offered in order, each once");
        assert!(self.has_room(), "events are offered while there is room");
        self.read = seq;
        self.bytes += bytes;
        self.keys.entry(key).or_default().events.push_back(seq);
        self.waiting.insert(seq);
        let entry = Entry { key, item, bytes, attempts: 0, in_hand: None, former_orders: Vec::new() };
        self.events.insert(seq, entry);
    }

    /// Notes that the stream has been read up to here. Events before it that were not offered are not for this group.
    pub fn read_through(&mut self, seq: Seq) {
        self.read = self.read.max(seq);
    }

    /// A member confirms an event and everything that it was sent before it. If it does not have the event in hand, or no
    /// longer, nothing changes, and the result is `false`.
    ///
    /// An event that was sent to the same member twice has the confirmation order of the first time. The member may mean
    /// the first time, and confirming up to the second would lose the events sent in between. The price: if the member means
    /// the second time, the events in between stay unconfirmed.
    pub fn confirm(&mut self, member: MemberId, seq: Seq) -> bool {
        let in_hand = self.events.get(&seq).and_then(|entry| entry.in_hand.as_ref());
        let Some(in_hand) = in_hand.filter(|in_hand| in_hand.member == member) else { return false };
        let confirmed = in_hand.confirmation_order;
        let hand = self.members.get_mut(&member).expect("only a member has an event in hand");
        while let Some(first) = hand.first_entry().filter(|first| *first.key() <= confirmed) {
            let seq = first.remove();
            let entry = self.events.remove(&seq).expect("an event in hand is unconfirmed");
            let send = entry.in_hand.expect("it is in hand").send;
            self.sent.remove(&send);
            self.bytes -= entry.bytes;
            let key = self.keys.get_mut(&entry.key).expect("an unconfirmed event has its key");
            assert_eq!(key.events.pop_front(), Some(seq), "events of a key are confirmed in order");
            if key.events.is_empty() {
                self.keys.remove(&entry.key);
            }
        }
        true
    }

    /// Takes back each event that has been in hand for too long, with all others of its key. They go to other members, if
    /// there are any.
    pub fn expire(&mut self, now: Instant) {
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let (_, first) = self.sent.first_key_value().expect("an event with a deadline was sent");
            let key = self.keys.get_mut(&self.events[first].key).expect("an unconfirmed event has its key");
            key.passed_over = key.member.take();
            let in_hand: Vec<Seq> =
                key.events.iter().copied().take_while(|seq| self.events[seq].in_hand.is_some()).collect();
            assert!(!in_hand.is_empty(), "the events of a key that are in hand come first");
            for seq in in_hand {
                self.take_back(seq);
            }
        }
    }

    /// When [`Ledger::expire`] will have something to do, if nothing is confirmed before. If the times of the caller go back
    /// a little, as those of two threads may, the deadline is later by as much.
    pub fn next_deadline(&self) -> Option<Instant> {
        let (_, first) = self.sent.first_key_value()?;
        self.events[first].in_hand.as_ref()?.since.checked_add(self.limits.ack_wait)
    }

    /// Assigns all waiting events to members, in order, and counts them as sent at `now`. Without members they stay
    /// waiting.
    pub fn assign(&mut self, now: Instant) -> Vec<Assignment<T>> {
        if self.members.is_empty() {
            return Vec::new();
        }
        let mut assignments = Vec::with_capacity(self.waiting.len());
        for seq in std::mem::take(&mut self.waiting) {
            let entry = self.events.get_mut(&seq).expect("a waiting event is unconfirmed");
            let key = self.keys.get_mut(&entry.key).expect("an unconfirmed event has its key");
            let present = key.member.filter(|member| self.members.contains_key(member));
            let member = present.unwrap_or_else(|| choose(entry.key, self.members.keys().copied(), key.passed_over));
            key.member = Some(member);
            key.passed_over = None;

            self.last_send += 1;
            let send = self.last_send;
            let former = entry.former_orders.iter().find(|(former, _)| *former == member);
            let confirmation_order = former.map_or(send, |(_, order)| *order);
            entry.in_hand = Some(InHand { member, confirmation_order, send, since: now });
            entry.attempts += 1;
            self.sent.insert(send, seq);
            self.members.get_mut(&member).expect("a member was chosen").insert(confirmation_order, seq);
            assignments.push(Assignment { member, seq, attempt: entry.attempts, item: entry.item.clone() });
        }
        assignments
    }

    /// Everything up to this event is confirmed, or is not for this group. The position never goes back.
    pub fn position(&self) -> Seq {
        self.events.first_key_value().map_or(self.read, |(first, _)| first.prev())
    }

    /// The number of events that are in hand or waiting.
    pub fn unconfirmed(&self) -> usize {
        self.events.len()
    }

    /// Puts an event that is in hand back among the waiting ones. Its confirmation order is kept for each present member
    /// that has had it, as that member may get it again.
    fn take_back(&mut self, seq: Seq) {
        let entry = self.events.get_mut(&seq).expect("an event in hand is unconfirmed");
        let InHand { member, confirmation_order, send, .. } = entry.in_hand.take().expect("it is in hand");
        entry.former_orders.retain(|(former, _)| *former != member && self.members.contains_key(former));
        if let Some(hand) = self.members.get_mut(&member) {
            hand.remove(&confirmation_order);
            entry.former_orders.push((member, confirmation_order));
        }
        self.sent.remove(&send);
        self.waiting.insert(seq);
    }
}

/// The member with the largest hash of key and member (rendezvous hashing), so that a member that comes or leaves moves only
/// its own keys. The price: each choice looks at every member, once for each key without unconfirmed events.
fn choose(key: u64, members: impl Iterator<Item = MemberId> + Clone, passed_over: Option<MemberId>) -> MemberId {
    let weight = |member: &MemberId| mix(key ^ mix(u64::from(*member)));
    let others = members.clone().filter(|member| Some(*member) != passed_over);
    others.max_by_key(weight).or_else(|| members.max_by_key(weight)).expect("the group has a member")
}

/// One step of SplitMix64. It is a bijection, so no two members have the same hash for a key.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;

    const ACK_WAIT: Duration = Duration::from_secs(30);
    const LIMITS: Limits = Limits { window_events: 12, window_bytes: 100, ack_wait: ACK_WAIT };

    /// A group with these members and events of these keys, numbered from 1.
    fn group(members: &[MemberId], keys: &[u64]) -> Ledger<char> {
        let mut ledger = Ledger::new(Seq::ZERO, LIMITS);
        members.iter().for_each(|member| ledger.join(*member));
        (1..).zip(keys).for_each(|(seq, key)| ledger.offer(Seq(seq), *key, 'x', 1));
        ledger
    }

    fn take(ledger: &mut Ledger<char>, now: Instant) -> Vec<(MemberId, u64, u32)> {
        ledger.assign(now).into_iter().map(|due| (due.member, due.seq.0, due.attempt)).collect()
    }

    #[test]
    fn a_confirmation_covers_the_events_sent_before_it() {
        let mut ledger = group(&[], &[7, 8, 9]);
        assert_eq!(take(&mut ledger, Instant::now()), []);
        ledger.join(1);
        assert_eq!(take(&mut ledger, Instant::now()), [(1, 1, 1), (1, 2, 1), (1, 3, 1)]);
        ledger.read_through(Seq(10));
        assert!(ledger.confirm(1, Seq(2)));
        assert_eq!((ledger.position(), ledger.unconfirmed()), (Seq(2), 1));
        for (member, seq) in [(1, 1), (1, 2), (1, 4), (2, 3)] {
            assert!(!ledger.confirm(member, Seq(seq)), "{seq} is not in the hand of {member}");
        }
        assert!(ledger.confirm(1, Seq(3)));
        assert_eq!((ledger.position(), ledger.unconfirmed()), (Seq(10), 0));
    }

    #[test]
    fn all_events_of_a_key_move_away_from_a_member_that_let_one_expire() {
        let (mut ledger, start) = (group(&[1], &[7]), Instant::now());
        take(&mut ledger, start);
        ledger.offer(Seq(2), 7, 'x', 1);
        take(&mut ledger, start + ACK_WAIT / 2);
        ledger.offer(Seq(3), 7, 'x', 1);
        ledger.join(2);
        assert_eq!(ledger.next_deadline(), Some(start + ACK_WAIT));
        ledger.expire(start + ACK_WAIT);
        assert_eq!(ledger.next_deadline(), None);
        assert_eq!(take(&mut ledger, start + ACK_WAIT), [(2, 1, 2), (2, 2, 2), (2, 3, 1)]);
        assert!(!ledger.confirm(1, Seq(1)));
    }

    #[test]
    fn a_late_confirmation_does_not_cover_events_sent_between_two_attempts() {
        let (mut ledger, start) = (group(&[1], &[7]), Instant::now());
        take(&mut ledger, start);
        ledger.offer(Seq(2), 8, 'x', 1);
        take(&mut ledger, start + ACK_WAIT / 2);
        ledger.expire(start + ACK_WAIT);
        assert_eq!(take(&mut ledger, start + ACK_WAIT), [(1, 1, 2)]);
        assert!(ledger.confirm(1, Seq(1)));
        assert_eq!((ledger.position(), ledger.unconfirmed()), (Seq(1), 1));
    }

    #[test]
    fn a_member_that_leaves_moves_only_its_own_keys() {
        let before = |key| choose(key, 1..=5, None);
        let moved = (0..10_000).filter(|key| before(*key) != choose(*key, 1..=4, None)).collect::<Vec<_>>();
        assert!(moved.iter().all(|key| before(*key) == 5));
        assert!((1_800..2_200).contains(&moved.len()), "{}", moved.len());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Join,
        Leave(Index),
        Offer { key: u64, skip: u64, bytes: usize },
        Reach(u64),
        Deliver,
        Confirm { who: Index, back: usize },
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => Just(Step::Join),
            1 => any::<Index>().prop_map(Step::Leave),
            6 => (0..4u64, 1..3u64, 0..30usize).prop_map(|(key, skip, bytes)| Step::Offer { key, skip, bytes }),
            1 => (0..3u64).prop_map(Step::Reach),
            4 => Just(Step::Deliver),
            3 => (any::<Index>(), 1..16usize).prop_map(|(who, back)| Step::Confirm { who, back }),
            2 => (1..20u64).prop_map(Step::Pass),
        ]
    }

    struct ModelEvent {
        key: u64,
        bytes: usize,
        attempts: u32,
        holder: Option<(MemberId, Instant)>,
    }

    impl ModelEvent {
        fn is_with(&self, member: MemberId) -> bool {
            self.holder.is_some_and(|(holder, _)| holder == member)
        }
    }

    /// What the ledger should hold, found by looking through everything that each member was sent.
    #[derive(Default)]
    struct Model {
        reached: u64,
        events: BTreeMap<u64, ModelEvent>,
        sent: BTreeMap<MemberId, Vec<u64>>,
        passed_over: BTreeMap<u64, MemberId>,
    }

    impl Model {
        fn deliver(&mut self, assignments: Vec<Assignment<u64>>, now: Instant) {
            assert!(assignments.is_sorted_by_key(|assignment| assignment.seq));
            for Assignment { member, seq, attempt, item: key } in assignments {
                let mut earlier = self.events.range(..seq.0).filter(|(_, event)| event.key == key).peekable();
                let may_choose = earlier.peek().is_none() && self.sent.len() > 1;
                assert!(!may_choose || self.passed_over.get(&key) != Some(&member));
                assert!(earlier.all(|(_, event)| event.is_with(member)));
                let event = self.events.get_mut(&seq.0).expect("only what is unconfirmed is sent");
                assert_eq!((event.key, event.attempts + 1, event.holder), (key, attempt, None));
                (event.attempts, event.holder) = (attempt, Some((member, now)));
                self.sent.get_mut(&member).expect("only members are sent to").push(seq.0);
            }
            self.passed_over.clear();
            assert!(self.sent.is_empty() || self.events.values().all(|event| event.holder.is_some()));
        }

        fn expire(&mut self, now: Instant) {
            let overdue = |event: &&ModelEvent| event.holder.is_some_and(|(_, since)| since + ACK_WAIT <= now);
            let keys: BTreeSet<u64> = self.events.values().filter(overdue).map(|event| event.key).collect();
            for event in self.events.values_mut().filter(|event| keys.contains(&event.key)) {
                self.passed_over.extend(event.holder.take().map(|(who, _)| (event.key, who)));
            }
        }

        /// The member confirms the delivery at `index`: never more than it was sent up to there.
        fn confirm(&mut self, member: MemberId, index: usize) -> bool {
            let sent = &self.sent[&member];
            let has = |seq: &u64| self.events.get(seq).is_some_and(|event| event.is_with(member));
            if !has(&sent[index]) {
                return false;
            }
            let first = sent.iter().position(|seq| *seq == sent[index]).expect("it was sent");
            let confirmed: Vec<u64> = sent[..=first].iter().copied().filter(has).collect();
            self.events.retain(|seq, _| !confirmed.contains(seq));
            true
        }

        fn check(&self, ledger: &Ledger<u64>) {
            let holder = |entry: &Entry<u64>| entry.in_hand.as_ref().map(|in_hand| (in_hand.member, in_hand.since));
            let held = ledger.events.iter().map(|(seq, entry)| (seq.0, holder(entry)));
            assert!(held.eq(self.events.iter().map(|(seq, event)| (*seq, event.holder))), "{ledger:?}");
            let since = self.events.values().filter_map(|event| event.holder).map(|(_, since)| since).min();
            assert_eq!(ledger.next_deadline(), since.map(|since| since + ACK_WAIT));
            let position = self.events.keys().next().map_or(self.reached, |first| first - 1);
            assert_eq!((ledger.position(), ledger.members.len()), (Seq(position), self.sent.len()));
            let bytes: usize = self.events.values().map(|event| event.bytes).sum();
            assert_eq!(ledger.has_room(), self.events.len() < LIMITS.window_events && bytes < LIMITS.window_bytes);
        }
    }

    proptest! {
        #[test]
        fn every_event_has_one_holder_until_it_is_confirmed(steps in prop::collection::vec(step(), 0..200)) {
            let (mut ledger, mut model) = (Ledger::new(Seq::ZERO, LIMITS), Model::default());
            let (mut now, mut newcomer, mut position) = (Instant::now(), 0, Seq::ZERO);
            for step in steps {
                let someone = |who: Index| {
                    (!model.sent.is_empty()).then(|| *who.get(&model.sent.keys().collect::<Vec<_>>())).copied()
                };
                match step {
                    Step::Join => {
                        newcomer += 1;
                        ledger.join(newcomer);
                        model.sent.insert(newcomer, Vec::new());
                    }
                    Step::Leave(who) => if let Some(who) = someone(who) {
                        ledger.leave(who);
                        model.sent.remove(&who);
                        let held = model.events.values_mut().filter(|event| event.is_with(who));
                        held.for_each(|event| event.holder = None);
                    },
                    Step::Offer { key, skip, bytes } => if ledger.has_room() {
                        model.reached += skip;
                        ledger.offer(Seq(model.reached), key, key, bytes);
                        model.events.insert(model.reached, ModelEvent { key, bytes, attempts: 0, holder: None });
                    },
                    Step::Reach(further) => {
                        model.reached += further;
                        ledger.read_through(Seq(model.reached));
                    }
                    Step::Deliver => model.deliver(ledger.assign(now), now),
                    Step::Confirm { who, back } => if let Some(who) = someone(who)
                        && let Some(index) = model.sent[&who].len().checked_sub(back)
                    {
                        let seq = Seq(model.sent[&who][index]);
                        prop_assert_eq!(ledger.confirm(who, seq), model.confirm(who, index));
                    },
                    Step::Pass(seconds) => {
                        now += Duration::from_secs(seconds);
                        ledger.expire(now);
                        model.expire(now);
                    }
                }
                model.check(&ledger);
                prop_assert!(ledger.position() >= position);
                position = ledger.position();
            }

            for member in model.sent.keys() {
                ledger.leave(*member);
            }
            ledger.join(newcomer + 1);
            let due = ledger.assign(now);
            prop_assert!(due.iter().map(|due| due.seq.0).eq(model.events.keys().copied()));
            prop_assert!(due.iter().all(|due| ledger.confirm(due.member, due.seq)));
            prop_assert_eq!((ledger.position(), ledger.unconfirmed(), ledger.bytes), (Seq(model.reached), 0, 0));
            prop_assert!(ledger.keys.is_empty() && ledger.sent.is_empty() && ledger.waiting.is_empty());
        }
    }
}
