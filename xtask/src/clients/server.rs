//! The engine that the clients talk to; it ends with this value.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use duct::{ReaderHandle, cmd};

/// Until the model is loaded; its tokenizer may have to be fetched first.
const START_LIMIT: Duration = Duration::from_mins(5);

pub struct Server {
    process: ReaderHandle,
    url: String,
    address: String,
}

impl Server {
    pub fn start(engine: &Path, model: &str, cache: &Path, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        let process = cmd!(
            engine,
            "serve",
            "--model-path",
            model,
            "--cache-dir",
            cache,
            "--port",
            "0",
            "--device",
            "cpu",
            "--reasoning-parser",
            "qwen3",
        )
        .stderr_file(file)
        .unchecked()
        .reader()
        .with_context(|| format!("{} cannot be started", engine.display()))?;
        let mut said = String::new();
        BufReader::new(&process)
            .read_line(&mut said)
            .context("what the engine says")?;
        let Some(url) = said.trim().strip_prefix("listening on ") else {
            bail!("the engine did not start; see {}", log.display());
        };
        let server = Self {
            address: url.trim_start_matches("http://").to_owned(),
            url: url.to_owned(),
            process,
        };
        let started = Instant::now();
        while !server.is_healthy() {
            if server.process.try_wait()?.is_some() || started.elapsed() > START_LIMIT {
                bail!("the engine did not become ready; see {}", log.display());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends it, after a look whether it still answers.
    pub fn stop(self) -> Result<()> {
        if self.is_healthy() {
            Ok(())
        } else {
            bail!("it is not healthy behind the clients")
        }
    }

    fn is_healthy(&self) -> bool {
        let status = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(&self.address)?;
            stream.write_all(
                b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        status().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which its log then says.
        let _ = self.process.kill();
    }
}
