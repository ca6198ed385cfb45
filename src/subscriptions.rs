//! Durable subscriptions: filters and a confirmed position that are kept under a name, and who is served under
//! it now.
//!
//! The table in the database is read once, at start; from then on the truth is here, and the writer is told of
//! changes. Confirmations reach the disk some at a time: after a crash events come again, none is left out.

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
use crate::store::{self, Kept, Store};
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
    /// Where groups get a task; gone once the server ends.
    dispatchers: Mutex<Option<mpsc::UnboundedSender<Dispatcher>>>,
}

/// One durable subscription.
#[derive(Debug)]
pub struct Subscription {
    name: Arc<str>,
    store: Store,
    state: Mutex<State>,
    /// Set once the store has it. Every connection that opens it waits for that.
    stored: OnceCell<()>,
}

#[derive(Debug)]
struct State {
    filters: Filters,
    /// The same as they are stored.
    filters_text: Arc<str>,
    /// Everything up to this event is confirmed.
    position: Seq,
    last_seen: Timestamp,
    served: Served,
    life: Life,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Kept,
    /// It is being deleted: nothing of it is stored any more, and who is served does not know yet.
    Going,
    Gone,
}

/// Who is served under a name.
#[derive(Debug)]
enum Served {
    Nobody,
    /// One connection, which is told when another takes over or the subscription is deleted.
    One(oneshot::Sender<Ending>),
    Members(Group),
}

/// What `GET /subscriptions` tells of one.
#[derive(Debug)]
pub struct Listed {
    pub name: String,
    pub filters: Map<String, Value>,
    pub filter: Filter,
    pub position: Seq,
    pub last_seen: Timestamp,
    /// Connections that are served.
    pub connected: usize,
    /// Events sent to members of a group and not confirmed.
    pub unconfirmed: usize,
}

/// Why there is no such subscription, in words for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("There are as many durable subscriptions as the server keeps")]
    TooMany,
    #[error("The group '{0}' has other filters: leave yours out, or join when it is empty")]
    OtherFilters(String),
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl Denied {
    /// How the connection ends that asked: whether it may try again.
    pub fn ending(&self) -> Ending {
        match self {
            Self::TooMany => Ending::Capacity,
            Self::OtherFilters(_) => Ending::NotUnderstood,
            Self::Failed(_) => Ending::Failed,
        }
    }
}

/// What groups are stored under, which no name can begin with.
const GROUP_PREFIX: &str = "group:";

