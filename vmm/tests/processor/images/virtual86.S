# Virtual-8086 mode: in and out of it, what it may not do, its own interrupts, ports.
.include "monitor.inc"

.set VECTOR, 0x41          # an interrupt whose gate lets everybody through
.set CLOSED, 0x42          # and one whose gate does not
.set ODD, SCRATCH
.set TASK, TSS_SPARE
.set PLACE, 0x10000        # where code of 16 bits lies: 1000:0
.set STACK, 0x800          # 2000:800
.set CR4_VME, 1
.set VIP, 1 << 20
.set VIF, 1 << 19
.set REDIRECTION, tss_main + 0x68
.set MAP, tss_main + 0x88

# Enters virtual-8086 mode at the copied code with these flags (VM is added) and data segments.
.macro enter_86 flags:req
    pushl $0x4444           # GS
    pushl $0x3333           # FS
    pushl $0x3000           # DS
    pushl $0x2222           # ES
    pushl $0x2000           # SS
    pushl $STACK
    pushl $((\flags) | 0x20000)
    pushl $0x1000
    pushl $0
    iret
.endm

# Copies 16-bit code to where it is run.
.macro place_86 insns:req
    .pushsection .rodata
.Lcode\@:
    .code16
    \insns
    int $0x80
    .code32
.Lend\@:
    .popsection
    pushal
    mov $.Lcode\@, %esi
    mov $PLACE, %edi
    mov $.Lend\@ - .Lcode\@, %ecx
    cld
    rep movsb
    popal
.endm

# Tries 16-bit code in virtual-8086 mode; INT 0x80 says that there was no exception. The stack's top is shown.
.macro try_86 flags:req, insns:req
    place_86 "\insns"
    movl $0x12345678, 0x20000 + STACK
    movl $0, 0x20000 + STACK - 4
    movl $0, 0x20000 + STACK - 8
    catch .Lafter\@
    enter_86 \flags
.Lafter\@:
.endm

.macro stack_86
    .irp offset, 2, 4, 6
    push %eax
    movw 0x20000 + STACK - \offset, %ax
    call space
    call put_half
    pop %eax
    .endr
.endm

scenes:
    mov %esp, scenes_esp
    movw $0xffff, tss_main + 0x66
    descriptor_at TSS_MAIN, tss_main, 0x2090, 0x89, 0
    mov $TSS_MAIN, %eax
    ltr %ax
    orb $0x60, idt + 8*VECTOR + 5
    xor %edi, %edi             # its interrupt vectors: 5000:vector*2
    mov $0x50000000, %eax
    mov $256, %ecx
