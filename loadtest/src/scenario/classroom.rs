//! The scenario `classroom`: many copies of a recorded class, watched on dashboards.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use crate::connection::{Connection, Scratch};
use crate::deliveries::{Deliveries, FilterBy};
use crate::events::{Keys, Names};
use crate::flow::Flow;
use crate::latency::Operation;
use crate::machine;
use crate::options::Common;
use crate::producer::Producer;
use crate::recording::{self, Recording};
use crate::replay::{Due, DueQueue, ReplaySchedule};
use crate::report::{Findings, Report, grouped};
use crate::requests::{Framing, Requests};
use crate::run::{Run, WARM_UP};
use crate::schedule::Rate;
use crate::subscriber::{EventCheck, Subscribers};
use crate::target::Target;
use crate::tasks::Tasks;
use crate::tracker::{Dialect, RequestTracker};

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
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let classes = Classes::new(self.recording()?, self.classes as usize, self.together);
        let (all, of_class) = (classes.sessions(), classes.recording.sessions.len());
        let connections = self.connections.unwrap_or(of_class as u32) as usize;
        ensure!(connections <= of_class, "a class has {of_class} sessions: too few for {connections} connections");
        let watching = self.dashboards as usize * all + self.overviews as usize;
        let publishing = self.classes as usize * connections;
        machine::ensure_open_files(watching + publishing)?;

        let target = Target::new(&common.target.with_slots(watching, publishing)).await?;
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        let scratch = Scratch::default();
        let asking = [(FilterBy::Session, self.dashboards * all as u32), (FilterBy::All, self.overviews)];
        let deliveries = Rc::new(Deliveries::with_names(newest, classes.names(), &asking, self.window, false));
        let connected = Subscribers::connect(deliveries.clone(), &target, &scratch).await?;
        let mut ready = Vec::new();
        for (number, requests) in classes.requests(connections).enumerate() {
            let connection = Connection::web_socket(&target, "/ws/publish", &scratch).await;
            ready.push((connection.with_context(|| format!("publisher {number}"))?, requests));
        }

        let counted = if watching > 0 { Operation::Delivery } else { Operation::Acknowledgement };
        let run = Run::new(counted, newest);
        let mut tasks = Tasks::default();
        let queues = ready.iter().map(|_| Rc::<DueQueue>::default()).collect::<Vec<_>>();
        for ((connection, requests), queue) in ready.into_iter().zip(&queues) {
            let flow = match self.speed {
                Speed(None) => Flow::Window,
                Speed(Some(_)) => Flow::Replayed(queue.clone()),
            };
            let tracker = RequestTracker::new(run.clone(), requests.into(), Dialect::WebSocket)
                .with_deliveries(deliveries.clone());
            tasks.spawn(Producer::new(connection, flow, self.window as usize, tracker).run());
        }
        if let Speed(Some(speed)) = self.speed {
            let (queues, recording) = (queues.clone(), classes.recording.clone());
            let queue_of = move |due: &Due| due.class * connections + recording.events[due.event].session % connections;
            tasks.spawn_endless(classes.schedule(speed).run(run.start, queues, queue_of));
        }
        let classes = Rc::new(classes);
        connected.listen_and_check(&run, &mut tasks, |number| {
            let session = (number < watching - self.overviews as usize).then_some(number % all);
            Some(Classes::check(classes.clone(), session))
        });
        let measured = tasks.measure(&run, common, &target).await?;
        run.stop();
        queues.iter().for_each(|queue| queue.wake());
        tasks.finish(&run).await?;
        deliveries.check(&run).await;
        tasks.shutdown().await;
        run.check_stored(&target, stored).await?;

        let rate = self.speed.0.map(|speed| {
            let schedule = classes.schedule(speed);
            let due = schedule.count(WARM_UP + measured.elapsed) - schedule.count(WARM_UP);
            (due as f64 / measured.elapsed.as_secs_f64()) as u64
        });
        let speed = match self.speed {
            Speed(None) => "as fast as it goes".to_owned(),
            Speed(Some(1.0)) => "as they were recorded".to_owned(),
            Speed(Some(factor)) => format!("{factor} × as fast as recorded"),
        };
        let [watching, publishing, count] = [watching, publishing, self.classes as usize].map(|n| grouped(n as f64));
        let title = format!("{count} classes {speed}, {publishing} producers, {watching} subscribers");
        Ok(Report::new(Findings::new("classroom", title, self).at(Rate(rate)), &run, measured, target.stop()?))
    }

    fn recording(&self) -> anyhow::Result<Recording> {
        let Some(file) = &self.recording else { return Recording::parse(recording::CLASSROOM) };
        let read = fs::read_to_string(file).map_err(anyhow::Error::from);
        read.and_then(|text| Recording::parse(&text)).with_context(|| file.display().to_string())
    }
}

