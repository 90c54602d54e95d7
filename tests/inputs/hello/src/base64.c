#include "hello.h"

static const char digits[] =
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

size_t hello_base64_encode(char *out, const void *data, size_t length)
{
	const unsigned char *in = data;
	char *start = out;

	for (size_t i = 0; i < length; i += 3) {
		uint32_t block = (uint32_t)in[i] << 16;

		if (i + 1 < length)
			block |= (uint32_t)in[i + 1] << 8;
		if (i + 2 < length)
			block |= in[i + 2];
		*out++ = digits[block >> 18];
		*out++ = digits[(block >> 12) & 63];
		*out++ = i + 1 < length ? digits[(block >> 6) & 63] : '=';
		*out++ = i + 2 < length ? digits[block & 63] : '=';
	}
	*out = '\0';
	return (size_t)(out - start);
}
