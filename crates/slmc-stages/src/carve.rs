//! A smaller model cut out of a bigger one: which blocks and which MLP channels go is measured on text.
//!
//! Blocks go one by one, each time the one whose absence costs least (Shortened LLaMA, arXiv:2402.02834), among those
//! that change the residual stream least (ShortGPT, arXiv:2403.03853). Channels go by the norm of what they add to
//! the residual stream; the down projection is then refitted so that the remaining channels make up for them.

use std::{collections::BTreeMap, sync::Arc};

use burn::tensor::{Device, Int, Tensor, TensorData, activation::log_softmax};
use ndarray::Array2;
use serde_json::json;
use slmc_compress::{
    BlockInfluence, Candidates, ChannelStats, ChooseError, CompressError, GramStats, LayerChoice, LayerStats,
    channel_scores, choose_layers, compensate, keep_top,
};
use slmc_interop::{WriteOptions, write_hf_folder};
use slmc_ir::{
    Checkpoint, Format, Lineage, MemorySource, ModelSpec, Outline, Role, Step, TensorKey, TokenId, Weight,
};
use slmc_model::Decoder;
use slmc_recipe::{CarveConfig, Finished, Rejection, Stage, StageContext, StageError};

use crate::{Surroundings, calibration::sequences, open::open_device};

/// Blocks that are tried in each round of removal: those of least influence.
const CANDIDATES: usize = 8;

/// The carve stage.
pub struct Carve {
    config: CarveConfig,
    around: Arc<Surroundings>,
}

/// A block's MLP made narrower.
struct Narrowed {
    kept: Vec<usize>,
    down: Array2<f32>,
    /// Share of the projection's output that is lost, as mean squares; unknown where nothing was refitted.
    output_error: Option<f64>,
}

/// Damping of the refit, as a share of the mean diagonal of the activations' Gram matrix.
const DAMPING: f64 = 0.01;

impl Carve {
    pub fn new(config: CarveConfig, around: Arc<Surroundings>) -> Self {
        Self { config, around }
    }

    /// The student's spec, or why the teacher has no such student.
    fn student_spec(&self, teacher: &ModelSpec) -> Result<ModelSpec, Rejection> {
        let smaller = |field: &str, asked: Option<usize>, has: usize| match asked {
            None => Ok(has),
            Some(n) if (1..=has).contains(&n) => Ok(n),
            Some(n) => {
                Err(Rejection(format!("{field} = {n}: the model has {has}, and carving only takes away")))
            }
        };
        let n_layers = smaller("n_layers", self.config.n_layers, teacher.n_layers)?;
        let d_ff = smaller("d_ff", self.config.d_ff, teacher.d_ff)?;
        if self.config.seq_len > teacher.context_len {
            let message = format!("seq_len = {} is more than the model's context", self.config.seq_len);
            return Err(Rejection(message));
        }
        Ok(ModelSpec { n_layers, d_ff, ..teacher.clone() })
    }
}

