# Hardware task switches: what is saved and loaded, links and busy bits, gates, and whose exception it is when it fails.
.include "monitor.inc"

.set FIRST, TSS_MAIN       # the task that runs
.set SECOND, TSS_SPARE     # the task that it goes to
.set HANDLER, SCRATCH      # the task of an exception's task gate
.set NARROW, 0x48          # a task of 16 bits
.set GATE, 0x50            # a task gate
.set ODD, 0x58             # whatever a scene breaks
.set LDT_SECOND, 0x60
.set VECTOR, 0x41
.set CR0_PG, 1 << 31

# Where a 32-bit TSS has what.
.set LINK, 0
.set ESP0, 4
.set SS0, 8
.set CR3, 0x1c
.set EIP, 0x20
.set EFLAGS, 0x24
.set EAX, 0x28
.set ESP, 0x38
.set ES, 0x48
.set CS, 0x4c
.set SS, 0x50
.set DS, 0x54
.set FS, 0x58
.set GS, 0x5c
.set LDT, 0x60
.set TRAP, 0x64
.set MAP, 0x66

# Where a 16-bit TSS has what.
.set IP_16, 0x0e
.set FLAGS_16, 0x10
.set AX_16, 0x12
.set SP_16, 0x1a
.set ES_16, 0x22
.set LDT_16, 0x2a

# The scene goes on at the label, in the first task.
.macro comes_back label:req
    movl $\label, resume
    movl %esp, resume_esp
.endm

# The second task begins at the label.
.macro second_at label:req
    call make_second
    movl $\label, tss_second + EIP
.endm

# What came of a switch that must fail, each time with the second task as new: the instruction in quotes.
.macro fails insns:req
    movl $.Lfailed\@, resume
    movl %esp, resume_esp
    call space
    pushl $2
    popfl
    \insns
    call put_text
    .asciz "ok"
.Lfailed\@:
    call reset_tasks
.endm

# The same where it fails in the new task, whose exceptions of these vectors are a task's.
.macro fails_there what:vararg
    call make_second
    \what
    call own_tasks
    fails "lcall $SECOND, $0"
    call own_handlers
.endm

scenes:
    descriptor_at SECOND, tss_second, 0x67, 0x89, 0
    descriptor_at HANDLER, tss_handler, 0x67, 0x89, 0
    descriptor_at NARROW, tss_narrow, 0x2b, 0x81, 0
    descriptor_at LDT_SECOND, ldt_second, 15, 0x82, 0
    gate gdt, GATE/8, SECOND, 0, 0x85
    movl gdt + DATA32, %eax
    movl %eax, ldt_second
    movl gdt + DATA32 + 4, %eax
    movl %eax, ldt_second + 4
    movl gdt + CODE32, %eax
    movl %eax, ldt_second + 8
    movl gdt + CODE32 + 4, %eax
    movl %eax, ldt_second + 12

.ifndef ON_PAGES
    scene "JMP to a task"
    second_at 1f
    call reset_tasks
    comes_back 2f
    call fill_registers
    ljmp $SECOND, $0x12345678
    call put_text
    .asciz " came back"
    ljmp $SECOND, $0
1:  call show_arrival
    ljmp $FIRST, $0
    call show_types
    jmp leave_task
2:  call reset_tasks

    scene "CALL to a task, and IRET"
    second_at 1f
    call reset_tasks
    call fill_registers
    lcall $SECOND, $0x12345678
    call show_arrival
    show eip_saved, tss_second + EIP
    show flags_saved, tss_second + EFLAGS
    comes_back 2f
    lcall $SECOND, $0
1:  call show_arrival
    iret
    call put_text
    .asciz " again"
    call show_types
    jmp leave_task
2:  call reset_tasks

    scene "the state that is saved"
    second_at 1f
    call reset_tasks
    comes_back 2f
    mov $DATA32_3, %eax
    mov %eax, %fs
    mov $CODE32, %eax
    mov %eax, %gs
    call fill_registers
    std
    lcall $SECOND, $0
