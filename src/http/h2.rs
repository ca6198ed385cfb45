//! HTTP/2 on the same port, for clients that begin with it ("prior knowledge"): one connection for many requests,
//! where a browser opens at most six of HTTP/1.1 to one host.
//!
//! hyper keeps a connection for as long as its peer answers pings. Two things are therefore watched here: whether
//! anything is in hand, and whether the peer takes what is ready for it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::Full;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::header;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use super::answer::Body;
use super::socket::Socket;
use super::{BUFFER_BYTES_MAX, Connection};

/// What every client of HTTP/2 sends first. No method of HTTP/1.1 begins with `PRI`.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Until a part of the preface is looked at again: what was only peeked at is ready at once, so waiting for it
/// would be a busy loop. Clients send the preface whole; one in pieces waits this much longer.
const PIECES_PAUSE: Duration = Duration::from_millis(10);

/// Requests in hand on one connection. RFC 9113 wants no less than 100; browsers use so many.
const STREAMS_MAX: u32 = 128;

/// What one upload may send ahead of us: 5 MB/s at 50 ms of way there and back.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// The same for all uploads of a connection together, so what unread bodies cost at most.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Streams that were reset before we even saw their requests; beyond it the connection ends. Nobody who means a
/// request takes so many back within one read, and those who flood do nothing else (CVE-2023-44487).
const UNSEEN_RESETS_MAX: usize = 20;

/// How many more requests a client may take back than it hears answers; beyond it the connection ends. The limit on
/// streams does not count them, and each may have begun a read, which goes on for some milliseconds after its stream is
/// gone. A client that means well takes back a few.
const ABANDONED_MAX: usize = 1_000;

/// For a client that was told of the end to say that it heard so: one way there and back. Those who never say are
/// not waited for.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// What a connection speaks.
pub(super) enum Protocol {
    Http1,
    Http2,
    /// The peer said nothing that decides it in time, or is gone.
    Nothing,
}

impl Protocol {
    /// Decides by the first bytes, which stay to be read: one system call, if they come together. Cancel-safe.
    pub(super) async fn of(stream: &TcpStream, patience: Duration) -> Self {
        let decided = async {
            let mut first = [0; PREFACE.len()];
            loop {
                match stream.peek(&mut first).await {
                    Ok(0) | Err(_) => return Self::Nothing,
                    Ok(n) if !PREFACE.starts_with(&first[..n]) => return Self::Http1,
                    Ok(n) if n == PREFACE.len() => return Self::Http2,
                    Ok(_) => sleep(PIECES_PAUSE).await,
                }
            }
        };
        timeout(patience, decided).await.unwrap_or(Self::Nothing)
    }
}

/// Serves one connection until it ends: when the client wants, when nothing was in hand for as long as the head of
/// a request may take, or when the server shuts down; what is in hand is finished.
pub(super) async fn serve(socket: Socket, connection: Connection) {
    let (pipeline, peer) = (connection.pipeline.clone(), connection.peer);
    let mut streams = Streams::new(pipeline.config.header_timeout, pipeline.config.write_timeout);
    let (connection, counts) = (Arc::new(connection), streams.counts.clone());
    let (shutdown, ours) = (pipeline.shutdown(), connection.clone());
    let service = service_fn(move |request| answer(connection.clone(), counts.clone(), request));
    let mut http = pin!(
        http2::Builder::new(streams.spawner())
            .timer(TokioTimer::new())
            // Who has streams open and says nothing may be gone without a word: pings find out.
            .keep_alive_interval(pipeline.config.keepalive_interval)
            .keep_alive_timeout(pipeline.config.write_timeout)
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(BUFFER_BYTES_MAX as u32)
            .max_send_buf_size(BUFFER_BYTES_MAX)
            .max_pending_accept_reset_streams(UNSEEN_RESETS_MAX)
            .serve_connection(socket, service)
    );
    // What the client sends before it hears of the end finds the store open.
    let mut last_words = pin!(async {
        shutdown.begun().await;
        sleep(LAST_WORDS_TIMEOUT).await;
        ours.let_go();
    });
    let (mut ending, mut has_let_go) = (false, false);
    let ended = loop {
        tokio::select! {
            // In this order: only once the connection has started its streams is it known whether there are any.
            biased;
            ended = http.as_mut() => break ended,
            found = poll_fn(|cx| streams.poll(cx)) => match found {
                Found::Idle if !ending => {}
                found => {
                    tracing::debug!(%peer, ?found, "connection ended by us");
                    break Ok(());
                }
            },
            () = shutdown.begun(), if !ending => {}
            () = last_words.as_mut(), if !has_let_go => {
                has_let_go = true;
                continue;
            }
        }
        // The client is told, and what it sent before it heard that is answered.
        ending = true;
        streams.hurry();
        http.as_mut().graceful_shutdown();
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended early");
    }
    streams.end().await;
    ours.deadlines.end().await;
}

