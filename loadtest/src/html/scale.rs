//! Where a value stands on an axis, and which values are written beside it.

/// An axis.
#[derive(Debug, Clone)]
pub struct Scale {
    spacing: Spacing,
    /// What stands at its two ends, as `spacing` counts.
    low: f64,
    high: f64,
    unit: Unit,
}

/// What equal distances on an axis mean.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Spacing {
    /// Equal differences. Counted in values; each multiple of `step` has a label.
    Linear { step: f64 },
    /// Equal ratios. Counted in powers of ten.
    Logarithmic,
    /// Equal ratios of the share above a percentile. Counted in nines, so that 90, 99 and 99.9 stand at 1, 2 and 3.
    Nines,
}

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Something that is counted, or has no dimension.
    Count,
    Bytes,
    Micros,
    /// Seconds, as seconds, minutes or hours.
    Seconds,
    Minutes,
    Hours,
    Percentile,
}

/// A label beside an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick {
    /// Where it stands, from 0 to 1.
    pub place: f64,
    pub label: String,
}

/// Most ticks of an axis: more are noise beside a plot as high as ours.
const TICKS_MAX: usize = 9;

/// Most steps of an axis of equal differences: a reader can estimate what lies between.
const STEPS_MAX: f64 = 6.0;

/// With this many nines or more, only every second one has room for its label.
const NINES_CROWDED: f64 = 5.0;

/// What may stand before the power of ten on a logarithmic axis, the densest first.
const MANTISSAS: [&[f64]; 4] = [
    &[1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0],
    &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
    &[1.0, 2.0, 5.0],
    &[1.0],
];

/// A tolerance: rounding errors must not move a round number over an edge.
const ROUNDING: f64 = 1e-9;

impl Scale {
    /// From zero to a round number, `greatest` or the next one above.
    pub fn from_zero(unit: Unit, greatest: f64) -> Self {
        let greatest = usable(greatest).unwrap_or(1.0);
        let step = round_step(greatest);
        Self { spacing: Spacing::Linear { step }, low: 0.0, high: (greatest / step - ROUNDING).ceil() * step, unit }
    }

    /// From zero to the end of something that took this many seconds.
    pub fn of_time(seconds: f64) -> Self {
        let high = usable(seconds).unwrap_or(1.0);
        let unit = match high {
            ..=120.0 => Unit::Seconds,
            ..=7_200.0 => Unit::Minutes,
            _ => Unit::Hours,
        };
        let step = round_step(high / unit.size()) * unit.size();
        Self { spacing: Spacing::Linear { step }, low: 0.0, high, unit }
    }

    /// Around these values, as far as they are positive, from a round number to another.
    pub fn logarithmic(unit: Unit, values: impl IntoIterator<Item = f64>) -> Self {
        let range = values.into_iter().filter_map(usable).fold(None, |range, value| {
            let (low, high) = range.unwrap_or((value, value));
            Some((value.min(low), value.max(high)))
        });
        let (low, high) = range.unwrap_or((1.0, 10.0));
        let low = round_below(low);
        // One value alone needs room too.
        let high = round_above(high.max(low * 1.5));
        Self { spacing: Spacing::Logarithmic, low: low.log10(), high: high.log10(), unit }
    }

    /// The percentiles of this many values. The greatest of n values stands where only one in n lies above.
    pub fn nines(count: u64) -> Self {
        Self { spacing: Spacing::Nines, low: 0.0, high: (count.max(10) as f64).log10(), unit: Unit::Percentile }
    }

    /// Where a value stands, from 0 to 1; one beyond an end, at that end.
    pub fn place(&self, value: f64) -> f64 {
        self.place_of(match self.spacing {
            Spacing::Linear { .. } => value,
            Spacing::Logarithmic => value.log10(),
            Spacing::Nines => 2.0 - (100.0 - value).log10(),
        })
    }

    fn place_of(&self, counted: f64) -> f64 {
        let place = (counted - self.low) / (self.high - self.low);
        if place.is_nan() { 0.0 } else { place.clamp(0.0, 1.0) }
    }

    /// The labels, ascending, none beyond an end.
    pub fn ticks(&self) -> Vec<Tick> {
        match self.spacing {
            Spacing::Linear { step } => {
                let count = (self.high / step + ROUNDING) as usize;
                (0..=count).map(|i| self.tick(i as f64 * step)).collect()
            }
            Spacing::Logarithmic => self.logarithmic_ticks(),
            Spacing::Nines => {
                let is_crowded = self.high > NINES_CROWDED;
                let nines =
                    (1..=(self.high + ROUNDING) as u32).filter(|nines| !is_crowded || *nines < 3 || nines % 2 == 1);
                let below = [0.0, 50.0].into_iter().take(if is_crowded { 1 } else { 2 });
                let below = below.map(|percentile| self.tick(percentile));
                below.chain(nines.map(|nines| self.nines_tick(nines))).collect()
            }
        }
    }

