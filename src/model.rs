//! The hand-made synchronisation under a model checker: the same code, but the checker (shuttle) picks which thread
//! goes on after each lock, each atomic and each wake-up, the same each time, and says how it came to a failure. Small
//! protocols go through every order; those around the database through many random ones and through those with few
//! but awkward changes of thread. Whoever is never woken shows as a deadlock.
//!
//! It takes memory to be sequentially consistent, so it judges the order of steps and not the `Ordering` of each. What
//! it cannot look into (tokio's primitives, crossbeam's channels, dashmap, SQLite) counts as one step.
//!
//! `cargo test --lib --features shuttle model::`

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use serde_json::Map;
use shuttle::future::block_on;
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread;
use tempfile::TempDir;

use crate::audience::Audience;
use crate::config::{Config, Durability};
use crate::doorbell::{Doorbell, Wakes};
use crate::event::{Event, EventTypes, Filter, Seq, Timestamp, TimestampText};
use crate::feed::{Chunk, Feed, Step};
use crate::hub::{FanOut, Hub};
use crate::outbox::{Outbox, Taken};
use crate::store::{Kept, Parts, Receipt, Store};
use crate::subscriptions::Subscriptions;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::wire::Batch;
use crate::wire::batch::Commit;
use crate::wire::subscription::{Durable, Filters};

/// Room on the stack of a thread that works with SQLite.
const STACK_BYTES: usize = 1 << 20;

fn run(scheduler: impl Scheduler + 'static, model: impl Fn() + Send + Sync + 'static) -> usize {
    let mut config = shuttle::Config::new();
    config.stack_size = STACK_BYTES;
    config.silence_warnings = true;
    shuttle::Runner::new(scheduler, config).run(model)
}

/// Goes through every order.
fn in_every_order(model: impl Fn() + Send + Sync + 'static) {
    let orders = run(DfsScheduler::new(Some(2_000_000), false), model);
    assert!((2..2_000_000).contains(&orders), "{orders} orders");
    eprintln!("{orders} orders");
}

/// Goes through so many random orders, and as many with few changes of thread at awkward places.
fn in_many_orders(count: usize, model: impl Fn() + Send + Sync + Clone + 'static) {
    let random = run(RandomScheduler::new(count), model.clone());
    let orders = random + run(PctScheduler::new(3, count), model);
    eprintln!("{orders} random orders");
}

fn push(outbox: &Outbox<usize>, item: usize) {
    let mut wakes = Wakes::default();
    outbox.push(item, 1, &mut wakes);
    wakes.wake_all();
}

#[test]
fn an_outbox_loses_neither_items_nor_wake_ups() {
    in_every_order(|| {
        let outbox = Arc::new(Outbox::new(100));
        let consumer = thread::spawn({
            let outbox = outbox.clone();
            move || {
                let mut taken = Vec::new();
                while block_on(outbox.take(&mut taken)) == Taken::Items {}
                taken
            }
        });
        push(&outbox, 1);
        push(&outbox, 2);
        outbox.close();
        assert_eq!(consumer.join().expect("the consumer ends"), [1, 2]);
    });
}

#[test]
fn an_outbox_of_many_fillers_keeps_the_order_of_each() {
    in_many_orders(4_000, || {
        let outbox = Arc::new(Outbox::new(100));
        let fillers: Vec<_> = [10, 20, 30]
            .map(|first| {
                let outbox = outbox.clone();
                thread::spawn(move || (first..first + 3).for_each(|item| push(&outbox, item)))
            })
            .into();
        let closer = thread::spawn({
            let outbox = outbox.clone();
            move || {
                fillers.into_iter().for_each(|filler| filler.join().expect("a filler ends"));
                outbox.close();
            }
        });
        let mut taken = Vec::new();
        while block_on(outbox.take(&mut taken)) == Taken::Items {}
        closer.join().expect("the closer ends");
        for first in [10, 20, 30] {
            let own = taken.iter().copied().filter(|item| (first..first + 3).contains(item));
            assert!(own.eq(first..first + 3), "{taken:?}");
        }
    });
}

#[test]
fn an_overflow_is_told_whenever_it_happens() {
    in_every_order(|| {
        let outbox = Arc::new(Outbox::new(1));
        let filler = thread::spawn({
            let outbox = outbox.clone();
            move || (1..=3).for_each(|item| push(&outbox, item))
        });
        let mut taken = Vec::new();
        while taken.len() < 3 && block_on(outbox.take(&mut taken)) != Taken::Overflowed {}
        filler.join().expect("the filler ends");
        assert!(taken.iter().copied().eq(1..=taken.len()), "{taken:?}");
        if taken.len() < 3 {
            assert_eq!(outbox.try_take(&mut taken), Some(Taken::Overflowed));
        }
    });
}

