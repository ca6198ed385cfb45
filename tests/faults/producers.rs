//! Producers that publish until the server is gone, and note every acknowledgement in a [`Record`].

use serde_json::Value;

use super::record::{Record, message_of};
use crate::support::*;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// One event a WebSocket message, many in flight.
    Messages,
    /// One array a WebSocket message, one in flight.
    Arrays,
    /// One event an HTTP request, four in flight.
    Requests,
    /// NDJSON over HTTP, one body in flight.
    Lines,
}

enum Connection {
    Socket(Socket),
    Wire(Wire),
}

pub struct Producer {
    connection: Connection,
    way: Way,
    /// Its tokens begin with this name.
    name: String,
    /// The acknowledgement level that it asks for, if any.
    ack: Option<&'static str>,
}

impl Producer {
    pub fn open(server: &Server, way: Way, name: &str, ack: Option<&'static str>) -> Producer {
        let query = ack.map(|ack| format!("?ack={ack}")).unwrap_or_default();
        let connection = match way {
            Way::Messages | Way::Arrays => {
                Connection::Socket(Socket::open(server.addr, &format!("/ws/publish{query}")))
            }
            Way::Requests | Way::Lines => Connection::Wire(Wire::connect(server.addr)),
        };
        Producer { connection, way, name: name.to_string(), ack }
    }

    /// Publishes at most `most` events until the server is gone, and returns the reasons of all refusals.
    pub fn publish(mut self, record: &Record, most: usize) -> Vec<String> {
        let (mut refused, mut n) = (Vec::new(), 0);
        for turn in 0.. {
            let count = match self.way {
                Way::Requests => 4,
                // Between 1 and 32 events.
                _ => 1 + turn * 7 % 32,
            };
            if n + count > most {
                break;
            }
            let tokens: Vec<_> = (n..n + count).map(|n| format!("{}/{n}", self.name)).collect();
            n += count;
            let goes_on = match self.way {
                Way::Messages => self.messages(record, &tokens, &mut refused),
                Way::Arrays => self.array(record, &tokens, &mut refused),
                Way::Requests => self.requests(record, &tokens, &mut refused),
                Way::Lines => self.lines(record, &tokens, &mut refused),
            };
            if goes_on.is_none() {
                break;
            }
        }
        refused
    }

    /// Whether an acknowledgement promises a sync: it names its level if the producer asked for one, else it is the
    /// default.
    fn is_synced(&self, record: &Record, level: Option<&str>) -> bool {
        assert_eq!(
            self.ack.is_some(),
            level.is_some(),
            "an acknowledgement names its level if and only if the producer asked for one"
        );
        level.map_or(record.syncs, |level| level == "synced")
    }

    fn messages(&mut self, record: &Record, tokens: &[String], refused: &mut Vec<String>) -> Option<()> {
        let Connection::Socket(socket) = &mut self.connection else { unreachable!() };
        for token in tokens {
            socket.send(&message_of(token));
        }
        for token in tokens {
            let answer = self.receive()?;
            if answer["status"] != "ok" {
                refused.push(text_of(&answer["message"]));
            } else if answer["ack"] != "queued" {
                record.note(token, &answer["event_id"], self.is_synced(record, answer["ack"].as_str()));
            }
        }
        Some(())
    }

    fn array(&mut self, record: &Record, tokens: &[String], refused: &mut Vec<String>) -> Option<()> {
        let Connection::Socket(socket) = &mut self.connection else { unreachable!() };
        let messages: Vec<_> = tokens.iter().map(|token| message_of(token)).collect();
        socket.send(&format!("[{}]", messages.join(",")));
        let answer = self.receive()?;
        if answer["status"] != "ok" {
            refused.push(text_of(&answer["message"]));
        } else if answer["ack"] != "queued" {
            let is_synced = self.is_synced(record, answer["ack"].as_str());
            for (token, id) in tokens.iter().zip(answer["event_ids"].as_array().unwrap()) {
                record.note(token, id, is_synced);
            }
        }
        Some(())
    }

    fn receive(&mut self) -> Option<Value> {
        let Connection::Socket(socket) = &mut self.connection else { unreachable!() };
        match socket.receive() {
            Received::Text(answer) => Some(serde_json::from_str(&answer).unwrap()),
            _ => None,
        }
    }

    fn requests(&mut self, record: &Record, tokens: &[String], refused: &mut Vec<String>) -> Option<()> {
        let target = self.target();
        let request = |token| request("POST", &target, &[JSON], message_of(token).as_bytes());
        let wire = self.wire();
        wire.send(tokens.iter().flat_map(|token| request(token)).collect::<Vec<_>>());
        for token in tokens {
            let response = self.wire().response()?;
            if response.status >= 300 {
                refused.push(format!("{} {}", response.status, response.text()));
            } else if response.status != 202 {
                record.note(token, &response.json()["id"], self.is_synced(record, response.header("ack-level")));
            }
        }
        Some(())
    }

    fn lines(&mut self, record: &Record, tokens: &[String], refused: &mut Vec<String>) -> Option<()> {
        let body: Vec<_> = tokens.iter().map(|token| message_of(token)).collect();
        let request = request("POST", &self.target(), &[NDJSON], body.join("\n").as_bytes());
        self.wire().send(request);
        let response = self.wire().response()?;
        if response.status >= 300 {
            refused.push(format!("{} {}", response.status, response.text()));
        } else if response.status != 202 {
            let is_synced = self.is_synced(record, response.header("ack-level"));
            for (token, id) in tokens.iter().zip(response.json()["ids"].as_array().unwrap()) {
                record.note(token, id, is_synced);
            }
        }
        Some(())
    }

    fn wire(&mut self) -> &mut Wire {
        let Connection::Wire(wire) = &mut self.connection else { unreachable!() };
        wire
    }

    fn target(&self) -> String {
        format!("/events{}", self.ack.map(|ack| format!("?ack={ack}")).unwrap_or_default())
    }
}
