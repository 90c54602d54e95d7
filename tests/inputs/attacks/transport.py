"""Sends the secret in $TOKEN to an address by one technique, and then keeps what it opened until it is told to end.

Usage: transport.py TECHNIQUE ADDRESS PORT

It ends when the file $RELEASE/TECHNIQUE-ADDRESS appears: what a short-lived process leaves behind is a matter of luck,
and a test is not.
"""

import ctypes
import errno
import mmap
import os
import socket
import struct
import subprocess
import sys
import time

PATIENCE = 5  # seconds that a connection may take when nothing answers
HELD = []  # sockets that stay open

LIBC = ctypes.CDLL(None, use_errno=True)


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def opened(*arguments):
    HELD.append(socket.socket(*arguments))
    return HELD[-1]


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# --- TCP ---


def stream(address, protocol=0, kind=None):
    connection = opened(kind or family(address), socket.SOCK_STREAM, protocol)
    connection.settimeout(PATIENCE)
    return connection


def tcp(address, port, secret):
    connection = stream(address)
    connection.connect((address, port))
    connection.sendall(secret)


def mptcp(address, port, secret):
    connection = stream(address, 262)  # IPPROTO_MPTCP
    connection.connect((address, port))
    connection.sendall(secret)


def tcp_bound(address, port, secret):
    """From a port that DNS or a privileged service would have, chosen by the job."""
    connection = stream(address)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(("", 5353))
    connection.connect((address, port))
    connection.sendall(secret)


def tcp_mapped(address, port, secret):
    connection = stream(address, kind=socket.AF_INET6)
    connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    connection.connect((f"::ffff:{address}", port))
    connection.sendall(secret)


def tcp_fast_open(address, port, secret):
    """Data in the SYN, without a cookie (TCP_FASTOPEN_NO_COOKIE)."""
    connection = stream(address)
    connection.setsockopt(socket.IPPROTO_TCP, 34, 1)
    connection.sendto(secret, socket.MSG_FASTOPEN, (address, port))


def tcp_fast_open_mapped(address, port, secret):
    """The same to IPv4 from an IPv6 socket."""
    connection = stream(address, kind=socket.AF_INET6)
    connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    connection.setsockopt(socket.IPPROTO_TCP, 34, 1)
    connection.sendto(secret, socket.MSG_FASTOPEN, (f"::ffff:{address}", port))


def tcp_fast_open_connect(address, port, secret):
    """The same by connect() and write() (TCP_FASTOPEN_CONNECT)."""
    connection = stream(address)
    connection.setsockopt(socket.IPPROTO_TCP, 34, 1)
    connection.setsockopt(socket.IPPROTO_TCP, 30, 1)
    connection.connect((address, port))
    connection.sendall(secret)


# --- UDP ---


def datagrams(address, protocol=0):
    return opened(family(address), socket.SOCK_DGRAM, protocol)


def udp_sendto(address, port, secret):
    datagrams(address).sendto(secret, (address, port))


def udp_sendmsg(address, port, secret):
    datagrams(address).sendmsg([secret], [], 0, (address, port))


def udp_connected(address, port, secret):
    sender = datagrams(address)
    sender.connect((address, port))
    sender.send(secret)


def udp_corked(address, port, secret):
    """Put together from parts (UDP_CORK)."""
    sender = datagrams(address)
    sender.connect((address, port))
    sender.setsockopt(socket.IPPROTO_UDP, 1, 1)
    sender.send(secret[:10])
    sender.send(secret[10:])
    sender.setsockopt(socket.IPPROTO_UDP, 1, 0)


def udp_mapped(address, port, secret):
    sender = opened(socket.AF_INET6, socket.SOCK_DGRAM)
    sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sender.sendto(secret, (f"::ffff:{address}", port))


def udp_large(address, port, secret):
    """Larger than the link takes: the secret is in the last fragment."""
    datagrams(address).sendto(b"x" * 4000 + secret, (address, port))


def udplite(address, port, secret):
    datagrams(address, 136).sendto(secret, (address, port))


def sockaddr(address, port):
    if ":" in address:
        return struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", port, 0) + \
            socket.inet_pton(socket.AF_INET6, address) + struct.pack("=I", 0)
    return struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + \
        socket.inet_pton(socket.AF_INET, address) + bytes(8)


def message_header(address, port, secret):
    """struct msghdr, and what has to live as long as it."""
    name = ctypes.create_string_buffer(sockaddr(address, port))
    data = ctypes.create_string_buffer(secret, len(secret))
    vector = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(data), len(secret)))
    header = struct.pack("=QIIQQQQII", ctypes.addressof(name), len(name.raw) - 1, 0,
                         ctypes.addressof(vector), 1, 0, 0, 0, 0)
    return header, (name, data, vector)


