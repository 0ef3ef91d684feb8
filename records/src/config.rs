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
    /// Number of server starts that were requested.
    #[serde(default)]
    pub replicates: Option<u32>,
    /// As separate arguments, as the server received them.
    #[serde(default)]
    pub flags: Vec<String>,
    /// The cases, and the number of requests of each.
    #[serde(default)]
    pub workload: Option<Workload>,
    /// If the server has several models.
    #[serde(default)]
    pub models: Vec<ModelConfig>,
}

/// One of a server's several models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelConfig {
    /// The name in requests.
    pub name: String,
    #[serde(default)]
    pub model: String,
    /// Its own flags, which override those of the server.
    #[serde(default)]
    pub flags: Vec<String>,
}