1:  stosl
    add $2, %eax
    loop 1b
    mov $0x50000, %edi         # where each is INT 0x80, or INT3 for that
    mov $0x80cd, %eax
    mov $256, %ecx
    rep stosw

    scene "into virtual-8086 mode and out of it"
    try_86 0x3002, nop
    try_86 0x0002, nop
    try_86 0x3202, "mov %cs, %ax; mov %ds, %bx"
    show ax, %eax
    show bx, %ebx
    show ds, %ds
    show fs, %fs
    try_86 0x247fd7, nop
    try_86 0x3ffed7, nop

    scene "IRETD that does not enter it"
    place_86 nop
    tries "pushl $0; pushl $0; pushl $0; pushl $0; pushl $0; pushl $0; pushl $0x23002; pushl $0x1000; pushl $0x10000; iret"
    tries_user 0x3002, "pushl $0; pushl $0; pushl $0; pushl $0; pushl $0x23; pushl $0; pushl $0x23002; pushl $CODE32_3; pushl $user_back; iret; user_back:"
    tries "push $0x20002; popf; pushf; pop %ebx"
    show flags, %ebx

    movl $0, 0x30000
    scene "instructions that depend on IOPL"
    .irp level, 0x0002, 0x1002, 0x3002
    .irp insn, cli, sti, "pushf", "pushfl", "push $2; popf", "pushl $2; popfl", "pushw $0x3202; pushw $0x5000; pushw $0x20; iret", "pushl $0x3202; pushl $0x5000; pushl $0x20; iretl", "int $VECTOR", "int $CLOSED", "int3", "into", "lock incw 0", "hlt"
    call space
    try_86 \level, "\insn"
    .endr
    .endr

    scene "what there is not"
    .irp insn, "mov %cr0, %eax", "mov %dr7, %eax", "lgdt 0", "lidt 0", "lmsw %ax", "clts", "invlpg 0", "wbinvd", "ltr %ax", "lldt %ax", "str %ax", "sldt %ax", "lar %ax, %bx", "lsl %ax, %bx", "verr %ax", "verw %ax", ".byte 0x63, 0xc0", "rdmsr", "sysexit", "smsw %ax", "sgdt 0", "sidt 0", "ud2", "cpuid", "sysenter", ".byte 0x0f, 0x01, 0xd0", "vaddps %xmm0, %xmm0, %xmm0", "bextr %eax, %eax, %eax", ".byte 0xc5, 0xc0", "fnop", "movups %xmm0, %xmm0"
    try_86 0x3002, "\insn"
    .endr

    scene "segments"
    try_86 0x3002, "movw %ds:0xffff, %ax"
    try_86 0x3002, "movw %ax, %ds:0xffff"
    try_86 0x3002, "mov $0xffff, %sp; push %ax"
    try_86 0x3002, "mov $1, %sp; push %ax"
    try_86 0x3002, "mov $0x10000, %ebx; movb (%ebx), %al"
    try_86 0x3002, "mov $0xffff, %sp; pop %ax"
    try_86 0x3002, "mov %cs:0xfffe, %ax; movw %ax, %cs:0x8000"
    try_86 0x3002, "ljmp $0x5000, $0x20"
    try_86 0x3002, "lcall $0x5000, $0x20"
    stack_86
    try_86 0x3002, "push $0x5000; push $0x22; lret"
    try_86 0x3002, "push $0x5000; push $0x1234; lds %ss:STACK-4, %ax"
    try_86 0x3002, "mov $0x1234, %ax; mov %ax, %ss; mov %ax, %gs; mov %ax, %es"

    scene "flags"
    .irp flags, 0x0002, 0x0ed7, 0x3202, 0x7fd7
    try_86 0x3002, "push $\flags; popf; pushf"
    stack_86
    try_86 0x3002, "pushl $0x3f0000 | \flags; popfl; pushfl"
    stack_86
    try_86 0x3002, "push $\flags; push $0x5000; push $0x20; iret"
    try_86 0x3002, "pushl $0x3f0000 | \flags; pushl $0x5000; pushl $0x20; iretl"
    .endr

    scene "interrupts without the extensions"
    try_86 0x3002, "int $VECTOR"
    try_86 0x3002, "int $CLOSED"
    try_86 0x3002, "int3"
    try_86 0x3802, "into"
    try_86 0x3802, ".byte 0xf1"
    try_86 0x2002, "int $VECTOR"
    try_86 0x2002, "int3"
    try_86 0x2802, "into"
    descriptor_at ODD, 0, 0xfffff, 0x9f, 0xc0
    gate idt, VECTOR, ODD, user_back, 0xee
    try_86 0x3002, "int $VECTOR"
    descriptor_at ODD, 0, 0xfffff, 0xfb, 0xc0
    try_86 0x3002, "int $VECTOR"
    gate idt, VECTOR, CODE32, stubs+16*VECTOR, 0xee

    scene "ports"
    movw $0x88, tss_main + 0x66
    movl $0xfffffffe, MAP
    movl $-1, MAP + 4
    try_86 0x3002, "in $0, %al"
    try_86 0x3002, "in $0, %ax"
    try_86 0x0002, "in $0, %al"
    try_86 0x3002, "in $1, %al"
    try_86 0x3002, "out %al, $0x20"
    try_86 0x3002, "mov $0xffff, %dx; in %dx, %al"
    movw $0xffff, tss_main + 0x66
    try_86 0x3002, "in $0, %al"

    scene "extensions: the virtual interrupt flag"
    movl $0, 0x30000
    mov $REDIRECTION, %edi
    mov $-1, %eax
    mov $8, %ecx
    rep stosl
    mov $CR4_VME, %eax
    mov %eax, %cr4
    movw $0x88, tss_main + 0x66
    .irp flags, 0x0002, VIF | 2, VIP | 2, VIP | VIF | 2, 0x3002
    .irp insn, cli, sti, "pushf", "pushfl", "push $0x0ed7; popf", "push $2; popf", "push $0x102; popf", "push $0x7fd7; popf", "pushl $2; popfl"
    try_86 "\flags", "\insn"
    stack_86
    .endr
    .irp image, 0x0ed7, 2, 0x302, 0x7ed7
    try_86 "\flags", "push $\image; push $0x5000; push $0x20; iret"
    try_86 "\flags", "pushl $\image; pushl $0x5000; pushl $0x20; iretl"
    .endr
    .endr

    scene "extensions: redirected interrupts"
    mov $REDIRECTION, %edi
    xor %eax, %eax
    mov $8, %ecx
    rep stosl
    movb $1 << (0x43 & 7), REDIRECTION + 0x43 / 8
    movb $1, REDIRECTION + 0x80 / 8
    orb $0x60, idt + 8*0x43 + 5
    .irp flags, 0x0002, VIF | 0x0ed7, 0x3002, 0x3202, VIF | 0x3ed6
    .irp vector, VECTOR, CLOSED, 0x43, 3
    try_86 "\flags", "int $\vector"
    stack_86
    .endr
    try_86 "\flags", "int3"
    .endr

    scene "a waiting virtual interrupt at level 3"
    mov $2, %eax                # PVI
    mov %eax, %cr4
    .irp flags, 2, VIF | 2, VIP | 2, VIP | VIF | 2, 0x3002
    .irp insn, cli, sti, nop, popf
    try_user "\flags", \insn
    .endr
    .endr
    xor %eax, %eax
    mov %eax, %cr4

    scene "a task in virtual-8086 mode"
    descriptor_at TASK, tss_spare, 0x67, 0x89, 0
    mov $tss_spare, %edi
    mov $26, %ecx
    xor %eax, %eax
    rep stosl
    movl $trap_stack_top, tss_spare + 4
    movl $DATA32, tss_spare + 8
    movl $0x23002, tss_spare + 0x24
    movl $0x800, tss_spare + 0x38
    movl $0x2222, tss_spare + 0x48
    movl $0x1000, tss_spare + 0x4c
    movl $0x2000, tss_spare + 0x50
    movl $0x3000, tss_spare + 0x54
    movw $0x68, tss_spare + 0x66
    place_86 nop
    catch 1f
    ljmp $TASK, $0
