//! `/subscriptions`: what is kept under names, and why an event went to whom.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use hyper::http::Uri;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::large_page::{Deadlines, within_memory};
use super::query::Parameters;
use super::reading;
use crate::event::{Columns, Filter, Seq};
use crate::pipeline::Pipeline;
use crate::store::{self, Reader};
use crate::subscriptions::Listed;
use crate::wire::Refusal;
use crate::wire::subscription::subscriber_id;

/// `GET /subscriptions`: the durable ones, with how far behind each is.
pub(super) async fn list(pipeline: &Pipeline, deadlines: &Deadlines) -> Answer {
    let subscriptions = pipeline.subscriptions.all();
    large(pipeline, deadlines, move |reader| {
        let looks_max = (LOOKS_PER_LIST / subscriptions.len().max(1) as u64).max(LOOKS_MIN);
        let mut list = String::from("[");
        for (n, subscription) in subscriptions.iter().enumerate() {
            let one = one(reader, &subscription.listed(), looks_max)?;
            write!(list, "{}{one}", if n > 0 { "," } else { "" }).expect("a text takes all");
        }
        list.push(']');
        Ok(Ok(list))
    })
    .await
}

/// An answer that can have a filter of each subscriber. It is made where the record is read, and has a turn of the searches
/// ([`Pipeline::searches`]) until it has its memory: only so many wait for memory at one time.
async fn large(
    pipeline: &Pipeline,
    deadlines: &Deadlines,
    read: impl FnOnce(&Reader) -> store::Result<Result<String, Refusal>> + Send + 'static,
) -> Answer {
    let _turn = pipeline.searches.acquire().await.expect("never closed");
    let json = reading(&pipeline.store, read).await??;
    within_memory(answer::json(json), None, pipeline, deadlines).await
}

/// Events looked at for all lags of a list: some 0.8 s. For one lag at least 100, enough for a rough estimate; how many
/// one read takes at most, the store knows.
const LOOKS_PER_LIST: u64 = 1_000_000;
const LOOKS_MIN: u64 = 100;

fn one(reader: &Reader, listed: &Listed, looks_max: u64) -> store::Result<Value> {
    let lag = reader.lag(&listed.filter, listed.position, looks_max)?;
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
pub(super) async fn explain(pipeline: &Pipeline, uri: &Uri, deadlines: &Deadlines) -> Answer {
    let parameters = Parameters::of(uri);
    let id = parameters.get("event_id").filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| Refusal::parameter("event_id", "'event_id' is required", "missing"))?.to_owned();
    let (live, durable) = (pipeline.subscriber_list(), pipeline.subscriptions.all());
    large(pipeline, deadlines, move |reader| {
        let unknown = Refusal::NotFound("Event not found");
        let Some(seq) = reader.seq_of(&id)?.filter(|seq| *seq <= reader.committed()) else {
            return Ok(Err(unknown));
        };
        let mut explained = None;
        reader.scan_these(&[seq], |event| {
            let event = event.columns();
            let subscribers = live.iter().map(|(id, subscriber)| {
                let whose = json!({ "subscriber_id": subscriber_id(*id), "name": subscriber.name });
                verdict(whose, &subscriber.filter, &event)
            });
            let durable =
                durable.iter().map(|durable| verdict(json!({ "name": durable.name() }), &durable.filter(), &event));
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