1:  mov $tss_main, %esi
    mov $26, %ecx
3:  lodsl
    call space
    call put_word
    loop 3b
    jmp leave_task
2:  call reset_tasks

    scene "a task gate: CALL, JMP, INT"
    .irp insn, "lcall $GATE, $0", "ljmp $GATE, $0", "int $VECTOR", "push $0x3000; popf; int $VECTOR"
    second_at 1f
    call reset_tasks
    gate idt, VECTOR, SECOND, 0, 0x85
    comes_back 2f
    push $2
    popf
    \insn
1:  call show_arrival
    show eip_saved, tss_main + EIP
    show flags_saved, tss_main + EFLAGS
    jmp leave_task
2:  call reset_tasks
    .endr

    scene "exceptions through a task gate"
    call own_tasks
    fails "mov $0xfff8, %eax; mov %eax, %fs"
    fails "ud2"
    fails "int $13"
    call own_handlers

    scene "IRET of a task that an exception began"
    second_at 1f
    call reset_tasks
    call own_tasks
    mov $0xfff8, %eax
    movl $3f, tss_handler + EIP
    mov %eax, %fs
    call put_text
    .asciz " goes on"
    show types, gdt + HANDLER + 4
    call own_handlers
    jmp 2f
3:  call put_text
    .asciz " error="
    pop %eax
    call put_word
    movl $4f, tss_main + EIP
    iret
4:  call put_text
    .asciz " here"
    call own_handlers
1:
2:  call reset_tasks

    scene "a task at level 3"
    call make_second
    movl $1f, tss_second + EIP
    movl $CODE32_3, tss_second + CS
    movl $DATA32_3, tss_second + SS
    movl $DATA32_3, tss_second + DS
    movl $DATA32_3, tss_second + ES
    movl $0x3202, tss_second + EFLAGS
    call reset_tasks
    comes_back 2f
    call space
    lcall $SECOND, $0
1:  mov %cs, %eax
    mov %ss, %ebx
    int $0x80
2:  show cs, %eax
    call show_types
    call reset_tasks

    scene "JMP and CALL to a task from level 3"
    call make_second
    descriptor_at SECOND, tss_second, 0x67, 0xe9, 0
    gate gdt, GATE/8, SECOND, 0, 0xe5
    movl $1f, tss_second + EIP
    .irp insn, "lcall $SECOND, $0", "ljmp $SECOND, $0", "lcall $GATE, $0", "lcall $SECOND+3, $0"
    call reset_tasks
    movb $0xe9, gdt + SECOND + 5
    comes_back 2f
    go_user 3f
3:  \insn
2:  call show_types
    .endr
    jmp 4f
1:  call show_arrival
    show cs_saved, tss_main + CS
    show esp_saved, tss_main + ESP
    jmp leave_task
4:  gate gdt, GATE/8, SECOND, 0, 0x85
    descriptor_at SECOND, tss_second, 0x67, 0x89, 0
    call reset_tasks
    try_user 2, lcall $SECOND, $0
    try_user 2, lcall $GATE, $0
    try_user 2, ljmp $SECOND+3, $0

    scene "the local descriptor table of a task"
    call make_second
    movl $1f, tss_second + EIP
    movl $LDT_SECOND, tss_second + LDT
    movl $0x0c, tss_second + CS
    movl $0x04, tss_second + DS
    movl $0x04, tss_second + SS
    call reset_tasks
    comes_back 2f
    lcall $SECOND, $0
1:  mov $DATA32, %eax
    mov %eax, %ds
    mov %eax, %es
    sldt %eax
    show ldt, %eax
    show cs, %cs
    show ss, %ss
    jmp leave_task
2:  call reset_tasks
    sldt %eax
    show ldt, %eax
    xor %eax, %eax
    lldt %ax

    scene "16-bit tasks"
    .irp insn, "lcall $NARROW, $0", "ljmp $NARROW, $0"
    call make_narrow
    call reset_tasks
    comes_back 2f
    call fill_registers
    movl $0xaaaaaaaa, %eax
    push $2
    popf
    \insn
    call put_text
    .asciz " back"
    show esp, %esp
    call show_types
    show ip_saved, tss_narrow + IP_16
    mov $tss_narrow, %esi
    mov $11, %ecx
