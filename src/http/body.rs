//! Bodies of requests, read within the memory that all of them share.

use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::budget::{MEMORY_PER_BYTE, Reservation, SMALL_BYTES_MAX, WAIT_MAX, stall_max_within};
use crate::config::Config;
use crate::pipeline::Pipeline;
use crate::record::Failure;
use crate::wire::Refusal;

/// How long a body may still take once the server shuts down; after that its request is refused. Half of the time that the
/// server gives its producers, so that requests in hand find the store open.
pub(super) fn grace(pipeline: &Pipeline) -> Duration {
    pipeline.config.shutdown_timeout / 8
}

/// Reads the whole body, and takes the memory for it and for its events until they are in the queue. A body that comes in
/// one piece, as small ones do, is not copied.
pub(super) async fn read(mut body: Incoming, pipeline: &Pipeline) -> Result<(Bytes, Vec<Reservation>), Refusal> {
    let bytes_max = pipeline.config.max_body_bytes;
    if announced(&body) > bytes_max {
        return Err(Refusal::TooLarge(bytes_max));
    }
    match at_hand(&mut body).await {
        Some(Ok(whole))
            if whole.len() <= bytes_max.min(SMALL_BYTES_MAX) && (whole.is_empty() || body.is_end_stream()) =>
        {
            Ok((whole, Vec::new()))
        }
        // Boxed, because the future of every publication would be as large.
        first => Box::pin(read_in_time(body, first, pipeline)).await,
    }
}

/// Reads a body that did not come with its head, or of which only the first piece did.
async fn read_in_time(
    body: Incoming,
    first: Option<Result<Bytes, Refusal>>,
    pipeline: &Pipeline,
) -> Result<(Bytes, Vec<Reservation>), Refusal> {
    let too_late = async {
        pipeline.shutdown().begun().await;
        sleep(grace(pipeline)).await;
    };
    tokio::select! {
        biased;
        read = read_whole(body, first, pipeline) => read,
        () = too_late => Err(Failure::Unavailable.into()),
    }
}

/// The length of a body, as far as it is known; less if a part of it was read.
fn announced(body: &Incoming) -> usize {
    usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX)
}

/// The first piece of a body, if it has come with the head of its request, as small bodies do. Then no timer is set. hyper
/// hands a piece over only after it was asked for it, so the first of two polls never finds one.
async fn at_hand(body: &mut Incoming) -> Option<Result<Bytes, Refusal>> {
    let (mut first, mut has_asked) = (pin!(chunk(body)), false);
    poll_fn(|cx| match first.as_mut().poll(cx) {
        Poll::Ready(piece) => Poll::Ready(Some(piece)),
        Poll::Pending if mem::replace(&mut has_asked, true) => Poll::Ready(None),
        Poll::Pending => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

async fn read_whole(
    mut body: Incoming,
    mut first: Option<Result<Bytes, Refusal>>,
    pipeline: &Pipeline,
) -> Result<(Bytes, Vec<Reservation>), Refusal> {
    let Config { body_timeout, max_body_bytes: bytes_max, .. } = pipeline.config;
    let announced = announced(&body).saturating_add(first.iter().flatten().map(Bytes::len).sum());
    let began = Instant::now();
    let mut deadline = began + body_timeout;
    let (mut whole, mut expected, mut memory) = (Vec::new(), SMALL_BYTES_MAX, Vec::new());
    loop {
        let more = match first.take() {
            Some(first) => first?,
            None => timeout_at(deadline, chunk(&mut body)).await.unwrap_or(Err(Refusal::TooSlow))?,
        };
        let (len, is_last) = (whole.len() + more.len(), more.is_empty() || body.is_end_stream());
        if len > bytes_max {
            return Err(Refusal::TooLarge(bytes_max));
        }
        // Memory is taken for bytes that have come, not for an announcement alone. A body without an announced length takes
        // memory in steps, each twice as large as the one before.
        if len > expected {
            let covered = expected;
            expected = if announced >= len { announced } else { bytes_max.min(2 * len) };
            let share = pipeline.bodies.reserve((expected - covered) * MEMORY_PER_BYTE);
            match timeout(WAIT_MAX, share).await {
                Ok(share) => memory.push(share),
                Err(_) => return Err(unread(body, began + body_timeout).await),
            }
        }
        if is_last && whole.is_empty() {
            return Ok((more, memory));
        }
        whole.reserve_exact(expected - whole.len());
        whole.extend_from_slice(&more);
        if is_last {
            return Ok((whole.into(), memory));
        }
        if !memory.is_empty() {
            deadline = began + stall_max_within(body_timeout, len, expected);
        }
    }
}

/// Refuses a body for which there is no memory. It is read to its end first: a client that is still sending would not read
/// the answer.
async fn unread(mut body: Incoming, deadline: Instant) -> Refusal {
    loop {
        match timeout_at(deadline, chunk(&mut body)).await.unwrap_or(Err(Refusal::TooSlow)) {
            Ok(piece) if piece.is_empty() => return Refusal::TooManyBodies,
            Ok(_) => {}
            Err(refusal) => return refusal,
        }
    }
}

/// The next piece of a body, empty at its end.
async fn chunk(body: &mut Incoming) -> Result<Bytes, Refusal> {
    loop {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            None => return Ok(Bytes::new()),
            Some(Err(_)) => return Err(Refusal::BadRequest("The body is broken off or badly framed".to_owned())),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(data),
                // Trailers mean nothing here.
                Ok(_) | Err(_) => {}
            },
        }
    }
}
