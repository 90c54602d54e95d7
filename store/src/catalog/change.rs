//! What a change of the policies comes to, decided on a snapshot.

use super::{Entry, Snapshot};
use crate::database::Change;
use jiff::Timestamp;
use portcullis_common::policy::{
    Attachment, PolicyDocument, PolicyErrors, PolicyName, SourceDocument, scope_name,
};
use portcullis_common::resolution::PolicySet;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which version of a policy a caller has seen before it changes it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Expected {
    /// It does not say; whatever is there is changed.
    #[default]
    Anything,
    /// There was no such policy.
    Nothing,
    /// This one.
    Version(u64),
}

/// A change that is valid on a snapshot.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to write, in this order. Empty when everything is as it should be already.
    pub changes: Vec<Change>,
    /// The policies afterwards, by name.
    pub entries: BTreeMap<String, Entry>,
}

/// Why a change can't be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no policy of this name.
    #[error("there is no policy named `{name}`")]
    NotFound {
        /// The name.
        name: String,
    },
    /// There is one already.
    #[error("there is a policy named `{name}` already")]
    Exists {
        /// The name.
        name: String,
    },
    /// The caller's version is not the newest any more.
    #[error("policy `{name}` has version {current} now")]
    VersionChanged {
        /// The policy.
        name: String,
        /// Its newest version; 0 when there is none.
        current: u64,
    },
    /// A document, or all of them together, would be invalid.
    #[error("the policy can't be used as it is written")]
    Invalid(#[source] PolicyErrors),
    /// The document that was sent has another name than its address.
    #[error("the document is named `{document}`, and its address says `{address}`")]
    NameDiffers {
        /// The name in the document.
        document: String,
        /// The name in the address.
        address: String,
    },
    /// `attach` in a document that is not imported.
    #[error("`attach` belongs into files and bundles; it was left unchanged")]
    AttachInDocument,
    /// The target has another policy.
    #[error("the {target} has a policy already: `{policy}`")]
    TargetTaken {
        /// The target.
        target: Attachment,
        /// Its policy.
        policy: String,
    },
    /// The target does not have this policy.
    #[error("policy `{policy}` is not attached to the {target}")]
    NotAttached {
        /// The target.
        target: Attachment,
        /// The policy.
        policy: String,
    },
    /// Others depend on the policy.
    #[error("policy `{name}` is in use: {}", .users.join(", "))]
    InUse {
        /// The policy.
        name: String,
        /// What uses it, in words.
        users: Vec<String>,
    },
}

/// What the next version of a policy is made of.
pub(super) struct NewVersion<'a> {
    pub(super) source: SourceDocument,
    pub(super) comment: Option<&'a str>,
    pub(super) author: &'a str,
    pub(super) now: Timestamp,
    /// The first version of a policy that is new.
    pub(super) first_version: u64,
}

/// Writes a document as the newest version of the policy of its name.
///
/// `expected` is what the caller has seen; `first_version` is the
/// version that a new policy of this name starts with, and `id` its id.
///
/// # Errors
/// When the caller has seen another version, or the policies would be invalid with it.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a fact of the request; a struct would be built once and taken apart once"
)]
pub fn put(
    snapshot: &Snapshot,
    name: &str,
    mut source: SourceDocument,
    expected: Expected,
    first_version: u64,
    comment: Option<&str>,
    author: &str,
    now: Timestamp,
) -> Result<Plan, ChangeError> {
    if source.document.name.as_str() != name {
        return Err(ChangeError::NameDiffers {
            document: source.document.name.to_string(),
            address: name.to_owned(),
        });
    }
    if !source.document.attach.is_empty() {
        return Err(ChangeError::AttachInDocument);
    }
    let current = snapshot.get(name);
    check_version(name, current, expected)?;
    if let Some(current) = current {
        adopt_attachments(&mut source, current.attachments());
    }
    let mut entries = snapshot.entries.clone();
    let new = NewVersion { source, comment, author, now, first_version };
    let changes = write(&mut entries, new, None).into_iter().collect();
    checked(Plan { changes, entries })
}

