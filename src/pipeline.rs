//! What all connections share: the configuration, the record, the hub, the limits, and the subscribers.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinSet, unconstrained};

use crate::auth::Access;
use crate::budget::Budget;
use crate::config::Config;
use crate::event::{EventTypes, Filter, Parser, Timestamp};
use crate::feed::{Doing, Standing, StandsAt};
use crate::histogram::Histogram;
use crate::hub::Hub;
use crate::store::{Store, SyncOf};
use crate::subscriptions::Subscriptions;
use crate::wire::refusal::{Ending, REASONS};

/// Larger texts are parsed on a thread of their own, which costs some 20 µs each. A text of 64 KiB takes 250 µs to parse, and
/// all other connections of the network thread would wait for it.
pub const PARSED_IN_PLACE_BYTES_MAX: usize = 64 << 10;

/// One running pipeline. Connections hold it in an `Arc`.
#[derive(Debug)]
pub struct Pipeline {
    pub config: Config,
    pub types: Arc<EventTypes>,
    pub store: Store,
    pub hub: Arc<Hub>,
    pub subscriptions: Subscriptions,
    pub access: Access,
    pub refusals: Refusals,
    /// One permit for each client that may still connect.
    pub connections: Connections,
    pub started: Timestamp,
    /// Memory for large bodies and messages.
    pub bodies: Budget,
    /// Memory for pages of `GET /events`, and other large answers, that clients have not taken yet.
    pub pages: Budget,
    /// Permits for searches: pages of `GET /events` that go on reading because few events pass, starts of subscriptions
    /// that are not found within 50 ms, and lists of all subscriptions. There is one for each network thread, by default
    /// half the processors; the other half is left to the writer and the fan-out, for which publishers wait.
    pub searches: Semaphore,
    /// The runtime whose blocking threads parse large texts. The database is not read on them, so long searches delay no
    /// producer.
    parsing: Handle,
    /// What goes on when its client has left.
    deletions: Mutex<JoinSet<()>>,
    /// True once the server shuts down.
    shutting_down: watch::Sender<bool>,
    /// The receiver that connections clone. It never looks at the value, so the change is new to every clone.
    shutdown: Shutdown,
    /// Every connection that may still publish holds a receiver.
    producers: watch::Sender<()>,
    /// The present subscribers, by the number of their id.
    subscribers: DashMap<u32, Registered>,
    /// Slots in use. A slot is taken before its subscriber is registered.
    slots: AtomicUsize,
    subscriber_ids: AtomicU32,
}

/// How many clients are connected, and how many may be.
#[derive(Debug)]
pub struct Connections {
    pub free: Arc<Semaphore>,
    pub max: usize,
}

impl Connections {
    pub fn new(max: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(max)), max }
    }

    pub fn in_use(&self) -> usize {
        self.max - self.free.available_permits()
    }
}

/// How many requests and messages were refused since the start, for each of [`REASONS`].
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; REASONS.len()]);

impl Refusals {
    /// Counts a refusal, by the slug of its problem type.
    pub fn note(&self, slug: &'static str) {
        let index = REASONS.binary_search(&slug).expect("all slugs are listed, in order");
        self.0[index].fetch_add(1, Ordering::Relaxed);
    }

    /// Each reason, and how often there was it.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REASONS.into_iter().zip(&self.0).map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }
}

/// A present subscriber, for `GET /subscriptions/explain`.
#[derive(Debug, Clone)]
pub struct Subscriber {
    pub filter: Filter,
    /// The durable subscription that it is served, or the group that it is a member of.
    pub name: Option<String>,
    /// Where its client belongs (`Principal::space`).
    pub space: Box<str>,
}

/// Where all subscribers stand.
#[derive(Debug, Default)]
pub struct Standings {
    /// How many are doing each of [`Doing::ALL`].
    pub by_doing: [usize; Doing::ALL.len()],
    /// How many want events that are stored and that they do not have.
    pub behind: usize,
    /// The most numbers of the record between the position of one of these and the high-water mark.
    pub largest_lag: u64,
    /// Bytes in the outboxes of live ones, and in the fullest.
    pub waiting: usize,
    pub most_waiting: usize,
}

#[derive(Debug)]
struct Registered {
    subscriber: Arc<Subscriber>,
    standing: Arc<Standing>,
    /// Ends its connection; taken by the first use.
    end: Option<oneshot::Sender<Ending>>,
}

