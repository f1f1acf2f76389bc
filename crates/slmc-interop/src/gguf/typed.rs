//! GGUF values as JSON and back, with their types: `{ "type": "u32", "value": 7 }`.

use serde_json::{Map, Value as Json, json};
use slmc_formats::gguf::{Array, Value};

/// Lists in lists, as deep as the codec reads them.
const MAX_DEPTH: u32 = 4;

/// The value and its type.
pub(crate) fn to_json(value: &Value) -> Map<String, Json> {
    let (kind, value): (&str, Json) = match value {
        Value::U8(n) => ("u8", json!(n)),
        Value::I8(n) => ("i8", json!(n)),
        Value::U16(n) => ("u16", json!(n)),
        Value::I16(n) => ("i16", json!(n)),
        Value::U32(n) => ("u32", json!(n)),
        Value::I32(n) => ("i32", json!(n)),
        Value::U64(n) => ("u64", json!(n)),
        Value::I64(n) => ("i64", json!(n)),
        Value::F32(x) => ("f32", f32_json(*x)),
        Value::F64(x) => ("f64", f64_json(*x)),
        Value::Bool(b) => ("bool", json!(b)),
        Value::String(text) => ("string", json!(text)),
        Value::Array(list) => return array_to_json(list),
    };
    object(kind, value)
}

/// The value of such an object; `None` when it is none.
pub(crate) fn from_json(object: &Map<String, Json>) -> Option<Value> {
    value_from(object, 0)
}

fn object(kind: &str, value: Json) -> Map<String, Json> {
    Map::from_iter([("type".to_owned(), json!(kind)), ("value".to_owned(), value)])
}

/// Every f32 is an f64 exactly; those that JSON has no number for are written by their bits.
fn f32_json(x: f32) -> Json {
    if x.is_finite() { json!(f64::from(x)) } else { json!(format!("{:08x}", x.to_bits())) }
}

/// By its bits: readers of JSON may be off by the last one.
fn f64_json(x: f64) -> Json {
    json!(format!("{:016x}", x.to_bits()))
}

fn f32_from(value: &Json) -> Option<f32> {
    match value {
        Json::String(bits) => u32::from_str_radix(bits, 16).ok().map(f32::from_bits),
        number => number.as_f64().map(|x| x as f32),
    }
}

fn f64_from(value: &Json) -> Option<f64> {
    u64::from_str_radix(value.as_str()?, 16).ok().map(f64::from_bits)
}

fn array_to_json(list: &Array) -> Map<String, Json> {
    let (kind, value): (&str, Json) = match list {
        Array::U8(v) => ("[u8]", json!(v)),
        Array::I8(v) => ("[i8]", json!(v)),
        Array::U16(v) => ("[u16]", json!(v)),
        Array::I16(v) => ("[i16]", json!(v)),
        Array::U32(v) => ("[u32]", json!(v)),
        Array::I32(v) => ("[i32]", json!(v)),
        Array::U64(v) => ("[u64]", json!(v)),
        Array::I64(v) => ("[i64]", json!(v)),
        Array::F32(v) => ("[f32]", v.iter().copied().map(f32_json).collect()),
        Array::F64(v) => ("[f64]", v.iter().copied().map(f64_json).collect()),
        Array::Bool(v) => ("[bool]", json!(v)),
        Array::String(v) => ("[string]", json!(v)),
        Array::Array(v) => ("[[]]", v.iter().map(|inner| Json::Object(array_to_json(inner))).collect()),
    };
    object(kind, value)
}

