//! Runs in the formats of other tools: CSV, the text format of Prometheus, the log of HdrHistogram.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use event_pipeline::event::Timestamp;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::Serialize;
use serde_json::Value;

use crate::compare::{Column, Comparison};
use crate::latency::Operation;
use crate::metric::{RATE, RESULT, SERVER, SERVER_CPU, Spread};
use crate::report::Report;
use crate::run_files::Source;
use crate::timeline::Steps;

/// A header and a row for each run, always with the same columns (RFC 4180). What was not measured is empty.
pub fn csv(sources: &[Source]) -> String {
    let runs = sources.iter().flat_map(|source| source.reports.iter().map(|run| fields(&source.name, run)));
    let runs = runs.collect::<Vec<_>>();
    let header = runs.first().into_iter().map(|run| row(run.iter().map(|(name, _)| name)));
    let rows = runs.iter().map(|run| row(run.iter().map(|(_, value)| value)));
    header.chain(rows).collect()
}

fn row<'f>(fields: impl Iterator<Item = &'f String>) -> String {
    let quoted = fields.map(|field| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.clone(),
    });
    quoted.collect::<Vec<_>>().join(",") + "\r\n"
}

/// The columns of a run, with its values.
fn fields(file: &str, run: &Report) -> Vec<(String, String)> {
    /// Text as it is, nothing as nothing, everything else as JSON.
    fn written(value: impl Serialize) -> String {
        match serde_json::to_value(value).expect("a report is plain") {
            Value::Null => String::new(),
            Value::String(text) => text,
            value => value.to_string(),
        }
    }
    let mut fields = Vec::new();
    let mut add = |name: &str, value| fields.push((name.to_owned(), value));
    add("file", file.to_owned());
    add("label", written(&run.label));
    add("commit", written(&run.commit));
    add("scenario", run.scenario.clone());
    add("subject", run.subject.clone());
    add("acknowledged_means", run.acknowledged_means.clone());
    add("title", run.title.clone());
    add("started_at", run.started_at.clone());
    add("seconds", written(run.seconds));
    add("verdict", written(run.verdict));
    add("violations", written(run.violations.len()));
    add("disturbed", written(run.disturbed));
    add("loop", written(run.loop_kind));
    add("asked_per_second", written(run.asked.as_ref().map(|asked| asked.per_second)));
    add("events", written(run.events.count));
    add("events_per_second", written(run.events.per_second));
    for kind in &Operation::ALL[1..] {
        add(&format!("{}_per_second", kind.units()), written(run.count(*kind).map(|count| count.per_second)));
    }
    for kind in Operation::ALL {
        let latency = run.latencies().find(|latency| latency.of == kind);
        let mut add = |name, value: Option<f64>| add(&format!("{}_{name}_us", kind.name()), written(value));
        add("mean", latency.map(|latency| latency.mean));
        add("p50", latency.map(|latency| latency.p50));
        add("p90", latency.map(|latency| latency.p90));
        add("p99", latency.map(|latency| latency.p99));
        add("p99_9", latency.map(|latency| latency.p99_9));
        add("max", latency.map(|latency| latency.max));
    }
    let server = run.server.as_ref();
    add("server_cpu_us_each", written(server.map(|server| server.cpu_us_each)));
    add("server_peak_memory_bytes", written(server.map(|server| server.peak_memory_bytes)));
    add("server_written_bytes_per_event", written(server.map(|server| server.written_bytes_per_event)));
    add("server_syncs_per_event", written(server.and_then(|server| server.syncs_per_event)));
    add("client_cpu_us_each", written(run.client.cpu_us_each));
    add("processors_busy", written(run.processors_busy.all));
    add("processors", written(run.machine.processors));
    add("cpu", run.machine.cpu.clone());
    add("kernel", run.machine.kernel.clone());
    add("options", written(&run.options));
    add("server_settings", written(&run.server_settings));
    add("results", written(&run.results));
    fields
}

/// The metrics, each with its help.
const FAMILIES: [(&str, &str); 9] = [
    ("loadtest_per_second", "Median rate of what the label of names."),
    ("loadtest_latency_seconds", "Median over the runs of a percentile of a latency."),
    ("loadtest_server_cpu_seconds", "Median CPU time of the server for each of what the scenario counts."),
    ("loadtest_server_memory_bytes", "Median of the most memory that the server held."),
    ("loadtest_server_written_bytes", "Median of the bytes that the server wrote for an event."),
    ("loadtest_server_syncs", "Median of the syncs of the server's disk for an event."),
    ("loadtest_result", "Median of what only the scenario measures, in the unit of the label unit."),
    ("loadtest_runs", "Runs that the medians are of."),
    ("loadtest_violations", "Promises that were broken in these runs."),
];

