//! One run of one server, and the order in which servers take turns.

use std::rc::Rc;

use loadtest::{Common, Driver, Fanout, Publish, Rate, Report, Target};

use crate::nats::Nats;
use crate::redis::Redis;
use crate::service::Service;

/// One run of one server.
#[derive(Debug, Clone)]
pub struct Trial {
    pub workload: Workload,
    pub contender: Contender,
}

#[derive(Debug, Clone)]
pub enum Workload {
    Publish(Publish),
    Fanout(Fanout),
}

/// A workload and its name on the command line.
pub type Named = (&'static str, fn() -> Workload);

#[derive(Debug, Clone)]
pub enum Contender {
    Ours,
    Baseline(Rc<Service>),
    Redis(Redis),
    Nats(Nats),
}

impl Trial {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let target = match &self.contender {
            Contender::Ours => Target::new(&common.target).await?,
            Contender::Baseline(service) => service.start(common.target.folder()?)?,
            Contender::Redis(redis) => return self.workload.drive(redis, common).await,
            Contender::Nats(nats) => return self.workload.drive(nats, common).await,
        };
        match &self.workload {
            Workload::Publish(publish) => publish.measure_on(target, common).await,
            Workload::Fanout(fanout) => fanout.measure_on(target, common).await,
        }
    }
}

impl Workload {
    async fn drive(&self, driver: &impl Driver, common: &Common) -> anyhow::Result<Report> {
        match self {
            Self::Publish(publish) => publish.measure_peer(driver, common).await,
            Self::Fanout(fanout) => fanout.measure_peer(driver, common).await,
        }
    }
}

/// Each of these workloads, `rounds` times by each of its contenders, which take turns.
pub fn in_turns(
    rounds: u32,
    workloads: impl IntoIterator<Item = Workload>,
    contenders: impl Fn(&Workload) -> Vec<Contender>,
) -> Vec<Trial> {
    let mut trials = Vec::new();
    for workload in workloads {
        let contenders = contenders(&workload);
        for _ in 0..rounds {
            let trial = |contender: &Contender| Trial { workload: workload.clone(), contender: contender.clone() };
            trials.extend(contenders.iter().map(trial));
        }
    }
    trials
}

/// The workloads with these names; all if there are none.
pub fn chosen(workloads: &[Named], only: &[String]) -> Vec<Workload> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    workloads.iter().filter(|(name, _)| wanted(name)).map(|(_, workload)| workload()).collect()
}

pub fn publish(connections: u32, window: u32) -> Workload {
    Workload::Publish(Publish { connections: Some(connections), window: Some(window), ..Publish::default() })
}

pub fn fanout(subscribers: u32, rate: Option<u64>) -> Workload {
    Workload::Fanout(Fanout { subscribers, rate: Rate(rate), ..Fanout::default() })
}
