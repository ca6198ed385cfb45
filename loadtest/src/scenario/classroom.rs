//! The scenario `classroom`: many copies of a recorded class, watched on dashboards.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use crate::deliveries::{Audience, FilterBy};
use crate::events::{Keys, Names, content};
use crate::latency::Operation;
use crate::machine;
use crate::numbers::grouped;
use crate::options::{Common, defaults};
use crate::recording::{self, Recording, mark};
use crate::report::Report;
use crate::requests::{Framing, Requests};
use crate::schedule::{Arrivals, Recorded};
use crate::tracker::Dialect;
use crate::workload::{Publisher, Site, Turn, Workload};

/// Replay many copies of a recorded class at its recorded times or faster, with dashboards that watch them
///
/// Each class is the recording with ids of its own. A subscription asks for one session, so a dashboard has as many
/// as its class has sessions, each a connection. Verifies that every subscription gets exactly the events of its
/// session, in order and once, each as it was recorded, and that all of them are stored.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Classroom {
    /// Classes at one time
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    classes: u32,
    /// Dashboards of each class, each with a subscription to every session of the class
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(..=10_000))]
    dashboards: u32,
    /// Further dashboards that get the events of all classes, each through a single subscription
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=10_000))]
    overviews: u32,
    /// How many times as fast as it was recorded, or max: as fast as possible
    #[arg(long, value_name = "FACTOR", default_value = "1")]
    speed: Speed,
    /// Connections that each class publishes on, among which its sessions are divided [default: one for each session]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections: Option<u32>,
    /// Events in flight on each connection at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// Start all classes at the beginning of the recording; otherwise each starts at another part of it, so that the
    /// load is even
    #[arg(long)]
    together: bool,
    /// Another recording: lines of the form {"offset_ms": …, "event": {…}} [default: 56 students, 16 exam timers]
    #[arg(long, value_name = "FILE")]
    recording: Option<PathBuf>,
}

/// The factor by which recorded times are divided; `None` ignores them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Speed(Option<f64>);

impl FromStr for Speed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "max" => Ok(Self(None)),
            Ok(factor) if (0.001..=1e6).contains(&factor) => Ok(Self(Some(factor))),
            _ => Err("neither max nor a number from 0.001 to 1000000"),
        }
    }
}

impl Classroom {
    /// So many classes, each as by default.
    pub fn of(classes: u32) -> Self {
        Self { classes, ..defaults() }
    }

    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let classes = Classes::new(self.recording()?, self.classes as usize, self.together);
        let of_class = classes.recording.sessions.len();
        let all = of_class * self.classes as usize;
        let connections = self.connections.unwrap_or(of_class as u32) as usize;
        ensure!(connections <= of_class, "a class has {of_class} sessions: too few for {connections} connections");
        let watching = self.dashboards as usize * all + self.overviews as usize;
        let publishing = self.classes as usize * connections;
        machine::ensure_open_files(watching + publishing)?;

        let site = Site::new(&common.target.with_slots(watching, publishing)).await?;
        let audiences = [
            Audience::new(FilterBy::Session, self.dashboards * all as u32),
            Audience::new(FilterBy::All, self.overviews),
        ];
        let subscribers = site.subscribers(classes.names(), &audiences, self.window, None).await?;
        let mut publishers = Vec::new();
        for (number, (requests, times)) in classes.played(connections).enumerate() {
            let (connection, _) =
                site.connect(Dialect::WebSocket).await.with_context(|| format!("publisher {number}"))?;
            let mut publisher = Publisher::new(connection, requests.into(), Dialect::WebSocket, self.window as usize);
            if let Speed(Some(speed)) = self.speed {
                publisher.turn = Turn::Own(Arrivals::Recorded(Recorded { speed, ..times }));
            }
            publishers.push(publisher);
        }
        let counted = if watching > 0 { Operation::Delivery } else { Operation::Acknowledgement };
        let workload = Workload { subscribers: Some(subscribers), ..Workload::new(counted, publishers) };
        let driven = workload.drive(&site, common).await?;

        let speed = match self.speed {
            Speed(None) => "as fast as it goes".to_owned(),
            Speed(Some(1.0)) => "as they were recorded".to_owned(),
            Speed(Some(factor)) => format!("{factor} × as fast as recorded"),
        };
        let [watching, publishing, count] = [watching, publishing, self.classes as usize].map(|n| grouped(n as f64));
        let title = format!("{count} classes {speed}, {publishing} producers, {watching} subscribers");
        Report::of("classroom", title, self, common, &driven).finish(driven, site).await
    }

    fn recording(&self) -> anyhow::Result<Recording> {
        let Some(file) = &self.recording else { return Recording::parse(recording::CLASSROOM) };
        let read = fs::read_to_string(file).map_err(anyhow::Error::from);
        read.and_then(|text| Recording::parse(&text)).with_context(|| file.display().to_string())
    }
}

/// Copies of a recording. Sessions are counted over all classes, class by class.
struct Classes {
    recording: Recording,
    /// The event with which each class begins.
    begins: Vec<usize>,
}

impl Classes {
    fn new(recording: Recording, classes: usize, together: bool) -> Self {
        let begin = |class: usize| if together { 0.0 } else { class as f64 / classes as f64 };
        let begins = (0..classes).map(|class| recording.first_from(recording.lap().mul_f64(begin(class))));
        Self { begins: begins.collect(), recording }
    }

