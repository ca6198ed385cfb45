//! The Mann–Whitney U test: how often chance alone would part two sets of runs as far as they are.

/// Up to this many runs of both sets together every way to divide them is counted, which takes 2 ms. Beyond, the normal
/// distribution differs from that by less than is ever written.
const EXACT_MAX: usize = 40;

/// The two-sided p-value: the probability that runs of equal distribution, divided by chance into sets of these sizes,
/// differ in their ranks by as much or more. 1 of an empty set.
pub fn p_value(one: &[f64], other: &[f64]) -> f64 {
    let (ranks, all) = ranks(one, other);
    let distance = all.distance(ranks[..one.len()].iter().sum());
    match all.runs {
        _ if distance == 0 || one.is_empty() || other.is_empty() => 1.0,
        ..=EXACT_MAX => all.exact(&ranks, distance),
        _ => all.normal(&ranks, distance),
    }
}

/// How many runs both sets have together, and how many the first has.
struct Sizes {
    runs: usize,
    first: usize,
}

/// Twice the rank of each value, so that the mean rank of equal values is a whole number too.
fn ranks(one: &[f64], other: &[f64]) -> (Vec<usize>, Sizes) {
    let mut sorted = [one, other].concat();
    sorted.sort_by(f64::total_cmp);
    let below = |value: &f64| sorted.partition_point(|other| other < value);
    let rank = |value: &f64| below(value) + sorted.partition_point(|other| other <= value) + 1;
    let ranks = one.iter().chain(other).map(rank).collect();
    (ranks, Sizes { runs: sorted.len(), first: one.len() })
}

impl Sizes {
    /// How far a sum of the first set's ranks is from the mean of all such sums.
    fn distance(&self, sum: usize) -> usize {
        sum.abs_diff(self.first * (self.runs + 1))
    }

    /// The share of all ways to choose the first set whose sum of ranks is as far from the mean, or farther.
    fn exact(&self, ranks: &[usize], distance: usize) -> f64 {
        // In how many ways each number of ranks, of those looked at, has each sum. The counts are below 2^40: exact.
        let mut ways = vec![vec![0.0; ranks.iter().sum::<usize>() + 1]; self.first + 1];
        ways[0][0] = 1.0;
        for rank in ranks {
            for chosen in (1..=self.first).rev() {
                let (fewer, more) = ways.split_at_mut(chosen);
                fewer[chosen - 1].iter().zip(&mut more[0][*rank..]).for_each(|(before, ways)| *ways += before);
            }
        }
        let far = ways[self.first].iter().enumerate().filter(|(sum, _)| self.distance(*sum) >= distance);
        far.map(|(_, ways)| ways).sum::<f64>() / ways[self.first].iter().sum::<f64>()
    }

    /// The same, from the normal distribution, corrected for ties and for continuity.
    fn normal(&self, ranks: &[usize], distance: usize) -> f64 {
        let [runs, first] = [self.runs, self.first].map(|count| count as f64);
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        let ties = sorted.chunk_by(usize::eq).map(|equal| (equal.len() as f64).powi(3) - equal.len() as f64);
        let spread = runs + 1.0 - ties.sum::<f64>() / (runs * (runs - 1.0));
        let deviation = (first * (runs - first) * spread / 3.0).sqrt();
        erfc((distance as f64 - 1.0) / deviation / 2_f64.sqrt()).min(1.0)
    }
}

