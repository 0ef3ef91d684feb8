//! ggml's block formats against the gguf package's decoder, and models of those that candle does not
//! compute against recorded answers (`tests/data/make_gguf_blocks.py`).

use std::borrow::Cow;
use std::collections::BTreeMap;

use engine::model::config::{Family, ModelConfig};
use engine::weights::fixture::blocks::{random_blocks, write_block_gguf};
use engine::weights::fixture::packed::packed_config;
use engine::weights::format::MatrixFormat;
use engine::weights::gguf::GgufCheckpoint;
use engine::weights::gpu_format::{code_source, gpu_format};
use engine::weights::{Checkpoint, ElementFormat, Matrix, MatrixId, MatrixStorage};
use kernels::cuda::Element;
use kernels::stream_linear::codes::{Packed, pack};
use kernels::stream_linear::reference::unpack;
use kernels::stream_linear::{Arrangement, Format, Layout};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::recorded::{Record, check_within};

/// Scales that are products are rounded to f16 when they are packed.
const TOLERANCE: f64 = 6e-3;

#[derive(Deserialize)]
struct Formats {
    formats: BTreeMap<String, Decoded>,
}

#[derive(Deserialize)]
struct Decoded {
    /// Beginning of the SHA-256 of the blocks.
    digest: String,
    /// Beginning of the SHA-256 of their f32 values.
    values: String,
}

const TEXT: &str = include_str!("../data/gguf_blocks.json");

fn format_named(name: &str) -> ElementFormat {
    let found = ElementFormat::ALL.into_iter().find(|f| f.name() == name);
    found.expect("a format of that name")
}

/// Rows of 256 and 512 values: whole blocks of every format.
fn config_of(family: Family) -> ModelConfig {
    ModelConfig {
        hidden: 256,
        intermediate: 512,
        ..packed_config(family)
    }
}

#[test]
fn every_block_format_is_decoded_as_the_gguf_package_decodes_it() {
    let record: Formats = serde_json::from_str(TEXT).expect("a record");
    let n_plain = 3;
    assert_eq!(record.formats.len(), ElementFormat::ALL.len() - n_plain);
    for (name, expected) in record.formats {
        let format = format_named(&name);
        let (n_out, n_in) = (4, 1024);
        let n_blocks = n_out * n_in / format.block_elements();
        let bytes = random_blocks(format, n_blocks, 20, &name);
        let digest = format!("{:x}", Sha256::digest(&bytes));
        assert_eq!(digest[..16], expected.digest, "{name}: other blocks");
        let matrix = Matrix::Rows {
            format,
            n_out,
            n_in,
            bytes: Cow::Owned(bytes),
        };
        let mut values = Sha256::new();
        for value in matrix.to_f32().expect("decodes") {
            values.update(value.to_le_bytes());
        }
        let values = format!("{:x}", values.finalize());
        assert_eq!(values[..32], expected.values, "{name}: other values");
    }
}

#[test]
fn models_of_blocks_answer_as_recorded() {
    let record: Record = serde_json::from_str(TEXT).expect("a record");
    assert_eq!(record.cases.len(), 5);
    let dir = tempfile::tempdir().expect("a folder");
    for (name, case) in &record.cases {
        let family = match name.as_str() {
            "IQ4_NL" => Family::Qwen2,
            _ => Family::Qwen3,
        };
        let (file, config) = (dir.path().join(name), config_of(family));
        write_block_gguf(&file, &config, format_named(name), record.seed).expect("written");
        let checkpoint = GgufCheckpoint::open(&file).expect(name);
        assert_eq!(checkpoint.format().to_string(), format!("gguf {name}"));
        let mut digest = Sha256::new();
        for id in MatrixId::all(&config)
            .into_iter()
            .filter(|id| id.is_quantised())
        {
            let Ok(Matrix::Rows { bytes, .. }) = checkpoint.matrix(id) else {
                panic!("{name}: {id:?} is no rows");
            };
            digest.update(&bytes);
        }
        let digest = format!("{:x}", digest.finalize());
        assert_eq!(digest, case.digest, "{name}: other blocks than recorded");
        check_within(name, &record, case, &checkpoint, TOLERANCE);
    }
}

/// What is packed for a GPU, alone and beside Q4_K and Q6_K, is what the reader's own decoder says, within the
/// rounding of scales that are products to fp16.
#[test]
fn blocks_packed_for_a_gpu_decode_as_the_reader_decodes_them() {
    let (n_out, n_in) = (40, 768);
    let storage_of = |format| MatrixStorage {
        n_out,
        n_in,
        format: MatrixFormat::Rows(format),
        is_reordered: false,
        scale_columns: None,
        n_elements: (n_out * n_in) as u64,
        n_bytes: 0,
    };
    for format in ElementFormat::ALL.into_iter().skip(3) {
        let n_blocks = n_out * n_in / format.block_elements();
        let matrix = Matrix::Rows {
            format,
            n_out,
            n_in,
            bytes: random_blocks(format, n_blocks, 3, "packed").into(),
        };
        let expected = matrix.to_f32().expect("decodes");
        for others in [vec![], vec![ElementFormat::Q4K], vec![ElementFormat::Q6K]] {
            let parts = others.into_iter().chain([format]).map(storage_of);
            let parts: Vec<_> = parts.collect();
            let on_gpu = gpu_format(&parts, Element::F16).expect("a format");
            assert_ne!(on_gpu, Format::Half, "{format}");
            let layout = Layout::new(on_gpu, Arrangement::Stacked, &[n_out], n_in).expect("fits");
            let mut packed = Packed::zeroed(&layout);
            let source = code_source(&matrix).expect("codes");
            pack(&layout, 0, source, &mut packed).expect("packed");
            let found = unpack(&layout, 0, &packed, Element::F16);
            for (row, expected) in expected.chunks_exact(n_in).enumerate() {
                let found = &found[row * layout.padded_k()..][..n_in];
                for (found, expected) in found.chunks_exact(32).zip(expected.chunks_exact(32)) {
                    let largest = expected.iter().fold(0.0_f32, |a, w| a.max(w.abs()));
                    let limit = f64::from(largest) / 500.0 + 1e-6;
                    for (found, expected) in found.iter().zip(expected) {
                        assert!(
                            (found - f64::from(*expected)).abs() <= limit,
                            "{format} as {on_gpu:?}, row {row}: {found} for {expected}"
                        );
                    }
                }
            }
        }
    }
}
