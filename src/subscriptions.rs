//! Durable subscriptions: filters and a confirmed position, stored under a name, and the connections that use them now.
//!
//! The table in the database is read once, at start. From then on this module holds the truth and passes changes to the
//! writer. Confirmations are written in groups, so after a crash some events come again, and none is left out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::{OnceCell, mpsc, oneshot};

use crate::event::{Filter, Seq, Timestamp};
use crate::feed::Feed;
use crate::group::{Dispatcher, Group, Member, Progress};
use crate::hub::Hub;
use crate::record::Failure;
use crate::store::{self, Store, StoredSubscription};
use crate::sync::Mutex;
use crate::wire::filters::Filters;
use crate::wire::refusal::Ending;
use crate::wire::request::{Durable, Subscribe};

/// All durable subscriptions.
#[derive(Debug)]
pub struct Subscriptions {
    store: Store,
    hub: Arc<Hub>,
    by_name: Mutex<HashMap<String, Arc<Subscription>>>,
    names_max: usize,
    window_bytes: usize,
    /// Where a new group sends its dispatcher; `None` once the server is ending.
    dispatchers: Mutex<Option<mpsc::UnboundedSender<Dispatcher>>>,
}

/// One durable subscription.
#[derive(Debug)]
pub struct Subscription {
    name: Arc<str>,
    store: Store,
    state: Mutex<State>,
    /// Set once the subscription is stored. Every connection that opens it waits for that.
    stored: OnceCell<()>,
}

#[derive(Debug)]
struct State {
    /// As they were asked for: what a client's key lets through of them is its own.
    filters: Filters,
    /// The same in the form in which they are stored.
    filters_text: Arc<str>,
    /// Everything up to this event is confirmed.
    position: Seq,
    last_seen: Timestamp,
    consumer: Consumer,
    lifecycle: Lifecycle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifecycle {
    Present,
    /// The deletion is on its way: no change is stored any more, and the consumer does not know yet.
    Deleting,
    Deleted,
}

/// What receives the events of a subscription.
#[derive(Debug)]
enum Consumer {
    None,
    /// One connection. It is sent the reason when another takes over or the subscription is deleted.
    Connection(oneshot::Sender<Ending>),
    Group(Group),
}

impl Consumer {
    /// The numbers of connections and of unconfirmed events.
    fn counts(&self) -> (usize, usize) {
        match self {
            Self::None => (0, 0),
            Self::Connection(end) => (usize::from(!end.is_closed()), 0),
            Self::Group(group) => group.counts(),
        }
    }
}

/// What `GET /subscriptions` shows of one subscription.
#[derive(Debug)]
pub struct Summary {
    pub name: String,
    pub space: String,
    pub filters: Map<String, Value>,
    pub filter: Filter,
    pub position: Seq,
    pub last_seen: Timestamp,
    /// How many connections receive its events.
    pub connected: usize,
    /// How many events were sent to members of the group and are not confirmed.
    pub unconfirmed: usize,
}

/// How the durable subscriptions are used.
#[derive(Debug, Default)]
pub struct InUse {
    /// Those that a connection receives the events of, and the others.
    pub connected: usize,
    pub idle: usize,
    /// Events that members of groups have in hand.
    pub unconfirmed: usize,
    /// The most numbers of the record between what a connected one has confirmed and the high-water mark. Events that do not
    /// pass its filters count, too.
    pub largest_lag: u64,
}

/// Why a subscription cannot be opened, in words for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("There are as many durable subscriptions as the server keeps")]
    TooMany,
    #[error("The group '{0}' has other filters: leave yours out, or join when it is empty")]
    OtherFilters(String),
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl OpenError {
    /// How the connection that asked ends, which tells its client whether to try again.
    pub fn ending(&self) -> Ending {
        match self {
            Self::TooMany => Ending::Capacity,
            Self::OtherFilters(_) => Ending::NotUnderstood,
            Self::Failed(_) => Ending::Failed,
        }
    }
}

/// Stands before the name of a group, because a group and a durable subscription may have the same name.
const GROUP_PREFIX: &str = "group:";

/// A name of a durable subscription, with `group:` before that of a group, and the space in which it is one
/// (`Principal::space`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'n> {
    pub space: &'n str,
    pub name: &'n str,
}

impl<'n> Name<'n> {
    /// As it is stored. No name has the slash, a space may have it. The names of the time before there were spaces are in
    /// the empty one.
    pub fn stored(&self) -> String {
        if self.space.is_empty() { self.name.to_owned() } else { format!("{}/{}", self.space, self.name) }
    }

