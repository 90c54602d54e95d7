//! Integrations: making, changing, trying them, and what became of their deliveries.

use super::{Store, WriteRequest, is_name, now};
use crate::database::{
    DatabaseError, DeliveryFilter, IntegrationRow, IntegrationWrite, NEW_OUTBOUND_NETWORK_CALL,
    Settled, state_name,
};
use crate::notify::{
    Payload, Secrets, Settings, SettingsError, parts, read_target, sample, shown_target,
};
use jiff::Timestamp;
use portcullis_common::event::DetectionType;
use portcullis_common::store_api::{
    Delivery, DeliveryState, Integration, NotificationKind, Selection, WriteIntegration,
};
use portcullis_common::text::log_line;
use std::collections::HashMap;
use uuid::Uuid;

/// The most integrations of a store.
const MAX_INTEGRATIONS: i64 = 100;

/// The most targets of a selection.
const MAX_SCOPES: usize = 500;

/// Why an integration or a suppression can't be written, tried or removed.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// What is asked for makes no sense.
    #[error("{detail}")]
    Invalid {
        /// What is wrong.
        detail: String,
        /// What to do.
        hint: &'static str,
    },
    /// There is no such thing.
    #[error("{0}")]
    NotFound(&'static str),
    /// Something else has this name.
    #[error("there is an integration named {0:?} already")]
    NameTaken(String),
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl NotifyError {
    /// What is asked for makes no sense.
    pub(super) fn invalid(detail: impl Into<String>, hint: &'static str) -> Self {
        Self::Invalid { detail: detail.into(), hint }
    }
}

impl From<SettingsError> for NotifyError {
    fn from(error: SettingsError) -> Self {
        Self::Invalid { detail: error.detail, hint: error.hint }
    }
}

/// Whether there can be detections of this type: those of the monitors, and the one that the store makes itself.
pub(super) fn is_detection_type(text: &str) -> bool {
    text == NEW_OUTBOUND_NETWORK_CALL
        || serde_json::from_value::<DetectionType>(serde_json::Value::String(text.to_owned()))
            .is_ok()
}

/// The error for a type that no detection has.
pub(super) fn unknown_type(text: &str) -> NotifyError {
    NotifyError::invalid(
        format!("there are no detections of type {:?}", log_line(text, 100)),
        "the types stand in docs/detections.md, such as `Reverse-Shell`",
    )
}

fn check(name: &str, selection: &Selection) -> Result<(), NotifyError> {
    if !is_name(name) {
        return Err(NotifyError::invalid(
            "an integration's name has 1 to 100 visible characters in one line",
            "such as `security channel`",
        ));
    }
    if let Some(kind) = selection.detection_types.iter().find(|kind| !is_detection_type(kind)) {
        return Err(unknown_type(kind));
    }
    if selection.scopes.len() > MAX_SCOPES || selection.detection_types.len() > 100 {
        return Err(NotifyError::invalid(
            "the selection is too long",
            "at most 500 scopes and 100 types; make several integrations",
        ));
    }
    Ok(())
}

impl Store {
    /// Where a person sees a run.
    pub fn link(&self, run_id: u64, attempt: u32) -> String {
        format!("{}/runs/{run_id}-{attempt}", self.configuration.public_url.trim_end_matches('/'))
    }

    /// All integrations, by name, without their secrets.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn integrations(&self) -> Result<Vec<Integration>, NotifyError> {
        let counts = self.database.delivery_counts().await?;
        let rows = self.database.integrations().await?;
        rows.into_iter().map(|row| shown(row, &counts)).collect()
    }

    /// An integration without its secrets.
    ///
    /// # Errors
    /// When there is no such one, or the database can't be used.
    pub async fn integration(&self, id: &str) -> Result<Integration, NotifyError> {
        let counts = self.database.delivery_counts().await?;
        shown(self.integration_row(id).await?, &counts)
    }

    async fn integration_row(&self, id: &str) -> Result<IntegrationRow, NotifyError> {
        self.database
            .integration(id)
            .await?
            .ok_or(NotifyError::NotFound("there is no such integration"))
    }

    /// Makes an integration.
    ///
    /// # Errors
    /// When what is written makes no sense, or the database can't be used.
    pub async fn create_integration(
        &self,
        request: &WriteRequest,
        written: &WriteIntegration,
    ) -> Result<Integration, NotifyError> {
        check(&written.name, &written.selection)?;
        let allow_http = self.configuration.notifications.allow_http;
        let (settings, secrets) = read_target(&written.target, None, allow_http)?;
        let now_ms = now().as_millisecond();
        let row = IntegrationRow {
            id: Uuid::now_v7().simple().to_string(),
            name: written.name.clone(),
            settings: json(&settings)?,
            secrets: json(&secrets)?,
            selection: json(&written.selection)?,
            enabled: written.enabled,
            created_ms: now_ms,
            created_by: request.actor.clone(),
            updated_ms: now_ms,
        };
        let detail = format!("{} ({})", row.name, settings.kind());
        let subject = format!("integration:{}", row.id);
        let entry = request.entry("integration.create", subject, Some(detail));
        let result = self.database.insert_integration(&row, MAX_INTEGRATIONS, &entry).await?;
        outcome(result, row)
    }

    /// Changes an integration. Secrets that are not written stay, as long as they go where they went before.
    ///
    /// # Errors
    /// When there is no such one, what is written makes no sense, or the database can't be used.
    pub async fn update_integration(
        &self,
        request: &WriteRequest,
        id: &str,
        written: &WriteIntegration,
    ) -> Result<Integration, NotifyError> {
        check(&written.name, &written.selection)?;
        let before = self.integration_row(id).await?;
        let (old_settings, old_secrets) = parts(&before)?;
        let (settings, secrets) = read_target(
            &written.target,
            Some((&old_settings, &old_secrets)),
            self.configuration.notifications.allow_http,
        )?;
        let row = IntegrationRow {
            name: written.name.clone(),
            settings: json(&settings)?,
            secrets: json(&secrets)?,
            selection: json(&written.selection)?,
            enabled: written.enabled,
            updated_ms: now().as_millisecond().max(before.updated_ms + 1),
            ..before.clone()
        };
        let detail = format!("{} ({})", row.name, settings.kind());
        let entry = request.entry("integration.update", format!("integration:{id}"), Some(detail));
        let result = self.database.update_integration(&row, before.updated_ms, &entry).await?;
        self.dispatcher.wake();
        outcome(result, row)
    }

    /// Removes an integration with its deliveries, also those that wait.
    ///
    /// # Errors
    /// When there is no such one, or the database can't be used.
    pub async fn delete_integration(
        &self,
        request: &WriteRequest,
        id: &str,
    ) -> Result<(), NotifyError> {
        let row = self.integration_row(id).await?;
        let entry =
            request.entry("integration.delete", format!("integration:{id}"), Some(row.name));
        if self.database.delete_integration(id, &entry).await? {
            return Ok(());
        }
        Err(NotifyError::NotFound("there is no such integration"))
    }

    /// Tells an integration, at once and a single time, that this is a test; what became of it.
    ///
    /// # Errors
    /// When there is no such one, or the database can't be used. A test that fails is no error.
    pub async fn test_integration(
        &self,
        request: &WriteRequest,
        id: &str,
    ) -> Result<Delivery, NotifyError> {
        let row = self.integration_row(id).await?;
        let (settings, secrets) = parts(&row)?;
        let mut notification = sample(NotificationKind::Test);
        notification.link = self.link(notification.run_id, notification.run_attempt);
        let delivery = Uuid::now_v7().simple().to_string();
        let payload = json(&Payload::Notification(Box::new(notification.clone())))?;
        let timeout = self.configuration.notifications.timeout();
        let target = (&settings, &secrets);
        let attempt = self.dispatcher.attempt(target, &delivery, notification, timeout).await;
        let (status, error) = match attempt {
            Ok(status) => (status, None),
            Err(failure) => (failure.status, Some(log_line(&failure.error, 500))),
        };
        let state = if error.is_none() { DeliveryState::Delivered } else { DeliveryState::Dead };
        let time = now();
        let settled = Settled {
            state,
            due_ms: time.as_millisecond(),
            now_ms: time.as_millisecond(),
            status,
            error: error.clone(),
        };
        let detail = format!("{}: {}", row.name, state_name(state));
        let entry = request.entry("integration.test", format!("integration:{id}"), Some(detail));
        self.database.insert_tried_delivery(id, &delivery, &payload, &settled, &entry).await?;
        let time = millisecond(time)?;
        Ok(Delivery {
            id: delivery,
            integration: id.to_owned(),
            kind: NotificationKind::Test.name().to_owned(),
            state,
            created_at: time,
            attempts: 1,
            next_attempt_at: None,
            last_attempt_at: Some(time),
            last_status: status,
            last_error: error,
        })
    }

    /// Deliveries, the newest first, each with its key.
    ///
    /// # Errors
    /// When the integration does not exist, or the database can't be used.
    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        limit: u32,
    ) -> Result<Vec<(i64, Delivery)>, NotifyError> {
        if let Some(id) = &filter.integration {
            self.integration_row(id).await?;
        }
        Ok(self.database.deliveries(filter, limit).await?)
    }

    /// Tries a delivery that was given up again, as if it were new.
    ///
    /// # Errors
    /// When there is no such one, or the database can't be used.
    pub async fn retry_delivery(
        &self,
        request: &WriteRequest,
        id: &str,
    ) -> Result<(), NotifyError> {
        let entry = request.entry("delivery.retry", format!("delivery:{id}"), None);
        if !self.database.retry_delivery(id, now().as_millisecond(), &entry).await? {
            return Err(NotifyError::NotFound("there is no such delivery that was given up"));
        }
        self.dispatcher.wake();
        Ok(())
    }
}

