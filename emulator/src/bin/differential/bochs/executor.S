# Runs test cases in 64-bit mode, one after the other, and writes what each leaves behind to the disk. `boot.S` loads it
# with its input behind it; `machine.rs` has the layouts.
.set INPUT, 0x210000           # how many cases; the first sector of the results
.set POOL, INPUT + 0x1000      # contents of registers and memory
.set CASES, POOL + 0x10000
.set CASE_SIZE, 320
.set CODE_PAGE, 0x1000000      # physical; linear is 0x10000000
.set DATA_PAGE, 0x1001000      # physical; linear is 0x20001000, with nothing before and behind
.set CODE, 0x10000000
.set RESULT_SECTORS, 5

.code32
.globl _start
_start:
    .org 12                    # where a Multiboot header would end
    cli
    mov $(1 << 5 | 1 << 9 | 1 << 10 | 1 << 18), %eax   # PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx      # EFER.LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80010033, %eax      # PG, WP, NE, ET, MP, PE
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long
.code64
long:
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    mov $stack, %rsp
    xor %ecx, %ecx
    xor %edx, %edx
    mov $0xe7, %eax            # x87, SSE, AVX, AVX-512
    xsetbv
    fninit
    mov $tss, %eax             # its descriptor's base
    mov %ax, gdt + 16 + 2
    shr $16, %eax
    mov %al, gdt + 16 + 4
    mov %ah, gdt + 16 + 7
    mov $16, %eax
    ltr %ax
    mov $idt, %edi
    mov $stubs, %eax
    mov $32, %ecx
1:  mov %ax, (%rdi)
    movl $0x8e010008, 2(%rdi)  # CS 8, IST1, interrupt gate
    mov %eax, %edx
    shr $16, %edx
    mov %dx, 6(%rdi)
    movq $0, 8(%rdi)
    add $16, %edi
    add $16, %eax
    loop 1b
    lidt idt_pointer
    mov $CODE_PAGE, %edi
    mov $0xcc, %al             # INT3
    mov $4096, %ecx
    rep stosb
    mov $0x3f6, %edx           # no interrupts of the disk
    mov $2, %al
    out %al, %dx
    movq $CASES, case
    mov INPUT, %rax
    mov %rax, left
    mov INPUT + 8, %eax
    mov %eax, sector

next:
    mov case, %rbx
    # Memory.
    mov 56(%rbx), %rsi
    add $POOL, %rsi
    mov $DATA_PAGE, %edi
    mov $512, %ecx
    rep movsq
    # The instruction.
    mov 16(%rbx), %rdi
    lea CODE(%rdi), %rax
    mov %rax, target
    add $CODE_PAGE, %rdi
    mov (%rbx), %rax
    mov %rax, (%rdi)
    mov 8(%rbx), %rax
    mov %rax, 8(%rdi)
    # Registers.
    mov 24(%rbx), %rsi
    add $POOL, %rsi
    mov $registers, %edi
    mov $256, %ecx
    rep movsq
    mov 36(%rbx), %edi
    cmp $32, %edi
    jae 1f
    shl $6, %edi
    vmovdqu64 256(%rbx), %zmm0
    vmovdqu64 %zmm0, registers(%rdi)
1:
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovdqu64 registers + 64 * \i, %zmm\i
    .endr
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq 64 + 8 * \i(%rbx), %k\i
    .endr
    ldmxcsr 32(%rbx)
    pushq 40(%rbx)
    popfq
    mov 128(%rbx), %rax
    mov 128 + 8(%rbx), %rcx
    mov 128 + 16(%rbx), %rdx
    mov 128 + 32(%rbx), %rsp
    mov 128 + 40(%rbx), %rbp
    mov 128 + 48(%rbx), %rsi
    mov 128 + 56(%rbx), %rdi
    .irp i, 8, 9, 10, 11, 12, 13, 14, 15
    mov 128 + 8 * \i(%rbx), %r\i
    .endr
    mov 128 + 24(%rbx), %rbx
    jmp *target

    .align 16
stubs:
    .set vector, 0
    .rept 32
    .align 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
    .else
    push $0
    .endif
    push $vector
    jmp over
    .set vector, vector + 1
    .endr

