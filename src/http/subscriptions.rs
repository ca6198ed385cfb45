//! `/subscriptions`: the durable subscriptions, and which subscribers get an event.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::audited::audited;
use super::large_page::within_memory;
use super::reading::reading;
use super::request::Request;
use super::response;
use crate::auth::Principal;
use crate::event::{Columns, Filter, Seq};
use crate::store::{self, Reader};
use crate::subscriptions::{Name, Summary};
use crate::wire::Refusal;
use crate::wire::note::subscriber_id;

/// `GET /subscriptions`: the durable ones, with how far behind each is.
pub(super) async fn list(request: &Request<'_>) -> response::Result {
    let _guard = request.guard_half_close();
    let principal = request.caller.principal.clone();
    let mut subscriptions = request.pipeline.subscriptions.all();
    subscriptions.retain(|subscription| is_shown(&principal, subscription.name().space));
    large(request, move |reader| {
        let looks_max = (LOOKS_PER_LIST / subscriptions.len().max(1) as u64).max(LOOKS_MIN);
        let mut list = String::from("[");
        for (n, subscription) in subscriptions.iter().enumerate() {
            let one = one(reader, &subscription.summary(), &principal, looks_max)?;
            write!(list, "{}{one}", if n > 0 { "," } else { "" }).expect("a text takes all");
        }
        list.push(']');
        Ok(Ok(list))
    })
    .await
}

/// Whether a client is shown the subscriptions of a space.
fn is_shown(principal: &Principal, space: &str) -> bool {
    principal.sees_every_space() || principal.space() == space
}

/// An answer that can have a filter of each subscriber. It is made on the thread that reads the record, and has a permit for
/// searches (`Pipeline::searches`) until it has its memory, so that few such answers wait for memory at one time.
async fn large(
    request: &Request<'_>,
    read: impl FnOnce(&Reader) -> store::Result<Result<String, Refusal>> + Send + 'static,
) -> response::Result {
    let _permit = request.pipeline.searches.acquire().await.expect("never closed");
    let json = reading(&request.pipeline.store, read).await??;
    within_memory(response::json(json), None, request.pipeline, request.deadlines).await
}

/// Events that are looked at for all lags of a list, which takes some 0.8 s. For one lag it is at least 100, enough for a
/// rough estimate; the store bounds how many one read looks at.
const LOOKS_PER_LIST: u64 = 1_000_000;
const LOOKS_MIN: u64 = 100;

fn one(reader: &Reader, listed: &Summary, principal: &Principal, looks_max: u64) -> store::Result<Value> {
    let seen = principal.pins().map_or(listed.filter.clone(), |pins| listed.filter.within(pins));
    let lag = reader.lag(&seen, listed.position, looks_max)?;
    let position = (listed.position > Seq::ZERO).then(|| listed.position.id().to_string());
    let mut one = json!({
        "name": listed.name,
        "filters": listed.filters,
        "position": position,
        "lag": lag.events,
        "lag_is_estimate": lag.is_estimate,
        "connected": listed.connected,
        "unconfirmed": listed.unconfirmed,
        "last_seen": listed.last_seen.to_string(),
    });
    if !listed.space.is_empty() {
        one["space"] = listed.space.as_str().into();
    }
    Ok(one)
}

/// `DELETE /subscriptions/{name}`: one of the client's own space, or of another one that the client may see.
pub(super) async fn delete(request: &Request<'_>) -> response::Result {
    let (principal, parameters) = (&request.caller.principal, request.parameters());
    let space = parameters.get("space").unwrap_or(principal.space());
    let name = Name { space, name: &request.variable };
    // No name has a slash; one here would lead into another space.
    let is_name = !request.variable.contains('/');
    let not_found = Err(Refusal::NotFound("Subscription not found"));
    if !is_name || !is_shown(principal, space) {
        return not_found;
    }
    let action = request.pipeline.access.audit.subscription_deletion(&request.caller, space, &request.variable);
    let (pipeline, stored) = (request.pipeline.clone(), name.stored());
    let delete = async move { pipeline.subscriptions.delete(&stored).await };
    match audited(request.pipeline, action, delete, |was_there| u64::from(*was_there)).await? {
        true => Ok(response::empty(StatusCode::NO_CONTENT)),
        false => not_found,
    }
}

/// `GET /subscriptions/explain?event_id=`: which of the present subscribers get the event, and why the others do not.
pub(super) async fn explain(request: &Request<'_>) -> response::Result {
    let (pipeline, parameters) = (request.pipeline, request.parameters());
    let id = parameters.get("event_id").filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| Refusal::parameter("event_id", "'event_id' is required", "missing"))?.to_owned();
    let principal = request.caller.principal.clone();
    let (mut live, mut durable) = (pipeline.subscriber_list(), pipeline.subscriptions.all());
    live.retain(|(_, subscriber)| is_shown(&principal, &subscriber.space));
    durable.retain(|durable| is_shown(&principal, durable.name().space));
    large(request, move |reader| {
        let unknown = Refusal::NotFound("Event not found");
        let Some(seq) = reader.seq_of(&id)?.filter(|seq| *seq <= reader.committed()) else {
            return Ok(Err(unknown));
        };
        let mut explained = None;
        reader.scan_these(&[seq], |event| {
            let event = event.columns();
            if !principal.sees(&event) {
                return ControlFlow::Break(());
            }
            let subscribers = live.iter().map(|(id, subscriber)| {
                let whose = json!({ "subscriber_id": subscriber_id(*id), "name": subscriber.name });
                verdict(whose, &subscriber.filter, &event)
            });
            let durable = durable
                .iter()
                .map(|durable| verdict(json!({ "name": durable.name().name }), &durable.filter(), &event));
            let (subscribers, durable) = (subscribers.collect::<Vec<_>>(), durable.collect::<Vec<_>>());
            let all = json!({ "event_id": id, "subscribers": subscribers, "durable": durable });
            explained = Some(all.to_string());
            ControlFlow::Break(())
        })?;
        Ok(explained.ok_or(unknown))
    })
    .await
}

fn verdict(mut whose: Value, filter: &Filter, event: &Columns<'_>) -> Value {
    let mismatch = filter.mismatch(event);
    whose["matched"] = mismatch.is_none().into();
    if let Some(mismatch) = mismatch {
        whose["why"] = mismatch.to_string().into();
    }
    whose
}
