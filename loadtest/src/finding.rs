//! What a run found beside counts and latencies.

use serde::{Deserialize, Serialize};

use crate::latency::Operation;

/// What only one scenario measures, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    pub name: String,
    pub unit: String,
    pub value: f64,
}

/// What a scenario exists to exercise, and how often it happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exercised {
    pub what: String,
    pub count: u64,
}

/// Whether requests wait for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loop {
    /// The next request waits for an answer: latency is what is in flight, divided by the rate.
    #[default]
    Closed,
    /// Requests are due at a rate, and latency counts from then.
    Open,
}

impl Loop {
    pub fn words(self) -> &'static str {
        match self {
            Self::Closed => "closed: latency is what is in flight ÷ the rate",
            Self::Open => "open: latency counts from when a request was due",
        }
    }
}

/// A rate that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub of: Operation,
    pub per_second: f64,
    /// Whether less was done.
    pub missed: bool,
}

impl Finding {
    pub fn new(name: &str, unit: &str, value: f64) -> Self {
        Self { name: name.to_owned(), unit: unit.to_owned(), value }
    }
}
