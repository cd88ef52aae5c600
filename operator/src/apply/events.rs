//! Publishes Events (events.k8s.io). Their names are made from what they say: what happens once is created
//! once, what happens again is counted, at most once a minute. An Event that cannot be published is logged
//! and stops nothing, unless nobody could tell it later.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource};
use penstock_crds::CdcPipeline;
use sha2::{Digest as _, Sha256};

use crate::call::{CallError, call};
use crate::plan::{EventKind, PlannedEvent};

/// The API server refuses a longer note.
const NOTE_BYTES_MAX: usize = 1024;
/// An event that repeats is counted at most this often.
const COUNTED_EVERY: Duration = Duration::from_mins(1);
/// How long an event that was published is remembered: as long as the API server keeps it, and what happens
/// once as long as it is asked for.
const REMEMBERED: Duration = Duration::from_hours(1);

/// Publishes Events.
pub(crate) struct Publisher {
    client: Client,
    /// Name of this operator's pod.
    instance: String,
    published: Mutex<HashMap<String, Published>>,
}

#[derive(Clone, Copy, Debug)]
struct Published {
    /// When it was published first.
    first: Instant,
    /// When it was published or counted last.
    last: Instant,
    /// When it was last asked for.
    seen: Instant,
    count: i32,
    is_once: bool,
}

impl Publisher {
    /// A publisher that has published nothing yet.
    pub(crate) fn new(client: Client, instance: String) -> Self {
        Self { client, instance, published: Mutex::default() }
    }

    /// Tells people something about a pipeline.
    ///
    /// # Errors
    /// Only for a required event that could not be published.
    pub(crate) async fn publish(
        &self,
        pipeline: &CdcPipeline,
        event: &PlannedEvent,
    ) -> Result<(), CallError> {
        self.about(&pipeline.object_ref(&()), event).await
    }

    /// Tells people that a stored object cannot be read.
    pub(crate) async fn malformed(&self, object: &DeserializeGuard<CdcPipeline>, note: String) {
        let event = PlannedEvent {
            kind: EventKind::Warning,
            reason: "Malformed".into(),
            action: "Read".into(),
            note,
            once: None,
            is_required: false,
        };
        let mut reference = object.object_ref(&());
        reference.resource_version = None;
        // It is not required, so there is no error.
        let _ = self.about(&reference, &event).await;
    }

    async fn about(&self, regarding: &ObjectReference, event: &PlannedEvent) -> Result<(), CallError> {
        let name = event_name(regarding, event);
        let Some(before) = self.due(&name, event.once.is_some()) else { return Ok(()) };
        if before.is_none() {
            match event.kind {
                EventKind::Normal => tracing::info!(reason = %event.reason, note = %event.note, "tells"),
                EventKind::Warning => tracing::warn!(reason = %event.reason, note = %event.note, "tells"),
            }
        }
        let outcome = match before {
            None => self.create(regarding, event, &name).await,
            Some(count) => self.count(regarding, &name, count).await,
        };
        match outcome {
            Err(error) if event.is_required => {
                self.lock().remove(&name);
                Err(error)
            }
            Err(error) => {
                tracing::warn!(%error, reason = %event.reason, note = %event.note, "an Event could not be published");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Notes that an event happens now. Nothing: it was published and is not due again. `Some(None)`: it is
    /// new. `Some(count)`: it happened so many times.
    #[expect(clippy::option_option, reason = "not due, new, counted: the doc says which is which")]
    fn due(&self, name: &str, is_once: bool) -> Option<Option<i32>> {
        let now = Instant::now();
        let mut published = self.lock();
        published.retain(|_, event| {
            let since = if event.is_once { event.seen } else { event.first };
            now - since < REMEMBERED
        });
        let Some(event) = published.get_mut(name) else {
            published
                .insert(name.to_owned(), Published { first: now, last: now, seen: now, count: 1, is_once });
            return Some(None);
        };
        event.seen = now;
        event.count = event.count.saturating_add(1);
        if is_once || now - event.last < COUNTED_EVERY {
            return None;
        }
        event.last = now;
        Some(Some(event.count))
    }

    async fn create(
        &self,
        regarding: &ObjectReference,
        event: &PlannedEvent,
        name: &str,
    ) -> Result<(), CallError> {
        let namespace = regarding.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let object = Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            action: Some(event.action.clone()),
            reason: Some(event.reason.clone()),
            note: Some(shortened(&event.note)),
            type_: Some(format!("{:?}", event.kind)),
            event_time: Some(MicroTime(Timestamp::now())),
            regarding: Some(regarding.clone()),
            reporting_controller: Some("penstock.dev/operator".into()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        };
        match call(format!("creating the Event {name}"), api.create(&PostParams::default(), &object)).await {
            // An earlier run of the operator has published it.
            Err(error) if error.is_code(409) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn count(&self, regarding: &ObjectReference, name: &str, count: i32) -> Result<(), CallError> {
        let namespace = regarding.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let series = EventSeries { count, last_observed_time: MicroTime(Timestamp::now()) };
        let patch = Patch::Merge(serde_json::json!({"series": series}));
        match call(format!("counting the Event {name}"), api.patch(name, &PatchParams::default(), &patch))
            .await
        {
            // It was kept for its time; it is created again when it happens again.
            Err(error) if error.is_code(404) => {
                self.lock().remove(name);
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Published>> {
        self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The same event of the same object has the same name.
fn event_name(regarding: &ObjectReference, event: &PlannedEvent) -> String {
    let identity = event.once.clone().unwrap_or_else(|| format!("{}\n{}", event.reason, event.note));
    let uid = regarding.uid.as_deref().unwrap_or_default();
    let mut digest = hex::encode(Sha256::digest(format!("{uid}\n{identity}")));
    digest.truncate(16);
    format!("{}.{digest}", regarding.name.as_deref().unwrap_or("pipeline"))
}

fn shortened(note: &str) -> String {
    if note.len() <= NOTE_BYTES_MAX {
        return note.to_owned();
    }
    let end = note.floor_char_boundary(NOTE_BYTES_MAX - '…'.len_utf8());
    format!("{}…", &note[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = "ä".repeat(1000);
        let short = shortened(&note);
        assert!(short.len() <= NOTE_BYTES_MAX && short.ends_with("ä…"), "{}", short.len());
        assert_eq!(shortened("short"), "short");
    }

    #[test]
    fn what_happens_once_has_one_name_whatever_the_note_says() {
        let regarding =
            ObjectReference { name: Some("inventory".into()), uid: Some("uid".into()), ..Default::default() };
        let event = |note: &str, once: Option<&str>| PlannedEvent {
            kind: EventKind::Normal,
            reason: "R".into(),
            action: "A".into(),
            note: note.into(),
            once: once.map(str::to_owned),
            is_required: false,
        };
        let name = |note, once| event_name(&regarding, &event(note, once));
        assert_eq!(name("a", Some("k")), name("b", Some("k")));
        assert_ne!(name("a", Some("k")), name("a", Some("l")));
        assert_ne!(name("a", None), name("b", None));
        assert!(name("a", None).starts_with("inventory."));
    }
}
