/* SPDX-License-Identifier: MIT */
/* loop/fiber_switch.S - the switch from one stack to another, for x86-64 and aarch64.
 *
 *	void fiber_switch(void **save, void *to);
 *		Pushes what a called function must preserve, stores the stack pointer in *save,
 *		takes @to for stack pointer and pops the same from there.
 *	void *fiber_prepare(void *top, struct fiber *f);
 *		Lays such a frame below @top (aligned to 16), so that the first switch to what it
 *		returns calls fiber_main(f) there. fiber_main() never returns.
 *
 * Both sides of a switch have the same frame, so that the unwind rules of one instruction
 * hold for either stack. An unwinder stops in fiber_entry, whose return address is undefined.
 * A shadow stack would have to be switched as well; this file does not, and so bears
 * no property note that claims it. */

#if defined(__x86_64__)

/* The frame: 0 mxcsr, 4 x87 control word, 8 r15, 16 r14, 24 r13, 32 r12, 40 rbx, 48 rbp, 56 rip. */

	.text
	.globl	fiber_switch
	.hidden	fiber_switch
	.type	fiber_switch, @function
	.p2align 4
fiber_switch:
	.cfi_startproc
	endbr64
	pushq	%rbp
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset rbp, 0
	pushq	%rbx
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset rbx, 0
	pushq	%r12
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset r12, 0
	pushq	%r13
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset r13, 0
	pushq	%r14
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset r14, 0
	pushq	%r15
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset r15, 0
	subq	$8, %rsp
	.cfi_adjust_cfa_offset 8
	stmxcsr	(%rsp)
	fnstcw	4(%rsp)
	movq	%rsp, (%rdi)
	movq	%rsi, %rsp
	ldmxcsr	(%rsp)
	fldcw	4(%rsp)
	addq	$8, %rsp
	.cfi_adjust_cfa_offset -8
	popq	%r15
	.cfi_adjust_cfa_offset -8
	.cfi_restore r15
	popq	%r14
	.cfi_adjust_cfa_offset -8
	.cfi_restore r14
	popq	%r13
	.cfi_adjust_cfa_offset -8
	.cfi_restore r13
	popq	%r12
	.cfi_adjust_cfa_offset -8
	.cfi_restore r12
	popq	%rbx
	.cfi_adjust_cfa_offset -8
	.cfi_restore rbx
	popq	%rbp
	.cfi_adjust_cfa_offset -8
	.cfi_restore rbp
	ret
	.cfi_endproc
	.size	fiber_switch, . - fiber_switch

	.globl	fiber_prepare
	.hidden	fiber_prepare
	.type	fiber_prepare, @function
	.p2align 4
fiber_prepare:
	.cfi_startproc
	endbr64
	leaq	-64(%rdi), %rax
	leaq	fiber_entry(%rip), %rdx
	xorl	%ecx, %ecx
	stmxcsr	(%rax)
	fnstcw	4(%rax)
	movq	%rcx, 8(%rax)
	movq	%rcx, 16(%rax)
	movq	%rcx, 24(%rax)
	movq	%rcx, 32(%rax)
	movq	%rsi, 40(%rax)          /* rbx: f */
	movq	%rcx, 48(%rax)          /* rbp: no frame above */
	movq	%rdx, 56(%rax)
	ret
	.cfi_endproc
	.size	fiber_prepare, . - fiber_prepare

	.type	fiber_entry, @function
	.p2align 4
	.cfi_startproc
	.cfi_undefined rip
	nop                             /* an unwinder looks one byte before the return address */
fiber_entry:
	movq	%rbx, %rdi
	call	fiber_main
	ud2
	.cfi_endproc
	.size	fiber_entry, . - fiber_entry

#elif defined(__aarch64__)

/* The frame: 0 x29 x30, 16 x19 .. x28, 96 d8 .. d15, 160 fpcr, 168 unused. */

	.text
	.globl	fiber_switch
	.hidden	fiber_switch
	.type	fiber_switch, %function
	.p2align 4
