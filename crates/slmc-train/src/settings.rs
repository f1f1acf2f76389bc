//! What a training run is told: one struct for next-token training and for distillation.

use serde::{Deserialize, Serialize};

use slmc_model::{AdamWHyper, Products};

use crate::TrainError;

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// This many optimizer steps.
    Steps(u64),
    /// At least this many training tokens (rounded up to a whole step).
    Tokens(u64),
    /// As many steps as fit in so many minutes, evaluations included. Measured over the first steps, and again after each
    /// third of them but the last: see [`Plan`](crate::Plan).
    Minutes(f64),
}

/// Learning from a teacher's whole distribution (Hinton et al., arXiv:1503.02531, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistillSettings {
    /// Divides both models' logits before the softmax; above 0. Default 1.
    pub temperature: f64,
    /// Share of the KL divergence in the loss, 0 to 1; the rest is next-token cross-entropy. Default 1.
    pub alpha: f64,
    /// Weight of the difference of the final hidden states: its mean square as a share of the teacher's (TinyBERT,
    /// arXiv:1909.10351, equation 8, at the last layer). Needs a student as wide as its teacher. Default 0.
    pub hidden_weight: f64,
}

impl Default for DistillSettings {
    fn default() -> Self {
        Self { temperature: 1.0, alpha: 1.0, hidden_weight: 0.0 }
    }
}

/// What the products of training are computed in; weights, gradients and sums are f32 all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// Factors rounded to bf16 (mixed precision, arXiv:1905.12322): on CPUs with AMX, several times as fast.
    Bf16,
}

/// A training run's settings. Whatever is left out of a file has the default named here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSettings {
    /// How long to train. Default 1000 steps.
    pub budget: Budget,
    /// Sequences in a batch. Default 4.
    pub batch_size: usize,
    /// Tokens in a sequence. Default 256.
    pub seq_len: usize,
    /// Batches whose gradients are added up before a step. Default 1.
    pub accumulate: usize,
    /// Highest learning rate, reached at the end of warm-up. Default 3e-4.
    pub learning_rate: f64,
    /// Learning rate of the last step, where the cosine ends. Default: a tenth of `learning_rate`.
    pub final_learning_rate: Option<f64>,
    /// Steps in which the learning rate rises linearly. Default: 5 % of the steps, 1 to 500 (with a budget in
    /// minutes: 20, or a tenth of the steps if that is less).
    pub warmup_steps: Option<u64>,
    /// Decoupled weight decay (AdamW, arXiv:1711.05101); of matrices only. Default 0.1.
    pub weight_decay: f64,
    /// Decay of the mean of gradients. Default 0.9.
    pub beta1: f64,
    /// Decay of the mean of squared gradients. Default 0.95.
    pub beta2: f64,
    /// Added to the root of the mean square. Default 1e-8.
    pub epsilon: f64,
    /// Longest gradient, as the norm over all tensors together; a longer one is scaled down. 0 lets all
    /// through. Default 1.
    pub clip_norm: f64,
    /// Steps between evaluations on the held-out batches; 0 evaluates before the first and after the last
    /// step alone. Default 100.
    pub eval_every: u64,
    /// Steps between checkpoints; 0 leaves it to the clock: one every five minutes. Default 0.
    pub checkpoint_every: u64,
    /// Checkpoints kept, the newest first; at least 1. Default 1.
    pub keep_checkpoints: usize,
    /// Seed of the order of the data (the batches are built from it). Default 0.
    pub seed: u64,
    /// Whether blocks are computed again in the backward pass: less memory, a third more time. Default false.
    pub recompute: bool,
    /// Whether the embedding and the head stay as they are. Default false.
    pub freeze_embedding: bool,
    /// What products are computed in. Default f32.
    pub precision: Precision,
    /// Distillation; left out, the student learns the next token alone.
    pub distill: Option<DistillSettings>,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            budget: Budget::Steps(1000),
            batch_size: 4,
            seq_len: 256,
            accumulate: 1,
            learning_rate: 3e-4,
            final_learning_rate: None,
            warmup_steps: None,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            clip_norm: 1.0,
            eval_every: 100,
            checkpoint_every: 0,
            keep_checkpoints: 1,
            seed: 0,
            recompute: false,
            freeze_embedding: false,
            precision: Precision::F32,
            distill: None,
        }
    }
}

impl TrainSettings {
    /// Training tokens of one step: `batch_size * seq_len * accumulate`.
    pub fn tokens_per_step(&self) -> u64 {
        self.batch_size as u64 * self.seq_len as u64 * self.accumulate as u64
    }

    /// Learning rate of the last step.
    pub fn floor(&self) -> f64 {
        self.final_learning_rate.unwrap_or(self.learning_rate * 0.1)
    }

    /// What AdamW is told besides the rate.
    pub(crate) fn adamw(&self) -> AdamWHyper {
        AdamWHyper {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            eps: self.epsilon as f32,
            weight_decay: self.weight_decay as f32,
        }
    }

