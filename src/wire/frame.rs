//! WebSocket frames (RFC 6455) as bytes: the functions that write them, and the head that [`decoder`](crate::wire::decoder)
//! reads. No input or output.

use fastwebsockets::unmask;

pub use fastwebsockets::OpCode;

/// Most bytes of one message; a longer one ends the socket with 1009 as soon as its head announces it. It is far above
/// any event: up to here a mistake is answered in words, beyond it the peer may want to fill the memory.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Most payload of a control frame, by RFC 6455.
pub(super) const CONTROL_BYTES_MAX: usize = 125;

/// Which end of the connection reads: a server demands masked frames, a client refuses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

/// The rule of RFC 6455 that the peer broke. Its socket is closed.
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

/// The head of one frame; it keeps all the rules that a head alone can break.
pub(super) struct Head {
    pub opcode: OpCode,
    /// Whether the frame ends its message.
    pub last: bool,
    /// The masking key; a client's frames have it, a server's do not.
    pub key: [u8; 4],
    /// Length of the head itself.
    pub bytes: usize,
    pub payload_bytes: usize,
}

impl Head {
    /// `None` if the head has not arrived as a whole.
    #[inline]
    pub fn parse(bytes: &[u8], role: Role) -> Result<Option<Self>, Violation> {
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

/// Appends an unmasked close frame; the reason is cut to the 123 bytes that fit.
pub fn close(buf: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - size_of_val(&code))];
    write_head(buf, OpCode::Close, size_of_val(&code) + reason.len());
    buf.extend_from_slice(&code.to_be_bytes());
    buf.extend_from_slice(reason.as_bytes());
}

/// Appends a whole masked frame, as a client sends it. The key should be one that nobody can predict.
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

/// The payloads of frames that this side wrote: whole and unmasked, one after the other.
pub fn payloads(mut frames: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (head, len) = match *frames.get(1)? {
            126 => (4, usize::from(u16::from_be_bytes([frames[2], frames[3]]))),
            127 => (10, u64::from_be_bytes(frames[2..10].try_into().expect("eight bytes")) as usize),
            len => (2, usize::from(len)),
        };
        let (payload, rest) = frames[head..].split_at(len);
        frames = rest;
        Some(payload)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_as_in_the_examples_of_the_rfc() {
        let written = |write: fn(&mut Vec<u8>)| {
            let mut buf = Vec::new();
            write(&mut buf);
            buf
        };
        let hello = [0x81, 5, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
        assert_eq!(written(|buf| text(buf, b"Hello")), hello);
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(written(|buf| masked(buf, OpCode::Text, b"Hello", [0x37, 0xfa, 0x21, 0x3d])), hello);
        assert_eq!(written(|buf| write_head(buf, OpCode::Binary, 256)), [0x82, 0x7e, 1, 0]);
        assert_eq!(written(|buf| write_head(buf, OpCode::Binary, 65_536)), [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn each_violation_has_its_close_code() {
        assert_eq!(Violation::NotUtf8.close_code(), 1007);
        assert_eq!(Violation::TooBig.close_code(), 1009);
        assert_eq!(Violation::Unmasked.close_code(), 1002);
        assert_eq!(Violation::TooBig.to_string(), "a message is longer than 16777216 bytes");
    }
}
