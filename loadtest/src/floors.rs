//! The command `floors`: what this machine gives, measured by the same load, so that each figure has a floor beside it.

pub mod bare;

use std::env;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::task::yield_now;

use crate::deliveries::{Audience, FilterBy};
use crate::latency::{Operation, histogram};
use crate::measurement::{Measured, Snapshot};
use crate::options::Common;
use crate::process::Process;
use crate::report::Report;
use crate::requests::{Framing, Requests};
use crate::run::Run;
use crate::scenario::fanout::Fanout;
use crate::scenario::publish::{Publish, Via};
use crate::schedule::Rate;
use crate::target::{Stopped, Subject, Target};
use crate::timeline::STEP;
use crate::workload::{Site, Workload};
use bare::{LISTENING, What};

/// Measure what this machine gives: floors for the figures of a server
///
/// A server cannot be faster than a sync of the disk, and hardly cheaper than a server that only answers, or only sends.
/// Such servers are started from here and measured by the same load as ours. Each floor is a run of its own.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Floors {
    /// Only this floor; repeatable
    #[arg(long, value_enum, value_name = "FLOOR")]
    only: Vec<Floor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Floor {
    /// A write to the end of a file, and its sync
    AppendingSync,
    /// A write over an older one in a file, and its sync
    OverwritingSync,
    /// `publish --via http`, to hyper alone
    Http,
    /// `fanout --rate 1000`, by bare sends
    Send,
    /// 10,000 subscribers, each on a session of its own, by bare sends
    SendToSessions,
}

/// As much as SQLite writes with one page of its write-ahead log.
const WRITE_BYTES: usize = 4 << 10;
/// The length of the file that is written over: the write-ahead log starts over at 4 MiB.
const WRITES: u64 = 1_024;

impl Floors {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Vec<Report>> {
        let floors = if self.only.is_empty() { Floor::value_variants() } else { &self.only };
        let mut reports = Vec::new();
        for floor in floors {
            reports.push(floor.measure(common).await?);
        }
        Ok(reports)
    }
}

impl Floor {
    async fn measure(self, common: &Common) -> anyhow::Result<Report> {
        match self {
            Self::AppendingSync | Self::OverwritingSync => self.syncs(common).await,
            Self::Http => {
                let publish = Publish { via: Via::Http, ..Publish::default() };
                let (site, (ingress, title)) = (bare_site(What::Http, common)?, publish.ingress());
                let publishers = site.publishers(&ingress, &publish.events, 0, ingress.connections).await?;
                let workload = Workload::new(Operation::Acknowledgement, publishers);
                self.drive(workload, title, "network", site, common).await
            }
            Self::Send => self.sends(100, FilterBy::All, Rate(Some(1_000)), common).await,
            Self::SendToSessions => self.sends(10_000, FilterBy::Session, Rate(None), common).await,
        }
    }

    async fn sends(self, count: u32, by: FilterBy, rate: Rate, common: &Common) -> anyhow::Result<Report> {
        let (site, mut fanout) = (bare_site(What::Send, common)?, Fanout::default());
        if by == FilterBy::Session {
            fanout.events.sessions = count;
        }
        let (Fanout { events, window, .. }, audience) = (fanout, [Audience::new(by, count)]);
        let requests = Requests::render(&events, 1, &Framing::WebSocket, 0, 1);
        let mut workload = site.one_producer(requests, events.names(), &audience, window).await?;
        workload.rate = common.profile(rate);
        let title = format!("{count} subscribers by {by:?}, one producer").to_lowercase();
        self.drive(workload, title, "send", site, common).await
    }

    /// Drives a bare server, whose `thread` does what is measured.
    async fn drive(
        self,
        workload: Workload,
        title: String,
        thread: &str,
        site: Site,
        common: &Common,
    ) -> anyhow::Result<Report> {
        let driven = workload.drive(&site, common).await?;
        let answered = site.target.stored().await?;
        driven.run.verification.borrow_mut().check_stored(answered);
        let each = driven.measured.server.as_ref().and_then(|server| server.cpu_us_each_by_thread.get(thread));
        let report = Report::of("floors", title, &self.options(), common, &driven);
        let report = report.result_if_known("CPU of its thread", "µs", each.copied());
        Ok(report.judged(&driven.run, site.stop()?))
    }

    /// Writes and syncs, one after the other, where a server that is started from here has its database.
    async fn syncs(self, common: &Common) -> anyhow::Result<Report> {
        let folder = common.target.folder()?;
        let file = File::create(folder.path().join("synced")).context("create a file")?;
        let bytes = [0x5a; WRITE_BYTES];
        let overwrites = self == Self::OverwritingSync;
        if overwrites {
            (0..WRITES).try_for_each(|n| file.write_all_at(&bytes, n * WRITE_BYTES as u64))?;
            file.sync_all()?;
        }
        let run = Run::in_phases(Operation::Acknowledgement, 0, STEP, &[]);
        let (mut syncs, mut latencies) = (0, Operation::ALL.map(|_| histogram()));
        let counts = |syncs| Operation::ALL.map(|kind| if kind == Operation::Acknowledgement { syncs } else { 0 });
        let before = Snapshot::now(counts(0), None)?;
        common.interrupt.allow_early_end();
        while before.at.elapsed() < Duration::from_secs(common.seconds) && !common.interrupt.was_requested() {
            let nth = if overwrites { syncs % WRITES } else { syncs };
            let began = Instant::now();
            file.write_all_at(&bytes, nth * WRITE_BYTES as u64)?;
            file.sync_data().context("sync")?;
            latencies[Operation::Acknowledgement as usize].saturating_record(began.elapsed().as_nanos() as u64);
            syncs += 1;
            run.verification.borrow_mut().acknowledge(syncs, 0);
            // For Ctrl-C.
            yield_now().await;
        }
        let measured = Measured {
            ended_early: common.interrupt.was_requested(),
            ..Measured::between(&before, &Snapshot::now(counts(syncs), None)?, Operation::Acknowledgement, &latencies)
        };
        let how = if overwrites { "over an older one" } else { "to the end of a file" };
        let title = format!("a write of {WRITE_BYTES} bytes {how}, and its fdatasync");
        let subject = subject("this disk", "synced to disk");
        let stopped = Stopped { subject, settings: Default::default(), warnings: Vec::new() };
        Ok(Report::new("floors", title, &self.options(), common, &run, &measured).judged(&run, stopped))
    }

    fn options(self) -> Floors {
        Floors { only: vec![self] }
    }
}

/// Starts a bare server: this program, with its hidden command.
fn bare_site(what: What, common: &Common) -> anyhow::Result<Site> {
    let name = what.to_possible_value().expect("none is skipped").get_name().to_owned();
    let mut command = Command::new(env::current_exe().context("find this program")?);
    let process = Process::start(command.args(["bare", &name]), common.target.folder()?)?;
    let authority = process.wait_for(|line| line.strip_prefix(LISTENING).map(str::to_owned))?;
    let subject = subject(&format!("a bare server ({name})"), "nothing: it neither checks nor stores");
    Ok(Site::empty(Target::of_process(authority, subject, process)))
}

fn subject(name: &str, acknowledged_means: &str) -> Subject {
    Subject { name: name.to_owned(), acknowledged_means: acknowledged_means.to_owned() }
}
