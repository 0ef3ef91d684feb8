use std::fs;

use experiments::spec::{Experiment, Overrides};

use crate::notebook::Notebook;

const FLAGS: &str = "| flag | meaning |\n|---|---|\n| `--token-ms 3` | … |\n| `--shared 1` | … |\n\
                     | `--idle` | … |\n| `--sizes 1 2` | … |\n";

fn notebook() -> Notebook {
    let notebook = Notebook::new();
    notebook.write("engine/FLAGS.md", FLAGS);
    notebook
}

#[test]
fn the_next_number_with_one_change_and_the_five_headings() {
    let notebook = notebook();
    let outcome = notebook.run(
        &["new", "slower", "--from", "full", "--set", "token-ms=2"],
        &[],
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stdout.contains("cargo xtask exp 02-full 03-slower"),
        "{}",
        outcome.stdout
    );
    assert_eq!(
        notebook.read("experiments/03-slower/experiment.toml"),
        "name = \"03-slower\"\ntitle = \"02-full with --token-ms 2 instead of --token-ms 1\"\n\
         extends = \"02-full\"\n\n[flags]\ntoken-ms = 2\n"
    );
    let notes = notebook.read("experiments/03-slower/notes.md");
    assert!(
        notes.starts_with("# 03-slower\n\n**Hypothesis.** "),
        "{notes}"
    );
    for part in [
        "**Change.** Against `02-full`: `--token-ms 2` instead of `--token-ms 1`.",
        "**Prediction.** ",
        "**Result.**\n\n<!-- result: written by `cargo xtask notes --write` -->\n\nNo campaign is recorded.\n\n<!-- until here -->\n",
        "**Decision.** ",
    ] {
        assert!(notes.contains(part), "{notes}");
    }
}

#[test]
fn several_changes_only_when_insisted_on() {
    let notebook = notebook();
    let words = [
        "new",
        "both",
        "--from",
        "02",
        "--set",
        "sizes=1 2",
        "--remove",
        "--idle",
    ];
    let outcome = notebook.run(&words, &[]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("2 changes at once"),
        "{}",
        outcome.stderr
    );
    let outcome = notebook.run(&[&words[..], &["--allow-many"]].concat(), &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let made = Experiment::load(&notebook.path("experiments"), "both", &Overrides::default())
        .expect("an experiment");
    assert_eq!(
        made.flags.to_args().join(" "),
        "--shared 1 --sizes 1 2 --token-ms 1"
    );
}

#[test]
fn mistakes_are_refused_and_leave_nothing() {
    let notebook = notebook();
    for (words, part) in [
        (
            &["full", "--from", "base"][..],
            "an experiment is called 02-full already",
        ),
        (
            &["x", "--from", "nonsense"],
            "no experiment is called `nonsense`",
        ),
        (
            &["07-x", "--from", "base"],
            "name `07-x`: must be lower-case",
        ),
        (
            &[&*"x".repeat(300), "--from", "base"],
            "of 300 characters: must be at most 97 long",
        ),
        (
            &["x", "--from", "base", "--set", "tokenms=3"],
            "the engine has no flag `--tokenms`; it has: idle, shared",
        ),
        (
            &["x", "--from", "base", "--remove", "idle"],
            "`idle` is not among the inherited flags",
        ),
        (
            &["x", "--from", "base", "--set", "shared=1"],
            "01-base has --shared 1 already",
        ),
        (
            &["x", "--from", "base", "--set", "idle", "--set", "idle"],
            "`--idle` is named twice",
        ),
    ] {
        let outcome = notebook.run(&[&["new"], words].concat(), &[]);
        assert_eq!(outcome.code, Some(1), "{words:?}");
        assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
    }
    let n_experiments = fs::read_dir(notebook.path("experiments"))
        .expect("readable")
        .count();
    assert_eq!(n_experiments, 2);
}
