//! Our own synchronisation under a model checker (shuttle). It runs the same code, and chooses which thread continues
//! after each lock, each atomic and each wake-up. It prints the schedule of a failure, which can be replayed. Small
//! protocols are run in every order of their steps. Those around the database are run in many random orders, and in
//! orders with few switches of threads at awkward points. A task that is never woken shows as a deadlock.
//!
//! The checker assumes sequentially consistent memory, so it checks the order of steps and not the `Ordering` of each.
//! A call of tokio's primitives, crossbeam's channels, dashmap or SQLite counts as one step.
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
use crate::store::{Parts, Receipt, Store, StoredSubscription};
use crate::subscriptions::Subscriptions;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::wire::Batch;
use crate::wire::committed::Commit;
use crate::wire::filters::Filters;
use crate::wire::request::Durable;

/// The stack of a thread, large enough for SQLite.
const STACK_BYTES: usize = 1 << 20;

fn run(scheduler: impl Scheduler + 'static, model: impl Fn() + Send + Sync + 'static) -> usize {
    let mut config = shuttle::Config::new();
    config.stack_size = STACK_BYTES;
    config.silence_warnings = true;
    shuttle::Runner::new(scheduler, config).run(model)
}

/// Runs a model in every order of its steps.
fn in_every_order(model: impl Fn() + Send + Sync + 'static) {
    let orders = run(DfsScheduler::new(Some(2_000_000), false), model);
    assert!((2..2_000_000).contains(&orders), "{orders} orders");
    eprintln!("{orders} orders");
}

