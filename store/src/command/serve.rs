//! `portcullis serve`.

use super::ConfigurationOptions;
use crate::serve::start;
use clap::Args;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// Serve the API until SIGTERM or SIGINT; requests that are being answered end first.
#[derive(Args, Debug)]
pub(super) struct Serve {
    #[command(flatten)]
    configuration: ConfigurationOptions,
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", env = "PORTCULLIS_LISTEN")]
    listen: Option<SocketAddr>,
    /// How runners and people reach the server.
    #[arg(long, value_name = "URL", env = "PORTCULLIS_PUBLIC_URL")]
    public_url: Option<String>,
    /// A file with the first admin's token; without it, one is made at the first start and printed.
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    /// A file that gets the address, once the server listens: for scripts that let it choose the port.
    #[arg(long, value_name = "FILE")]
    address_file: Option<PathBuf>,
}

impl Serve {
    /// Serves until a signal.
    ///
    /// # Errors
    /// When the server can't start, or ends by itself.
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let mut configuration = self.configuration.load()?;
        if let Some(listen) = self.listen {
            configuration.listen = listen;
        }
        if let Some(url) = &self.public_url {
            configuration.public_url.clone_from(url);
        }
        if let Some(path) = &self.admin_token_file {
            configuration.admin_token_file = Some(path.clone());
        }
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut running = start(configuration).await?;
        if let Some(token) = &running.first_token {
            // To standard output, which nobody collects as logs: this is the only time it is shown.
            let mut output = std::io::stdout().lock();
            writeln!(output, "The first admin's token, shown this once: {token}")?;
            output.flush()?;
        }
        if let Some(path) = &self.address_file {
            let new = path.with_extension("new");
            std::fs::write(&new, running.address.to_string())?;
            std::fs::rename(&new, path)?;
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = running.ended() => {}
        }
        running.stop().await
    }
}
