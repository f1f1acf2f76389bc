//! ONNX, without a runtime: the tensors of the graph are the checkpoint's numbers, and the plan says what is not.

mod common;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use common::{bpe, checkpoint, every_spec, spec};
use slmc_blocks::decode_weight;
use slmc_formats::{ElementType, OnnxFile};
use slmc_interop::{Encoded, OnnxOptions, OnnxPlan, OnnxPrecision, write_onnx_file, write_onnx_folder};
use slmc_ir::{Checkpoint, Family, Format, Outline, Role, SilentHost, TensorKey, Weight};

const PRECISIONS: [OnnxPrecision; 4] =
    [OnnxPrecision::F32, OnnxPrecision::F16, OnnxPrecision::Int8, OnnxPrecision::Int4];

fn options(precision: Option<OnnxPrecision>, plain: bool) -> OnnxOptions {
    OnnxOptions { precision, plain, ..OnnxOptions::default() }
}

/// A checkpoint whose matrices are in `format`.
fn packed(format: Format) -> Checkpoint {
    let float = checkpoint(spec(Family::Llama), Some(bpe()));
    let matrices = float.weights.keys().iter().filter(|key| key.role.is_matrix());
    let plan = matrices.map(|&key| (key, format)).collect();
    let weights = Encoded::new(Arc::clone(&float.weights), plan).unwrap();
    float.with_weights(Arc::new(weights))
}

