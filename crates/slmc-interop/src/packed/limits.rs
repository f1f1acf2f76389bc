//! What a runtime cannot load, told from shapes alone.
//!
//! From the sources of vLLM (`model_executor/layers/quantization`) and of the libraries that transformers loads
//! packed files with (GPTQModel, AutoAWQ, compressed-tensors). A matrix in vLLM is what it fuses: query, key and value
//! are one, and gate and up.

use slmc_formats::{Dtype, FloatType};
use slmc_ir::{ModelSpec, Role, TensorKey};

use super::{PackedLayout, PackedScheme};

/// What loads a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// vLLM on an NVIDIA GPU, with its Marlin kernels.
    Vllm,
    /// transformers, with the library of the layout.
    Transformers,
}

/// Inputs that Marlin works on at a time.
const MARLIN_COLUMNS: usize = 128;
/// Outputs that Marlin works on at a time.
const MARLIN_ROWS: usize = 64;
/// Group sizes that Marlin knows, beside a whole row.
const MARLIN_GROUPS: [usize; 4] = [32, 64, 128, 256];

/// The projections of a block by what vLLM fuses.
const FUSED: [&[Role]; 4] =
    [&[Role::Query, Role::Key, Role::Value], &[Role::AttnOutput], &[Role::Gate, Role::Up], &[Role::Down]];

/// Everything that keeps `runtime` from loading a model packed by `scheme`, in words; `packed` says which matrices
/// are. Empty when nothing is known to. Roles of a kind have one shape in all blocks, so each is named once.
pub fn runtime_limits(
    runtime: Runtime,
    spec: &ModelSpec,
    scheme: &PackedScheme,
    packed: impl Fn(TensorKey) -> bool,
) -> Vec<String> {
    let mut limits = Vec::new();
    for roles in FUSED {
        let all = |index: usize| roles.iter().filter(|&&role| packed(TensorKey::block(index, role))).count();
        let counts: Vec<usize> = (0..spec.n_layers).map(all).collect();
        let mixed = counts.iter().position(|&n| n != 0 && n != roles.len());
        if let Some(index) = mixed.filter(|_| runtime == Runtime::Vllm) {
            let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
            let names = names.join(", ");
            limits.push(format!("block {index}: of {names} some are packed and some not; vLLM fuses them"));
        }
        if counts.iter().all(|&n| n == 0) {
            continue;
        }
        for &role in roles {
            let shape = TensorKey::block(0, role).shape(spec);
            let half = Dtype::Float(FloatType::F16);
            if let Err(error) = scheme.tensors((shape[0], shape[1]), half) {
                limits.push(format!("{}: {error}", role.name()));
            }
        }
        if runtime == Runtime::Vllm {
            let shapes: Vec<Vec<usize>> =
                roles.iter().map(|&role| TensorKey::block(0, role).shape(spec)).collect();
            let size = (shapes.iter().map(|shape| shape[0]).sum(), shapes[0][1]);
            limits.extend(marlin(roles, scheme, size));
        }
    }
    if runtime == Runtime::Vllm {
        limits.extend(marlin_scheme(scheme));
    }
    limits
}

/// What Marlin cannot do with one matrix.
fn marlin(roles: &[Role], scheme: &PackedScheme, (rows, columns): (usize, usize)) -> Vec<String> {
    let name = roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ");
    let group = scheme.group_size_of(columns);
    let checks = [
        ("columns", columns, MARLIN_COLUMNS, "Marlin's tile"),
        ("rows", rows, MARLIN_ROWS, "Marlin's tile"),
        ("columns", columns, group, "the group size"),
    ];
    let failed = checks.into_iter().filter(|(_, found, factor, _)| !found.is_multiple_of(*factor));
    failed
        .map(|(what, found, factor, whose)| {
            format!("{name}: {found} {what} are not a multiple of {factor}, {whose}")
        })
        .collect()
}

