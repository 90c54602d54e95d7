//! Hostile text in every text field of every endpoint, as the OpenAPI document lists them: never taken for SQL, a template or a
//! path, never an error of the server; and wrong types in every field.

use crate::on_both;
use crate::runs::{JOB, call, lines, new_job, report};
use crate::support::{Reply, Server, World, send};
use portcullis_common::store_api::Role;
use portcullis_store::api::Access;
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

on_both!(no_text_is_more_than_text, no_field_takes_another_type, what_is_kept_is_kept_as_it_came);

/// SQL, templates, markup, paths, terminals, Unicode that turns text around, and what PostgreSQL can't store.
const EVIL: [&str; 12] = [
    "'; DROP TABLE policies; --",
    "' UNION SELECT hash FROM tokens --",
    "\" OR \"1\"=\"1",
    "1); DELETE FROM events; --",
    "%_%",
    "${7*7}{{7*7}}<%= 7*7 %>#{7*7}",
    "<script>alert(1)</script>",
    "../../../../etc/passwd",
    "\u{1b}[2J\u{7}",
    "\u{202e}\u{200b}\u{feff}",
    "a\u{0}b",
    "\\\"'`$(id)",
];

/// A value of a schema's shape whose texts are all `text`.
fn sample(document: &Value, schema: &Value, text: &str, depth: usize) -> Value {
    if let Some(pointer) = schema["$ref"].as_str() {
        let target = document.pointer(pointer.trim_start_matches('#')).unwrap();
        return sample(document, target, text, depth + 1);
    }
    for choice in ["anyOf", "oneOf", "allOf"] {
        if let Some(first) = schema[choice].as_array().and_then(|all| all.first()) {
            return sample(document, first, text, depth + 1);
        }
    }
    let kind = match &schema["type"] {
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => kinds[0].as_str().unwrap_or_default().to_owned(),
        _ => "string".to_owned(),
    };
    if depth > 8 {
        return Value::Null;
    }
    match kind.as_str() {
        "object" => {
            let properties = schema["properties"].as_object().cloned().unwrap_or_default();
            let fill = |(name, schema): (String, Value)| {
                (name, sample(document, &schema, text, depth + 1))
            };
            Value::Object(properties.into_iter().map(fill).collect())
        }
        "array" => json!([sample(document, &schema["items"], text, depth + 1)]),
        "integer" | "number" => json!(1),
        "boolean" => json!(true),
        // Words of a list: the good one, so that what stands beside it is reached.
        _ => schema["enum"]
            .get(0)
            .or_else(|| schema.get("const"))
            .cloned()
            .unwrap_or_else(|| json!(text)),
    }
}

/// Every value that differs from `value` in one place, where it has another type.
fn mistyped(value: &Value) -> Vec<Value> {
    let wrong = |value: &Value| match value {
        Value::String(_) => vec![json!(1), json!([]), json!({}), json!(true)],
        Value::Object(_) => vec![json!("x"), json!([]), json!(7)],
        Value::Array(_) => vec![json!("x"), json!({ "0": 1 })],
        _ => vec![json!("x"), json!([]), json!({}), json!(-1), json!(1e300), json!(u64::MAX)],
    };
    let mut all = wrong(value);
    if let Value::Object(keys) = value {
        for (key, inner) in keys {
            for changed in mistyped(inner) {
                let mut copy: Map<String, Value> = keys.clone();
                copy.insert(key.clone(), changed);
                all.push(Value::Object(copy));
            }
        }
        let mut more = keys.clone();
        more.insert("no_such_key".to_owned(), json!(1));
        all.push(Value::Object(more));
    }
    all
}

struct Walk<'a> {
    server: &'a Server,
    document: Value,
    host: String,
}

impl<'a> Walk<'a> {
    async fn new(server: &'a Server) -> Self {
        let document = send(server.anonymous(Method::GET, "/openapi.json")).await.expect(200);
        let host = server.enrol("prod").await["credential"].as_str().unwrap().to_owned();
        let job = new_job(JOB, 7, "build");
        send(server.as_caller(&host, Method::POST, "/jobs").json(&job)).await.expect(200);
        server.put_policy("p", "name: p\negress-policy: audit\n").await.expect(201);
        Self { server, document, host }
    }

