//! The part of a report that only the scenario knows.

use serde::Serialize;
use serde_json::Value;

use crate::finding::{Asked, Exercised, Finding};
use crate::latency::Operation;
use crate::options::Common;
use crate::query_client::QueryWorkload;
use crate::workload::Driven;

/// The part of a report that only the scenario knows.
pub struct Findings {
    pub scenario: &'static str,
    pub title: String,
    pub options: Value,
    pub asked: Option<Asked>,
    /// What may be in flight at a time in a closed loop; 0 where that is not known.
    pub in_flight: u64,
    pub exercised: Vec<Exercised>,
    pub results: Vec<Finding>,
    pub notes: Vec<String>,
    /// How many events were read back.
    pub read_back: u64,
}

impl Findings {
    pub fn new(scenario: &'static str, title: String, options: &impl Serialize, common: &Common) -> Self {
        let mut options = serde_json::to_value(options).expect("options are plain");
        if common.poisson {
            options["poisson"] = true.into();
        }
        Self {
            scenario,
            title,
            options,
            asked: None,
            in_flight: 0,
            exercised: Vec::new(),
            results: Vec::new(),
            notes: Vec::new(),
            read_back: 0,
        }
    }

    /// What every driven run tells: the rate that was asked for, and the latencies of queries.
    pub fn of(self, driven: &Driven) -> Self {
        let asked = driven.asked.map(|(per_second, reached)| Asked {
            of: Operation::Acknowledgement,
            per_second,
            missed: !reached,
        });
        let results = driven.queries.as_ref().map(|queries| QueryWorkload::findings(queries)).unwrap_or_default();
        Self { asked, in_flight: driven.in_flight, results, ..self }
    }

    /// What the scenario exists for: a run in which it did not happen is not exercised.
    pub fn exercised(mut self, what: &str, count: u64) -> Self {
        self.exercised.push(Exercised { what: what.to_owned(), count });
        self
    }

    pub fn result(mut self, name: &str, unit: &str, value: f64) -> Self {
        self.results.push(Finding::new(name, unit, value));
        self
    }

    /// The same, of what may not be known.
    pub fn result_if_known(self, name: &str, unit: &str, value: Option<f64>) -> Self {
        match value {
            Some(value) => self.result(name, unit, value),
            None => self,
        }
    }

    /// Further findings, in sentences.
    pub fn noting(self, notes: impl IntoIterator<Item = String>) -> Self {
        Self { notes: self.notes.into_iter().chain(notes).collect(), ..self }
    }
}
