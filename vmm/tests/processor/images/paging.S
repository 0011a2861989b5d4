# Paging with two and three levels: what each combination of rights lets through, error codes, accessed and dirty bits.
.include "monitor.inc"

.set LINEAR, 0x00c00000     # the page that is tried
.set P, 1
.set W, 2
.set U, 4
.set PS, 0x80
.set CR0_WP, 1 << 16
.set CR4_PSE, 1 << 4
.set CR4_PAE, 1 << 5
.set CR4_SMEP, 1 << 20
.set CR4_SMAP, 1 << 21

# Tries an access without a word; then prints what the entries have become.
.macro access insn:vararg
    movb $1, quiet
    movl $.Ldone\@, resume
    movl %esp, resume_esp
    movl $-1, last_vector
    \insn
.Ldone\@:
    movb $0, quiet
    call put_access
.endm

.macro access_user insn:vararg
    movb $1, quiet
    movl $.Ldone\@, resume
    movl %esp, resume_esp
    movl $-1, last_vector
    go_user .Luser\@
.Luser\@:
    \insn
    int $0x80
.Ldone\@:
    movb $0, quiet
    call put_access
.endm

# With EFLAGS.AC, which lets level 0 through where SMAP would not.
.macro access_ac insn:vararg
    pushl $0x40002
    popfl
    access \insn
    pushl $2
    popfl
.endm

# One access under all combinations of rights in both levels: for each directory entry, each table entry.
.macro rights name:req, kind:req, insn:vararg
    scene "\name"
    mov $combinations, %esi
.Lnext\@:
    call set_entries
    \kind \insn
    add $8, %esi
    cmp $combinations_end, %esi
    jb .Lnext\@
.endm

# The same, where the first level maps.
.macro large name:req, kind:req, insn:vararg
    scene "\name"
    mov $large_combinations, %esi
.Lnext\@:
    call set_large
    \kind \insn
    add $8, %esi
    cmp $large_combinations_end, %esi
    jb .Lnext\@
.endm

.macro with_cr0 bits:req
    mov %cr0, %eax
    or $(\bits), %eax
    mov %eax, %cr0
.endm
.macro without_cr0 bits:req
    mov %cr0, %eax
    and $~(\bits), %eax
    mov %eax, %cr0
.endm
.macro set_cr4 bits:req
    mov $(\bits), %eax
    mov %eax, %cr4
.endm

# All accesses under all combinations of rights.
.macro all_rights levels:req
    rights "\levels levels, level 0 reads", access, movl LINEAR, %eax
    rights "\levels levels, level 0 writes", access, movl $1, LINEAR
    rights "\levels levels, level 3 reads", access_user, movl LINEAR, %eax
    rights "\levels levels, level 3 writes", access_user, movl $1, LINEAR
    rights "\levels levels, level 3 exchanges", access_user, xchg %eax, LINEAR
    rights "\levels levels, level 3 executes", access_user, call LINEAR + 4095
    with_cr0 CR0_WP
    rights "\levels levels, level 0 writes, WP", access, movl $1, LINEAR
    rights "\levels levels, level 3 writes, WP", access_user, movl $1, LINEAR
    without_cr0 CR0_WP
    large "a large page of \levels levels, level 0 reads", access, movl LINEAR, %eax
    large "a large page of \levels levels, level 0 writes", access, movl $1, LINEAR
    large "a large page of \levels levels, level 3 reads", access_user, movl LINEAR, %eax
    large "a large page of \levels levels, level 3 writes", access_user, movl $1, LINEAR
.endm

# Sixteen megabytes as they are, for everybody; the tried page is above all that is used.
scenes:
    movb $0xc3, page           # RET
    movb $0xc3, page + 4095
    mov $directory, %edi
    mov $(P | W | U | PS), %eax
    mov $4, %ecx