/// Answers a request as over HTTP/1.1, but for what only hyper's HTTP/1.1 does by itself.
async fn answer(
    connection: Arc<Connection>,
    counts: Arc<Counts>,
    request: Request<Incoming>,
) -> Result<Response<Counted>, Infallible> {
    let asks_for_head = request.method() == Method::HEAD;
    let mut unanswered = Unanswered { counts: &counts, answered: false };
    let mut response = connection.answer(request).await?;
    unanswered.answered = true;
    let length = response.body().size_hint().exact();
    let headers = response.headers_mut();
    // Here a stream ends alone, and nothing can be upgraded (RFC 9113, 8.2.2).
    headers.remove(header::CONNECTION);
    headers.remove(header::UPGRADE);
    if asks_for_head {
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        *response.body_mut() = Body::Whole(Full::default());
    }
    drop(unanswered);
    Ok(response.map(|body| Counted { body, counts }))
}

/// What is counted on one connection.
#[derive(Default)]
struct Counts {
    /// Requests taken back before they were answered, less those answered since; never below zero, so that who was
    /// patient for long may not flood for long.
    abandoned: AtomicUsize,
    /// Bytes of answers that the peer has not taken.
    untaken: AtomicUsize,
    /// How often it took some.
    takes: AtomicUsize,
}

/// A request in work. Dropped without an answer, it was taken back.
struct Unanswered<'c> {
    counts: &'c Counts,
    answered: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let abandoned = &self.counts.abandoned;
        let _ = abandoned.fetch_update(Relaxed, Relaxed, |abandoned| match self.answered {
            true => abandoned.checked_sub(1),
            false => Some(abandoned + 1),
        });
    }
}

/// The body of an answer, which knows what became of its bytes.
struct Counted {
    body: Body,
    counts: Arc<Counts>,
}

impl hyper::body::Body for Counted {
    type Data = Piece;
    type Error = <Body as hyper::body::Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| Ok(frame?.map_data(|bytes| Piece::new(bytes, self.counts.clone())))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes of an answer on their way to the peer.
struct Piece {
    bytes: Bytes,
    counts: Arc<Counts>,
}

impl Piece {
    fn new(bytes: Bytes, counts: Arc<Counts>) -> Self {
        counts.untaken.fetch_add(bytes.len(), Relaxed);
        Self { bytes, counts }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, taken: usize) {
        self.bytes.advance(taken);
        self.counts.untaken.fetch_sub(taken, Relaxed);
        self.counts.takes.fetch_add(1, Relaxed);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.counts.untaken.fetch_sub(self.bytes.len(), Relaxed);
    }
}

/// The tasks of one connection's streams, which end with it, and what its peer is like.
struct Streams {
    tasks: Arc<Mutex<JoinSet<()>>>,
    counts: Arc<Counts>,
    /// How long nothing may be in hand.
    patience: Duration,
    write_timeout: Duration,
    /// Runs while nothing is in hand.
    idle: Option<Pin<Box<Sleep>>>,
    /// Runs while the peer has something to take, with how often it had taken some when the time began.
    overdue: Option<(Pin<Box<Sleep>>, usize)>,
}

/// Why a connection should end.
#[derive(Debug)]
enum Found {
    /// No request was in hand for a while, and no answer on its way.
    Idle,
    /// The peer takes back more requests than it waits for.
    Flooded,
    /// The peer takes nothing of what is ready for it.
    Stuck,
}

impl Streams {
    fn new(patience: Duration, write_timeout: Duration) -> Self {
        Self { tasks: Arc::default(), counts: Arc::default(), patience, write_timeout, idle: None, overdue: None }
    }

    fn spawner(&self) -> Spawner {
        Spawner(Arc::downgrade(&self.tasks))
    }

    /// From now on idleness is only a peer that does not say whether it has heard of the end.
    fn hurry(&mut self) {
        self.patience = self.patience.min(LAST_WORDS_TIMEOUT);
        self.idle = None;
    }

    /// Lets go of the tasks that have ended, and looks what the peer does. A panic in a stream is the connection's.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Found> {
        let no_task = {
            let mut tasks = self.tasks.lock();
            while let Poll::Ready(Some(ended)) = tasks.poll_join_next(cx) {
                if let Err(died) = ended {
                    std::panic::resume_unwind(died.into_panic());
                }
            }
            tasks.is_empty()
        };
        if self.counts.abandoned.load(Relaxed) > ABANDONED_MAX {
            return Poll::Ready(Found::Flooded);
        }
        if self.counts.untaken.load(Relaxed) > 0 {
            self.idle = None;
            return self.poll_overdue(cx).map(|()| Found::Stuck);
        }
        self.overdue = None;
        if !no_task {
            self.idle = None;
            return Poll::Pending;
        }
        let idle = self.idle.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        idle.as_mut().poll(cx).map(|()| Found::Idle)
    }

    /// Ready when nothing was taken from one look to the next; the first look only starts the time.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let takes = self.counts.takes.load(Relaxed);
            let (timer, takes_before) =
                self.overdue.get_or_insert_with(|| (Box::pin(sleep(self.write_timeout)), takes));
            ready!(timer.as_mut().poll(cx));
            if takes == *takes_before {
                return Poll::Ready(());
            }
            self.overdue = None;
        }
    }

    /// Stops whatever still runs and waits until it has stopped.
    async fn end(self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
    }
}

/// Starts the streams' tasks for hyper. Every stream holds one of these, so a strong one would keep the set alive
/// that holds the streams.
#[derive(Clone)]
struct Spawner(Weak<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, stream: F) {
        if let Some(tasks) = self.0.upgrade() {
            tasks.lock().spawn(stream);
        }
    }
}
