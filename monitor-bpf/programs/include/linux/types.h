/* Stands in for the kernel's header of this name, which leads to headers of one architecture that clang does not find when
 * it compiles for the target "bpf": the types that linux/bpf.h needs. */
#ifndef _LINUX_TYPES_H
#define _LINUX_TYPES_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __le16, __be16, __sum16;
typedef __u32 __le32, __be32, __wsum;
typedef __u64 __le64, __be64;
typedef __u64 __attribute__((aligned(8))) __aligned_u64;

#endif
