//! A tiny model, data without files, and a host whose clock and stop signal a test controls.
#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use burn::tensor::Device;
use slmc_data::Batch;
use slmc_ir::{Activation, Biases, Family, Host, ModelSpec, RopeScaling, TokenId};
use slmc_model::{Decoder, DeviceChoice};
use slmc_train::{BatchSource, Budget, MetricsLine, TrainError, TrainInputs, TrainSettings};

pub fn tiny_spec() -> ModelSpec {
    ModelSpec {
        family: Family::Llama,
        vocab_size: 64,
        context_len: 64,
        d_model: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        d_head: 8,
        d_ff: 48,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        activation: Activation::Silu,
        biases: Biases::default(),
        qk_norm: false,
        tied_head: true,
    }
}

pub fn device() -> Device {
    DeviceChoice::Flex.open().unwrap().autodiff()
}

pub fn student() -> Decoder {
    Decoder::fresh(&tiny_spec(), 1, &device())
}

/// Settings of a short run on the tiny model.
pub fn settings(steps: u64) -> TrainSettings {
    TrainSettings {
        budget: Budget::Steps(steps),
        batch_size: 2,
        seq_len: 16,
        learning_rate: 1e-2,
        warmup_steps: Some(2),
        eval_every: 4,
        checkpoint_every: 4,
        ..Default::default()
    }
}

/// Sequences that can be learned: each counts upwards, from a start and by a stride that follow from the index.
pub struct Counting {
    pub n_sequences: usize,
    pub seq_len: usize,
    /// The batch that cannot be read, as if the machine died there.
    pub dies_at: Option<u64>,
    /// Whether every other sequence is learned from in its first half alone.
    pub masked: bool,
    /// The target written where nothing is learned.
    pub masked_target: TokenId,
}

impl Counting {
    pub fn of(settings: &TrainSettings) -> Self {
        let (n_sequences, seq_len) = (settings.batch_size, settings.seq_len);
        Self { n_sequences, seq_len, dies_at: None, masked: false, masked_target: 0 }
    }

    fn sequence(&self, index: u64, batch: &mut Batch) {
        let (start, stride) = (index * 7 % 64, 1 + index % 3);
        let token = |i: u64| ((start + i * stride) % 64) as TokenId;
        for i in 0..self.seq_len as u64 {
            let learn = !self.masked || index.is_multiple_of(2) || i < self.seq_len as u64 / 2;
            batch.inputs.push(token(i));
            batch.targets.push(if learn { token(i + 1) } else { self.masked_target });
            batch.loss_mask.get_or_insert_default().push(learn);
        }
    }
}

impl BatchSource for Counting {
    fn batch(&self, index: u64) -> Result<Batch, TrainError> {
        if self.dies_at == Some(index) {
            return Err(TrainError::Data { index, message: "the machine died".to_owned() });
        }
        let (batch_size, seq_len) = (self.n_sequences, self.seq_len);
        let mut batch =
            Batch { inputs: vec![], targets: vec![], loss_mask: None, starts: None, batch_size, seq_len };
        let n = self.n_sequences as u64;
        (index * n..(index + 1) * n).for_each(|i| self.sequence(i, &mut batch));
        Ok(batch)
    }
}

/// A host whose clock moves when it is told, and that asks to stop once so much is done.
#[derive(Default)]
pub struct FakeHost {
    pub milliseconds: AtomicU64,
    pub stop_at_tokens: Option<u64>,
    pub done: AtomicU64,
    pub warnings: Mutex<Vec<String>>,
    pub notes: Mutex<Vec<String>>,
}

impl Host for FakeHost {
    fn begin(&self, _: &str, _: u64, _: &str) {}
    fn advance_to(&self, done: u64, note: &str) {
        self.done.store(done, Ordering::SeqCst);
        self.notes.lock().unwrap().push(note.to_owned());
    }
    fn end(&self) {}
    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.milliseconds.load(Ordering::SeqCst))
    }
    fn stop_requested(&self) -> bool {
        self.stop_at_tokens.is_some_and(|tokens| self.done.load(Ordering::SeqCst) >= tokens)
    }
}

pub fn inputs<'a>(source: &'a dyn BatchSource, run_dir: &'a Path) -> TrainInputs<'a> {
    TrainInputs {
        student: student(),
        teacher: None,
        train: source,
        eval: &[],
        run_dir,
        inputs_hash: "counting".to_owned(),
    }
}

/// Every line of a run's log.
pub fn lines(metrics: &Path) -> Vec<MetricsLine> {
    let text = std::fs::read_to_string(metrics).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A weight's bits, tensor after tensor.
pub fn bits(decoder: &Decoder) -> Vec<u32> {
    let flat = |key| decoder.parameter(key).unwrap().flat().into_data_as::<f32>();
    decoder
        .keys()
        .into_iter()
        .flat_map(|key| flat(key).iter::<f32>().map(f32::to_bits).collect::<Vec<_>>())
        .collect()
}

/// The files of a run's checkpoint after so many steps.
pub fn checkpoint(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join("checkpoints").join(format!("step-{step:010}"))
}
