package mvcc

// rowCache keeps the newest versions of the keys that were written last, so
// that the next change of a key need not look for the one before. It fills
// with the writing and is for one goroutine at a time, that of the Writers.
//
// There are two generations. What is written or found is in the young one;
// when that has half of the limit it becomes the old one, and what was in the
// old one and was not asked for since is forgotten.
type rowCache struct {
	limit int // of each generation, in bytes
	young map[string][]byte
	old   map[string][]byte
	size  int // of young
}

// rowOverhead is about what an entry takes besides its key and its value.
const rowOverhead = 64

func newRowCache(bytes int64) *rowCache {
	return &rowCache{limit: int(bytes / 2), young: make(map[string][]byte)}
}

// get returns the encoded newest version of key, empty when it was deleted. It
// is valid until the next set.
func (c *rowCache) get(key []byte) (raw []byte, ok bool) {
	if raw, ok = c.young[string(key)]; ok {
		return raw, true
	}
	if raw, ok = c.old[string(key)]; ok {
		delete(c.old, string(key))
		c.add(string(key), raw)
	}
	return raw, ok
}

// set makes a copy of raw the newest version of key.
func (c *rowCache) set(key string, raw []byte) {
	had, young := c.young[key]
	if young {
		c.size -= rowSize(key, had)
	} else {
		had = c.old[key]
		delete(c.old, key)
	}
	// Rows so large that few of them would push out everything else are left
	// out.
	if rowSize(key, raw) > c.limit/16 {
		delete(c.young, key)
		return
	}
	c.add(key, append(had[:0], raw...))
}

func (c *rowCache) add(key string, raw []byte) {
	c.young[key] = raw
	if c.size += rowSize(key, raw); c.size > c.limit {
		c.old, c.young, c.size = c.young, make(map[string][]byte), 0
	}
}

func rowSize(key string, raw []byte) int { return len(key) + cap(raw) + rowOverhead }