    fn tick(&self, value: f64) -> Tick {
        Tick { place: self.place(value), label: self.unit.write(value) }
    }

    /// The percentile with this many nines. It is written from them, because as a number it may not differ from 100.
    fn nines_tick(&self, nines: u32) -> Tick {
        let all = "9".repeat(nines as usize);
        let label = match all.split_at(all.len().min(2)) {
            ("9", _) => "90".to_owned(),
            (whole, "") => whole.to_owned(),
            (whole, fraction) => format!("{whole}.{fraction}"),
        };
        Tick { place: self.place_of(f64::from(nines)), label }
    }

    /// As many round numbers as there is room for.
    fn logarithmic_ticks(&self) -> Vec<Tick> {
        let (low, high) = (10_f64.powf(self.low), 10_f64.powf(self.high));
        let decades = self.low.floor() as i32..=self.high.ceil() as i32;
        let ticks = |mantissas: &[f64], stride: usize| {
            let numbers = decades
                .clone()
                .step_by(stride)
                .flat_map(|decade| mantissas.iter().map(move |mantissa| mantissa * 10_f64.powi(decade)));
            let seen = numbers.filter(|n| (low * (1.0 - ROUNDING)..=high * (1.0 + ROUNDING)).contains(n));
            seen.map(|number| self.tick(number)).collect::<Vec<_>>()
        };
        let densest = MANTISSAS.iter().map(|mantissas| ticks(mantissas, 1)).find(|ticks| ticks.len() <= TICKS_MAX);
        densest.unwrap_or_else(|| ticks(&[1.0], decades.clone().count().div_ceil(TICKS_MAX)))
    }
}

impl Unit {
    /// The value of one unit.
    fn size(self) -> f64 {
        match self {
            Self::Minutes => 60.0,
            Self::Hours => 3_600.0,
            _ => 1.0,
        }
    }

    /// A value with its unit, as short as possible.
    pub fn write(self, value: f64) -> String {
        // Each is a thousand of the one before.
        let scaled = |names: &[&str]| {
            let power = if value > 0.0 { ((value.log10() + ROUNDING) / 3.0).floor() } else { 0.0 };
            let power = (power.max(0.0) as usize).min(names.len() - 1);
            format!("{}{}", short(value / 1_000_f64.powi(power as i32)), names[power])
        };
        match self {
            Self::Count => scaled(&["", "k", "M", "G"]),
            Self::Bytes => scaled(&[" B", " kB", " MB", " GB", " TB"]),
            Self::Micros => scaled(&[" µs", " ms", " s"]),
            Self::Seconds => format!("{} s", short(value)),
            Self::Minutes => format!("{} min", short(value / self.size())),
            Self::Hours => format!("{} h", short(value / self.size())),
            Self::Percentile => short(value),
        }
    }
}

/// Values that an axis can have.
fn usable(value: f64) -> Option<f64> {
    (value.is_finite() && value > 1e-9).then_some(value)
}

/// The least of 1, 2 or 5 times a power of ten of which a few make up this value.
fn round_step(range: f64) -> f64 {
    round_above(range / STEPS_MAX)
}

/// The greatest of 1, 2 or 5 times a power of ten that is not above.
fn round_below(value: f64) -> f64 {
    let power = 10_f64.powf((value.log10() + ROUNDING).floor());
    let mantissa = [5.0, 2.0].into_iter().find(|mantissa| mantissa * power <= value * (1.0 + ROUNDING));
    mantissa.unwrap_or(1.0) * power
}

/// The least of 1, 2 or 5 times a power of ten that is not below.
fn round_above(value: f64) -> f64 {
    let power = 10_f64.powf((value.log10() + ROUNDING).floor());
    let mantissa = [1.0, 2.0, 5.0].into_iter().find(|mantissa| mantissa * power >= value * (1.0 - ROUNDING));
    mantissa.unwrap_or(10.0) * power
}

