//! The processes of a job, as a tree for each step.

use super::job::{Head, Tab};
use crate::dashboard::api_client::path;
use crate::dashboard::html::{self, Html};
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageResult, render};
use crate::dashboard::{Pages, filters};
use askama::Template;
use portcullis_common::event::Verdict;
use portcullis_common::store_api::{ProcessNode, ProcessTree, Role};
use portcullis_common::text::shown;
use std::collections::BTreeSet;

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/jobs/{id}/processes", Role::Viewer, tree);
}

/// How many processes are shown at most: a page with more helps nobody.
const MAX_SHOWN: usize = 3000;

/// How deep processes are shown below each other.
const MAX_DEPTH: usize = 60;

/// One line of a tree. A tree is written as lines with how far each opens and closes lists, because it can be deeper than
/// a template should call itself.
#[derive(Debug)]
struct Row {
    /// What it is called in an address.
    id: Option<String>,
    exe: Html,
    /// What the program was told.
    arguments: String,
    /// The whole command, where the process calls itself something else than its program.
    command: String,
    pid: Option<u32>,
    step: Option<String>,
    executions: u64,
    calls: Vec<(String, Verdict, u64)>,
    more_calls: usize,
    detections: Vec<String>,
    files: usize,
    /// Whether a list of children begins behind this line.
    opens: bool,
    /// How many lists end behind this line.
    closes: usize,
}

/// What was started in one step, or in none.
#[derive(Debug)]
struct Group {
    step: Option<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Template)]
#[template(path = "job_processes.html")]
struct Shown {
    layout: Layout,
    head: Head,
    groups: Vec<Group>,
    processes: u64,
    is_whole: bool,
}

async fn tree(page: Page) -> PageResult {
    let job = super::job::read(&page).await?;
    let found: ProcessTree = page.api.get(&path(&["jobs", &job.id, "process-tree"])).await?;
    let groups = groups(&found.roots);
    let shown: usize = groups.iter().map(|group| group.rows.len()).sum();
    render(&Shown {
        layout: page.layout(format!("Processes of {}", super::job::title(&job)), Section::Runs),
        head: Head::new(job, Tab::Processes),
        groups,
        processes: found.processes,
        is_whole: found.complete && shown < MAX_SHOWN,
    })
}

/// The step of a process: its own, or the only one of all that it started. The shell that a step begins with does not say
/// which step it is, and what it starts does.
fn step_of(node: &ProcessNode) -> Option<&str> {
    fn collect<'a>(node: &'a ProcessNode, found: &mut BTreeSet<&'a str>) {
        found.extend(node.step.as_deref());
        for child in &node.children {
            collect(child, found);
        }
    }
    if node.step.is_some() {
        return node.step.as_deref();
    }
    let mut found = BTreeSet::new();
    collect(node, &mut found);
    if found.len() == 1 { found.pop_first() } else { None }
}

/// The beginnings of trees: for each step, in the order in which they were seen, and for none.
fn split<'a>(
    node: &'a ProcessNode,
    is_root: bool,
    trees: &mut Vec<(Option<&'a str>, Vec<&'a ProcessNode>)>,
) {
    // What begins everything is in no step, also of a job with a single one.
    let step = if is_root { node.step.as_deref() } else { step_of(node) };
    if is_root || step.is_some() {
        match trees.iter_mut().find(|(known, _)| *known == step) {
            Some((_, nodes)) => nodes.push(node),
            None => trees.push((step, vec![node])),
        }
    }
    if step.is_none() {
        for child in &node.children {
            split(child, false, trees);
        }
    }
}

