//! `GET /events/stream`: Server-Sent Events, as the HTML standard defines them for `EventSource`.
//!
//! `id:` is an event's id, which the browser sends back as `Last-Event-ID` when it connects again; `data:` is
//! the event. What else is to be said are events of a type of their own, which `onmessage` does not see.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::Uri;
use tokio::time::sleep;

use super::answer::{Answer, BrokenOff, streamed};
use super::query::Parameters;
use super::socket::Watched;
use super::unreadable;
use crate::feed::{Said, Stream};
use crate::pipeline::{Pipeline, Shutdown, Subscriber, SubscriberPlace};
use crate::wire::refusal::Ending;
use crate::wire::subscription::{Note, subscribed};
use crate::wire::{Refusal, frame};

/// How soon a browser connects again: a server that restarts is back by then.
const RETRY_MS: u32 = 1_000;

/// Opens the stream that the parameters ask for.
pub(super) async fn stream(pipeline: &Arc<Pipeline>, headers: &HeaderMap, uri: &Uri, watched: Watched) -> Answer {
    watched.set_live();
    let last_event_id = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let request = Parameters::of(uri).subscription(last_event_id)?;
    if request.until.is_none() {
        watched.set_endless();
    }
    let place = pipeline.place().ok_or(Refusal::TooManySubscribers)?;
    place.tell(Subscriber { filter: request.filters.filter.clone(), name: None });
    let shutdown = pipeline.shutdown();
    let Pipeline { store, hub, searches, config, .. } = &**pipeline;
    let opened = tokio::select! {
        opened = Stream::open(store, hub, &request, config.max_subscriber_bytes, searches) => opened,
        // A search for the start may go on for seconds. The stream ends as any does then: a browser that was refused
        // would not come back.
        () = shutdown.begun() => return event_stream(Live(None)),
    };
    let (stream, opening) = opened.map_err(|error| unreadable(&error))?.map_err(Refusal::BadRequest)?;
    let opened = subscribed(place.id(), &request.filters, &opening);
    let mut first = format!("retry: {RETRY_MS}\nevent: subscribed\ndata: {opened}\n\n").into_bytes();
    if let Some(gap) = opening.gap {
        write_note(&Note::Gap(gap), &mut first);
    }
    let heartbeat = config.keepalive_interval;
    let speaker = Speaker { stream, heartbeat, shutdown, _place: place, _watched: watched, first: Some(first) };
    event_stream(Live(Some(Box::pin(speaker.speak()))))
}

fn event_stream(live: Live) -> Answer {
    let mut response = streamed(EVENT_STREAM, live);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // What nginx would hold back to fill a buffer.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// A body that ends when the client leaves, the server ends, or all that was asked for was said.
struct Live(Option<Pin<Box<Turn>>>);

/// The next piece, and who says the one after it.
type Turn = dyn Future<Output = (Option<Bytes>, Option<Speaker>)> + Send;

impl Body for Live {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Some(turn) = &mut self.0 else { return Poll::Ready(None) };
        let (piece, speaker) = ready!(turn.as_mut().poll(cx));
        self.0 = speaker.map(|speaker| Box::pin(speaker.speak()) as Pin<Box<Turn>>);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }
}

struct Speaker {
    stream: Stream,
    heartbeat: Duration,
    /// The stream ends when the server begins to: a browser comes back for the rest, and until then
    /// requests that publish may follow on this connection.
    shutdown: Shutdown,
    _place: SubscriberPlace,
    _watched: Watched,
    first: Option<Vec<u8>>,
}

impl Speaker {
    async fn speak(mut self) -> (Option<Bytes>, Option<Self>) {
        if let Some(first) = self.first.take() {
            return (Some(first.into()), Some(self));
        }
        let mut text = Vec::new();
        let said = tokio::select! {
            biased;
            () = self.shutdown.begun() => return (None, None),
            said = self.stream.next() => said,
            () = sleep(self.heartbeat) => return (Some(Bytes::from_static(b": keep-alive\n\n")), Some(self)),
        };
        match said {
            Ok(Said::Events(frames)) => frames.iter().for_each(|frames| write_events(frames, &mut text)),
            Ok(Said::Note(note)) => write_note(&note, &mut text),
            // Filters are in the URL; nobody can change them.
            Ok(Said::FilterChanged) => {}
            Ok(Said::Ended(Ending::Complete)) => {
                return (Some(Bytes::from_static(b"event: complete\ndata: {}\n\n")), None);
            }
            Ok(Said::Ended(Ending::TooSlow)) => {
                return (Some(Bytes::from_static(b"event: too_slow\ndata: {}\n\n")), None);
            }
            Ok(Said::Ended(_)) => return (None, None),
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
        // The payload of an event from the service before this one may be laid out in lines.
        for (i, line) in event.split(|b| matches!(b, b'\n' | b'\r')).enumerate() {
            if i > 0 {
                out.extend_from_slice(b"\ndata: ");
            }
            out.extend_from_slice(line);
        }
        out.extend_from_slice(b"\n\n");
    }
}

/// The id of a delivered event, which is its first field and has no escapes.
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
