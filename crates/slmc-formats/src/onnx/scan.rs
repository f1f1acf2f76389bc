//! A look at the wire before it is decoded: an empty message takes two bytes in a file and hundreds in memory, so the
//! number of fields is limited first (<https://protobuf.dev/programming-guides/encoding/>).

use super::{MAX_FIELDS, MAX_MODEL_BYTES, OnnxError};

/// Which messages hold which others, of those that `proto.rs` decodes: message, field number, message inside.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Value,
    Type,
    TensorType,
    Shape,
    /// Holds no other message.
    Leaf,
}

const INSIDE: [(Message, u64, Message); 15] = [
    (Message::Model, 7, Message::Graph),
    (Message::Model, 8, Message::Leaf),
    (Message::Model, 14, Message::Leaf),
    (Message::Graph, 1, Message::Node),
    (Message::Graph, 5, Message::Tensor),
    (Message::Graph, 11, Message::Value),
    (Message::Graph, 12, Message::Value),
    (Message::Node, 5, Message::Attribute),
    (Message::Attribute, 8, Message::Leaf),
    (Message::Tensor, 1, Message::Leaf),
    (Message::Tensor, 13, Message::Leaf),
    (Message::Value, 2, Message::Type),
    (Message::Type, 1, Message::TensorType),
    (Message::TensorType, 2, Message::Shape),
    (Message::Shape, 1, Message::Leaf),
];

/// Proves that the model is within its limits.
///
/// # Errors
/// When it is too long, has too many fields, or is not protobuf at all.
pub(super) fn check_limits(bytes: &[u8]) -> Result<(), OnnxError> {
    if bytes.len() > MAX_MODEL_BYTES {
        return Err(OnnxError::TooLong { found: bytes.len(), limit: MAX_MODEL_BYTES });
    }
    let mut scan = Scan { bytes, n_fields: 0 };
    scan.message(Message::Model, 0, bytes.len())
}

struct Scan<'a> {
    bytes: &'a [u8],
    n_fields: usize,
}

impl Scan<'_> {
    /// Nesting is as deep as the table: a message never holds its own kind.
    fn message(&mut self, message: Message, start: usize, end: usize) -> Result<(), OnnxError> {
        let mut at = start;
        while at < end {
            self.count(1)?;
            let field_at = at;
            let wrong = |why| OnnxError::Wire { at: field_at, why };
            let tag = self.varint(&mut at, end)?;
            let (number, wire) = (tag >> 3, tag & 7);
            let length = match wire {
                0 => {
                    self.varint(&mut at, end)?;
                    continue;
                }
                1 => 8,
                2 => self.varint(&mut at, end)?,
                5 => 4,
                _ => return Err(wrong("a field of a kind that protobuf does not have")),
            };
            let length = usize::try_from(length).ok().filter(|&length| length <= end - at);
            let length = length.ok_or_else(|| wrong("a field that is longer than what holds it"))?;
            let inside = INSIDE.iter().find(|row| wire == 2 && row.0 == message && row.1 == number);
            match inside {
                // Packed numbers: each takes a byte at least.
                Some((Message::Attribute | Message::Tensor, 1 | 8, _)) => self.count(length)?,
                Some((_, _, inside)) => self.message(*inside, at, at + length)?,
                None => {}
            }
            at += length;
        }
        Ok(())
    }

    fn count(&mut self, n: usize) -> Result<(), OnnxError> {
        self.n_fields = self.n_fields.saturating_add(n);
        if self.n_fields > MAX_FIELDS { Err(OnnxError::TooManyFields { limit: MAX_FIELDS }) } else { Ok(()) }
    }

    fn varint(&self, at: &mut usize, end: usize) -> Result<u64, OnnxError> {
        let (start, mut value) = (*at, 0_u64);
        for shift in (0..64).step_by(7) {
            let wrong = OnnxError::Wire { at: start, why: "a number that is cut off" };
            let byte = self.bytes[..end].get(*at).copied().ok_or(wrong)?;
            *at += 1;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(OnnxError::Wire { at: start, why: "a number of more than ten bytes" })
    }
}
