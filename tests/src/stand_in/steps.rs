//! Which steps a job has, in which order, under which condition, with which program: values, nothing is run here.

use crate::job::{Condition, JobOutcome, Step, StepKind};
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// What a step runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Source {
    /// A hook script where it lies.
    Hook(PathBuf),
    /// A script of the job.
    Script(String),
}

/// One thing to do.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) kind: StepKind,
    pub(super) name: String,
    /// `GITHUB_ACTION`.
    pub(super) id: String,
    pub(super) condition: Condition,
    pub(super) source: Source,
    /// The step of the job that it belongs to.
    pub(super) step: Option<usize>,
}

/// The steps in the order of JobExtension.cs: started hook, `pre` scripts, steps. What comes after them is decided
/// while they run, see [`after`].
pub(super) fn before(steps: &[Step], started_hook: Option<&Path>) -> VecDeque<Planned> {
    let ids = ids(steps);
    let hook = started_hook.map(|path| Planned {
        kind: StepKind::StartedHook,
        name: "Set up runner".to_owned(),
        id: String::new(),
        condition: Condition::Always,
        source: Source::Hook(path.to_owned()),
        step: None,
    });
    let pre = steps.iter().enumerate().filter_map(|(index, step)| {
        Some(Planned {
            kind: StepKind::Pre,
            name: format!("Pre {}", display_name(step)),
            id: ids[index].clone(),
            condition: step.pre_if.unwrap_or(Condition::Always),
            source: Source::Script(step.pre.clone()?),
            step: Some(index),
        })
    });
    let main = steps.iter().enumerate().map(|(index, step)| Planned {
        kind: StepKind::Main,
        name: display_name(step),
        id: ids[index].clone(),
        condition: step.condition.unwrap_or(Condition::Success),
        source: Source::Script(step.run.clone()),
        step: Some(index),
    });
    hook.into_iter().chain(pre).chain(main).collect()
}

/// The `post` scripts of the steps that ran (`ran`, in the order in which they first did), last in first out, and the
/// completed hook, which was put on the same stack before them all.
pub(super) fn after(
    steps: &[Step],
    ran: &[usize],
    completed_hook: Option<&Path>,
) -> VecDeque<Planned> {
    let ids = ids(steps);
    let post = ran.iter().rev().filter_map(|&index| {
        let step = &steps[index];
        Some(Planned {
            kind: StepKind::Post,
            name: format!("Post {}", display_name(step)),
            id: ids[index].clone(),
            condition: step.post_if.unwrap_or(Condition::Always),
            source: Source::Script(step.post.clone()?),
            step: Some(index),
        })
    });
    let hook = completed_hook.map(|path| Planned {
        kind: StepKind::CompletedHook,
        name: "Complete runner".to_owned(),
        id: String::new(),
        condition: Condition::Always,
        source: Source::Hook(path.to_owned()),
        step: None,
    });
    post.chain(hook).collect()
}

/// Whether a step with this condition runs in a job of this status.
pub(super) fn applies(condition: Condition, status: JobOutcome) -> bool {
    match condition {
        Condition::Always => true,
        Condition::Success => status == JobOutcome::Success,
        Condition::Failure => status == JobOutcome::Failure,
        Condition::Cancelled => status == JobOutcome::Cancelled,
        Condition::NotCancelled => status != JobOutcome::Cancelled,
    }
}

/// A shell and its arguments.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Shell {
    /// The name that is looked for in the path.
    pub(super) command: String,
    /// The arguments with `{0}` for the script.
    pub(super) arguments: Vec<String>,
    /// The ending of the script's name.
    pub(super) extension: &'static str,
}

/// The shell of a step (ScriptHandler.cs): without a name it is bash with the arguments of sh.
pub(super) fn shell_of_step(shell: Option<&str>) -> Result<Shell> {
    let new = |command: &str, arguments: &[&str], extension| Shell {
        command: command.to_owned(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        extension,
    };
    Ok(match shell {
        None => new("bash", &["-e", "{0}"], ".sh"),
        Some("bash") => {
            new("bash", &["--noprofile", "--norc", "-e", "-o", "pipefail", "{0}"], ".sh")
        }
        Some("sh") => new("sh", &["-e", "{0}"], ".sh"),
        Some("python") => new("python3", &["{0}"], ".py"),
        Some(custom) => {
            let mut words = custom.split_whitespace();
            let command = words.next().unwrap_or_default();
            let arguments: Vec<&str> = words.collect();
            if !arguments.iter().any(|argument| argument.contains("{0}")) {
                bail!(
                    "Invalid shell option. Shell must be a valid built-in (bash, sh, cmd, powershell, pwsh) or a \
                     format string containing '{{0}}'"
                );
            }
            new(command, &arguments, "")
        }
    })
}

/// The shell of a hook script, by the ending of its name (HostContext.cs, `GetDefaultShellForScript`).
pub(super) fn shell_of_hook(path: &Path) -> Result<Shell> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("sh") => shell_of_step(None),
        other => bail!(
            "{other:?} is not a valid path to a script. Make sure it ends in '.sh', '.ps1' or '.js'."
        ),
    }
}