    fn of_stored(stored: &'n str) -> Self {
        let (space, name) = stored.rsplit_once('/').unwrap_or(("", stored));
        Self { space, name }
    }
}

impl Subscriptions {
    /// The subscriptions of a store, and the dispatchers of their groups, which the caller has to run.
    pub fn load(
        store: &Store,
        hub: &Arc<Hub>,
        names_max: usize,
        window_bytes: usize,
    ) -> store::Result<(Self, mpsc::UnboundedReceiver<Dispatcher>)> {
        let mut by_name = HashMap::new();
        for kept in store.reader().durable_subscriptions()? {
            let json = serde_json::from_str(&kept.filters).ok();
            let Some(filters) = json.and_then(|json| Filters::parse_stored(&json).ok()) else {
                tracing::warn!(name = &*kept.name, "a durable subscription is left out, as its filters are not valid");
                continue;
            };
            let last_seen = Timestamp::parse_floor(&kept.last_seen).unwrap_or_default();
            let state = State::new(filters, kept.position, last_seen);
            let stored = OnceCell::new_with(Some(()));
            by_name.insert(kept.name.to_string(), Subscription::new(kept.name, store, state, stored));
        }
        let (dispatchers, started) = mpsc::unbounded_channel();
        let (store, hub, by_name) = (store.clone(), hub.clone(), Mutex::new(by_name));
        Ok((Self { store, hub, by_name, names_max, window_bytes, dispatchers: Mutex::new(Some(dispatchers)) }, started))
    }

    /// The subscription that a request names, if it is known.
    pub fn find(&self, space: &str, durable: &Durable) -> Option<Arc<Subscription>> {
        self.by_name.lock().get(&key(space, durable)).cloned()
    }

    /// Opens the subscription that a request names: the `known` one, or a new one that begins after `position`. It is stored
    /// when this returns. `None` when another connection has opened or deleted it since the caller looked up `known`: then
    /// the caller has to find its start again.
    ///
    /// # Errors
    /// There are too many subscriptions, or the store cannot store this one.
    pub async fn open(
        &self,
        (space, durable): (&str, &Durable),
        filters: &Filters,
        position: Seq,
        known: Option<&Arc<Subscription>>,
    ) -> Result<Option<Arc<Subscription>>, OpenError> {
        let name = key(space, durable);
        let subscription = {
            let mut by_name = self.by_name.lock();
            match (by_name.get(&name), known) {
                (Some(present), Some(known)) if Arc::ptr_eq(present, known) => known.clone(),
                (None, None) if by_name.len() >= self.names_max => return Err(OpenError::TooMany),
                (None, None) => {
                    let state = State::new(filters.clone().as_asked(), position, Timestamp::now());
                    let new = Subscription::new(name.as_str().into(), &self.store, state, OnceCell::new());
                    by_name.insert(name, new.clone());
                    new
                }
                _ => return Ok(None),
            }
        };
        // A known subscription is stored already. Of several connections that open a new one, one stores it, and the others
        // wait for that.
        let stored = subscription.stored.get_or_try_init(|| self.store_new(&subscription)).await;
        match stored {
            Ok(()) => Ok(Some(subscription)),
            Err(None) => Ok(None),
            Err(Some(failure)) => {
                let mut by_name = self.by_name.lock();
                if is_current(&by_name, &subscription) {
                    by_name.remove(&*subscription.name);
                    // The writer would store it as soon as it can. This is said under the lock, as a deletion is.
                    self.store.remove_soon(subscription.name.clone());
                }
                Err(failure.into())
            }
        }
    }

    /// Stores a new subscription. The error is `None` when it has been deleted already.
    async fn store_new(&self, subscription: &Arc<Subscription>) -> Result<(), Option<Failure>> {
        let stored = {
            // Both this and a deletion are passed to the store under the lock, so that it gets them in the order in which they
            // happened.
            let by_name = self.by_name.lock();
            if !is_current(&by_name, subscription) {
                return Err(None);
            }
            self.store.save(subscription.state.lock().to_store(&subscription.name))
        };
        stored.await.map_err(Some)
    }

