// SPDX-License-Identifier: Apache-2.0
/*
 * What the kernel runs for us on every port. A program decides one thing: does this frame go to the socket of its (device, queue)?
 *
 *            pod, host                       uplink
 *   owner alive   -> socket, or drop         ours by address, or WireGuard to us, or between nodes that seal -> socket, or pass; else pass
 *   owner silent  -> drop                    pass
 *
 * "Alive" means that the worker which owns the queue stamped the heartbeat less than a second ago. A pod port therefore fails
 * closed, and a NIC fails to the kernel: a dead, stopped or deadlocked agent never costs the machine its own network.
 */
#include "bpf.h"

#define HEARTBEAT_LIMIT_NS 1000000000ULL
#define MAX_SLOTS 4096

/* A receive queue of a device. */
struct queue {
	u32 ifindex;
	u32 queue;
};

/* Where its frames go: an index into `sockets`, and whose heartbeat counts. */
struct owner {
	u32 slot;
	u32 worker;
};

/* An IPv4 address is written as ::ffff:a.b.c.d, so one trie holds both families. */
struct prefix {
	u32 length;
	u8 address[16];
};

struct {
	NUMBER(type, MAP_XSKMAP);
	NUMBER(max_entries, MAX_SLOTS);
	TYPE(key, u32);
	TYPE(value, u32);
} sockets SEC(".maps");

struct {
	NUMBER(type, MAP_HASH);
	NUMBER(max_entries, MAX_SLOTS);
	TYPE(key, struct queue);
	TYPE(value, struct owner);
} owners SEC(".maps");

/* One stamp per worker: CLOCK_MONOTONIC in nanoseconds. */
struct {
	NUMBER(type, MAP_ARRAY);
	NUMBER(max_entries, 256);
	TYPE(key, u32);
	TYPE(value, u64);
} heartbeat SEC(".maps");

/* Addresses of this node's pods: frames to them are ours. */
struct {
	NUMBER(type, MAP_LPM_TRIE);
	NUMBER(max_entries, 16384);
	NUMBER(map_flags, MAP_FLAG_NO_PREALLOC);
	TYPE(key, struct prefix);
	TYPE(value, u8);
} local_pods SEC(".maps");

/* Addresses of all pods of the cluster: frames from them are ours. */
struct {
	NUMBER(type, MAP_LPM_TRIE);
	NUMBER(max_entries, 16384);
	NUMBER(map_flags, MAP_FLAG_NO_PREALLOC);
	TYPE(key, struct prefix);
	TYPE(value, u8);
} cluster_pods SEC(".maps");

/* A UDP address, the address as in `prefix`, the port as on the wire. */
struct door {
	u8 address[16];
	u16 port;
	u16 zero;
};

/* Where WireGuard comes in at this node. */
struct {
	NUMBER(type, MAP_HASH);
	NUMBER(max_entries, 16);
	TYPE(key, struct door);
	TYPE(value, u8);
} doors SEC(".maps");

/* An address as in `prefix`. */
struct address {
	u8 octets[16];
};

/* Nodes that seal what they say to this one, and this node's own addresses: what goes between the two in clear is ours to refuse. */
struct {
	NUMBER(type, MAP_HASH);
	NUMBER(max_entries, 65536);
	NUMBER(map_flags, MAP_FLAG_NO_PREALLOC);
	TYPE(key, struct address);
	TYPE(value, u8);
} sealing_nodes SEC(".maps");

struct {
	NUMBER(type, MAP_HASH);
	NUMBER(max_entries, 4096);
	NUMBER(map_flags, MAP_FLAG_NO_PREALLOC);
	TYPE(key, struct address);
	TYPE(value, u8);
} own_addresses SEC(".maps");

/* The two ends of the host port's veth pair. */
struct host_pair {
	u32 kernel_end;
	u32 our_end;
};

/* NICs whose outgoing frames are ours to judge, and the host port that they take instead. */
struct {
	NUMBER(type, MAP_HASH);
	NUMBER(max_entries, 256);
	TYPE(key, u32);
	TYPE(value, struct host_pair);
} governed SEC(".maps");