    /// Calls an operation as somebody who may.
    fn request(&self, access: Access, method: &str, path: &str) -> reqwest::RequestBuilder {
        let token = match access {
            Access::Role(Role::Runner) => &self.host,
            _ => &self.server.token,
        };
        self.server.anonymous(method.parse().unwrap(), path).bearer_auth(token)
    }

    fn assert_answered(reply: &Reply, what: &str) {
        assert!(reply.status.as_u16() < 500, "{what}: {reply:?}");
        if reply.status.is_client_error() {
            assert_eq!(reply.headers["content-type"], "application/problem+json", "{what}");
        }
    }

    /// Nothing that was there is gone, and nobody else may do anything.
    async fn assert_unharmed(&self) {
        let policies = self.server.get("/policies").await.expect(200);
        assert!(policies["items"].as_array().unwrap().iter().any(|it| it["name"] == "p"));
        self.server.get(&format!("/jobs/{JOB}")).await.expect(200);
        assert!(
            !self.server.get("/hosts").await.expect(200)["items"].as_array().unwrap().is_empty()
        );
    }
}

fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        write!(escaped, "%{byte:02X}").unwrap();
        escaped
    })
}

async fn relaxed(world: &World) -> Server {
    let mut configuration = world.configuration();
    configuration.limits.failed_sign_ins_per_minute = 1_000_000;
    configuration.limits.requests_per_second = 1_000_000;
    configuration.limits.burst = 1_000_000;
    world.start_with(configuration).await
}

async fn no_text_is_more_than_text(world: World) {
    let server = relaxed(&world).await;
    let walk = Walk::new(&server).await;
    for route in &server.running.routes {
        let operation = &walk.document["paths"][&route.path][route.method.to_ascii_lowercase()];
        let what = format!("{} {}", route.method, route.path);
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        for evil in EVIL {
            let mut path = route.path.clone();
            let mut query = Vec::new();
            for parameter in &parameters {
                let name = parameter["name"].as_str().unwrap();
                if parameter["in"] == "path" {
                    path = path.replace(&format!("{{{name}}}"), &escaped(evil));
                } else if parameter["in"] == "query" {
                    query.push((name.to_owned(), evil));
                }
            }
            let called = walk.request(route.access, route.method, &path).query(&query);
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            let called = match body {
                Value::Null => called,
                schema => called.json(&sample(&walk.document, schema, evil, 0)),
            };
            Walk::assert_answered(&send(called).await, &format!("{what} {evil:?}"));
            // Each parameter alone, so that one that is refused hides no other.
            for (name, _) in &query {
                let path = route.path.replace("{name}", "p").replace("{id}", JOB);
                let path = path.replace("{version}", "1");
                let called = walk.request(route.access, route.method, &path);
                if route.method != "GET" {
                    continue;
                }
                let reply = send(called.query(&[(name, evil)])).await;
                Walk::assert_answered(&reply, &format!("{what}?{name}={evil:?}"));
            }
        }
    }
    walk.assert_unharmed().await;
    server.stop().await;
}

/// The schema of a body, with what it refers to.
fn validator(document: &Value, schema: &Value) -> jsonschema::Validator {
    let mut whole = schema.clone();
    whole["components"] = document["components"].clone();
    jsonschema::validator_for(&whole).unwrap()
}

async fn no_field_takes_another_type(world: World) {
    let mut forbidden = 0;
    let server = relaxed(&world).await;
    let walk = Walk::new(&server).await;
    for route in &server.running.routes {
        let operation = &walk.document["paths"][&route.path][route.method.to_ascii_lowercase()];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        let path = route.path.replace("{name}", "p").replace("{id}", JOB).replace("{version}", "1");
        // Nothing that is made here may take away what others are tried on.
        if !["POST", "PUT"].contains(&route.method) {
            continue;
        }
        let good = sample(&walk.document, schema, "x", 0);
        let validator = validator(&walk.document, schema);
        for body in mistyped(&good).into_iter().take(150) {
            let reply = send(walk.request(route.access, route.method, &path).json(&body)).await;
            let what = format!("{} {path} {body}", route.method);
            Walk::assert_answered(&reply, &what);
            if !validator.is_valid(&body) {
                assert!(
                    reply.status.is_client_error(),
                    "{what} is forbidden, and taken: {reply:?}"
                );
                forbidden += 1;
            }
        }
        for text in ["", "{", "[", "\"", "nul", "{\"a\":}", "\u{feff}{}", "[[[[[[[[", "{}{}"] {
            let called = walk.request(route.access, route.method, &path);
            let called = called.header("content-type", "application/json").body(text);
            let reply = send(called).await;
            Walk::assert_answered(&reply, &format!("{} {path} {text:?}", route.method));
        }
        let deep = "[".repeat(100_000);
        let called = walk.request(route.access, route.method, &path).body(deep);
        let reply = send(called.header("content-type", "application/json")).await;
        Walk::assert_answered(&reply, &format!("{} {path}, deep", route.method));
    }
    assert!(forbidden > 200, "only {forbidden} bodies were forbidden");
    server.stop().await;
}

