//! The command line, one file per subcommand.

mod access;
mod attach;
mod audit_log;
mod baseline;
mod bundle;
mod client_file;
mod connect;
mod detections;
mod doctor;
mod dry_run;
mod endpoint_file;
mod enrol;
mod explain;
mod generate;
mod import_endpoints;
mod integration;
mod man;
mod migrate;
mod output;
mod policy;
mod process_tree;
mod progress;
mod runs;
mod serve;
mod source;

pub use output::exit_code;

use crate::configuration::Configuration;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use std::path::{Path, PathBuf};

/// Where the server's configuration is read when it is not said.
pub const DEFAULT_CONFIGURATION: &str = "/etc/portcullis/store.toml";

/// The policy store of Portcullis: its server, and the operator's command line.
///
/// Exit status: 0 done; 1 it could not be done, or the store refused; 2 the store could not be reached; 3 a check that was
/// asked for (`--check`) found something; 64 usage.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API.
    Serve(serve::Serve),
    /// Bring the database's schema up to date, and do nothing else.
    Migrate(migrate::Migrate),
    /// List, read, write and look through policies.
    Policy(policy::Policy),
    /// Attach a policy to a cluster, organization, repository or workflow.
    Attach(attach::Attach),
    /// Detach a policy from a target.
    Detach(attach::Detach),
    /// Tell which policy applies to a job, and why.
    Explain(explain::Explain),
    /// List runs, or show one with its jobs.
    Runs(runs::Runs),
    /// Show what a job did.
    Events(runs::Events),
    /// List detections, suppress those that are known, resolve those that are done with.
    Detections(Box<detections::Detections>),
    /// Say who is told what happened, and try it.
    Integration(integration::Integration),
    /// Where jobs have been calling, and policies made of that.
    Baseline(baseline::Baseline),
    /// Make, list and revoke tokens.
    Token(access::Token),
    /// Enrol runner hosts.
    Enrol(enrol::Enrol),
    /// Show who changed what.
    AuditLog(audit_log::AuditLog),
    /// Write all policies with their attachments as one YAML text.
    Export(bundle::Export),
    /// Make the store hold what a YAML text says.
    Import(bundle::Import),
    /// Look at everything between here and the store, and say what is wrong.
    Doctor(doctor::Doctor),
    #[command(hide = true)]
    GenerateEvents(generate::GenerateEvents),
    /// Print the manual page, or write those of all subcommands into a directory.
    Man(man::Manual),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

impl Options {
    /// Whether this is a server, which logs; commands tell people instead.
    pub const fn is_server(&self) -> bool {
        matches!(self.command, Command::Serve(_) | Command::Migrate(_))
    }

    /// Does what is asked.
    ///
    /// # Errors
    /// When it can't be done; [`exit_code`] has the exit status.
    pub async fn run(&self) -> anyhow::Result<()> {
        match &self.command {
            Command::Serve(command) => command.run().await,
            Command::Migrate(command) => command.run().await,
            Command::Policy(command) => command.run().await,
            Command::Attach(command) => command.run().await,
            Command::Detach(command) => command.run().await,
            Command::Explain(command) => command.run().await,
            Command::Runs(command) => command.run().await,
            Command::Events(command) => command.run().await,
            Command::Detections(command) => command.run().await,
            Command::Integration(command) => command.run().await,
            Command::Baseline(command) => command.run().await,
            Command::Token(command) => command.run().await,
            Command::Enrol(command) => command.run().await,
            Command::AuditLog(command) => command.run().await,
            Command::Export(command) => command.run().await,
            Command::Import(command) => command.run().await,
            Command::Doctor(command) => command.run().await,
            Command::GenerateEvents(command) => command.run().await,
            Command::Man(command) => command.run(),
            Command::Completions { shell } => {
                clap_complete::generate(
                    *shell,
                    &mut Self::command(),
                    "portcullis",
                    &mut std::io::stdout(),
                );
                Ok(())
            }
        }
    }
}

/// Where a server's configuration comes from.
#[derive(Args, Clone, Debug)]
struct ConfigurationOptions {
    /// The configuration; without one, and without the file at its usual place, the defaults.
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: Option<PathBuf>,
    /// The database: `sqlite:/a/file` or `postgres://user@host/name`.
    #[arg(long, value_name = "URL", env = "PORTCULLIS_DATABASE", hide_env_values = true)]
    database: Option<String>,
}

impl ConfigurationOptions {
    /// The configuration, with what the options say instead.
    fn load(&self) -> anyhow::Result<Configuration> {
        let usual = Path::new(DEFAULT_CONFIGURATION);
        let mut configuration = match &self.config {
            Some(path) => Configuration::load(path)?,
            None if usual.exists() => Configuration::load(usual)?,
            None => Configuration::default(),
        };
        if let Some(url) = &self.database {
            configuration.database.url.clone_from(url);
        }
        Ok(configuration)
    }
}
