# Real mode, "unreal" mode with the limits that protected mode has left, and protected mode of 16 bits.
.include "monitor.inc"

.set BASE, 0x8000           # where the code of 16 bits lies: 0800:0
.set SEGMENT, BASE >> 4
.set CODE16, 0x48
.set DATA16, 0x50
.set BIG, 0x58              # data of 4 GiB
.set STACK16, 0x60          # a 16-bit stack
.set SYSTEM16, 0x68
.set STACK, 0x800           # 2000:800 in real mode

.macro scene16 name:req
    call put_text16
    .asciz "\n\name |"
.endm

# As `catch` and `tries`.
.macro try16 insns:req
    movw $(.Lafter\@ - real_start), %cs:resume16 - real_start
    call put_text16
    .asciz " "
    pushw $2
    popfw
    \insns
    call put_text16
    .asciz "ok"
.Lafter\@:
    call sane16
.endm

.macro show16 value:req
    push %ax
    mov \value, %ax
    call put_text16
    .asciz " ="
    call put_word16
    pop %ax
.endm

# A stack of 16 bits moves with the lower half of ESP, and the monitor's code cannot use it.
.macro keep number:req, value:req
    movl \value, kept + 4*\number
.endm

.macro try_unreal insns:req
    movw $(.Lafter\@ - real_start), %cs:resume16 - real_start
    call put_text16
    .asciz " "
    \insns
    call put_text16
    .asciz "ok"
.Lafter\@:
.endm

scenes:
    mov %esp, scenes_esp
    mov $real_start, %esi
    mov $BASE, %edi
    mov $real_end - real_start, %ecx
    cld
    rep movsb
    xor %edi, %edi             # each vector leads to a stub of four bytes
    mov $(SEGMENT << 16) + stubs16 - real_start, %eax
    mov $256, %ecx
1:  stosl
    add $4, %eax
    loop 1b
    descriptor_at CODE16, BASE, 0xffff, 0x9b, 0x00
    descriptor_at DATA16, 0x30000, 0xffff, 0x93, 0x00
    descriptor_at BIG, 0x30000, 0xfffff, 0x93, 0xc0
    descriptor_at STACK16, 0x20000, 0xffff, 0x93, 0x00

    scene "protected mode of 16 bits"
    mov $STACK16, %eax
    mov %eax, %ss
    mov $0x12340800, %esp
    push %eax
    keep 0, %esp
    pushw %ax
    keep 1, %esp
    mov $0x12340000, %esp
    push %eax
    keep 2, %esp
    mov $0x12340800, %esp
    mov $0x56780900, %ebp
    enter $16, $3
    keep 3, %esp
    keep 4, %ebp
    leave
    keep 5, %esp
    pushal
    keep 6, %esp
    popal
    call 1f
1:  keep 7, %esp
    pushfl
    push %ds
    keep 8, %esp
    ljmp $CODE16, $pm16 - real_start
back32:
    mov %esp, %ecx
    mov $DATA32, %edx
    mov %edx, %ss
    mov scenes_esp, %esp
    show ax, %eax
    show bx, %ebx
    show esp, %ecx
    mov $kept, %esi
    mov $9, %ecx
1:  lodsl
    call space
    call put_word
    loop 1b

    call newline
    lidt real_idt
    mov $DATA16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    ljmp $CODE16, $to_real - real_start

from_real:
    mov $DATA32, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    lidt idt_pointer
    mov scenes_esp, %esp
    ret

.section .data
    .align 8
scenes_esp:
    .long 0
kept:
    .skip 64
real_idt:
    .word 0x3ff
    .long 0

.section .rodata
.code16
real_start:
# In a 16-bit code segment of protected mode, on a 16-bit stack.
pm16:
    mov $0x12345678, %eax
    push %eax
    push %ax
    call 1f
1:  pop %bx
    sub $(1b - real_start), %bx
    add $6, %sp
    mov $0, %eax
    movw $0xffff, %ax
    inc %ax
    pushfw
    pop %ax
    and $0x41, %ax
    mov $BIG, %cx
    mov %cx, %ds
    mov $DATA32, %cx
    mov %cx, %ds
    ljmpl $CODE32, $back32

to_real:
    mov %cr0, %eax
    and $~1, %eax
    mov %eax, %cr0
    ljmp $SEGMENT, $1f - real_start
