//! JSON documents, one after another, with keys that are written twice kept as errors.
//!
//! `serde_json` on its own takes the last of two equal keys in silence; a policy whose second `selector` wins unseen is not what
//! anybody wrote.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::FieldError;
use super::document::Read;

/// Reads every JSON value of `text`, which begins on line `first_line`; `None` when not even the first is JSON.
pub(super) fn read(text: &str, first_line: usize) -> Option<Vec<Read>> {
    let mut done: Vec<Read> = Vec::new();
    let mut reader = serde_json::Deserializer::from_str(text).into_iter::<Checked>();
    let (mut offset, mut line) = (0, first_line);
    loop {
        let blanks = text[offset..].len() - text[offset..].trim_start().len();
        line += text[offset..offset + blanks].matches('\n').count();
        offset += blanks;
        match reader.next() {
            None => return Some(done),
            Some(Ok(Checked { value, errors })) => {
                let end = reader.byte_offset();
                done.push(Read { value, line, errors, ..Read::default() });
                line += text[offset..end].matches('\n').count();
                offset = end;
            }
            Some(Err(_)) if done.is_empty() => return None,
            Some(Err(error)) => {
                let reason = format!("not JSON: {error}");
                done.push(Read::failure(first_line + error.line().max(1) - 1, reason));
                return Some(done);
            }
        }
    }
}

/// A value and the keys in it that are written twice, by path.
struct Checked {
    value: Value,
    errors: Vec<FieldError>,
}

impl From<Value> for Checked {
    fn from(value: Value) -> Self {
        Self { value, errors: Vec::new() }
    }
}

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CheckedVisitor)
    }
}

struct CheckedVisitor;

impl<'de> Visitor<'de> for CheckedVisitor {
    type Value = Checked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Checked, E> {
        Ok(Value::Null.into())
    }

    fn visit_bool<E>(self, value: bool) -> Result<Checked, E> {
        Ok(Value::Bool(value).into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Checked, E> {
        Ok(Value::from(value).into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Checked, E> {
        Ok(Value::from(value).into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Checked, E> {
        Ok(Value::from(value).into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Checked, E> {
        Ok(Value::String(value.to_owned()).into())
    }

    fn visit_string<E>(self, value: String) -> Result<Checked, E> {
        Ok(Value::String(value).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Checked, A::Error> {
        let (mut items, mut errors) = (Vec::new(), Vec::new());
        while let Some(Checked { value, errors: inner }) = access.next_element()? {
            errors.extend(inner.into_iter().map(|error| error.under(&format!("[{}]", items.len()))));
            items.push(value);
        }
        Ok(Checked { value: Value::Array(items), errors })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Checked, A::Error> {
        let (mut map, mut errors) = (Map::new(), Vec::new());
        while let Some((key, Checked { value, errors: inner })) = access.next_entry::<String, Checked>()? {
            errors.extend(inner.into_iter().map(|error| error.under(&key)));
            if map.contains_key(&key) {
                errors.push(FieldError::new(key, &value, "the key is written twice; remove one"));
            } else {
                map.insert(key, value);
            }
        }
        Ok(Checked { value: Value::Object(map), errors })
    }
}
