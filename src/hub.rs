//! The hub: an index of the subscribers by filter, and the fan-out of commits to their outboxes.
//!
//! Subscribers with equal filters form a cohort. The index leads from the values of an event's fields to the cohorts that
//! filter by exactly these values. So an event costs at most one look-up for each combination of fields that any filter
//! uses, however many subscribers there are. The index does not know payload keys and exclusions: if a filter has some, each
//! event that the index finds for it is tested against the whole filter. The events of a round are put together once for a
//! cohort, and all its members share them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use dashmap::DashMap;
use tokio::sync::watch;

use crate::audience::Audience;
use crate::doorbell::Wakes;
use crate::event::{Columns, Field, Filter, Seq};
use crate::histogram::Histogram;
use crate::outbox::Outbox;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::wire::committed::{Commit, Committed, Run};

/// The subscribers of the live stream.
#[derive(Debug)]
pub struct Hub {
    /// The cohorts whose filters name these field values. The keys come from clients, so the hash is seeded.
    index: DashMap<Box<[u8]>, Vec<Arc<Cohort>>, foldhash::fast::RandomState>,
    /// How many keys of each combination of fields are in the index. An event is not looked up under a combination that no
    /// filter uses.
    keys_by_fields: [AtomicUsize; FIELD_SETS],
    /// The cohorts by filter. Only subscribers that come or leave take this lock, never the fan-out.
    cohorts: Mutex<Cohorts>,
    audience: Audience,
    pub rounds: Rounds,
    pub losses: Losses,
    outbox_bytes_max: usize,
    /// True once the last commit has been delivered.
    ended: watch::Sender<bool>,
}

/// After each round the fan-out rests, in proportion to the socket writes that the round caused. A write costs some 5 µs
/// whatever its size, so under a steady stream the next round carries more events in as many writes. The first event after
/// a rest leaves at once. Price: up to `REST_MAX` of latency.
pub const REST_PER_DELIVERY: Duration = Duration::from_micros(20);
pub const REST_MAX: Duration = Duration::from_millis(1);

/// What the fan-out has delivered since the start. It alone writes this, once a round.
#[derive(Debug, Default)]
pub struct Rounds {
    /// From the first commit of a round to the last outbox.
    pub took: Histogram,
    /// How often events were put into an outbox: one delivery may have many of them.
    pub deliveries: AtomicU64,
    /// The events in these deliveries, once for each subscriber that gets them.
    pub events: AtomicU64,
}

/// What subscribers and cursors missed since the start.
#[derive(Debug, Default)]
pub struct Losses {
    /// How often an outbox overflowed. Unless its subscriber wants less, storage has the events.
    pub overflows: AtomicU64,
    /// Gaps that a client was told of.
    pub gaps: AtomicU64,
    /// Events that slow subscribers have left out, as they had asked for (`on_lag`).
    pub skipped_events: AtomicU64,
}

#[derive(Debug, Default)]
struct Cohorts {
    by_filter: HashMap<Filter, Arc<Cohort>>,
    /// The last commit has been delivered.
    closed: bool,
}

/// The subscribers that share a filter.
#[derive(Debug)]
struct Cohort {
    filter: Filter,
    /// The fields that its keys are made of.
    fields: Vec<Field>,
    /// Whether an event that is found under its keys may still not pass, and has to be tested against the filter.
    tests_events: bool,
    members: RwLock<Vec<Arc<Outbox<Delivery>>>>,
}

impl Cohort {
    fn new(filter: Filter, first: Arc<Outbox<Delivery>>) -> Self {
        let fields = indexed_fields(&filter);
        let left_out = Field::ALL.iter().any(|f| filter.wanted(*f).is_some() && !fields.contains(f));
        let tests_events = filter.has_rest() || left_out;
        Self { filter, fields, tests_events, members: RwLock::new(vec![first]) }
    }
}

/// The events of one round for one cohort, shared by all members.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The events, in order.
    pub runs: Arc<[Run]>,
    /// The event before the first one of the round.
    pub after: Seq,
    /// The last event of the round. With this delivery the subscriber has everything up to it.
    pub through: Seq,
}

/// The membership of one subscriber in the hub, which ends when this is dropped.
#[derive(Debug)]
pub struct Registration {
    hub: Arc<Hub>,
    filter: Filter,
    outbox: Arc<Outbox<Delivery>>,
}

impl Registration {
    /// The outbox in which deliveries arrive.
    pub fn outbox(&self) -> &Arc<Outbox<Delivery>> {
        &self.outbox
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.hub.unregister(&self.filter, &self.outbox);
    }
}

