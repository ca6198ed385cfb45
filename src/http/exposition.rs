//! Writing metrics as text: OpenMetrics, or the older format of Prometheus.

use std::fmt::Result;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use crate::histogram::Histogram;

/// How metrics look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    /// What scrapers from before OpenMetrics read.
    Prometheus,
}

/// What collectors with their prefixes show now.
pub(super) fn written(format: Format, collectors: Vec<(Option<&str>, Box<dyn Collector>)>) -> String {
    let (mut registry, mut written) = (Registry::default(), String::new());
    for (prefix, collector) in collectors {
        let part = match prefix {
            Some(prefix) => registry.sub_registry_with_prefix(prefix),
            None => &mut registry,
        };
        part.register_collector(collector);
    }
    let result = match format {
        Format::OpenMetrics => text::encode(&mut written, &registry),
        Format::Prometheus => prometheus_text::encode(&mut written, &registry),
    };
    result.expect("a string takes all");
    written
}

/// Writes one metric after the other. A name is without prefix, unit and `_total`, which follow from the rest.
pub(super) struct Exposition<'e>(pub(super) DescriptorEncoder<'e>);

/// No sample has an exemplar.
const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, f64>> = None;

impl Exposition<'_> {
    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> Result {
        self.counter_of(name, help, None, value)
    }

    pub(super) fn counter_of(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: impl EncodeCounterValue,
    ) -> Result {
        self.begin(name, help, unit, MetricType::Counter)?.encode_counter(&value, NO_EXEMPLAR)
    }

    /// One counter for each value of a label.
    pub(super) fn counters<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> Result {
        let mut metric = self.begin(name, help, None, MetricType::Counter)?;
        values
            .into_iter()
            .try_for_each(|(of, value)| metric.encode_family(&[(label, of)])?.encode_counter(&value, NO_EXEMPLAR))
    }

    pub(super) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: impl EncodeGaugeValue,
    ) -> Result {
        self.begin(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// One gauge for each value of a label.
    pub(super) fn gauges<'v>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, usize)>,
    ) -> Result {
        let mut metric = self.begin(name, help, unit, MetricType::Gauge)?;
        values.into_iter().try_for_each(|(of, value)| metric.encode_family(&[(label, of)])?.encode_gauge(&value))
    }

    pub(super) fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result {
        self.begin(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    pub(super) fn seconds(&mut self, name: &str, help: &str, histogram: &Histogram) -> Result {
        let mut metric = self.begin(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        put(&mut metric, histogram)
    }

    /// One histogram for each value of a label.
    pub(super) fn seconds_of<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        histograms: impl IntoIterator<Item = (&'v str, &'v Histogram)>,
    ) -> Result {
        let mut metric = self.begin(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        histograms
            .into_iter()
            .try_for_each(|(of, histogram)| put(&mut metric.encode_family(&[(label, of)])?, histogram))
    }

    fn begin<'m>(
        &'m mut self,
        name: &'m str,
        help: &str,
        unit: Option<&'m Unit>,
        kind: MetricType,
    ) -> std::result::Result<MetricEncoder<'m>, std::fmt::Error> {
        self.0.encode_descriptor(name, help, unit, kind)
    }
}

fn put(metric: &mut MetricEncoder<'_>, histogram: &Histogram) -> Result {
    let (sum, counts) = (histogram.sum().as_secs_f64(), histogram.counts());
    metric.encode_histogram::<NoLabelSet>(sum, counts.all(), &counts.buckets().collect::<Vec<_>>(), None)
}
