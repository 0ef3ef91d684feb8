use std::path::Path;

use ::safetensors::Dtype;

use super::*;
use crate::model::quantization::{QuantMethod, Quantization};
use crate::weights::awq::dequantise;
use crate::weights::fixture::drawn::integers;
use crate::weights::fixture::packed::{PackedFormat, PackedKind, matrix_tensors};
use crate::weights::folder::{self, OwnedTensor};

const STEM: &str = "model.layers.0.mlp.up_proj";

fn all_formats() -> Vec<PackedFormat> {
    let mut formats = Vec::new();
    for kind in [
        PackedKind::AwqGemm,
        PackedKind::AwqGemv,
        PackedKind::Gptq,
        PackedKind::GptqV2,
        PackedKind::AutoRoundGptq,
        PackedKind::AutoRoundAwq,
        PackedKind::PackQuantized,
    ] {
        for group_size in [Some(32), Some(64), Some(96), Some(128), Some(256), None] {
            for symmetric in [true, false] {
                let has_order = matches!(
                    kind,
                    PackedKind::Gptq | PackedKind::GptqV2 | PackedKind::PackQuantized
                );
                for act_order in [false, true] {
                    if act_order && !has_order {
                        continue;
                    }
                    formats.push(PackedFormat {
                        kind,
                        group_size,
                        symmetric,
                        act_order,
                    });
                }
            }
        }
    }
    formats
}

fn config_of(format: PackedFormat) -> Packed {
    let dir = tempfile::tempdir().expect("a folder");
    let config =
        crate::weights::fixture::packed::packed_config(crate::model::config::Family::Qwen3);
    crate::weights::fixture::packed::write_packed_folder(
        dir.path(),
        &config,
        PackedFormat {
            group_size: Some(64),
            ..format
        },
        1,
    )
    .expect("written");
    let read = crate::model::config_json::read_folder(dir.path()).expect("read");
    let Some(Quantization::Packed(packed)) = read.quantization else {
        panic!("{format:?} is not packed");
    };
    Packed {
        group_size: format.group_size,
        ..packed
    }
}

fn open(dir: &Path, tensors: &[OwnedTensor]) -> TensorFiles {
    folder::write_shard(&dir.join("model.safetensors"), tensors).expect("written");
    TensorFiles::open(dir).expect("opened")
}

/// One value of a tensor of 16-bit floats.
fn float_at(tensor: &OwnedTensor, at: usize) -> f64 {
    let bits = u16::from_le_bytes([tensor.bytes[2 * at], tensor.bytes[2 * at + 1]]);
    match tensor.dtype {
        Dtype::BF16 => bf16::from_bits(bits).to_f64(),
        _ => f16::from_bits(bits).to_f64(),
    }
}

fn whole(n_out: usize) -> Place {
    Place {
        stem: STEM.to_owned(),
        first: 0,
        n_stored: n_out,
    }
}

/// The formats' descriptions, an element at a time, in f64. Shares no line with the reader.
struct Decoder<'a> {
    tensors: &'a [OwnedTensor],
    kind: PackedKind,
    n_out: usize,
    n_in: usize,
    group: usize,
}

impl Decoder<'_> {
    fn part(&self, name: &str) -> Option<&OwnedTensor> {
        let name = format!("{STEM}.{name}");
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Field `field` of word `word`, counted from the lowest bits.
    fn nibble(&self, name: &str, word: usize, field: usize) -> Option<f64> {
        let bytes = &self.part(name)?.bytes;
        let byte = bytes[4 * word + field / 2];
        Some(f64::from(if field.is_multiple_of(2) {
            byte % 16
        } else {
            byte / 16
        }))
    }

    fn group_of(&self, name: &str, k: usize) -> usize {
        match self.part(name) {
            None => k / self.group,
            Some(groups) => groups.bytes[4 * k] as usize,
        }
    }

    fn weight(&self, n: usize, k: usize) -> f64 {
        // AutoAWQ's words hold columns 0 2 4 6 1 3 5 7.
        let awq_field = |n: usize| n % 8 / 2 + if n % 2 == 1 { 4 } else { 0 };
        let n_groups = self.n_in / self.group;
        let scale = |name: &str, at: usize| float_at(self.part(name).expect(name), at);
        let (q, z, s) = match self.kind {
            PackedKind::AwqGemm | PackedKind::AutoRoundAwq => {
                let g = k / self.group;
                let words = self.n_out / 8;
                let q = self.nibble("qweight", k * words + n / 8, awq_field(n));
                let z = self.nibble("qzeros", g * words + n / 8, awq_field(n));
                (q, z.unwrap_or(8.0), scale("scales", g * self.n_out + n))
            }
            PackedKind::AwqGemv => {
                let g = k / self.group;
                let width = self.part("qzeros").expect("there").shape[1];
                let q = self.nibble("qweight", n * self.n_in / 8 + k / 8, k % 8);
                let z = self.nibble("qzeros", n * width + g / 8, g % 8);
                let s = scale("scales", n * 8 * width + g);
                (q, z.expect("there"), s)
            }
            PackedKind::Gptq | PackedKind::GptqV2 | PackedKind::AutoRoundGptq => {
                let g = self.group_of("g_idx", k);
                let q = self.nibble("qweight", k / 8 * self.n_out + n, k % 8);
                let stored = self.nibble("qzeros", g * self.n_out / 8 + n / 8, n % 8);
                let stored = stored.expect("there");
                let z = match self.kind {
                    PackedKind::GptqV2 => stored,
                    _ => (stored + 1.0) % 16.0,
                };
                (q, z, scale("scales", g * self.n_out + n))
            }
            PackedKind::PackQuantized => {
                let g = self.group_of("weight_g_idx", k);
                let q = self.nibble("weight_packed", n * self.n_in / 8 + k / 8, k % 8);
                let z = self.nibble("weight_zero_point", n / 8 * n_groups + g, n % 8);
                let s = scale("weight_scale", n * n_groups + g);
                (q.map(|q| q - 8.0), z.map_or(0.0, |z| z - 8.0), s)
            }
        };
        s * (q.expect("there") - z)
    }
}

