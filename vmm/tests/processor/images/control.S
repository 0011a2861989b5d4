# Values that control registers do not take. QEMU takes some of them, and does not live long after.
.include "monitor.inc"

scenes:
    scene "combinations of control registers"
    mov %cr0, %esi
    mov %esi, %ebx
    or $0x20000000, %ebx
    try mov %ebx, %cr0
    mov $0x80000010, %ebx
    try mov %ebx, %cr0
    mov %esi, %ebx
    or $0x6000ffc0, %ebx
    try mov %ebx, %cr0
    mov %cr0, %ebx
    show cr0, %ebx
    mov %esi, %cr0
    mov $0xffffffff, %ebx
    try mov %ebx, %cr4
    mov $0x80000000, %ebx
    try mov %ebx, %cr4
    mov $0x00020000, %ebx
    try mov %ebx, %cr4
    mov $0, %ebx
    try mov %ebx, %cr4
    ret
