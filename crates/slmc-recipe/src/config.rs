//! The settings of each stage, as recipes write them. Unknown keys are errors; defaults are filled in here, so
//! that a plan shows every value that was used.

use serde::{Deserialize, Serialize};

/// One stage's settings: a closed set, so that a recipe can be proved before it runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "use")]
pub enum StageConfig {
    /// A new model with random weights.
    Fresh(FreshConfig),
    /// A smaller model cut out of the input.
    Carve(CarveConfig),
    /// Next-token training.
    Train(TrainConfig),
    /// Training on a teacher's soft targets.
    Distill(DistillConfig),
    /// A low-rank adapter beside the frozen model.
    Lora(LoraConfig),
    /// The same function in rotated coordinates.
    Rotate(RotateConfig),
    /// The same function with channels scaled for rounding.
    Scale(ScaleConfig),
    /// Fewer bits a weight.
    Quantize(QuantizeConfig),
    /// A file for a runtime.
    Export(ExportConfig),
}

impl StageConfig {
    /// The names that `use = "…"` may have.
    pub const NAMES: [&'static str; 9] =
        ["fresh", "carve", "train", "distill", "lora", "rotate", "scale", "quantize", "export"];

    /// Name of the stage's kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Fresh(_) => "fresh",
            Self::Carve(_) => "carve",
            Self::Train(_) => "train",
            Self::Distill(_) => "distill",
            Self::Lora(_) => "lora",
            Self::Rotate(_) => "rotate",
            Self::Scale(_) => "scale",
            Self::Quantize(_) => "quantize",
            Self::Export(_) => "export",
        }
    }

    /// Paths in the settings, each with what it is for: to be resolved against the recipe's folder.
    pub(crate) fn paths_mut(&mut self) -> Vec<(&'static str, &mut String)> {
        let all: Vec<(&'static str, Option<&mut String>)> = match self {
            Self::Fresh(c) => {
                vec![
                    ("config", Some(&mut c.config)),
                    ("tokenizer", c.tokenizer.as_mut()),
                    ("data", c.data.as_mut()),
                ]
            }
            Self::Carve(c) => vec![("calibration", Some(&mut c.calibration))],
            Self::Lora(LoraConfig { train: c, .. }) | Self::Train(c) => {
                vec![("data", Some(&mut c.data)), ("eval_data", c.eval_data.as_mut())]
            }
            Self::Distill(DistillConfig { train, teacher, .. }) => vec![
                ("data", Some(&mut train.data)),
                ("eval_data", train.eval_data.as_mut()),
                ("teacher", teacher.as_mut()),
            ],
            Self::Scale(c) => vec![("calibration", Some(&mut c.calibration))],
            Self::Quantize(c) => vec![("calibration", c.calibration.as_mut())],
            Self::Rotate(_) | Self::Export(_) => Vec::new(),
        };
        all.into_iter().filter_map(|(role, path)| Some((role, path?))).collect()
    }
}

/// A new model with random weights, from a `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshConfig {
    /// A Hugging Face `config.json`: the dimensions.
    pub config: String,
    /// Take the tokenizer of this model; without it and without `data`, that of the recipe's model.
    #[serde(default)]
    pub tokenizer: Option<String>,
    /// Train a byte-level BPE of the config's vocabulary size on this dataset instead.
    #[serde(default)]
    pub data: Option<String>,
}

/// A smaller model cut out of the input: which blocks and which MLP channels go is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarveConfig {
    /// Blocks to keep; all when absent.
    #[serde(default)]
    pub n_layers: Option<usize>,
    /// MLP channels to keep in each block; all when absent.
    #[serde(default)]
    pub d_ff: Option<usize>,
    /// Dataset on which importance is measured.
    pub calibration: String,
    /// Sequences of calibration.
    #[serde(default = "defaults::calibration_sequences")]
    pub n_sequences: usize,
    /// Tokens in each.
    #[serde(default = "defaults::seq_len")]
    pub seq_len: usize,
    /// Refit the down projections of narrowed MLPs by least squares on the calibration set.
    #[serde(default = "defaults::yes")]
    pub compensate: bool,
}

