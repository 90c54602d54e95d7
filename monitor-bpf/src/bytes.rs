//! Numbers in the bytes that BPF programs write and read: this machine's byte order, no alignment.

/// What is left of an event's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'bytes>(pub(crate) &'bytes [u8]);

impl<'bytes> Reader<'bytes> {
    /// The next `length` bytes; `None` when there are fewer.
    pub(crate) fn take(&mut self, length: usize) -> Option<&'bytes [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        self.take(LENGTH)?.first_chunk().copied()
    }

    /// The next `u8`.
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_ne_bytes)
    }

    /// The next `u16`.
    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    /// The next `u32`.
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    /// The next `u64`.
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    /// The next address, IPv4 as `::ffff:a.b.c.d`.
    pub(crate) fn address(&mut self) -> Option<std::net::IpAddr> {
        let address = std::net::Ipv6Addr::from(self.array::<16>()?);
        Some(std::net::IpAddr::V6(address).to_canonical())
    }
}
