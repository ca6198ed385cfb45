//! `/events`: list, export, look up, delete.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::Uri;
use tokio::time::{Instant, timeout_at};

use super::answer::{Answer, Body, JSON, NDJSON, answer, json, media_type};
use super::export::{Export, first_page};
use super::query::{LIMIT_DEFAULT, LIMIT_MAX, Listing, Parameters, is_of_filter, next_page};
use super::{reading, unreadable};
use crate::event::{Seq, Timestamp, TimestampText};
use crate::feed::{Chunk, Feed};
use crate::pipeline::Pipeline;
use crate::store::{Order, Store};
use crate::wire::subscription::Gap;
use crate::wire::{Refusal, cloud_event};

/// `GET /events`: a page, or all of them as lines.
pub(super) async fn list(pipeline: &Arc<Pipeline>, headers: &HeaderMap, uri: &Uri) -> Answer {
    let parameters = Parameters::of(uri);
    let mut response = match accepts(headers, NDJSON.as_bytes()) {
        true => export(&pipeline.store, &parameters).await?,
        false => page(pipeline, uri.path(), &parameters, Shape::accepted(headers)).await?,
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// Whether a client accepts a media type, by its own name.
fn accepts(headers: &HeaderMap, media: &[u8]) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    accepted.into_iter().any(|range| media_type(range).eq_ignore_ascii_case(media))
}

/// How events look in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Own,
    CloudEvent,
}

impl Shape {
    fn accepted(headers: &HeaderMap) -> Self {
        let cloud = [cloud_event::MEDIA_TYPE, cloud_event::BATCH_MEDIA_TYPE];
        let wanted = cloud.into_iter().any(|media| accepts(headers, media.as_bytes()));
        if wanted { Self::CloudEvent } else { Self::Own }
    }

    /// The media type of one event, or of a list.
    fn media_type(self, is_list: bool) -> HeaderValue {
        match (self, is_list) {
            (Self::Own, _) => JSON,
            (Self::CloudEvent, false) => HeaderValue::from_static(cloud_event::MEDIA_TYPE),
            (Self::CloudEvent, true) => HeaderValue::from_static(cloud_event::BATCH_MEDIA_TYPE),
        }
    }

    /// Appends a delivered event.
    fn write(self, event: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Own => out.extend_from_slice(event),
            Self::CloudEvent => cloud_event::of_event(event, out),
        }
    }
}

async fn export(store: &Store, parameters: &Parameters<'_>) -> Answer {
    let listing = Listing::of(parameters, usize::MAX)?;
    let events_max = listing.limit.unwrap_or(usize::MAX);
    let begin = move |store: &Store| match listing.query(store, Order::OldestFirst)? {
        Ok((query, gap)) => Ok(Ok((first_page(store, query, events_max)?, gap))),
        Err(refusal) => Ok(Err(refusal)),
    };
    let (first, gap) = reading(store, begin).await??;
    let mut response = answer(StatusCode::OK, NDJSON, Bytes::new());
    *response.body_mut() = Body::Export(Export::new(store.clone(), first));
    tell_gap(response.headers_mut(), gap);
    Ok(response)
}

/// What a cursor cannot get any more, as JSON.
const EVENT_GAP: HeaderName = HeaderName::from_static("event-gap");

fn tell_gap(headers: &mut HeaderMap, gap: Option<Gap>) {
    // An id that does not fit into a header is none that we gave out.
    headers.extend(gap.and_then(|gap| HeaderValue::try_from(gap.json().to_string()).ok()).map(|gap| (EVENT_GAP, gap)));
}

/// Times that a page goes on reading because too few of the events it looked at pass: some 2 s. Then it ends
/// short, and its `Link` leads on.
const READS_PER_PAGE: usize = 32;

/// What was found for one page.
struct Page {
    json: Vec<u8>,
    shown: usize,
    /// Where the next page goes on, if there may be more.
    rest: Option<Seq>,
    /// Nothing that passes was committed up to here but what is shown.
    reached: Seq,
    gap: Option<Gap>,
}

