//! Downloads that break off, resume, are redirected or receive wrong bytes.

use super::*;

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", text(100_000, 5)),
    ];
    let hub = Hub::start(&files, Manner::Breaks);
    let cache = tempfile::tempdir().expect("a folder");
    let folder =
        fetch(&model(), Parts::Whole, &hub.settings(cache.path()), &|_| ()).expect("fetched");
    assert_eq!(
        std::fs::read(folder.join("model.safetensors")).expect("there"),
        files[1].1
    );
    let resumed = hub
        .asked()
        .into_iter()
        .filter_map(|a| a.range)
        .any(|r| r == "bytes=50000-");
    assert!(resumed, "{:?}", hub.asked());
}

/// A different port on the same host is a different origin, like a different host.
#[test]
fn the_token_is_not_sent_to_where_a_redirect_leads() {
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", text(100_000, 15)),
    ];
    let store = Hub::start(&files, Manner::Honest);
    let address: &'static str = String::leak(store.address.clone());
    let hub = Hub::start(&files, Manner::Elsewhere(address));
    let cache = tempfile::tempdir().expect("a folder");
    let settings = HubSettings {
        token: Some("secret".into()),
        ..hub.settings(cache.path())
    };
    let folder = fetch(&model(), Parts::Whole, &settings, &|_| ()).expect("fetched");
    let found = std::fs::read(folder.join("model.safetensors")).expect("there");
    assert_eq!(found, files[1].1);
    let tokens = |hub: &Hub| -> Vec<Option<String>> {
        hub.asked().into_iter().map(|asked| asked.token).collect()
    };
    assert!(store.asked().len() >= 4, "{:?}", store.asked());
    assert!(
        tokens(&store).iter().all(Option::is_none),
        "{:?}",
        store.asked()
    );
    let own = Some("Bearer secret".to_owned());
    assert!(
        tokens(&hub).iter().all(|token| *token == own),
        "{:?}",
        hub.asked()
    );
}

/// A renamed repository still belongs to the hub: it gets the token.
#[test]
fn a_redirect_within_the_hub_keeps_the_token() {
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", text(2000, 16)),
    ];
    let hub = Hub::start(&files, Manner::Renamed("secret"));
    let cache = tempfile::tempdir().expect("a folder");
    let settings = HubSettings {
        token: Some("secret".into()),
        ..hub.settings(cache.path())
    };
    let folder = fetch(&model(), Parts::Whole, &settings, &|_| ()).expect("fetched");
    let found = std::fs::read(folder.join("model.safetensors")).expect("there");
    assert_eq!(found, files[1].1);
}

/// A partial file of a killed process is resumed.
#[test]
fn a_part_file_of_an_earlier_process_is_continued() {
    let bytes = text(9000, 6);
    let hub = Hub::start(&[("x.gguf", bytes.clone())], Manner::Honest);
    let cache = tempfile::tempdir().expect("a folder");
    let etag = sha256_of(&bytes);
    let blobs = cache.path().join("models--org--name").join("blobs");
    std::fs::create_dir_all(&blobs).expect("made");
    std::fs::write(blobs.join(&etag).with_extension("part"), &bytes[..4000]).expect("written");
    let wanted = HubModel::parse("org/name/x.gguf").expect("well formed");
    let file = fetch(&wanted, Parts::Whole, &hub.settings(cache.path()), &|_| ()).expect("fetched");
    assert_eq!(std::fs::read(&file).expect("there"), bytes);
    assert!(
        hub.asked()
            .iter()
            .any(|a| a.range.as_deref() == Some("bytes=4000-"))
    );
    // It was verified when it was downloaded, so it is not hashed again.
    let hashed = std::cell::Cell::new(false);
    let digest = digest::of_file(&file, &cache.path().join("engine"), &|_| hashed.set(true));
    assert_eq!(digest.expect("known"), etag);
    assert!(!hashed.get(), "hashed again");
}

#[test]
fn a_part_file_of_other_bytes_is_thrown_away() {
    let bytes = text(9000, 7);
    let hub = Hub::start(&[("x.gguf", bytes.clone())], Manner::Honest);
    let cache = tempfile::tempdir().expect("a folder");
    let etag = sha256_of(&bytes);
    let blobs = cache.path().join("models--org--name").join("blobs");
    std::fs::create_dir_all(&blobs).expect("made");
    let wanted = HubModel::parse("org/name/x.gguf").expect("well formed");
    for part in [vec![b'?'; 4000], vec![b'?'; 20_000]] {
        std::fs::write(blobs.join(&etag).with_extension("part"), part).expect("written");
        let file =
            fetch(&wanted, Parts::Whole, &hub.settings(cache.path()), &|_| ()).expect("fetched");
        assert_eq!(std::fs::read(&file).expect("there"), bytes);
        std::fs::remove_dir_all(cache.path().join("models--org--name/snapshots")).expect("gone");
    }
}

#[test]
fn bytes_that_do_not_match_their_digest_never_arrive() {
    let hub = Hub::start(&[("x.gguf", text(9000, 8))], Manner::Corrupts);
    let cache = tempfile::tempdir().expect("a folder");
    let wanted = HubModel::parse("org/name/x.gguf").expect("well formed");
    let settings = hub.settings(cache.path());
    let error = fetch(&wanted, Parts::Whole, &settings, &|_| ())
        .expect_err("corrupt")
        .to_string();
    assert!(error.contains("the hub says"), "{error}");
    let offline = HubSettings {
        offline: true,
        ..settings
    };
    assert!(
        fetch(&wanted, Parts::Whole, &offline, &|_| ()).is_err(),
        "the corrupt file was kept"
    );
}

#[test]
fn several_callers_at_once_get_the_same_whole_file() {
    let bytes = text(200_000, 10);
    let hub = Hub::start(&[("x.gguf", bytes.clone())], Manner::Honest);
    let cache = tempfile::tempdir().expect("a folder");
    let wanted = HubModel::parse("org/name/x.gguf").expect("well formed");
    let settings = hub.settings(cache.path());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| fetch(&wanted, Parts::Whole, &settings, &|_| ()).expect("fetched"))
            })
            .collect();
        for thread in threads {
            let file = thread.join().expect("no panic");
            assert_eq!(std::fs::read(file).expect("there"), bytes);
        }
    });
}

/// The digest in a blob's name is verified, whichever tool stored it.
#[test]
fn a_broken_blob_is_fetched_again() {
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", text(9000, 12)),
        ("tokenizer.json", text(100, 12)),
    ];
    let hub = Hub::start(&files, Manner::Honest);
    let cache = tempfile::tempdir().expect("a folder");
    let settings = hub.settings(cache.path());
    let get = |settings: &HubSettings| fetch(&model(), Parts::Whole, settings, &|_| ());
    let folder = get(&settings).expect("fetched");
    let weights = folder.join("model.safetensors");
    let blob = std::fs::canonicalize(&weights).expect("a link");
    for broken in [text(4000, 12), text(9000, 13)] {
        std::fs::write(&blob, &broken).expect("written");
        let offline = HubSettings {
            offline: true,
            ..settings.clone()
        };
        let error = get(&offline).expect_err("broken").to_string();
        assert!(error.contains("expected"), "{error}");
        assert_eq!(std::fs::read(&blob).expect("left as it is"), broken);
        assert_eq!(get(&settings).expect("fetched again"), folder);
        assert_eq!(std::fs::read(&weights).expect("there"), files[1].1);
    }
    let n_asked = hub.asked().len();
    get(&settings).expect("cached");
    assert_eq!(
        hub.asked().len(),
        n_asked,
        "an intact file was fetched again"
    );
}
