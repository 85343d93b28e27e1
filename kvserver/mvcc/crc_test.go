package mvcc

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// Joined CRCs are the CRC of the joined texts, for other polynomials as well.
func TestCRCJoiner(t *testing.T) {
	g := newGenerator(t)
	for name, polynomial := range map[string]uint32{"Castagnoli": crc32.Castagnoli, "IEEE": crc32.IEEE} {
		table, joiner := crc32.MakeTable(polynomial), newCRCJoiner(polynomial)
		for range 1000 {
			size := g.IntN(1 << g.IntN(18))
			text := make([]byte, size)
			for i := range text {
				text[i] = byte(rand.Uint32())
			}
			cut := g.IntN(size + 1)
			before, after := crc32.Checksum(text[:cut], table), crc32.Checksum(text[cut:], table)
			if got, want := joiner.join(before, after, uint32(size-cut)), crc32.Checksum(text, table); got != want {
				t.Fatalf("%s, %d bytes cut at %d: %#x, want %#x", name, size, cut, got, want)
			}
		}
	}
}

func BenchmarkCRCJoiner(b *testing.B) {
	joiner := newCRCJoiner(crc32.Castagnoli)
	sum, size := uint32(1), uint32(0)
	for b.Loop() {
		size++
		sum = joiner.join(sum, size, 200+size%300)
	}
}
