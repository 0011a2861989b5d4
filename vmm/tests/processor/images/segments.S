# Segment registers, far pointers and the instructions that look at descriptors, over every type of descriptor.
.include "monitor.inc"

# Runs the block for each access byte of the descriptor SCRATCH and each RPL; the selector is in EBX and EAX.
.macro each_type name:req, probe:req, flags:req, insn:vararg
    scene "\name"
    xor %edi, %edi
.Ltype\@:
    descriptor_at SCRATCH, 0, 0xfffff, 0, \flags
    test $16, %edi
    jnz .Lnosystem\@
    descriptor_at SCRATCH, 0, 0x10, 0, 0      # a task could not run from such a TSS
.Lnosystem\@:
    test $15, %edi
    jnz .Lrow\@
    call space
.Lrow\@:
    mov $SCRATCH, %ebx
.Lrpl\@:
    mov %edi, %eax
    mov %al, gdt + SCRATCH + 5
    mov %ebx, %eax
    mov %ebx, far_pointer + 4
    \probe \insn
    inc %ebx
    test $3, %ebx
    jnz .Lrpl\@
    inc %edi
    cmp $256, %edi
    jne .Ltype\@
.endm

# What LAR and its kin say of a descriptor that they may or may not see: ZF, and a sum over the results.
.macro each_look name:req, user:req, insn:vararg
    scene "\name"
    descriptor_at SCRATCH, 0, 0x12345, 0, 0xd0
    movl $0, hash
    xor %edi, %edi
.Ltype\@:
    test $15, %edi
    jnz .Lrow\@
    call space
.Lrow\@:
    mov $SCRATCH, %ebx
.Lrpl\@:
    mov %edi, %eax
    mov %al, gdt + SCRATCH + 5
    mov $0x12345678, %ecx
    .if \user
    movb $1, quiet
    movl $.Lback\@, resume
    movl %esp, resume_esp
    go_user .Luser\@, 0x3002
.Luser\@:
    \insn
    pushf
    pop %edx
    int $0x80
.Lback\@:
    movb $0, quiet
    .else
    \insn
    pushf
    pop %edx
    .endif
    mov %edx, %eax
    shr $6, %eax
    and $1, %eax
    call put_digit
    roll $1, hash
    xor %ecx, hash
    inc %ebx
    test $3, %ebx
    jnz .Lrpl\@
    inc %edi
    cmp $256, %edi
    jne .Ltype\@
    show sum, hash
.endm

# Far transfers of control to flat code; back to CODE32 if they come there.
.macro far_jump
    movl $.Lthere\@, far_pointer
    ljmp *far_pointer
.Lthere\@:
    ljmp $CODE32, $.Lback\@
.Lback\@:
.endm

.macro far_call
    movl $.Lthere\@, far_pointer
    lcall *far_pointer
.Lthere\@:
    add $8, %esp
    ljmp $CODE32, $.Lback\@
.Lback\@:
.endm

.macro far_return
    pushl %ebx
    pushl $.Lthere\@
    lret
.Lthere\@:
    ljmp $CODE32, $.Lback\@
.Lback\@:
.endm

.macro return_from_interrupt
    pushl $2
    pushl %ebx
    pushl $.Lthere\@
    iret
.Lthere\@:
    ljmp $CODE32, $.Lback\@
.Lback\@:
.endm

# At privilege level 3 what happens behind it is the monitor's.
.macro far_jump_user
    movl $.Lthere\@, far_pointer
    ljmp *far_pointer
.Lthere\@:
.endm

.macro far_call_user
    movl $.Lthere\@, far_pointer
    lcall *far_pointer
.Lthere\@:
.endm

.macro far_return_user
    pushl %ebx
    pushl $.Lthere\@
    lret
.Lthere\@:
.endm

.macro return_from_interrupt_user
    pushl $2
    pushl %ebx
    pushl $.Lthere\@
    iret
.Lthere\@:
.endm

# Loads a segment register, and something sane again, for the segment may be useless.
.macro load_ds
    mov %ebx, %ds
    push %ss
    pop %ds
.endm

.macro load_ds_user
    mov %ebx, %ds
.endm

.macro load_ss
    mov %ebx, %ss
    lss resume_esp, %esp
.endm

# To an outer level, with SS as probed.
.macro far_return_outer
    pushl %ebx
    pushl $user_stack_top
    pushl $CODE32_3
    pushl $.Lthere\@
    lret
