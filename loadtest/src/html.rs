//! Runs as one self-contained page, which a browser draws from the runs that it carries. It loads nothing.

use base64::prelude::{BASE64_STANDARD, Engine};
use ring::digest::{SHA256, digest as hash};
use serde_json::json;

use crate::compare::Comparison;
use crate::fail_if::Judgement;
use crate::metric::CHANGES;
use crate::run_files::Source;

const PAGE: &str = include_str!("html/report.html");
const STYLE: &str = include_str!("html/report.css");
const SCRIPT: &str = include_str!("html/report.js");

/// The whole page. Should a mistake ever let text of a run become markup, its policy still lets no other script run than
/// ours, by its digest, and lets nothing be loaded.
pub fn page(sources: &[Source], judgements: &[Judgement]) -> String {
    let sections = Comparison::by_scenario(sources).into_iter().map(|Comparison { scenario, columns, .. }| {
        let reports = columns.iter().map(|column| &column.reports).collect::<Vec<_>>();
        json!({ "scenario": scenario, "columns": columns, "reports": reports })
    });
    let content = json!({ "sections": sections.collect::<Vec<_>>(), "judgements": judgements, "changes": CHANGES });
    // Only a `<` can end the element that the runs stand in.
    let runs = content.to_string().replace('<', "\\u003c");
    let digest = |text: &str| BASE64_STANDARD.encode(hash(&SHA256, text.as_bytes()));
    let page = PAGE.replace("{STYLE DIGEST}", &digest(STYLE)).replace("{SCRIPT DIGEST}", &digest(SCRIPT));
    // The runs last: nothing is looked for in their text.
    page.replace("{STYLE}", STYLE).replace("{SCRIPT}", SCRIPT).replace("{RUNS}", &runs)
}