fn read_page(store: &Store, listing: Listing, shape: Shape) -> rusqlite::Result<Result<Page, Refusal>> {
    let (limit, order) = (listing.limit.unwrap_or(LIMIT_DEFAULT), listing.order());
    let reached = store.committed();
    let (mut query, gap) = match listing.query(store, order)? {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let (mut json, mut shown, mut last, mut is_full) = (vec![b'['], 0, Seq::ZERO, false);
    let (mut event_json, mut time) = (Vec::new(), TimestampText::default());
    let mut reads = READS_PER_PAGE;
    let rest = loop {
        // One more than is shown tells whether more remain.
        let broken_off = store.scan_some(&query, |event| {
            is_full = shown == limit;
            if is_full {
                return ControlFlow::Break(());
            }
            if shown > 0 {
                json.push(b',');
            }
            event_json.clear();
            event.write_json(&mut event_json, &mut time);
            shape.write(&event_json, &mut json);
            (shown, last) = (shown + 1, event.seq);
            ControlFlow::Continue(())
        })?;
        reads -= 1;
        match broken_off {
            None => break None,
            Some(_) if is_full => break Some(last),
            Some(looked_at) if reads == 0 => break Some(looked_at),
            Some(looked_at) => query.go_on_after(looked_at),
        }
    };
    json.push(b']');
    Ok(Ok(Page { json, shown, rest, reached, gap }))
}

async fn page(pipeline: &Arc<Pipeline>, path: &str, parameters: &Parameters<'_>, shape: Shape) -> Answer {
    let listing = Listing::of(parameters, LIMIT_MAX)?;
    let order = listing.order();
    let deadline = Instant::now() + listing.wait.unwrap_or_default();
    let page = loop {
        let asked = listing.clone();
        let page = reading(&pipeline.store, move |store| read_page(store, asked, shape)).await??;
        let is_final = listing.wait.is_none() || page.shown > 0 || page.rest.is_some();
        if is_final || !comes_in_time(pipeline, &listing, page.reached, deadline).await? {
            break page;
        }
    };
    let mut response = answer(StatusCode::OK, shape.media_type(true), page.json);
    if let Some(last) = page.rest {
        let link = next_page(path, parameters, order, last);
        let link = HeaderValue::try_from(link).expect("percent-encoded text is ASCII");
        response.headers_mut().insert(header::LINK, link);
    }
    tell_gap(response.headers_mut(), page.gap);
    Ok(response)
}

/// Whether an event that passes is committed after `reached`, before the deadline and the end of the server.
async fn comes_in_time(
    pipeline: &Arc<Pipeline>,
    listing: &Listing,
    reached: Seq,
    deadline: Instant,
) -> Result<bool, Refusal> {
    let mut feed = Feed::new(pipeline.store.clone(), pipeline.hub.clone(), listing.filter().clone(), reached);
    let mut shutting_down = pipeline.producer();
    let chunk = tokio::select! {
        chunk = timeout_at(deadline, feed.next()) => chunk,
        () = shutting_down.shutting_down() => return Ok(false),
    };
    match chunk {
        Err(_) => Ok(false),
        Ok(Ok(chunk)) => Ok(matches!(chunk, Chunk::Events(_))),
        Ok(Err(error)) => Err(unreadable(&error)),
    }
}

/// `GET /events/{id}`.
pub(super) async fn one(store: &Store, headers: &HeaderMap, id: &str) -> Answer {
    let id = percent_encoding::percent_decode_str(id).decode_utf8_lossy().into_owned();
    let event = reading(store, move |store| store.event(&id)).await?.ok_or(Refusal::NotFound("Event not found"))?;
    let (shape, mut shown) = (Shape::accepted(headers), Vec::new());
    shape.write(&event, &mut shown);
    let mut response = answer(StatusCode::OK, shape.media_type(false), shown);
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// `DELETE /events`. Here a parameter that means nothing is refused: somebody meant it to spare something.
pub(super) async fn delete(store: &Store, uri: &Uri) -> Answer {
    let parameters = Parameters::of(uri);
    if let Some(name) = parameters.names().find(|name| *name != "before" && !is_of_filter(name)) {
        let known = "only 'before' and what selects events can be given";
        return Err(Refusal::BadRequest(format!("Unknown parameter '{name}': {known}")));
    }
    if let Some(name) = parameters.names().find(|name| *name != "before" && parameters.says_nothing(name)) {
        return Err(Refusal::BadRequest(format!("'{name}' is empty: say which events are meant")));
    }
    let (before, filter) = (parameters.time("before", Timestamp::parse_ceil)?, parameters.filter()?);
    if filter.is_any() && parameters.names().any(|name| name != "before") {
        return Err(Refusal::BadRequest("'filter' lets every event through: say which events are meant".to_owned()));
    }
    let deleted = store.delete(before, filter).await?;
    Ok(json(format!(r#"{{"deleted":{deleted}}}"#)))
}
