//! `event-pipeline config`.

use std::io::{self, BufWriter, Write};

use clap::{Args, Subcommand};
use event_pipeline::config::{Effective, LoadedConfig};
use serde_json::{Value, json};

use super::config_check::Check;
use super::printer::plain;

#[derive(Subcommand)]
pub enum Config {
    Show(Show),
    Check(Check),
}

/// Show every setting with its value and what has set it
///
/// Takes the flags of serve, reads the environment and the TOML file as serve does, and opens nothing else. Of the API
/// key it shows only whether one is set.
#[derive(Args)]
#[command(
    override_usage = "event-pipeline config show [OPTIONS] [OPTIONS OF SERVE]",
    after_help = "Examples:
  event-pipeline config show
  event-pipeline config show --config /etc/event-pipeline.toml --port 9000
  event-pipeline config show --json | jq '.settings[] | select(.set_by != \"default\")'

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration."
)]
pub struct Show {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// In characters: the longest default is shorter. A longer value runs past its column, so that one long list of origins
/// does not move what stands behind all other values.
const VALUE_WIDTH_MAX: usize = 24;

impl Show {
    pub fn run(&self, loaded: &LoadedConfig) -> io::Result<()> {
        let settings: Vec<_> = loaded.settings().collect();
        let mut out = BufWriter::new(io::stdout().lock());
        match self.json {
            true => writeln!(out, "{:#}", json!({ "settings": settings.iter().map(object).collect::<Vec<_>>() }))?,
            false => table(&mut out, &settings)?,
        }
        out.flush()
    }
}

/// One setting. Each has the same keys.
fn object(shown: &Effective<'_>) -> Value {
    let Effective { setting, value, .. } = shown;
    let (set_by, place) = shown.source();
    json!({
        "name": setting.name,
        "heading": setting.heading,
        "value": value,
        "secret": setting.is_secret(),
        "set_by": set_by,
        "where": place,
    })
}

fn table(out: &mut impl Write, settings: &[Effective<'_>]) -> io::Result<()> {
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let value = |shown: &Effective<'_>| match shown.value.is_empty() {
        true => "(empty)".to_owned(),
        false => plain(&shown.value).into_owned(),
    };
    let names = width(&mut settings.iter().map(|shown| shown.setting.name.len()));
    let values = width(&mut settings.iter().map(|shown| value(shown).chars().count().min(VALUE_WIDTH_MAX)));
    let mut heading = "";
    for shown in settings {
        if shown.setting.heading != heading {
            let blank = if heading.is_empty() { "" } else { "\n" };
            heading = shown.setting.heading;
            writeln!(out, "{blank}{heading}")?;
        }
        let set_by = shown.source_in_words();
        writeln!(out, "  {:<names$}  {:<values$}  {}", shown.setting.name, value(shown), plain(&set_by))?;
    }
    Ok(())
}
