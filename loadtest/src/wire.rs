//! What a server sends on a connection: WebSocket frames and HTTP responses, found without copying them.

use anyhow::{Context, bail, ensure};
use event_pipeline::wire::frame::{self, OpCode};
use memchr::memmem;

/// Most bytes of one message or response.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Visits the text messages among the bytes that a server sent on a WebSocket, answers pings, and returns how many
/// bytes are used up. A message in fragments is an error: our server sends none.
///
/// # Errors
/// A close frame, anything that a text message or a control frame is not, or what `visit` says.
#[inline]
pub fn frames(
    bytes: &[u8],
    out: &mut Vec<u8>,
    mut visit: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let mut used = 0;
    while let Some(length) = frame(&bytes[used..], out, &mut visit)? {
        used += length;
    }
    Ok(used)
}

/// Visits the first text message, and uses up nothing that follows it.
pub fn first_frame(bytes: &[u8], out: &mut Vec<u8>, mut visit: impl FnMut(&[u8])) -> anyhow::Result<usize> {
    let (mut used, mut is_visited) = (0, false);
    while !is_visited {
        let visit = |text: &[u8]| {
            is_visited = true;
            visit(text);
            Ok(())
        };
        match frame(&bytes[used..], out, visit)? {
            Some(length) => used += length,
            None => break,
        }
    }
    Ok(used)
}

