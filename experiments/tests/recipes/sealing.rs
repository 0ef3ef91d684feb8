//! Campaign folders: made at a recipe's end, found by all that look for runs, and honest about sources.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::notebook::{Notebook, Outcome, stand_in};

fn run(notebook: &Notebook, words: &[&str]) -> Outcome {
    let engine = stand_in("fake_engine.py");
    let call = ["run", "full", "--engine-bin", &engine];
    notebook.run(&[&call, words].concat(), &[])
}

fn list(notebook: &Notebook) -> String {
    let engine = stand_in("fake_engine.py");
    let outcome = notebook.run(&["list", "--engine-bin", &engine], &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    outcome.stdout
}

fn folders(notebook: &Notebook, path: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(notebook.path(path)).into_iter().flatten();
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    folders.sort();
    folders
}

#[test]
fn a_recipe_ends_with_a_campaign_folder_that_everything_reads() {
    let notebook = Notebook::new();
    let outcome = run(&notebook, &["--replicates", "2", "--seal"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("sealed: data/campaigns/"),
        "{}",
        outcome.stderr
    );
    assert_eq!(folders(&notebook, "data/runs"), Vec::<PathBuf>::new());
    let campaigns = folders(&notebook, "data/campaigns");
    let [campaign] = campaigns.as_slice() else {
        panic!("{campaigns:?}");
    };
    assert_eq!(folders(&notebook, &campaign.to_string_lossy()).len(), 3);

    let shown = list(&notebook);
    assert_eq!(shown.matches("_02-full_").count(), 2, "{shown}");
    assert!(!shown.contains("broken"), "{shown}");
    let name = campaign.file_name().expect("a name").to_string_lossy();
    let cited = format!("{name}#full/1");
    let words = ["export", &cited, "--format", "csv", "--out", "exported"];
    let outcome = notebook.run(&words, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let outcome = notebook.measure(&["reproduce", &cited, "--seal"], &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stdout.contains("2 start(s) then"),
        "{}",
        outcome.stdout
    );
    assert_eq!(folders(&notebook, "data/campaigns").len(), 2);
    assert_eq!(folders(&notebook, "data/runs"), Vec::<PathBuf>::new());
    assert!(!list(&notebook).contains("broken"));

    let rows = campaign.join("rows.tar");
    let bytes = fs::read(&rows).expect("readable");
    fs::write(&rows, &bytes[..bytes.len() - 9]).expect("written");
    let shown = list(&notebook);
    assert!(
        shown.contains("broken (rows.tar is not what was sealed"),
        "{shown}"
    );
    assert!(shown.contains("2 of 4 runs are broken"), "{shown}");
}

#[test]
fn a_quick_campaign_is_sealed_by_name_alone_and_a_killed_one_by_the_next_call() {
    let notebook = Notebook::new();
    let outcome = run(&notebook, &["--quick", "--seal"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    // As a runner that is killed leaves it: not sealed.
    let outcome = run(&notebook, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(folders(&notebook, "data/runs").len(), 2);
    let outcome = run(&notebook, &["--seal"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(folders(&notebook, "data/campaigns").len(), 2);
    let left = notebook.manifests();
    let [quick] = left.as_slice() else {
        panic!("{} runs", left.len());
    };
    assert!(quick.quick);
    let outcome = notebook.run(&["seal"], &[]);
    assert_eq!(outcome.stdout, "nothing to seal\n");
    let outcome = notebook.run(&["seal", &quick.campaign], &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(folders(&notebook, "data/campaigns").len(), 3);
    assert!(notebook.manifests().is_empty());
}

fn git(notebook: &Notebook, words: &[&str]) {
    let identity = [
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "-c",
        "commit.gpgsign=false",
    ];
    let status = Command::new("git")
        .args([&identity[..], words].concat())
        .current_dir(notebook.dir.path())
        .status()
        .expect("git");
    assert!(status.success());
}

#[test]
fn changed_sources_are_refused_or_kept_and_marked() {
    let notebook = Notebook::new();
    let outcome = run(&notebook, &[]);
    assert!(
        outcome.stderr.contains("under no git repository"),
        "{}",
        outcome.stderr
    );
    assert!(list(&notebook).contains("(no commit, only the sources' sha256)"));

    git(&notebook, &["init", "--quiet"]);
    git(
        &notebook,
        &[
            "add",
            "Cargo.toml",
            "Cargo.lock",
            "kernels",
            "experiments",
            "data/prompts",
        ],
    );
    git(&notebook, &["commit", "--quiet", "--message", "one"]);
    let outcome = run(&notebook, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    notebook.write("kernels/src/lib.rs", "// other kernels\n");
    notebook.write("engine/src/new.rs", "// new\n");
    let outcome = run(&notebook, &[]);
    assert_eq!(outcome.code, Some(1));
    let refusal = "the sources are not those of the commit: kernels/src/lib.rs, engine/src/new.rs";
    assert!(outcome.stderr.contains(refusal), "{}", outcome.stderr);
    assert_eq!(notebook.manifests().len(), 2);

    let outcome = run(&notebook, &["--allow-dirty"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let manifests = notebook.manifests();
    let marked: Vec<_> = manifests
        .iter()
        .filter(|m| m.git.dirty == Some(true))
        .collect();
    let [marked] = marked.as_slice() else {
        panic!("{manifests:?}");
    };
    assert_eq!(
        marked.git.changed,
        ["kernels/src/lib.rs", "engine/src/new.rs"]
    );
    let changes = notebook.read(&format!("data/runs/{}/changes.diff", marked.run_id));
    assert!(
        changes.contains("+// other kernels") && changes.contains("+// new"),
        "{changes}"
    );
    let shown = list(&notebook);
    assert_eq!(
        shown
            .matches("(changed sources, the difference is kept)")
            .count(),
        1,
        "{shown}"
    );
    assert!(!shown.contains("unknown source"), "{shown}");
}
