//! Events: what is recorded about a job, one JSON object a line, `seq` without gaps per job.

use crate::policy::LockdownDetection;
use crate::resolution::ScopeKind;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use std::net::IpAddr;

/// One record.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Event {
    /// The job it belongs to.
    pub job_id: String,
    /// Counts from 1 within the job, without gaps.
    pub seq: u64,
    /// When it happened, UTC, RFC 3339 with microseconds.
    #[serde(serialize_with = "with_microseconds")]
    pub time: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Six digits behind the seconds, always, so that the text sorts like the time.
fn with_microseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

/// The kinds of record.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum EventKind {
    /// A call to a destination.
    Network(NetworkEvent),
    /// A name was asked for.
    Dns(DnsEvent),
    /// A program was executed.
    Process(ProcessEvent),
    /// A file was changed.
    File(FileEvent),
    /// A fact that matches a detection type.
    Detection(DetectionEvent),
    /// What is in force changed, or a gap was found.
    Posture(PostureEvent),
    /// The job started, ended, or was adopted again after a restart of the monitor.
    Job(JobEvent),
}

/// What became of a call or a query.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It went through because a rule allows it.
    Allowed,
    /// It was stopped.
    Blocked,
    /// It went through only because the policy audits.
    WouldBlock,
}

/// Which way a call went.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From a process of the job's network namespace.
    Outbound,
    /// From a container or another network namespace, through this host.
    Forwarded,
    /// From outside to a process of the job: the address is the peer's, the port is ours.
    Inbound,
}

/// The policy responsible for a verdict.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub struct PolicyReference {
    /// The policy's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The kind of target it is attached to.
    pub scope: ScopeKind,
}

/// A process, as far as it could be found out. A process of the job can lie about `argv`, not about the rest.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub struct Process {
    /// The process id in the monitor's pid namespace; absent when only the user is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`): with the pid it names one process for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
    /// The executable: `/usr/bin/curl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// The command line, cut at 4 KiB.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// The real user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// From the parent up to `Runner.Worker`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Ancestor>,
    /// `GITHUB_ACTION` of its environment: the step's id, such as `__run_2` or `actions/checkout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
}

/// One ancestor of a process.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub struct Ancestor {
    /// The process id.
    pub pid: u32,
    /// The executable.
    pub exe: String,
}

/// A call to a destination.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct NetworkEvent {
    /// What became of it.
    pub verdict: Verdict,
    /// Which way it went.
    pub direction: Direction,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the number of another IP protocol: `132`.
    pub protocol: String,
    /// The destination.
    pub address: IpAddr,
    /// The destination port, where the protocol has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The name that our own resolver gave this address for, never one from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The names between `name` and the address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cname_chain: Vec<String>,
    /// Packets that this record stands for: repeats of the same call are counted, not written again.
    pub packets: u64,
    /// Bytes sent, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The container it came from, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The rule responsible: an endpoint's text, or what stands for the absence of one: `no endpoint allows it`.
    pub rule: String,
    /// The policy responsible.
    pub policy: PolicyReference,
}

/// A name was asked for.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct DnsEvent {
    /// What became of the query.
    pub verdict: Verdict,
    /// The name, in the escaped form of RFC 4343 §2.1 when it has unusual bytes.
    pub name: String,
    /// The type: `A`, `AAAA`, `TXT`, `TYPE65`.
    pub query_type: String,
    /// The addresses that were granted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The names between the question and the addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cname_chain: Vec<String>,
    /// Why, in words: the rule, `no endpoint allows it`, `special-use address 127.0.0.1 is not granted`.
    pub rule: String,
    /// The answer's code: `NOERROR`, `NXDOMAIN`, `SERVFAIL`.
    pub response_code: String,
    /// How many equal queries this record stands for.
    pub count: u64,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The container that asked, when one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The policy responsible.
    pub policy: PolicyReference,
}

/// The count of records that were written before there was one.
fn one() -> u64 {
    1
}

/// A program was executed.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ProcessEvent {
    /// The process after the exec.
    pub process: Process,
    /// How many executions this record stands for: the same program with the same arguments, by the same parent program in
    /// the same step. The process is the first of them.
    #[serde(default = "one")]
    pub count: u64,
}

/// A file was changed.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct FileEvent {
    /// The file.
    pub path: String,
    /// Who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
}

/// The types of detection.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(untagged)]
pub enum DetectionType {
    /// One that Lockdown Mode can answer.
    Lockdown(LockdownDetection),
    /// One that is only recorded.
    Recorded(RecordedDetection),
}

impl From<LockdownDetection> for DetectionType {
    fn from(detection: LockdownDetection) -> Self {
        Self::Lockdown(detection)
    }
}

