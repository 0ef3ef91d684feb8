use records::manifest::{Derived, Direction};

use crate::notebook::Notebook;

/// (direction, flag, replicate) of every run, sorted.
fn runs(notebook: &Notebook) -> Vec<(String, u32)> {
    let mut runs: Vec<(String, u32)> = notebook
        .manifests()
        .iter()
        .map(|manifest| (manifest.experiment.clone(), manifest.replicate))
        .collect();
    runs.sort();
    runs
}

#[test]
fn a_dry_run_lists_the_arms_and_starts_nothing() {
    let notebook = Notebook::new();
    let outcome = notebook.measure(&["ablate", "full", "--dry-run"], &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    // As many as fifteen figures, judged together, need.
    assert!(
        outcome
            .stdout
            .starts_with("02-full against 01-base: 6 arms, 5 starts each\n"),
        "{}",
        outcome.stdout
    );
    for line in [
        "  02-full-off-token-ms  full with --token-ms 1 → --token-ms 3",
        "  02-full-on-idle       baseline with none → --idle",
    ] {
        assert!(outcome.stdout.contains(line), "{}", outcome.stdout);
    }
    assert!(notebook.manifests().is_empty());
}

#[test]
fn arms_run_in_rounds_and_flags_without_effect_do_not_run() {
    let notebook = Notebook::new();
    let outcome = notebook.measure(
        &["ablate", "full", "--replicates", "2"],
        &[("FAKE_ENGINE_INACTIVE", "--idle --shared")],
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let both_rounds = ["baseline", "full", "off-token-ms", "on-token-ms"]
        .iter()
        .flat_map(|arm| [0, 1].map(|replicate| (format!("02-full-{arm}"), replicate)))
        .collect::<Vec<_>>();
    assert_eq!(runs(&notebook), both_rounds);

    let manifests = notebook.manifests();
    let campaign = &manifests[0].campaign;
    assert!(manifests.iter().all(|m| m.campaign == *campaign));
    let off = manifests
        .iter()
        .find(|m| m.experiment == "02-full-off-token-ms")
        .expect("an arm");
    assert_eq!(
        off.derived,
        Some(Derived::Ablation {
            parent: "02-full".into(),
            baseline: Some("01-base".into()),
            direction: Direction::Off,
            flag: Some("token-ms".into()),
        })
    );
    assert!(
        off.command
            .join(" ")
            .ends_with("--idle --shared 1 --token-ms 3"),
        "{:?}",
        off.command
    );
    for line in [
        "  inactive  02-full-off-idle: the fake has no use for it",
        "  inactive  02-full-on-idle: the fake has no use for it",
    ] {
        assert!(outcome.stdout.contains(line), "{}", outcome.stdout);
    }
    let next = format!("the verdicts: cargo xtask report ablation {campaign}\n");
    assert!(outcome.stdout.contains(&next), "{}", outcome.stdout);
}

#[test]
fn an_arm_that_does_not_start_is_recorded_and_the_others_go_on() {
    let notebook = Notebook::new();
    let outcome = notebook.measure(
        &[
            "ablate",
            "full",
            "--replicates",
            "1",
            "--only",
            "idle",
            "--ended-file",
            "ended",
        ],
        &[("FAKE_ENGINE_FATAL", "--idle")],
    );
    assert_eq!(outcome.code, Some(1));
    let started: Vec<String> = runs(&notebook).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        started,
        [
            "02-full-baseline",
            "02-full-full",
            "02-full-off-idle",
            "02-full-on-idle"
        ]
    );
    assert!(
        outcome.stderr.contains("02-full-on-idle failed: "),
        "{}",
        outcome.stderr
    );
    // There is something to judge all the same.
    assert_eq!(notebook.read("ended"), notebook.manifests()[0].campaign);
    assert!(!outcome.stdout.contains("the verdicts:"));
}

#[test]
fn without_a_parent_the_engines_defaults_are_the_other_end() {
    let notebook = Notebook::new();
    let outcome = notebook.measure(&["ablate", "base", "--dry-run", "--only", "--shared"], &[]);
    for line in [
        "01-base against the engine's defaults: 4 arms",
        "  01-base-on-shared   baseline with none → --shared 1",
    ] {
        assert!(outcome.stdout.contains(line), "{}", outcome.stdout);
    }
    let outcome = notebook.measure(&["ablate", "full", "--dry-run", "--only", "shared"], &[]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome
            .stderr
            .contains("--only shared: 02-full and 01-base differ in idle, token-ms"),
        "{}",
        outcome.stderr
    );
}