/// Copies of a recording. Sessions are counted over all classes, class by class.
struct Classes {
    recording: Rc<Recording>,
    /// The mark that makes ids of the recording ids of each class.
    marks: Vec<String>,
    /// The event with which each class begins.
    begins: Vec<usize>,
    /// The events of each session in the order they are sent in, again and again.
    played: Vec<Vec<usize>>,
    /// Each session's number, by its id.
    numbers: HashMap<String, usize>,
}

impl Classes {
    fn new(recording: Recording, classes: usize, together: bool) -> Self {
        let begin = |class: usize| if together { 0.0 } else { class as f64 / classes as f64 };
        let begins = (0..classes).map(|class| recording.first_from(recording.lap().mul_f64(begin(class))));
        let begins = begins.collect::<Vec<_>>();
        let sessions = recording.sessions.len();
        let played = begins.iter().flat_map(|from| recording.deal(*from, sessions, |session| session)).collect();
        let marks = (0..classes).map(recording::mark).collect();
        let mut classes = Self { recording: recording.into(), marks, begins, played, numbers: HashMap::new() };
        classes.numbers = (0..).zip(classes.names().sessions).map(|(number, id)| (id, number)).collect();
        classes
    }

    /// Of all classes.
    fn sessions(&self) -> usize {
        self.played.len()
    }

    fn names(&self) -> Names {
        let ids = |mark| self.recording.sessions.iter().map(move |id| format!("{id}{mark}"));
        Names { sessions: self.marks.iter().flat_map(ids).collect(), ..Names::default() }
    }

    fn schedule(&self, speed: f64) -> ReplaySchedule {
        ReplaySchedule::new(&self.recording, &self.begins, speed)
    }

    /// What each connection publishes, class by class; `connections` is their number in each class.
    fn requests(&self, connections: usize) -> impl Iterator<Item = Requests> {
        let of_class = move |class: usize| {
            let hands = self.recording.deal(self.begins[class], connections, |session| session % connections);
            hands.into_iter().enumerate().map(move |(hand, events)| {
                let events = events.into_iter().map(|event| {
                    let event = &self.recording.events[event];
                    let mut body = Vec::new();
                    event.sent.write(&mut body, &self.marks[class]);
                    let session = class * self.recording.sessions.len() + event.session;
                    // No subscriber filters by type or user.
                    (body, Keys { event_type: 0, session: session as u32, user: 0 })
                });
                Requests::of_events(events, &Framing::WebSocket, class * connections + hand)
            })
        };
        (0..self.begins.len()).flat_map(of_class)
    }

    /// Whether a text is the event of a session that follows `before` others of the session.
    fn is_played(&self, session: usize, before: u64, text: &[u8]) -> bool {
        let (class, played) = (session / self.recording.sessions.len(), &self.played[session]);
        let event = &self.recording.events[played[(before % played.len() as u64) as usize]];
        // Before what was sent stands the id.
        const ID_BYTES: usize = r#"{"id":"evt_000000000000","#.len();
        text.get(ID_BYTES..).is_some_and(|text| event.delivered.begins(text, &self.marks[class]))
    }

    /// The session that an event says it belongs to.
    fn session_of(&self, text: &[u8]) -> Option<usize> {
        const NAME: &[u8] = br#""session_id":""#;
        let at = text.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
        let id = text[at..].split(|byte| *byte == b'"').next()?;
        self.numbers.get(str::from_utf8(id).ok()?).copied()
    }

