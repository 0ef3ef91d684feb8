//! Seeded random weights for a given configuration: no file, reproducible byte for byte.
//!
//! Each tensor has its own random stream, from the seed and the tensor's name, so one tensor can be
//! generated without the others. Standard deviations have the magnitude of a trained model's (`1 /
//! sqrt(n_in)` for projections), so activations and logits stay in a sane range: with the final
//! norm at 1, logits have a standard deviation near [`LOGIT_STD`].
//!
//! Deliberately absent: meaningful text.

use std::borrow::Cow;
use std::path::Path;

use half::{bf16, f16};
use sha2::{Digest, Sha256};

use super::format::{CheckpointFormat, MatrixFormat};
use super::gguf::GgufFile;
use super::preset::Preset;
use super::scaled::{ScaledElement, ScaledMatrix};
use super::{
    AwqMatrix, Checkpoint, ElementFormat, Matrix, MatrixId, MatrixStorage, VectorId, WeightError,
    gguf, packed,
};
use crate::model::config::ModelConfig;
use crate::model::config_json;
use crate::model::quantization::{Quantization, ScaledKind};

/// Standard deviation of the logits of a synthetic model.
pub const LOGIT_STD: f32 = 2.5;

/// Standard deviation of `q - z` where both are uniform over 0..16.
const AWQ_LEVEL_STD: f32 = 6.519_202;
/// Of `s q - 7.5 m` with s and m uniform over 0..64, q over 0..16.
const Q4_K_STD: f32 = 258.3;
/// Of `s (q - 32)` with s uniform over -128..128, q over 0..64.
const Q6_K_STD: f32 = 1365.7;
/// Of E4M3 with exponents below 8.
const FP8_STD: f32 = 0.598_37;
/// Rows and columns under one scale of FP8.
const FP8_BLOCK: usize = 128;

/// The format of the layers' matrices. Embedding and head of `Awq` and `Fp8` are f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyntheticFormat {
    /// `F32`, `F16` or `BF16`; block formats have no synthetic counterpart and become f16.
    Rows(ElementFormat),
    Awq {
        group_size: usize,
    },
    /// As llama.cpp mixes it: Q4_K, with Q6_K for the head and, in the outer layers and every third between, for v
    /// and down.
    Q4KM,
    /// E4M3 with a scale for 128 x 128.
    Fp8,
}

/// A checkpoint without a file.
pub struct SyntheticCheckpoint {
    config: ModelConfig,
    format: SyntheticFormat,
    seed: u64,
    is_made_on_host: bool,
}

impl SyntheticCheckpoint {
    pub fn new(config: ModelConfig, format: SyntheticFormat, seed: u64) -> Self {
        Self {
            config,
            format,
            seed,
            is_made_on_host: false,
        }
    }

    /// Every executor gets the same weights, made here. Otherwise one on a GPU makes its own, which takes seconds
    /// instead of minutes for a large model.
    #[must_use]
    pub fn made_on_host(self) -> Self {
        Self {
            is_made_on_host: true,
            ..self
        }
    }

    pub fn from_preset(preset: &Preset, seed: u64) -> Self {
        Self::new(preset.config.clone(), preset.format, seed)
    }

    /// `--load-format dummy` on a folder: only its `config.json` is read. Weights are in 4 bits or in
    /// FP8 (with scales of blocks) if the folder's are, and otherwise f16.
    pub(crate) fn of_folder(dir: &Path, seed: u64) -> Result<Self, WeightError> {
        let config = config_json::read_folder(dir)?;
        let format = match config.quantization {
            Some(Quantization::Packed(found)) => {
                let group_size = match found.group_size {
                    Some(stored) => packed::kernel_group(stored),
                    None => group_of_rows(&config.model),
                };
                check_awq_shapes(&config.model, group_size)?;
                SyntheticFormat::Awq { group_size }
            }
            Some(Quantization::Scaled(scaled)) => match scaled.kind {
                ScaledKind::Fp8 { .. } => SyntheticFormat::Fp8,
                _ => SyntheticFormat::Rows(ElementFormat::F16),
            },
            None => SyntheticFormat::Rows(ElementFormat::F16),
        };
        Ok(Self::new(config.model, format, seed))
    }

