//! `/events`: publish, list, export, look up, delete.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::Uri;
use hyper::http::request::Parts;
use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::{Answer, Body, JSON, answer, json};
use super::export::Export;
use super::query::{LIMIT_DEFAULT, LIMIT_MAX, Listing, Parameters, is_of_filter, next_page};
use super::{reading, unreadable};
use crate::event::{Fault, KEY_CHARS_MAX, Parser, Rejection, Seq, Timestamp, TimestampText, is_key};
use crate::feed::{Chunk, Feed};
use crate::pipeline::Pipeline;
use crate::store::{Order, Receipt, Store, Stored};
use crate::wire::answer::{AckLevel, Outcome, key_reused, write_ids};
use crate::wire::batch::Fate;
use crate::wire::refusal::{Place, Problem};
use crate::wire::subscription::Gap;
use crate::wire::{Batch, Failure, Refusal, cloud_event};

/// How long a request waits for room in a full queue before it is told 503. Sockets that pipeline fill the
/// queue for tens of milliseconds at a time; a request should feel that as slowness, not as refusals.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);

/// Bodies beyond this are read on a thread of their own: one of 1 MiB takes some 4 ms, and everybody else on
/// the network thread would wait for it.
const PARSED_IN_PLACE_BYTES_MAX: usize = 1 << 20;

/// What a body holds, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Lines,
    CloudEvent,
    CloudEvents,
    /// One CloudEvent: its data is the body, the rest is in the headers.
    BinaryCloudEvent,
}

