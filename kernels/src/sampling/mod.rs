//! From logits to tokens, on the device. The CPU's sampler is part of the engine.

pub mod cuda;
