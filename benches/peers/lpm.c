// SPDX-License-Identifier: Apache-2.0
/*
 * The peer of the `membership` bench: one look-up in the kernel's longest-prefix-match trie, with the key that Calico's eBPF dataplane
 * uses for its address sets. A run looks up LOOKUPS addresses out of an array of random ones and goes on where the last run stopped;
 * `empty` does the same without the look-up, so the difference is the trie's.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define NUMBER(name, value) int(*name)[value]
#define TYPE(name, value) value *name
#define INLINE static inline __attribute__((always_inline))

enum { MAP_ARRAY = 2, MAP_LPM_TRIE = 11 };
enum { MAP_FLAG_NO_PREALLOC = 1 };
enum { XDP_PASS = 2 };

#define LOOKUPS 256
#define ADDRESSES (1 << 20)

struct member {
	u32 prefix_length;
	u64 set;
	u32 address;
	u16 port;
	u8 protocol;
	u8 unused;
} __attribute__((packed));

struct {
	NUMBER(type, MAP_LPM_TRIE);
	NUMBER(max_entries, 2 << 20);
	NUMBER(map_flags, MAP_FLAG_NO_PREALLOC);
	TYPE(key, struct member);
	TYPE(value, u32);
} members SEC(".maps");

struct {
	NUMBER(type, MAP_ARRAY);
	NUMBER(max_entries, ADDRESSES);
	TYPE(key, u32);
	TYPE(value, u32);
} addresses SEC(".maps");

/* Where the next run starts, and how many look-ups found something: the result must be used. */
struct state {
	u64 next;
	u64 found;
};

struct {
	NUMBER(type, MAP_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct state);
} states SEC(".maps");

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;

INLINE int walk(int with_trie)
{
	struct member member = { .prefix_length = 128, .set = 0x0102030405060708 };
	u32 zero = 0;
	struct state *state = bpf_map_lookup_elem(&states, &zero);

	if (!state)
		return 0;
	for (u32 n = 0; n < LOOKUPS; n++) {
		u32 at = state->next++ & (ADDRESSES - 1);
		u32 *address = bpf_map_lookup_elem(&addresses, &at);

		if (!address)
			return 0;
		member.address = *address;
		if (with_trie) {
			if (bpf_map_lookup_elem(&members, &member))
				state->found++;
		} else {
			state->found += member.address & 1;
		}
	}
	return XDP_PASS;
}

SEC("xdp") int trie(void *context)
{
	(void)context;
	return walk(1);
}

SEC("xdp") int empty(void *context)
{
	(void)context;
	return walk(0);
}

char terms[] SEC("license") = "GPL";