/*
 * Every program exists twice: for drivers that deliver packets in several fragments (and, with that, large MTUs), and, as NAME_plain,
 * for those that refuse such programs.
 */
#define PROGRAM(name)                                                                                                          \
	INLINE int name##_body(struct xdp_md *frame);                                                                          \
	SEC("xdp.frags") int name(struct xdp_md *frame)                                                                        \
	{                                                                                                                      \
		return name##_body(frame);                                                                                     \
	}                                                                                                                      \
	SEC("xdp") int name##_plain(struct xdp_md *frame)                                                                      \
	{                                                                                                                      \
		return name##_body(frame);                                                                                     \
	}                                                                                                                      \
	INLINE int name##_body(struct xdp_md *frame)

/* The owner of a queue while it lives, else nothing. */
INLINE struct owner *living_owner(u32 ifindex, u32 queue)
{
	struct queue key = { .ifindex = ifindex, .queue = queue };
	struct owner *owner = bpf_map_lookup_elem(&owners, &key);
	if (!owner)
		return 0;

	u32 worker = owner->worker;
	u64 *stamp = bpf_map_lookup_elem(&heartbeat, &worker);
	/* The sum, not the difference: a stamp written after we read the clock lies in the future and is fresh. */
	if (!stamp || *(volatile u64 *)stamp + HEARTBEAT_LIMIT_NS <= bpf_ktime_get_ns())
		return 0;
	return owner;
}

/* Redirects to the queue's socket while its owner lives; `otherwise` in every other case. */
INLINE int to_socket(struct xdp_md *frame, enum xdp_action otherwise)
{
	struct owner *owner = living_owner(frame->ingress_ifindex, frame->rx_queue_index);
	if (!owner)
		return otherwise;
	return bpf_redirect_map(&sockets, owner->slot, otherwise);
}

PROGRAM(pod_port)
{
	return to_socket(frame, XDP_DROP);
}

PROGRAM(host_port)
{
	return to_socket(frame, XDP_DROP);
}

/* Stands on a pod's device from its making until the agent takes it in. */
PROGRAM(closed_port)
{
	(void)frame;
	return XDP_DROP;
}

INLINE void map_v4(struct prefix *key, const u8 *address)
{
	key->length = 128;
	__builtin_memset(key->address, 0, 10);
	key->address[10] = 0xff;
	key->address[11] = 0xff;
	__builtin_memcpy(key->address + 12, address, 4);
}

INLINE void map_v6(struct prefix *key, const u8 *address)
{
	key->length = 128;
	__builtin_memcpy(key->address, address, 16);
}

/*
 * Whether a datagram with the UDP header at `udp` goes to a door of ours. Of one in fragments only the first has that header: it goes to
 * the worker, which drops it by name, and the others to the kernel, which waits for the first in vain.
 */
INLINE int is_for_door(const u8 *udp, const u8 *end, const struct prefix *destination)
{
	struct door door = {};

	if (udp + 8 > end)
		return 0;
	__builtin_memcpy(door.address, destination->address, 16);
	__builtin_memcpy(&door.port, udp + 2, 2);
	return bpf_map_lookup_elem(&doors, &door) != 0;
}

/*
 * Whether a packet between two addresses is one between nodes that seal. Neighbour discovery (type 133 to 137, `icmp6`) is of the link
 * and never sealed.
 */
INLINE int is_between_nodes(const struct prefix *source, const struct prefix *destination, const u8 *icmp6, const u8 *end)
{
	struct address from, to;

	__builtin_memcpy(from.octets, source->address, 16);
	__builtin_memcpy(to.octets, destination->address, 16);
	if (!bpf_map_lookup_elem(&sealing_nodes, &from) || !bpf_map_lookup_elem(&own_addresses, &to))
		return 0;
	return !icmp6 || icmp6 + 1 > end || icmp6[0] < 133 || icmp6[0] > 137;
}

