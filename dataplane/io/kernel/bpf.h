/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The little of the kernel's BPF interface that these programs use, written out here, so that building them takes clang and
 * nothing else. The numbers are user-space ABI (include/uapi/linux/bpf.h) and never change.
 */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/* How libbpf-style map definitions spell a number and a type for BTF. */
#define NUMBER(name, value) int(*name)[value]
#define TYPE(name, value) value *name

enum { MAP_HASH = 1, MAP_ARRAY = 2, MAP_LPM_TRIE = 11, MAP_XSKMAP = 17 };
enum { MAP_FLAG_NO_PREALLOC = 1 };
enum xdp_action { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };

struct xdp_md {
	u32 data;
	u32 data_end;
	u32 data_meta;
	u32 ingress_ifindex;
	u32 rx_queue_index;
	u32 egress_ifindex;
};

/* A number as it is in network order. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NETWORK16(number) __builtin_bswap16(number)
#else
#define NETWORK16(number) (number)
#endif

/* What a tc program returns for "the next program or filter, if there is one; else on its way". */
#define TC_NEXT (-1)

/* A packet as tc programs see it, as far as they read it here. */
struct __sk_buff {
	u32 len;
	u32 pkt_type;
	u32 mark;
	u32 queue_mapping;
	u32 protocol;
	u32 vlan_present;
	u32 vlan_tci;
	u32 vlan_proto;
	u32 priority;
	u32 ingress_ifindex;
	u32 ifindex;
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static long (*bpf_redirect_map)(void *map, u64 key, u64 action_otherwise) = (void *)51;
static long (*bpf_redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*bpf_skb_load_bytes)(const void *skb, u32 offset, void *to, u32 len) = (void *)26;
