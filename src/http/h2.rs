//! HTTP/2 on the same port, for clients that begin with it ("prior knowledge"): one connection for many requests,
//! where a browser opens at most six of HTTP/1.1 to one host.
//!
//! hyper keeps a connection for as long as its peer answers pings. So this module looks whether anything is in hand, and
//! whether the peer takes what is ready for it.

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
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

use super::connection::{BUFFER_BYTES_MAX, Connection};
use super::io::HttpIo;
use super::response::Body;
use crate::transport::Transport;

/// Requests in hand on one connection. RFC 9113 recommends at least 100, and browsers use up to that.
const STREAMS_MAX: u32 = 128;

/// What one upload may send before the server has read it: enough for 5 MB/s at a round trip of 50 ms.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// The same for all uploads of a connection together: the most memory that its unread bodies take.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Streams that a client may reset before the server has seen their requests; beyond it the connection ends. An ordinary
/// client does not take back so many requests within one read, and a flood does nothing else (CVE-2023-44487).
const UNSEEN_RESETS_MAX: usize = 20;

/// How many more requests a client may take back than it gets answers; beyond it the connection ends. [`STREAMS_MAX`] does
/// not count them, and each may have begun a read, which goes on for some milliseconds after its stream is gone. An
/// ordinary client takes back a few.
const ABANDONED_MAX: usize = 1_000;

/// How long a client has to confirm that it knows of the shutdown: more than a round trip. A client that never confirms is
/// not waited for.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves one connection until the client ends it, until nothing was in hand for the header timeout, or until the server
/// shuts down. Requests in hand are finished.
pub(super) async fn serve(transport: Transport, connection: Connection) {
    let (pipeline, peer) = (connection.pipeline.clone(), connection.peer);
    let mut streams = Streams::new(pipeline.config.header_timeout, pipeline.config.write_timeout);
    let (connection, counts) = (Arc::new(connection), streams.counts.clone());
    let (shutdown, ours) = (pipeline.shutdown(), connection.clone());
    let service = service_fn(move |request| answer(connection.clone(), counts.clone(), request));
    let mut http = pin!(
        http2::Builder::new(streams.spawner())
            .timer(TokioTimer::new())
            // A client that has streams open and sends nothing may have vanished: pings find out.
            .keep_alive_interval(pipeline.config.keepalive_interval)
            .keep_alive_timeout(pipeline.config.write_timeout)
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(BUFFER_BYTES_MAX as u32)
            .max_send_buf_size(BUFFER_BYTES_MAX)
            .max_pending_accept_reset_streams(UNSEEN_RESETS_MAX)
            .serve_connection(HttpIo::http2(transport), service)
    );
    // Requests that the client sends before it knows of the shutdown find the store open.
    let mut goaway_over = pin!(async {
        shutdown.begun().await;
        sleep(GOAWAY_TIMEOUT).await;
        ours.release_store();
    });
    let (mut ending, mut has_released) = (false, false);
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
            () = goaway_over.as_mut(), if !has_released => {
                has_released = true;
                continue;
            }
        }
        // The client is told, and requests that it has sent before it knows are answered.
        ending = true;
        streams.shorten_idle();
        http.as_mut().graceful_shutdown();
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended early");
    }
    streams.end().await;
    ours.deadlines.end().await;
}

/// Answers a request as over HTTP/1.1, with what hyper does by itself only there.
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
    // HTTP/2 has no such headers: a stream ends without its connection, and cannot be upgraded (RFC 9113, 8.2.2).
    headers.remove(header::CONNECTION);
    headers.remove(header::UPGRADE);
    if asks_for_head {
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        *response.body_mut() = Body::Left(Full::default());
    }
    drop(unanswered);
    Ok(response.map(|body| Counted { body, counts }))
}

/// What is counted on one connection.
#[derive(Default)]
struct Counts {
    /// Requests taken back before they were answered, less those answered since. It is never below zero, so a client that
    /// has behaved well for long cannot flood for long.
    abandoned: AtomicUsize,
    /// Bytes of answers that the peer has not taken.
    untaken: AtomicUsize,
    /// How often it has taken some.
    takes: AtomicUsize,
}

/// A request in hand. If it is dropped without an answer, the client has taken it back.
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

/// The body of an answer, whose bytes are counted until the peer has taken them. http-body-util's `MapFrame` would not pass
/// on the length.
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

/// The tasks of one connection's streams, which end with it, and how its peer behaves.
struct Streams {
    tasks: Arc<Mutex<JoinSet<()>>>,
    counts: Arc<Counts>,
    /// How long nothing may be in hand.
    idle_max: Duration,
    write_timeout: Duration,
    /// Runs while nothing is in hand.
    idle: Option<Pin<Box<Sleep>>>,
    /// Runs while the peer has something to take, with the count of [`Counts::takes`] when it began.
    overdue: Option<(Pin<Box<Sleep>>, usize)>,
}

/// Why a connection should end.
#[derive(Debug)]
enum Found {
    /// No request was in hand for some time, and no answer on its way.
    Idle,
    /// The peer takes back more requests than it waits for.
    Flooded,
    /// The peer takes nothing of what is ready for it.
    Stuck,
}

impl Streams {
    fn new(idle_max: Duration, write_timeout: Duration) -> Self {
        Self { tasks: Arc::default(), counts: Arc::default(), idle_max, write_timeout, idle: None, overdue: None }
    }

    fn spawner(&self) -> Spawner {
        Spawner(Arc::downgrade(&self.tasks))
    }

    /// After the client was told of the shutdown an idle connection ends soon.
    fn shorten_idle(&mut self) {
        self.idle_max = self.idle_max.min(GOAWAY_TIMEOUT);
        self.idle = None;
    }

    /// Removes the tasks that have ended, and looks how the peer behaves. A panic of a stream's task goes on here.
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
        let idle = self.idle.get_or_insert_with(|| Box::pin(sleep(self.idle_max)));
        idle.as_mut().poll(cx).map(|()| Found::Idle)
    }

    /// Ready when the peer has taken nothing for the write timeout. The first call only starts the timer.
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

    /// Stops the tasks that still run and waits until they have stopped.
    async fn end(self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
    }
}

/// Starts the streams' tasks for hyper. Each stream holds a spawner, so a strong reference in it would keep alive the set
/// that holds the stream.
#[derive(Clone)]
struct Spawner(Weak<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, stream: F) {
        if let Some(tasks) = self.0.upgrade() {
            tasks.lock().spawn(stream);
        }
    }
}