1:  mov %eax, (%edi)
    add $0x400000, %eax
    add $4, %edi
    loop 1b
    set_cr4 CR4_PSE
    mov $directory, %eax
    mov %eax, %cr3
    movl $directory + (LINEAR >> 22)*4, entry
    movl $0, is_wide
    with_cr0 0x80000000

    all_rights two

    scene "reserved bits of a 4 MiB page"
    .irp bits, 0x200000, 0x3fe000
    movl $(0x800000 + (\bits & 0x200000) + P + W + PS), directory + (LINEAR >> 22)*4
    call flush
    access movl LINEAR, %eax
    .endr

    scene "the address of the fault"
    movl $table + P + W + U, directory + (LINEAR >> 22)*4
    movl $page + P + W, table
    movl $0, table + 4
    call flush
    try movl LINEAR + 4094, %eax
    try movl %eax, LINEAR + 4094
    try movl %eax, LINEAR + 4096
    try lock addl $1, LINEAR + 4094
    try_user 0x3002, movl LINEAR + 4095, %eax
    movl $0, table
    call flush
    try movl %eax, LINEAR + 4094
    try_user 0x3002, movl %eax, LINEAR + 4094
    show word, page + 4092

    # The processor reads its tables as level 0 even for level 3.
    scene "descriptors on pages of level 0"
    movl $page + P + W, table
    call flush
    mov gdt + DATA32, %eax
    mov %eax, page + 16
    mov gdt + DATA32 + 4, %eax
    or $0x6000, %eax
    mov %eax, page + 20
    descriptor_at LDT_MAIN, LINEAR, 0xfff, 0x82, 0
    mov $LDT_MAIN, %eax
    lldt %ax
    tries_user 0x3002, "mov $0x17, %eax; mov %eax, %fs"
    movl $0, table
    call flush
    tries_user 0x3002, "mov $0x17, %eax; mov %eax, %fs"
    movl $page + P, table
    call flush
    tries_user 0x3002, "mov $0x17, %eax; mov %eax, %fs"
    andb $~1, page + 21        # not accessed: the processor will say that it is, though it may only read
    tries_user 0x3002, "mov $0x17, %eax; mov %eax, %fs"
    show type, page + 20
    xor %eax, %eax
    lldt %ax
    movb $0xc3, page

    # The image itself must not be level 3's for these.
    .irp which, 0, 1, 2, 3
    andb $~U, directory + 4 * \which
    .endr
    call flush
    set_cr4 CR4_PSE | CR4_SMEP
    rights "SMEP, level 0", access, call LINEAR

    set_cr4 CR4_PSE | CR4_SMAP
    rights "SMAP, reads", access, movl LINEAR, %eax
    rights "SMAP, writes", access, movl $1, LINEAR
    rights "SMAP with AC", access_ac, movl LINEAR, %eax
    scene "STAC and CLAC"
    .byte 0x0f, 0x01, 0xcb
    pushf
    pop %ebx
    show stac, %ebx
    .byte 0x0f, 0x01, 0xca
    pushf
    pop %ebx
    show clac, %ebx
    .irp which, 0, 1, 2, 3
    orb $U, directory + 4 * \which
    .endr
    movl $0, directory + (LINEAR >> 22)*4
    set_cr4 CR4_PSE
    try_user 0x3002, .byte 0x0f, 0x01, 0xcb

    # Three levels.
    without_cr0 0x80000000
    mov $wide_directory, %edi
    mov $(P | W | U | PS), %eax
    mov $6, %ecx
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    movl $wide_directory + P, pointers
    movl $wide_directory + (LINEAR >> 21)*8, entry
    movl $1, is_wide
    set_cr4 CR4_PAE
    mov $pointers, %eax
    mov %eax, %cr3
    with_cr0 0x80000000
    all_rights three

    scene "no execution"
    mov $0xc0000080, %ecx
    rdmsr
    or $0x800, %eax
    wrmsr
    movl $table + P + W + U, wide_directory + (LINEAR >> 21)*8
    movl $page + P + W + U, table
    movb $0xc3, page
    .irp where, table + 4, wide_directory + (LINEAR >> 21)*8 + 4
    movl $0x80000000, \where
    call flush
    access call LINEAR
    access movl LINEAR, %eax
    access movl %eax, LINEAR + 8
    access_user jmp LINEAR
    movl $0, \where
    .endr
    call flush
    access call LINEAR
    movl $0x80000000, table + 4
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x800, %eax
    wrmsr
    call flush
    access movl LINEAR, %eax
    access_user movl %eax, LINEAR
    movl $0, table + 4

    scene "reserved bits of three levels"
    .irp bits, 0x40000000, 0x00080000
    movl $\bits, table + 4
    call flush
    access movl LINEAR, %eax
    access movl %eax, LINEAR
    movl $0, table
    call flush
    access movl LINEAR, %eax   # not present: nothing is reserved
    movl $page + P + W + U, table
    movl $0, table + 4
    movl $\bits, wide_directory + (LINEAR >> 21)*8 + 4
    call flush
    access movl LINEAR, %eax
    movl $0, wide_directory + (LINEAR >> 21)*8 + 4
    .endr
    movl $(0xc00000 + 0x2000 + P + W + PS), wide_directory + (LINEAR >> 21)*8
    call flush
    access movl LINEAR, %eax

    scene "page-directory-pointer entries"
    try movl 0x40000000, %eax
    movl $0xfffffffe, pointers + 8
    mov $pointers, %ebx
    try mov %ebx, %cr3
    try movl 0x40000000, %eax
    movl $wide_directory + P, pointers + 8
    try mov %ebx, %cr3
    try movl 0x40000000, %eax

    without_cr0 0x80000000
    set_cr4 0
    ret