/// The processes of a job, as a tree for each step.
fn groups(roots: &[ProcessNode]) -> Vec<Group> {
    let mut trees = Vec::new();
    for root in roots {
        split(root, true, &mut trees);
    }
    let mut left = MAX_SHOWN;
    let mut groups = Vec::new();
    for (step, nodes) in trees {
        let mut tree = Tree { rows: Vec::new(), most: left, is_of_step: step.is_some() };
        for node in nodes {
            tree.add(node, step, 0, 0);
        }
        left -= tree.rows.len();
        if !tree.rows.is_empty() {
            groups.push(Group { step: step.map(|step| shown(step, 100)), rows: tree.rows });
        }
    }
    // Of processes that can't be told apart the first one has the address.
    let mut known = BTreeSet::new();
    for row in groups.iter_mut().flat_map(|group| &mut group.rows) {
        row.id = row.id.take().filter(|id| known.insert(id.clone()));
    }
    groups
}

/// Calls that are shown of one process.
const SHOWN_CALLS: usize = 6;

/// Lines of a tree while it is written.
struct Tree {
    rows: Vec<Row>,
    /// How many lines there may be.
    most: usize,
    /// Whether it is that of a step; else what belongs to a step stands there.
    is_of_step: bool,
}

impl Tree {
    /// Adds a process and what it started. `closes`: how many lists end behind its last line.
    fn add(&mut self, node: &ProcessNode, above: Option<&str>, depth: usize, closes: usize) {
        if self.rows.len() >= self.most {
            // Lists that were opened have to be closed all the same.
            if let Some(last) = self.rows.last_mut() {
                last.closes += closes;
            }
            return;
        }
        let is_here = |child: &&ProcessNode| self.is_of_step || step_of(child).is_none();
        let children: Vec<&ProcessNode> = node.children.iter().filter(is_here).collect();
        let opens = !children.is_empty() && depth < MAX_DEPTH;
        let step = node.step.as_deref();
        let mut row = row(node);
        // Said where it begins, not again at everything below.
        row.step = step.filter(|step| above != Some(*step)).map(|step| shown(step, 100));
        (row.opens, row.closes) = (opens, if opens { 0 } else { closes });
        self.rows.push(row);
        if !opens {
            return;
        }
        let last = children.len() - 1;
        for (index, child) in children.into_iter().enumerate() {
            let closes = if index == last { closes + 1 } else { 0 };
            self.add(child, step.or(above), depth + 1, closes);
        }
    }
}

fn row(node: &ProcessNode) -> Row {
    let exe = node.exe.as_deref().unwrap_or("not known");
    let name = exe.rsplit('/').next().unwrap_or(exe);
    let (arguments, command) = match node.argv.split_first() {
        Some((own, arguments)) if own == exe || own == name => (arguments.join(" "), String::new()),
        _ => (String::new(), node.argv.join(" ")),
    };
    let calls = node.calls.iter().take(SHOWN_CALLS);
    Row {
        id: node.pid.map(|pid| anchor(pid, node.start_time)),
        exe: html::path(&shown(exe, 200)),
        arguments: shown(&arguments, 400),
        command: shown(&command, 400),
        pid: node.pid,
        step: None,
        executions: node.executions.iter().map(|execution| execution.count).sum(),
        calls: calls.map(|call| (shown(&call.endpoint, 200), call.verdict, call.calls)).collect(),
        more_calls: node.calls.len().saturating_sub(SHOWN_CALLS),
        detections: node.detections.iter().map(|kind| shown(kind, 80)).collect(),
        files: node.files.len(),
        opens: false,
        closes: 0,
    }
}

