//! Everything that was measured with one scenario: a table, charts, and remarks.

use crate::html::markup::Element;
use crate::html::plot::key;
use crate::html::scale::Unit;
use crate::latency::Operation;
use crate::metric::{RATE, SERVER, Spread, written};
use crate::report::{Count, Report};
use crate::run_files::{Series, Source};

/// From this value on, the ends of a range are written with fewer digits than the value between them.
const RANGE_WRITTEN_OUT: f64 = 10_000.0;

pub struct Section<'r> {
    number: usize,
    pub series: Vec<LabelledSeries<'r>>,
    /// What all series have in common.
    shared: Vec<String>,
}

/// A series with a label that distinguishes it from the others of its section.
pub struct LabelledSeries<'r> {
    pub label: String,
    pub runs: Vec<&'r Report>,
    /// The run that stands for all: the one with the median of the rates, or just below.
    pub median_run: &'r Report,
    pub metrics: Vec<Spread>,
    /// What its acknowledgements mean, unless those of all series mean the same.
    acknowledged_means: Option<&'r str>,
}

impl<'r> Section<'r> {
    /// In the order of the scenarios' first runs.
    pub fn all(sources: &'r [Source]) -> Vec<Self> {
        let mut groups = Vec::<(_, Vec<Series>)>::new();
        for series in Series::all(sources) {
            let key = (&series.first().scenario, series.first().latency_us.of);
            match groups.iter_mut().find(|(known, _)| *known == key) {
                Some((_, group)) => group.push(series),
                None => groups.push((key, vec![series])),
            }
        }
        (0..).zip(groups).map(|(number, (_, group))| Self::new(number, group, sources)).collect()
    }

    fn new(number: usize, group: Vec<Series<'r>>, sources: &[Source]) -> Self {
        let Labels { labels, mut shared } = Labels::of(&group, sources);
        let means = |series: &Series<'r>| series.first().acknowledged_means.as_str();
        let all_mean_the_same = group.iter().all(|series| means(series) == means(&group[0]));
        if all_mean_the_same {
            shared.push(format!("an acknowledgement means: {}", means(&group[0])));
        }
        let series = group.into_iter().zip(labels).map(|(series, label)| {
            let mut by_rate = series.runs.clone();
            by_rate.sort_by(|one, other| rate(one).total_cmp(&rate(other)));
            LabelledSeries {
                label,
                median_run: by_rate[(by_rate.len() - 1) / 2],
                metrics: Spread::all(&series.runs),
                acknowledged_means: (!all_mean_the_same).then(|| means(&series)),
                runs: series.runs,
            }
        });
        Self { number, series: series.collect(), shared }
    }