/// Gives a policy another name. Other policies that extend it keep doing so: their documents get the new name, too.
///
/// # Errors
/// When there is no such policy, or there is one of the new name.
pub fn rename(
    snapshot: &Snapshot,
    name: &str,
    new_name: &PolicyName,
    expected: Expected,
    comment: Option<&str>,
    author: &str,
    now: Timestamp,
) -> Result<Plan, ChangeError> {
    let current =
        snapshot.get(name).ok_or_else(|| ChangeError::NotFound { name: name.to_owned() })?;
    check_version(name, Some(current), expected)?;
    if snapshot.get(new_name).is_some() {
        return Err(ChangeError::Exists { name: new_name.to_string() });
    }
    let mut entries = snapshot.entries.clone();
    let mut changes = Vec::new();
    let mut renamed = (*current.source).clone();
    renamed.document.name = new_name.clone();
    entries.remove(name);
    let version = NewVersion { source: renamed, comment, author, now, first_version: 1 };
    changes.extend(write(&mut entries, version, Some(current)));
    let dependents: Vec<SourceDocument> = snapshot
        .entries
        .values()
        .filter(|entry| entry.source.document.extends.iter().any(|parent| parent.as_str() == name))
        .map(|entry| (*entry.source).clone())
        .collect();
    for mut source in dependents {
        for parent in &mut source.document.extends {
            if parent.as_str() == name {
                *parent = new_name.clone();
            }
        }
        let reason = format!("`{name}` was renamed to `{new_name}`");
        let version = NewVersion { source, comment: Some(&reason), author, now, first_version: 1 };
        changes.extend(write(&mut entries, version, None));
    }
    checked(Plan { changes, entries })
}

/// Removes a policy that nothing uses.
///
/// # Errors
/// When there is no such policy, or it is attached or extended: a job must not lose its policy by the way.
pub fn delete(snapshot: &Snapshot, name: &str, expected: Expected) -> Result<Plan, ChangeError> {
    let current =
        snapshot.get(name).ok_or_else(|| ChangeError::NotFound { name: name.to_owned() })?;
    check_version(name, Some(current), expected)?;
    let attached = current.attachments().iter().map(|target| format!("attached to the {target}"));
    let extended = snapshot.entries.values().filter_map(|entry| {
        let document = &entry.source.document;
        let extends = document.extends.iter().any(|parent| parent.as_str() == name);
        extends.then(|| format!("extended by policy `{}`", document.name))
    });
    let users: Vec<String> = attached.chain(extended).take(20).collect();
    if !users.is_empty() {
        return Err(ChangeError::InUse { name: name.to_owned(), users });
    }
    let mut entries = snapshot.entries.clone();
    entries.remove(name);
    Ok(Plan { changes: vec![Change::Delete { policy_id: current.id.clone() }], entries })
}

/// Attaches a policy to a target; a target that has this policy already stays as it is.
///
/// # Errors
/// When there is no such policy, it never says `egress-policy`, or the target has another policy and `replace` is not set.
pub fn attach(
    snapshot: &Snapshot,
    name: &str,
    target: &Attachment,
    replace: bool,
) -> Result<Plan, ChangeError> {
    let current =
        snapshot.get(name).ok_or_else(|| ChangeError::NotFound { name: name.to_owned() })?;
    let mut entries = snapshot.entries.clone();
    let mut changes = Vec::new();
    match snapshot.attached_to(target) {
        Some(holder) if holder == name => return Ok(Plan { changes, entries }),
        Some(holder) if !replace => {
            return Err(ChangeError::TargetTaken {
                target: target.clone(),
                policy: holder.to_owned(),
            });
        }
        Some(holder) => {
            let holder = holder.to_owned();
            changes.push(detach_from(&mut entries, &holder, target));
        }
        None => {}
    }
    if let Some(Err(errors)) = snapshot.effective(name) {
        return Err(ChangeError::Invalid(errors));
    }
    let policy_id = current.id.clone();
    attach_to(&mut entries, name, target);
    changes.push(Change::Attach {
        policy_id,
        scope: scope_name(target.scope()),
        target: target.target().to_owned(),
    });
    Ok(Plan { changes, entries })
}

