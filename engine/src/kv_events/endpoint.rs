//! A ZeroMQ endpoint as vLLM writes it: one with `*` or `::` is bound, any other is connected to.

use std::fmt;
use std::net::TcpListener;

/// `tcp://host:port`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be tcp://host:port, where * as the host is every address of this machine")]
pub struct EndpointError;

impl Endpoint {
    /// # Errors
    ///
    /// [`EndpointError`] if it is not `tcp://host:port`.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let address = text.strip_prefix("tcp://").ok_or(EndpointError)?;
        let (host, port) = address.rsplit_once(':').ok_or(EndpointError)?;
        let is_host = |c: char| c.is_ascii_graphic() && c != '/';
        if host.is_empty() || !host.chars().all(is_host) {
            return Err(EndpointError);
        }
        Ok(Self {
            host: host.to_owned(),
            port: port.parse().map_err(|_| EndpointError)?,
        })
    }

    /// Whether the publisher waits for subscribers here, instead of connecting to one.
    pub fn is_bound(&self) -> bool {
        self.host.contains('*') || self.host.contains("::")
    }

    /// # Errors
    ///
    /// What the system says, for example that the port is taken.
    pub fn bind(&self) -> std::io::Result<TcpListener> {
        let host = match self.host.as_str() {
            "*" => "0.0.0.0",
            host => host.trim_start_matches('[').trim_end_matches(']'),
        };
        TcpListener::bind((host, self.port))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_bound_and_a_host_is_connected_to() {
        for (text, is_bound) in [
            ("tcp://*:5557", true),
            ("tcp://[::]:5557", true),
            ("tcp://127.0.0.1:5557", false),
            ("tcp://router.example.org:5557", false),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.is_bound(), is_bound, "{text}");
            assert_eq!(endpoint.to_string(), text);
        }
        for text in [
            "5557",
            "tcp://*",
            "tcp://:5557",
            "tcp://*:70000",
            "ipc:///tmp/events",
            "tcp://*:5557/x",
            "tcp://a b:1",
        ] {
            assert_eq!(Endpoint::parse(text), Err(EndpointError), "{text}");
        }
    }

    #[test]
    fn a_taken_port_is_an_error() {
        let taken = Endpoint::parse("tcp://*:0").unwrap().bind().unwrap();
        let port = taken.local_addr().unwrap().port();
        let again = Endpoint::parse(&format!("tcp://*:{port}")).unwrap();
        let error = again.bind().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    }
}
