//! The events that are published, spread over a space of keys.

use std::hash::BuildHasher;
use std::io::Write as _;
use std::str::FromStr;

use clap::Args;
use event_pipeline::event::EventTypes;
use foldhash::fast::FixedState;
use serde::{Serialize, Serializer};

use crate::random::Random;
use crate::recording::{CLASSROOM, Recording};

/// The smallest payload with something in it: `{"text":""}`.
const PAYLOAD_BYTES_MIN: u32 = 11;

/// The field of an idempotency key, and the length of such a key. It is not given back.
pub const KEY_FIELD: &[u8] = br#""idempotency_key":""#;
pub const KEY_BYTES: usize = 16;

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
    /// How unequally: the exponent of a Zipf distribution. 0 gives each the same share, 1 the second half of the first
    #[arg(long, value_name = "S", default_value_t = 0.0, value_parser = skew)]
    pub skew: f64,
    /// Size of an event's payload, or recorded: sizes as they occur in the recorded class
    #[arg(long, value_name = "N", default_value = "40")]
    pub payload_bytes: PayloadBytes,
    /// Give each event an idempotency key of its own
    #[arg(long)]
    pub idempotency_keys: bool,
}

/// How large payloads are; `None` is as in the recording.
#[derive(Debug, Clone, Copy)]
pub struct PayloadBytes(pub Option<u32>);

impl FromStr for PayloadBytes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "recorded" => Ok(Self(None)),
            Ok(bytes) if bytes >= PAYLOAD_BYTES_MIN => Ok(Self(Some(bytes))),
            _ => Err("neither recorded nor a whole number from 11"),
        }
    }
}

impl Serialize for PayloadBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(bytes) => serializer.serialize_u32(bytes),
            None => serializer.serialize_str("recorded"),
        }
    }
}

fn skew(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|skew| (0.0..=10.0).contains(skew)).ok_or("not a number from 0 to 10")
}

/// The names of all types, sessions and users, by their numbers.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub types: Vec<String>,
    pub sessions: Vec<String>,
    pub users: Vec<String>,
}

/// The type, session and user of one event, as numbers, and what it says.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    pub event_type: u32,
    pub session: u32,
    pub user: u32,
    /// See [`content`].
    pub content: u64,
}

/// What an event says, reduced to a number: of the text that a server gives back, without the id that it puts before and
/// the timestamp that it puts behind.
#[inline]
pub fn content(text: &[u8]) -> u64 {
    FixedState::default().hash_one(text)
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

    /// A source of events of one producer, the same ones each time.
    pub fn generator(&self, producer: usize) -> Generator {
        let sizes = match self.payload_bytes.0 {
            Some(bytes) => vec![bytes],
            None => Recording::parse(CLASSROOM).expect("our own recording").payload_bytes(),
        };
        let (sessions, users) = (Zipf::new(self.sessions, self.skew), Zipf::new(self.users, self.skew));
        let is_keyed = self.idempotency_keys;
        Generator { types: types(), sessions, users, sizes, is_keyed, producer, random: Random::new(producer) }
    }
}

/// Renders events.
pub struct Generator {
    types: Vec<String>,
    sessions: Zipf,
    users: Zipf,
    sizes: Vec<u32>,
    is_keyed: bool,
    producer: usize,
    random: Random,
}

impl Generator {
    /// The text of the next event. Its fields stand in the order in which the server gives them back.
    pub fn render(&mut self) -> (Vec<u8>, Keys) {
        let Self { types, sessions, users, sizes, is_keyed, producer, random } = self;
        let (event_type, in_session) = (random.below(types.len() as u32), sessions.draw(random));
        let by = users.draw(random);
        let mut out = Vec::new();
        write!(
            out,
            r#"{{"event_type":"{}","source":"loadtest-{producer}","session_id":"{}","user_id":"{}","payload":{{"text":""#,
            types[event_type as usize],
            session(in_session),
            user(by)
        )
        .expect("a vector takes everything");
        let letters = sizes[random.below(sizes.len() as u32) as usize].saturating_sub(PAYLOAD_BYTES_MIN);
        out.extend((0..letters).map(|_| b'a' + random.below(26) as u8));
        out.extend_from_slice(br#""}}"#);
        let content = content(&out[1..out.len() - 1]);
        if *is_keyed {
            out.splice(1..1, [KEY_FIELD, &[b'0'; KEY_BYTES], b"\","].concat());
        }
        (out, Keys { event_type, session: in_session, user: by, content })
    }
}

/// Numbers of which some are drawn more often: number n as often as 1 / (n + 1)^s.
struct Zipf {
    count: u32,
    /// How likely it is that a number is at most this one; empty where all are equally likely.
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(count: u32, skew: f64) -> Self {
        let weights = (1..=count).map(|rank| f64::from(rank).powf(-skew));
        let sums = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        let sums = if skew > 0.0 { sums.collect::<Vec<_>>() } else { Vec::new() };
        let all = sums.last().copied().unwrap_or(1.0);
        Self { count, cumulative: sums.into_iter().map(|sum| sum / all).collect() }
    }

    fn draw(&self, random: &mut Random) -> u32 {
        if self.cumulative.is_empty() {
            return random.below(self.count);
        }
        let drawn = random.unit();
        (self.cumulative.partition_point(|sum| *sum < drawn) as u32).min(self.count - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_of_a_zipf_distribution_comes_half_as_often_as_the_first() {
        let (zipf, mut random) = (Zipf::new(1_000, 1.0), Random::new(7));
        let mut drawn = vec![0_f64; 1_000];
        (0..200_000).for_each(|_| drawn[zipf.draw(&mut random) as usize] += 1.0);
        // The sum of 1/n up to 1,000 is 7.485.
        let expected = |rank: usize| 200_000.0 / 7.485 / rank as f64;
        for rank in [1, 2, 3, 10] {
            assert!((drawn[rank - 1] / expected(rank) - 1.0).abs() < 0.05, "{rank}: {}", drawn[rank - 1]);
        }
        let (even, mut random) = (Zipf::new(4, 0.0), Random::new(7));
        let drawn = (0..400).fold([0; 4], |mut all, _| {
            all[even.draw(&mut random) as usize] += 1;
            all
        });
        assert!(drawn.iter().all(|count| (60..140).contains(count)), "{drawn:?}");
    }
}
