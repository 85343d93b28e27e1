package mvcc

// crcJoiner computes the CRC of two texts, one behind the other, from those of
// the texts. A CRC is the remainder of a polynomial, and to append n bytes is to
// multiply by x to the power of 8n.
type crcJoiner struct {
	polynomial uint32     // as in package crc32
	squares    [32]uint32 // x to the power of 2 to the power of the index
	size       uint32     // the last one asked for
	shift      uint32     // x to the power of 8*size
}

func newCRCJoiner(polynomial uint32) crcJoiner {
	j := crcJoiner{polynomial: polynomial, shift: crcOne}
	j.squares[0] = crcOne >> 1
	for i := 1; i < len(j.squares); i++ {
		j.squares[i] = j.times(j.squares[i-1], j.squares[i-1])
	}
	return j
}

// crcOne is the polynomial 1: powers grow towards the low bits.
const crcOne = 1 << 31

// join returns the CRC of a text with the CRC before, followed by one of size
// bytes with the CRC after.
func (j *crcJoiner) join(before, after, size uint32) uint32 {
	if size != j.size {
		j.size, j.shift = size, crcOne
		const bitsOfAByte = 3 // as a power of 2
		for i, n := bitsOfAByte, size; n > 0; i, n = i+1, n>>1 {
			if n&1 == 1 {
				j.shift = j.times(j.shift, j.squares[i%len(j.squares)])
			}
		}
	}
	return j.times(before, j.shift) ^ after
}

// times multiplies two polynomials, modulo the polynomial of the CRC.
func (j *crcJoiner) times(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		if a&crcOne != 0 {
			product ^= b
		}
		carry := b & 1
		b = b>>1 ^ -carry&j.polynomial
	}
	return product
}
