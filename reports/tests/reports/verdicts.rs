//! The tables of `ablate` and `reproduce`, from run folders that the tests write.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use reports::lang::Lang;
use reports::load;
use reports::render::REPORTS;
use reports::render::assemble::build;
use reports::stats::verdict::VerdictConfig;
use reports::verdicts::{ablation, reproduction};
use serde_json::{Value, json};

/// One server start: two users whose requests take `ms` to the first token and `ms` per token.
struct Start<'a> {
    experiment: &'a str,
    campaign: &'a str,
    replicate: u32,
    derived: Value,
    flags: &'a str,
    inactive: &'a [&'a str],
    ms: f64,
    complete: bool,
    quick: bool,
}

impl Start<'_> {
    fn run_id(&self) -> String {
        format!("{}_{}_h_{}", self.campaign, self.experiment, self.replicate)
    }

    fn write(&self, runs: &Path) {
        let dir = runs.join(self.run_id());
        fs::create_dir_all(&dir).unwrap();
        let write = |file: &str, text: String| fs::write(dir.join(file), text).unwrap();
        let mut manifest = json!({
            "schema_version": 1, "run_id": self.run_id(), "campaign": self.campaign,
            "experiment": self.experiment, "replicate": self.replicate, "quick": self.quick,
            "git": {"commit": "0123456789abcdef", "dirty": false}, "sha256": {},
            "model": {"requested": "m", "used": "m", "fallback_reason": null, "format": null},
            "seed": 1, "command": [], "extra_flags": [], "base_url": null,
            "started_utc": "2026-01-01T00:00:00Z",
        });
        if !self.derived.is_null() {
            manifest["derived"] = self.derived.clone();
        }
        write("manifest.json", manifest.to_string());
        let cpu = json!({"model": "c", "n_cores": 2, "flags": []});
        let environment = json!({"host": "h", "os": "o", "cpu": cpu, "memory_bytes": 1});
        write("environment.json", environment.to_string());
        let words: Vec<String> = self
            .flags
            .split_whitespace()
            .map(|w| format!("{w:?}"))
            .collect();
        write(
            "config.resolved.toml",
            format!("flags = [{}]\n", words.join(", ")),
        );
        let inactive: Vec<[&str; 2]> = self.inactive.iter().map(|flag| [*flag, "no use"]).collect();
        let info = json!({"executor": {"name": "e", "inactive_flags": inactive}});
        write("server_info.json", info.to_string());
        let mut rows = String::new();
        for index in 0..4_u32 {
            let (sent_s, token_s) = (f64::from(index), self.ms / 1e3);
            let row = json!({
                "case": "users-2", "phase": "users", "warmup": false, "index": index,
                "user": index % 2, "n_users": 2, "rate_per_s": null, "prompt_id": "p",
                "max_tokens": 11, "scheduled_s": sent_s, "sent_s": sent_s,
                "first_token_s": sent_s + token_s, "token_s": [], "end_s": sent_s + 11.0 * token_s,
                "prompt_tokens": 5, "output_tokens": 11, "cached_tokens": 0,
                "finish_reason": "length", "error": null,
            });
            writeln!(rows, "{row}").unwrap();
        }
        write("requests.jsonl", rows);
        let status = if self.complete { "complete" } else { "failed" };
        write(
            "status.json",
            json!({"status": status, "reason": null}).to_string(),
        );
    }
}

/// Starts of one arm whose times are `ms`, a little apart from round to round.
fn arm(runs: &Path, n: u32, ms: f64, start: &Start<'_>) {
    for replicate in 0..n {
        Start {
            replicate,
            ms: ms * (1.0 + 0.001 * f64::from(replicate * 7 % 5)),
            derived: start.derived.clone(),
            ..*start
        }
        .write(runs);
    }
}

fn ablated(direction: &str, flag: Option<&str>) -> Value {
    json!({"by": "ablation", "parent": "02-full", "baseline": "01-base", "direction": direction, "flag": flag})
}