fn value_from(object: &Map<String, Json>, depth: u32) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    let value = object.get("value")?;
    Some(match object.get("type")?.as_str()? {
        "u8" => Value::U8(whole(value)?),
        "i8" => Value::I8(whole(value)?),
        "u16" => Value::U16(whole(value)?),
        "i16" => Value::I16(whole(value)?),
        "u32" => Value::U32(whole(value)?),
        "i32" => Value::I32(whole(value)?),
        "u64" => Value::U64(value.as_u64()?),
        "i64" => Value::I64(value.as_i64()?),
        "f32" => Value::F32(f32_from(value)?),
        "f64" => Value::F64(f64_from(value)?),
        "bool" => Value::Bool(value.as_bool()?),
        "string" => Value::String(value.as_str()?.to_owned()),
        "[u8]" => Value::Array(Array::U8(all(value, whole)?)),
        "[i8]" => Value::Array(Array::I8(all(value, whole)?)),
        "[u16]" => Value::Array(Array::U16(all(value, whole)?)),
        "[i16]" => Value::Array(Array::I16(all(value, whole)?)),
        "[u32]" => Value::Array(Array::U32(all(value, whole)?)),
        "[i32]" => Value::Array(Array::I32(all(value, whole)?)),
        "[u64]" => Value::Array(Array::U64(all(value, Json::as_u64)?)),
        "[i64]" => Value::Array(Array::I64(all(value, Json::as_i64)?)),
        "[f32]" => Value::Array(Array::F32(all(value, f32_from)?)),
        "[f64]" => Value::Array(Array::F64(all(value, f64_from)?)),
        "[bool]" => Value::Array(Array::Bool(all(value, Json::as_bool)?)),
        "[string]" => Value::Array(Array::String(all(value, |v| v.as_str().map(str::to_owned))?)),
        "[[]]" => {
            let inner = |value: &Json| match value_from(value.as_object()?, depth + 1)? {
                Value::Array(list) => Some(list),
                _ => None,
            };
            Value::Array(Array::Array(all(value, inner)?))
        }
        _ => return None,
    })
}

fn whole<T: TryFrom<i64>>(value: &Json) -> Option<T> {
    value.as_i64()?.try_into().ok()
}

fn all<T>(value: &Json, convert: impl Fn(&Json) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(convert).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_comes_back_with_its_bits() {
        let nested = Array::Array(vec![Array::U8(vec![1]), Array::Array(vec![Array::String(vec![])])]);
        let values = [
            Value::U8(255),
            Value::I8(-128),
            Value::U16(65535),
            Value::I16(-5),
            Value::U32(u32::MAX),
            Value::I32(i32::MIN),
            Value::U64(u64::MAX),
            Value::I64(i64::MIN),
            Value::F32(1e-5),
            Value::F32(-0.0),
            Value::F32(f32::NEG_INFINITY),
            Value::F64(0.1),
            Value::Bool(true),
            Value::String("<|im_end|>\n\u{0}".to_owned()),
            Value::Array(Array::F32(vec![0.1, f32::INFINITY])),
            Value::Array(Array::F64(vec![1.0 / 3.0])),
            Value::Array(Array::U64(vec![u64::MAX])),
            Value::Array(Array::Bool(vec![false, true])),
            Value::Array(nested),
        ];
        for value in values {
            let text = serde_json::to_string(&to_json(&value)).unwrap();
            let back = from_json(&serde_json::from_str(&text).unwrap()).unwrap();
            // Debug and not equality: it tells -0 from 0.
            assert_eq!(format!("{back:?}"), format!("{value:?}"), "{text}");
        }
        let nan = to_json(&Value::F32(f32::from_bits(0x7fc0_1234)));
        assert!(matches!(from_json(&nan), Some(Value::F32(x)) if x.to_bits() == 0x7fc0_1234));
    }

    #[test]
    fn damaged_objects_are_nothing() {
        for text in [
            "{}",
            r#"{"type":"u8","value":256}"#,
            r#"{"type":"u8","value":-1}"#,
            r#"{"type":"f64","value":1.0}"#,
            r#"{"type":"[u8]","value":[1,"2"]}"#,
            r#"{"type":"complex","value":1}"#,
        ] {
            assert_eq!(from_json(&serde_json::from_str(text).unwrap()), None, "{text}");
        }
    }
}
