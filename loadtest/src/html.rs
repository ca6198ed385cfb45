//! Runs as one self-contained page: tables of their figures, and plots. It needs no network and runs no script.
//!
//! Imports point strictly down this list:
//!
//! * [`charts`] — what is drawn of a section
//! * [`section`] — everything that was measured with one scenario, as a table and in words
//! * [`plot`] — lines over axes, and bars, as SVG
//! * [`scale`] — where a value stands on an axis
//! * [`markup`] — HTML in which all text is escaped

mod charts;
mod markup;
mod plot;
mod scale;
mod section;

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::html::markup::{Element, Markup};
use crate::html::section::{Section, unique};
use crate::report::Report;
use crate::run_files::Source;

const STYLE: &str = include_str!("html/style.css");

/// Most servers that a heading names. Of more it says how many there are.
const SUBJECTS_NAMED_MAX: usize = 2;

/// Writes a page about these runs.
pub fn write(file: &Path, reports: &[Report]) -> anyhow::Result<()> {
    write_sources(file, &[Source { name: String::new(), reports: reports.to_vec() }])
}

/// Writes a page that compares runs from several files.
pub fn write_sources(file: &Path, sources: &[Source]) -> anyhow::Result<()> {
    fs::write(file, page(sources)).with_context(|| format!("write to {}", file.display()))
}

/// The whole page.
fn page(sources: &[Source]) -> String {
    let runs = sources.iter().flat_map(|source| &source.reports).collect::<Vec<_>>();
    let sections = Section::all(sources);
    let subjects = match unique(runs.iter().map(|run| run.subject.as_str())) {
        few if few.len() <= SUBJECTS_NAMED_MAX => few.join(", "),
        many => format!("{} servers", many.len()),
    };
    let meta = |name, content| Element::new("meta").with("name", name).with("content", content);
    let head = Element::new("head")
        .put(Element::new("meta").with("charset", "utf-8"))
        // If a mistake ever let text of a run become markup, it would still neither run nor fetch anything.
        .put(
            Element::new("meta")
                .with("http-equiv", "Content-Security-Policy")
                .with("content", "default-src 'none'; style-src 'unsafe-inline'"),
        )
        .put(meta("viewport", "width=device-width, initial-scale=1"))
        .put(meta("color-scheme", "light dark"))
        .put(Element::new("title").text(format!("Load test: {subjects}")))
        .put(Element::style(STYLE));
    let body = Element::new("body")
        .put(header(&runs, &subjects, &sections))
        .put(Element::new("main").put_all(sections.iter().map(|section| section.draw(charts::of(section)))));
    let page = Markup::from(Element::new("html").with("lang", "en").put(head).put(body));
    format!("<!doctype html>\n{}\n", page.as_str())
}

/// What was measured, where and when, and whether all is well.
fn header(runs: &[&Report], subjects: &str, sections: &[Section]) -> Element {
    let machines = unique(runs.iter().map(|run| run.machine.to_string()));
    let conditions = machines.into_iter().chain([when(runs)]).map(|fact| Element::new("span").text(fact));
    let broken = runs.iter().filter(|run| !run.kept()).count();
    let (class, verdict) = match (runs.len(), broken) {
        (0, _) => ("verdict broken", "No run was finished.".to_owned()),
        (1, 0) => ("verdict kept", "Verified: the run kept every promise.".to_owned()),
        (count, 0) => ("verdict kept", format!("Verified: all {count} runs kept every promise.")),
        (count, _) => ("verdict broken", format!("VIOLATION: {broken} of {count} runs broke a promise.")),
    };
    let links = sections.iter().map(|section| {
        let link = Element::new("a").with("href", format!("#{}", section.anchor())).text(section.scenario());
        Element::new("li").put(link)
    });
    let contents = (sections.len() > 1).then(|| Element::new("nav").put(Element::new("ul").put_all(links)));
    Element::new("header")
        .put(Element::new("h1").text("Load test").put(Element::new("span").text(subjects)))
        .put(Element::classed("p", "conditions").put_all(conditions))
        .put(Element::classed("p", class).text(verdict))
        .put(contents)
}

