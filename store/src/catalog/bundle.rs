//! Bundles: all policies as one YAML text, in the format of the files of a directory.

use super::change::{NewVersion, adopt_attachments, attach_to, checked, detach_from, write};
use super::{ChangeError, Plan, Snapshot};
use crate::database::Change;
use jiff::Timestamp;
use portcullis_common::policy::{Attachment, PolicyErrors, SourceDocument, scope_name};
use portcullis_common::resolution::PolicySet;
use portcullis_common::store_api::ImportedPolicy;
use std::collections::{BTreeMap, BTreeSet};

/// All policies with what they are attached to, sorted by name.
pub fn export(snapshot: &Snapshot) -> String {
    let mut bundle = String::new();
    for entry in snapshot.entries().values() {
        // No document that was read is one that can't be written.
        let Ok(yaml) = entry.source.document.to_yaml() else { continue };
        if !bundle.is_empty() {
            bundle.push_str("---\n");
        }
        bundle.push_str(&yaml);
        if !bundle.ends_with('\n') {
            bundle.push('\n');
        }
    }
    bundle
}

/// Makes the store hold what a bundle says of the policies that are in it: document and attachments. What is the same already
/// is left alone, so that a second import changes nothing. With `prune`, policies that are not in the bundle are removed.
///
/// `first_versions` has the first version of each policy that is new.
///
/// # Errors
/// Everything that is wrong with the bundle, or with the policies once it is in; then nothing of it is imported.
pub fn import(
    snapshot: &Snapshot,
    bundle: Vec<SourceDocument>,
    first_versions: &BTreeMap<String, u64>,
    prune: bool,
    comment: Option<&str>,
    author: &str,
    now: Timestamp,
) -> Result<(Plan, Vec<ImportedPolicy>), ChangeError> {
    refuse_double_names(&bundle)?;
    let mut entries = snapshot.entries.clone();
    let (mut detaches, mut writes, mut attaches) = (Vec::new(), Vec::new(), Vec::new());
    let mut outcome = Vec::new();
    let names: BTreeSet<String> =
        bundle.iter().map(|source| source.document.name.as_str().to_owned()).collect();
    if prune {
        for (name, entry) in snapshot.entries() {
            if names.contains(name) {
                continue;
            }
            for target in entry.attachments() {
                detaches.push(detach_from(&mut entries, name, target));
            }
            entries.remove(name);
            writes.push(Change::Delete { policy_id: entry.id.clone() });
            outcome.push(ImportedPolicy {
                name: name.clone(),
                action: "deleted".to_owned(),
                version: entry.version,
                attached: Vec::new(),
                detached: entry.attachments().to_vec(),
            });
        }
    }
    for mut source in bundle {
        let name = source.document.name.as_str().to_owned();
        let wanted: Vec<Attachment> = source.document.attach.clone();
        let known = snapshot.get(&name);
        let had: Vec<Attachment> = known.map(|e| e.attachments().to_vec()).unwrap_or_default();
        adopt_attachments(&mut source, &had);
        let is_same = known.is_some_and(|entry| {
            let new = &source.document;
            entry.document()
                == portcullis_common::policy::PolicyDocument { attach: Vec::new(), ..new.clone() }
        });
        if !is_same {
            let first_version = first_versions.get(&name).copied().unwrap_or(1);
            let new = NewVersion { source, comment, author, now, first_version };
            writes.extend(write(&mut entries, new, None));
        }
        let detached: Vec<_> =
            had.iter().filter(|target| !wanted.contains(target)).cloned().collect();
        let attached: Vec<_> =
            wanted.iter().filter(|target| !had.contains(target)).cloned().collect();
        for target in &detached {
            detaches.push(detach_from(&mut entries, &name, target));
        }
        let policy = entries.get(&name);
        let (policy_id, version) =
            policy.map(|entry| (entry.id.clone(), entry.version)).unwrap_or_default();
        for target in &attached {
            attach_to(&mut entries, &name, target);
            attaches.push(Change::Attach {
                policy_id: policy_id.clone(),
                scope: scope_name(target.scope()),
                target: target.target().to_owned(),
            });
        }
        let action = match known {
            None => "created",
            Some(_) if is_same && attached.is_empty() && detached.is_empty() => "unchanged",
            Some(_) => "updated",
        };
        outcome.push(ImportedPolicy {
            name,
            action: action.to_owned(),
            version,
            attached,
            detached,
        });
    }
    outcome.sort_by(|a, b| a.name.cmp(&b.name));
    // Detaching comes first, so that a target can go from one policy to another; deleting needs it done.
    let changes = detaches.into_iter().chain(writes).chain(attaches).collect();
    Ok((checked(Plan { changes, entries })?, outcome))
}

/// A bundle that has a name twice has a mistake by itself, whatever the store holds.
fn refuse_double_names(bundle: &[SourceDocument]) -> Result<(), ChangeError> {
    let mut seen = BTreeSet::new();
    if bundle.iter().all(|source| seen.insert(source.document.name.as_str())) {
        return Ok(());
    }
    // The same check, and the same message, as for a directory of files; what they extend may be in the store.
    let alone = bundle.iter().map(|source| SourceDocument {
        document: portcullis_common::policy::PolicyDocument {
            extends: Vec::new(),
            attach: Vec::new(),
            ..source.document.clone()
        },
        extends_places: Vec::new(),
        attach_places: Vec::new(),
        name_place: source.name_place.clone(),
    });
    let errors: Result<PolicySet, PolicyErrors> = PolicySet::new(alone);
    errors.map(drop).map_err(ChangeError::Invalid)
}
