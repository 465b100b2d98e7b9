"""Large UDP datagrams between pods.

datagrams.py serve PORT                        answers each datagram with its hash
datagrams.py ask ADDRESS PORT MODE LENGTH...   sends one datagram of each length, its socket's path-MTU discovery in this mode (linux/in.h,
                                               linux/in6.h: 1 WANT, 3 PROBE, 4 INTERFACE, 5 OMIT), and prints those lengths that arrive
                                               unchanged; a loss is tried again twice
"""

import hashlib
import socket
import sys

IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23


def serve(port):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("::", port))
    print("ready", flush=True)
    while True:
        data, sender = sock.recvfrom(65535)
        sock.sendto(hashlib.sha256(data).digest(), sender)


def ask(address, port, mode, lengths):
    six = ":" in address
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    if six:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, mode)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mode)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sock.settimeout(1)
    for length in lengths:
        data = bytes((at * 31 + at // 256 + length) & 0xFF for at in range(length))
        for _ in range(3):
            sock.sendto(data, (address, port))
            try:
                answer = sock.recvfrom(64)[0]
            except TimeoutError:
                continue
            if answer == hashlib.sha256(data).digest():
                print(length, flush=True)
                break


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), [int(text) for text in sys.argv[5:]])
