//! What can be known of a process: a snapshot for events.

use super::bounded::BoundedCache;
use crate::caller::table::{read_bounded, read_once};
use crate::caller::{ProcFs, ProcessKey};
use portcullis_common::event::{Ancestor, Process};
use procfs::process::{Process as ProcHandle, Stat};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// How much of a command line is kept, in bytes.
const ARGV_LIMIT: usize = 4096;

/// How many ancestors are listed; a job can make the chain as long as it likes.
const ANCESTOR_LIMIT: usize = 64;

/// How much of a path is kept, in bytes: `PATH_MAX`.
const PATH_LIMIT: usize = 4096;

/// How much of an environment is searched for the step.
const ENVIRONMENT_LIMIT: usize = 256 << 10;

/// How long a step's name may be.
const STEP_LIMIT: usize = 256;

/// How often a process is read that executes another program each time. An exec takes some hundred microseconds, as long as
/// several looks.
const MAXIMUM_LOOKS: u32 = 8;

/// The variable that holds the step's id.
const STEP_VARIABLE: &[u8] = b"GITHUB_ACTION=";

/// Takes snapshots of a job's processes, and remembers them.
#[derive(Debug)]
pub struct ProcessInspector {
    /// Where the list of ancestors ends.
    worker: ProcessKey,
    /// Snapshots.
    known: Mutex<BoundedCache<ProcessKey, Known>>,
}

/// A snapshot that was taken.
#[derive(Clone, Debug)]
struct Known {
    /// Of which program image.
    image: Image,
    /// The snapshot.
    process: Arc<Process>,
}

/// What changes when a process executes another program. The addresses are random for each exec, so that another exec of
/// the same file is noticed too, unless address randomisation is off.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Image {
    /// The command name.
    name: String,
    /// Where the code, the stack and the arguments begin.
    addresses: [u64; 4],
    /// The executable.
    executable: Option<PathBuf>,
}

impl ProcessInspector {
    /// An inspector for the job of `worker` that remembers `capacity` snapshots.
    pub fn new(worker: ProcessKey, capacity: usize) -> Self {
        Self { worker, known: Mutex::new(BoundedCache::new(capacity)) }
    }

    /// The process as it is now, or as it was when it was seen last; `None` when it is gone and was never seen.
    pub fn inspect(&self, key: ProcessKey) -> Option<Arc<Process>> {
        let Some((handle, stat, image)) = open(key) else { return self.recall(key) };
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = known.get(&key).filter(|found| found.image == image) {
                return Some(Arc::clone(&found.process));
            }
        }
        let settled = settle(
            image,
            |image| self.snapshot(key, &handle, &stat, image.executable.as_ref()),
            || image_of(&handle.stat().ok()?, &handle),
        );
        match settled {
            Settled::Same(image, process) => {
                let process = Arc::new(process);
                let known = Known { image, process: Arc::clone(&process) };
                self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, known);
                Some(process)
            }
            // A process that is exiting has lost its program already: what was seen before tells more.
            Settled::Gone(process) if process.argv.is_empty() => {
                Some(self.recall(key).unwrap_or_else(|| Arc::new(process)))
            }
            Settled::Gone(process) | Settled::Changing(process) => Some(Arc::new(process)),
        }
    }

    /// The process as it was when it was seen last.
    pub fn recall(&self, key: ProcessKey) -> Option<Arc<Process>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key).map(|known| Arc::clone(&known.process))
    }

    /// Reads everything. What is gone meanwhile stays absent.
    fn snapshot(
        &self,
        key: ProcessKey,
        handle: &ProcHandle,
        stat: &Stat,
        executable: Option<&PathBuf>,
    ) -> Process {
        // In the order in which it goes away when the process exits: its memory first.
        let argv = read_argv(handle);
        let own_step = read_step(key);
        let cwd = handle.cwd().ok().map(|path| bounded_text(&path));
        let uid = handle.status().ok().map(|status| status.ruid);
        let lineage = self.ancestors(key, stat.ppid);
        let step = self.step(own_step, &lineage);
        Process {
            pid: Some(key.pid),
            start_time: Some(key.start_time),
            exe: executable.map(|path| bounded_text(path)),
            argv,
            uid,
            cwd,
            ancestors: lineage.into_iter().map(|(_, ancestor)| ancestor).collect(),
            step,
        }
    }

    /// From the parent up to the Worker, or as far as the chain goes.
    fn ancestors(&self, key: ProcessKey, parent: i32) -> Vec<(ProcessKey, Ancestor)> {
        let mut found = Vec::new();
        let (mut child, mut parent) = (key, parent);
        while found.len() < ANCESTOR_LIMIT && child != self.worker {
            let Some((handle, stat)) = read(parent) else { break };
            let Ok(pid) = u32::try_from(parent) else { break };
            let key = ProcessKey { pid, start_time: stat.starttime };
            if key.start_time > child.start_time {
                // The parent exited and its pid belongs to somebody else by now.
                break;
            }
            let exe = handle.exe().map(|path| bounded_text(&path)).unwrap_or_default();
            found.push((key, Ancestor { pid, exe }));
            (child, parent) = (key, stat.ppid);
        }
        found
    }

    /// The step that a process belongs to.
    ///
    /// A process can set any environment for what it starts and can overwrite its own. The direct child of the Worker got
    /// its environment from the Worker, so its value is preferred: to change that one, a step has to replace its own
    /// shell by `exec`. Below a daemon that has lost its ancestors only its own word is left.
    fn step(&self, own: Option<String>, ancestors: &[(ProcessKey, Ancestor)]) -> Option<String> {
        let step_of = |key: ProcessKey| {
            self.recall(key).and_then(|known| known.step.clone()).or_else(|| read_step(key))
        };
        match ancestors.split_last() {
            Some(((last, _), below)) if *last == self.worker => {
                let direct_child = below.last().and_then(|(key, _)| step_of(*key));
                let between = below.iter().rev().skip(1).rev();
                direct_child.or(own).or_else(|| between.clone().find_map(|(key, _)| step_of(*key)))
            }
            _ => own.or_else(|| ancestors.iter().find_map(|(key, _)| step_of(*key))),
        }
    }
}

