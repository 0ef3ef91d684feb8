//! The reports from a fixed data set: snapshots, same bytes twice, strictness, and what is left out.
//!
//! The data set lies in `tests/data/`; `REPORTS_WRITE_FIXTURE=1 cargo test -p reports` rewrites it
//! from `fixture/mod.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use reports::lang::Lang;
use reports::load::{self, Records};
use reports::render::assemble::build;
use reports::render::context::ReportContext;
use reports::render::{REPORTS, Report, page, render_text};
use reports::stats::verdict::VerdictConfig;

use super::fixture;

fn data(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(part)
}

fn load_from(runs: &Path) -> Records {
    load::load(runs, &data("imported"), |_| true).unwrap()
}

fn context() -> ReportContext {
    context_in(Lang::Ko)
}

fn context_in(lang: Lang) -> ReportContext {
    build(&load_from(&data("runs")), VerdictConfig::default(), lang).unwrap()
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
    for lang in [Lang::Ko, Lang::En] {
        let context = context_in(lang);
        for report in REPORTS {
            let name = format!("{}.{}", report.name, lang.code());
            insta::assert_snapshot!(name, report.render(&context).unwrap());
        }
    }
}

#[test]
fn charts_match_their_snapshots_and_every_link_has_its_chart() {
    let context = context();
    for kind in ["latency", "users-latency", "memory"] {
        let path = &context.groups[0].charts[kind].path;
        insta::assert_snapshot!(format!("chart-{kind}"), context.charts[path]);
    }
    for report in REPORTS {
        let text = report.render(&context).unwrap();
        for link in text
            .split("](")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap())
        {
            if link.starts_with("charts/") {
                assert!(context.charts.contains_key(link), "{link}");
            }
        }
        let html = page::page(&text, &context.charts, Lang::Ko).unwrap();
        assert_eq!(html.matches("<svg ").count(), text.matches(".svg)").count());
        assert!(!html.contains("<img"), "{}", report.name);
    }
}

/// Verdicts do not depend on the language; no word of the other language slips in.
#[test]
fn english_reports_say_the_same() {
    let (ko, en) = (context_in(Lang::Ko), context_in(Lang::En));
    let verdicts = |context: &ReportContext| -> Vec<(&'static str, Option<f64>)> {
        let comparisons = context.groups.iter().flat_map(|g| &g.comparisons);
        let rows = comparisons.flat_map(|c| &c.verdicts);
        rows.map(|v| (v.verdict, v.improvement_percent)).collect()
    };
    assert!(!verdicts(&ko).is_empty());
    assert_eq!(verdicts(&ko), verdicts(&en));
    for report in REPORTS {
        let text = report.render(&en).unwrap();
        let korean: Vec<&str> = text
            .lines()
            .filter(|line| line.contains(|c: char| ('가'..='힣').contains(&c)))
            // Imported figures keep the headings of the documents that they come from.
            .filter(|line| !line.starts_with('|'))
            .collect();
        assert_eq!(korean, Vec::<&str>::new(), "{}", report.name);
    }
}

