//! An HTTP/2 client: frames, and requests without compression.

use super::{Server, Wire};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames (RFC 9113, 6).
pub const HEADERS: u8 = 1;
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &(payload.len() as u32).to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads a frame: kind, flags, payload. `None` when the peer has closed.
pub fn read_frame(wire: &mut Wire) -> Option<(u8, u8, Vec<u8>)> {
    let head = wire.take(9, "a frame")?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    Some((head[3], head[4], wire.take(length as usize, "a frame's payload")?))
}

/// The head of a request as literal fields without indexing (RFC 7541, 6.2.2).
pub fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":path", path)];
    let field = |(name, value): &(&str, &str)| {
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    pseudo.iter().chain(headers).flat_map(field).collect()
}

/// A connection after the preface and the settings of both sides.
pub fn connect(server: &Server) -> Wire {
    let mut wire = Wire::connect(server.addr);
    wire.send([PREFACE, &frame(SETTINGS, 0, 0, b"")].concat());
    let (kind, flags, _) = read_frame(&mut wire).expect("settings");
    assert_eq!((kind, flags), (SETTINGS, 0));
    wire.send(frame(SETTINGS, ACK, 0, b""));
    wire
}

/// Waits until the server has read everything that was sent; `None` when it has closed.
pub fn await_pong(wire: &mut Wire) -> Option<()> {
    wire.send(frame(PING, 0, 0, b"are you?"));
    loop {
        let (kind, flags, _) = read_frame(wire)?;
        if (kind, flags) == (PING, ACK) {
            return Some(());
        }
    }
}
