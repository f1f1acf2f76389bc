//! What a plan will need, before it runs.

use serde::Serialize;
use slmc_ir::{Adapter, ModelSpec, TensorKey};
use slmc_recipe::{Budget, DistillConfig, LoraConfig, Plan, StageConfig, TrainConfig};

use crate::{
    quantize::{MOST_COUPLED_ROWS, TRIED_SEQUENCES},
    training::fitted_tokens,
};

/// Floating-point operations a second that two cores reach in training; a guess that only the time depends on.
const ASSUMED_FLOPS: f64 = 150e9;

/// What one stage will need at most.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The stage.
    pub stage: String,
    /// Peak memory, in bytes.
    pub memory_bytes: u64,
    /// Bytes it leaves on disk.
    pub disk_bytes: u64,
    /// Seconds, on two cores; training by minutes takes just those.
    pub seconds: f64,
}

/// An upper bound for each stage of a plan.
pub fn estimate(plan: &Plan) -> Vec<Estimate> {
    let mut before = plan.input.as_ref();
    let mut estimates = Vec::new();
    for planned in &plan.stages {
        let after = &planned.outline;
        let teacher = plan.input.as_ref().map(|outline| &outline.spec);
        let (memory_bytes, disk, seconds) = match &planned.entry.config {
            StageConfig::Train(config) => training(&after.spec, None, config),
            StageConfig::Distill(config) => distillation(&after.spec, teacher, config),
            StageConfig::Lora(config) => lora(&after.spec, config),
            StageConfig::Carve(config) => {
                let spec = before.map_or(&after.spec, |outline| &outline.spec);
                let n_tokens = (config.n_sequences * config.seq_len) as f64;
                let removed = spec.n_layers - after.spec.n_layers;
                let passes = 2.0 + (removed * 10) as f64 / 2.0;
                (
                    model_bytes(spec) + gram_bytes(spec),
                    0,
                    passes * forward_flops(spec) * n_tokens / ASSUMED_FLOPS,
                )
            }
            StageConfig::Fresh(_) => (model_bytes(&after.spec), 0, 1.0),
            StageConfig::Quantize(config) if config.method != "rtn" => {
                let input = before.unwrap_or(after);
                let tried = if config.method == "auto" { TRIED_SEQUENCES } else { 0 };
                let n_tokens = ((tried + config.sequences()) * config.seq_len) as f64;
                let seconds = calibrating_seconds(&input.spec, n_tokens);
                let at_most = config.minutes.map_or(f64::INFINITY, |minutes| minutes * 60.0);
                (calibrated_bytes(&input.spec), 0, seconds.min(at_most))
            }
            StageConfig::Scale(config) => {
                let n_tokens = (config.n_sequences * config.seq_len) as f64;
                (calibrated_bytes(&after.spec), 0, calibrating_seconds(&after.spec, n_tokens))
            }
            StageConfig::Rotate(_) => (largest_tensor(&after.spec) * 3, 0, 10.0),
            StageConfig::Quantize(_) | StageConfig::Export(_) => (largest_tensor(&after.spec) * 6, 0, 2.0),
        };
        let disk_bytes = after.n_bytes() + disk;
        estimates.push(Estimate { stage: planned.entry.name.clone(), memory_bytes, disk_bytes, seconds });
        before = Some(after);
    }
    estimates
}

/// Forwards, again on the way back, back, sums, and solving.
fn calibrating_seconds(spec: &ModelSpec, n_tokens: f64) -> f64 {
    8.0 * forward_flops(spec) * n_tokens / ASSUMED_FLOPS
}

fn model_bytes(spec: &ModelSpec) -> u64 {
    spec.n_parameters() * 4
}

fn gram_bytes(spec: &ModelSpec) -> u64 {
    (spec.d_ff * spec.d_ff * 8 * 3) as u64
}

fn largest_tensor(spec: &ModelSpec) -> u64 {
    (spec.vocab_size.max(spec.d_ff) * spec.d_model * 4) as u64
}

/// What is solved for holds its largest tensor, the head, in two layouts of half its size in f32, and some rows of logits beside them;
/// later a block in f32, and of its widest projection the moments of what enters it and their factors, two of them in f64, and
/// of those with fewer rows what the rows have in common.
fn calibrated_bytes(spec: &ModelSpec) -> u64 {
    // A batch of sequences on its way through a block, both ways, and the program itself.
    const ALWAYS: u64 = 400 << 20;
    let logits = 3 * 256 * spec.vocab_size as u64 * 4;
    // Where channels come into another order, embedding and head are copies, not the file's pages.
    let head = 7 * (spec.vocab_size * spec.d_model) as u64 + logits;
    let shapes: Vec<Vec<usize>> = Adapter::ROLES.map(|role| TensorKey::block(0, role).shape(spec)).to_vec();
    let square = |n: usize| (n * n) as u64;
    let weights: u64 = shapes.iter().map(|shape| 4 * (shape[0] * shape[1]) as u64).sum();
    let widest = shapes.iter().map(|shape| shape[1]).max().unwrap_or(0);
    let coupled = shapes.iter().map(|shape| shape[0]).filter(|&rows| rows <= MOST_COUPLED_ROWS).max();
    let block = weights + 28 * square(widest) + 2 * 32 * square(coupled.unwrap_or(0));
    ALWAYS + head.max(block)
}

