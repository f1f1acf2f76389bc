//! Options of exports to ONNX.

/// How an ONNX model is written; other outputs take none of these.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OnnxArgs {
    /// ONNX: f32, f16, int8 or int4 (blocks of 32; packed weights pass unchanged where the runtime has their form); as
    /// stored when absent
    #[arg(long, value_name = "P", help_heading = "ONNX")]
    pub precision: Option<String>,
    /// ONNX: standard operators only (opset 21), none of onnxruntime's own
    #[arg(long, help_heading = "ONNX")]
    pub plain: bool,
    /// ONNX: how int4 and int8 products hold activations: 1 f32, 4 int8 (faster), 0 as the runtime likes [default: 4]
    #[arg(long, value_name = "L", help_heading = "ONNX", value_parser = clap::value_parser!(i64).range(0..=4))]
    pub accuracy_level: Option<i64>,
}

impl OnnxArgs {
    /// Whether any of them was given.
    pub fn is_given(&self) -> bool {
        self.precision.is_some() || self.plain || self.accuracy_level.is_some()
    }
}
