#include "hello.h"
#include <stdio.h>
#include <string.h>

int main(void)
{
	const char *text = "123456789";
	uint32_t whole = hello_crc32(0, text, strlen(text));
	uint32_t parts = hello_crc32(hello_crc32(0, text, 4), text + 4, 5);

	if (whole != 0xcbf43926u || parts != whole) {
		fprintf(stderr, "crc32: %08x %08x\n", whole, parts);
		return 1;
	}
	puts("crc32: ok");
	return 0;
}
