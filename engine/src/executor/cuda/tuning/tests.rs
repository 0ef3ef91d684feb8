//! Choices, buckets and the file, without a GPU.

use kernels::stream_linear::{Plan, RowBucket};

use super::*;

fn stream(n_ranks: usize) -> Variant {
    Variant::Stream(Plan {
        rows: RowBucket::Up16,
        n_ranks,
        n_clusters: 66,
        n_stages: 3,
        phase_chunks: 10,
        n_phases: 1,
    })
}

const WGMMA: Variant = Variant::Wgmma { rows: 24 };

#[test]
fn buckets_end_at_the_largest_batch() {
    assert_eq!(bucket_rows(6), [1, 2, 4, 6]);
    assert_eq!(bucket_rows(8), [1, 2, 4, 8]);
    assert_eq!(bucket_rows(1), [1]);
    assert_eq!(bucket_rows(32), [1, 2, 4, 8, 12, 16, 20, 24, 32]);
    assert_eq!(bucket_rows(4096).last(), Some(&MAX_ROWS));
    assert!(bucket_rows(0).is_empty());
}

#[test]
fn a_bucket_covers_the_rows_above_the_one_before() {
    let buckets: Vec<Bucket> = bucket_rows(6).into_iter().map(bucket).collect();
    let covered: Vec<(usize, usize)> = with_first_rows(&buckets)
        .map(|(first, bucket)| (first, bucket.rows))
        .collect();
    assert_eq!(covered, [(1, 1), (2, 2), (3, 4), (5, 6)]);
}

#[test]
fn the_fastest_replaces_the_default_only_by_a_margin() {
    assert_eq!(
        fastest(&[("default", 10.0), ("other", 9.95)]),
        Some("default")
    );
    assert_eq!(fastest(&[("default", 10.0), ("other", 9.8)]), Some("other"));
    let three = [
        ("default", 10.0),
        ("slow", 12.0),
        ("best", 7.0),
        ("good", 8.0),
    ];
    assert_eq!(fastest(&three), Some("best"));
    assert_eq!(fastest::<usize>(&[]), None);
    // A candidate that could not be timed is never preferred to one that could.
    let unknown = [("default", 10.0), ("unknown", f64::INFINITY)];
    assert_eq!(fastest(&unknown), Some("default"));
}

#[test]
fn down_has_tiles_only_after_tiles() {
    // Tiles are far faster for down alone, but cost gate-up more.
    let gate_up = [(stream(1), 50.0), (WGMMA, 60.0)];
    let down = [(stream(2), 30.0), (WGMMA, 25.0)];
    assert_eq!(
        fastest_pair(&gate_up, &down),
        Some((stream(1), stream(2))),
        "80 is less than 85, and 75 is not possible"
    );
    let down = [(stream(2), 45.0), (WGMMA, 25.0)];
    assert_eq!(fastest_pair(&gate_up, &down), Some((WGMMA, WGMMA)));
    // Gate-up may write plain rows from tiles.
    let gate_up = [(stream(1), 50.0), (WGMMA, 40.0)];
    let down = [(stream(2), 25.0), (WGMMA, 30.0)];
    assert_eq!(fastest_pair(&gate_up, &down), Some((WGMMA, stream(2))));
    // Half a per cent is below the margin.
    let gate_up = [(stream(1), 50.0), (stream(4), 49.8)];
    let down = [(stream(2), 25.0), (stream(8), 20.0)];
    assert_eq!(fastest_pair(&gate_up, &down), Some((stream(1), stream(8))));
    assert_eq!(fastest_pair(&[], &down), None);
}

#[test]
fn splits_begin_with_the_default_and_stay_below_the_limit() {
    assert_eq!(split_candidates(4, 8), [4, 1, 2, 8]);
    assert_eq!(split_candidates(1, 2), [1, 2]);
    // The default may be a limit that is not a power of two.
    assert_eq!(split_candidates(3, 3), [3, 1, 2]);
}

#[test]
fn sequences_share_the_pool_in_whole_pages() {
    assert_eq!(attention_tokens(10_000, 32, 1000), ATTENTION_TOKENS);
    assert_eq!(attention_tokens(208, 32, 1000), 6 * PAGE_TOKENS);
    assert_eq!(attention_tokens(208, 4, 20), 20 * PAGE_TOKENS);
    assert_eq!(attention_tokens(3, 32, 1000), 0);
}

