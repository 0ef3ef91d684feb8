//! The canary: a growing share of the requests, and at each step a comparison with the stable engines.

use std::time::Duration;

use anyhow::Result;

use super::journal::{Journal, Verdict};
use crate::fleet::load::until;
use crate::fleet::replicas::sum_of;
use crate::gateway::{Admin, ClusterCounts};
use crate::http;

/// Of 100 requests.
pub const STEPS_PERCENT: [u32; 3] = [5, 25, 100];

/// When a step counts, and what refuses it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests of the canary in a step.
    pub n_requests: u64,
    /// How long a step waits for them.
    pub patience: Duration,
    /// The canary's share of errors above the stable engines'.
    pub error_share: f64,
    /// The canary's mean time over that of the stable engines.
    pub time_ratio: f64,
    /// Below this difference of means no ratio counts: a busy machine alone makes it.
    pub time_slack_ms: f64,
}

/// What one cluster did within a step.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Window {
    /// By the gateway's count.
    pub counts: ClusterCounts,
    /// By the engines' metrics; 0 where nothing has ended.
    pub ttft_ms: f64,
    pub e2e_ms: f64,
}

impl Window {
    fn error_share(&self) -> f64 {
        self.counts.n_errors as f64 / self.counts.n_requests.max(1) as f64
    }

    fn told(&self) -> String {
        format!(
            "{} requests, {} errors, TTFT {:.1} ms, whole {:.1} ms",
            self.counts.n_requests, self.counts.n_errors, self.ttft_ms, self.e2e_ms
        )
    }
}

/// The gateway's and the engines' counters of one cluster.
pub struct Cluster<'a> {
    pub name: &'a str,
    /// `host:port` of its engines.
    pub engines: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counters {
    counts: ClusterCounts,
    ttft: [f64; 2],
    e2e: [f64; 2],
}

impl Cluster<'_> {
    fn counters(&self, admin: &Admin) -> Result<Counters> {
        let mut all = Counters {
            counts: admin.counts(self.name)?,
            ..Counters::default()
        };
        for engine in &self.engines {
            let page = http::get(engine, "/metrics")?.body;
            for (i, end) in ["sum", "count"].iter().enumerate() {
                let of = |name: &str| sum_of(&page, &format!("vllm:{name}_seconds_{end}"));
                all.ttft[i] += of("time_to_first_token");
                all.e2e[i] += of("e2e_request_latency");
            }
        }
        Ok(all)
    }
}

fn between(before: Counters, after: Counters) -> Window {
    let mean_ms = |before: [f64; 2], after: [f64; 2]| {
        let n = after[1] - before[1];
        if n > 0.0 {
            1e3 * (after[0] - before[0]) / n
        } else {
            0.0
        }
    };
    Window {
        counts: after.counts.since(before.counts),
        ttft_ms: mean_ms(before.ttft, after.ttft),
        e2e_ms: mean_ms(before.e2e, after.e2e),
    }
}

pub struct Canary<'a> {
    pub admin: &'a Admin,
    pub stable: Cluster<'a>,
    pub candidate: Cluster<'a>,
    pub limits: Limits,
}

