//! Coarse operations with hand-written backward passes, for Burn's flex device.
//!
//! Plain flex runs element-wise operations on one thread, copies for every transpose and keeps the scores of
//! all heads; here a block is one operation on slices (`slmc-kernels`), and Burn's autodiff sees one node for it.

mod block_op;
mod loss;
mod loss_op;
mod norm_op;
mod step;
#[cfg(test)]
mod tests;

use burn::{
    backend::{Autodiff, Flex, tensor::FloatTensor},
    tensor::{Device, Tensor, TensorData},
};

pub(crate) use block_op::block;
pub(crate) use loss::{distillation, logits, next_token};
pub(crate) use norm_op::rms_norm;
pub(crate) use step::{adamw, scatter_add, sum, sum_of_squares};

/// A tensor of the flex device.
pub(crate) type FlexTensor = FloatTensor<Flex>;
/// The same with its place in a graph.
pub(crate) type TrackedTensor = FloatTensor<Autodiff<Flex>>;

/// Whether the device is flex.
pub(crate) fn runs_on(device: &Device) -> bool {
    plain(Tensor::<1>::zeros([1], device)).is_some()
}

/// The tensor as flex stores it, made contiguous; `None` on other devices.
pub(crate) fn plain<const D: usize>(tensor: Tensor<D>) -> Option<FlexTensor> {
    let tensor = tensor.without_autodiff().try_into_primitive::<Flex>().ok()?;
    Some(contiguous(tensor))
}

/// The tensor with its place in the graph; `None` on other devices.
pub(crate) fn tracked<const D: usize>(tensor: Tensor<D>) -> Option<TrackedTensor> {
    tensor.autodiff().try_into_primitive::<Autodiff<Flex>>().ok()
}

pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The numbers, in row order.
pub(crate) fn numbers(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("contiguous f32: see `contiguous`")
}

/// The numbers to keep and change; copied only if something else holds the tensor.
pub(crate) fn into_numbers(tensor: FlexTensor) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().expect("flex holds f32")
}

/// A tensor of these numbers; nothing is copied.
pub(crate) fn flex_tensor(numbers: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(numbers, shape.to_vec()))
}

/// Without a graph.
pub(crate) fn from_plain<const D: usize>(tensor: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(tensor)
}

/// With its graph.
pub(crate) fn from_tracked<const D: usize>(tensor: TrackedTensor) -> Tensor<D> {
    Tensor::from_primitive::<Autodiff<Flex>>(tensor)
}
