//! The processes of a job as a tree, made of whatever its events say: executions where sensors recorded them, and the
//! processes and ancestors of calls, detections and files.

use super::Store;
use crate::database::{DatabaseError, EventFilter};
use jiff::Timestamp;
use portcullis_common::event::{Event, EventKind, Process};
use portcullis_common::report::endpoint;
use portcullis_common::store_api::{Execution, ProcessCall, ProcessNode, ProcessTree};
use std::collections::HashMap;

/// The most executions, files and detections that go into a tree.
const MAX_OTHERS: usize = 20_000;

/// The most calls that go into a tree.
const MAX_CALLS: usize = 20_000;

/// The most processes of a tree.
const MAX_PROCESSES: usize = 10_000;

/// The most executions, destinations and files that one process shows.
const MAX_OF_PROCESS: usize = 50;

/// The deepest tree that is answered: what lies deeper hangs at the last level. JSON is read recursively.
const MAX_DEPTH: usize = 60;

/// Events that are read at a time.
const PAGE: u32 = 2000;

impl Store {
    /// The processes of a job; `None` when there is no such job.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn process_tree(&self, job_id: &str) -> Result<Option<ProcessTree>, DatabaseError> {
        let Some((key, _)) = self.database.job(job_id).await? else { return Ok(None) };
        let others = EventFilter { others: true, ..EventFilter::default() };
        let calls = EventFilter { network: true, ..EventFilter::default() };
        let (mut events, all_others) = self.read_events(key, others, MAX_OTHERS).await?;
        let (more, all_calls) = self.read_events(key, calls, MAX_CALLS).await?;
        events.extend(more);
        events.sort_by_key(|event| event.seq);
        let mut forest = Forest::default();
        for event in &events {
            forest.add(event);
        }
        let complete = all_others && all_calls && !forest.is_full;
        let processes = u64::try_from(forest.nodes.len()).unwrap_or(u64::MAX);
        Ok(Some(ProcessTree {
            job_id: job_id.to_owned(),
            processes,
            roots: forest.into_roots(),
            complete,
        }))
    }

    /// Events of a job up to a number of them, and whether that is all.
    async fn read_events(
        &self,
        job: i64,
        mut filter: EventFilter,
        most: usize,
    ) -> Result<(Vec<Event>, bool), DatabaseError> {
        let mut events = Vec::new();
        loop {
            let rows = self.database.events(job, &filter, PAGE).await?;
            let Some((last, _)) = rows.last() else { return Ok((events, true)) };
            filter.after = *last;
            let is_last = rows.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            for (seq, body) in &rows {
                events
                    .push(serde_json::from_str(body).map_err(|error| {
                        DatabaseError::Corrupt(format!("event {seq}: {error}"))
                    })?);
            }
            if is_last {
                return Ok((events, true));
            }
            if events.len() >= most {
                return Ok((events, false));
            }
        }
    }
}

/// A process while the tree grows.
#[derive(Debug, Default)]
struct Node {
    shown: ProcessNode,
    parent: Option<usize>,
}

#[derive(Debug, Default)]
struct Forest {
    nodes: Vec<Node>,
    /// The process that has this id now; a number is given again after a process has ended.
    by_pid: HashMap<u32, usize>,
    /// Processes of which only the user is known.
    by_user: HashMap<Option<u32>, usize>,
    is_full: bool,
}

impl Forest {
    fn add(&mut self, event: &Event) {
        let process = match &event.kind {
            EventKind::Network(call) => call.process.as_ref(),
            EventKind::Process(exec) => Some(&exec.process),
            EventKind::File(file) => file.process.as_ref(),
            EventKind::Detection(detection) => detection.process.as_ref(),
            EventKind::Dns(_) | EventKind::Posture(_) | EventKind::Job(_) => None,
        };
        let Some(process) = process else { return };
        let Some(index) = self.process(process, event.time) else { return };
        let Some(Node { shown, .. }) = self.nodes.get_mut(index) else { return };
        match &event.kind {
            EventKind::Network(call) => {
                let (endpoint, verdict) = (endpoint(call), call.verdict);
                let known_calls = shown.calls.len();
                let known = shown
                    .calls
                    .iter()
                    .position(|known| known.endpoint == endpoint && known.verdict == verdict);
                match known.and_then(|index| shown.calls.get_mut(index)) {
                    Some(known) => known.calls = known.calls.saturating_add(call.packets),
                    None if known_calls < MAX_OF_PROCESS => {
                        shown.calls.push(ProcessCall { endpoint, verdict, calls: call.packets });
                    }
                    None => self.is_full = true,
                }
            }
            EventKind::Process(exec) if shown.executions.len() < MAX_OF_PROCESS => {
                shown.executions.push(Execution {
                    seq: event.seq,
                    time: event.time,
                    exe: exec.process.exe.clone(),
                    argv: exec.process.argv.clone(),
                    count: exec.count,
                });
            }
            EventKind::File(file) if shown.files.len() < MAX_OF_PROCESS => {
                if !shown.files.contains(&file.path) {
                    shown.files.push(file.path.clone());
                }
            }
            EventKind::Process(_) | EventKind::File(_) => self.is_full = true,
            EventKind::Detection(detection) => {
                let kind = serde_json::to_value(detection.detection);
                if let Ok(serde_json::Value::String(kind)) = kind
                    && !shown.detections.contains(&kind)
                {
                    shown.detections.push(kind);
                }
            }
            EventKind::Dns(_) | EventKind::Posture(_) | EventKind::Job(_) => {}
        }
    }

