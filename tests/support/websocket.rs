//! A WebSocket client: the handshake, masked frames, and invalid frames of every kind. It checks each message of the server
//! against the interface documents.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use serde_json::Value;

use super::http::{Response, Wire, is_hang_up, request};
use super::interface::check_message;

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A WebSocket after its handshake.
pub struct Socket {
    wire: Wire,
    target: String,
}

/// What a server can send.
#[derive(Debug, PartialEq)]
pub enum Received {
    Text(String),
    Pong(Vec<u8>),
    /// The close code; 1005 when the frame had none.
    Close(u16),
    /// The connection ended.
    End,
}

impl Socket {
    pub fn open(addr: SocketAddr, target: &str) -> Socket {
        Socket::handshake(addr, target, &[])
            .unwrap_or_else(|refusal| panic!("{target}: {} {}", refusal.status, refusal.text()))
    }

    /// Sends a handshake with the key of the example in RFC 6455, and checks the answer of that example.
    pub fn handshake(addr: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Result<Socket, Response> {
        Socket::over(Wire::connect(addr), target, headers)
    }

    /// The same over an open connection.
    pub fn over(mut wire: Wire, target: &str, headers: &[(&str, &str)]) -> Result<Socket, Response> {
        let mut all = vec![
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        all.extend_from_slice(headers);
        wire.send(request("GET", target, &all, b""));
        let response = wire.response().expect("an answer to the handshake");
        if response.status != 101 {
            return Err(response);
        }
        assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(response.header("sec-websocket-extensions"), None, "nothing was offered");
        Ok(Socket { wire, target: target.to_owned() })
    }

    pub fn send(&mut self, text: &str) {
        self.send_frame(TEXT, text.as_bytes());
    }

    pub fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        self.wire.send(frame(0x80 | opcode, payload));
    }

    pub fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes);
    }

    pub fn stream(&self) -> &TcpStream {
        self.wire.stream()
    }

    pub fn receive(&mut self) -> Received {
        loop {
            let Some((opcode, payload)) = self.frame() else { return Received::End };
            match opcode {
                TEXT => {
                    let text = String::from_utf8(payload).expect("text in UTF-8");
                    if self.wire.is_checked {
                        check_message(&self.target, &text);
                    }
                    return Received::Text(text);
                }
                PONG => return Received::Pong(payload),
                PING => self.send_frame(PONG, &payload),
                CLOSE if payload.is_empty() => return Received::Close(1005),
                CLOSE => return Received::Close(u16::from_be_bytes([payload[0], payload[1]])),
                other => panic!("a frame with opcode {other}"),
            }
        }
    }

    /// One frame. The server sends only whole, unmasked frames.
    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let what = "a frame";
        let head = self.wire.take(2, what)?;
        assert_eq!(head[0] & 0xf0, 0x80, "a whole frame without reserved bits");
        assert_eq!(head[1] & 0x80, 0, "a server does not mask");
        let length = match head[1] {
            126 => u16::from_be_bytes(self.wire.take(2, what)?.try_into().unwrap()) as usize,
            127 => u64::from_be_bytes(self.wire.take(8, what)?.try_into().unwrap()) as usize,
            short => short as usize,
        };
        Some((head[0] & 0x0f, self.wire.take(length, what)?))
    }

    pub fn text(&mut self) -> String {
        match self.receive() {
            Received::Text(text) => text,
            other => panic!("{other:?} instead of a text message"),
        }
    }

    pub fn json(&mut self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// Sends one message and returns its answer.
    pub fn ask(&mut self, text: &str) -> Value {
        self.send(text);
        self.json()
    }

    /// The next `n` messages.
    pub fn collect(&mut self, n: usize) -> Vec<Value> {
        (0..n).map(|_| self.json()).collect()
    }

    /// Sends all messages without waiting, and returns as many answers.
    pub fn pipeline(&mut self, messages: &[String]) -> Vec<Value> {
        let stream = self.stream().try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || send_all(&stream, messages));
            self.collect(messages.len())
        })
    }

    /// All messages up to the Close frame, and its code. After it the connection must end.
    pub fn read_to_close(&mut self) -> (Vec<String>, u16) {
        let mut words = Vec::new();
        loop {
            match self.receive() {
                Received::Text(text) => words.push(text),
                Received::Pong(_) => {}
                Received::Close(code) => {
                    self.send_frame(CLOSE, &code_bytes(if code == 1005 { 1000 } else { code }));
                    assert_eq!(self.receive(), Received::End, "after the Close frame");
                    return (words, code);
                }
                Received::End => panic!("the connection ended without a Close frame, after {words:?}"),
            }
        }
    }

    /// The code of the Close frame that must come next.
    pub fn close_code(&mut self) -> u16 {
        let (words, code) = self.read_to_close();
        assert!(words.is_empty(), "{words:?} before the Close frame");
        code
    }

    /// Ends the connection with a TCP reset.
    pub fn reset(self) {
        self.wire.reset();
    }
}

/// Writes messages as masked frames, 256 in each write. Ends without an error when the server closes the connection.
pub fn send_all(mut stream: &TcpStream, messages: &[String]) {
    for chunk in messages.chunks(256) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|message| frame(0x80 | TEXT, message.as_bytes())).collect();
        match stream.write_all(&bytes) {
            Ok(()) => {}
            Err(error) if is_hang_up(&error) => return,
            Err(error) => panic!("write: {error}"),
        }
    }
}

/// A masked frame. `first` is the first byte: final bit, reserved bits, opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = head(first, 0x80, payload.len());
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame without a mask, which a client must not send.
pub fn unmasked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(first, 0, payload.len());
    bytes.extend_from_slice(payload);
    bytes
}

fn head(first: u8, mask_bit: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(mask_bit | length as u8),
        126..=65535 => {
            bytes.push(mask_bit | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(mask_bit | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes
}

/// The payload of a Close frame.
pub fn code_bytes(code: u16) -> [u8; 2] {
    code.to_be_bytes()
}
