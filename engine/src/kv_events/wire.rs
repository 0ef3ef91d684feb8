//! A batch as MessagePack: `[time, [event, …], data_parallel_rank]`, where an event is an array that
//! begins with its name. The order of the fields is vLLM's; a reader of fewer ignores the rest.

use bytes::Bytes;
use serde::Serialize;

use crate::kv::{KvEvent, PAGE_TOKENS, Tier};

/// There is one engine for a model.
const DATA_PARALLEL_RANK: u32 = 0;

#[derive(Serialize)]
#[serde(untagged)]
enum Wire<'a> {
    Stored(
        &'static str,
        &'a [u64],
        Option<u64>,
        &'a [u32],
        usize,
        /// Number and name of an adapter.
        Option<u64>,
        &'static str,
        Option<&'a str>,
    ),
    Removed(&'static str, &'a [u64], &'static str),
    Cleared([&'static str; 1]),
}

impl<'a> From<&'a KvEvent> for Wire<'a> {
    fn from(event: &'a KvEvent) -> Self {
        match event {
            KvEvent::Stored {
                tier,
                parent,
                hashes,
                tokens,
            } => Self::Stored(
                "BlockStored",
                hashes,
                *parent,
                tokens,
                PAGE_TOKENS,
                None,
                medium(*tier),
                None,
            ),
            KvEvent::Removed { tier, hashes } => {
                Self::Removed("BlockRemoved", hashes, medium(*tier))
            }
            KvEvent::Cleared => Self::Cleared(["AllBlocksCleared"]),
        }
    }
}

/// vLLM's words; the device's memory is called so even if it is the CPU's.
fn medium(tier: Tier) -> &'static str {
    match tier {
        Tier::Device => "GPU",
        Tier::Host => "CPU",
    }
}

/// `at_s`: seconds since 1970.
///
/// # Errors
///
/// If the encoder fails, which it does for no event that there is.
pub fn encode(at_s: f64, events: &[KvEvent]) -> Result<Bytes, rmp_serde::encode::Error> {
    let events: Vec<Wire> = events.iter().map(Wire::from).collect();
    rmp_serde::to_vec(&(at_s, events, DATA_PARALLEL_RANK)).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn events_are_arrays_in_vllms_order() {
        let events = [
            KvEvent::Stored {
                tier: Tier::Device,
                parent: None,
                hashes: vec![u64::MAX],
                tokens: (0..16).collect(),
            },
            KvEvent::Removed {
                tier: Tier::Host,
                hashes: vec![1, 2],
            },
            KvEvent::Cleared,
        ];
        let bytes = encode(1.5, &events).unwrap();
        assert_eq!(bytes[0], 0x93, "an array of 3");
        let read: Value = rmp_serde::from_slice(&bytes).unwrap();
        let tokens: Vec<u32> = (0..16).collect();
        let stored = json!([
            "BlockStored",
            [u64::MAX],
            null,
            tokens,
            16,
            null,
            "GPU",
            null
        ]);
        let removed = json!(["BlockRemoved", [1, 2], "CPU"]);
        assert_eq!(
            read,
            json!([1.5, [stored, removed, ["AllBlocksCleared"]], 0])
        );
    }
}