    fn names(&self) -> Names {
        let ids = |mark| self.recording.sessions.iter().map(move |id| format!("{id}{mark}"));
        Names { sessions: (0..self.begins.len()).map(mark).flat_map(ids).collect(), ..Names::default() }
    }

    /// What each connection publishes, and when, class by class; `connections` is their number in each class.
    fn played(&self, connections: usize) -> impl Iterator<Item = (Requests, Recorded)> {
        let Self { recording, begins } = self;
        let of_class = move |class: usize| {
            let hands = recording.deal(begins[class], connections, |session| session % connections);
            hands.into_iter().enumerate().map(move |(hand, events)| {
                let mark = mark(class);
                let rendered = events.iter().map(|event| {
                    let event = &recording.events[*event];
                    let (mut sent, mut delivered) = (Vec::new(), Vec::new());
                    event.sent.write(&mut sent, &mark);
                    event.delivered.write(&mut delivered, &mark);
                    let session = (class * recording.sessions.len() + event.session) as u32;
                    // No subscriber filters by type or user.
                    (sent, Keys { event_type: 0, session, user: 0, content: content(&delivered) })
                });
                let number = class * connections + hand;
                let requests = Requests::of_events(rendered, 1, &Framing::WebSocket, number);
                let times = Recorded {
                    offsets: events.iter().map(|event| recording.events[*event].offset).collect(),
                    lap: recording.lap(),
                    begin: recording.events[begins[class]].offset,
                    speed: 1.0,
                    past: 0,
                };
                (requests, times)
            })
        };
        (0..begins.len()).flat_map(of_class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer;
    use std::collections::HashSet;
    use std::time::Duration;

    use event_pipeline::wire::decoder::{Decoder, Message};
    use event_pipeline::wire::frame::Role;

    fn classes(count: usize, together: bool) -> Classes {
        Classes::new(Recording::parse(recording::CLASSROOM).expect("a recording"), count, together)
    }

    #[test]
    fn no_two_classes_share_an_id() {
        let classes = classes(30, false);
        let sessions = classes.names().sessions;
        assert_eq!((sessions.len(), sessions.iter().collect::<HashSet<_>>().len()), (30 * 72, 30 * 72));
        assert!(sessions[72].starts_with(&classes.recording.sessions[0]) && sessions[72].ends_with("@1"));
    }

    #[test]
    fn every_connection_sends_the_events_of_its_sessions_once_a_lap() {
        for (connections, together) in [(1, false), (3, true), (72, false)] {
            let (classes, mut total) = (classes(4, together), 0);
            for (number, (requests, times)) in classes.played(connections).enumerate() {
                let count = times.offsets.len() as u64;
                let mut bytes = Vec::new();
                requests.write(&mut bytes, 0, count as usize);
                let mut decoder = Decoder::new(Role::Server, 1 << 20).with_received(&bytes);
                for event in 0..count {
                    let Ok(Some(Message::Text(text))) = decoder.next() else { panic!("no text") };
                    let keys = requests.keys(event);
                    let session = keys.session as usize;
                    assert_eq!(session / 72 * connections + session % 72 % connections, number);
                    assert!(
                        text.contains(&format!(r#""session_id":"{}""#, classes.names().sessions[session])),
                        "{text}"
                    );
                    // It comes back as it was sent.
                    let back = format!(r#"{{"id":"evt_000000000001",{}"#, &text[1..]);
                    let delivery = answer::of_delivery(back.as_bytes()).expect("an event").expect("an event");
                    assert_eq!(delivery.content, keys.content, "{text}");
                }
                total += count;
            }
            assert_eq!(total, 4 * 6_571);
        }
    }

    #[test]
    fn a_speed_is_a_factor_or_max() {
        assert_eq!([Ok(Speed(None)), Ok(Speed(Some(0.5)))], ["max", "0.5"].map(str::parse));
        for text in ["", "0", "-1", "NaN", "inf", "fast"] {
            assert!(text.parse::<Speed>().is_err(), "{text}");
        }
    }

    #[test]
    fn classes_are_spread_over_the_recording_unless_they_begin_together() {
        let (spread, together) = (classes(4, false), classes(4, true));
        assert_eq!(together.begins, [0; 4]);
        let lap = spread.recording.lap();
        let offsets = spread.begins.iter().map(|begin| spread.recording.events[*begin].offset).collect::<Vec<_>>();
        assert!((1..4).all(|class| offsets[class] >= lap * class as u32 / 4), "{offsets:?}");
        // In any second as many events as in any other, more or less.
        let arrivals = spread.played(1).map(|(_, times)| Arrivals::Recorded(times)).collect::<Vec<_>>();
        let seconds = Duration::from_secs;
        let of_second = |second| {
            let of_class = |arrivals: &Arrivals| arrivals.count(seconds(second), seconds(second + 10));
            arrivals.iter().map(of_class).sum::<u64>()
        };
        let loads = (0..17).map(|tens| of_second(tens * 10)).collect::<Vec<_>>();
        assert!(loads.iter().max() < loads.iter().min().map(|least| 2 * least).as_ref(), "{loads:?}");
    }
}