/// Finds a program as the runner does (Runner.Sdk/Util/WhichUtil.cs): what steps put in front of the path comes first,
/// the last one put in front first of all.
pub(super) fn which(command: &str, prepended: &[String], path: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let directories = prepended.iter().rev().map(String::as_str).chain(path.split(':'));
    directories
        .filter(|directory| !directory.is_empty())
        .map(|directory| Path::new(directory).join(command))
        .find(|candidate| {
            candidate.metadata().is_ok_and(|metadata| {
                metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
            })
        })
        .with_context(|| format!("{command}: command not found"))
}

fn display_name(step: &Step) -> String {
    if !step.name.is_empty() {
        return step.name.clone();
    }
    match &step.uses {
        Some(uses) => format!("Run {uses}"),
        None => format!("Run {}", step.run.lines().next().unwrap_or_default()),
    }
}

/// `GITHUB_ACTION` of each step: its id, or `__run`, `__run_2`, … or `__owner_name`, `__owner_name_2`.
fn ids(steps: &[Step]) -> Vec<String> {
    let mut used: Vec<String> = Vec::new();
    for step in steps {
        let base = match (&step.id, &step.uses) {
            (Some(id), _) => id.clone(),
            (None, Some(uses)) => {
                format!("__{}", uses.split('@').next().unwrap_or_default().replace('/', "_"))
            }
            (None, None) => "__run".to_owned(),
        };
        let mut id = base.clone();
        let mut number = 1;
        while used.contains(&id) {
            number += 1;
            id = format!("{base}_{number}");
        }
        used.push(id);
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;

    fn names(planned: &VecDeque<Planned>) -> Vec<&str> {
        planned.iter().map(|planned| planned.name.as_str()).collect()
    }

    #[test]
    fn the_order_is_the_runners() {
        let job = Job::from_yaml(
            "steps:\n- {name: a, uses: o/a@v1, pre: p, run: r, post: q}\n- {name: b, run: r}\n\
             - {name: c, uses: o/c@v1, pre: p, run: r, post: q}\n",
        )
        .unwrap();
        let planned = before(&job.steps, Some(Path::new("/h.sh")));
        assert_eq!(names(&planned), ["Set up runner", "Pre a", "Pre c", "a", "b", "c"]);
        let planned = after(&job.steps, &[0, 2], Some(Path::new("/h.sh")));
        assert_eq!(names(&planned), ["Post c", "Post a", "Complete runner"]);
        assert_eq!(names(&after(&job.steps, &[0], None)), ["Post a"]);
    }

    #[test]
    fn ids_are_the_runners() {
        let job = Job::from_yaml(
            "steps:\n- {run: a}\n- {run: b}\n- {id: x, run: c}\n- {uses: o/s@v1}\n- {uses: o/s@v1}\n",
        )
        .unwrap();
        assert_eq!(ids(&job.steps), ["__run", "__run_2", "x", "__o_s", "__o_s_2"]);
    }

    #[test]
    fn shells_are_the_runners() {
        fn check(shell: Option<&str>, expected: Option<&str>) {
            let found = shell_of_step(shell).ok();
            let text =
                found.map(|shell| format!("{} {}", shell.command, shell.arguments.join(" ")));
            assert_eq!(text.as_deref(), expected, "{shell:?}");
        }
        check(None, Some("bash -e {0}"));
        check(Some("bash"), Some("bash --noprofile --norc -e -o pipefail {0}"));
        check(Some("sh"), Some("sh -e {0}"));
        check(Some("perl -w {0}"), Some("perl -w {0}"));
        check(Some("perl"), None);
        assert!(shell_of_hook(Path::new("/a.sh")).is_ok());
        assert!(shell_of_hook(Path::new("/a")).is_err());
    }
}
