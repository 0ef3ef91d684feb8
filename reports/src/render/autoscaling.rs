//! The simulated day of `cargo xtask autoscale`: what fixed fleets and the autoscaled one cost, and what
//! of the load they served in time.

use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const SCHEMA_VERSION: u32 = 1;

/// A record of `data/autoscaling`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AutoscalingRecord {
    pub schema_version: u32,
    pub git: Git,
    pub card: String,
    pub flags: Vec<String>,
    pub prometheus: String,
    /// As the manifest has it.
    pub scaled_object: Value,
    pub assumed: Assumed,
    pub n_requests: usize,
    pub slo: Slo,
    pub fleets: Vec<Fleet>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Git {
    pub commit: String,
    pub tree: String,
    pub dirty: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Assumed {
    pub start_s: f64,
    pub hold_s: f64,
    pub grace_s: f64,
    pub scrape_s: f64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Slo {
    pub ttft_s: f64,
    pub tpot_s: f64,
    pub share: f64,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    pub fixed: Option<u32>,
    pub min_replicas: u32,
    pub max_replicas: u32,
    pub start_s: f64,
    pub card_hours: f64,
    pub share_in_slo: f64,
    pub ttft_p50_s: f64,
    pub ttft_p99_s: f64,
    pub tpot_p99_s: f64,
    pub n_lost: usize,
    pub most_replicas: u32,
    pub n_changes: usize,
}

/// What the template shows.
#[derive(Debug, Serialize)]
pub struct AutoscalingContext {
    pub card: String,
    pub commit: String,
    pub n_requests: usize,
    pub start_s: f64,
    pub ttft_ms: f64,
    pub tpot_ms: f64,
    pub share_percent: f64,
    pub rows: Vec<FleetRow>,
    /// Replicas of the smallest fixed fleet that keeps the SLO, and its card hours.
    pub sufficient: Option<FleetRow>,
    /// The autoscaled fleet that keeps it with the fewest card hours, as assumed.
    pub scaled: Option<FleetRow>,
    /// What it saves against the fixed one, in per cent; negative if it takes more.
    pub saved_percent: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct FleetRow {
    pub fixed: Option<u32>,
    pub min_replicas: u32,
    pub most_replicas: u32,
    pub start_s: f64,
    pub card_hours: f64,
    pub percent_in_slo: f64,
    pub keeps_slo: bool,
    pub ttft_p50_ms: f64,
    pub ttft_p99_ms: f64,
    pub tpot_p99_ms: f64,
    pub n_lost: usize,
}

/// The only record of the folder; `None` if there is no folder.
///
/// # Errors
///
/// If there is another number of records, one cannot be read, or it is of another version.
pub fn read(folder: &Path) -> anyhow::Result<Option<AutoscalingContext>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            paths.push(path);
        }
    }
    let [path] = &paths[..] else {
        bail!(
            "{}: {} records; the report shows one",
            folder.display(),
            paths.len()
        );
    };
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text)
        .with_context(|| path.display().to_string())
        .map(Some)
}

fn parse(text: &str) -> anyhow::Result<AutoscalingContext> {
    let record: AutoscalingRecord = serde_json::from_str(text)?;
    if record.schema_version != SCHEMA_VERSION {
        let version = record.schema_version;
        bail!("schema_version {version}; this program reads {SCHEMA_VERSION}");
    }
    Ok(context_of(&record))
}

fn context_of(record: &AutoscalingRecord) -> AutoscalingContext {
    let rows: Vec<FleetRow> = record
        .fleets
        .iter()
        .map(|fleet| row(fleet, &record.slo))
        .collect();
    let fixed = rows
        .iter()
        .filter(|row| row.fixed.is_some() && row.keeps_slo);
    let sufficient = fixed
        .min_by(|a, b| a.card_hours.total_cmp(&b.card_hours))
        .cloned();
    let is_as_assumed = |row: &&FleetRow| (row.start_s - record.assumed.start_s).abs() < 1e-9;
    let scaled = rows
        .iter()
        .filter(|row| row.fixed.is_none() && row.keeps_slo);
    let scaled = scaled.filter(is_as_assumed);
    let scaled = scaled
        .min_by(|a, b| a.card_hours.total_cmp(&b.card_hours))
        .cloned();
    let saved_percent = sufficient.as_ref().zip(scaled.as_ref());
    let saved_percent =
        saved_percent.map(|(fixed, scaled)| 100.0 * (1.0 - scaled.card_hours / fixed.card_hours));
    AutoscalingContext {
        card: record.card.clone(),
        commit: record.git.commit.chars().take(12).collect(),
        n_requests: record.n_requests,
        start_s: record.assumed.start_s,
        ttft_ms: record.slo.ttft_s * 1e3,
        tpot_ms: record.slo.tpot_s * 1e3,
        share_percent: record.slo.share * 100.0,
        rows,
        sufficient,
        scaled,
        saved_percent,
    }
}

