//! The byte stream under HTTP and WebSocket, and the listener it comes from. Nothing above this module knows what a
//! connection is made of.
//!
//! It is plain TCP today. TLS comes in as a second variant of the stream in [`Transport`] and of each of its halves: an
//! enum, so that no read and no write goes through a table of functions. [`Transport::peek`] is for plain connections
//! only, because a TLS handshake agrees on the protocol (ALPN).

mod halves;
mod listener;
mod patience;
mod stream;

pub use halves::{ReadHalf, WriteHalf};
pub use listener::{Accepted, Listener};
pub use stream::{Ahead, Transport};
