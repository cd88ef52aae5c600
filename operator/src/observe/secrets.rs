//! Secrets, each by its name: whether those that a manifest names have their keys, and the one that
//! operator and workers share. Never listed, never watched. What is in order is asked for again only after
//! a while; what is missing, every time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _};
use penstock_crds::CdcPipeline;
use penstock_crds::names::FILE_TOKEN;
use penstock_crds::transform::key_secrets;

use super::Identity;
use super::objects::is_owned;
use crate::call::{CallError, call};
use crate::names::{ANNOTATION_RENEW_AT, control_secret};
use crate::plan::{MASK_KEYS, secrets_required};
use crate::world::{ControlSecret, SecretKeys};

/// How long a Secret that was in order is believed to be.
const BELIEVED: Duration = Duration::from_secs(30);

/// Token and certificate authority of a pipeline's workers.
#[derive(Clone)]
pub(crate) struct ControlMaterial {
    /// The bearer token.
    pub token: String,
    /// The certificates to trust, PEM; the newest first.
    pub ca: Vec<u8>,
}

impl std::fmt::Debug for ControlMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ControlMaterial")
    }
}

/// Reads Secrets by name.
pub(crate) struct SecretReader {
    client: Client,
    /// By namespace and name.
    in_order: Mutex<HashMap<(String, String), InOrder>>,
    /// By the pipeline's UID.
    control: Mutex<HashMap<String, (Instant, ControlSecret, ControlMaterial)>>,
}

/// When a Secret was read, and its keys.
type InOrder = (Instant, BTreeSet<String>);

impl SecretReader {
    /// A reader that knows nothing yet.
    pub(crate) fn new(client: Client) -> Self {
        Self { client, in_order: Mutex::default(), control: Mutex::default() }
    }

    /// Forgets a pipeline's control Secret.
    pub(super) fn forget(&self, uid: &str) {
        lock(&self.control).remove(uid);
    }

    /// The Secrets that a manifest names, each with its keys.
    pub(super) async fn named_in(
        &self,
        pipeline: &CdcPipeline,
        identity: &Identity,
    ) -> Result<BTreeMap<String, SecretKeys>, CallError> {
        let spec = &pipeline.spec;
        let connections = [&spec.source.postgres.connection, &spec.sink.postgres.connection];
        let mut required: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (_, secret, keys) in connections.into_iter().flat_map(secrets_required) {
            required.entry(secret).or_default().extend(keys);
        }
        for secret in key_secrets(&spec.transforms) {
            required.entry(secret).or_default().extend(MASK_KEYS);
        }
        let mut found = BTreeMap::new();
        for (secret, keys) in required {
            found.insert(secret.to_owned(), self.keys(&identity.namespace, secret, &keys).await?);
        }
        Ok(found)
    }

    async fn keys(
        &self,
        namespace: &str,
        name: &str,
        required: &BTreeSet<&str>,
    ) -> Result<SecretKeys, CallError> {
        let place = (namespace.to_owned(), name.to_owned());
        let has_all = |keys: &BTreeSet<String>| required.iter().all(|key| keys.contains(*key));
        if let Some((since, keys)) = lock(&self.in_order).get(&place)
            && since.elapsed() < BELIEVED
            && has_all(keys)
        {
            return Ok(SecretKeys::Present(keys.clone()));
        }
        let Some(secret) = self.read(namespace, name).await? else {
            lock(&self.in_order).remove(&place);
            return Ok(SecretKeys::Missing);
        };
        let keys: BTreeSet<String> = secret.data.into_iter().flatten().map(|(key, _)| key).collect();
        let mut in_order = lock(&self.in_order);
        in_order.retain(|_, (since, _)| since.elapsed() < BELIEVED);
        in_order.insert(place, (Instant::now(), keys.clone()));
        Ok(SecretKeys::Present(keys))
    }

    /// The Secret that operator and workers share. One that belongs to somebody else is added to `taken`.
    pub(super) async fn control(
        &self,
        identity: &Identity,
        taken: &mut Vec<String>,
    ) -> Result<(ControlSecret, Option<ControlMaterial>), CallError> {
        if let Some((since, facts, material)) = lock(&self.control).get(&identity.uid)
            && since.elapsed() < BELIEVED
        {
            return Ok((*facts, Some(material.clone())));
        }
        let name = control_secret(&identity.name);
        let Some(secret) = self.read(&identity.namespace, &name).await? else {
            self.forget(&identity.uid);
            return Ok((ControlSecret::Missing, None));
        };
        if !is_owned(&secret, identity) {
            taken.push(format!("Secret {name}"));
            return Ok((ControlSecret::Missing, None));
        }
        let Some((facts, material)) = whole(&secret) else { return Ok((ControlSecret::Missing, None)) };
        let entry = (Instant::now(), facts, material.clone());
        lock(&self.control).insert(identity.uid.clone(), entry);
        Ok((facts, Some(material)))
    }

    async fn read(&self, namespace: &str, name: &str) -> Result<Option<Secret>, CallError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        call(format!("reading the Secret {name}"), api.get_opt(name)).await
    }
}

/// What a control Secret holds, if nothing is missing in it.
fn whole(secret: &Secret) -> Option<(ControlSecret, ControlMaterial)> {
    let renew_at: Timestamp = secret.annotations().get(ANNOTATION_RENEW_AT)?.parse().ok()?;
    let data = secret.data.as_ref()?;
    let value = |key: &str| data.get(key).map(|value| &value.0).filter(|value| !value.is_empty());
    value("tls.crt")?;
    value("tls.key")?;
    let token = String::from_utf8(value(FILE_TOKEN)?.clone()).ok()?;
    let material = ControlMaterial { token, ca: value("ca.crt")?.clone() };
    Some((ControlSecret::Issued { renew_at }, material))
}

/// A poisoned lock means that a thread panicked while it held it; the map in it is whole all the same.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
