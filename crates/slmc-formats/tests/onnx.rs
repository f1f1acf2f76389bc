//! ONNX: what is written reads back, and damaged files are refused by name.

use bytes::Bytes;
use proptest::prelude::*;
use slmc_formats::{
    ElementType, OnnxError, OnnxFile, OnnxWriter,
    onnx::{
        GraphParts,
        proto::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto},
    },
};

/// A model with a tensor in the graph, one outside and one over the same bytes; and its data.
fn written() -> (Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (folder.path().join("m.onnx"), folder.path().join("m.onnx.data"));
    let mut writer = OnnxWriter::create(&data).unwrap();
    writer.tensor("one", ElementType::I64, &[2], &[7; 16]).unwrap();
    let large: Vec<u8> = (0..5000).map(|i| (i % 251) as u8).collect();
    writer.tensor("small", ElementType::U8, &[1100], &large[..1100]).unwrap();
    writer.tensor("large", ElementType::U8, &[50, 100], &large).unwrap();
    writer.shared("flat", ElementType::U8, &[5000], "large").unwrap();
    assert!(writer.shared("no", ElementType::U8, &[15], "one").is_err(), "it has 16 bytes");
    assert!(writer.shared("no", ElementType::U8, &[16], "none").is_err(), "there is no such tensor");
    assert!(writer.tensor("one", ElementType::U8, &[1], &[0]).is_err(), "the name is taken");
    assert!(writer.tensor("short", ElementType::F32, &[2], &[0; 7]).is_err(), "a byte is missing");
    let node = NodeProto { op_type: Some("Identity".to_owned()), ..NodeProto::default() };
    let parts = GraphParts { nodes: vec![node], name: "g".to_owned(), ..GraphParts::default() };
    let n_bytes = writer.finish(&model, parts).unwrap();
    let (model, data) = (std::fs::read(model).unwrap(), std::fs::read(data).unwrap());
    assert_eq!(n_bytes, (model.len() + data.len()) as u64);
    (model, data)
}

#[test]
fn what_is_written_reads_back() {
    let (model, data) = written();
    let file = OnnxFile::parse(model.into(), &data.into()).unwrap();
    assert_eq!(file.graph().unwrap().node.len(), 1);
    assert_eq!(file.tensors["one"].bytes, Bytes::from_static(&[7; 16]));
    assert_eq!(file.tensors["large"].dims, [50, 100]);
    assert_eq!(file.tensors["large"].bytes, file.tensors["flat"].bytes);
    assert_eq!(file.tensors["small"].bytes[..], file.tensors["large"].bytes[..1100]);
}

/// Encodes a model around one tensor and says why it is refused.
#[track_caller]
fn check_refused(tensor: TensorProto, expected: &str) {
    let graph = GraphProto { initializer: vec![tensor], ..GraphProto::default() };
    let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
    let bytes = prost::Message::encode_to_vec(&model);
    let message = OnnxFile::parse(bytes.into(), &Bytes::from_static(&[0; 64])).unwrap_err().to_string();
    assert!(message.contains(expected) && message.contains("`t`"), "{message}\nshould say: {expected}");
}

#[test]
fn tensors_that_are_not_there_are_refused_by_name() {
    let tensor = |dims: &[i64]| TensorProto {
        name: Some("t".to_owned()),
        dims: dims.to_vec(),
        data_type: Some(1),
        ..TensorProto::default()
    };
    let external = |entries: &[(&str, &str)]| TensorProto {
        data_location: Some(1),
        external_data: entries
            .iter()
            .map(|(k, v)| StringStringEntryProto { key: Some((*k).to_owned()), value: Some((*v).to_owned()) })
            .collect(),
        ..tensor(&[4])
    };
    check_refused(tensor(&[4]), "0 bytes of data where its shape and type call for 16");
    check_refused(tensor(&[i64::MAX, i64::MAX]), "more bytes than a file can hold");
    check_refused(tensor(&[-1]), "negative");
    check_refused(tensor(&[1; 9]), "9 dimensions");
    check_refused(TensorProto { data_type: Some(8), ..tensor(&[1]) }, "data type 8");
    check_refused(external(&[("location", "../secrets")]), "not a plain file name");
    check_refused(external(&[("offset", "56")]), "cut off");
    check_refused(external(&[("offset", "18446744073709551615")]), "cut off");
    check_refused(external(&[("length", "8")]), "8 bytes of data");
    check_refused(external(&[("offset", "many")]), "no number");
}

/// A tag and a length: the field `number` of a message holds `inside`.
fn nested(number: u8, inside: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = inside.len();
    while length > 127 {
        bytes.push(length as u8 & 127 | 128);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(inside);
    bytes
}

#[test]
fn a_file_of_empty_messages_is_refused_before_it_is_decoded() {
    // Two bytes each here, a node of some 150 bytes each when decoded.
    let nodes: Vec<u8> = [1 << 3 | 2, 0].repeat(1 << 20);
    let model = nested(7, &nodes);
    let error = OnnxFile::parse(model.into(), &Bytes::new()).unwrap_err();
    assert!(matches!(error, OnnxError::TooManyFields { .. }), "{error}");
    // Dimensions of one tensor, packed: a byte each here, eight decoded.
    let dims = nested(1, &vec![1; 2 << 20]);
    let model = nested(7, &nested(5, &dims));
    let error = OnnxFile::parse(model.into(), &Bytes::new()).unwrap_err();
    assert!(matches!(error, OnnxError::TooManyFields { .. }), "{error}");
}

#[test]
fn a_model_that_is_cut_off_is_refused() {
    let (model, data) = written();
    let data = Bytes::from(data);
    let whole = OnnxFile::parse(model.clone().into(), &data).unwrap();
    for end in 0..model.len() {
        if let Ok(part) = OnnxFile::parse(model[..end].to_vec().into(), &data) {
            assert!(part.model != whole.model, "nothing is missing at {end}");
        }
    }
    assert!(matches!(OnnxFile::parse(Bytes::new(), &data), Err(OnnxError::NoGraph)));
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(mut at in prop::collection::vec((0..600_usize, any::<u8>()), 1..8)) {
        let (mut model, data) = written();
        at.retain(|(place, _)| *place < model.len());
        for (place, byte) in at {
            model[place] = byte;
        }
        let _ = OnnxFile::parse(model.into(), &data.into());
    }
}