1:  mov $TSS_MAIN, %eax
    andb $~2, gdt + TSS_MAIN + 5
    ltr %ax
    clts
    movl $0x10000, tss_spare + 0x20
    andb $~2, gdt + TASK + 5
    catch 1f
    ljmp $TASK, $0
1:  mov $TSS_MAIN, %eax
    andb $~2, gdt + TSS_MAIN + 5
    ltr %ax
    clts
    # A task gate out of it.
    movl $DATA32, tss_spare + 0x48
    movl $CODE32, tss_spare + 0x4c
    movl $DATA32, tss_spare + 0x50
    movl $DATA32, tss_spare + 0x54
    movl $2, tss_spare + 0x24
    movl $1f, tss_spare + 0x20
    movl $spare_stack_top, tss_spare + 0x38
    andb $~2, gdt + TASK + 5
    gate idt, VECTOR, TASK, 0, 0xe5
    place_86 "int $VECTOR"
    enter_86 0x3202
1:  show flags_saved, tss_main + 0x24
    show cs_saved, tss_main + 0x4c
    show ip_saved, tss_main + 0x20
    show gs_saved, tss_main + 0x5c
2:  mov $TSS_MAIN, %eax
    andb $~2, gdt + TSS_MAIN + 5
    ltr %ax
    clts
    mov scenes_esp, %esp
    ret

.section .data
    .align 4
scenes_esp:
    .long 0
