//! What it saves to put tensors back as the baseline has them.

use std::{collections::BTreeSet, sync::Arc};

use slmc_eval::{Journal, Paired, compare_with_baseline};
use slmc_ir::{Format, ModelSpec, SilentHost, SourceError, TensorKey, Weight, WeightSource};

use super::Evidence;
use crate::{GateError, SessionModel, pair::Pair};

/// The model with some tensors of the baseline.
struct PutBack {
    model: Arc<dyn WeightSource>,
    baseline: Arc<dyn WeightSource>,
    keys: BTreeSet<TensorKey>,
}

impl PutBack {
    fn source(&self, key: TensorKey) -> &dyn WeightSource {
        if self.keys.contains(&key) { &*self.baseline } else { &*self.model }
    }
}

impl WeightSource for PutBack {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }
    fn keys(&self) -> &[TensorKey] {
        self.model.keys()
    }
    fn read(&self, key: TensorKey) -> Result<Weight, SourceError> {
        self.source(key).read(key)
    }
    fn format(&self, key: TensorKey) -> Result<Format, SourceError> {
        self.source(key).format(key)
    }
}

/// What it saves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Saved {
    /// KL, nats a token.
    pub kld: f64,
    /// The same as a share of all KL.
    pub share: f64,
    /// Fall of the perplexity's increase.
    pub ppl_increase: f64,
}

/// Trials on the first chunks of the gate's text.
pub(super) struct Trials<'a> {
    pair: &'a Pair<'a>,
    evidence: Evidence<'a>,
    /// The model as it is, on these chunks.
    as_it_is: Paired,
}

impl<'a> Trials<'a> {
    pub fn new(pair: &'a Pair<'a>, evidence: Evidence<'a>, n_chunks: usize) -> Self {
        Self { pair, evidence, as_it_is: evidence.paired.first_chunks(n_chunks) }
    }

    pub fn n_chunks(&self) -> usize {
        self.as_it_is.chunk_tokens.len()
    }

    /// KL of the model as it is, on these chunks.
    pub fn kld(&self) -> f64 {
        self.as_it_is.mean_kld()
    }

    /// What each set of tensors saves.
    pub fn each(&self, unit: &str, sets: &[Vec<TensorKey>]) -> Result<Vec<Saved>, GateError> {
        let host = self.pair.request.host;
        let mut saved = Vec::with_capacity(sets.len());
        host.begin("blame", sets.len() as u64, unit);
        for (done, keys) in sets.iter().enumerate() {
            if host.stop_requested() {
                host.end();
                return Err(GateError::Stopped("stopped while looking for tensors to blame".to_owned()));
            }
            saved.push(self.without(keys)?);
            host.advance_to(done as u64 + 1, "");
        }
        host.end();
        Ok(saved)
    }

    /// What is saved with the baseline's tensors in the place of these.
    pub fn without(&self, keys: &[TensorKey]) -> Result<Saved, GateError> {
        let (model, baseline) = (&self.pair.model.checkpoint, self.pair.baseline_beside_model());
        let source = PutBack {
            model: Arc::clone(&model.weights),
            baseline: baseline.weights,
            keys: keys.iter().copied().collect(),
        };
        let engine = self.pair.engine_of(&model.with_weights(Arc::new(source)))?;
        let text = self.evidence.text;
        let windowing = slmc_eval::Windowing { chunks: Some(self.n_chunks()), ..text.windowing };
        let mut model = SessionModel::new(&engine, windowing.ctx)?;
        let repaired = compare_with_baseline(
            &mut model,
            self.evidence.recorded,
            &text.text,
            windowing,
            &mut Journal::none(),
            &SilentHost,
        )?;
        let before = self.kld();
        let kld = before - repaired.mean_kld();
        Ok(Saved {
            kld,
            share: if before > 0.0 { kld / before } else { 0.0 },
            ppl_increase: self.as_it_is.ppl_increase() - repaired.ppl_increase(),
        })
    }
}
