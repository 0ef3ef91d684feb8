//! Engines as arms, from the fixed data set with its configurations taken for other engines.

use std::collections::BTreeMap;
use std::path::Path;

use records::manifest::{AnswerOutcome, Answers, EngineUsed};
use reports::lang::Lang;
use reports::load::run_folder::Outcome;
use reports::load::{self, Records};
use reports::render::Report;
use reports::render::assemble::build;
use reports::render::context::{EngineTable, GroupContext};
use reports::stats::verdict::VerdictConfig;

const OURS: &str = "03-balanced-v2";

fn engine(name: &str, preset: Option<&str>, answers: Answers) -> EngineUsed {
    EngineUsed {
        name: name.into(),
        preset: preset.map(String::from),
        version: Some("1.2.3".into()),
        sha256: Some("0123456789abcdef".into()),
        digest_of: Some("RECORD".into()),
        environment: BTreeMap::new(),
        flags_left_out: BTreeMap::from([("schedule-policy".into(), "its own".into())]),
        answers: Some(answers),
    }
}

fn answers(outcome: AnswerOutcome) -> Answers {
    let is_compared = matches!(outcome, AnswerOutcome::Right | AnswerOutcome::Wrong);
    Answers {
        outcome,
        reference: is_compared.then(|| "ours".into()),
        n_positions: if is_compared { 64 } else { 0 },
        argmax_agreement: is_compared.then_some(0.984_375),
        mean_abs_delta: is_compared.then_some(0.0052),
        max_abs_delta: None,
        least_agreement: None,
        most_mean_delta: None,
        reason: (outcome == AnswerOutcome::NotComparable).then(|| "other weights".into()),
    }
}

/// The baseline's starts are vLLM's, ultra's are SGLang's with other weights, and the failed one of
/// `04-experimental` was a start of vLLM that answered wrongly.
fn records() -> Records {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut records = load::load(data.join("runs"), &data.join("imported"), |_| true).unwrap();
    records.runs.retain(|run| {
        let manifest = &run.record.as_ref().unwrap().manifest;
        manifest.base_url.is_none() && !manifest.quick
    });
    for run in &mut records.runs {
        let manifest = &mut run.record.as_mut().unwrap().manifest;
        let used = match manifest.experiment.as_str() {
            "01-baseline" => engine("vllm", Some("best"), answers(AnswerOutcome::Right)),
            "02-ultra" => {
                let answers = answers(AnswerOutcome::NotComparable);
                engine("sglang", Some("documents"), answers)
            }
            "04-experimental" => {
                run.outcome = Outcome::Wrong {
                    reason: "its answers are not those of ours".into(),
                };
                engine("vllm", Some("best"), answers(AnswerOutcome::Wrong))
            }
            _ => engine("ours", None, answers(AnswerOutcome::Reference)),
        };
        if used.name != "ours" {
            manifest.sha256.engine_binary = None;
        }
        manifest.experiment = OURS.into();
        manifest.engine = Some(used);
    }
    records
}

fn group(records: &Records) -> GroupContext {
    let context = build(records, VerdictConfig::default(), Lang::En).unwrap();
    assert_eq!(context.groups.len(), 1);
    context.groups.into_iter().next().unwrap()
}

fn close(a: Option<f64>, b: Option<f64>) -> bool {
    a.zip(b).is_some_and(|(a, b)| (a - b).abs() < 1e-9)
}

fn table() -> EngineTable {
    group(&records()).engines.unwrap()
}

#[test]
fn every_engine_stands_beside_ours_with_ratios_and_verdicts() {
    let table = table();
    let names: Vec<&str> = table.engines.iter().map(|e| e.engine.as_str()).collect();
    assert_eq!(names, [OURS, "sglang@documents", "vllm@best"]);
    let cases: Vec<(&str, &str)> = table
        .rows
        .iter()
        .map(|row| (row.case.as_str(), row.engine.as_str()))
        .collect();
    assert_eq!(
        cases[..3].iter().map(|(case, _)| *case).collect::<Vec<_>>(),
        ["latency-10"; 3]
    );
    assert_eq!(
        cases.iter().filter(|(_, engine)| *engine == OURS).count(),
        3
    );
    assert_eq!(
        cases
            .iter()
            .filter(|(_, engine)| *engine == "vllm@best")
            .count(),
        3
    );

    let row = |engine: &str| {
        let mut rows = table.rows.iter();
        rows.find(|r| r.case == "users-2" && r.engine == engine)
            .unwrap()
    };
    let (own, vllm, sglang) = (row(OURS), row("vllm@best"), row("sglang@documents"));
    assert!(own.is_ours && own.ratios == [None; 3] && own.verdicts.is_empty());
    assert!(close(
        vllm.ratios[0],
        Some(own.output_tok_per_s / vllm.output_tok_per_s)
    ));
    let of_times = |theirs: Option<f64>, own: Option<f64>| Some(theirs? / own?);
    assert!(close(
        vllm.ratios[1],
        of_times(vllm.ttft_p50_ms, own.ttft_p50_ms)
    ));
    assert!(close(
        vllm.ratios[2],
        of_times(vllm.tpot_p50_ms, own.tpot_p50_ms)
    ));
    assert!(
        vllm.ratios[0].unwrap() > 1.0,
        "balanced-v2 is the faster one"
    );
    assert!(
        vllm.verdicts.iter().all(|v| v.verdict == "faster"),
        "{:?}",
        vllm.verdicts
    );
    assert_eq!(vllm.verdicts.len(), 3);
    for verdict in &sglang.verdicts {
        assert_eq!(verdict.verdict, "not judged");
        assert!(verdict.reason.as_deref().unwrap().contains("other weights"));
    }
}

