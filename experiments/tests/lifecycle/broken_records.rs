//! Records that are no longer what their run wrote, and servers that say what cannot be.

use std::fs;
use std::path::Path;

use records::status::RunStatus;
use serde_json::Value;

use crate::notebook::Notebook;

fn change(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).expect("readable");
    fs::write(path, change(text)).expect("written");
}

fn measured() -> Notebook {
    let notebook = Notebook::new();
    let (status, _, stderr) = notebook.run("good", &[]);
    assert!(status.success(), "{stderr}");
    notebook
}

fn export(notebook: &Notebook) -> (Option<i32>, String) {
    let run = notebook.only_run();
    let run = run.to_string_lossy();
    notebook.call(&["export", &run, "--format", "csv", "--out", "exported"])
}

/// An older version wrote none.
fn drop_digests(run: &Path) {
    change(&run.join("status.json"), |text| {
        let mut status: Value = serde_json::from_str(&text).expect("a status");
        let removed = status.as_object_mut().and_then(|s| s.remove("sha256"));
        assert!(removed.is_some());
        status.to_string()
    });
}

#[test]
fn changed_rows_are_named_by_list_export_and_reproduce() {
    let notebook = measured();
    let run = notebook.only_run();
    assert!(!notebook.list().contains("broken"));
    assert_eq!(export(&notebook).0, Some(0));
    // Ten times as fast.
    change(&run.join("requests.jsonl"), |text| {
        text.replacen("\"end_s\":", "\"end_s\":0", 1)
    });
    let problem = "requests.jsonl is not what the run wrote: its sha256 is not that in status.json";
    let list = notebook.list();
    assert!(list.contains(&format!("broken ({problem})")), "{list}");
    assert!(list.contains("1 of 1 runs are broken"), "{list}");
    let (code, text) = export(&notebook);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(problem), "{text}");
    let run = run.to_string_lossy();
    let (code, text) = notebook.call(&["reproduce", &run]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(problem), "{text}");
}

#[test]
fn a_record_without_digests_is_checked_by_its_rows() {
    let notebook = measured();
    let run = notebook.only_run();
    drop_digests(&run);
    let list = notebook.list();
    assert!(list.contains("1 complete runs have no digests"), "{list}");
    assert!(!list.contains("broken"), "{list}");
    let (code, text) = export(&notebook);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("has no digests"), "{text}");

    let rows = run.join("requests.jsonl");
    let whole = fs::read_to_string(&rows).expect("readable");
    for (damaged, problem) in [
        (
            whole.split_inclusive('\n').take(4).collect::<String>(),
            "requests.jsonl has 0 rows of case users-1; the workload asked for 2",
        ),
        (whole.clone() + "{\"case\":", "requests.jsonl, line 11"),
        (
            whole.replace(
                "\"output_tokens\":4",
                "\"output_tokens\":9223372036854775808",
            ),
            "usage says 9223372036854775808 output tokens, but 4 were asked for",
        ),
    ] {
        fs::write(&rows, damaged).expect("written");
        let list = notebook.list();
        assert!(
            list.contains("broken (") && list.contains(problem),
            "{list}"
        );
        let (code, text) = export(&notebook);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(problem), "{text}");
    }
}

#[test]
fn a_copied_folder_is_no_second_run() {
    let notebook = measured();
    let run = notebook.only_run();
    let copy = run.with_file_name("99990101T000000Z_01-tiny_copy_00000000");
    fs::create_dir(&copy).expect("made");
    for file in fs::read_dir(&run).expect("readable") {
        let file = file.expect("an entry").path();
        fs::copy(&file, copy.join(file.file_name().expect("a name"))).expect("copied");
    }
    let list = notebook.list();
    let id = run.file_name().expect("a name").to_string_lossy();
    assert!(
        list.contains(&format!("broken (a copy: its manifest is that of {id})")),
        "{list}"
    );
    assert!(list.contains("1 of 2 runs are broken"), "{list}");
}

#[test]
fn a_server_that_claims_more_tokens_than_it_may_give_has_no_throughput() {
    let notebook = Notebook::new();
    let (status, _, _) = notebook.run("lies", &[]);
    assert_eq!(status.code(), Some(1));
    let record = notebook.status();
    assert_eq!(record.status, RunStatus::Failed);
    let reason = record.reason.unwrap_or_default();
    assert!(
        reason.contains("usage says 1000000000000 output tokens, but 4 were asked for"),
        "{reason}"
    );
    let summary = fs::read_to_string(notebook.only_run().join("summary.json")).expect("a summary");
    let summary: Value = serde_json::from_str(&summary).expect("a summary");
    assert_eq!(summary["cases"][0]["output_throughput"], 0.0);
    assert_eq!(summary["cases"][0]["total_output_tokens"], 0);
}

#[test]
fn what_a_server_says_does_not_steer_the_terminal() {
    let notebook = Notebook::new();
    let (_, stdout, stderr) = notebook.run("escapes", &[]);
    let list = notebook.list();
    for text in [stdout, stderr, list.clone()] {
        assert!(!text.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{text}");
    }
    assert!(list.contains("␛]0;title␇"), "{list}");
}
