//! The normal distribution and Student's t, as far as intervals need them.

/// Below this the normal distribution is taken to be 0, above its negative 1.
const FAR: f64 = 8.0;

/// The share of a standard normal distribution below `x`, within 1e-7 (Abramowitz and Stegun, 7.1.26 would give 1e-7;
/// the continued fraction and series used here give 1e-12).
pub(crate) fn normal_cdf(x: f64) -> f64 {
    if x.abs() > FAR {
        return if x < 0.0 { 0.0 } else { 1.0 };
    }
    // Phi(x) = 1/2 + phi(x) (x + x^3/3 + x^5/15 + …): Marsaglia 2004, J. Stat. Software 11(4).
    let (mut sum, mut term, mut n) = (x, x, 1.0);
    while sum + term != sum && n < 1000.0 {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    (0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()).clamp(0.0, 1.0)
}

/// The point below which a share of the standard normal distribution lies; the share is kept inside 1e-12 and 1 - 1e-12.
pub(crate) fn normal_quantile(share: f64) -> f64 {
    let share = share.clamp(1e-12, 1.0 - 1e-12);
    bisect(-FAR, FAR, |x| normal_cdf(x) < share)
}

/// The share of Student's t distribution with `degrees` of freedom below `t`, by Simpson's rule on its density after the
/// substitution t = sqrt(degrees) tan(u), whose integrand is cos(u)^(degrees - 1).
fn t_cdf(t: f64, degrees: f64) -> f64 {
    let integral = |to: f64| {
        const STEPS: usize = 400;
        let width = to / STEPS as f64;
        let value = |i: usize| (i as f64 * width).cos().max(0.0).powf(degrees - 1.0);
        let inner: f64 = (1..STEPS).map(|i| value(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        (value(0) + inner + value(STEPS)) * width / 3.0
    };
    let whole = 2.0 * integral(std::f64::consts::FRAC_PI_2);
    0.5 + integral((t / degrees.sqrt()).atan()) / whole
}

/// The point below which a share of Student's t distribution lies.
pub(crate) fn t_quantile(share: f64, degrees: f64) -> f64 {
    bisect(-700.0, 700.0, |t| t_cdf(t, degrees) < share)
}

fn bisect(mut low: f64, mut high: f64, is_below: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if is_below(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64, by: f64) {
        assert!((found - expected).abs() < by, "{found} and not {expected}");
    }

    #[test]
    fn values_of_tables() {
        close(normal_cdf(1.959_963_985), 0.975, 1e-9);
        close(normal_cdf(-3.0), 0.001_349_898_03, 1e-10);
        close(normal_quantile(0.95), 1.644_853_627, 1e-8);
        close(t_quantile(0.975, 23.0), 2.068_658, 1e-5);
        close(t_quantile(0.975, 4.0), 2.776_445, 1e-5);
        close(t_quantile(0.95, 1.0), 6.313_752, 1e-4);
        close(t_quantile(0.5, 7.0), 0.0, 1e-9);
    }
}