/// What Marlin cannot do with any matrix of the scheme.
fn marlin_scheme(scheme: &PackedScheme) -> Vec<String> {
    let mut limits = Vec::new();
    let is_gptq = matches!(scheme.layout, PackedLayout::Gptq | PackedLayout::GptqV2);
    if is_gptq && !scheme.symmetric {
        limits.push(
            "Marlin takes gptq only with symmetric levels; quantize symmetrically, or use awq".to_owned(),
        );
    }
    if !matches!(scheme.bits, 4 | 8) {
        limits.push(format!("Marlin takes 4 and 8 bits, not {}", scheme.bits));
    }
    if let Some(size) = scheme.group_size.filter(|size| !MARLIN_GROUPS.contains(size)) {
        limits.push(format!("Marlin knows groups of 32, 64, 128 and 256 columns, not of {size}"));
    }
    limits
}

/// Whether a fused group of a block has one order of columns, as the file has one `g_idx` for all.
pub(crate) fn fused_roles(role: Role) -> &'static [Role] {
    FUSED.into_iter().find(|roles| roles.contains(&role)).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use slmc_ir::{Activation, Biases, Family, RopeScaling};

    use super::*;

    fn smollm2() -> ModelSpec {
        ModelSpec {
            family: Family::Llama,
            vocab_size: 49152,
            context_len: 2048,
            d_model: 576,
            n_layers: 30,
            n_heads: 9,
            n_kv_heads: 3,
            d_head: 64,
            d_ff: 1536,
            norm_eps: 1e-5,
            rope_theta: 1e5,
            rope_scaling: RopeScaling::None,
            activation: Activation::Silu,
            biases: Biases::default(),
            qk_norm: false,
            tied_head: true,
        }
    }

    fn scheme(layout: PackedLayout) -> PackedScheme {
        PackedScheme { layout, bits: 4, group_size: Some(64), symmetric: true, column_order: false }
    }

    #[test]
    fn shapes_that_marlin_cannot_take_are_named() {
        let limits = runtime_limits(Runtime::Vllm, &smollm2(), &scheme(PackedLayout::Gptq), |_| true);
        // 576 = 4.5 * 128; only the down projection has 1536 columns.
        assert_eq!(limits.len(), 3, "{limits:?}");
        assert_eq!(limits[0], "query, key, value: 576 columns are not a multiple of 128, Marlin's tile");
        let wide = ModelSpec { d_model: 512, d_head: 128, n_heads: 4, n_kv_heads: 2, ..smollm2() };
        assert!(runtime_limits(Runtime::Vllm, &wide, &scheme(PackedLayout::Gptq), |_| true).is_empty());
        let asymmetric = PackedScheme { symmetric: false, ..scheme(PackedLayout::Gptq) };
        let limits = runtime_limits(Runtime::Vllm, &wide, &asymmetric, |_| true);
        assert!(limits.len() == 1 && limits[0].contains("symmetric"), "{limits:?}");
        let asymmetric = PackedScheme { layout: PackedLayout::Awq, ..asymmetric };
        assert!(runtime_limits(Runtime::Vllm, &wide, &asymmetric, |_| true).is_empty());
    }

    #[test]
    fn transformers_takes_what_the_layout_takes() {
        let gptq = scheme(PackedLayout::Gptq);
        assert!(runtime_limits(Runtime::Transformers, &smollm2(), &gptq, |_| true).is_empty());
        let coarse = PackedScheme { group_size: Some(128), ..scheme(PackedLayout::Awq) };
        let limits = runtime_limits(Runtime::Transformers, &smollm2(), &coarse, |_| true);
        assert!(limits.iter().any(|l| l.starts_with("query: ") && l.contains("576")), "{limits:?}");
        assert!(!limits.iter().any(|l| l.starts_with("down")), "{limits:?}");
    }

    #[test]
    fn half_of_a_fused_group_is_found() {
        let packed = |key: TensorKey| key != TensorKey::block(7, Role::Up);
        let gptq = scheme(PackedLayout::Gptq);
        let limits = runtime_limits(Runtime::Vllm, &smollm2(), &gptq, packed);
        let found: Vec<_> = limits.iter().filter(|limit| limit.starts_with("block 7: of gate, up")).collect();
        assert_eq!(found.len(), 1, "{limits:?}");
        assert!(runtime_limits(Runtime::Transformers, &smollm2(), &gptq, packed).is_empty());
        assert!(runtime_limits(Runtime::Vllm, &smollm2(), &gptq, |_| false).is_empty());
    }
}
