//! Arguments of `slmc lora`.

use std::path::PathBuf;

use clap::{ArgGroup, Subcommand};

#[derive(Debug, Subcommand)]
pub enum LoraVerb {
    /// Train an adapter beside a frozen model
    #[command(
        after_help = "Example: slmc lora train --base model/ --data chats.jsonl --minutes 10 --out adapter/\n\n\
            A line of DATA is {\"messages\": [{\"role\", \"content\"}…]}, {\"prompt\", \"completion\"}, {\"question\", \"answer\"}, \
            {\"instruction\", \"input\"?, \"output\" or \"response\"} or {\"text\"}. All but text are written out by the model's \
            own chat template, and of them the answers alone are learnt from."
    )]
    Train(LoraTrainArgs),
    /// Make an adapter part of its model
    #[command(after_help = "Example: slmc lora merge --base model/ --adapter adapter/ --out merged/")]
    Merge(LoraMergeArgs),
    /// Average adapters: the mean of what they change, exactly (ranks add up)
    #[command(after_help = "Example: slmc lora average a/ b/ --out mean/")]
    Average(LoraAverageArgs),
    /// Write an adapter as a GGUF that llama.cpp loads beside its model (--lora)
    #[command(after_help = "Example: slmc lora export --base model/ --adapter adapter/ --out adapter.gguf")]
    Export(LoraExportArgs),
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("budget").args(["minutes", "tokens", "steps"]))]
pub struct LoraTrainArgs {
    /// The model that stays as it is: a folder or a GGUF, packed ones too
    #[arg(long, value_name = "M")]
    pub base: String,
    /// Training set: JSONL (chats, prompts with completions, questions with answers, instructions), text, a folder of
    /// these or a dataset manifest
    #[arg(long, value_name = "D")]
    pub data: String,
    /// Held-out set; what DATA itself holds out when absent
    #[arg(long, value_name = "D")]
    pub eval_data: Option<String>,
    /// A folder (PEFT's layout) or a .gguf file (for llama.cpp)
    #[arg(long, value_name = "PATH", required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// Train for so many minutes
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,
    /// Train on so many tokens
    #[arg(long, value_name = "N")]
    pub tokens: Option<u64>,
    /// Train for so many optimizer steps
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Rows of each factor A [default: 16]
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// The factors' product is multiplied by alpha / rank [default: twice the rank]
    #[arg(long, value_name = "A")]
    pub alpha: Option<f64>,
    /// Projections that get factors: all-linear, or some of q,k,v,o,gate,up,down [default: all-linear]
    #[arg(long, value_name = "T")]
    pub target: Option<String>,
    /// Round the frozen projections to this format in memory: q4_0, iq4_nl, nf4 (q4_1, q5_0, q5_1, q8_0 …)
    #[arg(long, value_name = "F")]
    pub base_format: Option<String>,
    /// Show documents as they would be learnt from, what counts between ⟦ and ⟧, and train nothing
    #[arg(long)]
    pub dry_run: bool,
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
pub struct LoraMergeArgs {
    /// The model that the adapter was trained beside
    #[arg(long, value_name = "M")]
    pub base: String,
    /// The adapter's folder
    #[arg(long, value_name = "A")]
    pub adapter: PathBuf,
    /// Held-out set to measure on: an adapter of a rounded base is merged both ways, the better is kept
    #[arg(long, value_name = "D")]
    pub data: Option<String>,
    /// Format that the base was rounded to; what the adapter says when absent
    #[arg(long, value_name = "F")]
    pub base_format: Option<String>,
    /// Tokens of a row of held-out documents
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub seq_len: usize,
    /// Batches of four rows to measure on
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub batches: usize,
    /// Float type of the matrices: f32, f16 or bf16; f16 when absent
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<String>,
    /// A folder or a .gguf file
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct LoraAverageArgs {
    /// Adapters with factors beside the same matrices; their ranks may differ
    #[arg(required = true, num_args = 2.., value_name = "ADAPTER")]
    pub adapters: Vec<PathBuf>,
    /// A folder
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct LoraExportArgs {
    /// The model that the adapter was trained beside
    #[arg(long, value_name = "M")]
    pub base: String,
    /// The adapter's folder
    #[arg(long, value_name = "A")]
    pub adapter: PathBuf,
    /// A .gguf file
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
}