    /// `--load-format dummy` on a GGUF file: only its metadata is read; weights are f16.
    pub(crate) fn of_gguf(path: &Path, seed: u64) -> Result<Self, WeightError> {
        let file = GgufFile::open(path)?;
        let config = gguf::config::read(&file.header, None)?;
        Ok(Self::new(
            config,
            SyntheticFormat::Rows(ElementFormat::F16),
            seed,
        ))
    }

    fn row_format(&self, id: MatrixId) -> Option<ElementFormat> {
        match self.format {
            SyntheticFormat::Awq { .. } | SyntheticFormat::Fp8 if id.is_quantised() => None,
            SyntheticFormat::Q4KM => Some(self.q4_k_m(id)),
            SyntheticFormat::Rows(ElementFormat::F32) => Some(ElementFormat::F32),
            SyntheticFormat::Rows(ElementFormat::BF16) => Some(ElementFormat::BF16),
            SyntheticFormat::Rows(_) | SyntheticFormat::Awq { .. } | SyntheticFormat::Fp8 => {
                Some(ElementFormat::F16)
            }
        }
    }

    fn q4_k_m(&self, id: MatrixId) -> ElementFormat {
        let n = self.config.n_layers;
        let has_more_bits = |i| i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
        match id {
            MatrixId::V(i) | MatrixId::Down(i) if has_more_bits(i) => ElementFormat::Q6K,
            MatrixId::LmHead => ElementFormat::Q6K,
            MatrixId::Router(_) => ElementFormat::F32,
            MatrixId::Embedding if self.config.tied_embeddings => ElementFormat::Q6K,
            _ => ElementFormat::Q4K,
        }
    }

    fn stored_id(&self, id: MatrixId) -> MatrixId {
        match id {
            MatrixId::LmHead if self.config.tied_embeddings => MatrixId::Embedding,
            other => other,
        }
    }

    fn std(id: MatrixId, n_in: usize) -> f32 {
        let unit = 1.0 / (n_in as f32).sqrt();
        if id.layer().is_some() {
            unit
        } else {
            LOGIT_STD * unit
        }
    }

    fn fp8(&self, id: MatrixId) -> ScaledMatrix<'static> {
        let (n_out, n_in) = id.shape(&self.config);
        let stem = id.safetensors_stem();
        let stream = |part: &str| RandomStream::new(self.seed, &format!("{stem}.{part}"));
        let mut codes = stream("weight").bytes(n_out * n_in);
        // Exponents below 8: no code is NaN.
        for code in &mut codes {
            *code &= 0xbf;
        }
        let mean_scale = Self::std(id, n_in) / FP8_STD;
        let n_columns = n_in.div_ceil(FP8_BLOCK);
        let mut draw = stream("weight_scale_inv");
        let blocks: Vec<f32> = (0..n_out.div_ceil(FP8_BLOCK) * n_columns)
            .map(|_| mean_scale * (1.0 + 0.25 * draw.uniform()))
            .collect();
        let of_row = |row: usize| &blocks[row / FP8_BLOCK * n_columns..][..n_columns];
        ScaledMatrix {
            element: ScaledElement::Fp8,
            n_out,
            n_in,
            codes: Cow::Owned(codes),
            group: FP8_BLOCK.min(n_in),
            scales: (0..n_out).flat_map(of_row).copied().collect(),
            factor: 1.0,
        }
    }

    fn awq(&self, id: MatrixId, group_size: usize) -> AwqMatrix<'static> {
        let (n_out, n_in) = id.shape(&self.config);
        let stem = id.safetensors_stem();
        let stream = |part: &str| RandomStream::new(self.seed, &format!("{stem}.{part}"));
        let n_groups = n_in / group_size;
        let mean_scale = Self::std(id, n_in) / AWQ_LEVEL_STD;
        let mut scales = stream("scales");
        let scales = (0..n_groups * n_out)
            .flat_map(|_| f16::from_f32(mean_scale * (1.0 + 0.25 * scales.uniform())).to_le_bytes())
            .collect();
        AwqMatrix {
            n_out,
            n_in,
            group_size,
            qweight: Cow::Owned(stream("qweight").bytes(n_in * n_out / 2)),
            qzeros: Cow::Owned(stream("qzeros").bytes(n_groups * n_out / 2)),
            scales: Cow::Owned(scales),
            order: None,
        }
    }
}

