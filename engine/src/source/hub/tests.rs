//! The client against a hub on the loopback interface.

mod fake_hub;
mod transfers;

use std::collections::HashMap;
use std::sync::Mutex;

use self::fake_hub::{COMMIT, Hub, Manner, sha256_of};
use super::*;
use crate::source::{Stage, digest};

fn text(n: usize, seed: usize) -> Vec<u8> {
    (0..n)
        .map(|i| b'a' + ((i * 31 + seed) % 26) as u8)
        .collect()
}

/// The paths of the model's files.
fn fetch(
    model: &HubModel,
    parts: Parts,
    settings: &HubSettings,
    progress: &dyn Fn(Progress),
) -> Result<PathBuf, SourceError> {
    let accept = Accept {
        files: &|_| Ok(()),
        config: &|_| Ok(()),
    };
    super::fetch(model, parts, settings, &accept, progress).map(|files| match files {
        ModelFiles::Folder(path) | ModelFiles::Gguf(path) => path,
        ModelFiles::Synthetic(_) => panic!("a synthetic model of the hub"),
    })
}

fn model() -> HubModel {
    HubModel::parse("org/name").expect("well formed")
}

#[test]
fn ids_are_taken_apart() {
    let parse = |text: &str| HubModel::parse(text);
    let parts = |repo: &str, revision: &str, file: Option<&str>| HubModel {
        repo: repo.into(),
        revision: revision.into(),
        file: file.map(Into::into),
        quantisation: None,
    };
    assert_eq!(
        parse("Qwen/Qwen3-0.6B"),
        Ok(parts("Qwen/Qwen3-0.6B", "main", None))
    );
    assert_eq!(parse("a/b@v1.0"), Ok(parts("a/b", "v1.0", None)));
    assert_eq!(parse("a/b@refs/pr/1"), Ok(parts("a/b", "refs/pr/1", None)));
    assert_eq!(
        parse("a/b/x.gguf"),
        Ok(parts("a/b", "main", Some("x.gguf")))
    );
    assert_eq!(
        parse("a/b/sub/x.gguf@main"),
        Ok(parts("a/b", "main", Some("sub/x.gguf")))
    );
    let quantised = parse("a/b:Q4_K_M@v1").expect("well formed");
    assert_eq!(
        (
            quantised.quantisation.as_deref(),
            quantised.revision.as_str()
        ),
        (Some("Q4_K_M"), "v1")
    );
    for bad in [
        "name",
        "a/",
        "/b",
        "a/b/c",
        "../b",
        "a/b@",
        "a/b@../x",
        "a b/c",
        "a/../x.gguf",
        "a/b:",
        "a/b:../x",
        "a/b/x.gguf:Q4_K_M",
    ] {
        assert!(parse(bad).is_err(), "{bad} was accepted");
    }
    for typed in ["a/b", "a/b@v1", "a/b/x.gguf", "a/b:Q4_K_M", "a/b:Q8_0@v1"] {
        assert_eq!(parse(typed).expect("well formed").to_string(), typed);
    }
}

