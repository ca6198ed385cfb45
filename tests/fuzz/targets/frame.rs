//! Bytes of a socket: the server's decoder is compared with one that follows RFC 6455 over the whole buffer, in one read and
//! in reads of any size.

use bytes::BufMut;
use event_pipeline::wire::decoder::{Decoder, Message};
use event_pipeline::wire::frame::{self, MESSAGE_BYTES_MAX, OpCode, Role};

/// The first byte chooses the role and the message limit, the second the sizes of the reads; the frames follow.
pub fn frame(data: &[u8]) {
    let [how, sizes, frames @ ..] = data else { return };
    let role = if how & 1 == 0 { Role::Server } else { Role::Client };
    let limit = [300, 20, 5_000, MESSAGE_BYTES_MAX][usize::from(how >> 1 & 3)];
    let expected = by_the_rfc(frames, role, limit);
    assert_eq!(said(frames, role, limit, std::iter::repeat(usize::MAX)), expected, "in one piece");
    assert_eq!(said(frames, role, limit, std::iter::repeat(1)), expected, "byte by byte");
    let mut dice = u32::from(*sizes);
    let uneven = std::iter::from_fn(move || {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(1 + (dice >> 24) as usize % if dice >> 16 & 3 == 0 { 200 } else { 8 })
    });
    assert_eq!(said(frames, role, limit, uneven), expected, "in uneven pieces");
    what_is_written_is_read(frames);
}

/// A message, or the code that the socket is closed with.
type Said = (&'static str, Vec<u8>, u16);

fn said(mut bytes: &[u8], role: Role, limit: usize, mut sizes: impl Iterator<Item = usize>) -> Vec<Said> {
    let (mut decoder, mut said, whole) = (Decoder::new(role, limit), Vec::new(), bytes.len());
    loop {
        let space = decoder.space();
        let room = space.chunk_mut().len();
        assert!((1 << 10..(300 << 10) + 8 * whole).contains(&room), "room follows what came: {room}");
        let size = sizes.next().unwrap().min(bytes.len()).min(room);
        space.put_slice(&bytes[..size]);
        bytes = &bytes[size..];
        loop {
            said.push(match decoder.next() {
                Ok(None) => break,
                Ok(Some(Message::Text(text))) => ("text", text.into(), 0),
                Ok(Some(Message::Binary(bytes))) => ("binary", bytes.into(), 0),
                Ok(Some(Message::TooLarge)) => ("too large", Vec::new(), 0),
                Ok(Some(Message::Ping(bytes))) => ("ping", bytes.into(), 0),
                Ok(Some(Message::Pong(bytes))) => ("pong", bytes.into(), 0),
                Ok(Some(Message::Close(None))) => ("close", Vec::new(), 0),
                Ok(Some(Message::Close(Some((code, reason))))) => ("close", reason.into(), code),
                Err(violation) => ("violation", Vec::new(), violation.close_code()),
            });
        }
        if bytes.is_empty() {
            return said;
        }
    }
}

/// A message whose last frame has not arrived.
struct Open {
    opcode: u8,
    announced: usize,
    bytes: Vec<u8>,
}

fn by_the_rfc(bytes: &[u8], role: Role, limit: usize) -> Vec<Said> {
    let mut said = Vec::new();
    if let Err(code) = go_through(bytes, role, limit, &mut said) {
        said.push(("violation", Vec::new(), code));
    }
    said
}

/// Fails with the code to close with; succeeds where more bytes are needed.
fn go_through(mut rest: &[u8], role: Role, limit: usize, said: &mut Vec<Said>) -> Result<(), u16> {
    fn take<'b>(rest: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
        rest.split_off(..count)
    }
    let mut open: Option<Open> = None;
    loop {
        let Some(&[first, second]) = take(&mut rest, 2) else { return Ok(()) };
        let (is_last, opcode, is_masked) = (first >= 0x80, first & 15, second >= 0x80);
        let is_control = opcode >= 8;
        let is_known = matches!(opcode, 0..=2 | 8..=10);
        let too_much = is_control && (!is_last || second & 0x7f > 125);
        if first & 0x70 != 0 || !is_known || is_masked != (role == Role::Server) || too_much {
            return Err(1002);
        }
        let mut len = u64::from(second & 0x7f);
        if len > 125 {
            let Some(long) = take(&mut rest, if len == 126 { 2 } else { 8 }) else { return Ok(()) };
            let least = if len == 126 { 126 } else { 65_536 };
            len = long.iter().fold(0, |len, byte| len << 8 | u64::from(*byte));
            if len < least || len >> 63 != 0 {
                return Err(1002);
            }
            if len > MESSAGE_BYTES_MAX as u64 {
                return Err(1009);
            }
        }
        let key = if is_masked { take(&mut rest, 4) } else { Some(&[0; 4][..]) };
        let (Some(key), len) = (key, len as usize) else { return Ok(()) };

        let mut message = match (is_control, opcode, open.take()) {
            (true, _, before) => {
                open = before;
                None
            }
            (false, 0, Some(before)) => Some(before),
            (false, 1 | 2, None) => Some(Open { opcode, announced: 0, bytes: Vec::new() }),
            _ => return Err(1002),
        };
        if let Some(message) = &mut message {
            message.announced += len;
            if message.announced > MESSAGE_BYTES_MAX {
                return Err(1009);
            }
        }
        let Some(payload) = take(&mut rest, len) else { return Ok(()) };
        let payload: Vec<u8> = payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        match message {
            None => match opcode {
                9 => said.push(("ping", payload, 0)),
                10 => said.push(("pong", payload, 0)),
                _ => {
                    said.push(close(&payload)?);
                    return Ok(());
                }
            },
            Some(mut message) if message.announced > limit => {
                if is_last {
                    said.push(("too large", Vec::new(), 0));
                } else {
                    message.bytes = Vec::new();
                    open = Some(message);
                }
            }
            Some(mut message) => {
                message.bytes.extend(payload);
                if message.opcode == 1 {
                    match str::from_utf8(&message.bytes) {
                        Err(error) if is_last || error.error_len().is_some() => return Err(1007),
                        _ => {}
                    }
                }
                match is_last {
                    true => said.push((if message.opcode == 1 { "text" } else { "binary" }, message.bytes, 0)),
                    false => open = Some(message),
                }
            }
        }
    }
}

