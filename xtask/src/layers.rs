//! The order of the engine's modules: one may use those before it, never one after it.
//!
//! Reads the sources as text, so that paths inside macros count as well. Code that is compiled for
//! tests alone may use anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::source_files::files_below;

/// From the lowest layer to the highest. ARCHITECTURE.md says what each of them does.
const ORDER: [&str; 31] = [
    // What everything may use.
    "deep_stack",
    "printable",
    "errors",
    // A model at rest.
    "model",
    "weights",
    "source",
    // Text, and the forms that it may have to take.
    "text",
    "guide",
    "structured",
    // A step.
    "request",
    "kv",
    "sampler",
    "step",
    "executor",
    // Many steps.
    "speculation",
    "scheduler",
    "metrics",
    "kv_events",
    "traces",
    "engine_loop",
    // From the command line to a loaded model.
    "config",
    "result_cache",
    "served_model",
    "launch",
    // What is done with it.
    "server",
    "bench",
    "simulate",
    "inspect",
    "selftest",
    // The program, a crate of its own.
    "cli",
    "main",
];

/// Modules of the program, whose `crate` is not the library.
const PROGRAM: [&str; 2] = ["cli", "main"];

/// A use of a higher layer.
#[derive(Debug, PartialEq, Eq)]
struct Upward {
    line: usize,
    used: String,
}

/// # Errors
///
/// Where a module of `engine/src` uses one that is above it, is missing from the order, or is in
/// the order and not there; all of them are named.
pub fn check(root: &Path) -> Result<()> {
    let sources = root.join("engine/src");
    let mut faults = Vec::new();
    let mut found = BTreeSet::new();
    for file in files_below(&sources, &["rs"])? {
        let relative = file.strip_prefix(&sources).unwrap_or(&file);
        let path = module_path(relative);
        let Some(module) = path.first() else {
            continue;
        };
        if !ORDER.contains(&module.as_str()) {
            faults.push(format!("{}: {module} has no layer", relative.display()));
            continue;
        }
        found.insert(module.clone());
        if is_for_tests(relative) || PROGRAM.contains(&module.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        for upward in upward_uses(&path, &text) {
            faults.push(format!(
                "engine/src/{}:{}: {module} uses {}, which is above it",
                relative.display(),
                upward.line,
                upward.used
            ));
        }
    }
    let document = root.join("ARCHITECTURE.md");
    let text = fs::read_to_string(&document).with_context(|| document.display().to_string())?;
    if let Some(fault) = table_fault(&text) {
        faults.push(fault);
    }
    let absent = ORDER.iter().filter(|module| !found.contains(**module));
    faults.extend(absent.map(|module| format!("{module} has a layer and is not there")));
    if faults.is_empty() {
        return Ok(());
    }
    bail!(
        "the layers of the engine (xtask/src/layers.rs):\n  {}",
        faults.join("\n  ")
    )
}

/// What everything may use has no row of its own in the document's table.
const WITHOUT_ROW: [&str; 4] = ["deep_stack", "printable", "errors", "main"];

/// Why the table of modules under the heading "engine" is not the order, if it is not.
fn table_fault(document: &str) -> Option<String> {
    let section = document.split("\n## engine\n").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells = section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    // The odd pieces stand between backticks.
    let named: Vec<&str> = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(|name| name.trim_end_matches('/'))
        .collect();
    let wanted: Vec<&str> = ORDER
        .into_iter()
        .filter(|module| !WITHOUT_ROW.contains(module))
        .collect();
    (named != wanted).then(|| {
        format!(
            "ARCHITECTURE.md lists {}; the order is {}",
            named.join(", "),
            wanted.join(", ")
        )
    })
}

/// `kv/radix.rs` → kv, radix; `kv/mod.rs` → kv; `lib.rs` → nothing.
fn module_path(relative: &Path) -> Vec<String> {
    let mut path: Vec<String> = relative
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    if path.last().is_some_and(|last| last == "mod") || path == ["lib"] {
        path.pop();
    }
    path
}

fn is_for_tests(relative: &Path) -> bool {
    module_path(relative)
        .iter()
        .any(|part| part == "tests" || part.ends_with("_tests"))
}

fn upward_uses(path: &[String], text: &str) -> Vec<Upward> {
    let layer = |name: &str| ORDER.iter().position(|module| *module == name);
    let Some(own) = path.first().and_then(|module| layer(module)) else {
        return Vec::new();
    };
    let tokens = without_tests(&tokens(text));
    let mut found = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let Some(rest) = from_the_root(path, &tokens, i) else {
            continue;
        };
        for name in first_names(rest) {
            if layer(name).is_some_and(|used| used > own) {
                found.push(Upward {
                    line: token.line,
                    used: name.to_owned(),
                });
            }
        }
    }
    found
}

/// What follows `crate::` at token `i`, or as many `super::` as lead out of `path`.
fn from_the_root<'a, 't>(
    path: &[String],
    tokens: &'a [Token<'t>],
    i: usize,
) -> Option<&'a [Token<'t>]> {
    // `super::super::`: only the first counts, and no `crate` within another path.
    if i >= 2 && tokens[i - 1].text == "::" && tokens[i - 2].text != "use" {
        return None;
    }
    let mut n_supers = 0;
    let mut at = i;
    while tokens.get(at)?.text == "super" && tokens.get(at + 1)?.text == "::" {
        n_supers += 1;
        at += 2;
    }
    match n_supers {
        0 if tokens[i].text == "crate" && tokens.get(i + 1)?.text == "::" => tokens.get(i + 2..),
        0 => None,
        n if n == path.len() => tokens.get(at..),
        _ => None,
    }
}