fn bucket(rows: usize) -> Bucket {
    let choice = |site: Site| Choice {
        site,
        variant: if rows > 8 { WGMMA } else { stream(2) },
        timed_us: vec![(stream(1), 12.25), (stream(2), 11.0), (WGMMA, 9.5)],
    };
    Bucket {
        rows,
        projections: sites([false, false]).into_iter().map(choice).collect(),
        splits: (rows > 1).then(|| Splits {
            n_splits: 4,
            timed_us: vec![(8, 9.0), (4, 7.5)],
        }),
    }
}

fn key() -> TuningKey {
    TuningKey {
        version: 1,
        kernels_sha256: "0123".to_owned(),
        device: "A card".to_owned(),
        architecture: "sm_90".to_owned(),
        element: "F16".to_owned(),
        n_multiprocessors: 132,
        shapes: vec!["64 layers: AwqG128 Stacked [5120] x 8192".to_owned()],
        attention: "64 heads on 8 of 128".to_owned(),
        max_rows: 32,
    }
}

#[test]
fn what_is_kept_is_read_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = key().path(dir.path());
    assert_eq!(Kept::read(&path, &key()), Ok(None), "nothing there yet");
    let buckets: Vec<Bucket> = bucket_rows(32).into_iter().map(bucket).collect();
    Kept::write(&path, &key(), &buckets).expect("written");
    assert_eq!(Kept::read(&path, &key()), Ok(Some(buckets.clone())));
    // Overwrite it; no other file is left in the folder.
    Kept::write(&path, &key(), &buckets[..2]).expect("written");
    assert_eq!(Kept::read(&path, &key()), Ok(Some(buckets[..2].to_vec())));
    let left = std::fs::read_dir(path.parent().expect("a folder")).expect("readable");
    assert_eq!(left.count(), 1);
}

#[test]
fn what_is_broken_or_of_another_card_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = key().path(dir.path());
    Kept::write(&path, &key(), &[bucket(1)]).expect("written");
    let text = std::fs::read_to_string(&path).expect("readable");
    for (broken, reason) in [
        (text[..text.len() / 2].to_owned(), "EOF"),
        (String::new(), "EOF"),
        ("[1, 2]".to_owned(), "expected"),
        (text.replace("stream", "steam"), "unknown variant"),
        (text.replace("A card", "Another"), "something else"),
    ] {
        std::fs::write(&path, broken).expect("written");
        let refused = Kept::read(&path, &key()).expect_err("refused");
        assert!(refused.contains(reason), "{refused}");
    }
    let missing = dir.path().join("no/folder");
    std::fs::write(dir.path().join("no"), "a file").expect("written");
    assert!(Kept::write(&missing, &key(), &[]).is_err());
}

#[test]
fn everything_that_times_depend_on_is_in_the_name() {
    let dir = std::path::Path::new("cache");
    let path = |change: &dyn Fn(&mut TuningKey)| {
        let mut key = key();
        change(&mut key);
        key.path(dir)
    };
    let mut paths = vec![
        path(&|_| ()),
        path(&|key| key.version = 2),
        path(&|key| key.kernels_sha256.push('4')),
        path(&|key| key.device.push('2')),
        path(&|key| key.architecture = "sm_120".to_owned()),
        path(&|key| key.n_multiprocessors = 114),
        path(&|key| key.shapes.push("Half Stacked [151936] x 5120".to_owned())),
        path(&|key| key.attention.push('0')),
        path(&|key| key.max_rows = 8),
    ];
    assert_eq!(paths[0], path(&|_| ()));
    assert!(paths[0].starts_with("cache/tuning"));
    let n = paths.len();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), n);
}

#[test]
fn the_record_says_what_was_done() {
    let tuned = Tuned {
        max_rows: 8,
        n_choices: 24,
        n_replaced: 5,
        n_missing: 0,
        is_from_cache: true,
        duration: Duration::from_millis(3),
    };
    let text = tuned.describe();
    assert_eq!(
        text,
        "up to 8 rows: 24 choices, 5 other than the default, from cache"
    );
    let cut = Tuned {
        n_missing: 2,
        is_from_cache: false,
        ..tuned
    };
    assert!(
        cut.describe()
            .ends_with("timed, 2 batch sizes not reached in 5 s")
    );
}

#[test]
fn equal_choices_of_neighbouring_batch_sizes_are_said_once() {
    let name = |m: usize| if m < 3 { "a" } else { "b" }.to_owned();
    assert_eq!(by_rows(1, name), "1 row: a");
    assert_eq!(by_rows(3, name), "1 to 2 rows: a, 3 rows: b");
    assert_eq!(by_rows(8, name), "1 to 2 rows: a, 3 to 8 rows: b");
    assert_eq!(by_rows(0, name), "");
}