/// The largest group that divides the rows of all matrices, for those with one scale a row.
fn group_of_rows(config: &ModelConfig) -> usize {
    let ids = MatrixId::all(config).into_iter();
    let rows = ids.map(|id| id.shape(config).1);
    rows.map(packed::kernel_group).min().unwrap_or_default()
}

fn check_awq_shapes(config: &ModelConfig, group_size: usize) -> Result<(), WeightError> {
    for id in MatrixId::all(config)
        .into_iter()
        .filter(|id| id.is_quantised())
    {
        let (n_out, n_in) = id.shape(config);
        if !n_out.is_multiple_of(8) || !n_in.is_multiple_of(group_size) {
            return Err(WeightError::Shape {
                name: format!("{} (AWQ, group {group_size})", id.safetensors_stem()),
                found: vec![n_out, n_in],
                expected: vec![n_out.next_multiple_of(8), n_in.next_multiple_of(group_size)],
            });
        }
    }
    Ok(())
}

impl Checkpoint for SyntheticCheckpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError> {
        let id = self.stored_id(id);
        let (n_out, n_in) = id.shape(&self.config);
        let format = match (self.row_format(id), self.format) {
            (None, SyntheticFormat::Awq { group_size }) => {
                return Ok(Matrix::Awq(self.awq(id, group_size)));
            }
            (None, SyntheticFormat::Fp8) => return Ok(Matrix::Scaled(self.fp8(id))),
            (format, _) => format.unwrap_or(ElementFormat::F16),
        };
        let mut stream = RandomStream::new(self.seed, &id.safetensors_stem());
        let (n, std) = (n_out * n_in, Self::std(id, n_in));
        let bytes = match format {
            ElementFormat::Q4K | ElementFormat::Q6K => {
                let Some(n_bytes) = format.n_bytes(n_in).map(|row| row * n_out) else {
                    return Err(WeightError::Shape {
                        name: format!("{} ({format})", id.safetensors_stem()),
                        found: vec![n_out, n_in],
                        expected: vec![n_out, n_in.next_multiple_of(format.block_elements())],
                    });
                };
                stream.k_blocks(format, n_bytes, std)
            }
            _ => stream.float_rows(format, n, std),
        };
        Ok(Matrix::Rows {
            format,
            n_out,
            n_in,
            bytes: Cow::Owned(bytes),
        })
    }

    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError> {
        let n = id.n_elements(&self.config);
        let mut stream = RandomStream::new(self.seed, &id.safetensors_name());
        let centre = match id {
            VectorId::QBias(_) | VectorId::KBias(_) | VectorId::VBias(_) | VectorId::OBias(_) => {
                0.0
            }
            _ => 1.0,
        };
        Ok((0..n).map(|_| centre + 0.1 * stream.uniform()).collect())
    }

    fn dummy_seed(&self) -> Option<u64> {
        (!self.is_made_on_host).then_some(self.seed)
    }

    fn format(&self) -> CheckpointFormat {
        let format = match self.format {
            SyntheticFormat::Rows(format) => MatrixFormat::Rows(format),
            SyntheticFormat::Awq { group_size } => MatrixFormat::Awq { group_size },
            SyntheticFormat::Q4KM => MatrixFormat::Rows(ElementFormat::Q4K),
            SyntheticFormat::Fp8 => MatrixFormat::Scaled(ScaledElement::Fp8),
        };
        CheckpointFormat::Dummy {
            format,
            seed: self.seed,
        }
    }

    fn storage(&self, id: MatrixId) -> Result<MatrixStorage, WeightError> {
        let (n_out, n_in) = id.shape(&self.config);
        let n_elements = n_out * n_in;
        let (format, n_bytes) = match (self.row_format(id), self.format) {
            (None, SyntheticFormat::Awq { group_size }) => {
                let per_group = n_out / 2 + 2 * n_out;
                let n_bytes = n_elements / 2 + n_in / group_size * per_group;
                (MatrixFormat::Awq { group_size }, n_bytes)
            }
            (None, SyntheticFormat::Fp8) => (
                MatrixFormat::Scaled(ScaledElement::Fp8),
                n_elements + 4 * n_out * n_in.div_ceil(FP8_BLOCK),
            ),
            (format, _) => {
                let format = format.unwrap_or(ElementFormat::F16);
                let n_bytes = n_elements / format.block_elements() * format.block_bytes();
                (MatrixFormat::Rows(format), n_bytes)
            }
        };
        let is_scaled = matches!(format, MatrixFormat::Scaled(_));
        Ok(MatrixStorage {
            n_out,
            n_in,
            format,
            is_reordered: false,
            scale_columns: is_scaled.then_some(FP8_BLOCK.min(n_in)),
            n_elements: n_elements as u64,
            n_bytes: n_bytes as u64,
        })
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): its values do not depend on a library's version.
pub(super) struct RandomStream {
    state: u64,
}

