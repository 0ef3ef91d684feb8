//! Autotuning results on disk: one file for each GPU, kernel build, model shape and set of relevant
//! flags. The file repeats its key, so a hash collision does no harm.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use gpu::{Device, embedded_kernels};
use kernels::cuda::KvFormat;
use kernels::stream_linear::Layout;
use serde::{Deserialize, Serialize};

use super::super::forward::{AttentionOptions, Forward, Projection};
use super::Bucket;
use crate::source::digest;

/// Increment when candidates or the timing method change.
const VERSION: u32 = 2;
const FOLDER: &str = "tuning";

/// What the times depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TuningKey {
    pub version: u32,
    /// Digest of the compiled kernels, which covers sources, compiler flags and architectures.
    pub kernels_sha256: String,
    pub device: String,
    pub architecture: String,
    /// Element type of activations, and whether large batches are rounded to 8 bits.
    pub element: String,
    pub n_multiprocessors: usize,
    /// Number of layers and their matrices, group by group; the head last.
    pub shapes: Vec<String>,
    pub attention: String,
    pub max_rows: usize,
}

/// The contents of the file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    key: TuningKey,
    buckets: Vec<Bucket>,
}

impl TuningKey {
    pub fn of(
        device: &Device,
        forward: &Forward,
        groups: &[Vec<usize>],
        attention: &AttentionOptions,
        context: usize,
        max_rows: usize,
    ) -> Self {
        let properties = device.properties();
        let of_group = |layers: &Vec<usize>| {
            let projections = Projection::of_layer_with(forward.is_sparse(layers[0])).iter();
            let matrices = projections.map(|p| shape(forward.layout(*p, layers[0])));
            let matrices: Vec<String> = matrices.collect();
            format!("{} layers: {}", layers.len(), matrices.join(", "))
        };
        let head = shape(forward.layout(Projection::LmHead, 0));
        let heads = forward.heads();
        let format = match attention.format {
            KvFormat::F16 => "f16",
            KvFormat::Bf16 => "bf16",
            KvFormat::Fp8E4m3 => "fp8_e4m3",
        };
        Self {
            version: VERSION,
            kernels_sha256: embedded_kernels().sha256.to_owned(),
            device: properties.name.clone(),
            architecture: properties.architecture(),
            element: if forward.has_int8_activations() {
                format!("{:?}, int8 where weights allow it", forward.element())
            } else {
                format!("{:?}", forward.element())
            },
            n_multiprocessors: properties.n_multiprocessors,
            shapes: groups.iter().map(of_group).chain([head]).collect(),
            attention: format!(
                "{} heads on {} of {}, {format}, up to {} splits, in fp32: {}, {context} tokens",
                heads.n_q,
                heads.n_kv,
                heads.head_dim,
                attention.max_splits,
                attention.reduce_in_fp32
            ),
            max_rows,
        }
    }

    /// The file's path below the engine's cache folder.
    pub fn path(&self, cache_dir: &Path) -> PathBuf {
        // A map of strings and numbers, in field order, can always be serialised.
        let text = serde_json::to_string(self).unwrap_or_default();
        let digest = digest::of_text(&text);
        cache_dir
            .join(FOLDER)
            .join(format!("{}.json", &digest[..16]))
    }
}

/// For example `AwqG128 GateUp [25600, 25600] x 5120`.
fn shape(layout: &Layout) -> String {
    let Layout {
        format,
        arrangement,
        parts_n,
        k,
        ..
    } = layout;
    format!("{format:?} {arrangement:?} {parts_n:?} x {k}")
}

impl Kept {
    /// `None` if there is no file; an error if the file cannot be used.
    pub fn read(path: &Path, key: &TuningKey) -> Result<Option<Vec<Bucket>>, String> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let kept: Self = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if kept.key != *key {
            return Err("the file is for something else".to_owned());
        }
        Ok(Some(kept.buckets))
    }

    /// Writes atomically, so that another process never reads a partial file.
    pub fn write(path: &Path, key: &TuningKey, buckets: &[Bucket]) -> Result<(), String> {
        let kept = Self {
            key: key.clone(),
            buckets: buckets.to_vec(),
        };
        let text = serde_json::to_string_pretty(&kept).map_err(|error| error.to_string())?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|error| error.to_string())
    }
}
