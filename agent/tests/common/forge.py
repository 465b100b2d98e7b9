"""Sends frames that an honest kernel never would: forge.py DEVICE KIND COUNT key=value...

Values: mac, gw (Ethernet addresses), own4, own6, peer4, peer6 (a pod of the same node), node4, node6, far4, far6 (a pod of the other
node). With KIND "list" it prints the kinds and the names under which each is to be counted. With KIND "sctp" it sends an SCTP chunk
without checksum; "sctp-receive" waits for one and prints whether its checksum is right.
"""

import ipaddress
import socket
import struct
import sys


def address(text):
    return ipaddress.ip_address(text).packed


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(source, destination, protocol, payload, options=b"", ttl=64, fragment=0, wrong=0):
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), 7, fragment, ttl, protocol, 0)
    head += address(source) + address(destination) + options
    total = checksum(head) ^ wrong
    return head[:10] + struct.pack("!H", total) + head[12:] + payload


def ip6(source, destination, protocol, payload, hops=64, length=None):
    length = len(payload) if length is None else length
    return struct.pack("!IHBB", 6 << 28, length, protocol, hops) + address(source) + address(destination) + payload


def udp(port=9, data=b"margay"):
    return struct.pack("!HHHH", 5555, port, 8 + len(data), 0) + data


def udp6(source, destination, port=9, data=b"margay"):
    plain = udp(port, data)
    pseudo = address(source) + address(destination) + struct.pack("!II", len(plain), 17)
    return plain[:6] + struct.pack("!H", checksum(pseudo + plain) or 0xFFFF) + plain[8:]


def icmp(kind, code, rest):
    body = struct.pack("!BBH", kind, code, 0) + rest
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def icmp6(source, destination, kind, rest, hops=255):
    body = struct.pack("!BBH", kind, 0, 0) + rest
    pseudo = address(source) + address(destination) + struct.pack("!II", len(body), 58)
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    return ip6(source, destination, 58, body, hops)


def link_local(hardware):
    m = mac(hardware)
    host = bytes([m[0] ^ 2]) + m[1:3] + b"\xff\xfe" + m[3:]
    return str(ipaddress.ip_address(b"\xfe\x80" + b"\0" * 6 + host))


def arp(operation, sender_mac, sender, target):
    return struct.pack("!HHBBH", 1, 0x800, 6, 4, operation) + mac(sender_mac) + address(sender) + b"\0" * 6 + address(target)


IP4, IP6, ARP = 0x0800, 0x86DD, 0x0806


