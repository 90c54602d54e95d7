//! What a Docker engine is asked for, by its API: pure, from method, path and body.
//!
//! The body of `containers/create` and the engine's own description of a container (`containers/ID/json`) have the same
//! `HostConfig`, so both are read here.

use super::json::Json;
use super::{HostPath, JobOwn, Privilege, engine_sockets, has_runner_label, is_dangerous_name};
use std::path::{Path, PathBuf};

/// A call of the engine's API.
#[derive(Clone, Debug)]
pub struct EngineCall {
    method: String,
    /// The parts of the path without the version.
    segments: Vec<String>,
    query: Vec<(String, String)>,
    body: Body,
}

/// What came with a call.
#[derive(Clone, Debug)]
enum Body {
    /// Nothing, or nothing that the engine handed on.
    None,
    /// A document.
    Json(Json),
    /// Something that is no JSON: an archive, a stream.
    Other,
}

/// A path of the host that the call names, for somebody to look at before it is decided.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct NamedPath {
    /// As it stands in the call.
    pub path: PathBuf,
    /// Whether it is to be mounted read-only.
    pub read_only: bool,
}

impl EngineCall {
    /// From what an authorization plugin is told, or a request line says.
    pub fn new(method: &str, uri: &str, body: &[u8]) -> Self {
        let uri = without_origin(uri);
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let mut segments: Vec<String> =
            path.split('/').map(decode).filter(|part| !part.is_empty() && part != ".").collect();
        if segments.first().is_some_and(|first| is_version(first)) {
            segments.remove(0);
        }
        let query = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decode(name), decode(&value.replace('+', " "))))
            .collect();
        let body = match serde_json::from_slice(body) {
            _ if body.iter().all(u8::is_ascii_whitespace) => Body::None,
            Ok(json) => Body::Json(json),
            Err(_) => first_document(body).map_or(Body::Other, Body::Json),
        };
        Self { method: method.to_ascii_uppercase(), segments, query, body }
    }

    /// The call in words: `POST containers/create`.
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.segments.join("/"))
    }

    /// What it does that concerns privileges.
    fn operation(&self) -> Operation<'_> {
        let parts: Vec<&str> = self.segments.iter().map(String::as_str).collect();
        if !matches!(self.method.as_str(), "POST" | "PUT" | "DELETE" | "PATCH") {
            return Operation::Harmless;
        }
        match parts.as_slice() {
            ["containers", "create"] => Operation::Create,
            ["containers", _, "start"] => Operation::Start,
            ["containers", _, "update"] => Operation::Update,
            ["containers", id, "exec"] => Operation::Exec(id),
            ["build"] => Operation::Build,
            ["volumes", "create"] => Operation::CreateVolume,
            ["plugins", rest @ ..]
                if !matches!(rest, [_, "disable"]) && self.method != "DELETE" =>
            {
                Operation::Feature("an engine plugin, which runs as root on the host")
            }
            ["swarm", "init" | "join"] | ["services", "create"] | ["services", _, "update"] => {
                Operation::Feature("a swarm service, whose containers nobody is asked about")
            }
            _ => Operation::Harmless,
        }
    }

    /// The container that the call is about, when it names one.
    pub fn container(&self) -> Option<&str> {
        match self.operation() {
            Operation::Exec(id) => Some(id),
            Operation::Create => self.query_value("name"),
            _ => None,
        }
    }

    /// The paths of the host that the call wants to mount.
    pub fn named_paths(&self) -> Vec<NamedPath> {
        let Body::Json(body) = &self.body else { return Vec::new() };
        match self.operation() {
            Operation::Create => named_paths(body, &["HostConfig"]),
            Operation::Start => named_paths(body, &[]),
            Operation::CreateVolume => {
                device_of_volume(&body.pairs(&["DriverOpts"]), false).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// What the call asks for of the host. `paths` are its named paths as they are on the host.
    pub fn privileges(&self, paths: &[HostPath], own: &JobOwn) -> Vec<Privilege> {
        let mut found = match (self.operation(), &self.body) {
            (Operation::Create, Body::Json(body)) => {
                privileges_of_configuration(body, &["HostConfig"], paths, own)
            }
            (Operation::Start, Body::Json(body)) => {
                // Engines before API 1.24 took the whole configuration here.
                privileges_of_configuration(body, &[], paths, own)
            }
            (Operation::Update, Body::Json(body)) => devices(body, &[]),
            (Operation::Exec(_), Body::Json(body)) if body.is_true(&["Privileged"]) => {
                vec![Privilege::Flag]
            }
            (Operation::CreateVolume, Body::Json(_)) => {
                paths.iter().filter_map(|path| path.privilege(own)).collect()
            }
            (Operation::Build, _) if self.query_value("networkmode") == Some("host") => {
                vec![Privilege::HostNamespace("network")]
            }
            (Operation::Feature(feature), _) => vec![Privilege::EngineFeature(feature.to_owned())],
            // An engine that does not hand the body on (too long, or a request made to look empty) can't be judged.
            (
                Operation::Create | Operation::Update | Operation::Exec(_),
                Body::None | Body::Other,
            )
            | (Operation::Start, Body::Other) => {
                vec![Privilege::EngineFeature(
                    "a request whose content the engine did not show".to_owned(),
                )]
            }
            _ => Vec::new(),
        };
        found.sort();
        found.dedup();
        found
    }

    fn query_value(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// What a call does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operation<'a> {
    Create,
    Start,
    Update,
    Exec(&'a str),
    Build,
    CreateVolume,
    Feature(&'static str),
    Harmless,
}

/// The paths that the `HostConfig` at `at` names.
pub fn named_paths(body: &Json, at: &[&str]) -> Vec<NamedPath> {
    let path_of = |name: &'static str| [at, &[name]].concat();
    let mut found = Vec::new();
    for bind in body.texts(&path_of("Binds")) {
        let mut parts = bind.split(':');
        let (source, options) =
            (parts.next().unwrap_or_default(), parts.nth(1).unwrap_or_default());
        if source.starts_with('/') {
            let read_only = options.split(',').any(|option| option == "ro");
            found.push(NamedPath { path: source.into(), read_only });
        }
    }
    for mount in body.objects(&path_of("Mounts")) {
        let read_only = mount.is_true(&["ReadOnly"]);
        let sources = mount.texts(&["Source"]);
        if mount.texts(&["Type"]).iter().any(|kind| kind.eq_ignore_ascii_case("bind")) {
            found.extend(
                sources.into_iter().map(|source| NamedPath { path: source.into(), read_only }),
            );
        }
        let options = mount.pairs(&["VolumeOptions", "DriverConfig", "Options"]);
        found.extend(device_of_volume(&options, read_only));
    }
    found
}

/// What a volume of the driver `local` mounts, when that is a path of the host: `o=bind,device=/etc`, or a disk.
fn device_of_volume(options: &[(&str, &str)], read_only: bool) -> Option<NamedPath> {
    let device = options.iter().find(|(name, _)| name.eq_ignore_ascii_case("device"))?.1;
    device.starts_with('/').then(|| NamedPath { path: device.into(), read_only })
}

/// What a container with this configuration has of the host.
pub fn privileges_of_configuration(
    body: &Json,
    at: &[&str],
    paths: &[HostPath],
    own: &JobOwn,
) -> Vec<Privilege> {
    let path_of = |name: &'static str| [at, &[name]].concat();
    let mut found = Vec::new();
    if body.is_true(&path_of("Privileged")) {
        found.push(Privilege::Flag);
    }
    let namespaces = [
        ("PidMode", "pid"),
        ("NetworkMode", "network"),
        ("IpcMode", "ipc"),
        ("UsernsMode", "user"),
        ("CgroupnsMode", "cgroup"),
    ];
    let is_hosts = |field: &'static str| body.texts(&path_of(field)).contains(&"host");
    for (field, name) in namespaces {
        if is_hosts(field) {
            found.push(Privilege::HostNamespace(name));
        }
    }
    for capability in body.texts(&path_of("CapAdd")) {
        let name = capability.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        let with = |field: &'static str, names: &[&str]| is_hosts(field) && names.contains(&name);
        if is_dangerous_name(name)
            || with("NetworkMode", &["NET_ADMIN", "NET_RAW"])
            || with("PidMode", &["SYS_PTRACE", "CHECKPOINT_RESTORE"])
        {
            found.push(Privilege::Capability(name.to_owned()));
        }
    }
    found.extend(devices(body, at));
    for option in body.texts(&path_of("SecurityOpt")) {
        let folded = option.to_ascii_lowercase().replace(':', "=");
        if folded.ends_with("=unconfined") || folded == "label=disable" {
            found.push(Privilege::Unconfined(option.to_owned()));
        }
    }
    for field in ["MaskedPaths", "ReadonlyPaths"] {
        // An empty list is a choice; no list is the engine's default.
        if body.all_at(&path_of(field)).contains(&&Json::List(Vec::new())) {
            found.push(Privilege::Unconfined(format!("no {field}")));
        }
    }
    found.extend(
        body.texts(&path_of("CgroupParent"))
            .into_iter()
            .filter(|parent| !parent.is_empty())
            .map(|parent| Privilege::Cgroup(parent.to_owned())),
    );
    let labels = [&["Labels"][..], &["Config", "Labels"]].map(|path| body.pairs(path)).concat();
    found.extend(engine_sockets(paths, has_runner_label(labels)));
    found.extend(paths.iter().filter_map(|path| path.privilege(own)));
    found
}

/// Disks, memory and whatever is left open by rules for all devices.
fn devices(body: &Json, at: &[&str]) -> Vec<Privilege> {
    let path_of = |name: &'static str| [at, &[name]].concat();
    let nodes = body
        .objects(&path_of("Devices"))
        .into_iter()
        .flat_map(|device| device.texts(&["PathOnHost"]))
        .filter(|path| !is_harmless_device(Path::new(path)));
    let rules = body.texts(&path_of("DeviceCgroupRules")).into_iter().filter(|rule| {
        rule.starts_with(['a', 'b']) || rule.starts_with("c *") || rule.starts_with("c 1:")
    });
    nodes.chain(rules).map(|name| Privilege::Device(name.to_owned())).collect()
}

/// Devices that builds use and that lead to no data of the host: virtualisation, graphics, sound, serial adapters, FUSE,
/// tunnels.
fn is_harmless_device(path: &Path) -> bool {
    const NAMES: &[&str] = &[
        "kvm",
        "fuse",
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "vhost-net",
        "vhost-vsock",
    ];
    const BEGINNINGS: &[&str] = &["nvidia", "ttyUSB", "ttyACM", "video"];
    const DIRECTORIES: &[&str] = &["/dev/net", "/dev/dri", "/dev/snd", "/dev/nvidia-caps"];
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let in_dev = path.parent() == Some(Path::new("/dev"));
    let by_name = NAMES.contains(&name) || BEGINNINGS.iter().any(|start| name.starts_with(start));
    let has_parent = path.components().any(|part| part == std::path::Component::ParentDir);
    let in_directory = DIRECTORIES.iter().any(|directory| path.starts_with(directory));
    !has_parent && ((in_dev && by_name) || in_directory)
}

/// The first document of a text, which is what the engine reads when more follows.
fn first_document(body: &[u8]) -> Option<Json> {
    serde_json::Deserializer::from_slice(body).into_iter().next()?.ok()
}

/// A request may name the server: `http://docker/v1.41/…`.
fn without_origin(uri: &str) -> &str {
    match uri.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            rest.find('/').map_or("/", |at| rest.get(at..).unwrap_or("/"))
        }
        _ => uri,
    }
}

/// `v1.41`.
fn is_version(part: &str) -> bool {
    part.strip_prefix('v').is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    })
}

/// Undoes percent encoding; what is no such is left as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let value = match after {
            [high, low, ..] if *first == b'%' => hexadecimal(*high, *low),
            _ => None,
        };
        rest = if value.is_some() { after.get(2..).unwrap_or(&[]) } else { after };
        bytes.push(value.unwrap_or(*first));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hexadecimal(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}
