//! WebSocket frames (RFC 6455) as bytes, without IO: [`Decoder`] takes the complete messages out of what
//! a socket sent and refuses everything the RFC forbids; the functions below it write frames.
//!
//! The library that makes the handshake has a reader of its own, but that one trusts its peer: it takes
//! unmasked frames, oversized control frames, messages inside messages and reassembles without bound.

use std::ops::Range;

use bytes::BufMut;
use fastwebsockets::unmask;

pub use fastwebsockets::OpCode;

/// Most bytes of one message; a longer one ends the socket with 1009 as soon as its head announces it.
/// Far above any event, it only tells an honest mistake, answered in words, from somebody flooding us.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Least room offered to a read, and what the buffer of a silent socket starts with: an event with its
/// frame mostly fits, and 10,000 silent sockets hold 10 MB.
const READ_BYTES_MIN: usize = 1 << 10;

/// Room a busy socket is offered: some 300 events a system call, and it still lies in the L2 cache when
/// the frames are decoded. More saves hardly a call.
const READ_BYTES_MAX: usize = 64 << 10;

/// Most payload of a control frame, by RFC 6455.
const CONTROL_BYTES_MAX: usize = 125;

/// The end of the connection that we are: a server demands masked frames, a client refuses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

/// What the peer said: a whole message or a control frame. The bytes lie in the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    /// A text or binary message beyond the decoder's limit has passed by, unread. The socket lives on.
    TooLarge,
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// The peer's last word, with its code and reason if it gave any.
    Close(Option<(u16, &'a str)>),
}

/// Why the peer is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("a frame sets reserved bits, but no extension was agreed on")]
    ReservedBits,
    #[error("opcode {0} is reserved")]
    ReservedOpcode(u8),
    #[error("a frame from the client is not masked")]
    Unmasked,
    #[error("a frame from the server is masked")]
    Masked,
    #[error("a control frame is fragmented")]
    ControlFragmented,
    #[error("a control frame is longer than {CONTROL_BYTES_MAX} bytes")]
    ControlTooLong,
    #[error("a frame's length is not in its shortest form")]
    LengthNotMinimal,
    #[error("a frame's length has its top bit set")]
    LengthTopBit,
    #[error("a continuation frame continues nothing")]
    ContinuationOfNothing,
    #[error("a message begins before the one in hand has ended")]
    Interleaved,
    #[error("a close frame holds half a close code")]
    CloseTruncated,
    #[error("close code {0} may not be sent")]
    CloseCode(u16),
    #[error("a text is not valid UTF-8")]
    NotUtf8,
    #[error("a message is longer than {MESSAGE_BYTES_MAX} bytes")]
    TooBig,
}

impl Violation {
    /// The code to close the socket with: 1002 protocol error, 1007 not UTF-8, 1009 too big.
    pub fn close_code(&self) -> u16 {
        match self {
            Self::NotUtf8 => 1007,
            Self::TooBig => 1009,
            _ => 1002,
        }
    }
}