#[test]
fn the_environment_decides_place_token_and_endpoint() {
    let read = |pairs: &[(&str, &str)]| {
        let pairs: HashMap<String, String> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_string(), (*v).to_string()))
            .collect();
        let get = move |name: &str| pairs.get(name).cloned();
        HubSettings::from_lookup(&get, Some("/home/u".into()), Path::new("/cache"))
    };
    let plain = read(&[]);
    assert_eq!(plain.cache, Path::new("/home/u/.cache/huggingface/hub"));
    assert_eq!((plain.endpoint, plain.offline), (None, false));
    let set = read(&[
        ("HF_HOME", "/hf"),
        ("HF_TOKEN", "t"),
        ("HF_ENDPOINT", "http://h/"),
        ("HF_HUB_OFFLINE", "1"),
    ]);
    assert_eq!(set.cache, Path::new("/hf/hub"));
    assert_eq!(
        (set.token.as_deref(), set.endpoint.as_deref()),
        (Some("t"), Some("http://h"))
    );
    assert!(set.offline);
    assert_eq!(
        read(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/hf")]).cache,
        Path::new("/c")
    );
    // Older names, and home folders other than the default.
    let older = read(&[
        ("HUGGINGFACE_HUB_CACHE", "/old"),
        ("HUGGING_FACE_HUB_TOKEN", "t"),
    ]);
    assert_eq!(older.cache, Path::new("/old"));
    assert_eq!(older.token.as_deref(), Some("t"));
    let newer = read(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")]);
    assert_eq!(newer.cache, Path::new("/new"));
    assert_eq!(
        read(&[("XDG_CACHE_HOME", "/xdg")]).cache,
        Path::new("/xdg/huggingface/hub")
    );
    assert_eq!(
        read(&[("HF_HOME", "~/hf")]).cache,
        Path::new("/home/u/hf/hub")
    );
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("token");
    std::fs::write(&place, " secret\n").expect("written");
    let place = place.display().to_string();
    assert_eq!(
        read(&[("HF_TOKEN_PATH", &place)]).token.as_deref(),
        Some("secret")
    );
    let homeless = HubSettings::from_lookup(&|_| None, None, Path::new("/cache"));
    assert_eq!(homeless.cache, Path::new("/cache/hub"));
}

#[test]
fn a_sharded_model_is_fetched_whole_and_then_served_from_the_cache() {
    let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    let hub = Hub::start(
        &[
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", text(100, 1)),
            (INDEX, index.as_bytes().to_vec()),
            ("model-1.safetensors", text(5000, 2)),
            ("model-2.safetensors", text(3000, 3)),
            ("model.bin", text(10, 4)),
        ],
        Manner::Honest,
    );
    let cache = tempfile::tempdir().expect("a folder");
    let settings = HubSettings {
        token: Some("secret".into()),
        ..hub.settings(cache.path())
    };
    let finished = Mutex::new(Vec::new());
    let note = |p: Progress| {
        if p.stage == Stage::Finished {
            finished
                .lock()
                .expect("no panic")
                .push((p.file.to_string(), p.done_bytes));
        }
    };
    let folder = fetch(&model(), Parts::Whole, &settings, &note).expect("fetched");
    let read = |name: &str| std::fs::read(folder.join(name)).expect("there");
    assert_eq!(read("model-1.safetensors"), text(5000, 2));
    assert_eq!(read("model-2.safetensors"), text(3000, 3));
    assert_eq!(read("tokenizer.json"), text(100, 1));
    assert!(!folder.join("model.bin").exists(), "not asked for");
    let finished = finished.into_inner().expect("no panic");
    assert!(
        finished.contains(&("model-1.safetensors".into(), 5000)),
        "{finished:?}"
    );
    let asked = hub.asked();
    assert!(
        asked
            .iter()
            .all(|a| a.token.as_deref() == Some("Bearer secret")),
        "{asked:?}"
    );

    let again = fetch(&model(), Parts::Whole, &settings, &|_| ()).expect("cached");
    assert_eq!(again, folder);
    let offline = HubSettings {
        offline: true,
        ..settings
    };
    assert_eq!(
        fetch(&model(), Parts::Whole, &offline, &|_| ()).expect("cached"),
        folder
    );
    assert_eq!(hub.asked().len(), asked.len(), "the cache was not used");
}

#[test]
fn weights_can_be_left_out_and_come_later() {
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", text(2000, 11)),
    ];
    let hub = Hub::start(&files, Manner::Honest);
    let cache = tempfile::tempdir().expect("a folder");
    let settings = hub.settings(cache.path());
    let folder = fetch(&model(), Parts::WithoutWeights, &settings, &|_| ()).expect("fetched");
    assert!(folder.join("config.json").exists() && !folder.join("model.safetensors").exists());
    let folder = fetch(&model(), Parts::Whole, &settings, &|_| ()).expect("fetched");
    assert!(folder.join("model.safetensors").exists());
}

#[test]
fn errors_say_what_to_do() {
    let files = [
        ("config.json", b"{}".to_vec()),
        ("pytorch_model.bin", text(10, 9)),
    ];
    let hub = Hub::start(&files, Manner::Private("right"));
    let cache = tempfile::tempdir().expect("a folder");
    let settings = hub.settings(cache.path());
    let failed = |wanted: &str, settings: &HubSettings| {
        let model = HubModel::parse(wanted).expect("well formed");
        fetch(&model, Parts::Whole, settings, &|_| ())
            .expect_err("fails")
            .to_string()
    };
    let error = failed("org/name", &settings);
    assert!(
        error.contains("401") && error.contains("no HF_TOKEN is set"),
        "{error}"
    );
    let wrong = HubSettings {
        token: Some("wrong".into()),
        ..settings.clone()
    };
    let error = failed("org/name", &wrong);
    assert!(
        error.contains("the token that was sent may not see it"),
        "{error}"
    );
    let allowed = HubSettings {
        token: Some("right".into()),
        ..settings.clone()
    };
    let error = failed("org/name", &allowed);
    assert!(error.contains("neither model.safetensors"), "{error}");
    let error = failed("org/name/none.gguf", &allowed);
    assert!(error.contains("the repository has no none.gguf"), "{error}");
    let error = failed("org/other", &allowed);
    assert!(
        error.contains("404") && error.contains("no such repository or revision"),
        "{error}"
    );
    assert!(
        error.contains("No file or folder org/other is here"),
        "{error}"
    );
    let error = failed(
        "org/name",
        &HubSettings {
            offline: true,
            ..settings.clone()
        },
    );
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    let unreachable_hub = HubSettings {
        endpoint: Some("http://127.0.0.1:9".into()),
        ..settings
    };
    assert!(failed("org/name", &unreachable_hub).contains("org/name from the hub"));
}

