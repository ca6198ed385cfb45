//! Who has which event in hand: how the members of a consumer group share one stream. No input or
//! output, no clock: times come from the caller.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::event::Seq;

/// Names a member for as long as it is there. A number is never given to another member: it may still
/// stand in confirmations that are on their way.
pub type MemberId = u32;

/// How much a group may have unconfirmed, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most events unconfirmed at a time, in hand or waiting.
    pub window_events: usize,
    /// Bytes unconfirmed at a time. The last event may stick out, or a large one would never get through.
    pub window_bytes: usize,
    /// How long a member may have an event in hand. What it has to do first counts too, so this must be
    /// enough for a whole window.
    pub ack_wait: Duration,
}

/// One delivery to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due<T> {
    /// Who has the event in hand from now on.
    pub member: MemberId,
    /// The event's place in the stream.
    pub seq: Seq,
    /// How often the event has been sent, this time included; from 1.
    pub attempt: u32,
    /// What was offered.
    pub item: T,
}

/// The unconfirmed events of a group, each waiting or in the hand of one member.
///
/// Events of one key go to one member, in order, for as long as any of them is unconfirmed. So the
/// confirmed events of a key are always its first ones, and what waits comes after what is in hand.
#[derive(Debug)]
pub struct Ledger<T> {
    limits: Limits,
    /// How far the stream has been read.
    reached: Seq,
    /// Everything unconfirmed.
    events: BTreeMap<Seq, Entry<T>>,
    bytes: usize,
    /// The keys that have something unconfirmed.
    keys: HashMap<u64, Key, foldhash::fast::RandomState>,
    /// What nobody has in hand.
    waiting: BTreeSet<Seq>,
    /// What each member has in hand, in the order of its confirmations.
    hands: HashMap<MemberId, BTreeMap<Turn, Seq>, foldhash::fast::RandomState>,
    /// What is in hand, in the order of sending: who is overdue stands first.
    sent: BTreeMap<Turn, Seq>,
    last_turn: Turn,
}

/// Counts deliveries, so that an order is left where entries go from the middle.
type Turn = u64;

#[derive(Debug)]
struct Entry<T> {
    key: u64,
    item: T,
    bytes: usize,
    attempts: u32,
    in_hand: Option<InHand>,
    /// The places it had with members from whom it was taken back. Almost always empty.
    former_places: Vec<(MemberId, Turn)>,
}

#[derive(Debug)]
struct InHand {
    member: MemberId,
    /// Where it stands in the order of the member's confirmations.
    place: Turn,
    turn: Turn,
    since: Instant,
}

#[derive(Debug, Default)]
struct Key {
    /// Its unconfirmed events, in order.
    events: VecDeque<Seq>,
    /// Who gets its events; may have left.
    member: Option<MemberId>,
    /// Who let its events expire and is passed over when the next member is chosen.
    passed_over: Option<MemberId>,
}

impl<T: Clone> Ledger<T> {
    /// A group without members, for which everything up to `position` is done.
    pub fn new(position: Seq, limits: Limits) -> Self {
        Self {
            limits,
            reached: position,
            events: BTreeMap::new(),
            bytes: 0,
            keys: HashMap::default(),
            waiting: BTreeSet::new(),
            hands: HashMap::default(),
            sent: BTreeMap::new(),
            last_turn: 0,
        }
    }

    /// A member comes. It gets events of keys that have none unconfirmed; the others stay where they are.
    pub fn join(&mut self, member: MemberId) {
        let known = self.hands.insert(member, BTreeMap::new());
        assert!(known.is_none(), "a member joins once");
    }

    /// A member goes; what it had in hand waits for others.
    pub fn leave(&mut self, member: MemberId) {
        for seq in self.hands.remove(&member).unwrap_or_default().into_values() {
            self.take_back(seq);
        }
    }

    /// Whether the window has room for one more event, whatever its size.
    pub fn has_room(&self) -> bool {
        self.events.len() < self.limits.window_events && self.bytes < self.limits.window_bytes
    }

    /// Adds the next event of the stream; only while there is room. Events of equal `key`, which is a
    /// hash already, stay together.
    pub fn offer(&mut self, seq: Seq, key: u64, item: T, bytes: usize) {
        assert!(seq > self.reached, "events are offered in order, each once");
        assert!(self.has_room(), "events are offered while there is room");
        self.reached = seq;
        self.bytes += bytes;
        self.keys.entry(key).or_default().events.push_back(seq);
        self.waiting.insert(seq);
        let entry = Entry { key, item, bytes, attempts: 0, in_hand: None, former_places: Vec::new() };
        self.events.insert(seq, entry);
    }