fn row(fleet: &Fleet, slo: &Slo) -> FleetRow {
    FleetRow {
        fixed: fleet.fixed,
        min_replicas: fleet.min_replicas,
        most_replicas: fleet.most_replicas,
        start_s: fleet.start_s,
        card_hours: fleet.card_hours,
        percent_in_slo: fleet.share_in_slo * 100.0,
        keeps_slo: fleet.share_in_slo >= slo.share,
        ttft_p50_ms: fleet.ttft_p50_s * 1e3,
        ttft_p99_ms: fleet.ttft_p99_s * 1e3,
        tpot_p99_ms: fleet.tpot_p99_s * 1e3,
        n_lost: fleet.n_lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(fixed: Option<u32>, card_hours: f64, share_in_slo: f64) -> Fleet {
        Fleet {
            fixed,
            min_replicas: fixed.unwrap_or(1),
            max_replicas: fixed.unwrap_or(8),
            start_s: 90.0,
            card_hours,
            share_in_slo,
            ttft_p50_s: 0.5,
            ttft_p99_s: 3.0,
            tpot_p99_s: 0.05,
            n_lost: 0,
            most_replicas: fixed.unwrap_or(4),
            n_changes: 0,
        }
    }

    fn record(fleets: Vec<Fleet>) -> AutoscalingRecord {
        let (assumed, slo) = (
            Assumed {
                start_s: 90.0,
                hold_s: 300.0,
                grace_s: 145.0,
                scrape_s: 10.0,
            },
            Slo {
                ttft_s: 4.0,
                tpot_s: 0.15,
                share: 0.95,
            },
        );
        AutoscalingRecord {
            schema_version: SCHEMA_VERSION,
            git: Git {
                commit: "0123456789abcdef".to_owned(),
                tree: "t".to_owned(),
                dirty: false,
            },
            card: "rtx-5090".to_owned(),
            flags: Vec::new(),
            prometheus: "prometheus, version 2".to_owned(),
            scaled_object: Value::Null,
            assumed,
            n_requests: 10,
            slo,
            fleets,
        }
    }

    #[test]
    fn the_smallest_fixed_fleet_that_keeps_the_slo_is_compared() {
        let fleets = vec![
            fleet(Some(2), 48.0, 0.7),
            fleet(Some(3), 72.0, 0.95),
            fleet(Some(4), 96.0, 1.0),
            fleet(None, 36.0, 0.96),
            // Its start is not the one that is assumed.
            Fleet {
                start_s: 30.0,
                ..fleet(None, 20.0, 0.99)
            },
        ];
        let context = context_of(&record(fleets));
        assert_eq!(context.sufficient.and_then(|row| row.fixed), Some(3));
        assert!((context.saved_percent.expect("compared") - 50.0).abs() < 1e-9);
        assert_eq!(context.commit, "0123456789ab");
        let none = context_of(&record(vec![
            fleet(Some(3), 72.0, 0.95),
            fleet(None, 36.0, 0.9),
        ]));
        assert!(none.scaled.is_none() && none.saved_percent.is_none());
    }

    #[test]
    fn the_tracked_record_is_read_and_others_are_refused() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/autoscaling");
        let context = read(&root).expect("readable").expect("there");
        assert!(context.rows.len() >= 4 && context.n_requests > 1000);
        assert!(context.rows.iter().any(|row| row.fixed.is_none()));

        let mut text = serde_json::to_value(record(Vec::new())).expect("JSON");
        text["schema_version"] = 2.into();
        let error = parse(&text.to_string()).expect_err("refused").to_string();
        assert!(
            error.contains("schema_version 2; this program reads 1"),
            "{error}"
        );
        text["more"] = 1.into();
        let error = parse(&text.to_string()).expect_err("refused").to_string();
        assert!(error.contains("unknown field `more`"), "{error}");
        let folder = tempfile::tempdir().expect("a folder");
        assert!(
            read(&folder.path().join("none"))
                .expect("no folder")
                .is_none()
        );
        let error = read(folder.path()).expect_err("no record").to_string();
        assert!(error.contains("0 records"), "{error}");
    }
}
