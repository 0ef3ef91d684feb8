use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};

use super::header::parse;
use super::*;
use crate::model::config::{ModelConfig, RopeScaling};
use crate::weights::fixture;

const FAMILIES: [Family; 3] = [Family::Qwen3, Family::Qwen2, Family::Llama];

fn write(
    config: &ModelConfig,
    format: ElementFormat,
    extra: &[(&str, Value)],
) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.gguf");
    fixture::write_gguf(&path, config, format, 9, extra).expect("written");
    dir
}

fn open(dir: &tempfile::TempDir) -> Result<GgufCheckpoint, WeightError> {
    GgufCheckpoint::open(&dir.path().join("model.gguf"))
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Every format and family: what is opened is what was written, within the format's precision.
/// The values are uniform over ±w; a b-bit format has steps of about `2 w / 2^b`.
#[test]
fn what_is_written_is_read_back_in_every_format() {
    for (format, tolerance) in [
        (ElementFormat::F32, 0.0),
        (ElementFormat::F16, 1e-3),
        (ElementFormat::BF16, 1e-2),
        (ElementFormat::Q8_0, 1e-2),
        (ElementFormat::Q6K, 6e-2),
        (ElementFormat::Q5_1, 6e-2),
        (ElementFormat::Q5_0, 9e-2),
        (ElementFormat::Q5K, 9e-2),
        (ElementFormat::Q4_1, 0.12),
        (ElementFormat::Q4K, 0.16),
        (ElementFormat::Q4_0, 0.18),
    ] {
        for family in FAMILIES {
            let config = fixture::wide_config(family);
            let opened = open(&write(&config, format, &[])).expect("opens");
            let meant = fixture::reference(&config, 9);
            assert_eq!(opened.config(), &config);
            assert_eq!(opened.format_name(), format!("gguf {format}"));
            for id in MatrixId::all(&config) {
                let found = opened.matrix(id).and_then(|m| m.to_f32()).expect("decodes");
                let values = meant.matrix(id).and_then(|m| m.to_f32()).expect("made");
                let range = values.iter().fold(0.0f32, |w, v| w.max(v.abs()));
                let worst = largest_difference(&found, &values) / range;
                assert!(worst <= tolerance, "{family:?} {format} {id:?}: {worst}");
            }
            for id in VectorId::all(&config) {
                assert_eq!(
                    opened.vector(id).expect("there"),
                    meant.vector(id).expect("made")
                );
            }
        }
    }
}

/// llama.cpp's converter views a head's rows as `[2, head_dim / 2]` and transposes: the worked
/// example is one head of dimension 6 with rows 0..6, stored as 0 3 1 4 2 5.
#[test]
fn the_row_order_of_llama_files_is_undone() {
    let stored = [0, 3, 1, 4, 2, 5];
    for (row, _) in stored.iter().enumerate() {
        assert_eq!(stored[interleaved_row(row, 6)], row);
        assert_eq!(
            interleaved_row(row + 6, 6),
            6 + interleaved_row(row, 6),
            "second head"
        );
    }
}

#[test]
fn only_llama_files_have_their_q_and_k_rows_moved() {
    for family in FAMILIES {
        let config = fixture::tiny_config(family);
        let dir = write(&config, ElementFormat::F32, &[]);
        let opened = open(&dir).expect("opens");
        let raw = |name: &str, shape: &[usize]| {
            decode::to_f32(
                ElementFormat::F32,
                opened.file.tensor(name, shape).expect("there").1,
                shape.iter().product(),
            )
            .expect("decodes")
        };
        let (n_out, n_in) = MatrixId::K(1).shape(&config);
        let stored = raw("blk.1.attn_k.weight", &[n_out, n_in]);
        let found = opened
            .matrix(MatrixId::K(1))
            .and_then(|m| m.to_f32())
            .expect("decodes");
        assert_eq!(stored == found, family != Family::Llama, "{family:?}");
        let (n_out, n_in) = MatrixId::V(1).shape(&config);
        let stored = raw("blk.1.attn_v.weight", &[n_out, n_in]);
        let found = opened
            .matrix(MatrixId::V(1))
            .and_then(|m| m.to_f32())
            .expect("decodes");
        assert_eq!(stored, found, "{family:?}");
    }
}

/// candle reads the same header.
#[test]
fn the_header_agrees_with_candles_reader() {
    let dir = write(
        &fixture::tiny_config(Family::Qwen2),
        ElementFormat::Q4_0,
        &[],
    );
    let bytes = std::fs::read(dir.path().join("model.gguf")).expect("readable");
    let ours = parse(&bytes).expect("valid");
    let theirs = Content::read(&mut std::io::Cursor::new(&bytes)).expect("valid");
    assert_eq!(ours.metadata.len(), theirs.metadata.len());
    for (key, value) in &theirs.metadata {
        assert_eq!(
            format!("{:?}", ours.metadata[key]),
            format!("{value:?}"),
            "{key}"
        );
    }
    assert_eq!(ours.tensors.len(), theirs.tensor_infos.len());
    for (name, info) in &theirs.tensor_infos {
        let found = &ours.tensors[name];
        assert_eq!(found.shape, info.shape.dims());
        assert_eq!(found.offset as u64, theirs.tensor_data_offset + info.offset);
        let mut file = std::io::Cursor::new(&bytes);
        assert!(theirs.tensor(&mut file, name, &Device::Cpu).is_ok());
    }
}

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
    // Every length inside the header fails there; of the data, some.
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

/// Bytes of a header that ends after its counts, with something of the caller's behind.
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

/// Each would take gigabytes or more if it were believed.
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
            "is no GGUF file",
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

    let unknown = file(tensor("t", &[32], 23, 0)).expect("the header is well formed");
    let error = unknown.tensor("t", &[32]).expect_err("IQ4_XS").to_string();
    assert!(
        error.contains("format IQ4_XS") && error.contains("Q4_K"),
        "{error}"
    );
    let ragged = file(tensor("t", &[33], 2, 0)).expect("the header is well formed");
    let error = ragged
        .tensor("t", &[33])
        .expect_err("no whole block")
        .to_string();
    assert!(error.contains("whole Q4_0 blocks of 32"), "{error}");
}