impl Pipeline {
    pub fn new(
        config: Config,
        access: Access,
        store: Store,
        hub: Arc<Hub>,
        subscriptions: Subscriptions,
        parsing: Handle,
        connections_max: usize,
    ) -> Self {
        let (shutting_down, heard) = watch::channel(false);
        Self {
            types: Arc::new(config.event_types.clone()),
            access,
            refusals: Refusals::default(),
            connections: Connections::new(connections_max),
            started: Timestamp::now(),
            bodies: Budget::of_bytes(config.max_bodies_bytes),
            pages: Budget::of_bytes(config.max_pages_bytes),
            searches: Semaphore::new(config.network_threads),
            parsing,
            deletions: Mutex::default(),
            config,
            store,
            hub,
            subscriptions,
            shutting_down,
            shutdown: Shutdown(heard),
            producers: watch::Sender::new(()),
            subscribers: DashMap::new(),
            slots: AtomicUsize::new(0),
            subscriber_ids: AtomicU32::new(0),
        }
    }

    /// A parser for one connection.
    pub fn parser(&self) -> Parser {
        Parser::new(self.types.clone(), self.config.limits)
    }

    /// Parses a text larger than [`PARSED_IN_PLACE_BYTES_MAX`], or does other work of that length, outside the network
    /// thread.
    pub async fn parse_beside<T: Send + 'static>(&self, parse: impl FnOnce() -> T + Send + 'static) -> T {
        let parsed = self.parsing.spawn_blocking(parse);
        parsed.await.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))
    }

    /// Runs a deletion to its end, on the thread that calls this, whether its client waits for it or not. It ends before that
    /// only with the server.
    pub fn go_on(&self, deletion: impl Future<Output = ()> + Send + 'static) {
        let mut deletions = self.deletions.lock();
        while deletions.try_join_next().is_some() {}
        deletions.spawn(deletion);
    }

    /// How long what every event passes takes, each with its name.
    pub fn stages(&self) -> [(&'static str, &Histogram); 4] {
        let timings = self.store.timings();
        [
            ("acknowledgement", &timings.acknowledgement),
            ("commit", &timings.commit),
            ("delivery_round", &self.hub.rounds.took),
            ("query", &timings.query),
        ]
    }

    /// To be called every [`MARK_INTERVAL`](crate::histogram::MARK_INTERVAL), for the percentiles of the last minute.
    pub fn mark_minute(&self) {
        let syncs = SyncOf::ALL.into_iter().map(|sync| self.store.syncs().of(sync));
        self.stages().into_iter().map(|(_, histogram)| histogram).chain(syncs).for_each(Histogram::mark);
    }

    /// How many subscribers are present.
    pub fn subscribers(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }

    /// What the subscribers are doing, and how far those are behind that are. It looks at each of them and delays none.
    pub fn standings(&self) -> Standings {
        let (mut standings, newest) = (Standings::default(), self.store.committed());
        for entry in &self.subscribers {
            let StandsAt { doing, position, waiting } = entry.standing.get();
            standings.by_doing[doing as usize] += 1;
            standings.waiting += waiting;
            standings.most_waiting = standings.most_waiting.max(waiting);
            if doing.is_behind() {
                standings.behind += 1;
                standings.largest_lag = standings.largest_lag.max(newest.0.saturating_sub(position.0));
            }
        }
        // The rest has a slot and is not registered.
        let registered = standings.by_doing.iter().sum();
        standings.by_doing[Doing::Opening as usize] += self.subscribers().saturating_sub(registered);
        standings
    }

    /// The present subscribers, oldest first.
    pub fn subscriber_list(&self) -> Vec<(u32, Arc<Subscriber>)> {
        let mut list: Vec<_> = self.subscribers.iter().map(|entry| (*entry.key(), entry.subscriber.clone())).collect();
        list.sort_unstable_by_key(|(id, _)| *id);
        list
    }

    /// Ends the connection of a subscriber, which is told why: a WebSocket with a Close frame, while an event stream just ends.
    /// False when there is no such subscriber, or it is ending already.
    pub fn end_subscriber(&self, id: u32, why: Ending) -> bool {
        let end = self.subscribers.get_mut(&id).and_then(|mut registered| registered.end.take());
        end.is_some_and(|end| end.send(why).is_ok())
    }

    /// A slot for one more subscriber, or `None` when there are as many as the configuration allows.
    pub fn subscriber_slot(self: &Arc<Self>) -> Option<SubscriberSlot> {
        let below_max = |n: usize| (n < self.config.max_subscribers).then_some(n + 1);
        self.slots.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below_max).ok()?;
        let id = self.subscriber_ids.fetch_add(1, Ordering::Relaxed) + 1;
        Some(SubscriberSlot { id, standing: Arc::default(), pipeline: self.clone() })
    }

    /// For a connection that may publish: the store stays open until this is dropped, with all its clones.
    pub fn producer(&self) -> Producer {
        Producer { _open: Arc::new(self.producers.subscribe()) }
    }

    /// For a connection, to learn of the shutdown.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Tells all connections that the server shuts down.
    pub fn begin_shutdown(&self) {
        self.shutting_down.send_replace(true);
    }

    /// Resolves when no connection may publish any more.
    pub async fn producers_gone(&self) {
        self.producers.closed().await;
    }
}

