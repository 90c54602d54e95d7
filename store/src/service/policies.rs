//! The policies in memory, and writing them: decide on a snapshot, write if it is still true, else decide again.

use super::{Store, now};
use crate::catalog::{Entry, Plan, Snapshot};
use crate::database::{DatabaseError, NewAuditEntry, StoredDocument};
use jiff::Timestamp;
use portcullis_common::policy::{Attachment, SourceDocument, parse_documents};
use portcullis_common::resolution::ScopeKind;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

/// How often a change is decided anew because somebody else was faster.
const MAX_ATTEMPTS: usize = 20;

/// More changed documents than this are read all at once.
const READ_ONE_BY_ONE: usize = 64;

/// Who changes the policies, for the record.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    /// Who: `token:ci`.
    pub actor: String,
    /// From where.
    pub address: Option<String>,
}

impl WriteRequest {
    /// The record of a change that is made now.
    pub fn entry(
        &self,
        action: &'static str,
        subject: String,
        detail: Option<String>,
    ) -> NewAuditEntry {
        NewAuditEntry {
            time_ms: now().as_millisecond(),
            actor: self.actor.clone(),
            action,
            subject,
            detail,
            address: self.address.clone(),
        }
    }
}

impl Store {
    /// The policies as they are now.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>, DatabaseError> {
        let generation = self.freshness.look(&self.database).await?.policies;
        self.snapshot_from(generation).await
    }

    /// The policies of this generation or a newer one, for a request that has looked at the database's counters.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn snapshot_from(&self, generation: i64) -> Result<Arc<Snapshot>, DatabaseError> {
        let known = self.known_snapshot();
        if known.generation() >= generation {
            return Ok(known);
        }
        Box::pin(self.load_since(generation)).await
    }

    async fn load_since(&self, generation: i64) -> Result<Arc<Snapshot>, DatabaseError> {
        let _loading = self.loading.lock().await;
        let known = self.known_snapshot();
        if known.generation() >= generation {
            return Ok(known);
        }
        let loaded = Arc::new(self.load(&known).await?);
        self.remember(&loaded);
        Ok(loaded)
    }

    /// Changes the policies: `decide` is asked on the newest snapshot, again when somebody else was faster. The audit log gets
    /// `action` for `subject`.
    ///
    /// # Errors
    /// `decide`'s, or when the database can't be used.
    pub async fn change<T, E>(
        &self,
        request: &WriteRequest,
        (action, subject, detail): (&'static str, String, Option<String>),
        decide: impl Fn(&Snapshot, Timestamp) -> Result<(Plan, T), E>,
    ) -> Result<(Arc<Snapshot>, T), E>
    where
        E: From<DatabaseError>,
    {
        for _ in 0..MAX_ATTEMPTS {
            let snapshot = self.snapshot().await?;
            let now = now();
            let (plan, outcome) = decide(&snapshot, now)?;
            if plan.changes.is_empty() {
                return Ok((snapshot, outcome));
            }
            let entry = NewAuditEntry {
                time_ms: now.as_millisecond(),
                actor: request.actor.clone(),
                action,
                subject: subject.clone(),
                detail: detail.clone(),
                address: request.address.clone(),
            };
            let written = self
                .database
                .change_policies(
                    snapshot.generation(),
                    &plan.changes,
                    &request.actor,
                    now.as_millisecond(),
                    &[entry],
                )
                .await;
            match written {
                Ok(generation) => {
                    let written = Arc::new(Snapshot::new(generation, plan.entries.into_values()));
                    self.remember(&written);
                    return Ok((written, outcome));
                }
                Err(DatabaseError::Stale) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(DatabaseError::Stale.into())
    }

    fn known_snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn remember(&self, snapshot: &Arc<Snapshot>) {
        let mut known = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
        if known.generation() < snapshot.generation() {
            *known = Arc::clone(snapshot);
        }
    }

    /// Reads the policies; documents that `known` has are not read again.
    async fn load(&self, known: &Snapshot) -> Result<Snapshot, DatabaseError> {
        loop {
            let before = self.database.generations().await?.policies;
            let rows = self.database.policy_rows().await?;
            let attachments = self.database.attachment_rows().await?;
            let known_by_id: HashMap<&str, &Entry> =
                known.entries().values().map(|entry| (entry.id.as_str(), entry)).collect();
            let is_known = |id: &str, version: u64| {
                known_by_id.get(id).is_some_and(|entry| entry.version == version)
            };
            let missing: Vec<&str> = rows
                .iter()
                .filter(|row| !is_known(&row.id, row.version))
                .map(|row| row.id.as_str())
                .collect();
            let documents = self.documents(&missing).await?;
            if self.database.generations().await?.policies != before {
                // Somebody wrote in between; what was read may not fit together.
                continue;
            }
            let mut targets: HashMap<&str, Vec<Attachment>> = HashMap::new();
            for (policy, scope, target) in &attachments {
                targets.entry(policy).or_default().push(attachment(scope, target)?);
            }
            let mut entries = Vec::with_capacity(rows.len());
            for row in &rows {
                let attach = targets.remove(row.id.as_str()).unwrap_or_default();
                let source = match known_by_id.get(row.id.as_str()) {
                    Some(entry)
                        if entry.version == row.version && entry.attachments() == attach =>
                    {
                        Arc::clone(&entry.source)
                    }
                    Some(entry) if entry.version == row.version => {
                        Arc::new(with_attachments((*entry.source).clone(), attach))
                    }
                    _ => {
                        let yaml = documents
                            .get(&(row.id.clone(), row.version))
                            .ok_or_else(|| corrupt(&row.name, "its document is missing"))?;
                        Arc::new(with_attachments(read(&row.name, yaml)?, attach))
                    }
                };
                entries.push(Entry {
                    id: row.id.clone(),
                    version: row.version,
                    created_at: time(row.created_ms)?,
                    updated_at: time(row.updated_ms)?,
                    updated_by: row.updated_by.clone(),
                    source,
                });
            }
            return Ok(Snapshot::new(before, entries));
        }
    }

    async fn documents(
        &self,
        ids: &[&str],
    ) -> Result<HashMap<(String, u64), String>, DatabaseError> {
        let found: Vec<StoredDocument> = if ids.len() > READ_ONE_BY_ONE {
            self.database.newest_documents().await?
        } else {
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                found.extend(self.database.newest_document(id).await?);
            }
            found
        };
        Ok(found
            .into_iter()
            .map(|document| ((document.policy_id, document.version), document.yaml))
            .collect())
    }
}

/// Reads a stored document. In messages it is called by the policy's name.
pub fn read(name: &str, yaml: &str) -> Result<SourceDocument, DatabaseError> {
    let mut documents = parse_documents(&format!("policy {name}"), yaml.as_bytes())
        .map_err(|errors| corrupt(name, &errors.to_string()))?;
    match documents.len() {
        1 => Ok(documents.remove(0)),
        _ => Err(corrupt(name, "it is not one document")),
    }
}

fn with_attachments(mut source: SourceDocument, attach: Vec<Attachment>) -> SourceDocument {
    source.attach_places = vec![source.name_place.clone(); attach.len()];
    source.document.attach = attach;
    source
}

fn attachment(scope: &str, target: &str) -> Result<Attachment, DatabaseError> {
    let kind = match scope {
        "cluster" => ScopeKind::Cluster,
        "organization" => ScopeKind::Organization,
        "repository" => ScopeKind::Repository,
        "workflow" => ScopeKind::Workflow,
        other => {
            return Err(DatabaseError::Corrupt(format!("the kind of target {other:?}")));
        }
    };
    Attachment::new(kind, target).map_err(|error| DatabaseError::Corrupt(error.to_string()))
}

fn corrupt(name: &str, what: &str) -> DatabaseError {
    DatabaseError::Corrupt(format!("policy {name:?}: {what}"))
}

fn time(milliseconds: i64) -> Result<Timestamp, DatabaseError> {
    Timestamp::from_millisecond(milliseconds)
        .map_err(|error| DatabaseError::Corrupt(format!("a time: {error}")))
}