impl Canary<'_> {
    /// All steps. The weights stay at the last one if it passed, and at 0 otherwise.
    ///
    /// # Errors
    ///
    /// If gateway or log fail; the weights go back to 0.
    pub fn run(&self, journal: &mut Journal) -> Result<bool> {
        let passed = self.steps(journal);
        if !matches!(passed, Ok(true)) {
            self.admin.set_canary_percent(0)?;
        }
        passed
    }

    fn steps(&self, journal: &mut Journal) -> Result<bool> {
        let mut baseline = Window::default();
        let measured = journal.stage("canary 0 %", |_| {
            self.admin.set_canary_percent(0)?;
            let [stable, _] = self.step(&self.stable)?;
            baseline = stable;
            Ok(Verdict::Passed(format!("stable alone: {}", stable.told())))
        })?;
        if !measured {
            return Ok(false);
        }
        for percent in STEPS_PERCENT {
            let passed = journal.stage(&format!("canary {percent} %"), |_| {
                self.admin.set_canary_percent(percent)?;
                let [stable, canary] = self.step(&self.candidate)?;
                Ok(judge(baseline, stable, canary, &self.limits))
            })?;
            if !passed {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Until `judged` has had enough requests.
    fn step(&self, judged: &Cluster<'_>) -> Result<[Window; 2]> {
        let read = || -> Result<[Counters; 2]> {
            Ok([
                self.stable.counters(self.admin)?,
                self.candidate.counters(self.admin)?,
            ])
        };
        let before = read()?;
        let begun = self.admin.counts(judged.name)?;
        let what = format!("{} requests to {}", self.limits.n_requests, judged.name);
        until(&what, self.limits.patience, || {
            let now = self.admin.counts(judged.name);
            now.is_ok_and(|now| now.since(begun).n_requests >= self.limits.n_requests)
        })?;
        let after = read()?;
        Ok([0, 1].map(|i| between(before[i], after[i])))
    }
}

/// The canary beside the stable engines of the same step; where these had too few requests, beside what
/// they did alone.
fn judge(baseline: Window, stable: Window, canary: Window, limits: &Limits) -> Verdict {
    let (against, name) = if stable.counts.n_requests >= limits.n_requests {
        (stable, "stable")
    } else {
        (baseline, "stable before")
    };
    let told = format!("canary: {}; {name}: {}", canary.told(), against.told());
    let mut faults = Vec::new();
    let more_errors = canary.error_share() - against.error_share();
    // One error says nothing.
    if canary.counts.n_errors > 1 && more_errors > limits.error_share {
        faults.push(format!(
            "{:.1} % errors, {:.1} % at {name}",
            100.0 * canary.error_share(),
            100.0 * against.error_share()
        ));
    }
    for (what, own, other) in [
        ("TTFT", canary.ttft_ms, against.ttft_ms),
        ("whole request", canary.e2e_ms, against.e2e_ms),
    ] {
        if other <= 0.0 || own <= 0.0 {
            faults.push(format!("{what}: not measured"));
        } else if own > limits.time_ratio * other && own > other + limits.time_slack_ms {
            faults.push(format!(
                "{what} {:.2} times that of {name} (limit {})",
                own / other,
                limits.time_ratio
            ));
        }
    }
    if faults.is_empty() {
        return Verdict::Passed(told);
    }
    Verdict::Refused(format!("{}; {told}", faults.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        n_requests: 20,
        patience: Duration::from_secs(1),
        error_share: 0.01,
        time_ratio: 1.5,
        time_slack_ms: 5.0,
    };

    fn window(n_requests: u64, n_errors: u64, ttft_ms: f64, e2e_ms: f64) -> Window {
        Window {
            counts: ClusterCounts {
                n_requests,
                n_errors,
            },
            ttft_ms,
            e2e_ms,
        }
    }

    #[test]
    fn errors_and_times_beyond_the_limits_refuse() {
        let stable = window(400, 0, 10.0, 100.0);
        let judged = |canary| judge(stable, stable, canary, &LIMITS);
        assert!(matches!(
            judged(window(20, 0, 14.0, 140.0)),
            Verdict::Passed(_)
        ));
        assert!(
            matches!(judged(window(20, 1, 14.0, 140.0)), Verdict::Passed(_)),
            "one error says nothing"
        );
        let fast = window(400, 0, 2.0, 100.0);
        assert!(
            matches!(
                judge(fast, fast, window(20, 0, 6.0, 100.0), &LIMITS),
                Verdict::Passed(_)
            ),
            "three times, and four milliseconds"
        );
        for (canary, wanted) in [
            (window(20, 2, 10.0, 100.0), "10.0 % errors, 0.0 % at stable"),
            (window(20, 0, 16.0, 100.0), "TTFT 1.60 times"),
            (window(20, 0, 10.0, 151.0), "whole request 1.51 times"),
            (window(20, 0, 0.0, 100.0), "TTFT: not measured"),
        ] {
            let verdict = judged(canary);
            assert!(
                matches!(&verdict, Verdict::Refused(told) if told.starts_with(wanted)),
                "{verdict:?}"
            );
        }
    }

    /// At 100 % the stable engines have no requests.
    #[test]
    fn without_stable_requests_the_baseline_is_compared_with() {
        let baseline = window(50, 0, 10.0, 100.0);
        let none = window(3, 0, 1.0, 1.0);
        let passed = judge(baseline, none, window(20, 0, 12.0, 120.0), &LIMITS);
        assert!(matches!(&passed, Verdict::Passed(told) if told.contains("stable before")));
        let slow = judge(baseline, none, window(20, 0, 16.0, 120.0), &LIMITS);
        assert!(matches!(slow, Verdict::Refused(_)));
    }

    #[test]
    fn the_counters_of_two_moments_make_means() {
        let before = Counters::default();
        let after = Counters {
            ttft: [0.5, 10.0],
            e2e: [2.0, 10.0],
            ..Counters::default()
        };
        let window = between(before, after);
        assert!((window.ttft_ms - 50.0).abs() < 1e-9 && (window.e2e_ms - 200.0).abs() < 1e-9);
        assert_eq!(between(after, after), Window::default());
    }
}
