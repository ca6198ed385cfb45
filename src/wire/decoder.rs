//! Messages out of WebSocket frames: [`Decoder`] takes the complete messages out of the bytes that a socket sent, and
//! refuses everything that RFC 6455 forbids. No input or output.
//!
//! fastwebsockets, which makes the handshake, has a reader of its own. That one trusts its peer: it accepts unmasked frames,
//! oversized control frames and messages within messages, and reassembles fragments without bound.

use std::ops::Range;

use bytes::BufMut;
use fastwebsockets::unmask;

use super::frame::{Head, MESSAGE_BYTES_MAX, OpCode, Role, Violation};

/// Least space offered to a read, and the buffer of a silent socket: an event with its frame mostly fits into 1 KiB, and
/// 10,000 silent sockets hold 10 MB.
const READ_BYTES_MIN: usize = 1 << 10;

/// Space offered to a read of a busy socket: some 300 events a system call, and 64 KiB still lie in the L2 cache when the
/// frames are decoded. More saves hardly a call.
const READ_BYTES_MAX: usize = 64 << 10;

/// A whole message or a control frame of the peer. The bytes lie in the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    /// A text or binary message beyond the decoder's limit was skipped. The socket stays open.
    TooLarge,
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// The peer ends the connection, with a code and a reason if it gave any.
    Close(Option<(u16, &'a str)>),
}

/// Takes messages out of the bytes of one socket.
///
/// Read into [`space`](Self::space), then call [`next`](Self::next) until it has no more. A message in one
/// frame is neither copied nor allocated for. The memory follows what has arrived, never what a head merely
/// announces: it is at most about twice the message limit, and 1 KiB while the peer is silent.
pub struct Decoder {
    role: Role,
    message_bytes_max: usize,
    /// The bytes that were read; those before `start` are decoded.
    buffer: Vec<u8>,
    start: usize,
    /// How many bytes of the frame at `start` have not arrived, if its head has.
    missing_bytes: usize,
    /// The space that a read is offered, between `READ_BYTES_MIN` and `READ_BYTES_MAX`.
    read_bytes: usize,
    /// The message whose last frame has not arrived.
    unfinished: Option<Unfinished>,
    /// The fragments of the unfinished message, or the message in fragments that `next` returned last.
    joined: Vec<u8>,
    /// What is left of a frame that is skipped.
    skipping: Option<Skipping>,
    /// The peer closed or broke a rule: nothing more is decoded.
    ended: bool,
}

#[derive(Clone, Copy)]
struct Unfinished {
    opcode: OpCode,
    /// Its length so far, as announced by the heads of its frames.
    bytes: usize,
    /// How much of a text is known to be valid UTF-8.
    valid_bytes: usize,
    /// It was given up: the rest of it is skipped.
    is_given_up: bool,
}

#[derive(Clone, Copy)]
struct Skipping {
    bytes: usize,
    ends_message: bool,
}

/// Where a decoded message lies. A range, because the search for it cannot return a borrow and go on.
enum Found {
    Whole(OpCode, Range<usize>),
    Joined(OpCode),
    TooLarge,
}

impl Decoder {
    /// A decoder for one socket. A message above `message_bytes_max` is skipped and reported as
    /// [`Message::TooLarge`]; above [`MESSAGE_BYTES_MAX`], whatever the limit, it is a [`Violation`].
    pub fn new(role: Role, message_bytes_max: usize) -> Self {
        Self {
            role,
            message_bytes_max,
            buffer: Vec::new(),
            start: 0,
            missing_bytes: 0,
            read_bytes: READ_BYTES_MIN,
            unfinished: None,
            joined: Vec::new(),
            skipping: None,
            ended: false,
        }
    }

    /// Starts with bytes that arrived along with the handshake.
    pub fn with_received(mut self, bytes: &[u8]) -> Self {
        self.buffer.extend_from_slice(bytes);
        self
    }

    /// Bytes that are held of a message that is not complete, and bytes that were announced of it. Call it once
    /// [`next`](Self::next) has no more messages.
    #[inline]
    pub fn unfinished(&self) -> (usize, usize) {
        let joined = if self.unfinished.is_some() { self.joined.len() } else { 0 };
        let held = self.buffer.len() - self.start + joined;
        (held, held + self.missing_bytes)
    }

    /// Whether a Close frame has arrived, perhaps behind frames that are not decoded yet.
    pub fn has_close(&self) -> bool {
        let mut from = self.start + self.skipping.map_or(0, |skipping| skipping.bytes);
        while let Some(rest) = self.buffer.get(from..)
            && let Ok(Some(head)) = Head::parse(rest, self.role)
        {
            from += head.bytes + head.payload_bytes;
            if head.opcode == OpCode::Close {
                return from <= self.buffer.len();
            }
        }
        false
    }

    /// Gives up the message that is not complete, and frees its memory. The rest of it is skipped, and its end is reported
    /// as [`Message::TooLarge`].
    pub fn give_up(&mut self) {
        let head = Head::parse(&self.buffer[self.start..], self.role).ok().flatten();
        let message = head.as_ref().and_then(|head| self.message_of(head).ok().flatten());
        match (head, message) {
            (Some(head), Some(message)) => {
                self.skip(&head, message);
                self.skip_arrived();
            }
            // The head of its next frame has not arrived, or a control frame comes first.
            _ => self.joined = Vec::new(),
        }
        self.missing_bytes = 0;
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.is_given_up = true;
        }
    }

    /// Space for the next read, at least 1 KiB. Call it once [`next`](Self::next) has no more messages.
    ///
    /// The space grows fourfold when a read fills it, and halves when a read leaves three quarters of it empty. Memory is
    /// given back only at four times of what is wanted, so that traffic in waves does not allocate at each wave.
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
        let wanted = self.read_bytes.max(held + self.missing_bytes.min(held) + READ_BYTES_MIN);
        if self.buffer.capacity() > 4 * wanted {
            self.buffer.shrink_to(wanted);
        }
        if self.buffer.capacity() < self.read_bytes.max(held + READ_BYTES_MIN) {
            self.buffer.reserve_exact(wanted - held);
        }
        &mut self.buffer
    }

    /// The next complete message or control frame; `None` if more has to be read.
    /// After a [`Message::Close`] or an error there is nothing more, whatever arrives.
    ///
    /// # Errors
    /// The rule the peer broke; the socket is to be closed with its [`close_code`](Violation::close_code).
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "a message borrows the decoder, which no iterator's item can")]
    pub fn next(&mut self) -> Result<Option<Message<'_>>, Violation> {
        let message = match self.find() {
            Ok(None) => return Ok(None),
            Ok(Some(Found::Whole(opcode, range))) => Message::parse(opcode, &self.buffer[range]),
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
            if let Some(Skipping { bytes, ends_message }) = self.skip_arrived() {
                if bytes > 0 {
                    return Ok(None);
                }
                self.skipping = None;
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
            if let Some(message) = message.filter(|m| m.bytes > self.message_bytes_max || m.is_given_up) {
                self.skip(&head, message);
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

    /// Skips the frame at `start`, and drops the earlier fragments of its message.
    fn skip(&mut self, head: &Head, message: Unfinished) {
        self.start += head.bytes;
        self.skipping = Some(Skipping { bytes: head.payload_bytes, ends_message: head.last });
        self.unfinished = Some(message);
        self.joined = Vec::new();
    }

    /// Skips what has arrived of a frame that is skipped, and returns what is left of it; `None` if no frame is skipped.
    #[inline]
    fn skip_arrived(&mut self) -> Option<Skipping> {
        let skipping = self.skipping.as_mut()?;
        let skipped = skipping.bytes.min(self.buffer.len() - self.start);
        self.start += skipped;
        skipping.bytes -= skipped;
        Some(*skipping)
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
            (opcode, None) => Unfinished { opcode, bytes: 0, valid_bytes: 0, is_given_up: false },
        };
        message.bytes += head.payload_bytes;
        if message.bytes > MESSAGE_BYTES_MAX { Err(Violation::TooBig) } else { Ok(Some(message)) }
    }

    /// Adds a fragment. A text is checked as it grows, so that an invalid one is refused early.
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

#[cfg(test)]
mod tests {
    use super::Message::*;
    use super::*;
    use crate::wire::frame::{CONTROL_BYTES_MAX, close, head_len, masked, payloads, text, unmasked};
    use proptest::prelude::*;

    const LIMIT: usize = 300;
    const LAST: u8 = 0x80;

    /// A frame as a client sends it, with a first byte of the test's choice.
    fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let mut frame = Vec::new();
        masked(&mut frame, OpCode::Text, payload.as_ref(), [0x37, 0xfa, 0x21, 0x3d]);
        frame[0] = first;
        frame
    }

    fn continuation(last: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
        frame(last | OpCode::Continuation as u8, payload)
    }

    fn text_start(payload: impl AsRef<[u8]>) -> Vec<u8> {
        frame(OpCode::Text as u8, payload)
    }

    fn message(opcode: OpCode, payload: impl AsRef<[u8]>) -> Vec<u8> {
        frame(LAST | opcode as u8, payload)
    }

    /// Feeds the bytes to a decoder in reads of at most these sizes, in turn; gives what it said, as text.
    fn decode(decoder: &mut Decoder, mut bytes: &[u8], read_sizes: &[usize]) -> Vec<String> {
        let mut said = Vec::new();
        for size in read_sizes.iter().cycle() {
            let space = decoder.space();
            let (read, rest) = bytes.split_at(bytes.len().min(*size).min(space.chunk_mut().len()));
            space.put_slice(read);
            bytes = rest;
            loop {
                match decoder.next() {
                    Ok(Some(message)) => said.push(format!("{message:?}")),
                    Ok(None) => break,
                    Err(violation) => said.push(format!("{violation:?}")),
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        said
    }

    fn check_as(role: Role, frames: &[Vec<u8>], messages: &[Message<'_>], violation: Option<Violation>) {
        let expected = messages.iter().map(|message| format!("{message:?}"));
        let expected: Vec<_> = expected.chain(violation.map(|violation| format!("{violation:?}"))).collect();
        for read_size in [usize::MAX, 1] {
            let said = decode(&mut Decoder::new(role, LIMIT), &frames.concat(), &[read_size]);
            assert_eq!(said, expected, "reads of {read_size}");
        }
    }

    fn check(frames: &[Vec<u8>], messages: &[Message<'_>]) {
        check_as(Role::Server, frames, messages, None);
    }

    fn check_violation(frames: &[Vec<u8>], violation: Violation) {
        check_as(Role::Server, frames, &[], Some(violation));
    }

    /// What a decoder returns when the message that is not complete after some reads is given up.
    fn after_giving_up(arrived: &[u8], rest: &[u8]) -> Vec<String> {
        let mut decoder = Decoder::new(Role::Server, LIMIT);
        let mut said = decode(&mut decoder, arrived, &[usize::MAX]);
        let (held, announced) = decoder.unfinished();
        assert!(0 < held && held <= announced && held <= arrived.len());
        decoder.give_up();
        assert_eq!(decoder.unfinished().0, 0, "nothing of it is held");
        said.extend(decode(&mut decoder, rest, &[usize::MAX]));
        said
    }

    #[test]
    fn a_message_that_is_given_up_is_skipped_and_the_next_is_read() {
        let next = message(OpCode::Text, "next");
        let expected = [format!("{TooLarge:?}"), format!("{:?}", Text("next"))];
        let whole = message(OpCode::Text, "x".repeat(200));
        for middle in [10, 100, whole.len() - 1] {
            let (arrived, rest) = whole.split_at(middle);
            assert_eq!(after_giving_up(arrived, &[rest, &next].concat()), expected, "at {middle}");
        }
        // Between two fragments, within one, and with an empty one at its end.
        let (start, end) = (text_start("x".repeat(100)), continuation(LAST, "y".repeat(100)));
        assert_eq!(after_giving_up(&start, &[&*end, &next].concat()), expected);
        assert_eq!(after_giving_up(&[&*start, &end[..50]].concat(), &[&end[50..], &next].concat()), expected);
        assert_eq!(after_giving_up(&start, &[continuation(LAST, ""), next.clone()].concat()), expected);
        let ping = message(OpCode::Ping, "p");
        let with_ping = after_giving_up(&start, &[&*ping, &end, &next].concat());
        assert_eq!(with_ping, [&[format!("{:?}", Ping(b"p"))], &expected[..]].concat());
    }

    #[test]
    fn a_message_in_one_frame_is_decoded() {
        check(&[], &[]);
        check(&[message(OpCode::Text, "Grüße"), message(OpCode::Text, "")], &[Text("Grüße"), Text("")]);
        check(&[message(OpCode::Binary, [0xff, 0])], &[Binary(&[0xff, 0])]);
        check(&[message(OpCode::Ping, [1]), message(OpCode::Pong, "")], &[Ping(&[1]), Pong(&[])]);
        check(&[message(OpCode::Ping, [7; 125])], &[Ping(&[7; 125])]);
    }

    #[test]
    fn a_client_reads_what_a_server_writes() {
        let mut frames = Vec::new();
        text(&mut frames, b"{}");
        unmasked(&mut frames, OpCode::Binary, &[9; 200]);
        unmasked(&mut frames, OpCode::Pong, b"p");
        close(&mut frames, 1001, "bye");
        let messages = [Text("{}"), Binary(&[9; 200]), Pong(b"p"), Close(Some((1001, "bye")))];
        check_as(Role::Client, &[frames], &messages, None);
        check_as(Role::Client, &[message(OpCode::Text, "{}")], &[], Some(Violation::Masked));
    }

    #[test]
    fn every_form_of_a_length_is_decoded() {
        for len in [0, 1, 125, 126, 127, 65_535, 65_536, 200_000] {
            let payload = "x".repeat(len);
            for role in [Role::Server, Role::Client] {
                let mut frame = Vec::new();
                match role {
                    Role::Server => masked(&mut frame, OpCode::Text, payload.as_bytes(), [1, 2, 3, 4]),
                    Role::Client => text(&mut frame, payload.as_bytes()),
                }
                let mask_len = if role == Role::Server { 4 } else { 0 };
                assert_eq!(frame.len(), head_len(len) + mask_len + len);
                let said = decode(&mut Decoder::new(role, MESSAGE_BYTES_MAX), &frame, &[usize::MAX]);
                assert_eq!(said, [format!("{:?}", Text(&payload))]);
            }
        }
    }

    #[test]
    fn a_head_that_breaks_a_rule_is_refused() {
        for bit in [0x40, 0x20, 0x10] {
            check_violation(&[frame(LAST | bit | OpCode::Text as u8, "")], Violation::ReservedBits);
        }
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            check_violation(&[frame(LAST | opcode, "")], Violation::ReservedOpcode(opcode));
        }
        check_violation(&[vec![0x81, 0]], Violation::Unmasked);
        for opcode in [OpCode::Close, OpCode::Ping, OpCode::Pong] {
            check_violation(&[frame(opcode as u8, "")], Violation::ControlFragmented);
            check_violation(&[message(opcode, [0; 126])], Violation::ControlTooLong);
            check_violation(&[message(opcode, [0; 65_536])], Violation::ControlTooLong);
        }
        check_violation(&[vec![0x81, 0xfe, 0, 125]], Violation::LengthNotMinimal);
        check_violation(&[vec![0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]], Violation::LengthNotMinimal);
        check_violation(&[vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]], Violation::LengthTopBit);
        check_violation(&[vec![0x81, 0xff, 0, 0, 0, 0, 1, 0, 0, 1]], Violation::TooBig);
    }

    #[test]
    fn fragments_are_joined_and_control_frames_may_stand_between() {
        check(
            &[text_start("a"), continuation(0, ""), message(OpCode::Ping, "?"), continuation(LAST, "b")],
            &[Ping(b"?"), Text("ab")],
        );
        check(
            &[frame(OpCode::Binary as u8, [0xff]), continuation(LAST, [0xfe]), message(OpCode::Text, "next")],
            &[Binary(&[0xff, 0xfe]), Text("next")],
        );
        check(
            &[text_start("1"), continuation(LAST, "2"), text_start("3"), continuation(LAST, "4")],
            &[Text("12"), Text("34")],
        );
        check(&[text_start(""), continuation(LAST, "")], &[Text("")]);
        check(&[text_start("a"), message(OpCode::Close, "")], &[Close(None)]);
    }

    #[test]
    fn a_fragment_out_of_order_is_refused() {
        for last in [0, LAST] {
            check_violation(&[continuation(last, "a")], Violation::ContinuationOfNothing);
        }
        for opcode in [OpCode::Text, OpCode::Binary] {
            check_violation(&[text_start("a"), message(opcode, "b")], Violation::Interleaved);
            check_violation(&[text_start("a"), frame(opcode as u8, "b")], Violation::Interleaved);
        }
        let frames = [text_start("a"), continuation(LAST, "b"), continuation(LAST, "c")];
        check_as(Role::Server, &frames, &[Text("ab")], Some(Violation::ContinuationOfNothing));
    }

    #[test]
    fn a_text_is_valid_utf8_as_a_whole() {
        check_violation(&[message(OpCode::Text, [0xff])], Violation::NotUtf8);
        check_violation(&[message(OpCode::Text, [0xed, 0xa0, 0x80])], Violation::NotUtf8);
        check_violation(&[message(OpCode::Text, &"é".as_bytes()[..1])], Violation::NotUtf8);

        let crab = "🦀".as_bytes();
        let bytewise: Vec<_> = (0..4).map(|i| frame([1, 0, 0, LAST][i], &crab[i..=i])).collect();
        check(&bytewise, &[Text("🦀")]);
        check_violation(&[text_start(&crab[..3]), continuation(LAST, "")], Violation::NotUtf8);
        check_violation(&[text_start(&crab[..3]), continuation(0, "x")], Violation::NotUtf8);
        check_violation(&[text_start("fine"), continuation(0, [0xc0])], Violation::NotUtf8);
    }

    #[test]
    fn a_close_frame_is_decoded_or_refused() {
        let with_code = |code: u16, reason: &[u8]| message(OpCode::Close, [&code.to_be_bytes(), reason].concat());
        check(&[message(OpCode::Close, "")], &[Close(None)]);
        check(&[with_code(1000, "tschüß".as_bytes())], &[Close(Some((1000, "tschüß")))]);
        for code in [1000, 1003, 1007, 1014, 3000, 4999] {
            check(&[with_code(code, b"")], &[Close(Some((code, "")))]);
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_535] {
            check_violation(&[with_code(code, b"")], Violation::CloseCode(code));
        }
        check_violation(&[message(OpCode::Close, [3])], Violation::CloseTruncated);
        check_violation(&[with_code(1000, &[0xff])], Violation::NotUtf8);
    }

    #[test]
    fn nothing_follows_a_close_or_a_violation() {
        check(&[message(OpCode::Close, ""), message(OpCode::Text, "late"), vec![0xff; 99]], &[Close(None)]);
        check_violation(&[continuation(LAST, "a"), message(OpCode::Text, "late")], Violation::ContinuationOfNothing);
        check_violation(&[message(OpCode::Text, [0xff]), message(OpCode::Text, "late")], Violation::NotUtf8);
    }

    #[test]
    fn a_message_over_the_limit_is_skipped() {
        let next = message(OpCode::Text, "next");
        let fits = "x".repeat(LIMIT);
        check(&[message(OpCode::Text, &fits), next.clone()], &[Text(&fits), Text("next")]);
        check(&[message(OpCode::Text, [0xff; LIMIT + 1]), next.clone()], &[TooLarge, Text("next")]);
        check(&[message(OpCode::Binary, vec![0; 100_000]), next.clone()], &[TooLarge, Text("next")]);

        let half = "x".repeat(LIMIT / 2);
        check(&[text_start(&half), continuation(LAST, &half), next.clone()], &[Text(&fits), Text("next")]);
        check(
            &[
                text_start(&fits),
                continuation(0, "y"),
                message(OpCode::Ping, ""),
                continuation(0, &half),
                continuation(LAST, ""),
                next.clone(),
            ],
            &[Ping(&[]), TooLarge, Text("next")],
        );
        check_violation(&[text_start("x".repeat(LIMIT + 1)), message(OpCode::Text, "")], Violation::Interleaved);
    }

    #[test]
    fn a_message_over_the_ceiling_ends_at_its_head() {
        let limitless = || Decoder::new(Role::Server, usize::MAX);
        let largest = vec![b'x'; MESSAGE_BYTES_MAX];
        let said = decode(&mut limitless(), &message(OpCode::Text, &largest), &[usize::MAX]);
        assert!(said[0].starts_with("Text(") && said[0].len() > MESSAGE_BYTES_MAX);

        let one_more = &message(OpCode::Text, [largest.as_slice(), b"x"].concat())[..10];
        assert_eq!(decode(&mut limitless(), one_more, &[usize::MAX]), ["TooBig"]);
        let last_straw = [text_start(&largest), continuation(0, "x")].concat();
        assert_eq!(decode(&mut limitless(), &last_straw, &[usize::MAX]), ["TooBig"]);
        assert_eq!(decode(&mut Decoder::new(Role::Server, LIMIT), &last_straw, &[usize::MAX]), ["TooBig"]);
    }

    #[test]
    fn bytes_that_came_with_the_handshake_come_first() {
        let frames = [message(OpCode::Text, "early"), message(OpCode::Text, "late")].concat();
        let (early, late) = frames.split_at(14);
        let mut decoder = Decoder::new(Role::Server, LIMIT).with_received(early);
        assert_eq!(decoder.next(), Ok(Some(Text("early"))));
        assert_eq!(decoder.next(), Ok(None));
        assert_eq!(decode(&mut decoder, late, &[1]), [r#"Text("late")"#]);
    }

    /// What the decoder holds while it waits for the next read.
    fn held_bytes(decoder: &mut Decoder) -> usize {
        decoder.space();
        decoder.buffer.capacity() + decoder.joined.capacity()
    }

    #[test]
    fn memory_follows_the_traffic() {
        let mut decoder = Decoder::new(Role::Server, MESSAGE_BYTES_MAX);
        assert_eq!(held_bytes(&mut decoder), READ_BYTES_MIN);

        let event = message(OpCode::Text, [b'x'; 200]);
        decode(&mut decoder, &event.repeat(10_000), &[usize::MAX]);
        assert!((READ_BYTES_MAX..4 * READ_BYTES_MAX).contains(&held_bytes(&mut decoder)));
        decode(&mut decoder, &event.repeat(10), &[event.len()]);
        assert!(held_bytes(&mut decoder) <= 4 * READ_BYTES_MIN);

        let large = vec![b'x'; 4 << 20];
        for frames in [message(OpCode::Text, &large), [text_start(&large), continuation(LAST, &large)].concat()] {
            assert_eq!(decode(&mut decoder, &frames, &[usize::MAX]).len(), 1);
            assert!(held_bytes(&mut decoder) <= 4 * READ_BYTES_MAX);
        }
    }

    #[test]
    fn a_large_frame_doubles_what_is_held_of_it() {
        let mut decoder = Decoder::new(Role::Server, MESSAGE_BYTES_MAX);
        let frame = message(OpCode::Text, vec![b'x'; 1 << 20]);
        let (most, end) = frame.split_at(frame.len() - 1);
        let mut capacities = Vec::new();
        for (i, read) in most.chunks(100).enumerate() {
            assert!(decode(&mut decoder, read, &[100]).is_empty());
            capacities.push(held_bytes(&mut decoder));
            assert!(capacities[i] <= 2 * (i + 1) * 100 + READ_BYTES_MAX);
        }
        capacities.dedup();
        assert!(capacities.len() < 20, "{capacities:?}");
        assert_eq!(decode(&mut decoder, end, &[1]).len(), 1);
    }

    #[test]
    fn skipped_bytes_are_not_held() {
        let mut decoder = Decoder::new(Role::Server, 2 << 20);
        decode(&mut decoder, &text_start(vec![b'x'; 2 << 20]), &[usize::MAX]);
        for read in continuation(LAST, vec![b'x'; 8 << 20]).chunks(10_000) {
            decode(&mut decoder, read, &[usize::MAX]);
            assert!(held_bytes(&mut decoder) <= 4 * READ_BYTES_MAX);
        }
        assert_eq!(decode(&mut decoder, &message(OpCode::Text, "next"), &[1]), [r#"Text("next")"#]);

        decode(&mut decoder, &message(OpCode::Close, ""), &[usize::MAX]);
        decode(&mut decoder, &vec![b'x'; 1 << 20], &[usize::MAX]);
        assert!(held_bytes(&mut decoder) <= 4 * READ_BYTES_MAX);
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        for (reason, kept) in [("x".repeat(200), 123), ("ü".repeat(100), 122), ("ok".to_owned(), 2)] {
            let mut buf = Vec::new();
            close(&mut buf, 4001, &reason);
            check_as(Role::Client, &[buf], &[Close(Some((4001, &reason[..kept])))], None);
        }
    }

    /// A legal conversation: its frames, and what a decoder with `LIMIT` should say about it.
    fn conversation() -> impl Strategy<Value = (Vec<u8>, Vec<String>)> {
        let spoken = (any::<bool>(), prop::collection::vec(".{0,80}", 1..6), any::<bool>());
        prop::collection::vec(spoken, 0..12).prop_map(|spoken| {
            let (mut frames, mut said) = (Vec::new(), Vec::new());
            for (is_text, parts, ping) in spoken {
                let opcode = if is_text { OpCode::Text } else { OpCode::Binary };
                for (i, part) in parts.iter().enumerate() {
                    let first = if i == 0 { opcode } else { OpCode::Continuation };
                    let last = if i + 1 == parts.len() { LAST } else { 0 };
                    frames.extend(frame(last | first as u8, part));
                    if ping && last == 0 {
                        frames.extend(message(OpCode::Ping, [i as u8]));
                        said.push(format!("{:?}", Ping(&[i as u8])));
                    }
                }
                let whole = parts.concat();
                let message = match opcode {
                    _ if whole.len() > LIMIT => TooLarge,
                    OpCode::Text => Text(&whole),
                    _ => Binary(whole.as_bytes()),
                };
                said.push(format!("{message:?}"));
            }
            (frames, said)
        })
    }

    fn read_sizes() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(prop_oneof![1..8usize, 1..5000usize], 1..20)
    }

    proptest! {
        #[test]
        fn frames_of_one_end_are_read_by_the_other(
            opcode in prop::sample::select(vec![OpCode::Text, OpCode::Binary, OpCode::Ping, OpCode::Pong]),
            len in prop_oneof![0..130usize, 65_530..65_540usize, 0..200_000usize],
            letter in b'a'..=b'z',
            key: [u8; 4],
            sizes in read_sizes(),
        ) {
            let is_control = matches!(opcode, OpCode::Ping | OpCode::Pong);
            let payload = vec![letter; if is_control { len % (CONTROL_BYTES_MAX + 1) } else { len }];
            let said = format!("{:?}", Message::parse(opcode, &payload).expect("a message"));
            let (mut from_client, mut from_server) = (Vec::new(), Vec::new());
            masked(&mut from_client, opcode, &payload, key);
            unmasked(&mut from_server, opcode, &payload);
            for (role, frames) in [(Role::Server, from_client), (Role::Client, from_server.clone())] {
                let heard = decode(&mut Decoder::new(role, MESSAGE_BYTES_MAX), &frames.repeat(2), &sizes);
                prop_assert_eq!(heard, [said.clone(), said.clone()]);
            }
            prop_assert!(payloads(&from_server.repeat(2)).eq([&payload[..], &payload]));
        }

        #[test]
        fn a_close_is_read_with_what_fits_of_its_reason(code in 3000..5000u16, reason in ".{0,130}") {
            let mut frames = Vec::new();
            close(&mut frames, code, &reason);
            let mut decoder = Decoder::new(Role::Client, LIMIT).with_received(&frames);
            let Ok(Some(Close(Some((heard, kept))))) = decoder.next() else { panic!("it is a close") };
            prop_assert!(heard == code && reason.starts_with(kept));
            prop_assert!(kept == reason || kept.len() > CONTROL_BYTES_MAX - 2 - 4);
        }

        #[test]
        fn reads_may_split_anywhere((frames, said) in conversation(), sizes in read_sizes()) {
            prop_assert_eq!(decode(&mut Decoder::new(Role::Server, LIMIT), &frames, &sizes), said);
        }

        #[test]
        fn a_flipped_bit_never_panics_and_means_the_same_in_any_split(
            (mut frames, _) in conversation(),
            place in any::<prop::sample::Index>(),
            bit in 0..8u8,
            sizes in read_sizes(),
        ) {
            if !frames.is_empty() {
                *place.get_mut(&mut frames) ^= 1 << bit;
            }
            let whole = decode(&mut Decoder::new(Role::Server, LIMIT), &frames, &[usize::MAX]);
            prop_assert_eq!(decode(&mut Decoder::new(Role::Server, LIMIT), &frames, &sizes), whole);
        }

        #[test]
        fn noise_never_panics(bytes: Vec<u8>, is_server: bool) {
            let role = if is_server { Role::Server } else { Role::Client };
            decode(&mut Decoder::new(role, LIMIT), &bytes, &[3]);
        }
    }
}
