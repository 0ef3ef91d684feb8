//! What is judged, together with what, and what is not: the fixed data set with one thing changed.

use std::path::Path;

use reports::lang::Lang;
use reports::load::requests::CaseSamples;
use reports::load::run_folder::Record;
use reports::load::{self, Records};
use reports::render::assemble::build;
use reports::render::compare::VerdictRow;
use reports::render::context::{Caution, Finding, GroupContext, ReportContext};
use reports::stats::describe::Sorted;
use reports::stats::verdict::VerdictConfig;

const BALANCED: &str = "03-balanced-v2";
/// Two-sided p-value of the clearest order of five starts against five: 2 of 252 orders.
const SMALLEST_P: f64 = 2.0 / 252.0;

fn records() -> Records {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    load::load(data.join("runs"), &data.join("imported"), |_| true).unwrap()
}

fn built(records: &Records) -> ReportContext {
    build(records, VerdictConfig::default(), Lang::En).unwrap()
}

fn group(records: &Records) -> GroupContext {
    built(records).groups.remove(0)
}

/// Changes the records of an experiment's own runs.
fn change(records: &mut Records, experiment: &str, of_record: impl Fn(&mut Record)) {
    for record in records
        .runs
        .iter_mut()
        .filter_map(|run| run.record.as_mut())
    {
        if record.manifest.experiment == experiment && record.manifest.base_url.is_none() {
            of_record(record);
        }
    }
}

fn change_peer(records: &mut Records, of_record: impl Fn(&mut Record)) {
    for record in records
        .runs
        .iter_mut()
        .filter_map(|run| run.record.as_mut())
    {
        if record.manifest.base_url.is_some() {
            of_record(record);
        }
    }
}

/// Changes a phase of the balanced configuration's cases; the peer's bear the same name.
fn change_cases(records: &mut Records, phase: &str, of_case: impl Fn(&mut CaseSamples)) {
    let is_meant = |c: &&mut CaseSamples| c.run_id.contains(BALANCED) && c.phase == phase;
    records.cases.iter_mut().filter(is_meant).for_each(of_case);
}

fn names(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|f| f.experiment.as_str()).collect()
}

fn latency_verdicts(group: &GroupContext) -> Vec<VerdictRow> {
    let rows = group
        .latency
        .iter()
        .filter(|row| row.experiment == BALANCED);
    rows.flat_map(|row| row.verdicts.clone()).collect()
}

#[test]
fn all_comparisons_of_a_table_are_judged_together() {
    let group = group(&records());
    // Three metrics of one pair are tested jointly. The other configuration has three starts, could not
    // pass beside it (2 × 2 of 56 orders), and takes nothing from it.
    for verdict in latency_verdicts(&group) {
        assert!((verdict.p_adjusted.unwrap() - SMALLEST_P).abs() < 1e-9);
    }
}

#[test]
fn all_effects_of_flags_are_judged_together() {
    let mut records = records();
    let mut flags = Vec::new();
    for run in &records.runs {
        let record = run.record.as_ref().unwrap();
        if record.manifest.experiment == "01-baseline" {
            flags.clone_from(&record.config.flags);
        }
    }
    for (experiment, flag) in [(BALANCED, "--one"), ("02-ultra", "--other")] {
        let flags = [flags.clone(), vec![flag.to_owned()]].concat();
        change(&mut records, experiment, |record| {
            record.config.flags.clone_from(&flags);
        });
    }
    let effects = group(&records).flag_effects;
    assert_eq!(effects.len(), 2);
    let verdicts: Vec<&VerdictRow> = effects.iter().flat_map(|e| &e.verdicts).collect();
    assert_eq!(verdicts.len(), 12);
    let one = effects.iter().find(|e| e.flag == "--one").unwrap();
    for verdict in &one.verdicts {
        assert!((verdict.p_adjusted.unwrap() - SMALLEST_P).abs() < 1e-9);
    }
}

#[test]
fn what_is_slower_in_any_table_is_not_recommended() {
    assert_eq!(names(&group(&records()).findings.faster), [BALANCED]);
    let mut records = records();
    change_cases(&mut records, "ladder", |case| {
        let slow = case.e2el_ms.values().iter().map(|ms| ms * 1.5).collect();
        case.e2el_ms = Sorted::new(slow).unwrap();
    });
    let findings = group(&records).findings;
    assert_eq!(names(&findings.faster), [""; 0]);
    assert_eq!(names(&findings.mixed), [BALANCED]);
    let slower = |v: &&VerdictRow| v.verdict == "slower";
    let statements = findings.mixed[0].statements.iter();
    let cases: Vec<&str> = statements.filter(slower).map(|v| v.case.as_str()).collect();
    assert_eq!(cases, ["ladder-10", "ladder-20"]);
}

