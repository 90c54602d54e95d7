//! A git server over HTTPS: git's own `git http-backend` behind the world's web server.

use super::http::{Request, Response};
use super::web::Web;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The name that repositories are served on.
pub const GIT_HOST: &str = "git.test";

/// Serves the bare repositories below a directory on `https://git.test/`.
pub(crate) fn serve(web: &Web, directory: PathBuf) {
    web.route(GIT_HOST, "/", move |request| {
        backend(&directory, request)
            .unwrap_or_else(|error| Response::new(500, format!("{error:#}\n")))
    });
}

/// Makes a bare repository `name.git` below `directory` whose one commit holds the files of `source`.
pub(crate) fn publish(directory: &Path, name: &str, source: &Path) -> Result<()> {
    let repository = directory.join(format!("{name}.git"));
    let repository_text = repository.to_string_lossy().into_owned();
    git(source, &["init", "--quiet", "--bare", "--initial-branch=main", &repository_text])?;
    let in_repository = ["--git-dir", &repository_text, "--work-tree", "."];
    git(source, &[&in_repository[..], &["add", "--all"]].concat())?;
    git(source, &[&in_repository[..], &["commit", "--quiet", "--message=Begin"]].concat())
}

fn git(directory: &Path, arguments: &[&str]) -> Result<()> {
    let output = command()
        .args(arguments)
        .current_dir(directory)
        .output()
        .context("can't start `git`: install the Debian package git")?;
    if !output.status.success() {
        bail!("`git {}`: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// `git` with none of this machine's settings.
fn command() -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    for role in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{role}_NAME"), "Octo Cat")
            .env(format!("GIT_{role}_EMAIL"), "octo@git.test")
            .env(format!("GIT_{role}_DATE"), "2026-01-01T00:00:00Z");
    }
    command
}

/// Runs `git http-backend` (man 1 git-http-backend) for a request, as a CGI program (RFC 3875).
fn backend(directory: &Path, request: &Request) -> Result<Response> {
    let mut command = command();
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", directory)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", &request.path)
        .env("QUERY_STRING", &request.query)
        .env("REQUEST_METHOD", &request.method)
        .env("REMOTE_ADDR", request.peer.ip().to_string())
        .env("CONTENT_LENGTH", request.body.len().to_string());
    for (header, variable) in [
        ("content-type", "CONTENT_TYPE"),
        ("content-encoding", "HTTP_CONTENT_ENCODING"),
        ("git-protocol", "GIT_PROTOCOL"),
    ] {
        if let Some(value) = request.header(header) {
            command.env(variable, value);
        }
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't start `git http-backend`: install the Debian package git")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // git may end without reading everything.
            let _ = stdin.write_all(&request.body);
        });
        child.wait_with_output()
    })?;
    let split = output.stdout.windows(4).position(|window| window == b"\r\n\r\n");
    let Some(split) = split else {
        bail!("`git http-backend`: {}", String::from_utf8_lossy(&output.stderr).trim());
    };
    let mut response = Response::ok(&output.stdout[split + 4..]);
    for line in String::from_utf8_lossy(&output.stdout[..split]).lines() {
        let Some((name, value)) = line.split_once(": ") else { continue };
        if name.eq_ignore_ascii_case("status") {
            response.status = value.split(' ').next().unwrap_or_default().parse()?;
        } else {
            response = response.header(name, value);
        }
    }
    Ok(response)
}
