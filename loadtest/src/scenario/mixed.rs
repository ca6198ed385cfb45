//! The scenario `mixed`: everything at once.

use clap::Args;
use serde::Serialize;

use crate::options::Common;
use crate::report::{Findings, Report};
use crate::scenario::traffic::{Drive, Traffic};
use crate::schedule::{Rate, RateProfile};
use crate::target::Target;
use crate::timeline::STEP;

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
        let target = Target::new(&common.target).await?;
        let drive = Drive { profile: self.rate.0.map(RateProfile::steady), step: STEP, phases: Vec::new() };
        let driven = self.traffic.drive(target, common, drive).await?;
        let findings = Findings::new("mixed", self.traffic.title(), self).at(self.rate).noting(driven.notes);
        Ok(Report::new(findings, &driven.run, driven.measured, driven.server))
    }
}
