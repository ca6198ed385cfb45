//! The events that are published, spread over a space of keys.

use std::io::Write as _;

use clap::Args;
use event_pipeline::event::EventTypes;
use serde::Serialize;

use crate::random::Random;

/// The smallest payload with something in it: `{"text":""}`.
const PAYLOAD_BYTES_MIN: u32 = 11;

/// The space of keys, and the size of an event.
#[derive(Args, Debug, Clone, Serialize)]
#[command(next_help_heading = "Events")]
pub struct Events {
    /// Sessions the events are spread over
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub sessions: u32,
    /// Users the events are spread over
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub users: u32,
    /// Size of an event's payload
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(i64::from(PAYLOAD_BYTES_MIN)..))]
    pub payload_bytes: u32,
}

/// The names of all types, sessions and users, by their numbers.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub types: Vec<String>,
    pub sessions: Vec<String>,
    pub users: Vec<String>,
}

/// The type, session and user of one event, as numbers.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    pub event_type: u32,
    pub session: u32,
    pub user: u32,
}

pub fn session(number: u32) -> String {
    format!("session-{number:06}")
}

pub fn user(number: u32) -> String {
    format!("user-{number:06}")
}

/// The built-in types' names.
pub fn types() -> Vec<String> {
    EventTypes::builtin().iter().map(|(name, _)| name.to_owned()).collect()
}

impl Events {
    pub fn names(&self) -> Names {
        let (sessions, users) = ((0..self.sessions).map(session).collect(), (0..self.users).map(user).collect());
        Names { types: types(), sessions, users }
    }

    /// The fields stand in the order in which the server gives them back.
    pub fn render(&self, out: &mut Vec<u8>, keys: Keys, types: &[String], producer: usize, random: &mut Random) {
        let Keys { event_type, session: in_session, user: by } = keys;
        write!(
            out,
            r#"{{"event_type":"{}","source":"loadtest-{producer}","session_id":"{}","user_id":"{}","payload":{{"text":""#,
            types[event_type as usize],
            session(in_session),
            user(by)
        )
        .expect("a vector takes everything");
        let letters = self.payload_bytes - PAYLOAD_BYTES_MIN;
        out.extend((0..letters).map(|_| b'a' + random.below(26) as u8));
        out.extend_from_slice(br#""}}"#);
    }
}