    fn first(&self) -> &'r Report {
        self.series[0].median_run
    }

    pub fn scenario(&self) -> &'r str {
        &self.first().scenario
    }

    /// What the scenario counts.
    pub fn counted(&self) -> Operation {
        self.first().latency_us.of
    }

    pub fn anchor(&self) -> String {
        format!("section-{}", self.number)
    }

    pub fn is_comparison(&self) -> bool {
        self.series.len() > 1
    }

    fn is_repeated(&self) -> bool {
        self.series.iter().any(|series| series.runs.len() > 1)
    }

    pub fn draw(&self, charts: Vec<Element>) -> Element {
        let shared = self.shared.iter().map(|shared| Element::new("span").text(shared));
        let violations = self.series.iter().flat_map(LabelledSeries::violations);
        let violations = violations.map(|text| Element::classed("p", "violation").text(format!("VIOLATION: {text}")));
        let remarks = self.series.iter().enumerate().map(|(number, series)| self.remarks(number, series));
        Element::new("section")
            .with("id", self.anchor())
            .put(Element::new("h2").text(self.scenario()))
            .put(Element::classed("p", "conditions").put_all(shared))
            .put_all(violations)
            .put(self.table())
            .put(self.legend())
            .put(Element::classed("div", "charts").put_all(charts))
            .put(Element::classed("div", "remarks").put_all(remarks))
    }

    fn key(&self, series: usize) -> Option<Element> {
        self.is_comparison().then(|| key(series))
    }

    /// All main metrics, a row for each series.
    fn table(&self) -> Element {
        let all = || self.series.iter().flat_map(|series| &series.metrics).map(|spread| &spread.name);
        let groups = unique(all().map(|name| name.of));
        let groups = groups.into_iter().map(|of| (of, unique(all().filter(|name| name.of == of)))).collect::<Vec<_>>();
        let column = || Element::new("th").with("scope", "col");
        let heads = groups.iter().map(|(of, names)| {
            let head = Element::classed("th", "group").with("scope", "colgroup").with("colspan", names.len());
            match *of {
                RATE | SERVER => head.text(of),
                timed => head.text(format!("{timed} latency")),
            }
        });
        let heads = Element::new("tr").put(Element::new("td")).put_all(heads).put(Element::new("td"));
        // The first row of a group has a gap above it.
        let leads = |index: usize| if index == 0 { "leads" } else { "follows" };
        let names = groups.iter().flat_map(|(_, names)| names.iter().enumerate().map(|(i, name)| (leads(i), *name)));
        let names = names.collect::<Vec<_>>();
        let titles = names.iter().map(|(class, name)| {
            column().with("class", class).text(name.text).put(Element::new("small").text(&name.unit))
        });
        let titles = Element::new("tr").put(column()).put_all(titles).put(column().text("verdict"));
        let rows = self.series.iter().enumerate().map(|(number, series)| {
            let cells = names.iter().map(|(class, name)| {
                let find =
                    |series: &'_ LabelledSeries| series.metrics.iter().find(|spread| spread.name == **name).cloned();
                cell(class, find(series), self.series[..number].iter().find_map(find))
            });
            let count = (series.runs.len() > 1).then(|| format!("{} runs", series.runs.len()));
            let means = series.acknowledged_means.map(|means| format!("an acknowledgement means: {means}"));
            let smalls = count.into_iter().chain(means).map(|text| Element::new("small").text(text));
            let label = Element::new("th").with("scope", "row").put(self.key(number)).text(&series.label);
            Element::new("tr").put(label.put_all(smalls)).put_all(cells).put(series.verdict())
        });
        let table = Element::new("table")
            .put(Element::new("thead").put(heads).put(titles))
            .put(Element::new("tbody").put_all(rows));
        let label = format!("{}: metrics", self.scenario());
        // It may be wider than a screen. Then it scrolls, also by keyboard.
        Element::classed("div", "table").with("tabindex", 0).with("role", "region").with("aria-label", label).put(table)
    }

    /// How table and charts are to be read.
    fn legend(&self) -> Option<Element> {
        let mut sentences = Vec::new();
        if self.is_repeated() {
            sentences.push("Where there are several runs, a metric is their median, with the range below it.");
            sentences.push("In the charts the run of median rate stands before the others; whiskers span all.");
        }
        if self.is_comparison() {
            sentences.push("Changes are since the first row; in parentheses where the ranges overlap, so that they may mean nothing.");
        }
        if self.is_comparison() && self.series.iter().any(|series| series.runs.len() == 1) {
            sentences.push("One run has no range: what a change means is known from several.");
        }
        (!sentences.is_empty()).then(|| Element::classed("p", "legend").text(sentences.join(" ")))
    }

    /// The remarks on a series.
    fn remarks(&self, number: usize, series: &LabelledSeries) -> Element {
        let of_each = |texts: &dyn Fn(&Report) -> Vec<String>| unique(series.runs.iter().flat_map(|run| texts(run)));
        let facts = [
            ("limited by", of_each(&|run| vec![run.limit.clone()])),
            ("notes", of_each(&|run| run.notes.clone())),
            ("server says", of_each(&|run| run.server_warnings.clone())),
            ("processors", vec![series.median_run.processors_busy.to_string()]),
            ("options", of_each(&|run| vec![options(run)])),
            ("settings", vec![settings(series.median_run)]),
            ("runs", series.runs.iter().map(|run| format!("{}, {:.1} s", run.started_at, run.seconds)).collect()),
        ];
        let facts = facts.into_iter().filter(|(_, texts)| texts.iter().any(|text| !text.is_empty()));
        let facts = facts.flat_map(|(name, texts)| {
            let texts = texts.into_iter().map(|text| Element::new("dd").text(text));
            [Element::new("dt").text(name)].into_iter().chain(texts)
        });
        Element::new("article")
            .put(Element::new("h3").put(self.key(number)).text(&series.label))
            .put(Element::new("dl").put_all(facts))
    }
}