.Lthere\@:
    int $0x80
.endm

.macro return_outer
    pushl %ebx
    pushl $user_stack_top
    pushl $2
    pushl $CODE32_3
    pushl $.Lthere\@
    iret
.Lthere\@:
    int $0x80
.endm

.macro push_it
    push %es:(%esi)
    lea 4(%esp), %esp
.endm

# The monitor has its own segments.
.macro probe_in insn:vararg
    mov $SCRATCH, %eax
    mov %eax, %es
    xor %eax, %eax
    probe \insn
.endm

# The outcomes around both ends of a segment, of a limit and a type.
.macro ends_of name:req, limit:req, access:req, flags:req
    scene "\name"
    descriptor_at SCRATCH, field, \limit, \access, \flags
    mov $ends, %edi
1:  mov (%edi), %esi
    call space
    probe_in movb %es:(%esi), %dl
    probe_in movw %es:(%esi), %dx
    probe_in movl %es:(%esi), %edx
    probe_in fldl %es:(%esi)
    fninit
    probe_in movb %dl, %es:(%esi)
    probe_in push_it
    add $4, %edi
    cmp $ends_end, %edi
    jne 1b
    mov $DATA32, %eax
    mov %eax, %es
.endm

scenes:
    each_type "MOV DS", probe, 0xc0, load_ds
    each_type "MOV DS at level 3", probe_user, 0xc0, mov %ebx, %ds
    each_type "MOV SS", probe, 0xc0, load_ss
    each_type "MOV SS at level 3", probe_user, 0xc0, mov %ebx, %ss
    each_type "LFS", probe, 0xc0, lfs far_pointer, %edx
    each_type "JMP far", probe, 0xc0, far_jump
    each_type "JMP far at level 3", probe_user, 0xc0, far_jump_user
    each_type "RET far", probe, 0xc0, far_return
    each_type "RET far at level 3", probe_user, 0xc0, far_return_user
    each_type "IRET", probe, 0xc0, return_from_interrupt
    each_type "IRET at level 3", probe_user, 0xc0, return_from_interrupt_user
    each_type "RET far outwards, SS", probe, 0xc0, far_return_outer
    each_type "IRET outwards, SS", probe, 0xc0, return_outer
    each_type "LLDT", probe, 0x00, lldt %bx
    xor %eax, %eax
    lldt %ax

    each_look "LAR", 0, lar %ebx, %ecx
    each_look "LSL", 0, lsl %ebx, %ecx
    each_look "VERR", 0, verr %bx
    each_look "VERW", 0, verw %bx
    each_look "LAR at level 3", 1, lar %ebx, %ecx
    each_look "LSL at level 3", 1, lsl %ebx, %ecx
    each_look "VERR at level 3", 1, verr %bx
    each_look "VERW at level 3", 1, verw %bx

    scene "LAR, LSL of null, beyond the limit and in an absent LDT"
    mov $bad_selectors, %edi
1:  movzwl (%edi), %ebx
    call space
    mov $0x55555555, %ecx
    lar %ebx, %ecx
    setz %al
    call put_digit
    lsl %ebx, %ecx
    setz %al
    call put_digit
    verr %bx
    setz %al
    call put_digit
    show value, %ecx
    try mov %ebx, %ds
    mov $DATA32, %eax
    mov %eax, %ds
    try mov %ebx, %ss
    mov $DATA32, %eax
    mov %eax, %ss
    movl %ebx, far_pointer + 4
    try ljmp *far_pointer
    try lldt %bx
    add $2, %edi
    cmp $bad_selectors_end, %edi
    jne 1b
    xor %eax, %eax
    lldt %ax

    scene "the accessed bit"
    descriptor_at SCRATCH, 0, 0xfffff, 0x92, 0xc0
    mov $SCRATCH, %ebx
    lar %ebx, %ecx
    verw %bx
    show after_VERW, gdt+SCRATCH+4
    mov %ebx, %es
    show after_MOV, gdt+SCRATCH+4
    mov $DATA32, %eax
    mov %eax, %es
    descriptor_at SCRATCH, 0, 0xfffff, 0x9a, 0xc0
    movl $1f, far_pointer
    movl $SCRATCH, far_pointer + 4
    ljmp *far_pointer
1:  show after_JMP, gdt+SCRATCH+4
    ljmp $CODE32, $1f
