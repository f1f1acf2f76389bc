//! What the weights alone say: how far each tensor is from the baseline's, and which differ as no rounding makes them.

use slmc_ir::{Checkpoint, Format, Host, TensorKey};

use crate::{GateError, check::significant};

/// A tensor's error this many times the middle one's is out of line, at least.
const ERROR_RATIO: f64 = 1.8;
/// … and this many times the spread of errors (their median distance from the middle, in logarithms).
const ERROR_SPREADS: f64 = 6.0;
/// A scale this far from the other tensors' is out of line, at least: rounding to 4 bits moves it by less than 0.01.
const GAIN_STEP: f64 = 0.02;
/// A row is out of line when its relative error is above this …
const ROW_ERROR: f64 = 0.5;
/// … and this many times the error of the tensor's middle row.
const ROW_RATIO: f64 = 4.0;
/// Errors below this count as none: what f16 makes of f32.
const NO_ERROR: f64 = 1e-3;
/// Rows that a message names.
const NAMED_ROWS: usize = 4;

/// How far a tensor is from the baseline's.
#[derive(Clone, Debug)]
pub(super) struct TensorError {
    pub key: TensorKey,
    pub format: Format,
    /// `|W - B| / |B|`, of the whole tensor.
    pub relative_error: f64,
    /// `<W, B> / <B, B>`: 1 where nothing was scaled.
    gain: f64,
    /// Rows out of line with the tensor's other rows.
    odd_rows: Vec<usize>,
    /// What is wrong with it, where something is.
    pub suspicion: Option<String>,
    /// The tensor's error over the middle tensor's.
    error_ratio: f64,
}

impl TensorError {
    /// For an order of suspects before they are measured.
    pub fn severity(&self) -> f64 {
        let rows = if self.odd_rows.is_empty() { 0.0 } else { 5.0 };
        self.error_ratio + rows + 100.0 * (self.gain - 1.0).abs()
    }
}

/// Compares every tensor.
pub(super) fn errors(
    model: &Checkpoint,
    baseline: &Checkpoint,
    host: &dyn Host,
) -> Result<Vec<TensorError>, GateError> {
    let keys = model.weights.keys();
    let mut errors = Vec::with_capacity(keys.len());
    host.begin("weights", keys.len() as u64, "tensors");
    for (done, &key) in keys.iter().enumerate() {
        if host.stop_requested() {
            host.end();
            return Err(GateError::Stopped("stopped while weights were compared".to_owned()));
        }
        errors.push(compare(key, model, baseline)?);
        host.advance_to(done as u64 + 1, "");
    }
    host.end();
    suspect(&mut errors);
    Ok(errors)
}

fn compare(key: TensorKey, model: &Checkpoint, baseline: &Checkpoint) -> Result<TensorError, GateError> {
    let failed = |what: String| GateError::Failed(format!("{key}: {what}"));
    let read = |checkpoint: &Checkpoint| {
        let weight = checkpoint.weights.read(key).map_err(|e| failed(e.to_string()))?;
        let numbers = slmc_blocks::decode_weight(&weight).map_err(|e| failed(e.to_string()))?;
        Ok::<_, GateError>((weight.format(), weight.n_columns(), numbers))
    };
    let (format, n_columns, ours) = read(model)?;
    let (_, _, theirs) = read(baseline)?;
    if ours.len() != theirs.len() {
        return Err(failed("has another shape than the baseline's".to_owned()));
    }
    let (mut error, mut norm, mut product) = (0.0, 0.0, 0.0);
    let mut row_errors = Vec::new();
    for (ours, theirs) in ours.chunks(n_columns.max(1)).zip(theirs.chunks(n_columns.max(1))) {
        let (row_error, row_norm, row_product) = sums(ours, theirs);
        row_errors.push(if row_norm > 0.0 { (row_error / row_norm).sqrt() } else { 0.0 });
        error += row_error;
        norm += row_norm;
        product += row_product;
    }
    let relative_error = if norm > 0.0 { (error / norm).sqrt() } else { f64::from(u8::from(error > 0.0)) };
    let gain = if norm > 0.0 { product / norm } else { 1.0 };
    let odd_rows = odd_rows(&row_errors);
    Ok(TensorError { key, format, relative_error, gain, odd_rows, suspicion: None, error_ratio: 1.0 })
}

