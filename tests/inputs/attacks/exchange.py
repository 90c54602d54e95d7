"""Ordinary network use of a program, one kind each; says `KIND: fine` or fails.

Usage: exchange.py KIND
"""

import socket
import sys
import threading


def echo_once(server):
    connection, _ = server.accept()
    connection.sendall(connection.recv(100))
    connection.close()


def tcp_on(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        threading.Thread(target=echo_once, args=(server,)).start()
        with socket.create_connection((address, server.getsockname()[1]), 5) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"


def udp_on(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as client:
        for one in (server, client):
            one.bind((address, 0))
            one.settimeout(5)
        client.sendto(b"hello", server.getsockname())
        data, peer = server.recvfrom(100)
        server.sendto(data, peer)
        assert client.recv(100) == b"hello"


def loopback():
    for address in ("127.0.0.1", "127.0.0.9", "::1", "192.0.2.10", "2001:db8:2::10"):
        tcp_on(address)
        udp_on(address)


def unreachable():
    """A datagram to an allowed port on which nobody is: the error must come back."""
    for address in ("198.51.100.60", "2001:db8:1::60"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect((address, 4433))
            client.send(b"anybody?")
            try:
                client.recv(100)
                raise AssertionError("an answer")
            except ConnectionRefusedError:
                pass


def echo_server():
    """Serves TCP on port 2222 of every address until it is killed."""
    with socket.create_server(("::", 2222), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        print("echo-server: listens", flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=echo_all, args=(connection,), daemon=True).start()


def echo_all(connection):
    while data := connection.recv(4096):
        connection.sendall(data)


{"loopback": loopback, "unreachable": unreachable, "echo-server": echo_server}[sys.argv[1]]()
print(f"{sys.argv[1]}: fine")
