//! Builds everything, accepts connections, and takes it all down again in order.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::group::{self, Dispatcher};
use crate::http;
use crate::hub::Hub;
use crate::pipeline::{Pipeline, Producer};
use crate::store::{self, OpenError, Running, Store};
use crate::subscriptions::Subscriptions;

/// Why the server could not start or had to stop. Shown to the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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

/// Connections the system keeps for us until they are accepted.
const BACKLOG: i32 = 4_096;

/// After a failed accept, usually for want of file descriptors, nothing is accepted for this long:
/// those who are connected go on undisturbed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Open files that are no clients: two for each connection to the database, and what each thread waits on. Without
/// them nothing could be read, so clients do not get them.
const FILES_KEPT: usize = 64;
const FILES_KEPT_FOR_A_THREAD: usize = 16;

/// Threads for blocking reads, for each network thread.
const BLOCKING_THREADS_MAX: usize = 4;

/// Threads that parse large bodies, for each network thread: a gigabyte a second each, more than a network thread reads.
const PARSING_THREADS: usize = 2;

/// Runs the server until SIGTERM or SIGINT, then ends it in order: no new connections, no new messages,
/// everything in hand stored and acknowledged, every subscriber served to the end.
///
/// # Errors
/// When it cannot start, when the store fails, or when it cannot end in time.
pub fn run(config: Config) -> Result<(), Error> {
    let address = SocketAddr::new(config.host, config.port);
    let listener = listen(address, config.write_timeout).map_err(|error| Error::Listen(address, error))?;
    let (store, running) = Store::open(&config)?;
    let control = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(config.network_threads.saturating_mul(PARSING_THREADS))
        .build()
        .map_err(Error::Start)?;
    control.block_on(serve(config, listener, store, running))
}

fn listen(address: SocketAddr, write_timeout: Duration) -> io::Result<StdListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    // A restart must not wait for the connections of the last run to be forgotten.
    socket.set_reuse_address(true)?;
    // For what the system has taken from us and cannot get rid of: without this it would try for a quarter of an hour
    // to reach a peer that has vanished. What is accepted inherits it.
    socket.set_tcp_user_timeout(Some(write_timeout))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// How many clients may be connected at one time: each is an open file, of which the system allows only so many.
fn places(config: &Config) -> usize {
    // The soft limit, often 1,024, is for programs that could not bear more.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files as usize);
    let kept = FILES_KEPT + FILES_KEPT_FOR_A_THREAD * config.network_threads;
    let places = config.max_connections.min(files.saturating_sub(kept).max(1));
    if places < config.max_connections {
        tracing::info!(files, places, "fewer clients can be connected than MAX_CONNECTIONS: open files are limited");
    }
    places
}

