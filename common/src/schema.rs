//! JSON Schemas of what other people's tools read and write, generated from the types.

use crate::event::Event;
use crate::policy::PolicyDocument;
use crate::report::Report;
use schemars::{JsonSchema, Schema, generate::SchemaSettings};

/// A schema with the name of its file in `docs/schemas/`.
#[derive(Clone, Debug)]
pub struct NamedSchema {
    /// The file's name without `.json`: `policy`.
    pub name: &'static str,
    /// The schema, JSON Schema draft 2020-12.
    pub schema: Schema,
}

/// All published schemas: a policy document (kebab-case keys, as in YAML), an event, a report.
pub fn all() -> [NamedSchema; 3] {
    [
        named::<PolicyDocument>("policy", "Portcullis policy"),
        named::<Event>("event", "Portcullis event"),
        named::<Report>("report", "Portcullis job report"),
    ]
}

fn named<T: JsonSchema>(name: &'static str, title: &str) -> NamedSchema {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    NamedSchema { name, schema }
}