impl LabelledSeries<'_> {
    /// One of its metrics.
    pub fn metric(&self, of: &str, text: &str) -> Option<&Spread> {
        self.metrics.iter().find(|spread| spread.name.of == of && spread.name.text == text)
    }

    fn violations(&self) -> impl Iterator<Item = String> {
        let of_run = |run: &&Report| run.violations.clone();
        self.runs.iter().flat_map(of_run).map(|text| format!("{}: {text}", self.label))
    }

    fn verdict(&self) -> Element {
        match self.violations().count() {
            0 => Element::classed("td", "kept").text("verified"),
            1 => Element::classed("td", "broken").text("VIOLATION"),
            count => Element::classed("td", "broken").text(format!("{count} VIOLATIONS")),
        }
    }
}

/// A metric, its range, and the change since an earlier one.
fn cell(class: &str, spread: Option<Spread>, base: Option<Spread>) -> Element {
    let cell = Element::classed("td", class);
    let Some(spread) = spread else { return cell.text("–") };
    let end = |value: f64| if value < RANGE_WRITTEN_OUT { written(value) } else { Unit::Count.write(value) };
    let range = spread.range(end).map(|range| Element::new("small").text(range));
    let change = base.map(|base| {
        let change = spread.against(&base);
        match change.within_spread {
            true => Element::new("small").text(format!("({})", change.size())),
            false => Element::classed("small", "change").text(change.size()),
        }
    });
    cell.text(written(spread.median)).put(range).put(change)
}

/// The options of a run that were given or have a default.
fn options(run: &Report) -> String {
    let options = run.options.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    options.map(|(name, value)| format!("{name} {}", text(value))).collect::<Vec<_>>().join(" · ")
}

/// What was set for its server.
fn settings(run: &Report) -> String {
    run.server_settings.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" · ")
}

/// Of what the scenario counts.
fn rate(run: &Report) -> f64 {
    let count: Option<&Count> = match run.latency_us.of {
        Operation::Acknowledgement => None,
        Operation::Delivery => run.deliveries.as_ref(),
        Operation::Query => run.queries.as_ref(),
        Operation::Connection => run.connections.as_ref(),
    };
    count.unwrap_or(&run.events).per_second
}

/// What distinguishes each series of a group from the others, and what all of them have in common.
struct Labels {
    labels: Vec<String>,
    shared: Vec<String>,
}

impl Labels {
    fn of(group: &[Series], sources: &[Source]) -> Self {
        let facets = group.iter().map(|series| facets(series, sources)).collect::<Vec<_>>();
        let is_shared = |facet: &&String| facets.iter().all(|facets| facets.contains(facet));
        let shared = facets[0].iter().filter(is_shared).cloned().collect::<Vec<_>>();
        if let [only] = group {
            return Self { labels: vec![only.first().subject.clone()], shared: shared[1..].to_vec() };
        }
        let own = |facets: &Vec<String>| facets.iter().filter(|facet| !is_shared(facet)).cloned().collect::<Vec<_>>();
        let mut own = facets.iter().map(own).collect::<Vec<_>>();
        // Series with the same server, title and file may still differ in options.
        if unique(&own).len() < own.len() {
            for (facets, series) in own.iter_mut().zip(group) {
                let options = series.differing_options(group).into_iter();
                facets.extend(options.map(|(name, value)| format!("{name} {value}")));
            }
        }
        let label = |(index, facets): (usize, Vec<String>)| match facets.is_empty() {
            // Nothing distinguishes it, so it is labelled by its file.
            true => sources[group[index].source].name.clone(),
            false => facets.join(" · "),
        };
        Self { labels: own.into_iter().enumerate().map(label).collect(), shared }
    }
}

/// The server, the parts of the title, and the file.
fn facets(series: &Series, sources: &[Source]) -> Vec<String> {
    let run = series.first();
    let title = run.title.split(", ").map(str::to_owned);
    let facets = [run.subject.clone()].into_iter().chain(title).chain([sources[series.source].name.clone()]);
    facets.filter(|facet| !facet.is_empty()).collect()
}

/// Each once, in the order of their first.
pub fn unique<T: PartialEq>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut unique = Vec::new();
    for item in items {
        if !unique.contains(&item) {
            unique.push(item);
        }
    }
    unique
}
