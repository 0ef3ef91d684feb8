//! How KEDA and the HorizontalPodAutoscaler that it makes decide on the number of replicas.
//!
//! KEDA decides between none and some: from none as soon as a trigger's value is above its activation
//! threshold, to none when none has been for the cooldown. In between the autoscaler decides: the
//! largest number that a trigger asks for, not changed within the tolerance, held by the
//! stabilisation windows, and approached as fast as the policies allow.

use std::collections::VecDeque;

use super::scaled_object::{Direction, MetricType, Policy, PolicyKind, ScaledObject, SelectPolicy};

/// `--horizontal-pod-autoscaler-tolerance`, unless a cluster sets another.
const TOLERANCE: f64 = 0.1;

pub struct Autoscaler {
    object: ScaledObject,
    n_replicas: u32,
    last_active_s: f64,
    /// When, and what the triggers asked for.
    recommended: VecDeque<(f64, u32)>,
    /// The autoscaler's own: when, and from how many to how many. KEDA's, from none and to none, do not
    /// count for its policies.
    changes: VecDeque<(f64, u32, u32)>,
    n_changes: usize,
}

impl Autoscaler {
    pub fn new(object: ScaledObject, n_replicas: u32) -> Self {
        Self {
            object,
            n_replicas,
            last_active_s: 0.0,
            recommended: VecDeque::new(),
            changes: VecDeque::new(),
            n_changes: 0,
        }
    }

    /// The number from `now_s` on. `values` are the answers to the triggers' queries, in their order;
    /// `n_ready` replicas are ready.
    pub fn decide(&mut self, now_s: f64, values: &[f64], n_ready: u32) -> u32 {
        let triggers = self.object.triggers.iter().zip(values);
        let is_active = triggers
            .clone()
            .any(|(t, value)| *value > t.activation_threshold);
        if is_active {
            self.last_active_s = now_s;
        }
        if self.n_replicas == 0 {
            if is_active {
                self.change(now_s, self.least());
            }
            return self.n_replicas;
        }
        if self.object.min_replicas == 0
            && !is_active
            && now_s - self.last_active_s >= f64::from(self.object.cooldown_s)
        {
            self.recommended.clear();
            self.change(now_s, 0);
            return 0;
        }
        let asked = triggers
            .map(|(trigger, value)| match trigger.metric_type {
                MetricType::AverageValue => {
                    let of_each = value / f64::from(self.n_replicas);
                    self.unless_near(of_each / trigger.threshold, value / trigger.threshold)
                }
                MetricType::Value => {
                    let ratio = value / trigger.threshold;
                    self.unless_near(ratio, ratio * f64::from(n_ready))
                }
            })
            .max()
            .unwrap_or(self.n_replicas);
        let asked = asked.clamp(self.least(), self.object.max_replicas);
        let stable = self.stabilised(now_s, asked);
        self.change(now_s, self.limited(now_s, stable));
        self.n_replicas
    }

    fn least(&self) -> u32 {
        self.object.min_replicas.max(1)
    }

    fn unless_near(&self, ratio: f64, wanted: f64) -> u32 {
        if (ratio - 1.0).abs() <= TOLERANCE {
            self.n_replicas
        } else {
            wanted.ceil() as u32
        }
    }

    /// Up to the least that was asked for within the upward window, down to the most within the other.
    fn stabilised(&mut self, now_s: f64, asked: u32) -> u32 {
        let behavior = &self.object.behavior;
        let (up, down) = (&behavior.scale_up, &behavior.scale_down);
        let window_s = |d: &Direction| f64::from(d.stabilization_window_seconds);
        let within = |d: &Direction| {
            let from_s = now_s - window_s(d);
            let recommended = self.recommended.iter();
            recommended
                .filter(move |(at_s, _)| *at_s > from_s)
                .map(|(_, n)| *n)
        };
        let least = within(up).fold(asked, u32::min);
        let most = within(down).fold(asked, u32::max);
        let stable = self.n_replicas.max(least).min(most);
        let longest_s = window_s(up).max(window_s(down));
        self.recommended.push_back((now_s, asked));
        while self
            .recommended
            .front()
            .is_some_and(|(at_s, _)| *at_s <= now_s - longest_s)
        {
            self.recommended.pop_front();
        }
        stable
    }