/// To three digits, without zeros that say nothing.
fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = (2.0 - value.abs().log10().floor()).clamp(0.0, 12.0) as usize;
    let text = format!("{value:.digits$}");
    if digits == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(scale: &Scale) -> Vec<String> {
        scale.ticks().into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn ticks_are_what_a_person_would_choose() {
        let check = |scale: Scale, expected: &[&str]| assert_eq!(labels(&scale), expected, "{scale:?}");
        check(Scale::from_zero(Unit::Count, 432_100.0), &["0", "100k", "200k", "300k", "400k", "500k"]);
        check(Scale::from_zero(Unit::Count, 1.9), &["0", "0.5", "1", "1.5", "2"]);
        check(Scale::from_zero(Unit::Bytes, 40e6), &["0 B", "10 MB", "20 MB", "30 MB", "40 MB"]);
        check(Scale::from_zero(Unit::Count, 0.0), &["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        check(Scale::of_time(10.0), &["0 s", "2 s", "4 s", "6 s", "8 s", "10 s"]);
        check(Scale::of_time(5.003), &["0 s", "1 s", "2 s", "3 s", "4 s", "5 s"]);
        check(Scale::of_time(1.9), &["0 s", "0.5 s", "1 s", "1.5 s"]);
        check(Scale::of_time(600.0), &["0 min", "2 min", "4 min", "6 min", "8 min", "10 min"]);
        check(Scale::of_time(6.0 * 3_600.0), &["0 h", "1 h", "2 h", "3 h", "4 h", "5 h", "6 h"]);
        check(Scale::logarithmic(Unit::Micros, [230.0, 4_800.0]), &["200 µs", "500 µs", "1 ms", "2 ms", "5 ms"]);
        check(
            Scale::logarithmic(Unit::Micros, [1_010.0, 1_900.0]),
            &["1 ms", "1.2 ms", "1.4 ms", "1.6 ms", "1.8 ms", "2 ms"],
        );
        check(Scale::logarithmic(Unit::Micros, [30.0, 2e6]), &["100 µs", "1 ms", "10 ms", "100 ms", "1 s"]);
        check(Scale::logarithmic(Unit::Micros, []), &["1 µs", "2 µs", "5 µs", "10 µs"]);
        check(Scale::nines(90_000), &["0", "50", "90", "99", "99.9", "99.99"]);
        check(Scale::nines(0), &["0", "50", "90"]);
        check(Scale::nines(10_000_000), &["0", "90", "99", "99.9", "99.999", "99.99999"]);
    }

    #[test]
    fn nines_are_equally_far_from_each_other() {
        let scale = Scale::nines(1_000_000);
        for (percentile, sixths) in [(0.0, 0.0), (90.0, 1.0), (99.0, 2.0), (99.9, 3.0), (100.0, 6.0)] {
            assert!((scale.place(percentile) * 6.0 - sixths).abs() < 1e-9, "{percentile}");
        }
    }

    fn scales() -> impl Strategy<Value = Scale> {
        let value = || (-8.0..15.0).prop_map(|power| 10_f64.powf(power));
        prop_oneof![
            value().prop_map(|greatest| Scale::from_zero(Unit::Count, greatest)),
            (0.01..1e6).prop_map(Scale::of_time),
            (value(), value()).prop_map(|(one, other)| Scale::logarithmic(Unit::Micros, [one, other])),
            any::<u64>().prop_map(Scale::nines),
        ]
    }

    proptest! {
        #[test]
        fn ticks_are_few_ascend_and_differ(scale in scales()) {
            let ticks = scale.ticks();
            // Besides one label for each nine: 64 bits have 20 of them.
            let most = if scale.spacing == Spacing::Nines { 22 } else { TICKS_MAX };
            prop_assert!((2..=most).contains(&ticks.len()), "{:?}", ticks);
            for pair in ticks.windows(2) {
                prop_assert!(pair[0].place < pair[1].place && pair[0].label != pair[1].label, "{:?}", ticks);
            }
            prop_assert!(ticks.iter().all(|tick| (0.0..=1.0).contains(&tick.place)), "{:?}", ticks);
        }

        #[test]
        fn greater_values_do_not_stand_lower(scale in scales(), one in -1e9..1e9, other in -1e9..1e9) {
            let [low, high] = if one <= other { [one, other] } else { [other, one] }.map(|value| scale.place(value));
            prop_assert!((0.0..=1.0).contains(&low) && low <= high && high <= 1.0, "{low} {high}");
        }

        #[test]
        fn an_axis_holds_its_values_and_not_much_else(one in -6.0..12.0, other in -6.0..12.0) {
            let values = [one, other].map(|power: f64| 10_f64.powf(power));
            let scale = Scale::logarithmic(Unit::Micros, values);
            for value in values {
                let counted = value.log10();
                prop_assert!(scale.low - 1e-6 <= counted && counted <= scale.high + 1e-6, "{scale:?}");
            }
            let greatest = values[0].max(values[1]);
            // Less than half a decade on either side.
            prop_assert!(scale.high - scale.low < (one - other).abs() + 1.0, "{scale:?}");
            let linear = Scale::from_zero(Unit::Count, greatest);
            prop_assert!(linear.high >= greatest * (1.0 - 1e-6) && linear.high < greatest * 1.5, "{linear:?}");
        }
    }
}