/// The complementary error function of a number that is not negative, to seven digits (Press et al., *Numerical Recipes in
/// C*, 2nd ed., section 6.2).
fn erfc(x: f64) -> f64 {
    const TERMS: [f64; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_87,
        -1.135_203_98,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_68,
        -1.265_512_23,
    ];
    let t = 1.0 / (1.0 + 0.5 * x);
    t * (TERMS.iter().fold(0.0, |sum, term| sum * t + term) - x * x).exp()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-4, "{found}, not {expected}");
    }

    /// From Hollander and Wolfe (1973), page 69, as the documentation of R's `wilcox.test` has it.
    #[test]
    fn the_permeability_of_membranes_has_the_p_value_of_the_literature() {
        let at_term = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
        let earlier = [1.15, 0.88, 0.90, 0.74, 1.21];
        // R tests one side: 0.1272.
        near(p_value(&at_term, &earlier), 2.0 * 0.127_206_1);
    }

    /// From the documentation of SciPy's `mannwhitneyu`.
    #[test]
    fn ages_at_diagnosis_have_the_p_value_of_the_literature() {
        let (men, women) = ([19.0, 22.0, 16.0, 29.0, 24.0], [20.0, 11.0, 17.0, 12.0]);
        near(p_value(&men, &women), 1.0 / 9.0);
        let (ranks, all) = ranks(&men, &women);
        near(all.normal(&ranks, all.distance(ranks[..5].iter().sum())), 0.111_346_886_5);
    }

    /// Ozone in New York in May and August 1973, the second example of R's `wilcox.test`: 52 values with ties.
    #[test]
    fn many_values_with_ties_have_the_p_value_of_the_literature() {
        let may = [41, 36, 12, 18, 28, 23, 19, 8, 7, 16, 11, 14, 18, 14, 34, 6, 30, 11, 1, 11, 4, 32, 23, 45, 115, 37];
        let august =
            [39, 9, 16, 78, 35, 66, 122, 89, 110, 44, 28, 65, 22, 59, 23, 31, 44, 21, 9, 45, 168, 73, 76, 118, 84, 85];
        let found = p_value(&may.map(f64::from), &august.map(f64::from));
        assert!((found - 0.000_120_8).abs() < 5e-8, "{found}");
    }

    /// What the legends of tables and pages say.
    #[test]
    fn four_runs_each_are_the_fewest_that_show_anything() {
        let apart = |runs: u8| {
            let runs = (0..runs).map(f64::from).collect::<Vec<_>>();
            p_value(&runs, &runs.iter().map(|run| run + 100.0).collect::<Vec<_>>())
        };
        for (runs, p) in [(1, 1.0), (2, 1.0 / 3.0), (3, 0.1), (4, 2.0 / 70.0), (5, 2.0 / 252.0)] {
            near(apart(runs), p);
        }
        assert_eq!(p_value(&[], &[1.0]), 1.0);
    }

    /// All choices of the first set, one by one.
    fn counted(one: &[f64], other: &[f64]) -> f64 {
        let (ranks, all) = ranks(one, other);
        let distance =
            |chosen: u32| all.distance((0..all.runs).filter(|i| chosen >> i & 1 == 1).map(|i| ranks[i]).sum());
        let own = distance((1 << all.first) - 1);
        let ways = (0..1_u32 << all.runs).filter(|chosen| chosen.count_ones() as usize == all.first);
        let (far, all) = ways.fold((0, 0), |(far, all), chosen| (far + u32::from(distance(chosen) >= own), all + 1));
        f64::from(far) / f64::from(all)
    }

    /// Runs of which some are equal.
    fn runs(most: usize) -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec((0..20_u8).prop_map(f64::from), 1..=most)
    }

    proptest! {
        #[test]
        fn every_way_is_counted_once(one in runs(6), other in runs(6)) {
            prop_assert!((p_value(&one, &other) - counted(&one, &other)).abs() < 1e-9);
        }

        #[test]
        fn neither_order_nor_direction_nor_size_matters(mut one in runs(25), other in runs(25)) {
            let p = p_value(&one, &other);
            prop_assert!(p > 0.0 && p <= 1.0, "{p}");
            prop_assert!((p_value(&other, &one) - p).abs() < 1e-9);
            let mirrored = |runs: &[f64]| runs.iter().map(|run| -run.powi(3)).collect::<Vec<_>>();
            prop_assert!((p_value(&mirrored(&one), &mirrored(&other)) - p).abs() < 1e-9);
            one.reverse();
            prop_assert!((p_value(&one, &other) - p).abs() < 1e-9);
        }

        #[test]
        fn the_approximation_is_near_the_exact_value(one in runs(20), other in runs(20)) {
            prop_assume!(one.len() >= 10 && other.len() >= 10);
            let (ranks, all) = ranks(&one, &other);
            let distance = all.distance(ranks[..all.first].iter().sum());
            prop_assume!(distance > 0);
            let (exact, normal) = (all.exact(&ranks, distance), all.normal(&ranks, distance));
            prop_assert!((exact - normal).abs() < 0.02, "{exact} {normal}");
        }
    }
}
