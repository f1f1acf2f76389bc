//! What is written is read back, and read back by the reference implementation too.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use slmc_formats::{
    GgufHeader, GgufWriter, PlannedSafeTensor, PlannedTensor, SafetensorsHeader, SafetensorsWriter,
    gguf::{Array, Value},
    map_file,
};
use slmc_ir::Format;

fn array() -> impl Strategy<Value = Array> {
    let leaf = prop_oneof![
        vec(any::<u8>(), 0..5).prop_map(Array::U8),
        vec(any::<i8>(), 0..5).prop_map(Array::I8),
        vec(any::<u16>(), 0..5).prop_map(Array::U16),
        vec(any::<i16>(), 0..5).prop_map(Array::I16),
        vec(any::<u32>(), 0..5).prop_map(Array::U32),
        vec(any::<i32>(), 0..5).prop_map(Array::I32),
        vec(any::<f32>(), 0..5).prop_map(Array::F32),
        vec(any::<bool>(), 0..5).prop_map(Array::Bool),
        vec(any::<String>(), 0..5).prop_map(Array::String),
        vec(any::<u64>(), 0..5).prop_map(Array::U64),
        vec(any::<i64>(), 0..5).prop_map(Array::I64),
        vec(any::<f64>(), 0..5).prop_map(Array::F64),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| vec(inner, 0..3).prop_map(Array::Array))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
        array().prop_map(Value::Array),
    ]
}

/// Metadata with differing keys and an alignment of 2^0 to 2^7 among them.
fn metadata() -> impl Strategy<Value = Vec<(String, Value)>> {
    let entries = proptest::collection::btree_map("[a-z.]{1,12}", value(), 0..6);
    (entries, 0_u32..8).prop_map(|(entries, log)| {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.push(("general.alignment".into(), Value::U32(1 << log)));
        entries
    })
}

/// Differing names, a format, up to 4 small dimensions.
fn tensors() -> impl Strategy<Value = Vec<PlannedTensor>> {
    let tensor =
        (proptest::sample::select(Format::stored().collect::<Vec<_>>()), 1_u64..4, vec(1_u64..4, 0..4));
    proptest::collection::btree_map("[a-z._]{1,63}", tensor, 0..6).prop_map(|tensors| {
        let plan = |(name, (format, n_blocks, more)): (String, (Format, u64, Vec<u64>))| {
            let mut dims = vec![n_blocks * format.block_weights() as u64];
            dims.extend(more);
            PlannedTensor { name, dims, format }
        };
        tensors.into_iter().map(plan).collect()
    })
}

/// Bytes that differ from tensor to tensor.
fn content(seed: usize, n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + seed * 31 + 1) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gguf(metadata in metadata(), planned in tensors()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let mut writer = GgufWriter::create(&path, &metadata, &planned).unwrap();
        let expected = writer.header().clone();
        for (i, tensor) in expected.tensors.iter().enumerate() {
            writer.tensor(&content(i, tensor.n_bytes as usize)).unwrap();
        }
        prop_assert!(!path.exists());
        let n_bytes = writer.finish().unwrap();
        let file = map_file(&path).unwrap();
        prop_assert_eq!(file.len() as u64, n_bytes);
        let header = GgufHeader::parse(&file).unwrap();
        prop_assert_eq!(&header, &expected);
        prop_assert_eq!(&header.metadata, &metadata);
        prop_assert_eq!(header.tensors.len(), planned.len());
        for (i, (tensor, plan)) in header.tensors.iter().zip(&planned).enumerate() {
            prop_assert_eq!((&tensor.name, &tensor.dims, tensor.format), (&plan.name, &plan.dims, plan.format));
            let range = header.tensor_range(tensor);
            prop_assert!((range.start as u64).is_multiple_of(header.alignment));
            prop_assert_eq!(&file[range], content(i, tensor.n_bytes as usize));
        }
    }

    #[test]
    fn safetensors(
        metadata in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..4),
        tensors in proptest::collection::btree_map(
            // Any name but the empty one, which no tensor may have.
            any::<String>().prop_filter("named", |name| !name.is_empty() && name.len() <= 1024),
            (proptest::sample::select(&Format::ALL[..3]), vec(0_usize..4, 0..4)),
            0..6,
        ),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let planned: Vec<_> = tensors
            .into_iter()
            .map(|(name, (format, shape))| PlannedSafeTensor { name, format, shape })
            .collect();
        let bytes_of = |t: &PlannedSafeTensor| t.shape.iter().product::<usize>() * t.format.block_bytes();
        let mut writer = SafetensorsWriter::create(&path, &metadata, &planned).unwrap();
        for (i, tensor) in planned.iter().enumerate() {
            writer.tensor(&content(i, bytes_of(tensor))).unwrap();
        }
        let n_bytes = writer.finish().unwrap();
        let file = map_file(&path).unwrap();
        prop_assert_eq!(file.len() as u64, n_bytes);
        let header = SafetensorsHeader::parse(&file).unwrap();
        let reference = ::safetensors::SafeTensors::deserialize(&file).unwrap();
        prop_assert_eq!(&header.metadata, &metadata);
        prop_assert_eq!(reference.len(), planned.len());
        for (i, plan) in planned.iter().enumerate() {
            let found = header.tensor(&plan.name).unwrap();
            prop_assert_eq!((&found.shape, found.format), (&plan.shape, plan.format));
            prop_assert_eq!(&file[found.range.clone()], content(i, bytes_of(plan)));
            let view = reference.tensor(&plan.name).unwrap();
            prop_assert_eq!(view.shape(), &plan.shape[..]);
            prop_assert_eq!(view.data(), content(i, bytes_of(plan)));
        }
    }
}

#[test]
fn files_of_the_reference_are_read() {
    use ::safetensors::{Dtype, serialize, tensor::TensorView};
    let (a, b) = (content(1, 24), content(2, 6));
    let views = [
        ("a", TensorView::new(Dtype::F32, vec![2, 3], &a).unwrap()),
        ("b", TensorView::new(Dtype::BF16, vec![3], &b).unwrap()),
    ];
    let metadata = [("format".to_owned(), "pt".to_owned())];
    let file = serialize(views, Some(metadata.clone().into())).unwrap();
    let header = SafetensorsHeader::parse(&file).unwrap();
    assert_eq!(header.metadata, BTreeMap::from(metadata));
    assert_eq!(&file[header.tensor("a").unwrap().range.clone()], a);
    assert_eq!(&file[header.tensor("b").unwrap().range.clone()], b);
    assert_eq!(header.tensor("b").unwrap().format, Format::Bf16);
}
