use super::strategy::{dns_name, endpoint};
use super::{DnsName, Endpoint, EndpointProblem, Host, NameProblem, Peer, PortRange, Protocol};
use proptest::prelude::*;
use std::net::IpAddr;

/// Parses and prints.
fn canonical(text: &str) -> String {
    text.parse::<Endpoint>().unwrap_or_else(|error| panic!("{text}: {error}")).to_string()
}

/// The message, the column and the hint of a text that is no endpoint.
fn refused(text: &str) -> String {
    let error = text.parse::<Endpoint>().expect_err(text);
    format!("{}: {} | {}", error.column, error.problem, error.hint)
}

#[test]
fn prints_the_canonical_text() {
    for (written, printed) in [
        ("github.com", "github.com:443"),
        ("GitHub.COM.:443", "github.com:443"),
        ("tcp://github.com:22", "github.com:22"),
        ("UDP://time.example.com:123", "udp://time.example.com:123"),
        ("*.npmjs.org:443", "*.npmjs.org:443"),
        ("*.wild.test", "*.wild.test:443"),
        ("bücher.example", "xn--bcher-kva.example:443"),
        ("github。com", "github.com:443"),
        ("_dmarc.example.com:53", "_dmarc.example.com:53"),
        ("localhost:8080", "localhost:8080"),
        ("10.20.0.0/16:5432", "10.20.0.0/16:5432"),
        ("10.20.0.7/32", "10.20.0.7:443"),
        ("0.0.0.0/0:*", "0.0.0.0/0:*"),
        ("[2001:DB8::7]:8443", "[2001:db8::7]:8443"),
        ("[2001:db8::/32]", "[2001:db8::/32]:443"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
        ("[::ffff:10.0.0.0/104]:80", "10.0.0.0/8:80"),
        ("example.com:8000-8100", "example.com:8000-8100"),
        ("example.com:1-65535", "example.com:*"),
        ("example.com:80-80", "example.com:80"),
        ("icmp://192.0.2.1", "icmp://192.0.2.1"),
        ("icmp://[2001:db8::1]", "icmp://[2001:db8::1]"),
    ] {
        assert_eq!(canonical(written), printed, "{written}");
    }
}

#[test]
fn says_where_what_and_what_to_do() {
    insta::assert_snapshot!(
        [
            "",
            "https://github.com/octo",
            "ftp://x",
            "github.com/octo",
            "git hub.com",
            "user@github.com",
            "*",
            "*:443",
            "a.*.com",
            "*foo.com",
            "*.com",
            "*.github.io:443",
            "*.co.uk",
            "10.20.0.1/16",
            "[2001:db8::1/32]:443",
            "[2001:db8::]/32",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "1.2.3",
            "10.0.0.010",
            "１.２.３",
            "2001:db8::7",
            "2001:db8::7:443:80",
            "[fe80::1%eth0]:80",
            "[192.0.2.1]:80",
            "[2001:db8::7",
            "[::1]x",
            "github.com:",
            "github.com:0",
            "github.com:+80",
            "github.com:080",
            "github.com:65536",
            "github.com:90-80",
            "github.com:443/x",
            "icmp://192.0.2.1:7",
            "icmp://192.0.2.1:*",
            ":443",
            "a..b",
            ".a",
            "a\u{1b}[31m.com",
            "\u{202e}moc.evil",
            "¯.test",
        ]
        .map(|text| format!("{:<24} {}", text.escape_debug().to_string(), refused(text)))
        .join("\n"), @r"
                             1: the endpoint is empty | write a host and a port, such as `github.com:443`
    https://github.com/octo  1: `https://` is no scheme of an endpoint | endpoints are no URLs; write `github.com:443`
    ftp://x                  1: `ftp://` is no scheme of an endpoint | use `tcp://`, `udp://`, `icmp://`, or none for TCP
    github.com/octo          11: an endpoint has no path | endpoints name hosts and ports; write `github.com:443`
    git hub.com              4: ` ` can't be part of an endpoint | leave out white space and control characters; write one endpoint an entry
    user@github.com          5: `@` can't be part of a DNS name | leave out the user; write host and port only
    *                        1: `*` can only be the whole first label, as in `*.example.com` | write `*.example.com` for every name below example.com; there is no endpoint for every name
    *:443                    1: `*` can only be the whole first label, as in `*.example.com` | write `*.example.com` for every name below example.com; there is no endpoint for every name
    a.*.com                  3: `*` can only be the whole first label, as in `*.example.com` | write `*.example.com` for every name below example.com; there is no endpoint for every name
    *foo.com                 1: `*` can only be the whole first label, as in `*.example.com` | write `*.example.com` for every name below example.com; there is no endpoint for every name
    *.com                    1: `*.com` covers names that anybody can register | name the domain below it, as in `*.example.com`
    *.github.io:443          1: `*.github.io` covers names that anybody can register | name the domain below it, as in `*.example.github.io`
    *.co.uk                  1: `*.co.uk` covers names that anybody can register | name the domain below it, as in `*.example.co.uk`
    10.20.0.1/16             11: `10.20.0.1/16` has bits set behind its prefix length | write `10.20.0.0/16`, or `10.20.0.1` for the one address
    [2001:db8::1/32]:443     14: `2001:db8::1/32` has bits set behind its prefix length | write `[2001:db8::/32]`, or `[2001:db8::1]` for the one address
    [2001:db8::]/32          13: `/32` is no prefix length here | write the prefix length inside: `[2001:db8::/…]`
    10.0.0.0/33              10: `/33` is no prefix length here | write a prefix length from 0 to 32
    10.0.0.0/08              10: `/08` is no prefix length here | write a prefix length from 0 to 32
    1.2.3                    1: `1.2.3` is no IPv4 address | write four numbers from 0 to 255 without leading zeros, such as `192.0.2.7`
    10.0.0.010               1: `10.0.0.010` is no IPv4 address | write four numbers from 0 to 255 without leading zeros, such as `192.0.2.7`
    １.２.３                    1: `1.2.3` is no IPv4 address | write four numbers from 0 to 255 without leading zeros, such as `192.0.2.7`
    2001:db8::7              1: an IPv6 address must be written in brackets | write `[2001:db8::7]:443`
    2001:db8::7:443:80       1: an IPv6 address must be written in brackets | write `[2001:db8::7:443:80]:443`
    [fe80::1%eth0]:80        9: an endpoint can't have an IPv6 zone id | leave out the zone; an endpoint holds on every interface
    [192.0.2.1]:80           2: `192.0.2.1` is no IPv6 address | brackets are for IPv6 addresses and networks, such as `[2001:db8::7]:443`
    [2001:db8::7             1: the bracket must close right before the port or the end | write it like `[2001:db8::7]:443` or `[2001:db8::/32]:443`
    [::1]x                   6: the bracket must close right before the port or the end | write it like `[2001:db8::7]:443` or `[2001:db8::/32]:443`
    github.com:              12: `` is no port from 1 to 65535 | write a port like `:443`, a range like `:8000-8100`, or `:*` for all ports
    github.com:0             12: `0` is no port from 1 to 65535 | write a port like `:443`, a range like `:8000-8100`, or `:*` for all ports
    github.com:+80           12: `+80` is no port from 1 to 65535 | write a port like `:443`, a range like `:8000-8100`, or `:*` for all ports
    github.com:080           12: `080` is no port from 1 to 65535 | write a port like `:443`, a range like `:8000-8100`, or `:*` for all ports
    github.com:65536         12: `65536` is no port from 1 to 65535 | write a port like `:443`, a range like `:8000-8100`, or `:*` for all ports
    github.com:90-80         12: the port range 90-80 ends before it starts | write `80-90`
    github.com:443/x         15: an endpoint has no path | endpoints name hosts and ports; leave out what follows
    icmp://192.0.2.1:7       18: an `icmp://` endpoint has no port | write `icmp://192.0.2.1`
    icmp://192.0.2.1:*       18: an `icmp://` endpoint has no port | write `icmp://192.0.2.1`
    :443                     1: the host is missing | write a DNS name, an address or a network before the port
    a..b                     3: the DNS name has an empty label | write a DNS name such as `registry.npmjs.org`, labels of letters, digits, `-` and `_` joined by dots
    .a                       1: the DNS name has an empty label | write a DNS name such as `registry.npmjs.org`, labels of letters, digits, `-` and `_` joined by dots
    a\u{1b}[31m.com          2: `\u{1b}` can't be part of an endpoint | leave out white space and control characters; write one endpoint an entry
    \u{202e}moc.evil         1: the name is not valid as an internationalized domain name | write a DNS name such as `registry.npmjs.org`, labels of letters, digits, `-` and `_` joined by dots
    ¯.test                   1: ` ` can't be part of a DNS name | write a DNS name such as `registry.npmjs.org`, labels of letters, digits, `-` and `_` joined by dots
    ");
}

#[test]
fn refuses_names_that_are_too_long() {
    let label = "a".repeat(63);
    assert!(DnsName::new(&label).is_ok());
    let error = DnsName::new(&format!("{label}a.example")).unwrap_err();
    assert_eq!(error.problem, NameProblem::LabelTooLong);
    let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    assert_eq!(longest.len(), 253);
    assert!(DnsName::new(&longest).is_ok());
    assert!(DnsName::new(&format!("{longest}.")).is_ok());
    assert_eq!(DnsName::new(&format!("{longest}a")).unwrap_err().problem, NameProblem::TooLong);
    let huge = "a.".repeat(1_000_000);
    assert_eq!(huge.parse::<Endpoint>().unwrap_err().problem, EndpointProblem::TooLong);
}

#[test]
fn takes_wire_labels_as_they_are() {
    let name = |labels: &[&[u8]]| DnsName::from_labels(labels.iter().copied());
    assert_eq!(name(&[b"Registry", b"npmjs", b"org"]).unwrap().as_str(), "registry.npmjs.org");
    for hostile in
        [&b"github.com"[..], b"a\0", b"a&b", b"#", b"a b", b"", &[0xc3, 0xbc], &[b'a'; 64]]
    {
        assert!(name(&[hostile, b"ok", b"test"]).is_err(), "{hostile:?}");
    }
    assert!(name(&[]).is_err());
    assert!(name(&[&[b'a'; 63][..]; 4]).is_err());
}

#[test]
fn matches_on_whole_labels() {
    let host = |text: &str| text.parse::<Endpoint>().unwrap().host;
    let name = |text: &str| DnsName::new(text).unwrap();
    let wildcard = host("*.npmjs.org");
    for (candidate, expected) in [
        ("registry.npmjs.org", true),
        ("a.b.npmjs.org", true),
        ("REGISTRY.npmjs.ORG", true),
        ("npmjs.org", false),
        ("evilnpmjs.org", false),
        ("npmjs.org.evil.test", false),
        ("org", false),
    ] {
        assert_eq!(wildcard.matches_name(&name(candidate)), expected, "{candidate}");
    }
    assert!(host("github.com").matches_name(&name("GitHub.com.")));
    assert!(!host("github.com").matches_name(&name("api.github.com")));
    assert!(!host("192.0.2.1").matches_name(&name("github.com")));
}

#[test]
fn covers_protocol_host_and_port_together() {
    let covers = |endpoint: &str, protocol, address: &str, port| {
        let address = Peer::Address(address.parse().unwrap());
        endpoint.parse::<Endpoint>().unwrap().covers(protocol, address, port)
    };
    assert!(covers("10.0.0.0/8:80-90", Protocol::Tcp, "10.255.0.1", Some(85)));
    assert!(covers("10.0.0.0/8:80", Protocol::Tcp, "::ffff:10.0.0.1", Some(80)));
    assert!(!covers("10.0.0.0/8:80", Protocol::Tcp, "11.0.0.1", Some(80)));
    assert!(!covers("10.0.0.0/8:80", Protocol::Udp, "10.0.0.1", Some(80)));
    assert!(!covers("10.0.0.0/8:80", Protocol::Tcp, "10.0.0.1", Some(81)));
    assert!(!covers("10.0.0.0/8:*", Protocol::Tcp, "10.0.0.1", None));
    assert!(covers("icmp://10.0.0.0/8", Protocol::Icmp, "10.0.0.1", None));
    assert!(!covers("10.0.0.0/8:*", Protocol::Icmp, "10.0.0.1", None));
}

#[test]
fn finds_endpoints_that_restrict_nothing() {
    for (text, expected) in
        [("0.0.0.0/0", true), ("[::/0]:*", true), ("128.0.0.0/1", true), ("10.0.0.0/8", false)]
    {
        assert_eq!(text.parse::<Endpoint>().unwrap().is_unrestricted(), expected, "{text}");
    }
}

#[test]
fn survives_json_as_text() {
    let endpoint: Endpoint = serde_json::from_str("\"GitHub.com\"").unwrap();
    assert_eq!(serde_json::to_string(&endpoint).unwrap(), "\"github.com:443\"");
    let error = serde_json::from_str::<Endpoint>("\"*.com\"").unwrap_err();
    assert!(
        error.to_string().contains("`*.com` covers names that anybody can register"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn parse_after_print_is_identity(endpoint in endpoint()) {
        prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,60}") {
        match text.parse::<Endpoint>() {
            Ok(endpoint) => {
                let printed = endpoint.to_string();
                prop_assert_eq!(printed.parse::<Endpoint>(), Ok(endpoint));
            }
            Err(error) => {
                prop_assert!(error.column >= 1 && error.column <= text.len() + 1);
                prop_assert!(!error.hint.is_empty());
            }
        }
    }

    #[test]
    fn near_misses_are_answered(text in "(tcp|udp|icmp|http)?(://)?[\\[*.]{0,2}[a-z0-9:.*/%_-]{0,24}\\]?(/[0-9]{1,3})?(:[0-9*-]{0,6})?") {
        if let Ok(endpoint) = text.parse::<Endpoint>() {
            prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
        }
    }

    #[test]
    fn a_wildcard_matches_exactly_what_lies_below(parent in dns_name(), label in "[a-z0-9_]{1,10}") {
        let wildcard = Host::Wildcard(parent.clone());
        let below = DnsName::new(&format!("{label}.{parent}")).unwrap();
        prop_assert!(wildcard.matches_name(&below));
        prop_assert!(!wildcard.matches_name(&parent));
        let glued = DnsName::new(&format!("{label}{parent}")).unwrap();
        prop_assert_eq!(wildcard.matches_name(&glued), false);
        let suffixed = DnsName::new(&format!("{below}.{label}x")).unwrap();
        prop_assert_eq!(wildcard.matches_name(&suffixed), suffixed.is_below(&parent));
    }

    #[test]
    fn a_network_matches_by_its_leading_bits(network in any::<u32>(), prefix in 0_u8..=32, address in any::<u32>()) {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let base = std::net::Ipv4Addr::from(network & mask);
        let endpoint: Endpoint = format!("{base}/{prefix}:*").parse().unwrap();
        let candidate = IpAddr::V4(address.into());
        prop_assert_eq!(endpoint.host.matches_address(candidate), address & mask == network & mask);
        let host_bits_set = network & !mask != 0;
        let written = format!("{}/{prefix}", std::net::Ipv4Addr::from(network));
        prop_assert_eq!(written.parse::<Endpoint>().is_err(), host_bits_set);
    }

    #[test]
    fn unicode_and_a_labels_name_one_host(label in "[a-zäöüßéñ漢字]{1,12}") {
        let unicode = DnsName::new(&format!("{label}.example")).unwrap();
        prop_assert!(unicode.as_str().is_ascii());
        prop_assert_eq!(DnsName::new(unicode.as_str()).unwrap(), unicode.clone());
        prop_assert_eq!(DnsName::new(&unicode.as_str().to_uppercase()).unwrap(), unicode);
    }

    #[test]
    fn inclusion_agrees_with_covering(endpoint in endpoint(), address in any::<IpAddr>(), port in 1_u16..) {
        let call = Endpoint {
            protocol: endpoint.protocol,
            host: Host::Address(address.to_canonical()),
            ports: PortRange::single(port).unwrap(),
        };
        prop_assert_eq!(
            endpoint.includes(&call),
            endpoint.covers(call.protocol, Peer::Address(address), Some(port))
        );
        prop_assert!(endpoint.includes(&endpoint));
    }
}