/// The same function in rotated coordinates (QuaRot, arXiv:2404.00456).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateConfig {
    /// Rotate the residual stream. That needs a head of its own; when absent, it is done where the model has one.
    #[serde(default)]
    pub stream: Option<bool>,
    /// Rotate the values of each head.
    #[serde(default = "defaults::yes")]
    pub heads: bool,
    /// Float format of what is written.
    #[serde(default = "defaults::half")]
    pub dtype: String,
}

/// The same function with channels scaled so that rounding hurts least (AWQ, arXiv:2306.00978): for a later stage that rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleConfig {
    /// What the projections will be rounded to: a ggml format, or a scheme such as `w4g128`.
    pub format: String,
    /// Dataset on which scales are searched.
    pub calibration: String,
    /// Sequences of it.
    #[serde(default = "defaults::scale_sequences")]
    pub n_sequences: usize,
    /// Tokens in each.
    #[serde(default = "defaults::ctx")]
    pub seq_len: usize,
    /// Float format of what is written.
    #[serde(default = "defaults::half")]
    pub dtype: String,
}

/// How long to train: exactly one of the three.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Optimizer steps.
    Steps(u64),
    /// Training tokens.
    Tokens(u64),
    /// Wall-clock minutes: turned into steps by the speed of the first steps.
    Minutes(f64),
}

/// Next-token training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Training set.
    pub data: String,
    /// Held-out set for the evaluations during training; the documents that the dataset itself holds out when absent.
    #[serde(default)]
    pub eval_data: Option<String>,
    /// Optimizer steps.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Training tokens.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Wall-clock minutes.
    #[serde(default)]
    pub minutes: Option<f64>,
    /// Sequences in a forward pass.
    #[serde(default = "defaults::batch_size")]
    pub batch_size: usize,
    /// Tokens in a sequence.
    #[serde(default = "defaults::seq_len")]
    pub seq_len: usize,
    /// Forward passes whose gradients are averaged into one step.
    #[serde(default = "defaults::one")]
    pub accumulate: usize,
    /// Peak learning rate.
    #[serde(default = "defaults::learning_rate")]
    pub learning_rate: f64,
    /// Where the cosine ends, as a share of the peak.
    #[serde(default = "defaults::final_share")]
    pub final_learning_rate_share: f64,
    /// Steps in which the rate rises from 0; 5 % of the steps when absent.
    #[serde(default)]
    pub warmup_steps: Option<u64>,
    /// Decoupled weight decay on matrices (AdamW, arXiv:1711.05101).
    #[serde(default = "defaults::weight_decay")]
    pub weight_decay: f64,
    /// Largest norm of the whole gradient.
    #[serde(default = "defaults::one_f64")]
    pub clip_norm: f64,
    /// Steps between evaluations.
    #[serde(default = "defaults::eval_every")]
    pub eval_every: u64,
    /// Batches of an evaluation.
    #[serde(default = "defaults::eval_batches")]
    pub eval_batches: usize,
    /// Steps between checkpoints.
    #[serde(default = "defaults::checkpoint_every")]
    pub checkpoint_every: u64,
    /// Recompute activations in the backward pass: less memory, a third more time.
    #[serde(default)]
    pub recompute: bool,
    /// Leave the embedding and the head as they are. For a student cut out of its teacher, short of text: rows of tokens
    /// that the text lacks would drift, since Adam makes steps of their smallest gradients.
    #[serde(default)]
    pub freeze_embedding: bool,
    /// What products are computed in: `f32`, or `bf16` (with sums in f32), several times as fast on CPUs with AMX and
    /// done in f32 on others.
    #[serde(default = "defaults::f32")]
    pub precision: String,
}

impl TrainConfig {
    /// The one budget that is given, or what is wrong with the given ones.
    pub fn budget(&self) -> Result<Budget, &'static str> {
        match (self.steps, self.tokens, self.minutes) {
            (Some(steps), None, None) if steps > 0 => Ok(Budget::Steps(steps)),
            (None, Some(tokens), None) if tokens > 0 => Ok(Budget::Tokens(tokens)),
            (None, None, Some(minutes)) if minutes > 0.0 && minutes.is_finite() => {
                Ok(Budget::Minutes(minutes))
            }
            (None, None, None) => Err("say how long to train: one of `steps`, `tokens`, `minutes`"),
            (Some(0), None, None) | (None, Some(0), None) | (None, None, Some(_)) => {
                Err("the training budget must be more than 0")
            }
            _ => Err("only one of `steps`, `tokens`, `minutes` can be given"),
        }
    }
}

