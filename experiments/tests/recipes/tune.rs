use std::collections::BTreeSet;
use std::path::Path;

use experiments::commands::new::known_flags::{known_flags, refuse_unknown};
use experiments::commands::tune::space::TuneSpec;
use experiments::spec::{Experiment, Overrides, tune_table};
use records::manifest::Derived;

use crate::notebook::{Notebook, stand_in};

const TUNE: &str = "\n[tune]\nn_candidates = 3\nkeep_one_in = 3\nmost_starts = 2\n\
                    [tune.space]\ntoken-ms = [1, 40, 60]\nidle = [true, false]\n";

fn notebook() -> Notebook {
    let notebook = Notebook::new();
    let path = "experiments/01-base/experiment.toml";
    let text = notebook
        .read(path)
        .replace("token-ms = 3", "token-ms = 40\nidle = true");
    notebook.write(path, &(text + TUNE));
    notebook
}

#[test]
fn the_winner_becomes_the_next_experiment_with_its_evidence() {
    let notebook = notebook();
    let engine = stand_in("fake_engine.py");
    let words = [
        "tune",
        "base",
        "--objective",
        "ttft",
        "--budget",
        "5m",
        "--engine-bin",
        &engine,
    ];
    let outcome = notebook.run(&words, &[("FAKE_ENGINE_INACTIVE", "--idle --shared")]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);

    let made = Experiment::load(&notebook.path("experiments"), "03", &Overrides::default())
        .expect("an experiment");
    assert_eq!(made.name, "03-base-tuned-ttft");
    assert_eq!(
        made.flags.to_args().join(" "),
        "--idle --shared 1 --token-ms 1"
    );
    let notes = notebook.read("experiments/03-base-tuned-ttft/notes.md");
    for part in [
        "**Change.** Against `01-base`: `--token-ms 40` → `--token-ms 1`.",
        "Rung 0, 1 start(s) each, median time to first token of case users-2:",
        "Rung 1, 2 start(s) each",
        "| 0 | as it is | ",
    ] {
        assert!(notes.contains(part), "{notes}");
    }
    let manifests = notebook.manifests();
    for manifest in &manifests {
        assert!(notes.contains(&manifest.run_id), "{}", manifest.run_id);
        assert!(
            matches!(&manifest.derived, Some(Derived::Tuning { parent, .. }) if parent == "01-base")
        );
    }
    // `idle` does nothing here, so two values of `token-ms` are left to try; the better one and the
    // incumbent go on.
    assert!(
        outcome
            .stdout
            .contains("without effect on this machine, not searched: idle"),
        "{}",
        outcome.stdout
    );
    assert_eq!(manifests.len(), 3 + 2);
}

#[test]
fn an_incumbent_that_is_best_stays_alone() {
    let notebook = notebook();
    let path = "experiments/01-base/experiment.toml";
    let text = notebook
        .read(path)
        .replace("token-ms = 40\n", "token-ms = 1\n");
    notebook.write(path, &text.replace("idle = [true, false]", ""));
    let engine = stand_in("fake_engine.py");
    let words = [
        "tune",
        "base",
        "--objective",
        "goodput",
        "--budget",
        "5m",
        "--engine-bin",
        &engine,
    ];
    let outcome = notebook.run(&words, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome
            .stdout
            .contains("01-base itself is the best of what was measured"),
        "{}",
        outcome.stdout
    );
    assert!(!notebook.path("experiments/03-base-tuned-goodput").exists());
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let notebook = Notebook::new();
    let refused = |words: &[&str]| {
        let outcome = notebook.run(&[&["tune"], words].concat(), &[]);
        assert_ne!(outcome.code, Some(0));
        outcome.stderr
    };
    let message = refused(&["base", "--objective", "ttft", "--budget", "5m"]);
    assert!(
        message.contains("01-base/experiment.toml has no [tune] table"),
        "{message}"
    );
    let message = refused(&["base", "--objective", "ttft", "--budget", "soon"]);
    assert!(
        message.contains("invalid value 'soon' for '--budget <TIME>'"),
        "{message}"
    );
    assert!(notebook.manifests().is_empty());
}

#[test]
fn the_shipped_space_is_made_of_flags_that_the_engine_has() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = tune_table(&root.join("experiments"), "03-balanced-v2")
        .expect("readable")
        .expect("a [tune] table");
    let spec = TuneSpec::parse(table).expect("a space");
    refuse_unknown(&known_flags(&root).expect("a table"), spec.flags()).expect("known");
    let incumbent = Experiment::load(&root.join("experiments"), "03", &Overrides::default())
        .expect("valid")
        .flags;
    // The experiment as it is lies in its own space.
    let all = spec.draw(&incumbent, &BTreeSet::new(), 1);
    assert_eq!(all.len(), spec.n_candidates);
}
