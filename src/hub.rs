//! Who wants which events: the index of subscribers, and the fan-out of the commits to their outboxes.
//!
//! Subscribers with equal filters form a cohort. The index leads from the values of an event's fields
//! to the cohorts that asked for exactly these values, so an event costs at most one look-up for each
//! combination of fields that anybody filters by, however many subscribers there are. What a filter asks
//! beyond that (payload keys, exclusions) is looked at for the events its cohort was found for. A cohort
//! gets the events of a round put together once, for all its members.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use dashmap::DashMap;
use tokio::sync::watch;

use crate::audience::Audience;
use crate::doorbell::Wakes;
use crate::event::{Columns, Field, Filter, Seq};
use crate::outbox::Outbox;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::wire::committed::{Commit, Committed, Run};

/// The subscribers of the live stream.
#[derive(Debug)]
pub struct Hub {
    /// The cohorts that want events with these field values. The keys hold what clients sent, so the
    /// hash is seeded.
    index: DashMap<Box<[u8]>, Vec<Arc<Cohort>>, foldhash::fast::RandomState>,
    /// How many keys of each combination of fields are in the index: an event is not looked up under
    /// a combination that nobody uses.
    keys_by_fields: [AtomicUsize; FIELD_SETS],
    /// The cohorts by filter. Only coming and going subscribers take this lock, never the fan-out.
    cohorts: Mutex<Cohorts>,
    audience: Audience,
    outbox_bytes_max: usize,
    /// True once the last commit has been delivered.
    ended: watch::Sender<bool>,
}

/// A write to a socket costs some 5 µs, whatever it carries. The fan-out rests after each round in
/// proportion to the writes it caused, so that under a steady stream the next round carries more events
/// in as many writes. The first event after a rest leaves at once. Price: up to `REST_MAX` of latency.
const REST_PER_DELIVERY: Duration = Duration::from_micros(20);
const REST_MAX: Duration = Duration::from_millis(1);

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
    /// The fields its keys are made of.
    fields: Vec<Field>,
    /// Whether an event found under its keys may still not pass.
    looks_closer: bool,
    members: RwLock<Vec<Arc<Outbox<Delivery>>>>,
}

impl Cohort {
    fn new(filter: Filter, first: Arc<Outbox<Delivery>>) -> Self {
        let fields = indexed_fields(&filter);
        let left_out = Field::ALL.iter().any(|f| filter.wanted(*f).is_some() && !fields.contains(f));
        let looks_closer = filter.has_rest() || left_out;
        Self { filter, fields, looks_closer, members: RwLock::new(vec![first]) }
    }
}