/// Runs what is to be done on this thread, whose bell is answered meanwhile.
fn with_bell<T>(work: impl Future<Output = T>) -> T {
    let (mut work, mut bell) = (pin!(work), pin!(Doorbell::answer()));
    block_on(std::future::poll_fn(|context| {
        assert!(bell.as_mut().poll(context).is_pending(), "it is answered for ever");
        work.as_mut().poll(context)
    }))
}

/// Two threads leave news at the door of a third, for two of its tasks each.
#[test]
fn a_bell_that_many_ring_is_heard_for_each() {
    in_many_orders(4_000, || {
        let outboxes: [_; 2] = std::array::from_fn(|_| Arc::new(Outbox::new(100)));
        let tasks = thread::spawn({
            let outboxes = outboxes.clone();
            move || {
                let [mut one, mut other] = [Vec::new(), Vec::new()];
                with_bell(async {
                    while one.len() + other.len() < 8 {
                        let (first, second) = (outboxes[0].take(&mut one), outboxes[1].take(&mut other));
                        tokio::select! { _ = first => {}, _ = second => {} }
                    }
                });
                (one, other)
            }
        });
        let ringers = [10, 20].map(|first| {
            let outboxes = outboxes.clone();
            thread::spawn(move || {
                let mut wakes = Wakes::default();
                for item in first..first + 2 {
                    outboxes.iter().for_each(|outbox| outbox.push(item, 1, &mut wakes));
                    wakes.wake_all();
                }
            })
        });
        ringers.into_iter().for_each(|ringer| ringer.join().expect("a ringer ends"));
        let (mut one, mut other) = tasks.join().expect("every task was woken");
        one.sort_unstable();
        other.sort_unstable();
        assert_eq!((&one[..], &other[..]), (&[10, 11, 20, 21][..], &[10, 11, 20, 21][..]));
    });
}

fn batch(events: usize) -> Batch {
    let types = EventTypes::builtin();
    let event_type = types.get("timer_tick").expect("built in");
    let (source, session_id) = ("model", Some("s"));
    let event = Event { event_type, source, session_id, user_id: None, payload: "{}", idempotency_key: None };
    let mut batch = Batch::default();
    (0..events).for_each(|_| batch.push(&event, &types));
    batch
}

fn commit(seq: Seq) -> Arc<Commit> {
    let mut batch = batch(1);
    batch.stamp(0, seq, &TimestampText::default().render(Timestamp(0)));
    Arc::new(Commit { batches: vec![Arc::new(batch.committed(seq))], through: seq })
}

fn filter(source: &str) -> Filter {
    Filter::default().with(crate::event::Field::Source, [source])
}

/// Others with the same filter, under the same key, and with a filter on the same field come and go meanwhile.
#[test]
fn who_is_registered_gets_what_is_delivered() {
    in_many_orders(4_000, || {
        let hub = Hub::new(Audience::default(), 1 << 20);
        let asked = serde_json::json!({ "source": "model", "exclude": { "user_id": "u" } });
        let closer = Filter::parse(asked.as_object().expect("an object")).expect("a filter");
        let others = [filter("model"), filter("other"), closer].map(|filter| {
            let hub = hub.clone();
            thread::spawn(move || (0..2).for_each(|_| drop(hub.register(&filter))))
        });
        let member = hub.register(&filter("model"));
        let fan_out = thread::spawn({
            let hub = hub.clone();
            move || hub.deliver(&[commit(Seq(1))], &mut FanOut::default())
        });
        fan_out.join().expect("the fan-out ends");
        others.into_iter().for_each(|other| other.join().expect("they end"));
        let mut deliveries = Vec::new();
        assert_eq!(member.outbox().try_take(&mut deliveries), Some(Taken::Items));
        assert_eq!((deliveries.len(), deliveries[0].through), (1, Seq(1)));
    });
}

#[test]
fn the_end_of_the_hub_reaches_everybody() {
    in_many_orders(4_000, || {
        let hub = Hub::new(Audience::default(), 1 << 20);
        let members = ["model", "model", "other"].map(|source| {
            let hub = hub.clone();
            thread::spawn(move || {
                let member = hub.register(&filter(source));
                let mut deliveries = Vec::new();
                while block_on(member.outbox().take(&mut deliveries)) == Taken::Items {}
                assert!(deliveries.len() <= usize::from(source == "model"));
            })
        });
        let waiting = thread::spawn({
            let hub = hub.clone();
            move || block_on(hub.ended())
        });
        let (commits, queue) = crossbeam_channel::unbounded();
        commits.send(commit(Seq(1))).expect("its receiver is here");
        drop(commits);
        hub.run(&queue);
        members.into_iter().for_each(|member| member.join().expect("a member ends"));
        waiting.join().expect("whoever waits for the end hears of it");
    });
}