    /// Adds a member to a group, which gets a dispatcher if this is the first one.
    ///
    /// # Errors
    /// The request has other filters than the present members.
    pub fn join(&self, subscription: &Arc<Subscription>, request: &Subscribe, id: u32) -> Result<Member, OpenError> {
        let mut state = subscription.state.lock();
        let differs = request.filters.asked() != state.filters.asked() && !request.filters.asked().is_empty();
        if let Consumer::Group(group) = &state.consumer
            && let Some(member) = group.join(id)
        {
            return match differs {
                true => Err(OpenError::OtherFilters(subscription.name().name[GROUP_PREFIX.len()..].to_owned())),
                false => Ok(member),
            };
        }
        if differs {
            state.set_filters(request.filters.clone());
        }
        let ack_wait = request.durable.as_ref().map(|durable| durable.ack_wait).unwrap_or_default();
        let feed = Feed::new(self.store.clone(), self.hub.clone(), state.filters.filter.clone(), state.position);
        let confirmed = subscription.clone();
        let report = move |progress| match progress {
            Progress::Confirmed(position) => confirmed.confirm(position),
            Progress::Over => confirmed.group_ended(),
        };
        let (group, member, dispatcher) = Group::start(feed, report, ack_wait, self.window_bytes, id);
        if state.lifecycle == Lifecycle::Deleted {
            group.end();
        }
        state.consumer = Consumer::Group(group);
        subscription.store_changes(&mut state);
        // If the dispatcher is dropped below, it reports its end, for which it needs the lock.
        drop(state);
        // When the server is ending, no dispatcher is run any more, and the member ends too.
        if let Some(dispatchers) = &*self.dispatchers.lock() {
            let _ = dispatchers.send(dispatcher);
        }
        Ok(member)
    }

    /// How all of them are used.
    pub fn in_use(&self) -> InUse {
        let all: Vec<_> = self.by_name.lock().values().cloned().collect();
        let (mut in_use, newest) = (InUse::default(), self.store.committed());
        for subscription in all {
            let state = subscription.state.lock();
            let (connected, unconfirmed) = state.consumer.counts();
            in_use.connected += usize::from(connected > 0);
            in_use.idle += usize::from(connected == 0);
            in_use.unconfirmed += unconfirmed;
            if connected > 0 {
                in_use.largest_lag = in_use.largest_lag.max(newest.0.saturating_sub(state.position.0));
            }
        }
        in_use
    }

    /// All subscriptions, by name.
    pub fn all(&self) -> Vec<Arc<Subscription>> {
        let mut all: Vec<_> = self.by_name.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Deletes a subscription and, once the deletion is stored, ends its consumer. Returns whether the subscription existed.
    ///
    /// # Errors
    /// The store cannot delete it. Then the subscription exists again, and its consumer has not noticed anything.
    pub async fn delete(&self, name: &str) -> Result<bool, Failure> {
        let (deletion, stored) = {
            let mut by_name = self.by_name.lock();
            let Some(subscription) = by_name.remove(name) else { return Ok(false) };
            // This comes before the deletion: a later confirmation would store the subscription again.
            subscription.state.lock().lifecycle = Lifecycle::Deleting;
            // The store gets the deletion under this lock, so a new subscription of the same name comes after it.
            (PendingDeletion(Some(subscription)), self.store.remove(name.into()))
        };
        let Err(failure) = stored.await else { return Ok(true) };
        let mut by_name = self.by_name.lock();
        if let Entry::Vacant(entry) = by_name.entry(name.to_owned()) {
            entry.insert(deletion.undo());
        }
        Err(failure)
    }

    /// From now on no group gets a dispatcher. The running ones end with the stream.
    pub fn close(&self) {
        self.dispatchers.lock().take();
    }
}

/// A subscription that is being deleted. When this is dropped, its consumer ends: the deletion is stored, or another
/// subscription has the name, or the client that asked has left and will not learn whether the deletion was stored.
struct PendingDeletion(Option<Arc<Subscription>>);

impl PendingDeletion {
    /// The subscription exists again.
    fn undo(mut self) -> Arc<Subscription> {
        let subscription = self.0.take().expect("it is taken only here");
        let mut state = subscription.state.lock();
        state.lifecycle = Lifecycle::Present;
        subscription.store_changes(&mut state);
        drop(state);
        subscription
    }
}

impl Drop for PendingDeletion {
    fn drop(&mut self) {
        if let Some(subscription) = &self.0 {
            subscription.end();
        }
    }
}

/// Whether its name still leads to this subscription.
fn is_current(by_name: &HashMap<String, Arc<Subscription>>, subscription: &Arc<Subscription>) -> bool {
    by_name.get(&*subscription.name).is_some_and(|present| Arc::ptr_eq(present, subscription))
}

/// The name under which a subscription is stored.
fn key(space: &str, durable: &Durable) -> String {
    let prefix = if durable.is_group { GROUP_PREFIX } else { "" };
    Name { space, name: &format!("{prefix}{}", durable.name) }.stored()
}

impl Subscription {
    fn new(name: Arc<str>, store: &Store, state: State, stored: OnceCell<()>) -> Arc<Self> {
        Arc::new(Self { name, store: store.clone(), state: Mutex::new(state), stored })
    }

