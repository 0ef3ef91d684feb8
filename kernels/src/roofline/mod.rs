//! What a card can do at most: reading memory, and multiplying. Measured kernels are compared with
//! it, and the read empties the L2 cache between measurements.

pub mod cuda;