/// Takes messages out of the bytes of one socket.
///
/// Read into [`space`](Self::space), then call [`next`](Self::next) until it has no more. A message in one
/// frame is neither copied nor allocated for. What is held follows what has arrived, never what was merely
/// announced: at most about twice the message limit, and nearly nothing while the peer is silent.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    message_bytes_max: usize,
    /// What was read; everything before `start` is decoded.
    buffer: Vec<u8>,
    start: usize,
    /// How many bytes the frame at `start` still lacks, as far as its head told.
    missing_bytes: usize,
    /// The room the socket makes use of, between `READ_BYTES_MIN` and `READ_BYTES_MAX`.
    read_bytes: usize,
    /// The message whose last frame has not come yet.
    unfinished: Option<Unfinished>,
    /// The fragments so far of the unfinished message, or the message in fragments given out last.
    joined: Vec<u8>,
    /// The rest of a frame that is not kept.
    skip: Option<Skip>,
    /// The peer closed or broke the rules: nothing more is decoded.
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Unfinished {
    opcode: OpCode,
    /// Its length as announced up to here.
    bytes: usize,
    /// How much of a text is known to be valid UTF-8.
    valid_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Skip {
    bytes: usize,
    ends_message: bool,
}

/// A decoded message by its place, since a search that goes on cannot hold a borrow of what it found.
enum Found {
    Whole(OpCode, Range<usize>),
    Joined(OpCode),
    TooLarge,
}

impl Decoder {
    /// A decoder for one socket. A message above `message_bytes_max` is skipped and reported as
    /// [`Message::TooLarge`]; above [`MESSAGE_BYTES_MAX`], the ceiling of that limit, it is a [`Violation`].
    pub fn new(role: Role, message_bytes_max: usize) -> Self {
        Self {
            role,
            message_bytes_max: message_bytes_max.min(MESSAGE_BYTES_MAX),
            buffer: Vec::new(),
            start: 0,
            missing_bytes: 0,
            read_bytes: READ_BYTES_MIN,
            unfinished: None,
            joined: Vec::new(),
            skip: None,
            ended: false,
        }
    }

    /// Starts with bytes that arrived along with the handshake.
    pub fn with_received(mut self, bytes: &[u8]) -> Self {
        self.buffer.extend_from_slice(bytes);
        self
    }

    /// Room for the next read, at least 1 KiB. Call it once [`next`](Self::next) has no more messages.
    ///
    /// It grows fourfold when a read fills it and halves when one leaves three quarters empty; memory
    /// is given back at four times what is wanted, so that traffic in waves does not allocate at each.
    pub fn space(&mut self) -> &mut impl BufMut {
        if self.unfinished.is_none() {
            self.joined = Vec::new();
        }
        if self.buffer.len() >= self.read_bytes {
            self.read_bytes = (self.read_bytes * 4).min(READ_BYTES_MAX);
        } else if self.buffer.len() < self.read_bytes / 4 {
            self.read_bytes = (self.read_bytes / 2).max(READ_BYTES_MIN);
        }
        self.buffer.drain(..self.start);
        self.start = 0;

        // A large frame doubles what is held of it, so that 14 bytes of head cannot claim megabytes.
        let held = self.buffer.len();
        let room = self.missing_bytes.min(held).max(READ_BYTES_MIN);
        let wanted = self.read_bytes.max(held + room);
        if self.buffer.capacity() > 4 * wanted {
            self.buffer.shrink_to(wanted);
        }
        self.buffer.reserve_exact(wanted - held);
        &mut self.buffer
    }

    /// The next complete message or control frame of what was read; `None`: read more.
    /// After a [`Message::Close`] or an error there is nothing more, whatever arrives.
    ///
    /// # Errors
    /// The rule the peer broke; the socket is to be closed with its [`close_code`](Violation::close_code).
    #[inline]
    pub fn next(&mut self) -> Result<Option<Message<'_>>, Violation> {
        let message = match self.find() {
            Ok(None) => return Ok(None),
            Ok(Some(Found::Whole(opcode, place))) => Message::parse(opcode, &self.buffer[place]),
            Ok(Some(Found::Joined(opcode))) => Message::parse(opcode, &self.joined),
            Ok(Some(Found::TooLarge)) => Ok(Message::TooLarge),
            Err(violation) => Err(violation),
        };
        self.ended = matches!(message, Ok(Message::Close(_)) | Err(_));
        message.map(Some)
    }

    #[inline]
    fn find(&mut self) -> Result<Option<Found>, Violation> {
        self.missing_bytes = 0;
        if self.ended {
            self.start = self.buffer.len();
            return Ok(None);
        }
        loop {
            if let Some(skip) = &mut self.skip {
                let skipped = skip.bytes.min(self.buffer.len() - self.start);
                self.start += skipped;
                skip.bytes -= skipped;
                let Skip { bytes, ends_message } = *skip;
                if bytes > 0 {
                    return Ok(None);
                }
                self.skip = None;
                if ends_message {
                    self.unfinished = None;
                    return Ok(Some(Found::TooLarge));
                }
            }

            let Some(head) = Head::parse(&self.buffer[self.start..], self.role)? else {
                return Ok(None);
            };
            let message = self.message_of(&head)?;
            let from = self.start + head.bytes;
            if message.is_some_and(|message| message.bytes > self.message_bytes_max) {
                self.start = from;
                self.skip = Some(Skip { bytes: head.payload_bytes, ends_message: head.last });
                self.unfinished = message;
                self.joined = Vec::new();
                continue;
            }
            let to = from + head.payload_bytes;
            if to > self.buffer.len() {
                self.missing_bytes = to - self.buffer.len();
                return Ok(None);
            }
            self.start = to;
            if self.role == Role::Server {
                unmask(&mut self.buffer[from..to], head.key);
            }
            match message {
                Some(message) if !head.last || head.opcode == OpCode::Continuation => {
                    self.join(message, from..to)?;
                    if head.last {
                        self.unfinished = None;
                        return Ok(Some(Found::Joined(message.opcode)));
                    }
                }
                _ => return Ok(Some(Found::Whole(head.opcode, from..to))),
            }
        }
    }

    /// The message that a frame begins or continues, including that frame's bytes; `None` for a control
    /// frame, which may stand between the fragments of a message.
    #[inline]
    fn message_of(&self, head: &Head) -> Result<Option<Unfinished>, Violation> {
        let mut message = match (head.opcode, self.unfinished) {
            (OpCode::Close | OpCode::Ping | OpCode::Pong, _) => return Ok(None),
            (OpCode::Continuation, Some(unfinished)) => unfinished,
            (OpCode::Continuation, None) => return Err(Violation::ContinuationOfNothing),
            (OpCode::Text | OpCode::Binary, Some(_)) => return Err(Violation::Interleaved),
            (opcode, None) => Unfinished { opcode, bytes: 0, valid_bytes: 0 },
        };
        message.bytes += head.payload_bytes;
        if message.bytes > MESSAGE_BYTES_MAX { Err(Violation::TooBig) } else { Ok(Some(message)) }
    }

    /// Adds a fragment. A text is checked as it grows, so that an invalid one ends early.
    fn join(&mut self, mut message: Unfinished, fragment: Range<usize>) -> Result<(), Violation> {
        if self.unfinished.is_none() {
            self.joined.clear();
        }
        self.joined.extend_from_slice(&self.buffer[fragment]);
        if message.opcode == OpCode::Text {
            message.valid_bytes += match str::from_utf8(&self.joined[message.valid_bytes..]) {
                Ok(text) => text.len(),
                // The end may be the first bytes of a character whose rest comes in the next fragment.
                Err(e) if e.error_len().is_none() => e.valid_up_to(),
                Err(_) => return Err(Violation::NotUtf8),
            };
        }
        self.unfinished = Some(message);
        Ok(())
    }
}