over:
    mov %rax, result_gpr
    mov %rcx, result_gpr + 8
    mov %rdx, result_gpr + 16
    mov %rbx, result_gpr + 24
    mov %rbp, result_gpr + 40
    mov %rsi, result_gpr + 48
    mov %rdi, result_gpr + 56
    .irp i, 8, 9, 10, 11, 12, 13, 14, 15
    mov %r\i, result_gpr + 8 * \i
    .endr
    mov 40(%rsp), %rax
    mov %rax, result_gpr + 32
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovdqu64 %zmm\i, result + 64 * \i
    .endr
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq %k\i, result_k + 8 * \i
    .endr
    cld
    stmxcsr result_mxcsr
    mov (%rsp), %rax
    mov %rax, result_mxcsr + 8     # vector
    mov 8(%rsp), %rax
    mov %rax, result_mxcsr + 16    # error code
    mov %cr2, %rax
    mov %rax, result_mxcsr + 24
    mov 16(%rsp), %rax
    mov %rax, result_mxcsr + 32    # RIP
    mov 32(%rsp), %rax
    mov %rax, result_mxcsr + 40    # RFLAGS
    xor %eax, %eax
    mov %rax, %cr2
    mov $stack, %rsp
    mov case, %rbx
    mov $DATA_PAGE, %esi
    xor %eax, %eax
    mov $512, %ecx
1:  crc32q (%rsi), %rax
    add $8, %esi
    dec %ecx
    jnz 1b
    mov %rax, result_mxcsr + 48
    mov 48(%rbx), %rsi
    add $DATA_PAGE, %rsi
    mov $result_memory, %edi
    mov $256, %ecx
    rep movsb
    mov 16(%rbx), %rdi
    mov $0xcccccccccccccccc, %rax
    mov %rax, CODE_PAGE(%rdi)
    mov %rax, CODE_PAGE + 8(%rdi)
    # To the disk.
    mov $0x1f7, %edx
1:  in %dx, %al
    test $0x80, %al
    jnz 1b
    mov sector, %ecx
    mov $0x1f6, %edx
    mov %ecx, %eax
    shr $24, %eax
    or $0xe0, %al
    out %al, %dx
    mov $0x1f2, %edx
    mov $RESULT_SECTORS, %al
    out %al, %dx
    inc %edx
    mov %ecx, %eax
    out %al, %dx
    inc %edx
    mov %ah, %al
    out %al, %dx
    inc %edx
    mov %ecx, %eax
    shr $16, %eax
    out %al, %dx
    mov $0x1f7, %edx
    mov $0x30, %al             # WRITE SECTORS
    out %al, %dx
    mov $result, %esi
    mov $RESULT_SECTORS, %ebp
2:  mov $0x1f7, %edx
1:  in %dx, %al
    test $0x80, %al
    jnz 1b
    test $8, %al
    jz 1b
    mov $0x1f0, %edx
    mov $256, %ecx
    rep outsw
    dec %ebp
    jnz 2b
    addl $RESULT_SECTORS, sector
    addq $CASE_SIZE, case
    decq left
    jnz next
    mov $0x1f7, %edx
1:  in %dx, %al
    test $0x80, %al
    jnz 1b
    mov $0x8900, %dx
    mov $bye, %esi
    mov $8, %ecx
    rep outsb
    cli
    hlt

bye:
    .ascii "Shutdown"
    .align 8
case: .quad 0
left: .quad 0
target: .quad 0
sector: .long 0, 0
gdt:
    .quad 0, 0x00af9b000000ffff, 0x0000890000000067, 0
gdt_pointer:
    .word 31
    .quad gdt
idt_pointer:
    .word 511
    .quad idt
    .align 16
tss:
    .long 0
    .fill 8, 4, 0
    .long exception_stack, 0   # IST1
    .fill 15, 4, 0
idt:
    .fill 64, 8, 0
    .align 4096
pml4:
    .quad pdpt + 3
    .fill 511, 8, 0
pdpt:
    .quad directory + 3
    .fill 511, 8, 0
directory:                     # 64 MiB as they are
    .set page, 0
    .rept 32
    .quad page + 0x83
    .set page, page + 0x200000
    .endr
    .fill 96, 8, 0
    .quad code_table + 3
    .fill 127, 8, 0
    .quad data_table + 3
    .fill 255, 8, 0
code_table:
    .quad CODE_PAGE + 3
    .fill 511, 8, 0
data_table:
    .quad 0, DATA_PAGE + 3
    .fill 510, 8, 0
    .fill 4096
stack:
    .fill 4096
exception_stack:
registers:
    .fill 2048
result:                        # RESULT_SECTORS sectors
    .fill 2048
result_k:
    .fill 64
result_gpr:
    .fill 128
result_mxcsr:                  # vector, error code, CR2, RIP, RFLAGS, checksum
    .fill 64
result_memory:
    .fill 256
    .org 0x10000