impl Hub {
    /// A hub whose subscribers are counted in `audience`. Their outboxes hold at most `outbox_bytes_max` bytes each, or one
    /// round.
    pub fn new(audience: Audience, outbox_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            index: DashMap::default(),
            keys_by_fields: Default::default(),
            cohorts: Mutex::default(),
            audience,
            rounds: Rounds::default(),
            losses: Losses::default(),
            outbox_bytes_max,
            ended: watch::Sender::new(false),
        })
    }

    /// Resolves once the last commit has been delivered, for a caller that does not look into its outbox. Cancel-safe.
    pub async fn ended(&self) {
        // The wait cannot fail: `self` holds the sender.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Adds a subscriber. Every commit that the store's high-water mark does not include when this returns is delivered to
    /// it.
    pub fn register(self: &Arc<Self>, filter: &Filter) -> Registration {
        let outbox = Arc::new(Outbox::new(self.outbox_bytes_max));
        let mut cohorts = self.cohorts.lock();
        if cohorts.closed {
            outbox.close();
        }
        match cohorts.by_filter.get(filter) {
            Some(cohort) => cohort.members.write().push(outbox.clone()),
            None => {
                let cohort = Arc::new(Cohort::new(filter.clone(), outbox.clone()));
                cohorts.by_filter.insert(filter.clone(), cohort.clone());
                self.index_cohort(&cohort);
            }
        }
        self.audience.join();
        Registration { hub: self.clone(), filter: filter.clone(), outbox }
    }

    fn unregister(&self, filter: &Filter, outbox: &Arc<Outbox<Delivery>>) {
        let mut cohorts = self.cohorts.lock();
        let Some(cohort) = cohorts.by_filter.get(filter) else { return };
        let mut members = cohort.members.write();
        members.retain(|member| !Arc::ptr_eq(member, outbox));
        let is_empty = members.is_empty();
        drop(members);
        self.audience.leave();
        if is_empty {
            let cohort = cohorts.by_filter.remove(filter).expect("just looked at");
            self.unindex_cohort(&cohort);
        }
    }

    fn index_cohort(&self, cohort: &Arc<Cohort>) {
        for key in keys_of(&cohort.filter, &cohort.fields) {
            self.keys_by_fields[fields_of(&key)].fetch_add(1, Ordering::SeqCst);
            self.index.entry(key).or_default().push(cohort.clone());
        }
    }

    fn unindex_cohort(&self, cohort: &Arc<Cohort>) {
        for key in keys_of(&cohort.filter, &cohort.fields) {
            if let Some(mut cohorts) = self.index.get_mut(&key) {
                cohorts.retain(|other| !Arc::ptr_eq(other, cohort));
            }
            self.index.remove_if(&key, |_, cohorts| cohorts.is_empty());
            self.keys_by_fields[fields_of(&key)].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The fan-out's thread: delivers commits until the channel ends, then closes every outbox.
    pub fn run(&self, commits: &Receiver<Arc<Commit>>) {
        let mut fan_out = FanOut::default();
        let mut round = Vec::new();
        while let Ok(first) = commits.recv() {
            let start = Instant::now();
            let mut bytes = first.bytes();
            round.push(first);
            // A round exceeds the bound by at most one commit, and an empty outbox takes a delivery of any size.
            while bytes < self.outbox_bytes_max
                && let Ok(next) = commits.try_recv()
            {
                bytes += next.bytes();
                round.push(next);
            }
            let deliveries = self.deliver(&round, &mut fan_out);
            round.clear();
            let took = start.elapsed();
            self.rounds.took.note(took);
            let rest = (REST_PER_DELIVERY * deliveries).min(REST_MAX);
            sleep(rest.saturating_sub(took));
        }
        let mut cohorts = self.cohorts.lock();
        cohorts.closed = true;
        self.ended.send_replace(true);
        for cohort in cohorts.by_filter.values() {
            cohort.members.read().iter().for_each(|member| member.close());
        }
    }

    /// Delivers neighbouring commits together, in one push for each subscriber that gets any of their events. Returns the
    /// number of these subscribers.
    pub fn deliver(&self, commits: &[Arc<Commit>], fan_out: &mut FanOut) -> u32 {
        let FanOut { key, cohorts: touched, wakes } = fan_out;
        let batches = || commits.iter().flat_map(|commit| &commit.batches);
        let (Some(first), Some(last)) = (batches().next(), commits.last()) else { return 0 };
        let (after, through) = (first.first().prev(), last.through);
        for batch in batches() {
            for fields in (0..FIELD_SETS).filter(|f| self.keys_by_fields[*f].load(Ordering::SeqCst) > 0) {
                if fields == 0 {
                    self.collect(&[0], batch, 0..batch.len(), touched);
                    continue;
                }
                for index in 0..batch.len() {
                    if write_key(key, fields, &batch.columns(index)) {
                        self.collect(key, batch, index..index + 1, touched);
                    }
                }
            }
        }
        let (mut deliveries, mut events) = (0, 0);
        for (cohort, runs) in touched.drain().map(|(_, due)| due) {
            let (mut bytes, mut len) = (0, 0);
            for run in &runs {
                bytes += run.bytes() + size_of::<Run>();
                len += run.range().len();
            }
            let (runs, members): (Arc<[Run]>, _) = (runs.into(), cohort.members.read());
            for member in members.iter() {
                member.push(Delivery { runs: runs.clone(), after, through }, bytes, wakes);
            }
            deliveries += members.len();
            events += len * members.len();
        }
        self.rounds.deliveries.fetch_add(deliveries as u64, Relaxed);
        self.rounds.events.fetch_add(events as u64, Relaxed);
        wakes.wake_all();
        deliveries as u32
    }

    /// Adds neighbouring events to the runs of every cohort under a key, as far as they pass its filter.
    fn collect(&self, key: &[u8], batch: &Arc<Committed>, events: Range<usize>, touched: &mut Touched) {
        let Some(cohorts) = self.index.get(key) else { return };
        for cohort in cohorts.iter() {
            let address = Arc::as_ptr(cohort);
            let mut add = |from: usize, to: usize| {
                let (_, runs) = touched.entry(address).or_insert_with(|| (cohort.clone(), Vec::new()));
                match runs.last_mut() {
                    Some(last) if last.is_before(batch, from) => last.extend(to),
                    _ => runs.push(Run::new(batch.clone(), from, to)),
                }
            };
            match cohort.tests_events {
                false => add(events.start, events.end),
                true => {
                    let passing = events.clone().filter(|index| cohort.filter.matches(&batch.columns(*index)));
                    passing.for_each(|index| add(index, index + 1));
                }
            }
        }
    }
}

/// Working memory of the fan-out, used again in each round.
#[derive(Debug, Default)]
pub struct FanOut {
    key: Vec<u8>,
    cohorts: Touched,
    wakes: Wakes,
}

/// The cohorts that get events of a round, by address. A cohort is indexed under keys of one set of fields only, and for
/// each set the events are looked up in order, so the runs of a cohort are in order too.
type Touched = HashMap<*const Cohort, (Arc<Cohort>, Vec<Run>), foldhash::fast::RandomState>;

/// How many sets of fields there are: one bit stands for each field.
const FIELD_SETS: usize = 1 << Field::ALL.len();

/// Stands behind each value of a key. UTF-8 never has this byte.
const SEPARATOR: u8 = 0xff;

/// Most keys under which one filter is indexed. Lists in several fields multiply: the longest lists are then left out of
/// the keys, and events are tested against the filter.
const KEYS_PER_FILTER_MAX: usize = 1_024;

fn bit(field: Field) -> usize {
    1 << field as usize
}

fn fields_of(key: &[u8]) -> usize {
    key[0] as usize
}

/// The fields that a filter's keys are made of.
fn indexed_fields(filter: &Filter) -> Vec<Field> {
    let values = |field: &Field| filter.wanted(*field).map_or(1, <[_]>::len);
    let mut fields: Vec<_> = Field::ALL.into_iter().filter(|field| filter.wanted(*field).is_some()).collect();
    while fields.iter().map(values).product::<usize>() > KEYS_PER_FILTER_MAX {
        let longest = (0..fields.len()).max_by_key(|i| values(&fields[*i])).expect("the product of none is one");
        fields.remove(longest);
    }
    fields
}

/// The keys under which a filter is found: one for each combination of its values of these fields.
fn keys_of(filter: &Filter, fields: &[Field]) -> Vec<Box<[u8]>> {
    let mut keys = vec![vec![fields.iter().map(|field| bit(*field)).sum::<usize>() as u8]];
    for field in fields {
        let with = |key: &Vec<u8>, value: &str| [key, value.as_bytes(), &[SEPARATOR]].concat();
        keys = keys
            .iter()
            .flat_map(|key| filter.wanted(*field).into_iter().flatten().map(|value| with(key, value)))
            .collect();
    }
    keys.into_iter().map(Vec::into_boxed_slice).collect()
}

/// Writes the key of an event for these fields. Returns false when the event lacks one of them.
fn write_key(key: &mut Vec<u8>, fields: usize, event: &Columns<'_>) -> bool {
    key.clear();
    key.push(fields as u8);
    for field in Field::ALL.into_iter().filter(|field| fields & bit(*field) != 0) {
        let Some(value) = event.field(field) else { return false };
        key.extend_from_slice(value);
        key.push(SEPARATOR);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, EventTypes, Timestamp, TimestampText};
    use crate::wire::Batch;
    use proptest::prelude::*;

    const TYPES: [&str; 2] = ["timer_tick", "quiz_started"];
    const NAMES: [&str; 3] = ["a", "b", "c"];

    /// The indices of an event's type, source, session and user; 0 stands for no session or no user.
    type Fields = (usize, usize, usize, usize);
    type FilterNumbers = (usize, usize, usize, usize, usize);

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
                    idempotency_key: None,
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

    /// A filter by the bits of these numbers, one bit for each type and each value of the other fields. If the last number is
    /// 0, the filter also has an exclusion, which the index does not know.
    fn filter((types, source, session, user, rest): FilterNumbers) -> Filter {
        fn chosen<'n>(names: &'n [&'n str], bits: usize) -> Vec<&'n str> {
            names.iter().enumerate().filter(|(i, _)| bits & 1 << i != 0).map(|(_, name)| *name).collect()
        }
        let exclude = if rest == 0 { vec![NAMES[source % 3]] } else { Vec::new() };
        let asked = serde_json::json!({
            "event_types": chosen(&TYPES, types),
            "source": chosen(&NAMES, source),
            "session_id": chosen(&NAMES, session),
            "user_id": chosen(&NAMES, user),
            "exclude": { "user_id": exclude },
        });
        Filter::parse(asked.as_object().expect("an object")).expect("a filter")
    }

    fn received(registration: &Registration) -> (Vec<u8>, usize) {
        let mut deliveries = Vec::new();
        registration.outbox().try_take(&mut deliveries);
        let frames = deliveries.iter().flat_map(|d| d.runs.iter()).flat_map(|run| run.frames().to_vec());
        (frames.collect(), deliveries.len())
    }

    proptest! {
        /// Every subscriber gets exactly the frames that a scan with its filter would find, in one push a round.
        #[test]
        fn subscribers_get_what_a_scan_with_their_filter_finds(
            events in prop::collection::vec((0..2usize, 0..3usize, 0..4usize, 0..4usize), 1..12),
            filters in prop::collection::vec((0..4usize, 0..8usize, 0..8usize, 0..8usize, 0..4usize), 1..8),
            leaving in 0..8usize,
            cut in 0..12usize,
        ) {
            let types = EventTypes::builtin();
            let hub = Hub::new(Audience::default(), 1 << 20);
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
                        if registration.filter.matches(&batch.columns(i)) {
                            want.extend_from_slice(&batch.frames_between(i, i + 1));
                        }
                    }
                }
                let pushes = usize::from(!want.is_empty());
                prop_assert_eq!(received(registration), (want, pushes));
            }
            registrations.clear();
            prop_assert!(hub.index.is_empty() && hub.cohorts.lock().by_filter.is_empty());
            prop_assert!(hub.keys_by_fields.iter().all(|n| n.load(Ordering::SeqCst) == 0));
            prop_assert!(!hub.audience.is_present());
        }
    }

    #[test]
    fn different_values_never_have_the_same_key() {
        let key = |source: &str, session: &str| {
            let filter = Filter::default().with(Field::Source, [source]).with(Field::Session, [session]);
            keys_of(&filter, &indexed_fields(&filter))
        };
        assert_ne!(key("a", "bc"), key("ab", "c"));
    }

    #[test]
    fn the_longest_lists_of_a_filter_with_too_many_keys_are_not_indexed() {
        let many = |n: usize| (0..n).map(|i| i.to_string());
        let filter = Filter::default().with(Field::Session, many(100)).with(Field::User, many(11)).with_types(["t"]);
        assert_eq!(indexed_fields(&filter), [Field::Type, Field::User]);
        assert_eq!(keys_of(&filter, &indexed_fields(&filter)).len(), 11);
        let outbox = Arc::new(Outbox::new(1));
        assert!(Cohort::new(filter, outbox.clone()).tests_events);
        assert!(!Cohort::new(Filter::default().with(Field::Session, many(1_000)), outbox).tests_events);
    }

    #[test]
    fn a_subscriber_that_registers_after_the_end_finds_its_outbox_closed() {
        let hub = Hub::new(Audience::default(), 1 << 20);
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
