//! Arguments of `slmc report`.

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// Folders of runs
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The page (HTML)
    #[arg(long, value_name = "FILE.html")]
    pub out: PathBuf,
    /// Write each chart into this folder too, as an SVG file of its own
    #[arg(long, value_name = "DIR")]
    pub pictures: Option<PathBuf>,
    /// Let each stage's model go on from this text, and show what differs and how the last one's activations lie; may be given
    /// several times
    #[arg(long, value_name = "P")]
    pub prompt: Vec<String>,
    /// Measure how fast each stage's model reads and writes here
    #[arg(long)]
    pub speed: bool,
    /// Tokens that each model writes
    #[arg(long, default_value_t = 48, value_name = "N")]
    pub max_tokens: usize,
}
