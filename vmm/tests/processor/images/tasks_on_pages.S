# The part of `tasks` with paging, and what QEMU can be asked too.
.set ON_PAGES, 1
.include "tasks.S"
