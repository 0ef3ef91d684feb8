//! What launchers of several ops share: the type and layout of activations, the pages of the KV
//! cache, checks of views. Their CUDA sources include the headers beside these modules.
//!
//! Memory, streams and launches are the crate `gpu`'s.

mod activation;
mod clusters;
mod element;
mod paged_kv;
pub(crate) mod shape;

pub use activation::{Activation, RowLayout, TILE_ROWS};
pub use clusters::ClusterLaunch;
pub use element::{Element, ElementBuffer, ElementView};
pub(crate) use paged_kv::PagedKvParams;
pub use paged_kv::{HeadShape, KvFormat, PAGE_TOKENS, PagedKv};