impl Stage for Carve {
    fn name(&self) -> &'static str {
        "carve"
    }

    fn check(&self, input: Option<&Outline>) -> Result<Outline, Rejection> {
        let input = input.ok_or_else(|| Rejection("there is no model to carve".to_owned()))?;
        let spec = self.student_spec(&input.spec)?;
        Ok(Outline::of(spec, Format::F32, input.has_tokenizer))
    }

    fn run(&self, input: Option<Checkpoint>, context: &StageContext<'_>) -> Result<Finished, StageError> {
        let input = input.ok_or_else(|| StageError::Input("there is no model to carve".to_owned()))?;
        let spec = self.student_spec(input.spec()).map_err(|e| StageError::Input(e.to_string()))?;
        let device = open_device(&self.around)?;
        let decoder =
            Decoder::load(&*input.weights, &device).map_err(|e| StageError::Failed(e.to_string()))?;
        let CarveConfig { calibration, n_sequences, seq_len, .. } = &self.config;
        let tokens = sequences(calibration, *n_sequences, *seq_len, &input, &self.around)?;
        let surgeon = Surgeon {
            input: &input,
            decoder,
            device,
            batches: batches(&tokens),
            config: &self.config,
            context,
        };
        let choice = surgeon.blocks_to_remove(input.spec().n_layers - spec.n_layers)?;
        let kept: Vec<usize> = (0..input.spec().n_layers).filter(|i| !choice.removed.contains(i)).collect();
        let narrowed =
            if spec.d_ff < input.spec().d_ff { surgeon.narrow(&kept, spec.d_ff)? } else { Vec::new() };
        let weights = assemble(&input, &spec, &kept, &narrowed)?;
        let report = json!({
            "removed_blocks": choice.removed,
            "losses": choice.losses,
            "output_error": narrowed.iter().map(|narrow| narrow.output_error).collect::<Vec<_>>(),
            "n_layers": spec.n_layers,
            "d_ff": spec.d_ff,
        });
        let mut lineage: Lineage = input.lineage.clone();
        lineage.steps.push(Step {
            stage: self.name().to_owned(),
            slmc_version: context.version.to_owned(),
            settings: serde_json::to_value(&self.config).unwrap_or_default(),
            seed: context.seed,
            inputs: Vec::new(),
            fallbacks: Vec::new(),
        });
        let checkpoint = Checkpoint { weights: Arc::new(weights), lineage, ..input.clone() };
        let artefact = context.folder.join("model");
        write_hf_folder(&checkpoint, &artefact, &WriteOptions::default(), context.host)
            .map_err(|e| StageError::Failed(e.to_string()))?;
        Ok(Finished { artefact, report, fallbacks: Vec::new() })
    }
}

/// Sequences of one length, a few at a time.
struct TokenBatch {
    tokens: Vec<TokenId>,
    n_sequences: usize,
    seq_len: usize,
}

impl TokenBatch {
    fn tensor(&self, device: &Device) -> Tensor<2, Int> {
        let ids: Vec<i32> = self.tokens.iter().map(|&token| token as i32).collect();
        Tensor::from_data(TensorData::new(ids, [self.n_sequences, self.seq_len]), device)
    }
}

fn batches(sequences: &[Vec<TokenId>]) -> Vec<TokenBatch> {
    let batch = |some: &[Vec<TokenId>]| TokenBatch {
        tokens: some.concat(),
        n_sequences: some.len(),
        seq_len: some[0].len(),
    };
    sequences.chunks(4).map(batch).collect()
}

/// The teacher on the table.
struct Surgeon<'a> {
    input: &'a Checkpoint,
    decoder: Decoder,
    device: Device,
    batches: Vec<TokenBatch>,
    config: &'a CarveConfig,
    context: &'a StageContext<'a>,
}