/// The line that a reader takes away: throughput and first token, with the fewest users and the most.
#[test]
fn each_engine_is_answered_in_a_line() {
    let table = table();
    let answer = |engine: &str| {
        let mut answers = table.answers.iter();
        answers.find(|a| a.engine == engine).unwrap()
    };
    let vllm = answer("vllm@best");
    assert_eq!(
        (vllm.ours.as_str(), vllm.not_comparable.as_ref()),
        (OURS, None)
    );
    let told: Vec<(&str, u32, &str)> = vllm
        .figures
        .iter()
        .map(|f| (f.metric, f.n_users, f.verdict))
        .collect();
    assert_eq!(
        told,
        [
            ("throughput", 1, "faster"),
            ("throughput", 2, "faster"),
            ("TTFT", 1, "faster"),
            ("TTFT", 2, "faster")
        ]
    );
    let most = table
        .rows
        .iter()
        .find(|r| r.case == "users-2" && r.engine == "vllm@best")
        .unwrap();
    assert!(close(Some(vllm.figures[1].ratio), most.ratios[0]));
    assert!(answer("sglang@documents").not_comparable.is_some());
    let conclusion = table.conclusion.as_ref().unwrap();
    assert_eq!(
        (conclusion.ours.as_str(), conclusion.n_slower),
        (OURS, 0),
        "{conclusion:?}"
    );
    assert!(conclusion.engines.contains("vllm@best"));
    assert!(!conclusion.engines.contains("sglang@documents"));
    assert!(conclusion.n_faster >= 4 && conclusion.n_faster <= conclusion.n_figures);
}

/// What two starts of each leave open is asked for in one command, of all engines together.
#[test]
fn what_is_open_between_engines_is_one_command() {
    let mut records = records();
    let mut n_of: BTreeMap<String, usize> = BTreeMap::new();
    records.runs.retain(|run| {
        let n = n_of
            .entry(run.record.as_ref().unwrap().manifest.arm())
            .or_default();
        *n += 1;
        *n <= 2
    });
    let table = group(&records).engines.unwrap();
    assert!(table.conclusion.is_none(), "{:?}", table.conclusion);
    let next = table.next.unwrap();
    assert_eq!(next.words, "the verdicts between engines: 2 more starts");
    assert!(
        next.command.starts_with(
            "cargo xtask exp 03-balanced-v2 --engine ours,vllm@best --replicates 2 --model "
        ),
        "{}",
        next.command
    );
}

#[test]
fn a_wrong_start_is_in_no_figure_and_no_configuration_of_ours_is_another_engines() {
    let group = group(&records());
    let arms: Vec<&str> = group
        .arms
        .iter()
        .map(|arm| arm.experiment.as_str())
        .collect();
    assert_eq!(arms, [OURS]);
    let wrong: Vec<_> = group
        .failed
        .iter()
        .filter(|run| run.state == "wrong")
        .collect();
    assert_eq!(wrong.len(), 1);
    let table = group.engines.unwrap();
    let vllm = table
        .engines
        .iter()
        .find(|e| e.engine == "vllm@best")
        .unwrap();
    assert_eq!((vllm.n_starts, vllm.n_wrong), (5, 1));
    assert!(close(vllm.agreement_percent, Some(98.4375)));
    assert!(
        table
            .rows
            .iter()
            .all(|row| row.engine != "vllm@best" || row.n_runs == 5)
    );
}

#[test]
fn report_01_shows_them_in_both_languages() {
    let records = records();
    for (lang, words) in [
        (
            Lang::En,
            [
                "All engines",
                "1 start(s) answered wrongly",
                "in no verdict, other weights",
            ],
        ),
        (
            Lang::Ko,
            [
                "모든 엔진",
                "기동 1회는 답이 틀려",
                "판정에서 제외, other weights",
            ],
        ),
    ] {
        let context = build(&records, VerdictConfig::default(), lang).unwrap();
        let text = Report::find("01").unwrap().render(&context).unwrap();
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(
            text.contains("| vllm@best |") && text.contains("| sglang@documents |"),
            "{text}"
        );
        assert!(
            text.contains("`vllm@best` 1.2.3 (") && text.contains(" 0123456789ab…)"),
            "{text}"
        );
        assert!(text.contains("`--schedule-policy`: its own"), "{text}");
    }
}

#[test]
fn without_other_engines_there_is_no_such_table() {
    let mut records = records();
    for run in &mut records.runs {
        run.record.as_mut().unwrap().manifest.engine = None;
    }
    assert!(group(&records).engines.is_none());
}