#[test]
fn every_format_is_repacked_to_the_bit() {
    // 768 inputs have whole groups of every size; 40 outputs are no whole tile of any kernel.
    let (n_out, n_in) = (40, 768);
    for format in all_formats() {
        let dir = tempfile::tempdir().expect("a folder");
        let tensors = matrix_tensors(STEM, (n_out, n_in), format, 3);
        let files = open(dir.path(), &tensors);
        let packed = PackedMatrix::find(&files, whole(n_out), (n_out, n_in), config_of(format))
            .expect("found");
        let storage = packed.storage();
        let matrix = packed.repack().expect("repacked");
        assert_eq!(
            crate::weights::Matrix::Awq(matrix.clone()).storage(),
            storage,
            "{format:?}"
        );
        assert!([32, 64, 128].contains(&matrix.group_size), "{format:?}");
        let found = dequantise(&matrix).expect("consistent");
        let group = format.group_size.unwrap_or(n_in);
        let decoder = Decoder {
            tensors: &tensors,
            kind: format.kind,
            n_out,
            n_in,
            group,
        };
        for n in 0..n_out {
            for k in 0..n_in {
                let (found, expected) = (f64::from(found[n * n_in + k]), decoder.weight(n, k));
                let is_equal = found.to_bits() == expected.to_bits();
                assert!(is_equal, "{format:?} [{n}, {k}]: {found} for {expected}");
            }
        }
        // One group has no order.
        let is_moved = format.act_order && group < n_in;
        assert_eq!(storage.is_reordered, is_moved, "{format:?}");
    }
}

