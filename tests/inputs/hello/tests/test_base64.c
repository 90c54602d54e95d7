#include "hello.h"
#include <stdio.h>
#include <string.h>

/* The vectors of RFC 4648, section 10. */
static const char *vectors[][2] = {
	{ "", "" },             { "f", "Zg==" },        { "fo", "Zm8=" },
	{ "foo", "Zm9v" },      { "foob", "Zm9vYg==" }, { "fooba", "Zm9vYmE=" },
	{ "foobar", "Zm9vYmFy" },
};

int main(void)
{
	for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
		char out[32];

		hello_base64_encode(out, vectors[i][0], strlen(vectors[i][0]));
		if (strcmp(out, vectors[i][1]) != 0) {
			fprintf(stderr, "base64: %s: %s\n", vectors[i][0], out);
			return 1;
		}
	}
	puts("base64: ok");
	return 0;
}