PROGRAM(uplink)
{
	const u8 *data = (const u8 *)(u64)frame->data;
	const u8 *end = (const u8 *)(u64)frame->data_end;
	struct prefix source, destination;
	const u8 *udp = 0, *icmp6 = 0;

	if (data + 14 > end)
		return XDP_PASS;
	const u8 *ip = data + 14;
	if (data[12] == 0x08 && data[13] == 0x00) {
		if (ip + 20 > end)
			return XDP_PASS;
		map_v4(&source, ip + 12);
		map_v4(&destination, ip + 16);
		/* No options, UDP, not a later fragment. */
		if (ip[0] == 0x45 && ip[9] == 17 && !(ip[6] & 0x1f) && !ip[7])
			udp = ip + 20;
	} else if (data[12] == 0x86 && data[13] == 0xdd) {
		if (ip + 40 > end)
			return XDP_PASS;
		map_v6(&source, ip + 8);
		map_v6(&destination, ip + 24);
		if (ip[6] == 17)
			udp = ip + 40;
		if (ip[6] == 58)
			icmp6 = ip + 40;
	} else {
		return XDP_PASS;
	}

	if (bpf_map_lookup_elem(&local_pods, &destination) || bpf_map_lookup_elem(&cluster_pods, &source))
		return to_socket(frame, XDP_PASS);
	if (udp && is_for_door(udp, end, &destination))
		return to_socket(frame, XDP_PASS);
	if (is_between_nodes(&source, &destination, icmp6, end))
		return to_socket(frame, XDP_PASS);
	return XDP_PASS;
}

/*
 * Whether an IPv6 frame is neighbour discovery or multicast listener discovery. Both end at this link, and without them the NIC has no
 * neighbours to send to, so they stay with the kernel as ARP does (policy model 14.6, PM-D13).
 */
INLINE int is_link_business(struct __sk_buff *frame)
{
	u8 next, hops, type, option[2];
	u32 at = 14 + 40;

	if (bpf_skb_load_bytes(frame, 14 + 6, &next, 1) || bpf_skb_load_bytes(frame, 14 + 7, &hops, 1))
		return 0;
	if (next == 0) {
		/* Listener reports carry a router alert of eight bytes in a hop-by-hop header. */
		if (bpf_skb_load_bytes(frame, at, option, 2) || option[1] != 0)
			return 0;
		next = option[0];
		at += 8;
	}
	if (next != 58 || bpf_skb_load_bytes(frame, at, &type, 1))
		return 0;
	if (type >= 133 && type <= 136)
		return hops == 255;
	return hops == 1 && ((type >= 130 && type <= 132) || type == 143);
}

/*
 * Stands where the kernel's frames leave a NIC. AF_XDP sends below this point, so what the worker sends never comes by here.
 *
 * The way is: out through the kernel's end of the host port, in at ours, where the XDP program finds it. Putting the frame into our end
 * directly would not do: BPF_F_INGRESS goes behind the driver, where native XDP does not look, and bpf_redirect_peer works at tc
 * ingress and into other namespaces only. Leaving through the kernel's end also has the kernel cut large segments, which a veth end
 * does for a peer with XDP.
 */
SEC("classifier") int uplink_egress(struct __sk_buff *frame)
{
	u32 device = frame->ifindex;
	struct host_pair *pair = bpf_map_lookup_elem(&governed, &device);

	/* A tag belongs to another interface above this one. */
	if (!pair || frame->vlan_present)
		return TC_NEXT;
	if (frame->protocol == NETWORK16(0x86dd)) {
		if (is_link_business(frame))
			return TC_NEXT;
	} else if (frame->protocol != NETWORK16(0x0800)) {
		return TC_NEXT;
	}
	if (!living_owner(pair->our_end, 0))
		return TC_NEXT;
	return bpf_redirect(pair->kernel_end, 0);
}

/* The helpers used here are open to every licence; the declaration is only what the loader expects. */
char LICENSE[] SEC("license") = "Apache-2.0";