#[test]
fn metadata_errors_name_key_value_and_limit() {
    let config = fixture::tiny_config(Family::Llama);
    for (key, value, expected) in [
        (
            "general.architecture",
            Value::String("mamba".into()),
            "supported: llama, qwen2, qwen3",
        ),
        (
            "llama.block_count",
            Value::U32(1 << 30),
            "number of layers is 1073741824",
        ),
        (
            "llama.block_count",
            Value::I32(-1),
            "llama.block_count is I32(-1)",
        ),
        (
            "llama.embedding_length",
            Value::U64(1 << 50),
            "hidden size is 1125899906842624",
        ),
        (
            "llama.attention.head_count_kv",
            Value::U32(3),
            "multiple of the 3 key-value heads",
        ),
        (
            "llama.attention.value_length",
            Value::U32(8),
            "it must be the head dimension 16",
        ),
        ("llama.expert_count", Value::U32(8), "dense"),
        (
            "llama.rope.scaling.type",
            Value::String("longrope".into()),
            "none, linear, yarn",
        ),
        (
            "llama.feed_forward_length",
            Value::U32(999),
            "blk.0.ffn_gate.weight has shape",
        ),
        (
            "tokenizer.ggml.eos_token_id",
            Value::U32(320),
            "below the vocabulary size 320",
        ),
    ] {
        let dir = write(&config, ElementFormat::F16, &[(key, value)]);
        let error = open(&dir).err().expect(key).to_string();
        assert!(
            error.contains(expected),
            "{key}: {error:?} lacks {expected:?}"
        );
    }
}

#[test]
fn rope_scaling_is_read_from_metadata() {
    let config = fixture::tiny_config(Family::Qwen2);
    let dir = write(
        &config,
        ElementFormat::F16,
        &[
            ("qwen2.rope.scaling.type", Value::String("yarn".into())),
            ("qwen2.rope.scaling.factor", Value::F32(4.0)),
            (
                "qwen2.rope.scaling.original_context_length",
                Value::U32(256),
            ),
        ],
    );
    let opened = open(&dir).expect("opens");
    assert_eq!(opened.config().context_length, 1024);
    let RopeScaling::Yarn {
        factor,
        original,
        attention_factor,
        ..
    } = opened.config().rope.scaling
    else {
        panic!("{:?}", opened.config().rope)
    };
    assert_eq!((factor, original), (4.0, 256));
    assert!((attention_factor - 1.138_629_4).abs() < 1e-6);
}

/// Llama 3.1's table of divisors, made here from its published parameters by its published
/// formula (by wavelength, as Meta's code has it), turns back into these parameters.
#[test]
fn llama_3_divisors_become_llama_3_scaling() {
    let (theta, head_dim) = (500_000.0f32, 128);
    let (factor, low, high, original) = (8.0f64, 1.0, 4.0, 8192.0);
    let divisors: Vec<f32> = (0..head_dim / 2)
        .map(|i| {
            let frequency = f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64);
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor as f32
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            }
        })
        .collect();
    let config = ModelConfig {
        head_dim,
        rope: crate::model::config::RopeConfig {
            theta,
            scaling: RopeScaling::None,
        },
        ..fixture::tiny_config(Family::Llama)
    };
    let dir = write(&config, ElementFormat::F16, &[]);
    let file = GgufFile::open(&dir.path().join("model.gguf")).expect("opens");
    let read = config::read(&file.header, Some(&divisors)).expect("valid");
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq: 1.0,
        high_freq: 4.0,
        original: 8192,
    };
    assert_eq!(read.rope.scaling, expected);

    let read = config::read(&file.header, Some(&[1.0; 64])).expect("valid");
    assert_eq!(read.rope.scaling, RopeScaling::None);
    let mut other = divisors.clone();
    other[30] *= 1.5;
    let error = config::read(&file.header, Some(&other))
        .expect_err("another table")
        .to_string();
    assert!(error.contains("rope_freqs.weight"), "{error}");
    assert!(config::read(&file.header, Some(&divisors[..10])).is_err());
}

