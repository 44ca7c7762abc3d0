# SPDX-License-Identifier: GPL-2.0
#
# The guest: started by the reset vector or as a boot sector, it fills memory
# with known pages, says so, and then writes to a range of pages for ever.
# guest.rs has the bytes, the places that depend on where it is loaded, and the
# tables; a test assembles this file and compares.
#
# as --32 guest.S -o guest.o && objcopy -O binary guest.o guest.bin

	.intel_syntax noprefix
	.text
	.code16
start:
	cli
	cld
	in	al, 0x92			# Address line 20 on, no reset.
	or	al, 2
	and	al, 0xfe
	out	0x92, al
	.byte	0x2e, 0x66, 0x0f, 0x01, 0x16	# lgdt cs:[table], base of 32 bits
	.word	table				# Patched.
	mov	eax, cr0
	or	al, 1
	mov	cr0, eax
	.byte	0x66, 0xea			# Far jump of 32 bits.
	.long	protected			# Patched.
	.word	8

	.code32
protected:
	mov	ax, 16
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
	mov	esp, 0x7000
	mov	esi, offset regions		# Patched.
region:
	mov	edi, [esi]			# First byte.
	mov	ecx, [esi + 4]			# Pages; 0 ends the list.
	jecxz	filled
	mov	edx, [esi + 8]			# Seed of the first page.
page:
	call	fill
	add	edx, [esi + 12]			# Step of the seed.
	dec	ecx
	jnz	page
	add	esi, 16
	jmp	region
filled:
	mov	esi, offset writes		# Patched.
	xor	ebp, ebp
	mov	dword ptr [0x5000], 0x59444552	# "REDY"
pass:
	mov	ecx, [esi + 4]			# Pages.
	jecxz	idle
	inc	ebp
	invlpg	[0x5000]			# See guest.rs.
	mov	[0x5004], ebp
	mov	edi, [esi]			# First byte.
	imul	edx, ebp, 0x01000193
	add	edx, [esi + 8]			# Seed of the first page.
write:
	invlpg	[edi]
	cmp	dword ptr [esi + 16], 0
	jne	whole
	mov	[edi], ebp
	add	edi, 4096
	jmp	written
whole:
	call	fill
	add	edx, [esi + 12]			# Step of the seed.
written:
	mov	eax, [esi + 20]			# Delay.
delay:
	sub	eax, 1
	jns	delay
	dec	ecx
	jnz	write
	jmp	pass
idle:
	hlt
	jmp	idle

# Fills the page at edi from the seed in edx; edi moves to the next page.
fill:
	push	ecx
	imul	eax, edx, 0x9e3779b1
	mov	ecx, 1024
words:
	mov	ebx, eax
	shl	ebx, 13
	xor	eax, ebx
	mov	ebx, eax
	shr	ebx, 17
	xor	eax, ebx
	mov	ebx, eax
	shl	ebx, 5
	xor	eax, ebx
	mov	[edi], eax
	add	edi, 4
	dec	ecx
	jnz	words
	pop	ecx
	ret

	.balign	8
table:						# Limit, base (patched); used as null descriptor too.
	.word	23
	.long	table
	.word	0
	.quad	0x00cf9b000000ffff		# Code: 4 GiB, 32 bits.
	.quad	0x00cf93000000ffff		# Data: 4 GiB.
writes:						# Written by guest.rs: first, pages, seed, step, kind, delay.
	.space	24
regions:					# Written by guest.rs.
