//! `/events`: list, export, look up, delete.

use std::sync::atomic::Ordering::Relaxed;

use hyper::StatusCode;
use hyper::header::{self, HeaderValue};

use super::audited::audited;
use super::export::{Export, first_lines};
use super::half_close::HalfCloseGuard;
use super::listing::{Listing, add_gap};
use super::media::{Shape, accepts};
use super::page::page;
use super::parameters::{CONFLICT, Parameters};
use super::reading::{reading, reading_some};
use super::request::Request;
use super::response::{self, NDJSON, streamed};
use super::route::{PAYLOAD_PREFIX, is_known};
use crate::event::{Filter, Timestamp};
use crate::store::{Order, Reader};
use crate::wire::Refusal;

/// `GET /events`: a page, or all events as lines.
pub(super) async fn list(request: &Request<'_>) -> response::Result {
    let (parameters, guard) = (request.parameters(), request.guard_half_close());
    let mut response = match accepts(request.headers(), "application/x-ndjson") {
        true => export(request, &parameters, guard).await?,
        false => page(request, &parameters, &guard).await?,
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

async fn export(request: &Request<'_>, parameters: &Parameters<'_>, guard: HalfCloseGuard) -> response::Result {
    let listing = Listing::of(parameters, &request.caller.principal, usize::MAX)?;
    let (store, events_max) = (&request.pipeline.store, listing.limit.unwrap_or(usize::MAX));
    let begin = move |reader: &Reader| match listing.query(reader, Order::OldestFirst)? {
        Ok((query, gap)) => Ok(Ok((first_lines(reader, query, events_max)?, gap))),
        Err(refusal) => Ok(Err(refusal)),
    };
    let (first, gap) = reading_some(store, begin).await??;
    let mut response = streamed(NDJSON, Export::new(store.clone(), first, request.caller.principal.clone(), guard));
    request.pipeline.hub.losses.gaps.fetch_add(gap.is_some().into(), Relaxed);
    add_gap(response.headers_mut(), gap);
    Ok(response)
}

/// `GET /events/{id}`.
pub(super) async fn one(request: &Request<'_>) -> response::Result {
    let id = request.variable.clone();
    let filter = request.caller.principal.narrow(Filter::default())?;
    let event = reading(&request.pipeline.store, move |reader| reader.event(&id, &filter)).await?;
    let event = event.ok_or(Refusal::NotFound("Event not found"))?;
    let (shape, mut shown) = (Shape::accepted(request.headers()), Vec::new());
    shape.write(&event, &mut shown);
    let mut response = response::new(StatusCode::OK, shape.media_type(false), shown);
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// `DELETE /events`. It refuses a parameter that is unknown, empty or given twice, because the client may have meant to
/// spare events by it.
pub(super) async fn delete(request: &Request<'_>) -> response::Result {
    let refused = |why: String| Err(Refusal::BadRequest(why));
    let parameters = request.parameters();
    // The value of a payload key may be empty, but has to be there.
    let mut pairs = request.parts.uri.query().unwrap_or_default().split('&');
    if let Some(bare) = pairs.find(|pair| !pair.is_empty() && !pair.contains('=')) {
        return refused(format!("'{bare}' has no value: say which events are meant"));
    }
    for (name, value) in parameters.iter() {
        if !is_known(request.route.parameters, name) {
            let known = "only 'before' and what selects events can be given";
            return refused(format!("Unknown parameter '{name}': {known}"));
        }
        if value.is_empty() && !name.starts_with(PAYLOAD_PREFIX) {
            return refused(format!("'{name}' is empty: say which events are meant"));
        }
    }
    if let Some(name) = parameters.repeated() {
        return refused(format!("'{name}' is there twice: say which events are meant"));
    }
    let before = parameters.time("before", Timestamp::parse_ceil)?;
    let asked = parameters.asked().map_err(|refusal| match refusal {
        Refusal::Invalid(problems) if problems.iter().any(|problem| problem.kind == CONFLICT) => {
            let what: Vec<_> = problems.into_iter().map(|problem| problem.msg).collect();
            Refusal::BadRequest(format!("{}: say which events are meant", what.join(", ")))
        }
        refusal => refusal,
    })?;
    if let Some(key) = Filter::empty_condition(&asked) {
        return refused(format!("'{key}' is empty: say which events are meant"));
    }
    let filter = parameters.filter()?;
    if filter.is_any() && parameters.iter().any(|(name, _)| name != "before") {
        return refused("'filter' lets every event through: say which events are meant".to_owned());
    }
    let filter = request.caller.principal.narrow(filter)?;
    let action = request.pipeline.access.audit.deletion(&request.caller, &asked, before);
    let store = request.pipeline.store.clone();
    let deleted =
        audited(request.pipeline, action, async move { store.delete(before, filter).await }, |deleted| *deleted)
            .await?;
    Ok(response::json(format!(r#"{{"deleted":{deleted}}}"#)))
}