/// Rows of a fused matrix are the matrix of those rows, whatever a word holds.
#[test]
fn rows_of_a_fused_matrix_are_read_alone() {
    let (n_stored, n_in) = (64, 256);
    for format in all_formats() {
        if format.group_size.is_some_and(|size| size == 96) {
            continue;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let files = open(
            dir.path(),
            &matrix_tensors(STEM, (n_stored, n_in), format, 4),
        );
        let read = |first: usize, n_out: usize| {
            let place = Place {
                first,
                ..whole(n_stored)
            };
            let found = PackedMatrix::find(&files, place, (n_out, n_in), config_of(format));
            let matrix = found.and_then(PackedMatrix::repack).expect("repacked");
            dequantise(&matrix).expect("consistent")
        };
        let all = read(0, n_stored);
        for (first, n_out) in [(0, 40), (40, 24), (8, 8)] {
            let rows = &all[first * n_in..(first + n_out) * n_in];
            assert_eq!(read(first, n_out), rows, "{format:?} rows {first}");
        }
    }
}

/// A plain checkpoint is neither copied nor repacked.
#[test]
fn autoawqs_own_layout_is_borrowed() {
    let format = PackedFormat {
        kind: PackedKind::AwqGemm,
        group_size: Some(128),
        symmetric: false,
        act_order: false,
    };
    let dir = tempfile::tempdir().expect("a folder");
    let files = open(dir.path(), &matrix_tensors(STEM, (16, 256), format, 4));
    let found = PackedMatrix::find(&files, whole(16), (16, 256), config_of(format)).expect("found");
    let matrix = found.repack().expect("repacked");
    for part in [&matrix.qweight, &matrix.qzeros, &matrix.scales] {
        assert!(matches!(part, Cow::Borrowed(_)));
    }
}

/// A matrix that is long enough for several threads is the same as one that is not.
#[test]
fn threads_write_the_parts_of_one_matrix() {
    let mut out = vec![0u8; 5 << 20];
    on_threads(&mut out, 1000, &|first, part| {
        for (i, chunk) in part.chunks_mut(1000).enumerate() {
            chunk.fill((first + i) as u8);
        }
    });
    for (i, chunk) in out.chunks(1000).enumerate() {
        assert!(chunk.iter().all(|byte| *byte == i as u8), "chunk {i}");
    }
}

#[test]
fn a_word_of_inputs_becomes_a_word_of_columns() {
    // Nibble i of word j is i + j, so row i has i + j in nibble j.
    let words = std::array::from_fn(|j| {
        let nibbles = (0..8).map(|i| ((i + j) as u32 & 15) << (4 * i));
        nibbles.sum::<u32>().to_le_bytes()
    });
    let mut out = vec![0; 8 * 8];
    store(&mut out, 8, 1, words);
    for i in 0..8 {
        let word = u32::from_le_bytes([0, 1, 2, 3].map(|b| out[8 * i + 4 + b]));
        for j in 0..8 {
            assert_eq!(
                word >> (4 * j) & 15,
                (i + j) as u32 & 15,
                "row {i}, nibble {j}"
            );
        }
    }
}

fn act_order() -> PackedFormat {
    PackedFormat {
        kind: PackedKind::Gptq,
        group_size: Some(32),
        symmetric: false,
        act_order: true,
    }
}

/// What finding or repacking says about tensors of which `edit` changed some.
fn refused(format: PackedFormat, edit: &dyn Fn(&mut Vec<OwnedTensor>)) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let mut tensors = matrix_tensors(STEM, (16, 128), format, 3);
    edit(&mut tensors);
    let files = open(dir.path(), &tensors);
    let found = PackedMatrix::find(&files, whole(16), (16, 128), config_of(format));
    let error = found.and_then(PackedMatrix::repack).expect_err("refused");
    error.to_string()
}

fn at<'a>(tensors: &'a mut [OwnedTensor], part: &str) -> &'a mut OwnedTensor {
    let name = format!("{STEM}.{part}");
    let found = tensors.iter_mut().find(|tensor| tensor.name == name);
    found.expect("a tensor of that name")
}

#[test]
fn groups_of_columns_that_are_none_are_named() {
    let edited = |column: usize, group: i32| {
        refused(act_order(), &|tensors| {
            at(tensors, "g_idx").bytes[4 * column..][..4].copy_from_slice(&group.to_le_bytes());
        })
    };
    let error = edited(5, 4);
    assert!(
        error.contains("up_proj.g_idx: column 5 is in group 4; it must be 0 to 3"),
        "{error}"
    );
    assert!(edited(127, -1).contains("column 127 is in group -1"));
    assert!(edited(0, i32::MIN).contains("group -2147483648"));
    let all_in_one = refused(act_order(), &|tensors| {
        at(tensors, "g_idx").bytes.fill(0);
    });
    assert!(
        all_in_one.contains("group 0 has 128 columns; it must have 32"),
        "{all_in_one}"
    );
    let missing = refused(act_order(), &|tensors| {
        tensors.retain(|tensor| !tensor.name.ends_with("g_idx"));
    });
    assert!(
        missing.contains("no tensor model.layers.0.mlp.up_proj.g_idx"),
        "{missing}"
    );
}

#[test]
fn tensors_of_another_shape_or_type_are_named() {
    for format in all_formats() {
        if format.group_size != Some(64) {
            continue;
        }
        let names: Vec<String> = matrix_tensors(STEM, (16, 128), format, 3)
            .into_iter()
            .map(|tensor| tensor.name)
            .collect();
        for name in names {
            let part = name.trim_start_matches(STEM).trim_start_matches('.');
            let shorter = refused(format, &|tensors| {
                let tensor = at(tensors, part);
                let row = tensor.bytes.len() / tensor.shape[0];
                tensor.shape[0] -= 1;
                let n = tensor.bytes.len() - row;
                tensor.bytes.truncate(n);
            });
            assert!(shorter.contains(&name), "{format:?} {part}: {shorter}");
            let other_type = refused(format, &|tensors| {
                let tensor = at(tensors, part);
                tensor.dtype = Dtype::U8;
                let width = tensor.bytes.len() / tensor.shape.iter().product::<usize>();
                *tensor.shape.last_mut().expect("a size") *= width;
            });
            assert!(
                other_type.contains(&name) && other_type.contains("U8"),
                "{format:?} {part}: {other_type}"
            );
            // Zero points may be absent only if the configuration says that there are none.
            let is_awq = matches!(format.kind, PackedKind::AwqGemm | PackedKind::AwqGemv);
            let is_optional = match part {
                "qzeros" => is_awq && format.symmetric,
                "g_idx" => !format.act_order,
                "weight_shape" => true,
                _ => false,
            };
            if !is_optional {
                let missing = refused(format, &|tensors| {
                    tensors.retain(|tensor| tensor.name != name);
                });
                assert!(missing.contains(&name), "{format:?} {part}: {missing}");
            }
        }
    }
}

