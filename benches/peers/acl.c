// SPDX-License-Identifier: Apache-2.0
/*
 * The peer of the `decision` bench: DPDK's ACL library over the rules and packets that the bench generated.
 *
 *   acl RULES PACKETS
 *
 * RULES holds one rule a line, the first that matches decides: `source length destination length protocol first last action`, with
 * addresses as numbers, ports of the destination as an inclusive interval, and action 1 (allow) or 2 (deny).
 * PACKETS is an array of `struct packet`. Printed are `name value` lines: build_ms, then for every instruction set that the
 * processor has, ns per lookup in batches of 64 (the median of all passes of some 60 us), and how many packets were allowed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_acl.h>
#include <rte_eal.h>
#include <rte_errno.h>

#define BATCH 64
#define BATCHES 32
#define SAMPLES 2000

/* As on the wire: everything but the protocol in network order. */
struct packet {
	uint8_t protocol;
	uint8_t unused[3];
	uint32_t source;
	uint32_t destination;
	uint16_t source_port;
	uint16_t destination_port;
};

enum { PROTOCOL, SOURCE, DESTINATION, SOURCE_PORT, DESTINATION_PORT, FIELDS };

#define FIELD(name, member, kind, word)                                                   \
	[name] = { .type = RTE_ACL_FIELD_TYPE_##kind, .field_index = name, .input_index = word, \
		   .size = sizeof(((struct packet *)0)->member), .offset = offsetof(struct packet, member) }

static const struct rte_acl_field_def fields[FIELDS] = {
	FIELD(PROTOCOL, protocol, BITMASK, 0),
	FIELD(SOURCE, source, MASK, 1),
	FIELD(DESTINATION, destination, MASK, 2),
	FIELD(SOURCE_PORT, source_port, RANGE, 3),
	FIELD(DESTINATION_PORT, destination_port, RANGE, 3),
};

RTE_ACL_RULE_DEF(rule, FIELDS);

static void fail(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error < 0 ? -error : error));
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void load(struct rte_acl_ctx *acl, const char *path)
{
	FILE *file = fopen(path, "r");
	uint32_t source, source_length, destination, destination_length, protocol, first, last, action;
	uint32_t count = 0;

	if (!file)
		fail(path, errno);
	while (fscanf(file, "%" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32,
		      &source, &source_length, &destination, &destination_length, &protocol, &first, &last, &action) == 8) {
		struct rule rule = {
			.data = { .userdata = action, .category_mask = 1, .priority = RTE_ACL_MAX_PRIORITY - count++ },
		};
		rule.field[PROTOCOL].value.u8 = protocol;
		rule.field[PROTOCOL].mask_range.u8 = 0xff;
		rule.field[SOURCE].value.u32 = source;
		rule.field[SOURCE].mask_range.u32 = source_length;
		rule.field[DESTINATION].value.u32 = destination;
		rule.field[DESTINATION].mask_range.u32 = destination_length;
		rule.field[SOURCE_PORT].mask_range.u16 = 0xffff;
		rule.field[DESTINATION_PORT].value.u16 = first;
		rule.field[DESTINATION_PORT].mask_range.u16 = last;
		int error = rte_acl_add_rules(acl, (struct rte_acl_rule *)&rule, 1);
		if (error)
			fail("rte_acl_add_rules", error);
	}
	fclose(file);
}

static void measure(struct rte_acl_ctx *acl, const char *name, enum rte_acl_classify_alg set,
		    const struct packet *packets, uint32_t count)
{
	const uint8_t *batch[BATCH];
	uint32_t results[BATCH], at = 0, allowed = 0;
	static double samples[SAMPLES];

	if (rte_acl_set_ctx_classify(acl, set) != 0)
		return;
	for (uint32_t i = 0; i + BATCH <= count; i += BATCH) {
		for (uint32_t j = 0; j < BATCH; j++)
			batch[j] = (const uint8_t *)&packets[i + j];
		rte_acl_classify(acl, batch, results, BATCH, 1);
		for (uint32_t j = 0; j < BATCH; j++)
			allowed += results[j] == 1;
	}
	for (uint32_t sample = 0; sample < SAMPLES; sample++) {
		double start = now();
		for (uint32_t n = 0; n < BATCHES; n++) {
			for (uint32_t j = 0; j < BATCH; j++)
				batch[j] = (const uint8_t *)&packets[at + j];
			at = at + 2 * BATCH <= count ? at + BATCH : 0;
			rte_acl_classify(acl, batch, results, BATCH, 1);
		}
		samples[sample] = (now() - start) / (BATCH * BATCHES);
	}
	qsort(samples, SAMPLES, sizeof(double), ascending);
	printf("%s %.2f\nallowed %" PRIu32 "\n", name, samples[SAMPLES / 2], allowed);
}

int main(int argc, char **argv)
{
	char *eal[] = { "acl", "--no-huge", "--no-pci", "--no-shconf", "--no-telemetry", "--force-max-simd-bitwidth=512", "-m", "4096", "-l", "0",
			"--log-level", "error" };
	if (argc != 3) {
		fprintf(stderr, "usage: acl RULES PACKETS\n");
		return 2;
	}
	if (rte_eal_init(sizeof(eal) / sizeof(*eal), eal) < 0)
		fail("rte_eal_init", rte_errno);

	struct rte_acl_param parameters = {
		.name = "bench", .socket_id = SOCKET_ID_ANY, .rule_size = RTE_ACL_RULE_SZ(FIELDS), .max_rule_num = 1 << 20,
	};
	struct rte_acl_ctx *acl = rte_acl_create(&parameters);
	if (!acl)
		fail("rte_acl_create", rte_errno);
	load(acl, argv[1]);
	struct rte_acl_config config = { .num_categories = 1, .num_fields = FIELDS };
	memcpy(config.defs, fields, sizeof(fields));
	double start = now();
	int error = rte_acl_build(acl, &config);
	if (error)
		fail("rte_acl_build", error);
	printf("build_ms %.1f\n", (now() - start) / 1e6);

	FILE *file = fopen(argv[2], "rb");
	if (!file || fseek(file, 0, SEEK_END))
		fail(argv[2], errno);
	uint32_t count = ftell(file) / sizeof(struct packet);
	struct packet *packets = malloc(count * sizeof(struct packet));
	rewind(file);
	if (!packets || fread(packets, sizeof(struct packet), count, file) != count)
		fail(argv[2], errno);
	fclose(file);
	measure(acl, "avx2", RTE_ACL_CLASSIFY_AVX2, packets, count);
	measure(acl, "avx512x16", RTE_ACL_CLASSIFY_AVX512X16, packets, count);
	measure(acl, "avx512x32", RTE_ACL_CLASSIFY_AVX512X32, packets, count);
	return 0;
}
