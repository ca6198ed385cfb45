//! What every connection shares: the configuration, the record, the hub, and the counts of who is here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use dashmap::DashMap;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use crate::auth::Access;
use crate::budget::Budget;
use crate::config::Config;
use crate::event::{EventTypes, Filter, Parser};
use crate::hub::Hub;
use crate::store::Store;
use crate::subscriptions::Subscriptions;

/// Texts beyond this are parsed on a thread for that, which costs some 20 µs: one of 64 KiB takes 250 µs, and everybody
/// else on the network thread waits for it.
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
    /// Memory for the bodies of requests.
    pub bodies: Budget,
    /// Memory for pages of `GET /events`, and other large answers, that clients have not taken yet.
    pub pages: Budget,
    /// Permits for searches: pages of `GET /events` that go on reading because few events pass, starts of subscriptions
    /// that are not found in a moment, and lists of all subscriptions. One for each network thread, by default half the
    /// processors; the other half is left to the writer and the fan-out, for which publishers wait.
    pub searches: Semaphore,
    /// The runtime whose blocking threads parse large texts. The database is not read on them, so long searches hold
    /// up no producer.
    parsing: Handle,
    /// True once the server shuts down.
    shutting_down: watch::Sender<bool>,
    /// The receiver that connections clone. It has never looked at the value, so the change is new to every clone.
    shutdown: Shutdown,
    /// Every connection that may still hand in events holds a receiver.
    producers: watch::Sender<()>,
    /// Who subscribes now, by the number of its id.
    subscribers: DashMap<u32, Arc<Subscriber>>,
    /// As many; places are taken before there is a subscriber.
    places: AtomicUsize,
    subscriber_ids: AtomicU32,
}

/// Who subscribes, for whoever wants to know why an event went to whom.
#[derive(Debug, Clone)]
pub struct Subscriber {
    pub filter: Filter,
    /// The durable subscription or the group that it is one of, if it is.
    pub name: Option<String>,
}

impl Pipeline {
    pub fn new(config: Config, store: Store, hub: Arc<Hub>, subscriptions: Subscriptions, parsing: Handle) -> Self {
        let (shutting_down, heard) = watch::channel(false);
        Self {
            types: Arc::new(config.event_types.clone()),
            access: Access::new(&config),
            bodies: Budget::of_bytes(config.max_bodies_bytes),
            pages: Budget::of_bytes(config.max_pages_bytes),
            searches: Semaphore::new(config.network_threads),
            parsing,
            config,
            store,
            hub,
            subscriptions,
            shutting_down,
            shutdown: Shutdown(heard),
            producers: watch::Sender::new(()),
            subscribers: DashMap::new(),
            places: AtomicUsize::new(0),
            subscriber_ids: AtomicU32::new(0),
        }
    }

    /// A parser for one connection.
    pub fn parser(&self) -> Parser {
        Parser::new(self.types.clone(), self.config.limits)
    }

    /// Parses a text beyond [`PARSED_IN_PLACE_BYTES_MAX`] beside the network thread.
    pub async fn parse_beside<T: Send + 'static>(&self, parse: impl FnOnce() -> T + Send + 'static) -> T {
        let parsed = self.parsing.spawn_blocking(parse);
        parsed.await.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))
    }

    /// Subscribers connected now.
    pub fn subscribers(&self) -> usize {
        self.places.load(Ordering::Relaxed)
    }

    /// Who subscribes now, in the order in which they came.
    pub fn subscriber_list(&self) -> Vec<(u32, Arc<Subscriber>)> {
        let mut list: Vec<_> = self.subscribers.iter().map(|entry| (*entry.key(), entry.value().clone())).collect();
        list.sort_unstable_by_key(|(id, _)| *id);
        list
    }

    /// A place among the subscribers, or `None` when there are as many as the configuration allows.
    pub fn place(self: &Arc<Self>) -> Option<SubscriberPlace> {
        let below_max = |n: usize| (n < self.config.max_subscribers).then_some(n + 1);
        self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below_max).ok()?;
        Some(SubscriberPlace { id: self.subscriber_ids.fetch_add(1, Ordering::Relaxed) + 1, pipeline: self.clone() })
    }

    /// A connection that may hand in events: the store stays open until it is dropped, with all its clones.
    pub fn producer(&self) -> Producer {
        Producer { _open: Arc::new(self.producers.subscribe()) }
    }

    /// What tells a connection that the server shuts down.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Tells everybody that the server shuts down.
    pub fn begin_shutdown(&self) {
        self.shutting_down.send_replace(true);
    }

    /// Resolves when every producer is gone.
    pub async fn producers_gone(&self) {
        self.producers.closed().await;
    }
}

/// Held by a connection for as long as it may hand in events, and by each of its requests that does. A clone touches
/// nothing that connections share.
#[derive(Debug, Clone)]
pub struct Producer {
    _open: Arc<watch::Receiver<()>>,
}

/// Hears that the server shuts down. It holds nothing up.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Whether the shutdown has begun: one look at a number, so a loop can afford it each time round.
    pub fn has_begun(&self) -> bool {
        // The receiver itself never looks at the value, so the change stays new to it.
        self.0.has_changed().unwrap_or(true)
    }

    /// Resolves when the shutdown begins. Cancel-safe.
    pub async fn begun(&self) {
        // The pipeline outlives its connections, so the sender is there.
        let _ = self.0.clone().wait_for(|shutting_down| *shutting_down).await;
    }
}

/// A subscriber's place, given up when dropped.
#[derive(Debug)]
pub struct SubscriberPlace {
    id: u32,
    pipeline: Arc<Pipeline>,
}

impl SubscriberPlace {
    /// The number of the subscriber's id, unique while the server runs.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Lets others know what this subscriber gets, from now on.
    pub fn tell(&self, subscriber: Subscriber) {
        self.pipeline.subscribers.insert(self.id, Arc::new(subscriber));
    }
}

impl Drop for SubscriberPlace {
    fn drop(&mut self) {
        self.pipeline.subscribers.remove(&self.id);
        self.pipeline.places.fetch_sub(1, Ordering::Relaxed);
    }
}
