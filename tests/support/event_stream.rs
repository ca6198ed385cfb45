//! A client for Server-Sent Events: it splits the chunks of a body into blocks of lines.

use std::collections::VecDeque;
use std::net::SocketAddr;

use serde_json::Value;

use super::http::{Response, Wire, request};
use super::interface::check_block;
use super::sequence;

/// An event stream whose response head was read.
pub struct EventStream {
    wire: Wire,
    /// Blocks that were read and not returned yet, and the beginning of the next one.
    blocks: VecDeque<Block>,
    rest: Vec<u8>,
}

/// A part of an event stream.
#[derive(Debug, PartialEq)]
pub enum StreamPart {
    Block(Block),
    /// The body is complete.
    End,
    BrokenOff,
}

/// The lines up to an empty line.
#[derive(Debug, Default, PartialEq)]
pub struct Block {
    pub comment: Option<String>,
    pub retry: Option<u64>,
    pub event: Option<String>,
    pub id: Option<String>,
    pub data: Option<String>,
}

impl Block {
    pub fn of(text: &str) -> Block {
        let mut block = Block::default();
        for line in text.lines() {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?} is no field"));
            let value = value.to_string();
            let place = match name {
                "" => &mut block.comment,
                "event" => &mut block.event,
                "id" => &mut block.id,
                "data" => &mut block.data,
                "retry" => {
                    block.retry = Some(value.parse().unwrap());
                    continue;
                }
                _ => panic!("{line:?} has an unknown name"),
            };
            assert!(place.replace(value).is_none(), "{text:?} says {name} twice");
        }
        block
    }

    pub fn json(&self) -> Value {
        let data = self.data.as_ref().unwrap_or_else(|| panic!("no data in {self:?}"));
        serde_json::from_str(data).unwrap_or_else(|error| panic!("{error} in {data}"))
    }

    /// The event of this block. Its id is in both `id:` and `data:`.
    fn stored_event(&self) -> Value {
        let event = self.json();
        assert_eq!(self.event, None, "{self:?} is not of the type that `onmessage` sees");
        assert_eq!(event["id"].as_str(), self.id.as_deref());
        event
    }
}

impl EventStream {
    /// Opens `/events/stream?…`, without reading the first block.
    pub fn ask(addr: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Result<EventStream, Response> {
        EventStream::over(Wire::connect(addr), target, headers)
    }

    /// The same over an open connection.
    pub fn over(mut wire: Wire, target: &str, headers: &[(&str, &str)]) -> Result<EventStream, Response> {
        wire.send(request("GET", target, headers, b""));
        let mut head = wire.response_head().expect("an answer");
        if head.status == 200 {
            return Ok(EventStream { wire, blocks: VecDeque::new(), rest: Vec::new() });
        }
        head.body = wire.body(&head);
        Err(head)
    }

    /// Opens a stream that must be accepted, and reads its first block.
    pub fn open(addr: SocketAddr, query: &str) -> EventStream {
        EventStream::resume(addr, query, &[])
    }

    pub fn resume(addr: SocketAddr, query: &str, headers: &[(&str, &str)]) -> EventStream {
        let opened = EventStream::ask(addr, &format!("/events/stream?{query}"), headers);
        let mut stream = opened.unwrap_or_else(|refusal| panic!("{query}: {} {}", refusal.status, refusal.text()));
        let greeting = stream.block();
        assert_eq!(greeting.event.as_deref(), Some("subscribed"), "the greeting comes first");
        assert!(greeting.retry.is_some(), "the greeting says when to come back");
        stream
    }

    pub fn receive(&mut self) -> StreamPart {
        loop {
            if let Some(block) = self.blocks.pop_front() {
                check_block(&block);
                return StreamPart::Block(block);
            }
            match self.wire.chunk() {
                None => return StreamPart::BrokenOff,
                Some(chunk) if chunk.is_empty() => {
                    assert!(self.rest.is_empty(), "half a block before the end");
                    return StreamPart::End;
                }
                Some(chunk) => self.rest.extend_from_slice(&chunk),
            }
            if let Some(end) = self.rest.windows(2).rposition(|pair| pair == b"\n\n") {
                let whole: Vec<_> = self.rest.drain(..end + 2).collect();
                let whole = String::from_utf8(whole).expect("a stream in UTF-8");
                self.blocks.extend(whole.split_terminator("\n\n").map(Block::of));
            }
        }
    }

    pub fn block(&mut self) -> Block {
        match self.receive() {
            StreamPart::Block(block) => block,
            other => panic!("{other:?} instead of a block"),
        }
    }

    /// The next event. Keep-alives before it are ignored.
    pub fn event(&mut self) -> Value {
        loop {
            let block = self.block();
            if block.data.is_some() {
                return block.stored_event();
            }
        }
    }

    /// The next note: its type and its data.
    pub fn note(&mut self) -> (String, Value) {
        let block = self.block();
        (block.event.clone().unwrap_or_else(|| panic!("{block:?} is no note")), block.json())
    }

    /// The sequence numbers of the next `n` events.
    pub fn sequences(&mut self, n: usize) -> Vec<u64> {
        (0..n).map(|_| sequence(&self.event()["id"])).collect()
    }

    /// The connection, for requests after the end of the stream.
    pub fn into_wire(self) -> Wire {
        self.wire
    }
}

/// The sequence numbers of a stream that was read to its end, where it must say that it is complete.
pub fn complete_stream(response: &Response) -> Vec<u64> {
    assert_eq!(response.status, 200, "{}", response.text());
    let text = response.text();
    let mut blocks: Vec<_> = text.split_terminator("\n\n").map(Block::of).collect();
    let last = blocks.pop().expect("a stream with blocks");
    assert_eq!(last.event.as_deref(), Some("complete"), "{last:?}");
    blocks.iter().for_each(check_block);
    let events = blocks.iter().filter(|block| block.id.is_some());
    events.map(|block| sequence(&block.stored_event()["id"])).collect()
}