def frames(v):
    """Every forgery by name: (reason, destination or None for the gateway, source or None for the own one, type, payload)."""
    own4, own6, peer4, peer6 = v["own4"], v["own6"], v["peer4"], v["peer6"]
    node4, node6, far4, far6 = v["node4"], v["node6"], v["far4"], v["far6"]
    ll = link_local(v["mac"])
    honest4 = ip4(own4, peer4, 17, udp())

    def plain(reason, payload):
        return (reason, None, None, IP4 if payload[0] >> 4 == 4 else IP6, payload)

    def from4(reason, source, to=peer4):
        return plain(reason, ip4(source, to, 17, udp()))

    def from6(reason, source, to=peer6):
        return plain(reason, ip6(source, to, 17, udp6(source, to)))

    tcp = struct.pack("!HHIIBBHHH", 5555, 80, 1, 0, 0x50, 2, 1000, 0, 0)
    route4 = bytes([7]) + address(node4)
    ra = struct.pack("!BBHII", 64, 0, 1800, 0, 0)
    option = lambda kind: bytes([kind, 1]) + mac(v["mac"])
    other_mac = "02:00:00:00:00:99"
    tagged = struct.pack("!HH", 7, IP4) + honest4
    pod = {
        "another pod's address": from4("spoofed_pod_source", peer4, far4),
        "another pod's address, IPv6": from6("spoofed_pod_source", peer6, far6),
        "the node's address": from4("spoofed_pod_source", node4),
        "the node's address, IPv6": from6("spoofed_pod_source", node6),
        "a stranger's address": from4("spoofed_pod_source", "203.0.113.5"),
        "a link-local source across the gateway": from6("spoofed_pod_source", ll),
        "a VLAN tag": ("vlan_tagged", None, None, 0x8100, tagged),
        "a provider tag": ("vlan_tagged", None, None, 0x88A8, struct.pack("!HH", 9, 0x8100) + tagged),
        "another Ethernet source": ("bad_ethernet", None, other_mac, IP4, honest4),
        "another Ethernet destination": ("bad_ethernet", other_mac, None, IP4, honest4),
        "unicast IP in an Ethernet broadcast": ("bad_ethernet", "ff:ff:ff:ff:ff:ff", None, IP4, honest4),
        "an unknown EtherType": ("unknown_ethertype", None, None, 0x88B5, b"\0" * 50),
        "a frame too short": ("truncated", None, None, IP4, honest4[:12]),
        "less than announced": ("truncated", None, None, IP4, ip4(own4, peer4, 17, udp(9, b"x" * 400))[:100]),
        "a wrong header checksum": plain("bad_ipv4_header", ip4(own4, peer4, 17, udp(), wrong=0x1111)),
        "version 5": ("bad_ipv6_header", None, None, IP6, b"\x50" + ip6(own6, peer6, 17, udp())[1:]),
        "a TCP header of 8 bytes": plain("bad_transport_header", ip4(own4, peer4, 6, tcp[:12] + b"\x20" + tcp[13:])),
        "SYN and FIN": plain("bad_transport_header", ip4(own4, peer4, 6, tcp[:13] + b"\x03" + tcp[14:])),
        "a loose source route": plain("source_routing", ip4(own4, peer4, 17, udp(), bytes([131, 7, 4]) + address(node4) + b"\0")),
        "a strict source route": plain("source_routing", ip4(own4, peer4, 17, udp(), bytes([137, 7, 4]) + address(node4) + b"\0")),
        "a routing header": plain("source_routing", ip6(own6, peer6, 43, struct.pack("!BBBBI", 17, 2, 0, 1, 0) + address(node6) + udp())),
        "to loopback": from4("martian_destination", own4, "127.0.0.1"),
        "to loopback, IPv6": from6("martian_destination", own6, "::1"),
        "to a mapped address": from6("martian_destination", own6, "::ffff:192.0.2.1"),
        "to 240.0.0.0/4": from4("martian_destination", own4, "240.0.0.9"),
        "to 0.0.0.0/8": from4("martian_destination", own4, "0.1.2.3"),
        "from loopback": from4("martian_source", "127.0.0.1"),
        "from loopback, IPv6": from6("martian_source", "::1"),
        "from a group": from4("martian_source", "224.0.0.5"),
        "from a group, IPv6": from6("martian_source", "ff02::5"),
        "to a group": ("multicast", "01:00:5e:01:02:03", None, IP4, ip4(own4, "239.1.2.3", 17, udp())),
        "to a group, IPv6": ("multicast", "33:33:00:00:12:34", None, IP6, ip6(own6, "ff05::1234", 17, udp6(own6, "ff05::1234"))),
        "to everybody": ("multicast", "ff:ff:ff:ff:ff:ff", None, IP4, ip4(own4, "255.255.255.255", 17, udp())),
        "to a link-local stranger": from4("link_local_destination", own4, "169.254.7.7"),
        "to a link-local stranger, IPv6": from6("link_local_destination", own6, "fe80::7777"),
        "ARP that claims the gateway": ("bad_arp", "ff:ff:ff:ff:ff:ff", None, ARP, arp(2, v["mac"], "169.254.1.1", own4)),
        "gratuitous ARP": ("bad_arp", "ff:ff:ff:ff:ff:ff", None, ARP, arp(1, v["mac"], own4, own4)),
        "ARP in another pod's name": ("bad_arp", "ff:ff:ff:ff:ff:ff", None, ARP, arp(1, v["mac"], peer4, "169.254.1.1")),
        "ARP with another Ethernet address": ("bad_arp", "ff:ff:ff:ff:ff:ff", None, ARP, arp(1, other_mac, own4, "169.254.1.1")),
        "ARP for another pod": ("arp_not_for_us", "ff:ff:ff:ff:ff:ff", None, ARP, arp(1, v["mac"], own4, peer4)),
        "an advertisement of the gateway": plain("bad_neighbour_discovery", icmp6(ll, "fe80::1", 136, struct.pack("!I", 0x20000000) + address("fe80::1") + option(2))),
        "an advertisement of another pod": plain("bad_neighbour_discovery", icmp6(ll, "fe80::1", 136, struct.pack("!I", 0x20000000) + address(peer6) + option(2))),
        "a solicitation for another pod": plain("bad_neighbour_discovery", icmp6(own6, "fe80::1", 135, struct.pack("!I", 0) + address(peer6) + option(1))),
        "a solicitation with few hops": plain("bad_neighbour_discovery", icmp6(own6, "fe80::1", 135, struct.pack("!I", 0) + address("fe80::1") + option(1), 64)),
        "a router advertisement": ("router_advertisement", "33:33:00:00:00:01", None, IP6, icmp6(ll, "ff02::1", 134, ra)),
        "a router advertisement to a pod": plain("router_advertisement", icmp6(own6, peer6, 134, ra)),
        "a redirect": plain("redirect", ip4(own4, peer4, 1, icmp(5, 1, address(own4) + honest4[:28]))),
        "a redirect, IPv6": plain("redirect", icmp6(own6, peer6, 137, struct.pack("!I", 0) + address(own6) + address(far6))),
        "IP in IP to the node": plain("encapsulation", ip4(own4, node4, 4, ip4(node4, far4, 17, udp()))),
        "IP in IP to another node": plain("encapsulation", ip4(own4, v["other4"], 4, ip4(node4, far4, 17, udp()))),
        "VXLAN": plain("encapsulation", ip4(own4, node4, 17, udp(4789, b"\x08" + b"\0" * 7 + mac(v["gw"]) + mac(v["mac"]) + b"\x08\0" + honest4))),
        "VXLAN, IPv6": plain("encapsulation", ip6(own6, node6, 17, udp6(own6, node6, 4789, b"\x08" + b"\0" * 40))),
        "an error about nothing": plain("icmp_unrelated", ip4(own4, peer4, 1, icmp(3, 1, b"\0" * 4 + ip4(peer4, own4, 17, udp(4242))[:28]))),
        "an error about nothing, IPv6": plain("icmp_unrelated", icmp6(own6, peer6, 1, b"\0" * 4 + ip6(peer6, own6, 17, udp(4242)))),
        "a fragment for the gateway": plain("fragment_for_gateway", ip4(own4, "169.254.1.1", 17, b"x" * 64, fragment=100)),
        "a fragment beyond the end": plain("bad_fragment", ip4(own4, peer4, 17, b"x" * 64, fragment=0x1FFF)),
        "a tiny first fragment": plain("bad_fragment", ip4(own4, peer4, 6, tcp[:8], fragment=0x2000)),
        "the last hop": plain("ttl_expired", ip4(own4, far4, 17, udp(), ttl=1)),
        "nowhere": from4("no_route", own4, "203.0.113.9"),
        "nowhere, IPv6": from6("no_route", own6, "2001:db8:ffff::1"),
        "an address of this node that no pod has": from4("no_route", own4, v["unused4"]),
    }
    wire = {
        "a local pod's address": from4("spoofed_uplink_source", peer4, own4),
        "a local pod's address, IPv6": from6("spoofed_uplink_source", peer6, own6),
        "an address that a local pod may get": from4("spoofed_uplink_source", v["unused4"], own4),
        "the node's own address": from4("spoofed_uplink_source", node4, own4),
        "the node's own address, IPv6": from6("spoofed_uplink_source", node6, own6),
        "a remote pod's address": from4("wrong_path_source", far4, own4),
        "a remote pod's address, IPv6": from6("wrong_path_source", far6, own6),
        "a local pod's address, to the node": from4("spoofed_uplink_source", peer4, node4),
        "a local pod's address, to the node, IPv6": from6("spoofed_uplink_source", peer6, node6),
        "a remote pod's address, to the node": from4("wrong_path_source", far4, node4),
        "a remote pod's address, to the node, IPv6": from6("wrong_path_source", far6, node6),
        "loopback": from4("martian_source", "127.0.0.1", own4),
        "loopback, IPv6": from6("martian_source", "::1", own6),
    }
    host = {
        "a local pod's address": from4("spoofed_host_source", peer4, own4),
        "a local pod's address, IPv6": from6("spoofed_host_source", peer6, own6),
    }
    # Routed by the node's kernel, which does not mind where rp_filter is off.
    stranger = {
        "a local pod's address": from4("spoofed_host_source", peer4, own4),
        "a local pod's address, IPv6": from6("spoofed_host_source", peer6, own6),
    }
    return {"pod": pod, "wire": wire, "host": host, "stranger": stranger}[v["as"]]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def sctp_chunk():
    init = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65535, 1, 1, 1)
    return struct.pack("!HHII", 5555, 7777, 0, 0) + init