3:  lodsl
    call space
    call put_word
    loop 3b
2:  call reset_tasks
    .endr

    scene "debug trap of a task"
    second_at 1f
    movw $1, tss_second + TRAP
    call reset_tasks
    comes_back 1f
    call space
    lcall $SECOND, $0
    nop
1:  call reset_tasks
    movw $0, tss_second + TRAP

    scene "local breakpoints do not survive a switch"
    second_at 1f
    call reset_tasks
    comes_back 2f
    mov $0x355, %eax
    mov %eax, %dr7
    mov $0x7ff00000, %eax
    mov %eax, %dr0
    mov %eax, %dr1
    mov %eax, %dr2
    mov %eax, %dr3
    mov $0x3ff, %eax
    mov %eax, %dr7
    lcall $SECOND, $0
1:  mov %dr7, %eax
    show dr7, %eax
    jmp leave_task
2:  xor %eax, %eax
    mov %eax, %dr7
    call reset_tasks

    scene "tasks that cannot be switched to"
    call make_second
    .irp access, 0x09, 0x8b, 0x83, 0x82, 0x8c, 0x93, 0x89, 0x29
    movb $\access, gdt + SECOND + 5
    movb $0x66, gdt + SECOND
    fails "ljmp $SECOND, $0"
    movb $\access, gdt + SECOND + 5
    fails "lcall $GATE, $0"
    .endr
    descriptor_at SECOND, tss_second, 0x67, 0x89, 0
    movb $0x2a, gdt + NARROW
    fails "ljmp $NARROW, $0"
    movb $0x2b, gdt + NARROW
    fails "ljmp $FIRST, $0"
    fails "lcall $FIRST, $0"
    fails "ljmp $0x7f8, $0"
    gate gdt, GATE/8, SECOND, 0, 0x05
    fails "lcall $GATE, $0"
    fails "int $VECTOR"
    gate gdt, GATE/8, SECOND | 4, 0, 0x85
    fails "lcall $GATE, $0"
    gate gdt, GATE/8, 0, 0, 0x85
    fails "lcall $GATE, $0"
    gate gdt, GATE/8, 3, 0, 0x85
    fails "ljmp $GATE, $0"
    gate gdt, GATE/8, 0x7f8, 0, 0x85
    fails "lcall $GATE, $0"
    gate gdt, GATE/8, DATA32, 0, 0x85
    fails "lcall $GATE, $0"
    gate gdt, GATE/8, CODE32, 0, 0x85
    fails "lcall $GATE, $0"

    scene "interrupts whose task cannot be switched to"
    gate idt, VECTOR, SECOND, 0, 0x05
    fails "int $VECTOR"
    .irp selector, 0, SECOND | 4, 0x7f8, DATA32, FIRST, LDT_SECOND
    gate idt, VECTOR, \selector, 0, 0x85
    fails "int $VECTOR"
    .endr
    gate idt, VECTOR, SECOND, 0, 0x85
    movb $0x09, gdt + SECOND + 5
    fails "int $VECTOR"
    movb $0x89, gdt + SECOND + 5
    movb $0x66, gdt + SECOND
    fails "int $VECTOR"
    movb $0x67, gdt + SECOND
    try_user 2, int $VECTOR
    movl idt + 6*8, %esi
    movl idt + 6*8 + 4, %edi
    gate idt, 6, DATA32, 0, 0x85
    fails "ud2"
    gate idt, 6, 0, 0, 0x85
    fails "ud2"
    gate idt, 6, FIRST, 0, 0x85
    fails "ud2"
    movl %esi, idt + 6*8
    movl %edi, idt + 6*8 + 4
    gate gdt, GATE/8, SECOND, 0, 0x85

    scene "IRET to a task that there is not"
    .irp link, 0, 3, SECOND, SECOND | 4, 0x7f8, DATA32, LDT_SECOND, NARROW, FIRST
    movw $\link, tss_main
    fails "push $0x4002; popf; iret"
    .endr
    movw $SECOND, tss_main
    movb $0x0b, gdt + SECOND + 5
    fails "push $0x4002; popf; iret"
    movb $0x8b, gdt + SECOND + 5
    movb $0x66, gdt + SECOND
    fails "push $0x4002; popf; iret"
    movb $0x67, gdt + SECOND
    movb $0x8b, gdt + SECOND + 5
    second_at 1f
    call reset_tasks
    comes_back 2f
    movb $0x8b, gdt + SECOND + 5
    movl $0x12345678, tss_second + LINK
    push $0x4002
    popf
    iret
