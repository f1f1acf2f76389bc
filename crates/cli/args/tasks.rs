//! Arguments of `slmc eval tasks` and `slmc eval compare`.

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct TasksArgs {
    /// The model
    pub model: String,
    /// A task: hellaswag, piqa, arc-easy, lambada, gsm8k, or a task's .toml file; may be given several times
    #[arg(long = "task", required = true, num_args = 1.., value_name = "T")]
    pub tasks: Vec<String>,
    /// Items of each task, from its start; all when absent
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Keep activations and cache in f32: the weights as they decode, slower
    #[arg(long)]
    pub exact: bool,
    /// Keep the results item by item, for `slmc eval compare`
    #[arg(long, value_name = "FILE.json")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct CompareArgs {
    /// Results of `slmc eval tasks --out`, or a model
    pub first: String,
    /// The same of the other
    pub second: String,
    /// With models: a task to compare them on; may be given several times
    #[arg(long = "task", num_args = 1.., value_name = "T")]
    pub tasks: Vec<String>,
    /// With models: items of each task
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// With models: a text to compare them on, token by token
    #[arg(long, value_name = "F")]
    pub data: Option<String>,
    /// Tokens in a chunk of the text
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub ctx: usize,
    /// Chunks of the text; all when absent
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// With models: keep activations and cache in f32
    #[arg(long)]
    pub exact: bool,
    /// Share of intervals that hold the true value
    #[arg(long, default_value_t = 0.95, value_name = "C")]
    pub confidence: f64,
}