/// What a cohort gets of one round, shared by all members.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The events, in order.
    pub runs: Arc<[Run]>,
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
    /// `outbox_bytes_max` bytes each, or one round.
    pub fn new(audience: Audience, outbox_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            index: DashMap::default(),
            keys_by_fields: Default::default(),
            cohorts: Mutex::default(),
            audience,
            outbox_bytes_max,
            ended: watch::Sender::new(false),
        })
    }

    /// Resolves once the last commit has been delivered, for whoever does not look into its outbox. Cancel-safe.
    pub async fn ended(&self) {
        // The sender is here.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Every commit that the store's watermark does not include when this returns is delivered to the new
    /// member.
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

    fn leave(&self, filter: &Filter, outbox: &Arc<Outbox<Delivery>>) {
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

    /// Delivers commits until there are no more, then closes every outbox: what the fan-out's thread does.
    pub fn run(&self, commits: &Receiver<Arc<Commit>>) {
        let mut fan_out = FanOut::default();
        let mut round = Vec::new();
        while let Ok(first) = commits.recv() {
            let start = Instant::now();
            let mut bytes = first.bytes();
            round.push(first);
            // An empty outbox takes a delivery of any size, so a round exceeds the bound by one commit at most.
            while bytes < self.outbox_bytes_max
                && let Ok(next) = commits.try_recv()
            {
                bytes += next.bytes();
                round.push(next);
            }
            let deliveries = self.deliver(&round, &mut fan_out);
            round.clear();
            let rest = (REST_PER_DELIVERY * deliveries).min(REST_MAX);
            sleep(rest.saturating_sub(start.elapsed()));
        }
        let mut cohorts = self.cohorts.lock();
        cohorts.closed = true;
        self.ended.send_replace(true);
        for cohort in cohorts.by_filter.values() {
            cohort.members.read().iter().for_each(|member| member.close());
        }
    }

    /// Delivers neighbouring commits together: one push for each subscriber that gets anything of them. Returns
    /// how many that were.
    pub fn deliver(&self, commits: &[Arc<Commit>], fan_out: &mut FanOut) -> u32 {
        let FanOut { key, cohorts: touched, wakes } = fan_out;
        let batches = || commits.iter().flat_map(|commit| &commit.batches);
        let (Some(first), Some(last)) = (batches().next(), commits.last()) else { return 0 };
        let (after, through) = (first.first().prev(), last.through);
        for batch in batches() {
            for fields in (0..FIELD_SETS).filter(|f| self.keys_by_fields[*f].load(Ordering::SeqCst) > 0) {
                if fields == 0 {
                    self.note(&[0], batch, 0..batch.len(), touched);
                    continue;
                }
                for index in 0..batch.len() {
                    if write_key(key, fields, &batch.columns(index)) {
                        self.note(key, batch, index..index + 1, touched);
                    }
                }
            }
        }
        let mut deliveries = 0;
        for (cohort, runs) in touched.drain().map(|(_, due)| due) {
            let bytes = runs.iter().map(|run| run.bytes() + size_of::<Run>()).sum();
            let runs: Arc<[Run]> = runs.into();
            for member in cohort.members.read().iter() {
                member.push(Delivery { runs: runs.clone(), after, through }, bytes, wakes);
                deliveries += 1;
            }
        }
        wakes.wake_all();
        deliveries
    }

    /// Notes that neighbouring events are due to every cohort under a key, as far as they pass its filter.
    fn note(&self, key: &[u8], batch: &Arc<Committed>, events: Range<usize>, touched: &mut Touched) {
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
            match cohort.looks_closer {
                false => add(events.start, events.end),
                true => {
                    let passing = events.clone().filter(|index| cohort.filter.matches(&batch.columns(*index)));
                    passing.for_each(|index| add(index, index + 1));
                }
            }
        }
    }
}

/// Room to work in, kept from round to round.
#[derive(Debug, Default)]
pub struct FanOut {
    key: Vec<u8>,
    cohorts: Touched,
    wakes: Wakes,
}

/// The cohorts that get something of a round, by address. A cohort is indexed under keys of one set of
/// fields only, and these are gone through in order, so its runs are in order too.
type Touched = HashMap<*const Cohort, (Arc<Cohort>, Vec<Run>), foldhash::fast::RandomState>;

/// A key is made of the values of some fields, one bit each; there are as many sets of them.
const FIELD_SETS: usize = 1 << Field::ALL.len();

/// Between the values of a key: a byte that UTF-8 never has.
const SEPARATOR: u8 = 0xff;

/// Most keys that one filter is indexed under. Lists of several fields multiply; the longest are then left
/// out of the keys and looked at event by event.
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

/// The keys a filter is found under: one for each combination of its values of these fields.
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

/// The key under which an event is found by these of its fields; false when it lacks one of them.
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

    /// An event by the places of its fields; the second number is 0 for no session or user.
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

    /// A filter for types by bit, and for the values of each other field by bit; one number in four asks for
    /// more than the index knows.
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
        /// Every subscriber gets exactly the frames a scan with its filter would find, in one push a round.
        #[test]
        fn the_index_finds_what_a_scan_would(
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
            prop_assert!(!hub.audience.is_there());
        }
    }

    #[test]
    fn values_cannot_be_confused_with_one_another() {
        let key = |source: &str, session: &str| {
            let filter = Filter::default().with(Field::Source, [source]).with(Field::Session, [session]);
            keys_of(&filter, &indexed_fields(&filter))
        };
        assert_ne!(key("a", "bc"), key("ab", "c"));
    }

    #[test]
    fn lists_that_multiply_too_far_are_looked_at_instead() {
        let many = |n: usize| (0..n).map(|i| i.to_string());
        let filter = Filter::default().with(Field::Session, many(100)).with(Field::User, many(11)).with_types(["t"]);
        assert_eq!(indexed_fields(&filter), [Field::Type, Field::User]);
        assert_eq!(keys_of(&filter, &indexed_fields(&filter)).len(), 11);
        let outbox = Arc::new(Outbox::new(1));
        assert!(Cohort::new(filter, outbox.clone()).looks_closer);
        assert!(!Cohort::new(Filter::default().with(Field::Session, many(1_000)), outbox).looks_closer);
    }

    #[test]
    fn who_comes_after_the_end_finds_it() {
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
