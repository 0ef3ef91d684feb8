//! What a GPU or a processor can do at most: reading memory, and multiplying. Measured kernels are
//! compared with it, and a GPU's read empties the L2 cache between measurements.

pub mod cpu;
pub mod cuda;