impl Surgeon<'_> {
    fn blocks_to_remove(&self, n_removed: usize) -> Result<LayerChoice, StageError> {
        let n_layers = self.decoder.spec().n_layers;
        if n_removed == 0 {
            return Ok(LayerChoice { removed: Vec::new(), losses: Vec::new(), trials: Vec::new() });
        }
        let influences = self.influences()?;
        let host = self.context.host;
        host.begin("carve: blocks", (n_removed * CANDIDATES) as u64, "trials");
        let mut n_trials = 0;
        let candidates = Candidates::LeastInfluential { influences: &influences, n: CANDIDATES };
        let choice = choose_layers(n_layers, n_removed, candidates, |removed: &[usize]| {
            if host.stop_requested() {
                return Err(StageError::Interrupted(
                    "nothing is lost but this stage's measurements".to_owned(),
                ));
            }
            let loss = self.loss_without(removed);
            n_trials += 1;
            host.advance_to(n_trials, &format!("loss {loss:.3}"));
            Ok(loss)
        });
        host.end();
        choice.map_err(|error| match error {
            ChooseError::Loss { source, .. } => source,
            other => StageError::Failed(other.to_string()),
        })
    }

    /// How much each block changes the residual stream.
    fn influences(&self) -> Result<Vec<f64>, StageError> {
        let n_layers = self.decoder.spec().n_layers;
        let mut stats: Vec<BlockInfluence> = (0..n_layers).map(|_| BlockInfluence::empty()).collect();
        for batch in &self.batches {
            let mut hidden = self.decoder.embed(batch.tensor(&self.device));
            for (index, stats) in stats.iter_mut().enumerate() {
                let after = self.decoder.block(index, hidden.clone());
                stats.observe(rows(hidden)?.view(), rows(after.clone())?.view());
                hidden = after;
            }
        }
        stats.iter().map(BlockInfluence::score).collect::<Result<_, _>>().map_err(failed)
    }

    /// Mean next-token loss on the calibration set without some blocks.
    fn loss_without(&self, removed: &[usize]) -> f64 {
        let mut sum = 0.0;
        for batch in &self.batches {
            let mut hidden = self.decoder.embed(batch.tensor(&self.device));
            for index in (0..self.decoder.spec().n_layers).filter(|index| !removed.contains(index)) {
                hidden = self.decoder.block(index, hidden);
            }
            sum += self.nll(self.decoder.final_norm(hidden), batch);
        }
        sum / (self.config.n_sequences * (self.config.seq_len - 1)) as f64
    }

    /// Sum of the negative log-likelihoods of each sequence's tokens but the first; a sequence's logits at a time.
    fn nll(&self, hidden: Tensor<3>, batch: &TokenBatch) -> f64 {
        let head = self.decoder.head().transpose();
        let n_scored = batch.seq_len - 1;
        let mut sum = 0.0;
        for (index, tokens) in batch.tokens.chunks_exact(batch.seq_len).enumerate() {
            let rows = hidden.clone().narrow(0, index, 1).squeeze_dim::<2>(0).narrow(0, 0, n_scored);
            let targets: Vec<i32> = tokens[1..].iter().map(|&token| token.cast_signed()).collect();
            let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [n_scored, 1]), &self.device);
            let likelihoods = log_softmax(rows.matmul(head.clone()), 1).gather(1, targets);
            sum -= f64::from(likelihoods.sum().into_scalar::<f32>());
        }
        sum
    }

    /// Chooses the channels of each kept block, with the blocks before it already narrowed.
    fn narrow(&self, kept: &[usize], d_ff: usize) -> Result<Vec<Narrowed>, StageError> {
        let host = self.context.host;
        host.begin("carve: width", kept.len() as u64, "blocks");
        let mut hidden: Vec<Tensor<3>> = Vec::new();
        for batch in &self.batches {
            hidden.push(self.decoder.embed(batch.tensor(&self.device)));
        }
        let mut narrowed = Vec::new();
        for (done, &index) in kept.iter().enumerate() {
            if host.stop_requested() {
                return Err(StageError::Interrupted(
                    "nothing is lost but this stage's measurements".to_owned(),
                ));
            }
            narrowed.push(self.narrow_block(index, d_ff, &mut hidden)?);
            host.advance_to(done as u64 + 1, "");
        }
        host.end();
        Ok(narrowed)
    }

    fn narrow_block(
        &self,
        index: usize,
        d_ff: usize,
        hidden: &mut [Tensor<3>],
    ) -> Result<Narrowed, StageError> {
        let down = self.down_projection(index)?;
        let mut channels = ChannelStats::empty(down.ncols());
        let mut gram = GramStats::empty(down.ncols());
        let mut products = Vec::new();
        for hidden in hidden.iter_mut() {
            let (out, captured) = self.decoder.block_captured(index, hidden.clone());
            let product = rows(captured.ffn_product.clone())?;
            channels.observe(product.view());
            if self.config.compensate {
                gram.observe(product.view());
            }
            products.push(captured.ffn_product);
            *hidden = out;
        }
        let kept = keep_top(&channel_scores(&channels, down.view()).map_err(failed)?, d_ff);
        let (new_down, output_error) = if self.config.compensate {
            let refit = compensate(down.view(), &gram, &kept, DAMPING).map_err(failed)?;
            if refit.damping > DAMPING {
                self.context
                    .host
                    .warn(&format!("block {index}: the refit needed a damping of {:.3}", refit.damping));
            }
            (refit.weight, Some(refit.error / refit.energy.max(f64::MIN_POSITIVE)))
        } else {
            (down.select(ndarray::Axis(1), &kept), None)
        };
        self.replay(&down, &new_down, &kept, &products, hidden);
        Ok(Narrowed { kept, down: new_down, output_error })
    }

    fn down_projection(&self, index: usize) -> Result<Array2<f32>, StageError> {
        let key = TensorKey::block(index, Role::Down);
        let weight = self.input.weights.read(key).map_err(|e| StageError::Failed(e.to_string()))?;
        let numbers =
            slmc_blocks::decode_weight(&weight).map_err(|e| StageError::Failed(format!("{key}: {e}")))?;
        let shape = (weight.n_rows(), weight.n_columns());
        Array2::from_shape_vec(shape, numbers).map_err(|e| StageError::Failed(format!("{key}: {e}")))
    }

    /// Moves the residual stream to what the narrowed block makes of it: the difference of the down projections, applied.
    fn replay(
        &self,
        down: &Array2<f32>,
        new_down: &Array2<f32>,
        kept: &[usize],
        products: &[Tensor<3>],
        hidden: &mut [Tensor<3>],
    ) {
        let mut change = -down.t().to_owned();
        for (column, &channel) in kept.iter().enumerate() {
            let mut row = change.row_mut(channel);
            row += &new_down.column(column);
        }
        let shape = [change.nrows(), change.ncols()];
        let numbers: Vec<f32> = change.iter().copied().collect();
        let change = Tensor::<2>::from_data(TensorData::new(numbers, shape), &self.device);
        for (hidden, product) in hidden.iter_mut().zip(products) {
            *hidden = hidden.clone() + product.clone().matmul(change.clone().unsqueeze());
        }
    }
}