1:  call show_arrival
    jmp leave_task
2:  call reset_tasks
    show flags_saved, tss_main + EFLAGS

    scene "an old task that does not fit its segment"
    call make_second
    .irp limit, 0x5e, 0x5f, 0x66
    movb $\limit, gdt + FIRST
    fails "ljmp $SECOND, $0"
    .endr
    movb $0x67, gdt + FIRST

    scene "segments that a task cannot have: CS"
    .irp selector, 0, 3, 0x7f8, DATA32, CODE32 | 1, CODE32_3 & ~3, LDT_SECOND, 4
    fails_there movl $\selector, tss_second + CS
    .endr
    .irp access, 0x1b, 0x9f, 0xff, 0xdb, 0x99
    descriptor_at ODD, 0, 0xfffff, \access, 0xc0
    fails_there movl $ODD, tss_second + CS
    .endr

    scene "segments that a task cannot have: SS"
    .irp selector, 0, 3, 0x7f8, CODE32, DATA32 | 1, DATA32_3, LDT_SECOND
    fails_there movl $\selector, tss_second + SS
    .endr
    .irp access, 0x13, 0x91, 0xb3, 0x1b
    descriptor_at ODD, 0, 0xfffff, \access, 0xc0
    fails_there movl $ODD, tss_second + SS
    .endr

    scene "segments that a task cannot have: DS, GS"
    .irp seg, DS, GS
    .irp selector, 0x7f8, LDT_SECOND, FIRST, 4
    fails_there movl $\selector, tss_second + \seg
    .endr
    .irp access, 0x13, 0x99, 0x1b, 0x9f
    descriptor_at ODD, 0, 0xfffff, \access, 0xc0
    fails_there movl $ODD, tss_second + \seg
    .endr
    .endr

    scene "segments that a task cannot have: LDT"
    .irp selector, 0x7f8, DATA32, FIRST, LDT_SECOND | 4, 4
    fails_there movl $\selector, tss_second + LDT
    .endr
    descriptor_at ODD, ldt_second, 15, 0x02, 0
    fails_there movl $ODD, tss_second + LDT

.else
    scene "task state on pages"
    mov $directory, %edi
    mov $0x87, %eax
    mov $4, %ecx
1:  mov %eax, (%edi)
    add $0x400000, %eax
    add $4, %edi
    loop 1b
    movl $table + 7, directory + 12
    mov $table, %edi
    mov $0xc00007, %eax
    mov $1024, %ecx
1:  mov %eax, (%edi)
    add $0x1000, %eax
    add $4, %edi
    loop 1b
    mov $0x10, %eax
    mov %eax, %cr4
    mov $directory, %eax
    mov %eax, %cr3
    mov $directory, %esi
    mov $other_directory, %edi
    mov $1024, %ecx
    rep movsl
    mov %cr0, %eax
    or $CR0_PG, %eax
    mov %eax, %cr0
    second_at 2f
    movl $other_directory, tss_second + CR3
    call reset_tasks
    comes_back 3f
    ljmp $SECOND, $0
2:  call show_arrival
    mov %cr3, %eax
    show cr3, %eax
    show cr3_saved, tss_main + CR3
    jmp leave_task