def udp_sendmmsg(address, port, secret):
    header, alive = message_header(address, port, secret)
    messages = ctypes.create_string_buffer((header + bytes(8)) * 2)
    HELD.append(alive)
    sent = checked(LIBC.sendmmsg(datagrams(address).fileno(), messages, 2, 0))
    assert sent == 2, sent


# --- io_uring ---


class Ring:
    SETUP, ENTER = 425, 426

    def __init__(self):
        params = ctypes.create_string_buffer(120)
        self.fd = checked(LIBC.syscall(self.SETUP, 8, params))
        words = struct.unpack("=30I", params.raw[:120])
        sq_entries, cq_entries = words[0], words[1]
        self.sq = dict(zip(("head", "tail", "mask", "entries", "flags", "dropped", "array"), words[10:17]))
        self.cq = dict(zip(("head", "tail", "mask", "entries", "overflow", "cqes"), words[20:26]))
        size = max(self.sq["array"] + sq_entries * 4, self.cq["cqes"] + cq_entries * 16)
        self.ring = mmap.mmap(self.fd, size, mmap.MAP_SHARED, offset=0)
        self.entries = mmap.mmap(self.fd, sq_entries * 64, mmap.MAP_SHARED, offset=0x10000000)

    def run(self, opcode, fd, address, length, off=0, flags=0):
        tail, = struct.unpack_from("=I", self.ring, self.sq["tail"])
        mask, = struct.unpack_from("=I", self.ring, self.sq["mask"])
        index = tail & mask
        struct.pack_into("=BBHiQQIIQ24x", self.entries, index * 64, opcode, flags, 0, fd, off, address, length, 0, 1)
        struct.pack_into("=I", self.ring, self.sq["array"] + index * 4, index)
        struct.pack_into("=I", self.ring, self.sq["tail"], tail + 1)
        checked(LIBC.syscall(self.ENTER, self.fd, 1, 1, 1, 0, 0))
        head, = struct.unpack_from("=I", self.ring, self.cq["head"])
        mask, = struct.unpack_from("=I", self.ring, self.cq["mask"])
        result, = struct.unpack_from("=i", self.ring, self.cq["cqes"] + (head & mask) * 16 + 8)
        struct.pack_into("=I", self.ring, self.cq["head"], head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result


CONNECT, SENDMSG, SEND, ASYNC = 16, 9, 26, 1 << 4


def uring_connect(address, port, secret, flags=0):
    ring = Ring()
    connection = opened(family(address), socket.SOCK_STREAM)
    name = ctypes.create_string_buffer(sockaddr(address, port))
    ring.run(CONNECT, connection.fileno(), ctypes.addressof(name), 0, off=len(name.raw) - 1, flags=flags)
    data = ctypes.create_string_buffer(secret, len(secret))
    ring.run(SEND, connection.fileno(), ctypes.addressof(data), len(secret), flags=flags)
    HELD.append(ring)


def uring_connect_async(address, port, secret):
    """From a worker thread of the kernel."""
    uring_connect(address, port, secret, ASYNC)


def uring_sendmsg(address, port, secret, flags=0):
    ring = Ring()
    header, alive = message_header(address, port, secret)
    buffer = ctypes.create_string_buffer(header)
    HELD.append((alive, ring))
    ring.run(SENDMSG, datagrams(address).fileno(), ctypes.addressof(buffer), 1, flags=flags)


def uring_sendmsg_async(address, port, secret):
    uring_sendmsg(address, port, secret, ASYNC)


# --- ICMP ---


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def icmp_message(address, kind, secret):
    message = struct.pack(">BBHHH", kind, 0, 0, 7, 1) + secret
    if ":" in address:
        return message  # the kernel fills the sum in
    return message[:2] + struct.pack(">H", checksum(message)) + message[4:]


def icmp_protocol(address):
    return 58 if ":" in address else 1


def ping_socket(address, port, secret):
    kind = 128 if ":" in address else 8
    datagrams(address, icmp_protocol(address)).sendto(icmp_message(address, kind, secret), (address, 0))


def ping_command(address, port, secret):
    """The program, as anybody would: 16 bytes of pattern in each packet."""
    HELD.append(subprocess.Popen(
        ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-p", secret[:16].hex(), address],
        stdout=subprocess.DEVNULL))
    # The packets are on their way when it has waited for answers.
    HELD[-1].wait()


def raw(address, protocol):
    return opened(family(address), socket.SOCK_RAW, protocol)


def icmp_echo(address, port, secret):
    kind = 128 if ":" in address else 8
    raw(address, icmp_protocol(address)).sendto(icmp_message(address, kind, secret), (address, 0))


def icmp_error(address, port, secret):
    """A forged "destination unreachable", which the kernel itself may send."""
    kind = 1 if ":" in address else 3
    raw(address, icmp_protocol(address)).sendto(icmp_message(address, kind, secret), (address, 0))


def icmp_reply(address, port, secret):
    """An answer that nobody asked for."""
    kind = 129 if ":" in address else 0
    raw(address, icmp_protocol(address)).sendto(icmp_message(address, kind, secret), (address, 0))


# --- raw IP ---


def protocol(number):
    """Any other protocol, its ports where SCTP, DCCP and UDP-Lite have theirs."""
    def send(address, port, secret):
        raw(address, number).sendto(struct.pack(">HHHH", 40000, port, 8, 0) + secret, (address, 0))
    return send


def ip_header(address, number, payload, source, fragment=0):
    if ":" in address:
        return struct.pack(">IHBB", 6 << 28, len(payload), number, 64) + \
            socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, address)
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 4711, fragment, 64, number, 0) + \
        socket.inet_aton(source) + socket.inet_aton(address)