fiber_switch:
	.cfi_startproc
	hint	#34                     /* bti c */
	stp	x29, x30, [sp, #-176]!
	.cfi_def_cfa_offset 176
	.cfi_rel_offset x29, 0
	.cfi_rel_offset x30, 8
	stp	x19, x20, [sp, #16]
	.cfi_rel_offset x19, 16
	.cfi_rel_offset x20, 24
	stp	x21, x22, [sp, #32]
	.cfi_rel_offset x21, 32
	.cfi_rel_offset x22, 40
	stp	x23, x24, [sp, #48]
	.cfi_rel_offset x23, 48
	.cfi_rel_offset x24, 56
	stp	x25, x26, [sp, #64]
	.cfi_rel_offset x25, 64
	.cfi_rel_offset x26, 72
	stp	x27, x28, [sp, #80]
	.cfi_rel_offset x27, 80
	.cfi_rel_offset x28, 88
	stp	d8, d9, [sp, #96]
	stp	d10, d11, [sp, #112]
	stp	d12, d13, [sp, #128]
	stp	d14, d15, [sp, #144]
	mrs	x9, fpcr
	str	x9, [sp, #160]
	mov	x10, sp
	str	x10, [x0]
	mov	sp, x1
	ldr	x10, [sp, #160]
	cmp	x9, x10
	b.eq	1f                      /* writing fpcr is slow, and it hardly ever differs */
	msr	fpcr, x10
1:
	ldp	d14, d15, [sp, #144]
	ldp	d12, d13, [sp, #128]
	ldp	d10, d11, [sp, #112]
	ldp	d8, d9, [sp, #96]
	ldp	x27, x28, [sp, #80]
	ldp	x25, x26, [sp, #64]
	ldp	x23, x24, [sp, #48]
	ldp	x21, x22, [sp, #32]
	ldp	x19, x20, [sp, #16]
	ldp	x29, x30, [sp], #176
	.cfi_restore x19
	.cfi_restore x20
	.cfi_restore x21
	.cfi_restore x22
	.cfi_restore x23
	.cfi_restore x24
	.cfi_restore x25
	.cfi_restore x26
	.cfi_restore x27
	.cfi_restore x28
	.cfi_restore x29
	.cfi_restore x30
	.cfi_def_cfa_offset 0
	ret
	.cfi_endproc
	.size	fiber_switch, . - fiber_switch

	.globl	fiber_prepare
	.hidden	fiber_prepare
	.type	fiber_prepare, %function
	.p2align 4
fiber_prepare:
	.cfi_startproc
	hint	#34
	sub	x0, x0, #176
	adr	x9, fiber_entry
	mrs	x10, fpcr
	stp	xzr, x9, [x0]           /* x29: no frame above; x30 */
	stp	x1, xzr, [x0, #16]      /* x19: f */
	stp	xzr, xzr, [x0, #32]
	stp	xzr, xzr, [x0, #48]
	stp	xzr, xzr, [x0, #64]
	stp	xzr, xzr, [x0, #80]
	stp	xzr, xzr, [x0, #96]
	stp	xzr, xzr, [x0, #112]
	stp	xzr, xzr, [x0, #128]
	stp	xzr, xzr, [x0, #144]
	stp	x10, xzr, [x0, #160]
	ret
	.cfi_endproc
	.size	fiber_prepare, . - fiber_prepare

	.type	fiber_entry, %function
	.p2align 4
	.cfi_startproc
	.cfi_undefined x30
	nop                             /* an unwinder looks one byte before the return address */
fiber_entry:
	mov	x0, x19
	bl	fiber_main
	brk	#1
	.cfi_endproc
	.size	fiber_entry, . - fiber_entry

#else
#error "fibers are written for x86-64 and aarch64"
#endif

	.section .note.GNU-stack, "", %progbits
