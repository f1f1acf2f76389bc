//! A place in the header that moves forward, and never past the end.

use std::fmt::Display;

use super::{Array, GgufError, MAX_ARRAY_DEPTH, MAX_HEADER_BYTES, Value};

/// Elements reserved ahead on the word of a count whose elements have no fixed size.
const MAX_RESERVED: u64 = 1 << 10;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    cut: bool,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        let bytes = &file[..file.len().min(MAX_HEADER_BYTES)];
        Self { bytes, at: 0, cut: bytes.len() < file.len() }
    }

    pub(super) fn offset(&self) -> u64 {
        self.at as u64
    }

    /// The next `n` bytes; `what` is what they are, for the error.
    pub(super) fn take(&mut self, n: u64, what: &dyn Display) -> Result<&'a [u8], GgufError> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(n) {
            Ok(n) if n <= left => {
                let taken = &self.bytes[self.at..self.at + n];
                self.at += n;
                Ok(taken)
            }
            _ if self.cut => {
                Err(GgufError::HeaderTooLong { what: what.to_string(), limit: MAX_HEADER_BYTES })
            }
            _ => Err(GgufError::Truncated {
                what: what.to_string(),
                offset: self.offset(),
                needed: n,
                left: left as u64,
            }),
        }
    }

    fn fixed<const N: usize>(&mut self, what: &dyn Display) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &dyn Display) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.fixed(what)?))
    }

    pub(super) fn u64(&mut self, what: &dyn Display) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.fixed(what)?))
    }

    /// A count or length that must not exceed `limit`.
    pub(super) fn count(&mut self, limit: u64, what: &dyn Display) -> Result<u64, GgufError> {
        let found = self.u64(what)?;
        if found > limit {
            return Err(GgufError::TooLarge { what: what.to_string(), found, limit });
        }
        Ok(found)
    }

    /// A string: its length, then its bytes.
    pub(super) fn string(&mut self, limit: u64, what: &dyn Display) -> Result<&'a str, GgufError> {
        let n_bytes = self.count(limit, &format_args!("length of {what}"))?;
        let offset = self.offset();
        let bytes = self.take(n_bytes, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { what: what.to_string(), offset })
    }

    /// A name, which a string without bytes is not.
    pub(super) fn name(&mut self, limit: u64, what: &dyn Display) -> Result<&'a str, GgufError> {
        let offset = self.offset();
        let name = self.string(limit, what)?;
        if name.is_empty() {
            return Err(GgufError::EmptyName { what: what.to_string(), offset });
        }
        Ok(name)
    }

    fn bool(&self, byte: u8, what: &dyn Display) -> Result<bool, GgufError> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(GgufError::NotBool { what: what.to_string(), offset: self.offset(), found }),
        }
    }

    /// A value: its type, then its content.
    pub(super) fn value(&mut self, what: &dyn Display) -> Result<Value, GgufError> {
        let offset = self.offset();
        Ok(match self.u32(what)? {
            0 => Value::U8(u8::from_le_bytes(self.fixed(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.fixed(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.fixed(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.fixed(what)?)),
            4 => Value::U32(u32::from_le_bytes(self.fixed(what)?)),
            5 => Value::I32(i32::from_le_bytes(self.fixed(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.fixed(what)?)),
            7 => {
                let [byte] = self.fixed(what)?;
                Value::Bool(self.bool(byte, what)?)
            }
            8 => Value::String(self.string(u64::MAX, what)?.to_owned()),
            9 => Value::Array(self.array(1, what)?),
            10 => Value::U64(u64::from_le_bytes(self.fixed(what)?)),
            11 => Value::I64(i64::from_le_bytes(self.fixed(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.fixed(what)?)),
            id => return Err(GgufError::ValueType { what: what.to_string(), offset, id }),
        })
    }

    /// A list: element type, count, elements. `depth` counts the lists around it, itself included.
    fn array(&mut self, depth: u32, what: &dyn Display) -> Result<Array, GgufError> {
        if depth > MAX_ARRAY_DEPTH {
            let (found, limit) = (depth.into(), MAX_ARRAY_DEPTH.into());
            return Err(GgufError::TooLarge { what: format!("nesting of {what}"), found, limit });
        }
        let offset = self.offset();
        let id = self.u32(what)?;
        let n = self.u64(what)?;
        Ok(match id {
            0 => Array::U8(self.take(n, what)?.to_vec()),
            1 => Array::I8(self.numbers(n, i8::from_le_bytes, what)?),
            2 => Array::U16(self.numbers(n, u16::from_le_bytes, what)?),
            3 => Array::I16(self.numbers(n, i16::from_le_bytes, what)?),
            4 => Array::U32(self.numbers(n, u32::from_le_bytes, what)?),
            5 => Array::I32(self.numbers(n, i32::from_le_bytes, what)?),
            6 => Array::F32(self.numbers(n, f32::from_le_bytes, what)?),
            7 => {
                let bytes = self.take(n, what)?;
                Array::Bool(bytes.iter().map(|&b| self.bool(b, what)).collect::<Result<_, _>>()?)
            }
            8 => Array::String(self.list(n, |c| Ok(c.string(u64::MAX, what)?.to_owned()))?),
            9 => Array::Array(self.list(n, |c| c.array(depth + 1, what))?),
            10 => Array::U64(self.numbers(n, u64::from_le_bytes, what)?),
            11 => Array::I64(self.numbers(n, i64::from_le_bytes, what)?),
            12 => Array::F64(self.numbers(n, f64::from_le_bytes, what)?),
            id => return Err(GgufError::ValueType { what: what.to_string(), offset, id }),
        })
    }

    /// `n` numbers: all their bytes are found before any memory is taken for them.
    fn numbers<T, const N: usize>(
        &mut self,
        n: u64,
        from_le: fn([u8; N]) -> T,
        what: &dyn Display,
    ) -> Result<Vec<T>, GgufError> {
        let bytes = self.take(n.saturating_mul(N as u64), what)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|&chunk| from_le(chunk)).collect())
    }

    /// `n` elements without a fixed size: memory grows as they are found.
    fn list<T>(
        &mut self,
        n: u64,
        read: impl Fn(&mut Self) -> Result<T, GgufError>,
    ) -> Result<Vec<T>, GgufError> {
        let mut elements = Vec::with_capacity(n.min(MAX_RESERVED) as usize);
        for _ in 0..n {
            elements.push(read(self)?);
        }
        Ok(elements)
    }
}
