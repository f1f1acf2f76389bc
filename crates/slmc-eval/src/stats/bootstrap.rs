//! Intervals by resampling whole clusters: bias-corrected and accelerated (BCa; Efron 1987), with the levels widened for
//! few clusters (Hesterberg 2015, arXiv:1411.5279, section 5.3: the expanded percentile interval).
//!
//! Tokens of one chunk share a text and are not independent, so chunks are what is drawn. Both models are measured on
//! the same tokens, so a drawn chunk brings both models' figures: the interval is that of the paired difference.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use serde::{Deserialize, Serialize};

use super::distributions::{normal_cdf, normal_quantile, t_quantile};

/// How intervals are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resampling {
    /// Share of such intervals that hold the true value: 0.95.
    pub confidence: f64,
    /// How often the clusters are drawn anew.
    pub n_draws: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Resampling {
    fn default() -> Self {
        Self { confidence: 0.95, n_draws: 2000, seed: 0 }
    }
}

/// A figure and where it may lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The figure on everything that was measured.
    pub estimate: f64,
    /// Lower limit.
    pub low: f64,
    /// Upper limit.
    pub high: f64,
}

impl Interval {
    /// Whether a value lies in it, limits included.
    pub fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The interval of `statistic`, a function of sums over clusters. Each cluster is its summands (`[k]` of each: a sum of
/// negative log-likelihoods, a number of tokens). With fewer than two clusters the limits are infinite: nothing is known.
///
/// # Panics
/// When the clusters have different numbers of summands, or there are none.
pub fn interval(clusters: &[Vec<f64>], statistic: &dyn Fn(&[f64]) -> f64, how: Resampling) -> Interval {
    let totals = sum_of(clusters.iter());
    let estimate = statistic(&totals);
    let n = clusters.len();
    if n < 2 {
        return Interval { estimate, low: f64::NEG_INFINITY, high: f64::INFINITY };
    }
    let mut random = ChaCha8Rng::seed_from_u64(how.seed);
    let mut draws: Vec<f64> = Vec::with_capacity(how.n_draws);
    for _ in 0..how.n_draws.max(1) {
        let drawn = (0..n).map(|_| &clusters[below(&mut random, n)]);
        draws.push(statistic(&sum_of(drawn)));
    }
    draws.retain(|x| x.is_finite());
    draws.sort_by(f64::total_cmp);
    if draws.first() == draws.last() {
        let only = draws.first().copied().unwrap_or(estimate);
        return Interval { estimate, low: only, high: only };
    }
    // Half of the ties count as below: a statistic with few values would look biased otherwise.
    let below_estimate = draws.iter().map(|&x| share_below(x, estimate)).sum::<f64>() / draws.len() as f64;
    let bias = normal_quantile(below_estimate);
    let acceleration = acceleration(clusters, &totals, statistic);
    let tail = expanded_tail(0.5 * (1.0 - how.confidence), n);
    let limit = |z: f64| {
        let shifted = bias + z;
        let share = normal_cdf(bias + shifted / (1.0 - acceleration * shifted));
        let place = share * (draws.len() - 1) as f64;
        let (lower, upper) = (place.floor() as usize, place.ceil() as usize);
        draws[lower] + (draws[upper] - draws[lower]) * (place - lower as f64)
    };
    let z = normal_quantile(tail);
    Interval { estimate, low: limit(z).min(estimate), high: limit(-z).max(estimate) }
}

fn share_below(x: f64, estimate: f64) -> f64 {
    if x < estimate {
        1.0
    } else if x == estimate {
        0.5
    } else {
        0.0
    }
}

/// The share to cut off each end, so that a percentile interval of `n` clusters is as wide as Student's t has it.
fn expanded_tail(tail: f64, n: usize) -> f64 {
    let n = n as f64;
    normal_cdf((n / (n - 1.0)).sqrt() * t_quantile(tail, n - 1.0))
}

/// How fast the statistic's spread changes with its value: from the statistic without each cluster (jackknife).
fn acceleration(clusters: &[Vec<f64>], totals: &[f64], statistic: &dyn Fn(&[f64]) -> f64) -> f64 {
    let without = |cluster: &Vec<f64>| {
        let left: Vec<f64> = totals.iter().zip(cluster).map(|(total, x)| total - x).collect();
        statistic(&left)
    };
    let values: Vec<f64> = clusters.iter().map(without).filter(|x| x.is_finite()).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let moment = |power: i32| values.iter().map(|x| (mean - x).powi(power)).sum::<f64>();
    let spread = moment(2).powf(1.5);
    if spread > 0.0 { moment(3) / (6.0 * spread) } else { 0.0 }
}

fn sum_of<'a>(clusters: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut totals: Vec<f64> = Vec::new();
    for cluster in clusters {
        totals.resize(cluster.len(), 0.0);
        totals.iter_mut().zip(cluster).for_each(|(total, x)| *total += x);
    }
    totals
}

/// A number below `n`, each as likely within 2^-32.
fn below(random: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(random.next_u64()) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(sums: &[f64]) -> f64 {
        sums[0] / sums[1]
    }

    /// Standard normal numbers from a seed (Box and Muller).
    fn normals(seed: u64, n: usize) -> Vec<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut uniform = || (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        (0..n)
            .map(|_| (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos())
            .collect()
    }

    #[test]
    fn no_difference_is_never_called_one() {
        let clusters = vec![vec![0.0, 255.0]; 24];
        let found = interval(&clusters, &mean, Resampling::default());
        assert_eq!((found.low, found.estimate, found.high), (0.0, 0.0, 0.0));
    }

    #[test]
    fn one_cluster_tells_nothing() {
        let found = interval(&[vec![3.0, 2.0]], &mean, Resampling::default());
        assert_eq!(found.estimate, 1.5);
        assert!(found.low == f64::NEG_INFINITY && found.high == f64::INFINITY);
    }

    /// Of 1,000 samples whose true mean is 0, those whose interval leaves it out: 5 % by its word. Three standard
    /// deviations of such a count are 2.1 %.
    fn false_alarms(n_clusters: usize, skewed: bool) -> f64 {
        let how = Resampling { n_draws: 500, ..Resampling::default() };
        let alarm = |seed: u64| {
            let value = |x: f64| if skewed { x * x - 1.0 } else { x };
            let cluster = |x: f64| vec![value(x), 1.0];
            let clusters: Vec<Vec<f64>> = normals(seed, n_clusters).into_iter().map(cluster).collect();
            !interval(&clusters, &mean, Resampling { seed, ..how }).holds(0.0)
        };
        (0..1000).filter(|&seed| alarm(seed)).count() as f64 / 1000.0
    }

    #[test]
    fn intervals_keep_their_word() {
        let found = false_alarms(24, false);
        assert!((0.029..=0.071).contains(&found), "24 clusters: {found}");
        let found = false_alarms(8, false);
        assert!((0.029..=0.071).contains(&found), "8 clusters: {found}");
    }

    #[test]
    fn skewed_figures_cost_a_little() {
        // Chi squared with one degree of freedom: plain percentile intervals miss about 10 % of the time at n = 40.
        let found = false_alarms(40, true);
        assert!(found <= 0.08, "{found}");
    }
}
