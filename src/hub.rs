//! Who wants which events: the index of subscribers, and the fan-out of the commits to their outboxes.
//!
//! Subscribers with equal filters form a group. The index leads from the values of an event's fields
//! to the groups that asked for exactly these values, so an event costs at most one look-up for each
//! combination of fields that anybody filters by, however many subscribers there are. A group gets the
//! frames of a round put together once, for all its members.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};

use crate::audience::Audience;
use crate::doorbell::Wakes;
use crate::event::{EventTypes, Filter, Seq};
use crate::outbox::Outbox;
use crate::wire::batch::{Columns, Commit};

/// The subscribers of the live stream.
#[derive(Debug)]
pub struct Hub {
    types: Arc<EventTypes>,
    /// The groups that want events with these field values. The keys hold what clients sent, so the
    /// hash is seeded.
    index: DashMap<Box<[u8]>, Vec<Arc<Group>>, foldhash::fast::RandomState>,
    /// How many keys of each combination of fields are in the index: an event is not looked up under
    /// a combination that nobody uses.
    keys_by_fields: [AtomicUsize; FIELD_SETS],
    /// The groups by filter. Only coming and going subscribers take this lock, never the fan-out.
    groups: Mutex<Groups>,
    audience: Audience,
    outbox_bytes_max: usize,
}

/// A write to a socket costs some 5 µs, whatever it carries. The fan-out rests after each round in
/// proportion to the writes it caused, so that under a steady stream the next round carries more events
/// in as many writes. The first event after a rest leaves at once. Price: up to `REST_MAX` of latency.
const REST_PER_DELIVERY: Duration = Duration::from_micros(20);
const REST_MAX: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct Groups {
    by_filter: HashMap<Filter, Arc<Group>>,
    /// The last commit has been delivered.
    closed: bool,
}

/// The subscribers that share a filter.
#[derive(Debug)]
struct Group {
    filter: Filter,
    members: RwLock<Vec<Arc<Outbox<Delivery>>>>,
}

/// What a group gets of one round: frames ready to be written, shared by all members.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Whole WebSocket frames, in the order of their events.
    pub frames: Arc<[Bytes]>,
    /// Where the round begins: the event before its first.
    pub after: Seq,
    /// The round's last event: with this delivery the subscriber has everything up to it.
    pub through: Seq,
}

/// A place in the hub, given up when dropped.
#[derive(Debug)]
pub struct Registration {
    hub: Arc<Hub>,
    filter: Filter,
    outbox: Arc<Outbox<Delivery>>,
}

impl Registration {
    /// Where the deliveries arrive.
    pub fn outbox(&self) -> &Outbox<Delivery> {
        &self.outbox
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.hub.leave(&self.filter, &self.outbox);
    }
}

