//! Rule sets in real kernels: each test makes network namespaces of its own, applies a rule set there and sees what
//! gets through. Needs root, nftables, `ip` and `tcpdump`; `nft` is the oracle.

#![expect(clippy::unwrap_used, reason = "tests: a failed step fails the test")]

mod agent;
mod dns;
mod fixture;
mod forwarding;
mod inbound;
mod installation;
mod output;
mod world;