/// A store in a folder of its own, and the parts whose threads the model runs.
fn open(max_queue_size: usize) -> (TempDir, Config, Store, Parts) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let config = Config {
        database_path: folder.path().join("events.db"),
        durability: Durability::Off,
        free_space_min_bytes: 0,
        max_queue_size,
        ..Config::default()
    };
    let (store, parts) = Store::open_parts(&config).expect("a new database");
    (folder, config, store, parts)
}

/// Writes until as many threads as there are have said that they are through, and nothing is left.
fn write_until_through(mut parts: Parts, through: &AtomicUsize, threads: usize) -> Parts {
    loop {
        let are_through = through.load(Ordering::SeqCst) == threads;
        if !parts.write() {
            if are_through {
                return parts;
            }
            thread::yield_now();
        }
    }
}

/// Everything that a subscriber who joins at some moment gets: what it reads, and then what is delivered.
fn subscribe(store: &Store, hub: &Arc<Hub>, events: u64) {
    let mut feed = Feed::new(store.clone(), hub.clone(), Filter::default(), Seq::ZERO);
    let mut got = Vec::new();
    while (got.len() as u64) < events {
        let chunk = match feed.step() {
            Step::Read(request) => feed.page_read(request.read(&store.reader()).expect("it can be read")),
            Step::Give(chunk) => Some(chunk),
            Step::Again => None,
            Step::Wait => {
                block_on(feed.wait());
                None
            }
        };
        if let Some(Chunk::Events(runs)) = chunk {
            got.extend(runs.iter().flat_map(|run| run.range().map(|index| run.batch().seq(index).0)));
        }
    }
    assert!(got.iter().copied().eq(1..=events), "{got:?}");
}

/// The whole way from a producer to a subscriber, whenever that one comes: an event that is neither read nor delivered
/// leaves it waiting for ever.
#[test]
fn who_joins_and_then_reads_misses_nothing() {
    in_many_orders(800, || {
        let (_folder, _, store, parts) = open(10);
        let hub = Hub::new(store.audience(), 1 << 20);
        let (commits, through) = (parts.commits.clone(), Arc::new(AtomicUsize::new(0)));
        let subscribers = [(); 2].map(|()| {
            let (store, hub) = (store.clone(), hub.clone());
            thread::spawn(move || subscribe(&store, &hub, 3))
        });
        let producer = thread::spawn({
            let (store, through) = (store.clone(), through.clone());
            move || {
                for events in [1, 2] {
                    let (receipt, stored) = Receipt::new();
                    store.try_append(batch(events), receipt).expect("there is room");
                    let last = block_on(stored).expect("it resolves").expect("there is room").batch.first();
                    assert!(last.plus(events).prev() <= store.committed(), "acknowledged before it can be read");
                }
                through.fetch_add(1, Ordering::SeqCst);
            }
        });
        let written = Arc::new(AtomicUsize::new(0));
        let fan_out = thread::spawn({
            let (hub, written) = (hub.clone(), written.clone());
            move || {
                let mut fan_out = FanOut::default();
                loop {
                    let is_over = written.load(Ordering::SeqCst) == 1;
                    let round: Vec<_> = commits.try_iter().collect();
                    hub.deliver(&round, &mut fan_out);
                    match (round.is_empty(), is_over) {
                        (true, true) => return,
                        (true, false) => thread::yield_now(),
                        _ => {}
                    }
                }
            }
        });
        let parts = write_until_through(parts, &through, 1);
        written.store(1, Ordering::SeqCst);
        producer.join().expect("the producer ends");
        fan_out.join().expect("the fan-out ends");
        subscribers.into_iter().for_each(|subscriber| subscriber.join().expect("a subscriber gets everything"));
        drop(parts);
    });
}

/// The queue holds two events; who waits for room may turn away again.
#[test]
fn room_in_the_queue_is_given_back() {
    in_many_orders(400, || {
        let (_folder, _, store, parts) = open(2);
        let through = Arc::new(AtomicUsize::new(0));
        let producers = [1, 2, 3].map(|events| {
            let (store, through) = (store.clone(), through.clone());
            thread::spawn(move || {
                let seqs = RefCell::new(Vec::new());
                for _ in 0..2 {
                    {
                        // Asks once and goes.
                        let (receipt, _nobody) = Receipt::new();
                        let mut append = pin!(store.append(Batch::default(), receipt));
                        _ = block_on(std::future::poll_fn(|context| Poll::Ready(append.as_mut().poll(context))));
                    }
                    let (receipt, stored) = Receipt::new();
                    block_on(store.append(batch(events), receipt));
                    let stored = block_on(stored).expect("it resolves").expect("it is stored");
                    let first = stored.batch.first().0;
                    seqs.borrow_mut().extend(first..first + events as u64);
                }
                through.fetch_add(1, Ordering::SeqCst);
                seqs.into_inner()
            })
        });
        let parts = write_until_through(parts, &through, 3);
        let mut seqs: Vec<u64> = producers.map(|producer| producer.join().expect("a producer ends")).concat();
        seqs.sort_unstable();
        assert!(seqs.iter().copied().eq(1..=12), "numbers are dense: {seqs:?}");
        assert_eq!(store.queue_len(), 0, "all room is free");
        drop(parts);
    });
}

