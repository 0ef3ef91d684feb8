//! `engine/FLAGS.md` against the command line, the sources and the tests.

use std::collections::BTreeSet;
use std::path::Path;

use clap::CommandFactory;
use engine::config::inactive::inactive_flags;
use engine::config::typed::Device;

use crate::command_line::{Line, parse, resolve};

struct Row {
    flag: String,
    /// A launch line with the flag and what it needs to have an effect.
    example: String,
    /// (file, name that must be in it)
    read_by: Vec<(String, String)>,
    shown_by: Vec<(String, String)>,
    no_effect: String,
}

fn engine_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a cell has between backquotes.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn pairs(cell: &str, flag: &str) -> Vec<(String, String)> {
    let words = quoted(cell);
    assert!(
        !words.is_empty() && words.len().is_multiple_of(2),
        "{flag}: {cell:?} is not `file` `name`, …"
    );
    words
        .chunks_exact(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect()
}

fn rows() -> Vec<Row> {
    let path = engine_folder().join("FLAGS.md");
    let text = std::fs::read_to_string(path).expect("engine/FLAGS.md");
    text.lines()
        .filter(|line| line.starts_with("| `--"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let [example, _meaning, read_by, shown_by, no_effect] = cells[..] else {
                panic!("{} cells, 5 are wanted: {line}", cells.len());
            };
            let example = quoted(example).concat();
            let flag = example.split(' ').rfind(|word| word.starts_with("--"));
            let flag = flag.expect("a flag").to_owned();
            Row {
                read_by: pairs(read_by, &flag),
                shown_by: pairs(shown_by, &flag),
                no_effect: no_effect.to_owned(),
                example,
                flag,
            }
        })
        .collect()
}

/// Rows have the name under which a flag is recorded: SGLang's, where ours is another one.
#[test]
fn every_accepted_flag_has_its_row_and_no_other_has() {
    let accepted: BTreeSet<String> = Line::command()
        .get_arguments()
        .filter(|argument| !argument.is_hide_set())
        .map(|argument| format!("--{}", argument.get_id().as_str().replace('_', "-")))
        .collect();
    assert!(accepted.len() > 40, "{accepted:?}");
    let rows = rows();
    let listed: BTreeSet<String> = rows.iter().map(|row| row.flag.clone()).collect();
    let missing: Vec<_> = accepted.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&accepted).collect();
    assert!(missing.is_empty(), "no row in engine/FLAGS.md: {missing:?}");
    assert!(gone.is_empty(), "no such flag any more: {gone:?}");
    assert_eq!(rows.len(), listed.len(), "a flag has two rows");
}

#[test]
fn every_example_is_accepted_and_recorded() {
    // Where examples have files that are read at once.
    let secrets = tempfile::tempdir().expect("a folder");
    for name in ["api-key", "admin-api-key", "chat.jinja"] {
        std::fs::write(secrets.path().join(name), "s3cret").expect("written");
    }
    let secrets = secrets.path().to_str().expect("UTF-8");
    for row in rows() {
        let example = row.example.replace("/run/secrets", secrets);
        let typed = parse(&example).unwrap_or_else(|error| panic!("{example}: {error}"));
        resolve(&example).unwrap_or_else(|error| panic!("{example}: {error}"));
        let recorded = typed.typed_flags();
        assert!(
            recorded.get(&row.flag).is_some(),
            "{} is not recorded",
            row.flag
        );
    }
}

#[test]
fn the_code_and_the_tests_that_rows_name_are_there() {
    let contains = |file: &str, text: &str, flag: &str| {
        let path = engine_folder().join(file);
        let found = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{flag}: {}: {error}", path.display()));
        assert!(found.contains(text), "{flag}: {text:?} is not in {file}");
    };
    for row in rows() {
        for (file, name) in &row.read_by {
            contains(file, name, &row.flag);
        }
        for (file, test) in &row.shown_by {
            contains(file, &format!("fn {test}("), &row.flag);
        }
    }
}

/// The reason that a row gives for a device: after `CPU: ` or `GPU: `, up to the next line.
fn stated<'a>(row: &'a Row, device: &str) -> Option<&'a str> {
    row.no_effect
        .split("<br>")
        .find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(": "))
}

#[test]
fn rows_say_where_a_flag_does_nothing_and_why() {
    for row in rows() {
        for (name, device) in [("CPU", Device::Cpu), ("GPU", Device::Cuda)] {
            let typed = parse(&row.example).expect("accepted").engine;
            let inactive = inactive_flags(&typed, device);
            let reasons: Vec<&str> = inactive
                .iter()
                .filter(|(flag, _)| *flag == row.flag)
                .map(|(_, reason)| reason.as_str())
                .collect();
            let stated: Vec<&str> = stated(&row, name).into_iter().collect();
            assert_eq!(stated, reasons, "{} on the {name}", row.flag);
        }
    }
}