3:  call reset_tasks
    mov $directory, %eax
    mov %eax, %cr3
    # In the last bytes of a page that is there, the others on one that is not.
    call make_second
    mov $tss_second, %esi
    mov $0xc01000 - 0x20, %edi
    mov $0x68, %ecx
    rep movsb
    movl $0, table + 4
    descriptor_at SECOND, 0xc01000-0x20, 0x67, 0x89, 0
    mov %cr3, %eax
    mov %eax, %cr3
    fails "ljmp $SECOND, $0"
    call show_types
    descriptor_at SECOND, tss_second, 0x67, 0x89, 0
    call reset_tasks
    mov %cr0, %eax
    and $~CR0_PG, %eax
    mov %eax, %cr0
    xor %eax, %eax
    mov %eax, %cr4

    scene "an instruction pointer beyond the limit"
    descriptor_at ODD, 0, 0xfff, 0x9b, 0x40
    call make_second
    movl $ODD, tss_second + CS
    movl $0x1000, tss_second + EIP
    call own_tasks
    fails "lcall $SECOND, $0"
    call own_handlers
.endif
    ret

# In code that 16 bits of a task's instruction pointer reach: with base 0 they do not, so a segment of its own does.
narrow_entry:
    ljmp $CODE32, $narrow_flat
narrow_flat:
    mov %sp, narrow_esp
    lss narrow_stack, %esp
    pushf
    .irp register, ax, cx, dx, bx, bp, si, di     # what is above is undefined
    movzwl %\register, %e\register
    .endr
    call show_registers
    show sp, narrow_esp
    pop %ebx
    show flags, %ebx
    str %eax
    show tr, %eax
    show link, tss_narrow
    show fs, %fs
    show gs, %gs
    call show_types
    testl $0x4000, %ebx
    jz leave_task
    iret

# What a task finds when it begins.
show_arrival:
    pushf
    call show_registers
    mov (%esp), %eax
    show flags, %eax
    mov %cr0, %eax
    show cr0, %eax
    str %eax
    show tr, %eax
    show link, tss_second + LINK
    show esp, %esp
    call show_types
    popf
    ret

show_types:
    pushf
    push %eax
    call put_text
    .asciz " busy="
    mov gdt + FIRST + 5, %al
    call put_byte
    mov gdt + SECOND + 5, %al
    call put_byte
    mov gdt + HANDLER + 5, %al
    call put_byte
    mov gdt + NARROW + 5, %al
    call put_byte
    pop %eax
    popf
    ret

show_registers:
    pushf
    call space
    call put_word
    .irp register, %ecx, %edx, %ebx, %ebp, %esi, %edi
    push %eax
    mov \register, %eax
    call space
    call put_word
    pop %eax
    .endr
    popf
    ret

fill_registers:
    mov $0x11111111, %eax
    mov $0x22222222, %ecx
    mov $0x33333333, %edx
    mov $0x44444444, %ebx
    mov $0x55555555, %ebp
    mov $0x66666666, %esi
    mov $0x77777777, %edi
    cmp %eax, %ecx
    ret

# Whatever the task, back to where the scene wants to go on, as the first.
leave_task:
    mov $DATA32, %eax
    mov %eax, %ds
    mov %eax, %es
    lss resume_esp, %esp
    push $2
    popf
    ljmp $CODE32, $1f
1:  jmp *resume

# The first task is the one that runs, and the others may be run.
reset_tasks:
    pushf
    push %eax
    andb $~2, gdt + FIRST + 5
    mov $FIRST, %eax
    ltr %ax
    .irp which, SECOND, HANDLER, NARROW
    testb $0x10, gdt + \which + 5
    jnz 1f
    andb $~2, gdt + \which + 5
1:
    .endr
    clts
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    pop %eax
    andl $~0x4000, (%esp)
    popf
    ret

make_second:
    pushal
    mov $tss_second, %edi
    xor %eax, %eax
    mov $26, %ecx
    cld
    rep stosl
    mov $tss_second + EAX, %edi
    mov $0xa0000000, %eax
    mov $8, %ecx
