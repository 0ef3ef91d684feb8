//! The experiment as it ran: `config.resolved.toml`.

use serde::{Deserialize, Serialize};

use crate::workload::Workload;

/// `config.resolved.toml`: the experiment merged with everything inherited and typed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ResolvedConfig {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub title: String,
    /// The experiments it was built from, itself first.
    #[serde(default)]
    pub lineage: Vec<String>,
    #[serde(default)]
    pub seed: u64,
    /// Server starts that were asked for.
    #[serde(default)]
    pub replicates: Option<u32>,
    /// As the server got them, as separate arguments.
    #[serde(default)]
    pub flags: Vec<String>,
    /// The cases, and how many requests each has.
    #[serde(default)]
    pub workload: Option<Workload>,
    /// Where the server has several models.
    #[serde(default)]
    pub models: Vec<ModelConfig>,
}

/// One of a server's several models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelConfig {
    /// What requests call it.
    pub name: String,
    #[serde(default)]
    pub model: String,
    /// Its own, over those of the server.
    #[serde(default)]
    pub flags: Vec<String>,
}
