//! Files that are truncated, inconsistent or damaged.

use super::*;

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let dir = write(
        &fixture::tiny_config(Family::Llama),
        ElementFormat::Q8_0,
        &[],
    );
    let path = dir.path().join("model.gguf");
    let whole = std::fs::read(&path).expect("readable");
    let header_end = parse(&whole)
        .expect("valid")
        .tensors
        .values()
        .map(|t| t.offset)
        .min();
    let header_end = header_end.expect("tensors");
    // Every truncation inside the header is an error; inside the data, some are.
    for n in (0..header_end).step_by(7) {
        assert!(
            parse(&whole[..n]).is_err() || n + 32 >= header_end,
            "{n} bytes"
        );
    }
    for n in [0, 3, header_end, whole.len() / 2, whole.len() - 64] {
        std::fs::write(&path, &whole[..n]).expect("written");
        let error = open(&dir).err().expect("refused").to_string();
        assert!(error.contains("model.gguf"), "{n}: {error}");
    }
}

/// Bytes of a header that ends after its counts, followed by `rest`.
fn header(version: u32, n_tensors: u64, n_metadata: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(n_tensors.to_le_bytes());
    bytes.extend(n_metadata.to_le_bytes());
    bytes.extend(rest);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [string(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

/// Each would take gigabytes or more if it were trusted.
#[test]
fn lying_counts_and_lengths_are_refused_before_anything_is_allocated() {
    let huge_array = [
        8u32.to_le_bytes().to_vec(),
        (1u64 << 60).to_le_bytes().to_vec(),
    ]
    .concat();
    let long_array = [
        0u32.to_le_bytes().to_vec(),
        (1u64 << 23).to_le_bytes().to_vec(),
    ]
    .concat();
    let mut deep = Vec::new();
    for _ in 0..100 {
        deep.extend(9u32.to_le_bytes());
        deep.extend(1u64.to_le_bytes());
    }
    deep.resize(4096, 0);
    let cases: [(&str, Vec<u8>, &str); 13] = [
        (
            "not GGUF",
            b"ELF\0aaaaaaaaaaaaaaaaaaaaaaaaaa".to_vec(),
            "is not a GGUF file",
        ),
        ("version", header(9, 0, 0, &[]), "GGUF version 9"),
        (
            "big endian",
            header(3u32.swap_bytes(), 0, 0, &[]),
            "big-endian",
        ),
        (
            "tensors",
            header(3, u64::MAX, 0, &[]),
            "declares 18446744073709551615 tensors",
        ),
        (
            "tensors, fewer",
            header(3, 60_000, 0, &[0; 64]),
            "64 are left",
        ),
        (
            "metadata",
            header(3, 0, 1 << 40, &[]),
            "declares 1099511627776 metadata entries",
        ),
        ("key", header(3, 0, 1, &[0xff; 64]), "bytes of a string"),
        (
            "string value",
            header(
                3,
                0,
                1,
                &entry(
                    "k",
                    8,
                    &[&(1u64 << 40).to_le_bytes()[..], &[0; 64]].concat(),
                ),
            ),
            "metadata k: declares 1099511627776 bytes of a string",
        ),
        (
            "array",
            header(3, 0, 1, &entry("k", 9, &huge_array)),
            "array elements",
        ),
        (
            "array beyond the file",
            header(3, 0, 1, &entry("k", 9, &long_array)),
            "are left",
        ),
        (
            "deep array",
            header(3, 0, 1, &entry("k", 9, &deep)),
            "deeper than 4",
        ),
        (
            "value type",
            header(3, 0, 1, &entry("k", 77, &[0; 8])),
            "value type 77",
        ),
        (
            "alignment",
            header(3, 0, 1, &entry("general.alignment", 4, &0u32.to_le_bytes())),
            "general.alignment is 0",
        ),
    ];
    for (what, bytes, expected) in cases {
        let error = parse(&bytes).expect_err(what);
        assert!(
            error.contains(expected),
            "{what}: {error:?} lacks {expected:?}"
        );
    }
}

fn tensor(name: &str, dims: &[u64], ggml_type: u32, offset: u64) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    bytes.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
    bytes.extend(ggml_type.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn lying_tensor_entries_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("t.gguf");
    let file = |info: Vec<u8>| {
        let mut bytes = header(3, 1, 0, &info);
        bytes.resize(bytes.len() + 256, 0);
        std::fs::write(&path, bytes).expect("written");
        GgufFile::open(&path)
    };
    let offset_far = file(tensor("t", &[8], 0, u64::MAX - 5))
        .err()
        .expect("refused");
    assert!(
        offset_far.to_string().contains("tensor t starts at"),
        "{offset_far}"
    );
    let dims = file(tensor("t", &[1; 9], 0, 0)).err().expect("refused");
    assert!(dims.to_string().contains("9 dimensions"), "{dims}");

    let huge = file(tensor("t", &[1 << 31, 1 << 31], 0, 0)).expect("the header is well formed");
    let error = huge
        .tensor("t", &[1 << 31, 1 << 31])
        .expect_err("too large")
        .to_string();
    assert!(error.contains("tensor t"), "{error}");
    let error = huge
        .tensor("t", &[4, 4])
        .expect_err("another shape")
        .to_string();
    assert!(error.contains("[2147483648, 2147483648]"), "{error}");

    let unknown = file(tensor("t", &[32], 34, 0)).expect("the header is well formed");
    let error = unknown.tensor("t", &[32]).expect_err("TQ1_0").to_string();
    assert!(
        error.contains("format TQ1_0") && error.contains("Q4_K"),
        "{error}"
    );
    let ragged = file(tensor("t", &[33], 2, 0)).expect("the header is well formed");
    let error = ragged
        .tensor("t", &[33])
        .expect_err("no whole block")
        .to_string();
    assert!(error.contains("whole Q4_0 blocks of 32"), "{error}");
}

/// Overwritten bytes give an error or another model, never a panic (tests check overflow) and never
/// a read outside the file.
#[test]
fn files_with_random_damage_never_panic() {
    use rand::{Rng, SeedableRng};
    let config = fixture::tiny_config(Family::Llama);
    let dir = write(&config, ElementFormat::Q8_0, &[]);
    let whole = std::fs::read(dir.path().join("model.gguf")).expect("readable");
    let tensors = parse(&whole).expect("valid").tensors;
    let header_end = tensors.values().map(|t| t.offset).min().expect("tensors");
    let path = dir.path().join("damaged.gguf");
    let mut rng = rand::rngs::StdRng::seed_from_u64(11);
    let (mut refused, mut opened) = (0, 0);
    for _ in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(4..header_end);
            bytes[at] = [0, 1, 0x7f, 0xff, rng.random()][rng.random_range(0..5)];
        }
        std::fs::write(&path, &bytes).expect("written");
        match GgufCheckpoint::open(&path) {
            Err(_) => refused += 1,
            Ok(checkpoint) => {
                opened += 1;
                for id in MatrixId::all(checkpoint.config()) {
                    assert!(checkpoint.matrix(id).is_ok(), "opened but unreadable");
                }
            }
        }
    }
    assert!(
        refused > 20 && opened > 20,
        "{refused} refused, {opened} opened"
    );
}
