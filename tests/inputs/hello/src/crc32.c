#include "hello.h"

uint32_t hello_crc32(uint32_t previous, const void *data, size_t length)
{
	const unsigned char *bytes = data;
	uint32_t crc = ~previous;

	for (size_t i = 0; i < length; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (0xedb88320u & -(crc & 1u));
	}
	return ~crc;
}
