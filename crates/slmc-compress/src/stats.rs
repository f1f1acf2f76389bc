//! What every statistic of activations has in common.

/// A matrix of numbers: a weight `[outputs, inputs]`, or activations `[n_tokens, n_channels]`.
pub type MatRef<'a> = ndarray::ArrayView2<'a, f32>;

/// Statistics of the activations that enter a layer.
pub trait LayerStats: Sized + Send {
    /// Nothing observed yet, for a layer of `n_columns` input channels.
    fn empty(n_columns: usize) -> Self;

    /// Takes in a batch `[n_tokens, n_columns]`.
    ///
    /// # Panics
    /// When the batch has another number of columns.
    fn observe(&mut self, inputs: MatRef<'_>);

    /// Adds what another one observed: what lets calibration spread over threads. The order of merging shows in
    /// the last bits.
    ///
    /// # Panics
    /// When the other one has another number of columns.
    fn merge(&mut self, other: Self);
}