1:

    ends_of "limits, expand-up data, 32 bits", 0xfff, 0x93, 0x40
    ends_of "limits, expand-up data, read-only", 0xfff, 0x91, 0x40
    ends_of "limits, expand-up data, 16 bits", 0xfff, 0x93, 0x00
    ends_of "limits, expand-up data, in pages", 0x0, 0x93, 0xc0
    ends_of "limits, expand-down data, 32 bits", 0xfff, 0x97, 0x40
    ends_of "limits, expand-down data, 16 bits", 0xfff, 0x97, 0x00
    ends_of "limits, expand-down data, in pages", 0x0, 0x97, 0xc0
    ends_of "limits, expand-down data, in pages, 16 bits", 0x0, 0x97, 0x80
    ends_of "limits, code, readable", 0xfff, 0x9b, 0x40

    scene "reading execute-only code"
    descriptor_at SCRATCH, 0, 0xfffff, 0x99, 0xc0
    movl $1f, far_pointer
    movl $SCRATCH, far_pointer + 4
    ljmp *far_pointer
1:  catch 2f
    mov %cs:far_pointer, %eax
2:  ljmp $CODE32, $1f
1:

    scene "a null segment register"
    xor %eax, %eax
    mov %eax, %fs
    try movb %fs:0, %al
    try movb %al, %fs:0
    try prefetcht0 %fs:0
    try verr %fs:0
    try testl $0, %fs:0xfffffffc
    mov $DATA32, %eax
    mov %eax, %fs

    scene "writing to code"
    try movb $0, %cs:0x200000

    scene "a jump beyond the limit"
    descriptor_at SCRATCH, 0, 0x1000, 0x9b, 0x40
    movl $0x1001, far_pointer
    movl $SCRATCH, far_pointer + 4
    try ljmp *far_pointer
    movl $0x1000, far_pointer
    try ljmp *far_pointer

    scene "a segment that is not present"
    descriptor_at SCRATCH, 0, 0xfffff, 0x13, 0xc0
    mov $SCRATCH, %ebx
    try mov %ebx, %es
    try mov %ebx, %ss
    try lfs far_null, %eax
    movl %ebx, far_pointer + 4
    try lss far_pointer, %eax
    try les far_pointer, %eax
    pushl %ebx
    try pop %gs
    pop %eax
    show GS, %gs

    scene "ARPL"
    mov $pairs, %edi
1:  movw (%edi), %ax
    movw 2(%edi), %bx
    cmp %eax, %eax
    arpl %bx, %ax
    pushf
    pop %ecx
    and $0xffff, %eax
    and $0x40, %ecx
    show is, %eax
    show zf, %ecx
    add $4, %edi
    cmp $pairs_end, %edi
    jne 1b

    scene "SMSW, SLDT, STR, SGDT, SIDT at level 3"
    try_user 2, smsw %eax
    try_user 2, sldt %eax
    try_user 2, str %eax
    try_user 2, sgdt table_pointer
    show limit, table_pointer
    try_user 2, lgdt table_pointer
    try_user 2, lmsw %ax
    try_user 2, clts
    try_user 2, mov %cr0, %eax
    try_user 2, mov %dr7, %eax
    try_user 2, hlt
    try_user 2, invlpg (%eax)
    try_user 2, wbinvd
    try_user 2, rdmsr
    try_user 2, lldt %ax
    try_user 2, ltr %ax
    try_user 2, sti
    try_user 2, cli
    try_user 0x3002, sti
    try_user 0x3002, cli
    try_user 2, in $0x61, %al
    try_user 2, iret
    ret

.section .data
    .align 8
hash:
    .long 0
far_pointer:
    .long 0, 0
far_null:
    .long 0, 0
table_pointer:
    .long 0, 0
bad_selectors:
    .word 0, 1, 2, 3, 4, 7, 0xf8, 0xfb, 0x100, 0x103, 0x104, 0xfff8, 0xfffc, 0xffff
bad_selectors_end:
pairs:
    .word 0x10, 0x10, 0x10, 0x13, 0x13, 0x10, 0xfff1, 0x0002, 0, 3, 3, 0, 0x8000, 0xffff
pairs_end:
ends:
    .long 0, 0xffc, 0xffd, 0xffe, 0xfff, 0x1000, 0x1001, 0x8000
    .long 0xfff8, 0xfffc, 0xfffd, 0xffff, 0x10000
    .long 0xfffffff0, 0xfffffff8
ends_end:

.section .bss
    .align 4096
    .skip 0x1000
field:
    .skip 0x11000
