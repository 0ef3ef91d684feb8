//! The gateway of `engine/deploy/gateway`: its files with the ports and keys of a recipe, the Envoy
//! that runs them, its weights and its statistics.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::background::Background;
use crate::{cargo, http};

/// Environment of pinned Python packages that has Envoy.
pub const ENVIRONMENT: &str = "envoy";
const FILES: &str = "engine/deploy/gateway";
const START_LIMIT: Duration = Duration::from_secs(30);

/// What a recipe puts in place of what the files say.
pub struct Setting<'a> {
    pub port: u16,
    pub admin_port: u16,
    pub key: &'a str,
    pub trial_key: &'a str,
    pub round_robin: bool,
}

/// The engines of a cluster.
pub struct Cluster<'a> {
    pub name: &'a str,
    pub ports: &'a [u16],
}

pub struct Gateway {
    _envoy: Background,
    /// `host:port` of the API.
    pub address: String,
    pub admin: Admin,
}

/// Envoy's admin interface.
pub struct Admin {
    /// `host:port`
    pub address: String,
}

/// What Envoy counted of a cluster.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct ClusterCounts {
    pub n_requests: u64,
    /// Answers of 400 and above, resets and time-outs, before any retry: what a configuration refuses
    /// that the other one serves is an error of it, too.
    pub n_errors: u64,
}

impl ClusterCounts {
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            n_requests: self.n_requests - before.n_requests,
            n_errors: self.n_errors - before.n_errors,
        }
    }
}

/// The text of `envoy.yaml`, in which each thing to replace has to be there as often as it is known.
///
/// # Errors
///
/// If the file has changed and something to replace is not found.
pub fn rendered(text: &str, setting: &Setting<'_>) -> Result<String> {
    let mut rendered = text.to_owned();
    let policy = if setting.round_robin {
        "lb_policy: ROUND_ROBIN"
    } else {
        "lb_policy: MAGLEV"
    };
    for (old, new, n) in [
        (
            "address: 0.0.0.0, port_value: 8080",
            format!("address: 127.0.0.1, port_value: {}", setting.port),
            1,
        ),
        (
            "port_value: 9901",
            format!("port_value: {}", setting.admin_port),
            1,
        ),
        ("key: replace-this-key", format!("key: {}", setting.key), 1),
        (
            "key: replace-this-trial-key",
            format!("key: {}", setting.trial_key),
            1,
        ),
        ("lb_policy: MAGLEV", policy.to_owned(), 2),
    ] {
        let found = text.matches(old).count();
        ensure!(
            found == n,
            "envoy.yaml has `{old}` {found} times, and {n} times are expected"
        );
        rendered = rendered.replace(old, &new);
    }
    Ok(rendered)
}

/// In the form of `stable.yaml` and `canary.yaml`.
fn endpoints(cluster: &Cluster<'_>) -> Value {
    let all: Vec<Value> = cluster
        .ports
        .iter()
        .map(|port| {
            serde_json::json!({"endpoint": {"address": {"socket_address": {
                "address": "127.0.0.1", "port_value": port}}}})
        })
        .collect();
    serde_json::json!({"version_info": "1", "resources": [{
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster.name,
        "endpoints": [{"lb_endpoints": all}],
    }]})
}

impl Gateway {
    /// Runs `envoy.yaml` with these engines; its files and its log go to `folder`.
    ///
    /// # Errors
    ///
    /// If a file cannot be written, or Envoy does not become ready.
    pub fn start(
        envoy: &Path,
        setting: &Setting<'_>,
        clusters: &[Cluster<'_>],
        folder: &Path,
    ) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let source = files()?.join("envoy.yaml");
        let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        fs::write(folder.join("envoy.yaml"), rendered(&text, setting)?)?;
        for name in ["stable", "canary"] {
            let known = clusters.iter().find(|cluster| cluster.name == name);
            let none = Cluster { name, ports: &[] };
            // JSON is YAML.
            let text = endpoints(known.unwrap_or(&none)).to_string();
            fs::write(folder.join(format!("{name}.yaml")), text)?;
        }
        let args = [
            "-c",
            "envoy.yaml",
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ];
        let mut envoy = Background::start(envoy, &args.map(str::to_owned), folder, "envoy.log")?;
        let admin = Admin {
            address: format!("127.0.0.1:{}", setting.admin_port),
        };
        envoy.until("envoy is ready", START_LIMIT, || {
            http::get(&admin.address, "/ready").is_ok_and(|ready| ready.status == 200)
        })?;
        Ok(Self {
            _envoy: envoy,
            address: format!("127.0.0.1:{}", setting.port),
            admin,
        })
    }
}

