//! JSON as Docker's engine reads it.
//!
//! Go matches the names of fields without regard to case, and when a name comes twice, the second value is merged into the
//! first. Whoever reads the same text more strictly, or keeps only the last of two, judges another request than the one
//! that is carried out. Here everything is kept and everything is looked at.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number; its value does not matter here.
    Number,
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// Names and values in the order of the text, all of them.
    Object(Vec<(String, Self)>),
}

impl Json {
    /// Every value that the engine may take for the field `name`.
    pub fn all<'a>(&'a self, name: &str) -> Vec<&'a Self> {
        let Self::Object(pairs) = self else { return Vec::new() };
        let folded = fold(name);
        pairs.iter().filter(|(other, _)| fold(other) == folded).map(|(_, value)| value).collect()
    }

    /// Every value at the end of a path of fields.
    pub fn all_at<'a>(&'a self, path: &[&str]) -> Vec<&'a Self> {
        let mut values = vec![self];
        for name in path {
            values = values.into_iter().flat_map(|value| value.all(name)).collect();
        }
        values
    }

    /// The strings among the values at the end of a path, and in lists there.
    pub fn texts(&self, path: &[&str]) -> Vec<&str> {
        self.all_at(path).into_iter().flat_map(Self::own_texts).collect()
    }

    fn own_texts(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => vec![text],
            Self::List(values) => values.iter().flat_map(Self::own_texts).collect(),
            _ => Vec::new(),
        }
    }

    /// The objects in lists at the end of a path.
    pub fn objects(&self, path: &[&str]) -> Vec<&Self> {
        self.all_at(path)
            .into_iter()
            .flat_map(|value| match value {
                Self::List(values) => values.iter().collect(),
                _ => Vec::new(),
            })
            .filter(|value| matches!(value, Self::Object(_)))
            .collect()
    }

    /// Whether any value at the end of the path is `true`.
    pub fn is_true(&self, path: &[&str]) -> bool {
        self.all_at(path).contains(&&Self::Bool(true))
    }

    /// Names and strings of objects at the end of a path: labels, options.
    pub fn pairs(&self, path: &[&str]) -> Vec<(&str, &str)> {
        self.all_at(path)
            .into_iter()
            .filter_map(|value| match value {
                Self::Object(pairs) => Some(pairs),
                _ => None,
            })
            .flatten()
            .filter_map(|(name, value)| match value {
                Self::Text(text) => Some((name.as_str(), text.as_str())),
                _ => None,
            })
            .collect()
    }
}

/// A name as Go's `encoding/json` compares it: without regard to case, and two letters beyond ASCII fold into it
/// (`encoding/json/fold.go`).
fn fold(name: &str) -> String {
    name.chars()
        .map(|letter| match letter {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            letter => letter.to_ascii_lowercase(),
        })
        .collect()
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element()? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = access.next_entry()? {
            pairs.push(pair);
        }
        Ok(Json::Object(pairs))
    }
}
