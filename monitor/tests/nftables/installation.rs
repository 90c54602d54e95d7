//! What is installed is what was meant, and stays so.

use crate::fixture::{host_target, policy};
use crate::world::World;
use portcullis_common::policy::EgressMode;
use portcullis_monitor::egress::plan::rule_set;
use portcullis_monitor::nftables::InstalledTable;

#[test]
fn a_rule_set_is_installed_verified_and_removed() {
    let world = World::new();
    let before = world.host.run("nft list ruleset");
    let policy = policy(
        EgressMode::Block,
        &[
            "ok.test:443",
            "udp://10.0.0.0/8:1000-2000",
            "icmp://192.0.2.1",
            "[2001:db8::7]:8443",
            "x.test:*",
        ],
        &["203.0.113.0/24:*", "203.0.113.7:443"],
    );
    let rules = rule_set(&policy, &host_target(&world)).unwrap();
    let table = InstalledTable::install(world.host.fd(), &rules).unwrap();
    table.verify().unwrap();
    println!("{}", world.host.run("nft list ruleset"));
    table.remove().unwrap();
    assert_eq!(world.host.run("nft list ruleset"), before);
}
