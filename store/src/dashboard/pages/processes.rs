//! The processes of a job, as a tree for each step.

use super::job::{Head, Tab};
use crate::dashboard::api_client::path;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageResult, render};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use portcullis_common::event::Verdict;
use portcullis_common::store_api::{ProcessNode, ProcessTree, Role};
use portcullis_common::text::shown;

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/jobs/{id}/processes", Role::Viewer, tree);
}

/// How many processes are shown at most: a page with more helps nobody.
const MAX_SHOWN: usize = 3000;

/// How deep processes are shown below each other.
const MAX_DEPTH: usize = 60;

/// One line of the tree. A tree is written as lines with how far each opens and closes lists, because it can be deeper than
/// a template should call itself.
#[derive(Debug)]
struct Row {
    exe: String,
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

#[derive(Debug, Template)]
#[template(path = "job_processes.html")]
struct Shown {
    layout: Layout,
    head: Head,
    rows: Vec<Row>,
    processes: u64,
    is_whole: bool,
}

async fn tree(page: Page) -> PageResult {
    let job = super::job::read(&page).await?;
    let found: ProcessTree = page.api.get(&path(&["jobs", &job.id, "process-tree"])).await?;
    let mut rows = Vec::new();
    let count = found.roots.len();
    for (index, root) in found.roots.iter().enumerate() {
        add(&mut rows, root, None, 0, usize::from(index + 1 == count).saturating_sub(1));
    }
    let is_whole = found.complete && rows.len() < MAX_SHOWN;
    render(&Shown {
        layout: page.layout(format!("Processes of {}", super::job::title(&job)), Section::Runs),
        head: Head::new(job, Tab::Processes),
        rows,
        processes: found.processes,
        is_whole,
    })
}

/// Calls that are shown of one process.
const SHOWN_CALLS: usize = 6;

/// Adds a process and what it started. `closes`: how many lists end behind its last line.
fn add(rows: &mut Vec<Row>, node: &ProcessNode, above: Option<&str>, depth: usize, closes: usize) {
    if rows.len() >= MAX_SHOWN {
        // Lists that were opened have to be closed all the same.
        if let Some(last) = rows.last_mut() {
            last.closes += closes;
        }
        return;
    }
    let step = node.step.as_deref();
    let calls = node.calls.iter().take(SHOWN_CALLS);
    let opens = !node.children.is_empty() && depth < MAX_DEPTH;
    rows.push(Row {
        exe: shown(node.exe.as_deref().unwrap_or("not known"), 200),
        command: shown(&node.argv.join(" "), 400),
        pid: node.pid,
        // Said where it begins, not again at everything below.
        step: step.filter(|step| above != Some(*step)).map(|step| shown(step, 100)),
        executions: node.executions.iter().map(|execution| execution.count).sum(),
        calls: calls.map(|call| (shown(&call.endpoint, 200), call.verdict, call.calls)).collect(),
        more_calls: node.calls.len().saturating_sub(SHOWN_CALLS),
        detections: node.detections.iter().map(|kind| shown(kind, 80)).collect(),
        files: node.files.len(),
        opens,
        closes: if opens { 0 } else { closes },
    });
    if !opens {
        return;
    }
    let last = node.children.len() - 1;
    for (index, child) in node.children.iter().enumerate() {
        add(rows, child, step.or(above), depth + 1, if index == last { closes + 1 } else { 0 });
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
    use super::{MAX_SHOWN, Row, add};
    use portcullis_common::store_api::ProcessNode;

    fn balance(rows: &[Row]) -> (usize, usize) {
        (rows.iter().filter(|row| row.opens).count(), rows.iter().map(|row| row.closes).sum())
    }

    fn node(children: Vec<ProcessNode>) -> ProcessNode {
        ProcessNode { children, ..ProcessNode::default() }
    }

    #[test]
    fn every_list_that_begins_ends() {
        let deep = (0..200).fold(node(Vec::new()), |below, _| node(vec![below]));
        let wide = node((0..MAX_SHOWN + 10).map(|_| node(vec![node(Vec::new())])).collect());
        for root in [node(vec![node(vec![]), node(vec![node(vec![])])]), deep, wide] {
            let mut rows = Vec::new();
            add(&mut rows, &root, None, 0, 0);
            let (opened, closed) = balance(&rows);
            assert_eq!(opened, closed);
            assert!(rows.len() <= MAX_SHOWN);
        }
    }
}
