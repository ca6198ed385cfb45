//! The charts of a section: rates and costs as bars, latencies as curves, and everything over time.

use std::collections::BTreeMap;
use std::ptr;

use crate::html::markup::Element;
use crate::html::plot::{Bar, Bars, Line, Part, Plot, look};
use crate::html::scale::{Scale, Unit};
use crate::html::section::{LabelledSeries, Section, unique};
use crate::latency::{Latency, Operation};
use crate::metric::{RATE, SERVER, SERVER_CPU, written};
use crate::report::Report;
use crate::timeline::Point;

/// Longest label that fits beside a plot. A series with a longer one is shown by its number alone.
const LABEL_MAX: usize = 22;

/// With more threads than this, the cheapest are shown as one.
const THREADS_MAX: usize = 6;

/// All charts of a section.
pub fn of(section: &Section) -> Vec<Element> {
    let kinds =
        unique(section.series.iter().flat_map(|series| series.median_run.latencies()).map(|latency| latency.of));
    let rates = kinds.iter().filter_map(|kind| rates(section, *kind));
    let percentiles = kinds.iter().map(|kind| percentiles(section, *kind));
    rates.chain(server_cpu(section)).chain(percentiles).chain(over_time(section)).collect()
}

/// How many a second, as bars. One bar alone would say nothing.
fn rates(section: &Section, kind: Operation) -> Option<Element> {
    let bars = numbered(section).filter_map(|(number, series)| {
        let spread = series.metric(RATE, kind.units())?;
        Some(Bar {
            series: number,
            label: series.label.clone(),
            value: format!("{}/s", written(spread.median)),
            parts: vec![Part { length: spread.median, look: look(number), name: String::new() }],
            range: (spread.least, spread.most),
        })
    });
    let bars = bars.collect::<Vec<_>>();
    (bars.len() > 1).then(|| Bars { title: format!("{} per second", capital(kind.units())), bars }.draw())
}

/// What the server spent, as bars put together from its threads.
fn server_cpu(section: &Section) -> Option<Element> {
    let servers = || section.series.iter().filter_map(|series| series.median_run.server.as_ref());
    let mut threads = BTreeMap::<&str, f64>::new();
    for (name, us) in servers().flat_map(|server| &server.cpu_us_each_by_thread) {
        *threads.entry(name).or_default() += us;
    }
    let mut threads = threads.into_iter().collect::<Vec<_>>();
    threads.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let threads = threads.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let (told, others) = threads.split_at(threads.len().min(THREADS_MAX));
    let bars = numbered(section).filter_map(|(number, series)| {
        let server = series.median_run.server.as_ref()?;
        let spread = series.metric(SERVER, SERVER_CPU)?;
        let us = |name: &&str| server.cpu_us_each_by_thread.get(*name).copied().unwrap_or_default();
        let others = ("others", others.iter().map(us).sum());
        let parts = told.iter().map(|name| (*name, us(name))).chain([others]).enumerate();
        let parts = parts.map(|(place, (name, us))| Part {
            length: us,
            look: format!("t{place}"),
            // With as many digits as the sum: its digits mean something.
            name: in_digits_of(us, server.cpu_us_each).map(|us| format!("{name} {us}")).unwrap_or_default(),
        });
        Some(Bar {
            series: number,
            label: series.label.clone(),
            value: format!("{} µs", written(server.cpu_us_each)),
            parts: parts.collect(),
            range: (spread.least, spread.most),
        })
    });
    let bars = bars.collect::<Vec<_>>();
    let title = format!("Server CPU per {}, by thread", section.counted().unit());
    (!bars.is_empty()).then(|| Bars { title, bars }.draw())
}

/// A part, with as many digits after the point as the sum has; `None` if it would be written as zero.
fn in_digits_of(part: f64, sum: f64) -> Option<String> {
    let digits = written(sum).split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let text = format!("{part:.digits$}");
    text.contains(|c: char| c.is_ascii_digit() && c != '0').then_some(text)
}

/// How one kind of latency is spread.
fn percentiles(section: &Section, kind: Operation) -> Element {
    let of_kind = |run: &Report| run.latencies().find(|latency| latency.of == kind).cloned();
    let curve = |run: &Report| of_kind(run).map(|latency| curve(&latency)).unwrap_or_default();
    let mut lines = lines(section, |run| curve(run).into_iter().map(Some).collect());
    for line in lines.iter_mut().filter(|line| !line.is_faint) {
        let series = &section.series[line.series];
        let marks = of_kind(series.median_run).map(|latency| named_percentiles(&latency)).unwrap_or_default();
        let told = |us| format!("{}: {}", series.label, Unit::Micros.write(us));
        line.marks =
            marks.into_iter().map(|(place, us, name)| (place, us, format!("{name} of {}", told(us)))).collect();
    }
    let counts = section.series.iter().flat_map(|series| &series.runs).filter_map(|run| Some(of_kind(run)?.count));
    let x = Scale::nines(counts.max().unwrap_or_default());
    let y = Scale::logarithmic(Unit::Micros, values(&lines));
    plot(section, format!("{} latency by percentile", capital(kind.name())), x, y, lines)
}

/// The percentiles that have names, each with its percentile and latency. The greatest latency has the percentile above
/// which only one lies.
fn named_percentiles(latency: &Latency) -> Vec<(f64, f64, &'static str)> {
    let greatest = 100.0 * (1.0 - 1.0 / latency.count as f64);
    let named = [
        (50.0, latency.p50, "p50"),
        (90.0, latency.p90, "p90"),
        (99.0, latency.p99, "p99"),
        (99.9, latency.p99_9, "p99.9"),
    ];
    let below = named.into_iter().filter(|(place, ..)| *place < greatest);
    below.chain([(greatest, latency.max, "max")]).collect()
}