/// Training on a teacher's soft targets (Hinton et al. 2015, arXiv:1503.02531).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DistillConfig {
    /// The teacher: a model's path; the recipe's own model when absent.
    pub teacher: Option<String>,
    /// Softens both distributions.
    pub temperature: f64,
    /// Weight of the teacher's soft targets; the rest is cross-entropy on the text.
    pub alpha: f64,
    /// Weight of the difference of the final hidden states; for a student as wide as its teacher.
    pub hidden_weight: f64,
    /// Tokens of text that the teacher writes itself before the training, to be learnt from beside the data: what the
    /// teacher knows and the data does not speak of (LLM-QAT, arXiv:2305.17888). The writing counts as part of a
    /// budget in minutes.
    pub sampled_tokens: usize,
    /// Share of such text among the sequences, where there is any.
    pub sampled_share: f64,
    /// Tokens on which the projections of a student that was carved out of its teacher are fitted to the teacher's hidden
    /// states, block by block in closed form, before the training (at least eight for each MLP channel); 0 for none. The
    /// fitting counts as part of a budget in minutes.
    pub fit_tokens: usize,
    /// Share of the teacher's own text among those tokens, where it writes any: text for the fit alone, in documents half as
    /// long as the training's rows.
    pub fit_sampled_share: f64,
    /// What the teacher computes in: `f32`, on the student's device; or `int8`, in the engine, on the CPU: activations in
    /// bytes, packed matrices as they are, float ones in q8_0; the head is in floats.
    pub teacher_precision: String,
    /// What learns: `weights`, or of a packed model `scales`: each block's f16 scale and the norms' gains, while its
    /// levels, formats and size stay.
    pub learn: String,
    /// The loop's settings.
    #[serde(flatten)]
    pub train: TrainConfig,
}

impl DistillConfig {
    /// Distributions as they are: what works for next-token distillation at equal vocabularies.
    pub const TEMPERATURE: f64 = 1.0;
    /// Mostly the teacher, with a little of the text's own truth.
    pub const ALPHA: f64 = 0.9;
    /// As exact as the student.
    pub const TEACHER_PRECISION: &str = "f32";
    /// All of the student.
    pub const LEARN: &str = "weights";
    /// A little less of the teacher's own text than of the data.
    pub const SAMPLED_SHARE: f64 = 0.4;
    /// Mostly the teacher's own text, which is about more than the data.
    pub const FIT_SAMPLED_SHARE: f64 = 0.75;
}

/// A low-rank adapter beside the frozen model (LoRA, arXiv:2106.09685).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoraConfig {
    /// Rows of each factor `A`.
    pub rank: usize,
    /// The factors' product is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// The projections that get factors: `all-linear`, or some of `q,k,v,o,gate,up,down`.
    pub target: String,
    /// Format that the frozen projections are rounded to in memory (QLoRA, arXiv:2305.14314); as stored when absent.
    pub base_format: Option<String>,
    /// The loop's settings.
    #[serde(flatten)]
    pub train: TrainConfig,
}

impl LoraConfig {
    /// Enough for a model of 100 M parameters to learn a task.
    pub const RANK: usize = 16;
    /// Twice the rank, as is usual.
    pub const ALPHA: f64 = 32.0;
    /// Every projection of every block.
    pub const TARGET: &str = "all-linear";
}

