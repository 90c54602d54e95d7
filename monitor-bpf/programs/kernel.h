/* The kernel's structures that the programs read: only the members that are used, under the kernel's own names.
 *
 * `preserve_access_index` makes every access a CO-RE relocation: libbpf puts in the offsets of the running kernel when it
 * loads the program, so nothing here has to have the kernel's layout, and no machine's BTF is needed to compile.
 * Names with three underscores are variants for other versions: libbpf ignores what follows them. */
#ifndef PORTCULLIS_KERNEL_H
#define PORTCULLIS_KERNEL_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __s32 s32;
typedef __u64 u64;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct { int counter; } atomic_t;
typedef struct { u32 val; } kuid_t;
struct hlist_node { struct hlist_node *next; };
struct hlist_head { struct hlist_node *first; };

struct ns_common { unsigned int inum; };
struct ns_common___numbered { u64 ns_id; }; /* from 6.18 on */
struct pid_namespace { struct ns_common ns; };
struct uts_namespace { struct ns_common ns; };
struct ipc_namespace { struct ns_common ns; };
struct cgroup_namespace { struct ns_common ns; };
struct net { struct ns_common ns; };
struct mnt_namespace { struct ns_common ns; };
struct mnt_namespace___counted { u64 seq; }; /* before 6.18 */
struct nsproxy {
    struct uts_namespace *uts_ns;
    struct ipc_namespace *ipc_ns;
    struct mnt_namespace *mnt_ns;
    struct pid_namespace *pid_ns_for_children;
    struct net *net_ns;
    struct cgroup_namespace *cgroup_ns;
};
struct upid { int nr; struct pid_namespace *ns; };
struct pid { unsigned int level; struct hlist_head tasks[4]; struct upid numbers[]; };

struct qstr { const unsigned char *name; };
struct super_block { u32 s_dev; unsigned long s_magic; };
struct inode {
    u16 i_mode;
    kuid_t i_uid;
    u32 i_rdev;
    unsigned long i_ino;
    struct super_block *i_sb;
    unsigned int i_nlink;
    void *i_private;
};
struct dentry { struct dentry *d_parent; struct qstr d_name; struct inode *d_inode; };
struct vfsmount { struct dentry *mnt_root; };
struct mount { struct mount *mnt_parent; struct dentry *mnt_mountpoint; struct vfsmount mnt; };
struct path { struct vfsmount *mnt; struct dentry *dentry; };
struct file_operations;
struct file {
    struct path f_path;
    struct inode *f_inode;
    const struct file_operations *f_op;
    void *private_data;
};
struct tty_struct { int index; };
struct tty_file_private { struct tty_struct *tty; };
struct proc_inode { struct pid *pid; struct inode vfs_inode; };
struct fdtable { unsigned int max_fds; struct file **fd; };
struct files_struct { struct fdtable *fdt; };
struct fs_struct { struct path root, pwd; };

struct kernfs_node { u64 id; };
struct cgroup;
struct cgroup_subsys_state { struct cgroup *cgroup; struct cgroup_subsys_state *parent; };
struct cgroup { struct cgroup_subsys_state self; struct kernfs_node *kn; int level; };
struct css_set { struct cgroup *dfl_cgrp; };

struct mm_struct {
    unsigned long arg_start, arg_end, env_start, env_end;
    struct file *exe_file;
};
struct signal_struct { atomic_t live; };
struct capabilities { u64 bits; };
struct cred { kuid_t uid, euid; struct capabilities cap_inheritable, cap_permitted, cap_bset; };
struct seccomp { int mode; };
#if defined(__TARGET_ARCH_x86)
struct thread_info { unsigned long flags; u32 status; };
#else
struct thread_info { unsigned long flags; };
#endif
struct task_struct {
    struct thread_info thread_info;
    unsigned int flags;
    int pid, tgid;
    u64 start_boottime;
    struct task_struct *group_leader, *real_parent;
    struct hlist_node pid_links[4];
    struct pid *thread_pid;
    struct mm_struct *mm;
    struct signal_struct *signal;
    const struct cred *cred;
    struct fs_struct *fs;
    struct files_struct *files;
    struct css_set *cgroups;
    struct nsproxy *nsproxy;
    unsigned long atomic_flags;
    struct seccomp seccomp;
};

struct sock_common {
    union { struct { u32 skc_daddr, skc_rcv_saddr; }; };
    union { struct { u16 skc_dport; u16 skc_num; }; };
    unsigned short skc_family;
    struct { u8 bytes[16]; } skc_v6_daddr;
};
struct sock { struct sock_common __sk_common; u16 sk_type, sk_protocol; };
struct socket { struct sock *sk; };

/* The registers with which a system call was made. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs { unsigned long bx, cx, dx, si, di, orig_ax; };
#else
struct pt_regs { u64 regs[31]; u64 orig_x0; s32 syscallno; };
#endif


#pragma clang attribute pop

#endif
