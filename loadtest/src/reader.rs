//! Readers: they ask questions, one at a time, and check every answer.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::connection::{Connection, responses};
use crate::events::{Events, Random};
use crate::latency::{Kind, Latency, histogram};
use crate::page::{Known, Question};
use crate::producer::Flow;
use crate::run::Run;
use crate::target::Target;
use crate::visible::Visible;

/// What readers ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// The newest 100 events
    Latest,
    /// The newest 100 events of a session
    Session,
    /// What came after the newest event of the answer before, by its time, 100 events at most
    Since,
    /// The 100 events before those of the answer before, and so on into the past
    Older,
    /// The statistics
    Stats,
    /// Events with a payload that none has, for which all are looked at
    Nothing,
}

impl Ask {
    /// What clients usually ask.
    pub const USUAL: [Self; 5] = [Self::Latest, Self::Session, Self::Since, Self::Older, Self::Stats];
    const ALL: [Self; 6] = [Self::Latest, Self::Session, Self::Since, Self::Older, Self::Stats, Self::Nothing];
}

/// What all readers of a run share.
pub struct Library {
    pub run: Rc<Run>,
    pub visible: Rc<Visible>,
    /// Who takes them in turn.
    asks: Vec<Ask>,
    /// Sessions that may be asked for.
    sessions: u32,
    /// The oldest event that is stored, and how many were before the run.
    first: u64,
    stored: u64,
    prefix: String,
    headers: String,
    latency: RefCell<[Histogram<u64>; Ask::ALL.len()]>,
}

impl Library {
    /// For questions of these kinds to a server that has stored so many events, the newest of which is `newest`.
    pub fn new(run: &Rc<Run>, target: &Target, events: &Events, asks: &[Ask], newest: u64, stored: u64) -> Rc<Self> {
        Rc::new(Self {
            run: run.clone(),
            visible: Rc::new(Visible::new(newest, events)),
            asks: asks.to_vec(),
            sessions: events.sessions,
            first: newest + 1 - stored,
            stored,
            prefix: target.prefix.clone(),
            headers: target.headers(),
            latency: RefCell::new(Ask::ALL.map(|_| histogram())),
        })
    }

    /// How long the answers took by what was asked, in sentences.
    pub fn notes(&self) -> Vec<String> {
        let latency = self.latency.borrow();
        let asked = Ask::ALL.iter().zip(&*latency).filter(|(_, latency)| !latency.is_empty());
        let note = |(ask, latency): (&Ask, &Histogram<u64>)| {
            let name = ask.to_possible_value().expect("each has a name");
            format!("{}: {} answers in {}", name.get_name(), latency.len(), Latency::of(Kind::Query, latency))
        };
        asked.map(note).collect()
    }
}

/// One reader, with a connection and a place in the record of its own.
pub struct Reader {
    library: Rc<Library>,
    connection: Connection,
    flow: Flow,
    random: Random,
    /// How many questions it has asked.
    asked: usize,
    /// The newest event seen when last asked for news, and its timestamp.
    since: Option<(u64, String)>,
    /// The event before which the next page is.
    older: Option<u64>,
}

impl Reader {
    pub fn new(number: usize, library: Rc<Library>, connection: Connection, flow: Flow) -> Self {
        // Readers do not all ask the same at the same time.
        let asked = number;
        Self { library, connection, flow, random: Random::new(number), asked, since: None, older: None }
    }

    /// Asks until the run stops.
    ///
    /// # Errors
    /// The connection was lost, or the server answered what is no answer.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let library = self.library.clone();
        while !library.run.is_stopping() {
            let Some((due, _)) = self.flow.take(1) else {
                self.flow.changed().await;
                continue;
            };
            let ask = library.asks[self.asked % library.asks.len()];
            self.asked += 1;
            self.ask(ask, due).await?;
        }
        Ok(())
    }

    async fn ask(&mut self, ask: Ask, due: Instant) -> anyhow::Result<()> {
        let library = self.library.clone();
        let question = match (ask, &self.since, self.older) {
            (Ask::Since, Some((event, timestamp)), _) => Question::Since(*event, timestamp.clone()),
            (Ask::Older, _, Some(event)) => Question::Older(event),
            (Ask::Session, ..) => Question::Session(self.random.below(library.sessions)),
            (Ask::Stats, ..) => Question::Stats,
            (Ask::Nothing, ..) => Question::Nothing,
            // What is asked for in the past begins with the present.
            (Ask::Latest | Ask::Since | Ask::Older, ..) => Question::Latest,
        };
        let acknowledged = match question {
            Question::Session(session) => library.visible.of_session(session),
            _ => library.visible.all(),
        };
        let known = Known { first: library.first, stored: library.stored, acknowledged };
        let Library { prefix, headers, .. } = &*library;
        let request = format!("GET {prefix}{} HTTP/1.1\r\n{headers}\r\n", question.path());
        self.connection.out().extend_from_slice(request.as_bytes());
        let mut checked = None;
        while checked.is_none() {
            let read = self.connection.exchange(|bytes, _| {
                let now = Instant::now();
                responses(bytes, |status, body| {
                    ensure!(checked.is_none(), "the server answered more often than it was asked");
                    library.took(ask, due, now);
                    checked = Some(match status {
                        200 => question.check(body, &known).with_context(|| question.path())?,
                        _ => Err(format!("{status} {}", String::from_utf8_lossy(body))),
                    });
                    Ok(())
                })
            });
            read.await?;
        }
        match checked.expect("it was answered") {
            Err(fault) => {
                let path = question.path();
                library.run.ledger.borrow_mut().violation(|| format!("{path}: {fault}"));
            }
            Ok(page) => {
                // At the beginning of the record the way into the past begins anew.
                if matches!(question, Question::Older(_)) || self.older.is_none() && question == Question::Latest {
                    self.older = page.oldest().filter(|event| *event > library.first);
                }
                if let (Question::Latest | Question::Since(..), Some((event, timestamp))) = (&question, page.newest()) {
                    self.since = Some((event, timestamp.to_owned()));
                }
            }
        }
        Ok(())
    }
}

impl Library {
    fn took(&self, ask: Ask, due: Instant, now: Instant) {
        self.run.took(Kind::Query, due, now, 1);
        self.run.count(Kind::Query, 1);
        if self.run.is_measuring() {
            self.latency.borrow_mut()[ask as usize].saturating_record((now - due).as_nanos() as u64);
        }
    }
}
