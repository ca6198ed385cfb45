//! `POST /events`: reads a body in any of its forms, stores its events, and answers once they are as safe as the client asked.

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;

use super::body;
use super::large_page::{memory_for, within_memory};
use super::media::essence;
use super::parameters::Parameters;
use super::reading::reading;
use super::request::Request;
use super::response::{self, JSON, NDJSON};
use crate::auth::KEY_OVER;
use crate::budget::WAIT_MAX;
use crate::event::{Fault, Filter, KEY_CHARS_MAX, Parser, REJECTIONS_MAX, Rejection, Seq, is_key};
use crate::pipeline::PARSED_IN_PLACE_BYTES_MAX;
use crate::record::{AckLevel, Failure, Outcome, Outcomes};
use crate::store::{Receipt, Store, Stored};
use crate::wire::answer::{key_reused, write_ids};
use crate::wire::cloud_event::Translation;
use crate::wire::refusal::{Step, ValidationError, outside_of_key};
use crate::wire::{Batch, Refusal, cloud_event};

/// What a body holds, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json,
    Lines,
    CloudEvent,
    CloudEvents,
    /// One CloudEvent: its data is the body, the rest is in the headers.
    BinaryCloudEvent,
}

/// `POST /events`: all of the body in one transaction, or nothing.
pub(super) async fn publish(request: &Request<'_>, parser: &Mutex<Parser>, body: Incoming) -> response::Result {
    let (pipeline, headers) = (request.pipeline, request.headers());
    let asked = level(&request.parameters())?;
    let key = key(headers)?;
    let form = Form::of(headers)?;
    check_coding(headers)?;
    let (body, memory) = body::read(body, pipeline).await?;
    let body_bytes = body.len();
    if request.caller.principal.is_over() {
        return Err(Refusal::Unauthorized(KEY_OVER));
    }
    let (mut batch, many) = match body {
        small if small.len() <= PARSED_IN_PLACE_BYTES_MAX => form.events(headers, &small, &mut parser.lock())?,
        large => {
            let (mut parser, headers) = (pipeline.parser(), headers.clone());
            pipeline.parse_beside(move || form.events(&headers, &large, &mut parser)).await?
        }
    };
    let principal = &request.caller.principal;
    if let Some((index, why)) = principal.pins().and_then(|pins| batch.mismatch(0, pins)) {
        return Err(Refusal::Pinned(outside_of_key(many.then_some(index), &why).into()));
    }
    batch.end_message(0);
    if let Some(key) = key {
        if !batch.keyed().is_empty() {
            let why = "A request has an Idempotency-Key or its events have keys of their own, not both";
            return Err(bad_header_key(why.to_owned()));
        }
        batch.set_key(key);
    }
    batch.set_space(principal.space());
    let count = batch.len();
    let (mut response, reached) = match asked.unwrap_or_else(|| pipeline.store.usual_level()) {
        AckLevel::Queued => {
            pipeline.store.append_within(WAIT_MAX, batch, Receipt::for_nobody()).await?;
            let waits = format!(r#"{{"status":"queued","count":{count}}}"#);
            (response::new(StatusCode::ACCEPTED, JSON, waits), AckLevel::Queued)
        }
        level => {
            // Before the events are stored: after that the request cannot be refused.
            let answer_bytes_max = REST_BYTES_MAX + if many { count * ID_BYTES_MAX } else { body_bytes };
            let for_answer = memory_for(answer_bytes_max, pipeline).await?;
            let (receipt, stored) = Receipt::at(level);
            pipeline.store.append_within(WAIT_MAX, batch, receipt).await?;
            drop(memory);
            let stored = stored.await.unwrap_or(Err(Failure::Unavailable))?;
            let created = created(&pipeline.store, &stored, many, key.is_some()).await?;
            (within_memory(created, for_answer, pipeline, request.deadlines).await?, stored.outcomes.level())
        }
    };
    if asked.is_some() {
        response.headers_mut().insert(ACK_LEVEL, HeaderValue::from_static(reached.name()));
    }
    Ok(response)
}

/// Bytes of an id in an answer to many events, with its quotes and comma.
const ID_BYTES_MAX: usize = 19;
/// Bytes that an answer has besides ids, or besides the body that its event came in: at most a source, a session, a user and
/// a type, which came as headers of a CloudEvent, with every character escaped.
const REST_BYTES_MAX: usize = 4 << 10;

const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
// Every request is searched for these. As names they are not parsed each time.
static KEY: HeaderName = HeaderName::from_static("idempotency-key");
static SPEC_VERSION: HeaderName = HeaderName::from_static("ce-specversion");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// How safe the events were when they were acknowledged. Only where the client asked for a level.
const ACK_LEVEL: HeaderName = HeaderName::from_static("ack-level");

/// The acknowledgement level that the URL asks for.
fn level(parameters: &Parameters<'_>) -> Result<Option<AckLevel>, Refusal> {
    let Some(word) = parameters.get("ack") else { return Ok(None) };
    let level = AckLevel::ALL.into_iter().find(|level| level.name() == word);
    level.map(Some).ok_or_else(|| Refusal::parameter("ack", "'ack' must be queued, stored or synced", "enum"))
}

/// A compressed body is refused and never unpacked: a few bytes of it can stand for gigabytes.
fn check_coding(headers: &HeaderMap) -> Result<(), Refusal> {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let mut codings = codings.flat_map(|list| list.split(|b| *b == b',')).map(<[u8]>::trim_ascii);
    match codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")) {
        true => Ok(()),
        false => Err(Refusal::UnsupportedCoding),
    }
}

