//! Where services listen that resolve names for whoever asks.

/// systemd-resolved (varlink, what nss-resolve and newer `resolvectl` use).
pub(super) const RESOLVED: &str = "/run/systemd/resolve/io.systemd.Resolve";

/// Sockets that serve nothing else. The C library asks the network's servers itself when it may not connect (nsswitch.conf(5):
/// the module is unavailable), so that a job resolves names as before.
pub(super) const SOCKETS: &[&str] = &[
    RESOLVED,
    // nscd and unscd.
    "/run/nscd/socket",
    // Avahi, which asks the local network.
    "/run/avahi-daemon/socket",
];

/// The system bus (D-Bus Specification, "Well-known Message Bus Instances"): systemd-resolved is one of many services on it.
pub(super) const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