/// Overwritten bytes give an error or another model, never a panic (tests check overflow) and
/// never a read outside the file.
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

#[test]
fn formats_are_named_as_ggml_names_them() {
    use crate::weights::format::ggml_name;
    for format in ElementFormat::ALL {
        let id = (0..64).find(|id| ElementFormat::from_ggml(*id) == Some(format));
        assert_eq!(ggml_name(id.expect("a number")), format.name());
    }
    for (id, name) in [(10, "Q2_K"), (20, "IQ4_NL"), (34, "TQ1_0"), (39, "MXFP4")] {
        assert_eq!(ggml_name(id), name);
    }
    assert!(ggml_name(1000).contains("1000"));
}

#[test]
fn a_model_in_several_files_is_what_it_is_in_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = fixture::tiny_config(Family::Llama);
    let whole = dir.path().join("whole.gguf");
    fixture::write_gguf(&whole, &config, ElementFormat::Q8_0, 9, &[]).expect("written");
    let whole = GgufCheckpoint::open(&whole).expect("opens");
    let parts = fixture::write_gguf_parts(dir.path(), &config, ElementFormat::Q8_0, 9, 3);
    let parts = parts.expect("written");
    let opened = GgufCheckpoint::open(&parts[0]).expect("opens");
    assert_eq!(opened.config(), whole.config());
    assert_eq!(opened.format_name(), "gguf Q8_0");
    for id in MatrixId::all(&config) {
        let values = |checkpoint: &GgufCheckpoint| {
            let matrix = checkpoint.matrix(id).expect("there");
            matrix.to_f32().expect("decodes")
        };
        assert_eq!(values(&opened), values(&whole), "{id:?}");
    }
    for id in VectorId::all(&config) {
        assert_eq!(
            opened.vector(id).expect("there"),
            whole.vector(id).expect("there")
        );
    }
    opened.check_unchanged().expect("nothing has changed");
    opened.release();
}

#[test]
fn a_part_that_is_missing_or_given_alone_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = fixture::tiny_config(Family::Llama);
    let parts = fixture::write_gguf_parts(dir.path(), &config, ElementFormat::F16, 9, 3);
    let parts = parts.expect("written");
    let refused = |path: &Path| {
        let error = GgufCheckpoint::open(path).err().expect("refused");
        error.to_string()
    };
    let error = refused(&parts[1]);
    assert!(
        error.contains("part 2 of a model in 3 files") && error.contains("llama-gguf-split"),
        "{error}"
    );
    let renamed = dir.path().join("first.gguf");
    std::fs::copy(&parts[0], &renamed).expect("copied");
    let error = refused(&renamed);
    assert!(error.contains("part 1 of a model in 3 files"), "{error}");
    // The second part in the place of the third.
    std::fs::copy(&parts[1], &parts[2]).expect("copied");
    let error = refused(&parts[0]);
    assert!(error.contains("part 3 of a model by its name"), "{error}");
    std::fs::remove_file(&parts[2]).expect("removed");
    let error = refused(&parts[0]);
    assert!(
        error.contains("model-00003-of-00003.gguf is not beside it"),
        "{error}"
    );
}

/// Reading what a shorter file has no more ends the process, so a change that can be seen is an
/// error before that.
#[test]
fn a_file_that_became_shorter_is_noticed() {
    let dir = write(
        &fixture::tiny_config(Family::Llama),
        ElementFormat::F16,
        &[],
    );
    let opened = open(&dir).expect("opens");
    opened.check_unchanged().expect("whole");
    let file = std::fs::File::options()
        .write(true)
        .open(dir.path().join("model.gguf"));
    file.expect("opens").set_len(100).expect("cut");
    let error = opened.check_unchanged().expect_err("shorter").to_string();
    assert!(
        error.contains("has 100 now") && error.contains("rename"),
        "{error}"
    );
}

#[test]
fn files_that_are_no_gguf_are_named_for_what_they_are() {
    for (bytes, expected) in [
        (&b"<!DOCTYPE html><html>not found</html>"[..], "a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "git lfs pull",
        ),
        (b"", "an empty file"),
        (b"\x01\x02\x03\x04\x05\x06", "no GGUF file: it starts with"),
    ] {
        let error = parse(bytes).expect_err("no GGUF file");
        assert!(error.contains(expected), "{error}");
    }
}