/// Detections that are recorded and never kill a job by themselves.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum RecordedDetection {
    /// Somebody else changed the packet filter while a job was running.
    #[serde(rename = "Firewall-Tampering")]
    FirewallTampering,
    /// A second start of a bound job, with another context.
    #[serde(rename = "Binding-Conflict")]
    BindingConflict,
    /// A budget of the resolver was exceeded: data in names, too many names below a wildcard.
    #[serde(rename = "Dns-Exfiltration")]
    DnsExfiltration,
    /// Frames that did not come from the kernel's IP stack were stopped at an uplink: packet sockets, macvlan.
    #[serde(rename = "Raw-Frames")]
    RawFrames,
    /// A process of the job outlived it and was killed.
    #[serde(rename = "Left-Over-Process")]
    LeftOverProcess,
    /// A source file of the job was overwritten by a step that did not check it out.
    #[serde(rename = "Source-File-Overwritten")]
    SourceFileOverwritten,
    /// The monitor, one of its files or one of its sockets was attacked.
    #[serde(rename = "Monitor-Tampering")]
    MonitorTampering,
    /// A program was executed that is no file of any file system, or whose file was removed before it ran.
    #[serde(rename = "Fileless-Execution")]
    FilelessExecution,
    /// A process of the job became another user by a setuid program.
    #[serde(rename = "Sudo-Use")]
    SudoUse,
    /// A process of the job left the job's cgroup.
    #[serde(rename = "Cgroup-Escape")]
    CgroupEscape,
}

/// A fact that matches a detection type.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct DetectionEvent {
    /// The type.
    pub detection: DetectionType,
    /// What was seen, in words, bounded.
    pub evidence: String,
    /// Whether the job was killed for it.
    pub is_lockdown: bool,
    /// Who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
}

/// The state of one mechanism.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum FeatureState {
    /// In force, as probed.
    Active,
    /// In force with a weakness that `reason` names.
    Degraded,
    /// Not in force.
    Missing,
}

/// One mechanism, as probed.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Feature {
    /// `nftables`, `cgroup-v2`, `table-owner`, …
    pub name: String,
    /// Its state.
    pub state: FeatureState,
    /// Why it is not active, or what was seen.
    pub reason: String,
}

impl Feature {
    /// Names of features that start so tell who did what; without them calls are judged all the same, so they weaken no
    /// enforcement.
    pub const SENSOR_PREFIX: &str = "sensor-";

    /// Whether enforcement is weaker than it could be for want of this mechanism.
    pub fn is_weakness(&self) -> bool {
        self.state != FeatureState::Active && !self.name.starts_with(Self::SENSOR_PREFIX)
    }
}

/// How much of the policy is in force.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum PostureLevel {
    /// Everything that the policy asks for, verified.
    Enforced,
    /// In force with weaknesses that are named.
    Degraded,
    /// Calls are only recorded, because the policy says so.
    Audit,
    /// Calls are only recorded, because enforcement failed and the failure mode is `audit`.
    AuditFallback,
    /// Nothing is in force.
    Unenforced,
}

/// What is really in force for a job: measured, never remembered.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Posture {
    /// The summary.
    pub level: PostureLevel,
    /// `host` or `job`.
    pub scope: EnforcementScope,
    /// The mechanisms.
    pub features: Vec<Feature>,
    /// Downgrades and gaps in words for a person, each a warning in the job markdown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Whose traffic is the job's.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnforcementScope {
    /// Everything that leaves the machine but the exempt infrastructure.
    Host,
    /// The job's cgroup and its runner's user.
    Job,
}

/// What is in force changed, or a gap was found.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PostureEvent {
    /// What changed, in words.
    pub reason: String,
    /// The posture after the change.
    pub posture: Posture,
}

/// A stage in a job's life.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobStage {
    /// A policy was bound to the Worker.
    Started,
    /// The monitor was started again and took the running job over.
    Adopted,
    /// The completed hook asked for the report.
    ReportRequested,
    /// The Worker has exited and its cgroup is empty.
    Ended,
}

/// A stage in a job's life.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct JobEvent {
    /// The stage.
    pub stage: JobStage,
    /// What happened, in words.
    pub reason: String,
    /// The kernel's counters, at the end of the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<RuleCounter>,
}

/// A rule's kernel counter beside what was recorded.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct RuleCounter {
    /// The rule.
    pub rule: String,
    /// Packets that the kernel counted.
    pub packets: u64,
    /// Bytes that the kernel counted.
    pub bytes: u64,
    /// Packets that events stand for.
    pub recorded: u64,
}
