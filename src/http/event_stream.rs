//! `GET /events/stream`: Server-Sent Events, as the HTML standard defines them for `EventSource`.
//!
//! `id:` is an event's id, which the browser sends back as `Last-Event-ID` when it connects again; `data:` is the event.
//! Notes of the server have types of their own, which `onmessage` does not see.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::header::{self, HeaderValue};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::half_close::{HalfCloseGuard, Rule};
use super::reading::unreadable;
use super::request::Request;
use super::response::{self, BrokenOff, streamed};
use crate::auth::Principal;
use crate::pipeline::{Pipeline, Shutdown, Subscriber, SubscriberSlot};
use crate::stream::{Stream, StreamItem};
use crate::wire::note::{Note, subscribed};
use crate::wire::refusal::Ending;
use crate::wire::{Refusal, frame};

/// After this many milliseconds a browser connects again: a server that restarts is back by then.
const RETRY_MS: u32 = 1_000;

/// Opens the stream that the parameters ask for.
pub(super) async fn open(request: &Request<'_>) -> response::Result {
    let (pipeline, guard) = (request.pipeline, request.guard_half_close());
    let last_event_id = request.headers().get("last-event-id").and_then(|id| id.to_str().ok());
    let mut subscribe = request.parameters().subscription(last_event_id)?;
    subscribe.filters.filter = request.caller.principal.narrow(subscribe.filters.filter)?;
    guard.set(if subscribe.until.is_some() { Rule::GiveUp } else { Rule::GiveUpEndless });
    let slot = pipeline.subscriber_slot().ok_or(Refusal::TooManySubscribers)?;
    let space = request.caller.principal.space().into();
    let ended = slot.register(Subscriber { filter: subscribe.filters.filter.clone(), name: None, space });
    let shutdown = pipeline.shutdown();
    let Pipeline { store, hub, searches, config, .. } = &**pipeline;
    let opened = tokio::select! {
        opened = Stream::open(store, hub, &subscribe, config.max_subscriber_bytes, searches) => opened,
        // A search for the start may go on for seconds. At a shutdown the stream ends like any other: after a refusal a
        // browser would not connect again.
        () = shutdown.begun() => return event_stream(Events(None)),
    };
    let (stream, opening) = opened.map_err(|error| unreadable(&error))?.map_err(Refusal::BadRequest)?;
    let stream = stream.shown_in(slot.standing().clone());
    let answer = subscribed(slot.id(), &subscribe.filters, &opening);
    let mut first = format!("retry: {RETRY_MS}\nevent: subscribed\ndata: {answer}\n\n").into_bytes();
    if let Some(gap) = opening.gap {
        write_note(&Note::Gap(gap), &mut first);
    }
    let heartbeat = config.keepalive_interval;
    let principal = request.caller.principal.clone();
    let writer =
        Writer { stream, heartbeat, shutdown, principal, ended, _slot: slot, _guard: guard, first: Some(first) };
    event_stream(Events(Some(Box::pin(writer.next()))))
}

fn event_stream(events: Events) -> response::Result {
    let mut response = streamed(EVENT_STREAM, events);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Otherwise nginx would hold events back until its buffer is full.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// A body that ends when the client leaves, when the server shuts down, or when the stream has come to its end.
struct Events(Option<Pin<Box<Next>>>);

/// The next piece, and the writer of the one after it; `None` for it ends the body.
type Next = dyn Future<Output = (Option<Bytes>, Option<Writer>)> + Send;

impl Body for Events {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Some(next) = &mut self.0 else { return Poll::Ready(None) };
        let (piece, writer) = ready!(next.as_mut().poll(cx));
        self.0 = writer.map(|writer| Box::pin(writer.next()) as Pin<Box<Next>>);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// Writes a stream as text.
struct Writer {
    stream: Stream,
    heartbeat: Duration,
    /// A shutdown ends the stream as soon as it begins: a browser connects again for the rest, and until the connection ends
    /// requests that publish may follow on it.
    shutdown: Shutdown,
    /// When its key is revoked or expires, the stream ends, and the browser learns why when it connects again.
    principal: Principal,
    /// Resolves when the stream is ended from outside.
    ended: oneshot::Receiver<Ending>,
    _slot: SubscriberSlot,
    _guard: HalfCloseGuard,
    first: Option<Vec<u8>>,
}

impl Writer {
    async fn next(mut self) -> (Option<Bytes>, Option<Self>) {
        if let Some(first) = self.first.take() {
            return (Some(first.into()), Some(self));
        }
        let mut text = Vec::new();
        let said = tokio::select! {
            biased;
            () = self.shutdown.begun() => return (None, None),
            () = self.principal.over() => return (None, None),
            _ = &mut self.ended => return (None, None),
            said = self.stream.next() => said,
            () = sleep(self.heartbeat) => return (Some(Bytes::from_static(b": keep-alive\n\n")), Some(self)),
        };
        match said {
            Ok(StreamItem::Events(frames)) => frames.iter().for_each(|frames| write_events(frames, &mut text)),
            Ok(StreamItem::Note(note)) => write_note(&note, &mut text),
            // Filters are in the URL and do not change.
            Ok(StreamItem::FilterChanged) => {}
            Ok(StreamItem::Ended(Ending::Complete)) => {
                return (Some(Bytes::from_static(b"event: complete\ndata: {}\n\n")), None);
            }
            Ok(StreamItem::Ended(Ending::TooSlow)) => {
                return (Some(Bytes::from_static(b"event: too_slow\ndata: {}\n\n")), None);
            }
            Ok(StreamItem::Ended(_)) => return (None, None),
            Err(error) => {
                tracing::error!(%error, "read events for a stream");
                return (None, None);
            }
        }
        (Some(text.into()), Some(self))
    }
}

/// Appends events that come as WebSocket frames.
fn write_events(frames: &[u8], out: &mut Vec<u8>) {
    for event in frame::payloads(frames) {
        out.extend_from_slice(b"id: ");
        out.extend_from_slice(id_of(event));
        out.extend_from_slice(b"\ndata: ");
        // The payload of an event that the Python service has stored may have line breaks.
        for (i, line) in event.split(|b| matches!(b, b'\n' | b'\r')).enumerate() {
            if i > 0 {
                out.extend_from_slice(b"\ndata: ");
            }
            out.extend_from_slice(line);
        }
        out.extend_from_slice(b"\n\n");
    }
}

/// The id of a delivered event. It is the first field and has no escapes.
fn id_of(event: &[u8]) -> &[u8] {
    let id = event.strip_prefix(br#"{"id":""#).expect("every event begins with its id");
    &id[..id.iter().position(|b| *b == b'"').expect("a string has an end")]
}

fn write_note(note: &Note, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("event: {}\ndata: {}\n\n", note.name(), note.json()).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_blocks_of_lines() {
        let (mut frames, mut text) = (Vec::new(), Vec::new());
        frame::text(&mut frames, br#"{"id":"evt_00000000000a","payload":{}}"#);
        let laid_out = format!("{{\"id\":\"old\",\"payload\":{{\n\"a\":\"{}\"}}}}", "x".repeat(200));
        frame::text(&mut frames, laid_out.as_bytes());
        write_events(&frames, &mut text);
        let long =
            format!("id: old\ndata: {{\"id\":\"old\",\"payload\":{{\ndata: \"a\":\"{}\"}}}}\n\n", "x".repeat(200));
        let short = "id: evt_00000000000a\ndata: {\"id\":\"evt_00000000000a\",\"payload\":{}}\n\n";
        assert_eq!(String::from_utf8(text).expect("UTF-8"), format!("{short}{long}"));
    }
}
