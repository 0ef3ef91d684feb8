//! The reports from a fixed data set: snapshots, same bytes twice, strictness, and what is left out.
//!
//! The data set lies in `tests/data/`; `REPORTS_WRITE_FIXTURE=1 cargo test -p reports` rewrites it
//! from `fixture/mod.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod fixture;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use reports::load::{self, Records};
use reports::render::assemble::build;
use reports::render::context::ReportContext;
use reports::render::{REPORTS, Report, render_text};
use reports::stats::verdict::VerdictConfig;

fn data(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(part)
}

fn load_from(runs: &Path) -> Records {
    load::load(runs, &data("imported"), |_| true).unwrap()
}

fn context() -> ReportContext {
    build(&load_from(&data("runs")), VerdictConfig::default())
}

fn files_below(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    for run in fs::read_dir(dir).unwrap() {
        for file in fs::read_dir(run.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            files.insert(
                path.strip_prefix(dir).unwrap().to_owned(),
                fs::read_to_string(&path).unwrap(),
            );
        }
    }
    files
}

#[test]
fn fixture_is_what_its_generator_writes() {
    let fresh = tempfile::tempdir().unwrap();
    fixture::write(fresh.path());
    if std::env::var_os("REPORTS_WRITE_FIXTURE").is_some() {
        let _ = fs::remove_dir_all(data("runs"));
        fixture::write(&data("runs"));
    }
    assert_eq!(files_below(fresh.path()), files_below(&data("runs")));
}

#[test]
fn every_report_matches_its_snapshot() {
    let context = context();
    for report in REPORTS {
        insta::assert_snapshot!(report.name, report.render(&context).unwrap());
    }
}

#[test]
fn without_any_run_a_report_names_the_command_that_makes_one() {
    let empty = tempfile::tempdir().unwrap();
    let context = build(
        &load_from(&empty.path().join("none")),
        VerdictConfig::default(),
    );
    for report in REPORTS {
        let text = report.render(&context).unwrap();
        assert!(text.contains("`cargo xtask exp"), "{}", report.name);
        assert!(
            !text.contains("개선**"),
            "a verdict without data in {}",
            report.name
        );
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    for report in REPORTS {
        assert_eq!(
            report.render(&context()).unwrap(),
            report.render(&context()).unwrap()
        );
    }
}

#[test]
fn failed_and_killed_runs_are_listed_and_change_no_figure() {
    let without = tempfile::tempdir().unwrap();
    for (path, text) in files_below(&data("runs")) {
        let run = path.parent().unwrap();
        let complete = fs::read_to_string(data("runs").join(run).join("status.json"))
            .is_ok_and(|status| status.contains("complete"));
        if complete {
            fs::create_dir_all(without.path().join(run)).unwrap();
            fs::write(without.path().join(&path), text).unwrap();
        }
    }
    let (all, kept) = (load_from(&data("runs")), load_from(without.path()));
    assert_eq!(all.runs.len(), kept.runs.len() + 2);
    assert_eq!(all.cases, kept.cases);
    let text = Report::find("02").unwrap().render(&context()).unwrap();
    assert!(text.contains("통계에서 제외한 실행 (실패 또는 중단) 2건"));
    assert!(text.contains("server exited with code 139 / before /health"));
}

#[test]
fn too_few_server_starts_are_never_called_a_difference() {
    let context = context();
    let of = |name: &str| {
        context.groups[0]
            .comparisons
            .iter()
            .find(|c| c.after == name)
            .unwrap()
    };
    assert!(
        of("02-ultra")
            .verdicts
            .iter()
            .all(|v| v.phrase == "판단 불가" && v.reason.is_some())
    );
    assert!(
        of("03-balanced-v2")
            .verdicts
            .iter()
            .all(|v| v.phrase.ends_with("% 개선"))
    );
    let step = context.groups[0]
        .ladder
        .iter()
        .find(|r| r.experiment == "03-balanced-v2" && r.max_tokens == Some(20))
        .unwrap();
    assert_eq!(step.verdicts[0].verdict, "same");
}

#[test]
fn full_runs_supersede_quick_ones_and_quick_ones_are_marked() {
    let context = context();
    assert!(!context.groups[0].quick);
    assert_eq!(context.groups[0].n_superseded, 1);
    let quick_only = load::load(&data("runs"), &data("imported"), |run| {
        run.record.as_ref().is_some_and(|r| r.manifest.quick)
    })
    .unwrap();
    let context = build(&quick_only, VerdictConfig::default());
    assert!(
        Report::find("00")
            .unwrap()
            .render(&context)
            .unwrap()
            .contains("짧은 실행")
    );
}

#[test]
fn a_missing_number_or_name_fails_the_render() {
    let context = context();
    for template in [
        "{{ groups[0].no_such_figure }}",
        "{{ groups[0].arms[0].base_url|ms }}",
        "{{ groups[0].arms[0].base_url|num(1) }}",
    ] {
        let value = minijinja::Value::from(minijinja::value::Serde(&context));
        assert!(
            render_text("strict", template, value).is_err(),
            "{template}"
        );
    }
}

/// Outside of tags, code spans, comments and heading numbers, a template holds no digit but those
/// of percentile names.
#[test]
fn templates_hold_no_figures() {
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("templates")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let mut words = without(&text, "{#", "#}");
        for (open, close) in [("{{", "}}"), ("{%", "%}"), ("```", "```"), ("`", "`")] {
            words = without(&words, open, close);
        }
        for line in words.lines() {
            let line = line
                .trim_start_matches(['#', ' '])
                .trim_start_matches(|c: char| c.is_ascii_digit());
            let line = line
                .replace("p50", "")
                .replace("p95", "")
                .replace("p99", "");
            assert!(
                !line.contains(|c: char| c.is_ascii_digit()),
                "{}: {line}",
                path.display()
            );
        }
    }
}

fn without(text: &str, open: &str, close: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(open) {
        kept.push_str(&rest[..start]);
        let inside = &rest[start + open.len()..];
        rest = inside
            .find(close)
            .map_or("", |end| &inside[end + close.len()..]);
    }
    kept + rest
}