/// Detaches a policy from a target.
///
/// # Errors
/// When it is not attached to it.
pub fn detach(snapshot: &Snapshot, name: &str, target: &Attachment) -> Result<Plan, ChangeError> {
    let current =
        snapshot.get(name).ok_or_else(|| ChangeError::NotFound { name: name.to_owned() })?;
    if !current.attachments().contains(target) {
        return Err(ChangeError::NotAttached { target: target.clone(), policy: name.to_owned() });
    }
    let mut entries = snapshot.entries.clone();
    let change = detach_from(&mut entries, name, target);
    Ok(Plan { changes: vec![change], entries })
}

/// Puts a new version into `entries` and returns the change that stores it. `previous` is the policy it continues, if
/// that has another name.
pub(super) fn write(
    entries: &mut BTreeMap<String, Entry>,
    new: NewVersion<'_>,
    previous: Option<&Entry>,
) -> Option<Change> {
    let name = new.source.document.name.as_str().to_owned();
    let known = previous.or_else(|| entries.get(&name));
    let document = PolicyDocument { attach: Vec::new(), ..new.source.document.clone() };
    let entry = Entry {
        id: known.map_or_else(|| uuid::Uuid::now_v7().simple().to_string(), |e| e.id.clone()),
        version: known.map_or(new.first_version, |entry| entry.version + 1),
        created_at: known.map_or(new.now, |entry| entry.created_at),
        updated_at: new.now,
        updated_by: new.author.to_owned(),
        source: Arc::new(new.source),
    };
    let change = Change::Write {
        policy_id: entry.id.clone(),
        name: name.clone(),
        version: entry.version,
        is_new: known.is_none(),
        // No document that was read is one that can't be written.
        yaml: document.to_yaml().ok()?,
        comment: new.comment.map(str::to_owned),
    };
    entries.insert(name, entry);
    Some(change)
}

/// Gives a document the attachments of the policy that it continues.
pub(super) fn adopt_attachments(source: &mut SourceDocument, attachments: &[Attachment]) {
    source.document.attach = attachments.to_vec();
    source.attach_places = vec![source.name_place.clone(); attachments.len()];
}

pub(super) fn attach_to(entries: &mut BTreeMap<String, Entry>, name: &str, target: &Attachment) {
    let Some(entry) = entries.get_mut(name) else { return };
    let source = Arc::make_mut(&mut entry.source);
    source.document.attach.push(target.clone());
    source.attach_places.push(source.name_place.clone());
}

pub(super) fn detach_from(
    entries: &mut BTreeMap<String, Entry>,
    name: &str,
    target: &Attachment,
) -> Change {
    if let Some(entry) = entries.get_mut(name) {
        let source = Arc::make_mut(&mut entry.source);
        source.document.attach.retain(|known| known != target);
        source.attach_places = vec![source.name_place.clone(); source.document.attach.len()];
    }
    Change::Detach { scope: scope_name(target.scope()), target: target.target().to_owned() }
}

/// The plan, when the policies are valid with it.
pub(super) fn checked(plan: Plan) -> Result<Plan, ChangeError> {
    match PolicySet::new(plan.entries.values().map(|entry| Arc::clone(&entry.source))) {
        Ok(_) => Ok(plan),
        Err(errors) => Err(ChangeError::Invalid(errors)),
    }
}

fn check_version(
    name: &str,
    current: Option<&Entry>,
    expected: Expected,
) -> Result<(), ChangeError> {
    let actual = current.map(|entry| entry.version);
    let is_met = match expected {
        Expected::Anything => true,
        Expected::Nothing => actual.is_none(),
        Expected::Version(version) => actual == Some(version),
    };
    if is_met {
        return Ok(());
    }
    Err(ChangeError::VersionChanged { name: name.to_owned(), current: actual.unwrap_or_default() })
}