impl Subscriptions {
    /// The subscriptions of a store, and where their groups ask for tasks.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn load(
        store: &Store,
        hub: &Arc<Hub>,
        names_max: usize,
        window_bytes: usize,
    ) -> store::Result<(Self, mpsc::UnboundedReceiver<Dispatcher>)> {
        let mut by_name = HashMap::new();
        for kept in store.reader().durable_subscriptions()? {
            let asked = serde_json::from_str(&kept.filters).ok();
            let Some(filters) = asked.and_then(|asked| Filters::parse_stored(&asked).ok()) else {
                tracing::warn!(
                    name = &*kept.name,
                    "the filters of a durable subscription are not understood: it is left out"
                );
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
    pub fn find(&self, durable: &Durable) -> Option<Arc<Subscription>> {
        self.by_name.lock().get(&key(durable)).cloned()
    }

    /// The subscription that a request names: the known one, or a new one that begins after `position`. It is stored
    /// when this returns. `None` when another connection has opened or deleted it since the caller looked `known`
    /// up: the caller has to find its start again.
    ///
    /// # Errors
    /// When there are too many, or the store cannot keep it.
    pub async fn open(
        &self,
        durable: &Durable,
        filters: &Filters,
        position: Seq,
        known: Option<&Arc<Subscription>>,
    ) -> Result<Option<Arc<Subscription>>, Denied> {
        let name = key(durable);
        let subscription = {
            let mut by_name = self.by_name.lock();
            match (by_name.get(&name), known) {
                (Some(there), Some(known)) if Arc::ptr_eq(there, known) => known.clone(),
                (None, None) if by_name.len() >= self.names_max => return Err(Denied::TooMany),
                (None, None) => {
                    let state = State::new(filters.clone(), position, Timestamp::now());
                    let new = Subscription::new(name.as_str().into(), &self.store, state, OnceCell::new());
                    by_name.insert(name, new.clone());
                    new
                }
                _ => return Ok(None),
            }
        };
        // A known one is stored already. Of several connections that open a new one, one stores it and the others wait.
        let stored = subscription.stored.get_or_try_init(|| self.store_new(&subscription)).await;
        match stored {
            Ok(()) => Ok(Some(subscription)),
            Err(None) => Ok(None),
            Err(Some(failure)) => {
                let mut by_name = self.by_name.lock();
                if is_there(&by_name, &subscription) {
                    by_name.remove(&*subscription.name);
                    // The writer would store it once it can. Told under this lock, as of a deletion.
                    self.store.forget_soon(subscription.name.clone());
                }
                Err(failure.into())
            }
        }
    }

    /// Has a new subscription stored. It fails without a reason when it is deleted already.
    async fn store_new(&self, subscription: &Arc<Subscription>) -> Result<(), Option<Failure>> {
        let stored = {
            // The store is told under this lock, as of a deletion, so that it hears of both in the order in which they
            // happened.
            let by_name = self.by_name.lock();
            if !is_there(&by_name, subscription) {
                return Err(None);
            }
            self.store.keep_now(subscription.state.lock().kept(&subscription.name))
        };
        stored.await.map_err(Some)
    }

    /// A member more of a group, which gets a task when this is the first.
    ///
    /// # Errors
    /// When it asks for other events than those who are there.
    pub fn join(&self, subscription: &Arc<Subscription>, request: &Subscribe, id: u32) -> Result<Member, Denied> {
        let mut state = subscription.state.lock();
        let asks = !request.filters.asked().is_empty();
        let is_other = asks && request.filters.filter != state.filters.filter;
        if let Served::Members(group) = &state.served
            && let Some(member) = group.join(id)
        {
            return match is_other {
                true => Err(Denied::OtherFilters(subscription.name[GROUP_PREFIX.len()..].to_owned())),
                false => Ok(member),
            };
        }
        if is_other {
            state.set_filters(request.filters.clone());
        }
        let ack_wait = request.durable.as_ref().map(|durable| durable.ack_wait).unwrap_or_default();
        let feed = Feed::new(self.store.clone(), self.hub.clone(), state.filters.filter.clone(), state.position);
        let confirmed = subscription.clone();
        let report = move |progress| match progress {
            Progress::Confirmed(position) => confirmed.confirm(position),
            Progress::Over => confirmed.left(),
        };
        let (group, member, dispatcher) = Group::start(feed, report, ack_wait, self.window_bytes, id);
        if state.life == Life::Gone {
            group.end();
        }
        state.served = Served::Members(group);
        subscription.tell(&mut state);
        // A dispatcher that ends reports it, for which it needs the state.
        drop(state);
        // Without somebody to run it the server is ending, and so does the member.
        if let Some(dispatchers) = &*self.dispatchers.lock() {
            let _ = dispatchers.send(dispatcher);
        }
        Ok(member)
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Subscription>> {
        let mut all: Vec<_> = self.by_name.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Forgets one and, once the store has, ends who is served under it. Returns whether it was known.
    ///
    /// # Errors
    /// When the store cannot: then it is known again, and who is served has heard nothing.
    pub async fn delete(&self, name: &str) -> Result<bool, Failure> {
        let (doomed, forgotten) = {
            let mut by_name = self.by_name.lock();
            let Some(subscription) = by_name.remove(name) else { return Ok(false) };
            // Before it is forgotten: a confirmation that comes later would have it stored again.
            subscription.state.lock().life = Life::Going;
            // The store is told under this lock: a new one of the same name comes after it.
            (Doomed(Some(subscription)), self.store.forget(name.into()))
        };
        let Err(failure) = forgotten.await else { return Ok(true) };
        let mut by_name = self.by_name.lock();
        if let Entry::Vacant(place) = by_name.entry(name.to_owned()) {
            place.insert(doomed.spared());
        }
        Err(failure)
    }

    /// No group gets a task any more: those that run end with the stream.
    pub fn close(&self) {
        self.dispatchers.lock().take();
    }
}

/// A subscription that is being deleted. Who is served under it is ended when this is dropped: when the deletion is stored,
/// or another has taken its name, or the client that asked is gone and nobody will hear whether it was.
struct Doomed(Option<Arc<Subscription>>);

impl Doomed {
    /// It is kept after all.
    fn spared(mut self) -> Arc<Subscription> {
        let subscription = self.0.take().expect("only this takes it");
        let mut state = subscription.state.lock();
        state.life = Life::Kept;
        subscription.tell(&mut state);
        drop(state);
        subscription
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        if let Some(subscription) = &self.0 {
            subscription.end();
        }
    }
}

/// Whether this subscription is still the one under its name.
fn is_there(by_name: &HashMap<String, Arc<Subscription>>, subscription: &Arc<Subscription>) -> bool {
    by_name.get(&*subscription.name).is_some_and(|there| Arc::ptr_eq(there, subscription))
}

/// What a subscription is kept under.
fn key(durable: &Durable) -> String {
    if durable.is_group { format!("{GROUP_PREFIX}{}", durable.name) } else { durable.name.clone() }
}

impl Subscription {
    fn new(name: Arc<str>, store: &Store, state: State, stored: OnceCell<()>) -> Arc<Self> {
        Arc::new(Self { name, store: store.clone(), state: Mutex::new(state), stored })
    }

    /// What it is kept under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything up to this event is confirmed.
    pub fn position(&self) -> Seq {
        self.state.lock().position
    }

    /// The filters it is served by.
    pub fn filters(&self) -> Filters {
        self.state.lock().filters.clone()
    }

    /// The same as events are held against it.
    pub fn filter(&self) -> Filter {
        self.state.lock().filters.filter.clone()
    }

    /// Serves it over one more connection; whoever had it hears of that. New filters replace the former ones.
    pub fn take_over(&self, filters: &Filters) -> oneshot::Receiver<Ending> {
        let (end, ended) = oneshot::channel();
        let mut state = self.state.lock();
        if !filters.asked().is_empty() {
            state.set_filters(filters.clone());
        }
        if state.life == Life::Gone {
            let _ = end.send(Ending::Deleted);
            return ended;
        }
        if let Served::One(former) = std::mem::replace(&mut state.served, Served::One(end)) {
            // It may have gone by itself.
            let _ = former.send(Ending::TakenOver);
        }
        self.tell(&mut state);
        ended
    }

    /// New filters, by the connection that is served.
    pub fn change_filters(&self, filters: &Filters) {
        let mut state = self.state.lock();
        state.set_filters(filters.clone());
        self.tell(&mut state);
    }

    /// Everything up to an event is done with. Confirmations may come late and out of order.
    pub fn confirm(&self, seq: Seq) {
        let mut state = self.state.lock();
        if seq > state.position {
            state.position = seq;
            self.tell(&mut state);
        }
    }

    /// Nothing of it is stored from now on, and nobody is served under it.
    fn end(&self) {
        let mut state = self.state.lock();
        state.life = Life::Gone;
        match std::mem::replace(&mut state.served, Served::Nobody) {
            Served::Nobody => {}
            Served::One(end) => drop(end.send(Ending::Deleted)),
            Served::Members(group) => group.end(),
        }
    }

    /// The group's task has ended. Another one may have begun already.
    fn left(&self) {
        let mut state = self.state.lock();
        if matches!(&state.served, Served::Members(group) if group.has_ended()) {
            state.served = Served::Nobody;
        }
        self.tell(&mut state);
    }

    fn tell(&self, state: &mut State) {
        state.last_seen = Timestamp::now();
        if state.life == Life::Kept {
            self.store.keep(state.kept(&self.name));
        }
    }

    /// What is told of it.
    pub fn listed(&self) -> Listed {
        let state = self.state.lock();
        let (connected, unconfirmed) = match &state.served {
            Served::Nobody => (0, 0),
            Served::One(end) => (usize::from(!end.is_closed()), 0),
            Served::Members(group) => group.counts(),
        };
        Listed {
            name: self.name.to_string(),
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
    fn new(filters: Filters, position: Seq, last_seen: Timestamp) -> Self {
        let filters_text = text_of(&filters);
        Self { filters, filters_text, position, last_seen, served: Served::Nobody, life: Life::Kept }
    }

    fn set_filters(&mut self, filters: Filters) {
        (self.filters_text, self.filters) = (text_of(&filters), filters);
    }

    fn kept(&self, name: &Arc<str>) -> Kept {
        let (filters, last_seen) = (self.filters_text.clone(), self.last_seen.to_string());
        Kept { name: name.clone(), filters, position: self.position, last_seen }
    }
}

fn text_of(filters: &Filters) -> Arc<str> {
    Value::Object(filters.asked().clone()).to_string().into()
}
