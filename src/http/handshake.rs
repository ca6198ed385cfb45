//! Handshakes of WebSockets.

use http_body_util::Full;
use hyper::upgrade::OnUpgrade;

use super::request::Request;
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
    if !access.allows_origin(&parts.headers) {
        return Err(Refusal::ForbiddenOrigin);
    }
    let ack = request.parameters().get("ack").map(Ack::parse).transpose().map_err(Refusal::BadRequest)?;
    let (response, _) = fastwebsockets::upgrade::upgrade(asked).map_err(|error| match error {
        fastwebsockets::WebSocketError::InvalidSecWebsocketVersion => Refusal::UpgradeRequired,
        _ => Refusal::BadRequest("A WebSocket handshake has a Sec-WebSocket-Key".to_owned()),
    })?;
    let purpose = match access.slots.take(request.caller.ip) {
        None => Purpose::Refuse(Ending::TooManyConnections),
        Some(slot) if request.route.endpoint == Endpoint::PublishSocket => {
            Purpose::Publish(ack.unwrap_or_default(), request.caller, slot)
        }
        Some(slot) => Purpose::Subscribe(request.caller, slot),
    };
    let mut response = response.map(|_| Body::Left(Full::default()));
    response::add_common(response.headers_mut());
    Ok((response, Handshake { upgrade, purpose }))
}