    /// A check that each event is the next one of its session: of the given session or, without one, of any.
    fn check(classes: Rc<Self>, session: Option<usize>) -> EventCheck {
        let mut seen = vec![0; if session.is_some() { 1 } else { classes.sessions() }];
        Box::new(move |text| {
            let wrong = |what: String| Some(format!("{what}: {}", String::from_utf8_lossy(text)));
            let Some(number) = session.or_else(|| classes.session_of(text)) else {
                return wrong("which belongs to no class".to_owned());
            };
            let seen = &mut seen[if session.is_some() { 0 } else { number }];
            let is_next = classes.is_played(number, *seen, text);
            *seen += 1;
            let (class, number) =
                (number / classes.recording.sessions.len(), number % classes.recording.sessions.len());
            let session = format!("{}{}", classes.recording.sessions[number], classes.marks[class]);
            if is_next { None } else { wrong(format!("which is not what comes next of session {session}")) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_pipeline::wire::decoder::{Decoder, Message};
    use event_pipeline::wire::frame::Role;
    use std::collections::HashSet;
    use std::time::Duration;

    fn classes(count: usize, together: bool) -> Classes {
        Classes::new(Recording::parse(recording::CLASSROOM).expect("a recording"), count, together)
    }

    /// An event as it is delivered.
    fn delivered(classes: &Classes, session: usize, before: u64) -> Vec<u8> {
        let of_class = classes.recording.sessions.len();
        let played = &classes.played[session];
        let mut text = br#"{"id":"evt_0000000000ff","#.to_vec();
        let event = &classes.recording.events[played[before as usize % played.len()]];
        event.delivered.write(&mut text, &classes.marks[session / of_class]);
        text.extend_from_slice(br#""2026-01-15T10:30:00.000000Z"}"#);
        text
    }

    #[test]
    fn no_two_classes_share_an_id() {
        let classes = classes(30, false);
        let sessions = classes.names().sessions;
        assert_eq!((sessions.len(), sessions.iter().collect::<HashSet<_>>().len()), (30 * 72, 30 * 72));
        assert!(sessions[72].starts_with(&classes.recording.sessions[0]) && sessions[72].ends_with("@1"));
    }

    #[test]
    fn every_connection_sends_its_sessions_in_the_order_that_is_expected() {
        for (connections, together) in [(1, false), (3, true), (72, false)] {
            let classes = classes(4, together);
            let mut before = vec![0_u64; classes.sessions()];
            let mut total = 0;
            for (number, requests) in classes.requests(connections).enumerate() {
                // Two laps of it.
                let hands = classes.recording.deal(0, connections, |session| session % connections);
                let count = 2 * hands[number % connections].len() as u64;
                let mut bytes = Vec::new();
                requests.write(&mut bytes, 0, count as usize);
                let mut decoder = Decoder::new(Role::Server, 1 << 20).with_received(&bytes);
                for event in 0..count {
                    let Ok(Some(Message::Text(text))) = decoder.next() else { panic!("no text") };
                    let session = requests.keys(event).session as usize;
                    assert_eq!(session / 72 * connections + session % 72 % connections, number);
                    let delivered = delivered(&classes, session, before[session]);
                    assert!(classes.is_played(session, before[session], &delivered));
                    assert_eq!(classes.session_of(text.as_bytes()), Some(session));
                    let (sent, delivered) = (fields(text.as_bytes()), fields(&delivered));
                    assert!(sent.iter().all(|(name, value)| delivered.get(name) == Some(value)), "{sent:?}");
                    before[session] += 1;
                }
                total += count;
            }
            assert_eq!(total, 2 * 4 * 6_571);
        }
    }

    fn fields(text: &[u8]) -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_slice(text).expect("an object")
    }

    #[test]
    fn an_event_out_of_order_is_reported() {
        let classes = Rc::new(classes(3, false));
        let (own, other) = (5, 72 + 5);
        for session in [Some(own), None] {
            let mut check = Classes::check(classes.clone(), session);
            for before in 0..300 {
                assert_eq!(check(&delivered(&classes, own, before)), None, "{session:?}");
            }
            let told = check(&delivered(&classes, own, 301)).expect("one is missing");
            let expected = format!("which is not what comes next of session {}@0: ", classes.recording.sessions[own]);
            assert!(told.starts_with(&expected), "{told}");
        }
        let told = Classes::check(classes.clone(), Some(own))(&delivered(&classes, other, 0));
        assert!(told.expect("another's event").contains("which is not what comes next"));
        assert_eq!(Classes::check(classes.clone(), None)(&delivered(&classes, other, 0)), None);
        let told = Classes::check(classes.clone(), None)(br#"{"id":"evt_000000000001","session_id":"x"}"#);
        assert!(told.expect("nobody's event").starts_with("which belongs to no class: {"));
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
        let schedule = spread.schedule(1.0);
        let of_second = |second: u64| {
            schedule.count(Duration::from_secs(second + 10)) - schedule.count(Duration::from_secs(second))
        };
        let loads = (0..170).map(of_second).collect::<Vec<_>>();
        assert!(loads.iter().max() < loads.iter().min().map(|least| 2 * least).as_ref(), "{loads:?}");
    }
}