fn outcome(result: IntegrationWrite, row: IntegrationRow) -> Result<Integration, NotifyError> {
    match result {
        IntegrationWrite::Written => shown(row, &HashMap::new()),
        IntegrationWrite::NameTaken => Err(NotifyError::NameTaken(row.name)),
        IntegrationWrite::TooMany => Err(NotifyError::invalid(
            "there are 100 integrations already",
            "remove one, or have one receiver tell others",
        )),
    }
}

/// Times are stored in milliseconds; what is answered at once says the same as what is read later.
fn millisecond(time: Timestamp) -> Result<Timestamp, NotifyError> {
    Timestamp::from_millisecond(time.as_millisecond())
        .map_err(|error| DatabaseError::Corrupt(error.to_string()).into())
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, NotifyError> {
    serde_json::to_string(value).map_err(|error| DatabaseError::Corrupt(error.to_string()).into())
}

fn shown(
    row: IntegrationRow,
    counts: &HashMap<String, (u64, u64)>,
) -> Result<Integration, NotifyError> {
    let (settings, secrets): (Settings, Secrets) = parts(&row)?;
    let selection = serde_json::from_str(&row.selection)
        .map_err(|_| DatabaseError::Corrupt(format!("integration {}", row.id)))?;
    let (pending, dead) = counts.get(&row.id).copied().unwrap_or_default();
    let time = |milliseconds| {
        Timestamp::from_millisecond(milliseconds)
            .map_err(|error| DatabaseError::Corrupt(error.to_string()))
    };
    Ok(Integration {
        target: shown_target(&settings, &secrets),
        selection,
        enabled: row.enabled,
        pending,
        dead,
        created_at: time(row.created_ms)?,
        updated_at: time(row.updated_ms)?,
        id: row.id,
        name: row.name,
        created_by: row.created_by,
    })
}