/// Each name is changed by one thread, as the lock of a subscription sees to.
#[test]
fn the_last_state_of_a_subscription_is_kept() {
    in_many_orders(400, || {
        let (_folder, _, store, parts) = open(10);
        let through = Arc::new(AtomicUsize::new(0));
        let kept = |name: &str, position| Kept {
            name: name.into(),
            filters: "{}".into(),
            position: Seq(position),
            last_seen: String::new(),
        };
        let confirming = thread::spawn({
            let (store, through) = (store.clone(), through.clone());
            move || {
                (1..=4).for_each(|position| store.keep(kept("marks", position)));
                through.fetch_add(1, Ordering::SeqCst);
            }
        });
        let waiting = thread::spawn({
            let (store, through) = (store.clone(), through.clone());
            move || {
                block_on(store.keep_now(kept("mail", 1))).expect("it is kept");
                let is_kept = |known: &Kept| (&*known.name, known.position) == ("mail", Seq(1));
                assert!(
                    store.reader().durable_subscriptions().expect("readable").iter().any(is_kept),
                    "it was said to be"
                );
                store.keep(kept("mail", 2));
                block_on(store.forget("mail".into())).expect("it is gone");
                through.fetch_add(1, Ordering::SeqCst);
            }
        });
        let parts = write_until_through(parts, &through, 2);
        confirming.join().expect("it ends");
        waiting.join().expect("it ends");
        assert_eq!(store.reader().durable_subscriptions().expect("readable"), [kept("marks", 4)]);
        drop(parts);
    });
}

/// A connection that opens a name which is new to it with its own start, and a known one with the start that is kept.
fn open_name(subscriptions: &Subscriptions, own_start: Seq) {
    let durable = Durable { name: "board".to_owned(), is_group: false, ack_wait: Duration::ZERO };
    let filters = Filters::parse(&Map::new()).expect("no filters");
    loop {
        let known = subscriptions.find(&durable);
        let start = known.as_ref().map_or(own_start, |known| known.position());
        let opened = block_on(subscriptions.open(&durable, &filters, start, known.as_ref()));
        if let Some(opened) = opened.expect("there is room") {
            assert_eq!(opened.position(), start, "it is served from elsewhere than is kept");
            return;
        }
    }
}

/// Two connections open a new name, and one of them again, while it is deleted.
#[test]
fn a_name_begins_where_it_is_kept_and_is_known_only_if_it_is_stored() {
    in_many_orders(400, || {
        let (_folder, _, store, parts) = open(10);
        let hub = Hub::new(store.audience(), 1 << 20);
        let (subscriptions, _groups) = Subscriptions::load(&store, &hub, 10, 1 << 20).expect("an empty table");
        let (subscriptions, through) = (Arc::new(subscriptions), Arc::new(AtomicUsize::new(0)));
        let opening = [(Seq(1), 2), (Seq(2), 1)].map(|(own_start, times)| {
            let (subscriptions, through) = (subscriptions.clone(), through.clone());
            thread::spawn(move || {
                (0..times).for_each(|_| open_name(&subscriptions, own_start));
                through.fetch_add(1, Ordering::SeqCst);
            })
        });
        let deleting = thread::spawn({
            let (subscriptions, through) = (subscriptions.clone(), through.clone());
            move || {
                while !block_on(subscriptions.delete("board")).expect("it is gone") {
                    thread::yield_now();
                }
                through.fetch_add(1, Ordering::SeqCst);
            }
        });
        let parts = write_until_through(parts, &through, 3);
        opening.into_iter().for_each(|opening| opening.join().expect("it ends"));
        deleting.join().expect("it ends");
        let known: Vec<_> =
            subscriptions.all().iter().map(|known| (known.name().to_owned(), known.position())).collect();
        let stored = store.reader().durable_subscriptions().expect("readable").into_iter();
        assert_eq!(known, stored.map(|kept| (kept.name.to_string(), kept.position)).collect::<Vec<_>>());
        drop(parts);
    });
}
