//! The OpenAPI document, made from the handlers' own types, so that it can't say something else than they do.
//!
//! Each extractor and each answer describes itself; a handler is described by its arguments and its result.

use super::problem::{ApiResult, PROBLEM_JSON};
use portcullis_common::store_api::Problem;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::transform::{RecursiveTransform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

/// One operation of the document while it is made.
#[derive(Debug)]
pub struct Operation<'a> {
    generator: &'a mut SchemaGenerator,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: Map<String, Value>,
}

impl Operation<'_> {
    /// The schema of a type, by reference where it has a name.
    pub fn schema<T: JsonSchema>(&mut self) -> Value {
        self.generator.subschema_for::<T>().into()
    }

    /// Each property of a type as a query parameter.
    pub fn query<T: JsonSchema>(&mut self) {
        let schema: Schema = T::json_schema(self.generator);
        let required: Vec<String> = schema
            .get("required")
            .and_then(|names| serde_json::from_value(names.clone()).ok())
            .unwrap_or_default();
        let mut schema = schema;
        transform_subschemas(&mut bound, &mut schema);
        let Some(Value::Object(properties)) = schema.get("properties") else { return };
        for (name, schema) in properties {
            let mut schema = schema.clone();
            let description = schema.as_object_mut().and_then(|keys| keys.remove("description"));
            self.parameters.push(json!({
                "name": name,
                "in": "query",
                "required": required.contains(name),
                "description": description.unwrap_or_default(),
                "schema": schema,
            }));
        }
    }

    /// The body of the request.
    pub fn body(&mut self, content: &Value) {
        self.body = Some(json!({ "required": true, "content": content }));
    }

    /// Another form of an answer that is described already.
    pub fn also(&mut self, status: u16, media_type: &str, schema: &Value) {
        if let Some(answer) = self.answers.get_mut(&status.to_string()) {
            answer["content"][media_type] = json!({ "schema": schema });
        }
    }

    /// An answer.
    pub fn answer(&mut self, status: u16, description: &str, content: Value) {
        let mut answer = json!({ "description": description });
        if !content.is_null() {
            answer["content"] = content;
        }
        self.answers.insert(status.to_string(), answer);
    }
}

/// Says how large a number may be: the format alone (`uint32`) is a word that few programs understand.
fn bound(schema: &mut Schema) {
    let maximum = match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => u64::from(u8::MAX),
        Some("uint16") => u64::from(u16::MAX),
        Some("uint32") => u64::from(u32::MAX),
        Some("uint64") => u64::MAX,
        _ => return,
    };
    if schema.get("maximum").is_none() {
        schema.insert("maximum".to_owned(), maximum.into());
    }
}

/// What a handler takes.
pub trait DescribeInput {
    /// Adds itself to the operation.
    fn describe(operation: &mut Operation<'_>);
}

/// What a handler answers when all goes well.
pub trait DescribeAnswer {
    /// Adds itself to the operation.
    fn describe(operation: &mut Operation<'_>);
}

/// A handler that can be described.
pub trait Described<Arguments> {
    /// Adds what the handler takes and answers.
    fn describe(operation: &mut Operation<'_>);
}

macro_rules! described {
    ($($argument:ident),*) => {
        impl<Function, Answering, Answer, $($argument),*> Described<($($argument,)*)> for Function
        where
            Function: Fn($($argument),*) -> Answering,
            Answering: Future<Output = ApiResult<Answer>>,
            Answer: DescribeAnswer,
            $($argument: DescribeInput,)*
        {
            fn describe(operation: &mut Operation<'_>) {
                $($argument::describe(operation);)*
                Answer::describe(operation);
            }
        }
    };
}
described!();
described!(A);
described!(A, B);
described!(A, B, C);
described!(A, B, C, D);
described!(A, B, C, D, E);

/// The document while it is made.
#[derive(Debug)]
pub struct Document {
    generator: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Default for Document {
    fn default() -> Self {
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into())
            .with_transform(RecursiveTransform(bound));
        Self { generator: settings.into_generator(), paths: Map::new() }
    }
}

/// What a person should know of an operation.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// In few words.
    pub summary: &'static str,
    /// The group it stands in.
    pub tag: &'static str,
    /// Who may call it, in words; `None` when everybody may.
    pub access: Option<&'static str>,
}

impl Document {
    /// Adds an operation.
    pub fn add<Arguments, H: Described<Arguments>>(
        &mut self,
        method: &str,
        path: &str,
        about: About,
    ) {
        let mut operation = Operation {
            generator: &mut self.generator,
            parameters: Vec::new(),
            body: None,
            answers: Map::new(),
        };
        for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            operation.parameters.push(json!({
                "name": name, "in": "path", "required": true, "schema": { "type": "string" },
            }));
        }
        H::describe(&mut operation);
        let problem = operation.schema::<Problem>();
        let mut answers = operation.answers;
        answers.insert(
            "default".to_owned(),
            json!({
                "description": "What went wrong.",
                "content": { PROBLEM_JSON: { "schema": problem } },
            }),
        );
        let id: String = format!("{method} {path}")
            .split(|letter: char| !letter.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty() && *word != "api" && *word != "v1")
            .collect::<Vec<_>>()
            .join("-")
            .to_ascii_lowercase();
        let mut value = json!({
            "operationId": id,
            "summary": about.summary,
            "tags": [about.tag],
            "parameters": operation.parameters,
            "responses": answers,
        });
        if let Some(body) = operation.body {
            value["requestBody"] = body;
        }
        match about.access {
            Some(access) => {
                value["description"] = json!(format!("Needs: {access}."));
                value["security"] = json!([{ "token": [] }]);
            }
            None => value["security"] = json!([]),
        }
        let path = self.paths.entry(path.to_owned()).or_insert_with(|| json!({}));
        path[method.to_ascii_lowercase()] = value;
    }

    /// The document.
    pub fn finish(mut self) -> Value {
        let schemas = self.generator.take_definitions(true);
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Portcullis policy store",
                "version": env!("CARGO_PKG_VERSION"),
                "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            },
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            },
        })
    }
}