/// When the first of the runs began, and when the last.
fn when(runs: &[&Report]) -> String {
    let times = || runs.iter().map(|run| run.started_at.as_str());
    let (Some(first), Some(last)) = (times().min(), times().max()) else { return String::new() };
    let readable = |time: &str| time.replacen('T', " ", 1).replacen('Z', " UTC", 1);
    match (first.split_once('T'), last.split_once('T')) {
        _ if first == last => readable(first),
        (Some((day, from)), Some((other, to))) if day == other => {
            readable(&format!("{day} {}–{to}", from.trim_end_matches('Z')))
        }
        _ => format!("{} to {}", readable(first), readable(last)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Latency;
    use crate::timeline::Point;

    /// Text that would do harm if it were taken for markup.
    const NASTY: &str = r#"</td></style><script src="http://example.org/">alert('&')</script><img src=x onerror="1">"#;

    fn run(title: &str, rate: f64) -> Report {
        let mut report = Report { title: title.to_owned(), ..Report::example() };
        report.events.per_second = rate;
        report
    }

    fn source(name: &str, reports: Vec<Report>) -> Source {
        Source { name: name.to_owned(), reports }
    }

    /// Reads a page as a parser of XML would: its elements, after making sure that each ends where it must.
    fn elements(page: &str) -> Vec<(&str, &str)> {
        let mut rest = page.strip_prefix("<!doctype html>").expect("a page");
        let (mut open, mut found) = (Vec::new(), Vec::new());
        while let Some((text, tag)) = rest.split_once('<') {
            assert!(!text.contains('>') || open.last() == Some(&"style"), "{text}");
            let (tag, after) = tag.split_once('>').expect("the end of a tag");
            rest = after;
            let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None => found.push((name, attributes)),
            }
            if !tag.starts_with('/') && name != "meta" {
                open.push(name);
            }
        }
        assert_eq!(open, [""; 0]);
        found
    }

    /// A page of these sources, after checking that it is whole and needs nothing else.
    fn checked(sources: &[Source]) -> String {
        let page = page(sources);
        for (name, attributes) in elements(&page) {
            assert!(!["script", "img", "link", "iframe", "object"].contains(&name), "{name}");
            for attribute in ["src=", "onerror=", "onload=", "xlink:"] {
                assert!(
                    !attributes.replace(&Markup::text(NASTY).as_str().replace('\n', ""), "").contains(attribute),
                    "{attributes}"
                );
            }
            let is_outside = attributes.split(" href=\"").skip(1).any(|link| !link.starts_with('#'));
            assert!(!is_outside, "{attributes}");
        }
        assert!(
            !STYLE.contains("url(") && !STYLE.contains("@import") && !STYLE.contains('<'),
            "the style needs something else"
        );
        page
    }

    #[test]
    fn a_page_is_well_formed_whatever_runs_say() {
        let mut report = run(NASTY, 1_000.0);
        report.scenario = NASTY.to_owned();
        report.subject = NASTY.to_owned();
        report.options = serde_json::json!({NASTY: NASTY});
        report.violations.push(NASTY.to_owned());
        report.notes.push(NASTY.to_owned());
        report.machine.cpu = NASTY.to_owned();
        report.started_at = NASTY.to_owned();
        let server = report.server.as_mut().expect("a server");
        server.cpu_us_each_by_thread.insert(NASTY.to_owned(), 1.0);
        let other = Report { subject: "other".to_owned(), ..report.clone() };
        let page = checked(&[source(NASTY, vec![report, other])]);
        assert!(page.contains("&lt;script src=&quot;http://example.org/&quot;&gt;"), "{page}");
    }

    #[test]
    fn a_page_is_complete_whatever_is_missing() {
        let mut blind = run("blind", 0.0);
        blind.server = None;
        blind.processors_busy.server = None;
        blind.timeline.iter_mut().for_each(|point| {
            *point =
                Point { p50_us: 0.0, p99_us: 0.0, server_processors: None, server_memory_bytes: None, ..point.clone() };
        });
        let latency = &mut blind.latency_us;
        *latency = Latency {
            count: 0,
            p50: 0.0,
            p90: 0.0,
            p99: 0.0,
            p99_9: 0.0,
            max: 0.0,
            percentiles: Vec::new(),
            ..*latency
        };
        let mut empty = blind.clone();
        empty.timeline.clear();
        empty.options = serde_json::Value::Null;
        checked(&[]);
        checked(&[source("", vec![blind.clone()])]);
        let page = checked(&[source("a", vec![blind, empty]), source("b", vec![run("blind", 5.0)])]);
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }

    #[test]
    fn runs_of_one_scenario_share_plots() {
        let fanout = || Report { scenario: "fanout".to_owned(), ..run("all", 7.0) };
        let page = checked(&[
            source("a.json", vec![run("x", 1.0), fanout(), run("y", 2.0)]),
            source("b.json", vec![run("x", 3.0)]),
        ]);
        let sections = page.matches("<section ").count();
        assert_eq!((sections, page.matches("<nav>").count()), (2, 1));
        // Three series of one scenario, one of the other.
        for (label, rows) in [("x · a.json", 1), ("y · a.json", 1), ("x · b.json", 1), ("event-pipeline 0.1.0", 1)] {
            assert_eq!(page.matches(&format!("{label}</th>")).count(), rows, "{label}");
        }
    }

    #[test]
    fn repetitions_are_one_series_with_its_median_run_in_front() {
        let runs = [300.0, 100.0, 200.0].map(|rate| run("x", rate)).to_vec();
        let sources = [source("", runs)];
        let sections = Section::all(&sources);
        let series = &sections[0].series;
        assert_eq!((series.len(), series[0].runs.len(), series[0].median_run.events.per_second), (1, 3, 200.0));
        let page = checked(&sources);
        assert!(page.contains("<td class=\"leads\">200<small>100–300</small>"), "{page}");
        // Each line stands before two.
        let [lines, faint] = ["<g class=", " faint\""].map(|part| page.matches(part).count());
        assert!(lines > 0 && faint * 3 == lines * 2, "{faint} of {lines}");
    }

    #[test]
    fn changes_are_relative_to_the_first_series() {
        let page = checked(&[source("a", vec![run("x", 100.0)]), source("b", vec![run("x", 125.0)])]);
        assert!(page.contains("125<small class=\"change\">+25 %</small>"), "{page}");
    }

    #[test]
    fn a_latency_line_is_broken_where_nothing_ended() {
        let mut run = run("x", 1.0);
        let point = run.timeline[0].clone();
        let at = |at, us| Point { at, p50_us: us, p99_us: us, max_us: us, ..point.clone() };
        run.timeline = vec![at(1.0, 1_000.0), at(2.0, 0.0), at(3.0, 1_000.0)];
        let page = checked(&[source("", vec![run])]);
        let (_, plot) = page.split_once("Acknowledgement latency, over time").expect("a plot");
        let (plot, _) = plot.split_once("</figure>").expect("its end");
        // Each of the three lines is two dots.
        assert_eq!((plot.matches("h0M").count(), plot.matches("h0L").count()), (3, 0), "{plot}");
    }

    #[test]
    fn a_broken_promise_cannot_be_overlooked() {
        let mut broken = run("x", 1.0);
        broken.violations = vec!["event 7 was lost".to_owned()];
        let page = checked(&[source("", vec![run("x", 1.0), broken])]);
        for text in [
            "VIOLATION: 1 of 2 runs broke a promise.",
            "VIOLATION: event-pipeline 0.1.0: event 7 was lost",
            "broken\">VIOLATION<",
        ] {
            assert_eq!(page.matches(text).count(), 1, "{text}");
        }
        assert!(!page.contains("Verified"), "{page}");
    }
}
