//! Names that are answered without asking anybody.

use super::super::message::{BodyBuilder, ResponseCode, record_type, wire_name};
use super::super::observer::Reason;
use super::{Local, nothing};
use portcullis_common::event::Verdict;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The TTL of answers about loopback addresses, seconds.
const LOCAL_TTL: u32 = 3600;

/// The name by which Firefox asks whether DNS over HTTPS should stay off; NXDOMAIN says so.
const DOH_CANARY: &str = "use-application-dns.net";

/// Names that no upstream is asked about in any mode, unless the policy lists them: `localhost` (RFC 6761 §6.3), reverse
/// names, which are answered from what was granted, single labels, `.local` (RFC 6762), and the infrastructure names of
/// `.arpa`.
pub(super) fn answer(
    name: &str,
    query_type: u16,
    question_length: usize,
    name_of: impl Fn(IpAddr) -> Option<Arc<str>>,
) -> Option<Local> {
    let answered = |body| Some(Local { verdict: Verdict::Allowed, reason: Reason::Local, body });
    let last_label = name.rsplit('.').next().unwrap_or(name);
    if last_label == "localhost" {
        let mut builder = BodyBuilder::new(question_length);
        match query_type {
            record_type::A => builder.address(Ipv4Addr::LOCALHOST.into(), LOCAL_TTL),
            record_type::AAAA => builder.address(Ipv6Addr::LOCALHOST.into(), LOCAL_TTL),
            _ => true,
        };
        return answered(builder.build(ResponseCode::NoError, None));
    }
    if last_label == "arpa" && query_type == record_type::PTR {
        let known = reverse_address(name).and_then(|address| match address {
            _ if address.is_loopback() => Some(Arc::from("localhost")),
            _ => name_of(address),
        });
        if let Some(known) = known {
            let mut builder = BodyBuilder::new(question_length);
            let data = wire_name(&known);
            builder.record(record_type::PTR, LOCAL_TTL, &data);
            return answered(builder.build(ResponseCode::NoError, None));
        }
    }
    let is_local =
        !name.contains('.') || matches!(last_label, "arpa" | "local") || name == DOH_CANARY;
    is_local.then(|| nothing(ResponseCode::NxDomain, Reason::Local))
}

/// The address of a reverse name (RFC 1035 §3.5, RFC 3596 §2.5).
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0u8; 4];
        let mut labels = digits.split('.').rev();
        for octet in &mut octets {
            *octet = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| Ipv4Addr::from(octets).into());
    }
    let mut labels = name.strip_suffix(".ip6.arpa")?.split('.').rev();
    let mut bits = 0u128;
    for _ in 0..32 {
        let label = labels.next().filter(|label| label.len() == 1)?;
        bits = bits << 4 | u128::from_str_radix(label, 16).ok()?;
    }
    labels.next().is_none().then(|| Ipv6Addr::from_bits(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_are_read_strictly() {
        let check = |name: &str, expected: Option<&str>| {
            let found = reverse_address(name).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{name}");
        };
        check("4.3.2.1.in-addr.arpa", Some("1.2.3.4"));
        check("3.2.1.in-addr.arpa", None);
        check("5.4.3.2.1.in-addr.arpa", None);
        check("256.3.2.1.in-addr.arpa", None);
        let zeros = "0.".repeat(31);
        check(&format!("1.{zeros}ip6.arpa"), Some("::1"));
        check(&format!("g.{zeros}ip6.arpa"), None);
        check(&format!("1.0.{zeros}ip6.arpa"), None);
        check(&format!("{zeros}ip6.arpa"), None);
        check("arpa", None);
    }
}