1:  call sane16

    scene16 "real mode: exceptions"
    try16 "ud2"
    try16 "int3"
    try16 "int $0x41"
    try16 "xor %ax, %ax; div %al"
    try16 "mov $0x7fff, %ax; inc %ax; into"
    try16 ".byte 0xf1"
    try16 "bound %ax, %cs:bounds16 - real_start"
    try16 "lock; nop"
    try16 "mov %ds:0xffff, %ax"
    try16 "mov %ax, %ds:0xffff"
    try16 "mov %eax, %ds:0xfffd"
    try16 "mov $0xffff, %bx; mov %ss:(%bx), %ax"
    try16 "mov $0x10000, %ebx; mov (%ebx), %al"
    try16 "mov $0x10000, %ebx; mov %ss:(%ebx), %al"
    try16 "mov $0, %sp; push %ax"
    try16 "mov $0xffff, %sp; pop %ax"
    try16 "mov $2, %sp; push %eax"
    try16 "push $0x102; popf; nop"
    try16 "lldt %ax"
    try16 "ltr %ax"
    try16 "lar %ax, %ax"
    try16 "verr %ax"
    try16 "str %ax"
    try16 "sldt %ax"
    try16 ".byte 0x63, 0xc0"
    try16 "sysenter"
    try16 "sysexit"
    try16 "mov %cr0, %eax; mov %eax, %cr0"
    try16 "smsw %ax; lmsw %ax"
    try16 "mov %cr4, %eax; mov %eax, %cr4"
    try16 ".byte 0xc5, 0xc0, 0x57, 0xc0"
    try16 "movups %xmm0, %xmm0"
    try16 "cli; sti; cli"
    # What does not fit the interrupt vector table.
    lidt %cs:short16 - real_start
    try16 "int $0x41"
    try16 "ud2"
    lidt %cs:long16 - real_start

    scene16 "real mode: flags"
    .irp flags, 0, 0xffff, 0x7000, 0x0ed7
    pushw $\flags & ~0x100
    popfw
    pushfw
    pop %bx
    show16 %bx
    .endr
    pushl $0x240002
    popfl
    pushfl
    pop %ebx
    show16 %bx
    shr $16, %ebx
    show16 %bx
    pushw $0x7002
    pushw $SEGMENT
    pushw $1f - real_start
    iret
1:  pushf
    pop %bx
    show16 %bx
    pushl $0x40002
    pushl $SEGMENT
    pushl $1f - real_start
    iretl
1:  pushfl
    pop %ebx
    shr $16, %ebx
    show16 %bx

    scene16 "real mode: segments"
    mov $0xffff, %ax
    mov %ax, %es
    movb $0x5a, %es:0x10        # 100000: the first byte above 1 MiB
    movb %es:0x10, %al
    xor %ah, %ah
    show16 %ax
    lcall $SEGMENT, $1f - real_start
1:  pop %bx
    pop %cx
    sub $(1b - real_start), %bx
    show16 %bx
    show16 %cx
    movw $0x1234, %ds:0
    movw $0x3000, %ds:2
    lds %ds:0, %bx
    show16 %bx
    show16 %ds
    mov $0x8000, %cx
    mov %cx, %gs
    show16 %gs

    scene16 "unreal mode"
    lgdt %cs:gdt16 - real_start
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    mov $BIG, %bx
    mov %bx, %ds
    mov %bx, %es
    and $~1, %eax
    mov %eax, %cr0
    ljmp $SEGMENT, $1f - real_start
1:  mov $0x200000 - 0x30000, %ebx
    try_unreal "movl $0x5a5a5a5a, (%ebx)"
    mov $0x3000, %ax
    mov %ax, %ds
    mov $0x10000, %ebx
    try_unreal "movl (%ebx), %eax"
    try_unreal "movl %eax, %es:(%ebx)"
    try_unreal "movl %fs:(%ebx), %eax"
    mov $0xffff, %bx
    try_unreal "movw (%bx), %ax"
    try_unreal "mov $0x3000, %ax; mov %ax, %es; mov $0x10000, %ebx; movl %es:(%ebx), %eax"

    lgdt %cs:gdt16 - real_start
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $CODE32, $from_real

# Vectors: each calls what finds out which it was.
stubs16:
    .rept 256
    call caught16
    nop
    .endr
caught16:
    pop %cs:word16 - real_start
    push %ax
    call put_text16
    .asciz "#"
    mov %cs:word16 - real_start, %ax
    sub $(stubs16 - real_start + 3), %ax
    shr $2, %ax
    call put_byte16
    pop %ax
    .irp number, 1, 2, 3
    pop %cs:word16 - real_start
    push %ax
    call put_text16
    .asciz ":"
    mov %cs:word16 - real_start, %ax
    call put_word16
    pop %ax
    .endr
    mov $0x2000, %ax
    mov %ax, %ss
    mov $STACK, %esp
    pushw $2
    popfw
    jmp *%cs:resume16 - real_start

sane16:
    pop %dx
    mov $0x2000, %ax
    mov %ax, %ss
    mov $STACK, %esp
    mov $0x3000, %ax
    mov %ax, %ds
    mov %ax, %es
    pushw $2
    popfw
    push %dx
    ret

put_word16:
    xchg %al, %ah
    call put_byte16
    xchg %al, %ah
put_byte16:
    push %ax
    shr $4, %al
    call put_digit16
    pop %ax
    push %ax
    call put_digit16
    pop %ax
    ret
put_digit16:
    and $15, %al
    cmp $10, %al
    jb 1f
    add $'a' - '0' - 10, %al
1:  add $'0', %al
put_char16:
    push %dx
    mov $COM1, %dx
    out %al, %dx
    out %al, $BOCHS_CONSOLE
    pop %dx
    ret

# Prints the text that follows the call; the stack may be any.
put_text16:
    pushf
    push %bp
    mov %sp, %bp
    push %si
    push %ax
    mov 4(%bp), %si
1:  mov %cs:(%si), %al
    inc %si
    test %al, %al
    jz 2f
    call put_char16
    jmp 1b
2:  mov %si, 4(%bp)
    pop %ax
    pop %si
    pop %bp
    popf
    ret

    .align 4
resume16:
    .word 0
word16:
    .word 0
bounds16:
    .word 5, 6
short16:
    .word 4*0x41 + 2
    .long 0
long16:
    .word 0x3ff
    .long 0
gdt16:
    .word gdt_end - gdt - 1
    .long gdt
real_end:

.section .text
.code32