    /// The stream has been read up to here; what was not offered on the way is not for this group.
    pub fn reached(&mut self, seq: Seq) {
        self.reached = self.reached.max(seq);
    }

    /// A member is done with an event and with everything it was sent before it. Of what it does not have
    /// in hand (any more) nothing changes, and the answer is `false`.
    ///
    /// An event that comes to the same member again keeps the place of its first coming. The member may
    /// mean that one, and confirming up to the second would lose what was sent in between. The price: who
    /// does mean the second has not confirmed what was sent in between.
    pub fn confirm(&mut self, member: MemberId, seq: Seq) -> bool {
        let in_hand = self.events.get(&seq).and_then(|entry| entry.in_hand.as_ref());
        let Some(place) = in_hand.filter(|in_hand| in_hand.member == member).map(|in_hand| in_hand.place) else {
            return false;
        };
        let hand = self.hands.get_mut(&member).expect("who has something in hand is a member");
        while let Some(first) = hand.first_entry().filter(|first| *first.key() <= place) {
            let seq = first.remove();
            let entry = self.events.remove(&seq).expect("what is in hand is unconfirmed");
            let turn = entry.in_hand.expect("it is in a hand").turn;
            self.sent.remove(&turn);
            self.bytes -= entry.bytes;
            let key = self.keys.get_mut(&entry.key).expect("a key with something unconfirmed is known");
            assert_eq!(key.events.pop_front(), Some(seq), "events of a key are confirmed in order");
            if key.events.is_empty() {
                self.keys.remove(&entry.key);
            }
        }
        true
    }

    /// Takes back what has been in hand for too long, with everything else of its key, for others if there
    /// are any.
    pub fn expire(&mut self, now: Instant) {
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let (_, first) = self.sent.first_key_value().expect("what has a deadline was sent");
            let key = self.keys.get_mut(&self.events[first].key).expect("a key with something unconfirmed is known");
            key.passed_over = key.member.take();
            let in_hand: Vec<Seq> =
                key.events.iter().copied().take_while(|seq| self.events[seq].in_hand.is_some()).collect();
            assert!(!in_hand.is_empty(), "what is in hand comes before what waits");
            for seq in in_hand {
                self.take_back(seq);
            }
        }
    }

    /// When [`Ledger::expire`] will have something to do, if nothing is confirmed before. Times that run
    /// back a little, as from two threads, make it later by as much.
    pub fn next_deadline(&self) -> Option<Instant> {
        let (_, first) = self.sent.first_key_value()?;
        self.events[first].in_hand.as_ref()?.since.checked_add(self.limits.ack_wait)
    }

    /// Gives everything that waits to members, in order, and counts it as sent at `now`. Without members
    /// it goes on waiting.
    pub fn take_due(&mut self, now: Instant) -> Vec<Due<T>> {
        if self.hands.is_empty() {
            return Vec::new();
        }
        let mut due = Vec::with_capacity(self.waiting.len());
        for seq in std::mem::take(&mut self.waiting) {
            let entry = self.events.get_mut(&seq).expect("what waits is unconfirmed");
            let key = self.keys.get_mut(&entry.key).expect("a key with something unconfirmed is known");
            let stays = key.member.filter(|member| self.hands.contains_key(member));
            let member = stays.unwrap_or_else(|| choose(entry.key, self.hands.keys().copied(), key.passed_over));
            key.member = Some(member);
            key.passed_over = None;

            self.last_turn += 1;
            let turn = self.last_turn;
            let former = entry.former_places.iter().find(|(who, _)| *who == member);
            let place = former.map_or(turn, |(_, place)| *place);
            entry.in_hand = Some(InHand { member, place, turn, since: now });
            entry.attempts += 1;
            self.sent.insert(turn, seq);
            self.hands.get_mut(&member).expect("a member was chosen").insert(place, seq);
            due.push(Due { member, seq, attempt: entry.attempts, item: entry.item.clone() });
        }
        due
    }

    /// Up to here, inclusive, everything is confirmed or was not for this group. Never goes back.
    pub fn position(&self) -> Seq {
        self.events.first_key_value().map_or(self.reached, |(first, _)| first.prev())
    }

    /// How many events are in hand or waiting.
    pub fn unconfirmed(&self) -> usize {
        self.events.len()
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.hands.len()
    }

    /// Puts an event that is in hand back among those that wait. Its place is remembered for members who
    /// are still there and might get it again.
    fn take_back(&mut self, seq: Seq) {
        let entry = self.events.get_mut(&seq).expect("what is in hand is unconfirmed");
        let InHand { member, place, turn, .. } = entry.in_hand.take().expect("it is in a hand");
        entry.former_places.retain(|(who, _)| *who != member && self.hands.contains_key(who));
        if let Some(hand) = self.hands.get_mut(&member) {
            hand.remove(&place);
            entry.former_places.push((member, place));
        }
        self.sent.remove(&turn);
        self.waiting.insert(seq);
    }
}

