//! The command `baseline`: the service that ours replaced, beside our server.

use std::rc::Rc;

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::service::Service;
use super::trial::{Contender, Named, Trial, Workload, chosen, fanout, in_turns, publish};
use crate::options::Common;
use crate::scenario::publish::{Publish, Via};

/// Measure the architecture that this server replaced beside it
///
/// A small service in Python, written from the same contract: FastAPI, one connection and one commit of SQLite for
/// each event, a queue for each subscriber and a search through all of them. Installed with pip into a virtual
/// environment, once; needs python3. Both take turns, and with --repeat each gets so many.
#[derive(Args, Debug, Clone)]
pub struct Baseline {
    /// Only this workload; repeatable
    #[arg(long, value_name = "WORKLOAD", value_parser = PossibleValuesParser::new(Self::WORKLOADS.map(|(name, _)| name)))]
    only: Vec<String>,
}

impl Baseline {
    const WORKLOADS: [Named; 6] = [
        ("publish", || publish(4, 1_024)),
        ("publish-1", || publish(1, 1)),
        ("http", || Workload::Publish(Publish { via: Via::Http, ..Publish::default() })),
        ("fanout-10", || fanout(10, None)),
        ("fanout-100", || fanout(100, None)),
        // The service can just about hold it.
        ("fanout-paced", || fanout(100, Some(100))),
    ];

    /// Everything that is to be measured. Installs the service.
    ///
    /// # Errors
    /// It cannot be installed.
    pub async fn trials(&self, common: &Common) -> anyhow::Result<Vec<Trial>> {
        let contenders = [Contender::Ours, Contender::Baseline(Rc::new(Service::install().await?))];
        Ok(in_turns(common.repeat, chosen(&Self::WORKLOADS, &self.only), |_| contenders.to_vec()))
    }
}
