//! Puts nodes and small constants together.

use std::collections::BTreeSet;

use slmc_formats::onnx::{
    CONTRIB_DOMAIN, ElementType, OnnxWriter,
    proto::{
        AttributeProto, DimensionProto, NodeProto, TensorShapeProto, TensorTypeProto, TypeProto,
        ValueInfoProto,
    },
};
use slmc_ir::Format;

use crate::error::WriteError;

/// An attribute's value.
#[derive(Clone, Debug)]
pub(super) enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
    Text(String),
}

/// A dimension of an input or output.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dim {
    Fixed(usize),
    Named(&'static str),
}

/// A graph being built. A value is named after what it is: `block 3 query`.
pub(super) struct Graph {
    pub writer: OnnxWriter,
    pub nodes: Vec<NodeProto>,
    pub inputs: Vec<ValueInfoProto>,
    pub outputs: Vec<ValueInfoProto>,
    pub has_contrib: bool,
    constants: BTreeSet<String>,
}

type Attributes<'a> = &'a [(&'a str, Attribute)];

impl Graph {
    pub fn new(writer: OnnxWriter) -> Self {
        Self {
            writer,
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            has_contrib: false,
            constants: BTreeSet::new(),
        }
    }

    /// A standard operation with one result; returns the result's name.
    pub fn op(&mut self, kind: &str, inputs: &[&str], attributes: Attributes<'_>, result: &str) -> String {
        self.node("", kind, inputs, attributes, &[result]);
        result.to_owned()
    }

    /// As [`Graph::op`], with one attribute that is a word.
    pub fn op_text(&mut self, kind: &str, inputs: &[&str], word: (&str, &str), result: &str) -> String {
        self.op(kind, inputs, &[(word.0, Attribute::Text(word.1.to_owned()))], result)
    }

    /// The last dimension in equal parts.
    pub fn split(&mut self, value: &str, results: &[&str]) {
        let n = Attribute::Int(results.len() as i64);
        self.node("", "Split", &[value], &[("axis", Attribute::Int(-1)), ("num_outputs", n)], results);
    }

    /// One of onnxruntime's own operations; a result without a name is not asked for.
    pub fn contrib(&mut self, kind: &str, inputs: &[&str], attributes: Attributes<'_>, results: &[&str]) {
        self.has_contrib = true;
        self.node(CONTRIB_DOMAIN, kind, inputs, attributes, results);
    }

    fn node(
        &mut self,
        domain: &str,
        kind: &str,
        inputs: &[&str],
        attributes: Attributes<'_>,
        results: &[&str],
    ) {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let name = results.iter().find(|name| !name.is_empty()).copied().unwrap_or_default();
        self.nodes.push(NodeProto {
            input: owned(inputs),
            output: owned(results),
            name: Some(format!("{name} / {kind}")),
            op_type: Some(kind.to_owned()),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            domain: (!domain.is_empty()).then(|| domain.to_owned()),
        });
    }

    /// A list of integers as a constant.
    pub fn ints(&mut self, numbers: &[i64]) -> Result<String, WriteError> {
        let name = format!("ints {numbers:?}");
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.constant(name, ElementType::I64, &[numbers.len() as i64], &bytes)
    }

    /// One integer as a constant without dimensions.
    pub fn int(&mut self, number: i64) -> Result<String, WriteError> {
        self.constant(format!("int {number}"), ElementType::I64, &[], &number.to_le_bytes())
    }

    /// One number as a constant without dimensions, in f32 or f16.
    pub fn number(&mut self, number: f32, format: Format) -> Result<String, WriteError> {
        let name = format!("{format} {number:e}");
        let bytes = match format {
            Format::F16 => slmc_blocks::f32_to_f16(number).to_le_bytes().to_vec(),
            _ => number.to_le_bytes().to_vec(),
        };
        self.constant(name, element(format), &[], &bytes)
    }

    fn constant(
        &mut self,
        name: String,
        element: ElementType,
        dims: &[i64],
        bytes: &[u8],
    ) -> Result<String, WriteError> {
        if self.constants.insert(name.clone()) {
            self.writer.tensor(&name, element, dims, bytes)?;
        }
        Ok(name)
    }

    pub fn cast(&mut self, value: &str, to: ElementType, result: &str) -> String {
        self.op("Cast", &[value], &[("to", Attribute::Int(to.code().into()))], result)
    }

    pub fn reshape(&mut self, value: &str, shape: &[i64], result: &str) -> Result<String, WriteError> {
        let shape = self.ints(shape)?;
        Ok(self.op("Reshape", &[value, &shape], &[], result))
    }

    pub fn transpose(&mut self, value: &str, order: &[i64], result: &str) -> String {
        self.op("Transpose", &[value], &[("perm", Attribute::Ints(order.to_vec()))], result)
    }

    pub fn input(&mut self, name: &str, element: ElementType, dims: &[Dim]) {
        self.inputs.push(value_info(name, element, dims));
    }

    pub fn output(&mut self, name: &str, element: ElementType, dims: &[Dim]) {
        self.outputs.push(value_info(name, element, dims));
    }
}

/// The element type of a float format.
pub(super) fn element(format: Format) -> ElementType {
    if format == Format::F16 { ElementType::F16 } else { ElementType::F32 }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let named = AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() };
    match value {
        Attribute::Float(f) => AttributeProto { f: Some(*f), r#type: Some(1), ..named },
        Attribute::Int(i) => AttributeProto { i: Some(*i), r#type: Some(2), ..named },
        Attribute::Text(s) => AttributeProto { s: Some(s.clone().into()), r#type: Some(3), ..named },
        Attribute::Ints(ints) => AttributeProto { ints: ints.clone(), r#type: Some(7), ..named },
    }
}

fn value_info(name: &str, element: ElementType, dims: &[Dim]) -> ValueInfoProto {
    let dim = |dim: &Dim| match *dim {
        Dim::Fixed(n) => DimensionProto { dim_value: Some(n as i64), dim_param: None },
        Dim::Named(name) => DimensionProto { dim_value: None, dim_param: Some(name.to_owned()) },
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(element.code()), shape: Some(shape) };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}
