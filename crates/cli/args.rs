//! The command line. One grammar for all verbs: `slmc VERB MODEL… [--options] --out PATH`.

mod gate;
mod lora;
mod onnx;
mod quantize;
mod report;
mod sweep;
mod tasks;

use std::path::PathBuf;

use clap::{ArgGroup, Parser, Subcommand};
use slmc_engine::KvType;
use slmc_stages::Exactness;

pub use gate::{GateArgs, MemoryArgs};
pub use lora::{LoraAverageArgs, LoraExportArgs, LoraMergeArgs, LoraTrainArgs, LoraVerb};
pub use onnx::OnnxArgs;
pub use quantize::QuantizeArgs;
pub use report::ReportArgs;
pub use sweep::SweepArgs;
pub use tasks::{CompareArgs, TasksArgs};

const EXIT_CODES: &str = "Exit codes: 0 done; 1 a gate failed; 2 the command or its input is wrong; 3 a run failed \
    (I/O, memory, not finite); 130 interrupted, state saved.";

/// Takes a language model and makes it small, fast and still good: distil, prune, quantize, measure.
///
/// A MODEL is a Hugging Face folder, a GGUF file or the folder of a run. What --out ends in names what is written: a
/// folder (Hugging Face layout), a .gguf file, or (export and convert) a .onnx file.
#[derive(Debug, Parser)]
#[command(name = "slmc", version, after_help = EXIT_CODES, arg_required_else_help = true)]
#[command(subcommand_required = true, max_term_width = 110)]
pub struct Args {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options that every verb takes.
#[derive(Clone, Debug, clap::Args)]
pub struct GlobalArgs {
    /// Where training runs: flex (CPU, built in; the default), tch, cuda[:i], wgpu, as far as compiled in. Given to
    /// eval, it measures by the training code's float model instead of the engine
    #[arg(long, global = true, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Threads; all cores when absent
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// Seed of everything random
    #[arg(long, global = true, value_name = "N")]
    pub seed: Option<u64>,
    /// Refuse work that needs more memory than this: 3GB, 800MiB
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size)]
    pub max_mem: Option<u64>,
    /// Folder that dataset manifests' paths are relative to [env: SLMC_DATA]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// One JSON document on stdout and nothing else there
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no messages but errors and warnings
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// More detail in messages
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a recipe; finished stages are kept
    #[command(after_help = "Example: slmc run recipes/quickstart.toml --set distill.minutes=2")]
    Run(RunArgs),
    /// Prove a recipe's plan without reading a weight; estimate memory, disk and time
    #[command(after_help = "Example: slmc check recipes/quickstart.toml --target llama.cpp")]
    Check(CheckArgs),
    /// Say what a model is
    #[command(after_help = "Example: slmc inspect model.gguf --tensors")]
    Inspect(InspectArgs),
    /// Change container or float type
    #[command(after_help = "Example: slmc convert model/ --out model.gguf --dtype f16")]
    Convert(ConvertArgs),
    /// Write everything that a runtime needs
    #[command(
        after_help = "Example: slmc export model/ --target llama.cpp --out model.gguf\n         slmc export model.gguf --target onnxruntime --precision int4 --out onnx/"
    )]
    Export(ExportArgs),
    /// Train on next tokens
    #[command(
        after_help = "Example: slmc train --student config.json --tokenizer model/ --data books.toml --minutes 20 --out model/"
    )]
    Train(TrainArgs),
    /// Train a student on a teacher's soft targets
    #[command(
        after_help = "Example: slmc distill --teacher model/ --student n_layers=24,d_ff=1152 --data books.toml --minutes 30 --out student/"
    )]
    Distill(DistillArgs),
    /// Train adapters, merge and average them
    #[command(subcommand)]
    Lora(LoraVerb),
    /// Cut a smaller model out of a model
    #[command(
        after_help = "Example: slmc prune model/ --student n_layers=24,d_ff=1152 --calibration books.toml --out small/"
    )]
    Prune(PruneArgs),
    /// Store a model in fewer bits a weight
    #[command(after_help = "Example: slmc quantize model/ --method rtn --format q4_0 --out model.gguf")]
    Quantize(QuantizeArgs),
    /// Measure a model
    #[command(subcommand)]
    Eval(EvalVerb),
    /// Fail when compression cost too much, and say where
    #[command(
        after_help = "Example: slmc gate --config gate.toml --model small.gguf --baseline model/ --junit gate.xml\n\nExit codes: 0 all bounds kept; 1 a bound broken; 2 the gate file, a model or the data is wrong; 3 the measuring failed."
    )]
    Gate(GateArgs),
    /// Run a recipe at many settings; stages in common run once
    #[command(after_help = "Example: slmc sweep recipes/quickstart-sweep.toml --out sweeps/quickstart")]
    Sweep(SweepArgs),
    /// Write runs as one HTML page that needs nothing else
    #[command(
        after_help = "Example: slmc report runs/quickstart --prompt 'Once upon a time' --out report.html"
    )]
    Report(ReportArgs),
    /// Run a model for a moment and print how much memory that took
    #[command(hide = true)]
    MeasureMemory(MemoryArgs),
    /// Go on from a text
    #[command(after_help = "Example: slmc generate model.gguf --prompt 'The moon is' --max-tokens 64")]
    Generate(GenerateArgs),
    /// Talk to a model; /new begins again, /exit ends
    #[command(after_help = "Example: slmc chat model.gguf --temperature 0.2")]
    Chat(ChatArgs),
    /// Measure how fast the engine reads a prompt (pp) and writes (tg)
    #[command(after_help = "Example: slmc bench model.gguf --pp 512 --tg 128 --threads 2 --json")]
    Bench(BenchArgs),
    /// Look at a dataset
    #[command(subcommand)]
    Data(DataVerb),
    /// Print a completion script for a shell
    #[command(after_help = "Example: slmc completions bash > /etc/bash_completion.d/slmc")]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page (roff)
    #[command(after_help = "Example: slmc man | man -l -")]
    Man,
}

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The recipe (TOML)
    pub recipe: PathBuf,
    /// The run's folder; runs/NAME when absent
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Run every stage again
    #[arg(long)]
    pub fresh: bool,
    /// Change a setting: stage.key=value
    #[arg(long, value_name = "STAGE.KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The recipe (TOML)
    pub recipe: PathBuf,
    /// A runtime that has to load the result: llama.cpp, ollama, transformers, vllm, onnxruntime
    #[arg(long, value_name = "RUNTIME")]
    pub target: Option<String>,
    /// Change a setting: stage.key=value
    #[arg(long, value_name = "STAGE.KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// The model
    pub model: String,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
}