impl<'a> Message<'a> {
    #[inline]
    fn parse(opcode: OpCode, payload: &'a [u8]) -> Result<Self, Violation> {
        Ok(match opcode {
            OpCode::Text => Self::Text(str::from_utf8(payload).map_err(|_| Violation::NotUtf8)?),
            OpCode::Binary => Self::Binary(payload),
            OpCode::Ping => Self::Ping(payload),
            OpCode::Pong => Self::Pong(payload),
            OpCode::Close => Self::Close(parse_close(payload)?),
            OpCode::Continuation => unreachable!("fragments are joined under the opcode of the first"),
        })
    }
}

fn parse_close(payload: &[u8]) -> Result<Option<(u16, &str)>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(Violation::CloseTruncated) };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::CloseCode(code));
    }
    let reason = str::from_utf8(reason).map_err(|_| Violation::NotUtf8)?;
    Ok(Some((code, reason)))
}

/// The head of one frame that keeps every rule a head alone can break.
struct Head {
    opcode: OpCode,
    /// Whether the frame ends its message.
    last: bool,
    /// The masking key; meaningless to a client.
    key: [u8; 4],
    /// Length of the head itself.
    bytes: usize,
    payload_bytes: usize,
}

impl Head {
    /// `None`: the head has not arrived as a whole.
    #[inline]
    fn parse(bytes: &[u8], role: Role) -> Result<Option<Self>, Violation> {
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(Violation::ReservedBits);
        }
        let opcode = first & 0x0f;
        let opcode = OpCode::try_from(opcode).map_err(|_| Violation::ReservedOpcode(opcode))?;
        let last = first & 0x80 != 0;
        match (role, second & 0x80 != 0) {
            (Role::Server, false) => return Err(Violation::Unmasked),
            (Role::Client, true) => return Err(Violation::Masked),
            _ => {}
        }
        let short = second & 0x7f;
        if matches!(opcode, OpCode::Close | OpCode::Ping | OpCode::Pong) {
            if !last {
                return Err(Violation::ControlFragmented);
            }
            if usize::from(short) > CONTROL_BYTES_MAX {
                return Err(Violation::ControlTooLong);
            }
        }

