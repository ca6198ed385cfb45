//! Builds everything, accepts connections, and takes it all down again in order.

mod greeting;
mod supervisor;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{self, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::auth::{Access, AccessError};
use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::group::{self, Dispatcher};
use crate::histogram::MARK_INTERVAL;
use crate::http;
use crate::hub::Hub;
use crate::pipeline::{Pipeline, Producer};
use crate::store::{self, OpenError, Running, Store};
use crate::subscriptions::Subscriptions;
use crate::tls::{Tls, TlsError};
use crate::transport::{Accepted, Listener};
use crate::wire::Refusal;
use greeting::Greeting;

/// Why the server could not start or had to stop. Shown to the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("start: {0}")]
    Start(io::Error),
    #[error("store events: {0}")]
    Store(store::Error),
    #[error("the {0} thread panicked")]
    Panicked(&'static str),
    #[error("storing what was in the queue did not finish within {0:?}")]
    TooSlow(Duration),
    #[error("stopped at once by a second signal")]
    Forced,
}

/// Open files that clients do not get, because without them the record could not be read: two for each connection to the
/// database, and those of each thread's runtime.
const RESERVED_FILES: usize = 64;
const RESERVED_FILES_PER_THREAD: usize = 16;

/// How often the server looks whether the files of keys and certificates have changed. A look costs a few microseconds, and a
/// revoked key may be used for two of them.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Threads for blocking reads, for each network thread.
const BLOCKING_THREADS_MAX: usize = 4;

/// Threads that parse large bodies and messages, for each network thread. One parses a gigabyte a second, more than a network
/// thread reads.
const PARSING_THREADS: usize = 2;

/// Runs the server until SIGTERM or SIGINT, then ends it in order: it takes no new connections and no new messages, stores
/// and acknowledges everything in hand, and delivers all that is stored to every subscriber.
///
/// # Errors
/// When it cannot start, when the store fails, or when it cannot end in time.
pub fn run(config: Config) -> Result<(), Error> {
    let address = SocketAddr::new(config.host, config.port);
    let (access, tls) = (Access::new(&config)?, Tls::new(&config)?.map(Arc::new));
    let control = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(config.network_threads.saturating_mul(PARSING_THREADS))
        .build()
        .map_err(Error::Start)?;
    let (listener, metrics_listener) = {
        let _runtime = control.enter();
        let bind =
            |address| Listener::bind(address, config.write_timeout).map_err(|error| Error::Listen(address, error));
        (bind(address)?, config.metrics_address.map(bind).transpose()?)
    };
    let (store, running) = Store::open(&config)?;
    control.block_on(serve(config, access, tls, (listener, metrics_listener), store, running))
}

/// How many clients may be connected at one time. Each is an open file, and the system limits those.
fn connection_slots(config: &Config) -> usize {
    // The soft limit, often 1,024, is for programs that use `select`, which cannot handle more.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files as usize);
    let reserved = RESERVED_FILES + RESERVED_FILES_PER_THREAD * config.network_threads;
    let slots = config.max_connections.min(files.saturating_sub(reserved).max(1));
    if slots < config.max_connections {
        tracing::info!(
            open_files_max = files,
            clients_max = slots,
            "open files are limited, so fewer clients can connect than MAX_CONNECTIONS"
        );
    }
    slots
}

async fn serve(
    config: Config,
    access: Access,
    tls: Option<Arc<Tls>>,
    (listener, metrics_listener): (Listener, Option<Listener>),
    store: Store,
    running: Running,
) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Start)?;
    // Where there is nothing to read or open again, a SIGHUP, such as the end of its terminal, ends the server.
    let reads_again = access.keys.are_required() || access.audit.is_on() || tls.is_some();
    let hangup = reads_again.then(|| signal(SignalKind::hangup()));
    let hangup = hangup.transpose().map_err(Error::Start)?;
    let address = listener.address().map_err(Error::Start)?;
    let Running { commits, mut writer, threads } = running;

    let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
    let loaded = Subscriptions::load(&store, &hub, config.max_subscriptions, config.max_subscriber_bytes);
    let (subscriptions, dispatchers) = loaded.map_err(Error::Store)?;
    let groups_thread = spawn_groups(dispatchers)?;
    let connections_max = connection_slots(&config);
    let pipeline =
        Pipeline::new(config, access, store.clone(), hub.clone(), subscriptions, Handle::current(), connections_max);
    let pipeline = Arc::new(pipeline);
    let (fan_out, mut fan_out_ended) = oneshot::channel();
    let fan_out_thread = spawn("fan-out", move || {
        hub.run(&commits);
        let _ = fan_out.send(());
    })?;
    let network = Network::start(&pipeline, tls.as_ref())?;

    let mut metrics_port = JoinSet::new();
    Greeting::new(&pipeline, tls.as_deref().and_then(Tls::fingerprint), address).await.log();
    if let Some(listener) = metrics_listener {
        let address = listener.address().map_err(Error::Start)?;
        tracing::info!(%address, "metrics are served without a key");
        metrics_port.spawn(http::serve_metrics_port(listener, pipeline.clone()));
    }
    supervisor::started();

    tokio::select! {
        () = network.accept(listener, &pipeline) => {}
        () = network.died() => return Err(Error::Panicked("network")),
        never = follow_files(&pipeline, tls.as_ref(), hangup) => match never {},
        never = supervisor::feed_watchdog(&store) => match never {},
        never = mark_minutes(&pipeline) => match never {},
        signal = signals.next() => tracing::info!(signal, "shutting down"),
        ended = &mut writer => return Err(writer_failed(ended)),
        ended = &mut fan_out_ended => return Err(match ended {
            // The fan-out has ended in order, because the writer sends it no more commits.
            Ok(()) => writer_failed(writer.await),
            Err(_) => Error::Panicked("fan-out"),
        }),
    }

    supervisor::ending();
    // From here on each stage ends because the stage that feeds it has ended: producers, writer, fan-out, subscribers. Each
    // of the three waits has time of its own, so that a client that hangs in one does not take it from the others. Time
    // that one does not use goes to the next. A client that takes nothing is not waited for beyond the last deadline;
    // acknowledged events are stored all the same.
    let (whole, began) = (pipeline.config.shutdown_timeout, Instant::now());
    let [producers_end, stored_end, network_end] = [1, 3, 4].map(|quarters| began + whole * quarters / 4);
    let in_order = async {
        pipeline.begin_shutdown();
        let producers_left = timeout_at(producers_end, pipeline.producers_gone()).await.is_err();
        store.close();
        let stored = async {
            writer.await.map_err(|_| Error::Panicked("writer"))?.map_err(Error::Store)?;
            fan_out_ended.await.map_err(|_| Error::Panicked("fan-out"))
        };
        timeout_at(stored_end, stored).await.map_err(|_| Error::TooSlow(stored_end - began))??;
        pipeline.subscriptions.close();
        let all_left = async {
            network.ended().await?;
            // It has nothing to do with events, so it is not waited for before.
            while metrics_port.join_next().await.is_some() {}
            Ok::<_, Error>(())
        };
        match timeout_at(network_end, all_left).await {
            Ok(ended) => ended?,
            Err(_) => tracing::warn!(producers_left, "clients that take nothing were left behind"),
        }
        Ok::<_, Error>(())
    };
    tokio::select! {
        ended = in_order => ended?,
        _ = signals.next() => return Err(Error::Forced),
    }
    for thread in threads.into_iter().chain([fan_out_thread, groups_thread]) {
        thread.join().map_err(|_| Error::Panicked("helper"))?;
    }
    pipeline.access.audit.close();
    tracing::info!(last_event = %store.committed().id(), "stopped");
    Ok(())
}

