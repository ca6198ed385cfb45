//! The HTTP interface: one route table under two prefixes, over HTTP/1.1 and HTTP/2, and the handshakes of the WebSockets,
//! over HTTP/1.1 only.
//!
//! hyper itself answers requests that are no HTTP: with a bare 400, 414 or 431, without our headers. It closes a connection
//! whose next request does not come complete within the header timeout; this also ends idle connections. A request with
//! both `Content-Length` and `Transfer-Encoding` is read by the latter alone and is the last of its connection (RFC 9112,
//! 6.3).
//!
//! From the top: [`serve`] → `h1`, `h2` → `connection` (checks and dispatch) → an endpoint (`events`, `publish`,
//! `event_stream`, `subscriptions`, `status`, `handshake`) → `request`, `response` and what they are made of.

mod body;
mod connection;
mod event_stream;
mod events;
mod export;
mod h1;
mod h2;
mod half_close;
mod handshake;
mod io;
mod large_page;
mod listing;
mod media;
mod page;
mod parameters;
mod publish;
mod reading;
mod request;
mod response;
mod route;
mod serve;
mod status;
mod subscriptions;

pub use connection::no_slots_left;
pub use parameters::Parameters;
pub use publish::Form;
pub use route::{Endpoint, Guard, PREFIX, ROUTES, Route};
pub use serve::serve;