def sctp_receive(family):
    waiting = socket.socket(family, socket.SOCK_RAW, 132)
    waiting.settimeout(5)
    print("waiting", flush=True)
    packet = waiting.recv(2000)
    if family == socket.AF_INET:
        packet = packet[(packet[0] & 15) * 4 :]
    right = packet[8:12] == crc32c(packet[:8] + b"\0" * 4 + packet[12:])
    print("right" if right else "wrong " + packet.hex(), flush=True)


def main():
    device, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    v = dict(pair.split("=", 1) for pair in sys.argv[4:])
    if kind == "sctp-receive":
        sctp_receive(socket.AF_INET if v["family"] == "4" else socket.AF_INET6)
        return
    sending = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sending.bind((device, 0))
    if kind == "sctp":
        for packet in (ip4(v["own4"], v["peer4"], 132, sctp_chunk()), ip6(v["own6"], v["peer6"], 132, sctp_chunk())):
            family = struct.pack("!H", IP4 if packet[0] >> 4 == 4 else IP6)
            sending.send(mac(v["gw"]) + mac(v["mac"]) + family + packet)
        return
    known = frames(v)
    if kind == "list":
        for name, frame in known.items():
            print(name, frame[0], sep="\t")
        return
    _, to, source, ethertype, payload = known[kind]
    for _ in range(count):
        sending.send(mac(to or v["gw"]) + mac(source or v["mac"]) + struct.pack("!H", ethertype) + payload)


main()