/// Sums over a row: squared differences, squares of the baseline, products.
fn sums(ours: &[f32], theirs: &[f32]) -> (f64, f64, f64) {
    const LANES: usize = 8;
    let mut lanes = [[0.0_f32; LANES]; 3];
    let mut add = |lane: usize, a: f32, b: f32| {
        lanes[0][lane] += (a - b) * (a - b);
        lanes[1][lane] += b * b;
        lanes[2][lane] += a * b;
    };
    for (ours, theirs) in ours.chunks(LANES).zip(theirs.chunks(LANES)) {
        for (lane, (&a, &b)) in ours.iter().zip(theirs).enumerate() {
            add(lane, a, b);
        }
    }
    let total = |which: usize| lanes[which].iter().map(|&x| f64::from(x)).sum();
    (total(0), total(1), total(2))
}

fn odd_rows(row_errors: &[f64]) -> Vec<usize> {
    let limit = (ROW_RATIO * median(row_errors.to_vec())).max(ROW_ERROR);
    let odd: Vec<usize> = (0..row_errors.len()).filter(|&row| row_errors[row] > limit).collect();
    // Where many are odd, none is: the tensor is another.
    if odd.len() * 4 < row_errors.len() { odd } else { Vec::new() }
}

/// Tensors of one format that are compared among themselves, at the least; fewer are compared with all others.
const OWN_GROUP: usize = 8;

/// Bits beyond which errors are as good as none.
const MOST_BITS: f64 = 9.0;

/// What tensors of a kind have in common.
struct Common {
    /// The middle of a quantity, and the median distance from it.
    middle: f64,
    spread: f64,
}

impl Common {
    fn of(values: Vec<f64>) -> Self {
        let middle = median(values.clone());
        Self { middle, spread: median(values.iter().map(|x| (x - middle).abs()).collect()) }
    }
}

/// Marks what is out of line. Scales are compared among matrices and among vectors; errors among tensors of one format, too,
/// for a mixture of formats is a mixture of errors.
fn suspect(errors: &mut [TensorError]) {
    let log = |error: &TensorError| error.relative_error.max(NO_ERROR).ln();
    let kind = |error: &TensorError| error.key.role.is_matrix();
    // A bit less doubles an error: what those of other formats would have in this one.
    let bits = |error: &TensorError| error.format.bits_per_weight().min(MOST_BITS) * std::f64::consts::LN_2;
    let among = |like: &dyn Fn(&TensorError) -> bool, value: &dyn Fn(&TensorError) -> f64| {
        errors.iter().filter(|other| like(other)).map(value).collect::<Vec<f64>>()
    };
    let common = |error: &TensorError| {
        let alike = |other: &TensorError| kind(other) == kind(error);
        let own = among(&|other| alike(other) && other.format == error.format, &log);
        let as_this = |other: &TensorError| log(other) + bits(other) - bits(error);
        let logs = if own.len() < OWN_GROUP { among(&alike, &as_this) } else { own };
        [Common::of(logs), Common::of(among(&alike, &|other| other.gain))]
    };
    let common: Vec<[Common; 2]> = errors.iter().map(common).collect();
    for (error, [errors, gains]) in errors.iter_mut().zip(common) {
        let above = log(error) - errors.middle;
        error.error_ratio = above.exp();
        let mut reasons = Vec::new();
        if (error.gain - gains.middle).abs() > GAIN_STEP.max(8.0 * gains.spread) {
            reasons.push(format!("its weights are {} times the baseline's", significant(error.gain)));
        }
        if !error.odd_rows.is_empty() {
            let named: Vec<String> = error.odd_rows.iter().take(NAMED_ROWS).map(usize::to_string).collect();
            let more = if error.odd_rows.len() > NAMED_ROWS { ", …" } else { "" };
            let n = error.odd_rows.len();
            reasons.push(format!("{n} of its rows are not the baseline's (row {}{more})", named.join(", ")));
        }
        if above > ERROR_RATIO.ln().max(ERROR_SPREADS * errors.spread) {
            let (own, others) = (significant(error.relative_error), significant(errors.middle.exp()));
            reasons.push(format!("its relative error is {own} where other tensors have {others}"));
        }
        if !reasons.is_empty() && error.relative_error > NO_ERROR {
            error.suspicion = Some(reasons.join("; "));
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_rows_are_few() {
        let mut rows = vec![0.09; 100];
        rows[17] = 1.41;
        rows[42] = 1.38;
        assert_eq!(odd_rows(&rows), [17, 42]);
        assert!(odd_rows(&vec![1.2; 100]).is_empty());
        assert!(odd_rows(&[0.004; 10]).is_empty());
    }

    #[test]
    fn sums_by_hand() {
        let (error, norm, product) = sums(&[1.0, 2.0, 4.0], &[1.0, 1.0, 2.0]);
        assert_eq!((error, norm, product), (5.0, 6.0, 11.0));
    }
}