/// Multiplications and additions of one token's forward pass, attention's own left out.
fn forward_flops(spec: &ModelSpec) -> f64 {
    let head = if spec.tied_head { 0 } else { spec.vocab_size * spec.d_model };
    2.0 * (spec.n_parameters() - head as u64) as f64
}

/// The frozen weights as f16 at most, or packed and the file's pages beside them, four numbers for each of the factors',
/// and activations; the adapter's checkpoints on disk.
fn lora(spec: &ModelSpec, config: &LoraConfig) -> (u64, u64, f64) {
    let ModelSpec { d_model, d_ff, n_heads, n_kv_heads, d_head, .. } = *spec;
    let train = &config.train;
    let n_tokens = (train.batch_size * train.seq_len) as u64;
    let streams = 2 * d_model + 2 * (n_heads + n_kv_heads) * d_head;
    let gate_up = if train.recompute || config.base_format.is_some() { 0 } else { 2 * d_ff };
    let activations = n_tokens * ((streams + gate_up) * spec.n_layers + 8 * d_ff) as u64 * 4;
    let sides = |role| TensorKey::block(0, role).shape(spec).iter().sum::<usize>();
    let factors = Adapter::ROLES.into_iter().map(sides).sum::<usize>() * config.rank * spec.n_layers;
    let logits = 256 * spec.vocab_size as u64 * 4;
    let memory = spec.n_parameters() * 2 + factors as u64 * 16 + activations + logits;
    let flops = 2.2 * forward_flops(spec);
    let seconds = match train.budget() {
        Ok(Budget::Minutes(minutes)) => minutes * 60.0,
        Ok(Budget::Tokens(tokens)) => tokens as f64 * flops / ASSUMED_FLOPS,
        Ok(Budget::Steps(steps)) => {
            (steps * train.accumulate as u64 * n_tokens) as f64 * flops / ASSUMED_FLOPS
        }
        Err(_) => 0.0,
    };
    (memory, factors as u64 * 12, seconds)
}

/// Training with a teacher, and the fit before it: of its tokens, both models' hidden states and what a block makes of
/// them; the sums and their copies in f64; the student's weights.
fn distillation(student: &ModelSpec, teacher: Option<&ModelSpec>, config: &DistillConfig) -> (u64, u64, f64) {
    let (memory, disk, seconds) = training(student, teacher, &config.train);
    if config.learn != DistillConfig::LEARN {
        // There are no moments of weights, and no weights in checkpoints.
        return (memory - 2 * model_bytes(student), model_bytes(student) / 4, seconds);
    }
    if config.fit_tokens == 0 {
        return (memory, disk, seconds);
    }
    let n_tokens = fitted_tokens(config.fit_tokens, student);
    let ModelSpec { d_model, d_ff, n_heads, d_head, .. } = *student;
    // The student's states, and the teacher's at three blocks: before, between, after, and what was removed there.
    let states = n_tokens * (12 * d_model + n_heads * d_head + d_ff) * 4;
    let sums = (d_ff * (d_ff + d_model) * (4 + 6 * 8)) as u64;
    let fit = states as u64 + sums + model_bytes(student);
    // Both models forwards, and as much again for the sums.
    let flops = n_tokens as f64 * (2.0 * forward_flops(student) + teacher.map_or(0.0, forward_flops));
    let by_minutes = matches!(config.train.budget(), Ok(Budget::Minutes(_)));
    let seconds = if by_minutes { seconds } else { seconds + flops / ASSUMED_FLOPS };
    (memory.max(fit), disk + model_bytes(student), seconds)
}

/// Weights, gradients and two moments of the student, the teacher's weights, activations; and the checkpoints on disk.
fn training(student: &ModelSpec, teacher: Option<&ModelSpec>, config: &TrainConfig) -> (u64, u64, f64) {
    let n_tokens = (config.batch_size * config.seq_len) as u64;
    let per_token = (student.n_layers * (10 * student.d_model + 4 * student.d_ff)) as u64 * 4;
    let logits = 256 * student.vocab_size as u64 * 4 * 3;
    let memory = 4 * model_bytes(student) + teacher.map_or(0, model_bytes) + n_tokens * per_token + logits;
    let flops = 3.0 * forward_flops(student) + teacher.map_or(0.0, forward_flops);
    let per_step = (n_tokens * config.accumulate as u64) as f64;
    let seconds = match config.budget() {
        Ok(Budget::Minutes(minutes)) => minutes * 60.0,
        Ok(Budget::Tokens(tokens)) => tokens as f64 * flops / ASSUMED_FLOPS,
        Ok(Budget::Steps(steps)) => steps as f64 * per_step * flops / ASSUMED_FLOPS,
        Err(_) => 0.0,
    };
    (memory, 2 * 3 * model_bytes(student), seconds)
}
