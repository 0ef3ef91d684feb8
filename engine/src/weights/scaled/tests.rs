use std::path::Path;

use half::bf16;

use super::*;
use crate::model::config_json;
use crate::model::quantization::Quantization;
use crate::weights::Matrix;
use crate::weights::fixture::scaled::{
    ScaledFormat, matrix_tensors, scaled_config, write_scaled_folder,
};
use crate::weights::folder::{self, OwnedTensor};

const STEM: &str = "model.layers.0.mlp.up_proj";
/// No whole blocks of 128 either way, nor of 32 columns.
const SHAPE: (usize, usize) = (200, 208);

fn config_of(format: ScaledFormat) -> Scaled {
    let dir = tempfile::tempdir().expect("a folder");
    let config = scaled_config(crate::model::config::Family::Qwen3);
    write_scaled_folder(dir.path(), &config, format, 1).expect("written");
    let read = config_json::read_folder(dir.path()).expect("read");
    match read.quantization {
        Some(Quantization::Scaled(scaled)) => scaled,
        other => panic!("{format:?} is {other:?}"),
    }
}

fn open(dir: &Path, tensors: &[OwnedTensor]) -> TensorFiles {
    folder::write_shard(&dir.join("model.safetensors"), tensors).expect("written");
    TensorFiles::open(dir).expect("opened")
}

fn place(first: usize) -> Place {
    Place {
        stem: STEM.to_owned(),
        first,
        n_stored: SHAPE.0,
    }
}

/// The formats' descriptions, an element at a time, in f64. Shares no line with the reader.
struct Decoder<'a> {
    tensors: &'a [OwnedTensor],
    format: ScaledFormat,
}

impl Decoder<'_> {
    fn part(&self, name: &str) -> &OwnedTensor {
        let name = format!("{STEM}.{name}");
        let found = self.tensors.iter().find(|tensor| tensor.name == name);
        found.expect("there")
    }

    fn scale(&self, name: &str, at: usize) -> f64 {
        let tensor = self.part(name);
        let bytes = &tensor.bytes;
        if tensor.dtype == Dtype::F32 {
            let b = &bytes[4 * at..4 * at + 4];
            return f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        }
        f64::from(bf16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]))
    }

    /// With the scale of its group.
    fn fp4(&self, name: &str, n: usize, k: usize) -> f64 {
        let at = n * SHAPE.1 + k;
        let byte = self.part(name).bytes[at / 2];
        let code = if k.is_multiple_of(2) {
            byte % 16
        } else {
            byte / 16
        };
        let mantissa = f64::from(code % 2);
        let size = match i32::from(code / 2 % 4) {
            0 => mantissa / 2.0,
            exponent => (1.0 + mantissa / 2.0) * 2f64.powi(exponent - 1),
        };
        let scale = e4m3(self.part("weight_scale").bytes[at / 16]);
        if code < 8 {
            size * scale
        } else {
            -size * scale
        }
    }

    fn weight(&self, n: usize, k: usize) -> f64 {
        let code = || self.part("weight").bytes[n * SHAPE.1 + k];
        let block = n / 128 * SHAPE.1.div_ceil(128) + k / 128;
        let value = match self.format {
            ScaledFormat::Fp8Blocks => e4m3(code()) * self.scale("weight_scale_inv", block),
            ScaledFormat::CtFp8Blocks => e4m3(code()) * self.scale("weight_scale", block),
            ScaledFormat::Fp8Matrix | ScaledFormat::CtFp8Matrix | ScaledFormat::ModelOptFp8 => {
                e4m3(code()) * self.scale("weight_scale", 0)
            }
            ScaledFormat::CtFp8Rows => e4m3(code()) * self.scale("weight_scale", n),
            ScaledFormat::CtInt8 => f64::from(code() as i8) * self.scale("weight_scale", n),
            ScaledFormat::CtNvfp4 => {
                let divisor = self.scale("weight_global_scale", 0);
                self.fp4("weight_packed", n, k) * f64::from((1.0 / divisor) as f32)
            }
            ScaledFormat::ModelOptNvfp4 => {
                self.fp4("weight", n, k) * self.scale("weight_scale_2", 0)
            }
        };
        // The product has at most 32 bits, so f64 holds it and is rounded once.
        f64::from(value as f32)
    }
}

