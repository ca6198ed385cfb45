//! `event-pipeline health`.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use event_pipeline::client::{Client, Trust};
use event_pipeline::config::Config;
use tokio::time::timeout;

/// The server says within two seconds whether it is ready.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Ask the server of this machine whether it is well
///
/// The server is the one with this configuration: it takes the flags of serve, and reads the environment and the TOML
/// file as serve does. Health checks of containers and supervisors use it. It needs no key.
#[derive(Args)]
#[command(
    override_usage = "event-pipeline health [OPTIONS] [OPTIONS OF SERVE]",
    after_help = "Examples:
  event-pipeline health
  event-pipeline health --ready --port 9000

Exit codes: 0 well, 1 not well or not reached within 5 seconds, 2 wrong usage or configuration."
)]
pub struct Health {
    /// Ask whether an event would be stored now (/readiness), and not only whether the server answers (/health)
    #[arg(long)]
    ready: bool,
}

impl Health {
    /// # Errors
    /// The server is not well, cannot be reached, or does not answer in time.
    pub async fn run(&self, config: &Config) -> anyhow::Result<()> {
        let scheme = if config.serves_tls() { "https" } else { "http" };
        let url = format!("{scheme}://{}", address(config));
        let (path, well) = if self.ready { ("/readiness", "ready") } else { ("/health", "ok") };
        // Its certificate names the hosts that clients use, and no secret is sent.
        let client = Client::new(&url, None, &Trust::Anything)?;
        timeout(ANSWER_TIMEOUT, client.get(path))
            .await
            .with_context(|| format!("{url}{path} has not answered within {} s", ANSWER_TIMEOUT.as_secs()))??;
        Ok(writeln!(io::stdout(), "{well}")?)
    }
}

/// Where a program of this machine reaches a server with this configuration.
fn address(config: &Config) -> SocketAddr {
    let host = match config.host {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    SocketAddr::new(host, config.port)
}
