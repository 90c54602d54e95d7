//! The bytes of netlink messages: `struct nlmsghdr`, `struct nfgenmsg`, and nested attributes.
//!
//! Written by hand: a rule set of 10 000 endpoints is one message of half a megabyte, and reading it back must see the
//! attributes exactly as the kernel gives them.

use std::io;

/// The kernel's numbers (`linux/netfilter/nf_tables.h`, `nfnetlink.h`, `netlink.h`).
pub(super) mod kernel {
    pub(crate) const NLMSG_ERROR: u16 = 2;
    pub(crate) const NLMSG_DONE: u16 = 3;
    pub(crate) const NLM_F_REQUEST: u16 = 1;
    pub(crate) const NLM_F_ACK: u16 = 4;
    pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
    pub(crate) const NLM_F_DUMP: u16 = 0x300;
    pub(crate) const NLM_F_EXCL: u16 = 0x200;
    pub(crate) const NLM_F_CREATE: u16 = 0x400;
    pub(crate) const NLM_F_APPEND: u16 = 0x800;
    pub(crate) const NLM_F_CAPPED: u16 = 0x100;
    pub(crate) const NLM_F_ACK_TLVS: u16 = 0x200;
    pub(crate) const NLMSGERR_ATTR_MSG: u16 = 1;

    pub(crate) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
    pub(crate) const NFNL_MSG_BATCH_END: u16 = 0x11;
    pub(crate) const NFNL_SUBSYS_CTNETLINK: u16 = 1;
    pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
    pub(crate) const NFNLGRP_NFTABLES: u32 = 7;

    pub(crate) const NFPROTO_UNSPEC: u8 = 0;
    pub(crate) const NFPROTO_INET: u8 = 1;
    pub(crate) const NFPROTO_NETDEV: u8 = 5;

    pub(crate) const NEWTABLE: u16 = 0;
    pub(crate) const GETTABLE: u16 = 1;
    pub(crate) const DELTABLE: u16 = 2;
    pub(crate) const NEWCHAIN: u16 = 3;
    pub(crate) const GETCHAIN: u16 = 4;
    pub(crate) const NEWRULE: u16 = 6;
    pub(crate) const GETRULE: u16 = 7;
    pub(crate) const NEWSET: u16 = 9;
    pub(crate) const GETSET: u16 = 10;
    pub(crate) const NEWSETELEM: u16 = 12;
    pub(crate) const GETSETELEM: u16 = 13;
    pub(crate) const DELSETELEM: u16 = 14;
    pub(crate) const NEWGEN: u16 = 15;
    pub(crate) const NEWOBJ: u16 = 18;
    pub(crate) const GETOBJ: u16 = 19;

    pub(crate) const TABLE_OWNER: u32 = 2;
    pub(crate) const TABLE_PERSIST: u32 = 4;

    pub(crate) const SET_INTERVAL: u32 = 0x4;
    pub(crate) const SET_TIMEOUT: u32 = 0x10;
    pub(crate) const SET_EVAL: u32 = 0x20;
    pub(crate) const SET_CONCAT: u32 = 0x80;

    pub(crate) const OBJECT_COUNTER: u32 = 1;
}

/// The length of `struct nlmsghdr`.
pub(super) const HEADER_BYTES: usize = 16;

/// The length of `struct nfgenmsg`.
const FAMILY_HEADER_BYTES: usize = 4;

/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;

/// The bits of an attribute's type that name it.
const TYPE_MASK: u16 = 0x3fff;

/// Writes attributes at the end of a message.
#[derive(Debug)]
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.start(kind, value.len());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    /// A text with its NUL.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.start(kind, value.len() + 1);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.pad();
        self
    }

    pub(super) fn be16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        body(&mut Attributes(self.0));
        let length = self.0.len() - start;
        debug_assert!(u16::try_from(length).is_ok(), "an attribute has a length of 16 bits");
        let header = attribute_header(kind | NESTED, length);
        if let Some(place) = self.0.get_mut(start..start + 4) {
            place.copy_from_slice(&header);
        }
        self
    }

    /// Attributes as they were received.
    pub(super) fn raw(&mut self, attributes: &[u8]) {
        self.0.extend_from_slice(attributes);
        self.pad();
    }

    /// The bytes of the whole batch so far.
    pub(super) fn position(&self) -> usize {
        self.0.len()
    }

    fn start(&mut self, kind: u16, length: usize) {
        self.0.extend_from_slice(&attribute_header(kind, length + 4));
    }

    fn pad(&mut self) {
        let padded = self.0.len().next_multiple_of(4);
        self.0.resize(padded, 0);
    }
}