fn files() -> Result<PathBuf> {
    Ok(cargo::root()?.join(FILES))
}

impl Admin {
    /// `canary` of 100 requests go to the canary.
    ///
    /// # Errors
    ///
    /// If Envoy refuses.
    pub fn set_canary_percent(&self, canary: u32) -> Result<()> {
        let stable = 100_u32.saturating_sub(canary);
        let path = format!(
            "/runtime_modify?gateway.weight.stable={stable}&gateway.weight.canary={canary}"
        );
        let answer = http::post_json(&self.address, &path, "")?;
        ensure!(
            answer.status == 200,
            "{path}: {} {}",
            answer.status,
            answer.body
        );
        Ok(())
    }

    /// Engines that it sends requests to.
    ///
    /// # Errors
    ///
    /// If Envoy does not tell its statistics.
    pub fn n_healthy(&self, cluster: &str) -> Result<u64> {
        let name = format!("cluster.{cluster}.membership_healthy");
        let answer = http::get(&self.address, &format!("/stats?filter=^{name}$"))?;
        let value = answer.body.trim().strip_prefix(&format!("{name}: "));
        value
            .and_then(|value| value.parse().ok())
            .with_context(|| format!("{name}: {}", answer.body))
    }

    /// # Errors
    ///
    /// If Envoy does not tell its statistics.
    pub fn counts(&self, cluster: &str) -> Result<ClusterCounts> {
        let path = format!("/stats?filter=^cluster.{cluster}.upstream_rq_");
        let answer = http::get(&self.address, &path)?;
        ensure!(answer.status == 200, "{path}: {}", answer.status);
        Ok(counts_in(&answer.body, cluster))
    }
}

fn counts_in(page: &str, cluster: &str) -> ClusterCounts {
    let of = |name: &str| {
        let name = format!("cluster.{cluster}.{name}: ");
        let value = page.lines().find_map(|line| line.strip_prefix(&name));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    ClusterCounts {
        n_requests: of("upstream_rq_total"),
        n_errors: ["4xx", "5xx", "rx_reset", "timeout"]
            .iter()
            .map(|kind| of(&format!("upstream_rq_{kind}")))
            .sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTING: Setting<'_> = Setting {
        port: 1234,
        admin_port: 1235,
        key: "a-key",
        trial_key: "another",
        round_robin: true,
    };

    #[test]
    fn the_shipped_file_takes_ports_keys_and_policy() {
        let text = fs::read_to_string(files().expect("a root").join("envoy.yaml")).expect("read");
        let rendered = rendered(&text, &SETTING).expect("rendered");
        for wanted in ["1234", "1235", "key: a-key,", "key: another,"] {
            assert_eq!(rendered.matches(wanted).count(), 1, "{wanted}");
        }
        assert_eq!(rendered.matches("lb_policy: ROUND_ROBIN").count(), 2);
        for gone in ["replace-this", "9901", "0.0.0.0", "lb_policy: MAGLEV"] {
            assert!(!rendered.contains(gone), "{gone}");
        }
    }

    #[test]
    fn a_file_that_has_changed_is_refused_with_what_is_missing() {
        let error = rendered("port_value: 9901", &SETTING).expect_err("refused");
        assert!(error.to_string().contains("8080"), "{error}");
    }

    #[test]
    fn a_clusters_counts_are_its_own() {
        let page = "cluster.stable.upstream_rq_total: 7\ncluster.canary.upstream_rq_total: 9\n\
                    cluster.canary.upstream_rq_5xx: 1\ncluster.canary.upstream_rq_4xx: 1\n\
                    cluster.canary.upstream_rq_rx_reset: 1\n";
        let canary = counts_in(page, "canary");
        let expected = ClusterCounts {
            n_requests: 9,
            n_errors: 3,
        };
        assert_eq!(canary, expected);
        assert_eq!(canary.since(expected), ClusterCounts::default());
        assert_eq!(counts_in(page, "stable").n_requests, 7);
    }

    #[test]
    fn a_list_of_endpoints_has_every_port() {
        let cluster = Cluster {
            name: "stable",
            ports: &[1, 2],
        };
        let text = endpoints(&cluster).to_string();
        assert!(text.contains("\"port_value\":1") && text.contains("\"port_value\":2"));
        assert!(text.contains("\"cluster_name\":\"stable\""));
    }
}
