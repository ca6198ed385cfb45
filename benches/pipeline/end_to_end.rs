use std::sync::Arc;
use std::thread::JoinHandle;

use criterion::{BenchmarkId, Criterion, Throughput};
use event_pipeline::auth::Access;
use event_pipeline::config::Config;
use event_pipeline::doorbell::Doorbell;
use event_pipeline::event::{Filter, Parser};
use event_pipeline::feed::{Chunk, Feed};
use event_pipeline::hub::Hub;
use event_pipeline::pipeline::Pipeline;
use event_pipeline::store::{Receipt, Store};
use event_pipeline::subscriptions::Subscriptions;
use event_pipeline::wire::Batch;
use event_pipeline::wire::committed::Run;
use tempfile::TempDir;

use crate::workload;

/// The whole path without the sockets: a text is parsed, stored, synced, and delivered to a subscriber to everything.
pub fn end_to_end(c: &mut Criterion) {
    let events = workload::school(1_000);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    // As on a network thread.
    let answering = runtime.spawn(Doorbell::answer());
    let server = Server::start(runtime.handle().clone());
    let mut parser = server.pipeline.parser();
    let mut feed = server.feed();
    let mut group = c.benchmark_group("end to end");
    for len in [1, 100, 1_000] {
        group.throughput(Throughput::Elements(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| runtime.block_on(server.publish(&mut parser, &events[..len], &mut feed)));
        });
    }
    drop(group);
    answering.abort();
    drop(feed);
    server.stop();
}

/// A server without its sockets.
struct Server {
    pipeline: Arc<Pipeline>,
    threads: Vec<JoinHandle<()>>,
    _folder: TempDir,
}

impl Server {
    fn start(parsing: tokio::runtime::Handle) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database_path = folder.path().join("events.db");
        let config = Config { database_path, check_at_start: false, ..Config::default() };
        let (store, running) = Store::open(&config).expect("a new database");
        let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
        let mut threads = running.threads;
        threads.push(std::thread::spawn({
            let (hub, commits) = (hub.clone(), running.commits);
            move || hub.run(&commits)
        }));
        let loaded = Subscriptions::load(&store, &hub, config.max_subscriptions, config.max_subscriber_bytes);
        let (subscriptions, _) = loaded.expect("readable");
        let access = Access::new(&config).expect("no keys file");
        let pipeline = Arc::new(Pipeline::new(config, access, store, hub, subscriptions, parsing, 1_000));
        Self { pipeline, threads, _folder: folder }
    }

    fn feed(&self) -> Feed {
        let Pipeline { store, hub, .. } = &*self.pipeline;
        Feed::new(store.clone(), hub.clone(), Filter::default(), store.committed())
    }

    /// Publishes events and waits until the subscriber has all of them.
    async fn publish(&self, parser: &mut Parser, events: &[String], feed: &mut Feed) {
        let mut batch = Batch::default();
        for text in events {
            let parsed = parser.parse(text, |event| batch.push(&event, &self.pipeline.types));
            parsed.result.expect("an event");
        }
        let (receipt, answer) = Receipt::synced();
        self.pipeline.store.append(batch, receipt).await;
        let mut due = answer.await.expect("an answer").expect("stored").batch.frames().len();
        while due > 0 {
            match feed.next().await.expect("readable") {
                Chunk::Events(runs) => due -= runs.iter().map(Run::bytes).sum::<usize>(),
                other => panic!("{other:?} instead of events"),
            }
        }
    }

    fn stop(self) {
        self.pipeline.store.close();
        for thread in self.threads {
            thread.join().expect("no panic");
        }
    }
}