#[test]
fn shapes_without_whole_words_or_groups_are_refused() {
    let config = config_of(act_order());
    let dir = tempfile::tempdir().expect("a folder");
    let files = open(dir.path(), &matrix_tensors(STEM, (16, 128), act_order(), 3));
    for ((n_out, n_in), group_size) in [((12, 128), 32), ((16, 112), 32), ((16, 128), 96)] {
        let config = Packed {
            group_size: Some(group_size),
            ..config
        };
        let found = PackedMatrix::find(&files, whole(n_out), (n_out, n_in), config);
        let error = found.map(|_| ()).expect_err("refused").to_string();
        let shape = format!("[{n_out}, {n_in}]");
        assert!(
            error.contains(&shape) && error.contains(&format!("group size {group_size}")),
            "{error}"
        );
    }
    // A row of 120 values cannot be one group.
    let by_row = Packed {
        group_size: None,
        method: QuantMethod::Gptq,
        ..config
    };
    let found = PackedMatrix::find(&files, whole(16), (16, 120), by_row);
    let error = found.map(|_| ()).expect_err("refused").to_string();
    assert!(error.contains("group size 120"), "{error}");
}

#[test]
fn a_stored_shape_that_differs_is_refused() {
    let format = PackedFormat {
        kind: PackedKind::PackQuantized,
        act_order: false,
        ..act_order()
    };
    let error = refused(format, &|tensors| {
        let shape = at(tensors, "weight_shape");
        shape.bytes[..8].copy_from_slice(&15i64.to_le_bytes());
    });
    assert!(
        error.contains("weight_shape: says [15, 128]; config.json asks for [16, 128]"),
        "{error}"
    );
    let error = refused(format, &|tensors| {
        *at(tensors, "weight_shape") =
            integers(format!("{STEM}.weight_shape"), vec![2], &[16, u32::MAX]);
    });
    assert!(error.contains("asks for [16, 128]"), "{error}");
}

/// Scales become fp16: bf16's are the same numbers from 2^-17 to 65504, and others are named.
#[test]
fn scales_that_fp16_cannot_hold_are_named() {
    let format = PackedFormat {
        kind: PackedKind::PackQuantized,
        act_order: false,
        ..act_order()
    };
    let with_scale = |tensors: &mut Vec<OwnedTensor>, value: f32, is_wide: bool| {
        let tensor = at(tensors, "weight_scale");
        let n = tensor.bytes.len() / 2;
        let element = if is_wide {
            crate::weights::ElementFormat::F32
        } else {
            crate::weights::ElementFormat::BF16
        };
        let mut values = vec![0.5; n];
        values[3] = value;
        *tensor = folder::float(tensor.name.clone(), tensor.shape.clone(), &values, element);
    };
    for (value, is_wide, said) in [
        (1e5, false, "at most 65504"),
        (f32::INFINITY, false, "at most 65504"),
        (f32::NAN, false, "scale 3 is NaN"),
        (0.3, true, "does not hold this value exactly"),
    ] {
        let error = refused(format, &|tensors| with_scale(tensors, value, is_wide));
        assert!(
            error.contains("up_proj.weight_scale: scale 3 is") && error.contains(said),
            "{error}"
        );
    }
    let read = |value: f32, is_wide: bool| {
        let dir = tempfile::tempdir().expect("a folder");
        let mut tensors = matrix_tensors(STEM, (16, 128), format, 3);
        with_scale(&mut tensors, value, is_wide);
        let files = open(dir.path(), &tensors);
        let found = PackedMatrix::find(&files, whole(16), (16, 128), config_of(format));
        let matrix = found.and_then(PackedMatrix::repack).expect("repacked");
        // Scale 3 of `[16, 4]` is that of row 0, group 3.
        let at = 2 * 3 * 16;
        f16::from_le_bytes([matrix.scales[at], matrix.scales[at + 1]]).to_f32()
    };
    for (value, is_wide) in [
        (1.0078125 / 131072.0, false),
        (65280.0, false),
        (f32::EPSILON, false),
        (0.25, true),
    ] {
        let found = read(value, is_wide);
        assert_eq!(found.to_bits(), value.to_bits(), "{value} is {found}");
    }
    assert_eq!(read(1e-12, false).to_bits(), 0);
}
