//! From a tree to a policy document, key by key, every mistake reported.

use super::SourceDocument;
use super::source::Source;
use super::tree::{Node, Value};
use super::value::{Reader, describe};
use crate::policy::error::{ErrorList, did_you_mean, quoted};
use crate::policy::{
    Attachment, EgressMode, FailureMode, LockdownDetection, LockdownMode, PolicyDocument,
    PolicyName,
};
use crate::resolution::ScopeKind;

/// The keys of a document, in the order of the manual.
const KEYS: [&str; 14] = [
    "name",
    "description",
    "egress-policy",
    "allowed-endpoints",
    "denied-endpoints",
    "extends",
    "fail-on-block",
    "disable-sudo",
    "disable-sudo-and-containers",
    "disable-file-monitoring",
    "disable-telemetry",
    "on-failure",
    "lockdown-mode",
    "attach",
];

/// The longest description in bytes.
const MAX_DESCRIPTION_BYTES: usize = 4096;

/// The most policies that one document extends directly.
const MAX_EXTENDS: usize = 64;

const EGRESS_MODES: [(&str, EgressMode); 2] =
    [("audit", EgressMode::Audit), ("block", EgressMode::Block)];

const FAILURE_MODES: [(&str, FailureMode); 3] = [
    ("closed", FailureMode::Closed),
    ("last-known-good", FailureMode::LastKnownGood),
    ("audit", FailureMode::Audit),
];

const DETECTIONS: [(&str, LockdownDetection); 3] = [
    ("Privileged-Container", LockdownDetection::PrivilegedContainer),
    ("Runner-Worker-Memory-Read", LockdownDetection::RunnerWorkerMemoryRead),
    ("Reverse-Shell", LockdownDetection::ReverseShell),
];

const SCOPES: [(&str, ScopeKind); 4] = [
    ("cluster", ScopeKind::Cluster),
    ("organization", ScopeKind::Organization),
    ("repository", ScopeKind::Repository),
    ("workflow", ScopeKind::Workflow),
];

/// Reads one document; `None` when something is wrong with it, which `errors` then holds.
pub(super) fn document(
    source: &Source<'_>,
    root: Node,
    errors: &mut ErrorList,
) -> Option<SourceDocument> {
    let before = errors.len();
    let start = root.offset;
    let mut reader = Reader::new(source, errors);
    let entries = reader.mapping(root, None, &KEYS)?;
    let mut name = None;
    // A placeholder until `name` is known; a document without one is not returned.
    let mut document = PolicyDocument::new(PolicyName::try_from("x".to_owned()).ok()?);
    let mut extends = Vec::new();
    let mut attach = Vec::new();
    for (key, node) in entries {
        match key {
            "name" => {
                let offset = node.offset;
                name = reader.policy_name(&node, key).map(|name| (name, offset));
            }
            "description" => document.description = description(&mut reader, &node),
            "egress-policy" => document.egress_policy = reader.choice(&node, key, &EGRESS_MODES),
            "allowed-endpoints" => document.allowed_endpoints = reader.endpoints(&node, key),
            "denied-endpoints" => document.denied_endpoints = reader.endpoints(&node, key),
            "extends" => extends = read_extends(&mut reader, &node),
            "fail-on-block" => document.fail_on_block = reader.boolean(&node, key),
            "disable-sudo" => document.disable_sudo = reader.boolean(&node, key),
            "disable-sudo-and-containers" => {
                document.disable_sudo_and_containers = reader.boolean(&node, key);
            }
            "disable-file-monitoring" => {
                document.disable_file_monitoring = reader.boolean(&node, key);
            }
            "disable-telemetry" => document.disable_telemetry = reader.boolean(&node, key),
            "on-failure" => document.on_failure = reader.choice(&node, key, &FAILURE_MODES),
            "lockdown-mode" => document.lockdown_mode = lockdown(&mut reader, node),
            "attach" => attach = read_attach(&mut reader, &node),
            _ => {}
        }
    }
    let Some((name, name_offset)) = name else {
        // A name that is wrong has been reported already.
        if errors.len() == before {
            let hint = "add a line such as `name: node-build`";
            errors.push(source.error(
                start,
                Some("name"),
                "the policy has no name".to_owned(),
                hint,
            ));
        }
        return None;
    };
    if errors.len() > before {
        return None;
    }
    document.name = name;
    let (extends_offsets, extends): (Vec<_>, Vec<_>) = extends.into_iter().unzip();
    let (attach_offsets, attach): (Vec<_>, Vec<_>) = attach.into_iter().unzip();
    document.extends = extends;
    document.attach = attach;
    Some(SourceDocument {
        document,
        name_place: source.place(name_offset),
        extends_places: extends_offsets.into_iter().map(|offset| source.place(offset)).collect(),
        attach_places: attach_offsets.into_iter().map(|offset| source.place(offset)).collect(),
    })
}

