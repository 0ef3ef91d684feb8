//! The texts that a reader meets first: their lengths, their paragraphs, where their links lead,
//! and that they name the toolchain that is pinned.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// Texts outside `docs/`, with the lines that each may have.
const TEXTS: [(&str, Option<usize>); 4] = [
    ("README.md", Some(150)),
    ("ARCHITECTURE.md", Some(200)),
    ("CONTRIBUTING.md", None),
    ("CHANGELOG.md", None),
];
const FOLDER: &str = "docs";
const MAX_PARAGRAPH_CHARS: usize = 600;

/// # Errors
/// If a text cannot be read, or breaks a rule; the message lists every fault with its line.
pub fn check(root: &Path) -> Result<()> {
    let mut texts: Vec<(PathBuf, Option<usize>)> = TEXTS
        .map(|(name, max_lines)| (PathBuf::from(name), max_lines))
        .into();
    texts.extend(markdown_files(root)?.into_iter().map(|file| (file, None)));
    let mut faults = Vec::new();
    for (file, max_lines) in texts {
        let text = fs::read_to_string(root.join(&file))
            .with_context(|| root.join(&file).display().to_string())?;
        let found = length_fault(&text, max_lines)
            .into_iter()
            .chain(long_paragraphs(&text))
            .chain(broken_links(root, &file, &text)?);
        faults.extend(found.map(|fault| format!("{}: {fault}", file.display())));
    }
    faults.extend(toolchain_faults(root)?);
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// Of `docs/`, in the order of their names.
fn markdown_files(root: &Path) -> Result<Vec<PathBuf>> {
    let folder = root.join(FOLDER);
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files = Vec::new();
    for entry in entries {
        let name = PathBuf::from(entry?.file_name());
        if name.extension().is_some_and(|extension| extension == "md") {
            files.push(Path::new(FOLDER).join(name));
        }
    }
    files.sort();
    Ok(files)
}

fn length_fault(text: &str, max_lines: Option<usize>) -> Option<String> {
    let (n_lines, max_lines) = (text.lines().count(), max_lines?);
    (n_lines > max_lines).then(|| format!("{n_lines} lines; the limit is {max_lines}"))
}

fn events(text: &str) -> impl Iterator<Item = (Event<'_>, usize)> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
        .into_offset_iter()
        .map(|(event, range)| (event, range.start))
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// Paragraphs and items of lists above the limit. Tables and blocks of code may be as long as
/// they like, and what a link leads to is no text.
fn long_paragraphs(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    // Of each open paragraph or item: where it begins, and its characters without those of items
    // inside it.
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut in_code = false;
    for (event, offset) in events(text) {
        match event {
            Event::Start(Tag::CodeBlock(_)) => in_code = true,
            Event::End(TagEnd::CodeBlock) => in_code = false,
            Event::Start(Tag::Paragraph | Tag::Item) => open.push((offset, 0)),
            Event::End(TagEnd::Paragraph | TagEnd::Item) => {
                if let Some((from, n_chars)) = open.pop()
                    && n_chars > MAX_PARAGRAPH_CHARS
                {
                    faults.push(format!(
                        "line {}: a paragraph of {n_chars} characters; the limit is \
                         {MAX_PARAGRAPH_CHARS}",
                        line_of(text, from)
                    ));
                }
            }
            Event::Text(part) | Event::Code(part) if !in_code => {
                if let Some((_, n_chars)) = open.last_mut() {
                    *n_chars += part.chars().count();
                }
            }
            Event::SoftBreak | Event::HardBreak => {
                if let Some((_, n_chars)) = open.last_mut() {
                    *n_chars += 1;
                }
            }
            _ => {}
        }
    }
    faults
}

/// Relative links and pictures that lead to no file, or to no heading of a Markdown file.
fn broken_links(root: &Path, file: &Path, text: &str) -> Result<Vec<String>> {
    let folder = root.join(file.parent().unwrap_or(Path::new("")));
    let mut faults = Vec::new();
    for (event, offset) in events(text) {
        let Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) = event else {
            continue;
        };
        if dest_url.contains("://") || dest_url.starts_with("mailto:") {
            continue;
        }
        let (path, anchor) = match dest_url.split_once('#') {
            Some((path, anchor)) => (path, Some(anchor)),
            None => (&*dest_url, None),
        };
        let target = if path.is_empty() {
            root.join(file)
        } else {
            folder.join(path)
        };
        let problem = if path.starts_with('/') {
            Some("is not relative".to_owned())
        } else if !target.exists() {
            Some("leads to no file".to_owned())
        } else {
            match anchor {
                Some(anchor) => anchor_fault(&target, anchor)?,
                None => None,
            }
        };
        if let Some(problem) = problem {
            let line = line_of(text, offset);
            faults.push(format!("line {line}: the link `{dest_url}` {problem}"));
        }
    }
    Ok(faults)
}

fn anchor_fault(target: &Path, anchor: &str) -> Result<Option<String>> {
    if target.extension().is_none_or(|extension| extension != "md") {
        return Ok(Some("has an anchor into what is no Markdown".to_owned()));
    }
    let text = fs::read_to_string(target).with_context(|| target.display().to_string())?;
    Ok((!anchors(&text).contains(anchor)).then(|| "leads to no heading".to_owned()))
}

/// The anchors that GitHub gives the headings of a text.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut n_same: BTreeMap<String, usize> = BTreeMap::new();
    let mut heading: Option<String> = None;
    for (event, _) in events(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(part) | Event::Code(part) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&part);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let slug = slug(&heading.take().unwrap_or_default());
                let n_before = n_same.entry(slug.clone()).or_default();
                anchors.insert(match *n_before {
                    0 => slug,
                    n => format!("{slug}-{n}"),
                });
                *n_before += 1;
            }
            _ => {}
        }
    }
    anchors
}