/// Fewer bits a weight. Exactly one of `format`, `target_bytes` and `target_bpw` says what to make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizeConfig {
    /// How levels are chosen: `rtn` (round to nearest), `awq` (the same after scaling channels), `gptq` (errors made up for by the
    /// weights not rounded yet, on a calibration set), or `auto`: these and what they make together are tried, measured on a part of the
    /// text that is kept aside, and the best is taken.
    #[serde(default = "defaults::rtn")]
    pub method: String,
    /// Format of the projections: a ggml format, or a scheme such as `w4g128` or `w4g128-asym` (4 bits, a scale for 128 columns).
    #[serde(default)]
    pub format: Option<String>,
    /// Of a scheme, the layout of a Hugging Face folder: `gptq`, `gptq_v2`, `awq` or `compressed-tensors`; a GGUF when absent.
    #[serde(default)]
    pub layout: Option<String>,
    /// The best mixture of formats in at most so many bytes.
    #[serde(default)]
    pub target_bytes: Option<u64>,
    /// The best mixture of formats in at most so many stored bits a weight.
    #[serde(default)]
    pub target_bpw: Option<f64>,
    /// Of `target_bytes`, what is left to later stages: each adds its lines to the file's history.
    #[serde(default)]
    pub reserved_bytes: u64,
    /// Format of the embedding and of an untied head beside `format`; `q8_0` when absent, as llama.cpp has it.
    #[serde(default)]
    pub embedding_format: Option<String>,
    /// Dataset that the model is calibrated on; text that the model itself writes when absent.
    #[serde(default)]
    pub calibration: Option<String>,
    /// Sequences of calibration. When absent 128; 32 for `awq`, which learns few numbers; 512 of a text where formats are chosen under a size or the method is `auto`, which
    /// takes its time anyway; or as many as the text has, and the history says so.
    #[serde(default)]
    pub n_sequences: Option<usize>,
    /// Tokens in each.
    #[serde(default = "defaults::ctx")]
    pub seq_len: usize,
    /// Added to the diagonal of the second moments, as a share of its mean.
    #[serde(default = "defaults::damping")]
    pub damping: f64,
    /// Of `auto`, the time that it may take: ways to round are tried in a third of it, and as much text is calibrated on as the rest
    /// allows. No limit when absent.
    #[serde(default)]
    pub minutes: Option<f64>,
    /// Whether `gptq` and `auto` may bring channels beside their like, where a format has blocks: the same function, rounded
    /// better. The file's history says which order that is: `slmc lora` fits adapters of the model before to the result, other tools
    /// do not.
    #[serde(default = "defaults::yes")]
    pub reorder: bool,
}

impl QuantizeConfig {
    /// Sequences of calibration, if the text has as many.
    pub fn sequences(&self) -> usize {
        let takes_time = self.target_bytes.is_some() || self.target_bpw.is_some() || self.method == "auto";
        // A model writes slower than it reads.
        let many = takes_time && self.calibration.is_some();
        let few = self.method == "awq";
        self.n_sequences.unwrap_or(if many {
            512
        } else if few {
            32
        } else {
            128
        })
    }
}

/// A file for a runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// Name of the file or folder inside the run folder; `.gguf` makes a GGUF, anything else a Hugging Face folder.
    pub to: String,
    /// Float format of what is not packed; as it is when absent.
    #[serde(default)]
    pub dtype: Option<String>,
}

/// The text on which every stage's result is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// The dataset.
    pub data: String,
    /// Tokens in a chunk.
    #[serde(default = "defaults::ctx")]
    pub ctx: usize,
    /// Chunks; all of the text when absent.
    #[serde(default)]
    pub chunks: Option<usize>,
}

/// Why each: they are what works untouched on 100 M parameters and two cores.
mod defaults {
    pub fn f32() -> String {
        "f32".to_owned()
    }
    pub fn half() -> String {
        "f16".to_owned()
    }
    pub fn scale_sequences() -> usize {
        32
    }
    pub fn calibration_sequences() -> usize {
        16
    }
    pub fn damping() -> f64 {
        0.05
    }
    pub fn seq_len() -> usize {
        256
    }
    pub fn ctx() -> usize {
        512
    }
    pub fn yes() -> bool {
        true
    }
    pub fn one() -> usize {
        1
    }
    pub fn one_f64() -> f64 {
        1.0
    }
    pub fn batch_size() -> usize {
        4
    }
    pub fn learning_rate() -> f64 {
        5e-4
    }
    pub fn final_share() -> f64 {
        0.05
    }
    pub fn weight_decay() -> f64 {
        0.01
    }
    pub fn eval_every() -> u64 {
        100
    }
    pub fn eval_batches() -> usize {
        8
    }
    pub fn checkpoint_every() -> u64 {
        100
    }
    pub fn rtn() -> String {
        "rtn".to_owned()
    }
}
