//! The scenario `mixed`: everything at once.

use clap::Args;
use serde::Serialize;

use crate::options::Common;
use crate::report::Report;
use crate::scenario::traffic::Traffic;
use crate::schedule::Rate;
use crate::workload::{Site, Workload};

/// Publish in every way, subscribe to everything and to parts of it, and query, all at once
///
/// Verifies what the scenarios for each of them verify: every acknowledgement, every delivery, every answer.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Mixed {
    /// Events a second of all producers, each kind with an equal share, or max
    #[arg(long, value_name = "RATE", default_value = "20000")]
    rate: Rate,
    #[command(flatten)]
    #[serde(flatten)]
    traffic: Traffic,
}

impl Mixed {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let site = Site::new(&common.target).await?;
        let workload = Workload { rate: common.profile(self.rate), ..self.traffic.workload(&site).await? };
        let driven = workload.drive(&site, common).await?;
        let report = Report::of("mixed", self.traffic.title(), self, common, &driven);
        self.traffic.exercised(report, &driven).finish(driven, site).await
    }
}
