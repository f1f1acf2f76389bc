//! SwiGLU's product, `silu(gate) · up` (Shazeer 2020, arXiv:2002.05202, equation 6), and its gradient.

use rayon::prelude::*;

use crate::{
    dispatch::{LANES, dispatched},
    exp::exp,
    rows_per_task,
};

dispatched! {
    fn forward(gate_up: &[f32], product: &mut [f32], d_ff: usize) {
        for (gate_up, product) in gate_up.chunks_exact(2 * d_ff).zip(product.chunks_exact_mut(d_ff)) {
            let (gate, up) = gate_up.split_at(d_ff);
            for ((product, &gate), &up) in product.iter_mut().zip(gate).zip(up) {
                *product = gate / (1.0 + exp(-gate)) * up;
            }
        }
    }
}

/// Product and gradients of one gate and up: `[gate, up, d_product]` to `[d_gate, d_up, product]`.
#[inline(always)]
fn slopes([g, u, d]: [f32; 3]) -> [f32; 3] {
    let sigmoid = 1.0 / (1.0 + exp(-g));
    let silu = g * sigmoid;
    [d * u * (sigmoid * (1.0 + g * (1.0 - sigmoid))), d * silu, silu * u]
}

dispatched! {
    fn backward(gate_up: &mut [f32], d_product: &mut [f32], d_ff: usize) {
        for (gate_up, d_product) in gate_up.chunks_exact_mut(2 * d_ff).zip(d_product.chunks_exact_mut(d_ff)) {
            let (gate, up) = gate_up.split_at_mut(d_ff);
            let (gates, gate_rest) = gate.as_chunks_mut::<LANES>();
            let (ups, up_rest) = up.as_chunks_mut::<LANES>();
            let (ds, d_rest) = d_product.as_chunks_mut::<LANES>();
            for ((gate, up), d) in gates.iter_mut().zip(ups).zip(ds) {
                // Copies in registers: the compiler need not prove that the three slices are apart.
                let (g, u, p) = (*gate, *up, *d);
                let mut out = [[0.0; LANES]; 3];
                for i in 0..LANES {
                    [out[0][i], out[1][i], out[2][i]] = slopes([g[i], u[i], p[i]]);
                }
                [*gate, *up, *d] = out;
            }
            for ((gate, up), d) in gate_rest.iter_mut().zip(up_rest).zip(d_rest) {
                [*gate, *up, *d] = slopes([*gate, *up, *d]);
            }
        }
    }
}

/// `product = silu(gate) · up`; each row of `gate_up` is `d_ff` gates, then `d_ff` ups.
///
/// # Panics
/// When the sizes do not fit.
pub fn swiglu(gate_up: &[f32], product: &mut [f32], d_ff: usize) {
    assert_eq!(gate_up.len(), 2 * product.len());
    let n = rows_per_task(2 * d_ff);
    let tasks = gate_up.par_chunks(2 * n * d_ff).zip(product.par_chunks_mut(n * d_ff));
    tasks.for_each(|(gate_up, product)| forward(gate_up, product, d_ff));
}

/// The way back, in place: `gate_up` becomes its gradient, and `d_product` the product (which the down
/// projection's gradient needs).
///
/// # Panics
/// When the sizes do not fit.
pub fn swiglu_backward(gate_up: &mut [f32], d_product: &mut [f32], d_ff: usize) {
    assert_eq!(gate_up.len(), 2 * d_product.len());
    let n = rows_per_task(2 * d_ff);
    let tasks = gate_up.par_chunks_mut(2 * n * d_ff).zip(d_product.par_chunks_mut(n * d_ff));
    tasks.for_each(|(gate_up, d_product)| backward(gate_up, d_product, d_ff));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, same_on_any_threads, slope, wide, worst};

    fn definition(gate_up: &[f64], d_ff: usize) -> Vec<f64> {
        let row = |row: &[f64]| {
            let (gate, up) = (row[..d_ff].to_vec(), row[d_ff..].to_vec());
            gate.into_iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect::<Vec<_>>()
        };
        gate_up.chunks(2 * d_ff).flat_map(row).collect()
    }

    #[test]
    fn follows_the_definition_and_its_slope() {
        let (n_rows, d_ff) = (5, 172);
        let gate_up: Vec<f32> = numbers(n_rows * 2 * d_ff, 1).iter().map(|x| x * 8.0).collect();
        let d_product = numbers(n_rows * d_ff, 2);
        let (product, again, d_gate_up) = same_on_any_threads(|| {
            let mut product = vec![0.0; n_rows * d_ff];
            swiglu(&gate_up, &mut product, d_ff);
            let (mut d_gate_up, mut again) = (gate_up.clone(), d_product.clone());
            swiglu_backward(&mut d_gate_up, &mut again, d_ff);
            (product, again, d_gate_up)
        });
        let (x, d) = (wide(&gate_up), wide(&d_product));
        let expected = definition(&x, d_ff);
        assert!(worst(&product, &expected) < 1e-6);
        assert!(worst(&again, &expected) < 1e-6);
        let weigh = |y: Vec<f64>| y.iter().zip(&d).map(|(a, b)| a * b).sum::<f64>();
        assert!(worst(&d_gate_up, &slope(&x, |x| weigh(definition(x, d_ff)))) < 1e-6);
    }
}
