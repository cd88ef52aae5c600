//! Source comparison as a pipeline asks for it, and what one found: the word of the worker's `compare` command, short
//! enough to be a container's termination message, and what the status keeps of it.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::report::Decisions;

/// Kubernetes keeps no more bytes of a container's termination message.
pub const TERMINATION_MESSAGE_BYTES_MAX: usize = 4096;

/// Tables that are named at most.
const TABLES_NAMED_MAX: usize = 10;
/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 1000;
/// `timeout`, if a manifest does not say it.
const TIMEOUT: SignedDuration = SignedDuration::from_hours(6);

/// When the sink is compared with the source, row by row, by a Job of the operator.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceComparison {
    /// How long after a comparison the next one is due, in hours and minutes as `24h` or `1h30m`, at least `10m`. The first
    /// is due when all rows are copied. One that is due begins within a tenth of the interval, at most half an hour, so that
    /// pipelines that are due together do not begin together. Without it, only the annotation `penstock.dev/compare-source` asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,4}h)?([0-9]{1,4}m)?$') && duration(self) >= duration('10m')")
        .message("sourceComparison.interval must be hours and minutes of at least 10m, for example 24h or 1h30m"))]
    pub interval: Option<String>,

    /// How long one may take, in hours and minutes, at least `1m`. Both databases hold a snapshot that long, which keeps
    /// vacuum from removing rows.
    #[serde(default = "SourceComparison::default_timeout")]
    #[schemars(length(min = 2, max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,4}h)?([0-9]{1,4}m)?$') && duration(self) >= duration('1m')")
        .message("sourceComparison.timeout must be hours and minutes of at least 1m, for example 6h"))]
    pub timeout: String,
}

impl SourceComparison {
    fn default_timeout() -> String {
        "6h".into()
    }

    /// Whether it says nothing but the defaults.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// How long after a comparison the next one begins.
    pub fn interval(&self) -> Option<SignedDuration> {
        self.interval.as_deref()?.parse().ok()
    }

    /// How long one may take.
    pub fn timeout(&self) -> SignedDuration {
        self.timeout.parse().unwrap_or(TIMEOUT)
    }
}

impl Default for SourceComparison {
    fn default() -> Self {
        Self { interval: None, timeout: Self::default_timeout() }
    }
}

/// Whether the sink is what the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ComparisonVerdict {
    /// Every row of the tables is the same.
    Equal,
    /// Rows differ.
    Different,
    /// Nobody knows.
    Unknown,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComparisonResult {
    /// `Different` if a table is, else `Unknown` if one is or if there is none, else `Equal`.
    pub verdict: ComparisonVerdict,

    /// Address in the source's log at which both ends were read; several, where tables had to be compared again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,

    /// Tables that were to be compared.
    #[serde(default)]
    pub tables: u32,

    /// Tables whose rows differ.
    #[serde(default)]
    pub tables_different: u32,

    /// Tables that could not be compared.
    #[serde(default)]
    pub tables_unknown: u32,

    /// The first of the tables whose rows differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub different: Vec<DifferentTable>,

    /// Why nobody knows; with several tables, of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A table whose rows differ.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DifferentTable {
    /// Its name in the source.
    pub table: String,

    /// Rows that differ.
    pub rows: u64,

    /// There may be more of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_at_least: bool,
}

impl ComparisonResult {
    /// Something other than a comparison was done.
    pub fn done() -> Self {
        Self {
            verdict: ComparisonVerdict::Equal,
            position: None,
            tables: 0,
            tables_different: 0,
            tables_unknown: 0,
            different: Vec::new(),
            reason: None,
        }
    }

    /// Nothing was compared, because of this.
    pub fn unknown(reason: &str) -> Self {
        Self {
            verdict: ComparisonVerdict::Unknown,
            position: None,
            tables: 0,
            tables_different: 0,
            tables_unknown: 0,
            different: Vec::new(),
            reason: Some(cut(reason)),
        }
    }