/// `hf download --revision <commit>` leaves a snapshot and no reference to it.
#[test]
fn a_commit_is_found_by_its_folder() {
    let cache = tempfile::tempdir().expect("a folder");
    let snapshot = cache
        .path()
        .join("models--org--name/snapshots")
        .join(COMMIT);
    std::fs::create_dir_all(&snapshot).expect("made");
    std::fs::create_dir_all(snapshot.join("deep/er")).expect("made");
    for name in [
        "config.json",
        "model.safetensors",
        "x.gguf",
        "deep/er/y.gguf",
    ] {
        std::fs::write(snapshot.join(name), "x").expect("written");
    }
    let settings = HubSettings {
        endpoint: None,
        token: None,
        cache: cache.path().to_path_buf(),
        offline: true,
        digests: cache.path().join("engine"),
    };
    let get = |wanted: &str| {
        let wanted = HubModel::parse(wanted).expect("well formed");
        fetch(&wanted, Parts::Whole, &settings, &|_| ())
    };
    let named = |name: &str| format!("org/name{name}@{COMMIT}");
    assert_eq!(get(&named("")).expect("cached"), snapshot);
    assert_eq!(
        get(&named("/x.gguf")).expect("cached"),
        snapshot.join("x.gguf")
    );
    assert_eq!(
        get(&named("/deep/er/y.gguf")).expect("cached"),
        snapshot.join("deep/er/y.gguf")
    );
    let error = get("org/name").expect_err("no reference").to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
}

/// Another tool has cached the weights without a tokenizer.
#[test]
fn a_tokenizer_that_the_cache_lacks_is_fetched() {
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", text(2000, 14)),
        ("tokenizer.json", text(100, 15)),
        ("additional_chat_templates/tool_use.jinja", text(50, 16)),
    ];
    let hub = Hub::start(&files, Manner::Honest);
    let cache = tempfile::tempdir().expect("a folder");
    let settings = hub.settings(cache.path());
    let repo = cache.path().join("models--org--name");
    let snapshot = repo.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).expect("made");
    std::fs::create_dir_all(repo.join("refs")).expect("made");
    std::fs::write(repo.join("refs/main"), COMMIT).expect("written");
    for (name, bytes) in &files[..2] {
        std::fs::write(snapshot.join(name), bytes).expect("written");
    }
    // Without a hub, the cached files must suffice.
    let unreachable = HubSettings {
        endpoint: Some("http://127.0.0.1:9".into()),
        ..settings.clone()
    };
    let get = |settings: &HubSettings| fetch(&model(), Parts::Whole, settings, &|_| ());
    assert_eq!(get(&unreachable).expect("cached"), snapshot);
    assert_eq!(get(&settings).expect("completed"), snapshot);
    for (name, bytes) in &files[2..] {
        assert_eq!(&std::fs::read(snapshot.join(name)).expect("fetched"), bytes);
    }
    let asked = hub.asked();
    let weights = asked.iter().find(|a| a.path.ends_with(".safetensors"));
    assert_eq!(weights, None, "fetched though cached");
    get(&settings).expect("cached");
    assert_eq!(hub.asked().len(), asked.len(), "asked again");
}

#[test]
fn gguf_models_are_found_by_quantisation_and_with_all_their_parts() {
    let files = [
        ("README.md", text(10, 1)),
        ("a-Q4_K_M.gguf", text(3000, 17)),
        ("a-Q8_0-00001-of-00002.gguf", text(3000, 18)),
        ("a-Q8_0-00002-of-00002.gguf", text(2000, 19)),
    ];
    let hub = Hub::start(&files, Manner::Honest);
    let cache = tempfile::tempdir().expect("a folder");
    let settings = hub.settings(cache.path());
    let get = |wanted: &str| {
        let wanted = HubModel::parse(wanted).expect("well formed");
        fetch(&wanted, Parts::Whole, &settings, &|_| ())
    };
    let error = get("org/name").expect_err("two models").to_string();
    assert!(
        error.contains("a-Q4_K_M.gguf") && error.contains("a-Q8_0-00001"),
        "{error}"
    );
    let first = get("org/name:q8_0").expect("fetched");
    assert!(
        first.ends_with("a-Q8_0-00001-of-00002.gguf"),
        "{}",
        first.display()
    );
    let second = first.with_file_name("a-Q8_0-00002-of-00002.gguf");
    assert_eq!(std::fs::read(second).expect("fetched"), files[3].1);
    let n_asked = hub.asked().len();
    assert_eq!(get("org/name:Q8_0").expect("cached"), first);
    assert_eq!(
        get("org/name/a-Q8_0-00002-of-00002.gguf").expect("cached"),
        first
    );
    assert_eq!(hub.asked().len(), n_asked, "the cache was not used");
}

