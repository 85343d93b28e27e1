package mvcc

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestRowCache makes sure that what the cache has is what was set last, that
// it stays within its limit, and that what is in use stays.
func TestRowCache(t *testing.T) {
	const limit = 8 << 10
	c := newRowCache(limit)
	last := make(map[string][]byte)
	random := rand.New(rand.NewPCG(1, 2))
	hits := 0
	for i := range 20_000 {
		key := fmt.Sprintf("key-%d", random.IntN(200))
		if random.IntN(2) == 0 {
			raw, ok := c.get([]byte(key))
			if ok && !bytes.Equal(raw, last[key]) {
				t.Fatalf("step %d: %s is %q, want %q", i, key, raw, last[key])
			}
			if ok {
				hits++
			}
			continue
		}
		raw := bytes.Repeat([]byte{byte(i)}, random.IntN(40))
		if random.IntN(20) == 0 {
			raw = bytes.Repeat([]byte{byte(i)}, limit/4) // too large to be kept
		}
		last[key] = bytes.Clone(raw)
		c.set(key, raw)
		clear(raw) // the cache has a copy
		// An entry may be added to a generation that is just below its half.
		if size := sizeOf(c); size > limit+2*(rowOverhead+60) {
			t.Fatalf("step %d: %d bytes, limit %d", i, size, limit)
		}
		if c.size != generationSize(c.young) {
			t.Fatalf("step %d: counted %d bytes, has %d", i, c.size, generationSize(c.young))
		}
		c.set("busy", []byte("here"))
		if _, ok := c.get([]byte("busy")); !ok {
			t.Fatalf("step %d: what is always in use was forgotten", i)
		}
	}
	if hits == 0 {
		t.Error("nothing was ever found")
	}
}

func sizeOf(c *rowCache) int { return generationSize(c.young) + generationSize(c.old) }

func generationSize(rows map[string][]byte) int {
	n := 0
	for key, raw := range rows {
		n += rowSize(key, raw)
	}
	return n
}

func TestRowCacheForgets(t *testing.T) {
	c := newRowCache(4 << 10)
	c.set("a", []byte("small"))
	c.set("a", make([]byte, 4<<10))
	if raw, ok := c.get([]byte("a")); ok {
		t.Errorf("a row that was replaced by one too large is still there: %q", raw)
	}
	c.set("gone", nil)
	if raw, ok := c.get([]byte("gone")); !ok || len(raw) != 0 {
		t.Errorf("a deleted key: %q, %t", raw, ok)
	}
	for i := range 200 {
		c.set(fmt.Sprint("other-", i), []byte("value"))
	}
	if _, ok := c.get([]byte("gone")); ok {
		t.Error("what nobody asks for is kept for ever")
	}
}
