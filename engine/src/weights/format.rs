//! Sizes and names of the element formats. Block formats are ggml's (`ggml-common.h` of
//! llama.cpp describes the blocks); the others are blocks of one element.

use std::fmt;

use super::ElementFormat;
use super::scaled::ScaledElement;
use crate::model::quantization::{QuantMethod, Quantization};

/// How one matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatrixFormat {
    Rows(ElementFormat),
    /// 4 bits in AutoAWQ's layout; `group_size` values of a column have one scale.
    Awq {
        group_size: usize,
    },
    /// Small numbers in rows, with scales.
    Scaled(ScaledElement),
}

/// What kind of checkpoint was opened, and how its matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointFormat {
    /// Of the first layer's query projection; `None` where it is not there.
    Safetensors(Option<ElementFormat>),
    /// Safetensors with 4-bit matrices. `None`: one group for each row.
    Packed {
        method: QuantMethod,
        group_size: Option<usize>,
    },
    /// Safetensors with small numbers and scales.
    Scaled {
        method: QuantMethod,
        element: ScaledElement,
    },
    /// That which most bytes of the layers have.
    Gguf(Option<MatrixFormat>),
    /// Random weights, nothing was read.
    Dummy { format: MatrixFormat, seed: u64 },
}

/// `Q4_1`, `AWQ 4-bit, group 128`
impl fmt::Display for MatrixFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(format) => f.write_str(format.name()),
            Self::Awq { group_size } => write!(f, "AWQ 4-bit, group {group_size}"),
            Self::Scaled(element) => element.fmt(f),
        }
    }
}

/// For logs and records: `awq 4-bit, group 128`, `safetensors F16`, `gguf Q4_1`, `dummy awq group
/// 128 seed 0`.
impl fmt::Display for CheckpointFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packed {
                method,
                group_size: Some(group_size),
            } => write!(f, "{method} 4-bit, group {group_size}"),
            Self::Packed {
                method,
                group_size: None,
            } => write!(f, "{method} 4-bit, one group a row"),
            Self::Scaled { method, element } => write!(f, "{method} {element}"),
            Self::Safetensors(Some(format)) => write!(f, "safetensors {format}"),
            Self::Safetensors(None) => f.write_str("safetensors without quantisation"),
            Self::Gguf(Some(format)) => write!(f, "gguf {format}"),
            Self::Gguf(None) => f.write_str("gguf"),
            Self::Dummy {
                format: MatrixFormat::Awq { group_size },
                seed,
            } => write!(f, "dummy awq group {group_size} seed {seed}"),
            Self::Dummy {
                format: MatrixFormat::Rows(format),
                seed,
            } => write!(f, "dummy {} seed {seed}", format.name().to_lowercase()),
            Self::Dummy {
                format: MatrixFormat::Scaled(element),
                seed,
            } => write!(f, "dummy {element} seed {seed}"),
        }
    }
}

impl CheckpointFormat {
    /// Of safetensors with this quantisation.
    pub fn of(quantization: Option<Quantization>) -> Self {
        match quantization {
            None => Self::Safetensors(None),
            Some(Quantization::Packed(packed)) => Self::Packed {
                method: packed.method,
                group_size: packed.group_size,
            },
            Some(Quantization::Scaled(scaled)) => Self::Scaled {
                method: scaled.method,
                element: scaled.kind.into(),
            },
        }
    }

    /// Of quantised matrices, read or random.
    pub const fn method(self) -> Option<QuantMethod> {
        match self {
            Self::Packed { method, .. } | Self::Scaled { method, .. } => Some(method),
            Self::Dummy {
                format: MatrixFormat::Awq { .. },
                ..
            } => Some(QuantMethod::Awq),
            Self::Safetensors(_) | Self::Gguf(_) | Self::Dummy { .. } => None,
        }
    }

    pub const fn is_gguf(self) -> bool {
        matches!(self, Self::Gguf(_))
    }
}

impl ElementFormat {
    pub const ALL: [Self; 16] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
    ];
    /// For error messages.
    pub const SUPPORTED: &'static str = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K \
                                         Q6_K IQ4_NL IQ4_XS MXFP4";

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
            Self::Mxfp4 => "MXFP4",
        }
    }

    /// Elements in one block.
    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0
            | Self::Q4_1
            | Self::Q5_0
            | Self::Q5_1
            | Self::Q8_0
            | Self::Iq4Nl
            | Self::Mxfp4 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::Iq4Nl => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q2K => 16 + 64 + 4,
            Self::Q3K => 32 + 64 + 12 + 2,
            Self::Q4K => 4 + 12 + 128,
            Self::Q5K => 4 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
            Self::Iq4Xs => 2 + 2 + 4 + 128,
            Self::Mxfp4 => 1 + 16,
        }
    }

    /// Bytes of `n_elements` in whole blocks; `None` if they do not fill whole blocks or the size
    /// overflows.
    pub fn n_bytes(self, n_elements: usize) -> Option<usize> {
        if !n_elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (n_elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// The format with ggml's number, as in GGUF files.
    pub const fn from_ggml(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            20 => Self::Iq4Nl,
            23 => Self::Iq4Xs,
            30 => Self::BF16,
            39 => Self::Mxfp4,
            _ => return None,
        })
    }
}

/// ggml's name of the format with this number, whether or not it is supported here.
pub fn ggml_name(id: u32) -> String {
    const NAMES: [(u32, &str); 40] = [
        (0, "F32"),
        (1, "F16"),
        (2, "Q4_0"),
        (3, "Q4_1"),
        (4, "Q4_2"),
        (5, "Q4_3"),
        (6, "Q5_0"),
        (7, "Q5_1"),
        (8, "Q8_0"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (12, "Q4_K"),
        (13, "Q5_K"),
        (14, "Q6_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (30, "BF16"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (33, "Q4_0_8_8"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (36, "IQ4_NL_4_4"),
        (37, "IQ4_NL_4_8"),
        (38, "IQ4_NL_8_8"),
        (39, "MXFP4"),
    ];
    let named = NAMES.iter().find(|(number, _)| *number == id);
    named.map_or_else(
        || format!("number {id} of ggml, which is unknown here"),
        |(_, name)| (*name).to_owned(),
    )
}

impl std::fmt::Display for ElementFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