1:  stosl
    add $0x01010101, %eax
    loop 1b
    movl $leave_task, tss_second + EIP
    movl $0xcd7, tss_second + EFLAGS
    movl $spare_stack_top, tss_second + ESP
    movl $trap_stack_top, tss_second + ESP0
    movl $DATA32, tss_second + SS0
    movl $CODE32, tss_second + CS
    .irp seg, ES, SS, DS
    movl $DATA32, tss_second + \seg
    .endr
    movw $0x68, tss_second + MAP
    mov %cr3, %eax
    mov %eax, tss_second + CR3
    popal
    ret

make_narrow:
    pushal
    descriptor_at ODD, narrow_entry, 0xffff, 0x9b, 0x40
    mov $tss_narrow, %edi
    xor %eax, %eax
    mov $22, %ecx
    rep stosw
    mov $tss_narrow + AX_16, %edi
    mov $0xa000, %eax
    mov $8, %ecx
1:  stosw
    add $0x0101, %eax
    loop 1b
    movw $0x3cd7, tss_narrow + FLAGS_16
    descriptor_at 0x68, spare_stack_top-4096, 0xfff, 0x93, 0x00
    movw $4096, tss_narrow + SP_16
    movw $DATA32, tss_narrow + ES_16
    movw $ODD, tss_narrow + ES_16 + 2
    movw $0x68, tss_narrow + ES_16 + 4
    movw $DATA32, tss_narrow + ES_16 + 6
    popal
    ret

# Exceptions of descriptors lead to a task, which tells the error code and what the failing task has become.
own_tasks:
    pushal
    mov $tss_handler, %edi
    xor %eax, %eax
    mov $26, %ecx
    cld
    rep stosl
    movl $handler, tss_handler + EIP
    movl $2, tss_handler + EFLAGS
    movl $handler_stack_top, tss_handler + ESP
    movl $CODE32, tss_handler + CS
    movl $DATA32, tss_handler + SS
    movl $DATA32, tss_handler + DS
    movl $DATA32, tss_handler + ES
    mov %cr3, %eax
    mov %eax, tss_handler + CR3
    cmpb $0, handlers_kept
    jne 1f
    mov $idt, %esi
    mov $idt_kept, %edi
    mov $15*2, %ecx
    rep movsl
    movb $1, handlers_kept
1:  .irp number, 6, 8, 10, 11, 12, 13
    gate idt, \number, HANDLER, 0, 0x85
    .endr
    popal
    ret

own_handlers:
    pushal
    mov $idt_kept, %esi
    mov $idt, %edi
    mov $15*2, %ecx
    cld
    rep movsl
    movb $0, handlers_kept
    popal
    ret

# The stack of the task tells whether there was an error code.
handler:
    call put_text
    .asciz "T"
    cmp $handler_stack_top, %esp
    je 1f
    pop %eax
    call put_half
1:  movzwl tss_handler, %ebx
    mov %ebx, %eax
    mov $':', %dl
    call put_after
    mov $tss_main, %esi
    cmp $FIRST, %ebx
    je 2f
    mov $tss_second, %esi
2:  mov $' ', %dl
    mov EIP(%esi), %eax
    call put_after
    mov EFLAGS(%esi), %eax
    call put_after
    mov CS(%esi), %ax
    call space
    call put_half
    mov SS(%esi), %ax
    call space
    call put_half
    mov DS(%esi), %ax
    call space
    call put_half
    mov GS(%esi), %ax
    call space
    call put_half
    call show_types
    jmp leave_task

.section .data
    .align 8
narrow_stack:
    .long spare_stack_top, DATA32
narrow_esp:
    .long 0
handlers_kept:
    .byte 0

.section .bss
    .align 4096
directory:
    .skip 4096
other_directory:
    .skip 4096
table:
    .skip 4096
    .align 128
tss_second:
    .skip 128
tss_handler:
    .skip 128
tss_narrow:
    .skip 128
ldt_second:
    .skip 16
idt_kept:
    .skip 8*16
    .align 16
    .skip 1024
handler_stack_top:
    .skip 64