#[test]
fn a_model_that_is_not_accepted_costs_its_small_files_alone() {
    let files = [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", text(100, 20)),
        ("model.safetensors", text(2000, 21)),
    ];
    let hub = Hub::start(&files, Manner::Honest);
    let cache = tempfile::tempdir().expect("a folder");
    let settings = hub.settings(cache.path());
    let accept = Accept {
        files: &|files: &ModelFiles| {
            let ModelFiles::Folder(dir) = files else {
                panic!("{files:?}")
            };
            assert!(dir.join("config.json").exists() && dir.join("tokenizer.json").exists());
            Err(SourceError::fetch("x", "not accepted"))
        },
        config: &|_| Ok(()),
    };
    for _ in 0..2 {
        let refused = super::fetch(&model(), Parts::Whole, &settings, &accept, &|_| ());
        assert!(refused.is_err_and(|e| e.to_string().contains("not accepted")));
    }
    let asked = hub.asked();
    let weights = asked.iter().find(|a| a.path.ends_with(".safetensors"));
    assert_eq!(weights, None);
}

/// The header is read before the rest of a GGUF file.
#[test]
fn a_gguf_model_that_cannot_be_served_costs_its_header_alone() {
    use crate::model::config::Family;
    use crate::weights::gguf::value::Value;
    use crate::weights::{ElementFormat, fixture};
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x.gguf");
    let config = fixture::tiny_config(Family::Llama);
    for (architecture, expected) in [("qwen35moe", Some("qwen35moe")), ("llama", None)] {
        let named = Value::String(architecture.into());
        let extra = [("general.architecture", named)];
        fixture::write_gguf(&path, &config, ElementFormat::F16, 1, &extra).expect("written");
        let bytes = std::fs::read(&path).expect("written");
        // The name that the test hub uses.
        let hub = Hub::start(&[("x.gguf", bytes.clone())], Manner::Honest);
        let cache = tempfile::tempdir().expect("a folder");
        let fetched = fetch(&model(), Parts::Whole, &hub.settings(cache.path()), &|_| ());
        let ranges: Vec<_> = hub.asked().into_iter().filter_map(|a| a.range).collect();
        match expected {
            Some(expected) => {
                let error = fetched.expect_err("refused").to_string();
                assert!(error.contains(expected), "{error}");
                assert!(
                    ranges.iter().all(|range| range == "bytes=0-16777215"),
                    "{ranges:?}"
                );
            }
            None => assert_eq!(
                std::fs::read(fetched.expect("fetched")).expect("there"),
                bytes
            ),
        }
    }
}

/// Nor does one cost more whose configuration the caller refuses.
#[test]
fn a_gguf_model_that_is_not_accepted_costs_its_header_alone() {
    use crate::model::config::Family;
    use crate::weights::{ElementFormat, fixture};
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x.gguf");
    let config = fixture::tiny_config(Family::Qwen3Moe);
    fixture::write_gguf(&path, &config, ElementFormat::F16, 1, &[]).expect("written");
    let bytes = std::fs::read(&path).expect("written");
    let hub = Hub::start(&[("x.gguf", bytes)], Manner::Honest);
    let cache = tempfile::tempdir().expect("a folder");
    let settings = hub.settings(cache.path());
    let accept = Accept {
        files: &|_| panic!("the file was fetched"),
        config: &|model: &ModelConfig| {
            let experts = model.experts.as_ref().map(|experts| experts.n_experts);
            Err(SourceError::fetch("x", format!("{experts:?} not accepted")))
        },
    };
    let refused = super::fetch(&model(), Parts::Whole, &settings, &accept, &|_| ());
    assert!(refused.is_err_and(|e| e.to_string().contains("Some(6) not accepted")));
    let ranges: Vec<_> = hub.asked().into_iter().filter_map(|a| a.range).collect();
    assert!(
        ranges.iter().all(|range| range == "bytes=0-16777215"),
        "{ranges:?}"
    );
}