impl Hub {
    /// A hub for the commits that are handed on to `audience`; its members' outboxes hold at most
    /// `outbox_bytes_max` bytes each.
    pub fn new(types: Arc<EventTypes>, audience: Audience, outbox_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            types,
            index: DashMap::default(),
            keys_by_fields: Default::default(),
            groups: Mutex::default(),
            audience,
            outbox_bytes_max,
        })
    }

    /// Every commit that the store's watermark does not include when this returns is delivered to the new
    /// member.
    pub fn register(self: &Arc<Self>, filter: &Filter) -> Registration {
        let outbox = Arc::new(Outbox::new(self.outbox_bytes_max));
        let mut groups = self.groups.lock();
        if groups.closed {
            outbox.close();
        }
        match groups.by_filter.get(filter) {
            Some(group) => group.members.write().push(outbox.clone()),
            None => {
                let group = Arc::new(Group { filter: filter.clone(), members: RwLock::new(vec![outbox.clone()]) });
                groups.by_filter.insert(filter.clone(), group.clone());
                self.index_group(&group);
            }
        }
        self.audience.join();
        Registration { hub: self.clone(), filter: filter.clone(), outbox }
    }

    fn leave(&self, filter: &Filter, outbox: &Arc<Outbox<Delivery>>) {
        let mut groups = self.groups.lock();
        let Some(group) = groups.by_filter.get(filter) else { return };
        let mut members = group.members.write();
        members.retain(|member| !Arc::ptr_eq(member, outbox));
        let is_empty = members.is_empty();
        drop(members);
        self.audience.leave();
        if is_empty {
            let group = groups.by_filter.remove(filter).expect("just looked at");
            self.unindex_group(&group);
        }
    }

    fn index_group(&self, group: &Arc<Group>) {
        for key in keys_of(&group.filter) {
            self.keys_by_fields[fields_of(&key)].fetch_add(1, Ordering::SeqCst);
            self.index.entry(key).or_default().push(group.clone());
        }
    }

    fn unindex_group(&self, group: &Arc<Group>) {
        for key in keys_of(&group.filter) {
            if let Some(mut groups) = self.index.get_mut(&key) {
                groups.retain(|other| !Arc::ptr_eq(other, group));
            }
            self.index.remove_if(&key, |_, groups| groups.is_empty());
            self.keys_by_fields[fields_of(&key)].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Delivers commits until there are no more, then closes every outbox: what the fan-out's thread does.
    pub fn run(&self, commits: &Receiver<Arc<Commit>>) {
        let mut fan_out = FanOut::default();
        let mut round = Vec::new();
        while let Ok(first) = commits.recv() {
            let start = Instant::now();
            round.push(first);
            round.extend(commits.try_iter());
            let deliveries = self.deliver(&round, &mut fan_out);
            round.clear();
            let rest = (REST_PER_DELIVERY * deliveries).min(REST_MAX);
            sleep(rest.saturating_sub(start.elapsed()));
        }
        let mut groups = self.groups.lock();
        groups.closed = true;
        for group in groups.by_filter.values() {
            group.members.read().iter().for_each(|member| member.close());
        }
    }

    /// Delivers neighbouring commits together: one push for each subscriber that gets anything of them. Returns
    /// how many that were.
    pub fn deliver(&self, commits: &[Arc<Commit>], fan_out: &mut FanOut) -> u32 {
        let FanOut { key, groups: touched, wakes } = fan_out;
        let batches = commits.iter().flat_map(|commit| &commit.batches).collect::<Vec<_>>();
        let (Some(first), Some(last)) = (batches.first(), commits.last()) else { return 0 };
        let (after, through) = (first.first().prev(), last.through);
        for (at, batch) in batches.iter().enumerate() {
            for fields in (0..FIELD_SETS).filter(|f| self.keys_by_fields[*f].load(Ordering::SeqCst) > 0) {
                if fields == 0 {
                    self.note(&[0], Run { batch: at, from: 0, to: batch.len() }, touched);
                    continue;
                }
                for from in 0..batch.len() {
                    if write_key(key, fields, &batch.columns(from), &self.types) {
                        self.note(key, Run { batch: at, from, to: from + 1 }, touched);
                    }
                }
            }
        }
        let mut deliveries = 0;
        for (group, runs) in touched.drain().map(|(_, due)| due) {
            let frames: Arc<[Bytes]> =
                runs.iter().map(|run| batches[run.batch].frames_between(run.from, run.to)).collect();
            let bytes = frames.iter().map(|run| run.len() + size_of::<Bytes>()).sum();
            for member in group.members.read().iter() {
                member.push(Delivery { frames: frames.clone(), after, through }, bytes, wakes);
                deliveries += 1;
            }
        }
        wakes.wake_all();
        deliveries
    }

    /// Notes that a run of events is due to every group under a key.
    fn note(&self, key: &[u8], run: Run, touched: &mut Touched) {
        let Some(groups) = self.index.get(key) else { return };
        for group in groups.iter() {
            let (_, runs) = touched.entry(Arc::as_ptr(group)).or_insert_with(|| (group.clone(), Vec::new()));
            match runs.last_mut() {
                Some(last) if last.batch == run.batch && last.to == run.from => last.to = run.to,
                _ => runs.push(run),
            }
        }
    }
}

/// Room to work in, kept from round to round.
#[derive(Debug, Default)]
pub struct FanOut {
    key: Vec<u8>,
    groups: Touched,
    wakes: Wakes,
}

/// The groups that get something of a round, by address. A group is indexed under keys of one set of
/// fields only, and these are gone through in order, so its runs are in order too.
type Touched = HashMap<*const Group, (Arc<Group>, Vec<Run>), foldhash::fast::RandomState>;

/// Neighbouring events of one batch: one slice of its frames.
#[derive(Debug, Clone, Copy)]
struct Run {
    batch: usize,
    from: usize,
    to: usize,
}

/// The fields a key is made of, as bits; there are as many sets of them.
const TYPE: usize = 1;
const SOURCE: usize = 2;
const SESSION: usize = 4;
const USER: usize = 8;
const FIELD_SETS: usize = 16;

/// Between the values of a key: a byte that UTF-8 never has.
const SEPARATOR: u8 = 0xff;

fn fields_of(key: &[u8]) -> usize {
    key[0] as usize
}

/// The keys a filter is found under: one, or one for each of its types.
fn keys_of(filter: &Filter) -> Vec<Box<[u8]>> {
    let set = |bit: usize, value: &Option<Box<str>>| if value.is_some() { bit } else { 0 };
    let others = set(SOURCE, &filter.source) | set(SESSION, &filter.session_id) | set(USER, &filter.user_id);
    let key = |event_type: Option<&str>| {
        let fields = others | if event_type.is_some() { TYPE } else { 0 };
        let mut key = vec![fields as u8];
        for value in [event_type, filter.source.as_deref(), filter.session_id.as_deref(), filter.user_id.as_deref()]
            .into_iter()
            .flatten()
        {
            key.extend_from_slice(value.as_bytes());
            key.push(SEPARATOR);
        }
        key.into_boxed_slice()
    };
    match filter.event_types() {
        [] => vec![key(None)],
        types => types.iter().map(|name| key(Some(name))).collect(),
    }
}

/// The key under which an event is found by these of its fields; false when it lacks one of them.
fn write_key(key: &mut Vec<u8>, fields: usize, event: &Columns<'_>, types: &EventTypes) -> bool {
    key.clear();
    key.push(fields as u8);
    let values = [
        (TYPE, Some(types.name(event.event_type).as_bytes())),
        (SOURCE, Some(event.source)),
        (SESSION, event.session_id),
        (USER, event.user_id),
    ];
    for (_, value) in values.into_iter().filter(|(bit, _)| fields & bit != 0) {
        let Some(value) = value else { return false };
        key.extend_from_slice(value);
        key.push(SEPARATOR);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Timestamp, TimestampText};
    use crate::wire::Batch;
    use proptest::prelude::*;

    const TYPES: [&str; 2] = ["timer_tick", "quiz_started"];
    const NAMES: [&str; 3] = ["a", "b", "c"];

    /// An event by the places of its fields; the second number is 0 for no session or user.
    type Fields = (usize, usize, usize, usize);

    fn commit(events: &[Fields], first: Seq, types: &EventTypes) -> Commit {
        let optional = |i: usize| i.checked_sub(1).map(|i| NAMES[i]);
        let mut seq = first;
        let batches = events.chunks(3).map(|chunk| {
            let mut batch = Batch::default();
            for &(event_type, source, session, user) in chunk {
                let event_type = types.get(TYPES[event_type]).expect("built in");
                let event = Event {
                    event_type,
                    source: NAMES[source],
                    session_id: optional(session),
                    user_id: optional(user),
                    payload: "{}",
                };
                batch.push(&event, types);
            }
            let start = seq;
            for i in 0..batch.len() {
                batch.stamp(i, seq, &TimestampText::default().render(Timestamp(0)));
                seq = seq.next();
            }
            Arc::new(batch.committed(start))
        });
        Commit { batches: batches.collect(), through: first.plus(events.len()).prev() }
    }

    fn filter((types, source, session, user): (usize, usize, usize, usize)) -> Filter {
        let optional = |i: usize| i.checked_sub(1).map(|i| NAMES[i].into());
        let mut filter = Filter::default()
            .with_types(TYPES.iter().enumerate().filter(|(i, _)| types & 1 << i != 0).map(|(_, t)| *t));
        (filter.source, filter.session_id, filter.user_id) = (optional(source), optional(session), optional(user));
        filter
    }

    fn received(registration: &Registration) -> (Vec<u8>, usize) {
        let mut deliveries = Vec::new();
        registration.outbox().try_take(&mut deliveries);
        (deliveries.iter().flat_map(|d| d.frames.iter()).flatten().copied().collect(), deliveries.len())
    }

    proptest! {
        /// Every subscriber gets exactly the frames a scan with its filter would find, in one push a round.
        #[test]
        fn the_index_finds_what_a_scan_would(
            events in prop::collection::vec((0..2usize, 0..3usize, 0..4usize, 0..4usize), 1..12),
            filters in prop::collection::vec((0..4usize, 0..4usize, 0..4usize, 0..4usize), 1..8),
            leaving in 0..8usize,
            cut in 0..12usize,
        ) {
            let types = Arc::new(EventTypes::builtin());
            let hub = Hub::new(types.clone(), Audience::default(), 1 << 20);
            let mut registrations: Vec<_> = filters.iter().map(|f| hub.register(&filter(*f))).collect();
            if leaving < registrations.len() {
                registrations.remove(leaving);
            }
            let (early, late) = events.split_at(cut.min(events.len()));
            let commits = [commit(early, Seq(1), &types), commit(late, Seq(1).plus(early.len()), &types)].map(Arc::new);
            hub.deliver(&commits, &mut FanOut::default());
            for registration in &registrations {
                let mut want = Vec::new();
                for batch in commits.iter().flat_map(|commit| &commit.batches) {
                    for i in 0..batch.len() {
                        let c = batch.columns(i);
                        let text = |b| std::str::from_utf8(b).expect("UTF-8");
                        if registration.filter.matches(types.name(c.event_type), text(c.source), c.session_id.map(text), c.user_id.map(text)) {
                            want.extend_from_slice(&batch.frames_between(i, i + 1));
                        }
                    }
                }
                let pushes = usize::from(!want.is_empty());
                prop_assert_eq!(received(registration), (want, pushes));
            }
            registrations.clear();
            prop_assert!(hub.index.is_empty() && hub.groups.lock().by_filter.is_empty());
            prop_assert!(hub.keys_by_fields.iter().all(|n| n.load(Ordering::SeqCst) == 0));
            prop_assert!(!hub.audience.is_there());
        }
    }

    #[test]
    fn values_cannot_be_confused_with_one_another() {
        let key = |source: &str, session: &str| {
            let mut filter = Filter::default();
            (filter.source, filter.session_id) = (Some(source.into()), Some(session.into()));
            keys_of(&filter)
        };
        assert_ne!(key("a", "bc"), key("ab", "c"));
    }

    #[test]
    fn who_comes_after_the_end_finds_it() {
        let hub = Hub::new(Arc::new(EventTypes::builtin()), Audience::default(), 1 << 20);
        let early = hub.register(&Filter::default());
        let (sender, commits) = crossbeam_channel::bounded(1);
        drop(sender);
        hub.run(&commits);
        let late = hub.register(&Filter::default());
        for registration in [early, late] {
            assert_eq!(registration.outbox().try_take(&mut Vec::new()), Some(crate::outbox::Taken::Closed));
        }
    }
}