fn failed(error: CompressError) -> StageError {
    StageError::Failed(error.to_string())
}

/// `[batch, seq, width]` as a matrix of `batch * seq` rows.
fn rows(tensor: Tensor<3>) -> Result<Array2<f32>, StageError> {
    let [n_batch, seq_len, width] = tensor.dims();
    let numbers =
        tensor.into_data().try_into_vec::<f32>().map_err(|e| StageError::Failed(format!("{e:?}")))?;
    Array2::from_shape_vec((n_batch * seq_len, width), numbers).map_err(|e| StageError::Failed(e.to_string()))
}

/// The student's weights: kept blocks renumbered, MLPs narrowed, everything else as it is in the teacher.
fn assemble(
    teacher: &Checkpoint,
    spec: &ModelSpec,
    kept_blocks: &[usize],
    narrowed: &[Narrowed],
) -> Result<MemorySource, StageError> {
    let failed = |e: slmc_ir::SourceError| StageError::Failed(e.to_string());
    let mut weights = BTreeMap::new();
    for key in TensorKey::all(spec) {
        let source = TensorKey { block: key.block.map(|index| kept_blocks[index]), ..key };
        let weight = teacher.weights.read(source).map_err(failed)?;
        let weight = match key.block.and_then(|index| narrowed.get(index)) {
            Some(narrow) => narrowed_weight(key, &weight, narrow)?,
            None => weight,
        };
        weights.insert(key, weight);
    }
    MemorySource::new(spec.clone(), weights).map_err(failed)
}

fn narrowed_weight(key: TensorKey, weight: &Weight, narrow: &Narrowed) -> Result<Weight, StageError> {
    let bad = |e: slmc_ir::WeightError| StageError::Failed(format!("{key}: {e}"));
    match (key.role, weight.shape().len()) {
        (Role::Gate | Role::Up, 2) => Ok(weight.with_rows(&narrow.kept)),
        (Role::Gate | Role::Up, _) => {
            let numbers =
                slmc_blocks::decode_weight(weight).map_err(|e| StageError::Failed(format!("{key}: {e}")))?;
            let kept: Vec<f32> = narrow.kept.iter().map(|&channel| numbers[channel]).collect();
            Weight::from_f32(vec![kept.len()], &kept).map_err(bad)
        }
        (Role::Down, 2) => {
            let numbers: Vec<f32> = narrow.down.iter().copied().collect();
            let float = if weight.format().is_float() { weight.format() } else { Format::F16 };
            let exact = Weight::from_f32(narrow.down.shape().to_vec(), &numbers).map_err(bad)?;
            slmc_blocks::encode_weight(&exact, float).map_err(|e| StageError::Failed(format!("{key}: {e}")))
        }
        _ => Ok(weight.clone()),
    }
}
