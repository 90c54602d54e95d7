//! A disk that can be full.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A disk of a given size, in a mount namespace of its own that nobody else sees; gone with the handle.
pub struct SmallDisk {
    holder: Child,
    path: PathBuf,
}

impl SmallDisk {
    /// Makes one at a directory, which belongs to the user `owner` then.
    pub fn at(path: &Path, bytes: u64, owner: u32) -> Self {
        let script = r#"mount -t tmpfs -o "size=$2,mode=0700,uid=$3,gid=$3" none "$1" && echo ready && exec sleep infinity"#;
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
            .arg(path)
            .args([bytes.to_string(), owner.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = holder.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "no disk could be made");
        Self { holder, path: path.to_owned() }
    }

    /// A program that sees the disk.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.holder.id());
        // nsenter becomes the program, so that signals reach it.
        command.args([namespace.as_str(), "--no-fork", "--"]).arg(program);
        command
    }

    /// Gives it another size.
    pub fn resize(&self, bytes: u64) {
        let mut mount = self.command("mount");
        mount.args(["-o", &format!("remount,size={bytes}")]).arg(&self.path);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