/// Gauges for each series of runs, the medians, in the text format of Prometheus.
pub fn prometheus(sources: &[Source]) -> String {
    let comparisons = Comparison::all(sources);
    let columns = comparisons.iter().flat_map(|all| all.columns.iter().map(|column| (&all.scenario, column)));
    let samples = (1..).zip(columns).flat_map(|(number, (scenario, column))| samples(number, scenario, column));
    let samples = samples.collect::<Vec<_>>();
    let mut text = String::new();
    for (family, help) in FAMILIES {
        let mut own = samples.iter().filter(|(of, ..)| *of == family).peekable();
        if own.peek().is_some() {
            writeln!(text, "# HELP {family} {help}\n# TYPE {family} gauge").expect(WRITTEN);
            own.for_each(|(_, labels, value)| writeln!(text, "{family}{{{labels}}} {value}").expect(WRITTEN));
        }
    }
    text
}

const WRITTEN: &str = "a string takes everything";

/// The samples of one series: the metric, the labels and the value of each.
fn samples(number: usize, scenario: &str, column: &Column) -> Vec<(&'static str, String, f64)> {
    let run = column.reports[0];
    let number = number.to_string();
    let [label, commit] = [&run.label, &run.commit].map(|text| text.as_deref().unwrap_or_default());
    // Two series may differ only in options: their number tells them apart.
    let series = [
        ("scenario", scenario),
        ("subject", &run.subject),
        ("label", label),
        ("commit", commit),
        ("title", &run.title),
        ("file", &column.file),
        ("series", &number),
    ];
    let with = |own: &[(&str, &str)]| {
        let labels = series.iter().chain(own).filter(|(_, value)| !value.is_empty());
        let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect::<Vec<_>>().join(",")
    };
    let sample = |Spread { name, median, .. }: &Spread| {
        let text = name.text.as_str();
        match (name.of, text) {
            (RATE, _) => ("loadtest_per_second", with(&[("of", text)]), *median),
            (RESULT, _) => ("loadtest_result", with(&[("of", text), ("unit", &name.unit)]), *median),
            (SERVER, SERVER_CPU) => ("loadtest_server_cpu_seconds", with(&[]), median / 1e6),
            (SERVER, "memory") => ("loadtest_server_memory_bytes", with(&[]), median * 1e6),
            (SERVER, "written") => ("loadtest_server_written_bytes", with(&[]), *median),
            (SERVER, _) => ("loadtest_server_syncs", with(&[]), median / 1e3),
            (of, _) => {
                let percentile = text.strip_prefix('p').unwrap_or("100");
                ("loadtest_latency_seconds", with(&[("of", of), ("percentile", percentile)]), median / 1e3)
            }
        }
    };
    let violations = column.reports.iter().map(|run| run.violations.len()).sum::<usize>();
    let counts = [("loadtest_runs", column.reports.len()), ("loadtest_violations", violations)];
    let counts = counts.map(|(family, count)| (family, with(&[]), count as f64));
    column.metrics.iter().map(|metric| sample(&metric.spread)).chain(counts).collect()
}

