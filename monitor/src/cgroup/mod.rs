//! cgroup v2 wherever it is mounted: a job's own group, moving, freezing, killing, identity for nftables.
