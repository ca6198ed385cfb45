//! `/stats`, `/readiness`, `/health` and `/event-types`: what the server says of itself.

use std::time::Duration;

use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::reading::reading;
use super::request::Request;
use super::response::{self, Body, PROBLEM};
use crate::auth::{Holder, Principal, Scope};
use crate::event::{Field, Timestamp};
use crate::pipeline::Pipeline;
use crate::record::{AckLevel, Failure};
use crate::store::{Reader, SyncOf, Syncs};
use crate::wire::refusal::problem;

/// How long the probe of a readiness check may take. Load balancers commonly give up on a check after one to five seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the server knows of itself without reading the record. `/stats` and `/readiness` show the same.
struct Status {
    router: Value,
    integrity: Value,
}

impl Status {
    fn of(pipeline: &Pipeline) -> Self {
        let Pipeline { store, config, .. } = pipeline;
        let (counts, log) = (store.counts(), store.wal());
        let at = |level: AckLevel| (level.name().to_owned(), counts.at(level).into());
        let acknowledged: Map<String, Value> = AckLevel::ALL.into_iter().map(at).collect();
        let router = json!({
            "active_subscribers": pipeline.subscribers(),
            "queue_size": store.queue_len(),
            "max_queue_size": config.max_queue_size,
            "wal_pages": log.pages_to_move(),
            "wal_bytes": log.bytes(),
            "wal_held_since": log.held_since().map(|since| since.to_string()),
            "acknowledged": acknowledged,
            "queued_and_lost": counts.queued_and_lost(),
            "sync_seconds": sync_seconds(store.syncs()),
            "forwarded_ignored": pipeline.access.proxies.ignored(),
        });
        let integrity = store.integrity();
        let (state, events, damage) = (integrity.state().name(), integrity.events, &integrity.damage);
        Self { router, integrity: json!({ "state": state, "checked_events": events, "damage": damage }) }
    }
}

/// How long syncs took, as histograms with cumulative buckets.
fn sync_seconds(syncs: &Syncs) -> Value {
    let histograms = SyncOf::ALL.map(|sync| {
        let histogram = syncs.of(sync);
        let counts = histogram.counts();
        let count = counts.all();
        let buckets: Map<String, Value> =
            counts.cumulative().map(|(bound, count)| (bound.to_string(), count.into())).collect();
        let (sum, longest) = (histogram.sum().as_secs_f64(), histogram.longest().as_secs_f64());
        (sync.name().to_owned(), json!({ "count": count, "sum": sum, "longest": longest, "buckets": buckets }))
    });
    Value::Object(histograms.into_iter().collect())
}

/// How long each stage took in the last minute, in seconds.
fn last_minute(pipeline: &Pipeline) -> Value {
    let syncs = pipeline.store.syncs();
    let of_commits = syncs.of(SyncOf::Log).last_minute().and(&syncs.of(SyncOf::LogBesideCheckpoint).last_minute());
    let stages = pipeline.stages().map(|(name, histogram)| (name, histogram.last_minute()));
    let shown = stages.into_iter().chain([("sync", of_commits)]).map(|(name, counts)| {
        let (p50, p99) = (counts.quantile(0.5), counts.quantile(0.99));
        (name.to_owned(), json!({ "count": counts.all(), "p50": p50, "p99": p99 }))
    });
    Value::Object(shown.collect())
}

/// `GET /whoami`: what the key of a client allows it.
pub(super) fn who_am_i(request: &Request<'_>) -> Response<Body> {
    let principal = &request.caller.principal;
    let grant = match principal {
        Principal::Granted(grant) => Some(grant),
        Principal::Anonymous | Principal::Everything => None,
    };
    let only_for = Field::ALL.into_iter().filter_map(|field| {
        let values = principal.pins()?.wanted(field)?;
        Some((field.name().to_owned(), json!(values)))
    });
    let (key, subject) = match grant.map(|grant| &grant.holder) {
        None => (Value::Null, None),
        Some(Holder::Key { id, name }) => (json!({ "id": &**id, "name": &**name }), None),
        Some(Holder::Subject { subject, .. }) => (Value::Null, Some(&**subject)),
    };
    response::json(
        json!({
            "authentication": request.pipeline.access.keys.are_required(),
            "key": key,
            "subject": subject,
            "scopes": grant.map_or(&Scope::ALL[..], |grant| &grant.scopes),
            "only_for": only_for.collect::<Map<_, _>>(),
            "space": principal.space(),
            "expires": grant.and_then(|grant| grant.expires()).map(|expires| expires.to_string()),
        })
        .to_string(),
    )
}

/// `GET /stats`.
pub(super) async fn stats(request: &Request<'_>) -> response::Result {
    request.caller.principal.sees_all()?;
    let pipeline = request.pipeline;
    let store = pipeline.store.clone();
    // The disk may take a while to say what is free.
    let read = move |reader: &Reader| Ok((reader.stats(Timestamp::now())?, store.disk_free_bytes()));
    let (stats, disk_free_bytes) = reading(&pipeline.store, read).await?;
    let by_type = stats.by_type.iter().map(
        |of_type| json!({ "event_type": of_type.event_type, "count": of_type.count, "last_seen": of_type.last_seen }),
    );
    let Status { router, integrity } = Status::of(pipeline);
    let stats = json!({
        "total_events": stats.total_events,
        "events_last_hour": stats.events_last_hour,
        "by_type": by_type.collect::<Vec<_>>(),
        "epoch": pipeline.store.epoch().to_string(),
        "last_minute": last_minute(pipeline),
        "subscribers_behind": pipeline.standings().behind,
        "disk_free_bytes": disk_free_bytes,
        "integrity": integrity,
        "router": router,
    });
    Ok(response::json(stats.to_string()))
}

/// `GET /readiness`: whether an event would be accepted now. A refusal is a problem that also has the members of the other
/// answer.
pub(super) async fn readiness(pipeline: &Pipeline) -> response::Result {
    let (database, why_not) = match pipeline.shutdown().has_begun() {
        true => ("connected", Some("The server is shutting down".to_owned())),
        false => match timeout(PROBE_TIMEOUT, pipeline.store.probe()).await {
            Ok(Ok(())) => ("connected", None),
            Ok(Err(failure @ Failure::QueueFull)) => ("connected", Some(failure.to_string())),
            Ok(Err(failure)) => ("unavailable", Some(failure.to_string())),
            Err(_) => ("unavailable", Some("The database did not answer in time".to_owned())),
        },
    };
    let Status { router, integrity } = Status::of(pipeline);
    let members = json!({ "ready": why_not.is_none(), "database": database, "integrity": integrity, "router": router });
    let Some(detail) = why_not else { return Ok(response::json(members.to_string())) };
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let mut body = problem("not-ready", status.as_u16(), detail.into());
    body.extend(members.as_object().cloned().unwrap_or_default());
    let mut response = response::new(status, PROBLEM, Value::Object(body).to_string());
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    Ok(response)
}

/// `GET /health`: touches nothing, so it answers as long as a network thread runs.
pub(super) fn health() -> response::Result {
    const HEALTH: &str =
        concat!(r#"{"status":"ok","service":"event-pipeline","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#);
    Ok(response::json(HEALTH))
}

/// `GET /event-types`: the types that events may have, with their descriptions.
pub(super) fn event_types(pipeline: &Pipeline) -> response::Result {
    let types = pipeline.types.iter().map(|(name, description)| (name.to_owned(), description.into()));
    Ok(response::json(Value::Object(types.collect()).to_string()))
}