/// `--fast` halves the times and only works alone, `--idle` is inactive, `--needs 1` is inactive
/// without the rest of the full configuration.
fn campaign(n: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let start = |direction: &str, flag: Option<&str>, flags: &'static str, inactive| Start {
        experiment: match (direction, flag) {
            ("full", _) => "02-full-full",
            ("baseline", _) => "02-full-baseline",
            ("off", Some("fast")) => "02-full-off-fast",
            ("on", Some("fast")) => "02-full-on-fast",
            ("off", _) => "02-full-off-needs",
            _ => "02-full-on-needs",
        },
        campaign: "c1",
        replicate: 0,
        derived: ablated(direction, flag),
        flags,
        inactive,
        ms: 0.0,
        complete: true,
        quick: false,
    };
    let idle: &[&str] = &["--idle"];
    let put = |n, ms, start: Start<'_>| arm(dir.path(), n, ms, &start);
    put(
        n,
        50.0,
        start("full", None, "--shared --fast --idle --needs 1", idle),
    );
    put(n, 100.0, start("baseline", None, "--shared", &[]));
    put(
        n,
        100.0,
        start("off", Some("fast"), "--shared --idle --needs 1", idle),
    );
    put(n, 50.0, start("on", Some("fast"), "--shared --fast", &[]));
    put(
        n,
        50.0,
        start("off", Some("needs"), "--shared --fast --idle", idle),
    );
    put(
        1,
        100.0,
        start("on", Some("needs"), "--shared --needs 1", &["--needs"]),
    );
    dir
}

#[test]
fn every_flag_has_its_verdict_and_idle_ones_are_listed() {
    let dir = campaign(7);
    let table = ablation::table(dir.path(), "c1").unwrap();
    insta::assert_snapshot!(table);
    assert!(ablation::table(dir.path(), "c2").is_err());
}

/// The group's own runs have the machine and model; the ablation is found by them.
#[test]
fn report_02_shows_the_ablation_of_the_same_machine_and_model() {
    let dir = campaign(7);
    let own = Start {
        experiment: "01-base",
        campaign: "c0",
        replicate: 0,
        derived: Value::Null,
        flags: "--shared",
        inactive: &[],
        ms: 0.0,
        complete: true,
        quick: false,
    };
    arm(dir.path(), 1, 100.0, &own);
    let records = load::load(dir.path(), &dir.path().join("imported"), |_| true).unwrap();
    for (lang, place) in [
        (Lang::Ko, "기준에 단독으로"),
        (Lang::En, "alone, over the baseline"),
    ] {
        let context = build(&records, VerdictConfig::default(), lang).unwrap();
        let found = context.groups[0].ablation.as_ref().unwrap();
        assert_eq!((found.campaign.as_str(), found.n_figures), ("c1", 12));
        assert_eq!(found.rows[0].flag, None);
        assert_eq!(found.idle.len(), 2);
        let report = REPORTS
            .iter()
            .find(|report| report.name == "02-optimization-results")
            .unwrap();
        let text = report.render(&context).unwrap();
        for part in ["`--fast`", place, "+50.0 %", "no use", "cargo xtask list"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}

/// A full campaign stands for a newer quick one, and for a newer one that was ended before its
/// references.
#[test]
fn the_report_takes_the_newest_full_campaign_that_can_be_judged() {
    let dir = campaign(1);
    let start = |campaign: &'static str, direction: &str, quick: bool| {
        let flag = (direction == "on").then_some("fast");
        let start = Start {
            experiment: if direction == "full" {
                "02-full-full"
            } else {
                "02-full-other"
            },
            campaign,
            replicate: 0,
            derived: ablated(direction, flag),
            flags: "--shared",
            inactive: &[],
            ms: 50.0,
            complete: true,
            quick,
        };
        start.write(dir.path());
    };
    start("c2", "on", false);
    start("c3", "full", true);
    start("c3", "baseline", true);
    start("c0", "full", false);
    start("c0", "baseline", false);
    let own = Start {
        experiment: "01-base",
        campaign: "c0",
        replicate: 0,
        derived: Value::Null,
        flags: "--shared",
        inactive: &[],
        ms: 100.0,
        complete: true,
        quick: false,
    };
    own.write(dir.path());
    let taken = || {
        let records = load::load(dir.path(), &dir.path().join("none"), |_| true).unwrap();
        let context = build(&records, VerdictConfig::default(), Lang::En).unwrap();
        let found = context.groups[0].ablation.as_ref().unwrap();
        (found.campaign.clone(), found.quick)
    };
    assert_eq!(taken(), ("c1".to_owned(), false));
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if name.starts_with("c1_") || name.starts_with("c0_02") {
            fs::remove_dir_all(&path).unwrap();
        }
    }
    assert_eq!(taken(), ("c3".to_owned(), true));
}