    /// The node of a process, with its ancestors; `None` when there are too many.
    fn process(&mut self, process: &Process, time: Timestamp) -> Option<usize> {
        let index = match process.pid {
            None => {
                if let Some(index) = self.by_user.get(&process.uid) {
                    *index
                } else {
                    let index = self.make(Node::default())?;
                    self.by_user.insert(process.uid, index);
                    index
                }
            }
            Some(pid) => match self.by_pid.get(&pid).copied() {
                Some(index) if self.is_same(index, process.start_time) => index,
                _ => {
                    let shown = ProcessNode { pid: Some(pid), ..ProcessNode::default() };
                    let index = self.make(Node { shown, parent: None })?;
                    self.by_pid.insert(pid, index);
                    index
                }
            },
        };
        let parent = match process.pid {
            Some(_) => self.ancestors(process, index),
            None => None,
        };
        let node = self.nodes.get_mut(index)?;
        node.parent = node.parent.or(parent);
        let shown = &mut node.shown;
        shown.first_seen = shown.first_seen.or(Some(time));
        shown.start_time = shown.start_time.or(process.start_time);
        shown.uid = process.uid.or(shown.uid);
        shown.step = process.step.clone().or_else(|| shown.step.take());
        if process.exe.is_some() {
            shown.exe.clone_from(&process.exe);
        }
        if !process.argv.is_empty() {
            shown.argv.clone_from(&process.argv);
        }
        Some(index)
    }

    /// The parent of a process, made with what is above it where it is not known yet.
    fn ancestors(&mut self, process: &Process, own: usize) -> Option<usize> {
        let mut above = None;
        for ancestor in process.ancestors.iter().rev() {
            let index = match self.by_pid.get(&ancestor.pid).copied() {
                // Its own number as an ancestor's: given again, and only one of both can be shown under it.
                Some(index) if index != own => index,
                Some(_) => continue,
                None => {
                    let shown = ProcessNode {
                        pid: Some(ancestor.pid),
                        exe: Some(ancestor.exe.clone()),
                        ..ProcessNode::default()
                    };
                    let index = self.make(Node { shown, parent: None })?;
                    self.by_pid.insert(ancestor.pid, index);
                    index
                }
            };
            if let Some(above) = above
                && above != index
                && !self.is_below(above, index)
                && let Some(node) = self.nodes.get_mut(index)
            {
                node.parent = node.parent.or(Some(above));
            }
            above = Some(index);
        }
        above.filter(|above| !self.is_below(*above, own))
    }

    fn make(&mut self, node: Node) -> Option<usize> {
        if self.nodes.len() >= MAX_PROCESSES {
            self.is_full = true;
            return None;
        }
        self.nodes.push(node);
        Some(self.nodes.len() - 1)
    }

    /// Whether a node is the process of this start time, as far as both are known.
    fn is_same(&self, index: usize, start_time: Option<u64>) -> bool {
        let known = self.nodes.get(index).and_then(|node| node.shown.start_time);
        match (known, start_time) {
            (Some(known), Some(start_time)) => known == start_time,
            _ => true,
        }
    }

    /// Whether `lower` hangs below `upper`, or is it.
    fn is_below(&self, lower: usize, upper: usize) -> bool {
        let mut next = Some(lower);
        for _ in 0..=self.nodes.len() {
            match next {
                None => return false,
                Some(index) if index == upper => return true,
                Some(index) => next = self.nodes.get(index).and_then(|node| node.parent),
            }
        }
        true
    }

