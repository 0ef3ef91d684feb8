mod damage;

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;

use super::header::parse;
use super::*;
use crate::model::config::{ModelConfig, RopeScaling};
use crate::weights::fixture;

const FAMILIES: [Family; 4] = [
    Family::Qwen3,
    Family::Qwen3Moe,
    Family::Qwen2,
    Family::Llama,
];

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

/// For every format and family, what is opened equals what was written, within the format's
/// precision. The values are uniform over ±w; a b-bit format has steps of about `2 w / 2^b`.
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
        (ElementFormat::Q3K, 0.35),
        (ElementFormat::Q2K, 0.6),
    ] {
        for family in FAMILIES {
            let config = fixture::wide_config(family);
            let opened = open(&write(&config, format, &[])).expect("opens");
            let meant = fixture::reference(&config, 9);
            assert_eq!(opened.config(), &config);
            assert_eq!(opened.format().to_string(), format!("gguf {format}"));
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

/// candle parses the same header.
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
fn metadata_errors_name_key_value_and_limit() {
    let config = fixture::tiny_config(Family::Llama);
    for (key, value, expected) in [
        (
            "general.architecture",
            Value::String("mamba".into()),
            "supported: llama, qwen2, qwen3, qwen3moe",
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

/// Llama 3.1's table of divisors, computed from its published parameters by its published formula
/// (by wavelength, as in Meta's code), is converted back to these parameters.
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
    assert_eq!(opened.format().to_string(), "gguf Q8_0");
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
    // The second part in place of the third.
    std::fs::copy(&parts[1], &parts[2]).expect("copied");
    let error = refused(&parts[0]);
    assert!(error.contains("part 3 of a model by its name"), "{error}");
    std::fs::remove_file(&parts[2]).expect("removed");
    let error = refused(&parts[0]);
    assert!(
        error.contains("model-00003-of-00003.gguf is not next to it"),
        "{error}"
    );
}

/// Reading the missing part of a truncated file would kill the process, so a detectable change is
/// an error before that.
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
        (
            b"\x01\x02\x03\x04\x05\x06",
            "not a GGUF file: it starts with",
        ),
    ] {
        let error = parse(bytes).expect_err("no GGUF file");
        assert!(error.contains(expected), "{error}");
    }
}