#[test]
fn few_starts_decide_nothing_and_say_how_many_would() {
    let dir = campaign(2);
    let table = ablation::table(dir.path(), "c1").unwrap();
    // Four pairs of arms, all starts compared with all: 4 × 2 / 252 is below 5 %, 4 × 2 / 70 is not.
    assert!(
        table.contains(
            "2 against 2 server starts do not decide every figure of this table; 5 each, in common rounds, may"
        ),
        "{table}"
    );
    assert!(!table.contains("better |"), "{table}");
}

fn reproduced(n: u32, now_ms: f64) -> String {
    let dir = reproduction_of(n, now_ms);
    reproduction::table(dir.path(), "c2").unwrap()
}

fn reproduction_of(n: u32, now_ms: f64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let start = |campaign, derived| Start {
        experiment: "02-full",
        campaign,
        replicate: 0,
        derived,
        flags: "--fast",
        inactive: &[],
        ms: 0.0,
        complete: true,
        quick: false,
    };
    arm(dir.path(), n, 50.0, &start("c1", Value::Null));
    let of_run = format!("c1_02-full_h_{}", (n - 1).min(1));
    let derived = json!({"by": "reproduction", "parent": "02-full", "of_run": of_run});
    arm(dir.path(), n, now_ms, &start("c2", derived));
    // Others of the old campaign are no part of it.
    let other = Start {
        experiment: "03-other",
        ..start("c1", Value::Null)
    };
    arm(dir.path(), n, 9.0, &other);
    dir
}

#[test]
fn nothing_follows_from_another_machine() {
    let dir = reproduction_of(6, 60.0);
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path().join("environment.json");
        if path.to_string_lossy().contains("c2_02-full") {
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace(r#""host":"h""#, r#""host":"laptop""#)).unwrap();
        }
    }
    let table = reproduction::table(dir.path(), "c2").unwrap();
    assert!(
        table.contains("WARNING: another machine or another model"),
        "{table}"
    );
    assert!(table.contains("| not judged |"), "{table}");
    for word in ["do not hold", "hold:", "worse", "contradicted"] {
        assert!(!table.contains(word), "{table}");
    }
}

#[test]
fn one_start_has_no_range_to_overlap() {
    let table = reproduced(1, 51.0);
    assert!(
        table.contains("the old figures are not contradicted"),
        "{table}"
    );
    assert!(!table.contains("overlap"), "{table}");
}

#[test]
fn equal_figures_hold_and_others_do_not() {
    insta::assert_snapshot!(reproduced(6, 50.0));
    let slower = reproduced(6, 60.0);
    assert!(
        slower.contains(
            "the old figures do not hold: 0 of 3 are better now, 3 worse; 0 of 3 figures"
        ),
        "{slower}"
    );
    let few = reproduced(2, 50.0);
    assert!(
        few.contains("the old figures are not contradicted, 0 of 3"),
        "{few}"
    );
    assert!(
        few.contains("3 of 3 figures lie in ranges that overlap"),
        "{few}"
    );
}

#[test]
fn derived_runs_are_no_runs_of_an_experiment() {
    let dir = campaign(1);
    let records = reports::load::load(dir.path(), &dir.path().join("none"), |_| true).unwrap();
    assert_eq!(records.runs.len(), 6);
    assert!(reports::select::groups(&records.runs).is_empty());
}
