//! Servers that are measured beside ours, on the same machine and in the same hour: they take turns, so that
//! whatever else the machine does meets all of them.

pub mod baseline;
mod foreign;
mod nats;
pub mod ratios;
mod redis;

use std::rc::Rc;

use anyhow::bail;
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::pace::Rate;
use crate::report::Report;
use crate::run::Common;
use crate::scenario::fanout::Fanout;
use crate::scenario::publish::Publish;
use crate::target::Target;
use baseline::Service;
use nats::Nats;
use redis::Redis;

/// Measure NATS JetStream and Redis Streams beside this server
///
/// Both have to be installed (apt-get install nats-server redis-server); what is not is left out, loudly. They are
/// started from here, speak their own protocols, and get the same events through the same windows. All take turns,
/// and with --repeat each gets so many. What an acknowledgement means for each is said with its figures.
#[derive(Args, Debug, Clone)]
pub struct Peers {
    /// Only this workload; repeatable
    #[arg(long, value_name = "WORKLOAD", value_parser = PossibleValuesParser::new(Self::WORKLOADS.map(|(name, _)| name)))]
    only: Vec<String>,
}

/// One run of one server.
#[derive(Debug, Clone)]
pub struct Trial {
    workload: Workload,
    contender: Contender,
}

#[derive(Debug, Clone)]
enum Workload {
    Publish(Publish),
    Fanout(Fanout),
}

/// A workload and its name on the command line.
type Named = (&'static str, fn() -> Workload);

#[derive(Debug, Clone)]
enum Contender {
    Ours,
    Baseline(Rc<Service>),
    Redis(Redis),
    Nats(Nats),
}

impl Trial {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let target = match (&self.contender, &self.workload) {
            (Contender::Ours, _) => Target::new(&common.target).await?,
            (Contender::Baseline(service), _) => service.start(common.target.folder()?)?,
            (Contender::Redis(redis), Workload::Publish(publish)) => {
                return foreign::publish(redis, publish, common).await;
            }
            (Contender::Redis(redis), Workload::Fanout(fanout)) => return foreign::fanout(redis, fanout, common).await,
            (Contender::Nats(nats), Workload::Publish(publish)) => {
                return foreign::publish(nats, publish, common).await;
            }
            (Contender::Nats(nats), Workload::Fanout(fanout)) => return foreign::fanout(nats, fanout, common).await,
        };
        match &self.workload {
            Workload::Publish(publish) => publish.measure_on(target, common).await,
            Workload::Fanout(fanout) => fanout.measure_on(target, common).await,
        }
    }
}

/// Each of these workloads so many times by each of its contenders, who take turns.
fn in_turns(
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
fn chosen(workloads: &[Named], only: &[String]) -> Vec<Workload> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    workloads.iter().filter(|(name, _)| wanted(name)).map(|(_, workload)| workload()).collect()
}

fn publish(connections: u32, window: u32) -> Workload {
    Workload::Publish(Publish { connections: Some(connections), window: Some(window), ..Publish::default() })
}

fn fanout(subscribers: u32, rate: Option<u64>) -> Workload {
    Workload::Fanout(Fanout { subscribers, rate: Rate(rate), ..Fanout::default() })
}

impl Peers {
    const WORKLOADS: [Named; 7] = [
        ("publish", || publish(4, 1_024)),
        ("publish-64", || publish(4, 64)),
        ("publish-1", || publish(1, 1)),
        ("fanout-10", || fanout(10, None)),
        ("fanout-100", || fanout(100, None)),
        ("fanout-1000", || fanout(1_000, None)),
        ("fanout-paced", || fanout(100, Some(1_000))),
    ];

    /// Everything that is to be measured. What is not installed is left out, and said.
    ///
    /// # Errors
    /// None of them is installed.
    pub fn trials(&self, common: &Common) -> anyhow::Result<Vec<Trial>> {
        let (mut stores, mut routers) = (Vec::new(), Vec::new());
        let skipped = |what: &str| eprintln!("loadtest: SKIPPED: {what}");
        match redis::installed()? {
            Some(binary) => {
                let redis = |way| Contender::Redis(Redis { binary: binary.clone(), way });
                let streams = |fsync| redis(redis::Way::Streams(fsync));
                stores.extend([streams(redis::Fsync::Always), streams(redis::Fsync::EverySecond)]);
                routers.extend([redis(redis::Way::PubSub), streams(redis::Fsync::Always)]);
            }
            None => skipped("Redis, which is not installed: apt-get install redis-server"),
        }
        match nats::installed()? {
            Some(binary) => {
                let nats = |way| Contender::Nats(Nats { binary: binary.clone(), way });
                let stream = |sync| nats(nats::Way::JetStream(sync));
                if nats::can_sync_always(&binary) {
                    stores.push(stream(nats::Sync::Always));
                } else {
                    let version = &binary.version;
                    eprintln!("loadtest: without JetStream that syncs always: nats-server {version} cannot, 2.10 can");
                }
                stores.push(stream(nats::Sync::ByDefault));
                routers.extend([nats(nats::Way::Core), stream(nats::Sync::ByDefault)]);
            }
            None => skipped("NATS, which is not installed: apt-get install nats-server"),
        }
        if stores.is_empty() {
            bail!("there is nobody to measure beside: apt-get install nats-server redis-server");
        }
        Ok(in_turns(common.repeat, chosen(&Self::WORKLOADS, &self.only), |workload| {
            let others = if matches!(workload, Workload::Publish(_)) { &stores } else { &routers };
            [Contender::Ours].iter().chain(others).cloned().collect()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_take_turns() {
        let workloads = chosen(&Peers::WORKLOADS, &["publish-1".to_owned(), "fanout-paced".to_owned()]);
        let redis = |way| {
            let binary = foreign::Binary { path: "redis-server".into(), version: "7.0".to_owned() };
            Contender::Redis(Redis { binary, way })
        };
        let trials = in_turns(2, workloads, |workload| match workload {
            Workload::Publish(_) => vec![Contender::Ours, redis(redis::Way::Streams(redis::Fsync::Always))],
            Workload::Fanout(_) => vec![Contender::Ours, redis(redis::Way::PubSub)],
        });
        let told = trials.iter().map(|Trial { workload, contender }| {
            let workload = match workload {
                Workload::Publish(publish) => (publish.connections, publish.window),
                Workload::Fanout(fanout) => (Some(fanout.subscribers), None),
            };
            (workload, matches!(contender, Contender::Ours))
        });
        let (one, paced) = ((Some(1), Some(1)), (Some(100), None));
        let expected = [one, paced].into_iter().flat_map(|it| [(it, true), (it, false), (it, true), (it, false)]);
        assert_eq!(told.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}
