//! The only module that speaks netlink to nftables: apply a rule set in one transaction, read it back, verify.
