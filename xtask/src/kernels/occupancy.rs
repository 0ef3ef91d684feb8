//! Computes how many blocks of a kernel fit on an SM, from the limits in NVIDIA's programming
//! guide.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChipLimits {
    pub registers_per_sm: usize,
    pub warps_per_sm: usize,
    pub blocks_per_sm: usize,
    pub shared_bytes_per_sm: usize,
    pub shared_bytes_per_block: usize,
}

/// Shared memory that the driver reserves for each block.
const RESERVED_SHARED_BYTES: usize = 1024;
const SHARED_UNIT_BYTES: usize = 128;
/// Allocation unit of registers for a warp, from the SM's four partitions.
const REGISTER_UNIT: usize = 256;
const PARTITIONS: usize = 4;
const WARP: usize = 32;

pub fn limits_of(architecture: &str) -> Option<ChipLimits> {
    match architecture {
        "sm_90" | "sm_90a" => Some(ChipLimits {
            registers_per_sm: 65_536,
            warps_per_sm: 64,
            blocks_per_sm: 32,
            shared_bytes_per_sm: 233_472,
            shared_bytes_per_block: 232_448,
        }),
        "sm_120" => Some(ChipLimits {
            registers_per_sm: 65_536,
            warps_per_sm: 48,
            blocks_per_sm: 24,
            shared_bytes_per_sm: 102_400,
            shared_bytes_per_block: 101_376,
        }),
        _ => None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// 0: it cannot be launched.
    pub n_blocks: usize,
    pub n_warps: usize,
}

pub fn occupancy(
    chip: &ChipLimits,
    n_threads: usize,
    n_registers: usize,
    shared_bytes: usize,
) -> Occupancy {
    let block_warps = n_threads.div_ceil(WARP).max(1);
    let warp_registers = (n_registers.max(1) * WARP).next_multiple_of(REGISTER_UNIT);
    let partition_warps = chip.registers_per_sm / PARTITIONS / warp_registers;
    let by_registers = partition_warps * PARTITIONS / block_warps.next_multiple_of(PARTITIONS);
    let block_shared = (shared_bytes + RESERVED_SHARED_BYTES).next_multiple_of(SHARED_UNIT_BYTES);
    let by_shared = if shared_bytes > chip.shared_bytes_per_block {
        0
    } else {
        chip.shared_bytes_per_sm / block_shared
    };
    let by_warps = chip.warps_per_sm / block_warps;
    let n_blocks = by_registers
        .min(by_shared)
        .min(by_warps)
        .min(chip.blocks_per_sm);
    Occupancy {
        n_blocks,
        n_warps: n_blocks * block_warps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(architecture: &str, n_threads: usize, n_registers: usize, shared: usize) -> usize {
        let chip = limits_of(architecture).expect("a known chip");
        occupancy(&chip, n_threads, n_registers, shared).n_blocks
    }

    #[test]
    fn warps_limit_small_kernels() {
        assert_eq!(blocks("sm_120", 128, 32, 0), 12);
        assert_eq!(blocks("sm_90", 128, 32, 0), 16);
        assert_eq!(blocks("sm_120", 1024, 32, 0), 1);
        assert_eq!(blocks("sm_90", 1024, 32, 0), 2);
        assert_eq!(blocks("sm_120", 32, 16, 0), 24);
        assert_eq!(blocks("sm_90", 32, 16, 0), 32);
    }

    #[test]
    fn registers_are_rounded_up_to_units() {
        // 128 registers x 512 threads is the whole file; one more register takes the next 8.
        assert_eq!(blocks("sm_90", 512, 128, 0), 1);
        assert_eq!(blocks("sm_90", 512, 129, 0), 0);
        assert_eq!(blocks("sm_90", 256, 128, 0), 2);
        assert_eq!(blocks("sm_90", 256, 121, 0), 2);
        // 255 registers: two warps a partition, so 8 warps and one block of 8.
        assert_eq!(blocks("sm_120", 256, 255, 0), 1);
        assert_eq!(blocks("sm_120", 288, 255, 0), 0);
    }

    #[test]
    fn shared_memory_counts_what_the_driver_keeps() {
        assert_eq!(blocks("sm_120", 128, 32, 101_376), 1);
        assert_eq!(blocks("sm_120", 128, 32, 101_377), 0);
        assert_eq!(blocks("sm_120", 128, 32, 50_176), 2);
        assert_eq!(blocks("sm_120", 128, 32, 50_177), 1);
        assert_eq!(blocks("sm_90", 128, 32, 232_448), 1);
        assert_eq!(blocks("sm_90", 128, 32, 115_712), 2);
    }

    #[test]
    fn counts_warps() {
        let chip = limits_of("sm_120").expect("a known chip");
        assert_eq!(
            occupancy(&chip, 384, 40, 0),
            Occupancy {
                n_blocks: 4,
                n_warps: 48
            }
        );
        assert_eq!(limits_of("sm_75"), None);
    }
}