    /// How products are computed here; [`validate`](Self::validate) has proved that it is possible.
    pub fn products(&self) -> Products {
        match self.precision {
            Precision::F32 => Products::Single,
            Precision::Bf16 => Products::half().unwrap_or_default(),
        }
    }

    /// Proves that every setting is possible.
    pub fn validate(&self) -> Result<(), TrainError> {
        self.validate_budget()?;
        self.validate_sizes()?;
        let can = self.precision == Precision::F32 || Products::half().is_some();
        require(can, "precision", "bf16", "this CPU has no units for products in bf16 (AMX): use f32")?;
        let at_least_0 = |x: f64| x.is_finite() && x >= 0.0;
        let below_1 = |x: f64| (0.0..1.0).contains(&x);
        let rate = self.learning_rate;
        let numbers = [
            ("learning_rate", rate, rate.is_finite() && rate > 0.0, "must be a finite number above 0"),
            (
                "final_learning_rate",
                self.floor(),
                (0.0..=rate).contains(&self.floor()),
                "must be 0 to learning_rate",
            ),
            (
                "weight_decay",
                self.weight_decay,
                at_least_0(self.weight_decay),
                "must be a finite number, 0 or more",
            ),
            ("beta1", self.beta1, below_1(self.beta1), "must be 0 or more and below 1"),
            ("beta2", self.beta2, below_1(self.beta2), "must be 0 or more and below 1"),
            ("epsilon", self.epsilon, self.epsilon.is_finite() && self.epsilon > 0.0, "must be above 0"),
            ("clip_norm", self.clip_norm, at_least_0(self.clip_norm), "must be a finite number, 0 or more"),
        ];
        for (field, value, is_good, why) in numbers {
            require(is_good, field, value, why)?;
        }
        if let Some(DistillSettings { temperature, alpha, hidden_weight }) = self.distill {
            let is_good = temperature.is_finite() && temperature > 0.0;
            require(is_good, "distill.temperature", temperature, "must be a finite number above 0")?;
            require((0.0..=1.0).contains(&alpha), "distill.alpha", alpha, "must be 0 to 1")?;
            let weight_is_sane = hidden_weight >= 0.0 && hidden_weight.is_finite();
            require(weight_is_sane, "distill.hidden_weight", hidden_weight, "must be 0 or more")?;
        }
        Ok(())
    }

    fn validate_budget(&self) -> Result<(), TrainError> {
        match self.budget {
            Budget::Steps(n) => require(n > 0, "budget.steps", n, "must be 1 or more"),
            Budget::Tokens(n) => require(n > 0, "budget.tokens", n, "must be 1 or more"),
            Budget::Minutes(m) => {
                let limit = 60.0 * 24.0 * 366.0;
                require(m > 0.0 && m <= limit, "budget.minutes", m, "must be above 0, and at most a year")
            }
        }
    }

    fn validate_sizes(&self) -> Result<(), TrainError> {
        let sizes = [
            ("batch_size", self.batch_size),
            ("seq_len", self.seq_len),
            ("accumulate", self.accumulate),
            ("keep_checkpoints", self.keep_checkpoints),
        ];
        for (field, value) in sizes {
            require((1..=1 << 20).contains(&value), field, value, "must be 1 to 2^20")?;
        }
        Ok(())
    }
}

fn require(
    is_good: bool,
    field: &'static str,
    value: impl ToString,
    why: &'static str,
) -> Result<(), TrainError> {
    if is_good { Ok(()) } else { Err(TrainError::Setting { field, value: value.to_string(), why }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        let settings: TrainSettings =
            serde_json::from_str(r#"{"budget": {"minutes": 2.5}, "seq_len": 64}"#).unwrap();
        let expected = TrainSettings { budget: Budget::Minutes(2.5), seq_len: 64, ..Default::default() };
        assert_eq!(settings, expected);
        assert!(settings.validate().is_ok());
        assert!(serde_json::from_str::<TrainSettings>(r#"{"lerning_rate": 1}"#).is_err());
    }

    #[test]
    fn impossible_settings_are_named() {
        let check = |settings: TrainSettings, expected: &str| match settings.validate() {
            Err(TrainError::Setting { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        };
        let default = TrainSettings::default;
        check(TrainSettings { budget: Budget::Steps(0), ..default() }, "budget.steps");
        check(TrainSettings { budget: Budget::Minutes(f64::NAN), ..default() }, "budget.minutes");
        check(TrainSettings { accumulate: 0, ..default() }, "accumulate");
        check(TrainSettings { learning_rate: f64::INFINITY, ..default() }, "learning_rate");
        check(TrainSettings { final_learning_rate: Some(1.0), ..default() }, "final_learning_rate");
        check(TrainSettings { beta2: 1.0, ..default() }, "beta2");
        let distill = Some(DistillSettings { temperature: 0.0, ..DistillSettings::default() });
        check(TrainSettings { distill, ..default() }, "distill.temperature");
    }
}
