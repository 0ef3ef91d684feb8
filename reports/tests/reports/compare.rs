//! `reports compare` on the fixed data set: the table, whom a name means, what is not compared.

use std::fs;
use std::path::{Path, PathBuf};

use reports::ReportError;
use reports::compare::compare;
use reports::lang::Lang;
use reports::select::Selection;
use reports::stats::verdict::VerdictConfig;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/runs")
}

fn compared(runs: &Path, names: [&str; 2], lang: Lang) -> Result<String, ReportError> {
    compare(
        runs,
        names,
        &Selection::default(),
        VerdictConfig::default(),
        lang,
    )
}

#[test]
fn two_experiments_side_by_side() {
    for lang in [Lang::Ko, Lang::En] {
        let text = compared(&fixture(), ["baseline", "03-balanced-v2"], lang).unwrap();
        insta::assert_snapshot!(format!("compare.{}", lang.code()), text);
    }
}

#[test]
fn a_run_is_named_by_its_id_its_path_or_a_part_of_it() {
    let id = "20260115T091000Z_01-baseline_fixture_bdd73226";
    let path = format!("data/runs/{id}/");
    let texts = [id, &path, "bdd73226"]
        .map(|name| compared(&fixture(), [name, "balanced-v2"], Lang::En).unwrap());
    assert!(texts[0].starts_with(&format!(
        "A  01-baseline: campaign fixture-full, 1 server start ({id})"
    )));
    assert!(texts.iter().all(|text| *text == texts[0]));
    // One start against five can decide nothing, and says so.
    assert!(
        texts[0].contains(
            "too few starts (3 more needed): 1 against 5 server starts, it takes 4 of each"
        ),
        "{}",
        texts[0]
    );
}

#[test]
fn names_that_mean_nothing_or_too_much_are_refused() {
    let error = compared(&fixture(), ["baseline", "no-such"], Lang::En).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("`no-such`") && text.contains("03-balanced-v2"),
        "{text}"
    );
    let error = compared(&fixture(), ["20260115T0910", "baseline"], Lang::En).unwrap_err();
    assert!(matches!(error, ReportError::AmbiguousRun { .. }), "{error}");
}

#[test]
fn other_machines_and_models_get_a_warning_and_no_verdict() {
    let moved = tempfile::tempdir().unwrap();
    for run in fs::read_dir(fixture()).unwrap() {
        let run = run.unwrap().path();
        let to = moved.path().join(run.file_name().unwrap());
        fs::create_dir(&to).unwrap();
        let elsewhere = run.to_string_lossy().contains("_03-balanced-v2_");
        for file in fs::read_dir(&run).unwrap() {
            let file = file.unwrap().path();
            let mut text = fs::read_to_string(&file).unwrap();
            if elsewhere {
                text = text
                    .replace("Fixture GPU", "Other GPU")
                    .replace(r#""used":"fixture-model""#, r#""used":"other-model""#);
            }
            fs::write(to.join(file.file_name().unwrap()), text).unwrap();
        }
    }
    let text = compared(moved.path(), ["baseline", "balanced-v2"], Lang::En).unwrap();
    assert!(
        text.contains("warning: the models differ: fixture-model / other-model"),
        "{text}"
    );
    assert!(
        text.contains("warning: the machines differ: Fixture GPU"),
        "{text}"
    );
    assert!(
        text.contains("not judged") && !text.contains("% better"),
        "{text}"
    );
}
