//! Models that are suspended, woken, unloaded and loaded again while requests for them arrive.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::{ADMIN_KEY, MODELS, Soak};
use crate::client;

/// Requests from one switch to the next.
const PERIOD: usize = 100;

impl Soak {
    /// Until the round's last request is sent; then all models are awake.
    pub async fn switch_models(&self) {
        loop {
            let (next, end) = (
                self.next.load(Ordering::Acquire),
                self.end.load(Ordering::Acquire),
            );
            if next >= end {
                return;
            }
            let sleeps = self.counts.sleeps.load(Ordering::Acquire);
            let i = sleeps + self.counts.unloads.load(Ordering::Acquire);
            if next < i * PERIOD {
                tokio::time::sleep(Duration::from_millis(2)).await;
                continue;
            }
            let mut rng = StdRng::seed_from_u64(self.seed.wrapping_add(i as u64));
            let model = MODELS[rng.random_range(0..MODELS.len())];
            let (actions, count) = if i.is_multiple_of(2) {
                (
                    [("sleep", "asleep"), ("wake", "ready")],
                    &self.counts.sleeps,
                )
            } else {
                let series =
                    format!("vllm:num_preemptions_total{{engine=\"0\",model_name=\"{model}\"}}");
                let n_preemptions = self.metric(&series).await as usize;
                let known = &self.counts.preemptions;
                known.fetch_add(n_preemptions, Ordering::AcqRel);
                (
                    [("unload", "unloaded"), ("load", "ready")],
                    &self.counts.unloads,
                )
            };
            for (action, state) in actions {
                self.change(model, action, state).await;
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..20))).await;
            }
            count.fetch_add(1, Ordering::AcqRel);
        }
    }

    async fn change(&self, model: &str, action: &str, state: &str) {
        let body = json!({"model": model});
        let changing = client::admin(self.program.address, ADMIN_KEY, action, &body);
        let changed = tokio::time::timeout(Duration::from_mins(1), changing)
            .await
            .unwrap_or_else(|_| panic!("{action} {model} takes too long"));
        assert_eq!(changed.status, 200, "{action} {model}: {}", changed.text());
        assert_eq!(changed.json()["state"], state, "{}", changed.text());
    }
}
