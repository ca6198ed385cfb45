//! What every connection shares: the configuration, the record, the hub, and the counts of who is here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::sync::watch;

use crate::auth::Access;
use crate::config::Config;
use crate::event::{EventTypes, Parser};
use crate::hub::Hub;
use crate::store::Store;

/// One running pipeline. Connections hold it in an `Arc`.
#[derive(Debug)]
pub struct Pipeline {
    pub config: Config,
    pub types: Arc<EventTypes>,
    pub store: Store,
    pub hub: Arc<Hub>,
    pub access: Access,
    /// True once the server shuts down. Whoever may still hand in events holds a receiver.
    shutdown: watch::Sender<bool>,
    subscribers: AtomicUsize,
    subscriber_ids: AtomicU32,
}

impl Pipeline {
    pub fn new(config: Config, store: Store, hub: Arc<Hub>) -> Self {
        Self {
            types: Arc::new(config.event_types.clone()),
            access: Access::new(&config),
            config,
            store,
            hub,
            shutdown: watch::Sender::new(false),
            subscribers: AtomicUsize::new(0),
            subscriber_ids: AtomicU32::new(0),
        }
    }

    /// A parser for one connection.
    pub fn parser(&self) -> Parser {
        Parser::new(self.types.clone(), self.config.limits)
    }

    /// Subscribers connected now.
    pub fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Relaxed)
    }

    /// A place among the subscribers, or `None` when there are as many as the configuration allows.
    pub fn subscriber(self: &Arc<Self>) -> Option<SubscriberPlace> {
        let below_max = |n: usize| (n < self.config.max_subscribers).then_some(n + 1);
        self.subscribers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below_max).ok()?;
        Some(SubscriberPlace { id: self.subscriber_ids.fetch_add(1, Ordering::Relaxed) + 1, pipeline: self.clone() })
    }

    /// A connection that may hand in events: the store stays open until it is dropped.
    pub fn producer(&self) -> Producer {
        Producer(self.shutdown.subscribe())
    }

    /// Tells every producer to finish.
    pub fn begin_shutdown(&self) {
        self.shutdown.send_replace(true);
    }

    pub fn is_shutting_down(&self) -> bool {
        *self.shutdown.borrow()
    }

    /// Resolves when every producer is gone.
    pub async fn producers_gone(&self) {
        self.shutdown.closed().await;
    }
}

/// Held by a connection for as long as it may hand in events.
#[derive(Debug, Clone)]
pub struct Producer(watch::Receiver<bool>);

impl Producer {
    /// Resolves when the server begins to shut down. Cancel-safe.
    pub async fn shutting_down(&mut self) {
        // The pipeline outlives its connections, so the sender is there.
        let _ = self.0.wait_for(|shutting_down| *shutting_down).await;
    }
}

/// A subscriber's place, given up when dropped.
#[derive(Debug)]
pub struct SubscriberPlace {
    /// Unique while the server runs.
    pub id: u32,
    pipeline: Arc<Pipeline>,
}

impl Drop for SubscriberPlace {
    fn drop(&mut self) {
        self.pipeline.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}
