//! Arguments of `slmc gate`.

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct GateArgs {
    /// The gate file (TOML): what the model may cost
    #[arg(long, value_name = "G.toml")]
    pub config: PathBuf,
    /// The compressed model; what the gate file names when absent
    #[arg(long, value_name = "M")]
    pub model: Option<String>,
    /// What it was made from; what the gate file names when absent
    #[arg(long, value_name = "B")]
    pub baseline: Option<String>,
    /// Write the checks as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write broken bounds and the tensors to blame as SARIF 2.1.0
    #[arg(long, value_name = "FILE")]
    pub sarif: Option<PathBuf>,
    /// Write a summary in Markdown; appended to, as $GITHUB_STEP_SUMMARY wants it
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Pin what is compared now (G.lock.json beside the gate file) instead of asking that it is what was pinned
    #[arg(long)]
    pub update_lock: bool,
    /// Folder for the baseline's predictions; .slmc-cache beside the gate file when absent. May be deleted at any time
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// Of the hidden verb that `gate` runs to measure memory in a process of its own.
#[derive(Debug, clap::Args)]
pub struct MemoryArgs {
    /// The model
    pub model: String,
}