/// Held by a connection for as long as it may publish, and by each of its requests that publishes. A clone touches nothing
/// that connections share.
#[derive(Debug, Clone)]
pub struct Producer {
    _open: Arc<watch::Receiver<()>>,
}

/// Learns that the server shuts down. The shutdown does not wait for it.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Whether the shutdown has begun: one atomic load, so a loop can afford it each time round.
    pub fn has_begun(&self) -> bool {
        // The receiver itself never looks at the value, so the change stays new to it.
        self.0.has_changed().unwrap_or(true)
    }

    /// Resolves when the shutdown begins. Cancel-safe.
    pub async fn begun(&self) {
        let mut heard = self.0.clone();
        // A task that has used up its budget must be registered all the same.
        let mut waiting = pin!(unconstrained(heard.wait_for(|shutting_down| *shutting_down)));
        let mut registered: Option<Waker> = None;
        poll_fn(|cx| {
            // A connection polls this whenever it is woken. Once its task is registered, a look at the value is enough: to
            // register it again takes a lock that many connections share.
            if registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) && !self.has_begun() {
                return Poll::Pending;
            }
            registered = Some(cx.waker().clone());
            // The pipeline outlives its connections, so the sender is there.
            waiting.as_mut().poll(cx).map(drop)
        })
        .await;
    }
}

/// A subscriber's slot, given back when dropped.
#[derive(Debug)]
pub struct SubscriberSlot {
    id: u32,
    standing: Arc<Standing>,
    pipeline: Arc<Pipeline>,
}

impl SubscriberSlot {
    /// The number of the subscriber's id, unique while the server runs.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where its stream shows what it does.
    pub fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    /// Registers the subscriber of this slot. The receiver resolves when its connection has to end.
    pub fn register(&self, subscriber: Subscriber) -> oneshot::Receiver<Ending> {
        let (end, ended) = oneshot::channel();
        let standing = self.standing.clone();
        let registered = Registered { subscriber: Arc::new(subscriber), standing, end: Some(end) };
        self.pipeline.subscribers.insert(self.id, registered);
        ended
    }

    /// The registered subscriber has new filters.
    pub fn update(&self, subscriber: Subscriber) {
        if let Some(mut registered) = self.pipeline.subscribers.get_mut(&self.id) {
            registered.subscriber = Arc::new(subscriber);
        }
    }
}

impl Drop for SubscriberSlot {
    fn drop(&mut self) {
        self.pipeline.subscribers.remove(&self.id);
        self.pipeline.slots.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Pipeline {
    /// For tests: on an open store, with the hub that its commits go to.
    pub(crate) fn of_test(config: Config, store: Store, hub: Arc<Hub>, parsing: Handle) -> Arc<Self> {
        let loaded = Subscriptions::load(&store, &hub, config.max_subscriptions, config.max_subscriber_bytes);
        let (subscriptions, _) = loaded.expect("readable");
        let access = Access::new(&config).expect("nothing is asked of it");
        Arc::new(Self::new(config, access, store, hub, subscriptions, parsing, 1))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_busy_connection_learns_of_the_shutdown_too() {
        let (shutting_down, heard) = watch::channel(false);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        (0..1_000).for_each(|n| sender.send(n).expect("a receiver"));
        let connection = tokio::spawn(async move {
            let shutdown = Shutdown(heard);
            let mut begun = pin!(shutdown.begun());
            poll_fn(|cx| {
                // Until the task has used up its budget.
                while receiver.poll_recv(cx).is_ready() {}
                assert!(begun.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            begun.await;
        });
        // It is woken once more, because its budget was used up, and then waits.
        for _ in 0..3 {
            yield_now().await;
        }
        shutting_down.send_replace(true);
        timeout(Duration::from_secs(10), connection).await.expect("it learns of it").expect("no panic");
    }
}