/// Writes a model and reads it back.
fn written(checkpoint: &Checkpoint, options: &OnnxOptions) -> (OnnxFile, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let mut seen = false;
    let mut check = |model: &Path| {
        seen = model.is_file();
        Ok(())
    };
    let written = write_onnx_file(checkpoint, &path, options, &SilentHost, &mut check).unwrap();
    assert!(seen, "the check sees the file");
    let data = std::fs::read(folder.path().join("model.onnx.data")).unwrap();
    let model = std::fs::read(&path).unwrap();
    assert_eq!(written.file_bytes, (model.len() + data.len()) as u64);
    (OnnxFile::parse(model.into(), &data.into()).unwrap(), written.notes)
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// `(level - zero point) * scale`, as onnxruntime's documentation of MatMulNBits says.
fn n_bits(file: &OnnxFile, key: TensorKey) -> Vec<f32> {
    let levels = &file.tensors[&format!("{key} levels")];
    let scales = f32s(&file.tensors[&format!("{key} scales")].bytes);
    let zeros = file.tensors.get(&format!("{key} zero points")).map(|tensor| f32s(&tensor.bytes));
    let bits = levels.dims[2] as usize * 8 / 32;
    let level = |i: usize| match bits {
        8 => levels.bytes[i],
        _ => levels.bytes[i / 2] >> (4 * (i % 2)) & 15,
    };
    let zero =
        |block: usize| zeros.as_ref().map_or(if bits == 8 { 128.0 } else { 8.0 }, |zeros| zeros[block]);
    (0..scales.len() * 32).map(|i| (f32::from(level(i)) - zero(i / 32)) * scales[i / 32]).collect()
}

#[test]
fn packed_levels_and_scales_pass_unchanged() {
    for (format, tolerance) in [(Format::Q4_0, 0.0), (Format::Q8_0, 0.0), (Format::Q4_1, 2e-6)] {
        let checkpoint = packed(format);
        let (file, notes) = written(&checkpoint, &options(None, false));
        assert_eq!(notes.is_empty(), format != Format::Q4_1, "{notes:?}");
        for &key in checkpoint.weights.keys().iter().filter(|key| key.role.is_matrix()) {
            let expected = decode_weight(&checkpoint.weights.read(key).unwrap()).unwrap();
            for (found, expected) in n_bits(&file, key).iter().zip(&expected) {
                assert!((found - expected).abs() <= tolerance, "{key} in {format}: {found} and {expected}");
            }
        }
    }
}

#[test]
fn a_tied_head_shares_the_bytes_of_the_embedding() {
    let (file, _) = written(&packed(Format::Q4_0), &options(None, false));
    let key = TensorKey::model(Role::Embedding);
    let (blocks, rows) =
        (&file.tensors[&format!("{key} levels")], &file.tensors[&format!("{key} levels by rows")]);
    assert_eq!((rows.dims.len(), blocks.dims.len()), (2, 3));
    assert_eq!(blocks.bytes.as_ptr(), rows.bytes.as_ptr(), "one place in the file");
    let nodes = &file.graph().unwrap().node;
    let kinds = |kind: &str| nodes.iter().filter(|node| node.op_type.as_deref() == Some(kind)).count();
    assert_eq!((kinds("GatherBlockQuantized"), kinds("MatMulNBits")), (1, 2 * 7 + 1));
}

#[test]
fn plain_graphs_have_standard_operators_only() {
    for spec in every_spec() {
        for precision in PRECISIONS {
            let (file, _) = written(&checkpoint(spec.clone(), None), &options(Some(precision), true));
            assert_eq!(file.model.opset_import.len(), 1);
            assert!(file.graph().unwrap().node.iter().all(|node| node.domain.is_none()), "{precision:?}");
        }
    }
}

/// Every value is made once, before it is used, under a name of its own.
#[test]
fn graphs_hold_together() {
    for spec in every_spec() {
        for (precision, plain) in PRECISIONS.into_iter().flat_map(|p| [(p, false), (p, true)]) {
            let (file, _) = written(&checkpoint(spec.clone(), None), &options(Some(precision), plain));
            let graph = file.graph().unwrap();
            let inputs = graph.input.iter().map(|input| input.name.clone().unwrap());
            let mut made: BTreeMap<String, usize> = inputs.map(|name| (name, 0)).collect();
            made.extend(file.tensors.keys().map(|name| (name.clone(), 0)));
            for node in &graph.node {
                for input in node.input.iter().filter(|name| !name.is_empty()) {
                    *made.get_mut(input).unwrap_or_else(|| panic!("`{input}` is used before it is made")) +=
                        1;
                }
                for output in node.output.iter().filter(|name| !name.is_empty()) {
                    assert!(made.insert(output.clone(), 0).is_none(), "`{output}` is made twice");
                }
            }
            for output in &graph.output {
                assert!(made.contains_key(output.name.as_ref().unwrap()), "{output:?}");
            }
            let unused = file.tensors.keys().filter(|name| made[*name] == 0).collect::<Vec<_>>();
            assert!(unused.is_empty(), "{unused:?} are written and not used");
        }
    }
}

fn outline(matrices: Format) -> Outline {
    Outline::of(spec(Family::Llama), matrices, true)
}

#[test]
fn the_plan_says_what_is_other_than_stored() {
    let plan =
        |stored, precision, plain| OnnxPlan::new(&outline(stored), &options(precision, plain)).unwrap();
    let query = TensorKey::block(0, Role::Query);
    let embedding = TensorKey::model(Role::Embedding);
    let found = plan(Format::F16, Some(OnnxPrecision::Int4), false);
    assert_eq!((found.formats[&query], found.formats[&embedding]), (Format::Q4_0, Format::Q8_0));
    assert!(found.notes.iter().any(|note| note.contains("rounded to nearest")), "{:?}", found.notes);
    let found = plan(Format::Iq4Nl, Some(OnnxPrecision::Int4), false);
    assert!(found.notes[0].contains("rounded again"), "{:?}", found.notes);
    let found = plan(Format::Q4_1, None, true);
    assert!(found.notes[0].contains("without their minima"), "{:?}", found.notes);
    assert!(plan(Format::Q4_0, Some(OnnxPrecision::Int4), false).notes.is_empty());
    assert!(plan(Format::Q4_0, Some(OnnxPrecision::F32), false).notes[0].contains("decoded"));
    assert_eq!(plan(Format::F16, None, false).activations, Format::F16);
    assert_eq!(plan(Format::Q4_0, None, false).activations, Format::F32);
}

#[test]
fn what_the_runtime_cannot_take_is_said_before() {
    let objections = OnnxPlan::new(&outline(Format::Iq4Nl), &OnnxOptions::default()).unwrap_err();
    assert!(objections[0].contains("iq4_nl") && objections[0].contains("--precision"), "{objections:?}");
    let mut odd = outline(Format::F32);
    odd.spec.d_head = 6;
    let objections = OnnxPlan::new(&odd, &OnnxOptions::default()).unwrap_err();
    assert!(objections[0].contains("multiples of 8"), "{objections:?}");
    assert!(OnnxPlan::new(&odd, &options(None, true)).is_ok());
}

#[test]
fn rows_that_are_not_whole_blocks_stay_floats() {
    let mut odd = outline(Format::F32);
    odd.spec.d_ff = 72;
    let plan = OnnxPlan::new(&odd, &options(Some(OnnxPrecision::Int4), false)).unwrap();
    assert_eq!(plan.formats[&TensorKey::block(0, Role::Down)], Format::F16);
    assert_eq!(plan.formats[&TensorKey::block(0, Role::Up)], Format::Q4_0);
    assert!(plan.notes.iter().any(|note| note.contains("whole blocks of 32")), "{:?}", plan.notes);
}

#[test]
fn a_refused_model_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = &mut |_: &Path| Err("no".to_owned());
    let model = checkpoint(spec(Family::Llama), Some(bpe()));
    let (out, file) = (folder.path().join("out"), folder.path().join("m.onnx"));
    let default = OnnxOptions::default();
    assert!(write_onnx_folder(&model, &out, &default, &SilentHost, refuse).is_err());
    assert!(write_onnx_file(&model, &file, &default, &SilentHost, refuse).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    write_onnx_folder(&model, &out, &default, &SilentHost, &mut |_| Ok(())).unwrap();
    let config = std::fs::read_to_string(out.join("genai_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["model"]["decoder"]["inputs"]["past_key_names"], "past_key_values.%d.key");
    assert_eq!((&config["model"]["eos_token_id"], &config["model"]["bos_token_id"]), (&1.into(), &0.into()));
    assert!(out.join("tokenizer.json").is_file() && out.join("model.onnx.data").is_file());
}

#[test]
fn numbers_that_f16_cannot_hold_are_refused_by_name() {
    let mut weights = common::weights(&spec(Family::Llama));
    let down = TensorKey::block(1, Role::Down);
    weights.insert(down, Weight::from_f32(vec![32, 64], &[1e6; 32 * 64]).unwrap());
    let source = slmc_ir::MemorySource::new(spec(Family::Llama), weights).unwrap();
    let model = checkpoint(spec(Family::Llama), None).with_weights(Arc::new(source));
    let folder = tempfile::tempdir().unwrap();
    let half = options(Some(OnnxPrecision::F16), false);
    let error = write_onnx_file(&model, &folder.path().join("m.onnx"), &half, &SilentHost, &mut |_| Ok(()));
    let message = error.unwrap_err().to_string();
    assert!(message.contains("block 1 down") && message.contains("1000000"), "{message}");
}

#[test]
fn float_matrices_lie_columns_first() {
    let model = checkpoint(spec(Family::Llama), None);
    let (file, _) = written(&model, &options(Some(OnnxPrecision::F32), false));
    let key = TensorKey::block(0, Role::Up);
    let tensor = &file.tensors[&key.to_string()];
    assert_eq!((tensor.element, &tensor.dims[..]), (ElementType::F32, &[32, 64][..]));
    let (found, expected) = (f32s(&tensor.bytes), decode_weight(&model.weights.read(key).unwrap()).unwrap());
    for (row, column) in [(0, 0), (1, 0), (0, 1), (63, 31)] {
        assert_eq!(found[column * 64 + row], expected[row * 32 + column]);
    }
}
