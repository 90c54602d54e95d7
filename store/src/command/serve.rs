//! `portcullis serve`.

use super::ConfigurationOptions;
use crate::serve::start;
use anyhow::Context as _;
use clap::Args;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
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
    /// A file that gets the first admin's token when one is made, for its owner alone; without it, it is printed. For
    /// services, whose output is collected.
    #[arg(long, value_name = "FILE", conflicts_with = "admin_token_file")]
    first_token_file: Option<PathBuf>,
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
        // Made before there is a token, so that none is lost because its file can't be written.
        let token_file = match &self.first_token_file {
            Some(path) if !path.exists() => Some(TokenFile::create(path)?),
            _ => None,
        };
        let mut running = start(configuration).await?;
        if let (Some(token), Some(file)) = (&running.first_token, token_file) {
            file.write(token)?;
        } else if let Some(token) = &running.first_token {
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

/// The file of the first token; removed again unless a token was written.
struct TokenFile<'a> {
    path: &'a Path,
    file: File,
    is_written: bool,
}

impl<'a> TokenFile<'a> {
    fn create(path: &'a Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("{} can't be made", path.display()))?;
        Ok(Self { path, file, is_written: false })
    }

    fn write(mut self, token: &str) -> anyhow::Result<()> {
        writeln!(self.file, "{token}")
            .and_then(|()| self.file.sync_all())
            .with_context(|| format!("{} can't be written", self.path.display()))?;
        self.is_written = true;
        tracing::info!(path = %self.path.display(), "the first admin's token is there; read it and delete the file");
        Ok(())
    }
}

impl Drop for TokenFile<'_> {
    fn drop(&mut self) {
        if !self.is_written {
            // An empty file is in nobody's way but the next start's.
            let _ = std::fs::remove_file(self.path);
        }
    }
}