def forged_source(address):
    return "2001:db8:2::77" if ":" in address else "192.0.2.77"


def udp_segment(port, secret):
    return struct.pack(">HHHH", 40001, port, 8 + len(secret), 0) + secret


def raw_forged_udp(address, port, secret):
    segment = udp_segment(port, secret)
    packet = ip_header(address, 17, segment, forged_source(address)) + segment
    raw(address, socket.IPPROTO_RAW).sendto(packet, (address, 0))


def raw_forged_tcp(address, port, secret):
    """A segment in the middle of a connection that there is not: ACK and PSH, data."""
    segment = struct.pack(">HHIIBBHHH", 40002, port, 1000, 2000, 5 << 4, 0x18, 512, 0, 0) + secret
    source = "2001:db8:2::10" if ":" in address else "192.0.2.10"
    packet = ip_header(address, 6, segment, source) + segment
    raw(address, socket.IPPROTO_RAW).sendto(packet, (address, 0))


def raw_fragments(address, port, secret):
    """The ports in one fragment, the secret in the next."""
    segment = udp_segment(port, secret)
    sender = raw(address, socket.IPPROTO_RAW)
    first, second = segment[:8], segment[8:]
    sender.sendto(ip_header(address, 17, first, "192.0.2.10", 0x2000) + first, (address, 0))
    sender.sendto(ip_header(address, 17, second, "192.0.2.10", 1) + second, (address, 0))


# --- frames ---


def gateway_and_own():
    """The Ethernet addresses of the gateway and of eth0."""
    subprocess.run(["ping", "-c", "1", "-W", "1", "192.0.2.1"], stdout=subprocess.DEVNULL, check=False)
    with open("/proc/net/arp") as table:
        for line in table:
            fields = line.split()
            if fields[0] == "192.0.2.1":
                gateway = bytes.fromhex(fields[3].replace(":", ""))
    with open("/proc/net/route"):
        pass
    own = subprocess.run(["ip", "-o", "link", "show", "eth0"], capture_output=True, text=True, check=True).stdout
    words = own.split()
    own = bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))
    return gateway, own


def frame_payload(address, port, secret):
    segment = udp_segment(port, secret)
    source = "2001:db8:2::10" if ":" in address else "192.0.2.10"
    header = ip_header(address, 17, segment, source)
    if ":" not in address:
        header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
    return (0x86DD if ":" in address else 0x0800), header + segment


def packet_frame(address, port, secret, bypass=False, forged=False):
    gateway, own = gateway_and_own()
    if forged:
        own = bytes.fromhex("020000000077")
    kind, payload = frame_payload(address, port, secret)
    sender = opened(socket.AF_PACKET, socket.SOCK_RAW, 0)
    if bypass:
        sender.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
    sender.bind(("eth0", 0))
    sender.send(gateway + own + struct.pack(">H", kind) + payload)


def packet_bypass(address, port, secret):
    packet_frame(address, port, secret, bypass=True)


def packet_forged_mac(address, port, secret):
    packet_frame(address, port, secret, forged=True)


