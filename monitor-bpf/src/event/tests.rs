use super::*;
use proptest::prelude::*;

/// The head of an event of this kind.
fn head(kind: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [kind, 77] {
        bytes.extend(word.to_ne_bytes());
    }
    for word in [5_000_000_000_u64, 4_250_000_000, 1_000_000_000] {
        bytes.extend(word.to_ne_bytes());
    }
    for word in [70_u32, 1001] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(9_u64.to_ne_bytes());
    bytes
}

fn image(executable: &[u8], directory: &[u8], arguments: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in [executable, directory, arguments] {
        bytes.extend(u16::try_from(part.len()).unwrap().to_ne_bytes());
    }
    bytes.extend([0, 0]);
    bytes.extend([1_u32, 1001].map(u32::to_ne_bytes).concat());
    bytes.extend([executable, directory, arguments].concat());
    bytes
}

#[test]
fn an_exec_is_read() {
    let bytes = [head(2), image(b"curl\0bin\0usr\0", b"", b"curl\0\0https://ok.test\0")].concat();
    let Some(Event::Exec(subject, image)) = Event::parse(&bytes) else { panic!("no exec") };
    assert_eq!((subject.pid, subject.parent, subject.uid, subject.job), (77, 70, 1001, 9));
    assert_eq!((subject.start_ticks(), ticks(subject.parent_start)), (425, 100));
    assert_eq!((image.executable.as_str(), image.directory.as_str()), ("/usr/bin/curl", "/"));
    assert_eq!(image.arguments, ["curl", "", "https://ok.test"]);
    assert_eq!((image.links, image.effective_uid), (1, 1001));
}

#[test]
fn a_program_in_a_container_is_read() {
    let mut bytes = head(11);
    for word in [7_u64, 1_234, 2, 3, 4, 5, 6] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend([1_u32, 0].map(u32::to_ne_bytes).concat());
    let Some(Event::Contained(subject, contained)) = Event::parse(&bytes) else { panic!("none") };
    assert_eq!((subject.pid, contained.is_held), (77, true));
    assert_eq!(contained.container.mount_namespace(), 7);
    assert_eq!(contained.container.bytes(), &bytes[48..104]);
    assert_eq!(Event::parse(&bytes[..100]), None);
}

#[test]
fn an_access_and_a_port_are_read() {
    let mut bytes = head(6);
    for word in [42_u32, 3, 310, 1] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(image(b"python3.11\0", b"tmp\0", b"python3\0"));
    let Some(Event::Access(_, access, image)) = Event::parse(&bytes) else { panic!("no access") };
    assert_eq!((access.target, access.way, access.is_ended), (42, AccessWay::VmRead, true));
    assert_eq!((image.executable.as_str(), image.directory.as_str()), ("/python3.11", "/tmp"));

    let mut bytes = head(8);
    bytes.extend("::ffff:192.0.2.7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    bytes.extend([53_u16, 40000].map(u16::to_ne_bytes).concat());
    bytes.extend([17, 0, 0, 0]);
    let Some(Event::Port(_, port)) = Event::parse(&bytes) else { panic!("no port") };
    assert_eq!(port.destination, "192.0.2.7:53".parse().unwrap());
    assert_eq!((port.source_port, port.protocol), (40000, 17));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(kind in 0_u32..10, rest in prop::collection::vec(any::<u8>(), 0..120)) {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(rest);
        let _ = Event::parse(&bytes);
    }
}
