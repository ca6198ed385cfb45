//! `/events`: publish, list, export, look up, delete.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Either;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::Uri;
use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::answer::{Answer, JSON, answer, json};
use super::export::Export;
use super::query::{LIMIT_DEFAULT, LIMIT_MAX, Listing, Parameters, next_page};
use super::reading;
use crate::event::{Fault, Parser, Rejection, Seq, Timestamp};
use crate::pipeline::Pipeline;
use crate::store::{Order, Receipt, Store};
use crate::wire::message::write_ids;
use crate::wire::refusal::{Place, Problem};
use crate::wire::{Batch, Failure, Refusal};

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
}

/// `POST /events`: all of the body in one transaction, or nothing.
pub(super) async fn publish(
    pipeline: &Arc<Pipeline>,
    parser: &Mutex<Parser>,
    headers: &HeaderMap,
    body: Incoming,
) -> Answer {
    let form = Form::of(headers.get(header::CONTENT_TYPE))?;
    let config = &pipeline.config;
    let body =
        timeout(config.body_timeout, read(body, config.max_body_bytes)).await.map_err(|_| Refusal::TooSlow)??;
    let (batch, many) = if body.len() <= PARSED_IN_PLACE_BYTES_MAX {
        parse(form, &body, pipeline, &mut parser.lock())?
    } else {
        let pipeline = pipeline.clone();
        let parsed = spawn_blocking(move || parse(form, &body, &pipeline, &mut pipeline.parser()));
        parsed.await.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))?
    };
    let (receipt, committed) = Receipt::new();
    pipeline.store.append_within(QUEUE_PATIENCE, batch, receipt).await?;
    let committed = committed.await.unwrap_or(Err(Failure::Unavailable))?;
    let created = match many {
        false => committed.json(0),
        true => summary(committed.first(), committed.len()).into(),
    };
    Ok(answer(StatusCode::CREATED, JSON, created))
}

impl Form {
    fn of(content_type: Option<&HeaderValue>) -> Result<Self, Refusal> {
        let Some(content_type) = content_type else { return Ok(Self::Json) };
        match media_type(content_type.as_bytes()) {
            json if json.eq_ignore_ascii_case(JSON.as_bytes()) => Ok(Self::Json),
            lines if lines.eq_ignore_ascii_case(NDJSON.as_bytes()) => Ok(Self::Lines),
            other if other.to_ascii_lowercase().ends_with(b"+json") => Ok(Self::Json),
            _ => Err(Refusal::UnsupportedMediaType),
        }
    }
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
        Form::Json => {
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
    let last = first.plus(count - 1);
    let mut json =
        format!(r#"{{"count":{count},"first_id":"{}","last_id":"{}","ids":["#, first.id(), last.id()).into_bytes();
    write_ids(first, count, &mut json);
    json.extend_from_slice(b"]}");
    json
}

/// `GET /events`: a page of the newest, or all of them as lines.
pub(super) async fn list(pipeline: &Pipeline, headers: &HeaderMap, uri: &Uri) -> Answer {
    let parameters = Parameters::of(uri);
    let mut response = match accepts_lines(headers) {
        true => export(&pipeline.store, &parameters).await?,
        false => page(&pipeline.store, uri.path(), &parameters).await?,
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn accepts_lines(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    accepted.into_iter().any(|range| media_type(range).eq_ignore_ascii_case(NDJSON.as_bytes()))
}

async fn export(store: &Store, parameters: &Parameters<'_>) -> Answer {
    let listing = Listing::of(parameters, usize::MAX)?;
    let events_max = listing.limit.unwrap_or(usize::MAX);
    let query = reading(store, move |store| listing.query(store, Order::OldestFirst)).await??;
    let mut response = answer(StatusCode::OK, NDJSON, Bytes::new());
    *response.body_mut() = Either::Right(Export::new(store.clone(), query, events_max));
    Ok(response)
}

async fn page(store: &Store, path: &str, parameters: &Parameters<'_>) -> Answer {
    let listing = Listing::of(parameters, LIMIT_MAX)?;
    let limit = listing.limit.unwrap_or(LIMIT_DEFAULT);
    let page = move |store: &Store| {
        let query = match listing.query(store, Order::NewestFirst)? {
            Ok(query) => query,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let (mut json, mut shown, mut last) = (vec![b'['], 0, Seq::ZERO);
        // One more than is shown tells whether older ones remain.
        let more = store.scan(&query, |event| {
            if shown == limit {
                return ControlFlow::Break(());
            }
            if shown > 0 {
                json.push(b',');
            }
            event.write_json(&mut json);
            (shown, last) = (shown + 1, event.seq);
            ControlFlow::Continue(())
        })?;
        json.push(b']');
        Ok(Ok((json, more.map(|_| last))))
    };
    let (events, older_than) = reading(store, page).await??;
    let mut response = json(events);
    if let Some(last) = older_than {
        let link = HeaderValue::try_from(next_page(path, parameters, last)).expect("percent-encoded text is ASCII");
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// `GET /events/{id}`.
pub(super) async fn one(store: &Store, id: &str) -> Answer {
    let id = percent_encoding::percent_decode_str(id).decode_utf8_lossy().into_owned();
    let event = reading(store, move |store| store.event(&id)).await?;
    event.map(json).ok_or(Refusal::NotFound("Event not found"))
}

/// `DELETE /events`. Here a parameter that means nothing is refused: somebody meant it to spare something.
pub(super) async fn delete(store: &Store, uri: &Uri) -> Answer {
    let parameters = Parameters::of(uri);
    if let Some(name) = parameters.names().find(|name| *name != "before") {
        return Err(Refusal::BadRequest(format!("Unknown parameter '{name}': only 'before' selects what is deleted")));
    }
    let deleted = store.delete(parameters.time("before", Timestamp::parse_ceil)?).await?;
    Ok(json(format!(r#"{{"deleted":{deleted}}}"#)))
}
