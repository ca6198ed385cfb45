//! Handshakes of WebSockets.

use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;

use super::request::{Request, host};
use super::response::{self, Body};
use super::route::Endpoint;
use crate::auth::{Caller, Slot};
use crate::wire::Refusal;
use crate::wire::answer::Ack;
use crate::wire::refusal::Ending;

/// A handshake that was accepted: the connection goes to a WebSocket once hyper has written the 101.
pub(super) struct Handshake {
    pub(super) upgrade: OnUpgrade,
    pub(super) purpose: Purpose,
}

/// What a WebSocket is for.
pub(super) enum Purpose {
    Publish(Ack, Caller, Slot),
    Subscribe(Caller, Slot),
    /// It is closed at once: only a Close frame can tell a browser why.
    Refuse(Ending),
}

/// The answer to a handshake, and what follows it.
pub(super) fn accept(request: &Request<'_>) -> Result<(hyper::Response<Body>, Handshake), Refusal> {
    let (access, parts) = (&request.pipeline.access, request.parts);
    let asked = hyper::Request::from_parts(parts.clone(), ());
    let upgrade = parts.extensions.get::<OnUpgrade>().cloned();
    let Some(upgrade) = upgrade.filter(|_| fastwebsockets::upgrade::is_upgrade_request(&asked)) else {
        return Err(Refusal::UpgradeRequired);
    };
    let origin = parts.headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
    if !access.pages.allows(origin, host(parts)?) {
        return Err(Refusal::ForbiddenOrigin);
    }
    let ack = request.parameters().get("ack").map(Ack::parse).transpose().map_err(Refusal::BadRequest)?;
    let (response, _) = fastwebsockets::upgrade::upgrade(asked).map_err(|error| match error {
        fastwebsockets::WebSocketError::InvalidSecWebsocketVersion => Refusal::UpgradeRequired,
        _ => Refusal::BadRequest("A WebSocket handshake has a Sec-WebSocket-Key".to_owned()),
    })?;
    let purpose = match access.slots.take(&request.caller.counted) {
        None => Purpose::Refuse(Ending::TooManyConnections),
        Some(slot) if request.route.endpoint == Endpoint::PublishSocket => {
            Purpose::Publish(ack.unwrap_or_default(), request.caller.clone(), slot)
        }
        Some(slot) => Purpose::Subscribe(request.caller.clone(), slot),
    };
    let mut response = response.map(|_| Body::Left(Full::default()));
    response::add_common(response.headers_mut());
    if offers_protocol(&parts.headers) {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    Ok((response, Handshake { upgrade, purpose }))
}

/// The subprotocol of both WebSockets. A browser cannot set a header for the key, so it offers the key as a subprotocol
/// beside this one, and accepts the connection only if the server chooses one of those that it offered.
const PROTOCOL: &str = "event-pipeline";

fn offers_protocol(headers: &HeaderMap) -> bool {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut protocols = offered.flat_map(|list| list.as_bytes().split(|b| *b == b','));
    protocols.any(|protocol| protocol.trim_ascii() == PROTOCOL.as_bytes())
}
