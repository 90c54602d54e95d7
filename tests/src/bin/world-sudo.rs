//! A `sudo` without a password for the users of a test world: installed setuid root in a directory that only the
//! world's own group can enter. It knows `-n`, `-E`, `-u USER` and `--`, and keeps the environment.

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, User, getuid, setgroups, setresgid, setresuid};
use portcullis_tests::world::RUNNER_USERS;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() -> Result<()> {
    let caller = getuid();
    if !caller.is_root() && !RUNNER_USERS.contains(&caller.as_raw()) {
        bail!("only the users of a test world may use its sudo");
    }
    let mut uid = Uid::from_raw(0);
    let mut arguments = std::env::args_os().skip(1).peekable();
    while let Some(option) = arguments.peek().and_then(|argument| argument.to_str()) {
        match option {
            "-n" | "-E" | "--non-interactive" | "--preserve-env" => drop(arguments.next()),
            "-u" | "--user" => {
                arguments.next();
                let name = arguments.next().context("-u needs a user")?;
                uid = find_user(&name.to_string_lossy())?;
            }
            "--" => {
                arguments.next();
                break;
            }
            option if option.starts_with('-') => bail!("the test world's sudo has no {option}"),
            _ => break,
        }
    }
    let command: Vec<OsString> = arguments.collect();
    let program = command.first().context("no command is named")?;
    let gid = Gid::from_raw(uid.as_raw());
    setgroups(&[gid]).context("can't become root; are new privileges forbidden?")?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let error = Command::new(program).args(&command[1..]).exec();
    Err(error).with_context(|| format!("can't start {}", program.display()))
}

/// A user by number (`#12001`) or name.
fn find_user(text: &str) -> Result<Uid> {
    if let Some(number) = text.strip_prefix('#') {
        return Ok(Uid::from_raw(number.parse().context("not a user id")?));
    }
    let user = User::from_name(text)?.with_context(|| format!("there is no user {text}"))?;
    Ok(user.uid)
}