/// Opens a process and reads what tells its program image; `None` when it is gone.
fn open(key: ProcessKey) -> Option<(ProcHandle, Stat, Image)> {
    let (handle, stat) = read(i32::try_from(key.pid).ok()?)?;
    if stat.starttime != key.start_time || matches!(stat.state, 'Z' | 'X') {
        return None;
    }
    let image = Image { executable: handle.exe().ok(), ..image_of_stat(&stat) };
    Some((handle, stat, image))
}

/// What a process executes; `None` when it has lost its program: it is exiting.
fn image_of(stat: &Stat, handle: &ProcHandle) -> Option<Image> {
    Some(Image { executable: Some(handle.exe().ok()?), ..image_of_stat(stat) })
}

/// What `stat` tells of a program image.
fn image_of_stat(stat: &Stat) -> Image {
    Image {
        name: stat.comm.clone(),
        addresses: [
            stat.startcode,
            stat.startstack,
            stat.arg_start.unwrap_or_default(),
            stat.env_start.unwrap_or_default(),
        ],
        executable: None,
    }
}

/// What became of a process while it was read.
#[derive(Debug, Eq, PartialEq)]
enum Settled<T> {
    /// It executed this all the time.
    Same(Image, T),
    /// It has lost its program since.
    Gone(T),
    /// It executed another program each time.
    Changing(T),
}

/// Reads a process that executed `image` a moment ago, until it executes the same before and after: its executable and its
/// arguments are read one after the other, and another program in between would give a mixture.
fn settle<T>(
    mut image: Image,
    mut read: impl FnMut(&Image) -> T,
    mut now: impl FnMut() -> Option<Image>,
) -> Settled<T> {
    let mut looks = 1;
    loop {
        let found = read(&image);
        match now() {
            None => return Settled::Gone(found),
            Some(later) if later == image => return Settled::Same(image, found),
            Some(_) if looks == MAXIMUM_LOOKS => return Settled::Changing(found),
            Some(later) => image = later,
        }
        looks += 1;
    }
}

/// Opens a process; the handle keeps naming it when its pid is recycled.
fn read(pid: i32) -> Option<(ProcHandle, Stat)> {
    let handle = ProcHandle::new(pid).ok()?;
    let stat = handle.stat().ok()?;
    Some((handle, stat))
}

/// The command line, cut at [`ARGV_LIMIT`].
fn read_argv(handle: &ProcHandle) -> Vec<String> {
    let file = handle.open_relative("cmdline").ok();
    let text = file.and_then(|file| read_once(&file, ARGV_LIMIT).ok()).unwrap_or_default();
    if text.is_empty() {
        return Vec::new();
    }
    let text = text.strip_suffix(b"\0").unwrap_or(&text);
    text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// `GITHUB_ACTION` in the environment of a process.
fn read_step(key: ProcessKey) -> Option<String> {
    let environment =
        read_bounded(&format!("/proc/{}/environ", key.pid), ENVIRONMENT_LIMIT).ok()?;
    let value = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(STEP_VARIABLE))
        .filter(|value| !value.is_empty() && value.len() <= STEP_LIMIT)?;
    // Alive with the same start time now: it was this process' environment.
    (ProcFs.key(key.pid) == Some(key)).then(|| String::from_utf8_lossy(value).into_owned())
}

/// A path as text, bounded.
fn bounded_text(path: &std::path::Path) -> String {
    let text = path.to_string_lossy();
    let mut end = text.len().min(PATH_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Image, MAXIMUM_LOOKS, Settled, settle};

    fn image(number: u64) -> Image {
        Image { name: "program".to_owned(), addresses: [number; 4], executable: None }
    }

    #[test]
    fn what_is_read_across_an_exec_is_read_again() {
        let mut looks = Vec::new();
        let mut later = [Some(image(2)), Some(image(2))].into_iter();
        let settled =
            settle(image(1), |image| looks.push(image.addresses[0]), || later.next().flatten());
        assert_eq!((settled, looks), (Settled::Same(image(2), ()), vec![1, 2]));
    }

    #[test]
    fn who_ends_or_never_stays_the_same_is_told_as_it_was_read_last() {
        assert_eq!(settle(image(1), |_| (), || None), Settled::Gone(()));
        let (mut looks, mut number) = (0, 1);
        let settled = settle(
            image(1),
            |_| looks += 1,
            || {
                number += 1;
                Some(image(number))
            },
        );
        assert_eq!((settled, looks), (Settled::Changing(()), MAXIMUM_LOOKS));
    }
}
