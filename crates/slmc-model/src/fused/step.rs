//! What a training step does outside the graph: scatter, norm, and the optimizer, in place.

use burn::tensor::Tensor;
use slmc_ir::TokenId;
use slmc_kernels::AdamWStep;

use super::{flex_tensor, from_plain, numbers, plain};

/// `Σ x²`; `None` on other devices.
pub(crate) fn sum_of_squares(x: &Tensor<1>) -> Option<f64> {
    Some(slmc_kernels::sum_of_squares(numbers(&plain(x.clone())?)))
}

/// `old + new`, in the place of `old` on flex.
pub(crate) fn sum(old: Tensor<1>, new: Tensor<1>) -> Tensor<1> {
    let (Some(mut total), Some(part)) = (plain(old.clone()), plain(new.clone())) else {
        return old + new;
    };
    drop(old);
    slmc_kernels::add_assign(total.storage_mut::<f32>(), numbers(&part));
    from_plain(total)
}

/// Adds `rows` `[.., .., columns]` to the table's rows of these ids; the table, or zeros of `n_table` rows,
/// comes back flattened. On other devices the table comes back as it was.
#[expect(clippy::result_large_err, reason = "not a failure: the arguments, handed back to be used elsewhere")]
pub(crate) fn scatter_add(
    table: Option<Tensor<1>>,
    n_table: usize,
    ids: &[TokenId],
    rows: &Tensor<3>,
) -> Result<Tensor<1>, Option<Tensor<1>>> {
    let columns = rows.dims()[2];
    let Some(rows) = plain(rows.clone()) else {
        return Err(table);
    };
    let mut table = match table {
        Some(table) => plain(table).expect("gradients are on one device"),
        None => flex_tensor(vec![0.0; n_table * columns], &[n_table * columns]),
    };
    slmc_kernels::scatter_add_rows(table.storage_mut::<f32>(), columns, ids, numbers(&rows));
    Ok(from_plain(table))
}

/// One AdamW step in the place of weights and moments; hands everything back when the device is another.
#[expect(clippy::result_large_err, reason = "not a failure: the arguments, handed back to be used elsewhere")]
#[allow(clippy::type_complexity)] // weights and moments, in and out
pub(crate) fn adamw<const D: usize>(
    step: AdamWStep,
    weights: Tensor<D>,
    gradient: &Tensor<1>,
    moments: [Tensor<1>; 2],
) -> Result<(Tensor<D>, [Tensor<1>; 2]), (Tensor<D>, [Tensor<1>; 2])> {
    let weights = weights.without_autodiff();
    let Some(gradient) = plain(gradient.clone()) else {
        return Err((weights, moments));
    };
    let on_flex = "weights, moments and gradient are on one device";
    let [first, second] = moments;
    // Moved, not cloned: what nothing else holds is changed in its place.
    let mut weights = plain(weights).expect(on_flex);
    let mut first = plain(first).expect(on_flex);
    let mut second = plain(second).expect(on_flex);
    slmc_kernels::adamw(
        step,
        weights.storage_mut::<f32>(),
        numbers(&gradient),
        first.storage_mut::<f32>(),
        second.storage_mut::<f32>(),
    );
    Ok((from_plain(weights), [from_plain(first), from_plain(second)]))
}