/// All percentiles, ascending.
fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    let named = named_percentiles(latency).into_iter().map(|(place, us, _)| (place, us)).collect::<Vec<_>>();
    let greatest = named.last().map_or(0.0, |(place, _)| *place);
    let below = latency.percentiles.iter().copied().filter(|(place, _)| *place < greatest);
    let mut curve = below.chain(named).collect::<Vec<_>>();
    curve.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    curve
}

/// How the runs went.
fn over_time(section: &Section) -> Vec<Element> {
    let timeline = |metric: &dyn Fn(&Point) -> Option<f64>| {
        lines(section, |run| {
            let starts = [0.0].into_iter().chain(run.timeline.iter().map(|point| point.at));
            // The values of an interval are drawn at its middle.
            let placed = starts.zip(&run.timeline).map(|(start, point)| (f64::midpoint(start, point.at), point));
            placed.map(|(at, point)| Some((at, metric(point)?))).collect()
        })
    };
    let ends = section.series.iter().flat_map(|series| &series.runs).filter_map(|run| run.timeline.last());
    let x = Scale::of_time(ends.map(|point| point.at).fold(0.0, f64::max));
    let from_zero = |unit, lines: &[Line]| Scale::from_zero(unit, values(lines).fold(0.0, f64::max));
    let kind = section.counted();
    let mut plots = Vec::new();
    let mut add = |title: String, y: Scale, lines: Vec<Line>| {
        if values(&lines).next().is_some() {
            plots.push(plot(section, title, x.clone(), y, lines));
        }
    };

    let rates = timeline(&|point| Some(point.per_second));
    add(format!("{} per second, over time", capital(kind.units())), from_zero(Unit::Count, &rates), rates);
    // An interval in which nothing ended has no latency.
    let told = |us: f64| (us > 0.0).then_some(us);
    let p50 = timeline(&|point| told(point.p50_us));
    let p99 = timeline(&|point| told(point.p99_us));
    let latency = format!("{} latency", capital(kind.name()));
    if section.is_comparison() {
        // Both with the same axis, to be compared.
        let y = Scale::logarithmic(Unit::Micros, values(&p50).chain(values(&p99)));
        add(format!("{latency} p50, over time"), y.clone(), p50);
        add(format!("{latency} p99, over time"), y, p99);
    } else {
        let max = timeline(&|point| told(point.max_us));
        let named = [("p50", p50), ("p99", p99), ("max", max)].into_iter().enumerate();
        let lines = named.flat_map(|(look, (name, lines))| {
            lines.into_iter().map(move |line| Line { look, label: name.to_owned(), ..line })
        });
        let lines = lines.collect::<Vec<_>>();
        add(format!("{latency}, over time"), Scale::logarithmic(Unit::Micros, values(&lines)), lines);
    }
    let processors = timeline(&|point| point.server_processors);
    add("Processors used by the server, over time".to_owned(), from_zero(Unit::Count, &processors), processors);
    let memory = timeline(&|point| Some(point.server_memory_bytes? as f64));
    add("Memory held by the server, over time".to_owned(), from_zero(Unit::Bytes, &memory), memory);
    plots
}

fn plot(section: &Section, title: String, x: Scale, y: Scale, lines: Vec<Line>) -> Element {
    Plot { title, x, y, lines, is_keyed: section.is_comparison() }.draw()
}

/// A line for each run that has points.
fn lines(section: &Section, points: impl Fn(&Report) -> Vec<Option<(f64, f64)>>) -> Vec<Line> {
    let is_short = section.series.iter().all(|series| series.label.chars().count() <= LABEL_MAX);
    let is_told = is_short && section.is_comparison();
    let runs = numbered(section).flat_map(|(number, series)| series.runs.iter().map(move |run| (number, series, *run)));
    let lines = runs.map(|(number, series, run)| Line {
        series: number,
        look: number,
        label: if is_told { series.label.clone() } else { String::new() },
        is_faint: !ptr::eq(run, series.median_run),
        points: points(run),
        marks: Vec::new(),
    });
    lines.filter(|line| !line.points.is_empty()).collect()
}

fn values(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines.iter().flat_map(|line| &line.points).flatten().map(|(_, y)| *y)
}

fn numbered<'s>(section: &'s Section) -> impl Iterator<Item = (usize, &'s LabelledSeries<'s>)> {
    section.series.iter().enumerate()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_ends_with_the_greatest_where_one_lies_above() {
        let mut latency = Report::example().latency_us;
        let last = *curve(&latency).last().expect("a curve");
        assert!((last.0 - 99.9).abs() < 1e-9 && last.1 == latency.max, "{last:?}");
        assert!(curve(&latency).is_sorted() && curve(&latency).contains(&(90.0, latency.p90)), "{:?}", curve(&latency));
        latency.count = 1;
        assert_eq!(curve(&latency), [(0.0, latency.max)]);
    }

    #[test]
    fn parts_are_written_like_their_sum() {
        for (part, sum, text) in [
            (0.0432, 1.64, Some("0.04")),
            (1.009, 1.64, Some("1.01")),
            (0.004, 1.64, None),
            (0.0521, 0.071, Some("0.0521")),
            (120.4, 930.0, Some("120")),
        ] {
            assert_eq!(in_digits_of(part, sum).as_deref(), text, "{part} of {sum}");
        }
    }
}