/// Free text comes back byte by byte: from comments, names, events, evidence and reports.
async fn what_is_kept_is_kept_as_it_came(world: World) {
    let server = relaxed(&world).await;
    let walk = Walk::new(&server).await;
    let mut events = Vec::new();
    // PostgreSQL has no NUL; it is refused everywhere, with words.
    for (index, evil) in EVIL.iter().filter(|evil| !evil.contains('\0')).enumerate() {
        let seq = 2 * index as u64 + 1;
        let mut event = call(JOB, seq, "allowed", evil);
        event["rule"] = json!(evil);
        event["process"] = json!({
            "pid": 7, "exe": evil, "argv": [evil, evil], "cwd": evil, "step": evil,
        });
        events.push(event);
        events.push(json!({
            "job_id": JOB, "seq": seq + 1, "time": "2026-01-01T00:01:00.000000Z", "type": "detection",
            "detection": "Reverse-Shell", "evidence": evil, "is_lockdown": false,
        }));
        let put = server
            .request(Method::PUT, "/policies/p")
            .query(&[("comment", evil)])
            .body("name: p\negress-policy: audit\n");
        let put = send(put).await;
        if put.status == 200 {
            let versions = server.get("/policies/p/versions").await.expect(200);
            assert_eq!(versions["items"][0]["comment"], **evil);
        } else {
            put.problem(400);
        }
        let made = server.post("/tokens", json!({ "name": evil, "role": "viewer" })).await;
        if made.status == 201 {
            let tokens = server.get("/tokens").await.expect(200);
            assert!(tokens["items"].as_array().unwrap().iter().any(|it| it["name"] == *evil));
        } else {
            made.problem(400);
        }
    }
    let as_host = |method, path: &str| server.as_caller(&walk.host, method, path);
    let path = format!("/jobs/{JOB}/events");
    send(as_host(Method::POST, &path).body(lines(&events))).await.expect(200);
    let stored = server.get(&format!("{path}?limit=1000")).await.expect(200);
    assert_eq!(stored["items"], json!(events), "as they came");
    let detections = server.get("/detections?limit=1000").await.expect(200);
    let evidence: Vec<&str> = detections["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|detection| detection["evidence"].as_str())
        .collect();
    for evil in EVIL.iter().filter(|evil| !evil.contains('\0')) {
        assert!(evidence.contains(evil), "{evil:?}");
        let found = server
            .request(Method::GET, &format!("/jobs/{JOB}/network-events"))
            .query(&[("process", evil)]);
        let found = send(found).await;
        assert!(found.status == 200, "{evil:?}: {found:?}");
        assert!(!found.json()["items"].as_array().unwrap().is_empty(), "found by {evil:?}");
    }
    let mut nul = call(JOB, events.len() as u64 + 1, "allowed", "a.test");
    nul["process"] = json!({ "pid": 7, "exe": "a\u{0}b" });
    send(as_host(Method::POST, &path).body(lines(&[nul]))).await.problem(400);
    let mut hostile = report(JOB);
    hostile["detections"] = json!([]);
    hostile["target"] = json!(EVIL[0]);
    let put = as_host(Method::PUT, &format!("/jobs/{JOB}/report")).json(&hostile);
    assert_eq!(send(put).await.status, 204);
    walk.assert_unharmed().await;
    server.stop().await;
}