def packet_datagram(address, port, secret):
    """The kernel makes the Ethernet header."""
    gateway, _ = gateway_and_own()
    kind, payload = frame_payload(address, port, secret)
    sender = opened(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    sender.sendto(payload, ("eth0", kind, 0, 1, gateway))


def packet_ring(address, port, secret):
    """Through a ring in memory that is shared with the kernel (PACKET_TX_RING)."""
    gateway, own = gateway_and_own()
    kind, payload = frame_payload(address, port, secret)
    frame = gateway + own + struct.pack(">H", kind) + payload
    sender = opened(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.setsockopt(263, 10, 1)  # PACKET_VERSION, TPACKET_V2
    sender.setsockopt(263, 13, struct.pack("=IIII", 4096, 1, 2048, 2))  # PACKET_TX_RING
    sender.bind(("eth0", 0))
    ring = mmap.mmap(sender.fileno(), 4096)
    HELD.append(ring)
    ring[32:32 + len(frame)] = frame
    struct.pack_into("=II", ring, 0, 1, len(frame))  # TP_STATUS_SEND_REQUEST
    sender.send(b"")


def packet_many(address, port, secret):
    """By sendmmsg, from a socket that is bound to no interface."""
    gateway, own = gateway_and_own()
    kind, payload = frame_payload(address, port, secret)
    frame = gateway + own + struct.pack(">H", kind) + payload
    name = ctypes.create_string_buffer(
        struct.pack("=HHiHBB", socket.AF_PACKET, 0, socket.if_nametoindex("eth0"), 0, 0, 6) + gateway + bytes(2))
    data = ctypes.create_string_buffer(frame, len(frame))
    vector = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(data), len(frame)))
    header = struct.pack("=QIIQQQQII", ctypes.addressof(name), 20, 0, ctypes.addressof(vector), 1, 0, 0, 0, 0)
    messages = ctypes.create_string_buffer((header + bytes(8)) * 2)
    sender = opened(socket.AF_PACKET, socket.SOCK_RAW, 0)
    HELD.append((name, data, vector))
    checked(LIBC.sendmmsg(sender.fileno(), messages, 2, 0))


def packet_arp(address, port, secret):
    """A question for the address, with the secret behind it: it reaches the local network only."""
    gateway, own = gateway_and_own()
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + own + socket.inet_aton("192.0.2.10") + bytes(6)
    sender = opened(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.bind(("eth0", 0))
    sender.send(gateway + own + b"\x08\x06" + body + socket.inet_aton(address) + secret)


def packet_ethertype(address, port, secret):
    """A type of frame for experiments (IEEE 802): no IP at all."""
    gateway, own = gateway_and_own()
    sender = opened(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.bind(("eth0", 0))
    sender.send(gateway + own + b"\x88\xb5" + secret)


TECHNIQUES = {
    "tcp": tcp,
    "mptcp": mptcp,
    "tcp-bound": tcp_bound,
    "tcp-mapped": tcp_mapped,
    "tcp-fast-open": tcp_fast_open,
    "tcp-fast-open-connect": tcp_fast_open_connect,
    "tcp-fast-open-mapped": tcp_fast_open_mapped,
    "udp-sendto": udp_sendto,
    "udp-sendmsg": udp_sendmsg,
    "udp-sendmmsg": udp_sendmmsg,
    "udp-connected": udp_connected,
    "udp-corked": udp_corked,
    "udp-mapped": udp_mapped,
    "udp-large": udp_large,
    "udplite": udplite,
    "uring-connect": uring_connect,
    "uring-connect-async": uring_connect_async,
    "uring-sendmsg": uring_sendmsg,
    "uring-sendmsg-async": uring_sendmsg_async,
    "ping-socket": ping_socket,
    "ping-command": ping_command,
    "icmp-echo": icmp_echo,
    "icmp-error": icmp_error,
    "icmp-reply": icmp_reply,
    "ip-4": protocol(4),
    "ip-33": protocol(33),
    "ip-47": protocol(47),
    "ip-132": protocol(132),
    "ip-136": protocol(136),
    "ip-253": protocol(253),
    "raw-forged-udp": raw_forged_udp,
    "raw-forged-tcp": raw_forged_tcp,
    "raw-fragments": raw_fragments,
    "packet-frame": packet_frame,
    "packet-bypass": packet_bypass,
    "packet-forged-mac": packet_forged_mac,
    "packet-datagram": packet_datagram,
    "packet-ring": packet_ring,
    "packet-many": packet_many,
    "packet-arp": packet_arp,
    "packet-ethertype": packet_ethertype,
}


def main():
    technique, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    start = time.monotonic()
    try:
        TECHNIQUES[technique](address, port, os.environ["TOKEN"].encode())
        outcome = "sent"
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, str(error))
    elapsed = round((time.monotonic() - start) * 1000)
    print(f"{technique} {address}: {outcome} after {elapsed} ms", flush=True)
    release = os.path.join(os.environ["RELEASE"], f"{technique}-{address}")
    while not os.path.exists(release):
        time.sleep(0.01)


main()
