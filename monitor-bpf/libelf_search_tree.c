/* Two functions that the static libelf of Debian 13 (elfutils 0.192) refers to and does not hold: they begin and end the tree
 * in which libelf keeps what it reads at addresses of a file's raw bytes. Nothing that is linked here reads that way: whoever
 * does needs functions that put something into the tree, which are missing as well, so that a linker would say so. A tree that
 * nobody uses needs neither. Where libelf has them, its own are taken, or nobody's. */

__attribute__((weak)) void eu_search_tree_init(void *tree) { (void)tree; }

__attribute__((weak)) void eu_search_tree_fini(void *tree, void (*free_node)(void *))
{
    (void)tree;
    (void)free_node;
}
