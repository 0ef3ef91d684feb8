//! A real Redis on a free port, for the tests of the result cache.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;

/// Killed when the test ends.
pub struct RedisServer {
    child: Option<Child>,
    pub port: u16,
    folder: tempfile::TempDir,
}

impl RedisServer {
    pub async fn start() -> Self {
        let free = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let mut server = Self {
            child: None,
            port,
            folder: tempfile::tempdir().expect("a folder"),
        };
        server.restart().await;
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Restarts it, empty, on the same port.
    pub async fn restart(&mut self) {
        self.kill();
        // `cargo xtask test` sets it to a fetched one where the machine has none.
        let program = std::env::var_os("TEST_REDIS_SERVER").filter(|value| !value.is_empty());
        let program = program.unwrap_or_else(|| "redis-server".into());
        let child = Command::new(&program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "{} cannot be started ({error}); this test needs a real redis-server: run \
                     `cargo xtask test`, which fetches one, or name one in TEST_REDIS_SERVER",
                    program.display()
                )
            });
        self.child = Some(child);
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("redis-server does not listen on port {}", self.port);
    }

    /// Like a crash: without notifying clients.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