/// Marks what the histograms have counted, for the percentiles of the last minute. Cancel-safe.
async fn mark_minutes(pipeline: &Pipeline) -> Infallible {
    loop {
        sleep(MARK_INTERVAL).await;
        pipeline.mark_minute();
    }
}

/// Reads keys and certificates again when their files change, and at a SIGHUP. Cancel-safe.
async fn follow_files(pipeline: &Arc<Pipeline>, tls: Option<&Arc<Tls>>, mut hangup: Option<Signal>) -> Infallible {
    loop {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let is_asked = tokio::select! {
            () = sleep(LOOK_INTERVAL) => false,
            _ = hung_up => true,
        };
        // A file may be on a network that hangs.
        let (pipeline, tls) = (pipeline.clone(), tls.cloned());
        let read = move || {
            let (keys, tls) = (&pipeline.access.keys, tls.as_deref());
            if is_asked {
                pipeline.access.audit.reopen();
                keys.read_again();
                tls.inspect(|tls| tls.read_again());
            } else {
                keys.look();
                tls.inspect(|tls| tls.look());
            }
        };
        let _ = tokio::task::spawn_blocking(read).await;
    }
}

/// The thread of all consumer groups.
fn spawn_groups(dispatchers: mpsc::UnboundedReceiver<Dispatcher>) -> Result<JoinHandle<()>, Error> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .map_err(Error::Start)?;
    spawn("groups", move || runtime.block_on(group::run(dispatchers)))
}

