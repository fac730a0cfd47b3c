.code16
.org 0
_start:
 cli
 xor %ax,%ax
 mov %ax,%ds
 mov %ax,%es
 mov %ax,%ss
 mov $0x7c00,%sp
 mov $'1',%al
 call put
 # count ticks of the timer interrupt through the BIOS handler, halting between
 movw 0x46c,%bx
 addw $6,%bx
 sti
wait:
 hlt
 movw 0x46c,%ax
 subw %bx,%ax
 js wait
 cli
 mov $'2',%al
 call put
 # page tables: PML4 0x1000, PDPT 0x2000, PD 0x3000 with 2 MiB identity pages
 mov $0x1000,%edi
 mov %edi,%cr3
 xor %eax,%eax
 mov $0x1000,%ecx
 cld
 rep stosl
 movl $0x2003,0x1000
 movl $0x3003,0x2000
 mov $0x3000,%di
 mov $0x83,%eax
 mov $512,%cx
pd: mov %eax,(%di)
 add $0x200000,%eax
 add $8,%di
 loop pd
 mov %cr4,%eax
 or $0x20,%eax
 mov %eax,%cr4
 mov $0xc0000080,%ecx
 rdmsr
 or $0x100,%eax
 wrmsr
 mov %cr0,%eax
 or $0x80000001,%eax
 mov %eax,%cr0
 lgdt gdtr-_start+0x7c00
 ljmp $8,$(long-_start+0x7c00)
put:
 mov $0x3f8,%dx
 out %al,%dx
 ret
.code64
long:
 # work: touch 64 MiB
 mov $0x1000000,%rdi
 mov $0x4000000,%ecx
 mov $0x5a,%al
 rep stosb
 cmpb $0x5a,-1(%rdi)
 jne hang
 xor %eax,%eax
 cpuid
 mov $0x3f8,%edx
 mov $'3',%al
 out %al,%dx
 # power down via isa-debug-exit
 mov $0x501,%edx
 out %al,%dx
hang: hlt
 jmp hang
.align 4
gdt: .quad 0
 .quad 0x00af9a000000ffff
gdtr: .word 15
 .long gdt-_start+0x7c00
.org 510
.word 0xaa55
