//! Options of every scenario.

use std::path::PathBuf;

use clap::Args;

use crate::interrupt::Interrupt;
use crate::target::TargetArgs;

/// Options of every scenario.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// How long to measure, after a second to warm up; Ctrl-C ends it early
    #[arg(long, global = true, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Repeat the measurement this many times, and print the median and the spread
    #[arg(long, global = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Print one JSON object a run instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// Append one JSON object a run to a file, whatever is printed
    #[arg(long, global = true, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write a report with plots, as one self-contained page
    #[arg(long, global = true, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub target: TargetArgs,
    #[arg(skip)]
    pub interrupt: Interrupt,
}
