//! The byte stream under HTTP and WebSocket, and the listener it comes from. Nothing above this module knows what a
//! connection is made of.
//!
//! It is plain TCP or TLS: a variant of the stream in [`Transport`] and of each of its halves. Over TLS what is written together
//! fills records of up to 16 KiB, which leave in one write. [`Transport::peek`] is for plain connections only: with TLS
//! client and server agree on the protocol (ALPN).

mod halves;
mod listener;
mod patience;
mod socket;
mod stream;

pub use halves::{ReadHalf, WriteHalf};
pub use listener::{Accepted, Listener};
pub use stream::{Ahead, HandshakeError, Transport};
