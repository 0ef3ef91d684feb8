//! The ScaledObject of the manifests, as much of it as the simulation follows: any other field is
//! refused, since the simulated rule would differ from the one that is applied.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(rename = "scaleTargetRef")]
    _target: Value,
    /// Only for a Prometheus that does not answer, which the simulated one does.
    #[serde(rename = "fallback", default)]
    _fallback: Value,
    min_replica_count: u32,
    max_replica_count: u32,
    polling_interval: u32,
    cooldown_period: u32,
    advanced: Advanced,
    triggers: Vec<RawTrigger>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Advanced {
    horizontal_pod_autoscaler_config: HorizontalPodAutoscaler,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct HorizontalPodAutoscaler {
    behavior: Behavior,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Behavior {
    pub scale_up: Direction,
    pub scale_down: Direction,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Direction {
    pub stabilization_window_seconds: u32,
    pub policies: Vec<Policy>,
    #[serde(default)]
    pub select_policy: SelectPolicy,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
pub enum SelectPolicy {
    #[default]
    Max,
    Min,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[serde(rename = "type")]
    pub kind: PolicyKind,
    pub value: u32,
    pub period_seconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum PolicyKind {
    Pods,
    Percent,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawTrigger {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    metric_type: MetricType,
    metadata: Metadata,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum MetricType {
    AverageValue,
    Value,
}

/// KEDA's numbers are strings.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Metadata {
    #[serde(rename = "serverAddress")]
    _server_address: String,
    query: String,
    threshold: String,
    activation_threshold: String,
}

/// What the rule needs of it.
#[derive(Debug, Clone, Serialize)]
pub struct ScaledObject {
    pub min_replicas: u32,
    pub max_replicas: u32,
    pub polling_s: u32,
    pub cooldown_s: u32,
    pub behavior: Behavior,
    pub triggers: Vec<Trigger>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Trigger {
    pub name: String,
    pub metric_type: MetricType,
    pub query: String,
    pub threshold: f64,
    pub activation_threshold: f64,
}

impl ScaledObject {
    /// Of the only one among rendered objects.
    pub fn of(objects: &[Value]) -> Result<Self> {
        let mut found = objects.iter().filter(|o| o["kind"] == "ScaledObject");
        let (Some(object), None) = (found.next(), found.next()) else {
            bail!("the manifests have not exactly one ScaledObject");
        };
        let spec = Spec::deserialize(&object["spec"]).context("the ScaledObject")?;
        if spec.max_replica_count == 0 || spec.min_replica_count > spec.max_replica_count {
            bail!(
                "minReplicaCount {} and maxReplicaCount {} are no range",
                spec.min_replica_count,
                spec.max_replica_count
            );
        }
        if spec.polling_interval == 0 {
            bail!("pollingInterval is 0");
        }
        Ok(Self {
            min_replicas: spec.min_replica_count,
            max_replicas: spec.max_replica_count,
            polling_s: spec.polling_interval,
            cooldown_s: spec.cooldown_period,
            behavior: spec.advanced.horizontal_pod_autoscaler_config.behavior,
            triggers: spec
                .triggers
                .into_iter()
                .map(trigger)
                .collect::<Result<_>>()?,
        })
    }
}

fn trigger(raw: RawTrigger) -> Result<Trigger> {
    if raw.kind != "prometheus" {
        bail!(
            "trigger {} is of type {}; only prometheus is simulated",
            raw.name,
            raw.kind
        );
    }
    let number = |field: &str, text: &str| match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => bail!(
            "trigger {}: {field} {text:?} is not a number of 0 or more",
            raw.name
        ),
    };
    let threshold = number("threshold", &raw.metadata.threshold)?;
    if threshold == 0.0 {
        bail!("trigger {}: threshold is 0", raw.name);
    }
    Ok(Trigger {
        threshold,
        activation_threshold: number("activationThreshold", &raw.metadata.activation_threshold)?,
        metric_type: raw.metric_type,
        query: raw.metadata.query,
        name: raw.name,
    })
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    pub fn object() -> Value {
        json!({"kind": "ScaledObject", "spec": {
            "scaleTargetRef": {"name": "engine"},
            "minReplicaCount": 0, "maxReplicaCount": 8, "pollingInterval": 15, "cooldownPeriod": 300,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [
                    {"type": "Percent", "value": 100, "periodSeconds": 30},
                    {"type": "Pods", "value": 2, "periodSeconds": 30}]},
                "scaleDown": {"stabilizationWindowSeconds": 120, "policies": [
                    {"type": "Pods", "value": 1, "periodSeconds": 60}]}}}},
            "triggers": [
                {"type": "prometheus", "name": "requests", "metricType": "AverageValue", "metadata": {
                    "serverAddress": "x", "query": "q", "threshold": "8", "activationThreshold": "0"}},
                {"type": "prometheus", "name": "first-token", "metricType": "Value", "metadata": {
                    "serverAddress": "x", "query": "t", "threshold": "2", "activationThreshold": "0"}}],
        }})
    }

    #[test]
    fn it_is_read_and_what_the_rule_does_not_know_is_refused() {
        let read = ScaledObject::of(&[json!({"kind": "Service"}), object()]).expect("read");
        assert_eq!((read.max_replicas, read.triggers.len()), (8, 2));
        assert!((read.triggers[1].threshold - 2.0).abs() < 1e-12);
        assert!(ScaledObject::of(&[]).is_err());

        let refused = |place: &str, value: Value| {
            let mut object = object();
            *object.pointer_mut(place).expect("there") = value;
            format!("{:#}", ScaledObject::of(&[object]).expect_err(place))
        };
        let said = refused("/spec/triggers/0/metadata", json!({"treshold": "8"}));
        assert!(said.contains("unknown field `treshold`"), "{said}");
        let said = refused("/spec/triggers/0/metadata/threshold", json!("many"));
        assert!(
            said.contains("threshold \"many\" is not a number"),
            "{said}"
        );
        let said = refused("/spec/triggers/0/type", json!("cron"));
        assert!(said.contains("only prometheus is simulated"), "{said}");
        let said = refused("/spec/maxReplicaCount", json!(0));
        assert!(said.contains("are no range"), "{said}");
    }
}