impl RandomStream {
    pub(super) fn new(seed: u64, name: &str) -> Self {
        let digest = Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(name)
            .finalize();
        let mut state = [0; 8];
        state.copy_from_slice(&digest[..8]);
        Self {
            state: u64::from_le_bytes(state),
        }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform over [-1, 1).
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// Uniform bits; `n` is rounded down to whole words of 4.
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        for chunk in out.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        out
    }

    /// Random blocks of Q4_K or Q6_K with this standard deviation and a mean of 0: of `d s q - dmin m` and
    /// `d s (q - 32)` with s, m and q uniform over what they may be.
    fn k_blocks(&mut self, format: ElementFormat, n_bytes: usize, std: f32) -> Vec<u8> {
        let mut bytes = self.bytes(n_bytes);
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            if format == ElementFormat::Q6K {
                block[208..].copy_from_slice(&f16::from_f32(std / Q6_K_STD).to_le_bytes());
            } else {
                let d = f16::from_f32(std / Q4_K_STD);
                block[..2].copy_from_slice(&d.to_le_bytes());
                block[2..4].copy_from_slice(&f16::from_f32(7.5 * d.to_f32()).to_le_bytes());
            }
        }
        bytes
    }

    /// Uniform values with this standard deviation, on a grid of 4096 levels: one table lookup for
    /// each value, because the large presets need billions.
    fn float_rows(&mut self, format: ElementFormat, n: usize, std: f32) -> Vec<u8> {
        const LEVELS: usize = 4096;
        let half_range = std * 3.0f32.sqrt();
        let level = |i: usize| half_range * ((i as f32 + 0.5) / (LEVELS / 2) as f32 - 1.0);
        match format {
            ElementFormat::F32 => {
                let table: Vec<[u8; 4]> = (0..LEVELS).map(|i| level(i).to_le_bytes()).collect();
                self.lookup(&table, n)
            }
            ElementFormat::BF16 => {
                let bits = |i| bf16::from_f32(level(i)).to_le_bytes();
                self.lookup(&(0..LEVELS).map(bits).collect::<Vec<_>>(), n)
            }
            _ => {
                let bits = |i| f16::from_f32(level(i)).to_le_bytes();
                self.lookup(&(0..LEVELS).map(bits).collect::<Vec<_>>(), n)
            }
        }
    }

    fn lookup<const N: usize>(&mut self, table: &[[u8; N]], n: usize) -> Vec<u8> {
        let mut out = vec![0; n * N];
        // Five values of 12 bits from each word.
        for chunk in out.chunks_mut(5 * N) {
            let mut word = self.next();
            for value in chunk.chunks_exact_mut(N) {
                value.copy_from_slice(&table[(word & 4095) as usize]);
                word >>= 12;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::preset;

    fn tiny(name: &str, seed: u64) -> SyntheticCheckpoint {
        SyntheticCheckpoint::from_preset(&preset::find(name).expect("a preset"), seed)
    }

    fn std(values: &[f32]) -> f32 {
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt()
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let values = |seed, id| tiny("tiny-qwen3", seed).matrix(id).and_then(|m| m.to_f32());
        let first = values(1, MatrixId::Q(0)).expect("made");
        assert_eq!(first, values(1, MatrixId::Q(0)).expect("made"));
        assert_ne!(first, values(2, MatrixId::Q(0)).expect("made"));
        assert_ne!(first, values(1, MatrixId::Q(1)).expect("made"));
    }

    /// Pins the stream itself: records name a seed, so its values must not change.
    #[test]
    fn the_stream_is_pinned() {
        let mut stream = RandomStream { state: 0 };
        // The first outputs of SplitMix64 from state 0, as published with its test vectors.
        assert_eq!(stream.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(stream.next(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn matrices_have_the_intended_spread_in_every_format() {
        let config = preset::find("tiny-qwen3").expect("a preset").config;
        for format in [
            SyntheticFormat::Rows(ElementFormat::F32),
            SyntheticFormat::Rows(ElementFormat::F16),
            SyntheticFormat::Rows(ElementFormat::BF16),
            SyntheticFormat::Awq { group_size: 32 },
        ] {
            let checkpoint = SyntheticCheckpoint::new(config.clone(), format, 3);
            for id in [MatrixId::Q(0), MatrixId::Down(1)] {
                let matrix = checkpoint.matrix(id).expect("made");
                assert_eq!(
                    matrix.storage(),
                    checkpoint.storage(id).expect("known"),
                    "{format:?}"
                );
                let expected = 1.0 / (matrix.shape().1 as f32).sqrt();
                let found = std(&matrix.to_f32().expect("decodes"));
                assert!(
                    (found / expected - 1.0).abs() < 0.1,
                    "{format:?} {id:?}: {found}"
                );
            }
        }
    }

    /// Of Qwen3-0.6B's shapes, whose rows are whole blocks.
    #[test]
    fn blocks_and_fp8_have_the_intended_spread() {
        let config = preset::find("qwen3-0.6b").expect("a preset").config;
        for (format, expected_formats) in [
            (
                SyntheticFormat::Q4KM,
                [ElementFormat::Q4K, ElementFormat::Q6K].map(MatrixFormat::Rows),
            ),
            (
                SyntheticFormat::Fp8,
                [MatrixFormat::Scaled(ScaledElement::Fp8); 2],
            ),
        ] {
            let checkpoint = SyntheticCheckpoint::new(config.clone(), format, 3);
            for (id, expected_format) in [MatrixId::K(0), MatrixId::V(0)]
                .into_iter()
                .zip(expected_formats)
            {
                let matrix = checkpoint.matrix(id).expect("made");
                let storage = checkpoint.storage(id).expect("known");
                assert_eq!(matrix.storage(), storage, "{format:?}");
                assert_eq!(storage.format, expected_format);
                let values = matrix.to_f32().expect("decodes");
                let expected = 1.0 / (matrix.shape().1 as f32).sqrt();
                let mean = values.iter().sum::<f32>() / values.len() as f32;
                let found = std(&values);
                assert!(
                    (found / expected - 1.0).abs() < 0.1 && mean.abs() < 0.05 * expected,
                    "{format:?} {id:?}: {found} about {mean} for {expected}"
                );
            }
        }
    }

    /// The bytes of the published file of Qwen3-32B in Q4_K_M are 19.76 GB; nearly all are matrices.
    #[test]
    fn q4_k_m_mixes_as_published_files_do() {
        let preset = preset::find("qwen3-32b-q4_k_m").expect("a preset");
        let checkpoint = SyntheticCheckpoint::from_preset(&preset, 0);
        let n_bytes: u64 = MatrixId::all(&preset.config)
            .into_iter()
            .map(|id| checkpoint.storage(id).expect("known").n_bytes)
            .sum();
        assert!((n_bytes as f64 / 19.76e9 - 1.0).abs() < 0.01, "{n_bytes}");
    }

    #[test]
    fn tied_heads_are_the_embedding() {
        let checkpoint = tiny("tiny-llama", 0);
        let embedding = checkpoint
            .matrix(MatrixId::Embedding)
            .and_then(|m| m.to_f32());
        let head = checkpoint.matrix(MatrixId::LmHead).and_then(|m| m.to_f32());
        assert_eq!(embedding.expect("made"), head.expect("made"));
    }

    #[test]
    fn qwen2_has_biases_and_norms_are_near_one() {
        let checkpoint = tiny("tiny-qwen2", 0);
        let bias = checkpoint.vector(VectorId::KBias(0)).expect("made");
        assert_eq!(bias.len(), 32);
        assert!(bias.iter().all(|v| v.abs() <= 0.1) && bias.iter().any(|v| *v != 0.0));
        let norm = checkpoint.vector(VectorId::FinalNorm).expect("made");
        assert!(norm.iter().all(|v| (0.9..=1.1).contains(v)));
    }
}
