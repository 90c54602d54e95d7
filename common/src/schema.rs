//! JSON Schemas of what other people's tools read and write, generated from the types.

use crate::event::Event;
use crate::policy::PolicyDocument;
use crate::report::Report;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde_json::Value;

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
    let settings = SchemaSettings::draft2020_12().with_transform(RecursiveTransform(without_null));
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), title.into());
    NamedSchema { name, schema }
}

/// Takes `null` out of what an optional key can be: all types here leave such a key out instead.
fn without_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    let Some(Value::Array(choices)) = schema.get_mut("anyOf") else { return };
    choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
    if let [Value::Object(only)] = choices.as_slice() {
        let only = only.clone();
        schema.remove("anyOf");
        for (key, value) in only {
            // What the key itself says, such as its description, stays.
            if schema.get(&key).is_none() {
                schema.insert(key, value);
            }
        }
    }
}