/// What a process's line is called in an address. A number is given again after its process has ended; not with the same start.
pub(super) fn anchor(pid: u32, start_time: Option<u64>) -> String {
    match start_time {
        Some(start_time) => format!("process-{pid}-{start_time}"),
        None => format!("process-{pid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Group, MAX_SHOWN, groups, row};
    use portcullis_common::store_api::ProcessNode;

    fn balance(groups: &[Group]) -> (usize, usize) {
        let rows = || groups.iter().flat_map(|group| &group.rows);
        (rows().filter(|row| row.opens).count(), rows().map(|row| row.closes).sum())
    }

    fn node(children: Vec<ProcessNode>) -> ProcessNode {
        ProcessNode { children, ..ProcessNode::default() }
    }

    fn named(exe: &str, step: Option<&str>, children: Vec<ProcessNode>) -> ProcessNode {
        let (exe, step) = (Some(exe.to_owned()), step.map(str::to_owned));
        ProcessNode { exe, step, children, ..ProcessNode::default() }
    }

    /// The steps with the programs of each, `+` where what follows is below.
    fn told(roots: &[ProcessNode]) -> Vec<String> {
        groups(roots)
            .iter()
            .map(|group| {
                let rows = group.rows.iter().map(|row| {
                    let badge = row.step.as_ref().map(|step| format!("[{step}]"));
                    let closed = ")".repeat(row.closes);
                    let opened = if row.opens { "(" } else { "" };
                    format!("{}{}{opened}{closed}", badge.unwrap_or_default(), row.exe)
                });
                let step = group.step.as_deref().unwrap_or("none");
                format!("{step}: {}", rows.collect::<Vec<_>>().join(" "))
            })
            .collect()
    }

    #[test]
    fn every_list_that_begins_ends() {
        let deep = (0..200).fold(node(Vec::new()), |below, _| node(vec![below]));
        let wide = node((0..MAX_SHOWN + 10).map(|_| node(vec![node(Vec::new())])).collect());
        let step = |at: usize| named("make", Some(&format!("step {at}")), vec![node(Vec::new())]);
        let stepped = node((0..MAX_SHOWN).map(step).collect());
        for root in [node(vec![node(vec![]), node(vec![node(vec![])])]), deep, wide, stepped] {
            let groups = groups(&[root]);
            let (opened, closed) = balance(&groups);
            assert_eq!(opened, closed);
            assert!(groups.iter().map(|group| group.rows.len()).sum::<usize>() <= MAX_SHOWN);
        }
    }

    #[test]
    fn each_step_has_a_tree_with_the_shell_that_it_begins_with() {
        let root = named(
            "worker",
            None,
            vec![
                named("bash", None, vec![named("git", Some("checkout"), Vec::new())]),
                named("node", None, Vec::new()),
                named(
                    "bash",
                    None,
                    vec![
                        named("make", Some("build"), vec![named("cc", Some("build"), Vec::new())]),
                        named("ld", Some("build"), Vec::new()),
                    ],
                ),
                named("git", Some("checkout"), Vec::new()),
                named(
                    "sh",
                    None,
                    vec![named("a", Some("x"), Vec::new()), named("b", Some("y"), Vec::new())],
                ),
            ],
        );
        assert_eq!(
            told(&[root]),
            [
                "none: worker( node sh)",
                "checkout: bash( git) git",
                "build: bash( make( cc) ld)",
                "x: a",
                "y: b"
            ]
        );
        // A job of one step, and a step within another.
        let below = named("su", Some("other"), Vec::new());
        let root = named("worker", None, vec![named("bash", Some("only"), vec![below])]);
        assert_eq!(told(&[root]), ["none: worker", "only: bash( [other]su)"]);
    }

    #[test]
    fn a_command_is_not_said_twice() {
        let told = |exe: &str, argv: &[&str]| {
            let argv = argv.iter().map(|word| (*word).to_owned()).collect();
            let row = row(&ProcessNode { argv, ..named(exe, None, Vec::new()) });
            (row.arguments, row.command)
        };
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(told("/usr/bin/bash", &["/usr/bin/bash", "-e", "x"]), pair("-e x", ""));
        assert_eq!(told("/usr/bin/git", &["git", "fetch"]), pair("fetch", ""));
        assert_eq!(told("/tmp/x", &["git", "fetch"]), pair("", "git fetch"));
        assert_eq!(told("/tmp/x", &[]), pair("", ""));
    }
}
