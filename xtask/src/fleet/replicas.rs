//! Engines on ports that stay the same over restarts.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::load::until;
use crate::http;
use crate::served::Served;

/// Until a restarted replica gets a request.
const RETURN_LIMIT: Duration = Duration::from_mins(1);

pub struct Replicas {
    engine: PathBuf,
    folder: PathBuf,
    all: Vec<Replica>,
}

struct Replica {
    port: u16,
    flags: Vec<String>,
    served: Option<Served>,
    n_starts: usize,
}

/// Tokens of prompts: looked up in the prefix cache, and found there.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct CacheCounts {
    pub queries: f64,
    pub hits: f64,
}

impl CacheCounts {
    /// The share found since `before`.
    pub fn rate_since(self, before: Self) -> Option<f64> {
        let queries = self.queries - before.queries;
        (queries > 0.0).then(|| (self.hits - before.hits) / queries)
    }
}

impl Replicas {
    /// None yet.
    ///
    /// # Errors
    ///
    /// If the folder of the logs cannot be made.
    pub fn new(engine: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        Ok(Self {
            engine: engine.to_owned(),
            folder: folder.to_owned(),
            all: Vec::new(),
        })
    }

    /// Starts one more on a free port; returns its number.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn add(&mut self, flags: &[String]) -> Result<usize> {
        self.all.push(Replica {
            port: free_port()?,
            flags: flags.to_vec(),
            served: None,
            n_starts: 0,
        });
        let last = self.all.len() - 1;
        self.start(last)?;
        Ok(last)
    }

    /// Replaces the flags of its next start.
    pub fn set_flags(&mut self, i: usize, flags: &[String]) {
        self.all[i].flags = flags.to_vec();
    }

    /// Starts it on its own port.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn start(&mut self, i: usize) -> Result<()> {
        let replica = &mut self.all[i];
        replica.n_starts += 1;
        let log = format!("replica-{i}-start-{}.log", replica.n_starts);
        let flags: Vec<&str> = replica.flags.iter().map(String::as_str).collect();
        replica.served = Some(Served::start_on(
            &self.engine,
            replica.port,
            &flags,
            &self.folder.join(log),
        )?);
        Ok(())
    }

    /// # Errors
    ///
    /// If the signal cannot be sent.
    pub fn kill(&mut self, i: usize) -> Result<()> {
        match self.all[i].served.take() {
            Some(served) => served.kill(),
            None => Ok(()),
        }
    }

    /// SIGTERM, and the end of its streams.
    ///
    /// # Errors
    ///
    /// If it does not exit successfully.
    pub fn drain(&mut self, i: usize) -> Result<()> {
        match self.all[i].served.take() {
            Some(served) => served.stop(),
            None => Ok(()),
        }
    }

    pub fn port(&self, i: usize) -> u16 {
        self.all[i].port
    }

    pub fn address(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.all[i].port)
    }

    pub fn ports(&self) -> Vec<u16> {
        self.all.iter().map(|replica| replica.port).collect()
    }

    /// # Errors
    ///
    /// If one of the running replicas tells no metrics.
    pub fn cache_counts(&self) -> Result<CacheCounts> {
        let mut counts = CacheCounts::default();
        for i in 0..self.all.len() {
            let page = self.metrics(i)?;
            counts.queries += sum_of(&page, "vllm:prefix_cache_queries_total");
            counts.hits += sum_of(&page, "vllm:prefix_cache_hits_total");
        }
        Ok(counts)
    }

    /// # Errors
    ///
    /// If it does not answer.
    pub fn metrics(&self, i: usize) -> Result<String> {
        Ok(http::get(&self.address(i), "/metrics")?.body)
    }

    /// Until it computes something: so a replica is killed in the midst of its work, and a restarted one
    /// counts as back when its router says so.
    ///
    /// # Errors
    ///
    /// If it has no work within a minute.
    pub fn until_used(&self, i: usize) -> Result<()> {
        until(
            &format!("replica {i} has running requests"),
            RETURN_LIMIT,
            || {
                self.metrics(i)
                    .is_ok_and(|page| sum_of(&page, "vllm:num_requests_running") > 0.5)
            },
        )
    }

    /// # Errors
    ///
    /// If one of them does not forget.
    pub fn forget_prefixes(&self) -> Result<()> {
        for i in 0..self.all.len() {
            let flushed = http::post_json(&self.address(i), "/flush_cache", "")?;
            anyhow::ensure!(
                flushed.status == 200,
                "/flush_cache: {} {}",
                flushed.status,
                flushed.body
            );
        }
        Ok(())
    }
}

/// All samples of one metric together.
pub fn sum_of(page: &str, name: &str) -> f64 {
    page.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            if !rest.starts_with(['{', ' ']) {
                return None;
            }
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        })
        .sum()
}

/// # Errors
///
/// If there is none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("a free port")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_name_are_summed_and_others_left_out() {
        let page =
            "# HELP a b\na_total{x=\"1 2\"} 3\na_total{x=\"b\"} 4.5\na_total_other 9\na_total 1\n";
        assert!((sum_of(page, "a_total") - 8.5).abs() < 1e-9);
        let before = CacheCounts {
            queries: 10.0,
            hits: 1.0,
        };
        let after = CacheCounts {
            queries: 30.0,
            hits: 11.0,
        };
        assert_eq!(after.rate_since(before), Some(0.5));
        assert_eq!(before.rate_since(before), None);
    }
}