/// The writer ends by itself only when it cannot go on.
fn writer_failed(ended: Result<store::Result<()>, oneshot::error::RecvError>) -> Error {
    match ended {
        Ok(Err(error)) => Error::Store(error),
        Ok(Ok(())) | Err(_) => Error::Panicked("writer"),
    }
}

/// The signals that ask the server to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Cancel-safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// A connection on its way to its thread.
struct Dealt {
    accepted: Accepted,
    producer: Producer,
    slot: OwnedSemaphorePermit,
}

/// The threads that serve connections. Each has a runtime of its own: a connection stays on its thread, and nothing is locked
/// or moved between cores for it.
struct Network {
    threads: Vec<NetworkThread>,
}

struct NetworkThread {
    connections: mpsc::UnboundedSender<Dealt>,
    ended: oneshot::Receiver<()>,
    thread: JoinHandle<()>,
}

impl Network {
    fn start(pipeline: &Arc<Pipeline>, tls: Option<&Arc<Tls>>) -> Result<Self, Error> {
        let threads = 0..pipeline.config.network_threads;
        let threads = threads.map(|_| NetworkThread::start(pipeline.clone(), tls.cloned()));
        Ok(Self { threads: threads.collect::<Result<_, _>>()? })
    }

    /// Accepts connections and deals them out in turn, without end. Cancel-safe but for a connection just accepted, which is
    /// dropped.
    async fn accept(&self, listener: Listener, pipeline: &Pipeline) {
        // There is no answer without a handshake, which is what there is no slot for.
        let is_tls = pipeline.config.serves_tls();
        let no_slots_left = if is_tls { Vec::new() } else { http::no_slots_left(&pipeline.access) };
        for thread in self.threads.iter().cycle() {
            let accepted = listener.accept().await;
            let Ok(slot) = pipeline.connections.free.clone().try_acquire_owned() else {
                pipeline.refusals.note(Refusal::TooManyConnections.slug());
                accepted.refuse(&no_slots_left);
                continue;
            };
            // The thread is gone only if it panicked, which ends the server.
            let _ = thread.connections.send(Dealt { accepted, producer: pipeline.producer(), slot });
        }
    }

    /// Resolves when one of the threads is gone. While connections are accepted, only a panic ends a thread.
    /// Cancel-safe.
    async fn died(&self) {
        let mut gone: Vec<_> = self.threads.iter().map(|thread| Box::pin(thread.connections.closed())).collect();
        poll_fn(|context| match gone.iter_mut().any(|gone| gone.as_mut().poll(context).is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    /// Waits until every connection and every thread has ended.
    async fn ended(self) -> Result<(), Error> {
        for NetworkThread { connections, ended, thread } in self.threads {
            drop(connections);
            ended.await.map_err(|_| Error::Panicked("network"))?;
            thread.join().map_err(|_| Error::Panicked("network"))?;
        }
        Ok(())
    }
}

impl NetworkThread {
    fn start(pipeline: Arc<Pipeline>, tls: Option<Arc<Tls>>) -> Result<Self, Error> {
        let (connections, dealt) = mpsc::unbounded_channel();
        let (done, ended) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .build()
            .map_err(Error::Start)?;
        let thread = spawn("network", move || {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = Doorbell::answer() => {}
                    () = serve_connections(dealt, pipeline, tls) => {}
                }
            });
            // Waits for the reads under way, so that joining the thread waits for nothing.
            drop(runtime);
            let _ = done.send(());
        })?;
        Ok(Self { connections, ended, thread })
    }
}

/// Serves the connections that come in, until no more can come and all have ended.
async fn serve_connections(mut dealt: mpsc::UnboundedReceiver<Dealt>, pipeline: Arc<Pipeline>, tls: Option<Arc<Tls>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(Dealt { accepted, producer, slot }) = dealt.recv() => {
                let (pipeline, tls) = (pipeline.clone(), tls.as_ref().map(|tls| tls.config()));
                connections.spawn(async move {
                    match accepted.into_transport() {
                        Ok(transport) => http::serve(transport, tls, pipeline, producer).await,
                        Err(error) => tracing::warn!(%error, "register connection"),
                    }
                    drop(slot);
                });
            }
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    // The other connections go on.
                    tracing::error!(%error, "a connection's task panicked");
                }
            }
            else => return,
        }
    }
}

fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(Error::Start)
}