    /// As near to `wanted` as the policies allow.
    fn limited(&self, now_s: f64, wanted: u32) -> u32 {
        let behavior = &self.object.behavior;
        if wanted > self.n_replicas {
            let limits = behavior.scale_up.policies.iter().map(|policy| {
                let began_with = self.began_with(now_s, policy);
                match policy.kind {
                    PolicyKind::Pods => began_with + policy.value,
                    PolicyKind::Percent => (f64::from(began_with)
                        * (1.0 + f64::from(policy.value) / 100.0))
                        .ceil() as u32,
                }
            });
            let limit = match behavior.scale_up.select_policy {
                SelectPolicy::Max => limits.max(),
                SelectPolicy::Min => limits.min(),
            };
            return wanted.min(limit.unwrap_or(wanted).max(self.n_replicas));
        }
        let limits = behavior.scale_down.policies.iter().map(|policy| {
            let began_with = self.began_with(now_s, policy);
            match policy.kind {
                PolicyKind::Pods => began_with.saturating_sub(policy.value),
                PolicyKind::Percent => (f64::from(began_with)
                    * (1.0 - f64::from(policy.value) / 100.0))
                    .max(0.0) as u32,
            }
        });
        let limit = match behavior.scale_down.select_policy {
            SelectPolicy::Max => limits.min(),
            SelectPolicy::Min => limits.max(),
        };
        wanted.max(limit.unwrap_or(wanted).min(self.n_replicas))
    }

    /// The number before the changes of a policy's period, up and down.
    fn began_with(&self, now_s: f64, policy: &Policy) -> u32 {
        let from_s = now_s - f64::from(policy.period_seconds);
        let changes = self.changes.iter().filter(|(at_s, _, _)| *at_s > from_s);
        changes.fold(self.n_replicas, |n, (_, from, to)| {
            (n + from).saturating_sub(*to)
        })
    }

    fn change(&mut self, now_s: f64, n_replicas: u32) {
        if n_replicas == self.n_replicas {
            return;
        }
        if n_replicas > 0 && self.n_replicas > 0 {
            self.changes.push_back((now_s, self.n_replicas, n_replicas));
        }
        self.n_replicas = n_replicas;
        self.n_changes += 1;
    }

    pub fn n_changes(&self) -> usize {
        self.n_changes
    }
}

#[cfg(test)]
mod tests {
    use super::super::scaled_object::tests::object;
    use super::*;

    fn autoscaler(n_replicas: u32) -> Autoscaler {
        Autoscaler::new(ScaledObject::of(&[object()]).expect("read"), n_replicas)
    }

    #[test]
    fn from_none_to_one_by_activation_and_back_after_the_cooldown() {
        let mut rule = autoscaler(0);
        assert_eq!(rule.decide(15.0, &[0.0, 0.0], 0), 0);
        // However many wait, KEDA starts one; the autoscaler goes on.
        assert_eq!(rule.decide(30.0, &[40.0, 0.0], 0), 1);
        // 40 over 8 are 5, but 100 % or 2 more in half a minute; KEDA's one does not count.
        assert_eq!(rule.decide(45.0, &[40.0, 0.0], 1), 3);
        assert_eq!(rule.decide(60.0, &[40.0, 0.0], 3), 3);
        assert_eq!(rule.decide(75.0, &[40.0, 0.0], 3), 5);
        assert_eq!(rule.decide(105.0, &[40.0, 0.0], 5), 5);
        let mut now_s = 105.0;
        let mut last = 5;
        while last > 0 {
            now_s += 15.0;
            let n = rule.decide(now_s, &[0.0, 0.0], last);
            assert!(n + 1 >= last || n == 0, "one a minute: {n}");
            last = n;
        }
        assert!(
            (now_s - 405.0).abs() < 1e-9,
            "300 s after the last activity: {now_s}"
        );
    }

    #[test]
    fn the_larger_trigger_counts_and_the_tolerance_holds() {
        // 33 requests: 4.125 of 8 each in 4 replicas is within 10 %.
        assert_eq!(autoscaler(4).decide(15.0, &[33.0, 1.0], 4), 4);
        // 36 are 9 each: 12.5 % above, so ceil(36 / 8).
        assert_eq!(autoscaler(4).decide(15.0, &[36.0, 1.0], 4), 5);
        // First tokens of 3 s at a threshold of 2 s: 1.5 times the 4 that are ready.
        assert_eq!(autoscaler(4).decide(15.0, &[16.0, 3.0], 4), 6);
        // Two are ready only: no more than the four that are there.
        assert_eq!(autoscaler(4).decide(15.0, &[16.0, 3.0], 2), 3);
        // Never above the limit.
        assert_eq!(autoscaler(7).decide(15.0, &[800.0, 1.0], 7), 8);
    }

    #[test]
    fn going_down_waits_for_the_window_and_takes_one_a_minute() {
        let mut rule = autoscaler(4);
        assert_eq!(rule.decide(0.0, &[32.0, 0.0], 4), 4);
        let seen: Vec<u32> = (1..=14)
            .map(|i| rule.decide(f64::from(i) * 15.0, &[8.0, 0.0], 4))
            .collect();
        // 4 was asked for until 120 s; then one in each minute.
        assert_eq!(seen, [4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2]);
    }
}