fn description(reader: &mut Reader<'_, '_>, node: &Node) -> Option<String> {
    let text = reader.text(node, "description", "a text")?;
    if text.len() > MAX_DESCRIPTION_BYTES {
        let message = format!("the description has more than {MAX_DESCRIPTION_BYTES} bytes");
        reader.error(
            node.offset,
            "description",
            message,
            "keep it short; put details in a comment",
        );
        return None;
    }
    Some(text.to_owned())
}

fn read_extends(reader: &mut Reader<'_, '_>, node: &Node) -> Vec<(usize, PolicyName)> {
    let mut names: Vec<(usize, PolicyName)> = Vec::new();
    for item in reader.list(node, "extends", "a list of policy names, such as `[org-base]`") {
        let Some(name) = reader.policy_name(item, "extends") else { continue };
        if names.iter().any(|(_, known)| *known == name) {
            let message = format!("`{name}` is listed twice");
            reader.error(item.offset, "extends", message, "name each policy once");
        } else if names.len() == MAX_EXTENDS {
            let message = format!("more than {MAX_EXTENDS} policies are listed");
            reader.error(
                item.offset,
                "extends",
                message,
                "unite some of them in a policy of their own",
            );
            break;
        } else {
            names.push((item.offset, name));
        }
    }
    names
}

fn lockdown(reader: &mut Reader<'_, '_>, node: Node) -> Option<LockdownMode> {
    let mut mode = LockdownMode::default();
    let keys = ["enabled", "detections"];
    for (key, node) in reader.mapping(node, Some("lockdown-mode"), &keys)? {
        if key == "enabled" {
            mode.enabled = reader.boolean(&node, "lockdown-mode.enabled")?;
            continue;
        }
        let path = "lockdown-mode.detections";
        for item in reader.list(&node, path, "a list of detection types") {
            let Some(detection) = reader.choice(item, path, &DETECTIONS) else { continue };
            if mode.detections.contains(&detection) {
                let message = "the detection is listed twice".to_owned();
                reader.error(item.offset, path, message, "name each detection once");
            } else {
                mode.detections.push(detection);
            }
        }
    }
    Some(mode)
}

fn read_attach(reader: &mut Reader<'_, '_>, node: &Node) -> Vec<(usize, Attachment)> {
    let mut attachments = Vec::new();
    let expected = "a list of targets, such as `- repository: octo/hello`";
    for item in reader.list(node, "attach", expected) {
        let Value::Map(pairs) = &item.value else {
            let message = format!("a target is expected, not {}", describe(item));
            reader.error(
                item.offset,
                "attach",
                message,
                "write the kind and the target, such as `- repository: octo/hello`",
            );
            continue;
        };
        let [(key, target)] = pairs.as_slice() else {
            let message = "an entry names exactly one target".to_owned();
            reader.error(item.offset, "attach", message, "begin each target with a `-` of its own");
            continue;
        };
        let Some(word) = reader.text(key, "attach", "a kind of target") else { continue };
        let Some((name, scope)) = SCOPES.iter().find(|(name, _)| *name == word) else {
            let hint = did_you_mean(word, SCOPES.iter().map(|(name, _)| *name));
            reader.error(
                key.offset,
                "attach",
                format!("{} is no kind of target", quoted(word)),
                hint,
            );
            continue;
        };
        let path = format!("attach.{name}");
        let Some(text) = reader.text(target, &path, "a target") else { continue };
        match Attachment::new(*scope, text) {
            Ok(attachment) => attachments.push((item.offset, attachment)),
            Err(error) => reader.error(target.offset, &path, error.to_string(), error.hint),
        }
    }
    attachments
}