/// Of `{a::b, c}::…` a and c, of `a::…` a.
fn first_names<'t>(tokens: &[Token<'t>]) -> Vec<&'t str> {
    match tokens.first() {
        Some(first) if first.text != "{" => return vec![first.text],
        Some(_) => {}
        None => return Vec::new(),
    }
    let mut names = Vec::new();
    let mut depth = 0_usize;
    for pair in tokens.windows(2) {
        match pair[0].text {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            break;
        }
        let begins = depth == 1 && matches!(pair[0].text, "{" | ",");
        if begins && pair[1].text != "}" {
            names.push(pair[1].text);
        }
    }
    names
}

#[derive(Debug, Clone, Copy)]
struct Token<'t> {
    text: &'t str,
    line: usize,
}

/// Words, `::` and single signs; no comments, strings and characters.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let rest = &text[at..];
        let n = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(n) = string_len(rest) {
            n
        } else {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let n = match rest.chars().next() {
                Some(c) if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                _ if rest.starts_with("::") => 2,
                Some(c) => c.len_utf8(),
                None => break,
            };
            if !rest[..n].trim().is_empty() {
                tokens.push(Token {
                    text: &rest[..n],
                    line,
                });
            }
            n
        };
        line += rest[..n].matches('\n').count();
        at += n;
    }
    tokens
}

/// Length of the string or character that begins here. A lifetime is none.
fn string_len(rest: &str) -> Option<usize> {
    let after_prefix = rest.strip_prefix('b').unwrap_or(rest);
    let n_prefix = rest.len() - after_prefix.len();
    if let Some(raw) = after_prefix.strip_prefix('r') {
        let n_hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[n_hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(n_hashes));
            let body = &raw[n_hashes + 1..];
            let n_body = body.find(&end).map_or(body.len(), |at| at + end.len());
            return Some(n_prefix + 1 + n_hashes + 1 + n_body);
        }
        return None;
    }
    let quote = after_prefix
        .chars()
        .next()
        .filter(|c| matches!(c, '"' | '\''))?;
    let body = &after_prefix[1..];
    let mut is_escaped = false;
    let end = body.char_indices().find(|(_, c)| {
        let ends = *c == quote && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        ends
    });
    let n_body = end.map_or(body.len(), |(at, _)| at);
    let is_lifetime =
        quote == '\'' && !body.starts_with('\\') && body[..n_body].chars().count() != 1;
    (!is_lifetime).then_some((n_prefix + 1 + n_body + 1).min(rest.len()))
}

/// Without the items that `#[cfg(test)]` stands before.
fn without_tests<'t>(tokens: &[Token<'t>]) -> Vec<Token<'t>> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let rest = &tokens[at..];
        let is_mark = rest.len() >= MARK.len()
            && MARK
                .iter()
                .zip(rest)
                .all(|(mark, token)| *mark == token.text);
        if !is_mark {
            kept.push(tokens[at]);
            at += 1;
            continue;
        }
        at += MARK.len();
        let mut depth = 0_usize;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token.text {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && matches!(token.text, "}" | ";") {
                break;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(path: &[&str], text: &str) -> Vec<String> {
        let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
        let found = upward_uses(&path, text);
        found.into_iter().map(|upward| upward.used).collect()
    }

    #[test]
    fn the_engine_keeps_its_layers() {
        let root = crate::cargo::root().expect("the repository");
        check(&root).expect("no module uses one above it");
    }

    #[test]
    fn every_way_to_use_a_higher_layer_is_found() {
        for text in [
            "use crate::server::state;",
            "use crate::{kv::Pool, server::{self, state}};",
            "fn f() { crate::server::state::x() }",
            "println!(\"{}\", crate::server::name());",
            "use super::super::server;",
            "let c = 'x'; let t: &'static str = \"//\"; crate::server::f();",
        ] {
            assert_eq!(used(&["kv", "radix"], text), ["server"], "{text}");
        }
        assert_eq!(
            used(&["kv"], "use super::{executor, server};"),
            ["executor", "server"]
        );
        let found = upward_uses(&["kv".to_owned()], "\n\nuse crate::\n    server;");
        assert_eq!(found[0].line, 3);
    }

    #[test]
    fn lower_layers_tests_comments_and_strings_are_no_fault() {
        for text in [
            "use crate::errors::Code;",
            "use super::server;",
            "// use crate::server;\n/* crate::server */",
            "const TEXT: &str = \"crate::server\"; const RAW: &str = r#\"crate::server\"#;",
            "#[cfg(test)]\nmod tests {\n    use crate::server;\n}\n",
            "#[cfg(test)]\nuse crate::server::fake;\n",
        ] {
            assert_eq!(used(&["kv", "radix"], text), Vec::<String>::new(), "{text}");
        }
        let after = "#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::server;";
        assert_eq!(used(&["kv"], after), ["server"]);
    }

    #[test]
    fn unknown_and_vanished_modules_are_named() {
        let root = tempfile::tempdir().expect("a folder");
        let sources = root.path().join("engine/src");
        fs::create_dir_all(sources.join("kv")).expect("a folder");
        fs::write(sources.join("kv/mod.rs"), "use crate::server::x;").expect("written");
        fs::write(sources.join("novel.rs"), "").expect("written");
        let table = "# A\n## engine\n\n| place | what |\n|---|---|\n| `model/`, `kv` | x |\n";
        fs::write(root.path().join("ARCHITECTURE.md"), table).expect("written");
        let said = check(root.path()).expect_err("refused").to_string();
        assert!(
            said.contains("engine/src/kv/mod.rs:1: kv uses server"),
            "{said}"
        );
        assert!(said.contains("novel has no layer"), "{said}");
        assert!(
            said.contains("ARCHITECTURE.md lists model, kv; the order is"),
            "{said}"
        );
        assert!(
            said.contains("scheduler has a layer and is not there"),
            "{said}"
        );
    }
}