        let (payload_bytes, rest) = match short {
            126 => {
                let Some((length, rest)) = rest.split_first_chunk() else {
                    return Ok(None);
                };
                let length = u16::from_be_bytes(*length);
                if length < 126 {
                    return Err(Violation::LengthNotMinimal);
                }
                (usize::from(length), rest)
            }
            127 => {
                let Some((length, rest)) = rest.split_first_chunk() else {
                    return Ok(None);
                };
                let length = u64::from_be_bytes(*length);
                if length <= u64::from(u16::MAX) {
                    return Err(Violation::LengthNotMinimal);
                }
                if length >> 63 != 0 {
                    return Err(Violation::LengthTopBit);
                }
                if length > MESSAGE_BYTES_MAX as u64 {
                    return Err(Violation::TooBig);
                }
                (length as usize, rest)
            }
            short => (usize::from(short), rest),
        };
        let (key, rest) = match role {
            Role::Client => ([0; 4], rest),
            Role::Server => match rest.split_first_chunk() {
                Some((key, rest)) => (*key, rest),
                None => return Ok(None),
            },
        };
        Ok(Some(Self { opcode, last, key, bytes: bytes.len() - rest.len(), payload_bytes }))
    }
}

/// Length of the head that [`write_head`] writes for a payload of this length: 2, 4 or 10 bytes.
#[inline]
pub const fn head_len(payload_len: usize) -> usize {
    match payload_len {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// Appends the head of an unmasked frame that is a whole message; `payload_len` bytes have to follow.
#[inline]
pub fn write_head(buf: &mut Vec<u8>, opcode: OpCode, payload_len: usize) {
    write_start(buf, opcode, payload_len, 0);
}

/// Appends a whole unmasked frame, as a server sends it.
#[inline]
pub fn unmasked(buf: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    write_head(buf, opcode, payload.len());
    buf.extend_from_slice(payload);
}

/// Appends a whole unmasked text message; the payload has to be UTF-8.
#[inline]
pub fn text(buf: &mut Vec<u8>, payload: &[u8]) {
    unmasked(buf, OpCode::Text, payload);
}

/// Appends an unmasked close frame; the reason is cut to the 123 bytes there is room for.
pub fn close(buf: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - size_of_val(&code))];
    write_head(buf, OpCode::Close, size_of_val(&code) + reason.len());
    buf.extend_from_slice(&code.to_be_bytes());
    buf.extend_from_slice(reason.as_bytes());
}

/// Appends a whole masked frame, as a client sends it. The key should be one nobody can foresee.
#[inline]
pub fn masked(buf: &mut Vec<u8>, opcode: OpCode, payload: &[u8], key: [u8; 4]) {
    write_start(buf, opcode, payload.len(), 0x80);
    buf.extend_from_slice(&key);
    let start = buf.len();
    buf.extend_from_slice(payload);
    unmask(&mut buf[start..], key);
}

/// Appends a head up to its masking key, with the bit that announces one or without.
#[inline]
fn write_start(buf: &mut Vec<u8>, opcode: OpCode, payload_len: usize, mask_bit: u8) {
    let first = 0x80 | opcode as u8;
    match head_len(payload_len) {
        2 => buf.extend_from_slice(&[first, mask_bit | payload_len as u8]),
        4 => {
            let [high, low] = (payload_len as u16).to_be_bytes();
            buf.extend_from_slice(&[first, mask_bit | 126, high, low]);
        }
        _ => {
            buf.extend_from_slice(&[first, mask_bit | 127]);
            buf.extend_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
}
