//! What a card can do at most, as its maker states it.

/// Memory bandwidth in GB/s (10^9 bytes); none for a card that is not listed.
/// Source: NVIDIA's data sheets. The longest matching name decides.
pub fn memory_bandwidth_gb_per_s(gpu_name: &str) -> Option<f64> {
    const CARDS: [(&str, f64); 7] = [
        ("A100-SXM4-80GB", 2039.0),
        ("H100 80GB HBM3", 3350.0),
        ("H100 NVL", 3900.0),
        ("H100 PCIe", 2000.0),
        ("H200", 4800.0),
        ("RTX 4090", 1008.0),
        ("RTX 5090", 1792.0),
    ];
    CARDS
        .iter()
        .filter(|(name, _)| gpu_name.contains(name))
        .max_by_key(|(name, _)| name.len())
        .map(|(_, bandwidth)| *bandwidth)
}

#[cfg(test)]
mod tests {
    use super::memory_bandwidth_gb_per_s;

    #[test]
    fn cards_are_told_apart_by_their_memory() {
        assert_eq!(
            memory_bandwidth_gb_per_s("NVIDIA H100 80GB HBM3"),
            Some(3350.0)
        );
        assert_eq!(memory_bandwidth_gb_per_s("NVIDIA H100 PCIe"), Some(2000.0));
        assert_eq!(memory_bandwidth_gb_per_s("Fixture GPU"), None);
    }
}