#[derive(Debug, clap::Args)]
pub struct ConvertArgs {
    /// The model
    pub model: String,
    /// A folder, a .gguf file or a .onnx file
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Float format of the matrices: f32, f16 or bf16; as stored when absent
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<String>,
    #[command(flatten)]
    pub onnx: OnnxArgs,
}

#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// The model
    pub model: String,
    /// llama.cpp, ollama, transformers, vllm or onnxruntime
    #[arg(long, value_name = "RUNTIME")]
    pub target: String,
    /// A folder or a .gguf file, as the target reads it
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Float format of the matrices; as stored when absent
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<String>,
    #[command(flatten)]
    pub onnx: OnnxArgs,
}

/// How long to train and how; shared by `train` and `distill`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("budget").args(["minutes", "tokens", "steps"]).required(true))]
pub struct LoopArgs {
    /// Training set: text, JSONL, a folder of texts or a dataset manifest
    #[arg(long, value_name = "DATA")]
    pub data: String,
    /// Held-out set for the evaluations during training; what DATA itself holds out when absent
    #[arg(long, value_name = "DATA")]
    pub eval_data: Option<String>,
    /// Train for so many minutes
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,
    /// Train on so many tokens
    #[arg(long, value_name = "N")]
    pub tokens: Option<u64>,
    /// Train for so many optimizer steps
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Go on with unfinished work
    #[arg(long)]
    pub resume: bool,
    /// Throw unfinished work away and start again
    #[arg(long, conflicts_with = "resume")]
    pub fresh: bool,
    /// Any other setting of the stage: batch_size=8, learning_rate=1e-3, seq_len=512, recompute=true
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct TrainArgs {
    /// A model to train on, or a config.json to begin from random weights
    #[arg(long, value_name = "S")]
    pub student: String,
    /// Where a model begun from a config.json takes its tokenizer; trained on the data when absent
    #[arg(long, value_name = "MODEL")]
    pub tokenizer: Option<String>,
    /// A folder or a .gguf file
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    #[command(flatten)]
    pub training: LoopArgs,
}

#[derive(Debug, clap::Args)]
pub struct DistillArgs {
    /// The model that teaches
    #[arg(long, value_name = "T")]
    pub teacher: String,
    /// A model; a shape cut out of the teacher (n_layers=24,d_ff=1152); or a config.json
    #[arg(long, value_name = "S")]
    pub student: String,
    /// A folder or a .gguf file
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Softens the teacher's and the student's distributions
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Weight of the teacher's soft targets against the text itself, 0 to 1
    #[arg(long, value_name = "A")]
    pub alpha: Option<f64>,
    #[command(flatten)]
    pub training: LoopArgs,
}

#[derive(Debug, clap::Args)]
pub struct PruneArgs {
    /// The model
    pub model: String,
    /// What goes: structured (whole blocks by the loss without them, MLP channels by what they add, the rest refitted)
    #[arg(long, default_value = "structured", value_parser = ["structured"], value_name = "M")]
    pub method: String,
    /// The shape that stays: n_layers=24,d_ff=1152
    #[arg(long, value_name = "SHAPE")]
    pub student: String,
    /// Text on which importance is measured: text, JSONL, a folder of texts or a dataset manifest
    #[arg(long, value_name = "D")]
    pub calibration: String,
    /// A folder or a .gguf file
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Any other setting of the stage: n_sequences=32, seq_len=512, compensate=false
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum EvalVerb {
    /// Perplexity of a model on a text
    #[command(after_help = "Example: slmc eval ppl model.gguf --data wiki.test.raw --chunks 24")]
    Ppl(PplArgs),
    /// KL divergence of a model from a baseline
    #[command(after_help = "Example: slmc eval kld small.gguf --baseline model/ --data wiki.test.raw")]
    Kld(KldArgs),
    /// Tasks whose answers are chosen by likelihood
    #[command(
        after_help = "Example: slmc eval tasks model.gguf --task hellaswag --limit 200 --out result.json"
    )]
    Tasks(TasksArgs),
    /// Which differences between two models are more than chance
    #[command(after_help = "Example: slmc eval compare before.json after.json")]
    Compare(CompareArgs),
}

