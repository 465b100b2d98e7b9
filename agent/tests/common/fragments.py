"""Raw fragments of UDP datagrams, from inside a pod.

fragments.py listen PORT SECONDS        prints the length and hash of each datagram that arrives
fragments.py send FROM TO PORT ORDER    sends one datagram of 4,000 bytes from the device eth0 in fragments, in this order (`2,0,1`);
                                        a part `1a` is the second fragment with other bytes than the datagram has
"""

import hashlib
import socket
import struct
import subprocess
import sys
import time

PAYLOAD = bytes((at // 8 * 7 + at % 8 * 31) & 0xFF for at in range(4000))
STEP = 1440


def folded(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def listen(port, seconds):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("::", port))
    print("ready", flush=True)
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            data, _ = sock.recvfrom(65535)
        except TimeoutError:
            return
        print(len(data), hashlib.sha256(data).hexdigest()[:16], flush=True)


def send(source, target, port, order):
    v6 = ":" in source
    family = socket.AF_INET6 if v6 else socket.AF_INET
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    length = 8 + len(PAYLOAD)
    head = struct.pack("!HHHH", 1111, port, length, 0)
    pseudo = addresses + struct.pack("!IHH" if v6 else "!HBB", *((length, 0, 17) if v6 else (length, 0, 17)))
    total = folded(pseudo + head + PAYLOAD) or 0xFFFF
    whole = struct.pack("!HHHH", 1111, port, length, total) + PAYLOAD
    link = subprocess.run(["ip", "-o", "link", "show", "eth0"], capture_output=True, text=True, check=True).stdout
    own = link.split("link/ether ")[1].split()[0].split(":")
    gateway = "fe80::1" if v6 else "169.254.1.1"
    neighbours = subprocess.run(["ip", "neigh", "show", gateway], capture_output=True, text=True, check=True).stdout
    hop = neighbours.split("lladdr ")[1].split()[0].split(":")
    ethernet = bytes(int(octet, 16) for octet in hop + own) + (b"\x86\xdd" if v6 else b"\x08\x00")
    number = int(time.monotonic() * 1000) & 0xFFFF
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind(("eth0", 0))
    for name in order.split(","):
        at = int(name.rstrip("a"))
        part = whole[at * STEP : (at + 1) * STEP]
        if name.endswith("a"):
            # One byte longer at the end than its place: it overlaps its neighbour, or goes on behind the end.
            part = b"\xee" * (len(part) + 8)
        more = int((at + 1) * STEP < len(whole))
        if v6:
            packet = struct.pack("!IHBB", 6 << 28, 8 + len(part), 44, 64) + addresses
            packet += struct.pack("!BBHI", 17, 0, at * STEP | more, number) + part
        else:
            place = more << 13 | at * STEP // 8
            packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(part), number, place, 64, 17, 0) + addresses
            packet = packet[:10] + struct.pack("!H", folded(packet)) + packet[12:] + part
        sock.send(ethernet + packet)
        time.sleep(0.02)


if sys.argv[1] == "listen":
    listen(int(sys.argv[2]), float(sys.argv[3]))
else:
    send(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