/// Runs a model in `count` random orders, and in as many with few switches of threads at awkward points.
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
fn an_outbox_keeps_the_order_of_each_thread_that_pushes() {
    in_many_orders(4_000, || {
        let outbox = Arc::new(Outbox::new(100));
        let pushers: Vec<_> = [10, 20, 30]
            .map(|first| {
                let outbox = outbox.clone();
                thread::spawn(move || (first..first + 3).for_each(|item| push(&outbox, item)))
            })
            .into();
        let closer = thread::spawn({
            let outbox = outbox.clone();
            move || {
                pushers.into_iter().for_each(|pusher| pusher.join().expect("a pusher ends"));
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
fn a_consumer_hears_of_an_overflow_whenever_it_happens() {
    in_every_order(|| {
        let outbox = Arc::new(Outbox::new(1));
        let pusher = thread::spawn({
            let outbox = outbox.clone();
            move || (1..=3).for_each(|item| push(&outbox, item))
        });
        let mut taken = Vec::new();
        while taken.len() < 3 && block_on(outbox.take(&mut taken)) != Taken::Overflowed {}
        pusher.join().expect("the pusher ends");
        assert!(taken.iter().copied().eq(1..=taken.len()), "{taken:?}");
        if taken.len() < 3 {
            assert_eq!(outbox.try_take(&mut taken), Some(Taken::Overflowed));
        }
    });
}

/// Does the work on this thread, and answers the thread's doorbell meanwhile.
fn with_bell<T>(work: impl Future<Output = T>) -> T {
    let (mut work, mut bell) = (pin!(work), pin!(Doorbell::answer()));
    block_on(std::future::poll_fn(|context| {
        assert!(bell.as_mut().poll(context).is_pending(), "the doorbell is answered for ever");
        work.as_mut().poll(context)
    }))
}

/// Two threads ring the doorbell of a third, each for two of its tasks.
#[test]
fn every_task_is_woken_when_many_threads_ring_one_doorbell() {
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

/// Meanwhile subscribers with the same filter, under the same key, and with a filter on the same field come and go.
#[test]
fn a_registered_subscriber_gets_every_delivery() {
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
fn every_subscriber_hears_of_the_end_of_the_hub() {
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
        waiting.join().expect("a task that waits for the end is woken");
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

/// Steps the writer until this many threads are through and nothing is left to write.
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

/// A subscriber that joins at any time: it must get every event once, first from storage and then from deliveries.
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

/// The whole path from a producer to a subscriber, whenever the subscriber joins. If an event were neither read nor
/// delivered, the subscriber would wait for ever.
#[test]
fn a_subscriber_that_joins_at_any_time_misses_no_event() {
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
                    let (receipt, stored) = Receipt::synced();
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

/// The queue holds two events. A producer that waits for room may give up waiting.
#[test]
fn room_in_the_queue_is_given_back_when_a_producer_gives_up_waiting() {
    in_many_orders(400, || {
        let (_folder, _, store, parts) = open(2);
        let through = Arc::new(AtomicUsize::new(0));
        let producers = [1, 2, 3].map(|events| {
            let (store, through) = (store.clone(), through.clone());
            thread::spawn(move || {
                let seqs = RefCell::new(Vec::new());
                for _ in 0..2 {
                    {
                        // Polls once and gives up.
                        let (receipt, _nobody) = Receipt::synced();
                        let mut append = pin!(store.append(Batch::default(), receipt));
                        _ = block_on(std::future::poll_fn(|context| Poll::Ready(append.as_mut().poll(context))));
                    }
                    let (receipt, stored) = Receipt::synced();
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

/// Each name is changed by one thread at a time, as in the server, where a subscription's lock ensures this.
#[test]
fn the_last_state_of_a_durable_subscription_is_stored() {
    in_many_orders(400, || {
        let (_folder, _, store, parts) = open(10);
        let through = Arc::new(AtomicUsize::new(0));
        let state = |name: &str, position| StoredSubscription {
            name: name.into(),
            filters: "{}".into(),
            position: Seq(position),
            last_seen: String::new(),
        };
        let confirming = thread::spawn({
            let (store, through) = (store.clone(), through.clone());
            move || {
                (1..=4).for_each(|position| store.save_soon(state("marks", position)));
                through.fetch_add(1, Ordering::SeqCst);
            }
        });
        let waiting = thread::spawn({
            let (store, through) = (store.clone(), through.clone());
            move || {
                block_on(store.save(state("mail", 1))).expect("it is stored");
                let is_it = |stored: &StoredSubscription| (&*stored.name, stored.position) == ("mail", Seq(1));
                assert!(
                    store.reader().durable_subscriptions().expect("readable").iter().any(is_it),
                    "it was said to be"
                );
                store.save_soon(state("mail", 2));
                block_on(store.remove("mail".into())).expect("it is gone");
                through.fetch_add(1, Ordering::SeqCst);
            }
        });
        let parts = write_until_through(parts, &through, 2);
        confirming.join().expect("it ends");
        waiting.join().expect("it ends");
        assert_eq!(store.reader().durable_subscriptions().expect("readable"), [state("marks", 4)]);
        drop(parts);
    });
}

/// A connection that opens a name: at its own start if the name is new, else at the stored position.
fn open_name(subscriptions: &Subscriptions, own_start: Seq) {
    let durable = Durable { name: "board".to_owned(), is_group: false, ack_wait: Duration::ZERO };
    let filters = Filters::parse(&Map::new()).expect("no filters");
    loop {
        let known = subscriptions.find("", &durable);
        let start = known.as_ref().map_or(own_start, |known| known.position());
        let opened = block_on(subscriptions.open(("", &durable), &filters, start, known.as_ref()));
        if let Some(opened) = opened.expect("there is room") {
            assert_eq!(opened.position(), start, "it is served from another position than the stored one");
            return;
        }
    }
}

/// Two connections open a new name, and one of them opens it again, while the name is deleted.
#[test]
fn an_opened_name_begins_at_its_stored_position_and_is_known_only_while_it_is_stored() {
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
        let known: Vec<_> = subscriptions.all().iter().map(|known| (known.name().stored(), known.position())).collect();
        let stored = store.reader().durable_subscriptions().expect("readable").into_iter();
        assert_eq!(known, stored.map(|kept| (kept.name.to_string(), kept.position)).collect::<Vec<_>>());
        drop(parts);
    });
}