    /// The tree. Children are put below their parents from the last to the first level, so that none is copied.
    fn into_roots(self) -> Vec<ProcessNode> {
        let parents: Vec<Option<usize>> = self.nodes.iter().map(|node| node.parent).collect();
        let depth_of = |index: usize| {
            let above = |index: &usize| parents.get(*index).copied().flatten();
            std::iter::successors(Some(index), above).take(self.nodes.len() + 1).count()
        };
        let depths: Vec<usize> = (0..parents.len()).map(depth_of).collect();
        // What is too deep hangs at its ancestor of the deepest level that is shown.
        let shown_parent = |index: usize| {
            let mut parent = parents.get(index).copied().flatten();
            while let Some(above) = parent
                && depths.get(above).is_some_and(|depth| *depth >= MAX_DEPTH)
            {
                parent = parents.get(above).copied().flatten();
            }
            parent
        };
        let hung: Vec<Option<usize>> = (0..parents.len()).map(shown_parent).collect();
        let mut order: Vec<usize> = (0..parents.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(depths.get(*index).copied().unwrap_or(0)));
        let mut nodes: Vec<Option<ProcessNode>> =
            self.nodes.into_iter().map(|node| Some(node.shown)).collect();
        let mut roots: Vec<(usize, ProcessNode)> = Vec::new();
        let mut children: HashMap<usize, Vec<(usize, ProcessNode)>> = HashMap::new();
        for index in order {
            let Some(mut node) = nodes.get_mut(index).and_then(Option::take) else { continue };
            let mut below = children.remove(&index).unwrap_or_default();
            below.sort_by_key(|(index, _)| *index);
            node.children = below.into_iter().map(|(_, node)| node).collect();
            match hung.get(index).copied().flatten() {
                Some(parent) => children.entry(parent).or_default().push((index, node)),
                None => roots.push((index, node)),
            }
        }
        roots.sort_by_key(|(index, _)| *index);
        roots.into_iter().map(|(_, node)| node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Forest;
    use portcullis_common::event::Event;
    use portcullis_common::store_api::ProcessNode;
    use serde_json::json;

    fn exec(seq: u64, pid: u32, start: u64, exe: &str, ancestors: &[u32]) -> Event {
        let ancestors: Vec<_> = ancestors
            .iter()
            .map(|pid| json!({ "pid": pid, "exe": format!("/bin/p{pid}") }))
            .collect();
        serde_json::from_value(json!({
            "job_id": "j", "seq": seq, "time": "2026-01-01T00:00:00Z", "type": "process",
            "process": { "pid": pid, "start_time": start, "exe": exe, "argv": [exe], "ancestors": ancestors },
        }))
        .unwrap()
    }

    fn drawn(nodes: &[ProcessNode]) -> String {
        let one = |node: &ProcessNode| {
            let below = if node.children.is_empty() {
                String::new()
            } else {
                format!("({})", drawn(&node.children))
            };
            format!("{}{below}", node.exe.clone().unwrap_or_default())
        };
        nodes.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn tree(events: &[Event]) -> String {
        let mut forest = Forest::default();
        for event in events {
            forest.add(event);
        }
        drawn(&forest.into_roots())
    }

    #[test]
    fn a_tree_grows_from_ancestors() {
        let events = [
            exec(1, 3, 30, "/bin/sh", &[2, 1]),
            exec(2, 4, 40, "/bin/curl", &[3, 2, 1]),
            exec(3, 5, 50, "/bin/ls", &[3, 2, 1]),
        ];
        assert_eq!(tree(&events), "/bin/p1(/bin/p2(/bin/sh(/bin/curl /bin/ls)))");
    }

    #[test]
    fn one_process_that_executes_twice_is_one_and_a_number_given_again_is_two() {
        let events = [exec(1, 3, 30, "/bin/sh", &[1]), exec(2, 3, 30, "/bin/env", &[1])];
        assert_eq!(tree(&events), "/bin/p1(/bin/env)");
        let events = [exec(1, 3, 30, "/bin/sh", &[1]), exec(2, 3, 99, "/bin/env", &[1])];
        assert_eq!(tree(&events), "/bin/p1(/bin/sh /bin/env)");
    }

    #[test]
    fn what_contradicts_itself_makes_no_circle() {
        let events = [
            exec(1, 3, 30, "/bin/a", &[2]),
            exec(2, 2, 20, "/bin/b", &[3]),
            exec(3, 3, 30, "/bin/c", &[3, 2, 3]),
        ];
        assert_eq!(tree(&events), "/bin/b(/bin/c)");
    }

    #[test]
    fn a_chain_without_end_is_cut() {
        let events: Vec<Event> =
            (1..300).map(|n| exec(n.into(), n + 1, 1, "/bin/x", &[n])).collect();
        let text = tree(&events);
        let depth = text.split('(').take_while(|part| !part.contains(')')).count();
        assert!(depth <= 61, "{depth}");
        assert_eq!(text.matches("/bin/x").count(), 299);
    }
}
