use super::*;

fn git(root: &Path, args: &[&str]) -> String {
    let identity = [
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "-c",
        "commit.gpgsign=false",
    ];
    let words = [&identity[..], args].concat();
    duct::cmd("git", words).dir(root).read().expect("git")
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    fs::write(path, text).expect("written");
}

/// A repository with one commit.
fn repository() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary folder");
    let root = dir.path();
    write(root, "Cargo.toml", "[workspace]\n");
    write(root, "Cargo.lock", "locked\n");
    write(root, "kernels/src/lib.rs", "// one\n");
    write(root, "engine/src/lib.rs", "// engine\n");
    write(root, "data/prompts/p.jsonl", "{}\n");
    write(root, "experiments/01-a/notes.md", "notes\n");
    write(
        root,
        "experiments/01-a/experiment.toml",
        "name = \"01-a\"\n",
    );
    write(root, "reports/rendered/index.md", "old\n");
    git(root, &["init", "--quiet"]);
    git(root, &["add", "--all"]);
    git(root, &["commit", "--quiet", "--message", "one"]);
    dir
}

fn sources(root: &Path) -> Sources {
    Sources::of(root, root, None).expect("readable")
}

#[test]
fn records_reports_notes_and_new_experiments_change_no_sources() {
    let dir = repository();
    let root = dir.path();
    write(root, "data/campaigns/c/campaign.json", "{}");
    write(root, "data/prompts/p.jsonl", "{\"id\":1}\n");
    write(root, "reports/rendered/index.md", "new\n");
    write(root, "experiments/01-a/notes.md", "more notes\n");
    write(
        root,
        "experiments/02-b/experiment.toml",
        "name = \"02-b\"\n",
    );
    write(root, "scratch.txt", "mine");
    let sources = sources(root);
    assert_eq!(
        (sources.git.dirty, sources.changes.as_ref()),
        (Some(false), None)
    );
    assert_eq!(sources.git.commit, Some(git(root, &["rev-parse", "HEAD"])));
    assert_eq!(
        sources.git.tree,
        Some(git(root, &["rev-parse", "HEAD^{tree}"]))
    );
    assert_eq!(sources.refusal(), None);
}

#[test]
fn changed_sources_are_refused_by_name_and_their_difference_makes_them_again() {
    let dir = repository();
    let root = dir.path();
    write(root, "kernels/src/lib.rs", "// two\n");
    write(root, "engine/src/new.rs", "// new\n");
    fs::remove_file(root.join("Cargo.lock")).expect("removed");
    let sources = sources(root);
    let refusal = sources.refusal().expect("refused");
    for part in [
        "Cargo.lock, kernels/src/lib.rs, engine/src/new.rs",
        "--allow-dirty",
    ] {
        assert!(refusal.contains(part), "{refusal}");
    }
    let changes = sources.changes.expect("a difference");
    let other = tempfile::tempdir().expect("temporary folder");
    let root_text = root.to_string_lossy();
    git(other.path(), &["clone", "--quiet", &root_text, "copy"]);
    let copy = other.path().join("copy");
    write(&copy, "changes.diff", &changes);
    git(&copy, &["apply", "changes.diff"]);
    for file in ["kernels/src/lib.rs", "engine/src/new.rs"] {
        assert_eq!(
            fs::read(copy.join(file)).expect("readable"),
            fs::read(root.join(file)).expect("readable")
        );
    }
    assert!(!copy.join("Cargo.lock").exists());
}

#[test]
fn a_tree_without_git_has_the_hash_of_its_sources_alone() {
    let dir = repository();
    let root = dir.path();
    let with_git = sources(root);
    fs::remove_dir_all(root.join(".git")).expect("removed");
    let without = sources(root);
    assert_eq!(without.git, GitState::default());
    assert_eq!(without.sha256, with_git.sha256);
    assert_eq!(without.refusal(), None);
    // Inside another repository its commit is not taken.
    write(root, "inner/Cargo.toml", "");
    git(root, &["init", "--quiet"]);
    git(root, &["add", "--all"]);
    git(root, &["commit", "--quiet", "--message", "outer"]);
    assert_eq!(sources(&root.join("inner")).git.commit, None);
    write(root, "engine/src/lib.rs", "// other\n");
    assert_ne!(sources(root).sha256.sources, without.sha256.sources);
}

#[test]
fn packed_programs_tell_their_own_sources() {
    let dir = repository();
    let packed = tempfile::tempdir().expect("temporary folder");
    let engine = packed.path().join("engine");
    fs::write(&engine, "a binary").expect("written");
    let mut told = sources(dir.path());
    told.sha256.engine_binary = Some(sha256_of_file(&engine).expect("readable"));
    let text = serde_json::to_string(&told).expect("written");
    fs::write(packed.path().join(PACKED), text).expect("written");
    let elsewhere = tempfile::tempdir().expect("temporary folder");
    let of = || Sources::of(elsewhere.path(), packed.path(), Some(&engine));
    assert_eq!(of().expect("readable"), told);
    fs::write(&engine, "another binary").expect("written");
    let error = of().expect_err("refused").to_string();
    assert!(error.contains("another engine"), "{error}");
}

#[test]
fn known_hash_and_a_renamed_source_counts_as_a_change() {
    let dir = tempfile::tempdir().expect("temporary folder");
    fs::write(dir.path().join("a.rs"), "abc").expect("written");
    assert_eq!(
        sha256_of_file(&dir.path().join("a.rs")).expect("readable"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    let before = sha256_of_sources(dir.path()).expect("readable");
    fs::rename(dir.path().join("a.rs"), dir.path().join("b.rs")).expect("renamed");
    assert_ne!(before, sha256_of_sources(dir.path()).expect("readable"));
}

#[test]
fn every_crate_of_engine_and_load_generator_is_hashed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a root");
    let text = fs::read_to_string(root.join("Cargo.toml")).expect("readable");
    let manifest: toml::Table = text.parse().expect("TOML");
    let members = manifest["workspace"]["members"].as_array().expect("a list");
    let mut n_hashed = 0;
    for member in members.iter().map(|name| name.as_str().expect("a path")) {
        // Recipes, and what is made from records.
        if member.starts_with("xtask") || member == "reports" {
            continue;
        }
        for part in ["Cargo.toml", "build.rs", "src"] {
            let path = format!("{member}/{part}");
            let is_hashed = BUILT_FROM.contains(&path.as_str());
            assert!(is_hashed || !root.join(&path).exists(), "{path}");
        }
        n_hashed += 1;
    }
    assert!(n_hashed > 4, "{n_hashed} crates");
}
