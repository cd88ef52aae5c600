//! The Secret that operator and workers share: a bearer token, and a certificate for the workers that a
//! certificate authority of this pipeline alone has signed. The authority's key is thrown away; a renewal
//! makes a new authority, and the old one's certificate stays trusted until workers show the new one.

use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use penstock_crds::names::FILE_TOKEN;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::names::{self, ANNOTATION_RENEW_AT, Component};
use crate::observe::ControlMaterial;
use crate::plan::manifests::{labels, owner};
use crate::world::World;

/// Life of a certificate.
const VALID_DAYS: i32 = 90;
/// A certificate is renewed after two thirds of its life.
const RENEWED_AFTER: SignedDuration = SignedDuration::from_hours(60 * 24);
/// End of a PEM block.
const PEM_END: &str = "-----END CERTIFICATE-----\n";

/// What a worker shows and what it is believed by.
struct Certificates {
    authority: String,
    worker: String,
    worker_key: String,
}

/// The control Secret, with a token that is there kept.
pub(super) fn issue(
    world: &World,
    before: Option<&ControlMaterial>,
    now: Timestamp,
) -> Result<Secret, rcgen::Error> {
    let certificates = certificates(world, now)?;
    let token = before.map_or_else(|| hex::encode(rand::random::<[u8; 32]>()), |before| before.token.clone());
    let trusted = format!("{}{}", certificates.authority, before.map_or_else(String::new, newest_authority));
    let data = [
        (FILE_TOKEN, token),
        ("ca.crt", trusted),
        ("tls.crt", certificates.worker),
        ("tls.key", certificates.worker_key),
    ];
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(names::control_secret(world.name())),
            namespace: Some(world.namespace().to_owned()),
            labels: Some(labels(world.name(), Component::Worker, None)),
            annotations: Some(BTreeMap::from([(
                ANNOTATION_RENEW_AT.to_owned(),
                whole_seconds(now + RENEWED_AFTER).to_string(),
            )])),
            owner_references: Some(vec![owner(&world.pipeline)]),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".into()),
        data: Some(
            data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect(),
        ),
        ..Secret::default()
    })
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// The authority that signed what workers show until they have read the new certificate.
fn newest_authority(before: &ControlMaterial) -> String {
    let text = String::from_utf8_lossy(&before.ca);
    text.find(PEM_END).map_or_else(String::new, |end| text[..end + PEM_END.len()].to_owned())
}

fn certificates(world: &World, now: Timestamp) -> Result<Certificates, rcgen::Error> {
    let authority_key = KeyPair::generate()?;
    let mut authority = params(Vec::new(), &format!("penstock {}/{}", world.namespace(), world.name()), now)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_certificate = authority.self_signed(&authority_key)?;

    let worker_key = KeyPair::generate()?;
    let service = names::of_workers(world.name());
    let host = format!("*.{service}.{}.svc", world.namespace());
    let mut worker = params(vec![host], &service, now)?;
    worker.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    worker.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    worker.use_authority_key_identifier_extension = true;
    let worker_certificate = worker.signed_by(&worker_key, &Issuer::new(authority, authority_key))?;
    Ok(Certificates {
        authority: authority_certificate.pem().replace("\r\n", "\n"),
        worker: worker_certificate.pem(),
        worker_key: worker_key.serialize_pem(),
    })
}

/// Valid from the day before, so that clocks may differ.
fn params(hosts: Vec<String>, common_name: &str, now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    let today = now.to_zoned(TimeZone::UTC).date();
    let yesterday = today.checked_sub(1.day()).unwrap_or(today);
    let last = today.checked_add(VALID_DAYS.days()).unwrap_or(today);
    let midnight = |date: Date| {
        let [month, day] = [date.month(), date.day()].map(|part| u8::try_from(part).unwrap_or(1));
        rcgen::date_time_ymd(date.year().into(), month, day)
    };
    params.not_before = midnight(yesterday);
    params.not_after = midnight(last);
    Ok(params)
}

#[cfg(test)]
#[path = "control_secret_tests.rs"]
mod tests;
