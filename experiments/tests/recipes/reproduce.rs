use std::fs;

use records::manifest::Derived;

use crate::notebook::{Notebook, stand_in};

/// A notebook in which 02-full was measured twice.
fn measured() -> (Notebook, String) {
    let notebook = Notebook::new();
    let engine = stand_in("fake_engine.py");
    let outcome = notebook.run(
        &[
            "run",
            "full",
            "--replicates",
            "2",
            "--engine-bin",
            &engine,
            "--",
            "--extra",
            "7",
        ],
        &[],
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let run_id = notebook.manifests()[1].run_id.clone();
    (notebook, run_id)
}

#[test]
fn the_recorded_configuration_runs_again_whatever_became_of_its_file() {
    let (notebook, run_id) = measured();
    notebook.write(
        "experiments/02-full/experiment.toml",
        "name = \"02-full\"\ntitle = \"Changed\"\nextends = \"01-base\"\n[flags]\ntoken-ms = 2\n",
    );
    notebook.write("kernels/src/lib.rs", "// other kernels");
    let outcome = notebook.measure(&["reproduce", &run_id], &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);

    let manifests = notebook.manifests();
    assert_eq!(manifests.len(), 4);
    let (old, new): (Vec<_>, Vec<_>) = manifests.iter().partition(|m| m.derived.is_none());
    for (old, new) in old.iter().zip(&new) {
        // All but the port.
        let flags = |command: &[String]| command[command.len() - 7..].join(" ");
        assert_eq!(flags(&old.command), flags(&new.command));
        assert_eq!(
            flags(&new.command),
            "--extra 7 --idle --shared 1 --token-ms 1"
        );
        assert_eq!((old.seed, &old.experiment), (new.seed, &new.experiment));
        assert_eq!(
            new.derived,
            Some(Derived::Reproduction {
                parent: "02-full".into(),
                of_run: run_id.clone()
            })
        );
    }
    let config = |id: &str| notebook.read(&format!("data/runs/{id}/config.resolved.toml"));
    assert_eq!(config(&old[0].run_id), config(&new[0].run_id));

    for warning in [
        "WARNING: kernels' sources (sha256): ",
        "WARNING: experiments/02-full/experiment.toml has changed: --token-ms 1 then, --token-ms 2 now",
        "WARNING: experiments/02-full/experiment.toml has changed: --idle then, none now",
    ] {
        assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
    }
    for same in ["engine binary", "prompts", "model served", "host:", "cores"] {
        assert!(
            !outcome.stderr.contains(&format!("WARNING: {same}")),
            "{}",
            outcome.stderr
        );
    }
    let next = format!(
        "the verdicts: cargo xtask report reproduction {}\n",
        new[0].campaign
    );
    assert!(outcome.stdout.contains(&next), "{}", outcome.stdout);
}

#[test]
fn what_cannot_be_reproduced_is_refused_with_the_reason() {
    let (notebook, run_id) = measured();
    let refused = |typed: &str| {
        let outcome = notebook.measure(&["reproduce", typed], &[]);
        assert_eq!(outcome.code, Some(1));
        outcome.stderr
    };
    assert!(refused("nonsense").contains("no run is called `nonsense`"));
    assert!(refused("02-full").contains("`02-full` fits 2 runs: "));
    let status = notebook.path(&format!("data/runs/{run_id}/status.json"));
    fs::write(
        status,
        r#"{"status":"failed","reason":"it burnt","finished_utc":null}"#,
    )
    .expect("written");
    let message = refused(&run_id);
    assert!(message.contains("did not complete (it burnt)"), "{message}");
}

#[test]
fn a_dry_run_says_what_differs_and_starts_nothing() {
    let (notebook, run_id) = measured();
    notebook.write("Cargo.lock", "locked otherwise");
    let outcome = notebook.measure(&["reproduce", &run_id, "--dry-run"], &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("WARNING: Cargo.lock (sha256): "),
        "{}",
        outcome.stderr
    );
    assert_eq!(notebook.manifests().len(), 2);
}