/// The histograms of these runs in the log format of HdrHistogram, with compressed histograms of version 2, each tagged
/// with its kind: of what the scenario counts an interval for each step of the timeline, to two digits, and of each other
/// kind one for the run, to three. Values are nanoseconds; the greatest of an interval is given in seconds. A run begins a
/// second before its first interval, to warm up, and its start is known to the second.
///
/// # Errors
/// A run without a time.
pub fn hdr_log(reports: &[Report]) -> anyhow::Result<Vec<u8>> {
    let starts = reports.iter().map(|run| start(&run.started_at)).collect::<anyhow::Result<Vec<_>>>()?;
    let failed = |error| anyhow!("write a histogram: {error:?}");
    let (mut log, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let mut builder = IntervalLogWriterBuilder::new();
    builder.add_comment("[Histogram log format version 1.3]").with_max_value_divisor(1e9);
    builder.with_start_time(SystemTime::UNIX_EPOCH + starts.iter().min().copied().unwrap_or_default());
    let mut writer = builder.begin_log_with(&mut log, &mut serializer)?;
    for (run, start) in reports.iter().zip(starts) {
        writer.write_comment(&format!("{}: {}, {}", run.scenario, run.title, run.subject))?;
        let (counted, seconds) = (run.latency_us.of, Duration::from_secs_f64(run.seconds));
        let Steps { length, latencies } = &run.steps;
        for (from, histogram) in (0..).map(|step| *length * step).zip(latencies) {
            let length = seconds.saturating_sub(from).min(*length);
            writer.write_histogram(histogram, start + from, length, Tag::new(counted.name())).map_err(failed)?;
        }
        for latency in run.latencies().filter(|latency| latency.of != counted) {
            let Some(histogram) = &latency.histogram else { continue };
            writer.write_histogram(histogram, start, seconds, Tag::new(latency.of.name())).map_err(failed)?;
        }
    }
    Ok(log)
}

/// The time since 1970.
fn start(text: &str) -> anyhow::Result<Duration> {
    let Timestamp(micros) = Timestamp::parse_floor(text).context("a run that began at no time")?;
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use base64::prelude::{BASE64_STANDARD, Engine};
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;
    use crate::finding::Finding;
    use crate::latency::{Latency, coarse_histogram, histogram};

    const NASTY: &str = "a \"b\", c\\d\r\ne\n=f";

    fn sources() -> Vec<Source> {
        let mut nasty = Report::example();
        (nasty.label, nasty.title) = (Some(NASTY.to_owned()), NASTY.to_owned());
        (nasty.server, nasty.disturbed) = (None, None);
        nasty.results = vec![Finding { name: NASTY.to_owned(), unit: "s".to_owned(), value: -0.5 }];
        let mut wide = Report::example();
        wide.options["window"] = 7.into();
        vec![
            Source { name: String::new(), reports: vec![Report::example(), nasty, wide] },
            Source { name: "b.json".to_owned(), reports: vec![Report::example(); 2] },
        ]
    }

    #[test]
    fn csv_has_a_row_for_each_run_and_equal_columns() {
        let fields_of = |fields: [&str; 3]| row(fields.map(str::to_owned).iter());
        assert_eq!(fields_of(["a b", "", "c,d"]), "a b,,\"c,d\"\r\n");
        assert_eq!(fields_of([NASTY, "\n", "e"]), "\"a \"\"b\"\", c\\d\r\ne\n=f\",\"\n\",e\r\n");
        let [named, other] = &sources()[..] else { panic!("two") };
        let rows = named.reports.iter().map(|run| fields(&named.name, run)).collect::<Vec<_>>();
        let names = |row: &[(String, String)]| row.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert!(rows.iter().all(|row| names(row) == names(&rows[0])), "{rows:?}");
        assert_eq!(names(&rows[0]).into_iter().collect::<BTreeSet<_>>().len(), rows[0].len(), "two have one name");
        let of = |row: usize, wanted: &str| &*rows[row].iter().find(|(name, _)| name == wanted).expect(wanted).1;
        assert_eq!((of(0, "acknowledgement_p99_us"), of(0, "delivery_p99_us")), ("3000.0", ""));
        assert_eq!((of(1, "label"), of(1, "server_cpu_us_each"), of(1, "disturbed")), (NASTY, "", ""));
        assert_eq!((of(0, "verdict"), of(0, "loop")), ("verified", "closed"));
        let text = csv(std::slice::from_ref(other));
        assert!(
            text.starts_with("file,label,commit,scenario,") && text.matches("\r\nb.json,before,").count() == 2,
            "{text}"
        );
    }

    type Labels = Vec<(String, String)>;

    /// Reads the labels of a sample up to the bracket: the rest, and the labels.
    fn read_labels(mut text: &str) -> (&str, Labels) {
        let mut labels = Vec::new();
        loop {
            let (name, rest) = text.split_once("=\"").expect("a label");
            let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            assert!(is_name(name) && name.starts_with(|c: char| !c.is_ascii_digit()), "{name}");
            let (mut value, mut chars) = (String::new(), rest.char_indices());
            let end = loop {
                match chars.next().expect("the end of a value") {
                    (end, '"') => break end,
                    (_, '\\') => value.push(match chars.next() {
                        Some((_, 'n')) => '\n',
                        Some((_, c @ ('"' | '\\'))) => c,
                        other => panic!("{other:?} is escaped"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            labels.push((name.to_owned(), value));
            match rest[end + 1..].strip_prefix(',') {
                Some(rest) => text = rest,
                None => return (rest[end + 1..].strip_prefix('}').expect("the end of labels"), labels),
            }
        }
    }

    /// Checks a text by the grammar of <https://prometheus.io/docs/instrumenting/exposition_formats/>.
    fn read_prometheus(text: &str) -> Vec<(String, Labels, f64)> {
        assert!(text.ends_with('\n'), "{text}");
        let (mut samples, mut families) = (Vec::new(), Vec::new());
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let (family, _) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')).expect("help");
            assert_eq!(lines.next(), Some(format!("# TYPE {family} gauge").as_str()));
            assert!(!families.contains(&family), "{family} comes twice");
            families.push(family);
            while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
                let (name, labels) = sample.split_once('{').expect("labels");
                let (value, labels) = read_labels(labels);
                assert_eq!(name, family);
                let value = value.strip_prefix(' ').expect("a gap").parse().expect("a number");
                assert!(!samples.iter().any(|(of, known, _)| *of == name && *known == labels), "{sample} comes twice");
                samples.push((name.to_owned(), labels, value));
            }
        }
        samples
    }

    #[test]
    fn prometheus_text_keeps_to_the_grammar() {
        let samples = read_prometheus(&prometheus(&sources()));
        let find = |family: &str, own: &[(&str, &str)]| {
            let has = |labels: &[(String, String)]| {
                own.iter().all(|(name, value)| labels.iter().any(|label| label.0 == *name && label.1 == *value))
            };
            let found = samples.iter().filter(|(name, labels, _)| name == family && has(labels));
            found.map(|(.., value)| *value).collect::<Vec<_>>()
        };
        assert_eq!(find("loadtest_latency_seconds", &[("series", "1"), ("percentile", "99.9")]), [0.004]);
        assert_eq!(find("loadtest_runs", &[("file", "b.json")]), [2.0]);
        assert_eq!(find("loadtest_result", &[("label", NASTY), ("of", NASTY)]), [-0.5]);
        assert_eq!(find("loadtest_server_memory_bytes", &[("series", "1")]), [22e6]);
        assert_eq!(prometheus(&[]), "");
    }

    #[test]
    fn a_histogram_log_can_be_read_back() {
        let (mut timed, mut of_step) = (histogram(), coarse_histogram());
        (1..=1_000).for_each(|micros| timed.saturating_record(micros * 1_000));
        of_step.saturating_record(1_000_000);
        let run = Report {
            steps: Steps { length: Duration::from_millis(200), latencies: vec![of_step.clone(); 3] },
            more_latencies_us: vec![Latency::of(Operation::Delivery, &timed)],
            ..Report::example()
        };
        let log = hdr_log(&[run.clone(), Report::example(), run]).expect("a log");
        let text = String::from_utf8(log.clone()).expect("text");
        assert!(text.starts_with("#[Histogram log format version 1.3]\n#[StartTime: 1795514400.000 "), "{text}");
        let entries = IntervalLogIterator::new(&log).map(|entry| entry.expect("an entry"));
        let intervals = entries.filter_map(|entry| match entry {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        });
        let told = intervals.map(|interval| {
            let tag = interval.tag().expect("a tag").as_str().to_owned();
            assert!((interval.max() - 0.001).abs() < 1e-5, "{}", interval.max());
            let bytes = BASE64_STANDARD.decode(interval.encoded_histogram()).expect("base64");
            let read = Deserializer::new().deserialize::<u64, _>(&mut &bytes[..]).expect("a histogram");
            assert_eq!(read.len(), if tag == "delivery" { timed.len() } else { of_step.len() });
            let from = interval.start_timestamp().as_millis() - 1_795_514_400_000;
            (tag, from, interval.duration().as_millis())
        });
        let of_run =
            [(0, 200), (200, 200), (400, 100)].map(|(from, length)| ("acknowledgement".to_owned(), from, length));
        let of_run = of_run.into_iter().chain([("delivery".to_owned(), 0, 500)]).collect::<Vec<_>>();
        // A run that was read from a file has no histograms.
        assert_eq!(told.collect::<Vec<_>>(), [&of_run[..], &of_run[..]].concat());
    }
}