/// Reads the frame that the bytes begin with; `None` if it is not complete.
#[inline]
fn frame(
    bytes: &[u8],
    out: &mut Vec<u8>,
    visit: impl FnOnce(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Option<usize>> {
    const TEXT: u8 = 0x80 | OpCode::Text as u8;
    const PING: u8 = 0x80 | OpCode::Ping as u8;
    const PONG: u8 = 0x80 | OpCode::Pong as u8;
    const CLOSE: u8 = 0x80 | OpCode::Close as u8;
    let (head, length) = match *bytes {
        [_, length @ 0..=125, ..] => (2, usize::from(length)),
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [_, 127, a, b, c, d, e, f, g, h, ..] => (10, u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize),
        [_, 128..=255, ..] => bail!("the server sent a masked frame"),
        _ => return Ok(None),
    };
    ensure!(length <= MESSAGE_BYTES_MAX, "the server announced a message of {length} bytes");
    let Some(payload) = bytes.get(head..head + length) else { return Ok(None) };
    match bytes[0] {
        TEXT => visit(payload)?,
        PING => frame::masked(out, OpCode::Pong, payload, *b"mask"),
        PONG => {}
        CLOSE => bail!("the server closed the socket: {}", close_reason(payload)),
        first => bail!("the server sent a frame that begins with {first:#04x}"),
    }
    Ok(Some(head + length))
}

/// Visits the data of each stored event in the chunks of an event stream, and returns how many bytes are used up. An
/// event in two chunks is an error: our server sends none.
///
/// # Errors
/// The stream ends, anything that no chunk is, or what `visit` says.
pub fn stream_events(bytes: &[u8], mut visit: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<usize> {
    let mut used = 0;
    while let Some(line) = memmem::find(&bytes[used..], b"\r\n") {
        let length = str::from_utf8(&bytes[used..used + line]).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let length = length.context("the server sent no chunk in an event stream")?;
        ensure!(length > 0, "the event stream ended");
        ensure!(length <= MESSAGE_BYTES_MAX, "the server announced a chunk of {length} bytes");
        let start = used + line + 2;
        let Some(chunk) = bytes.get(start..start + length + 2) else { break };
        ensure!(chunk.ends_with(b"\n\n\r\n"), "a chunk of an event stream ends within an event");
        used = start + length + 2;
        let mut from = 0;
        for end in memmem::find_iter(&chunk[..length], b"\n\n") {
            let mut lines = chunk[from..end].split(|byte| *byte == b'\n');
            from = end + 2;
            if lines.any(|line| line.starts_with(b"id:"))
                && let Some(data) = lines.find_map(|line| line.strip_prefix(b"data: "))
            {
                visit(data)?;
            }
        }
    }
    Ok(used)
}

/// The text of a refused handshake: its status and its body.
pub fn refusal(head: &[u8], body: &[u8]) -> String {
    let status = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    [status, body].map(String::from_utf8_lossy).join(" ")
}

fn close_reason(payload: &[u8]) -> String {
    match payload {
        [high, low, reason @ ..] => {
            format!("{} {}", u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason))
        }
        _ => "without a code".to_owned(),
    }
}

/// Visits the status and body of each complete HTTP response, and returns how many bytes are used up.
///
/// # Errors
/// A response without `Content-Length`, or what `visit` says.
pub fn responses(bytes: &[u8], mut visit: impl FnMut(u16, &[u8]) -> anyhow::Result<()>) -> anyhow::Result<usize> {
    let mut used = 0;
    while let Some(head) = end_of_head(&bytes[used..]) {
        let head = &bytes[used..used + head];
        let head_text = || String::from_utf8_lossy(head);
        let mut lines = head.split(|b| *b == b'\n');
        let status = lines.next().and_then(|line| number(line.get(9..12)?));
        let length = lines.find_map(|line| {
            let (name, value) = line.split_at_checked(15)?;
            if name.eq_ignore_ascii_case(b"content-length:") { number(value) } else { None }
        });
        let (Some(status), Some(length)) = (status, length) else {
            bail!("no status or no Content-Length in {:?}", head_text());
        };
        ensure!(length <= MESSAGE_BYTES_MAX, "the server announced a body of {length} bytes");
        let Some(body) = bytes.get(used + head.len()..used + head.len() + length) else { break };
        used += head.len() + length;
        visit(status as u16, body)?;
    }
    Ok(used)
}

fn number(text: &[u8]) -> Option<usize> {
    str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Where the blank line after a head ends.
pub fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// For tests: feeds the bytes in two pieces, cut at each index, and expects the same in the end.
pub fn in_two_pieces(bytes: &[u8], expected: &[&str], take: impl Fn(&[u8], &mut Vec<String>) -> usize) {
    for cut in 0..=bytes.len() {
        let mut seen = Vec::new();
        let used = take(&bytes[..cut], &mut seen);
        let used = used + take(&bytes[used..], &mut seen);
        assert_eq!((used, seen.iter().map(|s| &**s).collect()), (bytes.len(), expected.to_vec()), "cut at {cut}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_whole_wherever_they_are_cut() {
        let (long, longer) = ("x".repeat(126), "y".repeat(70_000));
        let mut bytes = Vec::new();
        for text in ["", "short", &long] {
            frame::text(&mut bytes, text.as_bytes());
        }
        frame::unmasked(&mut bytes, OpCode::Pong, b"never mind");
        let take = |bytes: &[u8], seen: &mut Vec<String>| {
            let mut out = Vec::new();
            frames(bytes, &mut out, |text| {
                seen.push(String::from_utf8_lossy(text).into_owned());
                Ok(())
            })
            .expect("frames")
        };
        in_two_pieces(&bytes, &["", "short", &long], take);
        bytes.clear();
        frame::text(&mut bytes, longer.as_bytes());
        let mut seen = Vec::new();
        assert_eq!((take(&bytes[..70_000], &mut seen), take(&bytes, &mut seen)), (0, bytes.len()));
        assert_eq!(seen, [longer]);
    }

    #[test]
    fn pings_are_answered_and_violations_are_errors() {
        let (mut bytes, mut out, mut pong) = (Vec::new(), Vec::new(), Vec::new());
        frame::unmasked(&mut bytes, OpCode::Ping, b"there?");
        assert_eq!(frames(&bytes, &mut out, |_| panic!()).expect("a frame"), bytes.len());
        frame::masked(&mut pong, OpCode::Pong, b"there?", *b"mask");
        assert_eq!(out, pong);

        let check = |bytes: &[u8], fault: &str| {
            let error = frames(bytes, &mut Vec::new(), |_| Ok(())).expect_err(fault);
            assert_eq!(error.to_string(), fault);
        };
        bytes.clear();
        frame::close(&mut bytes, 1001, "going away");
        check(&bytes, "the server closed the socket: 1001 going away");
        check(&pong, "the server sent a masked frame");
        check(&[0x01, 0], "the server sent a frame that begins with 0x01");
        check(&[0x81, 127, 0, 0, 1, 0, 0, 0, 0, 0], "the server announced a message of 1099511627776 bytes");
    }

    #[test]
    fn responses_are_whole_wherever_they_are_cut() {
        let bytes = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\nx: y\r\n\r\n{}\
            HTTP/1.1 503 Service Unavailable\r\nA: B\r\nContent-Length:0\r\n\r\n";
        in_two_pieces(bytes, &["201 {}", "503 "], |bytes, seen| {
            responses(bytes, |status, body| {
                seen.push(format!("{status} {}", String::from_utf8_lossy(body)));
                Ok(())
            })
            .expect("responses")
        });
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(responses(chunked, |_, _| Ok(())).is_err());
    }

    #[test]
    fn event_streams_are_whole_wherever_they_are_cut() {
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let bytes = [
            chunk("retry: 1000\nevent: subscribed\ndata: {}\n\n"),
            chunk("id: evt_1\ndata: {\"id\":1}\n\nid: evt_2\ndata: {\"id\":2}\n\n"),
            chunk(": keep-alive\n\n"),
            chunk("event: caught_up\ndata: {}\n\nid: evt_3\ndata: {\"id\":3}\n\n"),
        ]
        .concat();
        let take = |bytes: &[u8], seen: &mut Vec<String>| {
            stream_events(bytes, |data| {
                seen.push(String::from_utf8_lossy(data).into_owned());
                Ok(())
            })
            .expect("chunks")
        };
        in_two_pieces(bytes.as_bytes(), &[r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#], take);
        for bad in ["0\r\n\r\n", "x\r\n", "4\r\nid: \r\n", "ffffffff\r\n"] {
            assert!(stream_events(bad.as_bytes(), |_| Ok(())).is_err(), "{bad}");
        }
    }
}
