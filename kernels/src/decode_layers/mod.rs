//! All layers of a decode step of 1 to 8 rows in one launch (`decode_layers.cu`): what the kernels
//! of `rms_norm`, `stream_linear`, `qkv_prepare`, `attention` and `silu_mul` do one after the
//! other, with the weights of what comes next on their way all the while.
//!
//! [`plan`] finds the launch's shape or says why there is none; then a caller uses those kernels,
//! which are also what this one is tested against. Only AWQ with groups of 128: other formats read
//! more bytes or have more scales than the rings are laid out for.

mod cuda;
mod plan;

pub use cuda::{DecodeLayer, DecodeLayers, DecodeLayersArgs};
pub use plan::{DecodeShape, Plan, plan};

const OP: &str = "decode_layers";

/// Rows of a launch: the columns of one matrix instruction.
pub const MAX_ROWS: usize = 8;