/// `POST /events`: all of the body in one transaction, or nothing.
pub(super) async fn publish(pipeline: &Arc<Pipeline>, parser: &Mutex<Parser>, parts: &Parts, body: Incoming) -> Answer {
    let headers = &parts.headers;
    let asked = level(&parts.uri)?;
    let key = key(headers)?;
    let form = Form::of(headers)?;
    let config = &pipeline.config;
    let body =
        timeout(config.body_timeout, read(body, config.max_body_bytes)).await.map_err(|_| Refusal::TooSlow)??;
    let (body, form) = own(form, headers, body)?;
    let (mut batch, many) = if body.len() <= PARSED_IN_PLACE_BYTES_MAX {
        parse(form, &body, pipeline, &mut parser.lock())?
    } else {
        let pipeline = pipeline.clone();
        let parsed = spawn_blocking(move || parse(form, &body, &pipeline, &mut pipeline.parser()));
        parsed.await.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))?
    };
    batch.end_message(0);
    if let Some(key) = key {
        if !batch.keyed().is_empty() {
            let why = "A request has an Idempotency-Key or its events have keys of their own, not both";
            return Err(bad_key(vec![Place::Name("header"), Place::Name(IDEMPOTENCY_KEY)], why.to_owned()));
        }
        batch.set_key(key);
    }
    let count = batch.len();
    let mut response = match asked.unwrap_or_else(|| pipeline.store.usual_level()) {
        AckLevel::Queued => {
            pipeline.store.append_within(QUEUE_PATIENCE, batch, Receipt::for_nobody()).await?;
            answer(StatusCode::ACCEPTED, JSON, format!(r#"{{"status":"queued","count":{count}}}"#))
        }
        level => {
            let (receipt, stored) = Receipt::at(level);
            pipeline.store.append_within(QUEUE_PATIENCE, batch, receipt).await?;
            let stored = stored.await.unwrap_or(Err(Failure::Unavailable))?;
            let mut response = created(&pipeline.store, &stored, many, key.is_some()).await?;
            if asked.is_some() {
                let reached = HeaderValue::from_static(stored.outcome.level().name());
                response.headers_mut().insert(ACK_LEVEL, reached);
            }
            response
        }
    };
    if asked == Some(AckLevel::Queued) {
        response.headers_mut().insert(ACK_LEVEL, HeaderValue::from_static(AckLevel::Queued.name()));
    }
    Ok(response)
}

const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// How safe the events were when they were acknowledged, for whoever asked.
const ACK_LEVEL: HeaderName = HeaderName::from_static("ack-level");

/// How safe events are to be, if the URL says so.
fn level(uri: &Uri) -> Result<Option<AckLevel>, Refusal> {
    if uri.query().is_none() {
        return Ok(None);
    }
    let Some(word) = Parameters::of(uri).get("ack").map(str::to_owned) else { return Ok(None) };
    let level = AckLevel::ALL.into_iter().find(|level| level.name() == word);
    level.map(Some).ok_or_else(|| Refusal::parameter("ack", "'ack' must be queued, stored or synced", "enum"))
}

/// The key under which the events of a request are stored once.
fn key(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let valid = str::from_utf8(key.as_bytes()).ok().filter(|key| is_key(key));
    let why = || format!("{IDEMPOTENCY_KEY} must be 1 to {KEY_CHARS_MAX} characters");
    valid.map(Some).ok_or_else(|| bad_key(vec![Place::Name("header"), Place::Name(IDEMPOTENCY_KEY)], why()))
}

fn bad_key(loc: Vec<Place>, msg: String) -> Refusal {
    Refusal::Invalid(Problem { loc, msg, kind: "idempotency_key" })
}

/// The answer to events that are stored. Where none is new it says so, and is that of the first time.
async fn created(store: &Store, stored: &Stored, many: bool, key_of_all: bool) -> Answer {
    let fates = match &stored.outcome {
        Outcome::Each(fates, _) => fates,
        Outcome::From(..) | Outcome::Queued => {
            let body =
                if many { summary(stored.batch.first(), stored.batch.len()).into() } else { stored.batch.json(0) };
            return Ok(answer(StatusCode::CREATED, JSON, body));
        }
    };
    let mut seqs = Vec::with_capacity(fates.len());
    for fate in fates.iter() {
        match fate {
            Fate::Stored(seq) | Fate::Replayed(seq) => seqs.push(*seq),
            Fate::Refused(place) => {
                let of = |place| vec![Place::Name("body"), Place::Index(place), Place::Name("idempotency_key")];
                let (loc, index) = match (key_of_all, many) {
                    (true, _) => (vec![Place::Name("header"), Place::Name(IDEMPOTENCY_KEY)], None),
                    (false, true) => (of(*place), Some(*place)),
                    (false, false) => (vec![Place::Name("body"), Place::Name("idempotency_key")], None),
                };
                return Err(bad_key(loc, key_reused(index)));
            }
        }
    }
    let is_replay = fates.iter().all(|fate| matches!(fate, Fate::Replayed(_)));
    let body = match many {
        true => ids(&seqs),
        false => {
            let id = seqs[0];
            // It may have been deleted since: then it can be stored again.
            let event = reading(store, move |store| store.event_at(id)).await?;
            event.ok_or(Refusal::Failed(Failure::Unavailable))?
        }
    };
    let mut response = answer(if is_replay { StatusCode::OK } else { StatusCode::CREATED }, JSON, body);
    if is_replay {
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

impl Form {
    fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let is_binary = headers.contains_key("ce-specversion");
        match media_type(content_type) {
            one if one.eq_ignore_ascii_case(cloud_event::MEDIA_TYPE.as_bytes()) => Ok(Self::CloudEvent),
            many if many.eq_ignore_ascii_case(cloud_event::BATCH_MEDIA_TYPE.as_bytes()) => Ok(Self::CloudEvents),
            _ if is_binary => Ok(Self::BinaryCloudEvent),
            b"" => Ok(Self::Json),
            json if json.eq_ignore_ascii_case(JSON.as_bytes()) => Ok(Self::Json),
            lines if lines.eq_ignore_ascii_case(NDJSON.as_bytes()) => Ok(Self::Lines),
            other if other.to_ascii_lowercase().ends_with(b"+json") => Ok(Self::Json),
            _ => Err(Refusal::UnsupportedMediaType),
        }
    }
}

/// The body in our own words, and its form.
fn own(form: Form, headers: &HeaderMap, body: Bytes) -> Result<(Bytes, Form), Refusal> {
    if matches!(form, Form::Json | Form::Lines) {
        return Ok((body, form));
    }
    let not_utf8 = || Refusal::BadRequest("The body is not valid UTF-8".to_owned());
    let text = str::from_utf8(&body).map_err(|_| not_utf8())?;
    let is_named = |name: &HeaderName| name.as_str().starts_with("ce-") || name == header::CONTENT_TYPE;
    if headers.iter().any(|(name, value)| is_named(name) && str::from_utf8(value.as_bytes()).is_err()) {
        return Err(Refusal::BadRequest("A header is not valid UTF-8".to_owned()));
    }
    let of_header = |name: &str| headers.get(name).and_then(|value| str::from_utf8(value.as_bytes()).ok());
    let json = match form {
        Form::CloudEvents => cloud_event::to_events(text)?,
        Form::CloudEvent => cloud_event::to_event(text)?,
        Form::BinaryCloudEvent | Form::Json | Form::Lines => cloud_event::of_headers(of_header, text)?,
    };
    Ok((json.into(), Form::Json))
}

const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// A media type without its parameters.
fn media_type(value: &[u8]) -> &[u8] {
    value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii()
}

/// The whole body. One that came in one piece, as small ones do, is not copied.
async fn read(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Refusal> {
    let announced = body.size_hint().lower();
    if announced > bytes_max as u64 {
        return Err(Refusal::TooLarge(bytes_max));
    }
    let first = chunk(&mut body).await?;
    if first.len() > bytes_max {
        return Err(Refusal::TooLarge(bytes_max));
    }
    if body.is_end_stream() {
        return Ok(first);
    }
    // Room grows as bytes come: an announcement alone costs no memory.
    let mut whole = Vec::from(first);
    loop {
        let more = chunk(&mut body).await?;
        if more.is_empty() {
            return Ok(whole.into());
        }
        if whole.len() + more.len() > bytes_max {
            return Err(Refusal::TooLarge(bytes_max));
        }
        whole.extend_from_slice(&more);
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
                // Trailers, which mean nothing here.
                Ok(_) | Err(_) => {}
            },
        }
    }
}

/// The events of a body, and whether it is of a form that can hold many.
fn parse(form: Form, body: &[u8], pipeline: &Pipeline, parser: &mut Parser) -> Result<(Batch, bool), Refusal> {
    let text = str::from_utf8(body).map_err(|_| Refusal::BadRequest("The body is not valid UTF-8".to_owned()))?;
    let mut batch = Batch::default();
    let many = match form {
        Form::Json | Form::CloudEvent | Form::CloudEvents | Form::BinaryCloudEvent => {
            let parsed = parser.parse(text, |event| batch.push(&event, &pipeline.types));
            parsed.outcome.map_err(|rejection| Refusal::of(&rejection))?.is_some()
        }
        Form::Lines => {
            for (index, line) in text.lines().filter(|line| !line.trim_ascii().is_empty()).enumerate() {
                let parsed = parser.parse(line, |event| batch.push(&event, &pipeline.types));
                let fault = match parsed.outcome {
                    Ok(None) => continue,
                    Err(Rejection { index: None, fault }) => fault,
                    // Each line is one event; an array of them is none.
                    Ok(Some(_)) | Err(Rejection { index: Some(_), .. }) => Fault::NotAnObject,
                };
                return Err(Refusal::of(&Rejection { index: Some(index), fault }));
            }
            true
        }
    };
    if batch.is_empty() {
        let msg = "The body holds no event".to_owned();
        return Err(Refusal::Invalid(Problem { loc: vec![Place::Name("body")], msg, kind: "too_short" }));
    }
    Ok((batch, many))
}

/// The answer to many events: how many they are and their ids, which follow each other.
fn summary(first: Seq, count: usize) -> Vec<u8> {
    summary_of(first, first.plus(count - 1), (0..count).map(|n| first.plus(n)), count)
}

/// The same for events of which some were stored before.
fn ids(seqs: &[Seq]) -> Vec<u8> {
    let (first, last) = (seqs[0], seqs[seqs.len() - 1]);
    summary_of(first, last, seqs.iter().copied(), seqs.len())
}

fn summary_of(first: Seq, last: Seq, seqs: impl Iterator<Item = Seq>, count: usize) -> Vec<u8> {
    let mut json =
        format!(r#"{{"count":{count},"first_id":"{}","last_id":"{}","ids":["#, first.id(), last.id()).into_bytes();
    write_ids(seqs, &mut json);
    json.extend_from_slice(b"]}");
    json
}

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
    let (query, gap) = reading(store, move |store| listing.query(store, Order::OldestFirst)).await??;
    let mut response = answer(StatusCode::OK, NDJSON, Bytes::new());
    *response.body_mut() = Body::Export(Export::new(store.clone(), query, events_max));
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