#[test]
fn answers_of_another_length_are_not_judged_but_for_their_first_token() {
    let mut records = records();
    change_cases(&mut records, "latency", |case| case.output_tokens /= 4);
    for run in &mut records.runs {
        if run.run_id.contains("03-balanced-v2_fixture_e59d8464") {
            run.remark = Some("4 of 4 requests did not return the tokens asked for".into());
        }
    }
    let group = group(&records);
    for verdict in latency_verdicts(&group) {
        if verdict.key == "ttft" {
            assert_eq!(verdict.verdict, "faster");
        } else {
            assert_eq!(
                (verdict.verdict, &*verdict.phrase),
                ("not judged", "not judged")
            );
            let reason = verdict.reason.unwrap();
            assert!(reason.contains("10.0 / 2.5 tokens a request"), "{reason}");
        }
    }
    let caution = "4 of 4 requests did not return the tokens asked for (1 run(s))";
    let is_said = |c: &Caution| c.of.as_deref() == Some("03-balanced-v2") && c.text == caution;
    assert!(group.cautions.iter().any(is_said), "{:?}", group.cautions);
}

#[test]
fn other_prompts_are_not_judged() {
    let mut records = records();
    change(&mut records, BALANCED, |record| {
        record.manifest.sha256.prompts = Some("ee".to_owned());
    });
    let group = group(&records);
    let verdicts = latency_verdicts(&group);
    assert_eq!(verdicts.len(), 3);
    for verdict in verdicts {
        assert_eq!(
            verdict.reason.as_deref(),
            Some("the sets of prompts differ")
        );
    }
    // Beside it, three starts of the other could decide nothing; alone they can: 2 of 56 splits.
    assert_eq!(names(&group.findings.undecided), [BALANCED]);
    // The figures themselves stand there.
    assert!(group.latency.iter().all(|row| row.stats.is_some()));
}

/// Why the peer's comparison is not judged, or decides nothing.
fn reason_against_peer(records: &Records) -> String {
    let comparison = group(records).peer_comparisons.remove(0);
    let mut verdicts = comparison.latency.iter().flat_map(|row| &row.verdicts);
    verdicts.next().unwrap().reason.clone().unwrap()
}

#[test]
fn another_engine_is_judged_on_this_machine_with_this_model_and_these_prompts_alone() {
    let mut records = records();
    assert!(reason_against_peer(&records).contains("different names: fixture-model-elsewhere"));
    change_peer(&mut records, |record| {
        record.manifest.model.used = "owner/fixture-model".to_owned();
    });
    let reason = reason_against_peer(&records);
    assert_eq!(reason, "2 against 5 server starts, it takes 4 of each");
    change_peer(&mut records, |record| {
        record.manifest.sha256.prompts = Some("ee".to_owned());
    });
    assert!(reason_against_peer(&records).contains("prompts differ"));
    change_peer(&mut records, |record| {
        record.manifest.base_url = Some("http://gpubox:8000/v1".to_owned());
    });
    let reason = reason_against_peer(&records);
    assert!(
        reason.contains("at http://gpubox:8000/v1 is not recorded"),
        "{reason}"
    );
}

#[test]
fn another_power_limit_or_executor_is_said() {
    let mut records = records();
    let said = |records: &Records, words: &str| {
        let cautions = group(records).cautions;
        cautions.iter().any(|caution| caution.text.contains(words))
    };
    let words = ["different power limits of the GPU", "different executors"];
    assert!(!words.iter().any(|words| said(&records, words)));
    change(&mut records, BALANCED, |record| {
        record.environment.gpu.as_mut().unwrap().power_limit_w = Some(400.0);
        record.server.executor = Some("cpu".to_owned());
    });
    assert!(words.iter().all(|words| said(&records, words)));
}

#[test]
fn distributions_are_of_a_case_that_configurations_share() {
    let mut records = records();
    let alt = |records: &Records| group(records).charts["itl"].alt.clone();
    assert!(alt(&records).contains("(users-2)"));
    // The other configurations have no such case.
    let of_baseline = |c: &CaseSamples| c.run_id.contains("01-baseline");
    records
        .cases
        .retain(|c| c.phase != "users" || of_baseline(c));
    assert!(alt(&records).contains("(ladder-20)"), "{}", alt(&records));
}

#[test]
fn fewer_weights_than_are_looked_up_give_no_bar() {
    let mut records = records();
    for record in records
        .runs
        .iter_mut()
        .filter_map(|run| run.record.as_mut())
    {
        if let Some(gpu) = &mut record.environment.gpu {
            gpu.name = "NVIDIA H100 80GB HBM3".to_owned();
        }
        record.server.weight_bytes = Some(2 << 30);
        record.server.lookup_bytes = Some(1 << 30);
    }
    assert!(group(&records).charts.contains_key("roofline"));
    for record in records
        .runs
        .iter_mut()
        .filter_map(|run| run.record.as_mut())
    {
        record.server.lookup_bytes = Some(3 << 30);
    }
    assert!(!group(&records).charts.contains_key("roofline"));
}

#[test]
fn the_baseline_is_the_experiment_that_says_so() {
    let mut records = records();
    for name in ["01-baseline", "02-ultra", BALANCED] {
        change(&mut records, name, |record| {
            record.manifest.schema_version = 2;
        });
    }
    // A name says nothing since records can say it themselves.
    assert!(group(&records).comparisons.is_empty());
    change(&mut records, "02-ultra", |record| {
        record.manifest.baseline = true;
    });
    let comparisons = group(&records).comparisons;
    let pairs: Vec<(&str, &str)> = comparisons
        .iter()
        .map(|c| (c.before.as_str(), c.after.as_str()))
        .collect();
    assert_eq!(pairs, [("02-ultra", "01-baseline"), ("02-ultra", BALANCED)]);
}