flush:
    push %eax
    mov %cr3, %eax
    mov %eax, %cr3
    pop %eax
    ret

# Both levels for the combination at ESI: rights of the directory's entry, of the table's.
set_entries:
    movb $0xc3, page
    mov entry, %ebx
    mov (%esi), %eax
    add $table, %eax
    mov %eax, (%ebx)
    mov 4(%esi), %eax
    add $page, %eax
    mov %eax, table
    cmpl $0, is_wide
    je flush
    movl $0, 4(%ebx)
    movl $0, table + 4
    jmp flush

# The directory's entry alone.
set_large:
    mov entry, %ebx
    mov (%esi), %eax
    add $(LINEAR + PS), %eax
    mov %eax, (%ebx)
    cmpl $0, is_wide
    je flush
    movl $0, 4(%ebx)
    jmp flush

# A dot with A and D of both levels, or the error code of the page fault in two digits (whether the entries that led to it
# are accessed then is the processor's affair), or another vector behind a bracket.
put_access:
    pushf
    pushal
    call space
    mov last_vector, %eax
    cmp $-1, %eax
    je 1f
    cmp $0x80, %eax
    je 1f
    cmp $14, %eax
    je 2f
    push %eax
    mov $'[', %al
    call put_char
    pop %eax
    call put_byte
    jmp 4f
2:  mov last_error, %eax
    call put_byte
    jmp 4f
1:  mov $'.', %al
    call put_char
    mov entry, %ebx
    mov (%ebx), %ecx
    call put_bits
    mov (%ebx), %eax
    test $PS, %al
    jnz 4f
    mov table, %ecx
    call put_bits
4:  popal
    popf
    ret

put_bits:
    mov $'a', %al
    test $0x20, %cl
    jnz 1f
    mov $'-', %al
1:  test $0x40, %cl
    jz 2f
    mov $'d', %al
2:  jmp put_char

.section .data
    .align 8
combinations:
    .irp first, 0, P, P | W, P | U, P | W | U
    .irp second, 0, P, P | W, P | U, P | W | U
    .long \first, \second
    .endr
    .endr
combinations_end:
large_combinations:
    .irp first, 0, P, P | W, P | U, P | W | U
    .long \first, 0
    .endr
large_combinations_end:
entry:
    .long 0
is_wide:
    .long 0

.section .bss
    .align 4096
directory:
    .skip 4096
table:
    .skip 4096
wide_directory:
    .skip 4096
pointers:
    .skip 4096
page:
    .skip 4096