/// Runs that differ in the flags after `--`, the model or the machine form separate groups.
#[test]
fn runs_that_differ_in_more_than_configuration_are_never_pooled() {
    let mixed = tempfile::tempdir().unwrap();
    for (path, text) in files_below(&data("runs")) {
        fs::create_dir_all(mixed.path().join(path.parent().unwrap())).unwrap();
        fs::write(mixed.path().join(&path), &text).unwrap();
    }
    let of_experiment = |name: &str| -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(mixed.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|dir| dir.to_string_lossy().contains(name))
            .collect();
        found.sort();
        found
    };
    let rewrite = |dir: &Path, file: &str, from: &str, to: &str| {
        let text = fs::read_to_string(dir.join(file)).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(dir.join(file), text.replace(from, to)).unwrap();
    };
    let ultra = of_experiment("02-ultra");
    rewrite(
        &ultra[0],
        "manifest.json",
        r#""extra_flags":[]"#,
        r#""extra_flags":["--device-memory-limit","31.4GiB"]"#,
    );
    rewrite(
        &ultra[1],
        "manifest.json",
        r#""used":"fixture-model""#,
        r#""used":"another-model""#,
    );
    rewrite(&ultra[2], "environment.json", "Fixture GPU", "Another GPU");
    let context = build(&load_from(mixed.path()), VerdictConfig::default(), Lang::Ko).unwrap();
    let runs_of_ultra: Vec<(&str, usize)> = context
        .groups
        .iter()
        .flat_map(|g| g.arms.iter().map(move |arm| (g.title.as_str(), arm)))
        .filter(|(_, arm)| arm.experiment == "02-ultra" && arm.n_runs > 0)
        .map(|(title, arm)| (title, arm.n_runs))
        .collect();
    assert_eq!(runs_of_ultra.len(), 3);
    assert!(runs_of_ultra.iter().all(|(_, n)| *n == 1));
    for part in [
        "--device-memory-limit 31.4GiB",
        "another-model",
        "Another GPU",
    ] {
        assert!(
            runs_of_ultra.iter().any(|(title, _)| title.contains(part)),
            "{part}"
        );
    }
}

#[test]
fn the_warm_up_is_no_row_of_a_table() {
    let records = load_from(&data("runs"));
    assert!(
        records
            .cases
            .iter()
            .any(|c| c.case == "warmup" && c.n_warmup == 1)
    );
    let context = context();
    let group = &context.groups[0];
    let rows = group
        .latency
        .iter()
        .chain(&group.ladder)
        .chain(&group.users);
    assert!(rows.clone().count() > 0);
    assert_eq!(rows.filter(|row| row.case == "warmup").count(), 0);
    assert!(group.arms[0].n_warmup > 0);
}

#[test]
fn without_any_run_a_report_names_the_command_that_makes_one() {
    let empty = tempfile::tempdir().unwrap();
    let context = build(
        &load_from(&empty.path().join("none")),
        VerdictConfig::default(),
        Lang::Ko,
    )
    .unwrap();
    for report in REPORTS {
        let text = report.render(&context).unwrap();
        if report.name == "seed-audit" {
            continue; // it rests on imported figures alone
        }
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
    assert!(text.contains("통계에서 제외한 실행 (실패, 중단, 손상) 2건"));
    assert!(text.contains("server exited with code 139 &#124; before /health"));
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
            .all(|v| v.phrase.starts_with("표본 부족") && v.n_more > 0 && v.reason.is_some())
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
    let quick_only = load::load(data("runs"), &data("imported"), |run| {
        run.record.as_ref().is_some_and(|r| r.manifest.quick)
    })
    .unwrap();
    let context = build(&quick_only, VerdictConfig::default(), Lang::Ko).unwrap();
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
            render_text("strict", template, Lang::Ko, value).is_err(),
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
        if path.is_dir() {
            continue; // the frame of the HTML pages
        }
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

/// Both languages place the same figures under the same conditions: their tags agree but for words.
#[test]
fn templates_of_both_languages_have_the_same_tags() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
    let mut n_compared = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(stem) = name.strip_suffix(".ko.md.j2") else {
            continue;
        };
        let english = folder.join(format!("{stem}.en.md.j2"));
        let (ko, en) = (
            fs::read_to_string(&path).unwrap(),
            fs::read_to_string(&english).unwrap(),
        );
        assert_eq!(tags_of(&ko), tags_of(&en), "{stem}");
        assert!(!en.contains(|c: char| ('가'..='힣').contains(&c)), "{stem}");
        n_compared += 1;
    }
    assert_eq!(
        n_compared,
        REPORTS.len() + 2,
        "every report, the one on trust and the parts"
    );
}

/// The tags of a template without string literals, sorted: another language has another order.
fn tags_of(template: &str) -> Vec<String> {
    let mut tags = Vec::new();
    let mut rest = template;
    while let Some(start) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let close = start + 2 + rest[start + 2..].find('}').unwrap() + 1;
        tags.push(without(&rest[start..close], "\"", "\""));
        rest = &rest[close..];
    }
    tags.sort();
    tags
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