/// How the engine computes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ExactnessArgs {
    /// Keep activations and cache in f32: the weights as they decode, slower
    #[arg(long, conflicts_with = "cache")]
    pub exact: bool,
    /// How keys and values are kept: int8 takes little more than half of f16's memory
    #[arg(long, value_enum, default_value = "f16", value_name = "TYPE")]
    pub cache: CacheType,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum CacheType {
    F16,
    Int8,
}

impl ExactnessArgs {
    pub fn exactness(self) -> Exactness {
        match (self.exact, self.cache) {
            (true, _) => Exactness::Exact,
            (false, CacheType::F16) => Exactness::FAST,
            (false, CacheType::Int8) => Exactness::Fast(KvType::Int8),
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct TextArgs {
    /// Text, JSONL, a folder of texts or a dataset manifest
    #[arg(long, value_name = "F")]
    pub data: String,
    /// Tokens in a chunk
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub ctx: usize,
    /// Chunks; all of the text when absent
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    #[command(flatten)]
    pub how: ExactnessArgs,
}

#[derive(Debug, clap::Args)]
pub struct PplArgs {
    /// The model
    pub model: String,
    #[command(flatten)]
    pub text: TextArgs,
    /// llama: chunks whose second half is scored, as llama-perplexity does; rolling: every token once
    #[arg(long, default_value = "llama", value_parser = ["llama", "rolling"])]
    pub protocol: String,
    /// With rolling: tokens that the window moves on, less than --ctx; half of --ctx when absent
    #[arg(long, value_name = "N")]
    pub stride: Option<usize>,
    /// Perplexity by place in the context too, in so many steps
    #[arg(long, value_name = "N")]
    pub by_position: Option<usize>,
}

#[derive(Debug, clap::Args)]
pub struct KldArgs {
    /// The model
    pub model: String,
    /// The model to compare with
    #[arg(long, value_name = "B")]
    pub baseline: String,
    /// Keep what the baseline predicts in this folder: further models then cost one run, not two. Takes a byte for each token of
    /// the vocabulary and of the text; KL is within 1e-4
    #[arg(long, value_name = "DIR")]
    pub keep_baseline: Option<PathBuf>,
    #[command(flatten)]
    pub text: TextArgs,
}

/// How tokens are chosen; shared by `generate` and `chat`. The seed is --seed, 0 when absent.
#[derive(Debug, clap::Args)]
pub struct SamplingArgs {
    /// Most tokens of an answer
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub max_tokens: usize,
    /// Above 1 softens, below 1 sharpens; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8, value_name = "T")]
    pub temperature: f64,
    /// Only so many of the likeliest tokens; 0 for all
    #[arg(long, default_value_t = 40, value_name = "K")]
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability
    #[arg(long, default_value_t = 0.95, value_name = "P")]
    pub top_p: f64,
    /// Only tokens at least this many times as likely as the likeliest
    #[arg(long, default_value_t = 0.05, value_name = "P")]
    pub min_p: f64,
    /// Makes the last 64 tokens less likely; 1 leaves them
    #[arg(long, default_value_t = 1.0, value_name = "F")]
    pub repeat_penalty: f64,
    /// A string that ends the text; may be given several times
    #[arg(long, value_name = "S")]
    pub stop: Vec<String>,
    /// Tokens of the context; what the model sees at most, or what is needed, when absent
    #[arg(long, value_name = "N")]
    pub ctx: Option<usize>,
    /// A smaller model with the same tokenizer, to write ahead; the distribution stays the model's own
    #[arg(long, value_name = "SMALL")]
    pub draft: Option<String>,
    /// Tokens that it writes ahead
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub draft_tokens: usize,
    #[command(flatten)]
    pub how: ExactnessArgs,
}

#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// The model
    pub model: String,
    /// The text to go on from
    #[arg(long, value_name = "P")]
    pub prompt: String,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

#[derive(Debug, clap::Args)]
pub struct ChatArgs {
    /// The model
    pub model: String,
    /// What the model is told before the first message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// The model
    pub model: String,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub pp: usize,
    /// Tokens written
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub tg: usize,
    /// Runs, after one to warm up; medians are reported
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub runs: usize,
    #[command(flatten)]
    pub how: ExactnessArgs,
}

#[derive(Debug, Subcommand)]
pub enum DataVerb {
    /// Documents, bytes and (with a model) tokens of a dataset
    #[command(after_help = "Example: slmc data inspect datasets/books.toml --model model/")]
    Inspect {
        /// The dataset
        data: String,
        /// Count tokens with this model's tokenizer
        #[arg(long, value_name = "MODEL")]
        model: Option<String>,
    },
    /// Let a small model write documents of its own, for calibration and training without anybody's data
    #[command(after_help = "Example: slmc data sample model/ --tokens 100000 --out sampled.jsonl")]
    Sample(SampleArgs),
}

#[derive(Debug, clap::Args)]
pub struct SampleArgs {
    /// The model that writes
    pub model: String,
    /// Tokens in all, rounded up to whole documents
    #[arg(long, value_name = "N")]
    pub tokens: usize,
    /// Tokens of the longest document
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub document_len: usize,
    /// Above 1 softens, below 1 sharpens the model's distribution
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    pub temperature: f64,
    /// A .jsonl file
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
}

/// A size in bytes: `3GB` is 3·10^9, `3GiB` is 3·2^30.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no size: write 3GB or 800MiB"))?;
    let factor = match unit.trim() {
        "" | "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1048576.0,
        "GiB" => 1073741824.0,
        other => return Err(format!("`{other}` is no unit: use MB, GB, MiB or GiB")),
    };
    Ok((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_holds_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("3GB"), Ok(3_000_000_000));
        assert_eq!(parse_size("1.5 GiB"), Ok(1_610_612_736));
        assert_eq!(parse_size("17"), Ok(17));
        assert!(parse_size("three").is_err() && parse_size("3 pounds").is_err());
    }
}
