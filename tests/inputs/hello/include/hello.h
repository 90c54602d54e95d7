#ifndef HELLO_H
#define HELLO_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32 of IEEE 802.3, as in zip and PNG. Begin with `previous` = 0. */
uint32_t hello_crc32(uint32_t previous, const void *data, size_t length);

/* Base64 (RFC 4648) with padding. `out` takes 4 * ((length + 2) / 3) + 1 bytes. */
size_t hello_base64_encode(char *out, const void *data, size_t length);

#endif