fn close(payload: &[u8]) -> Result<Said, u16> {
    match payload {
        [] => Ok(("close", Vec::new(), 0)),
        [_] => Err(1002),
        [high, low, reason @ ..] => match u16::from(*high) << 8 | u16::from(*low) {
            // The codes of the RFC and its registry that may be sent, and those for libraries and applications.
            code @ (1000..1004 | 1007..1015 | 3000..5000) => {
                str::from_utf8(reason).map_err(|_| 1007u16)?;
                Ok(("close", reason.into(), code))
            }
            _ => Err(1002),
        },
    }
}

/// Frames of one end are read by the other.
fn what_is_written_is_read(payload: &[u8]) {
    let is_text = str::from_utf8(payload).is_ok();
    let (opcode, name) = if is_text { (OpCode::Text, "text") } else { (OpCode::Binary, "binary") };
    let expected: [Said; 1] = [(name, payload.into(), 0)];
    let (mut from_client, mut from_server) = (Vec::new(), Vec::new());
    let key = [payload.first().copied().unwrap_or(7), 0, 255, payload.len() as u8];
    frame::masked(&mut from_client, opcode, payload, key);
    frame::unmasked(&mut from_server, opcode, payload);
    assert_eq!(from_server.len(), frame::head_len(payload.len()) + payload.len());
    assert_eq!(frame::payloads(&from_server).collect::<Vec<_>>(), [payload]);
    let whole = || std::iter::repeat(usize::MAX);
    assert_eq!(said(&from_client, Role::Server, MESSAGE_BYTES_MAX, whole()), expected);
    assert_eq!(said(&from_server, Role::Client, MESSAGE_BYTES_MAX, whole()), expected);
}