    /// Names fewer tables and says less of the reason until it is short enough for a status. The counts stay.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        self.different.truncate(TABLES_NAMED_MAX);
        self.reason = self.reason.as_deref().map(cut);
        self
    }

    /// As a container's termination message.
    ///
    /// # Errors
    /// Never: it is plain strings and numbers.
    pub fn termination_message(&self) -> Result<String, serde_json::Error> {
        let mut result = self.clone().shortened();
        loop {
            let message = serde_json::to_string(&result)?;
            if message.len() <= TERMINATION_MESSAGE_BYTES_MAX {
                return Ok(message);
            }
            // Names and reasons may need up to six bytes for one, so they are not just counted.
            if result.different.pop().is_none() {
                result.reason = None;
                result.position = None;
            }
        }
    }
}

fn cut(reason: &str) -> String {
    if reason.len() <= REASON_BYTES_MAX {
        return reason.to_owned();
    }
    let end = reason.floor_char_boundary(REASON_BYTES_MAX - '…'.len_utf8());
    format!("{}…", &reason[..end])
}

/// The last comparison with the source. Written once for each.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastComparison {
    /// When it ended.
    pub completion_time: Time,

    /// The revision whose tables were compared.
    pub revision: String,

    /// Hash of the spec that it speaks of; of a changed one nothing is known.
    pub spec: String,

    /// The Job that it was; until the next one, at most for an hour, `kubectl logs job/NAME` names the rows.
    pub job: String,

    /// The last token of the annotation `penstock.dev/compare-source` that was carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,

    /// What was decided about dead ends and carried out before it began, by shard; absent: nothing. Of a sink about which
    /// something was decided since, it says nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub decisions: Vec<Decisions>,

    /// What it found.
    pub result: ComparisonResult,

    /// Why it could not be made. `result` is of an earlier one then, which found rows that differ: nobody knows better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn different(tables: usize, name: &str) -> ComparisonResult {
        ComparisonResult {
            verdict: ComparisonVerdict::Different,
            position: Some("0/1F0A3B8".into()),
            tables: 5000,
            tables_different: u32::try_from(tables).unwrap(),
            tables_unknown: 1,
            different: (0..tables)
                .map(|number| DifferentTable {
                    table: format!("{name}.{number}"),
                    rows: u64::MAX >> 1,
                    is_at_least: true,
                })
                .collect(),
            reason: Some("ö".repeat(4000)),
        }
    }

    #[test]
    fn a_termination_message_fits_whatever_was_found_and_counts_what_it_does_not_name() {
        for (tables, name) in [(3000, "public"), (3000, "\u{1}\u{1}\u{1}\u{1}"), (3, &"\u{1}".repeat(4000))] {
            let found = different(tables, name);
            let message = found.termination_message().unwrap();
            assert!(message.len() <= TERMINATION_MESSAGE_BYTES_MAX, "{}", message.len());
            let read: ComparisonResult = serde_json::from_str(&message).unwrap();
            assert_eq!((read.verdict, read.tables), (found.verdict, found.tables));
            assert_eq!(read.tables_different, found.tables_different);
        }
        let read = different(3000, "public").termination_message().unwrap();
        let read: ComparisonResult = serde_json::from_str(&read).unwrap();
        assert_eq!(read.different.len(), TABLES_NAMED_MAX);
        assert!(read.reason.unwrap().ends_with("ö…"));
        let mut endless = ComparisonResult::unknown(&"\u{1}".repeat(9000));
        endless.position = Some("0/1, ".repeat(2000));
        assert!(endless.termination_message().unwrap().len() <= TERMINATION_MESSAGE_BYTES_MAX);
    }

    #[test]
    fn what_was_found_is_read_as_it_was_written() {
        let found = different(2, "public").shortened();
        assert_eq!(
            serde_json::from_str::<ComparisonResult>(&found.termination_message().unwrap()).unwrap(),
            found
        );
    }

    #[test]
    fn hours_and_minutes_are_read() {
        let every =
            |interval: &str| SourceComparison { interval: Some(interval.into()), ..Default::default() };
        assert_eq!(every("24h").interval(), Some(SignedDuration::from_hours(24)));
        assert_eq!(every("1h30m").interval(), Some(SignedDuration::from_mins(90)));
        assert_eq!(every("90m").interval(), Some(SignedDuration::from_mins(90)));
        assert_eq!(SourceComparison::default().interval(), None);
        assert_eq!(SourceComparison::default().timeout(), TIMEOUT);
    }
}
