//! `/subscriptions`: what is kept under names, and why an event went to whom.

use std::ops::ControlFlow;
use std::sync::Arc;

use hyper::http::Uri;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::query::Parameters;
use super::reading;
use crate::event::{Columns, Filter, Seq};
use crate::pipeline::Pipeline;
use crate::store::Store;
use crate::subscriptions::Listed;
use crate::wire::Refusal;
use crate::wire::subscription::subscriber_id;

/// `GET /subscriptions`: the durable ones, with how far behind each is.
pub(super) async fn list(pipeline: &Pipeline) -> Answer {
    let subscriptions = pipeline.subscriptions.list();
    let list = reading(&pipeline.store, move |store| {
        let looks_max = (LOOKS_PER_LIST / subscriptions.len().max(1) as u64).max(LOOKS_MIN);
        subscriptions.iter().map(|listed| one(store, listed, looks_max)).collect::<rusqlite::Result<Vec<_>>>()
    });
    Ok(answer::json(Value::from(list.await?).to_string()))
}

/// Events looked at for all lags of a list: some 0.8 s. For one lag at least 100, enough for a rough estimate; how many
/// one read takes at most, the store knows.
const LOOKS_PER_LIST: u64 = 1_000_000;
const LOOKS_MIN: u64 = 100;

fn one(store: &Store, listed: &Listed, looks_max: u64) -> rusqlite::Result<Value> {
    let lag = store.lag(&listed.filter, listed.position, looks_max)?;
    let position = (listed.position > Seq::ZERO).then(|| listed.position.id().to_string());
    Ok(json!({
        "name": listed.name,
        "filters": listed.filters,
        "position": position,
        "lag": lag.events,
        "lag_is_estimate": lag.is_estimate,
        "connected": listed.connected,
        "unconfirmed": listed.unconfirmed,
        "last_seen": listed.last_seen.to_string(),
    }))
}

/// `DELETE /subscriptions/{name}`.
pub(super) async fn delete(pipeline: &Pipeline, name: &str) -> Answer {
    let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
    match pipeline.subscriptions.delete(&name).await? {
        true => Ok(answer::no_content()),
        false => Err(Refusal::NotFound("Subscription not found")),
    }
}

/// `GET /subscriptions/explain?event_id=`: who among those who subscribe now gets the event, and why the others
/// do not.
pub(super) async fn explain(pipeline: &Arc<Pipeline>, uri: &Uri) -> Answer {
    let parameters = Parameters::of(uri);
    let id = parameters.get("event_id").filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| Refusal::parameter("event_id", "'event_id' is required", "missing"))?.to_owned();
    let (live, durable) = (pipeline.subscriber_list(), pipeline.subscriptions.list());
    let explained = reading(&pipeline.store, move |store| {
        let Some(seq) = store.position(&id)?.filter(|seq| *seq <= store.committed()) else { return Ok(None) };
        let mut explained = None;
        store.scan_these(&[seq], |event| {
            let event = event.columns();
            let subscribers = live.iter().map(|(id, subscriber)| {
                let whose = json!({ "subscriber_id": subscriber_id(*id), "name": subscriber.name });
                verdict(whose, &subscriber.filter, &event)
            });
            let durable = durable.iter().map(|listed| verdict(json!({ "name": listed.name }), &listed.filter, &event));
            let (subscribers, durable) = (subscribers.collect::<Vec<_>>(), durable.collect::<Vec<_>>());
            explained = Some(json!({ "event_id": id, "subscribers": subscribers, "durable": durable }));
            ControlFlow::Break(())
        })?;
        Ok(explained)
    });
    let explained = explained.await?.ok_or(Refusal::NotFound("Event not found"))?;
    Ok(answer::json(explained.to_string()))
}

fn verdict(mut whose: Value, filter: &Filter, event: &Columns<'_>) -> Value {
    let mismatch = filter.mismatch(event);
    whose["matched"] = mismatch.is_none().into();
    if let Some(mismatch) = mismatch {
        whose["why"] = mismatch.to_string().into();
    }
    whose
}