/// The idempotency key of all events of a request.
fn key(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(key) = headers.get(&KEY) else { return Ok(None) };
    let valid = str::from_utf8(key.as_bytes()).ok().filter(|key| is_key(key));
    let why = || format!("{IDEMPOTENCY_KEY} must be 1 to {KEY_CHARS_MAX} characters");
    valid.map(Some).ok_or_else(|| bad_header_key(why()))
}

fn bad_header_key(msg: String) -> Refusal {
    bad_key(vec![Step::Name("header"), Step::Name(IDEMPOTENCY_KEY)], msg)
}

fn bad_key(loc: Vec<Step>, msg: String) -> Refusal {
    Refusal::invalid(loc, msg, "idempotency_key")
}

/// The answer to events that are stored. Where all were stored before, it is the answer of the first time, and says so.
async fn created(store: &Store, stored: &Stored, many: bool, key_of_all: bool) -> response::Result {
    let outcomes = match &stored.outcomes {
        Outcomes::Each(outcomes, _) => outcomes,
        Outcomes::From(..) | Outcomes::Queued => {
            let (batch, first) = (&stored.batch, stored.batch.first());
            let body = match many {
                true => summary((0..batch.len()).map(|index| first.plus(index))).into(),
                false => batch.json(0),
            };
            return Ok(response::new(StatusCode::CREATED, JSON, body));
        }
    };
    let mut seqs = Vec::with_capacity(outcomes.len());
    for outcome in outcomes.iter() {
        match outcome {
            Outcome::Stored(seq) | Outcome::Replayed(seq) => seqs.push(*seq),
            Outcome::Refused(_) if key_of_all => return Err(bad_header_key(key_reused(None))),
            Outcome::Refused(index) => {
                let index = many.then_some(*index);
                let loc = [Some(Step::Name("body")), index.map(Step::Index), Some(Step::Name("idempotency_key"))];
                return Err(bad_key(loc.into_iter().flatten().collect(), key_reused(index)));
            }
            Outcome::Damaged => return Err(Refusal::Failed(Failure::Damaged)),
        }
    }
    let is_replay = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Replayed(_)));
    let body = match many {
        true => summary(seqs.iter().copied()),
        false => {
            let id = seqs[0];
            // It may have been deleted since. Then the client tries again, and it is stored anew.
            let event = reading(store, move |reader| reader.event_at(id, &Filter::default())).await?;
            event.ok_or(Refusal::Failed(Failure::Unavailable))?
        }
    };
    let mut response = response::new(if is_replay { StatusCode::OK } else { StatusCode::CREATED }, JSON, body);
    if is_replay {
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

impl Form {
    /// # Errors
    /// `UnsupportedMediaType`.
    pub fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let is_binary = headers.contains_key(&SPEC_VERSION);
        match essence(content_type) {
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

    /// The events of a body, and whether it is of a form that can hold many.
    ///
    /// # Errors
    /// `BadRequest` when it is not UTF-8, `Invalid` when it has no valid events.
    pub fn events(self, headers: &HeaderMap, body: &[u8], parser: &mut Parser) -> Result<(Batch, bool), Refusal> {
        let text = str::from_utf8(body).map_err(|_| Refusal::BadRequest("The body is not valid UTF-8".to_owned()))?;
        let (mut batch, types) = (Batch::default(), parser.types().clone());
        let many = match self {
            Self::Json => {
                let parsed = parser.parse(text, |event| batch.push(&event, &types));
                parsed.result.map_err(|rejections| Refusal::of(&rejections))?.is_some()
            }
            Self::CloudEvent | Self::CloudEvents | Self::BinaryCloudEvent => {
                let (header_value, mut problems) = (of_header(headers)?, Vec::new());
                // Returns whether more problems can be listed.
                let mut add = |cloud_event| {
                    let parse = |event: &str| parser.parse(event, |event| batch.push(&event, &types)).result;
                    problems.extend(problems_of(cloud_event, parse));
                    problems.len() < REJECTIONS_MAX
                };
                match self {
                    Self::CloudEvents => {
                        let items = cloud_event::items(text);
                        let items = items.map_err(|refused| Refusal::Invalid(vec![ValidationError::from(&refused)]))?;
                        for (index, item) in items.into_iter().enumerate() {
                            if !add(cloud_event::of_json(item.get(), Some(index))) {
                                break;
                            }
                        }
                    }
                    Self::BinaryCloudEvent => _ = add(cloud_event::of_headers(header_value, text)),
                    _ => _ = add(cloud_event::of_json(text, None)),
                }
                problems.truncate(REJECTIONS_MAX);
                if !problems.is_empty() {
                    return Err(Refusal::Invalid(problems));
                }
                self == Self::CloudEvents
            }
            Self::Lines => {
                let mut rejections = Vec::new();
                for (index, line) in text.lines().filter(|line| !line.trim_ascii().is_empty()).enumerate() {
                    let parsed = parser.parse(line, |event| batch.push(&event, &types));
                    let of_line = match parsed.result {
                        Ok(None) => continue,
                        Err(of_line) if of_line.iter().all(|rejection| rejection.index.is_none()) => of_line,
                        // Each line is one event; an array of them is none.
                        Ok(Some(_)) | Err(_) => vec![Rejection { index: None, fault: Fault::NotAnObject }],
                    };
                    let here = |rejection| Rejection { index: Some(index), ..rejection };
                    rejections.extend(of_line.into_iter().map(here));
                    if rejections.len() >= REJECTIONS_MAX {
                        break;
                    }
                }
                rejections.truncate(REJECTIONS_MAX);
                if !rejections.is_empty() {
                    return Err(Refusal::of(&rejections));
                }
                true
            }
        };
        if batch.is_empty() {
            return Err(Refusal::invalid(vec![Step::Name("body")], "The body holds no event", "too_short"));
        }
        Ok((batch, many))
    }
}

/// All that is wrong with a CloudEvent: what breaks the rules of CloudEvents, then what breaks ours.
fn problems_of(
    Translation { index, event, rejections }: Translation,
    parse: impl FnOnce(&str) -> Result<Option<usize>, Vec<Rejection>>,
) -> Vec<ValidationError> {
    let of_event = event.and_then(|event| parse(&event).err()).unwrap_or_default();
    // A field is missing from the event only where its attribute is missing or wrong, and that is a problem already.
    let ours = of_event.into_iter().filter(|rejection| !matches!(rejection.fault, Fault::Missing(_)));
    let ours = ours.map(|rejection| ValidationError::from(&Rejection { index, ..rejection }));
    rejections.iter().map(ValidationError::from).chain(ours).collect()
}

/// Looks up the headers of a CloudEvent by name.
fn of_header<'h>(headers: &'h HeaderMap) -> Result<impl Fn(&str) -> Option<&'h str>, Refusal> {
    let is_read = |name: &HeaderName| name.as_str().starts_with("ce-") || name == header::CONTENT_TYPE;
    if headers.iter().any(|(name, value)| is_read(name) && str::from_utf8(value.as_bytes()).is_err()) {
        return Err(Refusal::BadRequest("A header is not valid UTF-8".to_owned()));
    }
    Ok(move |name: &str| headers.get(name).and_then(|value| str::from_utf8(value.as_bytes()).ok()))
}

/// The answer to many events, of which there is at least one.
fn summary(seqs: impl ExactSizeIterator<Item = Seq> + DoubleEndedIterator + Clone) -> Vec<u8> {
    let count = seqs.len();
    let [first, last] = [seqs.clone().next(), seqs.clone().next_back()].map(|seq| seq.expect("an event").id());
    let mut json = format!(r#"{{"count":{count},"first_id":"{first}","last_id":"{last}","ids":["#).into_bytes();
    write_ids(seqs, &mut json);
    json.extend_from_slice(b"]}");
    json
}