/// The member with the largest hash of key and member, so that members who come and go move no keys but
/// their own. The price is a look at every member for each key that has no event unconfirmed.
fn choose(key: u64, members: impl Iterator<Item = MemberId> + Clone, passed_over: Option<MemberId>) -> MemberId {
    let weight = |member: &MemberId| mix(key ^ mix(u64::from(*member)));
    let others = members.clone().filter(|member| Some(*member) != passed_over);
    others.max_by_key(weight).or_else(|| members.max_by_key(weight)).expect("there is a member")
}

/// One step of SplitMix64. It maps no two numbers to the same one, so no two members tie for a key.
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
        ledger.take_due(now).into_iter().map(|due| (due.member, due.seq.0, due.attempt)).collect()
    }

    #[test]
    fn a_confirmation_covers_what_was_sent_before_it() {
        let mut ledger = group(&[], &[7, 8, 9]);
        assert_eq!(take(&mut ledger, Instant::now()), []);
        ledger.join(1);
        assert_eq!(take(&mut ledger, Instant::now()), [(1, 1, 1), (1, 2, 1), (1, 3, 1)]);
        ledger.reached(Seq(10));
        assert!(ledger.confirm(1, Seq(2)));
        assert_eq!((ledger.position(), ledger.unconfirmed()), (Seq(2), 1));
        for (member, seq) in [(1, 1), (1, 2), (1, 4), (2, 3)] {
            assert!(!ledger.confirm(member, Seq(seq)), "{seq} is not in the hand of {member}");
        }
        assert!(ledger.confirm(1, Seq(3)));
        assert_eq!((ledger.position(), ledger.unconfirmed()), (Seq(10), 0));
    }

    #[test]
    fn a_key_moves_as_a_whole_away_from_who_let_it_expire() {
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
    fn a_late_confirmation_does_not_cover_what_came_between_two_sendings() {
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
    fn a_member_that_goes_moves_only_its_own_keys_and_about_its_share() {
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

    struct Told {
        key: u64,
        bytes: usize,
        attempts: u32,
        holder: Option<(MemberId, Instant)>,
    }

    impl Told {
        fn is_with(&self, member: MemberId) -> bool {
            self.holder.is_some_and(|(who, _)| who == member)
        }
    }

    /// What the group should look like, told from what every member was sent, by looking through all of it.
    #[derive(Default)]
    struct Model {
        reached: u64,
        events: BTreeMap<u64, Told>,
        sent: BTreeMap<MemberId, Vec<u64>>,
        passed_over: BTreeMap<u64, MemberId>,
    }

    impl Model {
        fn deliver(&mut self, due: Vec<Due<u64>>, now: Instant) {
            assert!(due.is_sorted_by_key(|due| due.seq));
            for Due { member, seq, attempt, item: key } in due {
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
            let overdue = |event: &&Told| event.holder.is_some_and(|(_, since)| since + ACK_WAIT <= now);
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
            assert_eq!((ledger.position(), ledger.members()), (Seq(position), self.sent.len()));
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
                        model.events.insert(model.reached, Told { key, bytes, attempts: 0, holder: None });
                    },
                    Step::Reach(further) => {
                        model.reached += further;
                        ledger.reached(Seq(model.reached));
                    }
                    Step::Deliver => model.deliver(ledger.take_due(now), now),
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
            let due = ledger.take_due(now);
            prop_assert!(due.iter().map(|due| due.seq.0).eq(model.events.keys().copied()));
            prop_assert!(due.iter().all(|due| ledger.confirm(due.member, due.seq)));
            prop_assert_eq!((ledger.position(), ledger.unconfirmed(), ledger.bytes), (Seq(model.reached), 0, 0));
            prop_assert!(ledger.keys.is_empty() && ledger.sent.is_empty() && ledger.waiting.is_empty());
        }
    }
}