fn attribute_header(kind: u16, length: usize) -> [u8; 4] {
    let [a, b] = u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes();
    let [c, d] = kind.to_ne_bytes();
    [a, b, c, d]
}

/// Writes one message.
pub(super) fn write_message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    body: impl FnOnce(&mut Attributes<'_>),
) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | kernel::NLM_F_REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
    body(&mut Attributes(bytes));
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    if let Some(place) = bytes.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_ne_bytes());
    }
}

/// Sets flags of a message that starts at `start`.
pub(super) fn add_flags(bytes: &mut [u8], start: usize, flags: u16) {
    if let Some([a, b]) = bytes.get_mut(start + 6..start + 8) {
        let [x, y] = (u16::from_ne_bytes([*a, *b]) | flags).to_ne_bytes();
        (*a, *b) = (x, y);
    }
}

/// One message as received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// Who caused it.
    pub(super) port_id: u32,
    /// What follows `struct nlmsghdr`.
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The family of `struct nfgenmsg`.
    pub(super) fn family(&self) -> u8 {
        self.payload.first().copied().unwrap_or_default()
    }

    /// The attributes behind `struct nfgenmsg`.
    pub(super) fn attributes(&self) -> io::Result<Parsed<'a>> {
        Parsed::parse(self.payload.get(FAMILY_HEADER_BYTES..).unwrap_or_default())
    }
}

/// Splits what was received into messages.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let message = split_message(&mut bytes);
        if message.is_err() {
            bytes = &[];
        }
        Some(message)
    })
}

fn split_message<'a>(bytes: &mut &'a [u8]) -> io::Result<Message<'a>> {
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or_else(malformed)?;
    let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).map_err(|_| malformed())?;
    let payload = bytes.get(HEADER_BYTES..length).ok_or_else(malformed)?;
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Ok(Message {
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u16::from_ne_bytes([f0, f1]),
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        port_id: u32::from_ne_bytes([p0, p1, p2, p3]),
        payload,
    })
}

/// What can't be a netlink message.
pub(super) fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message")
}

/// Attributes as received. Later ones of one kind win, as in the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parsed<'a>(&'a [u8]);

impl<'a> Parsed<'a> {
    /// Checks the lengths of all attributes.
    pub(super) fn parse(bytes: &'a [u8]) -> io::Result<Self> {
        let mut rest = bytes;
        while !rest.is_empty() {
            split_attribute(&mut rest).ok_or_else(malformed)?;
        }
        Ok(Self(bytes))
    }

    /// All attributes in order.
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || split_attribute(&mut rest))
    }

    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().filter(|&(found, _)| found == kind).last().map(|(_, value)| value)
    }

    pub(super) fn nested(self, kind: u16) -> io::Result<Option<Self>> {
        self.get(kind).map(Self::parse).transpose()
    }

    pub(super) fn text(self, kind: u16) -> Option<String> {
        let value = self.get(kind)?;
        let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
        Some(String::from_utf8_lossy(value.get(..end)?).into_owned())
    }

    pub(super) fn be16(self, kind: u16) -> Option<u16> {
        self.get(kind)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub(super) fn be32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(super) fn be64(self, kind: u16) -> Option<u64> {
        self.get(kind)?.try_into().ok().map(u64::from_be_bytes)
    }
}

fn split_attribute<'a>(bytes: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let [l0, l1, k0, k1] = *bytes.first_chunk()?;
    let length = usize::from(u16::from_ne_bytes([l0, l1]));
    let value = bytes.get(4..length)?;
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([k0, k1]) & TYPE_MASK, value))
}
