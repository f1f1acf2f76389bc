//! Arguments of `slmc sweep`.

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct SweepArgs {
    /// The sweep (TOML): a recipe, and of some of its settings the values to try
    pub sweep: PathBuf,
    /// The sweep's folder; sweeps/NAME when absent
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Change a setting of the recipe at every point: stage.key=value
    #[arg(long, value_name = "STAGE.KEY=VALUE")]
    pub set: Vec<String>,
}
