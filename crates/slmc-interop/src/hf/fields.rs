//! Typed access to the fields of `config.json`.

use serde_json::{Map, Value};

use crate::error::{FieldError, shown};

/// A JSON object and what to call it in messages.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    prefix: &'a str,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, prefix: "" }
    }

    /// The fields of an object that is itself a field.
    pub(crate) fn inside(prefix: &'a str, object: &'a Map<String, Value>) -> Self {
        Self { object, prefix }
    }

    /// The fields of an object inside the object; null is as good as absent.
    pub(crate) fn object(self, field: &'a str) -> Result<Option<Self>, FieldError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { object, prefix: field })),
            Some(other) => Err(self.wrong_type(field, other, "an object")),
        }
    }

    /// The value, unless it is absent or null.
    pub(crate) fn get(self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn names(self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    pub(crate) fn size(self, field: &str) -> Result<Option<usize>, FieldError> {
        let size = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        self.typed(field, "a whole number, 0 or more", size)
    }

    pub(crate) fn required_size(self, field: &str) -> Result<usize, FieldError> {
        self.size(field)?.ok_or_else(|| FieldError::Missing { field: self.path(field) })
    }

    pub(crate) fn number(self, field: &str) -> Result<Option<f64>, FieldError> {
        self.typed(field, "a number", Value::as_f64)
    }

    pub(crate) fn required_number(self, field: &str) -> Result<f64, FieldError> {
        self.number(field)?.ok_or_else(|| FieldError::Missing { field: self.path(field) })
    }

    pub(crate) fn flag(self, field: &str) -> Result<Option<bool>, FieldError> {
        self.typed(field, "true or false", Value::as_bool)
    }

    pub(crate) fn text(self, field: &str) -> Result<Option<&'a str>, FieldError> {
        self.typed(field, "a text", |value| value.as_str())
    }

    /// An error for a value that would change what the model computes.
    pub(crate) fn unsupported(self, field: &str, why: &'static str) -> FieldError {
        let found = self.object.get(field).map_or_else(|| "absent".to_owned(), shown);
        FieldError::Unsupported { field: self.path(field), found, why }
    }

    /// An error for a field whose meaning is not known.
    pub(crate) fn unknown(self, field: &str) -> FieldError {
        let found = self.object.get(field).map_or_else(String::new, shown);
        FieldError::Unknown { field: self.path(field), found }
    }

    fn typed<T>(
        self,
        field: &str,
        wanted: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FieldError> {
        let convert = |value| convert(value).ok_or_else(|| self.wrong_type(field, value, wanted));
        self.get(field).map(convert).transpose()
    }

    fn wrong_type(self, field: &str, found: &Value, wanted: &'static str) -> FieldError {
        FieldError::Type { field: self.path(field), found: shown(found), wanted }
    }

    fn path(self, field: &str) -> String {
        if self.prefix.is_empty() { field.to_owned() } else { format!("{}.{field}", self.prefix) }
    }
}
