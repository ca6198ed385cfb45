//! The bodies of large answers: each takes a part of the memory for pages, for which other requests may be waiting.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::response::{self, BrokenOff};
use crate::budget::{Reservation, WAIT_MAX, stall_max};
use crate::pipeline::Pipeline;
use crate::wire::Refusal;

/// Answers up to this size take nothing of the memory for pages: some 250 usual events, so that an ordinary request never
/// waits for memory.
pub(super) const SMALL_BYTES_MAX: usize = 64 << 10;

/// Memory for an answer of this size, if it needs any.
///
/// # Errors
/// `TooManyPages` when there is none in time.
pub(super) async fn memory_for(bytes: usize, pipeline: &Pipeline) -> Result<Option<Reservation>, Refusal> {
    if bytes <= SMALL_BYTES_MAX {
        return Ok(None);
    }
    timeout(WAIT_MAX, pipeline.pages.reserve(bytes)).await.map(Some).map_err(|_| Refusal::TooManyPages)
}

/// Turns the body of an answer into a large page, if all of it is there and it is large. The page keeps as much of
/// `memory` as it needs, or takes some.
///
/// # Errors
/// `TooManyPages` when there is none in time.
pub(super) async fn within_memory(
    answer: Response<response::Body>,
    mut memory: Option<Reservation>,
    pipeline: &Pipeline,
    deadlines: &Deadlines,
) -> response::Result {
    let whole = match answer.body() {
        response::Body::Left(whole) if whole.size_hint().lower() > SMALL_BYTES_MAX as u64 => whole.clone(),
        _ => return Ok(answer),
    };
    let whole = whole.collect().await.unwrap_or_else(|never| match never {}).to_bytes();
    if memory.is_none() {
        memory = memory_for(whole.len(), pipeline).await?;
    }
    if let Some(memory) = &mut memory {
        memory.shrink_to(whole.len());
    }
    let page = LargePage::new(whole, memory, pipeline.config.write_timeout, deadlines);
    Ok(answer.map(|_| response::Body::Right(page.boxed_unsync())))
}

/// Breaks off when the client takes it more slowly than a body may come ([`stall_max`]). hyper does not poll a body while
/// its client takes nothing, so a timer within the body would not run; a task gives the memory back instead.
struct LargePage {
    held: Arc<Mutex<Option<Held>>>,
    left: usize,
    deadline: AbortHandle,
}

/// What a large page holds until it is taken.
struct Held {
    json: Bytes,
    taken: usize,
    _memory: Option<Reservation>,
}

/// Bytes that hyper gets at a time.
const PIECE_BYTES: usize = 64 << 10;

impl LargePage {
    fn new(json: Bytes, memory: Option<Reservation>, write_timeout: Duration, deadlines: &Deadlines) -> Self {
        let left = json.len();
        let held = Arc::new(Mutex::new(Some(Held { json, taken: 0, _memory: memory })));
        let deadline = deadlines.add(end_in_time(held.clone(), write_timeout));
        Self { held, left, deadline }
    }
}

/// Gives the memory of a page back when its client is too slow.
async fn end_in_time(held: Arc<Mutex<Option<Held>>>, write_timeout: Duration) {
    let began = Instant::now();
    loop {
        let Some(taken) = held.lock().as_ref().map(|held| held.taken) else { return };
        let deadline = began + stall_max(taken).max(write_timeout);
        if deadline <= Instant::now() {
            break;
        }
        sleep_until(deadline).await;
    }
    *held.lock() = None;
}

impl Drop for LargePage {
    fn drop(&mut self) {
        self.deadline.abort();
        *self.held.lock() = None;
    }
}

impl Body for LargePage {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Self { held, left, .. } = self.get_mut();
        if *left == 0 {
            return Poll::Ready(None);
        }
        let mut held = held.lock();
        let Some(Held { json, taken, .. }) = &mut *held else { return Poll::Ready(Some(Err(BrokenOff))) };
        // A copy: a slice would keep the memory of the whole page.
        let piece = Bytes::copy_from_slice(&json[*taken..][..PIECE_BYTES.min(*left)]);
        *taken += piece.len();
        *left -= piece.len();
        if *left == 0 {
            *held = None;
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

/// The tasks that break off the large pages of one connection. The connection waits for them when it ends.
#[derive(Default)]
pub(super) struct Deadlines(Mutex<JoinSet<()>>);

impl Deadlines {
    fn add(&self, deadline: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = self.0.lock();
        // Removes the tasks of earlier pages, which have ended.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(deadline)
    }

    /// Stops the tasks, and waits until they have stopped.
    pub(super) async fn end(&self) {
        let mut tasks = std::mem::take(&mut *self.0.lock());
        tasks.shutdown().await;
    }
}
