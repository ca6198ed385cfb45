//! Subscribers that connect and idle.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::json;
use tokio::select;
use tokio::time::sleep;

use crate::connection::Connection;
use crate::deliveries::{Audience, Deliveries, FilterBy, Way};
use crate::events::{Keys, Names, content};
use crate::latency::Operation;
use crate::numbers::grouped;
use crate::options::Common;
use crate::read_back;
use crate::report::Report;
use crate::requests::{Framing, Requests};
use crate::run::Run;
use crate::schedule::Clock;
use crate::subscriber::{self, Subscribers};
use crate::tasks::Tasks;
use crate::tracker::{Dialect, RequestTracker};
use crate::workload::Site;

/// 120 s: a subscriber that is not connected by then counts as refused. 10,000 take less than a second.
const CONNECTED_WITHIN: Duration = Duration::from_secs(120);

/// The resolution of the report on how connecting went.
const STEP: Duration = Duration::from_millis(50);

/// Connects all subscribers and lets them idle. Returns the tasks that hold their connections, too.
pub async fn idle(
    size: u32,
    at_once: u32,
    site: &Site,
    common: &Common,
    options: &impl Serialize,
) -> anyhow::Result<((Report, Rc<Run>), Tasks)> {
    let run = Run::in_phases(Operation::Connection, site.newest, STEP, &[]);
    let before = site.target.memory()?;
    let names = Names { sessions: (0..size).map(session).collect(), ..Names::default() };
    let deliveries = Rc::new(Deliveries::new(site.newest, names, &[Audience::new(FilterBy::Session, size)], 0, None));
    let ramp =
        Rc::new(Ramp { run: run.clone(), size: size as usize, begun: Cell::new(0), connected: RefCell::default() });
    let mut tasks = Tasks::default();
    for _ in 0..at_once {
        let (target, scratch) = (site.target.clone(), site.scratch.clone());
        let connect = async move |number| {
            let filters = json!({ "session_id": session(number as u32) });
            subscriber::connect(&target, filters, Way::Socket, number, &scratch).await
        };
        tasks.spawn_endless(ramp.clone().connect_missing(connect));
    }
    let connecting = Common { seconds: CONNECTED_WITHIN.as_secs(), ..common.clone() };
    let interval = tasks.measure(&run, &connecting, &site.target, &Clock::default()).await?;
    tasks.shutdown().await;
    let measured = run.measured(interval);
    let mut connected = ramp.connected.take();
    let count = connected.len();
    ensure!(count == ramp.size, "only {count} of {size} subscribers are connected, within {CONNECTED_WITHIN:?}");
    connected.sort_unstable_by_key(|(number, _)| *number);
    let connections = connected.into_iter().map(|(_, connection)| connection).collect();

    let usage = || site.target.watched.as_ref().map(|watched| watched.usage()).transpose();
    let (first, since) = (usage()?, Instant::now());
    select! {
        () = sleep(Duration::from_secs(common.seconds)) => {}
        () = common.interrupt.requested() => {}
    }
    let (last, idled) = (usage()?, since.elapsed().as_secs_f64());

    let mut tasks = Tasks::default();
    Subscribers::of(deliveries.clone(), connections, None).listen(&run, &mut tasks);
    let woken = Instant::now();
    wake(size, site, &run, &deliveries).await?;
    deliveries.check(&run, false).await;
    let reached = woken.elapsed();
    let title = format!("{} subscribers connect, {at_once} at a time, and idle", grouped(count as f64));
    let mut report = Report::new("connections", title, options, common, &run, &measured)
        .exercised("subscribers connected", count as u64)
        .exercised("events that reached them", run.counted(Operation::Delivery))
        .result("all connected within", "s", measured.elapsed.as_secs_f64())
        .result("an event for each reached it within", "ms", reached.as_secs_f64() * 1e3);
    if let (Some(first), Some(last), Some(before)) = (first, last, before) {
        let each = last.memory_bytes.saturating_sub(before) as f64 / count as f64;
        let processors = (last.cpu - first.cpu).as_secs_f64() / idled;
        report = report
            .result("memory", "MB", last.memory_bytes as f64 / 1e6)
            .result("memory before they came", "MB", before as f64 / 1e6)
            .result("each connection", "bytes", each)
            .result("idling", "% of a processor", processors * 1e2);
    }
    report.in_flight = u64::from(at_once);
    report.read_back = read_back::check(site, &run).await?;
    Ok(((report, run), tasks))
}

/// The session that a subscriber subscribes to.
fn session(number: u32) -> String {
    format!("idle-{number:06}")
}

/// The ramp-up: how many subscribers are connected.
struct Ramp {
    run: Rc<Run>,
    size: usize,
    /// How many have begun to connect.
    begun: Cell<usize>,
    connected: RefCell<Vec<(usize, Connection)>>,
}

impl Ramp {
    /// Connects one subscriber after the other until all are connected. Never ends.
    async fn connect_missing(
        self: Rc<Self>,
        connect: impl AsyncFn(usize) -> anyhow::Result<Connection>,
    ) -> anyhow::Result<()> {
        self.run.begun().await;
        while self.begun.get() < self.size {
            let number = self.begun.replace(self.begun.get() + 1);
            let begun = Instant::now();
            let connection = connect(number).await.with_context(|| format!("subscriber {number}"))?;
            self.run.count(Operation::Connection, 1);
            self.run.took(Operation::Connection, begun, Instant::now(), 1);
            let mut connected = self.connected.borrow_mut();
            connected.push((number, connection));
            if connected.len() == self.size {
                self.run.complete();
            }
        }
        pending().await
    }
}

/// Publishes an event for each subscriber.
async fn wake(size: u32, site: &Site, run: &Rc<Run>, deliveries: &Rc<Deliveries>) -> anyhow::Result<()> {
    let events = (0..size).map(|number| {
        let sent = format!(
            r#""event_type":"session_created","source":"loadtest","session_id":"{}","user_id":"teacher","payload":{{}}"#,
            session(number)
        );
        let keys = Keys { event_type: 0, session: number, user: 0, content: content(sent.as_bytes()) };
        (format!("{{{sent}}}").into_bytes(), keys)
    });
    let requests = Rc::new(Requests::of_events(events, 1, &Framing::WebSocket, 0));
    let (mut connection, _) = site.connect(Dialect::WebSocket).await?;
    let mut tracker = RequestTracker::new(run.clone(), requests, Dialect::WebSocket, false);
    tracker.deliveries = Some(deliveries.clone());
    tracker.send(Instant::now(), size as usize, connection.out());
    while tracker.in_flight() > 0 {
        connection.exchange(|bytes, out| tracker.read(bytes, out)).await?;
    }
    Ok(())
}