async fn serve(config: Config, listener: StdListener, store: Store, running: Running) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Start)?;
    let listener = TcpListener::from_std(listener).map_err(Error::Start)?;
    let address = listener.local_addr().map_err(Error::Start)?;
    let Running { commits, mut writer, threads } = running;

    let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
    let loaded = Subscriptions::load(&store, &hub, config.max_subscriptions, config.max_subscriber_bytes);
    let (subscriptions, dispatchers) = loaded.map_err(Error::Store)?;
    let groups_thread = spawn_groups(dispatchers)?;
    let pipeline = Arc::new(Pipeline::new(config, store.clone(), hub.clone(), subscriptions, Handle::current()));
    let (fan_out, mut fan_out_ended) = oneshot::channel();
    let fan_out_thread = spawn("fan-out", move || {
        hub.run(&commits);
        let _ = fan_out.send(());
    })?;
    let network = Network::start(&pipeline)?;
    let places = Arc::new(Semaphore::new(places(&pipeline.config)));

    for (name, value) in pipeline.config.describe() {
        tracing::info!(name, value, "setting");
    }
    let database = pipeline.config.database_path.display();
    tracing::info!(%address, %database, last_event = %store.committed().id(), "listening");

    tokio::select! {
        () = network.accept(listener, &pipeline, places) => {}
        () = network.died() => return Err(Error::Panicked("network")),
        signal = signals.next() => tracing::info!(signal, "shutting down"),
        ended = &mut writer => return Err(writer_failed(ended)),
        ended = &mut fan_out_ended => return Err(match ended {
            // In order, because the writer sends no more commits.
            Ok(()) => writer_failed(writer.await),
            Err(_) => Error::Panicked("fan-out"),
        }),
    }

    // From here on everything ends because what feeds it has ended: producers, writer, fan-out, subscribers. Each of
    // the three stages has time of its own, so that a client that hangs in one does not take it from the others. Time
    // that a stage does not use goes to the next. A client that takes nothing is not waited for beyond the last
    // deadline; what is acknowledged is stored all the same.
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
        match timeout_at(network_end, network.ended()).await {
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
    tracing::info!(last_event = %store.committed().id(), "stopped");
    Ok(())
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

/// A connection that was accepted, on its way to its thread.
struct Accepted {
    stream: StdStream,
    peer: SocketAddr,
    producer: Producer,
    place: OwnedSemaphorePermit,
}

/// The threads that serve sockets: each runs a runtime of its own, so that a connection stays on the
/// thread it began on and nothing is locked or moved between cores for it.
struct Network {
    threads: Vec<NetworkThread>,
}

struct NetworkThread {
    connections: mpsc::UnboundedSender<Accepted>,
    ended: oneshot::Receiver<()>,
    thread: JoinHandle<()>,
}

impl Network {
    fn start(pipeline: &Arc<Pipeline>) -> Result<Self, Error> {
        let threads = (0..pipeline.config.network_threads).map(|_| NetworkThread::start(pipeline.clone()));
        Ok(Self { threads: threads.collect::<Result<_, _>>()? })
    }

    /// Accepts connections and deals them out in turn, for ever. Cancel-safe but for a connection just
    /// accepted, which is dropped.
    async fn accept(&self, listener: TcpListener, pipeline: &Pipeline, places: Arc<Semaphore>) {
        let no_places_left = http::no_places_left(&pipeline.access);
        for thread in self.threads.iter().cycle() {
            let (stream, peer) = loop {
                match listener.accept().await {
                    Ok(accepted) => break accepted,
                    Err(error) => {
                        tracing::warn!(%error, "accept");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                // Nobody waits for a client that does not even take this.
                let _ = stream.try_write(&no_places_left);
                continue;
            };
            // Answers are written whole; waiting for more to send would only delay them.
            if let Ok(stream) = stream.set_nodelay(true).and_then(|()| stream.into_std()) {
                let accepted = Accepted { stream, peer, producer: pipeline.producer(), place };
                // The thread is gone only if it panicked, which ends everything.
                let _ = thread.connections.send(accepted);
            }
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
    fn start(pipeline: Arc<Pipeline>) -> Result<Self, Error> {
        let (connections, accepted) = mpsc::unbounded_channel();
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
                    () = serve_connections(accepted, pipeline) => {}
                }
            });
            // Waits for the reads that are under way, so that joining the thread waits for nothing.
            drop(runtime);
            let _ = done.send(());
        })?;
        Ok(Self { connections, ended, thread })
    }
}

/// Serves the connections that come in, until no more can come and all have ended.
async fn serve_connections(mut accepted: mpsc::UnboundedReceiver<Accepted>, pipeline: Arc<Pipeline>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(Accepted { stream, peer, producer, place }) = accepted.recv() => {
                let pipeline = pipeline.clone();
                connections.spawn(async move {
                    match TcpStream::from_std(stream) {
                        Ok(stream) => http::serve(stream, peer, pipeline, producer).await,
                        Err(error) => tracing::warn!(%error, "register connection"),
                    }
                    drop(place);
                });
            }
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    // One connection's fault is not the others'.
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