    pub fn name(&self) -> Name<'_> {
        Name::of_stored(&self.name)
    }

    /// Everything up to this event is confirmed.
    pub fn position(&self) -> Seq {
        self.state.lock().position
    }

    /// Its filters, as they were asked for.
    pub fn filters(&self) -> Filters {
        self.state.lock().filters.clone()
    }

    /// Its filters, as events are tested against them.
    pub fn filter(&self) -> Filter {
        self.state.lock().filters.filter.clone()
    }

    /// Makes a connection the consumer and ends the former one. New filters replace the former ones.
    pub fn take_over(&self, filters: &Filters) -> oneshot::Receiver<Ending> {
        let (end, ended) = oneshot::channel();
        let mut state = self.state.lock();
        if filters.asked() != state.filters.asked() {
            state.set_filters(filters.clone());
        }
        if state.lifecycle == Lifecycle::Deleted {
            let _ = end.send(Ending::Deleted);
            return ended;
        }
        if let Consumer::Connection(former) = std::mem::replace(&mut state.consumer, Consumer::Connection(end)) {
            // Sending fails when the former connection has ended by itself.
            let _ = former.send(Ending::TakenOver);
        }
        self.store_changes(&mut state);
        ended
    }

    /// Replaces the filters, as the consumer asked.
    pub fn change_filters(&self, filters: &Filters) {
        let mut state = self.state.lock();
        state.set_filters(filters.clone());
        self.store_changes(&mut state);
    }

    /// Confirms everything up to an event. Confirmations may come late and out of order.
    pub fn confirm(&self, seq: Seq) {
        let mut state = self.state.lock();
        if seq > state.position {
            state.position = seq;
            self.store_changes(&mut state);
        }
    }

    /// Ends the consumer. No change of the subscription is stored from now on.
    fn end(&self) {
        let mut state = self.state.lock();
        state.lifecycle = Lifecycle::Deleted;
        match std::mem::replace(&mut state.consumer, Consumer::None) {
            Consumer::None => {}
            Consumer::Connection(end) => drop(end.send(Ending::Deleted)),
            Consumer::Group(group) => group.end(),
        }
    }

    /// The group's dispatcher has ended. Another one may have started already.
    fn group_ended(&self) {
        let mut state = self.state.lock();
        if matches!(&state.consumer, Consumer::Group(group) if group.has_ended()) {
            state.consumer = Consumer::None;
        }
        self.store_changes(&mut state);
    }

    fn store_changes(&self, state: &mut State) {
        state.last_seen = Timestamp::now();
        if state.lifecycle == Lifecycle::Present {
            self.store.save_soon(state.to_store(&self.name));
        }
    }

    /// What `GET /subscriptions` shows of it.
    pub fn summary(&self) -> Summary {
        let state = self.state.lock();
        let (connected, unconfirmed) = state.consumer.counts();
        Summary {
            name: self.name().name.to_owned(),
            space: self.name().space.to_owned(),
            filters: state.filters.asked().clone(),
            filter: state.filters.filter.clone(),
            position: state.position,
            last_seen: state.last_seen,
            connected,
            unconfirmed,
        }
    }
}

impl State {
    /// `filters` are as they were asked for.
    fn new(filters: Filters, position: Seq, last_seen: Timestamp) -> Self {
        let filters_text = text_of(&filters);
        Self { filters, filters_text, position, last_seen, consumer: Consumer::None, lifecycle: Lifecycle::Present }
    }

    fn set_filters(&mut self, filters: Filters) {
        let filters = filters.as_asked();
        (self.filters_text, self.filters) = (text_of(&filters), filters);
    }

    fn to_store(&self, name: &Arc<str>) -> StoredSubscription {
        let (filters, last_seen) = (self.filters_text.clone(), self.last_seen.to_string());
        StoredSubscription { name: name.clone(), filters, position: self.position, last_seen }
    }
}

fn text_of(filters: &Filters) -> Arc<str> {
    Value::Object(filters.asked().clone()).to_string().into()
}
