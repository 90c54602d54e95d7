//! Rule sets in real kernels: each test makes network namespaces of its own, applies a rule set there and sees what
//! gets through. Needs root, nftables, `ip` and `tcpdump`; `nft` is the oracle.

mod agent;
mod dns;
mod fixture;
mod forwarding;
mod inbound;
mod installation;
mod output;
mod world;
