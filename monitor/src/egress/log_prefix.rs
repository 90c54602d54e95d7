//! The prefix of logged packets: which job's table, which kind of rule, on which path.
//!
//! `portcullis_3f2a allowed output`. The watcher decodes it; the rule's kind and the mode decide the verdict.

use super::target::TableName;
use portcullis_common::event::Verdict;
use std::fmt;
use std::str::FromStr;

/// The kind of rule that logged a packet.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum RuleKind {
    /// The first packet of a flow that an endpoint or a grant allows.
    Allowed,
    /// A packet that no endpoint allows; it was stopped.
    Blocked,
    /// A packet that no endpoint allows; it went through because the policy audits.
    WouldBlock,
    /// A packet to a denied endpoint; it was stopped, in audit mode too.
    Denied,
    /// A packet of a flow opened from outside; it was stopped.
    Inbound,
    /// A packet of a flow opened from outside; it went through because the policy audits.
    WouldBlockInbound,
    /// A frame that bypasses IP; it was stopped.
    Frame,
    /// A frame that bypasses IP; it went through because the policy audits.
    WouldBlockFrame,
}

impl RuleKind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Allowed,
        Self::Blocked,
        Self::WouldBlock,
        Self::Denied,
        Self::Inbound,
        Self::WouldBlockInbound,
        Self::Frame,
        Self::WouldBlockFrame,
    ];

    /// The kinds that the table of interfaces logs; the table of IP logs the others.
    pub const FRAMES: [Self; 2] = [Self::Frame, Self::WouldBlockFrame];

    /// Whether the table of interfaces logs it.
    pub const fn is_of_frames(self) -> bool {
        matches!(self, Self::Frame | Self::WouldBlockFrame)
    }

    /// The word in the prefix.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Blocked => "blocked",
            Self::WouldBlock => "would-block",
            Self::Denied => "denied",
            Self::Inbound => "inbound",
            Self::WouldBlockInbound => "would-block-inbound",
            Self::Frame => "frame",
            Self::WouldBlockFrame => "would-block-frame",
        }
    }

    /// The named counter of the table that counts what rules of this kind log, packet by packet.
    pub const fn counter(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Blocked => "blocked",
            Self::WouldBlock => "would_block",
            Self::Denied => "denied",
            Self::Inbound => "inbound",
            Self::WouldBlockInbound => "would_block_inbound",
            Self::Frame => "frames",
            Self::WouldBlockFrame => "would_block_frames",
        }
    }

    /// What became of the packet.
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Allowed => Verdict::Allowed,
            Self::Blocked | Self::Denied | Self::Inbound | Self::Frame => Verdict::Blocked,
            Self::WouldBlock | Self::WouldBlockInbound | Self::WouldBlockFrame => {
                Verdict::WouldBlock
            }
        }
    }
}

/// Which way a logged packet went.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Path {
    /// Sent by a process of this network namespace.
    Output,
    /// Sent by a container or another network namespace.
    Forward,
    /// Arrived for a process of this network namespace.
    Input,
    /// On its way out by an interface, below IP.
    Device,
}

impl Path {
    /// All paths.
    pub const ALL: [Self; 4] = [Self::Output, Self::Forward, Self::Input, Self::Device];

    /// The word in the prefix, and for packets the name of the base chain.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Forward => "forward",
            Self::Input => "input",
            Self::Device => "device",
        }
    }
}

/// A decoded prefix.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct LogPrefix {
    /// The table that logged.
    pub table: TableName,
    /// The kind of rule.
    pub kind: RuleKind,
    /// The packet's way.
    pub path: Path,
}

impl fmt::Display for LogPrefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.table, self.kind.as_str(), self.path.as_str())
    }
}

/// A prefix that is not one of ours.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{0}` is not the log prefix of a Portcullis table; another program logs to the same NFLOG group"
)]
pub struct ForeignPrefix(pub String);

impl FromStr for LogPrefix {
    type Err = ForeignPrefix;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let foreign = || ForeignPrefix(text.to_owned());
        let mut words = text.split(' ');
        let (Some(table), Some(kind), Some(path), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(foreign());
        };
        let table = table
            .strip_prefix(TableName::PREFIX)
            .and_then(TableName::for_job)
            .ok_or_else(foreign)?;
        let kind =
            RuleKind::ALL.into_iter().find(|known| known.as_str() == kind).ok_or_else(foreign)?;
        let path =
            Path::ALL.into_iter().find(|known| known.as_str() == path).ok_or_else(foreign)?;
        Ok(Self { table, kind, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_survives_the_way_through_the_kernel() {
        let table = TableName::for_job(&"f".repeat(TableName::MAX_ID_BYTES)).unwrap();
        for kind in RuleKind::ALL {
            for path in Path::ALL {
                let prefix = LogPrefix { table: table.clone(), kind, path };
                let text = prefix.to_string();
                assert!(text.len() < 127, "NF_LOG_PREFIXLEN is 128 with its NUL: {text}");
                assert_eq!(text.parse(), Ok(prefix));
            }
        }
    }

    #[test]
    fn other_prefixes_are_foreign() {
        for text in [
            "",
            "portcullis_",
            "portcullis_1 allowed",
            "portcullis_1 allowed output x",
            "portcullis_A allowed output",
            "UFW BLOCK x",
            "portcullis_1 Allowed output",
        ] {
            assert_eq!(text.parse::<LogPrefix>(), Err(ForeignPrefix(text.to_owned())));
        }
    }
}
