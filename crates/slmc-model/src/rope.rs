//! Rotary position embedding's cosines and sines (RoFormer, arXiv:2104.09864, section 3.4.3).

use std::sync::{Arc, Mutex};

use slmc_ir::ModelSpec;

/// Cosines and sines of positions `0..n_positions`, each `[n_positions, d_head / 2]` in row order.
#[derive(Debug)]
pub(crate) struct RopeTable {
    pub n_positions: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl RopeTable {
    fn new(spec: &ModelSpec, n_positions: usize) -> Self {
        let frequencies = spec.rope_frequencies();
        let angles = (0..n_positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        let (cos, sin) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        Self { n_positions, cos, sin }
    }
}

/// The longest table asked for so far; shared by the clones of a decoder.
#[derive(Clone, Debug, Default)]
pub(crate) struct RopeCache(Arc<Mutex<Option<Arc<RopeTable>>>>);

impl RopeCache {
    /// A table of at least `n_positions` positions.
    pub fn table(&self, spec: &ModelSpec, n_positions: usize) -> Arc<RopeTable> {
        let mut cached = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match cached.as_ref() {
            Some(table) if table.n_positions >= n_positions => table.clone(),
            _ => {
                let table = Arc::new(RopeTable::new(spec, n_positions));
                *cached = Some(table.clone());
                table
            }
        }
    }
}
