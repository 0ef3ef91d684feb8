//! What a card can do at most, as its maker states it: `data/cards`, which the simulator uses too.

use serde::Deserialize;

const CARDS: [&str; 3] = [
    include_str!("../../../data/cards/h100.toml"),
    include_str!("../../../data/cards/h200.toml"),
    include_str!("../../../data/cards/rtx-5090.toml"),
];

#[derive(Deserialize)]
struct Card {
    rates: Rates,
}

#[derive(Deserialize)]
struct Rates {
    name: String,
    bandwidth_gb_per_s: f64,
}

/// Memory bandwidth in GB/s (10^9 bytes); none for a card that is not listed. The driver may call
/// a card by the beginning of its full name.
pub fn memory_bandwidth_gb_per_s(gpu_name: &str) -> Option<f64> {
    CARDS
        .iter()
        .filter_map(|text| toml::from_str::<Card>(text).ok())
        .find(|card| !gpu_name.is_empty() && card.rates.name.starts_with(gpu_name))
        .map(|card| card.rates.bandwidth_gb_per_s)
}

/// As above, of a card that a document calls by a part of its name (`RTX 5090`).
pub fn bandwidth_of_card_named(part: &str) -> Option<f64> {
    CARDS
        .iter()
        .filter_map(|text| toml::from_str::<Card>(text).ok())
        .find(|card| !part.is_empty() && card.rates.name.contains(part))
        .map(|card| card.rates.bandwidth_gb_per_s)
}

#[cfg(test)]
mod tests {
    use super::{CARDS, memory_bandwidth_gb_per_s};

    #[test]
    fn cards_are_told_apart_by_their_memory() {
        assert_eq!(
            memory_bandwidth_gb_per_s("NVIDIA H100 80GB HBM3"),
            Some(3352.0)
        );
        assert_eq!(memory_bandwidth_gb_per_s("NVIDIA H200"), Some(4800.0));
        assert_eq!(
            memory_bandwidth_gb_per_s("NVIDIA GeForce RTX 5090"),
            Some(1792.0)
        );
        assert_eq!(memory_bandwidth_gb_per_s("NVIDIA H100 PCIe"), None);
        assert_eq!(memory_bandwidth_gb_per_s("Fixture GPU"), None);
        assert_eq!(memory_bandwidth_gb_per_s(""), None);
    }

    #[test]
    fn every_card_is_readable() {
        for text in CARDS {
            assert!(toml::from_str::<super::Card>(text).is_ok(), "{text}");
        }
    }
}