/// One sign, four bits of exponent with a bias of 7, three of mantissa.
fn e4m3(code: u8) -> f64 {
    let mantissa = f64::from(code % 8);
    let size = match i32::from(code / 8 % 16) {
        0 => mantissa / 512.0,
        exponent => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code < 128 { size } else { -size }
}

fn read(files: &TensorFiles, format: ScaledFormat, first: usize, n_out: usize) -> Vec<f32> {
    let config = config_of(format);
    assert!(is_scaled(files, STEM, config.kind), "{format:?}");
    let stored = find(files, place(first), (n_out, SHAPE.1), config).expect("found");
    let matrix = stored.read().expect("read");
    assert_eq!(matrix.storage(), stored.storage(), "{format:?}");
    Matrix::Scaled(matrix).to_f32().expect("consistent")
}

#[test]
fn every_format_is_decoded_to_the_bit() {
    for format in ScaledFormat::ALL {
        let dir = tempfile::tempdir().expect("a folder");
        let tensors = matrix_tensors(STEM, SHAPE, format, 3);
        let files = open(dir.path(), &tensors);
        let decoder = Decoder {
            tensors: &tensors,
            format,
        };
        let found = read(&files, format, 0, SHAPE.0);
        assert_eq!(found.len(), SHAPE.0 * SHAPE.1);
        for (i, found) in found.iter().enumerate() {
            let (n, k) = (i / SHAPE.1, i % SHAPE.1);
            let expected = decoder.weight(n, k);
            let is_equal = f64::from(*found).to_bits() == expected.to_bits();
            assert!(is_equal, "{format:?} [{n}, {k}]: {found} for {expected}");
        }
        // Rows of a fused matrix are the matrix of those rows, within blocks and across them.
        for (first, n_out) in [(0, 104), (104, 96), (130, 1)] {
            let rows = &found[first * SHAPE.1..(first + n_out) * SHAPE.1];
            assert_eq!(
                read(&files, format, first, n_out),
                rows,
                "{format:?} {first}"
            );
        }
    }
}

/// What finding or reading says about tensors of which `edit` changed some.
fn refused(format: ScaledFormat, edit: &dyn Fn(&mut Vec<OwnedTensor>)) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let mut tensors = matrix_tensors(STEM, SHAPE, format, 3);
    edit(&mut tensors);
    let files = open(dir.path(), &tensors);
    let found = find(&files, place(0), SHAPE, config_of(format));
    let error = found.and_then(|stored| stored.read().map(|_| ()));
    error.expect_err("refused").to_string()
}

fn at<'a>(tensors: &'a mut [OwnedTensor], name: &str) -> &'a mut OwnedTensor {
    let found = tensors.iter_mut().find(|tensor| tensor.name == name);
    found.expect("a tensor of that name")
}

fn names(format: ScaledFormat) -> Vec<String> {
    let tensors = matrix_tensors(STEM, SHAPE, format, 3).into_iter();
    let names = tensors.map(|tensor| tensor.name);
    names.filter(|name| !name.contains(".input_")).collect()
}

#[test]
fn tensors_of_another_shape_or_type_are_named() {
    for format in ScaledFormat::ALL {
        for name in names(format) {
            let missing = refused(format, &|tensors| {
                tensors.retain(|tensor| tensor.name != name);
            });
            assert!(missing.contains(&name), "{format:?} {name}: {missing}");
            let wider = refused(format, &|tensors| {
                let tensor = at(tensors, &name);
                tensor.shape.push(2);
                tensor.bytes.extend(tensor.bytes.clone());
            });
            assert!(
                wider.contains(&name) && wider.contains("has shape"),
                "{format:?} {name}: {wider}"
            );
            let other_type = refused(format, &|tensors| {
                let tensor = at(tensors, &name);
                let n: usize = tensor.shape.iter().product();
                tensor.dtype = Dtype::I64;
                tensor.bytes = vec![0; 8 * n];
            });
            assert!(
                other_type.contains(&name) && other_type.contains("I64"),
                "{format:?} {name}: {other_type}"
            );
        }
    }
}

#[test]
fn scales_and_weights_that_are_no_numbers_are_named() {
    for format in ScaledFormat::ALL {
        for name in names(format).iter().filter(|name| name.contains("scale")) {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let error = refused(format, &|tensors| {
                    let tensor = at(tensors, name);
                    let n: usize = tensor.shape.iter().product();
                    if tensor.dtype == Dtype::F8_E4M3 {
                        tensor.bytes[n - 1] = 0x7f;
                        return;
                    }
                    let mut values = vec![0.5; n];
                    values[n - 1] = value;
                    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
                    *tensor = folder::float(name, shape, &values, ElementFormat::F32);
                });
                assert!(
                    error.contains(name) && error.contains("must be finite"),
                    "{format:?}: {error}"
                );
            }
        }
    }
    for code in [0x7f, 0xff] {
        let error = refused(ScaledFormat::CtFp8Rows, &|tensors| {
            at(tensors, &format!("{STEM}.weight")).bytes[SHAPE.1 + 7] = code;
        });
        assert!(
            error.contains("up_proj.weight: weight [1, 7] is NaN"),
            "{error}"
        );
    }
    let error = refused(ScaledFormat::CtInt8, &|tensors| {
        let name = format!("{STEM}.weight_zero_point");
        tensors.push(OwnedTensor {
            name,
            dtype: Dtype::I8,
            shape: vec![SHAPE.0, 1],
            bytes: vec![0; SHAPE.0],
        });
    });
    assert!(error.contains("must be symmetric"), "{error}");
}

/// compressed-tensors leaves sizes of 1 out or not, from version to version.
#[test]
fn scales_of_one_column_may_lack_it() {
    for (format, shapes) in [
        (ScaledFormat::CtFp8Rows, vec![vec![SHAPE.0]]),
        (ScaledFormat::CtInt8, vec![vec![SHAPE.0]]),
        (ScaledFormat::CtFp8Matrix, vec![vec![], vec![1, 1]]),
    ] {
        for shape in shapes {
            let dir = tempfile::tempdir().expect("a folder");
            let mut tensors = matrix_tensors(STEM, SHAPE, format, 3);
            let expected = read(&open(dir.path(), &tensors), format, 0, SHAPE.0);
            at(&mut tensors, &format!("{STEM}.weight_scale")).shape = shape;
            let other = tempfile::tempdir().expect("a folder");
            let found = read(&open(other.path(), &tensors), format, 0, SHAPE.0);
            assert_eq!(found, expected, "{format:?}");
        }
    }
}