fn slug(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c })
        .collect::<String>()
        .to_lowercase()
}

/// `rust-toolchain.toml`, `rust-version` of the workspace and the README name one version.
fn toolchain_faults(root: &Path) -> Result<Vec<String>> {
    let text_of = |name: &str| fs::read_to_string(root.join(name)).context(name.to_owned());
    let toml_of = |name: &str| -> Result<toml::Table> {
        text_of(name)?.parse().with_context(|| name.to_owned())
    };
    let manifest = toml_of("Cargo.toml")?;
    let toolchain = toml_of("rust-toolchain.toml")?;
    let minimum = manifest["workspace"]["package"]["rust-version"]
        .as_str()
        .context("Cargo.toml: rust-version")?;
    let channel = toolchain["toolchain"]["channel"]
        .as_str()
        .context("rust-toolchain.toml: channel")?;
    let mut faults = Vec::new();
    if channel != minimum && !channel.starts_with(&format!("{minimum}.")) {
        faults.push(format!(
            "rust-toolchain.toml: channel {channel}, while Cargo.toml's rust-version is {minimum}"
        ));
    }
    if !text_of("README.md")?.contains(&format!("Rust {minimum}")) {
        faults.push(format!("README.md: does not name Rust {minimum}"));
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo;

    /// A tree without a fault, in which tests plant one.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let name = format!("docs-test-{name}-{}", std::process::id());
            let root = cargo::target_dir().unwrap().join(name);
            fs::create_dir_all(root.join(FOLDER)).unwrap();
            let tree = Self(root);
            for (file, text) in [
                (
                    "README.md",
                    "# It\n\nNeeds Rust 1.95. See [a](docs/a.md#two-words).\n",
                ),
                ("ARCHITECTURE.md", "# Map\n"),
                ("CONTRIBUTING.md", "# How\n\n[here](#how)\n"),
                ("CHANGELOG.md", "# Changes\n"),
                ("docs/a.md", "# A\n\n## Two words\n\n[back](../README.md)\n"),
                (
                    "Cargo.toml",
                    "[workspace.package]\nrust-version = \"1.95\"\n",
                ),
                ("rust-toolchain.toml", "[toolchain]\nchannel = \"1.95.0\"\n"),
            ] {
                tree.write(file, text);
            }
            tree
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.0.join(file), text).unwrap();
        }

        fn faults(&self) -> String {
            match check(&self.0) {
                Ok(()) => String::new(),
                Err(error) => format!("{error:#}"),
            }
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_tree_without_fault_passes() {
        assert_eq!(Tree::new("sound").faults(), "");
    }

    #[test]
    fn the_repositorys_own_texts_pass() {
        check(&cargo::root().unwrap()).unwrap();
    }

    #[test]
    fn too_many_lines_are_named() {
        let tree = Tree::new("lines");
        tree.write("ARCHITECTURE.md", &"a\n\n".repeat(100));
        assert_eq!(tree.faults(), "");
        tree.write("ARCHITECTURE.md", &"a\n\n".repeat(101));
        assert_eq!(
            tree.faults(),
            "ARCHITECTURE.md: 202 lines; the limit is 200"
        );
        tree.write("ARCHITECTURE.md", "# Map\n");
        tree.write("README.md", &"Rust 1.95\n\n".repeat(76));
        assert_eq!(tree.faults(), "README.md: 152 lines; the limit is 150");
    }

    #[test]
    fn a_long_paragraph_is_named_with_its_line() {
        let tree = Tree::new("paragraph");
        tree.write(
            "docs/a.md",
            &format!("# A\n\n## Two words\n\n{}\n", "ab ".repeat(201)),
        );
        assert_eq!(
            tree.faults(),
            "docs/a.md: line 5: a paragraph of 602 characters; the limit is 600"
        );
    }

    #[test]
    fn items_count_alone_and_tables_code_and_links_do_not() {
        let long = "a".repeat(601);
        assert!(long_paragraphs(&format!("- {long}\n"))[0].starts_with("line 1:"));
        assert!(long_paragraphs(&format!("> {long}\n"))[0].starts_with("line 1:"));
        let half = "a".repeat(400);
        for allowed in [
            format!("- {half}\n- {half}\n  - {half}\n"),
            format!("{half}\n\n{half}\n"),
            format!("| a |\n|---|\n| {long} |\n"),
            format!("```\n{long}\n```\n"),
            format!("- x\n\n  ```\n  {long}\n  ```\n"),
            format!("[x](https://example.org/{long})\n"),
        ] {
            assert_eq!(long_paragraphs(&allowed), Vec::<String>::new());
        }
    }

    #[test]
    fn links_that_lead_nowhere_are_named() {
        let tree = Tree::new("links");
        for (text, expected) in [
            ("[x](b.md)", "the link `b.md` leads to no file"),
            ("![x](b.svg)", "the link `b.svg` leads to no file"),
            (
                "[x](a.md#three)",
                "the link `a.md#three` leads to no heading",
            ),
            ("[x](#three)", "the link `#three` leads to no heading"),
            (
                "[x](../Cargo.toml#L1)",
                "the link `../Cargo.toml#L1` has an anchor into what is no Markdown",
            ),
            ("[x](/README.md)", "the link `/README.md` is not relative"),
        ] {
            tree.write("docs/b b.md", text);
            assert_eq!(tree.faults(), format!("docs/b b.md: line 1: {expected}"));
        }
        tree.write("docs/b b.md", "[x](https://example.org/b.md) `[x](b.md)`");
        assert_eq!(tree.faults(), "");
        // A heading that is renamed breaks the links to it.
        tree.write("docs/a.md", "# A\n\n## Other words\n");
        assert!(tree.faults().contains("leads to no heading"));
    }

    #[test]
    fn anchors_are_github_s() {
        let text = "# A request's life\n## `--flag` on a GPU\n## Same\n## Same\n";
        let expected = ["a-requests-life", "--flag-on-a-gpu", "same", "same-1"];
        assert_eq!(anchors(text), expected.map(String::from).into());
    }

    #[test]
    fn one_version_of_rust() {
        let tree = Tree::new("toolchain");
        tree.write("rust-toolchain.toml", "[toolchain]\nchannel = \"1.96.0\"\n");
        assert!(tree.faults().contains("channel 1.96.0"));
        tree.write("rust-toolchain.toml", "[toolchain]\nchannel = \"1.95\"\n");
        assert_eq!(tree.faults(), "");
        tree.write("README.md", "Rust 1.94\n");
        assert!(tree.faults().contains("does not name Rust 1.95"));
    }
}
