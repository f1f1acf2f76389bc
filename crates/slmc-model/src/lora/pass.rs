//! Forward and backward through the frozen decoder, block by block; the gradients are the factors' alone.

use slmc_ir::{Adapter, Factors, TensorKey};
use slmc_kernels::{rms_norm, rms_norm_backward};

use super::{
    AdapterGrads, Frozen, Rows,
    frozen::slot_of,
    loss::{Targets, head_loss},
};
use crate::slices::{
    block::{Kept, backward, forward},
    inputs::{HIDDEN, N_INPUTS, Sizes},
    projection::adapter_slot,
};

/// A row's summed loss over its targets, in nats, and how many they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowLoss {
    /// Sum of `-log p`, in nats.
    pub nll: f64,
    /// Targets.
    pub n_targets: u64,
}

impl Frozen {
    /// The mean cross entropy over the targets that count, and the gradients of the adapter's factors.
    ///
    /// With `recompute` half of what blocks keep for the way back (gate and up) is computed again instead: the same
    /// gradients, half of the memory, about a fifth more work.
    ///
    /// # Panics
    /// When the rows are not whole, a token is outside the vocabulary, or the adapter is another model's.
    pub fn gradients(&self, adapter: &Adapter, rows: Rows<'_>, recompute: bool) -> (f32, AdapterGrads) {
        let sizes = self.sizes(rows);
        let rope = self.rope(rows.seq);
        // Each block's input and what it keeps; the last result comes at the end.
        let mut passes: Vec<(Vec<f32>, Kept)> = Vec::with_capacity(self.spec.n_layers);
        let mut hidden = self.embed(rows.inputs);
        for index in 0..self.spec.n_layers {
            let found = forward(sizes, &self.inputs(index, &hidden, Some(adapter), rows.starts), &rope);
            let kept = if recompute { found.kept.without_gate_up() } else { found.kept };
            passes.push((std::mem::replace(&mut hidden, found.out), kept));
        }
        let (loss, mut flowing) = self.through_loss(&hidden, rows);
        drop(hidden);

        let mut grads = AdapterGrads { factor: 1.0, ..AdapterGrads::default() };
        let mut wanted = [false; N_INPUTS];
        wanted[HIDDEN] = true;
        for (index, (input, kept)) in passes.into_iter().enumerate().rev() {
            let inputs = self.inputs(index, &input, Some(adapter), rows.starts);
            let mut found = backward(sizes, &inputs, &rope, kept, flowing, wanted);
            flowing = found.inputs[HIDDEN].take().expect("it was asked for");
            for role in Adapter::ROLES {
                let key = TensorKey::block(index, role);
                if let Some(gradient) = found.adapters[adapter_slot(slot_of(key))].take() {
                    grads.by_key.insert(key, Factors { a: gradient.a, b: gradient.b });
                }
            }
        }
        (loss, grads)
    }

    /// The loss of each row, without a way back; without an adapter, the frozen model's own.
    ///
    /// # Panics
    /// As [`Frozen::gradients`].
    pub fn row_losses(&self, adapter: Option<&Adapter>, rows: Rows<'_>) -> Vec<RowLoss> {
        let hidden = self.last_hidden(adapter, rows);
        let targets = Targets::of(rows);
        let (normed, _) = self.normed(&targets.gather(&hidden, self.spec.d_model));
        let losses = head_loss(self.head(), &normed, &targets, None);
        let mut found = vec![RowLoss::default(); rows.inputs.len() / rows.seq];
        for (&position, loss) in targets.positions.iter().zip(losses) {
            let row = &mut found[position / rows.seq];
            row.nll += f64::from(loss);
            row.n_targets += 1;
        }
        found
    }

    /// Logits of every position, `[n_tokens, vocab_size]`: for comparisons on small models.
    ///
    /// # Panics
    /// As [`Frozen::gradients`].
    pub fn logits(&self, adapter: Option<&Adapter>, rows: Rows<'_>) -> Vec<f32> {
        let (normed, _) = self.normed(&self.last_hidden(adapter, rows));
        super::loss::logits(self.head(), &normed)
    }

    fn last_hidden(&self, adapter: Option<&Adapter>, rows: Rows<'_>) -> Vec<f32> {
        let (sizes, rope) = (self.sizes(rows), self.rope(rows.seq));
        (0..self.spec.n_layers).fold(self.embed(rows.inputs), |hidden, index| {
            forward(sizes, &self.inputs(index, &hidden, adapter, rows.starts), &rope).out
        })
    }

    fn sizes(&self, rows: Rows<'_>) -> Sizes {
        let (n, seq) = (rows.inputs.len(), rows.seq);
        assert!(
            seq > 0 && n.is_multiple_of(seq) && rows.targets.len() == n,
            "whole rows of inputs and targets"
        );
        assert!(rows.mask.is_none_or(|mask| mask.len() == n), "one mask a position");
        let is_known = |&token: &u32| (token as usize) < self.spec.vocab_size;
        assert!(rows.inputs.iter().chain(rows.targets).all(is_known), "tokens inside the vocabulary");
        Sizes::new(&self.spec, n / seq, seq, self.products)
    }

    /// Final norm of some rows, and its inverses.
    fn normed(&self, rows: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (mut out, mut inverse) = (vec![0.0; rows.len()], vec![0.0; rows.len() / self.spec.d_model]);
        rms_norm(rows, &self.final_norm, self.spec.norm_eps, &mut out, &mut inverse);
        (out, inverse)
    }

    /// Final norm and head of the positions that count: the mean loss, and the gradient of the last block's result.
    fn through_loss(&self, hidden: &[f32], rows: Rows<'_>) -> (f32, Vec<f32>) {
        let d_model = self.spec.d_model;
        let targets = Targets::of(rows);
        let gathered = targets.gather(hidden, d_model);
        let (normed, inverse) = self.normed(&gathered);
        let mut d_normed = vec![0.0; normed.len()];
        let losses = head_loss(self.head(), &normed, &targets, Some(&mut d_normed));
        let (mut d_gathered, mut d_gain) = (vec![0.0; gathered.len()], vec![0.0; d_model]);
        rms_norm_backward(&gathered, &self.final_norm, &inverse, &d_normed, &mut d_gathered, &mut d_gain);
        let mut flowing = vec![0.0; hidden.len()];
        for (row, &position) in d_gathered.chunks_exact(d_model).zip(&targets.positions) {
            flowing[position * d_model..][..d_model].copy_from_slice(row);
        }
        let sum: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        ((sum / losses.len().max(1) as f64) as f32, flowing)
    }
}
